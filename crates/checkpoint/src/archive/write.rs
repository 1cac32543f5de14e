//! Builds the bytes of a tensor archive around its raw data: a head before, a tail after.
//!
//! The result is byte for byte what `torch.save(tensor)` of torch 2.15 writes: a zip of stored records, each padded
//! so that its data begins at a 64-byte boundary, with data descriptors (so the CRC may follow the data), a pickle
//! that rebuilds the tensor, and torch's fingerprint record. Sizes and offsets of 4 GiB and more take the zip64
//! forms.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use s3dcp_s3::{Error, crc32};

use super::spec::TensorSpec;
use super::zip::{Record, end_of_directory, put16, put32, stored};
use crate::error::config;

/// torch's hash of the names of the six records, the first half of its fingerprint.
const NAMES_FINGERPRINT: &str = "15728199511854643026";
/// Decimal digits of each half of the fingerprint, and of the whole.
const FINGERPRINT_DIGITS: usize = 20;
const ID_LENGTH: usize = NAMES_FINGERPRINT.len() + FINGERPRINT_DIGITS;
/// Where a data descriptor and a central header hold the CRC-32.
const DESCRIPTOR_CRC: usize = 4;
const CENTRAL_CRC: usize = 16;

/// What surrounds the raw data of every tensor of one spec: a head, and a tail that depends on the data by nothing
/// but its CRC-32.
pub(crate) struct Archive {
    head: Bytes,
    head_crc: u32,
    data_length: u64,
    /// The tail of data whose CRC-32 is 0, its fingerprint left out.
    tail: Vec<u8>,
    /// Where the tail holds the CRC-32 of the data; nowhere when there is none.
    data_crc_at: Vec<usize>,
    /// Where the last digits of the id begin and end: the fingerprint.
    id_at: Range<usize>,
    /// Where the tail holds the CRC-32 of the id.
    id_crc_at: [usize; 2],
    /// The fingerprint of the records before the data, and the CRC-32 of the one after it.
    fingerprint: u64,
    version_crc: u32,
}

impl Archive {
    /// # Errors
    /// `Config` as for [`TensorSpec::dense_bytes`].
    pub(crate) fn new(spec: &TensorSpec) -> Result<Archive, Error> {
        let data_length = spec.dense_bytes()?;
        let mut head = Vec::with_capacity(768);
        let first = Record { name: "archive/data.pkl".into(), offset: 0, length: 1, crc: 0 };
        first.local_header(&mut head);
        let start = head.len();
        pickle(spec, data_length, &mut head);
        let pickled = &head[start..];
        let first = Record { length: pickled.len() as u64, crc: crc32(pickled), ..first };
        first.descriptor(&mut head);
        let format = stored("archive/.format_version", b"1", 0, &mut head);
        let alignment = stored("archive/.storage_alignment", b"64", 0, &mut head);
        let order = stored("archive/byteorder", b"little", 0, &mut head);
        let data =
            Record { name: "archive/data/0".into(), offset: head.len() as u64, length: data_length, crc: 0 };
        data.local_header(&mut head);
        let before = [first, format, alignment, order];
        let fingerprint =
            before.iter().fold(0, |fingerprint, record| hash_combine(fingerprint, u64::from(record.crc)));

        let base = head.len() as u64 + data_length;
        let mut tail = Vec::with_capacity(1024);
        let mut data_crc_at = Vec::new();
        if data_length > 0 {
            data_crc_at.push(tail.len() + DESCRIPTOR_CRC);
        }
        data.descriptor(&mut tail);
        let version = stored("archive/version", b"3\n", base, &mut tail);
        let id = Record {
            name: "archive/.data/serialization_id".into(),
            offset: base + tail.len() as u64,
            length: ID_LENGTH as u64,
            crc: 0,
        };
        id.local_header(&mut tail);
        tail.extend_from_slice(NAMES_FINGERPRINT.as_bytes());
        tail.resize(tail.len() + FINGERPRINT_DIGITS, b'0');
        let id_at = tail.len() - FINGERPRINT_DIGITS..tail.len();
        let id_descriptor = tail.len() + DESCRIPTOR_CRC;
        id.descriptor(&mut tail);

        let directory = base + tail.len() as u64;
        for record in &before {
            record.central_header(&mut tail);
        }
        if data_length > 0 {
            data_crc_at.push(tail.len() + CENTRAL_CRC);
        }
        data.central_header(&mut tail);
        version.central_header(&mut tail);
        let id_crc_at = [id_descriptor, tail.len() + CENTRAL_CRC];
        id.central_header(&mut tail);
        let end = base + tail.len() as u64;
        let count = before.len() as u64 + 3;
        end_of_directory(&mut tail, count, directory, end);

        Ok(Archive {
            head_crc: crc32(&head),
            head: head.into(),
            data_length,
            tail,
            data_crc_at,
            id_at,
            id_crc_at,
            fingerprint,
            version_crc: version.crc,
        })
    }

