//! The S3 engine of s3dcp: owned uploads without copies, ranged downloads into the caller's memory, checksums,
//! conditional writes, and retries with a deadline.
//!
//! ```no_run
//! # async fn example() -> Result<(), s3dcp_s3::Error> {
//! use s3dcp_s3::{Client, ClientConfig, Payload, PutOptions};
//!
//! let client = Client::new(ClientConfig { region: Some("eu-central-1".into()), ..ClientConfig::default() })?;
//! client.put_object("models", "run7/note", Payload::from(b"step 12".to_vec()), &PutOptions::default()).await?;
//! assert_eq!(&client.get_range("models", "run7/note", 5..7).await?[..], b"12");
//! # Ok(()) }
//! ```
//!
//! The layers, from the outside in: an operation ([`Client::put_object`], [`Client::upload`], [`Client::download`], …),
//! its retries, pacing (after a SlowDown, for each folder of keys), admission (the limit on connections), one HTTP
//! request. A client does no I/O before its first request, and belongs to the tokio runtime and the process of that
//! request.
//!
//! Not here: HTTP proxies, S3 Express session authentication, object versions.

mod address;
mod answer;
mod body;
mod checksum;
mod client;
mod clock;
mod conditions;
mod config;
mod connections;
mod credentials;
mod dates;
mod delete;
mod download;
mod environment;
mod error;
mod fetch;
mod gate;
mod link;
mod list;
mod multipart;
mod object;
mod payload;
mod plan;
mod profile;
mod progress;
mod request;
mod retry;
mod session;
mod sign;
mod stats;
mod store;
mod sync;
mod transport;
mod tuning;
mod turns;
mod upload;
mod xml;

pub use address::{join_key, parse_s3_uri};
pub use checksum::{crc32, crc32_combine};
pub use client::{Client, PaceShare};
pub use conditions::{Conditions, Found, Support};
pub use config::{
    ClientConfig, DEFAULT_PART_SIZE, MAX_PART_SIZE, MIN_PART_SIZE, ServerSideEncryption, StaticCredentials,
};
pub use delete::DeleteFailure;
pub use download::{RangeRead, RangeSink, Space};
pub use error::{Error, ErrorKind};
pub use list::{Listing, MultipartUpload, UploadedPart};
pub use object::{Condition, GetOutput, ObjectInfo, PutOptions, PutOutput};
pub use payload::Payload;
pub use plan::{Pace, PartPlan};
pub use stats::Stats;
pub use upload::{Upload, UploadOptions, UploadOutput};
