//! Processes that save, keep and prune, killed at a random instant: every index that is there is whole, and of one save.
//!
//! Some stand still for a while before, until those beside have ended, and some go on then: so the others do all their work in
//! between two requests.
//!
//! `S3DCP_KILLS=1000 cargo nextest run --release -p s3dcp-checkpoint kill --no-capture` kills more often and counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use futures_util::future::{FutureExt as _, join_all};
use rustix::process::{Pid, Signal, kill_process};
use s3dcp_checkpoint::{
    Base, Chunk, DType, ItemChecksums, ItemHash, ItemRecord, KeepRules, LeftoverKind, Load, Location, Save,
    TensorIndex, choose, find_leftovers, list_checkpoints,
};
use s3dcp_s3::{Client, ClientConfig, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::reuse::{hash, hours_later, options, record, spec};
use crate::support::{BUCKET, Bed, storage};

const USUAL_KILLS: u64 = 60;
/// After so many kills everything is pruned, as of now and as of a day later.
const SWEEP_EVERY: u64 = 30;
/// What a step would never pass to the server and back, in pieces, until it is known.
const MANY_PIECES: u64 = 300;
/// The longest delay of a kill behind the piece that calls for it, in microseconds.
const MOST_MICROSECONDS: u64 = 1000;
/// Nothing hangs so long.
const PATIENCE: Duration = Duration::from_secs(120);
const PART_SIZE: u64 = 5 << 20;
/// Bytes of a tensor whose file goes out in two parts.
const LARGE: usize = PART_SIZE as usize + (100 << 10);
/// The variable that tells a child what to do.
const JOB: &str = "KILL_TEST_JOB";

/// What one process does.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Job {
    Save(Part),
    /// Deletes all checkpoints of a path but the last two.
    Keep(String),
    /// Deletes what is left on a path, however young.
    Prune(String),
}

/// What one rank does in a save.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part {
    place: Place,
    seed: u64,
    incremental: bool,
    /// The first commits.
    rank: usize,
    ranks: usize,
}

/// Where a save goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// To a path, over what is there.
    Path,
    Epoch(u8),
    StepFolder(u8),
}

impl Place {
    fn any(random: &mut Rng) -> Place {
        match random.u8(..8) {
            0 => Place::Path,
            1 | 2 => Place::StepFolder(random.u8(..5)),
            _ => Place::Epoch(random.u8(..5)),
        }
    }

    fn location(self) -> Location {
        let (path_key, number) = match self {
            Place::Path => ("alone", None),
            Place::Epoch(number) => ("epochs", Some(number)),
            Place::StepFolder(number) => ("steps", Some(number)),
        };
        Location {
            bucket: BUCKET.into(),
            path_key: path_key.into(),
            epoch: number.map(|number| number.to_string()),
            folder: number
                .filter(|_| matches!(self, Place::StepFolder(_)))
                .map(|number| format!("step-{number}")),
            rank: None,
        }
    }

    /// The keys of the indexes that a save to here writes.
    fn indexes(self) -> Vec<String> {
        let location = self.location();
        let mut keys = vec![location.index_key()];
        if matches!(self, Place::Epoch(_)) {
            keys.push(location.root_key());
        }
        keys
    }
}

/// What a save of this seed holds: a tensor that says it, some that change every 1, 2, 4, ... seeds, and now and then a large one.
fn state(seed: u64) -> BTreeMap<String, Bytes> {
    let mut state = BTreeMap::from([("seed".to_owned(), Bytes::copy_from_slice(&seed.to_le_bytes()))]);
    let mut add = |name: String, value: u64, length: usize| {
        let mut bytes = vec![0; length];
        Rng::with_seed(value).fill(&mut bytes);
        state.insert(name, bytes.into());
    };
    for number in 0..8 {
        add(format!("item{number}"), 100 * (seed >> number) + number, 1000 * (2 * number as usize + 1));
    }
    if seed.is_multiple_of(8) {
        add("large".to_owned(), 100 * (seed >> 5) + 99, LARGE);
    }
    state
}

/// An item of a shard file, as one rank tells another.
#[derive(Serialize, Deserialize)]
struct Written {
    name: String,
    file: String,
    offset: u64,
    length: u64,
    data_offset: u64,
    checksums: Vec<u8>,
    hash: Vec<u8>,
}

