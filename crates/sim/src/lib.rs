//! A fleet of ranks that save to S3 and load from it, in virtual time.
//!
//! What decides how long it takes is the shipped code itself: prefixes (`s3dcp-prefix`), part sizes (`s3dcp-s3`) and
//! pacing (`s3dcp-pacing`), against the model of S3's partitions (`s3dcp-partition`). What is made up is the network: a
//! latency, a rate for each connection and one for each rank. Equal seeds give equal results.
//!
//! ```
//! use s3dcp_sim::{Scenario, simulate};
//!
//! let mut scenario = Scenario::default();
//! scenario.world_size = 64;
//! scenario.bytes_per_rank = 1 << 30;
//! let outcome = simulate(&scenario);
//! assert!(outcome.rounds[0].duration >= outcome.rounds[0].ideal);
//! ```

mod advise;
mod fleet;
mod outcome;
mod rank;
mod scenario;
mod share;

pub use advise::{Advice, Choice, advise};
pub use fleet::simulate;
pub use outcome::{Moment, Outcome, Round};
pub use scenario::{Network, Operation, Paths, Scenario, Stragglers};
pub use share::{Sharing, share};
