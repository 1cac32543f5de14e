//! Deletions of checkpoints whose files have no names of this project, cut off: what a prune finds, and what it leaves alone.

use std::time::Duration;

use crate::support::{Action, Bed, Head, index, location, storage, stored};
use s3dcp_checkpoint::{
    ConditionalCommit, KeepRules, LeftoverKind, choose, commit, find_leftovers, list_checkpoints, observe,
};
use s3dcp_s3::{Client, ErrorKind, WhenLate};

const DAY: Duration = Duration::from_secs(24 * 3600);
const FILE: &str = "__0_0.distcp";

/// A checkpoint as torch's writer leaves it.
async fn torch_checkpoint(bed: &Bed, folder: &str) {
    bed.put(&format!("{folder}/{FILE}"), "shard").await;
    bed.put(&format!("{folder}/.metadata"), stored("of torch", None, &[FILE])).await;
}

/// Deletes all checkpoints of `run` but the newest.
async fn keep_one(client: &Client) -> Result<u64, s3dcp_s3::Error> {
    let storage = storage(client);
    let mut rules = KeepRules::default();
    rules.last = Some(1);
    let choice = choose(list_checkpoints(&storage, "run").await?, &rules)?;
    choice.delete(&storage).await.map(|deleted| deleted.files)
}

/// A client whose deletions of several objects at once are refused.
async fn cut_off(bed: &Bed) -> Client {
    bed.through(2, |head: &Head| match head.method == "POST" {
        true => Action::Answer(403, "AccessDenied"),
        false => Action::Forward,
    })
    .await
}

/// Two steps of torch's, of which a deletion that was cut off has taken the first one's index.
async fn cut_off_bed() -> Bed {
    let bed = Bed::start().await;
    for folder in ["run/step-1", "run/step-2"] {
        torch_checkpoint(&bed, folder).await;
    }
    bed.put("run/step-1/notes.txt", "notes").await;
    bed.put(&format!("run/stray/{FILE}"), "of nobody").await;
    assert_eq!(keep_one(&cut_off(&bed).await).await.unwrap_err().kind(), ErrorKind::Denied);
    bed
}

async fn leftovers(bed: &Bed, older_than: Duration) -> (Vec<(LeftoverKind, String)>, usize) {
    let found = find_leftovers(&storage(&bed.client), "run", older_than).await.unwrap();
    (found.old.into_iter().map(|leftover| (leftover.kind, leftover.key)).collect(), found.younger)
}

/// Deletes what is left; the keys there are then.
async fn prune(bed: &Bed) -> Vec<String> {
    let storage = storage(&bed.client);
    let found = find_leftovers(&storage, "run", Duration::ZERO).await.unwrap();
    let pruned = found.delete(&storage).await;
    assert!(pruned.stopped.is_none() && pruned.failed.is_empty(), "{pruned:?}");
    bed.keys().await
}

fn kept() -> Vec<String> {
    ["step-2/.metadata", "step-2/__0_0.distcp", "stray/__0_0.distcp"]
        .map(|name| format!("run/{name}"))
        .to_vec()
}

#[tokio::test]
async fn a_deletion_to_the_end_leaves_no_tombstone() {
    let bed = Bed::start().await;
    for folder in ["run/step-1", "run/step-2", "run/stray"] {
        torch_checkpoint(&bed, folder).await;
    }
    bed.put("run/step-1/notes.txt", "notes").await;
    bed.client.delete_objects("bucket", &["run/stray/.metadata".to_owned()], WhenLate::Wait).await.unwrap();
    assert_eq!(keep_one(&bed.client).await.unwrap(), 2);
    assert_eq!(bed.keys().await, kept());
}

#[tokio::test]
async fn what_a_cut_off_deletion_was_to_take_is_found_and_nothing_else() {
    let bed = cut_off_bed().await;
    let (found, younger) = leftovers(&bed, DAY).await;
    assert_eq!((found.len(), younger), (0, 1));
    let (found, younger) = leftovers(&bed, Duration::ZERO).await;
    let [(LeftoverKind::ShardFile, shard), (LeftoverKind::File, notes), (LeftoverKind::Tombstone, _)] =
        &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!((&shard[..], &notes[..], younger), ("run/step-1/__0_0.distcp", "run/step-1/notes.txt", 0));
    assert_eq!(prune(&bed).await, kept());
}

