//! Cuts a pickle into opcodes: protocols 2 to 5, what Python's own pickler writes in them.
//!
//! Refused by name: the text opcodes of protocol 0, the class opcodes INST and OBJ, extension codes and
//! out-of-band buffers. Every length is checked against the bytes that are there.

use s3dcp_s3::Error;

use crate::error::corrupt;

/// One opcode with its argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op<'a> {
    Proto(u8),
    Frame,
    Stop,
    Mark,
    Pop,
    PopMark,
    Dup,
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits.
    LongInt(&'a [u8]),
    Float(f64),
    Text(&'a str),
    /// Text with lone surrogates, which UTF-8 cannot say, in the bytes of Python's `surrogatepass`.
    Surrogates(&'a [u8]),
    Bytes(&'a [u8]),
    EmptyTuple,
    Tuple,
    /// The topmost one, two or three items.
    TupleOf(usize),
    EmptyList,
    Append,
    Appends,
    EmptyDict,
    SetItem,
    SetItems,
    EmptySet,
    AddItems,
    FrozenSet,
    Global(&'a str, &'a str),
    StackGlobal,
    Reduce,
    NewObj,
    NewObjEx,
    Build,
    PersistentId,
    Get(u32),
    Put(u32),
    Memoize,
}

/// Whether Python reads these bytes as text: UTF-8, in which surrogates stand as if they were characters.
fn is_surrogatepass(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Err(error) = std::str::from_utf8(rest) {
        match rest[error.valid_up_to()..] {
            [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..] => rest = &rest[error.valid_up_to() + 3..],
            _ => return false,
        }
    }
    true
}

// Apart and by value, so that the position stays in a register.
#[cold]
fn ends_inside(position: usize) -> Error {
    corrupt(format!("pickle ends inside the opcode at byte {position}"))
}

/// Reads opcodes from the front of some bytes.
pub(crate) struct Opcodes<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Opcodes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Opcodes::at(bytes, 0)
    }

    /// Those from `position` on, which must be the front of one.
    pub(crate) fn at(bytes: &'a [u8], position: usize) -> Self {
        Opcodes { bytes, position }
    }

    /// How many bytes have been read.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    #[inline(always)]
    fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let left = &self.bytes[self.position..];
        let count = usize::try_from(count).ok().filter(|&count| count <= left.len());
        let Some(count) = count else {
            return Err(ends_inside(self.position));
        };
        self.position += count;
        Ok(&left[..count])
    }

    #[inline(always)]
    fn number<const BYTES: usize>(&mut self) -> Result<u64, Error> {
        let taken = self.take(BYTES as u64)?;
        let mut wide = [0; 8];
        wide[..BYTES].copy_from_slice(taken);
        Ok(u64::from_le_bytes(wide))
    }

    #[inline(always)]
    fn counted<const WIDTH: usize>(&mut self) -> Result<&'a [u8], Error> {
        let length = self.number::<WIDTH>()?;
        self.take(length)
    }

    #[inline(always)]
    fn text<const WIDTH: usize>(&mut self) -> Result<Op<'a>, Error> {
        let start = self.position;
        let bytes = self.counted::<WIDTH>()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Op::Text(text)),
            Err(_) if is_surrogatepass(bytes) => Ok(Op::Surrogates(bytes)),
            Err(_) => Err(corrupt(format!("pickle: text at byte {start} is not UTF-8"))),
        }
    }

    #[inline(always)]
    fn long<const WIDTH: usize>(&mut self) -> Result<Op<'a>, Error> {
        let bytes = self.counted::<WIDTH>()?;
        if bytes.len() > 8 {
            return Ok(Op::LongInt(bytes));
        }
        let negative = bytes.last().is_some_and(|&high| high >= 0x80);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(Op::Int(i64::from_le_bytes(wide)))
    }

    fn line(&mut self) -> Result<&'a str, Error> {
        let start = self.position;
        let left = &self.bytes[start..];
        // module and class names; bounded so that many unterminated lines cannot cost quadratic time
        let window = &left[..left.len().min(1024)];
        let end = window.iter().position(|&byte| byte == b'\n');
        let line = end.and_then(|end| std::str::from_utf8(&window[..end]).ok());
        let Some(line) = line else {
            return Err(corrupt(format!("pickle: no name at byte {start}")));
        };
        self.position = start + line.len() + 1;
        Ok(line)
    }

    /// The next opcode; after [`Op::Stop`] do not call again.
    ///
    /// # Errors
    /// `Corrupt` for bytes that end too early or an opcode that is unknown or refused.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Op<'a>, Error> {
        let code = self.take(1)?[0];
        Ok(match code {
            0x80 => Op::Proto(self.take(1)?[0]),
            0x95 => {
                let length = self.number::<8>()?;
                if length > (self.bytes.len() - self.position) as u64 {
                    let start = self.position - 9;
                    return Err(corrupt(format!(
                        "pickle: the frame at byte {start} is longer than the rest"
                    )));
                }
                Op::Frame
            }
            b'.' => Op::Stop,
            b'(' => Op::Mark,
            b'0' => Op::Pop,
            b'1' => Op::PopMark,
            b'2' => Op::Dup,
            b'N' => Op::None,
            0x88 => Op::Bool(true),
            0x89 => Op::Bool(false),
            b'K' => Op::Int(self.number::<1>()? as i64),
            b'M' => Op::Int(self.number::<2>()? as i64),
            b'J' => Op::Int(i64::from(self.number::<4>()? as u32 as i32)),
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'G' => Op::Float(f64::from_bits(self.number::<8>()?.swap_bytes())),
            0x8c => self.text::<1>()?,
            b'X' => self.text::<4>()?,
            0x8d => self.text::<8>()?,
            b'C' => Op::Bytes(self.counted::<1>()?),
            b'B' => Op::Bytes(self.counted::<4>()?),
            0x8e | 0x96 => Op::Bytes(self.counted::<8>()?),
            b')' => Op::EmptyTuple,
            b't' => Op::Tuple,
            0x85..=0x87 => Op::TupleOf(usize::from(code - 0x84)),
            b']' => Op::EmptyList,
            b'a' => Op::Append,
            b'e' => Op::Appends,
            b'}' => Op::EmptyDict,
            b's' => Op::SetItem,
            b'u' => Op::SetItems,
            0x8f => Op::EmptySet,
            0x90 => Op::AddItems,
            0x91 => Op::FrozenSet,
            b'c' => {
                let module = self.line()?;
                Op::Global(module, self.line()?)
            }
            0x93 => Op::StackGlobal,
            b'R' => Op::Reduce,
            0x81 => Op::NewObj,
            0x92 => Op::NewObjEx,
            b'b' => Op::Build,
            b'Q' => Op::PersistentId,
            b'h' => Op::Get(self.number::<1>()? as u32),
            b'j' => Op::Get(self.number::<4>()? as u32),
            b'q' => Op::Put(self.number::<1>()? as u32),
            b'r' => Op::Put(self.number::<4>()? as u32),
            0x94 => Op::Memoize,
            other => {
                let name = match other {
                    b'i' => "INST, which runs code",
                    b'o' => "OBJ, which runs code",
                    0x82..=0x84 => "an extension code",
                    0x97 | 0x98 => "an out-of-band buffer",
                    b'P' => "a textual persistent id",
                    b'I' | b'L' | b'F' | b'S' | b'V' | b'T' | b'U' | b'g' | b'p' | b'd' | b'l' => {
                        "an opcode of protocols 0 and 1"
                    }
                    _ => "an unknown opcode",
                };
                let start = self.position - 1;
                return Err(corrupt(format!("pickle: byte {start} is {name} (0x{other:02x})")));
            }
        })
    }
}
