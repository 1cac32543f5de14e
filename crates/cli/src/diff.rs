//! `s3dcp diff`: how two checkpoints differ.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io::{self, Write};

use clap::Args;
use s3dcp_checkpoint::{
    ComparedBy, ComparedTensor, Comparison, Difference, ItemName, OpenCheckpoint, diff, open_checkpoint,
};
use s3dcp_s3::{Error, ErrorKind};
use tokio::runtime::Runtime;

use crate::format::{item_name, number, printable, shape, size};
use crate::output::{Column, Output, bad, count, faint, good, table};
use crate::progress::Progress;
use crate::report::Failure;
use crate::service::{Service, runtime};

/// What a comparison that could not be carried out ends with.
const UNKNOWN: i32 = 3;

/// Show how two checkpoints differ: in names, shapes, dtypes and values
///
/// What has the same checksums in both is equal without being read; the rest is read and compared as numbers, in little
/// memory. They may be of different writers, cut in different ways, and one of them local. NaN equals NaN here, and 0
/// equals -0.
///
/// Exit codes: 0 equal; 1 different; 2 arguments that make no sense; 3 it could not be found out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp diff s3://bucket/run/epoch_5 s3://bucket/run/epoch_6\n  s3dcp diff /data/run s3://bucket/run --json | jq -r '.tensors[] | select(.equal | not).name'"
)]
pub(crate) struct Arguments {
    /// The first: s3://bucket/path or a local folder, an epoch's or step's folder, or an index (.metadata)
    #[arg(value_name = "A")]
    first: String,
    /// The second
    #[arg(value_name = "B")]
    second: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let first = open(arguments, &runtime, &arguments.first)?;
    let second = open(arguments, &runtime, &arguments.second)?;
    let progress = OnceCell::new();
    let show = !arguments.output.json;
    let read = |bytes, total| progress.get_or_init(|| Progress::new(show, total)).add(bytes);
    let found = runtime.block_on(diff(first, second, read)).map_err(unknown)?;
    drop(progress);
    arguments.output.show(|| &found, |out| tell(out, &found))?;
    match (faults(&found).next(), found.equal) {
        (Some(_), _) => Err(Failure::Told(None, UNKNOWN)),
        (None, false) => Err(Failure::Told(None, 1)),
        (None, true) => Ok(()),
    }
}

fn open(arguments: &Arguments, runtime: &Runtime, uri: &str) -> Result<OpenCheckpoint, Failure> {
    let (storage, path_key) = arguments.service.source(uri)?;
    runtime.block_on(open_checkpoint(&storage, &path_key)).map_err(unknown)
}

fn unknown(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Config => Failure::usage(error),
        _ => Failure::Told(Some(error.to_string()), UNKNOWN),
    }
}

/// What could not be compared.
fn faults(found: &Comparison) -> impl Iterator<Item = (&ItemName, &String)> {
    let tensors = found.tensors.iter().map(|tensor| (&tensor.item, &tensor.fault));
    let objects = found.objects.iter().map(|object| (&object.item, &object.fault));
    tensors.chain(objects).filter_map(|(item, fault)| fault.as_ref().map(|fault| (item, fault)))
}

fn named(item: &ItemName) -> Cow<'_, str> {
    item_name(&item.name, item.rank)
}

fn tell(out: &mut dyn Write, found: &Comparison) -> io::Result<()> {
    for (what, items) in [("only in A:", &found.only_first), ("only in B:", &found.only_second)] {
        for item in items {
            writeln!(out, "{} {}", bad(what), named(item))?;
        }
    }
    for object in found.objects.iter().filter(|object| !object.equal && object.fault.is_none()) {
        writeln!(out, "{} {}", bad("other object:"), named(&object.item))?;
    }
    for (item, fault) in faults(found) {
        writeln!(out, "{} {}: {}", bad("cannot be compared:"), named(item), printable(fault))?;
    }
    let columns = [
        Column::Words("tensor"),
        Column::Words("dtype"),
        Column::Words("shape"),
        Column::Numbers("differ"),
        Column::Numbers("of"),
        Column::Numbers("largest difference"),
        Column::Numbers("relative"),
        Column::Numbers("NaN or infinite"),
    ];
    let rows = found.tensors.iter().filter(|tensor| !tensor.equal && tensor.fault.is_none()).map(row);
    write!(out, "{}", table(&columns, rows))?;
    let differ = found.only_first.len()
        + found.only_second.len()
        + found.tensors.iter().filter(|tensor| !tensor.equal).count()
        + found.objects.iter().filter(|object| !object.equal).count();
    let by = |by: ComparedBy| {
        let tensors = found.tensors.iter().filter(|tensor| tensor.equal && tensor.by == by).count();
        tensors + found.objects.iter().filter(|object| object.equal && object.by == by).count()
    };
    let (by_checksums, by_values) =
        (by(ComparedBy::Checksums), by(ComparedBy::Values) + by(ComparedBy::Bytes));
    let equal = count((by_checksums + by_values) as u64, "item");
    let verdict = if found.equal {
        format!("{}: {equal}", good("equal"))
    } else {
        format!("{}: {}, {equal} equal", bad("different"), count(differ as u64, "item"))
    };
    writeln!(out, "{verdict}")?;
    let how = format!(
        "{by_checksums} equal by the checksums in the indexes, {by_values} by what was read: {}",
        size(found.read_bytes)
    );
    writeln!(out, "{}", faint(how))
}

fn row(tensor: &ComparedTensor) -> Vec<String> {
    let both = |one: String, other: String| if one == other { one } else { format!("{one} / {other}") };
    let [one, other] = &tensor.dtypes;
    let dtype = both(one.clone(), other.clone());
    let [one, other] = &tensor.shapes;
    let mut row = vec![named(&tensor.item).into(), dtype, both(shape(one), shape(other))];
    match tensor.difference {
        Some(Difference { count, differing, not_finite, largest_absolute, largest_relative, .. }) => {
            row.extend([differing.to_string(), count.to_string()]);
            row.extend([number(largest_absolute), number(largest_relative), not_finite.to_string()]);
        }
        None => row.extend(["-"; 5].map(str::to_owned)),
    }
    row
}
