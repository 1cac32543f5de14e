//! Whole loads through `Load`, against a server, of checkpoints that torch and this project's writer saved.

use std::fs;
use std::path::PathBuf;

use crate::support::{Bed, location, storage};
use bytes::{Bytes, BytesMut};
use s3dcp_checkpoint::{
    AllowList, Chunk, DType, Entry, ForeignTensor, Layout, Load, TensorSpec, foreign_sources, read_contents,
    seal_index,
};
use s3dcp_s3::ErrorKind;

const WRITERS: [&str; 2] = ["torch", "s3dcp"];

fn folder(writer: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(writer)
}

/// The files of a checkpoint, by name.
fn files(writer: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(writer)).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

async fn upload(bed: &Bed, writer: &str) {
    for (name, bytes) in files(writer) {
        bed.put(&format!("run/{name}"), bytes).await;
    }
}

/// The values from 0 on that `data/make.py` saved, rows or columns first.
fn int16(rows: i16, columns: i16, first: impl Fn(i16, i16) -> i16) -> Vec<u8> {
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .flat_map(|(row, column)| first(row, column).to_le_bytes())
        .collect()
}

fn block(offsets: &[i64], sizes: &[i64]) -> Chunk {
    Chunk { offsets: offsets.to_vec(), sizes: sizes.to_vec() }
}

#[tokio::test]
async fn what_a_checkpoint_holds_is_read_from_its_index() {
    for writer in WRITERS {
        let bed = Bed::start().await;
        upload(&bed, writer).await;
        let load = Load::open(&storage(&bed.client), &location(None, None).index_key()).await.unwrap();
        let tensors = &load.contents().tensors;
        let names: Vec<_> = tensors.keys().collect();
        assert_eq!(names, ["empty", "half", "matrix", "scalar", "transposed"], "{writer}");
        assert_eq!(load.contents().objects.keys().collect::<Vec<_>>(), ["text"]);
        let matrix = &tensors["matrix"];
        assert_eq!((matrix.dtype(), &matrix.size[..]), (Some(DType::Float32), &[5, 7][..]));
        let chunks: Vec<_> = matrix.chunks.iter().map(|stored| stored.chunk.clone()).collect();
        let quarters = [
            block(&[0, 0], &[2, 3]),
            block(&[0, 3], &[2, 4]),
            block(&[2, 0], &[3, 3]),
            block(&[2, 3], &[3, 4]),
        ];
        assert_eq!(chunks, quarters);
        assert!(matrix.chunks.iter().all(|stored| stored.stored.is_some()));
        assert_eq!(&*tensors["scalar"].dtype_name, "float64");
    }
}

