//! `s3dcp._native`: the Python face of the Rust crates.
//!
//! Each submodule registers its own functions and classes; nothing here holds logic of its own.

mod prefix;
mod server;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    prefix::register(module)?;
    server::register(module)?;
    Ok(())
}
