//! Python face of `s3dcp-prefix`: functions over plain numbers and strings, which the classes of
//! `s3dcp.s3_prefix_strategy` call.
//!
//! The state of a strategy stays in the Python object, so that it pickles, copies and can be subclassed like any
//! other. Numbers beyond 64 bits stay there too: a rank is reduced to its pattern's index before it comes here.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList, PyString};
use s3dcp_entry::entry;
use s3dcp_prefix::{
    DefaultPrefixStrategy, MAX_BASE, MAX_KEY_BYTES, MIN_BASE, NumericOptions, NumericPrefixStrategy,
    PrefixError, PrefixStrategy, RoundRobinPrefixStrategy,
};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_KEY_BYTES", MAX_KEY_BYTES)?;
    module.add("MAX_BASE", MAX_BASE)?;
    module.add_class::<NumericPrefixes>()?;
    module.add_class::<RoundRobinPrefixes>()?;
    module.add_function(wrap_pyfunction!(check_user_prefix, module)?)?;
    module.add_function(wrap_pyfunction!(digits_needed, module)?)?;
    module.add_function(wrap_pyfunction!(numeric_pattern, module)?)?;
    module.add_function(wrap_pyfunction!(numeric_patterns, module)?)?;
    module.add_function(wrap_pyfunction!(numeric_prefixes, module)?)?;
    module.add_function(wrap_pyfunction!(round_robin_prefixes, module)?)?;
    module.add_function(wrap_pyfunction!(default_prefixes, module)?)?;
    Ok(())
}

fn numeric(
    base: u32,
    prefix_count: u64,
    length: usize,
    epoch_num: Option<i64>,
) -> PyResult<NumericPrefixStrategy> {
    let options = NumericOptions { epoch_num, min_prefix_length: length, prefix_count: Some(prefix_count) };
    NumericPrefixStrategy::new(base, options).map_err(value_error)
}

fn value_error(error: PrefixError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A rank that is a plain integer of 64 bits; Python knows what to do with others.
fn plain_rank(rank: &Bound<'_, PyAny>) -> Option<i64> {
    rank.cast_exact::<PyInt>().ok()?.extract().ok()
}

/// The prefix that a strategy gives `rank`; `None` if it is longer than a key, which Python explains.
fn prefix_of<'py>(
    py: Python<'py>,
    strategy: &impl PrefixStrategy,
    rank: i64,
) -> Option<Bound<'py, PyString>> {
    let mut prefix = String::with_capacity(64);
    strategy.write_prefix(rank, &mut prefix);
    (prefix.len() <= MAX_KEY_BYTES).then(|| PyString::new(py, &prefix))
}

/// A numeric strategy as it was when this was made.
#[pyclass(frozen, module = "s3dcp._native")]
struct NumericPrefixes(NumericPrefixStrategy);

#[entry]
#[pymethods]
impl NumericPrefixes {
    #[new]
    #[pyo3(signature = (base, prefix_count, length, epoch_num))]
    fn new(base: u32, prefix_count: u64, length: usize, epoch_num: Option<i64>) -> PyResult<Self> {
        numeric(base, prefix_count, length, epoch_num).map(Self)
    }

    fn __call__<'py>(&self, rank: &Bound<'py, PyAny>) -> Option<Bound<'py, PyString>> {
        prefix_of(rank.py(), &self.0, plain_rank(rank)?)
    }
}

/// A round-robin strategy as it was when this was made, for as long as its list holds the same strings.
#[pyclass(frozen, module = "s3dcp._native")]
struct RoundRobinPrefixes {
    strategy: RoundRobinPrefixStrategy,
    /// `None` for a tuple, which nobody can change.
    list: Option<Py<PyList>>,
    strings: Vec<Py<PyString>>,
}

#[entry]
#[pymethods]
impl RoundRobinPrefixes {
    #[new]
    #[pyo3(signature = (user_prefixes, epoch_num))]
    fn new(user_prefixes: &Bound<'_, PyAny>, epoch_num: Option<i64>) -> PyResult<Self> {
        let strings: Vec<Bound<'_, PyString>> = user_prefixes.extract()?;
        let texts =
            strings.iter().map(|string| Ok(string.to_str()?.to_owned())).collect::<PyResult<Vec<_>>>()?;
        Ok(Self {
            strategy: RoundRobinPrefixStrategy::new(&texts, epoch_num).map_err(value_error)?,
            list: user_prefixes.cast::<PyList>().ok().map(|list| list.clone().unbind()),
            strings: strings.into_iter().map(Bound::unbind).collect(),
        })
    }

