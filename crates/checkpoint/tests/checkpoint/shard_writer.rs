//! Shard files through the engine to a server and back.

use std::sync::{Arc, Mutex};

use crate::support::{BUCKET, Bed};
use bytes::Bytes;
use s3dcp_checkpoint::{
    DType, Destination, HeadState, ItemRead, ItemRecord, Piece, ReadOptions, SLICE_SIZE, ShardName,
    ShardWriter, TensorSpec, archive_layout, parse_archive_head, plan_reads,
};
use s3dcp_s3::{ErrorKind, UploadOptions, crc32};

fn content(length: usize) -> Bytes {
    (0..length).map(|at| (at * 131 + at / 253) as u8).collect::<Vec<_>>().into()
}

fn writer(bed: &Bed, key: &str) -> ShardWriter {
    let mut options = UploadOptions::default();
    options.part_size = Some(5 << 20);
    let name = ShardName { key: key.to_owned(), relative_path: key.to_owned() };
    ShardWriter::new(&bed.client, BUCKET, name, options)
}

fn bytes_of(count: u64) -> TensorSpec {
    TensorSpec::contiguous(DType::UInt8, vec![count])
}

/// Checks an item against the file: its place, its archive, its checksums.
fn check(file: &[u8], record: &ItemRecord, spec: &TensorSpec, data: &[u8]) {
    let item = &file[record.offset as usize..(record.offset + record.length) as usize];
    let HeadState::Complete(head) = parse_archive_head(item).unwrap() else { panic!("no head") };
    assert_eq!(&head.spec, spec);
    assert_eq!(head.data_offset, record.data_offset);
    assert_eq!(head.data_offset % 64, 0);
    assert!(&item[head.data_offset as usize..][..data.len()] == data);
    assert_eq!(record.length, archive_layout(spec).unwrap().length);
    assert_eq!(record.checksums.item, crc32(item));
    record.checksums.check(record.length).unwrap();
}

#[tokio::test]
async fn tensors_whole_and_in_chunks_and_raw_items_follow_each_other() {
    let bed = Bed::start().await;
    let mut writer = writer(&bed, "run/x.distcp");
    let mut written = Vec::new();
    // sizes around what is gathered, a part and a slice
    let sizes = [0, 1, 64, 2047, 2048, 70_000, 3 << 20, SLICE_SIZE as usize, (5 << 20) + 3, 11 << 20];
    for (place, &size) in sizes.iter().enumerate() {
        let (spec, data) = (bytes_of(size as u64), content(size));
        assert_eq!(
            writer.position(),
            written.last().map_or(0, |(r, ..): &(ItemRecord, _, _)| r.offset + r.length)
        );
        let record = if place % 2 == 0 {
            writer.tensor(&spec, data.clone()).await.unwrap()
        } else {
            writer.begin_tensor(&spec).unwrap();
            let mut rest = data.clone();
            while !rest.is_empty() {
                let chunk = rest.split_to(rest.len().min(1_000_003));
                writer.write(chunk).await.unwrap();
            }
            writer.end().await.unwrap()
        };
        written.push((record, spec, data));
    }
    writer.begin_raw().unwrap();
    writer.write(Bytes::from_static(b"a pickled ")).await.unwrap();
    writer.write(Bytes::from_static(b"object")).await.unwrap();
    let raw = writer.end().await.unwrap();
    let position = writer.position();
    let output = writer.finish().await.unwrap();
    let file = bed.client.get_object(BUCKET, "run/x.distcp").await.unwrap().body;
    assert_eq!((output.size, position), (file.len() as u64, file.len() as u64));
    assert_eq!(output.crc32, crc32(&file));
    for (record, spec, data) in &written {
        check(&file, record, spec, data);
    }
    assert_eq!(&file[raw.offset as usize..], b"a pickled object");
    assert_eq!((raw.data_offset, raw.checksums.item), (0, crc32(b"a pickled object")));
}

