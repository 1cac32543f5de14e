//! The rules of commit, each on a real socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Action, BUCKET, Bed, Head, index, location, stored};
use bytes::Bytes;
use s3dcp_checkpoint::{
    Committed, ConditionalCommit, Location, Observed, commit, observe, prepare, read_facts,
};
use s3dcp_s3::{Client, Error, ErrorKind};
use tokio::sync::Semaphore;

const WARN: ConditionalCommit = ConditionalCommit::Warn;

/// A whole save as the writer does it: look, write the shard files, commit. `files` are relative to `run`.
async fn save(
    bed: &Bed,
    epoch: Option<u8>,
    rank: Option<u64>,
    save_id: &str,
    files: &[&str],
) -> Result<Committed, Error> {
    let location = location(epoch, rank);
    let observed = observe(&bed.client, &location, true).await?;
    for file in files {
        bed.put(&format!("run/{file}"), "shard").await;
    }
    finish(&bed.client, &location, &observed, epoch, save_id, files, WARN).await
}

async fn finish(
    client: &Client,
    location: &Location,
    observed: &Observed,
    epoch: Option<u8>,
    save_id: &str,
    files: &[&str],
    mode: ConditionalCommit,
) -> Result<Committed, Error> {
    commit(client, location, observed, &index(save_id, epoch, files), mode).await
}

async fn save_id_at(bed: &Bed, key: &str) -> String {
    let body = bed.client.get_object(BUCKET, key).await.unwrap().body;
    read_facts(&body).unwrap().save_id.unwrap()
}

fn is_index_put(head: &Head) -> bool {
    head.method == "PUT" && head.path.ends_with(".metadata")
}

#[tokio::test]
async fn of_two_first_savers_one_wins_and_the_other_learns_both_save_ids() {
    let bed = Bed::start().await;
    let location = location(None, None);
    let (one, two) = (observe(&bed.client, &location, false), observe(&bed.client, &location, false));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert_eq!(one, Observed::default());
    let (one, two) = tokio::join!(
        finish(&bed.client, &location, &one, None, "first", &["a.distcp"], WARN),
        finish(&bed.client, &location, &two, None, "second", &["b.distcp"], WARN),
    );
    let (winner, error) = match (one, two) {
        (Ok(_), Err(error)) => ("first", error),
        (Err(error), Ok(_)) => ("second", error),
        other => panic!("{other:?}"),
    };
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("first") && error.message().contains("second"), "{error}");
    assert_eq!(error.key(), Some("run/.metadata"));
    assert_eq!(save_id_at(&bed, "run/.metadata").await, winner);
}

#[tokio::test]
async fn of_two_overwriting_savers_the_second_does_not_replace_what_it_never_saw() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let one = observe(&bed.client, &location, true).await.unwrap();
    let two = observe(&bed.client, &location, true).await.unwrap();
    assert_eq!(one.index.as_ref().unwrap().save_id.as_deref(), Some("old"));
    bed.put("run/one.distcp", "shard").await;
    finish(&bed.client, &location, &one, None, "one", &["one.distcp"], WARN).await.unwrap();
    let error = finish(&bed.client, &location, &two, None, "two", &["two.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("one") && error.message().contains("two"), "{error}");
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "one");
    assert!(bed.exists("run/one.distcp").await);
}

#[tokio::test]
async fn a_lost_reply_is_a_success_when_the_index_is_ours() {
    for (max_attempts, lost) in [(1, 1), (10, 1), (10, 3)] {
        let bed = Bed::start().await;
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let client = bed
            .through(max_attempts, move |head| {
                if is_index_put(head) && counted.fetch_add(1, Ordering::SeqCst) < lost {
                    Action::LoseReply
                } else {
                    Action::Forward
                }
            })
            .await;
        let location = location(None, None);
        let observed = observe(&client, &location, false).await.unwrap();
        let committed = finish(&client, &location, &observed, None, "s", &["a.distcp"], WARN).await.unwrap();
        assert_eq!(committed, Committed::default());
        assert!(count.load(Ordering::SeqCst) >= lost, "the reply was lost");
        assert_eq!(save_id_at(&bed, "run/.metadata").await, "s");
    }
}

