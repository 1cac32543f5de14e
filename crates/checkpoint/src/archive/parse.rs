//! Reads the head of a tensor archive: what tensor it is, and where its raw bytes lie.
//!
//! Only the bytes before the raw data are needed, because torch writes the pickle first and the storage after it.
//! The records on the way are stored uncompressed with their sizes in a descriptor behind them, so the walk looks
//! for a descriptor that fits; the CRC-32 it holds is checked (torch can be told to leave it zero). Anything that
//! is a sound archive but not one plain tensor in one storage is [`HeadState::NotPlain`], for torch itself to load.

use std::ops::Range;

use s3dcp_s3::{Error, crc32};

use super::spec::{MAX_DIMENSIONS, TensorSpec};
use super::zip::{le16, le32, le64};
use crate::dtype::DType;
use crate::error::corrupt;
use crate::pickle::value::{Tree, Value};

/// Most bytes a head may take: a pickle of a few hundred bytes and the padding of five records (at most 64 KiB
/// each) fit many times over.
pub const MAX_HEAD: u64 = 1 << 20;
/// What to ask for first: a head of torch's own default settings.
const USUAL_HEAD: u64 = 1024;

/// Bytes of an archive's end that [`ends_archive`] looks at: the end record, and the two of zip64 before it.
pub const MAX_END: u64 = END + ZIP64_END;
const END: u64 = 22;
const ZIP64_END: u64 = 56 + 20;

/// Where a tensor's raw bytes lie in its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveHead {
    /// The tensor.
    pub spec: TensorSpec,
    /// The storage's first byte, from the archive's first byte.
    pub data_offset: u64,
    /// Bytes of the whole storage, of which the tensor may be a part.
    pub data_length: u64,
    /// The raw bytes are big-endian: units of [`DType::swap_size`] bytes are to be reversed.
    pub big_endian: bool,
}

/// What the first bytes of an archive tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadState {
    /// Everything needed.
    Complete(ArchiveHead),
    /// The head goes on: come back with at least this many bytes from the archive's start (or all of them).
    NeedMore(u64),
    /// Not one plain tensor: only torch can load it.
    NotPlain,
}

/// Whether the last bytes of an item, [`MAX_END`] of them or all, end an archive that is the whole item, as torch
/// writes it.
#[must_use]
pub fn ends_archive(end: &[u8], length: u64) -> bool {
    directory_range(end, length).is_some()
}

/// Where the directory of such an archive lies in it; `None` for the end of no such one.
pub(crate) fn directory_range(end: &[u8], length: u64) -> Option<Range<u64>> {
    let (before, record) = end.split_last_chunk::<{ END as usize }>()?;
    if !record.starts_with(b"PK\x05\x06\0\0\0\0") || le16(&record[20..]) != 0 {
        return None;
    }
    let directory_end = length.checked_sub(END)?;
    let (size, offset) = (u64::from(le32(&record[12..])), u64::from(le32(&record[16..])));
    if offset + size == directory_end {
        return Some(offset..directory_end);
    }
    let (_, zip64) = before.split_last_chunk::<{ ZIP64_END as usize }>()?;
    if !zip64.starts_with(b"PK\x06\x06") || !zip64[56..].starts_with(b"PK\x06\x07") {
        return None;
    }
    let (size, offset) = (le64(&zip64[40..]), le64(&zip64[48..]));
    let directory_end = directory_end.checked_sub(ZIP64_END)?;
    (offset.checked_add(size) == Some(directory_end)).then_some(offset..directory_end)
}

/// Reads the head of the archive whose first bytes these are.
///
/// # Errors
/// `Corrupt` for bytes that torch could not have written; a head that never ends within [`MAX_HEAD`] is one.
pub fn parse_archive_head(bytes: &[u8]) -> Result<HeadState, Error> {
    let mut walk = Walk { bytes, position: 0 };
    let mut tensor = None;
    let mut big_endian = false;
    let mut folder: Option<&[u8]> = None;
    loop {
        let record = match walk.header()? {
            Step::Done(record) => record,
            Step::NeedMore(least) => return need_more(least, bytes),
            Step::NotPlain => return Ok(HeadState::NotPlain),
        };
        let Some(slash) = record.name.iter().position(|&byte| byte == b'/') else {
            return Ok(HeadState::NotPlain);
        };
        if *folder.get_or_insert(&record.name[..slash]) != &record.name[..slash] {
            return Ok(HeadState::NotPlain);
        }
        let name = &record.name[slash + 1..];
        if let Some(key) = name.strip_prefix(b"data/") {
            let Some(Plain { spec, data_length, key: expected }) = tensor else {
                return Ok(HeadState::NotPlain);
            };
            if key != expected {
                return Ok(HeadState::NotPlain);
            }
            let data_offset = walk.position as u64;
            return Ok(HeadState::Complete(ArchiveHead { spec, data_offset, data_length, big_endian }));
        }
        let content = match walk.content(&record)? {
            Step::Done(content) => content,
            Step::NeedMore(least) => return need_more(least, bytes),
            Step::NotPlain => return Ok(HeadState::NotPlain),
        };
        match name {
            b"data.pkl" => match plain_tensor(content)? {
                Some(found) => tensor = Some(found),
                None => return Ok(HeadState::NotPlain),
            },
            b"byteorder" => {
                big_endian = match content {
                    b"little" => false,
                    b"big" => true,
                    _ => return Err(corrupt("tensor archive: byteorder is neither little nor big")),
                }
            }
            _ => {}
        }
    }
}

