//! What came of it.

use std::time::Duration;

use s3dcp_partition::PartitionView;

/// The result of a simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// One for each save or load.
    pub rounds: Vec<Round>,
    /// The fleet and the key space as time went on.
    pub moments: Vec<Moment>,
}

/// One save or load.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// When it began, since the begin of the first.
    pub began: Duration,
    /// Until the last rank was done and the index was written.
    pub duration: Duration,
    /// The least it could take: what the network needs for the bytes, or what the partitions that there were when it began
    /// need for its requests, whichever is longer.
    pub ideal: Duration,
    /// Requests that were admitted.
    pub admitted: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// How alike the ranks were served, after Jain: 1 when all were done at the same time.
    pub fairness: f64,
    /// Partitions at its end.
    pub partitions: usize,
    /// Bytes of the largest request.
    pub request_bytes: u64,
}

/// The state of things at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// Since the begin of the first round.
    pub at: Duration,
    /// Which round.
    pub round: u32,
    /// Bytes moved in this round so far, as a share of all.
    pub progress: f64,
    /// Requests refused since the moment before.
    pub refused: u64,
    /// The partitions in the order of their keys.
    pub partitions: Vec<PartitionView>,
}
