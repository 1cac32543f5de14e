//! Saves that name files of earlier ones, beside whoever deletes: no index ever names a file that is gone.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Action, BUCKET, Bed, Head, location, storage};
use bytes::Bytes;
use s3dcp_checkpoint::{
    Base, BaseItem, Committed, DType, ItemFormat, ItemHash, ItemHasher, ItemRecord, KeepRules, LeftoverKind,
    Location, Save, SaveOptions, TensorIndex, TensorSpec, choose, find_leftovers, list_checkpoints, remove,
};
use s3dcp_s3::{Client, Error, ErrorKind};
use tokio::sync::{Notify, Semaphore};

const FROZEN: &[u8] = &[7; 64];

pub(crate) fn options() -> SaveOptions {
    let mut options = SaveOptions::default();
    options.overwrite = true;
    options
}

pub(crate) fn spec(bytes: &[u8]) -> TensorSpec {
    TensorSpec::contiguous(DType::UInt8, vec![bytes.len() as u64])
}

pub(crate) fn hash(bytes: &[u8]) -> ItemHash {
    let mut hasher = ItemHasher::tensor(ItemFormat::Archive, &spec(bytes));
    hasher.update(bytes);
    hasher.finish()
}

/// What an index keeps of an item that is reused.
pub(crate) fn record(item: &BaseItem) -> ItemRecord {
    ItemRecord {
        offset: item.offset,
        length: item.length,
        data_offset: item.data_offset.unwrap(),
        checksums: item.checksums.clone(),
        hash: Some(item.hash),
    }
}

/// A save under way that reuses what it can.
struct Incremental {
    save: Save,
    base: Base,
    epoch: Option<i64>,
}

impl Incremental {
    async fn begin(client: &Client, place: Location) -> Result<Incremental, Error> {
        let epoch = place.epoch.as_ref().map(|epoch| epoch.parse().unwrap());
        let mut save = Save::begin(client, place, options()).await?;
        let base = save.rely_on_base().await?;
        Ok(Incremental { save, base, epoch })
    }

    /// Writes what has changed, and commits; what was reused, and how that went.
    async fn finish(mut self, moving: u8) -> (usize, Result<Committed, Error>) {
        let mut index = TensorIndex::new();
        let mut reused = 0;
        let mut shard = self.save.shard("__0_", 0, None).unwrap();
        shard.hash_items();
        for (name, bytes) in [("frozen", FROZEN), ("moving", &[moving; 32])] {
            let (file, record) =
                match self.base.find(name, Some(&[0])).filter(|item| item.hash == hash(bytes)) {
                    Some(item) => {
                        reused += 1;
                        (item.relative_path.to_string(), record(item))
                    }
                    None => {
                        let record = shard.tensor(&spec(bytes), Bytes::copy_from_slice(bytes)).await.unwrap();
                        assert_eq!(record.hash, Some(hash(bytes)));
                        (shard.name().relative_path.clone(), record)
                    }
                };
            index.tensor(name, DType::UInt8, &[bytes.len() as u64], &file, record).unwrap();
        }
        if reused < 2 {
            shard.finish().await.unwrap();
        }
        let index = index.finish(self.save.save_id(), 1, self.epoch).unwrap();
        (reused, self.save.commit(&index).await)
    }
}

async fn save(client: &Client, epoch: Option<u8>, moving: u8) -> usize {
    save_at(client, location(epoch, None), moving).await
}

async fn save_at(client: &Client, place: Location, moving: u8) -> usize {
    let (reused, committed) = Incremental::begin(client, place).await.unwrap().finish(moving).await;
    assert!(committed.unwrap().warnings.is_empty());
    reused
}

fn step(step: u8) -> Location {
    Location { folder: Some(format!("step-{step}")), ..location(Some(step), None) }
}

/// Every index that is there names files that are there; how many there are.
async fn whole(bed: &Bed) -> usize {
    let found = list_checkpoints(&storage(&bed.client), "").await.unwrap();
    for checkpoint in &found.checkpoints {
        assert!(checkpoint.complete, "{checkpoint:?}");
    }
    found.checkpoints.len()
}

