//! Requests whose answer is late.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use s3dcp_s3::{Client, Condition, Error, ErrorKind, Payload, PutOptions, WhenLate, crc32};

use crate::support::{Act, Responder, Seen, error, response, with};

fn found() -> Vec<u8> {
    response("200 OK", &[("ETag", "\"e\"")], b"")
}

/// Writes an object at each of `count` keys, one after the other.
async fn put_all(client: &Client, count: usize, options: &PutOptions) {
    for number in 0..count {
        let (key, body) = (format!("k{number}"), Payload::from(b"part".to_vec()));
        client.put_object("bkt", &key, body, options).await.unwrap();
    }
}

async fn head_all(client: &Client, count: usize) {
    for number in 0..count {
        client.head_object("bkt", &format!("k{number}")).await.unwrap();
    }
}

/// Answers each request but the first to the first of these keys, and but the first two to the second.
fn stuck(keys: [&'static str; 2]) -> impl Fn(&Seen) -> Act + Send + Sync {
    let asked: [AtomicUsize; 2] = Default::default();
    move |seen| {
        let place = keys.iter().position(|key| seen.target.ends_with(&format!("/{key}")));
        match place.map(|place| (place, asked[place].fetch_add(1, Ordering::Relaxed))) {
            Some((place, times)) if times <= place => Act::Silence,
            _ => Act::Answer(found()),
        }
    }
}

#[tokio::test]
async fn a_read_that_is_not_answered_is_sent_again_over_other_connections() {
    let answer = stuck(["k500", "k550"]);
    let server = Responder::start(move |_, seen| answer(seen)).await;
    let client = server.client();
    head_all(&client, 600).await;
    let stats = client.stats();
    // On a machine that is busy, another answer may be late.
    assert!((3..=6).contains(&stats.hedged), "{stats:?}");
    assert_eq!((stats.retries, stats.requests), (0, 600 + stats.hedged));
    assert_eq!(server.seen().len() as u64, stats.requests);
    assert!(server.connections() >= 4);
}

#[tokio::test]
async fn what_is_late_when_too_much_was_sent_again_is_sent_again_later() {
    let silent = AtomicUsize::new(0);
    let server = Responder::start(move |_, seen| {
        match seen.target.contains("/late") && silent.fetch_add(1, Ordering::Relaxed) < 6 {
            true => Act::Silence,
            false => Act::Answer(found()),
        }
    })
    .await;
    let client = server.client();
    head_all(&client, 410).await;
    let late: Vec<String> = (0..6).map(|number| format!("late{number}")).collect();
    let late = join_all(late.iter().map(|key| client.head_object("bkt", key)));
    let others = pin!(async {
        loop {
            head_all(&client, 1).await;
        }
    });
    let Either::Left((late, _)) = select(pin!(late), others).await;
    assert!(late.into_iter().all(|answer| answer.is_ok()));
    let stats = client.stats();
    assert!(stats.hedged >= 6, "{stats:?}");
    assert_eq!(stats.retries, 0);
}

#[tokio::test]
async fn after_a_slow_down_nothing_is_sent_again() {
    let answer = stuck(["k200", "k220"]);
    let server = Responder::start(move |number, seen| match number {
        60 => Act::Answer(error("503 Slow Down", "SlowDown")),
        _ => answer(seen),
    })
    .await;
    let config = with(server.config(), |config| config.read_timeout = Duration::from_millis(500));
    let client = Client::new(config).unwrap();
    head_all(&client, 250).await;
    let stats = client.stats();
    assert_eq!((stats.hedged, stats.throttled, stats.retries), (0, 1, 4));
}

/// CRC-32 of what [`upload`] sends, as S3 writes it, and of something else.
const OF_PART: &str = "SQ9wxg==";
const OF_OTHER: &str = "VbtViw==";

/// Makes an object of one part.
async fn upload(client: &Client, key: &str) -> Result<(), Error> {
    let mut upload = client.assemble("bkt", key);
    upload.push(Payload::from(b"part".to_vec()), crc32(b"part")).await?;
    upload.finish().await.map(drop)
}

/// The answer to a request of that: the id of the upload, and the ETag and CRC-32 of its part as they are listed.
fn of_upload(seen: &Seen, id: &str, etag: &str, crc32: &str) -> Vec<u8> {
    let body = match &seen.method[..] {
        "POST" if seen.target.contains("uploads") => {
            format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            )
        }
        "POST" => "<CompleteMultipartUploadResult/>".to_owned(),
        "GET" => format!(
            "<ListPartsResult><Part><PartNumber>1</PartNumber><Size>4</Size><ETag>{etag}</ETag>\
             <ChecksumCRC32>{crc32}</ChecksumCRC32></Part></ListPartsResult>"
        ),
        "DELETE" => return response("204 No Content", &[], b""),
        _ => String::new(),
    };
    response("200 OK", &[("ETag", "first")], body.as_bytes())
}

