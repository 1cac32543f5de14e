//! The engine against a service that misbehaves, one scripted fault at a time, on real sockets.

use std::time::{Duration, Instant};

use crate::support::{Act, Responder, error, pattern, read, read_with, response, source, with};
use bytes::Bytes;
use s3dcp_s3::{
    Client, Condition, Error, ErrorKind, Payload, PutOptions, RangeRead, RangeSink, ServerSideEncryption,
    Space, UploadOptions, WhenLate, crc32,
};

const MIB: usize = 1 << 20;

fn body(len: usize) -> Payload {
    Payload::from(pattern(len))
}

/// The answer to a GET of this object with this range, as S3 gives it.
fn ranged(object: &[u8], range: &str) -> Vec<u8> {
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let content_range = format!("bytes {first}-{last}/{}", object.len());
    let headers = [("Content-Range", content_range.as_str()), ("ETag", "\"e1\"")];
    response("206 Partial Content", &headers, &object[first..=last])
}

#[tokio::test]
async fn a_throttled_request_is_sent_again_and_counted() {
    let server = Responder::start(|number, _| match number {
        0 => Act::Answer(error("503 Slow Down", "SlowDown")),
        1 => Act::Answer(response("500 Internal Server Error", &[], b"")),
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    let client = server.client();
    let output = client.put_object("bkt", "k", body(1000), &PutOptions::default()).await.unwrap();
    assert_eq!((output.etag.as_deref(), output.crc32), (Some("\"e1\""), crc32(&pattern(1000))));
    let stats = client.stats();
    assert_eq!((stats.requests, stats.retries, stats.throttled, stats.bytes_sent), (3, 2, 1, 3000));
    for seen in server.seen() {
        assert_eq!(seen.body, pattern(1000));
        assert_eq!(seen.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    }
}

#[tokio::test]
async fn a_service_that_only_asks_for_fewer_requests_is_asked_until_the_deadline() {
    let server = Responder::start(|_, _| Act::Answer(error("503 Slow Down", "SlowDown"))).await;
    let config = with(server.config(), |config| {
        config.max_attempts = 1;
        config.deadline = Duration::from_secs(2);
    });
    let client = Client::new(config).unwrap();
    let error = client.put_object("bkt", "a/k", body(10), &PutOptions::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Throttled, Some(503)));
    assert!((2..=10).contains(&error.attempts()), "{error}");
    assert_eq!(client.stats().throttled, u64::from(error.attempts()));
    assert!(error.elapsed() < Duration::from_secs(10));
    assert_eq!((error.bucket(), error.key(), error.code()), (Some("bkt"), Some("a/k"), Some("SlowDown")));
    assert_eq!(error.request_id(), Some("R1"));
    assert!(error.retryable() && !error.maybe_applied());
    let text = format!("{error} {error:?} {client:?}");
    assert!(!text.contains("SECRET-OF-THE-TEST"), "{text}");
}

#[tokio::test]
async fn a_503_while_the_body_is_still_being_sent_is_a_retry() {
    let server = Responder::start(|number, _| match number {
        0 | 1 => Act::AnswerEarly(error("503 Slow Down", "SlowDown")),
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    let client = server.client();
    client.put_object("bkt", "k", body(48 * MIB), &PutOptions::default()).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(crc32(&seen[2].body), crc32(&pattern(48 * MIB)));
}

#[tokio::test]
async fn a_range_goes_on_where_a_reset_ended_it() {
    let object = pattern(1000);
    let whole = object.clone();
    let server = Responder::start(move |number, seen| {
        let answer = ranged(&object, seen.header("range").unwrap());
        match number {
            0 => Act::ThenReset(answer[..answer.len() - 300].to_vec()),
            1 => Act::ThenClose(answer[..answer.len() - 100].to_vec()),
            _ => Act::Answer(answer),
        }
    })
    .await;
    let (job, fed) = read("k", 100..900);
    server.client().download("bkt", vec![job]).await.unwrap();
    let fed = fed.lock().unwrap();
    assert_eq!((&fed.bytes[..], fed.restarts, fed.finished), (&whole[100..900], 0, 1));
    let asked: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| (seen.header("range").unwrap().to_owned(), seen.header("if-match").map(str::to_owned)))
        .collect();
    let same = Some("\"e1\"".to_owned());
    assert_eq!(
        asked,
        [
            ("bytes=100-899".to_owned(), None),
            ("bytes=600-899".to_owned(), same.clone()),
            ("bytes=800-899".to_owned(), same)
        ]
    );
}

#[tokio::test]
async fn a_whole_object_goes_on_where_it_was_cut() {
    let object = pattern(5000);
    let whole = object.clone();
    let server = Responder::start(move |number, seen| match number {
        0 => {
            let answer = response("200 OK", &[("ETag", "\"e1\"")], &object);
            Act::ThenClose(answer[..answer.len() - 2000].to_vec())
        }
        _ => Act::Answer(ranged(&object, seen.header("range").unwrap())),
    })
    .await;
    let output = server.client().get_object("bkt", "k").await.unwrap();
    assert_eq!(output.body, whole);
    assert_eq!((output.info.size, output.info.etag.as_deref()), (5000, Some("\"e1\"")));
    assert_eq!(server.seen()[1].header("range"), Some("bytes=3000-4999"));
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_read_anew() {
    let (old, new) = (vec![1u8; 400], vec![2u8; 700]);
    let expected = new.clone();
    let server = Responder::start(move |number, seen| match number {
        0 => {
            let answer = response("200 OK", &[("ETag", "\"old\"")], &old);
            Act::ThenClose(answer[..answer.len() - 200].to_vec())
        }
        1 => {
            assert_eq!(seen.header("if-match"), Some("\"old\""));
            Act::Answer(error("412 Precondition Failed", "PreconditionFailed"))
        }
        _ => Act::Answer(response("200 OK", &[("ETag", "\"new\"")], &new)),
    })
    .await;
    let output = server.client().get_object("bkt", "k").await.unwrap();
    assert_eq!((output.body, output.info.etag.as_deref()), (Bytes::from(expected), Some("\"new\"")));
}

#[tokio::test]
async fn damage_on_the_way_is_found_by_the_service_s_checksum_and_read_once_more() {
    let server = Responder::start(|number, _| {
        let headers = [("ETag", "\"e1\""), ("x-amz-checksum-crc32", "NhCmhg==")];
        Act::Answer(response("200 OK", &headers, if number == 0 { b"helLo" } else { b"hello" }))
    })
    .await;
    assert_eq!(crc32(b"hello"), 0x3610_a686);
    assert_eq!(server.client().get_object("bkt", "k").await.unwrap().body, "hello");
    let server = Responder::start(|_, _| {
        Act::Answer(response("200 OK", &[("x-amz-checksum-crc32", "NhCmhg==")], b"helLo"))
    })
    .await;
    assert_eq!(server.client().get_object("bkt", "k").await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_sink_that_finds_damage_is_fed_once_more() {
    let object = pattern(100);
    let whole = object.clone();
    let server =
        Responder::start(move |_, seen| Act::Answer(ranged(&object, seen.header("range").unwrap()))).await;
    let bad = || Error::new(ErrorKind::Corrupt, "wrong checksum");
    let client = server.client();
    let (job, fed) =
        read_with("k", 0..100, |n| if n == 0 { Err(Error::new(ErrorKind::Corrupt, "x")) } else { Ok(()) });
    client.download("bkt", vec![job]).await.unwrap();
    let fed = fed.lock().unwrap().clone();
    assert_eq!((fed.bytes, fed.restarts, fed.finished, fed.dropped), (whole, 1, 2, true));
    let (job, fed) = read_with("k", 0..100, |_| Err(Error::new(ErrorKind::Corrupt, "wrong checksum")));
    let error = client.download("bkt", vec![job]).await.unwrap_err();
    assert_eq!((error.kind(), error.key(), error.message()), (bad().kind(), Some("k"), bad().message()));
    assert_eq!(fed.lock().unwrap().finished, 2);
}

#[tokio::test]
async fn answers_that_do_not_fit_the_range_are_not_taken() {
    let object = pattern(100);
    // Too short an object.
    let server = Responder::start(move |_, _| {
        let headers = [("Content-Range", "bytes 50-99/100")];
        Act::Answer(response("206 Partial Content", &headers, &object[50..]))
    })
    .await;
    let error = server.client().get_range("bkt", "k", 50..150).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Corrupt, 1));
    assert!(error.message().contains("100 bytes") && error.message().contains("150"), "{error}");
    // Other bytes than those asked for, again and again.
    let server = Responder::start(|_, _| {
        Act::Answer(response("206 Partial Content", &[("Content-Range", "bytes 0-9/100")], &[0; 10]))
    })
    .await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 2)).unwrap();
    let error = client.get_range("bkt", "k", 10..20).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Service, 2));
    // A service that does not know ranges.
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[], &[0; 100]))).await;
    let error = server.client().get_range("bkt", "k", 10..20).await.unwrap_err();
    assert!(error.message().contains("ignored the range"), "{error}");
    assert_eq!(server.client().get_range("bkt", "k", 0..100).await.unwrap(), [0u8; 100][..]);
}

