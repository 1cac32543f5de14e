//! What lies below a path, for `s3dcp.catalogue`: records cross as JSON.

use std::time::Duration;

use pyo3::prelude::*;
use s3dcp_checkpoint::{Best, KeepRules, MAX_NOTES_BYTES, Storage, choose};
use s3dcp_entry::entry;
use serde::Serialize;

use crate::client::Client;
use crate::errors::to_python;
use crate::runtime::wait;

/// The checkpoints below a path of S3 or of the local file system, as JSON: see `s3dcp_checkpoint::list_checkpoints`.
#[entry]
#[pyfunction]
fn list_checkpoints(py: Python<'_>, client: &Client, uri: &str) -> PyResult<String> {
    let (storage, path_key) = storage(py, client, uri)?;
    json(&wait(py, s3dcp_checkpoint::list_checkpoints(&storage, &path_key))?)
}

/// Which of the checkpoints of a path stay by these rules, and what became of the others where they are to be deleted, both
/// as JSON: see `s3dcp_checkpoint::choose`. `best` has metrics, whether the largest is the best, and how many.
#[entry]
#[pyfunction]
#[pyo3(signature = (client, uri, last, every, best, younger_seconds, names, delete))]
#[expect(clippy::too_many_arguments, reason = "one for each rule")]
fn keep(
    py: Python<'_>,
    client: &Client,
    uri: &str,
    last: Option<usize>,
    every: Option<u64>,
    best: Vec<(String, bool, usize)>,
    younger_seconds: Option<f64>,
    names: Vec<String>,
    delete: bool,
) -> PyResult<(String, Option<String>)> {
    let (storage, path_key) = storage(py, client, uri)?;
    let mut rules = KeepRules::default();
    rules.last = last;
    rules.every = every;
    rules.best = best.into_iter().map(|(metric, largest, count)| Best { metric, largest, count }).collect();
    rules.younger = younger_seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
    rules.names = names;
    let found = wait(py, s3dcp_checkpoint::list_checkpoints(&storage, &path_key))?;
    let choice = choose(found, &rules).map_err(|error| to_python(py, &error))?;
    let chosen = json(&choice)?;
    let deleted = if delete { Some(json(&wait(py, choice.delete(&storage))?)?) } else { None };
    Ok((chosen, deleted))
}

fn storage(py: Python<'_>, client: &Client, uri: &str) -> PyResult<(Storage, String)> {
    let client = || client.engine(py).map_err(OfClient::Python);
    Storage::parse(uri, client).map_err(|error| match error {
        OfClient::Python(error) => error,
        OfClient::Engine(error) => to_python(py, &error),
    })
}

/// Why there is no storage.
enum OfClient {
    Python(PyErr),
    Engine(s3dcp_s3::Error),
}

impl From<s3dcp_s3::Error> for OfClient {
    fn from(error: s3dcp_s3::Error) -> OfClient {
        OfClient::Engine(error)
    }
}

fn json(value: &impl Serialize) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| pyo3::exceptions::PyValueError::new_err(error.to_string()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_NOTES_BYTES", MAX_NOTES_BYTES)?;
    module.add_function(wrap_pyfunction!(list_checkpoints, module)?)?;
    module.add_function(wrap_pyfunction!(keep, module)?)
}
