//! Requests whose answer is late.

use std::time::Duration;

use s3dcp_s3::Client;

use crate::support::{Act, Responder, Seen, error, response, with};

fn found() -> Vec<u8> {
    response("200 OK", &[("ETag", "\"e\"")], b"")
}

async fn head_all(client: &Client, count: usize) {
    for number in 0..count {
        client.head_object("bkt", &format!("k{number}")).await.unwrap();
    }
}

/// Whether this is one of the keys whose first request nobody answers, and the first to ask for it.
fn is_stuck(number: usize, seen: &Seen) -> bool {
    let key = seen.target.rsplit('k').next().unwrap();
    ["200", "300"].contains(&key) && key == number.to_string()
}

#[tokio::test]
async fn a_read_that_is_not_answered_is_sent_again_over_another_connection() {
    let server = Responder::start(|number, seen| {
        // After the first repetition the numbers are one ahead.
        let number = if number > 201 { number - 1 } else { number };
        if is_stuck(number, seen) { Act::Silence } else { Act::Answer(found()) }
    })
    .await;
    let client = server.client();
    head_all(&client, 400).await;
    let stats = client.stats();
    assert_eq!((stats.hedged, stats.retries, stats.requests), (2, 0, 402));
    assert_eq!(server.seen().len(), 402);
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn after_a_slow_down_nothing_is_sent_again() {
    let server = Responder::start(|number, seen| match number {
        150 => Act::Answer(error("503 Slow Down", "SlowDown")),
        _ if is_stuck(number - usize::from(number > 150), seen) => Act::Silence,
        _ => Act::Answer(found()),
    })
    .await;
    let config = with(server.config(), |config| config.read_timeout = Duration::from_millis(500));
    let client = Client::new(config).unwrap();
    head_all(&client, 250).await;
    let stats = client.stats();
    assert_eq!((stats.hedged, stats.throttled, stats.retries), (0, 1, 2));
}

#[tokio::test]
async fn what_writes_is_sent_once() {
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
