//! `s3dcp export`: the tensors of a checkpoint as a model that other programs load.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use s3dcp_checkpoint::{DType, ExportFormat, ExportOptions, Exported, NameFilter, plan_export};

use crate::format::{parse_size, printable, size};
use crate::output::{Output, count, faint};
use crate::progress::Progress;
use crate::renaming::{Names, left_out};
use crate::report::Failure;
use crate::service::{Other, Service, run_until_stopped};

/// Write the tensors of a checkpoint as a Hugging Face model or a torch.save file
///
/// Safetensors files get Hugging Face's names and index. From bucket to bucket of one service the service
/// copies the values of row shards by itself; what is small, sharded by columns or converted goes through this machine.
/// The index goes last. Objects that are no tensors are left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  s3dcp export s3://bucket/run/epoch_5 s3://bucket/model --select model --strip-prefix model.
  s3dcp export s3://bucket/run /data/model --dtype bfloat16 --max-shard-size 2GB
  s3dcp export /data/run weights.pt --format torch --map model=module")]
pub(crate) struct Arguments {
    /// The checkpoint: s3://bucket/path or a local folder; or one index of several
    from: String,
    /// The folder of the model, or its file: s3://bucket/path or a local path
    to: String,
    /// What to write; torch is one file of torch.save
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write these items only: a name, what names begin with before a dot, or a pattern with * and ?
    #[arg(long, value_name = "NAME", num_args = 1..)]
    select: Vec<String>,
    #[command(flatten)]
    names: Names,
    /// Convert floating-point tensors: float64, float32, float16 or bfloat16
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// Tensors of a safetensors file have at most so many bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    max_shard_size: u64,
    /// Replace a model that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
    #[command(flatten)]
    other: Other,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Safetensors,
    Torch,
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    match DType::from_torch_name(text) {
        Some(dtype @ (DType::Float64 | DType::Float32 | DType::Float16 | DType::BFloat16)) => Ok(dtype),
        _ => Err("must be float64, float32, float16 or bfloat16".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (source, from) = arguments.service.source(&arguments.from)?;
    let (target, to) = arguments.service.other(&arguments.other, &source, &arguments.to)?;
    let mut options = ExportOptions::default();
    options.format = match arguments.format {
        Format::Safetensors => ExportFormat::Safetensors,
        Format::Torch => ExportFormat::Torch,
    };
    options.selection = NameFilter::new(&arguments.select)?;
    options.renaming = arguments.names.renaming()?;
    options.dtype = arguments.dtype;
    options.max_file_bytes = arguments.max_shard_size;
    options.overwrite = arguments.overwrite;
    let exported = run_until_stopped(async {
        let plan = plan_export(&source, &from, &target, &to, &options).await?;
        let progress = Progress::new(!arguments.output.json, plan.bytes());
        plan.run(&|bytes| progress.add(bytes)).await
    })?;
    arguments.output.show(|| &exported, |out| tell(out, &exported))
}

fn tell(out: &mut dyn Write, exported: &Exported) -> io::Result<()> {
    let (tensors, files) = (count(exported.tensors, "tensor"), count(exported.files.len() as u64, "file"));
    let to = printable(&exported.to);
    writeln!(out, "wrote {tensors} of {} in {files} to {to}", size(exported.bytes))?;
    let through = size(exported.bytes_through_client);
    let notes = match exported.bytes_by_service {
        0 => format!("{through} through this machine"),
        bytes => format!("{} copied by the service, {through} through this machine", size(bytes)),
    };
    writeln!(out, "{}", faint(notes))?;
    match left_out(&exported.left_out, "object") {
        Some(line) => writeln!(out, "{}", faint(line)),
        None => Ok(()),
    }
}
