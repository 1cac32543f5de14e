//! The constants of the model.

use std::time::Duration;

/// PUT and GET requests per second and directory bucket.
const DIRECTORY_WRITES: f64 = 200_000.0;
const DIRECTORY_READS: f64 = 2_000_000.0;
/// Longer than any job.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What a partition can take, and when it splits and merges.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// PUT, COPY, POST and DELETE requests per second and partition. Default 3,500, which AWS publishes ("at least 3,500
    /// PUT/COPY/POST/DELETE or 5,500 GET/HEAD requests per second per partitioned prefix", Amazon S3 User Guide, "Best practices
    /// design patterns: optimizing Amazon S3 performance").
    pub writes_per_second: f64,
    /// GET and HEAD requests per second and partition. Default 5,500, from the same page.
    pub reads_per_second: f64,
    /// How much unused budget a partition saves up, as seconds of its rate. Default 1 second. Assumed.
    pub burst: Duration,
    /// Over what time heat is averaged. Default 30 seconds. Assumed.
    pub heat_window: Duration,
    /// Share of a budget from which on a partition is hot. Default 0.8. Assumed.
    pub hot: f64,
    /// How long a partition is hot before it splits. Default 5 minutes. Assumed: AWS says that scaling "happens
    /// gradually and is not instantaneous", with 503 meanwhile, and names no time; reports speak of minutes to an hour.
    pub split_after: Duration,
    /// Share of a budget below which two neighbours together are cold. Default 0.1. Assumed.
    pub cold: f64,
    /// How long neighbours are cold before they merge. Default 24 hours. Assumed: AWS says nothing of merging.
    pub merge_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            writes_per_second: 3_500.0,
            reads_per_second: 5_500.0,
            burst: Duration::from_secs(1),
            heat_window: Duration::from_secs(30),
            hot: 0.8,
            split_after: Duration::from_secs(5 * 60),
            cold: 0.1,
            merge_after: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Limits {
    /// A directory bucket (S3 Express One Zone) as one partition that never splits: it has none, and takes so many requests in all
    /// ("up to 2,000,000 GET and up to 200,000 PUT transactions per second (TPS) per directory bucket", Amazon S3 User Guide,
    /// "Best practices to optimize S3 Express One Zone performance").
    pub fn directory_bucket() -> Self {
        Self {
            writes_per_second: DIRECTORY_WRITES,
            reads_per_second: DIRECTORY_READS,
            split_after: NEVER,
            ..Self::default()
        }
    }

    /// The same model with a hundredth, say, of the requests (`rate` 0.01), in which what takes minutes takes seconds
    /// (`speed` 60): small enough for one machine.
    pub fn scaled(&self, rate: f64, speed: f64) -> Self {
        Self {
            writes_per_second: self.writes_per_second * rate,
            reads_per_second: self.reads_per_second * rate,
            burst: self.burst,
            heat_window: self.heat_window.div_f64(speed),
            split_after: self.split_after.div_f64(speed),
            merge_after: self.merge_after.div_f64(speed),
            ..*self
        }
    }

    /// The first limit that makes no sense, in words.
    pub fn invalid(&self) -> Option<&'static str> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match self {
            _ if !positive(self.writes_per_second) => Some("writes_per_second must be a positive number"),
            _ if !positive(self.reads_per_second) => Some("reads_per_second must be a positive number"),
            _ if self.burst.is_zero() => Some("burst must be longer than nothing"),
            _ if self.heat_window.is_zero() => Some("heat_window must be longer than nothing"),
            _ if !positive(self.hot) || self.hot > 1.0 => Some("hot must be above 0 and at most 1"),
            _ if !positive(self.cold) || 2.0 * self.cold > self.hot => {
                Some("cold must be above 0 and at most half of hot, or what merges would split again")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense_and_what_does_not_is_named() {
        assert_eq!(Limits::default().invalid(), None);
        assert_eq!(Limits::default().scaled(0.01, 60.0).invalid(), None);
        assert_eq!(Limits::directory_bucket().invalid(), None);
        for (limits, named) in [
            (Limits { writes_per_second: 0.0, ..Limits::default() }, "writes_per_second"),
            (Limits { reads_per_second: f64::NAN, ..Limits::default() }, "reads_per_second"),
            (Limits { burst: Duration::ZERO, ..Limits::default() }, "burst"),
            (Limits { heat_window: Duration::ZERO, ..Limits::default() }, "heat_window"),
            (Limits { hot: 1.5, ..Limits::default() }, "hot"),
            (Limits { cold: 0.5, ..Limits::default() }, "cold"),
        ] {
            assert!(limits.invalid().is_some_and(|text| text.starts_with(named)), "{named}");
        }
    }
}
