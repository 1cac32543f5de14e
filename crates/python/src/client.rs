//! `_native.Client`: the engine, for Python.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use s3dcp_checkpoint::{
    MAX_INDEX_BYTES, MOST_IN_FLIGHT, NodeFolder, ShardName, Storage, nearby_checkpoints, remove,
};
use s3dcp_entry::entry;
use s3dcp_s3::{ClientConfig, CopySource, UploadOptions, WhenLate};

use crate::errors::{about, to_python};
use crate::index::StoredIndex;
use crate::load::{Download, Found, Load, read_ranges};
use crate::plan_items::chunks_hold;
use crate::runtime::{OfProcess, wait};
use crate::settings::Settings;
use crate::shard_writer::{ItemRecord, ShardWriter};
use crate::shared_index::{get_index, get_shared_index};
use crate::stored_item::{BlockParts, ItemPart, StoredItem, StoredStorage};

/// Size, ETag and age of an object.
#[pyclass(frozen, get_all, module = "s3dcp._native")]
pub(crate) struct ObjectInfo {
    key: String,
    /// Bytes.
    size: u64,
    etag: Option<String>,
    /// Seconds since 1970, UTC.
    last_modified: Option<f64>,
}

impl From<s3dcp_s3::ObjectInfo> for ObjectInfo {
    fn from(info: s3dcp_s3::ObjectInfo) -> Self {
        let last_modified = info.last_modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            key: info.key,
            size: info.size,
            etag: info.etag,
            last_modified: last_modified.map(|age| age.as_secs_f64()),
        }
    }
}

/// Counters of a client since it was made.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Stats {
    #[pyo3(get)]
    requests: u64,
    #[pyo3(get)]
    retries: u64,
    #[pyo3(get)]
    hedged: u64,
    #[pyo3(get)]
    throttled: u64,
    #[pyo3(get)]
    bytes_sent: u64,
    #[pyo3(get)]
    bytes_received: u64,
    inner: s3dcp_s3::Stats,
}

impl From<s3dcp_s3::Stats> for Stats {
    fn from(inner: s3dcp_s3::Stats) -> Self {
        Self {
            requests: inner.requests,
            retries: inner.retries,
            hedged: inner.hedged,
            throttled: inner.throttled,
            bytes_sent: inner.bytes_sent,
            bytes_received: inner.bytes_received,
            inner,
        }
    }
}

#[entry]
#[pymethods]
impl Stats {
    /// What the client did since `before`, an earlier snapshot of it.
    fn since(&self, before: &Stats) -> Stats {
        self.inner.since(&before.inner).into()
    }

    /// Seconds that this part of the answers, from 0 to 1, did not take longer to begin; None where there was none.
    fn latency(&self, part: f64) -> Option<f64> {
        self.inner.latencies.quantile(part).map(|time| time.as_secs_f64())
    }
}

/// A client's part in a pace that the clients of a job agree on: see `s3dcp_pacing::Share`.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct PaceShare {
    inner: Mutex<s3dcp_s3::PaceShare>,
    /// Seconds between two exchanges.
    #[pyo3(get)]
    period: f64,
}

impl PaceShare {
    fn locked(&self) -> MutexGuard<'_, s3dcp_s3::PaceShare> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[entry]
#[pymethods]
impl PaceShare {
    /// What to add to the counter that all share; None while S3 has not asked this client for fewer requests.
    fn change(&self) -> Option<i64> {
        self.locked().change()
    }

    /// Take over the pace that the counter stands for, which is at this now.
    fn agree(&self, counter: i64) {
        self.locked().agree(counter);
    }

    /// Requests per second that all clients have found together; None while nothing is held back.
    fn found(&self) -> Option<f64> {
        self.locked().found()
    }

    /// What to add to the counter at the end; None when nothing was added before.
    fn leave(&self) -> Option<i64> {
        self.locked().leave()
    }

    /// What to add after that, if nobody is left; the counter is at this then.
    #[staticmethod]
    fn remainder(counter: i64) -> Option<i64> {
        s3dcp_s3::PaceShare::remainder(counter)
    }
}

/// An S3 client; connections are made at first use, and anew in a forked child.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct Client {
    config: ClientConfig,
    live: Mutex<OfProcess<s3dcp_s3::Client>>,
}

