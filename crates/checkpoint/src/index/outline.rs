//! Where the entries of a large index stand in its pickle, so that each can be unpickled when somebody asks for it.
//!
//! A pickle can be read from its front alone: an entry refers to values that came before it, by their numbers in the memo. So
//! one walk notes where each entry begins, where each value in the memo stands, and a hash of each key. What is cut out
//! later is a pickle of its own.
//!
//! Only what Python's pickler and this crate's writer make is outlined. Whatever is unusual (an object that is changed after
//! it was referred to, a key that is there twice) has no outline, and is unpickled as a whole.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::iter::once;
use std::ops::Range;

use s3dcp_s3::Error;

use crate::error::corrupt;
use crate::index::allow::AllowList;
use crate::index::judge::judged;
use crate::pickle::opcode::{Op, Opcodes};

/// The mappings of a `Metadata` whose entries are found one by one, in the order of their numbers; entries of the last have no hashes.
pub const MAPPINGS: [&str; 3] = ["state_dict_metadata", "storage_data", "planner_data"];
const ITEMS: usize = 1;
const HASHED: usize = 2;

/// An item that is not in the memo.
const NOT_IN_MEMO: u32 = u32::MAX;
/// An item that was taken out of the memo.
const FROM_MEMO: u32 = u32::MAX - 1;
/// Slots of a table, for each four of its entries.
const SLOTS_PER_FOUR: usize = 5;
/// Texts of up to so many bytes, with their opcodes, are copied rather than referred to: the names of attributes.
const LONGEST_NAME: u32 = 24;
const SHORT_TEXT: u8 = 0x8c;
/// Bytes of a pickle before the content of its first frame: the protocol's number, the opcode of the frame and its length.
const BEFORE_FRAME: usize = 2 + 1 + 8;
const EMPTY_SLOT: (u32, u32) = (0, u32::MAX);

/// What becomes of references to values outside of what is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum References {
    /// The values are included.
    Included,
    /// They are persistent objects.
    Persistent,
}

/// A value in the memo.
#[derive(Clone, Copy)]
struct Known {
    start: u32,
    /// Where it was put into the memo: after the opcode that did it.
    at: u32,
    /// Where the last opcode ends that changed it.
    end: u32,
}

/// The entries of one mapping.
#[derive(Default)]
struct Mapping {
    /// From its opcode to the end of what fills it.
    range: Range<u32>,
    starts: Vec<u32>,
    /// Where runs of entries end that were set at once, and how many entries there are up to there.
    runs: Vec<(u32, u32)>,
    /// Half of a hash and the number of an entry, at the place that the other half says or after it.
    slots: Vec<(u32, u32)>,
}

impl Mapping {
    /// The place at which the search for a hash begins.
    fn slot(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    /// Fills the table; whether no two entries have the same hash.
    fn hash(&mut self, hashes: &[u64]) -> bool {
        self.slots = vec![EMPTY_SLOT; hashes.len() * SLOTS_PER_FOUR / 4 + 1];
        for (number, &hash) in hashes.iter().enumerate() {
            let mut slot = self.slot(hash);
            while self.slots[slot] != EMPTY_SLOT {
                let (half, other) = self.slots[slot];
                if half == hash as u32 && hashes[other as usize] == hash {
                    return false;
                }
                slot = (slot + 1) % self.slots.len();
            }
            self.slots[slot] = (hash as u32, number as u32);
        }
        true
    }

    /// The entries that may have this hash.
    fn find(&self, hash: u64) -> Vec<u32> {
        let mut found = Vec::new();
        let mut slot = self.slot(hash);
        while self.slots[slot] != EMPTY_SLOT {
            let (half, number) = self.slots[slot];
            if half == hash as u32 {
                found.push(number);
            }
            slot = (slot + 1) % self.slots.len();
        }
        found
    }

    fn entry(&self, number: u32) -> Option<Range<u32>> {
        let start = *self.starts.get(number as usize)?;
        let run = self.runs.partition_point(|&(_, count)| count <= number);
        let (end, count) = self.runs[run];
        let end = if number + 1 == count { end } else { self.starts[number as usize + 1] };
        Some(start..end)
    }
}

/// Where the entries of an index stand in its pickle. Methods that take the pickle want the one it was made of.
pub struct Outline {
    length: u32,
    memo: Vec<Known>,
    mappings: [Mapping; MAPPINGS.len()],
    hasher: RandomState,
}

impl Outline {
    /// Judges the bytes of an index as [`check_index`](crate::check_index) does; with it its outline, unless it is unusual.
    ///
    /// # Errors
    /// `Corrupt`, as there.
    pub fn of(index: &[u8], allow: &AllowList) -> Result<Option<Outline>, Error> {
        let pickle = judged(index, allow)?.0;
        Ok(if u32::try_from(pickle.len()).is_ok() { Walk::new(pickle).outline()? } else { None })
    }

