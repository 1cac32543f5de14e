//! `s3dcp inspect`: what a checkpoint holds, and where.

use std::borrow::Cow;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::sync::Arc;

use clap::Args;
use s3dcp_checkpoint::{
    InspectedChunk, InspectedTensor, Inspection, NameFilter, Number, Place, Statistics, Total, inspect,
    open_checkpoint, read_statistics,
};

use crate::format::{item_name, number, printable, shape, size, slices};
use crate::names::Names;
use crate::output::{Column, Output, Table, bad, count, faint, table};
use crate::progress::Progress;
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Rows of a table of totals.
const TOTALS: usize = 16;

/// Show what a checkpoint holds: its tensors, their chunks and where each is stored, its objects, and totals
///
/// Neither torch nor Python is needed, and nothing in the checkpoint is run. Checkpoints of torch's own writers and of
/// s3torchconnector are shown as well. Only the index is read, unless --stats asks for values.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp inspect s3://bucket/run/epoch_5\n  s3dcp inspect /data/run model.layers '*.bias' --stats\n  s3dcp inspect s3://bucket/run --json | jq -r '.tensors[] | select(.dtype == \"float32\").name'"
)]
pub(crate) struct Arguments {
    /// The checkpoint: s3://bucket/path or a local folder, an epoch's or step's folder, or an index (.metadata)
    uri: String,
    /// Only these: a name, a dotted prefix (model.layers) or a glob ('*.bias')
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Show dotted names as a tree
    #[arg(long)]
    tree: bool,
    /// Show no more than this many levels of the tree
    #[arg(long, value_name = "LEVELS", requires = "tree")]
    depth: Option<usize>,
    /// Read the values, and show their minimum, maximum, mean, and how many are NaN or infinite
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let names = NameFilter::new(&arguments.names)?;
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let runtime = runtime()?;
    // The process ends after this, and frees at once what would take long to free item by item.
    let checkpoint = ManuallyDrop::new(Arc::new(runtime.block_on(open_checkpoint(&storage, &path_key))?));
    let mut found = ManuallyDrop::new(inspect(&checkpoint, &names)?);
    if arguments.stats {
        let total = found.tensors.iter().map(|tensor| tensor.bytes).fold(0, u64::saturating_add);
        let progress = Progress::new(!arguments.output.json, total);
        runtime.block_on(read_statistics(&checkpoint, &mut found, |bytes| progress.add(bytes)))?;
    }
    arguments.output.show(|| &*found, |out| tell(out, &found, arguments))
}

fn tell(out: &mut dyn Write, found: &Inspection<'_>, arguments: &Arguments) -> io::Result<()> {
    if arguments.tree {
        out.write_all(tree(found, arguments).as_bytes())?;
    } else if arguments.stats {
        out.write_all(statistics(found).as_bytes())?;
    } else {
        items(out, found)?;
    }
    for fault in found.tensors.iter().filter_map(|tensor| Some((tensor, tensor.fault.as_ref()?))) {
        let (tensor, fault) = fault;
        writeln!(
            out,
            "{} {}: {}",
            bad("cannot be read"),
            item_name(tensor.name, tensor.rank),
            printable(fault)
        )?;
    }
    totals(out, found)
}

fn items(out: &mut dyn Write, found: &Inspection<'_>) -> io::Result<()> {
    let files = Files { folder: found.uri };
    let columns = [
        Column::Words("tensor"),
        Column::Words("dtype"),
        Column::Words("shape"),
        Column::Words("chunk"),
        Column::Numbers("bytes"),
        Column::Numbers("offset"),
        Column::Words("file"),
    ];
    let mut tensors = Table::new(&columns);
    for tensor in &found.tensors {
        let first = |table: &mut Table<'_>| {
            table.cell(&item_name(tensor.name, tensor.rank));
            table.cell(tensor.dtype);
            table.cell(&shape(tensor.shape));
        };
        if tensor.chunks.is_empty() {
            first(&mut tensors);
            ["none", "-", "-", "-"].iter().for_each(|cell| tensors.cell(cell));
        }
        for (number, chunk) in tensor.chunks.iter().enumerate() {
            match number {
                0 => first(&mut tensors),
                _ => (0..3).for_each(|_| tensors.cell("")),
            }
            tensors.cell(&part(tensor, chunk));
            files.place(chunk.place.as_ref(), &mut tensors);
        }
    }
    let columns =
        [Column::Words("object"), Column::Numbers("bytes"), Column::Numbers("offset"), Column::Words("file")];
    let mut objects = Table::new(&columns);
    for object in &found.objects {
        objects.cell(&item_name(object.name, object.rank));
        files.place(object.place.as_ref(), &mut objects);
    }
    let gap = if found.tensors.is_empty() || found.objects.is_empty() { "" } else { "\n" };
    write!(out, "{tensors}{gap}{objects}")
}

/// Which part of its tensor a chunk is.
fn part(tensor: &InspectedTensor<'_>, chunk: &InspectedChunk<'_>) -> Cow<'static, str> {
    if chunk.sizes == tensor.shape { "all".into() } else { slices(chunk.offsets, chunk.sizes).into() }
}