async fn intents(bed: &Bed) -> Vec<String> {
    bed.keys().await.into_iter().filter(|key| key.contains(".s3dcp-intent-")).collect()
}

async fn shards(bed: &Bed) -> usize {
    bed.keys().await.iter().filter(|key| key.ends_with(".distcp")).count()
}

async fn keep_last(client: &Client) -> Result<(), Error> {
    let mut rules = KeepRules::default();
    rules.last = Some(1);
    let found = list_checkpoints(&storage(client), "run").await?;
    choose(found, &rules)?.delete(&storage(client)).await.map(drop)
}

async fn prune(client: &Client) {
    let found = find_leftovers(&storage(client), "run", Duration::ZERO).await.unwrap();
    let pruned = found.delete(&storage(client)).await;
    assert!(pruned.failed.is_empty() && pruned.stopped.is_none(), "{pruned:?}");
}

#[tokio::test]
async fn what_has_not_changed_is_named_where_it_lies() {
    let bed = Bed::start().await;
    for (epoch, reused, files) in [(1, 0, 1), (2, 1, 2), (3, 1, 3)] {
        assert_eq!(save(&bed.client, Some(epoch), epoch).await, reused);
        assert_eq!((whole(&bed).await, shards(&bed).await), (epoch.into(), files));
    }
    assert_eq!(save(&bed.client, Some(4), 3).await, 2, "nothing has changed");
    assert_eq!((whole(&bed).await, shards(&bed).await), (4, 3));
    assert!(intents(&bed).await.is_empty());
    keep_last(&bed.client).await.unwrap();
    assert_eq!((whole(&bed).await, shards(&bed).await), (1, 2), "the files of epochs 1 and 3");
    prune(&bed.client).await;
    assert_eq!((whole(&bed).await, shards(&bed).await), (1, 2));
}

#[tokio::test]
async fn a_checkpoint_that_is_overwritten_leaves_what_the_new_one_names() {
    let bed = Bed::start().await;
    assert_eq!(save(&bed.client, None, 1).await, 0);
    for moving in [2, 3] {
        assert_eq!(save(&bed.client, None, moving).await, 1);
        assert_eq!((whole(&bed).await, shards(&bed).await), (1, 2), "the first file and the last");
    }
    assert!(intents(&bed).await.is_empty());
}

#[tokio::test]
async fn steps_and_ranks_follow_the_folder_of_the_largest_number() {
    let bed = Bed::start().await;
    for (number, reused) in [(9, 0), (10, 1), (11, 1)] {
        assert_eq!(save_at(&bed.client, step(number), number).await, reused);
    }
    let of_10 = Incremental::begin(&bed.client, step(12)).await.unwrap();
    let moving = of_10.base.find("moving", Some(&[0])).unwrap();
    assert_eq!(moving.hash, hash(&[11; 32]));
    let (_, committed) = of_10.finish(12).await;
    committed.unwrap();
    assert_eq!(whole(&bed).await, 4);

    let bed = Bed::start().await;
    for (epoch, reused) in [(1, 0), (2, 1)] {
        for rank in [0, 1] {
            let place = location(Some(epoch), Some(rank));
            let (found, committed) =
                Incremental::begin(&bed.client, place).await.unwrap().finish(epoch).await;
            committed.unwrap();
            assert_eq!(found, reused);
        }
    }
    assert_eq!((whole(&bed).await, shards(&bed).await), (2, 4));
    assert!(intents(&bed).await.is_empty());
}

#[tokio::test]
async fn files_outside_the_path_are_not_reused() {
    let bed = Bed::start().await;
    save_at(&bed.client, step(1), 1).await;
    let place = Location { path_key: "run/step-1".to_owned(), ..location(None, None) };
    assert_eq!(save_at(&bed.client, place, 1).await, 0);
    assert_eq!(whole(&bed).await, 1);
}

