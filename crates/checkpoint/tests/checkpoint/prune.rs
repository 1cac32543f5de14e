//! What killed and failed saves leave: found, told from what is in use, and deleted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{Action, BUCKET, Bed, Head, storage, stored};
use bytes::Bytes;
use s3dcp_checkpoint::{Leftover, LeftoverKind, Leftovers, discard, find_leftovers};
use s3dcp_s3::{Client, Error, ErrorKind, Upload, UploadOptions, crc32};

const ID: &str = "0123456789abcdef";
const DAY: Duration = Duration::from_secs(24 * 3600);
const PART: usize = 5 << 20;

/// The key of a shard file of ours below `run`.
fn shard(front: &str) -> String {
    format!("run/{front}-{ID}.distcp")
}

/// The same, as an index at `run` names it.
fn named(front: &str) -> String {
    format!("{front}-{ID}.distcp")
}

fn index(files: &[&str]) -> Bytes {
    let files: Vec<String> = files.iter().map(|front| named(front)).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    stored("s", None, &files)
}

/// An index in which `name` was replaced by one of the same length.
fn renamed(index: &Bytes, name: &str, by: &str) -> Bytes {
    // without its trailer, which would tell
    let mut body = index[..index.len() - 20].to_vec();
    let at = body.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    body[at..at + name.len()].copy_from_slice(by.as_bytes());
    body.into()
}

async fn find(client: &Client) -> Result<Leftovers, Error> {
    find_leftovers(&storage(client), "run", Duration::ZERO).await
}

fn keys(leftovers: &[Leftover]) -> Vec<&str> {
    leftovers.iter().map(|leftover| &leftover.key[..]).collect()
}

/// An upload with one part on the server.
async fn begin_upload(bed: &Bed, key: &str) -> Upload {
    let mut options = UploadOptions::default();
    options.part_size = Some(PART as u64);
    let mut upload = bed.client.upload(BUCKET, key, options);
    let part = Bytes::from(vec![7; PART]);
    upload.push(part.clone(), crc32(&part)).await.unwrap();
    loop {
        let listed = bed.client.list_multipart_uploads(BUCKET, key).await.unwrap();
        if let [only] = &listed[..]
            && !bed.client.list_parts(BUCKET, key, &only.upload_id).await.unwrap().is_empty()
        {
            return upload;
        }
    }
}

fn is_listing(head: &Head) -> bool {
    head.path.contains("list-type=2") && head.path.ends_with("prefix=run%2F")
}

#[tokio::test]
async fn where_uploads_or_their_parts_cannot_be_listed_the_rest_is_found_and_it_is_said() {
    for refused in ["uploads", "uploadId"] {
        for (status, code) in [(501, "NotImplemented"), (400, "InvalidArgument"), (405, "MethodNotAllowed")] {
            let bed = Bed::start().await;
            bed.put(&shard("__0_0"), "left").await;
            let _upload = begin_upload(&bed, &shard("__1_0")).await;
            let client = bed
                .through(1, move |head| match head.method == "GET" && head.path.contains(refused) {
                    true => Action::Answer(status, code),
                    false => Action::Forward,
                })
                .await;
            let found = find(&client).await.unwrap();
            assert_eq!(keys(&found.old), [shard("__0_0")], "{refused} {status}");
            assert_eq!(found.uploads_unlisted.as_ref().and_then(Error::status), Some(status));
            assert!(find(&bed.client).await.unwrap().uploads_unlisted.is_none());
        }
    }
}

