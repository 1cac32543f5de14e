//! Tools around checkpoints, for `s3dcp.catalogue`: records cross as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use s3dcp_checkpoint::{
    Best, CopyOptions, DType, ExportFormat, ExportOptions, FileNames, ImportOptions, KeepRules,
    MAX_NOTES_BYTES, NameFilter, OpenCheckpoint, Renaming, Storage, VerifyOptions, choose, open_checkpoint,
    plan_copy, plan_export, plan_import,
};
use s3dcp_entry::entry;
use serde::Serialize;

use crate::client::Client;
use crate::errors::to_python;
use crate::progress::wait_telling;
use crate::runtime::{wait, wait_for};

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

/// What a checkpoint holds, of these names, as JSON; with what its values come to, where `statistics` says so: see
/// `s3dcp_checkpoint::inspect`.
#[entry]
#[pyfunction]
#[pyo3(signature = (client, uri, names, statistics, progress=None))]
fn inspect(
    py: Python<'_>,
    client: &Client,
    uri: &str,
    names: Vec<String>,
    statistics: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let names = name_filter(py, &names)?;
    let checkpoint = Arc::new(open(py, client, uri)?);
    let mut found = s3dcp_checkpoint::inspect(&checkpoint, &names).map_err(|error| to_python(py, &error))?;
    if statistics {
        let total = found.tensors.iter().map(|tensor| tensor.bytes).fold(0, u64::saturating_add);
        wait_telling(py, progress.as_ref(), |told| {
            told.expect(total);
            s3dcp_checkpoint::read_statistics(&checkpoint, &mut found, move |bytes| told.add(bytes))
        })?;
    }
    json(&found)
}

/// What is wrong with a checkpoint, as JSON: see `s3dcp_checkpoint::verify`.
#[entry]
#[pyfunction]
#[pyo3(signature = (client, uri, quick, resume, progress=None))]
fn verify(
    py: Python<'_>,
    client: &Client,
    uri: &str,
    quick: bool,
    resume: Option<PathBuf>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let checkpoint = open(py, client, uri)?;
    let mut options = VerifyOptions::default();
    (options.quick, options.resume) = (quick, resume);
    json(&wait_telling(py, progress.as_ref(), |told| {
        s3dcp_checkpoint::verify(&checkpoint, &options, move |bytes, total| {
            told.expect(total);
            told.add(bytes);
        })
    })?)
}

/// How two checkpoints differ, as JSON: see `s3dcp_checkpoint::diff`.
#[entry]
#[pyfunction]
#[pyo3(signature = (first, second, progress=None))]
fn diff(
    py: Python<'_>,
    first: Place<'_>,
    second: Place<'_>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let first = open(py, &first.0, &first.1)?;
    let second = open(py, &second.0, &second.1)?;
    json(&wait_telling(py, progress.as_ref(), |told| {
        s3dcp_checkpoint::diff(first, second, move |bytes, total| {
            told.expect(total);
            told.add(bytes);
        })
    })?)
}

/// Copies a checkpoint, and tells of it as JSON: see `s3dcp_checkpoint::plan_copy`. `spread` is as for `FileNames::spread`.
#[entry]
#[pyfunction]
#[pyo3(signature = (source, target, select, flatten, spread, overwrite, progress=None))]
#[expect(clippy::too_many_arguments, reason = "one for each option")]
fn copy(
    py: Python<'_>,
    source: Place<'_>,
    target: Place<'_>,
    select: Vec<String>,
    flatten: bool,
    spread: Option<&str>,
    overwrite: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let mut options = CopyOptions::default();
    options.selection = name_filter(py, &select)?;
    options.names = match spread {
        Some(strategy) => FileNames::spread(strategy).map_err(|error| to_python(py, &error))?,
        None if flatten => FileNames::Flatten,
        None => FileNames::Keep,
    };
    options.overwrite = overwrite;
    let ((source, from), (target, to)) = both(py, &source, &target)?;
    json(&wait_telling(py, progress.as_ref(), |told| async {
        let told = told;
        let plan = plan_copy(&source, &from, &target, &to, &options).await?;
        told.expect(plan.bytes());
        plan.run(&|bytes| told.add(bytes)).await
    })?)
}

