//! The simulator beside the real thing: the shipped client against the embedded server, on sockets, with the same model of
//! partitions in front. Budgets are small enough that the machine is not what limits.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and the table is for people"
)]

mod common;

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use s3dcp_checkpoint::Layout;
use s3dcp_prefix::{HexPrefixStrategy, NumericOptions};
use s3dcp_s3::{
    Client, ClientConfig, Error, PaceShare, Payload, PutOptions, Segment, StaticCredentials, UploadOptions,
    crc32,
};
use s3dcp_server::{Limits, Partitions, Server, ServerConfig};
use s3dcp_sim::{Network, Operation, Scenario, simulate};

use common::with;

const PART: u64 = 5 << 20;
const SMALL: u64 = 16 << 10;
/// How late each answer begins on the server, and as much again for what this machine needs.
const DELAY: Duration = Duration::from_millis(10);
const SEEDS: u64 = 20;
const SAVE_ID: &str = "0123456789abcdef";

/// Ranks that save so many small files each, with so many requests per second.
fn small(world_size: u32, requests_per_second: f64, files: u32) -> Scenario {
    let limits = with(Limits::default(), |limits| {
        limits.writes_per_second = requests_per_second;
        limits.reads_per_second = requests_per_second;
    });
    with(Scenario::default(), |scenario| {
        scenario.world_size = world_size;
        scenario.bytes_per_rank = u64::from(files) * SMALL;
        scenario.files_per_rank = files;
        scenario.part_size = Some(PART);
        scenario.limits = limits;
        scenario.retry_after = true;
        scenario.network = with(Network::default(), |network| {
            network.latency = 2 * DELAY;
            network.connection_bytes_per_second = 1e9;
            network.rank_bytes_per_second = 1e9;
            network.fleet_bytes_per_second = 1e9;
            network.connections = 16;
        });
    })
}

/// The same with so many parts in each of a few files, a few at a time: bytes cost this machine time that a network does not.
fn parts(world_size: u32, requests_per_second: f64, files: u32, parts: u64) -> Scenario {
    let scenario = small(world_size, requests_per_second, files);
    let network = with(scenario.network, |network| {
        network.connections = 3;
    });
    with(scenario, |scenario| {
        scenario.bytes_per_rank = u64::from(files) * parts * PART;
        scenario.network = network;
    })
}

fn hex(scenario: Scenario, partitions: usize) -> Scenario {
    let strategy = Arc::new(HexPrefixStrategy::new(NumericOptions::default()).unwrap());
    with(scenario, |scenario| {
        scenario.strategy = strategy;
        scenario.partitions = partitions;
    })
}

fn load(scenario: Scenario) -> Scenario {
    with(scenario, |scenario| scenario.operation = Operation::Load)
}

fn splitting(mut scenario: Scenario) -> Scenario {
    scenario.limits.split_after = Duration::from_secs(2);
    scenario.limits.heat_window = Duration::from_secs(1);
    scenario
}

fn scenarios() -> Vec<(&'static str, Scenario)> {
    vec![
        ("1 rank", small(1, 50.0, 300)),
        ("2 ranks", small(2, 60.0, 240)),
        ("4 ranks", small(4, 100.0, 200)),
        ("8 ranks", small(8, 160.0, 160)),
        ("16 ranks", small(16, 240.0, 120)),
        ("32 ranks", small(32, 320.0, 80)),
        ("8 ranks, hex prefixes", hex(small(8, 160.0, 160), 1)),
        ("8 ranks, 2 warm partitions", hex(small(8, 80.0, 160), 2)),
        ("8 ranks, 4 warm partitions", hex(small(8, 40.0, 160), 4)),
        ("8 ranks, 8 warm partitions", hex(small(8, 20.0, 160), 8)),
        ("8 ranks, splitting", splitting(hex(small(8, 80.0, 180), 1))),
        ("8 ranks, each by itself", with(small(8, 160.0, 320), |scenario| scenario.sharing = false)),
        ("4 ranks, 1 file of 60 parts", parts(4, 40.0, 1, 60)),
        ("8 ranks, 2 files of 20 parts", parts(8, 60.0, 2, 20)),
        ("4 ranks load", load(small(4, 100.0, 200))),
        ("8 ranks load, 4 warm partitions", load(hex(small(8, 40.0, 160), 4))),
    ]
}

