//! Services that are not quite S3: without checksum headers, without DeleteObjects, with half of the conditions; and
//! networks that forget connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use s3dcp_s3::{
    Client, ClientConfig, Condition, ErrorKind, Payload, PutOptions, Support, UploadOptions, WhenLate, crc32,
};
use s3dcp_server::{Server, ServerConfig};

use crate::support::{Act, Responder, Seen, config, error, pattern, response, source, with};

const BUCKET: &str = "bkt";
const MIB: usize = 1 << 20;

/// A store with these faults, and a client that tries everything once.
async fn store(faults: &[&str], change: impl Fn(ClientConfig) -> ClientConfig) -> (Server, Client) {
    let config_of_server = with(ServerConfig::default(), |config| {
        config.buckets = vec![BUCKET.to_owned()];
        config.faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    });
    let server = Server::start(config_of_server).await.unwrap();
    let config = config(&server.endpoint_url(), server.access_key(), server.secret_key());
    let client = Client::new(change(with(config, |config| config.max_attempts = 1))).unwrap();
    (server, client)
}

/// To how many requests the rules were applied so far.
fn refused(server: &Server) -> u64 {
    server.faults().iter().map(|(_, count)| count).sum()
}

/// Everything that a save and a load ask of a store.
async fn use_all(client: &Client) {
    let small = Payload::from(b"small".to_vec());
    client.put_object(BUCKET, "small", small, &PutOptions::default()).await.unwrap();
    let bytes = pattern(12 * MIB);
    let options = with(UploadOptions::default(), |options| options.part_size = Some(5 << 20));
    let mut upload = client.upload(BUCKET, "large", options);
    let mut rest = Bytes::from(bytes.clone());
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(upload.part_remaining() as usize));
        let crc = crc32(&piece);
        upload.push(piece, crc).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap().crc32, crc32(&bytes));
    assert_eq!(client.get_object(BUCKET, "small").await.unwrap().body, "small");
    assert!(client.get_object(BUCKET, "large").await.unwrap().body == bytes);
    client.copy_object(&source(BUCKET, "small"), BUCKET, "copy").await.unwrap();
    let keys = ["small", "copy"].map(str::to_owned);
    assert_eq!(client.delete_objects(BUCKET, &keys, WhenLate::Wait).await.unwrap(), []);
    let listing = client.list_objects(BUCKET, "", None).await.unwrap();
    assert_eq!(listing.objects.iter().map(|object| &object.key[..]).collect::<Vec<_>>(), ["large"]);
    client.delete_object(BUCKET, "large").await.unwrap();
}

const CHECKSUMS: &str = "header=x-amz-checksum-*";

#[tokio::test]
async fn a_store_that_refuses_checksum_headers_is_used_without_them() {
    for fault in [
        format!("error:400/InvalidArgument {CHECKSUMS}"),
        format!("error:501/NotImplemented {CHECKSUMS}"),
        format!("error:400/InvalidRequest {CHECKSUMS}"),
        format!("error:400/NotImplemented {CHECKSUMS}"),
        format!("error:405/MethodNotAllowed {CHECKSUMS}"),
        "error:501/NotImplemented header=x-amz-checksum-algorithm".to_owned(),
        "error:501/NotImplemented header=x-amz-checksum-type".to_owned(),
        "error:400/InvalidArgument header=x-amz-checksum-mode".to_owned(),
        format!("error:501/NotImplemented on=UploadPart {CHECKSUMS}"),
        format!("error:400/InvalidArgument on=CompleteMultipartUpload {CHECKSUMS}"),
        format!("error:400/InvalidArgument on=PutObject {CHECKSUMS}"),
        format!("error:400/InvalidRequest on=DeleteObjects {CHECKSUMS}"),
    ] {
        let (server, client) = store(&[&fault], |config| config).await;
        use_all(&client).await;
        let first = refused(&server);
        // One of the writes and one of the reads; all three parts may be on their way before the first is refused.
        assert!((1..=4).contains(&first), "{fault}: {first}");
        use_all(&client).await;
        assert_eq!(refused(&server), first, "{fault}: what is known is not asked again");
    }
}

