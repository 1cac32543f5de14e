//! Python face of `s3dcp-prefix`: the prefixes of the classes of `s3dcp.s3_prefix_strategy`, and the checks of what
//! these are given.
//!
//! The state of a strategy stays in the Python object, so that it pickles, copies and can be subclassed like any
//! other. A call brings it along: the kind of strategy, its parts, and the epoch. Python's integers have any size;
//! those that are not plain ones of 64 bits become a text and a remainder in `Integer`, and nowhere else.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PyRange, PyRangeMethods, PyString, PyTuple};
use s3dcp_entry::entry;
use s3dcp_prefix::{
    DEFAULT_MIN_PREFIX_LENGTH, DefaultPrefixStrategy, GivenPrefixStrategy, MAX_BASE, MAX_KEY_BYTES, Number,
    NumericOptions, NumericPrefixStrategy, PrefixError, PrefixStrategy, RoundRobinPrefixStrategy,
};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_KEY_BYTES", MAX_KEY_BYTES)?;
    module.add("MAX_BASE", MAX_BASE)?;
    module.add("DEFAULT_MIN_PREFIX_LENGTH", DEFAULT_MIN_PREFIX_LENGTH)?;
    module.add_function(wrap_pyfunction!(prefix, module)?)?;
    module.add_function(wrap_pyfunction!(prefixes, module)?)?;
    module.add_function(wrap_pyfunction!(numeric_pattern, module)?)?;
    module.add_function(wrap_pyfunction!(digits_needed, module)?)?;
    module.add_function(wrap_pyfunction!(check_integer, module)?)?;
    module.add_function(wrap_pyfunction!(check_epoch, module)?)?;
    module.add_function(wrap_pyfunction!(check_user_prefixes, module)?)
}

/// What Python knows of a strategy: its kind, the parts of that kind, and the epoch.
type Formula<'py> = (Bound<'py, PyString>, Bound<'py, PyAny>, Bound<'py, PyAny>);

#[entry]
#[pyfunction]
fn prefix<'py>(formula: Formula<'py>, rank: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
    let (rank, mut prefix) = (Integer::read("rank", rank)?, String::with_capacity(64));
    Strategy::read(&formula, Some(&rank))?.write(&rank, &mut prefix)?;
    Ok(PyString::new(formula.0.py(), &prefix))
}

#[entry]
#[pyfunction]
fn prefixes<'py>(formula: Formula<'py>, ranks: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    let (py, strategy) = (ranks.py(), Strategy::read(&formula, None)?);
    let (prefixes, mut prefix) = (PyList::empty(py), String::new());
    for (position, rank) in each(ranks)?.enumerate() {
        if position.is_multiple_of(1 << 16) {
            py.check_signals()?;
        }
        strategy.write(&rank?, &mut prefix)?;
        prefixes.append(PyString::new(py, &prefix))?;
    }
    Ok(prefixes)
}

/// A strategy without its epoch, which may be of any size.
struct Strategy<'py> {
    pattern: Box<dyn PrefixStrategy>,
    epoch: Option<Integer<'py>>,
}

impl<'py> Strategy<'py> {
    /// For one `rank`, no other user prefix is read.
    fn read((kind, parts, epoch): &Formula<'py>, rank: Option<&Integer<'py>>) -> PyResult<Self> {
        let epoch = Integer::read_epoch(epoch)?;
        let epoch_num = epoch.as_ref().map(Integer::number);
        let pattern: Box<dyn PrefixStrategy> = match kind.to_str()? {
            "default" => Box::new(DefaultPrefixStrategy),
            "given" => Box::new(GivenPrefixStrategy(parts.extract()?)),
            "numeric" => {
                let (base, count, min_prefix_length) = parts.extract()?;
                let options =
                    NumericOptions { epoch_num: None, min_prefix_length, prefix_count: Some(count) };
                let strategy = NumericPrefixStrategy::new(base, options).map_err(refused)?;
                strategy.check_room(epoch_num).map_err(refused)?;
                Box::new(strategy)
            }
            "round_robin" => match rank {
                None => {
                    let texts = user_prefixes("user_prefixes", parts, epoch_num)?;
                    Box::new(RoundRobinPrefixStrategy::new(texts, None).map_err(refused)?)
                }
                Some(rank) => {
                    let place = rank.index(some("user_prefixes", parts)? as u64)? as usize;
                    Box::new(GivenPrefixStrategy(user_prefix("user_prefixes", place, parts, epoch_num)?))
                }
            },
            kind => return Err(value_error(kind, "is no kind of strategy", parts)),
        };
        Ok(Self { pattern, epoch })
    }

    fn write(&self, rank: &Integer<'py>, out: &mut String) -> PyResult<()> {
        out.clear();
        let (index, epoch) =
            (rank.index(self.pattern.pattern_count())?, self.epoch.as_ref().map(Integer::number));
        s3dcp_prefix::write_any_prefix(&*self.pattern, index, epoch, rank.number(), out).map_err(refused)
    }
}

/// The ranks; those of a range within 64 bits without a Python object for each.
fn each<'py>(ranks: &Bound<'py, PyAny>) -> PyResult<Box<dyn Iterator<Item = PyResult<Integer<'py>>> + 'py>> {
    if let Ok(range) = ranks.cast::<PyRange>()
        && let (Ok(start), Ok(_), Ok(step)) = (range.start(), range.stop(), range.step())
    {
        // Each rank fits, the product alone may not.
        let rank = move |place| start.wrapping_add(step.wrapping_mul(place)) as i64;
        return Ok(Box::new((0..range.len()? as isize).map(move |place| Ok(Integer::Plain(rank(place))))));
    }
    Ok(Box::new(ranks.try_iter()?.map(|rank| Integer::read("rank", &rank?))))
}

