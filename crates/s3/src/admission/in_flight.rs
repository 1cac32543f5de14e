//! The limit on the bytes of copies that uploads have in flight.
//!
//! `fuzz/models` compiles this file too, with locks whose interleavings it tries.

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::admission::sync::Arc;
use crate::error::{Error, ErrorKind};

/// Bytes of one unit of the limit; a semaphore counts at most 2^32 of them at once.
const UNIT: u64 = 4096;

/// The limit on the bytes of copies that uploads have in flight.
pub(crate) struct InFlight {
    units: Arc<Semaphore>,
    total: u32,
}

impl InFlight {
    pub(crate) fn new(bytes: u64) -> InFlight {
        let total = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        InFlight { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until so many bytes may go; more than all of them counts as all of them.
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
    async fn a_part_larger_than_the_limit_still_goes_alone() {
        let in_flight = InFlight::new(1 << 20);
        let all = in_flight.take(1 << 30).await.unwrap();
        assert_eq!(in_flight.units.available_permits(), 0);
        drop(all);
        assert_eq!(in_flight.units.available_permits(), 256);
    }
}
