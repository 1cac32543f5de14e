//! Heads of archives that torch wrote, and of archives that nobody wrote.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use s3dcp_checkpoint::{
    ArchiveHead, DType, HeadState, MAX_END, MAX_HEAD, TensorSpec, ends_archive, parse_archive_head,
};
use s3dcp_s3::ErrorKind;

fn golden(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/archives/{name}.pt")))
        .unwrap()
}

fn head(name: &str) -> ArchiveHead {
    match parse_archive_head(&golden(name)).unwrap() {
        HeadState::Complete(head) => head,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn plain_tensors_of_torch_are_read_with_their_place() {
    let six = TensorSpec::contiguous(DType::Float32, vec![2, 3]);
    for (name, spec, raw) in [
        ("float32_2x3", six.clone(), &0f32.to_le_bytes()[..]),
        ("no_crc", six.clone(), &[0, 0, 0, 0, 0, 0, 0x80, 0x3f]),
        ("torch_1_6", six.clone(), &[0, 0, 0, 0, 0, 0, 0x80, 0x3f]),
        ("big_endian", six, &[0, 0, 0, 0, 0x3f, 0x80, 0, 0]),
        ("bfloat16_scalar", TensorSpec::contiguous(DType::BFloat16, vec![]), &[0xc0, 0x3f]),
        ("float8_e4m3fn_3", TensorSpec::contiguous(DType::Float8E4M3Fn, vec![3]), &[0x38, 0x40, 0xc4]),
        ("float64_0x3", TensorSpec::contiguous(DType::Float64, vec![0, 3]), &[]),
        ("int64_5d", TensorSpec::contiguous(DType::Int64, vec![2, 1, 3, 2, 4]), &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("aligned_512", TensorSpec::contiguous(DType::Float32, vec![1]), &[0, 0, 0x80, 0x3f]),
    ] {
        let bytes = golden(name);
        let head = head(name);
        assert_eq!(head.spec, spec, "{name}");
        assert_eq!(head.big_endian, name == "big_endian", "{name}");
        assert_eq!(head.data_length, spec.numel().unwrap() * spec.dtype.item_size(), "{name}");
        assert_eq!(&bytes[head.data_offset as usize..][..raw.len()], raw, "{name}");
        let end = (head.data_offset + head.data_length) as usize;
        let expected: &[u8] = if head.data_length == 0 { b"PK\x03\x04" } else { b"PK\x07\x08" };
        assert_eq!(&bytes[end..end + 4], expected, "{name}: the data ends where a record goes on");
    }
    assert!(head("requires_grad").spec.requires_grad);
}

#[test]
fn a_view_is_read_with_its_strides_and_offset() {
    let head = head("view");
    assert_eq!(head.spec.shape, [9, 3]);
    assert_eq!(head.spec.strides, [1, 20]);
    assert_eq!(head.spec.storage_offset, 8);
    assert_eq!(head.data_length, 240);
}

#[test]
fn what_is_no_plain_tensor_is_left_to_torch() {
    for name in ["parameter", "conjugate", "sparse", "legacy"] {
        assert_eq!(parse_archive_head(&golden(name)).unwrap(), HeadState::NotPlain, "{name}");
    }
}

#[test]
fn an_archive_of_something_else_than_a_tensor_is_corrupt() {
    let error = parse_archive_head(&golden("dict")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("no tensor"), "{error}");
}

#[test]
fn an_item_ends_where_its_archive_does() {
    let ends =
        |bytes: &[u8], length| ends_archive(&bytes[bytes.len().saturating_sub(MAX_END as usize)..], length);
    for name in [
        "float32_2x3",
        "no_crc",
        "torch_1_6",
        "big_endian",
        "bfloat16_scalar",
        "float64_0x3",
        "int64_5d",
        "aligned_512",
        "view",
        "parameter",
        "sparse",
    ] {
        let bytes = golden(name);
        let length = bytes.len() as u64;
        assert!(ends(&bytes, length), "{name}");
        for other in [length - 1, length + 1, length / 2, 0] {
            assert!(!ends(&bytes, other), "{name} at {other}");
        }
        for cut in [1, 20, 22, 98, length as usize / 2, length as usize] {
            let shorter = &bytes[..bytes.len() - cut];
            assert!(!ends(shorter, shorter.len() as u64), "{name} without {cut} bytes");
        }
        let longer = [&bytes[..], &bytes[..]].concat();
        assert!(!ends(&longer, longer.len() as u64), "{name} twice");
    }
}

#[test]
fn a_head_cut_anywhere_asks_for_more_and_then_completes() {
    for name in ["float32_2x3", "aligned_512", "big_endian", "view"] {
        let bytes = golden(name);
        let complete = head(name);
        for length in 0..bytes.len() {
            match parse_archive_head(&bytes[..length]).unwrap() {
                HeadState::NeedMore(least) => {
                    assert!((length as u64) < complete.data_offset, "{name} at {length}");
                    assert!(least > length as u64, "{name} at {length}: {least}");
                }
                HeadState::Complete(head) => {
                    assert!(length as u64 >= complete.data_offset, "{name} at {length}");
                    assert_eq!(head, complete);
                }
                HeadState::NotPlain => panic!("{name} at {length}"),
            }
        }
        // following the answers ends soon
        let (mut length, mut rounds) = (0, 0);
        while let HeadState::NeedMore(least) = parse_archive_head(&bytes[..length]).unwrap() {
            length = bytes.len().min(least as usize);
            rounds += 1;
        }
        assert!(rounds <= 4, "{name}: {rounds}");
    }
}

#[test]
fn a_wrong_byte_in_the_pickle_is_corrupt() {
    let mut bytes = golden("float32_2x3");
    let place = bytes.windows(3).position(|window| window == b"K\x02K").unwrap();
    bytes[place + 1] = 1;
    let error = parse_archive_head(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("checksum"), "{error}");
}

#[test]
fn a_head_without_an_end_is_refused_at_the_bound() {
    let mut bytes = golden("float32_2x3")[..64].to_vec();
    bytes.resize(MAX_HEAD as usize, b'N');
    assert_eq!(parse_archive_head(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(parse_archive_head(b"no archive at all").unwrap_err().kind(), ErrorKind::Corrupt);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_heads_never_panic_and_never_reach_outside(
        name in prop::sample::select(vec!["float32_2x3", "no_crc", "view", "big_endian", "float64_0x3"]),
        changes in prop::collection::vec((0usize..1200, any::<u8>()), 1..6),
    ) {
        let mut bytes = golden(name);
        for (place, value) in changes {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        if let Ok(HeadState::Complete(head)) = parse_archive_head(&bytes) {
            prop_assert!(head.data_offset <= bytes.len() as u64);
            prop_assert!(head.spec.extent_bytes().unwrap() <= head.data_length);
        }
    }
}