#[tokio::test]
async fn an_error_inside_a_200_is_an_error() {
    let server = Responder::start(|number, _| match number {
        0 => Act::Answer(error("200 OK", "InternalError")),
        1 => Act::Answer(response("200 OK", &[], b"<CopyObjectResult><ETag>\"e\"</ETag></CopyObjectResult>")),
        _ => Act::Answer(error("200 OK", "AccessDenied")),
    })
    .await;
    let client = server.client();
    client.copy_object(&source("bkt", "a b"), "bkt", "c").await.unwrap();
    assert_eq!(server.seen()[1].header("x-amz-copy-source"), Some("bkt/a%20b"));
    let error = client.copy_object(&source("bkt", "a"), "bkt", "c").await.unwrap_err();
    assert_eq!((error.kind(), error.code(), error.status()), (ErrorKind::Denied, Some("AccessDenied"), None));
    let error = client.delete_objects("bkt", &["a".to_owned()], WhenLate::Wait).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let error = client.put_object("bkt", "a", Payload::default(), &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn keys_that_cannot_be_deleted_just_now_are_tried_again_and_the_others_reported() {
    let server = Responder::start(|number, _| {
        let body = match number {
            0 => {
                "<DeleteResult><Error><Key>a</Key><Code>SlowDown</Code></Error>\
                 <Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
            }
            _ => "<DeleteResult/>",
        };
        Act::Answer(response("200 OK", &[], body.as_bytes()))
    })
    .await;
    let keys = ["a".to_owned(), "b".to_owned(), "c&d".to_owned()];
    let failures = server.client().delete_objects("bkt", &keys, WhenLate::Wait).await.unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!((failures[0].key.as_str(), failures[0].code.as_str()), ("b", "AccessDenied"));
    let seen = server.seen();
    assert!(String::from_utf8_lossy(&seen[0].body).contains("<Key>c&amp;d</Key>"));
    let again = String::from_utf8_lossy(&seen[1].body).into_owned();
    assert!(again.contains("<Key>a</Key>") && !again.contains("<Key>b</Key>"), "{again}");
}

#[tokio::test]
async fn keys_refused_inside_an_answer_are_paced_counted_and_throttled_in_the_end() {
    let slow = "<DeleteResult><Error><Key>run/a/1</Key><Code>SlowDown</Code></Error>\
                <Error><Key>run/b/1</Key><Code>InternalError</Code></Error></DeleteResult>";
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[], slow.as_bytes()))).await;
    let client =
        Client::new(with(server.config(), |config| config.deadline = Duration::from_secs(2))).unwrap();
    let keys = ["run/a/1", "run/b/1"].map(str::to_owned);
    let error = client.delete_objects("bkt", &keys, WhenLate::Wait).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Throttled, Some("SlowDown")));
    assert_eq!((error.key(), error.retryable()), (Some("run/a/1"), true));
    assert!(error.elapsed() < Duration::from_secs(10), "{error}");
    // From 4 requests per second on downwards, after the first.
    let stats = client.stats();
    assert_eq!(stats.throttled, stats.requests);
    assert!((3..=12).contains(&stats.requests), "{stats:?}");
    assert_eq!(error.attempts() as u64, stats.requests);
    // What goes to another bucket goes at once: at the pace of those it would take five seconds and more.
    let began = Instant::now();
    for _ in 0..20 {
        client.put_object("other", "x", body(1), &PutOptions::default()).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn keys_that_fail_inside_every_answer_are_reported_after_all_attempts() {
    let broken = "<DeleteResult><Error><Key>a</Key><Code>InternalError</Code></Error></DeleteResult>";
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[], broken.as_bytes()))).await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 3)).unwrap();
    let failures =
        client.delete_objects("bkt", &["a".to_owned(), "b".to_owned()], WhenLate::Wait).await.unwrap();
    assert_eq!(failures.iter().map(|failure| &failure.code[..]).collect::<Vec<_>>(), ["InternalError"]);
    assert_eq!(client.stats().requests, 3);
}

