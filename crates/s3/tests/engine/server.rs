//! The engine against the embedded server, on a real socket.

use std::time::Duration;

use crate::support::{config, pattern, read, source, with};
use bytes::Bytes;
use s3dcp_s3::{
    Client, ClientConfig, Condition, CopySource, ErrorKind, Payload, PutOptions, Segment,
    ServerSideEncryption, StaticCredentials, UploadOptions, WhenLate, crc32,
};
use s3dcp_server::{Server, ServerConfig};

const MIB: usize = 1 << 20;
const BUCKET: &str = "bkt";

async fn start() -> (Server, Client) {
    start_with(|config| config).await
}

async fn start_with(change: impl Fn(ClientConfig) -> ClientConfig) -> (Server, Client) {
    let server =
        Server::start(with(ServerConfig::default(), |config| config.buckets = vec![BUCKET.to_owned()]))
            .await
            .unwrap();
    let config = config(&server.endpoint_url(), server.access_key(), server.secret_key());
    (server, Client::new(change(config)).unwrap())
}

async fn put(client: &Client, key: &str, bytes: Vec<u8>) {
    client.put_object(BUCKET, key, Payload::from(bytes), &PutOptions::default()).await.unwrap();
}

#[tokio::test]
async fn odd_keys_survive_every_operation() {
    let (_server, client) = start().await;
    let keys = ["a b", "a+b", "a%20b", "ä/é/日本", "x//y", "q?&=#", "(1)*'!~", "a/./b", "tab\tend"];
    for key in keys {
        put(&client, key, key.as_bytes().to_vec()).await;
        let got = client.get_object(BUCKET, key).await.unwrap();
        assert_eq!((got.body, got.info.key.as_str()), (Bytes::from(key), key));
        let info = client.head_object(BUCKET, key).await.unwrap();
        assert_eq!(
            (info.size, info.etag.is_some(), info.last_modified.is_some()),
            (key.len() as u64, true, true)
        );
        client.copy_object(&source(BUCKET, key), BUCKET, &format!("copy/{key}")).await.unwrap();
    }
    let listing = client.list_objects(BUCKET, "copy/", None).await.unwrap();
    let mut found: Vec<_> = listing.objects.iter().map(|object| &object.key["copy/".len()..]).collect();
    let mut expected = keys.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let all: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(client.delete_objects(BUCKET, &all, WhenLate::Wait).await.unwrap(), []);
    client.delete_object(BUCKET, "copy/a b").await.unwrap();
    client.delete_object(BUCKET, "never there").await.unwrap();
    assert_eq!(client.list_objects(BUCKET, "", None).await.unwrap().objects.len(), keys.len() - 1);
}

#[tokio::test]
async fn an_empty_object_is_an_object() {
    let (_server, client) = start().await;
    put(&client, "empty", Vec::new()).await;
    assert_eq!(client.head_object(BUCKET, "empty").await.unwrap().size, 0);
    assert!(client.get_object(BUCKET, "empty").await.unwrap().body.is_empty());
    assert!(client.get_range(BUCKET, "empty", 0..0).await.unwrap().is_empty());
    let output = client.upload(BUCKET, "empty2", UploadOptions::default()).finish().await.unwrap();
    assert_eq!((output.size, output.crc32, output.parts), (0, 0, 0));
}

#[tokio::test]
async fn conditions_hold() {
    let (_server, client) = start().await;
    let put = |condition| {
        let options = with(PutOptions::default(), |options| options.condition = condition);
        let client = client.clone();
        async move { client.put_object(BUCKET, "k", Payload::from(b"v".to_vec()), &options).await }
    };
    let first = put(Condition::IfNoneMatch).await.unwrap().etag.unwrap();
    let error = put(Condition::IfNoneMatch).await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::PreconditionFailed, false));
    let second = put(Condition::IfMatch(first.clone())).await.unwrap().etag;
    assert_eq!(
        put(Condition::IfMatch("\"other\"".to_owned())).await.unwrap_err().kind(),
        ErrorKind::PreconditionFailed
    );
    assert_eq!(client.head_object(BUCKET, "k").await.unwrap().etag, second);
}