#[tokio::test]
async fn checksum_headers_are_left_out_or_insisted_on_as_the_setting_says() {
    let fault = format!("error:400/InvalidArgument {CHECKSUMS}");
    let never = |config: ClientConfig| with(config, |config| config.checksum_headers = Some(false));
    let (server, client) = store(&[&fault], never).await;
    use_all(&client).await;
    assert_eq!(refused(&server), 0);
    let always = |config: ClientConfig| {
        with(config, |config| {
            config.checksum_headers = Some(true);
            config.max_attempts = 5;
        })
    };
    let (server, client) = store(&[&fault], always).await;
    for _ in 0..2 {
        let put = client.put_object(BUCKET, "k", Payload::from(b"v".to_vec()), &PutOptions::default()).await;
        assert_eq!(put.unwrap_err().code(), Some("InvalidArgument"));
    }
    assert_eq!(refused(&server), 2);
}

#[tokio::test]
async fn an_error_that_is_not_about_checksums_leaves_them_on() {
    for (status, code, requests) in [
        ("400 Bad Request", "InvalidArgument", 2),
        ("501 Not Implemented", "NotImplemented", 2),
        ("400 Bad Request", "BadDigest", 2),
        ("400 Bad Request", "EntityTooLarge", 1),
        ("403 Forbidden", "AccessDenied", 1),
    ] {
        let server = Responder::start(move |_, _| Act::Answer(error(status, code))).await;
        let client = server.client();
        for round in 1..=2 {
            let options = PutOptions::default();
            let put = client.put_object("bkt", "k", Payload::from(b"v".to_vec()), &options).await;
            assert_eq!(put.unwrap_err().code(), Some(code));
            let seen = server.seen();
            assert_eq!(seen.len(), round * requests, "{code}");
            assert!(seen[(round - 1) * requests].header("x-amz-checksum-crc32").is_some(), "{code}");
        }
    }
}

#[tokio::test]
async fn a_message_about_bytes_that_do_not_match_is_no_refusal_of_checksums() {
    let server = Responder::start(|_, _| {
        let text =
            b"<Error><Code>InvalidRequest</Code><Message>The checksum does not match.</Message></Error>";
        Act::Answer(response("400 Bad Request", &[], text))
    })
    .await;
    let put =
        server.client().put_object("bkt", "k", Payload::from(b"v".to_vec()), &PutOptions::default()).await;
    assert_eq!((put.unwrap_err().code(), server.seen().len()), (Some("InvalidRequest"), 1));
}

#[tokio::test]
async fn a_condition_that_does_not_hold_is_told_also_where_checksums_were_refused_first() {
    let server = Responder::start(|_, seen| match seen.header("x-amz-checksum-crc32") {
        Some(_) => Act::Answer(error("400 Bad Request", "InvalidArgument")),
        None => Act::Answer(error("412 Precondition Failed", "PreconditionFailed")),
    })
    .await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 1)).unwrap();
    let options = with(PutOptions::default(), |options| options.condition = Condition::IfNoneMatch);
    for requests in [2, 3] {
        let put = client.put_object("bkt", "k", Payload::from(b"v".to_vec()), &options).await;
        assert_eq!((put.unwrap_err().kind(), server.seen().len()), (ErrorKind::PreconditionFailed, requests));
    }
}

#[tokio::test]
async fn a_bucket_that_wants_the_md5_of_objects_gets_it() {
    const WANTED: &str = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests";
    let server =
        Responder::start(|_, seen| match (seen.header("content-md5"), seen.header("x-amz-checksum-crc32")) {
            (_, Some(_)) => Act::Answer(error("501 Not Implemented", "NotImplemented")),
            (None, None) if seen.method == "PUT" => {
                let text = format!("<Error><Code>InvalidRequest</Code><Message>{WANTED}</Message></Error>");
                Act::Answer(response("400 Bad Request", &[], text.as_bytes()))
            }
            _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
        })
        .await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 1)).unwrap();
    for requests in [3, 4] {
        let body = Payload::from(vec![Bytes::from_static(b"123"), Bytes::from_static(b"456789")]);
        client.put_object("bkt", "k", body, &PutOptions::default()).await.unwrap();
        let seen = server.seen();
        assert_eq!(seen.len(), requests);
        assert_eq!(seen[requests - 1].header("content-md5"), Some("JfnnlDI7RTiF9RgfG2JNCw=="));
    }
}