#[tokio::test]
async fn the_parts_of_others_uploads_are_asked_for_only_where_they_may_count_and_may_be_denied() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "left").await;
    let uploads = [begin_upload(&bed, &shard("__1_0")).await, begin_upload(&bed, "run/model.pt").await];
    let client = bed
        .through(1, |head| match head.method == "GET" && head.path.contains("model.pt?") {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    let found = find(&client).await.unwrap();
    assert_eq!(keys(&found.old), [shard("__1_0"), shard("__0_0")]);
    assert_eq!((found.uploads_unlisted.unwrap().status(), &found.other_uploads[..]), (Some(403), &[][..]));
    let young = find_leftovers(&storage(&client), "run", Duration::from_secs(3600)).await.unwrap();
    assert_eq!((young.uploads_unlisted.is_none(), young.younger), (true, 2));

    let client = bed
        .through(1, |head| match head.method == "GET" && head.path.contains("__1_0") {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    assert_eq!(find(&client).await.unwrap_err().kind(), ErrorKind::Denied, "one of ours");
    for upload in uploads {
        upload.abort().await;
    }
}

#[tokio::test]
async fn what_saves_leave_is_found_and_deleted_and_nothing_else() {
    let bed = Bed::start().await;
    let left = [
        shard("0000000000/epoch_5/__0_0"),
        shard("__3_12"),
        shard("a strategy of my own/7"),
        shard("inner/__1_0"),
        format!("run/.s3dcp-probe-{ID}"),
        format!("run/inner/.s3dcp-probe-{ID}"),
    ];
    let in_use = ["__0_0", "0000000000/epoch_4/__0_0", "ranks/__0_0", "ranks/epoch_2/__0_0", "inner/__0_0"];
    let foreign = ["run/__0_0.distcp", "run/notes.txt", "run/.s3dcp-probe-mine", "run/__0_0-abc.distcp"];
    let beside =
        [format!("run2/__0_0-{ID}.distcp"), format!("__0_0-{ID}.distcp"), format!("run-{ID}.distcp")];
    let indexes = [
        ("run/.metadata", index(&["__0_0"])),
        ("run/epoch_4/.metadata", index(&["../0000000000/epoch_4/__0_0"])),
        ("run/ranks/__0.metadata", index(&["__0_0"])),
        ("run/ranks/epoch_2/__11.metadata", index(&["__0_0"])),
        ("run/inner/.metadata", index(&["__0_0"])),
    ];
    for key in left.iter().cloned().chain(in_use.map(shard)).chain(foreign.map(str::to_owned)).chain(beside) {
        bed.put(&key, "12345").await;
    }
    for (key, body) in indexes {
        bed.put(key, body).await;
    }
    let ours = begin_upload(&bed, &shard("__9_0")).await;
    let theirs = begin_upload(&bed, "run/__9_0.distcp").await;
    let before = bed.keys().await;

    let found = find(&bed.client).await.unwrap();
    let shown: Vec<_> = found
        .old
        .iter()
        .map(|leftover| {
            (matches!(leftover.kind, LeftoverKind::Upload { .. }), &leftover.key[..], leftover.bytes)
        })
        .collect();
    let mut expected = vec![(true, "run/__9_0-0123456789abcdef.distcp", PART as u64)];
    expected.extend(left.iter().map(|key| (false, &key[..], 5)));
    assert_eq!(shown, expected);
    assert_eq!(found.younger, 0);
    assert_eq!(keys(&found.other_uploads), ["run/__9_0.distcp"]);
    assert_eq!(bed.keys().await, before, "looking deletes nothing");

    let pruned = found.delete(&storage(&bed.client)).await;
    assert!(pruned.failed.is_empty() && pruned.named.is_empty() && pruned.stopped.is_none(), "{pruned:?}");
    assert_eq!(pruned.deleted.len(), left.len() + 1);
    let stay: Vec<String> = before.into_iter().filter(|key| !left.contains(key)).collect();
    assert_eq!(bed.keys().await, stay);
    let uploads = bed.client.list_multipart_uploads(BUCKET, "").await.unwrap();
    assert_eq!(uploads.iter().map(|upload| &upload.key[..]).collect::<Vec<_>>(), ["run/__9_0.distcp"]);
    for upload in [ours, theirs] {
        upload.abort().await;
    }
}

#[tokio::test]
async fn the_whole_bucket_is_a_path_too() {
    let bed = Bed::start().await;
    bed.put(&format!("__0_0-{ID}.distcp"), "shard").await;
    bed.put(&format!("__1_0-{ID}.distcp"), "shard").await;
    bed.put(".metadata", index(&["__1_0"])).await;
    let found = find_leftovers(&storage(&bed.client), "", Duration::ZERO).await.unwrap();
    assert_eq!(keys(&found.old), [format!("__0_0-{ID}.distcp")]);
}

#[tokio::test]
async fn a_path_within_a_checkpoint_spares_what_the_indexes_above_it_name() {
    for (key, file) in [
        (".metadata", "a/run/x/__0_0"),
        ("a/.metadata", "run/x/__0_0"),
        ("a/__3.metadata", "run/x/__0_0"),
        ("a/epoch_7/.metadata", "../run/x/__0_0"),
        ("epoch_7/__2.metadata", "../a/run/x/__0_0"),
        ("a/run/x/.metadata", "__0_0"),
    ] {
        let bed = Bed::start().await;
        for front in ["__0_0", "__1_0"] {
            bed.put(&format!("a/run/x/{front}-{ID}.distcp"), "shard").await;
        }
        bed.put(key, index(&[file])).await;
        let found = find_leftovers(&storage(&bed.client), "a/run", Duration::ZERO).await.unwrap();
        assert_eq!(keys(&found.old), [format!("a/run/x/__1_0-{ID}.distcp")], "{key}");
    }
}

#[tokio::test]
async fn an_index_that_cannot_be_read_ends_it() {
    let damaged = [
        ("run/.metadata", Bytes::from_static(b"damaged")),
        ("run/epoch_1/.metadata", index(&["__0_0"]).slice(..60)),
        ("run/deep/er/__4.metadata", Bytes::new()),
        (".metadata", index(&["/absolute"])),
        ("epoch_3/.metadata", Bytes::from_static(b"damaged")),
        ("run/inner/.metadata", renamed(&index(&["__0_0"]), "relative_path", "unknown_place")),
    ];
    for (key, body) in damaged {
        let bed = Bed::start().await;
        bed.put(&shard("__0_0"), "shard").await;
        let found = find(&bed.client).await.unwrap();
        bed.put(key, body).await;
        let error = find(&bed.client).await.unwrap_err();
        assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(key)));
        assert!(error.message().contains("none is deleted"), "{error}");
        let pruned = found.delete(&storage(&bed.client)).await;
        assert!(pruned.deleted.is_empty(), "{key}");
        assert_eq!(pruned.stopped.unwrap().key(), Some(key));
        assert!(bed.exists(&shard("__0_0")).await);
    }
}

#[tokio::test]
async fn an_index_of_classes_that_nobody_knows_still_names_its_files() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    bed.put("run/.metadata", renamed(&index(&["__0_0"]), "_StorageInfo", "_StorageNews")).await;
    assert!(find(&bed.client).await.unwrap().old.is_empty());
}