impl Written {
    fn new(name: &str, file: &str, record: &ItemRecord) -> Written {
        Written {
            name: name.to_owned(),
            file: file.to_owned(),
            offset: record.offset,
            length: record.length,
            data_offset: record.data_offset,
            checksums: record.checksums.to_bytes(),
            hash: record.hash.unwrap().to_bytes().to_vec(),
        }
    }

    fn record(&self) -> ItemRecord {
        ItemRecord {
            offset: self.offset,
            length: self.length,
            data_offset: self.data_offset,
            checksums: ItemChecksums::from_bytes(&self.checksums).unwrap(),
            hash: Some(ItemHash::from_bytes(&self.hash).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test of kills, in processes that it kills"]
async fn child() {
    let Ok(job) = std::env::var(JOB) else { return };
    let mut config = ClientConfig::default();
    config.part_size = Some(PART_SIZE);
    let client = Client::new(config).unwrap();
    let ended = match serde_json::from_str(&job).unwrap() {
        Job::Save(part) if part.rank == 0 => lead(&client, &part).await,
        Job::Save(part) => follow(&client, &part).await,
        Job::Keep(path) => keep(&client, &path).await,
        Job::Prune(path) => prune(&client, &path).await.map(drop),
    };
    match ended {
        Ok(()) => say("DONE"),
        // Another save came first, or the other rank was killed.
        Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Conflict) => {
            say("REFUSED")
        }
        Err(error) => panic!("{job}: {error}"),
    }
}

/// Saves: decides what is sent by whom, sends its own, and commits.
async fn lead(client: &Client, part: &Part) -> Result<(), Error> {
    let mut save = Save::begin(client, part.place.location(), options()).await?;
    let base = if part.incremental { save.rely_on_base().await? } else { Base::default() };
    let state = state(part.seed);
    let (mut items, mut names) = (Vec::new(), vec![Vec::new(); part.ranks]);
    for (number, (name, bytes)) in state.iter().enumerate() {
        match base.find(name, Some(&[0])).filter(|item| item.hash == hash(bytes)) {
            Some(item) => items.push(Written::new(name, &item.relative_path, &record(item))),
            None => names[number % part.ranks].push(name.clone()),
        }
    }
    if let [_, theirs] = &names[..] {
        say(&format!("PEER {}", serde_json::to_string(theirs).unwrap()));
    }
    items.extend(write(&mut save, part, &names[0]).await?);
    if part.ranks > 1 {
        let Some(theirs) = hear().await else {
            save.discard([], []).await;
            return Err(Error::new(ErrorKind::Conflict, "the other rank was killed"));
        };
        items.extend(serde_json::from_str::<Vec<Written>>(&theirs).unwrap());
    }
    let mut index = TensorIndex::new();
    for item in items {
        let shape = [state[&item.name].len() as u64];
        index.tensor(&item.name, DType::UInt8, &shape, &item.file, item.record())?;
    }
    let epoch = part.place.location().epoch.map(|epoch| epoch.parse().unwrap());
    let index = index.finish(save.save_id(), part.ranks as u32, epoch)?;
    save.commit(&index).await.map(drop)
}

/// Sends what the first rank says.
async fn follow(client: &Client, part: &Part) -> Result<(), Error> {
    let mut save = Save::join(client, part.place.location());
    let Some(names) = hear().await else { return Ok(()) };
    let items = write(&mut save, part, &serde_json::from_str::<Vec<String>>(&names).unwrap()).await?;
    say(&format!("PEER {}", serde_json::to_string(&items).unwrap()));
    Ok(())
}

/// Writes these tensors into a file, if there are any.
async fn write(save: &mut Save, part: &Part, names: &[String]) -> Result<Vec<Written>, Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let rank = part.rank;
    let prefix = match part.place {
        Place::Path => format!("__{rank}_"),
        Place::Epoch(number) | Place::StepFolder(number) => format!("{rank}000/epoch_{number}/__{rank}_"),
    };
    let state = state(part.seed);
    let mut shard = save.shard(&prefix, 0, None)?;
    shard.hash_items();
    let mut items = Vec::new();
    for name in names {
        let record = shard.tensor(&spec(&state[name]), state[name].clone()).await?;
        items.push(Written::new(name, &shard.name().relative_path, &record));
    }
    shard.finish().await?;
    Ok(items)
}

async fn keep(client: &Client, path: &str) -> Result<(), Error> {
    let mut rules = KeepRules::default();
    rules.last = Some(2);
    let found = list_checkpoints(&storage(client), path).await?;
    choose(found, &rules)?.delete(&storage(client)).await.map(drop)
}

/// How many of which kind are gone.
async fn prune(client: &Client, path: &str) -> Result<Counts, Error> {
    let found = find_leftovers(&storage(client), path, Duration::ZERO).await?;
    let pruned = found.delete(&storage(client)).await;
    assert!(pruned.failed.is_empty() && pruned.stopped.is_none(), "{pruned:?}");
    let mut counts = Counts::new();
    for leftover in pruned.deleted {
        let kind = match leftover.kind {
            LeftoverKind::Upload { .. } => "uploads",
            LeftoverKind::ShardFile => "shard files",
            LeftoverKind::Intent => "intents",
            LeftoverKind::Probe | LeftoverKind::File | LeftoverKind::Tombstone => "others",
        };
        *counts.entry(kind).or_default() += 1;
    }
    Ok(counts)
}

type Counts = BTreeMap<&'static str, u64>;

/// Says something to the parent, which may have been killed with the rest.
fn say(line: &str) {
    // The test harness writes to this line too.
    let _best_effort = writeln!(std::io::stdout(), "\n{line}");
}

/// What the other rank says; `None` once it is gone.
async fn hear() -> Option<String> {
    tokio::task::spawn_blocking(|| std::io::stdin().lines().next()?.ok()).await.unwrap()
}

/// A way to the server for other processes, which counts what passes.
struct Way {
    address: SocketAddr,
    traffic: Arc<watch::Sender<Traffic>>,
}

#[derive(Default)]
struct Traffic {
    connections: usize,
    /// What was read at once, in either direction.
    pieces: u64,
}

impl Way {
    async fn to(server: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way { address: listener.local_addr().unwrap(), traffic: Arc::default() };
        let traffic = way.traffic.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                traffic.send_modify(|traffic| traffic.connections += 1);
                let traffic = traffic.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.split(), server.split());
                    tokio::join!(
                        pass(from_client, to_server, &traffic),
                        pass(from_server, to_client, &traffic)
                    );
                    traffic.send_modify(|traffic| traffic.connections -= 1);
                });
            }
        });
        way
    }

    /// Waits until all that processes which have ended sent has had its effect: the server has closed their connections.
    async fn settle(&self) {
        // Connections are accepted in their order: behind this one, those before it are counted.
        let mut last = TcpStream::connect(self.address).await.unwrap();
        last.shutdown().await.unwrap();
        last.read_to_end(&mut Vec::new()).await.unwrap();
        self.traffic.subscribe().wait_for(|traffic| traffic.connections == 0).await.unwrap();
    }
}

