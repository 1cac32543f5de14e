//! What both back-ends must do alike, run on each: bodies of awkward sizes, replacement under a reader, races, and random
//! work beside an obvious model.
//!
//! What clients see of it is tested with clients, over a socket.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use bytes::Bytes;
use futures_util::StreamExt as _;
use s3s::dto::ETagCondition;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::conditions::WriteCondition;
use crate::disk::Disk;
use crate::memory::Memory;
use crate::multipart::{Completion, ListedPart};
use crate::object::{self, Metadata, Object, Segment};
use crate::send::Sender;
use crate::store::Store;
use crate::upload::Part;

const BUCKET: &str = "bucket";

/// A store on one of the back-ends, and how to open it again.
struct Bench {
    store: Store,
    directory: Option<TempDir>,
}

impl Bench {
    fn new(on_disk: bool) -> Self {
        let directory = on_disk.then(|| tempfile::tempdir().unwrap());
        let store = Store::open(backend(directory.as_ref().map(TempDir::path))).unwrap();
        store.create_bucket(BUCKET).unwrap();
        Self { store, directory }
    }

    /// The same store after its server was stopped and started; memory has no after.
    fn reopened(self) -> Self {
        let Self { store, directory } = self;
        let Some(directory) = directory else { return Self { store, directory } };
        drop(store);
        let store = Store::open(backend(Some(directory.path()))).unwrap();
        Self { store, directory: Some(directory) }
    }