    /// How many entries of a mapping are outlined; `None` where that is not how many it has, as no hashes of its keys are
    /// kept, which may be there twice.
    #[must_use]
    pub fn count(&self, mapping: usize) -> Option<usize> {
        let count = self.mappings[mapping].starts.len();
        (mapping < HASHED || count == 0).then_some(count)
    }

    /// The entries of a mapping that may have this text as their key; `None` where no hashes of such keys are kept.
    #[must_use]
    pub fn find_text(&self, mapping: usize, key: &str) -> Option<Vec<u32>> {
        (mapping < ITEMS).then(|| self.mappings[mapping].find(hash_of_text(&self.hasher, key)))
    }

    /// The same for a `MetadataIndex`.
    #[must_use]
    pub fn find_item(&self, mapping: usize, name: &str, offset: Option<&[i64]>) -> Option<Vec<u32>> {
        let name = hash_of_text(&self.hasher, name);
        let offset = match offset {
            None => NONE_HASH,
            Some(offset) => hash_of_tuple(offset.iter().map(|&number| hash_of_int(number))),
        };
        (mapping == ITEMS).then(|| self.mappings[mapping].find(hash_of_index(&self.hasher, name, offset)))
    }

    /// A pickle of the tuple of an entry's key and value; `None` where there is no such entry. What they refer to is a
    /// persistent object there, whose id is the number that [`Outline::value`] takes.
    ///
    /// # Errors
    /// `Corrupt` for another pickle.
    pub fn entry(&self, pickle: &[u8], mapping: usize, number: u32) -> Result<Option<Vec<u8>>, Error> {
        let entry = self.mappings[mapping].entry(number);
        entry.map(|entry| self.cut(pickle, once(entry), &[0x86], References::Persistent)).transpose()
    }

    /// A pickle of a value that an entry refers to, with what it refers to in its turn; `None` where there is none.
    ///
    /// # Errors
    /// `Corrupt` for another pickle.
    pub fn value(&self, pickle: &[u8], number: u32) -> Result<Option<Vec<u8>>, Error> {
        let known = self.memo.get(number as usize).map(|known| known.start..known.end);
        known.map(|known| self.cut(pickle, once(known), &[], References::Included)).transpose()
    }

    /// A pickle of the tuple of whole mappings: of one, or of two that share what both refer to.
    ///
    /// # Errors
    /// `Corrupt` for another pickle.
    pub fn mappings(&self, pickle: &[u8], first: usize, second: Option<usize>) -> Result<Vec<u8>, Error> {
        let ranges = once(first).chain(second).map(|mapping| self.mappings[mapping].range.clone());
        let tuple = if second.is_some() { 0x86 } else { 0x85 };
        self.cut(pickle, ranges, &[tuple], References::Included)
    }

    /// A pickle of the index without the entries of its mappings.
    ///
    /// # Errors
    /// `Corrupt` for another pickle.
    pub fn frame(&self, pickle: &[u8]) -> Result<Vec<u8>, Error> {
        let mut left_out: Vec<_> = self.mappings.iter().filter(|mapping| !mapping.range.is_empty()).collect();
        left_out.sort_by_key(|mapping| mapping.range.start);
        let mut slices = Vec::new();
        let mut start = 0;
        for mapping in left_out {
            // the opcode of the empty dict stays
            slices.push(start..mapping.range.start + 1);
            start = mapping.range.end;
        }
        slices.push(start..self.length - 1);
        self.cut(pickle, slices, &[], References::Included)
    }