/// Passes on what comes until nothing more does, to the last byte, whoever still listens.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    traffic: &watch::Sender<Traffic>,
) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        traffic.send_modify(|traffic| traffic.pieces += 1);
        let _gone = to.write_all(&buffer[..length]).await;
    }
    let _gone = to.shutdown().await;
}

/// What happens to whom during a step, once so many pieces have passed and a moment more.
#[derive(Debug)]
struct Interruption {
    what: What,
    victims: Vec<usize>,
    pieces: u64,
    then: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Kill,
    /// They stand still until the others have ended.
    SuspendAndKill,
    SuspendAndGoOn,
}

impl Interruption {
    fn any(random: &mut Rng, processes: usize, most_pieces: u64) -> Interruption {
        let one = vec![random.usize(..processes)];
        let (what, victims) = match random.u8(..6) {
            0 | 1 => (What::Kill, (0..processes).collect()),
            2 | 3 => (What::Kill, one),
            4 => (What::SuspendAndKill, one),
            _ => (What::SuspendAndGoOn, one),
        };
        let then = Duration::from_micros(random.u64(..MOST_MICROSECONDS));
        Interruption { what, victims, pieces: random.u64(..=most_pieces), then }
    }
}

/// How a process ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    /// What it said in the end, if it came so far.
    said: Option<String>,
}

impl Ended {
    fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }

    fn is_done(&self) -> bool {
        self.said.as_deref() == Some("DONE")
    }
}

