//! Lists a checkpoint and reads its tensors, without Python.
//!
//! ```text
//! cargo run -p s3dcp-checkpoint --example load -- s3://bucket/run  # with the credentials of the environment, or a local path
//! ```
//!
//! It reads what torch's own writers saved as well as what this project's did. A line per tensor tells its dtype, its
//! shape, the CRC-32 of its values and where the first of its chunks is stored.
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::error::Error;

use s3dcp_checkpoint::{Layout, Load, Storage};
use s3dcp_s3::{Client, ClientConfig, crc32};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let uri = std::env::args().nth(1).ok_or("usage: load s3://bucket/path, or load /path")?;
    let (storage, path_key) = Storage::parse(&uri, || Client::new(ClientConfig::default()))?;
    let load = Load::open(&storage, &Layout::new(&path_key).index_key(None)).await?;
    for (name, tensor) in &load.contents().tensors {
        let values = load.read_tensor(name).await?;
        let place = tensor.chunks.first().and_then(|chunk| chunk.stored.as_ref());
        let key = place.map_or("", |stored| &stored.entry.key);
        println!("{name} {} {:?} {:08x} {key}", tensor.dtype_name, tensor.size, crc32(&values));
    }
    for name in load.contents().objects.keys() {
        println!("{name} {} bytes", load.read_object(name).await?.len());
    }
    Ok(())
}