#[tokio::test]
async fn an_index_that_may_not_be_read_or_looked_for_ends_it() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    bed.put("run/.metadata", index(&["__1_0"])).await;
    let found = find(&bed.client).await.unwrap();
    let denied = bed
        .through(2, |head| match head.path.ends_with("run/.metadata") {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    let error = find(&denied).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Denied, Some("run/.metadata")));
    let blind = bed
        .through(2, |head| match head.path.contains("list-type=2") && !is_listing(head) {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    assert_eq!(find(&blind).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(found.delete(&storage(&blind)).await.stopped.unwrap().kind(), ErrorKind::Denied);
    assert!(bed.exists(&shard("__0_0")).await);
}

#[tokio::test]
async fn a_file_that_an_index_names_between_look_and_deletion_stays() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    bed.put(&shard("__1_0"), "shard").await;
    bed.put("run/.metadata", index(&["__2_0"])).await;
    let found = find(&bed.client).await.unwrap();
    assert_eq!(found.old.len(), 2);
    bed.put("run/.metadata", index(&["__0_0"])).await;
    let pruned = found.delete(&storage(&bed.client)).await;
    assert_eq!(keys(&pruned.named), [shard("__0_0")]);
    assert_eq!(keys(&pruned.deleted), [shard("__1_0")]);
    assert_eq!(bed.keys().await, ["run/.metadata".to_owned(), shard("__0_0")]);
}

#[tokio::test]
async fn an_index_committed_during_the_search_is_read_before_anything_is_deleted() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    let listings = AtomicU32::new(0);
    let body = index(&["__0_0"]);
    let client = bed
        .through(2, move |head| match is_listing(head) && listings.fetch_add(1, Ordering::SeqCst) == 1 {
            true => Action::PutBefore("run/.metadata", body.clone()),
            false => Action::Forward,
        })
        .await;
    let pruned = find(&client).await.unwrap().delete(&storage(&client)).await;
    assert_eq!((pruned.named.len(), pruned.deleted.len()), (1, 0));
    assert!(bed.exists(&shard("__0_0")).await);
}