/// One save or load on sockets: how long it took and how many requests were refused.
async fn real(scenario: &Scenario) -> (f64, u64) {
    let writes_per_second = match scenario.operation {
        Operation::Save => scenario.limits.writes_per_second,
        // What is loaded has to be there first.
        Operation::Load => 1e6,
    };
    let limits = with(scenario.limits.clone(), |limits| limits.writes_per_second = writes_per_second);
    let server = Server::start(with(ServerConfig::default(), |config| {
        config.buckets = vec!["bucket".to_owned()];
        config.partitions = Some(with(Partitions::default(), |partitions| {
            partitions.limits = limits;
            partitions.first_keys = scenario.first_keys();
        }));
        config.faults = vec![format!("delay:{}ms", DELAY.as_millis()).parse().unwrap()];
    }))
    .await
    .unwrap();
    let clients: Vec<Client> = (0..scenario.world_size).map(|_| client(&server, scenario)).collect();
    let prefixes = scenario.prefixes(0);
    let keys = |rank: usize| {
        let prefix = prefixes[rank].strip_prefix("bucket/run/").unwrap();
        let name = |file| Layout::new("run").shard_file(prefix, file, SAVE_ID).unwrap().key;
        (0..scenario.files_per_rank).map(name).collect::<Vec<_>>()
    };
    if scenario.operation == Operation::Load {
        join_all(clients.iter().enumerate().map(|(rank, client)| save(client, scenario, keys(rank)))).await;
        put_index(&clients[0]).await;
    }
    let refused = |clients: &[Client]| clients.iter().map(|client| client.stats().throttled).sum::<u64>();
    let before = refused(&clients);
    let began = Instant::now();
    let counter = AtomicI64::new(0);
    let ranks = clients.iter().enumerate().map(async |(rank, client)| {
        tokio::time::sleep(scenario.start_spread.mul_f64(fastrand::f64())).await;
        let mut share = client.share_pace(
            scenario.operation == Operation::Save,
            "bucket",
            "run",
            scenario.world_size,
            None,
        );
        let work = async {
            match scenario.operation {
                Operation::Save => save(client, scenario, keys(rank)).await,
                Operation::Load => read(client, scenario, keys(rank)).await,
            }
        };
        tokio::select! {
            () = work => counter.fetch_add(share.leave().unwrap_or_default(), Relaxed),
            never = exchange(&mut share, &counter, scenario), if scenario.sharing => never,
        }
    });
    join_all(ranks).await;
    if scenario.operation == Operation::Save {
        put_index(&clients[0]).await;
    }
    (began.elapsed().as_secs_f64(), refused(&clients) - before)
}

/// What ranks of a process group do through its store.
async fn exchange(share: &mut PaceShare, counter: &AtomicI64, scenario: &Scenario) -> ! {
    loop {
        tokio::time::sleep(PaceShare::period(scenario.world_size)).await;
        if let Some(change) = share.change() {
            share.agree(counter.fetch_add(change, Relaxed) + change);
        }
    }
}

fn client(server: &Server, scenario: &Scenario) -> Client {
    Client::new(with(ClientConfig::default(), |config| {
        config.region = Some("us-east-1".to_owned());
        config.endpoint_url = Some(server.endpoint_url());
        config.credentials = Some(StaticCredentials::new(server.access_key(), server.secret_key()));
        config.max_connections = Some(scenario.network.connections);
        config.part_size = scenario.part_size;
    }))
    .unwrap()
}

fn index_key() -> String {
    Layout::new("run").index_key(None)
}

async fn put_index(client: &Client) {
    let body = Payload::from(vec![0; 4096]);
    client.put_object("bucket", &index_key(), body, &PutOptions::default()).await.unwrap();
}

/// Uploads the files of a rank one after the other, as the storage writer does: finishing overlaps with the next ones.
async fn save(client: &Client, scenario: &Scenario, keys: Vec<String>) {
    let bytes = Bytes::from(vec![7; PART as usize]);
    let checksum = crc32(&bytes);
    let size = scenario.bytes_per_rank / u64::from(scenario.files_per_rank);
    let mut finishing = Vec::new();
    for key in keys {
        let options = with(UploadOptions::default(), |options| options.size_hint = Some(size));
        let mut upload = client.upload("bucket", &key, options);
        while upload.len() < size {
            let length = (size - upload.len()).min(upload.part_remaining()).min(PART);
            let piece = bytes.slice(..length as usize);
            let checksum = if length == PART { checksum } else { crc32(&piece) };
            upload.push(Segment::borrowed(piece), checksum).await.unwrap();
        }
        finishing.push(tokio::spawn(upload.finish()));
    }
    for file in finishing {
        file.await.unwrap().unwrap();
    }
}

