//! Whole saves through `Save`, against a server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use bytes::Bytes;
use common::{BUCKET, Bed, target};
use s3dcp_checkpoint::{DType, IndexWriter, Save, SaveOptions, ShardName, TensorSpec, read_facts};
use s3dcp_s3::ErrorKind;

fn overwrite() -> SaveOptions {
    let mut options = SaveOptions::default();
    options.overwrite = true;
    options.conditional_commit = s3dcp_checkpoint::ConditionalCommit::Require;
    options
}

/// Writes one shard file.
async fn write(save: &mut Save, prefix: &str) -> ShardName {
    let mut shard = save.shard(prefix, 0, Some(4)).unwrap();
    let spec = TensorSpec::contiguous(DType::UInt8, vec![4]);
    shard.writer.tensor(&spec, Bytes::from_static(b"abcd")).await.unwrap();
    shard.writer.finish().await.unwrap();
    shard.name
}

/// An index that names these files.
fn index(save: &Save, files: &[&ShardName]) -> IndexWriter {
    let files: Vec<&str> = files.iter().map(|file| &file.relative_path[..]).collect();
    common::index_writer(save.save_id(), None, &files)
}

#[tokio::test]
async fn ranks_write_under_ids_of_their_own_and_one_commits_for_all() {
    let bed = Bed::start().await;
    let mut first = Save::begin(&bed.client, target(None, None), overwrite()).await.unwrap();
    let mut second = Save::join(&bed.client, target(None, None));
    assert_ne!(first.save_id(), second.save_id());
    assert!(first.observed().unwrap().index.is_none() && second.observed().is_none());
    let (one, other) = (write(&mut first, "a/__0_").await, write(&mut second, "b/__1_").await);
    assert!(!bed.exists("run/.metadata").await, "not before its commit");
    let index = index(&first, &[&one, &other]);
    let save_id = first.save_id().to_owned();
    first.commit(index).await.unwrap();
    let stored = bed.client.get_object(BUCKET, "run/.metadata").await.unwrap().body;
    let facts = read_facts(&stored).unwrap();
    assert_eq!(facts.save_id, Some(save_id));
    assert_eq!(facts.relative_paths.len(), 2);
    assert!(bed.exists(&one.key).await && bed.exists(&other.key).await);
}

#[tokio::test]
async fn a_save_replaces_the_one_before_it_and_cleans_up() {
    let bed = Bed::start().await;
    let mut files = Vec::new();
    for _ in 0..2 {
        let mut save = Save::begin(&bed.client, target(None, None), overwrite()).await.unwrap();
        let file = write(&mut save, "__0_").await;
        let index = index(&save, &[&file]);
        let committed = save.commit(index).await.unwrap();
        assert_eq!(
            committed.deleted,
            files.iter().map(|file: &ShardName| file.key.clone()).collect::<Vec<_>>()
        );
        files = vec![file];
    }
    assert_eq!(bed.keys().await, ["run/.metadata", &files[0].key]);
    let refused = Save::begin(&bed.client, target(None, None), SaveOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_save_that_is_given_up_leaves_nothing_and_touches_no_other() {
    let bed = Bed::start().await;
    let mut kept = Save::begin(&bed.client, target(None, None), overwrite()).await.unwrap();
    let file = write(&mut kept, "__0_").await;
    let mut save = Save::begin(&bed.client, target(None, None), overwrite()).await.unwrap();
    write(&mut save, "__0_").await;
    let open = save.shard("__0_", 1, None).unwrap();
    assert!(save.discard(vec![open]).await.is_empty());
    assert_eq!(bed.keys().await, [&file.key[..]]);
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_is_written() {
    let bed = Bed::start().await;
    let mut save = Save::join(&bed.client, target(None, None));
    assert_eq!(save.shard("../x", 0, None).err().unwrap().kind(), ErrorKind::Config);
    let index = index(&save, &[]);
    assert_eq!(save.commit(index).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(bed.keys().await.is_empty());
}
