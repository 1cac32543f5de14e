//! One request and its response on a connection: no retries, no S3.

pub(crate) mod addresses;
pub(crate) mod body;
pub(crate) mod connection_pool;
pub(crate) mod idle_streams;
pub(crate) mod limits;
pub(crate) mod progress;
pub(crate) mod proxy;
pub(crate) mod resolver;
pub(crate) mod transport;
pub(crate) mod trust;
