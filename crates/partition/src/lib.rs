//! A model of how S3 divides its key space, in virtual time.
//!
//! S3 keeps keys in order and divides them into partitions, each with a budget of requests per second. Requests beyond
//! it are answered `503 SlowDown`. A partition that stays hot is split at a key, and each half has a budget of its own;
//! partitions that stay cold are merged. New prefixes bring no capacity by themselves: they lie in the partition that
//! has their keys, until it splits between them.
//!
//! [`KeySpace::admit`] is asked for every request, with a time that never goes back; nothing here knows a clock, a socket
//! or a thread. What AWS publishes and what is assumed stands beside each constant of [`Limits`].
//!
//! ```
//! use std::time::Duration;
//! use s3dcp_partition::{Access, KeySpace, Limits};
//!
//! let mut limits = Limits::default();
//! limits.writes_per_second = 10.0;
//! let mut space = KeySpace::new(limits);
//! let mut admitted = 0;
//! for request in 0..1000 {
//!     let now = Duration::from_millis(request);
//!     admitted += usize::from(space.admit(now, "bucket/__0_0.distcp", Access::Write).is_ok());
//! }
//! assert_eq!(admitted, 10 + 9); // the bucket's burst, and what came in during the second
//! ```

mod bucket;
mod heat;
mod limits;
mod partition;
mod space;

pub use limits::Limits;
pub use partition::Access;
pub use space::{KeySpace, PartitionView, SlowDown};
