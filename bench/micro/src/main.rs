//! What the pure parts cost, one by one.
//!
//! ```text
//! s3dcp-bench-micro time              # Criterion's statistics of every case
//! s3dcp-bench-micro names             # every case, those small enough for instructions to be counted with a "*"
//! s3dcp-bench-micro count NAME TIMES  # runs one of them that often and nothing else, for Valgrind to watch
//! ```
//!
//! `bench/micro.py` makes a table of it: instructions are what two different TIMES differ by, so that starting up and preparing
//! a case do not count.

mod cases;

use std::io::Write;
use std::time::Duration;

use criterion::Criterion;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["time"] => {
            let mut criterion = Criterion::default()
                .sample_size(20)
                .warm_up_time(Duration::from_millis(500))
                .measurement_time(Duration::from_secs(2));
            for case in cases::all() {
                let mut run = (case.prepare)();
                criterion.bench_function(case.name, |bencher| bencher.iter(&mut run));
            }
            criterion.final_summary();
        }
        ["names"] => {
            for case in cases::all() {
                writeln!(std::io::stdout(), "{}{}", case.name, if case.small { "*" } else { "" })?;
            }
        }
        ["count", name, times] => {
            let case = cases::all().into_iter().find(|case| case.name == *name);
            let mut run = (case.ok_or_else(|| format!("no such case: {name}"))?.prepare)();
            for _ in 0..times.parse::<u32>()? {
                run();
            }
        }
        _ => return Err("usage: s3dcp-bench-micro time | names | count NAME TIMES".into()),
    }
    Ok(())
}
