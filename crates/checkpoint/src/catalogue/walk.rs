//! The values of many tensors, band by band, in batches that are read at the same time and in bounded memory.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind};

use super::bands::{bands, byte_count};
use crate::load::chunks::Chunk;

/// Bytes of one band.
const BAND_BYTES: u64 = 16 << 20;
/// Bytes, and bands, that are read at once.
const BATCH_BYTES: u64 = 32 << 20;
const BATCH_BANDS: usize = 4096;
/// Batches under way.
const BATCHES: usize = 3;

/// A tensor that is to be read.
pub(crate) struct Walked {
    /// Its number, for whoever hears of it.
    pub(crate) tensor: usize,
    /// Which of the checkpoint's indexes has it.
    pub(crate) index: usize,
    pub(crate) name: Arc<str>,
    /// Its chunks, which have been checked.
    pub(crate) chunks: Vec<Chunk>,
    /// Bytes of an element.
    pub(crate) item_size: u64,
}

/// A band of one.
#[derive(Clone)]
pub(crate) struct Band {
    pub(crate) tensor: usize,
    pub(crate) index: usize,
    pub(crate) name: Arc<str>,
    pub(crate) chunk: Chunk,
    pub(crate) bytes: u64,
}

/// Reads bands of one index and makes something of each.
pub(crate) type ReadBands<R> =
    Arc<dyn Fn(Vec<Band>) -> BoxFuture<'static, Result<Vec<R>, Error>> + Send + Sync>;

/// Reads all of these tensors, and hands on what was made of each band: its tensor's number, its bytes, and that, or why it
/// cannot be read. Of a tensor that cannot be, no more is read.
///
/// # Errors
/// Those of requests, not of what is stored.
pub(crate) async fn walk<R: Send + 'static>(
    tensors: Vec<Walked>,
    read: ReadBands<R>,
    mut found: impl FnMut(usize, u64, Result<R, Error>),
) -> Result<(), Error> {
    let failed = Arc::new(Mutex::new(BTreeSet::new()));
    let stopped = failed.clone();
    let all = tensors.into_iter().flat_map(move |Walked { tensor, index, name, chunks, item_size }| {
        let stopped = stopped.clone();
        let all = chunks.into_iter().flat_map(move |chunk| bands(&chunk, item_size, BAND_BYTES));
        // What cannot be read may be said to be endless.
        let all = all.take_while(move |_| !lock(&stopped).contains(&tensor));
        all.map(move |chunk| {
            let bytes = byte_count(&chunk.sizes, item_size);
            Band { tensor, index, name: name.clone(), chunk, bytes }
        })
    });
    let mut batches = stream::iter(batches(all.peekable()))
        .map(|batch| {
            let task = tokio::spawn(read_batch(batch, read.clone(), failed.clone()));
            async {
                task.await.unwrap_or_else(|error| {
                    let message = format!("a task that read values ended early: {error}");
                    Err(Error::new(ErrorKind::Interrupted, message))
                })
            }
        })
        .buffered(BATCHES);
    while let Some(batch) = batches.next().await {
        for (tensor, bytes, made) in batch? {
            found(tensor, bytes, made);
        }
    }
    Ok(())
}

/// Bands in batches of a bounded size, each of one index.
fn batches(mut all: Peekable<impl Iterator<Item = Band>>) -> impl Iterator<Item = Vec<Band>> {
    std::iter::from_fn(move || {
        let mut batch: Vec<Band> = Vec::new();
        let mut left = BATCH_BYTES;
        while let Some(band) = all.next_if(|band| {
            batch.last().is_none_or(|last| {
                last.index == band.index && batch.len() < BATCH_BANDS && band.bytes <= left
            })
        }) {
            left = left.saturating_sub(band.bytes);
            batch.push(band);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

/// What was made of a band: its tensor, its bytes, and that, or what is wrong with it.
type Made<R> = (usize, u64, Result<R, Error>);

async fn read_batch<R>(
    batch: Vec<Band>,
    read: ReadBands<R>,
    failed: Arc<Mutex<BTreeSet<usize>>>,
) -> Result<Vec<Made<R>>, Error> {
    match read(batch.clone()).await {
        Ok(made) => {
            let made = batch.iter().zip(made).map(|(band, made)| (band.tensor, band.bytes, Ok(made)));
            return Ok(made.collect());
        }
        Err(error) if is_fault(&error) => {}
        Err(error) => return Err(error),
    }
    // One of them is to blame: which?
    let mut all = Vec::with_capacity(batch.len());
    for band in batch {
        let (tensor, bytes) = (band.tensor, band.bytes);
        if lock(&failed).contains(&tensor) {
            continue;
        }
        match read(vec![band]).await {
            Ok(made) => all.extend(made.into_iter().map(|made| (tensor, bytes, Ok(made)))),
            Err(error) if is_fault(&error) => {
                lock(&failed).insert(tensor);
                all.push((tensor, bytes, Err(error)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn lock(failed: &Mutex<BTreeSet<usize>>) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
    failed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error tells of what is stored, not of the way there.
pub(crate) fn is_fault(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Config)
}
