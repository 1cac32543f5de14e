//! What an upload is handed: bytes, and whether they are a copy that exists for its sake alone.

use bytes::Bytes;

/// A piece of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its bytes.
    pub bytes: Bytes,
    /// Whether their owner keeps this memory anyway, as a model keeps its tensors. Such bytes cost no memory while they are on
    /// their way, so that no limit on bytes in flight counts them; all others are copies, which are freed once they are sent.
    pub is_borrowed: bool,
}

impl Segment {
    /// Bytes of memory that their owner keeps anyway.
    pub fn borrowed(bytes: impl Into<Bytes>) -> Segment {
        Segment { bytes: bytes.into(), is_borrowed: true }
    }

    /// Splits the first `length` bytes off.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn split_to(&mut self, length: usize) -> Segment {
        Segment { bytes: self.bytes.split_to(length), is_borrowed: self.is_borrowed }
    }
}

impl<T: Into<Bytes>> From<T> for Segment {
    fn from(bytes: T) -> Segment {
        Segment { bytes: bytes.into(), is_borrowed: false }
    }
}
