//! `s3dcp bench`: what this machine and a bucket give.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use s3dcp_checkpoint::Layout;
use s3dcp_s3::{Client, Error, Payload, PutOptions, RangeRead, RangeSink, WhenLate, parse_s3_uri};
use serde::Serialize;

use crate::format::{parse_size, printable, size};
use crate::output::{Column, Output, bad, faint, table};
use crate::progress::Progress;
use crate::report::Failure;
use crate::service::{Service, runtime};

/// Requests that tell the latency, and the bytes of each.
const SMALL_REQUESTS: usize = 50;
const SMALL_BYTES: u64 = 1 << 10;
/// Widest bar of the chart, in columns.
const BAR: f64 = 24.0;

/// Measure what this machine and a bucket give: throughput by connections, latency, SlowDowns
///
/// Objects are written, read again and deleted, in rounds with more and more connections. They are called as shard files of a
/// save are: what a bench that was killed left, `s3dcp prune` finds. A service may ask for money for the requests.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  s3dcp bench s3://bucket/bench\n  s3dcp bench s3://bucket/bench --connections 8,32,128 --total 8GiB --json"
)]
pub(crate) struct Arguments {
    /// Where the objects go: s3://bucket/path
    uri: String,
    /// Connections of each round
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_value = "1,4,16,64")]
    connections: Vec<usize>,
    /// Bytes that each round writes, and reads
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    total: u64,
    /// Bytes of each object, which is one request
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_size)]
    object_size: u64,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Measured {
    uri: String,
    /// Bytes that each round wrote, and read.
    total_bytes: u64,
    object_bytes: u64,
    /// Of small requests, one at a time.
    small_write: Latency,
    small_read: Latency,
    rounds: Vec<Round>,
}

/// A round with so many connections.
#[derive(Debug, Default, Serialize)]
struct Round {
    connections: usize,
    write_bytes_per_second: f64,
    read_bytes_per_second: f64,
    /// Of whole objects.
    write: Latency,
    slow_downs: u64,
    retries: u64,
}