#[tokio::test]
async fn requests_of_an_upload_are_sent_again_and_one_that_was_begun_twice_is_aborted() {
    let late = ["/k100?uploads", "/k150?partNumber", "/k200?uploadId"];
    let asked: Mutex<Vec<&str>> = Mutex::default();
    let server = Responder::start(move |_, seen| {
        let mut asked = asked.lock().unwrap();
        let is_late = late.into_iter().find(|late| seen.target.contains(late) && !asked.contains(late));
        asked.extend(is_late);
        match is_late {
            Some("/k100?uploads") => {
                Act::Late(Duration::from_secs(1), of_upload(seen, "other", "first", OF_PART))
            }
            Some(_) => Act::Silence,
            None => Act::Answer(of_upload(seen, "id", "first", OF_PART)),
        }
    })
    .await;
    let client = server.client();
    for number in 0..210 {
        upload(&client, &format!("k{number}")).await.unwrap();
    }
    server.wait_for("DELETE", "/k100?uploadId=other").await;
    let stats = client.stats();
    // On a machine that is busy, another answer may be late.
    assert!((3..=7).contains(&stats.hedged), "{stats:?}");
    assert_eq!(stats.retries, 0);
    for late in late {
        assert_eq!(server.seen().iter().filter(|seen| seen.target.contains(late)).count(), 2, "{late}");
    }
}

#[tokio::test]
async fn a_part_that_was_carried_out_twice_is_named_by_the_etag_that_it_has() {
    for (etag, crc32, is_made) in
        [("second", OF_PART, true), ("second", OF_OTHER, false), ("first", OF_PART, false)]
    {
        let completed = AtomicBool::new(false);
        let server = Responder::start(move |_, seen| {
            let completes = seen.method == "POST" && seen.target.contains("uploadId");
            match completes && !completed.swap(true, Ordering::Relaxed) {
                true => Act::Answer(error("400 Bad Request", "InvalidPart")),
                false => Act::Answer(of_upload(seen, "id", etag, crc32)),
            }
        })
        .await;
        let made = upload(&server.client(), "k").await;
        let error = made.err().map(|error| (error.kind(), error.code().map(str::to_owned)));
        let refused = (ErrorKind::Service, Some("InvalidPart".to_owned()));
        assert_eq!(error, (!is_made).then_some(refused), "{etag} {crc32}");
        let seen = server.seen();
        let named = |etag: &str| {
            let part = format!("<ETag>{etag}</ETag>");
            seen.iter().filter(|seen| String::from_utf8_lossy(&seen.body).contains(&part)).count()
        };
        assert_eq!((named("first"), named("second")), (1, is_made.into()));
        if !is_made {
            server.wait_for("DELETE", "/k?uploadId=id").await;
        }
    }
}

#[tokio::test]
async fn an_object_whose_key_no_other_has_is_sent_again_as_often_as_it_is_late() {
    let answer = stuck(["k200", "k400"]);
    let server = Responder::start(move |_, seen| answer(seen)).await;
    let client = server.client();
    let mut options = PutOptions::default();
    options.when_late = WhenLate::SendAgain;
    put_all(&client, 430, &options).await;
    let stats = client.stats();
    assert!((3..=5).contains(&stats.hedged), "{stats:?}");
    assert_eq!(stats.retries, 0);
}

/// The answer to a HEAD.
fn of_object(status: &str, length: usize, crc32: &str) -> Vec<u8> {
    let body = vec![0; length];
    let mut answer = response(status, &[("ETag", "here"), ("x-amz-checksum-crc32", crc32)], &body);
    answer.truncate(answer.len() - length);
    answer
}

