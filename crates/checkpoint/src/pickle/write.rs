//! Writes a pickle of protocol 4, opcode by opcode, in frames as Python's pickler does.
//!
//! Values that are equal and never changed may be written once: [`PickleWriter::share`] looks the bytes of a value
//! up among those written before. That makes an index much shorter than Python's, and what is not referred to again
//! takes no place in the memo, here or in whoever reads it.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::ops::Range;

use s3dcp_s3::Error;

use super::opcode::{Op, Opcodes};
use crate::error::corrupt;

/// Length from which a frame is closed at the next occasion, as in Python.
const FRAME_TARGET: usize = 64 << 10;
/// FRAME and its length.
const FRAME_HEADER: usize = 9;

/// Where a value begins, for [`PickleWriter::share`].
#[derive(Clone, Copy, Debug)]
pub struct ValueStart {
    at: usize,
    memo: u32,
}

/// A value in the memo.
#[derive(Clone, Copy, Debug)]
struct Shared {
    at: usize,
    length: u32,
    memo: u32,
}

/// Hashes are hashed already.
#[derive(Clone, Copy, Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys are hashed here");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A pickle in the making.
///
/// Its methods write opcodes; that they make sense together is the caller's care.
#[derive(Debug)]
pub struct PickleWriter {
    out: Vec<u8>,
    /// Where the open frame begins.
    frame: usize,
    /// How many values are in the memo.
    memo: u32,
    shared: HashMap<u64, Shared, BuildHasherDefault<Hashed>>,
    hasher: RandomState,
    globals: HashMap<(String, String), u32>,
}

impl Default for PickleWriter {
    fn default() -> PickleWriter {
        PickleWriter::new()
    }
}

impl PickleWriter {
    /// An empty pickle.
    #[must_use]
    pub fn new() -> PickleWriter {
        let mut writer = PickleWriter {
            out: vec![0x80, 4],
            frame: 0,
            memo: 0,
            shared: HashMap::default(),
            hasher: RandomState::new(),
            globals: HashMap::new(),
        };
        writer.open_frame();
        writer
    }