/// Runs a process for each job, and interrupts some; how each ended, and the pieces that passed.
async fn run(bed: &Bed, way: &Way, jobs: &[Job], interruption: &Interruption) -> (Vec<Ended>, u64) {
    let mut traffic = way.traffic.subscribe();
    let before = traffic.borrow().pieces;
    let mut children: Vec<Child> = jobs.iter().map(|job| start(bed, way, job)).collect();
    let mut inputs: Vec<Option<ChildStdin>> = children.iter_mut().map(|child| child.stdin.take()).collect();
    // Of a save of two ranks, which are the first two, each hears the other.
    let peer_of = |number: usize| match &jobs[number] {
        Job::Save(Part { ranks: 2, .. }) => Some(1 - number),
        _ => None,
    };
    let mut listeners = Vec::new();
    for (number, child) in children.iter_mut().enumerate() {
        let (output, peer) = (child.stdout.take().unwrap(), peer_of(number));
        let peer = peer.and_then(|peer| inputs[peer].take());
        listeners.push(tokio::task::spawn_blocking(|| listen(output, peer)).map(Result::unwrap).shared());
    }
    let interrupted = async {
        drop(traffic.wait_for(|traffic| traffic.pieces >= before + interruption.pieces).await);
        // The runtime's clock is too coarse for that.
        std::thread::sleep(interruption.then);
        let victims = &interruption.victims;
        if interruption.what != What::Kill {
            signal(&children, victims, Signal::STOP);
            let waits = |number: &usize| {
                victims.contains(number) || peer_of(*number).is_some_and(|peer| victims.contains(&peer))
            };
            let others = (0..jobs.len()).filter(|number| !waits(number));
            join_all(others.map(|number| listeners[number].clone())).await;
        }
        let goes_on = interruption.what == What::SuspendAndGoOn;
        signal(&children, victims, if goes_on { Signal::CONT } else { Signal::KILL });
    };
    let ends = async {
        let mut all = join_all(listeners.clone());
        tokio::select! {
            said = &mut all => said,
            () = interrupted => all.await,
        }
    };
    let Ok(said) = timeout(PATIENCE, ends).await else {
        signal(&children, &(0..jobs.len()).collect::<Vec<_>>(), Signal::KILL);
        panic!("they hang: {jobs:?}, {interruption:?}");
    };
    let ended = children.iter_mut().zip(said);
    let ended = ended.map(|(child, said)| Ended { status: child.wait().unwrap(), said }).collect();
    timeout(PATIENCE, way.settle()).await.unwrap();
    let pieces = way.traffic.borrow().pieces - before;
    (ended, pieces)
}

/// Sends a signal to these, none of which has been waited for.
fn signal(children: &[Child], numbers: &[usize], signal: Signal) {
    for &number in numbers {
        kill_process(Pid::from_child(&children[number]), signal).unwrap();
    }
}

fn start(bed: &Bed, way: &Way, job: &Job) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored", "--nocapture"])
        .env_clear()
        .env(JOB, serde_json::to_string(job).unwrap())
        .env("AWS_ENDPOINT_URL_S3", format!("http://{}", way.address))
        .env("AWS_REGION", bed.server.region())
        .env("AWS_ACCESS_KEY_ID", bed.server.access_key())
        .env("AWS_SECRET_ACCESS_KEY", bed.server.secret_key())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Passes on what a process says to its peer, until it ends; what it said last to the parent.
fn listen(output: ChildStdout, mut peer: Option<ChildStdin>) -> Option<String> {
    let mut said = None;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(line) = line.strip_prefix("PEER ") {
            let _gone = writeln!(peer.as_mut().unwrap(), "{line}");
        } else if ["DONE", "REFUSED"].contains(&&line[..]) {
            said = Some(line);
        }
    }
    said
}

/// An index that is whole.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    /// Of which save it is.
    seed: u64,
    /// The keys of the files that it names.
    files: BTreeSet<String>,
}

type Indexes = BTreeMap<String, Found>;

/// All indexes of the bucket, by key. Each is loaded; what happened before is told where one is not whole.
async fn look(bed: &Bed, told: &str) -> Indexes {
    let keys = bed.keys().await.into_iter().filter(|key| key.ends_with(".metadata"));
    let found = join_all(keys.map(|key| async move {
        let found = load(bed, &key, told).await;
        (key, found)
    }))
    .await;
    for checkpoint in list_checkpoints(&storage(&bed.client), "").await.unwrap().checkpoints {
        assert!(checkpoint.complete, "{checkpoint:?}; {told}");
    }
    found.into_iter().collect()
}