    fn data_files(&self) -> Vec<PathBuf> {
        let Some(directory) = &self.directory else { return Vec::new() };
        fs::read_dir(directory.path().join("data")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    async fn segments(&self, body: &[u8], frame: usize) -> Vec<Segment> {
        let mut writer = self.store.backend.writer(Some(body.len() as u64)).await.unwrap();
        for frame in body.chunks(frame) {
            writer.write(Bytes::copy_from_slice(frame)).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn put(&self, key: &str, body: &[u8], condition: &WriteCondition) -> Result<String, String> {
        let object = object(self.store.etag(BUCKET, None), body.len(), self.segments(body, 100_000).await);
        let put = self.store.put(BUCKET, key, object, condition);
        put.map(|object| object.etag.clone()).map_err(|error| error.code().as_str().to_owned())
    }

    async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.store.get(BUCKET, key).ok()?;
        Some(read(object.segments.clone()).await)
    }
}

fn backend(directory: Option<&Path>) -> Box<dyn Backend> {
    match directory {
        None => Box::new(Memory),
        Some(directory) => Box::new(Disk::open(directory).unwrap()),
    }
}

fn object(etag: String, size: usize, segments: Vec<Segment>) -> Object {
    Object {
        etag,
        size: size as u64,
        modified: object::now(),
        metadata: Metadata::default(),
        checksum: None,
        parts: Vec::new(),
        segments,
    }
}

async fn read(segments: Vec<Segment>) -> Vec<u8> {
    let mut sender = Sender::open(segments, Arc::default()).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(frame) = sender.next().await {
        bytes.extend_from_slice(&frame.unwrap());
    }
    bytes
}

fn random_bytes(size: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect()
}

/// Runs a test on both back-ends.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod in_memory { $(#[tokio::test] async fn $name() { super::$name(super::Bench::new(false)).await; })* }
        mod on_disk { $(#[tokio::test] async fn $name() { super::$name(super::Bench::new(true)).await; })* }
    };
}

on_both! {
    bodies_of_every_size_come_back_whole_and_in_slices,
    a_replaced_object_is_read_to_its_end,
    what_is_not_put_leaves_nothing,
    of_racing_writers_exactly_one_wins,
    an_upload_becomes_an_object_without_moving_bytes,
    random_work_is_what_a_map_would_do,
}

async fn bodies_of_every_size_come_back_whole_and_in_slices(bench: Bench) {
    const CHUNK: usize = 1 << 20;
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
        let body = random_bytes(size);
        for frame in [1000, CHUNK, usize::MAX] {
            let segments = bench.segments(&body, frame).await;
            assert!(read(segments.clone()).await == body, "{size} bytes in frames of {frame}");
            for _ in 0..5 {
                let start = fastrand::usize(0..=size);
                let end = fastrand::usize(start..=size);
                let part = object::slice(&segments, start as u64, (end - start) as u64);
                assert!(read(part).await == body[start..end], "{start}..{end} of {size} bytes");
            }
        }
    }
}

async fn a_replaced_object_is_read_to_its_end(bench: Bench) {
    let always = WriteCondition::default();
    let body = random_bytes(3 << 20);
    bench.put("key", &body, &always).await.unwrap();
    let held = bench.store.get(BUCKET, "key").unwrap();
    bench.put("key", b"new", &always).await.unwrap();
    bench.store.delete(BUCKET, "key", &always).unwrap();
    assert!(read(held.segments.clone()).await == body);
    drop(held);
    assert_eq!(bench.data_files(), Vec::<PathBuf>::new(), "bytes that nobody can reach are given back");
}

async fn what_is_not_put_leaves_nothing(bench: Bench) {
    let mut writer = bench.store.backend.writer(None).await.unwrap();
    writer.write(Bytes::from(vec![0; 3 << 20])).await.unwrap();
    drop(writer);
    drop(bench.segments(&[1; 2 << 20], 1 << 20).await);
    let absent = WriteCondition::new(None, Some("*".parse::<ETagCondition>().unwrap())).unwrap();
    bench.put("key", b"first", &absent).await.unwrap();
    assert_eq!(bench.put("key", b"second", &absent).await.unwrap_err(), "PreconditionFailed");
    assert_eq!(bench.get("key").await.unwrap(), b"first");
    let files = bench.data_files().len();
    assert_eq!(files, usize::from(bench.directory.is_some()), "only the object that was put has bytes");
}

/// A directory of the disk is put where a manifest goes, so that it cannot be written.
#[tokio::test]
async fn a_put_that_the_disk_refuses_leaves_the_object_before_and_nothing_else() {
    let bench = Bench::new(true);
    let always = WriteCondition::default();
    bench.put("key", b"before", &always).await.unwrap();
    let root = bench.directory.as_ref().unwrap().path().join("buckets").join(BUCKET).join("objects");
    let manifests = || -> Vec<PathBuf> {
        let folders = fs::read_dir(&root).unwrap().map(|folder| folder.unwrap().path());
        folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect()
    };
    let [manifest] = &manifests()[..] else { panic!("one object has one manifest") };
    let kept = manifest.with_extension("kept");
    fs::rename(manifest, &kept).unwrap();
    fs::create_dir(manifest).unwrap();

    let body = vec![7; 3 << 20];
    assert_eq!(bench.put("key", &body, &always).await.unwrap_err(), "InternalError");
    assert_eq!(bench.get("key").await.unwrap(), b"before");
    assert_eq!(bench.data_files().len(), 1, "only the object before has bytes");
    let unfinished = manifests().into_iter().filter(|path| path != manifest && *path != kept);
    assert_eq!(unfinished.collect::<Vec<_>>(), Vec::<PathBuf>::new());

    fs::remove_dir(manifest).unwrap();
    fs::rename(&kept, manifest).unwrap();
    bench.put("key", &body, &always).await.unwrap();
    let bench = bench.reopened();
    assert!(bench.get("key").await.unwrap() == body);
    assert_eq!(bench.data_files().len(), 1);
}

#[tokio::test]
async fn a_bucket_that_the_disk_refuses_is_no_bucket() {
    let bench = Bench::new(true);
    let buckets = bench.directory.as_ref().unwrap().path().join("buckets");
    fs::write(buckets.join("another"), "in the way").unwrap();
    let error = bench.store.create_bucket("another").unwrap_err();
    let message = error.message().unwrap();
    assert!(message.contains(buckets.parent().unwrap().to_str().unwrap()), "{message}");
    assert_eq!(bench.store.check_bucket("another").unwrap_err().code().as_str(), "NoSuchBucket");
    fs::remove_file(buckets.join("another")).unwrap();
    bench.store.create_bucket("another").unwrap();
    bench.reopened().store.check_bucket("another").unwrap();
}

async fn of_racing_writers_exactly_one_wins(bench: Bench) {
    const WRITERS: usize = 8;
    let absent = WriteCondition::new(None, Some("*".parse::<ETagCondition>().unwrap())).unwrap();
    for turn in 0..50 {
        let key = format!("key-{turn}");
        let mut bodies = Vec::new();
        for writer in 0..WRITERS {
            bodies.push(bench.segments(&[writer as u8], 1).await);
        }
        let start = Barrier::new(WRITERS);
        let winners: Vec<bool> = std::thread::scope(|scope| {
            let racers: Vec<_> = bodies
                .into_iter()
                .map(|segments| {
                    let object = object(bench.store.etag(BUCKET, None), 1, segments);
                    let (start, bench, key, absent) = (&start, &bench, &key, &absent);
                    scope.spawn(move || {
                        start.wait();
                        bench.store.put(BUCKET, key, object, absent).is_ok()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(winners.iter().filter(|won| **won).count(), 1);
        let winner = winners.iter().position(|won| *won).unwrap();
        assert_eq!(bench.get(&key).await.unwrap(), [winner as u8]);
    }
}

async fn an_upload_becomes_an_object_without_moving_bytes(bench: Bench) {
    let bodies = [random_bytes(5 << 20), random_bytes(6 << 20), random_bytes(3)];
    let upload_id = bench.store.create_upload(BUCKET, "key", Metadata::default(), None).unwrap();
    let mut listed = Vec::new();
    for (number, body) in (1..).zip(&bodies) {
        let part = Part {
            etag: bench.store.etag(BUCKET, None),
            size: body.len() as u64,
            modified: object::now(),
            digest: None,
            md5: None,
            segments: bench.segments(body, 1 << 20).await,
        };
        listed.push(ListedPart { number, etag: Some(part.etag.clone()), digest: None });
        bench.store.put_part(BUCKET, "key", &upload_id, number, part).unwrap();
    }
    let mut before = bench.data_files();
    let completion =
        Completion { parts: listed, condition: WriteCondition::default(), checksum: None, size: None };
    bench.store.complete_upload(BUCKET, "key", &upload_id, &completion).unwrap();
    let mut after = bench.data_files();
    before.sort();
    after.sort();
    assert_eq!(before, after);
    let bench = bench.reopened();
    assert!(bench.get("key").await.unwrap() == bodies.concat());
    let object = bench.store.get(BUCKET, "key").unwrap();
    assert_eq!(
        object.parts.iter().map(|part| part.size as usize).collect::<Vec<_>>(),
        bodies.map(|body| body.len())
    );
}

async fn random_work_is_what_a_map_would_do(mut bench: Bench) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<String, (Vec<u8>, String)> = BTreeMap::new();
    let keys = ["a", "a/b", "a//b", "..", "", "ü", "x y"];
    for step in 0..400 {
        let what = format!("seed {seed}, step {step}");
        let key = keys[random.usize(..keys.len())];
        match random.u8(..10) {
            0..=4 => {
                let body: Vec<u8> = (0..random.usize(..3000)).map(|_| random.u8(..)).collect();
                let expected = match random.u8(..3) {
                    0 => Some(
                        model
                            .get(key)
                            .map_or_else(|| "\"none\"".to_owned(), |(_, etag)| format!("\"{etag}\"")),
                    ),
                    _ => None,
                };
                let only_new = expected.is_none() && random.bool();
                let condition = WriteCondition {
                    if_match: expected.as_ref().map(|etag| etag.parse().unwrap()),
                    if_none_match: only_new.then(|| "*".parse().unwrap()),
                };
                let result = bench.put(key, &body, &condition).await;
                match (model.contains_key(key), expected.is_some(), only_new) {
                    (true, _, true) => assert_eq!(result.unwrap_err(), "PreconditionFailed", "{what}"),
                    (false, true, _) => assert_eq!(result.unwrap_err(), "NoSuchKey", "{what}"),
                    _ => {
                        model.insert(key.to_owned(), (body, result.expect(&what)));
                    }
                }
            }
            5..=6 => {
                bench.store.delete(BUCKET, key, &WriteCondition::default()).expect(&what);
                model.remove(key);
            }
            7 if step % 20 == 0 => bench = bench.reopened(),
            _ => assert_eq!(bench.get(key).await, model.get(key).map(|(body, _)| body.clone()), "{what}"),
        }
    }
    let bench = bench.reopened();
    let index = bench.store.lock();
    let kept: BTreeMap<String, String> = index.buckets[BUCKET]
        .objects
        .iter()
        .map(|(key, object)| (key.clone(), object.etag.clone()))
        .collect();
    drop(index);
    let expected = model.iter().map(|(key, (_, etag))| (key.clone(), etag.clone())).collect();
    assert_eq!(kept, expected, "seed {seed}");
    let with_bytes = model.values().filter(|(body, _)| !body.is_empty()).count();
    let files = bench.data_files().len();
    assert_eq!(files, if bench.directory.is_some() { with_bytes } else { 0 }, "seed {seed}");
}