/// A save whose index is late in this way. It must not wait for it.
async fn save_with_a_late_index(fault: &str, is_first: bool) {
    let bed = Bed::start().await;
    if !is_first {
        save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    }
    // A hundredth of what may be asked twice is.
    for number in 0..200 {
        let key = format!("warm/{number}");
        bed.put(&key, "x").await;
        assert!(bed.exists(&key).await);
    }
    bed.server.inject(format!("{fault} on=PutObject key=*.metadata").parse().unwrap());
    let started = Instant::now();
    save(&bed, None, None, "s", &["a.distcp"]).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(bed.server.faults()[0].1, 1);
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "s");
    assert_eq!(bed.client.stats().retries, 0);
}

#[tokio::test]
async fn an_index_whose_answer_is_late_is_committed_once_it_is_there() {
    save_with_a_late_index("late:5000ms", true).await;
}

#[tokio::test]
async fn an_index_that_replaces_another_is_written_again_when_it_is_late() {
    save_with_a_late_index("late:5000ms times=1", false).await;
    save_with_a_late_index("delay:5000ms times=1", false).await;
}

#[tokio::test]
async fn an_unknown_outcome_says_so_and_deletes_nothing() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.put("run/new.distcp", "shard").await;
    let client = bed
        .through(2, |head| match head.path.ends_with(".metadata") {
            true if head.method == "PUT" => Action::LoseReply,
            true => Action::Hang,
            false => Action::Forward,
        })
        .await;
    let error = finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
    assert!(error.maybe_applied());
    assert!(
        error.message().contains("may or may not") && error.message().contains("nothing was deleted"),
        "{error}"
    );
    assert!(bed.exists("run/old.distcp").await && bed.exists("run/new.distcp").await);
}

#[tokio::test]
async fn a_reply_lost_before_the_write_leaves_the_outcome_open() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.put("run/new.distcp", "shard").await;
    let client = bed.through(1, |head| if is_index_put(head) { Action::Hang } else { Action::Forward }).await;
    let error = finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
    assert!(error.maybe_applied(), "{error}");
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "old");
    assert!(bed.exists("run/old.distcp").await && bed.exists("run/new.distcp").await);
}

#[tokio::test]
async fn a_save_whose_index_was_not_written_deletes_the_shard_files_that_it_alone_names() {
    for (status, code, kind) in
        [(403, "AccessDenied", ErrorKind::Denied), (412, "PreconditionFailed", ErrorKind::AlreadyExists)]
    {
        let bed = Bed::start().await;
        let location = location(None, None);
        let observed = observe(&bed.client, &location, true).await.unwrap();
        save(&bed, None, None, "rival", &["rival.distcp", "both.distcp"]).await.unwrap();
        for key in ["run/new.distcp", "run/x/new.distcp", "run/notes.txt", "other/new.distcp"] {
            bed.put(key, "shard").await;
        }
        let files = ["new.distcp", "x/new.distcp", "both.distcp", "notes.txt", "../other/new.distcp"];
        let client = bed
            .through(2, move |head| match is_index_put(head) {
                true => Action::Answer(status, code),
                false => Action::Forward,
            })
            .await;
        let error = finish(&client, &location, &observed, None, "new", &files, WARN).await.unwrap_err();
        assert_eq!((error.kind(), error.maybe_applied()), (kind, false));
        let stay =
            ["other/new.distcp", "run/.metadata", "run/both.distcp", "run/notes.txt", "run/rival.distcp"];
        assert_eq!(bed.keys().await, stay);
    }
}

