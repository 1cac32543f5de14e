//! Requests whose answer is late.

use std::sync::Mutex;
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

/// Answers each request but the first to each of these keys.
fn stuck(keys: [&'static str; 2]) -> impl Fn(&Seen) -> Act + Send + Sync {
    let asked: Mutex<Vec<&str>> = Mutex::default();
    move |seen| {
        let key = keys.into_iter().find(|key| seen.target.ends_with(&format!("/{key}")));
        let mut asked = asked.lock().unwrap();
        match key.filter(|key| !asked.contains(key)) {
            Some(key) => {
                asked.push(key);
                Act::Silence
            }
            None => Act::Answer(found()),
        }
    }
}

#[tokio::test]
async fn a_read_that_is_not_answered_is_sent_again_over_another_connection() {
    let answer = stuck(["k500", "k550"]);
    let server = Responder::start(move |_, seen| answer(seen)).await;
    let client = server.client();
    head_all(&client, 600).await;
    let stats = client.stats();
    // On a machine that is busy, another answer may be late.
    assert!((2..=6).contains(&stats.hedged), "{stats:?}");
    assert_eq!((stats.retries, stats.requests), (0, 600 + stats.hedged));
    assert_eq!(server.seen().len() as u64, stats.requests);
    assert!(server.connections() >= 3);
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
    assert_eq!((stats.hedged, stats.throttled, stats.retries), (0, 1, 3));
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
