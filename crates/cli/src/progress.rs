//! How far a subcommand has come, for whoever watches: a bar on standard error.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of bytes. It is drawn on a terminal alone, and gone when it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(show: bool, total_bytes: u64) -> Progress {
        let bar = if show { ProgressBar::new(total_bytes) } else { ProgressBar::hidden() };
        let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Clears it before its time.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
