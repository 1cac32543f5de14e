//! Python face of `s3dcp-sim`: what a strategy's prefixes come to, for `describe`.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use s3dcp_entry::entry;
use s3dcp_prefix::PrefixStrategy;
use s3dcp_sim::{Operation, Scenario, simulate};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(simulate_prefixes, module)?)
}

/// The prefix of each rank, wherever it comes from.
#[derive(Debug)]
struct Listed(Vec<String>);

impl PrefixStrategy for Listed {
    fn generate_prefix(&self, rank: i64) -> String {
        usize::try_from(rank).ok().and_then(|rank| self.0.get(rank)).cloned().unwrap_or_default()
    }
}

/// Of one save or load: seconds, the least they could be, requests let in and refused, partitions at the end, bytes of the
/// largest request.
type Figures = (f64, f64, u64, u64, usize, u64);

/// Simulates one save or load of as many ranks as there are prefixes.
#[entry]
#[pyfunction]
#[pyo3(signature = (prefixes, bytes_per_rank, *, files_per_rank, part_size, partitions, directory_bucket, load, network_gbps))]
#[expect(clippy::too_many_arguments, reason = "they are named")]
fn simulate_prefixes(
    py: Python<'_>,
    prefixes: Vec<String>,
    bytes_per_rank: u64,
    files_per_rank: u32,
    part_size: Option<u64>,
    partitions: usize,
    directory_bucket: bool,
    load: bool,
    network_gbps: f64,
) -> PyResult<Figures> {
    let world_size = u32::try_from(prefixes.len())
        .map_err(|_| PyValueError::new_err("world_size must be at most 4,294,967,295"))?;
    let mut scenario = Scenario::default();
    scenario.world_size = world_size;
    scenario.bytes_per_rank = bytes_per_rank;
    scenario.files_per_rank = files_per_rank;
    scenario.part_size = part_size;
    scenario.partitions = partitions;
    scenario.operation = if load { Operation::Load } else { Operation::Save };
    scenario.strategy = Arc::new(Listed(prefixes));
    scenario.network.rank_bytes_per_second = network_gbps * 1e9 / 8.0;
    if directory_bucket {
        scenario = scenario.in_directory_bucket();
    }
    if let Some(reason) = scenario.invalid() {
        return Err(PyValueError::new_err(reason));
    }
    let round = py.detach(|| simulate(&scenario).rounds.remove(0));
    Ok((
        round.duration.as_secs_f64(),
        round.ideal.as_secs_f64(),
        round.admitted,
        round.refused,
        round.partitions,
        round.request_bytes,
    ))
}
