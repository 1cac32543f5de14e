//! `_native.WriterLease`: one writer at a time on a path, for Python.

use std::time::Duration;

use pyo3::prelude::*;
use s3dcp_entry::entry;

use crate::client::Client;
use crate::runtime::{OfProcess, wait};

/// A path that this process alone writes to: see `s3dcp_checkpoint::WriterLease`. In a forked child it is nothing.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct WriterLease {
    live: OfProcess<s3dcp_checkpoint::WriterLease>,
}

#[entry]
#[pymethods]
impl WriterLease {
    /// `beat_seconds`: time between two signs of life.
    #[new]
    #[pyo3(signature = (client, bucket, path_key, who, beat_seconds=s3dcp_checkpoint::LEASE_BEAT.as_secs_f64()))]
    fn new(
        py: Python<'_>,
        client: &Client,
        bucket: &str,
        path_key: &str,
        who: &str,
        beat_seconds: f64,
    ) -> PyResult<Self> {
        let beat = Duration::try_from_secs_f64(beat_seconds).unwrap_or(s3dcp_checkpoint::LEASE_BEAT);
        let engine = client.engine(py)?;
        let lease = wait(py, s3dcp_checkpoint::WriterLease::acquire(&engine, bucket, path_key, who, beat))?;
        Ok(Self { live: OfProcess::new(lease) })
    }

    /// See that the path is still this process's.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        match self.live.get() {
            Some(lease) => wait(py, lease.check()),
            None => Ok(()),
        }
    }

    /// Give the path up; once is enough.
    fn release(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.live.take() {
            Some(lease) => wait(py, lease.release()),
            None => Ok(()),
        }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("LEASE_BEAT_SECONDS", s3dcp_checkpoint::LEASE_BEAT.as_secs_f64())?;
    module.add_class::<WriterLease>()
}