fn need_more(least: u64, bytes: &[u8]) -> Result<HeadState, Error> {
    if bytes.len() as u64 >= MAX_HEAD {
        return Err(corrupt(format!("tensor archive: no end of its head within {MAX_HEAD} bytes")));
    }
    let more = (bytes.len() as u64 * 2).max(USUAL_HEAD);
    Ok(HeadState::NeedMore(least.max(more).min(MAX_HEAD)))
}

enum Step<T> {
    Done(T),
    /// At least so many bytes from the archive's start.
    NeedMore(u64),
    NotPlain,
}

struct Record<'a> {
    name: &'a [u8],
    /// CRC and size from the header itself, where no descriptor follows.
    known: Option<(u32, u64)>,
}

/// A place in the archive's first bytes.
struct Walk<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Walk<'a> {
    /// Reads a local header; afterwards the place is the record's first byte.
    fn header(&mut self) -> Result<Step<Record<'a>>, Error> {
        let left = &self.bytes[self.position..];
        if self.position == 0 && left.first() == Some(&0x80) {
            return Ok(Step::NotPlain); // torch's format before zip files begins with a pickle
        }
        let signature = b"PK\x03\x04";
        let seen = left.len().min(4);
        if left[..seen] != signature[..seen] {
            return match left[..seen] {
                // the central directory: there was no storage
                [b'P', b'K', 1, ..] => Ok(Step::NotPlain),
                _ => Err(corrupt(format!("tensor archive: no zip record at byte {}", self.position))),
            };
        }
        if left.len() < 30 {
            return Ok(Step::NeedMore(self.position as u64 + 30));
        }
        let flags = le16(&left[6..]);
        let method = le16(&left[8..]);
        let name_end = 30 + usize::from(le16(&left[26..]));
        let end = name_end + usize::from(le16(&left[28..]));
        if left.len() < end {
            return Ok(Step::NeedMore((self.position + end) as u64));
        }
        if method != 0 || flags & 1 != 0 {
            return Ok(Step::NotPlain);
        }
        let known = (flags & 8 == 0).then(|| (le32(&left[14..]), u64::from(le32(&left[18..]))));
        self.position += end;
        Ok(Step::Done(Record { name: &left[30..name_end], known }))
    }

    /// Reads a small record's content and steps over its descriptor.
    fn content(&mut self, record: &Record<'a>) -> Result<Step<&'a [u8]>, Error> {
        let left = &self.bytes[self.position..];
        let (length, crc, after) = match record.known {
            Some((crc, length)) => {
                let end = self.position as u64 + length;
                if end > MAX_HEAD {
                    return Ok(Step::NotPlain);
                }
                if end > self.bytes.len() as u64 {
                    return Ok(Step::NeedMore(end));
                }
                (length as usize, crc, 0)
            }
            None => match descriptor(left) {
                Some(found) => found,
                None => return Ok(Step::NeedMore(self.bytes.len() as u64 + 1)),
            },
        };
        let content = &left[..length];
        if crc != 0 && crc32(content) != crc {
            return Err(corrupt(format!(
                "tensor archive: the checksum of {} does not fit",
                String::from_utf8_lossy(record.name)
            )));
        }
        self.position += length + after;
        Ok(Step::Done(content))
    }
}