impl Client {
    pub(crate) fn engine(&self, py: Python<'_>) -> PyResult<s3dcp_s3::Client> {
        let mut live = self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(engine) = live.get() {
            return Ok(engine.clone());
        }
        let engine = s3dcp_s3::Client::new(self.config.clone()).map_err(|error| to_python(py, &error))?;
        *live = OfProcess::new(engine.clone());
        Ok(engine)
    }
}

#[entry]
#[pymethods]
impl Client {
    /// `settings`: an `S3ClientConfig`, whose `endpoint_url` the caller has settled already.
    #[new]
    fn new(
        py: Python<'_>,
        region: Option<String>,
        endpoint_url: Option<String>,
        settings: Settings,
    ) -> PyResult<Self> {
        let config = settings.config(region, endpoint_url);
        let engine = s3dcp_s3::Client::new(config.clone()).map_err(|error| to_python(py, &error))?;
        Ok(Self { config, live: Mutex::new(OfProcess::new(engine)) })
    }

    /// The bytes of an index, or of another object that is no longer than an index may be, and its ETag.
    fn get_object<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        key: &str,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<String>)> {
        let engine = self.engine(py)?;
        let output = wait(py, engine.get_object_within(bucket, key, MAX_INDEX_BYTES))?;
        Ok((PyBytes::new(py, &output.body), output.info.etag))
    }

    /// An index; with a folder in memory, one process of those that name it fetches a large one for all.
    #[pyo3(signature = (bucket, key, folder=None))]
    fn get_index(
        &self,
        py: Python<'_>,
        bucket: &str,
        key: &str,
        folder: Option<PathBuf>,
    ) -> PyResult<StoredIndex> {
        let engine = self.engine(py)?;
        match folder.map(NodeFolder::new) {
            None => wait(py, get_index(&engine, bucket, key)),
            Some(folder) => wait(py, get_shared_index(&engine, bucket, key, &folder)),
        }
    }

    fn head_object(&self, py: Python<'_>, bucket: &str, key: &str) -> PyResult<ObjectInfo> {
        let engine = self.engine(py)?;
        Ok(wait(py, engine.head_object(bucket, key))?.into())
    }

    fn list_objects(&self, py: Python<'_>, bucket: &str, prefix: &str) -> PyResult<Vec<ObjectInfo>> {
        let engine = self.engine(py)?;
        let listing = wait(py, engine.list_objects(bucket, prefix, None))?;
        Ok(listing.objects.into_iter().map(ObjectInfo::from).collect())
    }

    /// The first `limit` objects and common prefixes below a folder, whose key ends with `/` or is empty.
    fn list_folder(
        &self,
        py: Python<'_>,
        bucket: &str,
        folder: &str,
        limit: usize,
    ) -> PyResult<(Vec<ObjectInfo>, Vec<String>)> {
        let engine = self.engine(py)?;
        let listing = wait(py, engine.list_first(bucket, folder, Some("/"), limit))?;
        Ok((listing.objects.into_iter().map(ObjectInfo::from).collect(), listing.common_prefixes))
    }

    /// A sentence on the checkpoints below and above a path that holds none; empty where none is found. See
    /// `s3dcp_checkpoint::nearby_checkpoints`.
    fn nearby_checkpoints(&self, py: Python<'_>, bucket: &str, path_key: &str) -> PyResult<String> {
        let engine = self.engine(py)?;
        wait(py, async {
            Ok(nearby_checkpoints(&Storage::bucket(&engine, bucket), path_key).await.to_string())
        })
    }

    fn copy_object(&self, py: Python<'_>, bucket: &str, source_key: &str, key: &str) -> PyResult<()> {
        let engine = self.engine(py)?;
        let source = CopySource { bucket: bucket.to_owned(), key: source_key.to_owned(), etag: None };
        wait(py, engine.copy_object(&source, bucket, key))
    }

    /// Delete all `keys`; raises for the first that could not be deleted.
    fn delete_objects(&self, py: Python<'_>, bucket: &str, keys: Vec<String>) -> PyResult<()> {
        let engine = self.engine(py)?;
        let failures = wait(py, engine.delete_objects(bucket, &keys, WhenLate::Wait))?;
        match failures.into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(to_python(py, &failure.into_error(bucket))),
        }
    }

    /// Delete all objects below a path, the indexes first; the keys that stay because an index elsewhere names them. See
    /// `s3dcp_checkpoint::remove`.
    fn remove(&self, py: Python<'_>, bucket: &str, path_key: &str) -> PyResult<Vec<String>> {
        let engine = self.engine(py)?;
        Ok(wait(py, remove(&Storage::bucket(&engine, bucket), path_key))?.kept)
    }

    /// The bytes of each (key, start, end), all fetched at once.
    fn read_ranges<'py>(
        &self,
        py: Python<'py>,
        bucket: &str,
        ranges: Vec<(String, u64, u64)>,
    ) -> PyResult<Vec<Bound<'py, PyByteArray>>> {
        read_ranges(py, &self.engine(py)?, bucket, ranges)
    }

    /// A load by so many ranks from `bucket`, of the index in the folder `path_key`, to be used in a `with` block.
    #[pyo3(signature = (bucket, path_key, verify, ranks=1))]
    fn load(&self, py: Python<'_>, bucket: &str, path_key: &str, verify: bool, ranks: u64) -> PyResult<Load> {
        Ok(Load::new(&self.engine(py)?, bucket, path_key, verify, ranks))
    }

    /// A writer of one object that belongs to no save; of `copies`, which fill memory until S3 has them, few are on their way.
    #[pyo3(signature = (bucket, key, copies=false))]
    fn object_writer(
        &self,
        py: Python<'_>,
        bucket: &str,
        key: String,
        copies: bool,
    ) -> PyResult<ShardWriter> {
        let name = ShardName { relative_path: key.clone(), key };
        let mut options = UploadOptions::default();
        options.max_in_flight_bytes = copies.then_some(MOST_IN_FLIGHT);
        let shard = s3dcp_checkpoint::ShardWriter::new(&self.engine(py)?, bucket, name, options);
        Ok(ShardWriter::new(shard))
    }

    /// This client's part in the pace of a job of so many clients, from now on; `found`, in requests per second, is what all of them
    /// found before.
    #[pyo3(signature = (write, bucket, path_key, clients, found=None))]
    fn share_pace(
        &self,
        py: Python<'_>,
        write: bool,
        bucket: &str,
        path_key: &str,
        clients: u32,
        found: Option<f64>,
    ) -> PyResult<PaceShare> {
        let inner = Mutex::new(self.engine(py)?.share_pace(write, bucket, path_key, clients, found));
        Ok(PaceShare { inner, period: s3dcp_s3::PaceShare::period(clients).as_secs_f64() })
    }

    /// What the client goes by: name, value and where it stands. With a bucket, also what that comes to for it.
    #[pyo3(signature = (bucket=None))]
    fn settings(
        &self,
        py: Python<'_>,
        bucket: Option<&str>,
    ) -> PyResult<Vec<(&'static str, String, String)>> {
        let engine = self.engine(py)?;
        let found = wait(py, engine.settings(bucket))?;
        Ok(found.into_iter().map(|setting| (setting.name, setting.value, setting.source)).collect())
    }

    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        Ok(self.engine(py)?.stats().into())
    }
}