/// Of requests, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Latency {
    median: f64,
    p99: f64,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Latency {
        times.sort_unstable();
        let at = |part: f64| {
            let place = (times.len() as f64 * part).ceil() as usize;
            times.get(place.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Latency { median: at(0.5), p99: at(0.99) }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (bucket, path_key) = parse_s3_uri(&arguments.uri)?;
    let clients = arguments.connections.iter().map(|&connections| arguments.service.client_of(connections));
    let bench = Bench {
        clients: clients.collect::<Result<_, _>>()?,
        objects: usize::try_from(arguments.total.div_ceil(arguments.object_size).max(1))
            .unwrap_or(usize::MAX),
        object_size: arguments.object_size,
        bucket,
        layout: Layout::new(&path_key),
        id: format!("{:016x}", fastrand::u64(..)),
    };
    let rounds = bench.clients.len() as u64;
    let bytes = bench.total().saturating_mul(2).saturating_mul(rounds);
    let progress = Arc::new(Progress::new(!arguments.output.json, bytes));
    let runtime = runtime()?;
    let measured = runtime.block_on(async {
        tokio::select! {
            measured = bench.measure(&arguments.uri, &progress) => measured.map_err(Failure::from),
            stopped = tokio::signal::ctrl_c() => {
                stopped.map_err(Failure::failed)?;
                Err(Failure::failed("stopped"))
            }
        }
    });
    progress.end();
    let removed = runtime.block_on(bench.remove());
    let measured = measured?;
    removed?;
    arguments.output.show(|| &measured, |out| tell(out, &measured))
}

struct Bench {
    clients: Vec<Client>,
    bucket: String,
    layout: Layout,
    id: String,
    objects: usize,
    object_size: u64,
}

impl Bench {
    fn total(&self) -> u64 {
        self.object_size.saturating_mul(self.objects as u64)
    }

    fn key(&self, number: usize) -> Result<String, Error> {
        Ok(self.layout.shard_file("__0_", number as u32, &self.id)?.key)
    }

    async fn measure(&self, uri: &str, progress: &Arc<Progress>) -> Result<Measured, Error> {
        let mut measured = Measured {
            uri: uri.to_owned(),
            total_bytes: self.total(),
            object_bytes: self.object_size,
            ..Measured::default()
        };
        if let Some(client) = self.clients.first() {
            (measured.small_write, measured.small_read) = self.small(client).await?;
        }
        let mut body = vec![0; usize::try_from(self.object_size).unwrap_or(usize::MAX)];
        fastrand::Rng::new().fill(&mut body);
        let body = Bytes::from(body);
        for client in &self.clients {
            measured.rounds.push(self.round(client, &body, progress).await?);
        }
        Ok(measured)
    }

    /// Small requests, one at a time: the first opens the connection and does not count.
    async fn small(&self, client: &Client) -> Result<(Latency, Latency), Error> {
        let key = self.key(0)?;
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..=SMALL_REQUESTS {
            let begun = Instant::now();
            let body = Payload::from(vec![0; SMALL_BYTES as usize]);
            client.put_object(&self.bucket, &key, body, &PutOptions::default()).await?;
            writes.push(begun.elapsed());
            let begun = Instant::now();
            client.get_range(&self.bucket, &key, 0..SMALL_BYTES).await?;
            reads.push(begun.elapsed());
        }
        Ok((Latency::of(writes.split_off(1)), Latency::of(reads.split_off(1))))
    }

    async fn round(&self, client: &Client, body: &Bytes, progress: &Arc<Progress>) -> Result<Round, Error> {
        let connections = client.config().max_connections.unwrap_or(1);
        let begun = Instant::now();
        let times = stream::iter(0..self.objects)
            .map(async |number| {
                let begun = Instant::now();
                let key = self.key(number)?;
                let options = PutOptions::default();
                client.put_object(&self.bucket, &key, Payload::from(body.clone()), &options).await?;
                progress.add(self.object_size);
                Ok::<_, Error>(begun.elapsed())
            })
            .buffer_unordered(connections)
            .try_collect()
            .await?;
        let wrote = begun.elapsed();
        let mut reads = Vec::with_capacity(self.objects);
        for number in 0..self.objects {
            let (key, sink) = (self.key(number)?, Box::new(Nowhere(progress.clone())));
            reads.push(RangeRead { key, range: 0..self.object_size, sink });
        }
        let begun = Instant::now();
        client.download(&self.bucket, reads).await?;
        let read = begun.elapsed();
        let per_second = |time: Duration| self.total() as f64 / time.as_secs_f64().max(1e-9);
        let stats = client.stats();
        Ok(Round {
            connections,
            write_bytes_per_second: per_second(wrote),
            read_bytes_per_second: per_second(read),
            write: Latency::of(times),
            slow_downs: stats.throttled,
            retries: stats.retries,
        })
    }

    /// Deletes what was written.
    async fn remove(&self) -> Result<(), Error> {
        let Some(client) = self.clients.first() else { return Ok(()) };
        let keys = (0..self.objects).map(|number| self.key(number)).collect::<Result<Vec<_>, _>>()?;
        let failed = client.delete_objects(&self.bucket, &keys, WhenLate::Wait).await?;
        failed.into_iter().next().map_or(Ok(()), |failure| Err(failure.into_error(&self.bucket)))
    }
}

/// Takes bytes and keeps none.
struct Nowhere(Arc<Progress>);

impl RangeSink for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0.add(bytes.len() as u64);
        Ok(())
    }

    fn restart(&mut self) {}

    fn finish(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

fn tell(out: &mut dyn Write, measured: &Measured) -> io::Result<()> {
    let columns = [
        Column::Numbers("connections"),
        Column::Numbers("write"),
        Column::Words(""),
        Column::Numbers("read"),
        Column::Words(""),
        Column::Numbers("write median"),
        Column::Numbers("p99"),
        Column::Numbers("SlowDowns"),
        Column::Numbers("retries"),
    ];
    let rates =
        measured.rounds.iter().flat_map(|round| [round.write_bytes_per_second, round.read_bytes_per_second]);
    let fastest = rates.fold(0.0, f64::max);
    let bar = |rate: f64| "█".repeat((rate / fastest * BAR).round().max(1.0) as usize);
    let rows = measured.rounds.iter().map(|round| {
        let slow_downs = round.slow_downs.to_string();
        vec![
            round.connections.to_string(),
            format!("{}/s", size(round.write_bytes_per_second as u64)),
            bar(round.write_bytes_per_second),
            format!("{}/s", size(round.read_bytes_per_second as u64)),
            bar(round.read_bytes_per_second),
            milliseconds(round.write.median),
            milliseconds(round.write.p99),
            if round.slow_downs > 0 { bad(slow_downs) } else { slow_downs },
            round.retries.to_string(),
        ]
    });
    write!(out, "{}", table(&columns, rows))?;
    let (total, object) = (size(measured.total_bytes), size(measured.object_bytes));
    let uri = printable(&measured.uri);
    writeln!(out, "{}", faint(format!("{uri}: each round {total} in objects of {object}")))?;
    let small =
        |latency: Latency| format!("{}, p99 {}", milliseconds(latency.median), milliseconds(latency.p99));
    let (write, read) = (small(measured.small_write), small(measured.small_read));
    writeln!(out, "{}", faint(format!("1 KiB, one at a time: write {write}; read {read}")))
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_times_that_were() {
        let times = |of: u64| (1..=of).map(Duration::from_secs).collect();
        let latency = Latency::of(times(100));
        assert_eq!((latency.median, latency.p99), (50.0, 99.0));
        let latency = Latency::of(times(1));
        assert_eq!((latency.median, latency.p99), (1.0, 1.0));
        assert_eq!(Latency::of(Vec::new()).p99, 0.0);
    }
}