#[tokio::test]
async fn whoever_deletes_spares_what_an_intent_names_with_an_index_and_without() {
    for has_index in [true, false] {
        let bed = Bed::start().await;
        save(&bed.client, Some(1), 1).await;
        let under_way = Incremental::begin(&bed.client, location(Some(2), None)).await.unwrap();
        if !has_index {
            for key in ["run/.metadata", "run/epoch_1/.metadata"] {
                bed.client.delete_object(BUCKET, key).await.unwrap();
            }
        }
        prune(&bed.client).await;
        assert_eq!((shards(&bed).await, intents(&bed).await.len()), (1, 1));
        let removed = remove(&storage(&bed.client), "run").await.unwrap();
        assert_eq!(removed.kept.len(), 2, "{removed:?}");
        assert_eq!((shards(&bed).await, intents(&bed).await.len()), (1, 1));
        let (reused, committed) = under_way.finish(2).await;
        committed.unwrap();
        assert_eq!((reused, whole(&bed).await), (1, 1));
    }
}

#[tokio::test]
async fn an_intent_that_cannot_be_read_spares_everything() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    bed.client.delete_object(BUCKET, "run/epoch_1/.metadata").await.unwrap();
    bed.client.delete_object(BUCKET, "run/.metadata").await.unwrap();
    bed.put("run/.s3dcp-intent-0123456789abcdef", "damaged").await;
    let error = find_leftovers(&storage(&bed.client), "run", Duration::ZERO).await.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Corrupt, Some("run/.s3dcp-intent-0123456789abcdef")));
    assert_eq!(remove(&storage(&bed.client), "run").await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(shards(&bed).await, 1);
}

/// A listing's answer as the service gives it so many seconds later.
fn later(answer: String, seconds: u64) -> String {
    let at = answer.to_ascii_lowercase().find("\r\ndate: ").unwrap() + "\r\ndate: ".len();
    let length = "Tue, 10 Nov 2026 12:00:00 GMT".len();
    let now = httpdate(&answer[at..at + length]) + seconds;
    let mut answer = answer;
    answer.replace_range(at..at + length, &http_text(now));
    answer
}

/// Seconds since 1970 of a date as HTTP writes it.
fn httpdate(text: &str) -> u64 {
    let parts: Vec<&str> = text.split([' ', ':']).collect();
    let number = |at: usize| parts[at].parse::<u64>().unwrap();
    let month = MONTHS.iter().position(|month| *month == parts[2]).unwrap() as u64 + 1;
    // days since 1970-03-01, in years that begin with March
    let (year, month) = if month > 2 { (number(3), month - 3) } else { (number(3) - 1, month + 9) };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + number(1) - 1 - 719_468;
    ((days * 24 + number(4)) * 60 + number(5)) * 60 + number(6)
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn http_text(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (year_of_era + era * 400 + u64::from(month > 9), (month + 2) % 12);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let name = MONTHS[month as usize];
    // nobody looks at the day of the week
    format!("Mon, {day:02} {name} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

const HOUR: u64 = 3600;

/// A client for whom listings are answered by a service whose clock goes before by so many hours.
pub(crate) async fn hours_later(bed: &Bed, hours: u64) -> Client {
    bed.through(2, move |head| match (is_listing(head), hours) {
        (true, 11) => Action::Rewrite(|answer| later(answer, 11 * HOUR)),
        (true, 13) => Action::Rewrite(|answer| later(answer, 13 * HOUR)),
        (true, 23) => Action::Rewrite(|answer| later(answer, 23 * HOUR)),
        (true, 25) => Action::Rewrite(|answer| later(answer, 25 * HOUR)),
        _ => Action::Forward,
    })
    .await
}

fn is_listing(head: &Head) -> bool {
    head.path.contains("list-type=2")
}

#[tokio::test]
async fn an_intent_counts_for_a_day_and_then_prune_deletes_it() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    let _killed = Incremental::begin(&bed.client, location(Some(2), None)).await.unwrap();
    for key in ["run/.metadata", "run/epoch_1/.metadata"] {
        bed.client.delete_object(BUCKET, key).await.unwrap();
    }
    let client = hours_later(&bed, 23).await;
    let found = find_leftovers(&storage(&client), "run", Duration::ZERO).await.unwrap();
    assert_eq!((found.old.len(), found.younger), (0, 1));
    let client = hours_later(&bed, 25).await;
    let a_week = Duration::from_secs(7 * 24 * HOUR);
    let found = find_leftovers(&storage(&client), "run", a_week).await.unwrap();
    assert_eq!((found.old.len(), found.younger), (0, 2), "what is younger than the limit stays");
    let found = find_leftovers(&storage(&client), "run", Duration::ZERO).await.unwrap();
    let kinds: Vec<_> = found.old.iter().map(|leftover| leftover.kind.clone()).collect();
    assert_eq!(kinds, [LeftoverKind::ShardFile, LeftoverKind::Intent]);
    assert_eq!(found.delete(&storage(&client)).await.deleted.len(), 2);
    assert!(bed.keys().await.is_empty());
}

#[tokio::test]
async fn everything_goes_with_an_intent_that_no_longer_counts() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    let _killed = Incremental::begin(&bed.client, location(Some(2), None)).await.unwrap();
    let client = hours_later(&bed, 25).await;
    let removed = remove(&storage(&client), "run").await.unwrap();
    assert!(removed.kept.is_empty(), "{removed:?}");
    assert!(bed.keys().await.is_empty());
}

#[tokio::test]
async fn a_save_that_was_suspended_for_a_day_does_not_commit() {
    for (hours, commits) in [(11, true), (13, false), (25, false)] {
        let bed = Bed::start().await;
        save(&bed.client, Some(1), 1).await;
        let before = bed.keys().await;
        let client = hours_later(&bed, hours).await;
        // Its own listings are the later ones: the clock goes on while it is suspended.
        let (reused, committed) =
            Incremental::begin(&client, location(Some(2), None)).await.unwrap().finish(2).await;
        assert_eq!(reused, 1);
        if commits {
            committed.unwrap();
            assert_eq!(whole(&bed).await, 2);
        } else {
            let error = committed.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.message().contains("hours ago"), "{error}");
            assert_eq!(bed.keys().await, before, "its own files and its intent are gone, and nothing else");
        }
    }
}

