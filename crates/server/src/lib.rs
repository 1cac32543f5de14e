//! An embedded S3 endpoint for development and tests.
//!
//! [`Server::start`] binds a port, [`Server::endpoint_url`] says where, and any S3 client can talk to it: signatures are
//! verified, checksums are verified, conditions hold under concurrency, errors are S3's own. Objects live in memory
//! or in a directory ([`Storage`]).
//!
//! The HTTP and XML of S3 come from the crate `s3s`; this crate is what stands behind it: one index of buckets, objects
//! and uploads (`store`) over one of two back-ends (`backend`). It shares no code with this project's own S3 client,
//! so that a mistake in one shows in the other.
//!
//! A model of S3's partitions can stand in front ([`Partitions`]), with its `503 SlowDown`, splits and a page that shows them.
//!
//! What can go wrong between a client and S3 can be made to go wrong here ([`Fault`]), over HTTPS as well.
//!
//! A bucket whose name is that of a directory bucket (`<name>--<zone id>--x-s3`, S3 Express One Zone) is one, with sessions,
//! listings in no order, and without what those do not have.
//!
//! It is a development endpoint: one pair of keys, no versions, no policies, no browser forms, no `fsync`.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use s3dcp_server::{Server, ServerConfig};
//!
//! let mut config = ServerConfig::default();
//! config.buckets = vec!["checkpoints".to_owned()];
//! let server = Server::start(config).await?;
//! assert!(server.endpoint_url().starts_with("http://127.0.0.1:"));
//! server.stop().await;
//! # Ok::<(), std::io::Error>(())
//! # }).unwrap();
//! ```

mod access;
mod backend;
mod checksum;
mod conditions;
mod config;
#[cfg(test)]
mod conformance;
mod connection;
mod directory;
mod disk;
mod express_signature;
mod failure;
mod faults;
mod host;
mod http_service;
mod ids;
mod list;
mod memory;
mod metrics;
mod multipart;
mod object;
mod partitions;
mod query;
mod receive;
mod send;
mod server;
mod service;
mod sessions;
mod signature;
mod stats;
mod store;
mod tls;
mod upload;

pub use config::{ServerConfig, Storage};
pub use faults::{Fault, InvalidFault};
pub use partitions::Partitions;
pub use s3dcp_partition::{Limits, PartitionView};
pub use server::Server;
pub use stats::ServerStats;