#[tokio::test]
async fn a_save_that_another_index_may_name_deletes_nothing_while_that_cannot_be_read() {
    let bed = Bed::start().await;
    let location = location(None, None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    save(&bed, None, None, "rival", &["rival.distcp"]).await.unwrap();
    bed.put("run/new.distcp", "shard").await;
    bed.put("run/epoch_9/.metadata", "damaged").await;
    let error =
        finish(&bed.client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(bed.exists("run/new.distcp").await);
}

/// The first attempt at the index may still be carried out, and without a condition it would replace what is there.
#[tokio::test]
async fn nothing_is_deleted_after_a_refusal_that_an_attempt_of_unknown_outcome_came_before() {
    for first in [500, 409] {
        let bed = Bed::start().await;
        let location = location(None, None);
        let observed = observe(&bed.client, &location, true).await.unwrap();
        save(&bed, None, None, "rival", &["rival.distcp"]).await.unwrap();
        bed.put("run/new.distcp", "shard").await;
        let count = AtomicU32::new(0);
        let client = bed
            .through(10, move |head| {
                let attempt = if is_index_put(head) { count.fetch_add(1, Ordering::SeqCst) } else { 9 };
                match (attempt, first) {
                    (0, _) => Action::Answer(500, "InternalError"),
                    (1, 409) => Action::Answer(409, "ConditionalRequestConflict"),
                    _ => Action::Forward,
                }
            })
            .await;
        let error =
            finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert!(bed.exists("run/new.distcp").await);
    }
}

#[tokio::test]
async fn an_epoch_that_the_path_could_not_follow_is_committed_and_keeps_its_files() {
    let bed = Bed::start().await;
    let location = location(Some(4), None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.put("run/new.distcp", "shard").await;
    let client = bed
        .through(2, |head| match head.method == "PUT" && head.path.ends_with("run/.metadata") {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    let error =
        finish(&client, &location, &observed, Some(4), "new", &["new.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.key(), Some("run/.metadata"));
    assert_eq!(bed.keys().await, ["run/epoch_4/.metadata", "run/new.distcp"]);
}

#[tokio::test]
async fn a_conflict_is_tried_again() {
    let bed = Bed::start().await;
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let client = bed
        .through(10, move |head| {
            if is_index_put(head) && counted.fetch_add(1, Ordering::SeqCst) < 2 {
                Action::Answer(409, "ConditionalRequestConflict")
            } else {
                Action::Forward
            }
        })
        .await;
    let location = location(None, None);
    let observed = observe(&client, &location, false).await.unwrap();
    finish(&client, &location, &observed, None, "s", &["a.distcp"], WARN).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_index_that_has_gone_is_a_conflict() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.client.delete_object(BUCKET, "run/.metadata").await.unwrap();
    let error =
        finish(&bed.client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(!bed.exists("run/.metadata").await);
    assert!(bed.exists("run/old.distcp").await);
}

#[tokio::test]
async fn an_existing_checkpoint_is_refused_unless_it_may_be_overwritten() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let error = observe(&bed.client, &location(None, None), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("old"), "{error}");
    observe(&bed.client, &location(None, None), true).await.unwrap();
}

#[tokio::test]
async fn with_an_epoch_only_that_epoch_and_checkpoints_without_one_are_in_the_way() {
    let bed = Bed::start().await;
    save(&bed, Some(1), None, "one", &["a/epoch_1/1.distcp"]).await.unwrap();
    observe(&bed.client, &location(Some(2), None), false).await.unwrap();
    let error = observe(&bed.client, &location(Some(1), None), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.key(), Some("run/epoch_1/.metadata"));
    // a checkpoint without an epoch, or a damaged one
    for root in [stored("plain", None, &["p.distcp"]), Bytes::from_static(b"damaged")] {
        bed.put("run/.metadata", root).await;
        let error = observe(&bed.client, &location(Some(2), None), false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(error.key(), Some("run/.metadata"));
        observe(&bed.client, &location(Some(2), None), true).await.unwrap();
    }
}

#[tokio::test]
async fn overwriting_deletes_only_shard_files_of_the_path_that_no_index_names() {
    let bed = Bed::start().await;
    let old = ["x/old.distcp", "kept_by_epoch.distcp", "kept_by_rank.distcp", "kept.distcp", "notes.txt"];
    for file in old {
        bed.put(&format!("run/{file}"), "shard").await;
    }
    bed.put("other/outside.distcp", "shard").await;
    bed.put("run2/outside.distcp", "shard").await;
    bed.put("run/nobody.distcp", "of a save that never ended").await;
    let mut named = old.to_vec();
    named.extend(["../other/outside.distcp", "../run2/outside.distcp"]);
    bed.put("run/.metadata", stored("old", None, &named)).await;
    let location = location(None, None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.put("run/epoch_3/.metadata", stored("e3", Some(3), &["../kept_by_epoch.distcp"])).await;
    bed.put("run/epoch_4/__7.metadata", stored("r7", Some(4), &["../kept_by_rank.distcp"])).await;
    bed.put("run/new.distcp", "shard").await;
    let files = ["new.distcp", "kept.distcp"];
    let committed = finish(&bed.client, &location, &observed, None, "new", &files, WARN).await.unwrap();
    assert_eq!(committed.deleted, ["run/x/old.distcp"]);
    assert!(committed.left.is_empty() && committed.warnings.is_empty(), "{committed:?}");
    let stay = [
        "other/outside.distcp",
        "run/.metadata",
        "run/epoch_3/.metadata",
        "run/epoch_4/__7.metadata",
        "run/kept.distcp",
        "run/kept_by_epoch.distcp",
        "run/kept_by_rank.distcp",
        "run/new.distcp",
        "run/nobody.distcp",
        "run/notes.txt",
        "run2/outside.distcp",
    ];
    assert_eq!(bed.keys().await, stay);
}

#[tokio::test]
async fn a_new_epoch_deletes_nothing_of_the_older_ones() {
    let bed = Bed::start().await;
    for (epoch, file) in [(1, "a/epoch_1/1.distcp"), (2, "a/epoch_2/2.distcp"), (3, "a/epoch_3/3.distcp")] {
        let committed = save(&bed, Some(epoch), None, &format!("s{epoch}"), &[file]).await.unwrap();
        assert_eq!(committed, Committed::default());
        assert_eq!(save_id_at(&bed, "run/.metadata").await, format!("s{epoch}"), "the path names the newest");
    }
    for epoch in [1, 2, 3] {
        assert!(bed.exists(&format!("run/a/epoch_{epoch}/{epoch}.distcp")).await);
        assert_eq!(save_id_at(&bed, &format!("run/epoch_{epoch}/.metadata")).await, format!("s{epoch}"));
    }
    // the same epoch again replaces that one
    let committed = save(&bed, Some(2), None, "again", &["a/epoch_2/again.distcp"]).await.unwrap();
    assert_eq!(committed.deleted, ["run/a/epoch_2/2.distcp"]);
    assert!(bed.exists("run/a/epoch_1/1.distcp").await && bed.exists("run/a/epoch_3/3.distcp").await);
}

/// Saves epoch 1 as "first"; just before it writes `<path>/.metadata`, all of another epoch's save as "second".
async fn overtaken_before_the_root(bed: &Bed, epoch: u8) {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let is_root_put = |head: &Head| head.method == "PUT" && head.path.ends_with("/run/.metadata");
    let slow = bed
        .through(1, move |head| if is_root_put(head) { Action::Hold(held.clone()) } else { Action::Forward })
        .await;
    let location = location(Some(1), None);
    let observed = observe(&bed.client, &location, true).await.unwrap();
    bed.put("run/first.distcp", "shard").await;
    let second = async {
        while !bed.exists("run/epoch_1/.metadata").await {
            tokio::task::yield_now().await;
        }
        save(bed, Some(epoch), None, "second", &["second.distcp"]).await.unwrap();
        gate.add_permits(1);
    };
    let first = finish(&slow, &location, &observed, Some(1), "first", &["first.distcp"], WARN);
    let (committed, ()) = tokio::join!(first, second);
    assert_eq!(committed.unwrap(), Committed::default());
}

#[tokio::test]
async fn an_epoch_that_was_saved_again_meanwhile_leaves_the_path_to_the_later_save() {
    let bed = Bed::start().await;
    overtaken_before_the_root(&bed, 1).await;
    assert!(!bed.exists("run/first.distcp").await);
    for index in ["run/.metadata", "run/epoch_1/.metadata"] {
        assert_eq!(save_id_at(&bed, index).await, "second");
    }
}

#[tokio::test]
async fn of_two_epochs_at_once_the_path_names_the_one_that_was_committed_last() {
    let bed = Bed::start().await;
    overtaken_before_the_root(&bed, 2).await;
    for (index, save_id) in [("epoch_1/", "first"), ("epoch_2/", "second"), ("", "first")] {
        assert_eq!(save_id_at(&bed, &format!("run/{index}.metadata")).await, save_id);
        assert!(bed.exists(&format!("run/{save_id}.distcp")).await);
    }
}

#[tokio::test]
async fn a_commit_costs_as_many_requests_with_many_epochs_as_with_few() {
    let bed = Bed::start().await;
    let mut costs = Vec::new();
    for epoch in 1..=12u8 {
        let file = format!("a/{epoch}.distcp");
        let location = location(Some(epoch), None);
        let observed = observe(&bed.client, &location, false).await.unwrap();
        bed.put(&format!("run/{file}"), "shard").await;
        let before = bed.client.stats().requests;
        finish(&bed.client, &location, &observed, Some(epoch), "s", &[&file], WARN).await.unwrap();
        costs.push(bed.client.stats().requests - before);
    }
    assert_eq!(costs[2], costs[11], "{costs:?}");
}

#[tokio::test]
async fn nothing_is_deleted_while_another_index_cannot_be_read() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    bed.put("run/epoch_9/.metadata", "damaged").await;
    let committed = save(&bed, None, None, "new", &["new.distcp"]).await.unwrap();
    assert!(committed.deleted.is_empty());
    assert_eq!(committed.left, ["run/old.distcp"]);
    assert!(committed.warnings[0].contains("epoch_9"), "{:?}", committed.warnings);
    assert!(bed.exists("run/old.distcp").await);
}

#[tokio::test]
async fn a_damaged_index_can_be_replaced_and_nothing_is_cleaned_up_then() {
    let bed = Bed::start().await;
    bed.put("run/old.distcp", "shard").await;
    bed.put("run/.metadata", stored("old", None, &["old.distcp"]).slice(..60)).await;
    let error = observe(&bed.client, &location(None, None), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let committed = save(&bed, None, None, "new", &["new.distcp"]).await.unwrap();
    assert!(committed.deleted.is_empty() && committed.warnings.len() == 1, "{committed:?}");
    assert!(bed.exists("run/old.distcp").await);
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "new");
}

#[tokio::test]
async fn a_file_that_cannot_be_deleted_is_left_and_the_save_succeeds() {
    let bed = Bed::start().await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let client = bed
        .through(1, |head| match head.method == "POST" {
            true => Action::Answer(403, "AccessDenied"),
            false => Action::Forward,
        })
        .await;
    let location = location(None, None);
    let observed = observe(&client, &location, true).await.unwrap();
    let committed = finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap();
    assert_eq!(committed.left, ["run/old.distcp"]);
    assert_eq!(committed.warnings.len(), 1);
    assert!(bed.exists("run/old.distcp").await);
}

#[tokio::test]
async fn a_path_holds_one_kind_of_checkpoint_whatever_overwrite_says() {
    let cases = [
        ("run/__0.metadata", location(None, None)),
        ("run/__0.metadata", location(Some(5), None)),
        ("run/epoch_5/__0.metadata", location(Some(5), None)),
        ("run/epoch_4/__0.metadata", location(Some(5), None)),
        ("run/epoch_4/__0.metadata", location(None, None)),
        ("run/.metadata", location(None, Some(3))),
        ("run/.metadata", location(Some(5), Some(0))),
        ("run/epoch_5/.metadata", location(Some(5), Some(0))),
    ];
    for (key, location) in cases {
        let bed = Bed::start().await;
        bed.put(key, stored("other", None, &["o.distcp"])).await;
        for overwrite in [true, false] {
            let error = observe(&bed.client, &location, overwrite).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{key} {location:?}");
            assert_eq!(error.key(), Some(key));
        }
    }
}

#[tokio::test]
async fn each_rank_commits_its_own_index_and_spares_what_the_others_name() {
    let bed = Bed::start().await;
    save(&bed, None, Some(0), "r0", &["__0_0.distcp", "shared.distcp"]).await.unwrap();
    save(&bed, None, Some(1), "r1", &["__1_0.distcp", "shared.distcp"]).await.unwrap();
    assert_eq!(save_id_at(&bed, "run/__1.metadata").await, "r1");
    let error = observe(&bed.client, &location(None, Some(1)), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let committed = save(&bed, None, Some(0), "r0b", &["__0_0-b.distcp"]).await.unwrap();
    assert_eq!(committed.deleted, ["run/__0_0.distcp"]);
    assert!(bed.exists("run/shared.distcp").await && bed.exists("run/__1_0.distcp").await);
    save(&bed, Some(2), Some(0), "e2", &["x.distcp"]).await.unwrap();
    assert!(bed.exists("run/epoch_2/__0.metadata").await);
    assert!(!bed.exists("run/.metadata").await);
}

fn ignores_conditions(head: &Head) -> Action {
    match head.method == "PUT" && head.header("if-none-match").is_some() {
        true => Action::MakeConditionHold,
        false => Action::Forward,
    }
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_warned_of_or_refused() {
    let bed = Bed::start().await;
    let client = bed.through(10, ignores_conditions).await;
    let location = location(None, None);
    let observed = observe(&client, &location, false).await.unwrap();
    let require = ConditionalCommit::Require;
    bed.put("run/a.distcp", "shard").await;
    for error in [
        prepare(&client, &location, false, require).await.unwrap_err(),
        finish(&client, &location, &observed, None, "s", &["a.distcp"], require).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    prepare(&client, &location, false, WARN).await.unwrap();
    assert!(bed.keys().await.is_empty(), "no index, file or probe object: {:?}", bed.keys().await);
    let committed = finish(&client, &location, &observed, None, "s", &["a.distcp"], WARN).await.unwrap();
    assert!(committed.warnings[0].contains("ignores conditional writes"), "{:?}", committed.warnings);
    assert_eq!(bed.keys().await, ["run/.metadata"]);
    // without conditions the commit still looks before it writes
    let error = finish(&client, &location, &observed, None, "t", &["b.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "s");
}

#[tokio::test]
async fn a_server_that_honours_conditions_passes_require_and_keeps_no_probe() {
    let bed = Bed::start().await;
    let location = location(None, None);
    let observed = observe(&bed.client, &location, false).await.unwrap();
    let require = ConditionalCommit::Require;
    let committed =
        finish(&bed.client, &location, &observed, None, "s", &["a.distcp"], require).await.unwrap();
    assert!(committed.warnings.is_empty());
    assert_eq!(bed.keys().await, ["run/.metadata"]);
}

#[tokio::test]
async fn a_server_that_knows_no_conditions_is_not_sent_any() {
    let bed = Bed::start().await;
    let client = bed
        .through(10, |head| match head.header("if-none-match").or(head.header("if-match")) {
            Some(_) => Action::Answer(501, "NotImplemented"),
            None => Action::Forward,
        })
        .await;
    let location = location(None, None);
    for save_id in ["one", "two"] {
        let observed = observe(&client, &location, true).await.unwrap();
        let committed =
            finish(&client, &location, &observed, None, save_id, &["a.distcp"], WARN).await.unwrap();
        assert!(committed.warnings[0].contains("refuses"), "{:?}", committed.warnings);
    }
    let observed = observe(&client, &location, true).await.unwrap();
    let off = ConditionalCommit::Off;
    let committed = finish(&client, &location, &observed, None, "three", &["a.distcp"], off).await.unwrap();
    assert!(committed.warnings.is_empty());
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "three");
}

#[tokio::test]
async fn a_server_with_half_of_the_conditions_matters_where_the_other_half_is_needed() {
    fn refuse(head: &Head, names: &[&str], status: u16, code: &'static str) -> Action {
        match head.method == "PUT" && names.iter().any(|name| head.header(name).is_some()) {
            true => Action::Answer(status, code),
            false => Action::Forward,
        }
    }
    const BOTH: [&str; 2] = ["if-match", "if-none-match"];
    type Rule = fn(&Head) -> Action;
    fn weak(head: &Head) -> Action {
        match head.header("if-match").is_some_and(|etag| etag.starts_with("W/")) {
            true => Action::Answer(412, "PreconditionFailed"),
            false => Action::WeakenEtags,
        }
    }
    let servers: [(&str, Rule, bool, bool); 9] = [
        ("no If-Match, 501", |head| refuse(head, &BOTH[..1], 501, "NotImplemented"), true, false),
        ("no If-Match, 400", |head| refuse(head, &BOTH[..1], 400, "InvalidArgument"), true, false),
        ("no If-None-Match, 501", |head| refuse(head, &BOTH[1..], 501, "NotImplemented"), false, true),
        ("no If-None-Match, 400", |head| refuse(head, &BOTH[1..], 400, "InvalidRequest"), false, true),
        ("neither, 400", |head| refuse(head, &BOTH, 400, "InvalidArgument"), false, false),
        ("none holds", |head| refuse(head, &BOTH, 412, "PreconditionFailed"), false, false),
        ("If-Match never holds", |head| refuse(head, &BOTH[..1], 412, "PreconditionFailed"), true, false),
        ("weak ETags", weak, true, false),
        ("weak ETags that match", |_| Action::WeakenEtags, true, true),
    ];
    for (server, rule, creates, replaces) in servers {
        for epoch in [None, Some(3)] {
            let bed = Bed::start().await;
            let client = bed.through(1, rule).await;
            let location = location(epoch, None);
            for (save_id, file, honoured) in [("one", "1.distcp", creates), ("two", "2.distcp", replaces)] {
                let before = bed.keys().await;
                let required = prepare(&client, &location, true, ConditionalCommit::Require).await;
                assert_eq!(required.is_ok(), honoured, "{server} {save_id}: {required:?}");
                if let Err(error) = required {
                    assert_eq!(error.kind(), ErrorKind::Config);
                    assert!(error.message().contains("conditional_commit=\"require\""), "{error}");
                }
                assert_eq!(bed.keys().await, before, "{server}: the probe stays");
                let observed = prepare(&client, &location, true, WARN).await.unwrap();
                bed.put(&format!("run/{file}"), "shard").await;
                let committed =
                    finish(&client, &location, &observed, epoch, save_id, &[file], WARN).await.unwrap();
                assert_eq!(
                    committed.warnings.len(),
                    usize::from(!honoured),
                    "{server} {save_id}: {committed:?}"
                );
                assert!(committed.warnings.iter().all(|warning| warning.contains("conditional writes")));
                assert_eq!(save_id_at(&bed, "run/.metadata").await, save_id, "{server}");
            }
            assert!(!bed.exists("run/1.distcp").await, "{server}: what was replaced is cleaned up");
        }
    }
}

#[tokio::test]
async fn without_the_condition_a_save_still_looks_before_it_writes() {
    let bed = Bed::start().await;
    let client = bed
        .through(1, |head| match head.header("if-match") {
            Some(_) => Action::Answer(501, "NotImplemented"),
            None => Action::Forward,
        })
        .await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let observed = prepare(&client, &location, true, WARN).await.unwrap();
    save(&bed, None, None, "rival", &["rival.distcp"]).await.unwrap();
    let error = finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "rival");
}

/// As gateways do that treat small objects, or names, otherwise.
#[tokio::test]
async fn a_condition_that_only_the_index_cannot_have_is_warned_of_or_refused_at_the_commit() {
    for (status, code) in [(412, "PreconditionFailed"), (501, "NotImplemented"), (400, "InvalidArgument")] {
        for old in [None, Some("old")] {
            let bed = Bed::start().await;
            let client = bed
                .through(1, move |head| {
                    let conditional = head.header("if-match").or(head.header("if-none-match"));
                    match is_index_put(head) && conditional.is_some() {
                        true => Action::Answer(status, code),
                        false => Action::Forward,
                    }
                })
                .await;
            if let Some(old) = old {
                save(&bed, None, None, old, &["old.distcp"]).await.unwrap();
            }
            let location = location(None, None);
            let require = ConditionalCommit::Require;
            let observed = prepare(&client, &location, true, require).await.unwrap();
            let error = finish(&client, &location, &observed, None, "new", &["new.distcp"], require)
                .await
                .unwrap_err();
            assert!(!error.message().contains("has gone"), "{error}");
            assert_eq!(bed.exists("run/.metadata").await, old.is_some());
            let committed =
                finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap();
            assert_eq!(committed.warnings.len(), 1, "{status} {old:?}: {committed:?}");
            assert_eq!(save_id_at(&bed, "run/.metadata").await, "new");
        }
    }
}

#[tokio::test]
async fn what_a_server_does_with_conditions_is_asked_once_for_all_saves() {
    let bed = Bed::start().await;
    let probes = Arc::new(AtomicU32::new(0));
    let count = probes.clone();
    let client = bed
        .through(1, move |head| {
            let is_probe = head.method == "PUT" && head.path.contains(".s3dcp-probe-");
            count.fetch_add(u32::from(is_probe), Ordering::SeqCst);
            Action::Forward
        })
        .await;
    let mut asked = Vec::new();
    for save_id in ["one", "two", "three"] {
        let location = location(None, None);
        let observed = prepare(&client, &location, true, WARN).await.unwrap();
        finish(&client, &location, &observed, None, save_id, &["a.distcp"], WARN).await.unwrap();
        asked.push(probes.load(Ordering::SeqCst));
    }
    assert_eq!(asked, [4, 4, 4]);
}

#[tokio::test]
async fn a_server_that_compares_bare_etags_can_be_committed_to() {
    let bed = Bed::start().await;
    let client = bed
        .through(10, |head| match head.header("if-match") {
            Some(etag) if etag.starts_with('"') => Action::Answer(412, "PreconditionFailed"),
            _ => Action::Forward,
        })
        .await;
    save(&bed, None, None, "old", &["old.distcp"]).await.unwrap();
    let location = location(None, None);
    let observed = observe(&client, &location, true).await.unwrap();
    finish(&client, &location, &observed, None, "new", &["new.distcp"], WARN).await.unwrap();
    assert_eq!(save_id_at(&bed, "run/.metadata").await, "new");
}

#[tokio::test]
async fn an_unknown_bucket_is_told_from_an_empty_path() {
    let bed = Bed::start().await;
    for rank in [None, Some(0)] {
        let location = Location { bucket: "nowhere".into(), ..location(None, rank) };
        let error = observe(&bed.client, &location, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.code(), Some("NoSuchBucket"));
    }
}

#[tokio::test]
async fn a_path_may_be_the_bucket_itself() {
    let bed = Bed::start().await;
    let location = Location { path_key: String::new(), ..location(None, None) };
    for (save_id, file) in [("one", "x/1.distcp"), ("two", "x/2.distcp")] {
        let observed = observe(&bed.client, &location, true).await.unwrap();
        bed.put(file, "shard").await;
        finish(&bed.client, &location, &observed, None, save_id, &[file], WARN).await.unwrap();
    }
    assert_eq!(bed.keys().await, [".metadata", "x/2.distcp"]);
}