    /// A pickle of what the opcodes in `slices` and then `last` make.
    fn cut(
        &self,
        pickle: &[u8],
        slices: impl IntoIterator<Item = Range<u32>>,
        last: &[u8],
        references: References,
    ) -> Result<Vec<u8>, Error> {
        if pickle.len() < self.length as usize {
            return Err(other_pickle());
        }
        // one frame, for Python reads what is outside of frames piece by piece; its length comes at last
        let mut out = vec![0x80, 4, 0x95];
        out.resize(BEFORE_FRAME, 0);
        // numbers in this memo of values in the index's, of which some come twice: alone, and within another
        let mut memo: HashMap<u32, u32> = HashMap::new();
        let mut count = 0;
        let mut open = Vec::new();
        for slice in slices {
            open.push(self.open(pickle, slice.start, slice.end));
            while let Some((opcodes, end, next)) = open.last_mut() {
                let start = opcodes.position();
                if start >= *end as usize {
                    open.pop();
                    continue;
                }
                match opcodes.next()? {
                    Op::Proto(_) | Op::Frame => {}
                    Op::Memoize | Op::Put(_) => {
                        memo.insert(*next, count);
                        count += 1;
                        *next += 1;
                        out.push(0x94);
                    }
                    Op::Get(place) => match memo.get(&place) {
                        Some(&place) => {
                            out.push(b'j');
                            out.extend_from_slice(&place.to_le_bytes());
                        }
                        None => {
                            let known = self.memo.get(place as usize).ok_or_else(other_pickle)?;
                            let is_name = known.end - known.start <= LONGEST_NAME
                                && pickle[known.start as usize] == SHORT_TEXT;
                            match i32::try_from(place) {
                                Ok(id) if references == References::Persistent && !is_name => {
                                    out.push(b'J');
                                    out.extend_from_slice(&id.to_le_bytes());
                                    out.push(b'Q');
                                }
                                _ => open.push(self.open(pickle, known.start, known.end)),
                            }
                        }
                    },
                    _ => out.extend_from_slice(&pickle[start..opcodes.position()]),
                }
            }
        }
        out.extend_from_slice(last);
        out.push(b'.');
        let length = (out.len() - BEFORE_FRAME) as u64;
        out[BEFORE_FRAME - size_of_val(&length)..BEFORE_FRAME].copy_from_slice(&length.to_le_bytes());
        Ok(out)
    }

    /// The opcodes of a slice, its end, and the number in the memo that comes next in it.
    fn open<'a>(&self, pickle: &'a [u8], start: u32, end: u32) -> (Opcodes<'a>, u32, u32) {
        let next = self.memo.partition_point(|known| known.at <= start) as u32;
        (Opcodes::at(pickle, start as usize), end, next)
    }
}

fn other_pickle() -> Error {
    corrupt("pickle: not the one that was outlined")
}

/// The bit of a hash that says whether it is that of a state with a name, or of an object with such a state.
const NAMED: u64 = 1;
const NONE_HASH: u64 = 0x243f_6a88_85a3_08d2;
const EMPTY_TUPLE_HASH: u64 = 0x1319_8a2e_0370_7344;
const EMPTY_DICT_HASH: u64 = 0x4528_21e6_38d0_1376;
/// Of what is no key, nor part of one.
const OTHER_HASH: u64 = 0xa409_3822_299f_31d0;

fn hash_of_text(hasher: &RandomState, text: &str) -> u64 {
    hasher.hash_one(text.as_bytes()) & !NAMED
}

fn hash_of_int(number: i64) -> u64 {
    (number as u64 ^ 0x082e_fa98_ec4e_6c89).wrapping_mul(0x9e37_79b9_7f4a_7c15) & !NAMED
}