async fn load(bed: &Bed, key: &str, told: &str) -> Found {
    let fault = |error: Error| -> ! { panic!("{key}: {error}; {told}") };
    let load = Load::open(&storage(&bed.client), key).await.unwrap_or_else(|error| fault(error));
    let tensors = &load.contents().tensors;
    let blocks: Vec<Chunk> = tensors
        .values()
        .map(|tensor| Chunk { offsets: vec![0; tensor.size.len()], sizes: tensor.size.clone() })
        .collect();
    let wanted = tensors.keys().zip(&blocks);
    let wanted = wanted.map(|(name, block)| (&name[..], block, BytesMut::zeroed(block.sizes[0] as usize)));
    let read = load.read_blocks(wanted.collect()).await.unwrap_or_else(|error| fault(error));
    let loaded: BTreeMap<String, Bytes> =
        tensors.keys().cloned().zip(read.into_iter().map(BytesMut::freeze)).collect();
    let seed = u64::from_le_bytes(loaded["seed"][..].try_into().unwrap());
    assert!(loaded == state(seed), "{key}: not all of it is of seed {seed}; {told}");
    let chunks = tensors.values().flat_map(|tensor| &tensor.chunks);
    let files = chunks.map(|chunk| chunk.stored.as_ref().unwrap().entry.key.to_string()).collect();
    Found { seed, files }
}

/// The keys of intents, and which of the files that each names are there.
async fn intents(bed: &Bed) -> BTreeMap<String, BTreeSet<String>> {
    let keys: BTreeSet<String> = bed.keys().await.into_iter().collect();
    let mut intents = BTreeMap::new();
    for key in &keys {
        let Some((path, _)) = key.split_once(".s3dcp-intent-") else { continue };
        let body = bed.client.get_object(BUCKET, key).await.unwrap().body;
        let intent: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let files = intent["files"].as_array().unwrap().iter();
        let files = files.map(|file| format!("{path}{}", file.as_str().unwrap()));
        intents.insert(key.clone(), files.filter(|file| keys.contains(file)).collect());
    }
    intents
}

/// What one step does: up to two saves, and who deletes beside them.
fn step(random: &mut Rng, seeds: &mut impl Iterator<Item = u64>) -> Vec<Job> {
    let mut save = |random: &mut Rng, place, ranks| {
        let (seed, incremental) = (seeds.next().unwrap(), random.u8(..3) > 0);
        (0..ranks).map(|rank| Job::Save(Part { place, seed, incremental, rank, ranks })).collect::<Vec<_>>()
    };
    let place = Place::any(random);
    let mut jobs = match random.u8(..6) {
        0 => Vec::new(),
        1 | 2 => save(random, place, 1),
        3 | 4 => save(random, place, 2),
        _ => {
            let other = if random.bool() { place } else { Place::any(random) };
            [save(random, place, 1), save(random, other, 1)].concat()
        }
    };
    let path = place.location().path_key;
    if jobs.is_empty() {
        for _ in 0..random.usize(1..=2) {
            let delete = if random.bool() { Job::Keep } else { Job::Prune };
            jobs.push(delete(path.clone()));
        }
    } else if random.bool() {
        jobs.push(Job::Keep(path));
    }
    jobs
}

/// Whether what is there after a step can be there.
fn judge(jobs: &[Job], ended: &[Ended], before: &Indexes, after: &Indexes) -> Result<(), String> {
    let kept =
        jobs.iter().find_map(|job| if let Job::Keep(path) = job { Some(format!("{path}/")) } else { None });
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let saves = jobs.iter().zip(ended).filter_map(|(job, ended)| match job {
            Job::Save(part) if part.rank == 0 && part.place.indexes().contains(key) => {
                Some((part.seed, ended.is_done()))
            }
            _ => None,
        });
        let saves: Vec<(u64, bool)> = saves.collect();
        let mut possible: BTreeSet<Option<u64>> = saves.iter().map(|&(seed, _)| Some(seed)).collect();
        if !saves.iter().any(|&(_, is_reported)| is_reported) {
            possible.insert(before.get(key).map(|found| found.seed));
        }
        if kept.as_ref().is_some_and(|path| key.starts_with(path)) {
            possible.insert(None);
        }
        let there = after.get(key).map(|found| found.seed);
        if !possible.contains(&there) {
            return Err(format!("{key} is of {there:?}, may be of {possible:?}"));
        }
    }
    // The path's index follows that of an epoch.
    for job in jobs {
        if let Job::Save(Part { place, seed, .. }) = job
            && let [index, root] = &place.indexes()[..]
            && after.get(root).is_some_and(|found| found.seed == *seed)
            && after.get(index).map_or(kept.is_none(), |found| before.get(index) == Some(found))
        {
            return Err(format!("{root} is of {seed}, and {index} is not"));
        }
    }
    if let Some(path) = kept {
        let of = |indexes: &Indexes| indexes.keys().filter(|key| key.starts_with(&path)).count();
        if of(after) < of(before).min(2) {
            return Err(format!("{} indexes of {path} are left of {}", of(after), of(before)));
        }
    }
    Ok(())
}