#[tokio::test]
async fn many_small_tensors_go_out_in_one_request() {
    let bed = Bed::start().await;
    let mut writer = writer(&bed, "run/small.distcp");
    let spec = TensorSpec::contiguous(DType::Float32, vec![4, 4]);
    let data = content(64);
    let mut records = Vec::new();
    for _ in 0..2000 {
        records.push(writer.tensor(&spec, data.clone()).await.unwrap());
    }
    let before = bed.client.stats().requests;
    writer.finish().await.unwrap();
    assert_eq!(bed.client.stats().requests - before, 1);
    let file = bed.client.get_object(BUCKET, "run/small.distcp").await.unwrap().body;
    for record in records.iter().step_by(97).chain(records.last()) {
        check(&file, record, &spec, &data);
    }
}

#[tokio::test]
async fn a_wrong_number_of_bytes_fails_the_file_and_nothing_of_it_stays() {
    let bed = Bed::start().await;
    let mut short = writer(&bed, "run/short.distcp");
    short.begin_tensor(&bytes_of(100)).unwrap();
    short.write(content(99)).await.unwrap();
    let error = short.end().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.message().contains("99") && error.message().contains("100"), "{error}");
    assert!(short.finish().await.is_err());

    let mut long = writer(&bed, "run/long.distcp");
    assert_eq!(long.tensor(&bytes_of(100), content(101)).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(long.tensor(&bytes_of(1), content(1)).await.is_err(), "an error is not passed over");
    assert!(long.finish().await.is_err());

    let mut open = writer(&bed, "run/open.distcp");
    open.begin_raw().unwrap();
    assert!(open.begin_raw().is_err(), "one item at a time");
    assert!(open.finish().await.is_err());

    let mut given_up = writer(&bed, "run/aborted.distcp");
    given_up.tensor(&bytes_of(12 << 20), content(12 << 20)).await.unwrap();
    given_up.stop().await;
    assert!(bed.keys().await.is_empty());
    assert!(bed.client.list_multipart_uploads(BUCKET, "").await.unwrap().is_empty());
}

#[derive(Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Destination for Memory {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

fn read(record: &ItemRecord, memory: &Memory, from: u64) -> Vec<ItemRead> {
    let start = record.data_offset + from;
    let length = memory.0.lock().unwrap().len() as u64;
    let piece = Piece { item_range: start..start + length, destination: Box::new(memory.clone()) };
    vec![ItemRead {
        name: "weight".into(),
        key: "run/x.distcp".into(),
        offset: record.offset,
        length: record.length,
        checksums: Some(record.checksums.clone()),
        head: None,
        pieces: vec![piece],
    }]
}

#[tokio::test]
async fn what_was_written_is_read_back_and_damage_is_found() {
    let bed = Bed::start().await;
    let mut writer = writer(&bed, "run/x.distcp");
    writer.tensor(&bytes_of(1000), content(1000)).await.unwrap();
    let data = content(13 << 20);
    let record = writer.tensor(&bytes_of(13 << 20), data.clone()).await.unwrap();
    writer.finish().await.unwrap();
    let memory = Memory(Arc::new(Mutex::new(vec![0; 6 << 20])));
    let reads = plan_reads(read(&record, &memory, 3 << 20), &ReadOptions::default()).unwrap();
    bed.client.download(BUCKET, reads).await.unwrap();
    assert!(memory.0.lock().unwrap()[..] == data[3 << 20..9 << 20]);

    let mut file = bed.client.get_object(BUCKET, "run/x.distcp").await.unwrap().body.to_vec();
    file[(record.offset + record.data_offset) as usize + (5 << 20)] ^= 1;
    bed.put("run/x.distcp", file).await;
    let reads = plan_reads(read(&record, &memory, 3 << 20), &ReadOptions::default()).unwrap();
    let error = bed.client.download(BUCKET, reads).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.key(), Some("run/x.distcp"));
    // without verification it would go unseen
    let mut options = ReadOptions::default();
    options.verify = false;
    let reads = plan_reads(read(&record, &memory, 3 << 20), &options).unwrap();
    bed.client.download(BUCKET, reads).await.unwrap();
}
