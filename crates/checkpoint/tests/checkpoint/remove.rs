//! Removing all below a path: the order, what stays, and saves that go on meanwhile.

use crate::support::{Action, BUCKET, Bed, stored};
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
    let removed = remove(&bed.client, BUCKET, "run/step-1").await.unwrap();
    assert_eq!((removed.deleted.len(), removed.kept.len()), (6, 0));
    assert_eq!(
        bed.keys().await,
        ["run/step-10/.metadata".to_owned(), format!("run/step-10/{}", named(0, ID))]
    );
    assert_eq!(remove(&bed.client, BUCKET, "run/step-1").await.unwrap(), Removed::default());
}

#[tokio::test]
async fn a_file_that_an_index_above_names_stays() {
    let bed = Bed::start().await;
    let (inner, spare) = (format!("0000000000/{}", named(0, ID)), format!("0000000000/{}", named(1, ID)));
    bed.put(&format!("run/{inner}"), "shard").await;
    bed.put(&format!("run/{spare}"), "shard").await;
    bed.put("run/.metadata", stored(ID, None, &[&inner])).await;
    let removed = remove(&bed.client, BUCKET, "run/0000000000").await.unwrap();
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
    let removed = remove(&client, BUCKET, "run").await.unwrap();
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
    assert_eq!(remove(&denied, BUCKET, "run").await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(bed.keys().await, [format!("run/{}", named(0, ID))]);
    remove(&bed.client, BUCKET, "run").await.unwrap();
    assert_eq!(bed.keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_index_that_cannot_be_read_keeps_every_file_that_it_may_name() {
    let bed = Bed::start().await;
    checkpoint(&bed, "run/inner", ID).await;
    bed.put("run/.metadata", "no index").await;
    let error = remove(&bed.client, BUCKET, "run/inner").await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some("run/.metadata")));
    assert!(bed.exists(&format!("run/inner/{}", named(0, ID))).await);
}