#[tokio::test]
async fn a_save_whose_intent_is_gone_does_not_commit() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    let before = bed.keys().await;
    let under_way = Incremental::begin(&bed.client, location(Some(2), None)).await.unwrap();
    bed.client.delete_object(BUCKET, &intents(&bed).await[0]).await.unwrap();
    let error = under_way.finish(2).await.1.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("intent"), "{error}");
    assert_eq!(bed.keys().await, before);
}

#[tokio::test]
async fn where_the_service_does_not_tell_its_time_nothing_is_relied_on() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    let before = bed.keys().await;
    let client = bed
        .through(2, |head| match is_listing(head) {
            true => Action::Rewrite(|answer| answer.replace("date: ", "ergo: ").replace("Date: ", "Ergo: ")),
            false => Action::Forward,
        })
        .await;
    let error = Incremental::begin(&client, location(Some(2), None)).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Service);
    assert_eq!(bed.keys().await, before);
}

#[tokio::test]
async fn a_base_that_is_replaced_or_deleted_once_the_intent_is_written_is_not_relied_on() {
    for is_replaced in [true, false] {
        let bed = Bed::start().await;
        save(&bed.client, None, 1).await;
        let direct = bed.client.clone();
        let gate = Arc::new(Semaphore::new(0));
        let (held, at_gate) = (gate.clone(), Arc::new(Notify::new()));
        let reached = at_gate.clone();
        let client = bed
            .through(2, move |head| match head.method == "HEAD" && head.path.ends_with("run/.metadata") {
                true => {
                    reached.notify_one();
                    Action::Hold(held.clone())
                }
                false => Action::Forward,
            })
            .await;
        let begun = tokio::spawn(async move { Incremental::begin(&client, location(None, None)).await });
        at_gate.notified().await;
        match is_replaced {
            true => drop(save(&direct, None, 2).await),
            false => direct.delete_object(BUCKET, "run/.metadata").await.unwrap(),
        }
        gate.add_permits(100);
        assert!(begun.await.unwrap().unwrap().base.is_empty());
        assert!(intents(&bed).await.is_empty());
    }
}