#[derive(Clone, Copy)]
struct Files<'a> {
    folder: &'a str,
}

impl Files<'_> {
    /// Adds the cells of a place: bytes, offset, file.
    fn place(self, place: Option<&Place>, table: &mut Table<'_>) {
        match place {
            Some(place) => {
                table.cell(&size(place.length));
                table.cell(&place.offset.to_string());
                table.cell(&self.name(&place.file));
            }
            None => {
                table.cell("-");
                table.cell("-");
                table.cell(&bad("not in the index"));
            }
        }
    }

    /// A file as seen from the folder of the index.
    fn name<'f>(self, file: &'f str) -> Cow<'f, str> {
        let below = |folder: &str| file.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        let above =
            || self.folder.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.ends_with('/'));
        match below(self.folder) {
            Some(name) => printable(name),
            None => match above().and_then(below) {
                Some(name) => format!("../{}", printable(name)).into(),
                None => printable(file),
            },
        }
    }
}

fn tree(found: &Inspection<'_>, arguments: &Arguments) -> String {
    let mut names = Names::default();
    for tensor in &found.tensors {
        let mut says = vec![tensor.dtype.to_owned(), shape(tensor.shape), size(tensor.bytes)];
        says.extend(tensor.rank.map(|rank| format!("rank {rank}")));
        says.extend(tensor.statistics.as_ref().map(|statistics| {
            let [min, max, mean, nan, inf] = numbers(statistics);
            format!("min {min}, max {max}, mean {mean}, {nan} NaN, {inf} infinite")
        }));
        names.add(tensor.name, says.join("  "), tensor.bytes);
    }
    for object in &found.objects {
        let bytes = object.place.as_ref().map_or(0, |place| place.length);
        names.add(object.name, format!("object  {}", size(bytes)), bytes);
    }
    names.render(found.uri, arguments.depth.unwrap_or(usize::MAX))
}

fn statistics(found: &Inspection<'_>) -> String {
    let columns = [
        Column::Words("tensor"),
        Column::Words("dtype"),
        Column::Words("shape"),
        Column::Numbers("min"),
        Column::Numbers("max"),
        Column::Numbers("mean"),
        Column::Numbers("NaN"),
        Column::Numbers("infinite"),
    ];
    let rows = found.tensors.iter().map(|tensor| {
        let found = tensor
            .statistics
            .as_ref()
            .map_or_else(|| ["-"; 5].map(str::to_owned), |statistics| numbers(statistics));
        let first =
            [item_name(tensor.name, tensor.rank).into(), tensor.dtype.to_owned(), shape(tensor.shape)];
        [&first[..], &found[..]].concat()
    });
    table(&columns, rows)
}

fn numbers(statistics: &Statistics) -> [String; 5] {
    let shown = |of: Option<Number>| match of {
        Some(Number::Signed(whole)) => whole.to_string(),
        Some(Number::Unsigned(whole)) => whole.to_string(),
        Some(Number::Float(float)) => number(float),
        _ => "-".to_owned(),
    };
    let mean = statistics.mean.map_or_else(|| "-".to_owned(), number);
    let (nan, inf) = (statistics.nan.to_string(), statistics.inf.to_string());
    [shown(statistics.min), shown(statistics.max), mean, nan, inf]
}

fn totals(out: &mut dyn Write, found: &Inspection<'_>) -> io::Result<()> {
    let files = Files { folder: found.uri };
    let by_rank: Vec<Total> = found
        .by_rank
        .iter()
        .map(|total| {
            let mut total = total.clone();
            total.of = files.name(&total.of).into();
            total
        })
        .collect();
    for (what, all) in [("dtype", &found.by_dtype), ("prefix", &found.by_prefix), ("saved by", &by_rank)] {
        let columns = [
            Column::Words(what),
            Column::Numbers("tensors"),
            Column::Numbers("objects"),
            Column::Numbers("bytes"),
        ];
        let rows = all.iter().take(TOTALS).map(|total| {
            vec![
                printable(&total.of).into(),
                total.tensors.to_string(),
                total.objects.to_string(),
                size(total.bytes),
            ]
        });
        writeln!(out)?;
        write!(out, "{}", table(&columns, rows))?;
        if all.len() > TOTALS {
            writeln!(out, "{}", faint(format!("and {} more (--json shows all)", all.len() - TOTALS)))?;
        }
    }
    writeln!(out)?;
    let mut of = Vec::new();
    of.extend(found.epoch.map(|epoch| format!("epoch {epoch}")));
    of.extend(found.ranks.map(|ranks| format!("saved by {}", count(ranks, "rank"))));
    if found.indexes.len() > 1 {
        of.push(format!("an index for each of {} ranks", found.indexes.len()));
    }
    let of = if of.is_empty() { String::new() } else { format!(" ({})", of.join(", ")) };
    writeln!(
        out,
        "{}{of}: {}, {}, {} in {}",
        printable(found.uri),
        count(found.total.tensors, "tensor"),
        count(found.total.objects, "object"),
        size(found.total.bytes),
        count(found.files().len() as u64, "file"),
    )
}