#[tokio::test]
async fn a_store_without_delete_objects_is_asked_for_one_after_the_other_from_then_on() {
    for refusal in [
        "501/NotImplemented",
        "400/NotImplemented",
        "400/InvalidArgument",
        "400/InvalidRequest",
        "400/UnsupportedOperation",
        "405/MethodNotAllowed",
        "404/NoSuchKey",
    ] {
        let (server, client) = store(&[&format!("error:{refusal} on=DeleteObjects")], |config| config).await;
        for round in 0..3 {
            let keys: Vec<String> = (0..40).map(|number| format!("{round}/{number}")).collect();
            for key in &keys {
                let body = Payload::from(b"v".to_vec());
                client.put_object(BUCKET, key, body, &PutOptions::default()).await.unwrap();
            }
            assert_eq!(client.delete_objects(BUCKET, &keys, WhenLate::Wait).await.unwrap(), [], "{refusal}");
            assert!(client.list_objects(BUCKET, "", None).await.unwrap().objects.is_empty());
            assert_eq!(refused(&server), 1, "{refusal}");
        }
    }
}

#[tokio::test]
async fn a_delete_that_is_refused_for_another_reason_is_no_word_on_the_operation() {
    for (refusal, kind) in [
        ("400/MalformedXML", ErrorKind::Service),
        ("400/ExpiredToken", ErrorKind::Denied),
        ("403/AccessDenied", ErrorKind::Denied),
        ("404/NoSuchBucket", ErrorKind::NotFound),
    ] {
        let (server, client) = store(&[&format!("error:{refusal} on=DeleteObjects")], |config| config).await;
        let before = client.stats().requests;
        let error = client.delete_objects(BUCKET, &["k".to_owned()], WhenLate::Wait).await.unwrap_err();
        assert_eq!((error.kind(), client.stats().requests - before), (kind, 1), "{refusal}");
        server.clear_faults();
    }
}

#[tokio::test]
async fn what_a_store_refuses_to_delete_one_by_one_is_named() {
    let faults = [
        "error:405/MethodNotAllowed on=DeleteObjects",
        "error:409/InvalidObjectState key=locked on=DeleteObject",
    ];
    let (_server, client) = store(&faults, |config| config).await;
    let keys = ["free", "locked"].map(str::to_owned);
    let failures = client.delete_objects(BUCKET, &keys, WhenLate::Wait).await.unwrap();
    assert_eq!(
        failures.iter().map(|failure| (&failure.key[..], &failure.code[..])).collect::<Vec<_>>(),
        [("locked", "InvalidObjectState")]
    );
}

fn name(support: &Support) -> &'static str {
    match support {
        Support::Honoured => "honoured",
        Support::Ignored => "ignored",
        Support::Refused(_) => "refused",
        Support::NeverHolds => "never holds",
        Support::Unknown(_) => "unknown",
    }
}

#[tokio::test]
async fn each_condition_is_found_out_for_itself_and_once() {
    for (faults, none_match, matches, requests) in [
        (&[][..], "honoured", "honoured", 5),
        (&["error:501/NotImplemented header=if-match"], "honoured", "refused", 4),
        (&["error:400/InvalidArgument header=if-match"], "honoured", "refused", 5),
        (&["error:501/NotImplemented header=if-none-match"], "refused", "honoured", 6),
        (&["error:412/PreconditionFailed header=if-none-match"], "never holds", "honoured", 6),
        (&["error:400/InvalidRequest header=if-*"], "refused", "refused", 6),
    ] {
        let (_server, client) = store(faults, |config| config).await;
        let found = client.conditions(BUCKET, "probe").await;
        let conditions = found.conditions;
        assert_eq!(
            (name(&conditions.if_none_match), name(&conditions.if_match)),
            (none_match, matches),
            "{faults:?}"
        );
        assert!(found.left.is_none());
        let asked = client.stats().requests;
        assert!(client.list_objects(BUCKET, "", None).await.unwrap().objects.is_empty(), "the probe stays");
        assert!(asked <= requests + 3, "{faults:?}: {asked}");
        client.conditions(BUCKET, "probe").await;
        assert_eq!(client.stats().requests, asked + 1, "{faults:?}: asked again");
    }
}

