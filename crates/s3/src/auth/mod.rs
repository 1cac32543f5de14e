//! Who asks: credentials and signatures.

#[cfg(feature = "credential-chain")]
pub(crate) mod chain;
pub(crate) mod credentials;
pub(crate) mod express_sessions;
#[cfg(feature = "credential-chain")]
pub(crate) mod http;
pub(crate) mod provider;
pub(crate) mod session;
pub(crate) mod sign;
