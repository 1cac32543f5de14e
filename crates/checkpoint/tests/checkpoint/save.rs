//! Whole saves through `Save`, against a server.

use crate::support::{BUCKET, Bed, location};
use bytes::Bytes;
use s3dcp_checkpoint::{
    AllowList, Chunk, DType, Index, ItemRecord, Save, SaveOptions, ShardName, TensorIndex, TensorSpec,
    check_index, read_facts,
};
use s3dcp_s3::ErrorKind;

fn overwrite() -> SaveOptions {
    let mut options = SaveOptions::default();
    options.overwrite = true;
    options.conditional_commit = s3dcp_checkpoint::ConditionalCommit::Require;
    options
}

/// A shard file of one tensor of four bytes.
struct Written {
    name: ShardName,
    record: ItemRecord,
}

async fn write(save: &mut Save, prefix: &str) -> Written {
    let mut shard = save.shard(prefix, 0, Some(4)).unwrap();
    let spec = TensorSpec::contiguous(DType::UInt8, vec![4]);
    let record = shard.tensor(&spec, Bytes::from_static(b"abcd")).await.unwrap();
    shard.finish().await.unwrap();
    Written { name: shard.name().clone(), record }
}

/// An index that names these files, a chunk of one tensor in each.
fn index(save: &Save, files: &[&Written]) -> Index {
    let mut index = TensorIndex::new();
    for (place, file) in files.iter().enumerate() {
        let chunk = Chunk { offsets: vec![4 * place as i64], sizes: vec![4] };
        let (path, record) = (&file.name.relative_path, file.record.clone());
        index.chunk("x", DType::UInt8, &[4 * files.len() as u64], chunk, path, record).unwrap();
    }
    index.finish(save.save_id(), 1, None).unwrap()
}

#[tokio::test]
async fn ranks_write_under_ids_of_their_own_and_one_commits_for_all() {
    let bed = Bed::start().await;
    let mut first = Save::begin(&bed.client, location(None, None), overwrite()).await.unwrap();
    let mut second = Save::join(&bed.client, location(None, None));
    assert_ne!(first.save_id(), second.save_id());
    assert!(first.observed().unwrap().index.is_none() && second.observed().is_none());
    let (one, other) = (write(&mut first, "a/__0_").await, write(&mut second, "b/__1_").await);
    assert!(!bed.exists("run/.metadata").await, "not before its commit");
    let index = index(&first, &[&one, &other]);
    let save_id = first.save_id().to_owned();
    first.commit(&index).await.unwrap();
    let stored = bed.client.get_object(BUCKET, "run/.metadata").await.unwrap().body;
    check_index(&stored, &AllowList::default_globals()).unwrap();
    let facts = read_facts(&stored).unwrap();
    assert_eq!(facts.save_id, Some(save_id));
    assert_eq!((facts.relative_paths.len(), facts.item_count, facts.ranks), (2, 2, Some(1)));
    assert!(bed.exists(&one.name.key).await && bed.exists(&other.name.key).await);
}

