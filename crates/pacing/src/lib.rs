//! How fast a client may send after S3 has answered `503 SlowDown`: pure, with the time as an argument.
//!
//! S3 gives a range of keys a budget of requests per second and tells nobody how large it is, how many clients share it or
//! where the range ends. A [`Lane`] finds its share of it. Before the first refusal nothing is held back; from then on
//! requests go at a rate that grows with every one that is admitted and is cut with every one that is refused. All
//! clients of one range see the same share of refusals, the faster ones more of them, and so they come to the same rate
//! without talking to each other. Where they can talk, a [`Share`] of what all of them were answered takes them there sooner.
//!
//! ```
//! use std::time::Duration;
//! use s3dcp_pacing::Lane;
//!
//! let mut lane = Lane::default();
//! let start = Duration::ZERO;
//! assert_eq!(lane.take(start), Ok(()));
//! assert_eq!(lane.take(start), Ok(())); // nothing was refused so far
//! lane.admitted();
//! lane.refused(start, start, 0.5);
//! let rate = lane.rate().expect("it is paced now");
//! assert_eq!(lane.take(start), Err(start + Duration::from_secs_f64(0.5 / rate)));
//! ```

mod budget;
mod lane;
mod lanes;
mod share;

pub use budget::{Budget, share_of_budget};
pub use lane::Lane;
pub use lanes::{Lanes, folder};
pub use share::Share;