    /// The bytes before the raw data.
    pub(crate) fn head(&self) -> &Bytes {
        &self.head
    }

    /// CRC-32 of the head.
    pub(crate) fn head_crc(&self) -> u32 {
        self.head_crc
    }

    /// How many raw bytes must follow the head.
    pub(crate) fn data_length(&self) -> u64 {
        self.data_length
    }

    /// Bytes of the whole archive; `None` when that passes `u64`.
    pub(crate) fn length(&self) -> Option<u64> {
        (self.head.len() as u64 + self.tail.len() as u64).checked_add(self.data_length)
    }

    /// Appends the bytes after the raw data, whose CRC-32 is `data_crc`.
    pub(crate) fn tail(&self, data_crc: u32, out: &mut BytesMut) {
        let start = out.len();
        out.extend_from_slice(&self.tail);
        let tail = &mut out[start..];
        let mut fingerprint = self.fingerprint;
        for &at in &self.data_crc_at {
            tail[at..at + 4].copy_from_slice(&data_crc.to_le_bytes());
        }
        if self.data_length > 0 {
            fingerprint = hash_combine(fingerprint, u64::from(data_crc));
        }
        fingerprint = hash_combine(fingerprint, u64::from(self.version_crc));
        for digit in tail[self.id_at.clone()].iter_mut().rev() {
            *digit = b'0' + (fingerprint % 10) as u8;
            fingerprint /= 10;
        }
        let id_crc = crc32(&tail[self.id_at.end - ID_LENGTH..self.id_at.end]);
        for at in self.id_crc_at {
            tail[at..at + 4].copy_from_slice(&id_crc.to_le_bytes());
        }
    }
}

/// How the archive of a tensor lies in its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveLayout {
    /// Bytes before the raw data.
    pub head_length: u64,
    /// CRC-32 of these: no tensor of another dtype or shape has such a head.
    pub head_crc32: u32,
    /// Bytes of the whole archive, raw data included.
    pub length: u64,
}

/// How the archive of a tensor lies in its item.
///
/// # Errors
/// `Config` when the spec does not describe a tensor that fills its storage.
pub fn archive_layout(spec: &TensorSpec) -> Result<ArchiveLayout, Error> {
    let archive = Archive::new(spec)?;
    let length = archive.length().ok_or_else(|| config("tensor spec: the archive is too long"))?;
    Ok(ArchiveLayout { head_length: archive.head.len() as u64, head_crc32: archive.head_crc, length })
}

/// torch's way to fold one number into a fingerprint.
fn hash_combine(seed: u64, value: u64) -> u64 {
    let mixed = value.wrapping_add(0x9e37_79b9).wrapping_add(seed << 6).wrapping_add(seed >> 2);
    seed ^ mixed
}

/// Appends the pickle (protocol 2, as torch.save writes it) that rebuilds the tensor.
fn pickle(spec: &TensorSpec, data_length: u64, out: &mut Vec<u8>) {
    let mut memo = 0u8;
    let mut put = |out: &mut Vec<u8>| {
        out.extend_from_slice(&[b'q', memo]);
        memo += 1;
    };
    out.extend_from_slice(b"\x80\x02");
    pickle_tensor(spec, data_length, "0", out, &mut put);
    out.push(b'.');
}