/// That of one item is the item's, so that a `torch.Size`, which is made by a call with one argument, has that of its tuple.
fn hash_of_tuple(mut items: impl Iterator<Item = u64>) -> u64 {
    let first = items.next().unwrap_or(EMPTY_TUPLE_HASH);
    items.fold(first, |hash, item| {
        (hash.rotate_left(23) ^ item).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    }) & !NAMED
}

/// The hash of a `MetadataIndex`.
fn hash_of_index(hasher: &RandomState, name: u64, offset: u64) -> u64 {
    hasher.hash_one((name, offset)) | NAMED
}

/// What the walk knows of an item on the stack.
#[derive(Clone, Copy)]
struct Item {
    start: u32,
    /// Its number in the memo.
    memo: u32,
    hash: u64,
}

struct Walk<'a> {
    pickle: &'a [u8],
    hasher: RandomState,
    stack: Vec<Item>,
    /// Where the stack was, and the opcode.
    marks: Vec<(u32, u32)>,
    memo: Vec<Known>,
    hashes: Vec<u64>,
    /// Of each value in the memo, whether it was referred to.
    is_used: Vec<bool>,
    mappings: [Mapping; MAPPINGS.len()],
    keys: [Vec<u64>; HASHED],
    /// Where on the stack each mapping is, and its number in the memo.
    places: [Option<(usize, u32)>; MAPPINGS.len()],
    /// Hashes of the texts that are looked for.
    names: [u64; MAPPINGS.len()],
    name_of_items: u64,
    name_of_offsets: u64,
}

/// What has no outline.
struct Unusual;

