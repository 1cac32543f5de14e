//! Python face of `s3dcp-server` and of the command.
//!
//! A [`Server`] runs on threads of its own, which never touch Python.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use s3dcp_entry::entry;
use s3dcp_server::{Fault, Limits, ServerConfig, Storage};
use tokio::runtime::Runtime;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Server>()?;
    module.add_class::<ServerStats>()?;
    module.add_class::<Partitions>()?;
    module.add_class::<PartitionView>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    Ok(())
}

/// What a server has done since it started.
#[pyclass(module = "s3dcp._native", frozen, get_all)]
#[derive(Debug, Clone)]
struct ServerStats {
    /// Requests with a valid signature, by operation.
    requests: BTreeMap<String, u64>,
    /// Responses by HTTP status.
    responses: BTreeMap<u16, u64>,
    /// Bytes of object data received.
    bytes_received: u64,
    /// Bytes of object data handed out.
    bytes_sent: u64,
}

#[entry]
#[pymethods]
impl ServerStats {
    fn __repr__(&self) -> String {
        let Self { requests, responses, bytes_received, bytes_sent } = self;
        format!(
            "ServerStats(requests={requests:?}, responses={responses:?}, bytes_received={bytes_received}, bytes_sent={bytes_sent})"
        )
    }
}

/// A model of S3's partitions for a server to put in front.
#[pyclass(module = "s3dcp._native", frozen, eq, get_all)]
#[derive(Debug, Clone, PartialEq)]
struct Partitions {
    /// Writes per second and partition.
    writes_per_second: f64,
    /// Reads per second and partition.
    reads_per_second: f64,
    /// Seconds that heat is averaged over.
    heat_window: f64,
    /// Seconds that a partition is hot before it splits.
    split_after: f64,
    /// Seconds that neighbours are cold before they merge.
    merge_after: f64,
    /// Where partitions begin from the start, as ``<bucket>/<key>``.
    first_keys: Vec<String>,
}

#[entry]
#[pymethods]
impl Partitions {
    #[new]
    #[pyo3(signature = (writes_per_second=None, reads_per_second=None, *, heat_window=None, split_after=None, merge_after=None, first_keys=Vec::new()))]
    fn new(
        writes_per_second: Option<f64>,
        reads_per_second: Option<f64>,
        heat_window: Option<f64>,
        split_after: Option<f64>,
        merge_after: Option<f64>,
        first_keys: Vec<String>,
    ) -> PyResult<Self> {
        let default = Limits::default();
        let made = Self {
            writes_per_second: writes_per_second.unwrap_or(default.writes_per_second),
            reads_per_second: reads_per_second.unwrap_or(default.reads_per_second),
            heat_window: heat_window.unwrap_or(default.heat_window.as_secs_f64()),
            split_after: split_after.unwrap_or(default.split_after.as_secs_f64()),
            merge_after: merge_after.unwrap_or(default.merge_after.as_secs_f64()),
            first_keys,
        };
        match made.limits()?.invalid() {
            Some(reason) => Err(PyValueError::new_err(reason)),
            None => Ok(made),
        }
    }

    fn __repr__(&self) -> String {
        let Self { writes_per_second, reads_per_second, heat_window, split_after, merge_after, first_keys } =
            self;
        format!(
            "Partitions({writes_per_second:?}, {reads_per_second:?}, heat_window={heat_window:?}, split_after={split_after:?}, merge_after={merge_after:?}, first_keys={first_keys:?})"
        )
    }
}

impl Partitions {
    fn to_server(&self) -> PyResult<s3dcp_server::Partitions> {
        let mut partitions = s3dcp_server::Partitions::default();
        partitions.limits = self.limits()?;
        partitions.first_keys.clone_from(&self.first_keys);
        Ok(partitions)
    }

    fn limits(&self) -> PyResult<Limits> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| PyValueError::new_err(format!("{name}={value}: must be a number of seconds")))
        };
        let mut limits = Limits::default();
        limits.writes_per_second = self.writes_per_second;
        limits.reads_per_second = self.reads_per_second;
        limits.heat_window = seconds("heat_window", self.heat_window)?;
        limits.split_after = seconds("split_after", self.split_after)?;
        limits.merge_after = seconds("merge_after", self.merge_after)?;
        Ok(limits)
    }
}