#[tokio::test]
async fn a_service_without_delete_objects_gets_single_deletes() {
    let server = Responder::start(|_, seen| match seen.method.as_str() {
        "POST" => Act::Answer(error("501 Not Implemented", "NotImplemented")),
        _ => Act::Answer(response("204 No Content", &[], b"")),
    })
    .await;
    let keys = ["a".to_owned(), "b".to_owned()];
    assert_eq!(server.client().delete_objects("bkt", &keys, WhenLate::Wait).await.unwrap(), []);
    let deleted: Vec<_> = server.seen().iter().skip(1).map(|seen| seen.target.clone()).collect();
    assert_eq!(deleted, ["/bkt/a", "/bkt/b"]);
}

#[tokio::test]
async fn a_lost_reply_leaves_open_whether_the_write_took_effect() {
    // The write is done, its answer is lost, and the next attempt finds the object there.
    let server = Responder::start(|number, _| match number {
        0 => Act::ThenReset(Vec::new()),
        _ => Act::Answer(error("412 Precondition Failed", "PreconditionFailed")),
    })
    .await;
    let options = with(PutOptions::default(), |options| options.condition = Condition::IfNoneMatch);
    let error = server.client().put_object("bkt", "k", body(10), &options).await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::PreconditionFailed, true));
    assert_eq!(server.seen()[0].header("if-none-match"), Some("*"));
    // An honest 412 is certain.
    let error = server.client().put_object("bkt", "k", body(10), &options).await.unwrap_err();
    assert!(!error.maybe_applied());
}

