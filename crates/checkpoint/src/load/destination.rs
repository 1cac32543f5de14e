//! Where the bytes of a load go: the caller's memory, behind one trait.

/// Memory that a piece of an item goes to.
pub trait Destination: Send {
    /// Takes bytes at `offset` from the piece's first byte. Within one range bytes come in order; when a range is
    /// read again they come again.
    fn write(&mut self, offset: u64, bytes: &[u8]);

    /// The piece's memory from `offset` on, to be filled in place of a `write`; empty (the default) where bytes must
    /// be written.
    fn memory(&mut self, offset: u64) -> &mut [u8] {
        let _ = offset;
        &mut []
    }

    /// Cuts this destination at `at`: `self` keeps what lies before, the answer takes what lies from there on, with
    /// offsets from its own first byte. Both are then written at the same time by different requests. `None` (the
    /// default) leaves it whole, and its writers take turns.
    fn split(&mut self, at: u64) -> Option<Box<dyn Destination>> {
        let _ = at;
        None
    }
}
