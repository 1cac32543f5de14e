//! `s3dcp settings`: which settings a client goes by, and where each of them stands.

use clap::Args;
use s3dcp_s3::{Setting, parse_s3_uri};
use serde::Serialize;

use crate::format::printable;
use crate::output::{Column, Output, table};
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Show the settings in use, and where each of them stands: an option, a variable or the profile
///
/// Nothing is sent, and keys are not looked for. With a bucket, the last lines say where its requests go, and for which region they
/// are signed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp settings\n  s3dcp settings s3://bucket --profile minio\n  s3dcp settings --json | jq -r '.[] | select(.name == \"endpoint_url\").value'"
)]
pub(crate) struct Arguments {
    /// A bucket, s3://bucket, or an access point
    uri: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    value: &'a str,
    source: &'a str,
}

impl Record<'_> {
    fn of(setting: &Setting) -> Record<'_> {
        Record { name: setting.name, value: &setting.value, source: &setting.source }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let bucket = arguments.uri.as_deref().map(parse_s3_uri).transpose()?.map(|(bucket, _)| bucket);
    let client = arguments.service.client()?;
    let found = runtime()?.block_on(client.settings(bucket.as_deref()))?;
    arguments.output.show(
        || found.iter().map(Record::of).collect::<Vec<_>>(),
        |out| {
            let columns = [Column::Words("setting"), Column::Words("value"), Column::Words("from")];
            let row = |setting: &Setting| {
                let words = [setting.name, &setting.value, &setting.source];
                words.map(|word| printable(word).into_owned()).to_vec()
            };
            write!(out, "{}", table(&columns, found.iter().map(row)))
        },
    )
}
