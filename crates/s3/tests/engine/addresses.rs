//! A name with several addresses: over which of them requests go.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use s3dcp_s3::{Client, ErrorKind, Payload, PutOptions, Resolve};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{Act, Responder, config, response, with};

/// A name server for one name.
#[derive(Debug, Default)]
struct Names {
    addresses: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl Resolve for Names {
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        assert_eq!(host, "store.test");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let addresses = self.addresses.clone();
        Box::pin(async move { Ok(addresses) })
    }
}

fn ip(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, number])
}

/// A client of `store.test` at these addresses.
fn client(names: &Arc<Names>, port: u16) -> Client {
    let url = format!("http://store.test:{port}");
    let config = with(config(&url, "AKIDEXAMPLE", "SECRET-OF-THE-TEST"), |config| {
        config.force_path_style = true;
        config.max_connections = Some(48);
        config.resolver = Some(names.clone());
    });
    Client::new(config).unwrap()
}

async fn put(client: &Client, number: usize) {
    let body = Payload::from(vec![7; 100]);
    client.put_object("bkt", &format!("k{number}"), body, &PutOptions::default()).await.unwrap();
}

/// As many requests at once.
async fn put_all(client: &Client, count: usize) {
    join_all((0..count).map(|number| put(client, number))).await;
}

/// Somebody who answers each request, after a pause if that is not zero.
fn answering(listener: TcpListener, pause: Duration) -> Responder {
    Responder::listen(listener, move |_, _| {
        let answer = response("200 OK", &[("ETag", "\"e\"")], b"");
        if pause.is_zero() { Act::Answer(answer) } else { Act::Slowly(answer, 2, pause) }
    })
}

/// Listens at this address, where nobody will be let in: those that hold its queue.
async fn deaf(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queue.push(stream.unwrap());
    }
    (listener, queue)
}

#[tokio::test]
async fn requests_go_over_all_addresses_but_those_that_are_dead_or_slow() {
    let first = TcpListener::bind((ip(1), 0)).await.unwrap();
    let port = first.local_addr().unwrap().port();
    let mut servers = vec![answering(first, Duration::ZERO)];
    for number in 2..=6 {
        servers.push(answering(TcpListener::bind((ip(number), port)).await.unwrap(), Duration::ZERO));
    }
    let _dead = deaf(SocketAddr::new(ip(7), port)).await;
    let slow = answering(TcpListener::bind((ip(8), port)).await.unwrap(), Duration::from_secs(2));
    let names = Arc::new(Names { addresses: (1..=8).map(ip).collect(), ..Names::default() });
    let client = client(&names, port);
    put_all(&client, 48).await;
    let of_slow = slow.seen().len();
    assert!((4..=12).contains(&of_slow), "{of_slow}");
    for _ in 0..5 {
        put_all(&client, 48).await;
    }
    assert_eq!(slow.seen().len(), of_slow, "it was left out");
    let shares: Vec<usize> = servers.iter().map(Responder::connections).collect();
    let mean = shares.iter().sum::<usize>() as f64 / shares.len() as f64;
    assert!(shares.iter().all(|&share| (share as f64 / mean - 1.0).abs() <= 0.2), "{shares:?}");
    assert!(servers.iter().all(|server| server.seen().len() >= 20), "{shares:?}");
    assert_eq!(client.stats().retries, 0, "no attempt was lost");
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_many_connections() {
    let listener = TcpListener::bind((ip(1), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = answering(listener, Duration::ZERO);
    let names = Arc::new(Names { addresses: vec![ip(1)], ..Names::default() });
    put_all(&client(&names, port), 48).await;
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    assert_eq!(server.seen().len(), 48);
}

#[tokio::test]
async fn an_address_that_refuses_is_passed_over_and_costs_no_attempt() {
    let listener = TcpListener::bind((ip(2), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = answering(listener, Duration::ZERO);
    let names = Arc::new(Names { addresses: (1..=3).map(ip).collect(), ..Names::default() });
    let client = client(&names, port);
    put_all(&client, 20).await;
    assert_eq!((server.seen().len(), client.stats().retries), (20, 0));
}

#[tokio::test]
async fn connections_go_by_the_network_interface_that_is_named() {
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[("ETag", "\"e\"")], b""))).await;
    let by = |interfaces: &[&str]| {
        let config = with(server.config(), |config| {
            config.network_interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        });
        Client::new(config)
    };
    put(&by(&["lo"]).unwrap(), 0).await;
    let other = by(&["nothing0"]).unwrap();
    let body = Payload::from(vec![7; 100]);
    let error = other.put_object("bkt", "k", body, &PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("network_interfaces: cannot connect by \"nothing0\""), "{error}");
    for name in ["", "a/b", "a name", "much-too-long-for-it"] {
        let error = by(&["lo", name]).map(drop).unwrap_err();
        assert!(error.message().starts_with("network_interfaces must be"), "{error}");
    }
}