/// Bucket and key of an `s3://` URI; `argument` is named in the error.
#[entry]
#[pyfunction]
fn parse_s3_uri(py: Python<'_>, uri: &str, argument: &str) -> PyResult<(String, String)> {
    s3dcp_s3::parse_s3_uri(uri).map_err(|error| to_python(py, &about(argument, error)))
}

/// The key of `name` in a folder, which is any path's key; see `s3dcp_s3::join_key`.
#[entry]
#[pyfunction]
fn join_key(folder: &str, name: &str) -> String {
    s3dcp_s3::join_key(folder, name)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Client>()?;
    module.add_class::<ItemRecord>()?;
    module.add_class::<BlockParts>()?;
    module.add_class::<Download>()?;
    module.add_class::<Found>()?;
    module.add_class::<ItemPart>()?;
    module.add_class::<Load>()?;
    module.add_class::<StoredItem>()?;
    module.add_class::<StoredStorage>()?;
    module.add_class::<ObjectInfo>()?;
    module.add_class::<PaceShare>()?;
    module.add_class::<ShardWriter>()?;
    module.add_class::<Stats>()?;
    module.add_class::<crate::staging::StagingBuffer>()?;
    module.add_class::<crate::staging::StagingPool>()?;
    module.add_function(wrap_pyfunction!(chunks_hold, module)?)?;
    module.add_function(wrap_pyfunction!(join_key, module)?)?;
    module.add_function(wrap_pyfunction!(parse_s3_uri, module)?)
}