    fn __call__<'py>(&self, rank: &Bound<'py, PyAny>) -> Option<Bound<'py, PyString>> {
        let number = plain_rank(rank)?;
        if let Some(list) = &self.list {
            let (list, count) = (list.bind(rank.py()), self.strings.len());
            let index = usize::try_from(number.rem_euclid(i64::try_from(count).ok()?)).ok()?;
            if list.len() != count || list.get_item(index).ok()?.as_ptr() != self.strings[index].as_ptr() {
                return None;
            }
        }
        prefix_of(rank.py(), &self.strategy, number)
    }
}

#[entry]
#[pyfunction]
fn check_user_prefix(argument: &str, text: &str) -> PyResult<()> {
    s3dcp_prefix::check_user_prefix(argument, text).map_err(value_error)
}

#[entry]
#[pyfunction]
fn digits_needed(base: u32, count: u64) -> usize {
    s3dcp_prefix::digits_needed(base, count)
}

#[entry]
#[pyfunction]
fn numeric_pattern(base: u32, number: u64, length: usize) -> PyResult<String> {
    check_pattern(base, length)?;
    let mut pattern = String::with_capacity(length);
    s3dcp_prefix::push_pattern(base, number, length, &mut pattern);
    Ok(pattern)
}

#[entry]
#[pyfunction]
fn numeric_patterns(
    py: Python<'_>,
    base: u32,
    start: u64,
    stop: u64,
    length: usize,
) -> PyResult<Bound<'_, PyList>> {
    check_pattern(base, length)?;
    let patterns = PyList::empty(py);
    let mut pattern = String::with_capacity(length);
    for number in start..stop {
        pattern.clear();
        s3dcp_prefix::push_pattern(base, number, length, &mut pattern);
        patterns.append(PyString::new(py, &pattern))?;
    }
    Ok(patterns)
}

#[entry]
#[pyfunction]
#[pyo3(signature = (base, prefix_count, length, epoch_num, ranks))]
fn numeric_prefixes<'py>(
    py: Python<'py>,
    base: u32,
    prefix_count: u64,
    length: usize,
    epoch_num: Option<i64>,
    ranks: Ranks,
) -> PyResult<Bound<'py, PyList>> {
    let strategy = numeric(base, prefix_count, length, epoch_num)?;
    prefixes(py, &strategy, ranks)
}

#[entry]
#[pyfunction]
#[pyo3(signature = (user_prefixes, epoch_num, ranks))]
fn round_robin_prefixes(
    py: Python<'_>,
    user_prefixes: Vec<String>,
    epoch_num: Option<i64>,
    ranks: Ranks,
) -> PyResult<Bound<'_, PyList>> {
    let strategy = RoundRobinPrefixStrategy::new(user_prefixes, epoch_num).map_err(value_error)?;
    prefixes(py, &strategy, ranks)
}

#[entry]
#[pyfunction]
fn default_prefixes(py: Python<'_>, ranks: Ranks) -> PyResult<Bound<'_, PyList>> {
    prefixes(py, &DefaultPrefixStrategy, ranks)
}

/// The first rank, the step to the next, and how many there are.
type Ranks = (i64, i64, usize);

/// The prefixes of `ranks`. A rank that would leave 64 bits is an error, as is a prefix that no key could hold.
fn prefixes<'py>(
    py: Python<'py>,
    strategy: &dyn PrefixStrategy,
    ranks: Ranks,
) -> PyResult<Bound<'py, PyList>> {
    let (start, step, count) = ranks;
    let prefixes = PyList::empty(py);
    let mut prefix = String::new();
    let mut next = Some(start);
    for _ in 0..count {
        let rank = next.ok_or_else(|| PyValueError::new_err("ranks must fit in 64 bits"))?;
        prefix.clear();
        strategy.write_prefix(rank, &mut prefix);
        if prefix.len() > MAX_KEY_BYTES {
            let argument = format!("rank {rank}");
            return Err(value_error(PrefixError::TooLong { argument, bytes: prefix.len() }));
        }
        prefixes.append(PyString::new(py, &prefix))?;
        next = rank.checked_add(step);
    }
    Ok(prefixes)
}

/// Bounds what the caller's numbers can make this module allocate.
fn check_pattern(base: u32, length: usize) -> PyResult<()> {
    if !(MIN_BASE..=MAX_BASE).contains(&base) {
        return Err(PyValueError::new_err(format!(
            "base must be an integer from {MIN_BASE} to {MAX_BASE}, got {base}"
        )));
    }
    if length > MAX_KEY_BYTES {
        return Err(PyValueError::new_err(format!(
            "length must be an integer from 0 to {MAX_KEY_BYTES}, got {length}"
        )));
    }
    Ok(())
}