/// The first data descriptor whose sizes fit its place: content length, CRC, descriptor length.
fn descriptor(left: &[u8]) -> Option<(usize, u32, usize)> {
    let mut start = 0;
    while let Some(found) = left[start..].windows(4).position(|window| window == b"PK\x07\x08") {
        let place = start + found;
        let fields = &left[place + 4..];
        let length = place as u64;
        // the next record or directory follows a descriptor at once, which tells the two widths apart
        if fields.len() >= 14
            && u64::from(le32(&fields[4..])) == length
            && u64::from(le32(&fields[8..])) == length
            && &fields[12..14] == b"PK"
        {
            return Some((place, le32(fields), 16));
        }
        if fields.len() >= 20 && le64(&fields[4..]) == length && le64(&fields[12..]) == length {
            return Some((place, le32(fields), 24));
        }
        start = place + 1;
    }
    None
}

/// What the pickle says of a plain tensor.
pub(crate) struct Plain<'a> {
    pub(crate) spec: TensorSpec,
    /// Bytes of its storage.
    pub(crate) data_length: u64,
    /// What its storage is called.
    pub(crate) key: &'a [u8],
}

/// `None` when the pickle is sound but rebuilds something else than a plain tensor.
fn plain_tensor(pickle: &[u8]) -> Result<Option<Plain<'_>>, Error> {
    let tree = Tree::read(pickle)?;
    if tree.length() != pickle.len() {
        return Err(corrupt("tensor archive: bytes after the end of its pickle"));
    }
    rebuilt_tensor(&tree, tree.root())
}

/// The same of a value in a pickle.
pub(crate) fn rebuilt_tensor<'a>(tree: &Tree<'a>, root: Value) -> Result<Option<Plain<'a>>, Error> {
    let rebuild = match tree.maker(root) {
        Some(("torch._utils", rebuild)) => rebuild,
        Some(_) => return Ok(None),
        None => return Err(corrupt("tensor archive: what it holds is no tensor")),
    };
    let Some(arguments) = tree.arguments(root) else { return Ok(None) };
    // storage, offset, size, stride, requires_grad, hooks (an empty OrderedDict), and for v3 the dtype; a further
    // argument would be bits such as "conjugated", a state would be Python attributes
    let (count, named) = match (rebuild, arguments) {
        ("_rebuild_tensor_v2", [..]) => (6, None),
        ("_rebuild_tensor_v3", [_, _, _, _, _, _, dtype, ..]) => match tree.global(*dtype) {
            Some(("torch", name)) => match DType::from_torch_name(name) {
                Some(dtype) => (7, Some(dtype)),
                None => return Ok(None),
            },
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    if arguments.len() != count {
        return Ok(None);
    }
    let Some(storage) = tree.persistent_id(arguments[0]).and_then(|id| tree.tuple(id)) else {
        return Ok(None);
    };
    let &[tag, class, key, location, numel] = storage else { return Ok(None) };
    let (Some("storage"), Some(key), Some(_), Some(numel)) =
        (tree.text(tag), tree.text(key), tree.text(location), tree.int(numel))
    else {
        return Ok(None);
    };
    let (dtype, unit) = match (tree.global(class), named) {
        (Some(("torch.storage", "UntypedStorage")), Some(dtype)) => (dtype, 1),
        (Some(("torch", class)), named) => match DType::from_storage_class(class) {
            Some(typed) => (named.unwrap_or(typed), typed.item_size()),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let Value::Bool(requires_grad) = arguments[4] else { return Ok(None) };
    let (Some(shape), Some(strides)) = (dimensions(tree, arguments[2]), dimensions(tree, arguments[3]))
    else {
        return Ok(None);
    };
    let (Some(offset), Ok(numel)) = (tree.int(arguments[1]), u64::try_from(numel)) else { return Ok(None) };
    let impossible = || corrupt("tensor archive: the tensor does not fit its storage");
    let storage_offset = u64::try_from(offset).map_err(|_| impossible())?;
    let data_length =
        numel.checked_mul(unit).filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(impossible)?;
    let spec = TensorSpec { dtype, shape, strides, storage_offset, requires_grad };
    let fits = spec.shape.len() == spec.strides.len()
        && spec.extent_bytes().is_some_and(|extent| extent <= data_length);
    if !fits {
        return Err(impossible());
    }
    Ok(Some(Plain { spec, data_length, key: key.as_bytes() }))
}

/// The sizes or strides of a tensor: a tuple (or a `torch.Size` of one) of integers.
fn dimensions(tree: &Tree<'_>, value: Value) -> Option<Vec<u64>> {
    let items = match tree.maker(value) {
        Some(("torch", "Size")) => match tree.arguments(value)? {
            [items] => tree.tuple(*items)?,
            _ => return None,
        },
        _ => tree.tuple(value)?,
    };
    if items.len() > MAX_DIMENSIONS {
        return None;
    }
    items.iter().map(|&item| u64::try_from(tree.int(item)?).ok()).collect()
}