/// One partition, and what it is asked for.
#[pyclass(module = "s3dcp._native", frozen, get_all)]
#[derive(Debug, Clone)]
struct PartitionView {
    /// Its first key as ``<bucket>/<key>``; empty for the lowest.
    first_key: String,
    /// Where the next one begins; None for the highest.
    end_key: Option<String>,
    /// Writes asked for per second, lately.
    writes_per_second: f64,
    /// Reads, likewise.
    reads_per_second: f64,
    /// The larger share of the two budgets that is asked for.
    load: f64,
    /// Whether it is on its way to a split.
    hot: bool,
    /// Requests admitted since it came to be.
    admitted: u64,
    /// Requests refused since then.
    refused: u64,
}

#[entry]
#[pymethods]
impl PartitionView {
    fn __repr__(&self) -> String {
        format!(
            "<partition from {:?}: load {:.2}, admitted {}, refused {}>",
            self.first_key, self.load, self.admitted, self.refused
        )
    }
}

/// An S3 endpoint for development and tests, serving from the moment it is made.
#[pyclass(module = "s3dcp._native", frozen)]
struct Server {
    endpoint_url: String,
    access_key: String,
    secret_key: String,
    region: String,
    authority: Option<String>,
    /// None once it has been stopped.
    running: Mutex<Option<Running>>,
}

struct Running {
    /// Its threads live in the process that started it alone.
    process: u32,
    server: s3dcp_server::Server,
    runtime: Runtime,
}

impl Running {
    fn start(config: ServerConfig) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3dcp-server")
            .enable_all()
            .build()?;
        let server = runtime.block_on(s3dcp_server::Server::start(config))?;
        Ok(Self { process: std::process::id(), server, runtime })
    }

    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    fn stop(self) {
        if self.is_here() {
            self.runtime.block_on(self.server.stop());
        } else {
            // A forked child has none of the threads: ending the runtime would wait for them for ever.
            std::mem::forget(self);
        }
    }
}

impl Server {
    fn with_server<T>(&self, use_it: impl FnOnce(&s3dcp_server::Server) -> T) -> PyResult<T> {
        match &*self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Err(PyRuntimeError::new_err("the server has been stopped")),
            Some(running) if !running.is_here() => Err(forked()),
            Some(running) => Ok(use_it(&running.server)),
        }
    }
}

