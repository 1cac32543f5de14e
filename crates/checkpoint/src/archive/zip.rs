//! The zip files of torch: records that are stored as they are, each padded so that its data begins at a 64-byte boundary, with
//! data descriptors, so that the CRC may follow the data. Sizes and offsets of 4 GiB and more take the zip64 forms.

use std::borrow::Cow;

use s3dcp_s3::crc32;

/// Raw tensor bytes begin at a multiple of this, counted from the archive's start.
pub(crate) const ALIGNMENT: u64 = 64;
/// Sizes and offsets from here on take zip64 fields.
const ZIP64_FROM: u64 = u32::MAX as u64;

/// One record of the archive, as the central directory will name it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) name: Cow<'static, str>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) crc: u32,
}

impl Record {
    fn is_zip64(&self) -> bool {
        self.length >= ZIP64_FROM || self.offset >= ZIP64_FROM
    }

    /// Appends the zip64 extra field, empty where none is needed. The stored size is `stored`: torch leaves it zero in
    /// local headers.
    fn zip64_extra(&self, out: &mut Vec<u8>, stored: u64) {
        let big_length = self.length >= ZIP64_FROM;
        let big_offset = self.offset >= ZIP64_FROM;
        if big_length || big_offset {
            put16(out, 1);
            put16(out, 16 * u16::from(big_length) + 8 * u16::from(big_offset));
        }
        if big_length {
            put64(out, self.length);
            put64(out, stored);
        }
        if big_offset {
            put64(out, self.offset);
        }
    }

    fn flags(&self) -> u16 {
        // UTF-8 names, and a data descriptor where there is data
        0x0800 | (u16::from(self.length > 0) << 3)
    }

    /// Appends the local header, up to the record's aligned first data byte.
    pub(crate) fn local_header(&self, out: &mut Vec<u8>) {
        let zip64_length = match (self.length >= ZIP64_FROM, self.offset >= ZIP64_FROM) {
            (false, false) => 0,
            (true, false) => 20,
            (false, true) => 12,
            (true, true) => 28,
        };
        let unpadded = self.offset + 30 + self.name.len() as u64 + zip64_length + 4;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        out.extend_from_slice(b"PK\x03\x04");
        put16(out, 0);
        put16(out, self.flags());
        out.extend_from_slice(&[0; 18]); // method, time, date, CRC, sizes: the descriptor has them
        put16(out, self.name.len() as u16);
        put16(out, (zip64_length + 4 + padding) as u16);
        out.extend_from_slice(self.name.as_bytes());
        self.zip64_extra(out, 0);
        out.extend_from_slice(b"FB");
        put16(out, padding as u16);
        out.resize(out.len() + padding as usize, b'Z');
    }

    /// Appends the data descriptor that follows the record's data.
    pub(crate) fn descriptor(&self, out: &mut Vec<u8>) {
        if self.length == 0 {
            return;
        }
        out.extend_from_slice(b"PK\x07\x08");
        put32(out, self.crc);
        for _ in 0..2 {
            if self.is_zip64() {
                put64(out, self.length);
            } else {
                put32(out, self.length as u32);
            }
        }
    }

    pub(crate) fn central_header(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(b"PK\x01\x02\0\0\0\0");
        put16(out, self.flags());
        out.extend_from_slice(&[0; 6]); // method, time, date
        put32(out, self.crc);
        put32(out, self.length.min(ZIP64_FROM) as u32);
        put32(out, self.length.min(ZIP64_FROM) as u32);
        put16(out, self.name.len() as u16);
        put16(out, 0); // the length of the extra field, filled in below
        out.extend_from_slice(&[0; 10]); // comment, disk, attributes
        put32(out, self.offset.min(ZIP64_FROM) as u32);
        out.extend_from_slice(self.name.as_bytes());
        let before = out.len();
        self.zip64_extra(out, self.length);
        let extra = (out.len() - before) as u16;
        out[start + 30..start + 32].copy_from_slice(&extra.to_le_bytes());
    }
}

/// Appends a whole small record; `base` is the archive's length before `out`'s first byte.
pub(crate) fn stored(name: &'static str, content: &[u8], base: u64, out: &mut Vec<u8>) -> Record {
    let record = Record {
        name: name.into(),
        offset: base + out.len() as u64,
        length: content.len() as u64,
        crc: crc32(content),
    };
    record.local_header(out);
    out.extend_from_slice(content);
    record.descriptor(out);
    record
}

/// Appends what ends a directory of so many records, which goes from `directory` to `end`.
pub(crate) fn end_of_directory(out: &mut Vec<u8>, count: u64, directory: u64, end: u64) {
    let size = end - directory;
    out.extend_from_slice(b"PK\x06\x06");
    put64(out, 44);
    put16(out, 0x031e);
    put16(out, 45);
    put64(out, 0); // disks
    put64(out, count);
    put64(out, count);
    put64(out, size);
    put64(out, directory);
    out.extend_from_slice(b"PK\x06\x07\0\0\0\0");
    put64(out, end);
    put32(out, 1);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    put16(out, count.min(u64::from(u16::MAX)) as u16);
    put16(out, count.min(u64::from(u16::MAX)) as u16);
    put32(out, size.min(ZIP64_FROM) as u32);
    put32(out, directory.min(ZIP64_FROM) as u32);
    put16(out, 0);
}

pub(crate) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn le16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

pub(crate) fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

pub(crate) fn le64(bytes: &[u8]) -> u64 {
    u64::from(le32(bytes)) | u64::from(le32(&bytes[4..])) << 32
}
