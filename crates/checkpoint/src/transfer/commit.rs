//! The last write of a move: the object that makes the files a checkpoint, or a model. Conditional on what was seen there.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use s3dcp_s3::{Condition, Error, ErrorKind, PutOptions};

use crate::catalogue::delete::{NamedBy, delete_objects};
use crate::catalogue::tombstone;
use crate::index::judge::read_facts;
use crate::index::read::get;
use crate::layout::Layout;
use crate::save::observe::EXISTS;
use crate::storage::Storage;

/// How often a 409 (another write of the same key under way) is tried again, with doubling pauses from the first.
const CONFLICT_RETRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Writes `body` to `key` if what is there is still what was seen: nothing, or an object of this ETag.
///
/// # Errors
/// `AlreadyExists` where something else is there by now, with other bytes; else those of the request.
pub(crate) async fn write_last(
    storage: &Storage,
    key: &str,
    body: Bytes,
    seen: Option<&str>,
) -> Result<(), Error> {
    let mut options = PutOptions::default();
    options.condition = match seen {
        None => Condition::IfNoneMatch,
        Some(etag) => Condition::IfMatch(etag.to_owned()),
    };
    let mut pause = FIRST_PAUSE;
    let mut written = storage.put(key, body.clone(), &options).await;
    for _ in 0..CONFLICT_RETRIES {
        if !written.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict) {
            break;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        written = storage.put(key, body.clone(), &options).await;
    }
    let Err(error) = written else { return Ok(()) };
    if error.not_understood() {
        // A service that knows no conditions: the best there is is to look right before.
        return match storage.head(key).await {
            Ok(info) if info.etag.as_deref() != seen => Err(appeared(storage, key)),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => storage.put(key, body, &PutOptions::default()).await,
        };
    }
    let refused = matches!(error.kind(), ErrorKind::PreconditionFailed | ErrorKind::Conflict);
    if !refused && !error.maybe_applied() {
        return Err(error);
    }
    // A reply may have been lost: then the bytes that are there are these.
    match get(storage, key).await {
        Ok(Some((there, _))) if there == body => Ok(()),
        Ok(Some(_)) if refused => Err(appeared(storage, key)),
        _ => Err(error),
    }
}

fn appeared(storage: &Storage, key: &str) -> Error {
    let message = format!("{EXISTS}: {} appeared or changed meanwhile", storage.uri(key));
    storage.at(key, Error::new(ErrorKind::AlreadyExists, message))
}

/// The keys that an index names; none of one that cannot be read.
pub(crate) fn named_keys(layout: &Layout, index: &[u8]) -> BTreeSet<String> {
    let named = read_facts(index).and_then(|facts| layout.resolve_all(&facts.relative_paths));
    named.unwrap_or_default()
}

/// Puts a tombstone beside indexes that are about to be replaced, `(key, body, ETag)`, where their files have names of others; its key.
///
/// # Errors
/// Those of the request.
pub(crate) async fn note_replaced<'a>(
    storage: &Storage,
    layout: &Layout,
    old: impl Iterator<Item = (&'a str, &'a [u8], Option<&'a str>)> + Clone,
) -> Result<Option<String>, Error> {
    let files: BTreeSet<String> = old.clone().flat_map(|(_, index, _)| named_keys(layout, index)).collect();
    let indexes = old.map(|(key, _, etag)| (key, etag));
    tombstone::put(storage, layout, indexes, files.iter().map(String::as_str)).await
}

/// Deletes what replaced indexes named and nothing names any more, and then their tombstone; `new` are the keys of the indexes now,
/// and their bytes. What stays, a prune finds.
pub(crate) async fn delete_unnamed<'a>(
    storage: &Storage,
    layout: &Layout,
    old: impl Iterator<Item = &'a [u8]>,
    new: impl Iterator<Item = (&'a str, &'a [u8])>,
    tombstone: Option<String>,
) {
    let mut likely = Vec::new();
    let mut named = BTreeSet::new();
    for (key, index) in new {
        likely.push(key.to_owned());
        named.extend(named_keys(layout, index));
    }
    let old = old.flat_map(|index| named_keys(layout, index));
    let old: Vec<String> = old.filter(|key| !named.contains(key)).collect();
    if old.is_empty() && tombstone.is_none() {
        return;
    }
    let deletion = delete_objects(storage, layout, old, NamedBy::Path(likely)).await;
    if deletion.stopped.is_none() && deletion.failed.is_empty() {
        delete_objects(storage, layout, tombstone, NamedBy::Nothing).await;
    }
}
