//! Looks at checkpoints that torch and this project's writer saved: what they hold, whether they are whole, how two differ.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{Action, BUCKET, Bed, storage};
use s3dcp_checkpoint::{
    NameFilter, Number, OpenCheckpoint, Storage, Verification, VerifyOptions, diff, inspect, open_checkpoint,
    read_statistics, verify,
};

const WRITERS: [&str; 2] = ["torch", "s3dcp"];

/// Puts a checkpoint at `path`, its files changed by `change`.
async fn upload(bed: &Bed, writer: &str, path: &str, change: impl Fn(&str, &mut Vec<u8>)) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(writer);
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        change(&name, &mut bytes);
        bed.put(&format!("{path}/{name}"), bytes).await;
    }
}

async fn open(bed: &Bed, path: &str) -> OpenCheckpoint {
    open_checkpoint(&storage(&bed.client), path).await.unwrap()
}

async fn verified(checkpoint: &OpenCheckpoint) -> Verification {
    verify(checkpoint, &VerifyOptions::default(), |_, _| {}).await.unwrap()
}

/// Flips a bit of the scalar 3.5.
fn flip(name: &str, bytes: &mut [u8]) {
    if name.ends_with(".distcp") {
        let at = bytes.windows(8).position(|window| window == 3.5f64.to_le_bytes()).unwrap();
        bytes[at + 7] ^= 0x80;
    }
}

#[tokio::test]
async fn what_a_checkpoint_holds_is_listed_with_totals() {
    for writer in WRITERS {
        let bed = Bed::start().await;
        upload(&bed, writer, "run", |_, _| {}).await;
        let checkpoint = Arc::new(open(&bed, "run").await);
        let mut found = inspect(&checkpoint, &NameFilter::default()).unwrap();
        let names: Vec<&str> = found.tensors.iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["empty", "half", "matrix", "scalar", "transposed"], "{writer}");
        assert_eq!((found.total.tensors, found.total.objects), (5, 1));
        assert_eq!(found.by_rank.iter().map(|total| &total.of[..]).collect::<Vec<_>>(), ["rank 0"]);
        assert_eq!(found.total.bytes, found.by_dtype.iter().map(|total| total.bytes).sum::<u64>());
        read_statistics(&checkpoint, &mut found, |_| {}).await.unwrap();
        let matrix = found.tensors[2].statistics.as_ref().unwrap();
        assert_eq!((matrix.count, matrix.mean), (35, Some(17.0)));
        assert_eq!((matrix.min, matrix.max), (Some(Number::Float(0.0)), Some(Number::Float(34.0))));
    }
}

#[tokio::test]
async fn one_flipped_bit_is_told_and_hides_nothing_else() {
    for writer in WRITERS {
        let bed = Bed::start().await;
        upload(&bed, writer, "good", |_, _| {}).await;
        upload(&bed, writer, "bad", |name, bytes| flip(name, bytes)).await;
        let good = verified(&open(&bed, "good").await).await;
        assert!(good.good, "{writer} {:?}", good.faults);
        assert_eq!(good.by.index + good.by.archive, good.items);
        let bad = verified(&open(&bed, "bad").await).await;
        let names: Vec<_> = bad.faults.iter().map(|fault| fault.name.as_deref()).collect();
        assert_eq!(names, [Some("scalar")], "{writer}");
        assert_eq!(bad.by, good.by);
    }
}

#[tokio::test]
async fn what_only_flipped_on_the_way_is_good() {
    let bed = Bed::start().await;
    upload(&bed, "s3dcp", "run", |_, _| {}).await;
    // The first answer with items in it is another than was stored; of one bit, so that its length stays.
    let asked = Arc::new(AtomicU64::new(0));
    let of = asked.clone();
    let client = bed
        .through(3, move |head| match head.method == "GET" && head.path.contains("__0_0") {
            true if of.fetch_add(1, Ordering::Relaxed) == 0 => Action::FlipLast,
            _ => Action::Forward,
        })
        .await;
    let checkpoint = open_checkpoint(&Storage::bucket(&client, BUCKET), "run").await.unwrap();
    assert!(verified(&checkpoint).await.good);
    assert!(asked.load(Ordering::Relaxed) >= 2, "it was read again");
}

#[tokio::test]
async fn two_checkpoints_differ_in_what_differs_alone_whoever_wrote_them() {
    let bed = Bed::start().await;
    upload(&bed, "torch", "torch", |_, _| {}).await;
    upload(&bed, "s3dcp", "ours", |_, _| {}).await;
    upload(&bed, "torch", "flipped", |name, bytes| flip(name, bytes)).await;
    let same = diff(open(&bed, "torch").await, open(&bed, "ours").await, |_, _| {}).await.unwrap();
    assert!(same.equal, "{same:?}");
    let other = diff(open(&bed, "ours").await, open(&bed, "flipped").await, |_, _| {}).await.unwrap();
    let names = other.tensors.iter().filter(|tensor| !tensor.equal).map(|tensor| &tensor.item.name[..]);
    assert_eq!(names.collect::<Vec<_>>(), ["scalar"]);
    let scalar =
        other.tensors.iter().find(|tensor| !tensor.equal).and_then(|tensor| tensor.difference).unwrap();
    assert_eq!((scalar.count, scalar.differing, scalar.largest_absolute), (1, 1, 7.0));
}
