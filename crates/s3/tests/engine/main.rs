//! The engine on real sockets: against the embedded server, and against a responder that misbehaves on purpose.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]
#![expect(clippy::disallowed_methods, reason = "tests wait for real sockets")]

mod causes;
#[cfg(feature = "credential-chain")]
mod chain;
mod express;
mod faults;
mod secrets;
mod server;
mod stores;
mod support;
mod tls;
mod wire;
