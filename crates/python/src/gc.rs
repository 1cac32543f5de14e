//! Python's cyclic garbage collector, kept from looking through millions of objects that all stay.
//!
//! Native, because an interrupt (Ctrl-C, an exception thrown in by another thread) strikes between any two steps of
//! Python code: a pause made of such steps can be begun and never ended, and the process would collect no garbage any
//! more. One step here begins a pause, one ends it, and one that nobody ended ends when it is dropped.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use s3dcp_entry::entry;

/// Fewer new objects than this are not worth moving, and with them all that is garbage by now and would be found young.
const MANY: usize = 10_000;

/// Python 3.12 counts its immortal objects among the frozen ones, some hundreds. A program that has called `gc.freeze`, to share
/// memory with children, has frozen all that there was, and an interpreter that has imported nothing has 3,600 objects. They stay
/// frozen.
const IMMORTAL: usize = 2_000;

/// The pauses of all threads. Locked with the GIL held and without giving it up, so never while a child is forked.
static PAUSES: Mutex<Pauses> = Mutex::new(Pauses { begun: 0, was_enabled: false });

struct Pauses {
    begun: usize,
    /// Whether the collector ran before the first of them.
    was_enabled: bool,
}

fn pauses() -> MutexGuard<'static, Pauses> {
    PAUSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pause of the collector, for all threads: see the stub.
#[pyclass(frozen, module = "s3dcp._native")]
pub(crate) struct GcPause {
    old_at_once: bool,
    entered: Mutex<bool>,
}

impl GcPause {
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let gc = py.import("gc")?;
        let mut pauses = pauses();
        if pauses.begun == 0 {
            pauses.was_enabled = gc.call_method0("isenabled")?.extract()?;
            gc.call_method0("disable")?;
        }
        pauses.begun += 1;
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }

    fn end(&self, py: Python<'_>) -> PyResult<()> {
        if !std::mem::take(&mut *self.entered.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let gc = py.import("gc")?;
        let mut pauses = pauses();
        pauses.begun = pauses.begun.saturating_sub(1); // none in a child that was forked within
        if !pauses.was_enabled {
            return Ok(());
        }
        if pauses.begun == 0 {
            gc.call_method0("enable")?;
        }
        if self.old_at_once {
            let (young, _, _): (usize, usize, usize) = gc.call_method0("get_count")?.extract()?;
            let frozen = || gc.call_method0("get_freeze_count")?.extract::<usize>();
            if young >= MANY && frozen()? <= IMMORTAL {
                gc.call_method0("freeze")?;
                gc.call_method0("unfreeze")?;
            }
        }
        Ok(())
    }
}

#[entry]
#[pymethods]
impl GcPause {
    #[new]
    #[pyo3(signature = (*, old_at_once = false))]
    fn new(old_at_once: bool) -> Self {
        Self { old_at_once, entered: Mutex::new(false) }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        self.begin(py)
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.end(py)
    }
}

impl Drop for GcPause {
    fn drop(&mut self) {
        Python::try_attach(|py| self.end(py).ok());
    }
}

/// In a child that was forked: its threads are not the parent's, and those within a pause will not come out here.
#[entry]
#[pyfunction]
fn end_gc_pauses(py: Python<'_>) -> PyResult<()> {
    let mut pauses = pauses();
    if std::mem::take(&mut pauses.begun) > 0 && pauses.was_enabled {
        py.import("gc")?.call_method0("enable")?;
    }
    Ok(())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<GcPause>()?;
    module.add_function(wrap_pyfunction!(end_gc_pauses, module)?)
}
