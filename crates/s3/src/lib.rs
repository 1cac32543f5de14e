#![doc = include_str!("../README.md")]
//!
//! The layers, from the outside in, each a folder: an operation ([`Client::put_object`]) or a transfer ([`Client::upload`],
//! [`Client::assemble`], [`Client::download`]), admission (its retries, pacing after a SlowDown, the limit on connections), one HTTP
//! request. A client does no I/O before its first request, and belongs to the tokio runtime and the process of that request.

mod admission;
mod auth;
mod client;
mod clock;
mod config;
mod error;
mod http;
mod latencies;
mod operation;
mod protocol;
mod stats;
mod store;
mod transfer;

pub use client::{Client, PaceShare};
pub use config::resolve::Resolve;
pub use config::settings::Setting;
pub use config::{
    ClientConfig, DEFAULT_PART_SIZE, MAX_PART_SIZE, MIN_PART_SIZE, ServerSideEncryption, StaticCredentials,
};
pub use error::{Error, ErrorKind};
pub use latencies::Latencies;
pub use operation::call::WhenLate;
pub use operation::conditions::Found;
pub use operation::copy::CopySource;
pub use operation::delete::DeleteFailure;
pub use operation::list::{Listing, MultipartUpload, UploadedPart};
pub use operation::object::{GetOutput, ObjectInfo, PutOptions, PutOutput};
pub use protocol::address::{MAX_KEY_BYTES, join_key, parse_s3_uri};
pub use protocol::bucket::is_directory_bucket;
pub use protocol::checksum::{crc32, crc32_combine};
pub use protocol::conditions::{Condition, Conditions, Support};
pub use stats::Stats;
pub use transfer::assembly::{Assembly, AssemblyOutput};
pub use transfer::download::{RangeRead, RangeSink, Space};
pub use transfer::part_size::{Capacity, PartPlan, share_of_budget};
pub use transfer::payload::Payload;
pub use transfer::segment::Segment;
pub use transfer::upload::{Upload, UploadOptions, UploadOutput};
