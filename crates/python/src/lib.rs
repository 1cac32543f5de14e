//! `s3dcp._native`: the Python face of the Rust crates.

use pyo3::prelude::*;

#[pymodule]
mod _native {}