#[tokio::test]
async fn an_etag_that_must_come_without_quotes_is_found_out() {
    let server = Responder::start(|_, seen| match (seen.method.as_str(), seen.header("if-match")) {
        ("PUT", Some("e1")) => Act::Answer(response("200 OK", &[("ETag", "\"e2\"")], b"")),
        ("PUT", _) => Act::Answer(error("412 Precondition Failed", "PreconditionFailed")),
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    let put = |etag: &str| {
        let options =
            with(PutOptions::default(), |options| options.condition = Condition::IfMatch(etag.to_owned()));
        let client = server.client();
        async move { client.put_object("bkt", "k", body(1), &options).await }
    };
    assert_eq!(put("\"e1\"").await.unwrap().etag.as_deref(), Some("\"e2\""));
    // Another object there: one look, no second write.
    assert_eq!(put("\"e0\"").await.unwrap_err().kind(), ErrorKind::PreconditionFailed);
    let methods: Vec<_> = server.seen().iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(methods, ["PUT", "HEAD", "PUT", "PUT", "HEAD"]);
}

#[tokio::test]
async fn a_refused_connection_cannot_have_taken_effect() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config = with(crate::support::config(&url, "a", "b"), |config| config.max_attempts = 2);
    let error = Client::new(config)
        .unwrap()
        .put_object("bkt", "k", body(1), &PutOptions::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Connection, 2));
    assert!(error.retryable() && !error.maybe_applied());
}

