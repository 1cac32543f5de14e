//! Request bodies: owned memory segments that go to the socket without a copy.
//!
//! A body is cut in frames of up to 256 KiB; a frame is a list of slices of the segments, so that many small
//! segments go out in one vectored write. Whatever owns the memory of a segment is released when the last frame
//! of it has left: its destructor must be able to run on any thread. A body lives in its attempt, with the connection that
//! sends it: whoever drops the attempt knows that its memory is not read any more, sent or not.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::http::progress::Progress;
use crate::protocol::checksum::{crc32, crc32_combine};

/// Most bytes of one frame.
const FRAME_BYTES: usize = 256 * 1024;
/// Most slices of one frame; the HTTP library hands at most 64 to one `writev`.
const FRAME_SLICES: usize = 32;

/// The body of a request: owned segments, sent in order, never copied. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Payload {
    segments: Arc<[Bytes]>,
    len: u64,
}

impl Payload {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments, none of them empty.
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// CRC-32 of all bytes; reads them all.
    pub fn crc32(&self) -> u32 {
        self.segments.iter().fold(0, |crc, segment| crc32_combine(crc, crc32(segment), segment.len() as u64))
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(mut segments: Vec<Bytes>) -> Payload {
        segments.retain(|segment| !segment.is_empty());
        let len = segments.iter().map(|segment| segment.len() as u64).sum();
        Payload { segments: segments.into(), len }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload::from(vec![bytes])
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload::from(Bytes::from(bytes))
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes in {} segments)", self.len, self.segments.len())
    }
}

/// One frame: slices that the socket takes with one vectored write.
#[derive(Default)]
pub(crate) struct Slices {
    slices: VecDeque<Bytes>,
    remaining: usize,
}

impl Buf for Slices {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.slices.front().map_or(&[], |slice| slice)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        for (place, slice) in out.iter_mut().zip(&self.slices) {
            *place = IoSlice::new(slice);
            used += 1;
        }
        used
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end of a frame");
        self.remaining -= count;
        while count > 0 {
            let Some(front) = self.slices.front_mut() else { return };
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.slices.pop_front();
        }
    }
}

/// The body that the HTTP library polls; it reports progress as frames are taken.
#[derive(Clone)]
pub(crate) struct PayloadBody {
    payload: Payload,
    segment: usize,
    offset: usize,
    remaining: u64,
    progress: Arc<Progress>,
}

impl PayloadBody {
    pub(crate) fn new(payload: Payload, progress: Arc<Progress>) -> PayloadBody {
        let remaining = payload.len;
        PayloadBody { payload, segment: 0, offset: 0, remaining, progress }
    }

    /// The same bytes from the first on, for another request.
    pub(crate) fn again(&self, progress: Arc<Progress>) -> PayloadBody {
        PayloadBody::new(self.payload.clone(), progress)
    }

    fn next_frame(&mut self) -> Option<Slices> {
        let mut frame = Slices::default();
        while frame.remaining < FRAME_BYTES && frame.slices.len() < FRAME_SLICES {
            let Some(segment) = self.payload.segments.get(self.segment) else { break };
            let take = (segment.len() - self.offset).min(FRAME_BYTES - frame.remaining);
            frame.slices.push_back(segment.slice(self.offset..self.offset + take));
            frame.remaining += take;
            self.offset += take;
            if self.offset == segment.len() {
                self.segment += 1;
                self.offset = 0;
            }
        }
        self.remaining -= frame.remaining as u64;
        (frame.remaining > 0).then_some(frame)
    }
}

impl Body for PayloadBody {
    type Data = Slices;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Slices>, Infallible>>> {
        let frame = self.next_frame();
        if let Some(frame) = &frame {
            self.progress.sent(frame.remaining as u64);
        }
        Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(payload: &Payload) -> Vec<Slices> {
        let mut body = PayloadBody::new(payload.clone(), Arc::default());
        let mut frames = Vec::new();
        while let Some(frame) = body.next_frame() {
            frames.push(frame);
        }
        assert!(body.is_end_stream());
        frames
    }

    #[test]
    fn frames_keep_the_order_and_point_into_the_segments() {
        let sizes = [1usize, 700_000, 0, 3, 262_144, 5, 262_145];
        let segments: Vec<Bytes> =
            sizes.iter().enumerate().map(|(index, size)| Bytes::from(vec![index as u8; *size])).collect();
        let payload = Payload::from(segments.clone());
        assert_eq!(payload.len(), sizes.iter().sum::<usize>() as u64);
        let (mut segment, mut offset) = (0, 0);
        for frame in frames(&payload) {
            assert!(frame.remaining <= FRAME_BYTES);
            for slice in &frame.slices {
                assert_eq!(slice.as_ptr(), payload.segments()[segment][offset..].as_ptr());
                offset += slice.len();
                if offset == payload.segments()[segment].len() {
                    (segment, offset) = (segment + 1, 0);
                }
            }
        }
        assert_eq!((segment, offset), (6, 0));
    }

    #[test]
    fn many_small_segments_share_a_frame() {
        let segments: Vec<Bytes> = (0..100u8).map(|n| Bytes::from(vec![n; 100])).collect();
        let frames = frames(&Payload::from(segments));
        assert_eq!(frames.iter().map(|f| f.slices.len()).collect::<Vec<_>>(), [32, 32, 32, 4]);
    }

    #[test]
    fn advancing_releases_what_was_sent() {
        let payload = Payload::from(vec![Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10])]);
        let mut frame = frames(&payload).remove(0);
        frame.advance(3);
        assert_eq!((frame.chunk().len(), frame.remaining()), (7, 17));
        frame.advance(9);
        assert_eq!((frame.chunk(), frame.remaining()), (&[2u8; 8][..], 8));
        let mut out = [IoSlice::new(&[]); 4];
        assert_eq!(frame.chunks_vectored(&mut out), 1);
        frame.advance(8);
        assert!(frame.slices.is_empty() && frame.chunk().is_empty());
    }

    #[test]
    fn the_owner_is_released_with_the_last_frame() {
        struct Owner(Vec<u8>, #[expect(dead_code, reason = "held for its count")] Arc<()>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let alive = Arc::new(());
        let payload = Payload::from(Bytes::from_owner(Owner(vec![0; 300_000], Arc::clone(&alive))));
        let mut body = PayloadBody::new(payload, Arc::default());
        let first = body.next_frame();
        let second = body.next_frame();
        drop((first, body));
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(second);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn the_checksum_is_that_of_the_bytes_in_order() {
        let payload =
            Payload::from(vec![Bytes::from_static(b"1234"), Bytes::new(), Bytes::from_static(b"56789")]);
        assert_eq!(payload.crc32(), 0xcbf4_3926);
        assert_eq!(Payload::default().crc32(), 0);
    }
}
