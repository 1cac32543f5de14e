//! `_native.Save`: one save, for Python.

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use s3dcp_checkpoint::{ConditionalCommit, Location, SaveOptions};
use s3dcp_entry::entry;
use s3dcp_s3::{Error, ErrorKind};

use crate::base::Base;
use crate::client::Client;
use crate::errors::to_python;
use crate::index::Index;
use crate::runtime::{OfProcess, wait};
use crate::shard_writer::ShardWriter;

/// One rank's part of a save: see `s3dcp_checkpoint::Save`. A context manager that leaves no upload behind that reads the
/// caller's memory, whatever unwinds.
#[pyclass(module = "s3dcp._native")]
pub(crate) struct Save {
    live: OfProcess<s3dcp_checkpoint::Save>,
    writers: Vec<Py<ShardWriter>>,
}

impl Save {
    fn live(&mut self, py: Python<'_>) -> PyResult<&mut s3dcp_checkpoint::Save> {
        self.live.get_mut().ok_or_else(|| over(py))
    }

    /// The writers that no thread is using: one in use belongs to a thread that is still saving.
    fn idle_writers<'py>(&self, py: Python<'py>) -> Vec<PyRefMut<'py, ShardWriter>> {
        self.writers.iter().filter_map(|writer| writer.bind(py).try_borrow_mut().ok()).collect()
    }
}

#[entry]
#[pymethods]
impl Save {
    /// `epoch`: as it stands in keys. `folder`: of its index, where that is not `epoch_<n>`. `rank`: of the index that this
    /// rank keeps for itself; None for the one of all ranks.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "each is a part of where the save goes")]
    fn new(
        py: Python<'_>,
        client: &Client,
        bucket: String,
        path_key: String,
        epoch: Option<String>,
        folder: Option<String>,
        rank: Option<u64>,
        save_id: &str,
    ) -> PyResult<Self> {
        let location = Location { bucket, path_key, epoch, folder, rank };
        let save = s3dcp_checkpoint::Save::join_as(&client.engine(py)?, location, save_id);
        let save = save.map_err(|error| to_python(py, &error))?;
        Ok(Self { live: OfProcess::new(save), writers: Vec::new() })
    }

    /// Look at the path, for this rank will commit the save: whether there is an index that it will replace.
    fn prepare(&mut self, py: Python<'_>, overwrite: bool, conditional_commit: &str) -> PyResult<bool> {
        let mut options = SaveOptions::default();
        options.overwrite = overwrite;
        options.conditional_commit = match conditional_commit {
            "require" => ConditionalCommit::Require,
            "off" => ConditionalCommit::Off,
            _ => ConditionalCommit::Warn,
        };
        let save = self.live(py)?;
        wait(py, async {
            let observed = save.prepare(options).await?;
            Ok(observed.index.is_some())
        })
    }

    /// Read what this rank, which will commit, and the others need not send again. From now on nobody deletes the files with it.
    fn rely_on_base(&mut self, py: Python<'_>) -> PyResult<Base> {
        let save = self.live(py)?;
        Ok(Base { inner: wait(py, save.rely_on_base())? })
    }

    /// Writes per second that the last save to the path found S3 to take, by the index that `prepare` saw; None where it noted none.
    #[getter]
    fn writes_per_second(&mut self, py: Python<'_>) -> PyResult<Option<f64>> {
        Ok(self.live(py)?.observed().and_then(s3dcp_checkpoint::Observed::writes_per_second))
    }

    /// Divide S3's budget of writes between the ranks that save at once, and the shard files of each.
    fn divide_budget(&mut self, py: Python<'_>, ranks: u64, files: u64) -> PyResult<()> {
        self.live(py)?.divide_budget(ranks, files);
        Ok(())
    }

    /// A new shard file, of about `size_hint` bytes (0: not known), whose items are hashed or not.
    #[pyo3(signature = (prefix, number, size_hint, hashes=false))]
    fn shard(
        &mut self,
        py: Python<'_>,
        prefix: &str,
        number: u32,
        size_hint: u64,
        hashes: bool,
    ) -> PyResult<Py<ShardWriter>> {
        let shard = self.live(py)?.shard(prefix, number, (size_hint > 0).then_some(size_hint));
        let mut shard = shard.map_err(|error| to_python(py, &error))?;
        if hashes {
            shard.hash_items();
        }
        let writer = Py::new(py, ShardWriter::new(shard))?;
        self.writers.push(writer.clone_ref(py));
        Ok(writer)
    }

    /// Make the save visible; what the user should be warned of. It is over then, however that ends.
    fn commit(&mut self, py: Python<'_>, index: &Index) -> PyResult<Vec<String>> {
        let save = self.live.take().ok_or_else(|| over(py))?;
        Ok(wait(py, save.commit(&index.inner))?.warnings)
    }

    /// Give the save up before its commit: abort its uploads, delete its files and those of `relative_paths`; the keys of
    /// files that may stay. Does nothing when it is over, or in a forked child.
    fn discard(&mut self, py: Python<'_>, relative_paths: Vec<String>) -> PyResult<Vec<String>> {
        let Some(save) = self.live.take() else { return Ok(Vec::new()) };
        let mut writers = self.idle_writers(py);
        let shards: Vec<_> = writers.iter_mut().filter_map(|writer| writer.inner()).collect();
        let relative_paths = relative_paths.iter().map(String::as_str);
        wait(py, async { Ok(save.discard(shards, relative_paths).await) })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Give up in the background what is not complete. Does nothing in a forked child.
    #[pyo3(signature = (*_raised))]
    fn __exit__(&mut self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) {
        let mut writers = self.idle_writers(py);
        for writer in &mut writers {
            writer.give_up();
        }
        for writer in &mut writers {
            let writer: &mut ShardWriter = writer;
            py.detach(|| writer.let_go());
        }
        drop(writers);
        self.writers.clear();
    }
}

fn over(py: Python<'_>) -> PyErr {
    let message =
        "this save was committed or discarded, or begun before a fork and goes on in the parent process";
    to_python(py, &Error::new(ErrorKind::Interrupted, message))
}

/// The number of the file for each item of so many bytes; see `s3dcp_checkpoint::spread`.
#[entry]
#[pyfunction]
fn spread(sizes: Vec<u64>, files: usize) -> Vec<usize> {
    s3dcp_checkpoint::spread(&sizes, files)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Save>()?;
    module.add_function(wrap_pyfunction!(spread, module)?)
}
