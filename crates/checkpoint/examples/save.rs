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
use s3dcp_checkpoint::{
    DType, IndexWriter, ItemRecord, PickleWriter, Save, SaveOptions, ShardName, Target, TensorSpec,
    read_facts,
};
use s3dcp_prefix::{DefaultPrefixStrategy, PrefixStrategy as _};
use s3dcp_s3::{Client, ClientConfig, StaticCredentials, parse_s3_uri};
use s3dcp_server::{Server, ServerConfig};

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILE_SYSTEM: &str = "torch.distributed.checkpoint.filesystem";

/// A tensor and where it was stored.
struct Entry {
    name: &'static str,
    spec: TensorSpec,
    record: ItemRecord,
}

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

    let target = Target { bucket: bucket.clone(), path_key, epoch: None, rank: None };
    let index_key = target.index_key();
    let mut options = SaveOptions::default();
    options.overwrite = true;
    let mut save = Save::begin(&client, target, options).await?;

    // One shard file with all tensors of this rank.
    let mut shard = save.shard(&DefaultPrefixStrategy.generate_prefix(0), 0, None)?;
    let mut entries = Vec::new();
    for (name, shape) in [("weight", vec![3, 4]), ("bias", vec![4])] {
        let spec = TensorSpec::contiguous(DType::Float32, shape);
        let count: u64 = spec.shape.iter().product();
        let values: Bytes = (0..count).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let record = shard.writer.tensor(&spec, values).await?;
        entries.push(Entry { name, spec, record });
    }
    shard.writer.finish().await?;

    let index = index(&entries, &shard.name, save.save_id());
    for warning in save.commit(index).await?.warnings {
        eprintln!("warning: {warning}");
    }
    let stored = client.get_object(&bucket, &index_key).await?;
    let facts = read_facts(&stored.body)?;
    println!("{uri}: {} items in {:?}", facts.item_count, facts.relative_paths);
    Ok(())
}

/// What torch pickles as `Metadata`.
fn index(entries: &[Entry], file: &ShardName, save_id: &str) -> IndexWriter {
    let mut index = IndexWriter::new();
    begin(&mut index.pickle, METADATA, "Metadata");
    index.pickle.text("state_dict_metadata");
    index.pickle.empty_dict();
    index.pickle.mark();
    for Entry { name, spec, .. } in entries {
        index.pickle.text(name);
        begin(&mut index.pickle, METADATA, "TensorStorageMetadata");
        index.pickle.text("properties");
        properties(&mut index.pickle, spec);
        index.pickle.text("size");
        size(&mut index.pickle, &spec.shape);
        index.pickle.text("chunks");
        index.pickle.empty_list();
        index.pickle.mark();
        begin(&mut index.pickle, METADATA, "ChunkStorageMetadata");
        index.pickle.text("offsets");
        size(&mut index.pickle, &vec![0; spec.shape.len()]);
        index.pickle.text("sizes");
        size(&mut index.pickle, &spec.shape);
        end(&mut index.pickle);
        index.pickle.appends();
        end(&mut index.pickle);
    }
    index.pickle.set_items();
    index.pickle.text("storage_data");
    index.pickle.empty_dict();
    index.pickle.mark();
    for Entry { name, spec, record } in entries {
        begin(&mut index.pickle, METADATA, "MetadataIndex");
        index.pickle.text("fqn");
        index.pickle.text(name);
        index.pickle.text("offset");
        size(&mut index.pickle, &vec![0; spec.shape.len()]);
        index.pickle.text("index");
        index.pickle.int(0);
        end(&mut index.pickle);
        begin(&mut index.pickle, FILE_SYSTEM, "_StorageInfo");
        index.pickle.text("relative_path");
        index.shard_file(&file.relative_path);
        for (field, value) in
            [("offset", record.offset), ("length", record.length), ("data_offset", record.data_offset)]
        {
            index.pickle.text(field);
            index.pickle.int(value as i64);
        }
        index.pickle.text("crc32");
        index.pickle.bytes(&record.checksums.to_bytes());
        end(&mut index.pickle);
    }
    index.pickle.set_items();
    index.pickle.text("storage_meta");
    begin(&mut index.pickle, METADATA, "StorageMeta");
    index.pickle.text("save_id");
    index.pickle.text(save_id);
    index.pickle.text("s3dcp");
    index.pickle.empty_dict();
    index.pickle.mark();
    for (field, value) in [("format", 1), ("ranks", 1)] {
        index.pickle.text(field);
        index.pickle.int(value);
    }
    index.pickle.set_items();
    end(&mut index.pickle);
    index.pickle.text("version");
    index.pickle.text("1.0.0");
    end(&mut index.pickle);
    index
}

/// Begins an object whose attributes follow.
fn begin(pickle: &mut PickleWriter, module: &str, class: &str) {
    pickle.global(module, class);
    pickle.new_object();
    pickle.empty_dict();
    pickle.mark();
}

fn end(pickle: &mut PickleWriter) {
    pickle.set_items();
    pickle.build();
}

fn size(pickle: &mut PickleWriter, lengths: &[u64]) {
    pickle.global("torch", "Size");
    pickle.mark();
    for &length in lengths {
        pickle.int(length as i64);
    }
    pickle.tuple();
    pickle.tuple_of(1);
    pickle.reduce();
}

/// A dense tensor on the CPU, contiguous, without a gradient.
fn properties(pickle: &mut PickleWriter, spec: &TensorSpec) {
    pickle.global(METADATA, "TensorProperties");
    pickle.new_object();
    pickle.mark();
    pickle.global("torch", spec.dtype.torch_name());
    pickle.global("torch.serialization", "_get_layout");
    pickle.text("torch.strided");
    pickle.tuple_of(1);
    pickle.reduce();
    pickle.bool(false);
    pickle.global(METADATA, "_MEM_FORMAT_ENCODING");
    pickle.int(0);
    pickle.tuple_of(1);
    pickle.reduce();
    pickle.bool(false);
    pickle.tuple();
    pickle.build();
}