#[tokio::test]
async fn encryption_that_the_service_confirms_is_fine() {
    let server_side_encryption = Some(ServerSideEncryption::Aes256);
    let (_server, client) = start_with(|config| {
        with(config, |config| config.server_side_encryption = server_side_encryption.clone())
    })
    .await;
    put(&client, "k", b"v".to_vec()).await;
    client.copy_object(&source(BUCKET, "k"), BUCKET, "copy").await.unwrap();
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    let mut upload = client.upload(BUCKET, "parts", options);
    for _ in 0..2 {
        let part = Bytes::from(pattern(5 * MIB));
        upload.push(part.clone(), crc32(&part)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap().parts, 2);
}

#[tokio::test]
async fn an_object_is_made_of_parts_that_are_sent_and_parts_that_are_copied() {
    let (_server, client) = start().await;
    let body = pattern(12 * MIB);
    put(&client, "source", body.clone()).await;
    let etag = client.head_object(BUCKET, "source").await.unwrap().etag;
    let from = CopySource { etag, ..source(BUCKET, "source") };
    let before = client.stats();
    let mut assembly = client.assemble(BUCKET, "whole");
    assembly.copy(&from, 7..7 + (5 << 20)).unwrap();
    assembly.push(Payload::from(body[..5 * MIB].to_vec()), crc32(&body[..5 * MIB])).await.unwrap();
    assembly.copy(&from, 0..3).unwrap();
    let made = assembly.finish().await.unwrap();
    assert!(client.stats().bytes_sent - before.bytes_sent < 6 << 20);
    let whole = [&body[7..7 + 5 * MIB], &body[..5 * MIB], &body[..3]].concat();
    assert_eq!((made.size, made.crc32), (whole.len() as u64, Some(crc32(&whole))));
    assert!(client.get_object(BUCKET, "whole").await.unwrap().body == whole);
    assert_eq!(client.head_checksum(BUCKET, "whole").await.unwrap().1, made.crc32);
}

#[tokio::test]
async fn a_source_that_changes_and_a_part_that_is_too_short_leave_no_upload() {
    let (_server, client) = start().await;
    put(&client, "source", pattern(6 * MIB)).await;
    let old = client.head_object(BUCKET, "source").await.unwrap().etag;
    put(&client, "source", pattern(7 * MIB)).await;
    let from = CopySource { etag: old, ..source(BUCKET, "source") };
    let mut assembly = client.assemble(BUCKET, "k");
    assembly.copy(&from, 0..5 << 20).unwrap();
    let error = assembly.finish().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert!(error.message().contains("source changed while it was copied"), "{error}");
    let mut assembly = client.assemble(BUCKET, "k");
    assembly.copy(&source(BUCKET, "source"), 0..3).unwrap();
    assert_eq!(assembly.copy(&from, 0..5 << 20).unwrap_err().kind(), ErrorKind::Config);
    assembly.abort().await;
    assert_eq!(client.list_multipart_uploads(BUCKET, "").await.unwrap(), []);
    assert_eq!(client.head_object(BUCKET, "k").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_wrong_checksum_stores_nothing() {
    let (_server, client) = start().await;
    let options = with(PutOptions::default(), |options| options.crc32 = Some(1));
    let error = client.put_object(BUCKET, "k", Payload::from(b"v".to_vec()), &options).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Corrupt, 2));
    assert_eq!(client.head_object(BUCKET, "k").await.unwrap_err().kind(), ErrorKind::NotFound);
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    let mut upload = client.upload(BUCKET, "k", options);
    let half = Bytes::from(pattern(3 * MIB));
    upload.push(half.slice(..2 * MIB), crc32(&half[..2 * MIB])).await.unwrap();
    upload.push(half.clone(), crc32(&half) ^ 1).await.unwrap();
    upload.push(half.clone(), crc32(&half)).await.ok();
    let error = upload.finish().await.unwrap_err();
    assert_eq!((error.kind(), error.part()), (ErrorKind::Corrupt, Some(1)));
    assert_eq!(client.list_multipart_uploads(BUCKET, "").await.unwrap(), []);
}

#[tokio::test]
async fn a_missing_bucket_is_told_from_a_missing_key() {
    let (_server, client) = start().await;
    let error = client.get_object(BUCKET, "nothing").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, Some("NoSuchKey")));
    let error = client.get_object("nowhere", "k").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, Some("NoSuchBucket")));
    assert!(error.message().contains("\"nowhere\""), "{error}");
    let error = client.head_object(BUCKET, "nothing").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, None));
}