    /// The pickle's bytes, STOP included.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.close_frame();
        self.out
    }

    fn open_frame(&mut self) {
        self.frame = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_HEADER]);
        self.out[self.frame] = 0x95;
    }

    /// Ends the frame; an empty one goes without a trace.
    fn close_frame(&mut self) {
        let start = self.frame + FRAME_HEADER;
        let length = (self.out.len() - start) as u64;
        if length == 0 {
            self.out.truncate(self.frame);
        } else {
            self.out[self.frame + 1..start].copy_from_slice(&length.to_le_bytes());
        }
    }

    /// An occasion to begin a new frame: between two items of a list or a dict.
    pub fn between_items(&mut self) {
        if self.out.len() - self.frame > FRAME_TARGET {
            self.close_frame();
            self.open_frame();
        }
    }

    /// None.
    pub fn none(&mut self) {
        self.out.push(b'N');
    }

    /// True or False.
    pub fn bool(&mut self, value: bool) {
        self.out.push(if value { 0x88 } else { 0x89 });
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        if let Ok(byte) = u8::try_from(value) {
            self.out.extend_from_slice(&[b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.out.push(b'M');
            self.out.extend_from_slice(&short.to_le_bytes());
        } else if let Ok(word) = i32::try_from(value) {
            self.out.push(b'J');
            self.out.extend_from_slice(&word.to_le_bytes());
        } else {
            self.long(&value.to_le_bytes());
        }
    }

    /// An integer of any size, little-endian in two's complement.
    pub fn long(&mut self, mut bytes: &[u8]) {
        while let [rest @ .., before, last] = bytes
            && (*last == 0 && *before < 0x80 || *last == 0xff && *before >= 0x80)
        {
            bytes = &bytes[..=rest.len()];
        }
        match u8::try_from(bytes.len()) {
            Ok(length) => self.out.extend_from_slice(&[0x8a, length]),
            Err(_) => {
                self.out.push(0x8b);
                self.out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            }
        }
        self.out.extend_from_slice(bytes);
    }

    /// A float.
    pub fn float(&mut self, value: f64) {
        self.out.push(b'G');
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// Bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.counted([b'C', b'B', 0x8e], bytes);
    }

    /// One of three opcodes, by the width of its length.
    fn counted(&mut self, opcodes: [u8; 3], bytes: &[u8]) {
        let length = bytes.len() as u64;
        let (opcode, width) = match length {
            0..0x100 => (opcodes[0], 1),
            0x100..0x1_0000_0000 => (opcodes[1], 4),
            _ => (opcodes[2], 8),
        };
        self.out.push(opcode);
        self.out.extend_from_slice(&length.to_le_bytes()[..width]);
        self.out.extend_from_slice(bytes);
    }

    /// Text, each written once; its place in the memo.
    pub fn text(&mut self, text: &str) -> u32 {
        self.surrogatepass(text.as_bytes())
    }

    /// The same for text in the bytes of Python's `surrogatepass`, which are UTF-8 but for lone surrogates.
    pub fn surrogatepass(&mut self, text: &[u8]) -> u32 {
        let start = self.begin_value();
        self.plain_text(text);
        self.share(start).unwrap_or_else(|| self.memoize())
    }

    fn plain_text(&mut self, text: &[u8]) {
        self.counted([0x8c, b'X', 0x8d], text);
    }

    /// Text outside any frame, in the memo; where its opcode stands, and its place there. What stands there may be
    /// exchanged for [`text_opcode`] of another text later.
    pub(crate) fn detached_text(&mut self, text: &str) -> (Range<usize>, u32) {
        self.close_frame();
        let start = self.out.len();
        self.plain_text(text.as_bytes());
        let range = start..self.out.len();
        self.open_frame();
        (range, self.memoize())
    }

    /// MARK, where the items of a tuple, list or dict begin.
    pub fn mark(&mut self) {
        self.out.push(b'(');
    }

    /// A tuple of the items since the mark.
    pub fn tuple(&mut self) {
        self.out.push(b't');
    }

    /// A tuple of the last items, at most three; no mark.
    pub fn tuple_of(&mut self, count: u8) {
        debug_assert!(count <= 3, "longer tuples need a mark");
        self.out.push([b')', 0x85, 0x86, 0x87][usize::from(count)]);
    }

    /// An empty list.
    pub fn empty_list(&mut self) {
        self.out.push(b']');
    }

    /// Appends the items since the mark to the list below it.
    pub fn appends(&mut self) {
        self.out.push(b'e');
    }

    /// An empty dict.
    pub fn empty_dict(&mut self) {
        self.out.push(b'}');
    }

    /// Sets the keys and values since the mark in the dict below it.
    pub fn set_items(&mut self) {
        self.out.push(b'u');
    }

    /// A class or function; its place in the memo.
    pub fn global(&mut self, module: &str, name: &str) -> u32 {
        let key = (module.to_owned(), name.to_owned());
        if let Some(&memo) = self.globals.get(&key) {
            self.get(memo);
            return memo;
        }
        self.text(module);
        self.text(name);
        self.out.push(0x93);
        let memo = self.memoize();
        self.globals.insert(key, memo);
        memo
    }

    /// Makes the object of the class just written, without arguments.
    pub fn new_object(&mut self) {
        self.out.extend_from_slice(&[b')', 0x81]);
    }

    /// Calls the function or class below with the tuple above it.
    pub fn reduce(&mut self) {
        self.out.push(b'R');
    }

    /// Gives the object below the state above it.
    pub fn build(&mut self) {
        self.out.push(b'b');
    }

    /// Puts the value just written into the memo; its place there.
    pub fn memoize(&mut self) -> u32 {
        self.out.push(0x94);
        let place = self.memo;
        self.memo += 1;
        place
    }

    /// The value at this place of the memo.
    pub fn get(&mut self, memo: u32) {
        match u8::try_from(memo) {
            Ok(memo) => self.out.extend_from_slice(&[b'h', memo]),
            Err(_) => {
                self.out.push(b'j');
                self.out.extend_from_slice(&memo.to_le_bytes());
            }
        }
    }

    /// Notes where a value begins that [`PickleWriter::share`] ends.
    #[must_use]
    pub fn begin_value(&self) -> ValueStart {
        ValueStart { at: self.out.len(), memo: self.memo }
    }

    /// Ends a value that nobody will change: where the same bytes were shared before, they are taken back and the
    /// memo is referred to. The value's place in the memo; `None` when something in it is in the memo for itself.
    pub fn share(&mut self, start: ValueStart) -> Option<u32> {
        if start.memo != self.memo || start.at < self.frame {
            return None;
        }
        let value = &self.out[start.at..];
        let hash = self.hasher.hash_one(value);
        if let Some(&known) = self.shared.get(&hash) {
            if self.out[known.at..][..known.length as usize] == *value {
                self.out.truncate(start.at);
                self.get(known.memo);
                return Some(known.memo);
            }
            return Some(self.memoize());
        }
        let length = u32::try_from(value.len()).ok()?;
        let memo = self.memoize();
        self.shared.insert(hash, Shared { at: start.at, length, memo });
        Some(memo)
    }

    /// Takes in the value of another pickle of protocol 4.
    ///
    /// # Errors
    /// `Corrupt` for what Python's pickler does not write in that protocol.
    pub fn embed(&mut self, pickle: &[u8]) -> Result<(), Error> {
        let base = self.memo;
        let mut opcodes = Opcodes::new(pickle);
        loop {
            let start = opcodes.position();
            match opcodes.next()? {
                Op::Stop => return Ok(()),
                Op::Proto(_) | Op::Frame => {}
                Op::Put(_) => {
                    return Err(corrupt("pickle: numbers its memo itself, which protocol 4 does not"));
                }
                Op::Get(place) => {
                    let place = base.checked_add(place).filter(|&place| place < self.memo);
                    self.get(place.ok_or_else(|| corrupt("pickle: refers to a place that is not set"))?);
                }
                Op::Memoize => {
                    self.memoize();
                }
                _ => self.out.extend_from_slice(&pickle[start..opcodes.position()]),
            }
        }
    }
}

/// The opcode that pushes `text`.
pub(crate) fn text_opcode(text: &str) -> Vec<u8> {
    let mut writer = PickleWriter { out: Vec::new(), ..PickleWriter::new() };
    writer.plain_text(text.as_bytes());
    writer.out
}
