//! Moves bytes up or down and says what that cost this process.
//!
//! ```text
//! transfer put|get BUCKET KEY GIB [CONNECTIONS]
//! ```
//!
//! Endpoint and credentials come from the environment, as for every AWS tool. `put` writes GIB of warm memory as
//! one object with a multipart upload; `get` reads that much of the object back in ranges of 16 MiB, into warm memory.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use s3dcp_s3::{Client, ClientConfig, Error, RangeRead, RangeSink, Space, UploadOptions, crc32};

const PART: usize = 16 << 20;
/// Memory that is used over and over, so that first-touch page faults are not what is measured.
const WARM: usize = 256 << 20;

struct Memory {
    place: Vec<u8>,
    at: usize,
    /// Gets the memory back.
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Memory {
    /// Memory is taken when the first bytes come, so that a few places serve any number of ranges.
    fn ahead(&mut self) -> &mut [u8] {
        if self.place.is_empty() {
            let spare = self.home.lock().expect("no sink panics").pop();
            self.place = spare.unwrap_or_else(|| vec![1; PART]);
        }
        &mut self.place[self.at..]
    }
}

impl RangeSink for Memory {
    fn space(&mut self) -> Space<'_> {
        Space::Memory(self.ahead())
    }

    fn filled(&mut self, count: usize) -> Result<(), Error> {
        self.at += count;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.ahead()[..bytes.len()].copy_from_slice(bytes);
        self.filled(bytes.len())
    }

    fn restart(&mut self) {
        self.at = 0;
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.home.lock().expect("no sink panics").push(std::mem::take(&mut self.place));
        Ok(())
    }
}

/// User and system time of this process, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

async fn put(client: &Client, bucket: &str, key: &str, parts: usize) -> Result<(), Error> {
    let memory = Bytes::from((0..WARM).map(|n| ((n * 31) >> 7) as u8).collect::<Vec<u8>>());
    let (started, cpu) = (now(), cpu_seconds());
    let mut options = UploadOptions::default();
    options.part_size = Some(PART as u64);
    options.size_hint = Some((parts * PART) as u64);
    let mut upload = client.upload(bucket, key, options);
    for part in 0..parts {
        let start = part * PART % WARM;
        let segment = memory.slice(start..start + PART);
        let checksum = crc32(&segment);
        upload.push(segment, checksum).await?;
    }
    upload.finish().await?;
    report("put", parts, started, cpu);
    Ok(())
}

async fn get(client: &Client, bucket: &str, key: &str, parts: usize) -> Result<(), Error> {
    let buffers = client.config().max_connections.unwrap_or_default();
    let home = Arc::new(Mutex::new((0..buffers).map(|_| vec![1u8; PART]).collect()));
    let (started, cpu) = (now(), cpu_seconds());
    let reads = (0..parts)
        .map(|part| RangeRead {
            key: key.to_owned(),
            range: (part * PART) as u64..((part + 1) * PART) as u64,
            sink: Box::new(Memory { place: Vec::new(), at: 0, home: Arc::clone(&home) }),
        })
        .collect();
    client.download(bucket, reads).await?;
    report("get", parts, started, cpu);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the example is for")]
fn report(operation: &str, parts: usize, started: Instant, cpu: f64) {
    let gib = (parts * PART) as f64 / (1u64 << 30) as f64;
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("{operation}: {:.2} GiB/s, {:.3} CPU-s per GiB", gib / wall, cpu / gib);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [operation, bucket, key, gib, rest @ ..] = arguments.as_slice() else {
        return Err("usage: transfer put|get BUCKET KEY GIB [CONNECTIONS]".into());
    };
    let parts = (gib.parse::<f64>()? * (1u64 << 30) as f64) as usize / PART;
    let mut config = ClientConfig::default();
    config.max_connections = rest.first().map(|text| text.parse()).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let client = Client::new(config)?;
    match operation.as_str() {
        "put" => runtime.block_on(put(&client, bucket, key, parts))?,
        "get" => runtime.block_on(get(&client, bucket, key, parts))?,
        other => return Err(format!("the operation must be put or get, not {other:?}").into()),
    }
    Ok(())
}
