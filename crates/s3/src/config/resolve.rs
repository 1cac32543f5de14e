//! Who looks up names, where it is not the system.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;

/// Looks up the addresses of a name.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// The addresses of this host, at least one.
    ///
    /// # Errors
    /// Whatever goes wrong with the look-up; the request fails with it and is sent again.
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}