#[tokio::test]
async fn indexes_are_looked_at_again_before_every_round() {
    let bed = Bed::start().await;
    let fronts: Vec<String> = (0..1100).map(|rank| format!("__{rank:04}_0")).collect();
    for front in &fronts {
        bed.put(&shard(front), "").await;
    }
    let last: Vec<&str> = fronts[1000..].iter().map(String::as_str).collect();
    let (body, deletions) = (index(&last), AtomicU32::new(0));
    let client = bed
        .through(2, move |head| {
            match head.method == "POST" && deletions.fetch_add(1, Ordering::SeqCst) == 0 {
                true => Action::PutBefore("run/.metadata", body.clone()),
                false => Action::Forward,
            }
        })
        .await;
    let pruned = find(&client).await.unwrap().delete(&storage(&client)).await;
    assert_eq!((pruned.deleted.len(), pruned.named.len()), (1000, 100));
    assert!(bed.exists(&shard(last[0])).await && bed.exists(&shard(last[99])).await);
}

/// An answer with this clock, and this time of writing for all it lists.
fn with_times(answer: String, clock: &str, written: &str) -> String {
    let mut lines: Vec<String> = answer.split("\r\n").map(str::to_owned).collect();
    for line in &mut lines {
        if line.to_ascii_lowercase().starts_with("date: ") {
            *line = format!("date: {clock}");
        }
    }
    let mut answer = lines.join("\r\n");
    let tag = "<LastModified>";
    for at in answer.match_indices(tag).map(|(at, _)| at + tag.len()).collect::<Vec<_>>() {
        answer.replace_range(at..at + written.len(), written);
    }
    answer
}

#[tokio::test]
async fn ages_are_by_the_clock_of_the_service() {
    type Change = fn(String) -> String;
    let cases: [(Change, usize); 4] = [
        (|answer| with_times(answer, "Tue, 10 Nov 2026 12:00:00 GMT", "2026-11-09T12:00:00.000Z"), 1),
        (|answer| with_times(answer, "Tue, 10 Nov 2026 12:00:00 GMT", "2026-11-09T12:00:01.000Z"), 0),
        // the service's clock runs backwards
        (|answer| with_times(answer, "Tue, 10 Nov 2026 12:00:00 GMT", "2026-11-12T12:00:00.000Z"), 0),
        // a time that cannot be read
        (|answer| with_times(answer, "Tue, 10 Nov 2026 12:00:00 GMT", "yesterday, about noon   "), 0),
    ];
    for (change, old) in cases {
        let bed = Bed::start().await;
        bed.put(&shard("__0_0"), "shard").await;
        let client = bed
            .through(2, move |head| match is_listing(head) {
                true => Action::Rewrite(change),
                false => Action::Forward,
            })
            .await;
        let found = find_leftovers(&storage(&client), "run", DAY).await.unwrap();
        assert_eq!((found.old.len(), found.younger), (old, 1 - old));
        assert_eq!(found.delete(&storage(&client)).await.deleted.len(), old);
        assert_eq!(bed.exists(&shard("__0_0")).await, old == 0);
    }
}