#[tokio::test]
async fn of_many_who_ask_at_once_one_finds_out() {
    let (_server, client) = store(&[], |config| config).await;
    let asked = (0..8).map(|number| {
        let client = client.clone();
        async move { client.conditions(BUCKET, &format!("probe{number}")).await }
    });
    for found in futures_util::future::join_all(asked).await {
        assert_eq!(name(&found.conditions.if_match), "honoured");
    }
    assert_eq!(client.stats().requests, 5);
}

#[tokio::test]
async fn what_could_not_be_found_out_is_asked_again() {
    let (server, client) = store(&["error:AccessDenied on=PutObject"], |config| config).await;
    assert_eq!(name(&client.conditions(BUCKET, "probe").await.conditions.if_match), "unknown");
    server.clear_faults();
    assert_eq!(name(&client.conditions(BUCKET, "probe").await.conditions.if_match), "honoured");
}

#[tokio::test]
async fn a_quoted_etag_that_never_matches_is_sent_bare_from_then_on() {
    let server = Responder::start(|_, seen| match seen.header("if-match") {
        Some(etag) if etag.starts_with('"') => {
            Act::Answer(error("412 Precondition Failed", "PreconditionFailed"))
        }
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    let client = server.client();
    let options =
        with(PutOptions::default(), |options| options.condition = Condition::IfMatch("\"e1\"".to_owned()));
    for requests in [3, 4] {
        client.put_object("bkt", "k", Payload::from(b"v".to_vec()), &options).await.unwrap();
        assert_eq!(server.seen().len(), requests);
    }
}

#[tokio::test]
async fn a_pause_beyond_the_deadline_is_cut_short() {
    for (status, code, pause) in [
        ("503 Slow Down", "SlowDown", "3600"),
        ("503 Service Unavailable", "ServiceUnavailable", "18446744073709551615"),
        ("429 Too Many Requests", "TooManyRequests", "Fri, 31 Dec 2100 23:59:59 GMT"),
        ("500 Internal Server Error", "InternalError", "99999999999999999999999"),
    ] {
        let server = Responder::start(move |number, _| match number {
            0 | 1 => {
                let text = format!("<Error><Code>{code}</Code></Error>");
                Act::Answer(response(status, &[("Retry-After", pause)], text.as_bytes()))
            }
            _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
        })
        .await;
        let client =
            Client::new(with(server.config(), |config| config.deadline = Duration::from_secs(2))).unwrap();
        client.put_object("bkt", "k", Payload::from(b"v".to_vec()), &PutOptions::default()).await.unwrap();
        assert_eq!(server.seen().len(), 3, "{code}");
    }
}

#[tokio::test]
async fn a_store_that_lists_as_in_the_first_version_is_listed_to_the_end() {
    let page = |keys: &[&str], more: bool, marker: &str| {
        let entries: String =
            keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
        let text = format!(
            "<ListBucketResult><IsTruncated>{more}</IsTruncated>{marker}{entries}</ListBucketResult>"
        );
        response("200 OK", &[], text.as_bytes())
    };
    let server = Responder::start(move |number, seen| {
        Act::Answer(match number {
            0 => page(&["a", "b"], true, ""),
            1 if seen.target.contains("marker=b&") => page(&["c"], true, "<NextMarker>c</NextMarker>"),
            2 if seen.target.contains("marker=c&") => page(&["d"], false, ""),
            _ => page(&[], true, ""),
        })
    })
    .await;
    let listing = server.client().list_objects("bkt", "", None).await.unwrap();
    assert_eq!(listing.objects.iter().map(|object| &object.key[..]).collect::<String>(), "abcd");
}

#[tokio::test]
async fn a_read_that_broke_begins_again_where_the_store_knows_no_if_match() {
    for (status, code) in [("501 Not Implemented", "NotImplemented"), ("400 Bad Request", "InvalidArgument")]
    {
        let server = Responder::start(move |number, seen| match seen.header("if-match") {
            Some(_) => Act::Answer(error(status, code)),
            None => {
                let answer = response("200 OK", &[("ETag", "W/\"e1\"")], b"0123456789");
                if number == 0 {
                    Act::ThenClose(answer[..answer.len() - 4].to_vec())
                } else {
                    Act::Answer(answer)
                }
            }
        })
        .await;
        assert_eq!(server.client().get_object("bkt", "k").await.unwrap().body, "0123456789");
        assert_eq!(server.seen().len(), 3);
    }
}

/// A service whose connections up to the `lost`-th no longer carry anything; then `what` becomes of requests on them.
async fn forgetful(lost: Arc<AtomicUsize>, what: fn(&Seen) -> Act) -> Responder {
    Responder::start(move |_, seen| match seen.connection <= lost.load(Ordering::SeqCst) {
        true => what(seen),
        false if seen.method == "GET" => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"value")),
        // Late enough that requests at once need a connection each.
        false => Act::Slowly(response("200 OK", &[("ETag", "\"e1\"")], b""), 1, Duration::from_millis(20)),
    })
    .await
}