#[tokio::test]
async fn a_file_that_another_tool_deleted_ends_the_save_before_its_commit() {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    let under_way = Incremental::begin(&bed.client, location(Some(2), None)).await.unwrap();
    let before = bed.keys().await;
    let file = before.iter().find(|key| key.ends_with(".distcp")).unwrap();
    bed.client.delete_object(BUCKET, file).await.unwrap();
    let error = under_way.finish(2).await.1.unwrap_err();
    assert_eq!((error.kind(), error.key()), (ErrorKind::Conflict, Some(&file[..])));
    assert!(!bed.exists("run/epoch_2/.metadata").await);
    assert_eq!((shards(&bed).await, intents(&bed).await.len()), (0, 0));
}

#[tokio::test]
async fn an_index_that_fails_to_be_written_takes_nothing_of_the_base_with_it() {
    for epoch in [None, Some(2)] {
        let bed = Bed::start().await;
        save(&bed.client, epoch.map(|_| 1), 1).await;
        let before = bed.keys().await;
        let client = bed
            .through(1, |head| match head.method == "PUT" && head.path.ends_with(".metadata") {
                true => Action::Answer(403, "AccessDenied"),
                false => Action::Forward,
            })
            .await;
        let (reused, committed) =
            Incremental::begin(&client, location(epoch, None)).await.unwrap().finish(2).await;
        assert_eq!((reused, committed.unwrap_err().kind()), (1, ErrorKind::Denied));
        assert_eq!(bed.keys().await, before);
    }
}

#[tokio::test]
async fn a_save_that_is_given_up_deletes_nothing_of_the_base() {
    let bed = Bed::start().await;
    save(&bed.client, None, 1).await;
    let before = bed.keys().await;
    let under_way = Incremental::begin(&bed.client, location(None, None)).await.unwrap();
    let reused = under_way.base.find("frozen", Some(&[0])).unwrap().relative_path.to_string();
    assert!(under_way.save.discard([], [&reused[..]]).await.is_empty());
    assert_eq!(bed.keys().await, before);
}

/// Runs `actor` with a client whose request number `turn` waits until `other` has ended; whether there was such a request.
async fn between<A, T>(
    bed: &Bed,
    turn: usize,
    actor: impl FnOnce(Client) -> A,
    other: impl Future<Output = ()>,
) -> (bool, T)
where
    A: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let (gate, reached) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (held, at_gate, count) = (gate.clone(), reached.clone(), AtomicUsize::new(0));
    let client = bed
        .through(3, move |_| {
            if count.fetch_add(1, Ordering::Relaxed) != turn {
                return Action::Forward;
            }
            at_gate.notify_one();
            Action::Hold(held.clone())
        })
        .await;
    let mut acting = tokio::spawn(actor(client));
    tokio::select! {
        ended = &mut acting => (false, ended.unwrap()),
        () = reached.notified() => {
            other.await;
            gate.add_permits(1);
            (true, acting.await.unwrap())
        }
    }
}

/// Epochs 1 and 2 with one frozen file, epoch 4 that shares nothing and is the newest, and a save of epoch 3 that relies on what `keep`
/// will take epochs 1 and 2 for.
async fn race() -> (Bed, Incremental) {
    let bed = Bed::start().await;
    save(&bed.client, Some(1), 1).await;
    save(&bed.client, Some(2), 2).await;
    let under_way = Incremental::begin(&bed.client, location(Some(3), None)).await.unwrap();
    let plain = Save::begin(&bed.client, location(Some(4), None), options()).await.unwrap();
    let plain = Incremental { save: plain, base: Base::default(), epoch: Some(4) };
    plain.finish(4).await.1.unwrap();
    (bed, under_way)
}

#[tokio::test]
async fn a_commit_between_any_two_requests_of_keep_names_files_that_stay() {
    for turn in 0.. {
        let (bed, under_way) = race().await;
        let commit = async {
            let (reused, committed) = under_way.finish(3).await;
            committed.unwrap();
            assert_eq!(reused, 1);
        };
        let (reached, kept) =
            between(&bed, turn, |client| async move { keep_last(&client).await }, commit).await;
        kept.unwrap();
        whole(&bed).await;
        if !reached {
            assert!(turn > 10, "keep has {turn} requests");
            break;
        }
        assert!(bed.exists("run/epoch_3/.metadata").await);
    }
}

