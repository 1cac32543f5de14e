//! How answers come over the wire: in which pieces and frames, and on which connection.

use std::time::Duration;

use s3dcp_s3::{Client, ErrorKind};

use crate::support::{Act, Responder, Seen, error, pattern, read, response, with};

const OBJECT: usize = 20_000;

/// The answer to a GET of the object, with the body as the framing wants it.
fn answer(seen: &Seen, headers: &str, frame: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let range = seen.header("range").unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let body = &pattern(OBJECT)[first.parse().unwrap()..=last.parse().unwrap()];
    let mut bytes = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"e1\"\r\nContent-Range: bytes {range}/{OBJECT}\r\n{headers}\r\n"
    )
    .into_bytes();
    bytes.extend(frame(body));
    bytes
}

/// The usual answer.
fn plain(seen: &Seen) -> Vec<u8> {
    let (first, last) = seen.header("range").unwrap()[6..].split_once('-').unwrap();
    let length = last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
    answer(seen, &format!("Content-Length: {length}\r\n"), <[u8]>::to_vec)
}

fn chunked(seen: &Seen) -> Vec<u8> {
    answer(seen, "Transfer-Encoding: chunked\r\n", |body| {
        let mut framed = Vec::new();
        for chunk in body.chunks(777) {
            framed.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        framed
    })
}

/// Reads a range and compares it with the object.
async fn check(client: &Client, range: std::ops::Range<u64>) {
    let (job, fed) = read("k", range.clone());
    client.download("bkt", vec![job]).await.unwrap();
    let fed = fed.lock().unwrap();
    assert!(fed.bytes == pattern(OBJECT)[range.start as usize..range.end as usize]);
    assert_eq!((fed.restarts, fed.finished), (0, 1));
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let server = Responder::start(|_, seen| {
        let answer = plain(seen);
        let pieces = answer.len();
        Act::Slowly(answer, pieces, Duration::ZERO)
    })
    .await;
    check(&server.client(), 5..305).await;
    assert_eq!(server.client().get_range("bkt", "k", 7..200).await.unwrap(), pattern(OBJECT)[7..200]);
}

#[tokio::test]
async fn a_connection_serves_one_answer_after_the_other() {
    let server = Responder::start(|_, seen| Act::Answer(plain(seen))).await;
    let client = server.client();
    for range in [0..1, 0..OBJECT as u64, 1..3, 100..9000, 8000..19_999] {
        check(&client, range).await;
    }
    assert_eq!((server.connections(), client.stats().requests, client.stats().retries), (1, 5, 0));
}

#[tokio::test]
async fn chunked_answers_are_read_too_and_keep_their_connection() {
    let server = Responder::start(|number, seen| {
        Act::Answer(if number % 2 == 0 { chunked(seen) } else { plain(seen) })
    })
    .await;
    let client = server.client();
    for range in [0..OBJECT as u64, 5..6, 700..19_000, 3..5000] {
        check(&client, range).await;
    }
    assert_eq!((server.connections(), server.seen().len()), (1, 4));
}

#[tokio::test]
async fn a_chunked_answer_that_is_too_long_is_not_taken() {
    let server = Responder::start(|_, seen| {
        Act::Answer(answer(seen, "Transfer-Encoding: chunked\r\n", |_| {
            ["2710\r\n", &"x".repeat(10_000), "\r\n0\r\n\r\n"].concat().into_bytes()
        }))
    })
    .await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 2)).unwrap();
    let (job, fed) = read("k", 0..100);
    let error = client.download("bkt", vec![job]).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Service, 2));
    assert!(error.message().contains("more bytes"), "{error}");
    assert!(fed.lock().unwrap().bytes.is_empty());
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_without_an_attempt() {
    // Closed right after the answer.
    let server = Responder::start(|_, seen| Act::ThenClose(plain(seen))).await;
    let client = server.client();
    check(&client, 0..500).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    check(&client, 500..900).await;
    assert_eq!((server.connections(), client.stats().requests, client.stats().retries), (2, 2, 0));
    // Closed when the next request came.
    let server = Responder::start(|number, seen| match number {
        1 => Act::ThenClose(Vec::new()),
        _ => Act::Answer(plain(seen)),
    })
    .await;
    let client = server.client();
    check(&client, 0..500).await;
    check(&client, 500..900).await;
    let stats = client.stats();
    assert_eq!((server.connections(), server.seen().len(), stats.requests, stats.retries), (2, 3, 2, 0));
}

