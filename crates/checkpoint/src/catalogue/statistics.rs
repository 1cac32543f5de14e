//! What the values of tensors come to.

use std::sync::Arc;

use bytes::BytesMut;
use s3dcp_s3::Error;

use super::inspect::Inspection;
use super::open::OpenCheckpoint;
use super::walk::{Band, ReadBands, Walked, walk};
use crate::dtype::DType;
use crate::load::chunks::{Chunk, check_chunks};
use crate::values::Statistics;

/// Reads the values of the tensors that were listed and notes what they come to, or why they cannot be read. `read` hears of
/// bytes as they are read.
///
/// # Errors
/// Those of requests. What is wrong with a tensor is noted as its fault.
pub async fn read_statistics(
    checkpoint: &Arc<OpenCheckpoint>,
    inspection: &mut Inspection<'_>,
    read: impl Fn(u64),
) -> Result<(), Error> {
    let mut all = Vec::new();
    for (place, tensor) in inspection.tensors.iter_mut().enumerate() {
        let chunks = tensor
            .chunks
            .iter()
            .map(|chunk| Chunk { offsets: chunk.offsets.to_vec(), sizes: chunk.sizes.to_vec() });
        let chunks: Vec<Chunk> = chunks.collect();
        let checked = check_chunks(tensor.shape, &chunks);
        match (checked, DType::from_torch_name(tensor.dtype)) {
            (Err(error), _) => tensor.fault = Some(error.message().to_owned()),
            (Ok(_), None) => tensor.fault = Some(format!("torch alone reads values of {}", tensor.dtype)),
            (Ok(_), Some(dtype)) => {
                tensor.statistics = Some(Box::default());
                let index = checkpoint.indexes.iter().position(|index| index.rank == tensor.rank);
                all.push(Walked {
                    tensor: place,
                    index: index.unwrap_or(0),
                    name: tensor.name.into(),
                    chunks,
                    item_size: dtype.item_size(),
                });
            }
        }
    }
    let of = checkpoint.clone();
    let read_bands: ReadBands<Statistics> = Arc::new(move |bands| {
        let of = of.clone();
        Box::pin(async move { statistics(&of, &bands).await })
    });
    walk(all, read_bands, |place, bytes, found| {
        let tensor = &mut inspection.tensors[place];
        match (found, &mut tensor.statistics) {
            (Ok(found), Some(statistics)) => statistics.join(&found),
            (Err(error), _) if tensor.fault.is_none() => tensor.fault = Some(error.message().to_owned()),
            _ => {}
        }
        read(bytes);
    })
    .await?;
    for tensor in inspection.tensors.iter_mut().filter(|tensor| tensor.fault.is_some()) {
        tensor.statistics = None;
    }
    Ok(())
}

async fn statistics(checkpoint: &OpenCheckpoint, bands: &[Band]) -> Result<Vec<Statistics>, Error> {
    let Some(first) = bands.first() else { return Ok(Vec::new()) };
    let load = &checkpoint.indexes[first.index].load;
    let wanted = bands.iter().map(|band| (&*band.name, &band.chunk, BytesMut::zeroed(band.bytes as usize)));
    let read = load.read_blocks(wanted.collect()).await?;
    let statistics = bands.iter().zip(read).map(|(band, bytes)| {
        let mut statistics = Statistics::default();
        if let Some(dtype) = load.contents().tensors.get(&*band.name).and_then(|tensor| tensor.dtype()) {
            statistics.add(dtype, &bytes);
        }
        statistics
    });
    Ok(statistics.collect())
}