async fn many_puts(client: &Client) {
    let puts = (0..12).map(|number| async move {
        let body = Payload::from(b"v".to_vec());
        client.put_object("bkt", &format!("k{number}"), body, &PutOptions::default()).await.map(drop)
    });
    for put in futures_util::future::join_all(puts).await {
        put.unwrap();
    }
}

#[tokio::test]
async fn connections_that_were_lost_while_idle_cost_one_attempt_together() {
    type Fate = fn(&Seen) -> Act;
    let fates: [(&str, Fate); 3] = [
        ("silent", |_| Act::Silence),
        ("reset", |_| Act::ThenReset(Vec::new())),
        ("closed", |_| Act::ThenClose(Vec::new())),
    ];
    for (fate, what) in fates {
        for operation in ["PUT", "GET", "HEAD", "DELETE"] {
            let lost = Arc::new(AtomicUsize::new(0));
            let server = forgetful(Arc::clone(&lost), what).await;
            let client = Client::new(with(server.config(), |config| {
                config.max_attempts = 2;
                config.read_timeout = Duration::from_millis(200);
            }))
            .unwrap();
            many_puts(&client).await;
            assert!(server.connections() >= 8, "{}", server.connections());
            lost.store(server.connections(), Ordering::SeqCst);
            match operation {
                "PUT" => many_puts(&client).await,
                "GET" => drop(client.get_object("bkt", "k").await.unwrap()),
                "HEAD" => drop(client.head_object("bkt", "k").await.unwrap()),
                _ => client.delete_object("bkt", "k").await.unwrap(),
            }
            let options = PutOptions::default();
            let again = client.put_object("bkt", "k", Payload::from(b"v".to_vec()), &options).await;
            again.unwrap_or_else(|error| panic!("{fate} {operation}: {error}"));
        }
    }
}

#[tokio::test]
async fn a_body_that_stalls_lets_no_other_idle_connection_cost_an_attempt() {
    let lost = Arc::new(AtomicUsize::new(0));
    let stalled = Arc::new(AtomicBool::new(false));
    let (known, once) = (Arc::clone(&lost), Arc::clone(&stalled));
    let server = Responder::start(move |_, seen| {
        let answer = response("200 OK", &[("ETag", "\"e1\"")], b"value");
        match seen.connection <= known.load(Ordering::SeqCst) {
            true if once.swap(true, Ordering::SeqCst) => Act::Silence,
            true => Act::Answer(answer[..answer.len() - 5].to_vec()),
            false if seen.method == "PUT" => {
                Act::Slowly(response("200 OK", &[("ETag", "\"e1\"")], b""), 1, Duration::from_millis(20))
            }
            false => Act::Answer(answer),
        }
    })
    .await;
    let config = with(server.config(), |config| {
        config.max_attempts = 2;
        config.read_timeout = Duration::from_millis(200);
    });
    let client = Client::new(config).unwrap();
    many_puts(&client).await;
    lost.store(server.connections(), Ordering::SeqCst);
    assert_eq!(client.get_object("bkt", "k").await.unwrap().body, "value");
    assert!(stalled.load(Ordering::SeqCst));
}

#[tokio::test]
async fn writes_and_reads_share_connections() {
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"v"))).await;
    let client = server.client();
    for _ in 0..3 {
        client.put_object("bkt", "k", Payload::from(pattern(300_000)), &PutOptions::default()).await.unwrap();
        client.get_object("bkt", "k").await.unwrap();
        client.delete_object("bkt", "k").await.unwrap();
    }
    assert_eq!((server.connections(), client.stats().requests), (1, 9));
}
