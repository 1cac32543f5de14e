//! The simulator beside the real thing: the shipped client against the embedded server, on sockets, with the same model of
//! partitions in front. Budgets are small enough that the machine is not what limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use s3dcp_prefix::{HexPrefixStrategy, NumericOptions};
use s3dcp_s3::{Client, ClientConfig, Error, Payload, PutOptions, StaticCredentials, UploadOptions, crc32};
use s3dcp_server::{Limits, Partitions, Server, ServerConfig};
use s3dcp_sim::{Network, Operation, Scenario, simulate};

const MIB: u64 = 1 << 20;
const SEEDS: u64 = 20;

/// A scenario for one machine: so many requests per second, on loopback.
fn scaled(world_size: u32, requests_per_second: f64, parts: u64) -> Scenario {
    let limits = Limits {
        writes_per_second: requests_per_second,
        reads_per_second: requests_per_second,
        ..Limits::default()
    };
    Scenario {
        world_size,
        bytes_per_rank: parts * 5 * MIB,
        part_size: Some(5 * MIB),
        limits,
        retry_after: true,
        network: Network {
            latency: Duration::from_millis(2),
            connection_bytes_per_second: 1e9,
            rank_bytes_per_second: 2e9,
            fleet_bytes_per_second: 2e9,
            connections: 16,
            in_flight: 16 * 5 * MIB,
        },
        ..Scenario::default()
    }
}

fn hex(scenario: Scenario, partitions: usize) -> Scenario {
    let strategy = Arc::new(HexPrefixStrategy::new(NumericOptions::default()).unwrap());
    Scenario { strategy, partitions, ..scenario }
}

fn load(scenario: Scenario) -> Scenario {
    Scenario { operation: Operation::Load, ..scenario }
}

fn files(scenario: Scenario, files_per_rank: u32, bytes_per_rank: u64) -> Scenario {
    Scenario { files_per_rank, bytes_per_rank, ..scenario }
}

fn splitting(mut scenario: Scenario) -> Scenario {
    scenario.limits.split_after = Duration::from_secs(2);
    scenario.limits.heat_window = Duration::from_secs(1);
    scenario
}

fn scenarios() -> Vec<(&'static str, Scenario)> {
    vec![
        ("1 rank, cold", scaled(1, 20.0, 100)),
        ("2 ranks, cold", scaled(2, 30.0, 80)),
        ("4 ranks, cold", scaled(4, 40.0, 50)),
        ("8 ranks, cold", scaled(8, 60.0, 40)),
        ("8 ranks, cold, hex prefixes", hex(scaled(8, 60.0, 40), 1)),
        ("8 ranks, 2 warm partitions", hex(scaled(8, 30.0, 40), 2)),
        ("8 ranks, 4 warm partitions", hex(scaled(8, 20.0, 40), 4)),
        ("8 ranks, 8 warm partitions", hex(scaled(8, 10.0, 40), 8)),
        ("8 ranks, many small files", files(scaled(8, 60.0, 1), 50, 50 * 64 * 1024)),
        ("8 ranks, 4 files each", files(scaled(8, 60.0, 1), 4, 40 * 5 * MIB)),
        ("8 ranks, cold, splitting", splitting(hex(scaled(8, 30.0, 40), 1))),
        ("4 ranks load, cold", load(scaled(4, 40.0, 60))),
        ("8 ranks load, 4 warm partitions", load(hex(scaled(8, 20.0, 40), 4))),
    ]
}

/// One save or load on sockets: how long it took and how many requests were refused.
async fn real(scenario: &Scenario) -> (Duration, u64) {
    let writes_per_second = match scenario.operation {
        Operation::Save => scenario.limits.writes_per_second,
        // What is loaded has to be there first.
        Operation::Load => 1e6,
    };
    let limits = Limits { writes_per_second, ..scenario.limits.clone() };
    let server = Server::start(ServerConfig {
        buckets: vec!["bucket".to_owned()],
        partitions: Some(Partitions { limits, first_keys: scenario.first_keys() }),
        ..ServerConfig::default()
    })
    .await
    .unwrap();
    let clients: Vec<Client> = (0..scenario.world_size).map(|_| client(&server, scenario)).collect();
    let prefixes = scenario.prefixes(0);
    let keys = |rank: usize| {
        let prefix = prefixes[rank].strip_prefix("bucket/").unwrap();
        (0..scenario.files_per_rank).map(move |file| format!("{prefix}{file}.distcp")).collect::<Vec<_>>()
    };
    if scenario.operation == Operation::Load {
        join_all(clients.iter().enumerate().map(|(rank, client)| save(client, scenario, keys(rank)))).await;
        put_index(&clients[0]).await;
    }
    let refused = |clients: &[Client]| clients.iter().map(|client| client.stats().throttled).sum::<u64>();
    let before = refused(&clients);
    let began = Instant::now();
    let ranks = clients.iter().enumerate().map(async |(rank, client)| match scenario.operation {
        Operation::Save => save(client, scenario, keys(rank)).await,
        Operation::Load => read(client, scenario, keys(rank)).await,
    });
    join_all(ranks).await;
    if scenario.operation == Operation::Save {
        put_index(&clients[0]).await;
    }
    (began.elapsed(), refused(&clients) - before)
}