#[tokio::test]
async fn silence_ends_an_attempt_but_slowness_does_not() {
    let server = Responder::start(|number, _| match number {
        0 => Act::Silence,
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    let impatient = with(server.config(), |config| config.read_timeout = Duration::from_millis(300));
    let client = Client::new(impatient.clone()).unwrap();
    client.put_object("bkt", "k", body(10), &PutOptions::default()).await.unwrap();
    assert_eq!(client.stats().retries, 1);
    // It takes longer than the limit, but something moves all the time.
    let server = Responder::start(|_, _| {
        Act::Slowly(response("200 OK", &[], &[7; 1000]), 8, Duration::from_millis(100))
    })
    .await;
    let client =
        Client::new(with(server.config(), |config| config.read_timeout = impatient.read_timeout)).unwrap();
    assert_eq!(client.get_object("bkt", "k").await.unwrap().body, [7u8; 1000][..]);
    assert_eq!(client.stats().requests, 1);
    // The head comes, the body does not.
    let server = Responder::start(|_, _| {
        let answer = response("200 OK", &[], &[0; 100]);
        Act::Answer(answer[..answer.len() - 50].to_vec())
    })
    .await;
    let config = with(server.config(), |config| {
        config.max_attempts = 1;
        config.read_timeout = impatient.read_timeout;
    });
    let error = Client::new(config).unwrap().get_object("bkt", "k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("read_timeout") && !error.maybe_applied(), "{error}");
}

#[tokio::test]
async fn the_deadline_ends_an_operation_in_the_middle_of_an_attempt() {
    let server = Responder::start(|_, _| Act::Silence).await;
    let config = with(server.config(), |config| config.deadline = Duration::from_millis(300));
    let error = Client::new(config)
        .unwrap()
        .put_object("bkt", "k", body(1), &PutOptions::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Timeout, 1));
    assert!(error.message().contains("deadline") && error.maybe_applied());
}

/// Takes its time with every few bytes, so that more of them are always waiting.
struct Slow;

impl RangeSink for Slow {
    fn space(&mut self) -> Space<'_> {
        Space::Write(16 << 10)
    }

    fn write(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    fn restart(&mut self) {}

    fn finish(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_ends_a_body_that_never_pauses() {
    // All of it fits the sockets' buffers, so that there is always more.
    let object = pattern(MIB);
    let server =
        Responder::start(move |_, seen| Act::Answer(ranged(&object, seen.header("range").unwrap()))).await;
    let config = with(server.config(), |config| config.deadline = Duration::from_millis(300));
    let read = RangeRead { key: "k".to_owned(), range: 0..1 << 20, sink: Box::new(Slow) };
    let error = Client::new(config).unwrap().download("bkt", vec![read]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("deadline"), "{error}");
}

#[tokio::test]
async fn no_more_of_an_object_is_taken_than_was_allowed() {
    let server = Responder::start(|_, seen| match seen.target.as_str() {
        "/bkt/framed" => {
            let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..10 {
                answer.extend_from_slice(b"a\r\n0123456789\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            Act::Answer(answer)
        }
        "/bkt/absurd" => {
            Act::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10995116277760\r\n\r\n0123".to_vec())
        }
        _ => Act::Answer(response("200 OK", &[], &[7; 100])),
    })
    .await;
    let client = server.client();
    for key in ["plain", "framed"] {
        assert_eq!(client.get_object_within("bkt", key, 100).await.unwrap().body.len(), 100);
    }
    for (key, limit) in [("plain", 99), ("framed", 99), ("absurd", 4 << 30)] {
        let error = client.get_object_within("bkt", key, limit).await.unwrap_err();
        assert_eq!((error.kind(), error.attempts(), error.key()), (ErrorKind::Corrupt, 1, Some(key)));
        assert!(error.message().contains(&limit.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_set_by_the_service() {
    let server = Responder::start(|number, _| match number {
        0 => {
            let body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>";
            Act::Answer(response("403 Forbidden", &[("Date", "Fri, 24 May 2013 00:00:00 GMT")], body))
        }
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"")),
    })
    .await;
    server.client().put_object("bkt", "k", body(1), &PutOptions::default()).await.unwrap();
    let seen = server.seen();
    assert!(seen[1].header("x-amz-date").unwrap().starts_with("20130524T0000"), "{}", seen[1].head);
}

#[tokio::test]
async fn expired_keys_that_cannot_be_renewed_are_denied_at_once() {
    let server = Responder::start(|_, _| Act::Answer(error("400 Bad Request", "ExpiredToken"))).await;
    let error = server.client().get_object("bkt", "k").await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Denied, 1));
}

/// Answers what a multipart upload needs; `other` may answer first.
async fn multipart_server(
    other: impl Fn(&crate::support::Seen, usize) -> Option<Act> + Send + Sync + 'static,
) -> Responder {
    Responder::start(move |number, seen| {
        if let Some(act) = other(seen, number) {
            return act;
        }
        let text = match (seen.method.as_str(), seen.target.as_str()) {
            ("POST", target) if target.ends_with("?uploads") => {
                "<InitiateMultipartUploadResult><UploadId>U+1</UploadId></InitiateMultipartUploadResult>"
            }
            ("POST", _) => {
                "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>"
            }
            _ => "",
        };
        Act::Answer(response("200 OK", &[("ETag", "\"p\"")], text.as_bytes()))
    })
    .await
}

fn parts() -> UploadOptions {
    with(UploadOptions::default(), |options| options.part_size = Some(5 << 20))
}

async fn push_all(upload: &mut s3dcp_s3::Upload, bytes: &[u8]) -> Result<(), Error> {
    let mut rest = Bytes::copy_from_slice(bytes);
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(upload.part_remaining() as usize).min(3 << 20));
        let crc = crc32(&piece);
        upload.push(piece, crc).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_part_that_fails_for_good_fails_the_upload_and_aborts_it() {
    let server = multipart_server(|seen, _| {
        seen.target.contains("partNumber=2").then(|| Act::Answer(error("403 Forbidden", "AccessDenied")))
    })
    .await;
    let mut upload = server.client().upload("bkt", "k", parts());
    let pushed = push_all(&mut upload, &pattern(12 * MIB)).await;
    let error = match pushed {
        Err(error) => {
            upload.abort().await;
            error
        }
        Ok(()) => upload.finish().await.unwrap_err(),
    };
    assert_eq!((error.kind(), error.part(), error.key()), (ErrorKind::Denied, Some(2), Some("k")));
    let seen = server.seen();
    assert!(seen.iter().any(|seen| seen.method == "DELETE" && seen.target.contains("uploadId=U%2B1")));
    assert!(!seen.iter().any(|seen| seen.method == "POST" && seen.target.contains("uploadId=")));
}

#[tokio::test]
async fn encryption_that_the_service_does_not_confirm_fails_every_write() {
    let server = multipart_server(|_, _| None).await;
    let encryption = Some(ServerSideEncryption::Aes256);
    let client =
        Client::new(with(server.config(), |config| config.server_side_encryption = encryption)).unwrap();
    let put = client.put_object("bkt", "k", body(1), &PutOptions::default()).await.map(drop);
    let copy = client.copy_object(&source("bkt", "k"), "bkt", "l").await;
    for error in [put.unwrap_err(), copy.unwrap_err()] {
        assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::Config, true));
    }
    let mut upload = client.upload("bkt", "k", parts());
    let error = match push_all(&mut upload, &pattern(12 * MIB)).await {
        Err(error) => error,
        Ok(()) => upload.finish().await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.message().contains("server_side_encryption"), "{error}");
    let seen = server.seen();
    assert!(seen.iter().any(|seen| seen.method == "DELETE" && seen.target.contains("uploadId=U%2B1")));
    assert!(!seen.iter().any(|seen| seen.target.contains("partNumber=")));
}

#[tokio::test]
async fn a_dropped_upload_is_aborted_in_the_background() {
    let server = multipart_server(|_, _| None).await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(6 * MIB)).await.unwrap();
    drop(upload);
    server.wait_for("DELETE", "uploadId=U%2B1").await;
}

#[tokio::test]
async fn an_abort_goes_on_when_nobody_waits_for_it_any_more() {
    let server = multipart_server(|_, _| None).await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(6 * MIB)).await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(upload.abort()).is_none(), "it was given up half-way");
    server.wait_for("DELETE", "uploadId=U%2B1").await;
}

#[tokio::test]
async fn an_upload_that_was_never_begun_leaves_no_trace() {
    let server = multipart_server(|_, _| None).await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(100)).await.unwrap();
    upload.abort().await;
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_completion_whose_reply_was_lost_is_found_by_looking() {
    let server =
        multipart_server(|seen, _| match (seen.method.as_str(), seen.target.contains("uploadId=")) {
            ("POST", true) => Some(if seen.header("authorization").is_some() && first_completion() {
                Act::ThenReset(Vec::new())
            } else {
                Act::Answer(error("404 Not Found", "NoSuchUpload"))
            }),
            ("HEAD", _) => Some(Act::Answer(
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"whole\"\r\n\r\n", 6 * MIB)
                    .into_bytes(),
            )),
            _ => None,
        })
        .await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(6 * MIB)).await.unwrap();
    let output = upload.finish().await.unwrap();
    assert_eq!((output.size, output.parts, output.etag.as_deref()), (6 * MIB as u64, 2, Some("\"whole\"")));
    assert_eq!(output.crc32, crc32(&pattern(6 * MIB)));
    assert!(!server.seen().iter().any(|seen| seen.method == "DELETE"));
}