impl<'a> Walk<'a> {
    fn new(pickle: &'a [u8]) -> Walk<'a> {
        let hasher = RandomState::new();
        let hash = |text: &str| hash_of_text(&hasher, text);
        Walk {
            pickle,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            hashes: Vec::new(),
            is_used: Vec::new(),
            mappings: Default::default(),
            keys: Default::default(),
            places: Default::default(),
            names: MAPPINGS.map(hash),
            name_of_items: hash("fqn"),
            name_of_offsets: hash("offset"),
            hasher,
        }
    }

    fn outline(mut self) -> Result<Option<Outline>, Error> {
        let mut opcodes = Opcodes::new(self.pickle);
        let mut is_built = false;
        loop {
            let start = opcodes.position() as u32;
            let op = opcodes.next()?;
            let end = opcodes.position() as u32;
            match op {
                Op::Stop => return Ok(if is_built { self.finish(end) } else { None }),
                // nothing comes after the state of the index
                _ if is_built => return Ok(None),
                Op::Build if self.stack.len() == 2 && self.marks.is_empty() => is_built = true,
                op => {
                    if self.step(op, start, end).is_err() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn finish(mut self, length: u32) -> Option<Outline> {
        for (mapping, keys) in self.mappings.iter_mut().zip(&mut self.keys) {
            // one after the other, so that no two lists of hashes live beside the tables
            if !mapping.hash(&std::mem::take(keys)) {
                return None;
            }
        }
        for place in self.places.iter().flatten() {
            // a mapping that is something else as well
            if self.is_used.get(place.1 as usize).is_some_and(|used| *used) {
                return None;
            }
        }
        self.memo.shrink_to_fit();
        for mapping in &mut self.mappings {
            mapping.starts.shrink_to_fit();
        }
        Some(Outline { length, memo: self.memo, mappings: self.mappings, hasher: self.hasher })
    }

    fn push(&mut self, start: u32, hash: u64) {
        self.stack.push(Item { start, memo: NOT_IN_MEMO, hash });
    }

    /// Makes one item of the last `count`, which begins where they do.
    fn merge(&mut self, count: usize, start: Option<u32>, hash: u64) -> Result<(), Unusual> {
        let from = self.stack.len().checked_sub(count).ok_or(Unusual)?;
        let start = start.or_else(|| Some(self.stack.get(from)?.start)).ok_or(Unusual)?;
        self.stack.truncate(from);
        self.push(start, hash);
        Ok(())
    }

    /// Where the items since the last mark begin, on the stack and in the pickle.
    fn unmark(&mut self) -> Result<(usize, u32), Unusual> {
        let (place, at) = self.marks.pop().ok_or(Unusual)?;
        Ok((place as usize, at))
    }

    fn memoize(&mut self, at: u32) -> Result<(), Unusual> {
        let number = u32::try_from(self.memo.len()).map_err(|_| Unusual)?;
        let top = self.stack.last_mut().ok_or(Unusual)?;
        match top.memo {
            NOT_IN_MEMO => top.memo = number,
            FROM_MEMO => return Err(Unusual),
            // there twice: changed no more
            first => self.is_used[first as usize] = true,
        }
        self.memo.push(Known { start: top.start, at, end: at });
        self.hashes.push(top.hash);
        self.is_used.push(false);
        Ok(())
    }

    /// The item at this place of the stack was changed by an opcode that ends at `end`.
    fn changed(&mut self, place: usize, end: u32, hash: u64) -> Result<(), Unusual> {
        let item = self.stack.get_mut(place).ok_or(Unusual)?;
        item.hash = hash;
        match item.memo {
            NOT_IN_MEMO => {}
            FROM_MEMO => return Err(Unusual),
            number if self.is_used[number as usize] => return Err(Unusual),
            number => {
                self.memo[number as usize].end = end;
                self.hashes[number as usize] = hash;
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op<'a>, start: u32, end: u32) -> Result<(), Unusual> {
        match op {
            Op::Proto(_) | Op::Frame => {}
            Op::Mark => self.marks.push((self.stack.len() as u32, start)),
            Op::Text(text) => self.push(start, hash_of_text(&self.hasher, text)),
            Op::Int(number) => self.push(start, hash_of_int(number)),
            Op::None => self.push(start, NONE_HASH),
            Op::EmptyDict => self.push(start, EMPTY_DICT_HASH),
            Op::EmptyTuple => self.push(start, EMPTY_TUPLE_HASH),
            Op::Tuple => {
                let (place, at) = self.unmark()?;
                let hash =
                    hash_of_tuple(self.stack.get(place..).ok_or(Unusual)?.iter().map(|item| item.hash));
                self.merge(self.stack.len() - place, Some(at), hash)?;
            }
            Op::TupleOf(count) => {
                let from = self.stack.len().checked_sub(count).ok_or(Unusual)?;
                let hash = hash_of_tuple(self.stack[from..].iter().map(|item| item.hash));
                self.merge(count, None, hash)?;
            }
            Op::FrozenSet => {
                let (place, at) = self.unmark()?;
                self.merge(self.stack.len() - place, Some(at), OTHER_HASH)?;
            }
            Op::StackGlobal => self.merge(2, None, OTHER_HASH)?,
            Op::Reduce | Op::NewObj => {
                let arguments = self.stack.last().ok_or(Unusual)?.hash;
                self.merge(2, None, arguments)?;
            }
            Op::NewObjEx => self.merge(3, None, OTHER_HASH)?,
            Op::Append => {
                self.stack.pop().ok_or(Unusual)?;
                self.changed(self.stack.len().checked_sub(1).ok_or(Unusual)?, end, OTHER_HASH)?;
            }
            Op::Appends | Op::AddItems => {
                let place = self.unmark()?.0;
                self.stack.truncate(place);
                self.changed(place.checked_sub(1).ok_or(Unusual)?, end, OTHER_HASH)?;
            }
            Op::SetItem => self.set_items(self.stack.len().checked_sub(2).ok_or(Unusual)?, start, end)?,
            Op::SetItems => {
                let place = self.unmark()?.0;
                self.set_items(place, start, end)?;
            }
            Op::Build => {
                let state = self.stack.pop().ok_or(Unusual)?;
                let place = self.stack.len().checked_sub(1).ok_or(Unusual)?;
                // one that was made of nothing is what its state says
                let is_blank = self.stack[place].hash == EMPTY_TUPLE_HASH;
                self.changed(place, end, if is_blank { state.hash } else { OTHER_HASH })?;
            }
            Op::Get(number) => {
                let hash = *self.hashes.get(number as usize).ok_or(Unusual)?;
                self.is_used[number as usize] = true;
                self.stack.push(Item { start, memo: FROM_MEMO, hash });
            }
            Op::Memoize => self.memoize(end)?,
            Op::Put(number) if number as usize == self.memo.len() => self.memoize(end)?,
            Op::Put(_) | Op::Pop | Op::PopMark | Op::Dup | Op::PersistentId | Op::Stop => {
                return Err(Unusual);
            }
            // plain values of which no key is made
            Op::Bool(_)
            | Op::LongInt(_)
            | Op::Float(_)
            | Op::Surrogates(_)
            | Op::Bytes(_)
            | Op::EmptyList
            | Op::EmptySet
            | Op::Global(..) => self.push(start, OTHER_HASH),
        }
        Ok(())
    }

    /// Keys and values from `first` on go into the dict below them.
    fn set_items(&mut self, first: usize, start: u32, end: u32) -> Result<(), Unusual> {
        let place = first.checked_sub(1).ok_or(Unusual)?;
        let hash = match self.mapping_at(place) {
            Some(mapping) => {
                self.note_entries(mapping, place, first, start, end)?;
                OTHER_HASH
            }
            None if self.marks.is_empty() && place == 1 => {
                self.check_places(first)?;
                OTHER_HASH
            }
            None => self.hash_of_state(place, first),
        };
        self.stack.truncate(first);
        self.changed(place, end, hash)
    }

    /// The mapping of the index that the dict at this place of the stack is: below it are the index, its state, and then
    /// names and values of the state.
    fn mapping_at(&self, place: usize) -> Option<usize> {
        let [(2, _)] = self.marks[..] else { return None };
        let item = self.stack.get(place)?;
        if place < 3 || place.is_multiple_of(2) || self.pickle[item.start as usize] != b'}' {
            return None;
        }
        let name = self.stack[place - 1].hash;
        self.names.iter().position(|&known| known == name)
    }

    fn note_entries(
        &mut self,
        mapping: usize,
        place: usize,
        first: usize,
        start: u32,
        end: u32,
    ) -> Result<(), Unusual> {
        let item = self.stack[place];
        if self.places[mapping].is_some_and(|known| known.0 != place) {
            return Err(Unusual);
        }
        self.places[mapping] = Some((place, item.memo));
        let noted = &mut self.mappings[mapping];
        for pair in self.stack[first..].chunks_exact(2) {
            noted.starts.push(pair[0].start);
            if let Some(keys) = self.keys.get_mut(mapping) {
                let is_named = pair[0].hash & NAMED != 0;
                if is_named != (mapping == ITEMS) {
                    return Err(Unusual);
                }
                keys.push(pair[0].hash);
            }
        }
        noted.range = item.start..end;
        noted.runs.push((start, noted.starts.len() as u32));
        Ok(())
    }

    /// Sees that the names of the mappings in the index's state are there once, where entries were noted.
    fn check_places(&self, first: usize) -> Result<(), Unusual> {
        for (name, place) in self.names.iter().zip(&self.places) {
            let mut named = (first..self.stack.len()).step_by(2).filter(|&at| self.stack[at].hash == *name);
            if let Some((place, _)) = place
                && (named.next() != Some(place - 1) || named.next().is_some())
            {
                return Err(Unusual);
            }
        }
        Ok(())
    }

    /// The hash of a dict, as that of a `MetadataIndex` which has it as its state.
    fn hash_of_state(&self, place: usize, first: usize) -> u64 {
        if self.stack[place].hash != EMPTY_DICT_HASH {
            return OTHER_HASH;
        }
        let (mut name, mut offset) = (None, NONE_HASH);
        for pair in self.stack[first..].chunks_exact(2) {
            if pair[0].hash == self.name_of_items {
                name = Some(pair[1].hash);
            } else if pair[0].hash == self.name_of_offsets {
                offset = pair[1].hash;
            }
        }
        name.map_or(OTHER_HASH, |name| hash_of_index(&self.hasher, name, offset))
    }
}
