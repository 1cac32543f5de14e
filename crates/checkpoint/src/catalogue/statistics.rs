//! What the values of tensors come to, read band by band, many at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, ErrorKind};

use super::bands::{bands, byte_count};
use super::inspect::Inspection;
use super::open::OpenCheckpoint;
use crate::dtype::DType;
use crate::load::chunks::{Chunk, check_chunks};
use crate::values::Statistics;

/// Bytes of one band.
const BAND_BYTES: u64 = 16 << 20;
/// Bytes, and bands, that are read at once.
const BATCH_BYTES: u64 = 32 << 20;
const BATCH_BANDS: usize = 4096;
/// Batches under way.
const BATCHES: usize = 4;

/// A band of a tensor.
struct Band {
    /// Its place in the inspection.
    tensor: usize,
    /// That of its index in the checkpoint.
    index: usize,
    name: String,
    dtype: DType,
    chunk: Chunk,
    bytes: u64,
}

/// Reads the values of the tensors that were listed and notes what they come to, or why they cannot be read. `read` hears of
/// bytes as they are read.
///
/// # Errors
/// Those of requests. What is wrong with a tensor is noted as its fault.
pub async fn read_statistics(
    checkpoint: &Arc<OpenCheckpoint>,
    inspection: &mut Inspection,
    read: impl Fn(u64),
) -> Result<(), Error> {
    let failed = Arc::new(Mutex::new(BTreeSet::new()));
    let mut all = Vec::new();
    for (place, tensor) in inspection.tensors.iter_mut().enumerate() {
        let chunks = tensor
            .chunks
            .iter()
            .map(|chunk| Chunk { offsets: chunk.offsets.clone(), sizes: chunk.sizes.clone() });
        let checked = check_chunks(&tensor.shape, &chunks.collect::<Vec<_>>());
        match (checked, DType::from_torch_name(&tensor.dtype)) {
            (Err(error), _) => tensor.fault = Some(error.message().to_owned()),
            (Ok(_), Some(dtype)) => {
                tensor.statistics = Some(Statistics::default());
                let index = checkpoint.indexes.iter().position(|index| index.rank == tensor.rank);
                all.push((place, index.unwrap_or(0), tensor.name.clone(), dtype));
            }
            (Ok(_), None) => tensor.fault = Some(format!("torch alone reads values of {}", tensor.dtype)),
        }
    }
    let (of, stopped) = (checkpoint.clone(), failed.clone());
    let all = all.into_iter().flat_map(move |(tensor, index, name, dtype)| {
        let chunks = of.indexes[index].load.contents().tensors[&name].chunks.clone();
        let stopped = stopped.clone();
        let item_size = dtype.item_size();
        let all = chunks.into_iter().flat_map(move |stored| bands(&stored.chunk, item_size, BAND_BYTES));
        // What cannot be read may be said to be endless.
        let all = all
            .take_while(move |_| !stopped.lock().unwrap_or_else(PoisonError::into_inner).contains(&tensor));
        all.map(move |chunk| {
            let bytes = byte_count(&chunk.sizes, item_size);
            Band { tensor, index, name: name.clone(), dtype, chunk, bytes }
        })
    });
    let mut batches = stream::iter(batches(all.peekable()))
        .map(|batch| {
            let task = tokio::spawn(read_batch(checkpoint.clone(), batch, failed.clone()));
            async {
                task.await.unwrap_or_else(|error| {
                    Err(Error::new(
                        ErrorKind::Interrupted,
                        format!("a task that read values ended early: {error}"),
                    ))
                })
            }
        })
        .buffered(BATCHES);
    while let Some(batch) = batches.next().await {
        for (place, bytes, statistics) in batch? {
            let tensor = &mut inspection.tensors[place];
            match (statistics, &mut tensor.statistics) {
                (Ok(found), Some(statistics)) => statistics.join(&found),
                (Err(error), _) if tensor.fault.is_none() => tensor.fault = Some(error.message().to_owned()),
                _ => {}
            }
            read(bytes);
        }
    }
    for tensor in inspection.tensors.iter_mut().filter(|tensor| tensor.fault.is_some()) {
        tensor.statistics = None;
    }
    Ok(())
}

/// Bands in batches of a bounded size.
fn batches(mut all: std::iter::Peekable<impl Iterator<Item = Band>>) -> impl Iterator<Item = Vec<Band>> {
    std::iter::from_fn(move || {
        let mut batch: Vec<Band> = Vec::new();
        let mut left = BATCH_BYTES;
        while let Some(band) =
            all.next_if(|band| batch.is_empty() || batch.len() < BATCH_BANDS && band.bytes <= left)
        {
            left = left.saturating_sub(band.bytes);
            batch.push(band);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

/// What each band of a batch comes to: its tensor, its bytes, and the values, or what is wrong with it.
type Found = (usize, u64, Result<Statistics, Error>);

async fn read_batch(
    checkpoint: Arc<OpenCheckpoint>,
    batch: Vec<Band>,
    failed: Arc<Mutex<BTreeSet<usize>>>,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::with_capacity(batch.len());
    for of_index in batch.chunk_by(|one, other| one.index == other.index) {
        match read_bands(&checkpoint, of_index).await {
            Ok(statistics) => found.extend(
                of_index.iter().zip(statistics).map(|(band, found)| (band.tensor, band.bytes, Ok(found))),
            ),
            // One of them is to blame: which?
            Err(error) if is_fault(&error) => {
                for band in of_index {
                    let alone = read_bands(&checkpoint, std::slice::from_ref(band)).await;
                    let statistics = match alone {
                        Ok(mut statistics) => Ok(statistics.pop().unwrap_or_default()),
                        Err(error) if is_fault(&error) => {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).insert(band.tensor);
                            Err(error)
                        }
                        Err(error) => return Err(error),
                    };
                    found.push((band.tensor, band.bytes, statistics));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn read_bands(checkpoint: &OpenCheckpoint, some: &[Band]) -> Result<Vec<Statistics>, Error> {
    let Some(first) = some.first() else { return Ok(Vec::new()) };
    let wanted = some.iter().map(|band| (&band.name[..], &band.chunk, BytesMut::zeroed(band.bytes as usize)));
    let read = checkpoint.indexes[first.index].load.read_blocks(wanted.collect()).await?;
    let statistics = some.iter().zip(read).map(|(band, bytes)| {
        let mut statistics = Statistics::default();
        statistics.add(band.dtype, &bytes);
        statistics
    });
    Ok(statistics.collect())
}

/// Whether an error tells of what is stored, not of the way there.
pub(crate) fn is_fault(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Config)
}