/// True the first time only.
fn first_completion() -> bool {
    use std::sync::atomic::{AtomicBool, Ordering};
    static FIRST: AtomicBool = AtomicBool::new(true);
    FIRST.swap(false, Ordering::SeqCst)
}

#[tokio::test]
async fn an_upload_that_is_gone_without_a_lost_reply_is_an_error() {
    let server = multipart_server(|seen, _| {
        (seen.method == "POST" && seen.target.contains("uploadId="))
            .then(|| Act::Answer(error("404 Not Found", "NoSuchUpload")))
    })
    .await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(6 * MIB)).await.unwrap();
    let error = upload.finish().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, Some("NoSuchUpload")));
}

#[tokio::test]
async fn completion_sends_every_part_in_order_with_its_checksum_and_that_of_the_whole() {
    let server = multipart_server(|_, _| None).await;
    let mut upload = server.client().upload("bkt", "k", parts());
    push_all(&mut upload, &pattern(11 * MIB)).await.unwrap();
    upload.finish().await.unwrap();
    let seen = server.seen();
    let create = &seen[0];
    assert_eq!(create.header("x-amz-checksum-algorithm"), Some("CRC32"));
    assert_eq!(create.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    let complete =
        seen.iter().find(|seen| seen.method == "POST" && seen.target.contains("uploadId=")).unwrap();
    let text = String::from_utf8(complete.body.clone()).unwrap();
    let numbers: Vec<_> = text.match_indices("<PartNumber>").map(|(at, _)| &text[at + 12..at + 13]).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    assert_eq!(text.matches("<ChecksumCRC32>").count(), 3);
    assert!(complete.header("x-amz-checksum-crc32").is_some());
    assert_eq!(complete.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
    // The document itself is covered by the signature.
    assert_eq!(complete.header("x-amz-content-sha256").map(str::len), Some(64));
}

#[tokio::test]
async fn no_sink_is_touched_after_a_download_was_dropped() {
    let server = Responder::start(|_, seen| match seen.target.as_str() {
        "/bkt/slow" => {
            let answer = ranged(&[7; 100], "bytes=0-99");
            Act::Answer(answer[..answer.len() - 50].to_vec())
        }
        _ => Act::Answer(ranged(&[7; 100], "bytes=0-99")),
    })
    .await;
    let (slow, slow_fed) = read("slow", 0..100);
    let (fast, fast_fed) = read("fast", 0..100);
    let client = server.client();
    let mut download = Box::pin(client.download("bkt", vec![slow, fast]));
    for _ in 0..2000 {
        tokio::time::timeout(Duration::from_millis(5), &mut download).await.ok();
        if slow_fed.lock().unwrap().bytes.len() == 50 && fast_fed.lock().unwrap().finished == 1 {
            break;
        }
    }
    assert_eq!(slow_fed.lock().unwrap().bytes.len(), 50);
    assert!(!slow_fed.lock().unwrap().dropped);
    drop(download);
    // At once, not some time later.
    assert!(slow_fed.lock().unwrap().dropped && fast_fed.lock().unwrap().dropped);
}

#[tokio::test]
async fn the_first_failure_of_a_download_stops_the_rest() {
    let server = Responder::start(|_, seen| match seen.target.as_str() {
        "/bkt/missing" => Act::Answer(error("404 Not Found", "NoSuchKey")),
        _ => Act::Silence,
    })
    .await;
    let (waiting, fed) = read("waiting", 0..100);
    let (missing, _) = read("missing", 0..100);
    let error = server.client().download("bkt", vec![waiting, missing]).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.key(), error.code()),
        (ErrorKind::NotFound, Some("missing"), Some("NoSuchKey"))
    );
    assert!(fed.lock().unwrap().dropped);
}

#[tokio::test]
async fn an_endless_listing_is_an_error() {
    let server = Responder::start(|_, _| {
        let page = "<ListBucketResult><IsTruncated>true</IsTruncated>\
                    <NextContinuationToken>same</NextContinuationToken></ListBucketResult>";
        Act::Answer(response("200 OK", &[], page.as_bytes()))
    })
    .await;
    let error = server.client().list_objects("bkt", "", None).await.unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (ErrorKind::Service, 2));
}
