//! Names that are never used twice: upload ids, ETags, request ids, data files.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of 32-digit hexadecimal names: the time of the process's start, then a count, then chance.
#[derive(Debug)]
pub(crate) struct Ids {
    epoch: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self { epoch, next: AtomicU64::new(1) }
    }

    /// A new name; later names sort after earlier ones.
    pub(crate) fn next(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:012x}{:08x}{:012x}", self.epoch & 0xffff_ffff_ffff, count, fastrand::u64(..) >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hexadecimal_and_sorted_by_age() {
        let ids = Ids::new();
        let names: Vec<String> = (0..1000).map(|_| ids.next()).collect();
        assert!(names.is_sorted());
        assert!(names.iter().all(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