#[tokio::test]
async fn a_checkpoint_whose_index_is_there_again_is_left_alone() {
    let bed = cut_off_bed().await;
    let before = bed.keys().await;
    bed.put("run/step-1/.metadata", stored("of torch", None, &[FILE])).await;
    let (found, _) = leftovers(&bed, Duration::ZERO).await;
    assert!(matches!(&found[..], [(LeftoverKind::Tombstone, _)]), "{found:?}");
    let mut kept = kept();
    kept.extend([".metadata", FILE, "notes.txt"].map(|name| format!("run/step-1/{name}")));
    kept.sort();
    assert_eq!(prune(&bed).await, kept);
    assert_eq!(kept.len(), before.len());
}

#[tokio::test]
async fn a_checkpoint_that_came_in_its_place_is_left_alone() {
    let bed = cut_off_bed().await;
    bed.put("run/step-1/__1_0.distcp", "shard").await;
    bed.put("run/step-1/.metadata", stored("another", None, &["__1_0.distcp"])).await;
    let mut kept = kept();
    kept.extend([".metadata", "__1_0.distcp", "notes.txt"].map(|name| format!("run/step-1/{name}")));
    kept.sort();
    assert_eq!(prune(&bed).await, kept);
}

#[tokio::test]
async fn what_was_written_since_is_left_alone() {
    let bed = cut_off_bed().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bed.put(&format!("run/step-1/{FILE}"), "of a save under way").await;
    bed.put("run/step-1/notes.txt", "of the same").await;
    let mut kept = kept();
    kept.extend([FILE, "notes.txt"].map(|name| format!("run/step-1/{name}")));
    kept.sort();
    assert_eq!(prune(&bed).await, kept);
}

#[tokio::test]
async fn an_index_that_comes_between_the_look_and_the_deletion_keeps_its_folder() {
    let bed = cut_off_bed().await;
    let storage = storage(&bed.client);
    let found = find_leftovers(&storage, "run", Duration::ZERO).await.unwrap();
    bed.put("run/step-1/.metadata", stored("of torch", None, &[FILE])).await;
    let pruned = found.delete(&storage).await;
    assert_eq!(pruned.named.len(), 2);
    assert!(bed.exists("run/step-1/notes.txt").await && bed.exists("run/step-1/__0_0.distcp").await);
}

#[tokio::test]
async fn a_save_over_a_checkpoint_of_torch_that_is_cut_off_leaves_what_a_prune_finds() {
    for is_cut_off in [false, true] {
        let bed = Bed::start().await;
        torch_checkpoint(&bed, "run").await;
        let client = if is_cut_off { cut_off(&bed).await } else { bed.client.clone() };
        let location = location(None, None);
        let observed = observe(&client, &location, true).await.unwrap();
        let file = "__0_0-0123456789abcdef.distcp";
        bed.put(&format!("run/{file}"), "shard").await;
        let index = index("0123456789abcdef", None, &[file]);
        let committed = commit(&client, &location, &observed, &index, ConditionalCommit::Warn).await.unwrap();
        assert_eq!(committed.left.len(), usize::from(is_cut_off));
        let (found, _) = leftovers(&bed, Duration::ZERO).await;
        assert_eq!(found.len(), if is_cut_off { 2 } else { 0 }, "{found:?}");
        assert_eq!(prune(&bed).await, ["run/.metadata".to_owned(), format!("run/{file}")]);
    }
}

#[tokio::test]
async fn a_tombstone_reaches_no_further_than_its_folder() {
    let bed = Bed::start().await;
    torch_checkpoint(&bed, "run/step-1").await;
    bed.put("run/notes.txt", "notes").await;
    let told = r#"{"indexes": {".metadata": null, "x/.metadata": "\"1\""},
        "files": ["../notes.txt", "run/notes.txt", "/run/notes.txt", "step-1/__0_0.distcp", "step-1/.metadata"]}"#;
    bed.put("run/below/.s3dcp-tombstone-0123456789abcdef", told).await;
    let before = bed.keys().await;
    assert_eq!(prune(&bed).await.len(), before.len() - 1);
    // One that stands above is believed neither of an index nor of what an index names.
    bed.put("run/.s3dcp-tombstone-0123456789abcdef", told).await;
    assert_eq!(prune(&bed).await.len(), before.len() - 1);
}

#[tokio::test]
async fn what_is_no_tombstone_ends_it() {
    for told in ["", "{}", "[1]", r#"{"indexes": {}, "files": [7]}"#] {
        let bed = Bed::start().await;
        let key = "run/step-1/.s3dcp-tombstone-0123456789abcdef";
        bed.put(key, told).await;
        let error = find_leftovers(&storage(&bed.client), "run", Duration::ZERO).await.unwrap_err();
        assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some(key)), "{told}");
    }
}