#[tokio::test]
async fn tensors_and_objects_are_read_whole() {
    for writer in WRITERS {
        let bed = Bed::start().await;
        upload(&bed, writer).await;
        let load = Load::open(&storage(&bed.client), &location(None, None).index_key()).await.unwrap();
        let matrix: Vec<u8> = (0..35).flat_map(|number| (number as f32).to_le_bytes()).collect();
        assert_eq!(load.read_tensor("matrix").await.unwrap(), matrix, "{writer}");
        let transposed = int16(50, 100, |row, column| column * 50 + row);
        assert_eq!(load.read_tensor("transposed").await.unwrap(), transposed, "{writer}");
        assert_eq!(load.read_tensor("scalar").await.unwrap(), 3.5f64.to_le_bytes()[..]);
        assert_eq!(load.read_tensor("empty").await.unwrap(), Bytes::new());
        let half: Vec<u8> =
            (0..4).flat_map(|number| ((number as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect();
        assert_eq!(load.read_tensor("half").await.unwrap(), half);
        let text = load.read_object("text").await.unwrap();
        assert!(
            text.starts_with(b"PK") && text.windows(6).any(|window| window == b"X\x01\0\0\0x"),
            "{writer}"
        );
    }
}

#[tokio::test]
async fn blocks_over_several_chunks_go_into_the_memory_of_the_caller() {
    for writer in WRITERS {
        let bed = Bed::start().await;
        upload(&bed, writer).await;
        let load = Load::open(&storage(&bed.client), &location(None, None).index_key()).await.unwrap();
        for (offsets, sizes) in
            [([10, 20], [30, 60]), ([0, 0], [25, 100]), ([49, 99], [1, 1]), ([24, 0], [2, 100])]
        {
            let memory = BytesMut::zeroed((sizes[0] * sizes[1] * 2) as usize);
            let address = memory.as_ptr();
            let read = load.read_block("transposed", &block(&offsets, &sizes), memory).await.unwrap();
            let expected = int16(sizes[0] as i16, sizes[1] as i16, |row, column| {
                (column + offsets[1] as i16) * 50 + row + offsets[0] as i16
            });
            assert_eq!(read, expected, "{writer} {offsets:?} {sizes:?}");
            assert_eq!(read.as_ptr(), address, "without a copy");
        }
        let one_chunk = BytesMut::zeroed(2 * 3 * 4);
        let address = one_chunk.as_ptr();
        let read = load.read_block("matrix", &block(&[0, 0], &[2, 3]), one_chunk).await.unwrap();
        let expected: Vec<u8> =
            [0, 1, 2, 7, 8, 9].iter().flat_map(|&number| (number as f32).to_le_bytes()).collect();
        assert_eq!((read.as_ptr(), read), (address, BytesMut::from(&expected[..])));
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_name() {
    let bed = Bed::start().await;
    upload(&bed, "s3dcp").await;
    let load = Load::open(&storage(&bed.client), &location(None, None).index_key()).await.unwrap();
    assert_eq!(load.read_tensor("text").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(load.read_object("matrix").await.unwrap_err().kind(), ErrorKind::NotFound);
    for (block, bytes) in
        [(block(&[4, 0], &[2, 7]), 56), (block(&[0], &[5]), 20), (block(&[0, 0], &[5, 7]), 139)]
    {
        let error = load.read_block("matrix", &block, BytesMut::zeroed(bytes)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains("matrix"), "{error}");
    }
    assert_eq!(
        Load::open(&storage(&bed.client), &location(Some(1), None).index_key()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_flipped_bit_is_seen_and_named() {
    let bed = Bed::start().await;
    for (name, mut bytes) in files("s3dcp") {
        if name.ends_with(".distcp") {
            let values = 3.5f64.to_le_bytes();
            let at = bytes.windows(8).position(|window| window == values).unwrap();
            bytes[at + 7] ^= 1;
        }
        bed.put(&format!("run/{name}"), bytes).await;
    }
    let load = Load::open(&storage(&bed.client), &location(None, None).index_key()).await.unwrap();
    let error = load.read_tensor("scalar").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("scalar"), "{error}");
    load.read_tensor("half").await.unwrap();
}

#[tokio::test]
async fn a_safetensors_file_is_read_by_the_names_in_its_header() {
    let header = br#"{"__metadata__":{"format":"pt"},"half":{"dtype":"BF16","shape":[4],"data_offsets":[2,10]},
        "short":{"dtype":"F64","shape":[2],"data_offsets":[0,8]},"none":{"dtype":"I4","shape":[],"data_offsets":[0,0]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, b"..01234567"].concat();
    let bed = Bed::start().await;
    bed.put("run/file", file.clone()).await;
    // torch gives every tensor of the file the place of its header.
    let entry = Entry { key: "run/file".into(), offset: 0, length: 8, data_offset: None, checksums: None };
    let tensor = |name: &str, shape: &[u64]| ForeignTensor {
        name: name.to_owned(),
        entry: entry.clone(),
        shape: shape.to_vec(),
    };
    let found = foreign_sources(&storage(&bed.client), &[tensor("half", &[4])]).await.unwrap();
    let [Some(source)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(*source.spec, TensorSpec::contiguous(DType::BFloat16, vec![4]));
    let values = source.values().unwrap().item_range;
    let start = (source.entry.offset + values.start) as usize;
    assert_eq!(&file[start..start + 8], b"01234567");
    for (name, shape) in [("half", &[2, 2][..]), ("short", &[2]), ("none", &[]), ("absent", &[4])] {
        let error = foreign_sources(&storage(&bed.client), &[tensor(name, shape)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().starts_with(name), "{error}");
    }
}

#[test]
fn every_prefix_and_every_changed_byte_of_an_index_is_read_or_refused() {
    let allow = AllowList::default_globals();
    let layout = Layout::new("run");
    for writer in WRITERS {
        let (_, index) = files(writer).into_iter().find(|(name, _)| name == ".metadata").unwrap();
        read_contents(&index, &layout, &allow).unwrap();
        for length in 0..index.len() {
            assert!(read_contents(&index[..length], &layout, &allow).is_err(), "{writer} {length}");
        }
    }
    let (_, mut index) = files("torch").into_iter().find(|(name, _)| name == ".metadata").unwrap();
    for place in 0..index.len() {
        for bit in 0..8 {
            index[place] ^= 1 << bit;
            if let Err(error) = read_contents(&index, &layout, &allow) {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{place} {bit}");
            }
            index[place] ^= 1 << bit;
        }
    }
}

/// A pickle of `Metadata` with these opcodes as the values of its two dicts.
fn index(contents: &[u8], places: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}(".to_vec();
    pickle.extend_from_slice(b"X\x13\0\0\0state_dict_metadata}(");
    pickle.extend_from_slice(contents);
    pickle.extend_from_slice(b"uX\x0c\0\0\0storage_data}(");
    pickle.extend_from_slice(places);
    pickle.extend_from_slice(b"uub.");
    pickle
}

#[test]
fn entries_that_share_a_long_list_do_not_make_an_index_large() {
    const TENSOR: &[u8] = b"ctorch.distributed.checkpoint.metadata\nTensorStorageMetadata\n)\x81}(";
    const CHUNK: &[u8] = b"ctorch.distributed.checkpoint.metadata\nChunkStorageMetadata\n)\x81}(X\x07\0\0\0offsets]X\x05\0\0\0sizes]ub";
    const PROPERTIES: &[u8] =
        b"X\x0a\0\0\0propertiesctorch.distributed.checkpoint.metadata\nTensorProperties\n)\x81(ctorch\nfloat32\ntb";
    let tensor =
        |chunks: &[u8]| [TENSOR, PROPERTIES, b"X\x04\0\0\0size]X\x06\0\0\0chunks", chunks, b"ub"].concat();
    // A list of many chunks, and then many tensors that have this very list.
    let many = [&b"]q\0("[..], &CHUNK.repeat(2000), b"e"].concat();
    let mut contents = [&b"X\x01\0\0\0a"[..], &tensor(&many)].concat();
    for number in 0..2000u32 {
        contents.extend_from_slice(b"X\x04\0\0\0");
        contents.extend_from_slice(format!("{number:04}").as_bytes());
        contents.extend_from_slice(&tensor(b"h\0"));
    }
    let (allow, layout) = (AllowList::default_globals(), Layout::new("run"));
    let one = index(&[&b"X\x01\0\0\0a"[..], &tensor(&many)].concat(), b"");
    assert_eq!(read_contents(&one, &layout, &allow).unwrap().tensors["a"].chunks.len(), 2000);
    let error = read_contents(&seal_index(index(&contents, b"")), &layout, &allow).unwrap_err();
    assert!(error.message().contains("share"), "{error}");
}
