//! Saves a few tensors as a checkpoint that PyTorch loads, without Python.
//!
//! ```text
//! cargo run -p s3dcp-checkpoint --example save                     # to a server of its own
//! cargo run -p s3dcp-checkpoint --example save -- s3://bucket/run  # to S3, with the credentials of the environment
//! ```
//!
//! In Python, `torch.distributed.checkpoint.load` with an `S3StorageReader` reads it like any other.
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::error::Error;

use bytes::Bytes;
use s3dcp_checkpoint::{Chunk, DType, Location, Save, SaveOptions, TensorIndex, TensorSpec, read_facts};
use s3dcp_prefix::{DefaultPrefixStrategy, PrefixStrategy as _};
use s3dcp_s3::{Client, ClientConfig, StaticCredentials, parse_s3_uri};
use s3dcp_server::{Server, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = match std::env::args().nth(1) {
        Some(_) => None,
        None => {
            let mut config = ServerConfig::default();
            config.buckets = vec!["bucket".into()];
            Some(Server::start(config).await?)
        }
    };
    let uri = std::env::args().nth(1).unwrap_or_else(|| "s3://bucket/run".to_owned());
    let (bucket, path_key) = parse_s3_uri(&uri)?;
    let mut config = ClientConfig::default();
    if let Some(server) = &server {
        config.region = Some(server.region().to_owned());
        config.endpoint_url = Some(server.endpoint_url());
        config.credentials = Some(StaticCredentials::new(server.access_key(), server.secret_key()));
    }
    let client = Client::new(config)?;

    let location = Location { bucket: bucket.clone(), path_key, epoch: None, folder: None, rank: None };
    let index_key = location.index_key();
    let mut options = SaveOptions::default();
    options.overwrite = true;
    let mut save = Save::begin(&client, location, options).await?;

    // One shard file with all tensors of this rank: each whole, but for `rows`, of which it has two chunks.
    let mut index = TensorIndex::new();
    let mut shard = save.shard(&DefaultPrefixStrategy.generate_prefix(0), 0, None)?;
    let file = shard.name().relative_path.clone();
    for (name, shape) in [("weight", &[3, 4][..]), ("bias", &[4]), ("step", &[])] {
        let spec = TensorSpec::contiguous(DType::Float32, shape.to_vec());
        let record = shard.tensor(&spec, numbers(0, shape.iter().product())).await?;
        index.tensor(name, DType::Float32, shape, &file, record)?;
    }
    for first in [0, 3] {
        let spec = TensorSpec::contiguous(DType::Float32, vec![3, 2]);
        let record = shard.tensor(&spec, numbers(2 * first as u64, 6)).await?;
        let chunk = Chunk { offsets: vec![first, 0], sizes: vec![3, 2] };
        index.chunk("rows", DType::Float32, &[6, 2], chunk, &file, record)?;
    }
    shard.finish().await?;

    let index = index.finish(save.save_id(), 1, None)?;
    for warning in save.commit(&index).await?.warnings {
        eprintln!("warning: {warning}");
    }
    let stored = client.get_object(&bucket, &index_key).await?;
    let facts = read_facts(&stored.body)?;
    println!("{uri}: {} items in {:?}", facts.item_count, facts.relative_paths);
    Ok(())
}

/// So many numbers, as the bytes of 32-bit floats.
fn numbers(first: u64, count: u64) -> Bytes {
    (first..first + count).flat_map(|number| (number as f32).to_le_bytes()).collect()
}