/// Appends the pickle of a dict of tensors, each of which fills a storage of its own, called by its number.
pub(crate) fn pickle_dict<'a>(tensors: impl Iterator<Item = (&'a str, &'a TensorSpec)>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x80\x02}(");
    for (number, (name, spec)) in tensors.enumerate() {
        text(out, name);
        let length = spec.extent_bytes().unwrap_or(0);
        pickle_tensor(spec, length, &number.to_string(), out, &mut |_| {});
    }
    out.extend_from_slice(b"u.");
}

/// What rebuilds a tensor from the storage of this key; `put` is called where torch puts a value into the memo.
fn pickle_tensor(
    spec: &TensorSpec,
    data_length: u64,
    key: &str,
    out: &mut Vec<u8>,
    put: &mut impl FnMut(&mut Vec<u8>),
) {
    let (rebuild, class, count) = match spec.dtype.storage_class() {
        Some(class) => ("_rebuild_tensor_v2", ("torch", class), data_length / spec.dtype.item_size()),
        None => ("_rebuild_tensor_v3", ("torch.storage", "UntypedStorage"), data_length),
    };
    global(out, "torch._utils", rebuild);
    put(out);
    out.extend_from_slice(b"((");
    text(out, "storage");
    put(out);
    global(out, class.0, class.1);
    put(out);
    text(out, key);
    put(out);
    text(out, "cpu");
    put(out);
    integer(out, count);
    out.push(b't');
    put(out);
    out.push(b'Q');
    integer(out, spec.storage_offset);
    for dimensions in [&spec.shape, &spec.strides] {
        match dimensions.len() {
            0 => out.push(b')'),
            few @ 1..=3 => {
                dimensions.iter().for_each(|&size| integer(out, size));
                out.push(0x84 + few as u8);
                put(out);
            }
            _ => {
                out.push(b'(');
                dimensions.iter().for_each(|&size| integer(out, size));
                out.push(b't');
                put(out);
            }
        }
    }
    out.push(if spec.requires_grad { 0x88 } else { 0x89 });
    global(out, "collections", "OrderedDict");
    put(out);
    out.extend_from_slice(b")R");
    put(out);
    if spec.dtype.storage_class().is_none() {
        global(out, "torch", spec.dtype.torch_name());
        put(out);
    }
    out.push(b't');
    put(out);
    out.push(b'R');
    put(out);
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.push(b'c');
    out.extend_from_slice(module.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.push(b'X');
    put32(out, value.len() as u32);
    out.extend_from_slice(value.as_bytes());
}

/// The shortest of pickle's integer forms, which is the one Python chooses.
fn integer(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0xff => out.extend_from_slice(&[b'K', value as u8]),
        0x100..=0xffff => {
            out.push(b'M');
            put16(out, value as u16);
        }
        0x1_0000..=0x7fff_ffff => {
            out.push(b'J');
            put32(out, value as u32);
        }
        _ => {
            let length = (64 - value.leading_zeros()) / 8 + 1; // room for the sign bit
            out.extend_from_slice(&[0x8a, length as u8]);
            out.extend_from_slice(&u128::from(value).to_le_bytes()[..length as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;
    use crate::archive::zip::ALIGNMENT;
    use crate::dtype::DType;

    fn data(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    fn archive(spec: &TensorSpec, raw: &[u8]) -> Vec<u8> {
        let archive = Archive::new(spec).unwrap();
        assert_eq!(archive.head().len() as u64 % ALIGNMENT, 0);
        assert_eq!(archive.head_crc(), crc32(archive.head()));
        assert_eq!(archive.data_length(), raw.len() as u64);
        let mut bytes = BytesMut::from(&archive.head()[..]);
        bytes.extend_from_slice(raw);
        archive.tail(crc32(raw), &mut bytes);
        assert_eq!(archive.length(), Some(bytes.len() as u64));
        bytes.to_vec()
    }

    fn unhex(text: &Value) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn archives_are_byte_for_byte_those_of_torch() {
        let le = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let cases: [(&str, DType, &[u64], Vec<u8>); 6] = [
            ("float32_2x3", DType::Float32, &[2, 3], le(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
            ("bfloat16_scalar", DType::BFloat16, &[], vec![0xc0, 0x3f]),
            ("float8_e4m3fn_3", DType::Float8E4M3Fn, &[3], vec![0x38, 0x40, 0xc4]),
            ("float64_0x3", DType::Float64, &[0, 3], vec![]),
            ("int64_5d", DType::Int64, &[2, 1, 3, 2, 4], (0..48u64).flat_map(u64::to_le_bytes).collect()),
            ("bool_300", DType::Bool, &[300], (0..300).map(|at| u8::from(at % 7 == 0)).collect()),
        ];
        for (name, dtype, shape, raw) in cases {
            let spec = TensorSpec::contiguous(dtype, shape.to_vec());
            let golden = fs::read(data(&format!("archives/{name}.pt"))).unwrap();
            let written = archive(&spec, &raw);
            assert!(written == golden, "{name}: {} and {} bytes", written.len(), golden.len());
            assert_eq!(archive_layout(&spec).unwrap().length, golden.len() as u64, "{name}");
        }
        let mut spec = TensorSpec::contiguous(DType::Float16, vec![3]);
        spec.requires_grad = true;
        let golden = fs::read(data("archives/requires_grad.pt")).unwrap();
        assert!(archive(&spec, &[0, 0x3c, 0, 0x3c, 0, 0x3c]) == golden);
    }

    #[test]
    fn every_dtype_is_pickled_as_torch_pickles_it() {
        let golden: Value = serde_json::from_slice(&fs::read(data("heads.json")).unwrap()).unwrap();
        let mut seen = 0;
        for dtype in DType::all() {
            let case = &golden["pickles"][dtype.torch_name()];
            let shape = case["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect();
            let spec = TensorSpec::contiguous(dtype, shape);
            let mut pickled = Vec::new();
            pickle(&spec, spec.dense_bytes().unwrap(), &mut pickled);
            assert_eq!(pickled, unhex(&case["pickle"]), "{}", dtype.torch_name());
            seen += 1;
        }
        assert_eq!(seen, golden["pickles"].as_object().unwrap().len());
    }

    /// CRC-32 of so many zero bytes.
    fn crc_of_zeros(length: u64) -> u32 {
        let chunk = vec![0; 1 << 20];
        let whole = (0..length >> 20).fold(0, |crc, at| {
            let one = crc32(&chunk);
            if at == 0 { one } else { s3dcp_s3::crc32_combine(crc, one, 1 << 20) }
        });
        let rest = length & ((1 << 20) - 1);
        s3dcp_s3::crc32_combine(whole, crc32(&chunk[..rest as usize]), rest)
    }

    #[test]
    fn archives_around_four_gib_have_the_heads_and_tails_of_torch() {
        let golden: Value = serde_json::from_slice(&fs::read(data("heads.json")).unwrap()).unwrap();
        let cases = golden["large"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let length = case["bytes"].as_u64().unwrap();
            let archive = Archive::new(&TensorSpec::contiguous(DType::UInt8, vec![length])).unwrap();
            assert!(archive.head()[..] == unhex(&case["head"]), "head of {length}");
            let mut tail = BytesMut::new();
            archive.tail(crc_of_zeros(length), &mut tail);
            assert!(tail == unhex(&case["tail"]), "tail of {length}");
        }
    }

    #[test]
    fn integers_take_the_form_python_gives_them() {
        let form = |value| {
            let mut out = Vec::new();
            integer(&mut out, value);
            out
        };
        assert_eq!(form(255), b"K\xff");
        assert_eq!(form(256), b"M\0\x01");
        assert_eq!(form(0x7fff_ffff), b"J\xff\xff\xff\x7f");
        assert_eq!(form(0x8000_0000), b"\x8a\x05\0\0\0\x80\0");
        assert_eq!(form(0x7f_ffff_ffff), b"\x8a\x05\xff\xff\xff\xff\x7f");
        assert_eq!(form(i64::MAX as u64), b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f");
    }
}