/// Prunes, as of now and as of a day later: what is left then is what the indexes name; what went.
async fn sweep(bed: &Bed, indexes: &Indexes, told: &str) -> Counts {
    let named: BTreeSet<String> = indexes.values().flat_map(|found| found.files.clone()).collect();
    let mut counts = prune(&bed.client, "").await.unwrap();
    let intended: BTreeSet<String> = intents(bed).await.into_values().flatten().collect();
    for key in bed.keys().await.iter().filter(|key| key.ends_with(".distcp")) {
        assert!(named.contains(key) || intended.contains(key), "nothing names {key} after a prune; {told}");
    }
    let a_day_later = hours_later(bed, 25).await;
    for (kind, count) in prune(&a_day_later, "").await.unwrap() {
        *counts.entry(kind).or_default() += count;
    }
    let mut left: BTreeSet<String> = bed.keys().await.into_iter().collect();
    left.retain(|key| !key.contains("/.s3dcp-folders/"));
    let expected: BTreeSet<String> = indexes.keys().cloned().chain(named).collect();
    assert_eq!(left, expected, "{told}");
    assert!(bed.client.list_multipart_uploads(BUCKET, "").await.unwrap().is_empty(), "{told}");
    assert_eq!(look(bed, told).await, *indexes, "{told}");
    counts
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_saves_overwrites_keeps_and_prunes_leave_every_index_whole() {
    let kills = number_in("S3DCP_KILLS").unwrap_or(USUAL_KILLS);
    let seed = number_in("S3DCP_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    println!("S3DCP_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let bed = Bed::start().await;
    let way = Way::to(bed.server.address()).await;
    let mut seeds = 1..;
    // How many pieces pass in a step with so many processes of each kind.
    let mut usual: HashMap<[usize; 3], u64> = HashMap::new();
    let (mut left, mut pruned, mut interrupted) = (Counts::new(), Counts::new(), 0);
    let (mut before, mut promised) = (Indexes::new(), BTreeMap::new());
    for number in 1..=kills {
        let jobs = step(&mut random, &mut seeds);
        let kind = [
            jobs.iter().filter(|job| matches!(job, Job::Save(_))).count(),
            jobs.iter().filter(|job| matches!(job, Job::Keep(_))).count(),
            jobs.iter().filter(|job| matches!(job, Job::Prune(_))).count(),
        ];
        let most = usual.get(&kind).map_or(MANY_PIECES, |pieces| pieces * 5 / 4);
        let interruption = Interruption::any(&mut random, jobs.len(), most);
        let (ended, pieces) = run(&bed, &way, &jobs, &interruption).await;
        let told = format!("S3DCP_SEED={seed}, step {number}: {jobs:?}, {interruption:?}, {ended:?}");
        for one in &ended {
            assert!(one.was_killed() || one.status.success(), "{told}");
        }
        let after = look(&bed, &told).await;
        if let Err(fault) = judge(&jobs, &ended, &before, &after) {
            panic!("{fault}; {told}; before: {before:?}; after: {after:?}");
        }
        let intents = intents(&bed).await;
        for (intent, files) in &intents {
            let before = promised.get(intent).unwrap_or(files);
            assert_eq!(files, before, "what {intent} names is gone; {told}");
        }
        promised = intents;
        if ended.iter().any(Ended::was_killed) {
            interrupted += 1;
        } else if interruption.what == What::Kill {
            usual.insert(kind, pieces);
        }
        for (job, ended) in jobs.iter().zip(&ended) {
            if let Job::Save(Part { place, seed, rank: 0, .. }) = job
                && ended.was_killed()
            {
                let what = match after.get(&place.location().index_key()) {
                    Some(found) if found.seed == *seed => "the new index",
                    Some(_) => "the old index",
                    None => "no index",
                };
                *left.entry(what).or_default() += 1;
            }
        }
        if number % SWEEP_EVERY == 0 || number == kills {
            for (kind, count) in sweep(&bed, &after, &told).await {
                *pruned.entry(kind).or_default() += count;
            }
        }
        before = after;
    }
    println!(
        "{interrupted} of {kills} kills came before the end; saves that were killed left {left:?}; pruned: {pruned:?}"
    );
    assert!(
        kills < USUAL_KILLS || interrupted * 8 > kills,
        "{interrupted} of {kills} kills came before the end"
    );
}
