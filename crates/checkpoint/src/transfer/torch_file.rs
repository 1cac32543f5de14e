//! One file of `torch.save` that holds a dict of tensors.
//!
//! It is written from front to back, because the CRC-32 of each storage follows it.

use std::pin::pin;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use s3dcp_s3::{Error, UploadOptions, crc32, crc32_combine};

use crate::archive::spec::TensorSpec;
use crate::archive::write::pickle_dict;
use crate::archive::zip::{Record, end_of_directory, stored};
use crate::storage::writer::Writer;
use crate::transfer::body::Body;
use crate::transfer::planned::{Block, Planned, in_blocks};
use crate::transfer::write::Mover;

/// Blocks that are read ahead of the one that is written.
const READ_AHEAD: usize = 4;

/// Writes the file.
pub(crate) async fn write_torch_file(mover: &Mover<'_>, key: &str, tensors: &[Planned]) -> Result<(), Error> {
    let (body, blocks) = in_blocks(tensors)?;
    let mut options = UploadOptions::default();
    options.size_hint = Some(body.length());
    let mut file = File { writer: mover.target.writer(key, options)?, position: 0 };
    match write(mover, &body, blocks, tensors, &mut file).await {
        Ok(()) => file.writer.finish_unless(std::future::pending()).await.map(drop),
        Err(error) => {
            file.writer.abort().await;
            Err(error)
        }
    }
}

async fn write(
    mover: &Mover<'_>,
    body: &Body,
    blocks: Vec<Block>,
    tensors: &[Planned],
    file: &mut File,
) -> Result<(), Error> {
    let mut small = Vec::new();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|tensor| TensorSpec::contiguous(tensor.dtype, tensor.located.size.clone()))
        .collect();
    let mut pickle = Vec::new();
    pickle_dict(tensors.iter().map(|tensor| &tensor.name[..]).zip(&specs), &mut pickle);
    let mut records = vec![
        stored("archive/data.pkl", &pickle, 0, &mut small),
        stored("archive/.format_version", b"1", 0, &mut small),
        stored("archive/.storage_alignment", b"64", 0, &mut small),
        stored("archive/byteorder", b"little", 0, &mut small),
    ];
    let mut open: Option<Record> = None;
    let read = stream::iter(blocks)
        .map(async |block| Ok::<_, Error>((body.read(mover.source, block.range.clone()).await?, block)));
    let mut read = pin!(read.buffered(READ_AHEAD));
    while let Some(block) = read.next().await {
        let (bytes, Block { number, is_last, .. }) = block?;
        let mut record = open.take().unwrap_or_else(|| {
            let name = format!("archive/data/{number}").into();
            let offset = file.position + small.len() as u64;
            let record = Record { name, offset, length: tensors[number].nbytes, crc: 0 };
            record.local_header(&mut small);
            record
        });
        file.push(std::mem::take(&mut small).into()).await?;
        let crc = crc32(&bytes);
        record.crc = crc32_combine(record.crc, crc, bytes.len() as u64);
        mover.pushed(bytes.len() as u64);
        file.push_summed(bytes, crc).await?;
        if is_last {
            record.descriptor(&mut small);
            records.push(record);
        } else {
            open = Some(record);
        }
    }
    records.push(stored("archive/version", b"3\n", file.position, &mut small));
    let directory = file.position + small.len() as u64;
    for record in &records {
        record.central_header(&mut small);
    }
    let end = file.position + small.len() as u64;
    end_of_directory(&mut small, records.len() as u64, directory, end);
    file.push(small.into()).await
}

/// A file, and how long it is by now.
struct File {
    writer: Writer,
    position: u64,
}

impl File {
    async fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        let crc = crc32(&bytes);
        self.push_summed(bytes, crc).await
    }

    /// Writes bytes whose CRC-32 is known, in pieces as long as the parts that they go into.
    async fn push_summed(&mut self, mut bytes: Bytes, crc: u32) -> Result<(), Error> {
        self.position += bytes.len() as u64;
        if bytes.len() as u64 <= self.writer.part_remaining() {
            return self.writer.push(bytes, crc).await;
        }
        while !bytes.is_empty() {
            let length = self.writer.part_remaining().min(bytes.len() as u64) as usize;
            let piece = bytes.split_to(length);
            let crc = crc32(&piece);
            self.writer.push(piece, crc).await?;
        }
        Ok(())
    }
}