#[tokio::test]
async fn wrong_keys_are_denied_without_telling_them() {
    let (server, _) = start().await;
    let wrong = with(config(&server.endpoint_url(), "", ""), |config| {
        config.credentials = Some(StaticCredentials::new(server.access_key(), "WRONG-SECRET"))
    });
    let error = Client::new(wrong).unwrap().list_objects(BUCKET, "", None).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Denied, 1));
    assert!(!format!("{error:?}").contains("WRONG-SECRET"));
    let anonymous = with(config(&server.endpoint_url(), "", ""), |config| {
        config.credentials = None;
        config.unsigned = true;
    });
    let error = Client::new(anonymous).unwrap().list_objects(BUCKET, "", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_wrong_region_is_named_with_the_right_one() {
    let server = Server::start(with(ServerConfig::default(), |config| {
        config.region = Some("eu-central-1".to_owned());
        config.buckets = vec![BUCKET.to_owned()];
    }))
    .await
    .unwrap();
    let client =
        Client::new(config(&server.endpoint_url(), server.access_key(), server.secret_key())).unwrap();
    let error = client.list_objects(BUCKET, "", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    for word in ["region", "us-east-1", "eu-central-1"] {
        assert!(error.message().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_profile_that_does_not_exist_is_a_clear_error() {
    let (server, _) = start().await;
    let config = with(config(&server.endpoint_url(), "", ""), |config| {
        config.credentials = None;
        config.profile = Some("surely-not-configured".to_owned());
    });
    let error = Client::new(config).unwrap().list_objects(BUCKET, "", None).await.unwrap_err();
    assert!(error.message().contains("surely-not-configured"), "{error}");
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Denied), "{error:?}");
}

#[tokio::test]
async fn a_listing_has_all_pages_and_one_level_with_a_delimiter() {
    let (_server, client) = start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..2100 {
        let client = client.clone();
        tasks.spawn(async move { put(&client, &format!("dir{}/{n:05}", n % 3), vec![0; n % 7]).await });
    }
    tasks.join_all().await;
    let all = client.list_objects(BUCKET, "", None).await.unwrap();
    assert_eq!(all.objects.len(), 2100);
    assert!(all.objects.windows(2).all(|pair| pair[0].key < pair[1].key));
    assert_eq!(client.list_objects(BUCKET, "dir1/", None).await.unwrap().objects.len(), 700);
    let top = client.list_objects(BUCKET, "", Some("/")).await.unwrap();
    assert_eq!(
        (top.objects.len(), top.common_prefixes),
        (0, vec!["dir0/".to_owned(), "dir1/".to_owned(), "dir2/".to_owned()])
    );
    let keys: Vec<String> = all.objects.into_iter().map(|object| object.key).collect();
    assert_eq!(client.delete_objects(BUCKET, &keys, WhenLate::Wait).await.unwrap(), []);
    assert!(client.list_objects(BUCKET, "", None).await.unwrap().objects.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_downloads_are_byte_equal_under_a_small_budget() {
    let (_server, client) = start_with(|config| {
        with(config, |config| {
            config.max_in_flight_bytes = Some(6 << 20);
            config.max_connections = Some(3);
        })
    })
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    // Sizes around one part, and several; more uploads than the budget has parts.
    for (number, size) in [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 17 * MIB].into_iter().enumerate() {
        for hint in [None, Some(size as u64)] {
            let client = client.clone();
            tasks.spawn(async move {
                let bytes = Bytes::from(pattern(size));
                let key = format!("{number}-{}", hint.is_some());
                let mut upload = client.upload(
                    BUCKET,
                    &key,
                    with(UploadOptions::default(), |options| {
                        options.part_size = Some(5 << 20);
                        options.size_hint = hint;
                    }),
                );
                let mut rest = bytes.clone();
                while !rest.is_empty() {
                    let piece = rest.split_to(rest.len().min(upload.part_remaining() as usize).min(777_777));
                    let crc = crc32(&piece);
                    upload.push(piece, crc).await.unwrap();
                }
                let output = upload.finish().await.unwrap();
                assert_eq!((output.size, output.crc32), (size as u64, crc32(&bytes)));
                let whole_is_one_put = size < 5 * MIB || (size == 5 * MIB && hint.is_some());
                let parts = if whole_is_one_put { 0 } else { size.div_ceil(5 * MIB) };
                assert_eq!(output.parts as usize, parts, "{size} {hint:?}");
                let info = client.head_object(BUCKET, &key).await.unwrap();
                assert_eq!((info.size, info.etag), (size as u64, output.etag));
                let mut jobs = Vec::new();
                let mut fed = Vec::new();
                for start in (0..size).step_by(MIB) {
                    let end = size.min(start + MIB);
                    let (job, sink) = read(&key, start as u64..end as u64);
                    jobs.push(job);
                    fed.push((sink, start..end));
                }
                client.download(BUCKET, jobs).await.unwrap();
                for (sink, range) in fed {
                    let fed = sink.lock().unwrap();
                    assert_eq!((&fed.bytes[..], fed.finished, fed.restarts), (&bytes[range], 1, 0));
                }
            });
        }
    }
    tasks.join_all().await;
    assert_eq!(client.list_multipart_uploads(BUCKET, "").await.unwrap(), []);
}

/// How many parts of 5 MiB go while none is answered, of which the first so many are borrowed and others copied. The client lets
/// one copied part go at a time, and five parts in all.
async fn parts_that_go(borrowed: usize, copied: usize) -> usize {
    let (server, client) = start_with(|config| {
        with(config, |config| {
            config.max_in_flight_bytes = Some(5 << 20);
            config.max_connections = Some(5);
        })
    })
    .await;
    server.inject("silence on=UploadPart".parse().unwrap());
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    let mut upload = client.upload(BUCKET, "k", options);
    let part = Bytes::from(vec![1; 5 << 20]);
    let crc = crc32(&part);
    let mut went = 0;
    for number in 0..borrowed + copied {
        let bytes = part.clone();
        let segment = if number < borrowed { Segment::borrowed(bytes) } else { bytes.into() };
        // One that may go goes at once; one that waits does so for an answer.
        went += usize::from(tokio::time::timeout(Duration::ZERO, upload.push(segment, crc)).await.is_ok());
    }
    upload.abort().await;
    went
}

#[tokio::test]
async fn what_is_borrowed_waits_for_connections_and_copies_for_memory() {
    assert_eq!(parts_that_go(8, 0).await, 5);
    assert_eq!(parts_that_go(0, 8).await, 1);
    assert_eq!(parts_that_go(3, 2).await, 4);
}

#[tokio::test]
async fn parts_grow_once_the_first_shows_that_they_need_no_memory() {
    let (_server, client) =
        start_with(|config| with(config, |config| config.max_in_flight_bytes = Some(5 << 20))).await;
    let mut sizes = Vec::new();
    for in_place in [false, true] {
        let options = with(UploadOptions::default(), |options| {
            options.size_hint = Some(1 << 30);
            options.requests_per_second = Some(40.0);
        });
        let mut upload = client.upload(BUCKET, "k", options);
        let first = upload.part_remaining();
        let bytes = Bytes::from(vec![1; first as usize]);
        let crc = crc32(&bytes);
        upload.push(if in_place { Segment::borrowed(bytes) } else { bytes.into() }, crc).await.unwrap();
        sizes.push((first, upload.part_remaining()));
        upload.abort().await;
    }
    let [(first, copied), (again, in_place)] = sizes[..] else { panic!("{sizes:?}") };
    assert_eq!((first, first), (again, copied));
    assert!(in_place > 2 * first, "{sizes:?}");
}

#[tokio::test]
async fn an_upload_under_way_is_listed_until_it_is_aborted() {
    let (_server, client) = start().await;
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    let mut upload = client.upload(BUCKET, "a b/k", options);
    let part = Bytes::from(vec![1; 5 << 20]);
    upload.push(part.clone(), crc32(&part)).await.unwrap();
    let uploads = loop {
        let uploads = client.list_multipart_uploads(BUCKET, "a b/").await.unwrap();
        if !uploads.is_empty() {
            break uploads;
        }
    };
    assert_eq!((uploads.len(), uploads[0].key.as_str()), (1, "a b/k"));
    let id = &uploads[0].upload_id;
    let parts = loop {
        let parts = client.list_parts(BUCKET, "a b/k", id).await.unwrap();
        if !parts.is_empty() {
            break parts;
        }
    };
    assert_eq!((parts.len(), parts[0].number, parts[0].size), (1, 1, 5 << 20));
    let clock = client.list_objects(BUCKET, "", None).await.unwrap().service_time.unwrap();
    for time in [uploads[0].initiated.unwrap(), parts[0].last_modified.unwrap()] {
        assert!(clock.duration_since(time).unwrap().as_secs() < 3600);
    }
    upload.abort().await;
    assert_eq!(client.list_parts(BUCKET, "a b/k", id).await.unwrap_err().code(), Some("NoSuchUpload"));
    assert_eq!(client.list_multipart_uploads(BUCKET, "").await.unwrap(), []);
    client.abort_multipart_upload(BUCKET, "a b/k", &uploads[0].upload_id).await.unwrap();
    assert_eq!(client.head_object(BUCKET, "a b/k").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_upload_that_is_given_up_while_it_finishes_is_aborted_by_then() {
    let (_server, client) = start().await;
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    for parts in [0, 3] {
        let mut upload = client.upload(BUCKET, "k", options);
        let part = Bytes::from(vec![1; 5 << 20]);
        for _ in 0..parts {
            upload.push(part.clone(), crc32(&part)).await.unwrap();
        }
        let error = upload.finish_unless(std::future::ready(())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(client.list_multipart_uploads(BUCKET, "").await.unwrap(), []);
        assert_eq!(client.head_object(BUCKET, "k").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn an_object_that_is_one_request_has_a_second_to_end_when_it_is_given_up() {
    for (delay, ends) in [("300ms", true), ("3000ms", false)] {
        let (server, client) = start().await;
        server.inject(format!("delay:{delay} on=PutObject").parse().unwrap());
        let upload = client.upload(BUCKET, "k", UploadOptions::default());
        let soon = tokio::time::sleep(std::time::Duration::from_millis(100));
        let finished = upload.finish_unless(soon).await;
        assert_eq!(finished.is_ok(), ends, "{finished:?}");
        if ends {
            client.head_object(BUCKET, "k").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_segment_past_the_part_and_bad_options_are_refused() {
    let (_server, client) = start().await;
    let mut upload = client.upload(
        BUCKET,
        "k",
        with(UploadOptions::default(), |options| options.part_size = Some(5 << 20)),
    );
    let error = upload.push(Bytes::from(vec![0; (5 << 20) + 1]), 0).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Config, Some("k")));
    let mut upload =
        client.upload(BUCKET, "k", with(UploadOptions::default(), |options| options.part_size = Some(1)));
    let error = upload.push(Bytes::from_static(b"x"), crc32(b"x")).await.unwrap_err();
    assert!(error.message().contains("part_size"), "{error}");
    for (bucket, key) in [("", "k"), ("a/b", "k"), (BUCKET, "")] {
        let error =
            client.put_object(bucket, key, Payload::default(), &PutOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    assert_eq!(client.stats().requests, 0);
}

#[tokio::test]
async fn a_truncated_object_is_corrupt_not_short() {
    let (_server, client) = start().await;
    put(&client, "k", pattern(100)).await;
    for range in [50..150, 200..300] {
        let error = client.get_range(BUCKET, "k", range).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let backwards = std::ops::Range { start: 5, end: 4 };
    assert_eq!(client.get_range(BUCKET, "k", backwards).await.unwrap_err().kind(), ErrorKind::Config);
}
