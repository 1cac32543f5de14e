//! `_native.Layout`: the names of a checkpoint's objects, for Python.

use pyo3::prelude::*;
use pyo3::types::PyString;
use s3dcp_checkpoint::{StepFolder, StepFolders};
use s3dcp_entry::entry;

use crate::errors::to_python;

/// The names in a folder that holds a checkpoint; see `s3dcp_checkpoint::Layout`.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Layout {
    inner: s3dcp_checkpoint::Layout,
}

#[entry]
#[pymethods]
impl Layout {
    #[new]
    fn new(path_key: &str) -> Self {
        Self { inner: s3dcp_checkpoint::Layout::new(path_key) }
    }

    /// The key of the index: that of all ranks, or of one.
    fn index_key(&self, rank: Option<u64>) -> String {
        self.inner.index_key(rank)
    }

    /// Why shard files cannot have this prefix; None when they can.
    fn prefix_fault(&self, prefix: &Bound<'_, PyString>) -> Option<String> {
        match prefix.to_str() {
            Ok(prefix) => self.inner.prefix_fault(prefix),
            Err(_) => Some("is not valid Unicode".to_owned()),
        }
    }

    /// The key of a shard file that an index in this folder names.
    fn resolve(&self, py: Python<'_>, relative_path: &str) -> PyResult<String> {
        self.inner.resolve(relative_path).map_err(|error| to_python(py, &error))
    }
}

/// The path above, the name and the number of a path's last folder, where that is a step's by this template.
#[entry]
#[pyfunction]
fn step_folder(py: Python<'_>, template: &str, path_key: &str) -> PyResult<Option<(String, String, u64)>> {
    let found = StepFolders::new(template).and_then(|folders| folders.find(path_key));
    let found = found.map_err(|error| to_python(py, &error))?;
    Ok(found.map(|StepFolder { path_key, name, step }| (path_key, name, step)))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(step_folder, module)?)?;
    module.add_class::<Layout>()
}