/// A rank or an epoch: an `int` of 64 bits, or the text and the number of any other.
enum Integer<'py> {
    Plain(i64),
    Other { text: String, number: Bound<'py, PyAny> },
}

impl<'py> Integer<'py> {
    fn read(argument: &str, value: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Some(number) = value.cast_exact::<PyInt>().ok().and_then(|number| number.extract().ok()) {
            return Ok(Self::Plain(number));
        }
        let number = value.py().import("operator")?.call_method1("index", (value,))?;
        // More digits than a key has bytes are refused before Python's own limit on digits refuses them.
        if number.call_method0("bit_length")?.extract::<usize>()? > 8 * MAX_KEY_BYTES {
            let why = format!("has too many digits for a key on S3 of at most {MAX_KEY_BYTES} bytes");
            return Err(value_error(argument, &why, &number));
        }
        Ok(Self::Other { text: formatted(value)?, number })
    }

    fn read_epoch(value: &Bound<'py, PyAny>) -> PyResult<Option<Self>> {
        if value.is_none() { Ok(None) } else { Self::read("epoch_num", value).map(Some) }
    }

    /// Which of `count` patterns this rank gets.
    fn index(&self, count: u64) -> PyResult<u64> {
        match self {
            Self::Plain(number) => Ok(s3dcp_prefix::pattern_index(*number, count)),
            Self::Other { number, .. } => number.rem(count)?.extract(),
        }
    }

    fn number(&self) -> Number<'_> {
        match self {
            Self::Plain(number) => Number::Small(*number),
            Self::Other { text, .. } => Number::Text(text),
        }
    }
}

#[entry]
#[pyfunction]
fn numeric_pattern(base: u32, number: u64, length: usize) -> PyResult<String> {
    s3dcp_prefix::numeric_pattern(base, number, length).map_err(refused)
}

#[entry]
#[pyfunction]
fn digits_needed(base: u32, count: u64) -> usize {
    s3dcp_prefix::digits_needed(base, count)
}

/// `value` as an integer within its limits; other integer types such as numpy's count, bool does not.
#[entry]
#[pyfunction]
fn check_integer(argument: &str, value: &Bound<'_, PyAny>, min: u64, max: u64) -> PyResult<u64> {
    match value.extract() {
        Ok(number) if (min..=max).contains(&number) && !value.is_instance_of::<PyBool>() => Ok(number),
        _ => Err(value_error(argument, &format!("must be an integer from {min} to {max}"), value)),
    }
}

/// `value` if it is an integer of any size or None; a bool stays one and prints as such.
#[entry]
#[pyfunction]
fn check_epoch<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match Integer::read_epoch(value) {
        Ok(Some(Integer::Other { number, .. })) if !value.is_instance_of::<PyInt>() => Ok(number),
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
            Err(value_error("epoch_num", "must be an integer or None", value))
        }
        other => other.map(|_| value.clone()),
    }
}

/// A copy of a list or tuple of prefixes, checked.
#[entry]
#[pyfunction]
fn check_user_prefixes<'py>(
    argument: &str,
    prefixes: &Bound<'py, PyAny>,
    epoch_num: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let is_list = prefixes.is_instance_of::<PyList>();
    if !is_list && !prefixes.is_instance_of::<PyTuple>() {
        return Err(value_error(argument, "must be a list or tuple of strings", prefixes));
    }
    let epoch = Integer::read_epoch(epoch_num)?;
    let texts = user_prefixes(argument, prefixes, epoch.as_ref().map(Integer::number))?;
    let list = PyList::new(prefixes.py(), texts)?;
    Ok(if is_list { list.into_any() } else { list.to_tuple().into_any() })
}

fn user_prefixes(
    argument: &str,
    prefixes: &Bound<'_, PyAny>,
    epoch: Option<Number<'_>>,
) -> PyResult<Vec<String>> {
    (0..some(argument, prefixes)?).map(|place| user_prefix(argument, place, prefixes, epoch)).collect()
}

fn user_prefix(
    argument: &str,
    place: usize,
    prefixes: &Bound<'_, PyAny>,
    epoch: Option<Number<'_>>,
) -> PyResult<String> {
    let (argument, prefix) = (format!("{argument}[{place}]"), prefixes.get_item(place)?);
    if !prefix.is_instance_of::<PyString>() {
        return Err(value_error(&argument, "must be a string", &prefix));
    }
    let text = formatted(&prefix).map_err(|_| value_error(&argument, "is not valid Unicode", &prefix))?;
    s3dcp_prefix::check_user_prefix(&argument, &text, epoch).map_err(refused)?;
    Ok(text)
}

/// How many `prefixes` there are, at least one.
fn some(argument: &str, prefixes: &Bound<'_, PyAny>) -> PyResult<usize> {
    match prefixes.len()? {
        0 => Err(value_error(argument, "must have at least 1 prefix", prefixes)),
        count => Ok(count),
    }
}

/// `f"{value}"`.
fn formatted(value: &Bound<'_, PyAny>) -> PyResult<String> {
    value.call_method1("__format__", ("",))?.extract()
}

fn refused(error: PrefixError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn value_error(argument: &str, why: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let shown = match (value.repr(), value.get_type().name()) {
        (Ok(text), _) => s3dcp_prefix::Cut(&text.to_string_lossy()).to_string(),
        // Python refuses to print an integer of very many digits.
        (Err(_), kind) => {
            format!("a {} too large to print", kind.map_or_else(|_| "value".into(), |kind| kind.to_string()))
        }
    };
    PyValueError::new_err(format!("{argument} {why}, got {shown}"))
}