/// Writes the tensors of a checkpoint as a model, and tells of it as JSON: see `s3dcp_checkpoint::plan_export`. `format` is
/// `safetensors` or `torch`.
#[entry]
#[pyfunction]
#[pyo3(signature = (source, target, format, select, names, strip_prefixes, dtype, max_shard_size, overwrite, progress=None))]
#[expect(clippy::too_many_arguments, reason = "one for each option")]
fn export(
    py: Python<'_>,
    source: Place<'_>,
    target: Place<'_>,
    format: &str,
    select: Vec<String>,
    names: BTreeMap<String, String>,
    strip_prefixes: Vec<String>,
    dtype: Option<&str>,
    max_shard_size: Option<u64>,
    overwrite: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let mut options = ExportOptions::default();
    if format == "torch" {
        options.format = ExportFormat::Torch;
    }
    options.selection = name_filter(py, &select)?;
    options.renaming = renaming(names, strip_prefixes);
    options.dtype = dtype.and_then(DType::from_torch_name);
    options.max_file_bytes = max_shard_size.unwrap_or(options.max_file_bytes);
    options.overwrite = overwrite;
    let ((source, from), (target, to)) = both(py, &source, &target)?;
    json(&wait_telling(py, progress.as_ref(), |told| async {
        let told = told;
        let plan = plan_export(&source, &from, &target, &to, &options).await?;
        told.expect(plan.bytes());
        plan.run(&|bytes| told.add(bytes)).await
    })?)
}

/// Makes a checkpoint of a model, and tells of it as JSON: see `s3dcp_checkpoint::plan_import`.
#[entry]
#[pyfunction]
#[pyo3(signature = (source, target, select, names, strip_prefixes, overwrite, progress=None))]
#[expect(clippy::too_many_arguments, reason = "one for each option")]
fn import_model(
    py: Python<'_>,
    source: Place<'_>,
    target: Place<'_>,
    select: Vec<String>,
    names: BTreeMap<String, String>,
    strip_prefixes: Vec<String>,
    overwrite: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let mut options = ImportOptions::default();
    options.selection = name_filter(py, &select)?;
    options.renaming = renaming(names, strip_prefixes);
    options.overwrite = overwrite;
    let ((source, from), (target, to)) = both(py, &source, &target)?;
    json(&wait_telling(py, progress.as_ref(), |told| async {
        let told = told;
        let plan = plan_import(&source, &from, &target, &to, &options).await?;
        told.expect(plan.bytes());
        plan.run(&|bytes| told.add(bytes)).await
    })?)
}

/// A client, and a URI or a local path.
type Place<'py> = (PyRef<'py, Client>, String);

fn both(
    py: Python<'_>,
    source: &Place<'_>,
    target: &Place<'_>,
) -> PyResult<((Storage, String), (Storage, String))> {
    Ok((storage(py, &source.0, &source.1)?, storage(py, &target.0, &target.1)?))
}

fn name_filter(py: Python<'_>, names: &[String]) -> PyResult<NameFilter> {
    NameFilter::new(names).map_err(|error| to_python(py, &error))
}

fn renaming(names: BTreeMap<String, String>, strip_prefixes: Vec<String>) -> Renaming {
    let mut renaming = Renaming::default();
    (renaming.map, renaming.strip_prefixes) = (names, strip_prefixes);
    renaming
}

fn open(py: Python<'_>, client: &Client, uri: &str) -> PyResult<OpenCheckpoint> {
    let (storage, path_key) = storage(py, client, uri)?;
    wait_for(py, || open_checkpoint(&storage, &path_key), |_| Ok(()))
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
    module.add_function(wrap_pyfunction!(keep, module)?)?;
    module.add_function(wrap_pyfunction!(inspect, module)?)?;
    module.add_function(wrap_pyfunction!(verify, module)?)?;
    module.add_function(wrap_pyfunction!(diff, module)?)?;
    module.add_function(wrap_pyfunction!(copy, module)?)?;
    module.add_function(wrap_pyfunction!(export, module)?)?;
    module.add_function(wrap_pyfunction!(import_model, module)?)
}
