//! `s3dcp import`: a model of other programs as a checkpoint.

use std::io::{self, Write};

use clap::Args;
use s3dcp_checkpoint::{ImportOptions, Imported, NameFilter, plan_import};

use crate::format::{printable, size};
use crate::output::{Output, count, faint};
use crate::progress::Progress;
use crate::renaming::{Names, left_out};
use crate::report::Failure;
use crate::service::{Other, Service, run_until_stopped};

/// Make a checkpoint of safetensors files or of a torch.save file
///
/// torch.distributed.checkpoint loads it, sharded in any way. Of a torch.save file nothing is run: it may hold tensors in dicts and
/// lists, whose keys make the names (model.weight), and plain values, which are left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  s3dcp import /data/model s3://bucket/base
  s3dcp import weights.pt s3://bucket/base --map model=module
  s3dcp import s3://bucket/model/model.safetensors /data/base")]
pub(crate) struct Arguments {
    /// A safetensors file, a folder of them, or a torch.save file: s3://bucket/path or a local path
    from: String,
    /// Where the checkpoint goes: s3://bucket/path or a local folder
    to: String,
    /// Take these tensors only: a name, what names begin with before a dot, or a pattern with * and ?
    #[arg(long, value_name = "NAME", num_args = 1..)]
    select: Vec<String>,
    #[command(flatten)]
    names: Names,
    /// Replace a checkpoint that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
    #[command(flatten)]
    other: Other,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (source, from) = arguments.service.source(&arguments.from)?;
    let (target, to) = arguments.service.other(&arguments.other, &source, &arguments.to)?;
    let mut options = ImportOptions::default();
    options.selection = NameFilter::new(&arguments.select)?;
    options.renaming = arguments.names.renaming()?;
    options.overwrite = arguments.overwrite;
    let imported = run_until_stopped(async {
        let plan = plan_import(&source, &from, &target, &to, &options).await?;
        let progress = Progress::new(!arguments.output.json, plan.bytes());
        plan.run(&|bytes| progress.add(bytes)).await
    })?;
    arguments.output.show(|| &imported, |out| tell(out, &imported))
}

fn tell(out: &mut dyn Write, imported: &Imported) -> io::Result<()> {
    let (tensors, files) = (count(imported.tensors, "tensor"), count(imported.files, "file"));
    let to = printable(&imported.to);
    writeln!(out, "imported {tensors} of {} in {files} to {to}", size(imported.bytes))?;
    match left_out(&imported.left_out, "value") {
        Some(line) => writeln!(out, "{}", faint(line)),
        None => Ok(()),
    }
}