async fn read(client: &Client, scenario: &Scenario, keys: Vec<String>) {
    client.get_object("bucket", &index_key()).await.unwrap();
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

/// The median of some runs, and how far they spread.
struct Spread<T> {
    median: T,
    least: T,
    most: T,
}

impl<T: Copy + PartialOrd> FromIterator<T> for Spread<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort_by(|one, other| one.partial_cmp(other).unwrap());
        Self { median: values[values.len() / 2], least: values[0], most: values[values.len() - 1] }
    }
}

impl<T: Display> Display for Spread<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.median.fmt(f)?;
        f.write_str(" (")?;
        self.least.fmt(f)?;
        f.write_str("–")?;
        self.most.fmt(f)?;
        f.write_str(")")
    }
}

/// A scenario on sockets, beside the simulator.
struct Comparison {
    /// How much longer it took, as a share of the time simulated.
    apart: f64,
    refused: u64,
    simulated_refused: Spread<u64>,
}

impl Comparison {
    fn agrees(&self) -> bool {
        let Spread { least, most, .. } = self.simulated_refused;
        self.apart.abs() <= 0.1 && (least..=most).contains(&self.refused)
    }
}

/// Runs a scenario so often on sockets and in the simulator, and tells how far they are apart.
async fn compare(name: &str, scenario: &Scenario, runs: usize) -> Comparison {
    let mut measured = Vec::new();
    for _ in 0..runs {
        measured.push(real(scenario).await);
    }
    let simulated: Vec<_> = (0..SEEDS)
        .map(|seed| simulate(&with(scenario.clone(), |scenario| scenario.seed = seed)).rounds.remove(0))
        .map(|round| (round.duration.as_secs_f64(), round.refused))
        .collect();
    let [real_seconds, simulated_seconds] =
        [&measured, &simulated].map(|runs| runs.iter().map(|(seconds, _)| *seconds).collect::<Spread<f64>>());
    let [real_refused, simulated_refused] =
        [&measured, &simulated].map(|runs| runs.iter().map(|(_, refused)| *refused).collect::<Spread<u64>>());
    let apart = real_seconds.median / simulated_seconds.median - 1.0;
    let line = format!(
        "| {name} | {real_seconds:.2} | {simulated_seconds:.2} | {:+.1} % | {real_refused} | {simulated_refused} |",
        100.0 * apart
    );
    let found = Comparison { apart, refused: real_refused.median, simulated_refused };
    println!("{line}{}", if found.agrees() { "" } else { " apart" });
    found
}

/// One of each kind, once, and coarsely: a machine that is busy with others is slower, and asks for less. What it cannot be is
/// faster than the budget, or refused more often than one that is not.
#[tokio::test(flavor = "multi_thread")]
async fn saves_on_sockets_keep_to_the_budget_and_are_refused_as_rarely() {
    for (name, scenario) in scenarios() {
        if ["1 rank", "4 ranks, 1 file of 60 parts"].contains(&name) {
            let found = compare(name, &scenario, 1).await;
            assert!(found.apart > -0.5, "{name}: {}", found.apart);
            let most = found.simulated_refused.most;
            assert!(found.refused <= 2 * most, "{name}: {} refused, {most} simulated", found.refused);
        }
    }
}

/// All of them, with medians of five (`S3DCP_RUNS`): some minutes. `S3DCP_ONLY` is a part of the names.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo test --release -p s3dcp-sim --test sockets -- --ignored --nocapture"]
async fn every_scenario_agrees_with_sockets() {
    println!(
        "| scenario | sockets, s | simulated, s | apart | 503 | 503 simulated |\n| --- | --- | --- | --- | --- | --- |"
    );
    let runs = std::env::var("S3DCP_RUNS").map_or(5, |runs| runs.parse().unwrap());
    let mut apart = Vec::new();
    let only = std::env::var("S3DCP_ONLY").unwrap_or_default();
    for (name, scenario) in scenarios().into_iter().filter(|(name, _)| name.contains(&only)) {
        if !compare(name, &scenario, runs).await.agrees() {
            apart.push(name);
        }
    }
    assert!(apart.len() <= 3, "{apart:?}");
}
