//! Admission: every attempt, first or repeated, passes here, and holds its permit until its answer is read.
//!
//! The layers are Retry(Pacing(Limit(Http))): a sleeping retry holds nothing. Today admission is the limit on
//! connections; control of the request rate per key prefix belongs into [`Gate::admit`], which already learns what
//! the request is, and into [`Permit::answered`], which learns how it went.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind};

/// What is about to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) write: bool,
}

/// The limit on requests at once.
pub(crate) struct Gate {
    connections: Arc<Semaphore>,
}

/// The right to one attempt.
pub(crate) struct Permit {
    _connection: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(max_connections: usize) -> Gate {
        Gate { connections: Arc::new(Semaphore::new(max_connections)) }
    }

    /// Waits for the right to send one attempt.
    pub(crate) async fn admit(&self, request: Request<'_>) -> Permit {
        let connection =
            Arc::clone(&self.connections).acquire_owned().await.expect("the semaphore is never closed");
        tracing::trace!(bucket = request.bucket, key = request.key, write = request.write, "attempt");
        Permit { _connection: connection }
    }
}

/// Bytes of one unit of the budget; a semaphore counts at most 2^32 of them at once.
const UNIT: u64 = 4096;

/// The limit on the bytes that uploads have in flight.
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        let total = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until so many bytes may go; more than the whole budget counts as the whole budget.
    pub(crate) async fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.total);
        Arc::clone(&self.units)
            .acquire_many_owned(units)
            .await
            .map_err(|_| Error::new(ErrorKind::Interrupted, "the client was closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_larger_than_the_budget_still_goes_alone() {
        let budget = Budget::new(1 << 20);
        let all = budget.take(1 << 30).await.unwrap();
        assert_eq!(budget.units.available_permits(), 0);
        drop(all);
        assert_eq!(budget.units.available_permits(), 256);
    }
}