#[tokio::test]
async fn a_commit_between_any_two_requests_of_prune_names_files_that_stay() {
    for turn in 0.. {
        let (bed, under_way) = race().await;
        for epoch in [1, 2] {
            bed.client.delete_object(BUCKET, &format!("run/epoch_{epoch}/.metadata")).await.unwrap();
        }
        let commit = async { drop(under_way.finish(3).await.1.unwrap()) };
        let (reached, ()) = between(&bed, turn, |client| async move { prune(&client).await }, commit).await;
        whole(&bed).await;
        if !reached {
            assert!(turn > 5, "prune has {turn} requests");
            break;
        }
        assert!(bed.exists("run/epoch_3/.metadata").await);
    }
}

#[tokio::test]
async fn a_keep_between_any_two_requests_of_a_save_leaves_every_index_whole() {
    for turn in 0.. {
        let bed = Bed::start().await;
        save(&bed.client, Some(1), 1).await;
        save(&bed.client, Some(2), 2).await;
        let deleter = async {
            let plain = Save::begin(&bed.client, location(Some(4), None), options()).await.unwrap();
            let plain = Incremental { save: plain, base: Base::default(), epoch: Some(4) };
            plain.finish(4).await.1.unwrap();
            keep_last(&bed.client).await.unwrap();
        };
        let saver = |client| async move {
            let (_, committed) =
                Incremental::begin(&client, location(Some(3), None)).await.unwrap().finish(3).await;
            committed.map(drop)
        };
        let (reached, saved) = between(&bed, turn, saver, deleter).await;
        saved.unwrap();
        whole(&bed).await;
        assert!(intents(&bed).await.is_empty());
        if !reached {
            assert!(turn > 10, "a save has {turn} requests");
            break;
        }
    }
}

#[tokio::test]
async fn an_overwrite_between_any_two_requests_of_a_save_leaves_one_of_them_whole() {
    for turn in 0.. {
        let bed = Bed::start().await;
        save(&bed.client, None, 1).await;
        let overwrite = async {
            let plain = Save::begin(&bed.client, location(None, None), options()).await.unwrap();
            let plain = Incremental { save: plain, base: Base::default(), epoch: None };
            plain.finish(9).await.1.unwrap();
        };
        let saver = |client| async move {
            let begun = Incremental::begin(&client, location(None, None)).await;
            begun.unwrap().finish(2).await.1.map(drop)
        };
        let (reached, saved) = between(&bed, turn, saver, overwrite).await;
        assert_eq!(whole(&bed).await, 1);
        assert!(intents(&bed).await.is_empty());
        if let Err(error) = saved {
            assert!(matches!(error.kind(), ErrorKind::AlreadyExists), "{error}");
        }
        prune(&bed.client).await;
        assert_eq!(whole(&bed).await, 1);
        if !reached {
            assert!(turn > 8, "a save has {turn} requests");
            break;
        }
    }
}

#[tokio::test]
async fn a_removal_between_any_two_requests_of_a_save_leaves_what_it_reuses() {
    for turn in 0.. {
        let bed = Bed::start().await;
        save(&bed.client, Some(1), 1).await;
        let keys = bed.keys().await;
        let frozen = keys.iter().find(|key| key.ends_with(".distcp")).unwrap();
        let removal = async { drop(remove(&storage(&bed.client), "run").await.unwrap()) };
        let saver = |client| async move {
            let begun = Incremental::begin(&client, location(Some(2), None)).await;
            begun.unwrap().finish(2).await.1.map(drop)
        };
        let (reached, saved) = between(&bed, turn, saver, removal).await;
        // What it has written itself goes as that of any save, which no index names yet.
        let found = list_checkpoints(&storage(&bed.client), "run").await.unwrap();
        for checkpoint in found.checkpoints {
            assert!(!checkpoint.missing.contains(&format!("s3://{BUCKET}/{frozen}")), "{checkpoint:?}");
        }
        if let Err(error) = saved {
            assert!(matches!(error.kind(), ErrorKind::Conflict), "{error}");
        }
        if !reached {
            assert!(turn > 10, "a save has {turn} requests");
            break;
        }
    }
}