fn client(server: &Server, scenario: &Scenario) -> Client {
    Client::new(ClientConfig {
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(server.endpoint_url()),
        credentials: Some(StaticCredentials::new(server.access_key(), server.secret_key())),
        max_connections: scenario.network.connections,
        max_in_flight_bytes: scenario.network.in_flight,
        part_size: scenario.part_size,
        ..ClientConfig::default()
    })
    .unwrap()
}

async fn put_index(client: &Client) {
    let body = Payload::from(vec![0; 4096]);
    client.put_object("bucket", "run/.metadata", body, &PutOptions::default()).await.unwrap();
}

/// Uploads the files of a rank one after the other, as the storage writer does: finishing overlaps with the next ones.
async fn save(client: &Client, scenario: &Scenario, keys: Vec<String>) {
    let bytes = Bytes::from(vec![7; 5 * MIB as usize]);
    let checksum = crc32(&bytes);
    let size = scenario.bytes_per_rank / u64::from(scenario.files_per_rank);
    let mut finishing = Vec::new();
    for key in keys {
        let options = UploadOptions { size_hint: Some(size), ..UploadOptions::default() };
        let mut upload = client.upload("bucket", &key, options);
        while upload.len() < size {
            let length = (size - upload.len()).min(upload.part_remaining()).min(5 * MIB);
            let piece = bytes.slice(..length as usize);
            let checksum = if length == 5 * MIB { checksum } else { crc32(&piece) };
            upload.push(piece, checksum).await.unwrap();
        }
        finishing.push(tokio::spawn(upload.finish()));
    }
    for file in finishing {
        file.await.unwrap().unwrap();
    }
}

async fn read(client: &Client, scenario: &Scenario, keys: Vec<String>) {
    client.get_object("bucket", "run/.metadata").await.unwrap();
    let size = scenario.bytes_per_rank / u64::from(scenario.files_per_rank);
    let range = scenario.part_size.unwrap();
    let ranges = keys.iter().flat_map(|key| {
        (0..size.div_ceil(range)).map(async |number| {
            let range = number * range..((number + 1) * range).min(size);
            client.get_range("bucket", key, range).await.map(drop)
        })
    });
    let read: Result<Vec<()>, Error> = try_join_all(ranges).await;
    read.unwrap();
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|one, other| one.partial_cmp(other).unwrap());
    values[values.len() / 2]
}

/// Runs a scenario so often on sockets and in the simulator, and tells how far they are apart.
async fn compare(name: &str, scenario: &Scenario, runs: usize) -> (f64, bool) {
    let mut measured = Vec::new();
    for _ in 0..runs {
        measured.push(real(scenario).await);
    }
    let simulated: Vec<_> = (0..SEEDS)
        .map(|seed| simulate(&Scenario { seed, ..scenario.clone() }).rounds.remove(0))
        .map(|round| (round.duration.as_secs_f64(), round.refused))
        .collect();
    let seconds = median(measured.iter().map(|(time, _)| time.as_secs_f64()).collect());
    let foreseen = median(simulated.iter().map(|(seconds, _)| *seconds).collect());
    let refused = median(measured.iter().map(|(_, refused)| *refused).collect());
    let fewest = simulated.iter().map(|(_, refused)| *refused).min().unwrap();
    let most = simulated.iter().map(|(_, refused)| *refused).max().unwrap();
    let apart = seconds / foreseen - 1.0;
    let inside = (fewest..=most).contains(&refused);
    println!(
        "| {name} | {seconds:.2} | {foreseen:.2} | {:+.1} % | {refused} | {fewest}–{most} |{}",
        100.0 * apart,
        if apart.abs() <= 0.1 && inside { "" } else { " apart" }
    );
    (apart, inside)
}

/// All of them, with medians of five: some minutes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo test --release -p s3dcp-sim --test sockets -- --ignored --nocapture"]
async fn every_scenario_agrees_with_sockets() {
    println!(
        "| scenario | sockets, s | simulated, s | apart | 503 | 503 simulated |\n| --- | --- | --- | --- | --- | --- |"
    );
    let mut apart = Vec::new();
    for (name, scenario) in scenarios() {
        let (time, inside) = compare(name, &scenario, 5).await;
        if time.abs() > 0.1 || !inside {
            apart.push(name);
        }
    }
    assert!(apart.is_empty(), "{apart:?}");
}