#[tokio::test]
async fn a_new_connection_that_breaks_costs_an_attempt() {
    let server = Responder::start(|number, seen| match number {
        0 => Act::ThenClose(Vec::new()),
        1 => Act::ThenClose(plain(seen)[..40].to_vec()),
        _ => Act::Answer(plain(seen)),
    })
    .await;
    let client = server.client();
    check(&client, 0..500).await;
    assert_eq!((client.stats().requests, client.stats().retries), (3, 2));
}

#[tokio::test]
async fn a_connection_is_not_used_again_when_the_service_says_so_or_sends_too_much() {
    let server = Responder::start(|number, seen| match number {
        0 => Act::Answer(answer(seen, "Content-Length: 500\r\nConnection: close\r\n", <[u8]>::to_vec)),
        1 => {
            let mut long = plain(seen);
            long.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            Act::Answer(long)
        }
        2 => {
            let mut old = plain(seen);
            old[..8].copy_from_slice(b"HTTP/1.0");
            Act::Answer(old)
        }
        _ => Act::Answer(plain(seen)),
    })
    .await;
    let client = server.client();
    for start in [0, 500, 1000, 1500] {
        check(&client, start..start + 500).await;
    }
    assert_eq!((server.connections(), client.stats().requests), (4, 4));
}

#[tokio::test]
async fn an_error_answer_leaves_its_connection_usable() {
    let server = Responder::start(|number, seen| match number {
        0 => Act::Answer(error("503 Slow Down", "SlowDown")),
        _ => Act::Answer(plain(seen)),
    })
    .await;
    let client = server.client();
    check(&client, 0..5000).await;
    assert_eq!((server.connections(), client.stats().throttled), (1, 1));
}

#[tokio::test]
async fn an_answer_that_is_cut_is_read_on_from_there() {
    // After so many bytes of the answer, some of them in its head.
    for cut in [0, 20, 110, 111, 5000, 10_000] {
        let server = Responder::start(move |number, seen| {
            let answer = plain(seen);
            match number {
                0 => Act::ThenClose(answer[..cut].to_vec()),
                _ => Act::Answer(answer),
            }
        })
        .await;
        let client = server.client();
        check(&client, 1000..11_000).await;
        assert_eq!(client.stats().retries, 1, "{cut}");
        assert_eq!(client.stats().bytes_received, 10_000);
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let server = Responder::start(|_, _| Act::ThenClose(b"HTTP/1.1 200 OK\r\n\r\nhello".to_vec())).await;
    let client = server.client();
    assert_eq!(client.get_object("bkt", "k").await.unwrap().body, "hello");
    assert_eq!(client.get_object("bkt", "k").await.unwrap().body, "hello");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn silence_in_a_body_is_a_retry() {
    let server = Responder::start(|number, seen| {
        let answer = plain(seen);
        match number {
            0 => Act::Answer(answer[..answer.len() - 100].to_vec()),
            _ => Act::Answer(answer),
        }
    })
    .await;
    let config = with(server.config(), |config| config.read_timeout = Duration::from_millis(200));
    let client = Client::new(config).unwrap();
    check(&client, 0..9000).await;
    assert_eq!(server.seen()[1].header("range"), Some("bytes=8900-8999"));
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[], b"")[..10].to_vec())).await;
    let config = with(server.config(), |config| {
        config.read_timeout = Duration::from_millis(50);
        config.max_attempts = 1;
    });
    let error = Client::new(config).unwrap().get_range("bkt", "k", 0..10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
}
