//! Removing all below a path: the order, what stays, and saves that go on meanwhile.

use crate::support::{Action, Bed, storage, stored};
use s3dcp_checkpoint::{Removed, remove};
use s3dcp_s3::ErrorKind;

const ID: &str = "0123456789abcdef";
const OTHER: &str = "fedcba9876543210";

fn named(rank: u32, id: &str) -> String {
    format!("__{rank}_0-{id}.distcp")
}

/// A checkpoint of one rank at `path`.
async fn checkpoint(bed: &Bed, path: &str, id: &str) {
    let file = named(0, id);
    bed.put(&format!("{path}/{file}"), "shard").await;
    bed.put(&format!("{path}/.metadata"), stored(id, None, &[&file])).await;
}

#[tokio::test]
async fn all_below_the_path_goes_and_nothing_beside_it() {
    let bed = Bed::start().await;
    for path in ["run/step-1", "run/step-10", "run/step-1/epoch_3"] {
        checkpoint(&bed, path, ID).await;
    }
    bed.put("run/step-1/notes.txt", "notes").await;
    bed.put("run/step-1/__0.metadata", stored(ID, None, &[&named(0, ID)])).await;
    let removed = remove(&storage(&bed.client), "run/step-1").await.unwrap();
    assert_eq!((removed.deleted.len(), removed.kept.len()), (6, 0));
    assert_eq!(
        bed.keys().await,
        ["run/step-10/.metadata".to_owned(), format!("run/step-10/{}", named(0, ID))]
    );
    assert_eq!(remove(&storage(&bed.client), "run/step-1").await.unwrap(), Removed::default());
}

#[tokio::test]
async fn a_file_that_an_index_above_names_stays() {
    let bed = Bed::start().await;
    let (inner, spare) = (format!("0000000000/{}", named(0, ID)), format!("0000000000/{}", named(1, ID)));
    bed.put(&format!("run/{inner}"), "shard").await;
    bed.put(&format!("run/{spare}"), "shard").await;
    bed.put("run/.metadata", stored(ID, None, &[&inner])).await;
    let removed = remove(&storage(&bed.client), "run/0000000000").await.unwrap();
    assert_eq!(removed.deleted, [format!("run/{spare}")]);
    assert_eq!(removed.kept, [format!("run/{inner}")]);
}

#[tokio::test]
async fn a_save_that_commits_meanwhile_keeps_its_checkpoint() {
    let bed = Bed::start().await;
    checkpoint(&bed, "run", ID).await;
    let file = named(0, OTHER);
    bed.put(&format!("run/{file}"), "shard").await;
    let newer = stored(OTHER, None, &[&file]);
    let client = bed
        .through(3, move |head| match head.method == "DELETE" {
            true => Action::PutBefore("run/.metadata", newer.clone()),
            false => Action::Forward,
        })
        .await;
    let removed = remove(&storage(&client), "run").await.unwrap();
    assert_eq!(removed.deleted, [format!("run/{}", named(0, ID))]);
    assert_eq!(removed.kept, ["run/.metadata".to_owned(), format!("run/{file}")]);
}

#[tokio::test]
async fn the_index_goes_first_and_a_removal_that_was_cut_off_goes_on() {
    let bed = Bed::start().await;
    checkpoint(&bed, "run", ID).await;
    let denied = bed
        .through(2, |head| match head.method == "POST" {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    assert_eq!(remove(&storage(&denied), "run").await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(bed.keys().await, [format!("run/{}", named(0, ID))]);
    remove(&storage(&bed.client), "run").await.unwrap();
    assert_eq!(bed.keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_index_that_cannot_be_read_keeps_every_file_that_it_may_name() {
    let bed = Bed::start().await;
    checkpoint(&bed, "run/inner", ID).await;
    bed.put("run/.metadata", "no index").await;
    let error = remove(&storage(&bed.client), "run/inner").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some("run/.metadata")));
    assert!(bed.exists(&format!("run/inner/{}", named(0, ID))).await);
}

/// A checkpoint of a step: its index in a folder of its own, its file beside it.
async fn step(bed: &Bed, folder: &str, number: u32, id: &str) -> String {
    let file = format!("0000000000/epoch_{number}/{}", named(0, id));
    bed.put(&format!("run/{file}"), "shard").await;
    bed.put(&format!("run/.s3dcp-folders/{folder}"), "").await;
    bed.put(&format!("run/{folder}/.metadata"), stored(id, None, &[&format!("../{file}")])).await;
    format!("run/{file}")
}

#[tokio::test]
async fn a_step_goes_with_its_files_beside_it_and_no_others() {
    let bed = Bed::start().await;
    let first = step(&bed, "step-1", 1, ID).await;
    let second = step(&bed, "step-2", 2, OTHER).await;
    let removed = remove(&storage(&bed.client), "run/step-1").await.unwrap();
    assert_eq!(removed.deleted, [first, "run/step-1/.metadata".to_owned()]);
    assert_eq!(removed.kept, Vec::<String>::new());
    assert_eq!(
        bed.keys().await,
        ["run/.s3dcp-folders/step-2".to_owned(), second.clone(), "run/step-2/.metadata".to_owned()]
    );
    let spared = remove(&storage(&bed.client), "run/0000000000").await.unwrap();
    assert_eq!(spared.kept, [second]);
}

#[tokio::test]
async fn a_file_that_another_step_names_stays() {
    let bed = Bed::start().await;
    let file = step(&bed, "step-1", 1, ID).await;
    let beside = format!("../{}", file.strip_prefix("run/").unwrap());
    bed.put("run/.s3dcp-folders/final", "").await;
    bed.put("run/final/.metadata", stored(ID, None, &[&beside])).await;
    let removed = remove(&storage(&bed.client), "run/step-1").await.unwrap();
    assert_eq!((removed.deleted.len(), removed.kept), (1, vec![file]));
}

#[tokio::test]
async fn a_step_that_is_saved_again_while_it_is_removed_keeps_its_files_and_mark() {
    let bed = Bed::start().await;
    step(&bed, "step-1", 1, ID).await;
    let file = format!("0000000000/epoch_1/{}", named(0, OTHER));
    bed.put(&format!("run/{file}"), "shard").await;
    let newer = stored(OTHER, None, &[&format!("../{file}")]);
    let client = bed
        .through(8, move |head| match head.method == "DELETE" {
            true => Action::PutBefore("run/step-1/.metadata", newer.clone()),
            false => Action::Forward,
        })
        .await;
    let removed = remove(&storage(&client), "run/step-1").await.unwrap();
    assert_eq!(removed.kept, ["run/step-1/.metadata".to_owned()]);
    let keys = bed.keys().await;
    assert!(
        keys.contains(&format!("run/{file}")) && keys.contains(&"run/.s3dcp-folders/step-1".to_owned()),
        "{keys:?}"
    );
}