#[tokio::test]
async fn a_service_that_does_not_tell_its_time_is_refused() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    let client = bed
        .through(2, |head| match is_listing(head) {
            true => Action::Rewrite(|answer| answer.replace("date: ", "ergo: ").replace("Date: ", "Ergo: ")),
            false => Action::Forward,
        })
        .await;
    let error = find(&client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Service);
    assert!(error.message().contains("date"), "{error}");
}

#[tokio::test]
async fn an_upload_is_as_old_as_its_latest_part() {
    let bed = Bed::start().await;
    let upload = begin_upload(&bed, &shard("__0_0")).await;
    for (parts_are_old, old) in [(false, 0), (true, 1)] {
        let client = bed
            .through(2, move |head| {
                match (is_listing(head), head.path.contains("uploadId="), parts_are_old) {
                    (true, _, _) | (_, true, true) => Action::Rewrite(|answer| {
                        with_times(answer, "Fri, 01 Jan 2100 00:00:00 GMT", "2099-12-31T00:00:00.000Z")
                    }),
                    (_, true, false) => Action::Rewrite(|answer| {
                        with_times(answer, "Fri, 01 Jan 2100 00:00:00 GMT", "2099-12-31T00:00:01.000Z")
                    }),
                    _ => Action::Forward,
                }
            })
            .await;
        let found = find_leftovers(&storage(&client), "run", DAY).await.unwrap();
        assert_eq!((found.old.len(), found.younger), (old, 1 - old));
    }
    upload.abort().await;
}

#[tokio::test]
async fn an_upload_that_has_ended_meanwhile_is_nothing() {
    let bed = Bed::start().await;
    let upload = begin_upload(&bed, &shard("__0_0")).await;
    let client = bed
        .through(2, |head| match head.path.contains("uploadId=") {
            true => Action::Answer(404, "NoSuchUpload"),
            false => Action::Forward,
        })
        .await;
    let found = find(&client).await.unwrap();
    assert_eq!((found.old.len(), found.younger), (0, 0));
    upload.abort().await;
}

#[tokio::test]
async fn what_cannot_be_deleted_is_told() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    let upload = begin_upload(&bed, &shard("__1_0")).await;
    let client = bed
        .through(2, |head| match head.method == "POST" || head.method == "DELETE" {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    let pruned = find(&client).await.unwrap().delete(&storage(&client)).await;
    assert!(pruned.deleted.is_empty());
    assert_eq!(pruned.failed[0].0.key, shard("__1_0"));
    assert_eq!(pruned.stopped.unwrap().kind(), ErrorKind::Denied);
    upload.abort().await;
}

#[tokio::test]
async fn a_save_is_given_up_after_its_uploads_ended_and_tells_what_may_stay() {
    let bed = Bed::start().await;
    bed.put(&shard("__0_0"), "shard").await;
    let ended = AtomicU32::new(0);
    let late = async {
        tokio::task::yield_now().await;
        bed.put(&shard("__1_0"), "completed at the last moment").await;
        ended.fetch_add(1, Ordering::SeqCst);
    };
    let keys = vec![shard("__0_0"), shard("__1_0")];
    assert!(discard(&bed.client, BUCKET, vec![late], keys.clone()).await.is_empty());
    assert_eq!(ended.load(Ordering::SeqCst), 1);
    assert!(bed.keys().await.is_empty());
    let client = bed.through(1, |_| Action::Answer(403, "AccessDenied")).await;
    assert_eq!(discard(&client, BUCKET, vec![std::future::ready(())], keys.clone()).await, keys);
}

#[tokio::test]
async fn a_save_that_is_given_up_deletes_shard_files_alone() {
    let bed = Bed::start().await;
    let others = ["run/.metadata", "run/__0.metadata", "run/notes.txt"].map(str::to_owned);
    for key in others.iter().chain([&shard("__0_0")]) {
        bed.put(key, "bytes").await;
    }
    let keys: Vec<String> = others.iter().cloned().chain([shard("__0_0")]).collect();
    let uploads: Vec<std::future::Ready<()>> = Vec::new();
    assert!(discard(&bed.client, BUCKET, uploads, keys).await.is_empty());
    assert_eq!(bed.keys().await, others);
}
