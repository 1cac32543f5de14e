//! `s3dcp._native`: the Python face of the Rust crates.
//!
//! What Python sees is registered by the submodules below, each its own functions and classes and those that its methods
//! give; the other submodules are what these are made of. Nothing here holds logic of its own.

mod base;
mod catalogue;
mod client;
mod download;
mod errors;
mod gc;
mod index;
mod index_writer;
mod layout;
mod lease;
mod load;
mod memory;
mod panics;
mod plan_items;
mod pool;
mod prefix;
mod progress;
mod runtime;
mod save;
mod server;
mod settings;
mod shard_writer;
mod shared_index;
mod simulate;
mod staging;
mod stored_item;
mod sync;
mod uses;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    base::register(module)?;
    catalogue::register(module)?;
    client::register(module)?;
    memory::register(module)?;
    gc::register(module)?;
    index::register(module)?;
    layout::register(module)?;
    lease::register(module)?;
    prefix::register(module)?;
    simulate::register(module)?;
    save::register(module)?;
    server::register(module)?;
    panics::register(module)?;
    Ok(())
}
