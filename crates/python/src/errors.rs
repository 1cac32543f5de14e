//! From the engine's errors to the classes of `s3dcp.errors`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use s3dcp_s3::Error;

/// `error` with `context` in front of its message: the argument, item or place it concerns.
pub(crate) fn about(context: &str, error: Error) -> Error {
    let message = format!("{context}: {}", error.message());
    error.with_message(message)
}

/// A name for messages: of what UTF-8 cannot say, a lone surrogate, the escape stands there.
pub(crate) fn shown(name: &Bound<'_, PyString>) -> PyResult<String> {
    match name.to_cow() {
        Ok(name) => Ok(name.into_owned()),
        Err(_) => {
            let escaped = name.call_method1("encode", ("utf-8", "backslashreplace"))?;
            Ok(String::from_utf8_lossy(escaped.extract::<&[u8]>()?).into_owned())
        }
    }
}

/// The Python exception for `error`, with all its attributes.
pub(crate) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    build(py, error).unwrap_or_else(|failure| failure)
}

/// The Python exception for a defect of ours.
pub(crate) fn internal(py: Python<'_>, message: &str) -> PyErr {
    raised(py, "Internal", message, &PyDict::new(py)).unwrap_or_else(|failure| failure)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let attributes = PyDict::new(py);
    attributes.set_item("retryable", error.retryable())?;
    attributes.set_item("maybe_applied", error.maybe_applied())?;
    attributes.set_item("bucket", error.bucket())?;
    attributes.set_item("key", error.key())?;
    attributes.set_item("part", error.part())?;
    attributes.set_item("attempts", error.attempts())?;
    attributes.set_item("elapsed", error.elapsed().as_secs_f64())?;
    attributes.set_item("request_id", error.request_id())?;
    attributes.set_item("status", error.status())?;
    attributes.set_item("code", error.code())?;
    raised(py, &error.kind().to_string(), &error.to_string(), &attributes)
}

fn raised(py: Python<'_>, kind: &str, message: &str, attributes: &Bound<'_, PyDict>) -> PyResult<PyErr> {
    let make = py.import("s3dcp.errors")?.getattr("from_kind")?;
    Ok(PyErr::from_value(make.call1((kind, message, attributes))?))
}
