//! Two things at once.

use std::panic::resume_unwind;
use std::thread;

/// Bytes of an index that is worth a second thread.
const LARGE_BYTES: usize = 1 << 20;

/// What two functions answer that read an index of so many bytes. Of a large one both run at once, where a thread can be had.
pub(crate) fn both<A: Send, B>(
    bytes: usize,
    beside: impl Fn() -> A + Sync,
    here: impl FnOnce() -> B,
) -> (A, B) {
    thread::scope(|scope| {
        let thread = (bytes >= LARGE_BYTES)
            .then(|| thread::Builder::new().spawn_scoped(scope, &beside).ok())
            .flatten();
        let here = here();
        let beside = match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            None => beside(),
        };
        (beside, here)
    })
}