#[tokio::test]
async fn a_write_that_may_not_be_sent_again_is_looked_for() {
    let is_late = |seen: &Seen| seen.method == "PUT" && seen.target.ends_with("/index");
    for (what, head, etag) in [
        ("it", of_object("200 OK", 4, OF_PART), "here"),
        ("a longer object", of_object("200 OK", 5, OF_PART), "put"),
        ("other bytes", of_object("200 OK", 4, OF_OTHER), "put"),
        ("no checksum", of_object("200 OK", 4, ""), "put"),
        ("nothing", of_object("404 Not Found", 0, ""), "put"),
    ] {
        let server = Responder::start(move |_, seen| match &seen.method[..] {
            _ if is_late(seen) => {
                Act::Late(Duration::from_secs(1), response("200 OK", &[("ETag", "put")], b""))
            }
            "PUT" => Act::Answer(found()),
            _ => Act::Answer(head.clone()),
        })
        .await;
        let client = server.client();
        let mut options = PutOptions::default();
        options.condition = Condition::IfNoneMatch;
        options.when_late = WhenLate::Look;
        put_all(&client, 150, &options).await;
        let put = client.put_object("bkt", "index", Payload::from(b"part".to_vec()), &options).await.unwrap();
        assert_eq!(put.etag.as_deref(), Some(etag), "{what}");
        let seen = server.seen();
        assert_eq!(seen.iter().filter(|seen| is_late(seen)).count(), 1, "{what}");
        assert_eq!(seen.iter().filter(|seen| seen.target.ends_with("/index")).count(), 2, "{what}");
        assert_eq!(client.stats().retries, 0);
    }
}

#[tokio::test]
async fn a_replacement_is_sent_again_and_may_be_refused_by_what_it_wrote_itself() {
    for (status, kind) in [("200 OK", None), ("412 Precondition Failed", Some(ErrorKind::PreconditionFailed))]
    {
        let asked = AtomicUsize::new(0);
        let server = Responder::start(move |_, seen| {
            match seen.target.ends_with("/index").then(|| asked.fetch_add(1, Ordering::Relaxed)) {
                Some(0) => Act::Silence,
                Some(_) => Act::Answer(response(status, &[("ETag", "new")], b"")),
                None => Act::Answer(found()),
            }
        })
        .await;
        let client = server.client();
        let mut options = PutOptions::default();
        options.condition = Condition::IfMatch("\"old\"".to_owned());
        options.when_late = WhenLate::SendAgain;
        put_all(&client, 150, &options).await;
        let put = client.put_object("bkt", "index", Payload::from(b"part".to_vec()), &options).await;
        let failed = put.err().map(|error| (error.kind(), error.maybe_applied()));
        assert_eq!(failed, kind.map(|kind| (kind, true)));
        assert_eq!(server.seen().iter().filter(|seen| seen.target.ends_with("/index")).count(), 2);
        assert_eq!(client.stats().retries, 0);
    }
}

#[tokio::test]
async fn a_write_that_an_earlier_attempt_may_have_done_is_waited_for() {
    let attempts = AtomicUsize::new(0);
    let server = Responder::start(move |_, seen| match seen.target.ends_with("/index") {
        true if seen.method == "HEAD" => Act::Answer(of_object("200 OK", 4, OF_PART)),
        true => match attempts.fetch_add(1, Ordering::Relaxed) {
            0 => Act::ThenReset(Vec::new()),
            _ => Act::Late(Duration::from_secs(1), response("200 OK", &[("ETag", "put")], b"")),
        },
        false => Act::Answer(found()),
    })
    .await;
    let client = server.client();
    let mut options = PutOptions::default();
    options.when_late = WhenLate::Look;
    put_all(&client, 150, &options).await;
    let put = client.put_object("bkt", "index", Payload::from(b"part".to_vec()), &options).await.unwrap();
    assert_eq!(put.etag.as_deref(), Some("put"));
}

#[tokio::test]
async fn so_is_the_deletion_of_such_objects() {
    let asked = AtomicUsize::new(0);
    let server = Responder::start(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
        200 | 220 => Act::Silence,
        _ => Act::Answer(response("200 OK", &[], b"<DeleteResult/>")),
    })
    .await;
    let client = server.client();
    for number in 0..230 {
        client.delete_objects("bkt", &[format!("k{number}")], WhenLate::SendAgain).await.unwrap();
    }
    let stats = client.stats();
    assert!((2..=5).contains(&stats.hedged), "{stats:?}");
    assert_eq!(stats.retries, 0);
}

#[tokio::test]
async fn what_else_writes_is_sent_once() {
    let server = Responder::start(|number, _| match number {
        200 => Act::Silence,
        _ => Act::Answer(found()),
    })
    .await;
    let config = with(server.config(), |config| config.read_timeout = Duration::from_millis(500));
    let client = Client::new(config).unwrap();
    for number in 0..220 {
        client.delete_object("bkt", &format!("k{number}")).await.unwrap();
    }
    assert_eq!((client.stats().hedged, client.stats().retries), (0, 1));
}