#[tokio::test]
async fn a_save_replaces_the_one_before_it_and_cleans_up() {
    let bed = Bed::start().await;
    let mut files = Vec::new();
    for _ in 0..2 {
        let mut save = Save::begin(&bed.client, location(None, None), overwrite()).await.unwrap();
        let file = write(&mut save, "__0_").await;
        let index = index(&save, &[&file]);
        let committed = save.commit(&index).await.unwrap();
        assert_eq!(
            committed.deleted,
            files.iter().map(|file: &Written| file.name.key.clone()).collect::<Vec<_>>()
        );
        files = vec![file];
    }
    assert_eq!(bed.keys().await, ["run/.metadata", &files[0].name.key]);
    let refused = Save::begin(&bed.client, location(None, None), SaveOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn a_save_that_is_given_up_leaves_nothing_and_touches_no_other() {
    let bed = Bed::start().await;
    let mut kept = Save::begin(&bed.client, location(None, None), overwrite()).await.unwrap();
    let file = write(&mut kept, "__0_").await;
    let mut save = Save::begin(&bed.client, location(None, None), overwrite()).await.unwrap();
    write(&mut save, "__0_").await;
    let mut open = save.shard("__0_", 1, None).unwrap();
    assert!(save.discard([&mut open], []).await.is_empty());
    assert_eq!(bed.keys().await, [&file.name.key[..]]);
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_is_written() {
    let bed = Bed::start().await;
    let mut save = Save::join(&bed.client, location(None, None));
    assert_eq!(save.shard("../x", 0, None).err().unwrap().kind(), ErrorKind::Config);
    let index = index(&save, &[]);
    assert_eq!(save.commit(&index).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(bed.keys().await.is_empty());
}

#[tokio::test]
async fn a_save_is_committed_with_its_own_index_alone() {
    let bed = Bed::start().await;
    let mut save = Save::begin(&bed.client, location(None, None), overwrite()).await.unwrap();
    let other = Save::join_as(&bed.client, location(None, None), "0123456789abcdef").unwrap();
    let index = index(&other, &[&write(&mut save, "__0_").await]);
    assert_eq!(save.commit(&index).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(!bed.exists("run/.metadata").await);
    assert_eq!(Save::join_as(&bed.client, location(None, None), "x").unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_file_that_is_being_finished_is_not_written_to_and_may_be_given_up() {
    let bed = Bed::start().await;
    let mut save = Save::join(&bed.client, location(None, None));
    let mut shard = save.shard("__0_", 0, None).unwrap();
    let file = shard.name().key.clone();
    assert_eq!(shard.wait().await.unwrap_err().kind(), ErrorKind::Interrupted);
    shard.start_finishing().unwrap();
    assert_eq!(shard.begin_raw().unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(shard.wait().await.unwrap().size, 0);
    assert_eq!(bed.keys().await, [&file[..]]);
    let mut finishing = save.shard("__0_", 1, None).unwrap();
    finishing.start_finishing().unwrap();
    assert!(save.discard([&mut finishing, &mut shard], []).await.is_empty());
    assert!(bed.keys().await.is_empty());
}

#[tokio::test]
async fn what_an_index_would_have_named_is_discarded_too() {
    let bed = Bed::start().await;
    let mut other = Save::join(&bed.client, location(None, None));
    let file = write(&mut other, "__1_").await;
    let save = Save::join(&bed.client, location(None, None));
    assert!(save.discard([], [&file.name.relative_path[..], "../../x"]).await.is_empty());
    assert!(bed.keys().await.is_empty());
}

#[tokio::test]
async fn an_index_of_tensors_that_cannot_be_is_refused() {
    let bed = Bed::start().await;
    let Written { record, .. } = write(&mut Save::join(&bed.client, location(None, None)), "__0_").await;
    let chunks = |chunks: &[[i64; 2]]| {
        let mut index = TensorIndex::new();
        for &[offset, length] in chunks {
            let chunk = Chunk { offsets: vec![offset], sizes: vec![length] };
            index.chunk("x", DType::UInt8, &[8], chunk, "f", record.clone())?;
        }
        index.finish("0123456789abcdef", 1, None)
    };
    assert!(chunks(&[[0, 4], [4, 4]]).is_ok());
    for (wrong, why) in [
        (&[[0, 4]][..], "holes"),
        (&[[0, 4], [2, 6]], "over"),
        (&[[4, 8]], "outside"),
        (&[[0, -8]], "outside"),
    ] {
        let error = chunks(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains("\"x\"") && error.message().contains(why), "{error}");
    }
    let mut index = TensorIndex::new();
    index.tensor("x", DType::UInt8, &[4], "f", record.clone()).unwrap();
    for (dtype, shape) in [(DType::Int8, &[4][..]), (DType::UInt8, &[2, 2]), (DType::UInt8, &[u64::MAX])] {
        assert_eq!(
            index.tensor("x", dtype, shape, "f", record.clone()).unwrap_err().kind(),
            ErrorKind::Config
        );
    }
}