#[entry]
#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (data=None, buckets=Vec::new(), *, access_key=None, secret_key=None, address=None, region=None, domain=None, md5_etags=false, session_lifetime=None, tls=false, partitions=None, faults=Vec::new(), fault_seed=0))]
    #[expect(clippy::too_many_arguments, reason = "they are keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        data: Option<PathBuf>,
        buckets: Vec<String>,
        access_key: Option<String>,
        secret_key: Option<String>,
        address: Option<&str>,
        region: Option<String>,
        domain: Option<String>,
        md5_etags: bool,
        session_lifetime: Option<f64>,
        tls: bool,
        partitions: Option<&Partitions>,
        faults: Vec<String>,
        fault_seed: u64,
    ) -> PyResult<Self> {
        let mut config = ServerConfig::default();
        config.address = address.map_or(Ok(config.address), parse_address)?;
        config.access_key = access_key.unwrap_or(config.access_key);
        config.secret_key = secret_key.unwrap_or(config.secret_key);
        config.region = region;
        config.storage = data.map_or(Storage::Memory, Storage::Disk);
        config.buckets = buckets;
        config.domain = domain;
        config.md5_etags = md5_etags;
        if let Some(seconds) = session_lifetime {
            config.session_lifetime = Duration::try_from_secs_f64(seconds).map_err(|_| {
                PyValueError::new_err(format!("session_lifetime={seconds}: must be a number of seconds"))
            })?;
        }
        config.tls = tls;
        config.partitions = partitions.map(Partitions::to_server).transpose()?;
        config.faults = faults.iter().map(|rule| parse_fault(rule)).collect::<PyResult<_>>()?;
        config.fault_seed = fault_seed;
        let running = py.detach(|| Running::start(config)).map_err(python_error)?;
        Ok(Self {
            endpoint_url: running.server.endpoint_url(),
            access_key: running.server.access_key().to_owned(),
            secret_key: running.server.secret_key().to_owned(),
            region: running.server.region().to_owned(),
            authority: running.server.authority().map(str::to_owned),
            running: Mutex::new(Some(running)),
        })
    }

    #[getter]
    fn endpoint_url(&self) -> &str {
        &self.endpoint_url
    }

    #[getter]
    fn access_key(&self) -> &str {
        &self.access_key
    }

    #[getter]
    fn secret_key(&self) -> &str {
        &self.secret_key
    }

    #[getter]
    fn region(&self) -> &str {
        &self.region
    }

    /// The certificate, as PEM, that clients must trust; None without TLS.
    #[getter]
    fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The partitions in front, in the order of their keys; none without `partitions`.
    ///
    /// RuntimeError when the server has been stopped, or in a forked child.
    fn partitions(&self) -> PyResult<Vec<PartitionView>> {
        self.with_server(|server| {
            let views = server.partitions().into_iter();
            views
                .map(|view| PartitionView {
                    first_key: view.first_key,
                    end_key: view.end_key,
                    writes_per_second: view.writes_per_second,
                    reads_per_second: view.reads_per_second,
                    load: view.load,
                    hot: view.hot,
                    admitted: view.admitted,
                    refused: view.refused,
                })
                .collect()
        })
    }

    /// Adds a fault, such as ``error:SlowDown on=UploadPart times=3``, behind those that are there.
    ///
    /// ValueError when it is no rule; RuntimeError when the server has been stopped, or in a forked child.
    fn inject(&self, fault: &str) -> PyResult<()> {
        let fault = parse_fault(fault)?;
        self.with_server(|server| server.inject(fault))
    }

    /// Takes all faults away.
    ///
    /// RuntimeError when the server has been stopped, or in a forked child.
    fn clear_faults(&self) -> PyResult<()> {
        self.with_server(s3dcp_server::Server::clear_faults)
    }

    /// The faults in force, and to how many requests each was applied.
    ///
    /// RuntimeError when the server has been stopped, or in a forked child.
    fn faults(&self) -> PyResult<Vec<(String, u64)>> {
        self.with_server(|server| {
            server.faults().into_iter().map(|(fault, applied)| (fault.to_string(), applied)).collect()
        })
    }

    /// What the server has done so far.
    ///
    /// RuntimeError when it has been stopped, or in a forked child.
    fn stats(&self) -> PyResult<ServerStats> {
        self.with_server(|server| {
            let s3dcp_server::ServerStats { requests, responses, bytes_received, bytes_sent } =
                server.stats();
            ServerStats { requests, responses, bytes_received, bytes_sent }
        })
    }

    /// Makes a bucket; one that exists is left as it is.
    ///
    /// ValueError when the name is not valid; RuntimeError when the server has been stopped, or in a forked child.
    fn create_bucket(&self, name: &str) -> PyResult<()> {
        self.with_server(|server| server.create_bucket(name))?.map_err(python_error)
    }

    /// Deletes a bucket with everything in it.
    ///
    /// FileNotFoundError when there is none; RuntimeError when the server has been stopped, or in a forked child.
    fn delete_bucket(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.with_server(|server| server.delete_bucket(name)))?.map_err(python_error)
    }

    /// Stops it; requests under way have two seconds to finish. A second call does nothing.
    ///
    /// RuntimeError in a forked child.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|running| !running.is_here()) {
            return Err(forked());
        }
        let stopped = running.take();
        drop(running);
        py.detach(|| stopped.map(Running::stop));
        Ok(())
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.stop(py)
    }

    fn __repr__(&self) -> String {
        format!("<s3dcp server at {}>", self.endpoint_url)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pyo3::exceptions::PyTypeError::new_err(
            "a running server cannot be pickled: pass its endpoint_url",
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            Python::attach(|py| py.detach(|| running.stop()));
        }
    }
}

fn python_error(error: io::Error) -> PyErr {
    match error.kind() {
        io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
        _ => PyErr::from(error),
    }
}

fn forked() -> PyErr {
    PyRuntimeError::new_err("the server runs in the process that started it, not in this forked child")
}

fn parse_fault(rule: &str) -> PyResult<Fault> {
    rule.parse().map_err(|error: s3dcp_server::InvalidFault| PyValueError::new_err(error.to_string()))
}

fn parse_address(address: &str) -> PyResult<SocketAddr> {
    address.parse().map_err(|_| {
        PyValueError::new_err(format!(
            "address must be an IP address and a port such as 127.0.0.1:0, not {address:?}"
        ))
    })
}

/// Runs the command `s3dcp` with `argv`, whose first item is the program's name, and gives its exit code.
#[entry]
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>) -> i32 {
    py.detach(|| s3dcp_cli::run(argv.into_iter()))
}
