//! Who asks: credentials and signatures.

pub(crate) mod credentials;
pub(crate) mod session;
pub(crate) mod sign;
