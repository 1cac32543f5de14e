//! Indexes that torch, its S3 connector and this project write.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use s3dcp_checkpoint::{
    AllowList, IndexFacts, MAPPINGS, Outline, check_index, read_facts, scan_index, seal_index,
};
use s3dcp_s3::ErrorKind;

const NAMES: [&str; 6] =
    ["torch", "torch_protocol_2", "torch_protocol_5", "s3torchconnector", "s3dcp_epoch", "s3dcp_plain"];

fn data(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

fn golden(name: &str) -> Vec<u8> {
    data(&format!("index/{name}.pkl"))
}

#[test]
fn the_default_list_covers_every_known_writer() {
    let allow = AllowList::default_globals();
    for name in NAMES {
        let pickle = golden(name);
        assert_eq!(scan_index(&pickle, &allow).unwrap(), pickle.len(), "{name}");
        let sealed = seal_index(pickle.clone());
        assert_eq!(scan_index(&sealed, &allow).unwrap(), pickle.len(), "{name}: the trailer is not walked");
    }
}

#[test]
fn the_entries_of_every_known_writer_are_found_one_by_one() {
    let allow = AllowList::default_globals();
    for name in NAMES {
        let index = seal_index(golden(name));
        let outline = Outline::of(&index, &allow).unwrap().expect(name);
        assert_eq!(outline.count(1), Some(3), "{name}");
        check_index(&seal_index(outline.frame(&index).unwrap()), &allow).unwrap();
        for mapping in 0..MAPPINGS.len() {
            let count = outline.count(mapping).unwrap_or(1) as u32;
            for number in 0..count {
                let entry = outline.entry(&index, mapping, number).unwrap().unwrap();
                assert_eq!(entry[entry.len() - 2..], [0x86, b'.'], "{name}");
            }
            assert_eq!(outline.entry(&index, mapping, count + 2).unwrap(), None, "{name}");
        }
        let facts = read_facts(&index).unwrap();
        let file = facts.relative_paths.iter().next().unwrap();
        assert_eq!(outline.find_text(0, file), Some(Vec::new()), "{name}: no tensor is called so");
        assert_eq!(outline.find_text(1, file), None, "{name}: its keys are no texts");
        outline.frame(&index[..10]).unwrap_err();
    }
}

#[test]
fn a_refused_global_is_named() {
    let error = scan_index(b"\x80\x02cposix\nsystem\n.", &AllowList::default_globals()).unwrap_err();
    assert!(error.message().contains("posix.system"), "{error}");
}

#[test]
fn globals_the_caller_adds_are_allowed_and_only_those() {
    let pickle = b"\x80\x02cmypackage\nThing\n]Rcother\nThing\n0.";
    let allow = AllowList::default_globals().with([("mypackage", "Thing")]);
    let error = scan_index(pickle, &allow).unwrap_err();
    assert!(error.message().contains("other.Thing"), "{error}");
    let allow = allow.with([("other", "Thing")]);
    assert_eq!(scan_index(pickle, &allow).unwrap(), pickle.len());
    assert!(allow.allows("torch", "Size") && !allow.allows("torch", "load"));
    assert!(allow.globals().any(|global| global == ("mypackage", "Thing")));
}

#[test]
fn facts_are_read_from_every_writer() {
    let files =
        |prefix: &str| BTreeSet::from([format!("{prefix}__0_0.distcp"), format!("{prefix}x/__1_0.distcp")]);
    let foreign = IndexFacts {
        relative_paths: files(""),
        save_id: Some("save-1".into()),
        item_count: 3,
        ..IndexFacts::default()
    };
    for name in ["torch", "torch_protocol_2", "torch_protocol_5", "s3torchconnector"] {
        assert_eq!(read_facts(&golden(name)).unwrap(), foreign, "{name}");
    }
    let ours = IndexFacts { ranks: Some(2), has_checksums: true, ..foreign };
    assert_eq!(read_facts(&seal_index(golden("s3dcp_plain"))).unwrap(), ours);
    let epoch = IndexFacts { epoch: Some(5), relative_paths: files("../"), ..ours };
    assert_eq!(read_facts(&seal_index(golden("s3dcp_epoch"))).unwrap(), epoch);
}

#[test]
fn a_sealed_index_cut_or_changed_anywhere_is_corrupt() {
    let sealed = seal_index(golden("s3dcp_plain"));
    for length in 0..sealed.len() {
        let error = read_facts(&sealed[..length]).expect_err(&format!("cut at {length}"));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    for place in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[place] ^= 0x10;
        let error = read_facts(&damaged).expect_err(&format!("changed at {place}"));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn bytes_after_a_foreign_pickle_are_no_trailer() {
    let pickle = golden("torch");
    let mut longer = pickle.clone();
    longer.extend_from_slice(b"something else, more than twenty bytes");
    let allow = AllowList::default_globals();
    check_index(&longer, &allow).unwrap();
    assert_eq!(read_facts(&longer).unwrap(), read_facts(&pickle).unwrap());
    check_index(&seal_index(pickle.clone()), &allow).unwrap();
    check_index(&pickle[..pickle.len() - 1], &allow).unwrap_err();
}

/// An index of one item whose storage data is these opcodes.
fn index_of(storage_data: &[u8]) -> Vec<u8> {
    let mut out = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}(".to_vec();
    out.extend(b"\x8c\x13state_dict_metadata}\x8c\x0cstorage_data");
    out.extend(storage_data);
    out.extend(b"ub.");
    out
}

const INDEX: &[u8] = b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81}\x8c\x03fqn\x8c\x01xsb";
const INFO: &[u8] = b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)\x81";
const STATE: &[u8] = b"}(\x8c\x0drelative_path\x8c\x01f\x8c\x06offsetK\x05\x8c\x06lengthJ\xff\xff\xff\x7fu";

#[test]
fn every_item_needs_an_index_a_file_an_offset_and_a_length() {
    let allow = AllowList::default_globals();
    let good = index_of(&[b"}", INDEX, INFO, STATE, b"bs"].concat());
    check_index(&good, &allow).unwrap();
    assert_eq!(read_facts(&good).unwrap().relative_paths, BTreeSet::from(["f".to_owned()]));
    for (what, storage_data) in [
        ("a list", b"]".to_vec()),
        ("none", b"N".to_vec()),
        ("a number as index", [b"}K\x01", INFO, STATE, b"bs"].concat()),
        ("a text as index", [b"}\x8c\x01x", INFO, STATE, b"bs"].concat()),
        ("a number as item", [b"}", INDEX, b"K\x01s"].concat()),
        ("an index as item", [b"}", INDEX, INDEX, b"s"].concat()),
        ("no state", [b"}", INDEX, INFO, b"s"].concat()),
        ("a state that is none", [b"}", INDEX, INFO, b"Nbs"].concat()),
        ("a state of slots", [b"}", INDEX, INFO, b"N", STATE, b"\x86bs"].concat()),
        ("a state later on", [b"}", INDEX, INFO, b"\x94s", b"h\x00", STATE, b"b0"].concat()),
        ("another state", [b"}", INDEX, INFO, STATE, b"b}\x8c\x06offsetNsbs"].concat()),
        ("no name", [b"}", INDEX, INFO, STATE, b"\x8c\x0drelative_pathNsbs"].concat()),
        ("a negative offset", [b"}", INDEX, INFO, STATE, b"\x8c\x06offsetJ\xff\xff\xff\xffsbs"].concat()),
        ("a long length", [b"}", INDEX, INFO, STATE, b"\x8c\x06length\x8a\x09", &[1; 9], b"sbs"].concat()),
        ("a true length", [b"}", INDEX, INFO, STATE, b"\x8c\x06length\x88sbs"].concat()),
        ("a bad one after a good one", [b"}(", INDEX, INFO, STATE, b"bNNu"].concat()),
    ] {
        let error = check_index(&index_of(&storage_data), &allow).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
    }
}

#[test]
fn what_was_checked_cannot_be_changed_afterwards() {
    let allow = AllowList::default_globals();
    let good = [b"}", INDEX, INFO, STATE, b"bs"].concat();
    let pickle = index_of(&good);
    let state = &pickle[pickle.len() - 2..];
    assert_eq!(state, b"b.");
    for change in [
        &b"}\x8c\x0cstorage_dataNsb."[..],
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}\x8c\x0cstorage_dataNsb0.",
        b"0ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81.",
    ] {
        let mut changed = pickle[..pickle.len() - 1].to_vec();
        changed.extend(change);
        check_index(&changed, &allow).unwrap_err();
        read_facts(&changed).unwrap_err();
    }
}

#[test]
fn checksums_without_a_trailer_are_refused_and_with_one_are_facts() {
    let allow = AllowList::default_globals();
    let index = index_of(&[b"}", INDEX, INFO, STATE, b"\x8c\x05crc32C\x01xsbs"].concat());
    check_index(&index, &allow).unwrap_err();
    read_facts(&index).unwrap_err();
    let sealed = seal_index(index);
    check_index(&sealed, &allow).unwrap();
    assert!(read_facts(&sealed).unwrap().has_checksums);
}

#[test]
fn facts_do_not_care_which_classes_an_index_names() {
    let index = index_of(&[b"}", INDEX, b"cmypackage\nInfo\n)\x81", STATE, b"bs"].concat());
    check_index(&index, &AllowList::default_globals()).unwrap_err();
    check_index(&index, &AllowList::default_globals().with([("mypackage", "Info")])).unwrap();
    assert_eq!(read_facts(&index).unwrap().relative_paths, BTreeSet::from(["f".to_owned()]));
}

#[test]
fn other_pickles_have_no_facts() {
    for pickle in [&b"\x80\x04N."[..], b"\x80\x04}.", b"\x80\x04ctorch\nSize\n)R."] {
        assert_eq!(read_facts(pickle).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_indexes_never_panic_and_name_only_allowed_globals(
        name in prop::sample::select(NAMES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
        copied in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let mut pickle = golden(name);
        for (place, value) in changes {
            let place = place.index(pickle.len());
            pickle[place] = value;
        }
        if let Some((from, to)) = copied {
            let (from, to) = (from.index(pickle.len()), to.index(pickle.len()));
            let piece = pickle[from.min(to)..].to_vec();
            pickle.splice(from.max(to).., piece);
        }
        if let Some(cut) = cut {
            pickle.truncate(cut.index(pickle.len()));
        }
        let _ = scan_index(&pickle, &AllowList::default_globals());
        let _ = read_facts(&pickle);
    }
}

/// A torch-like index of this many items over ten files, without memo sharing of the attribute names.
fn large_index(items: u32) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, value: &str| {
        out.extend([0x8c, value.len() as u8]);
        out.extend(value.as_bytes());
    };
    let mut out = b"\x80\x04".to_vec();
    out.extend(b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}");
    text(&mut out, "storage_data");
    out.extend(b"}(");
    for item in 0..items {
        out.extend(b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81}(");
        text(&mut out, "fqn");
        text(&mut out, &format!("layers.{item}.weight"));
        text(&mut out, "offset");
        out.extend(b"ctorch\nSize\nK\x00K\x00\x86\x85Rub");
        out.extend(b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n)\x81}(");
        text(&mut out, "relative_path");
        text(&mut out, &format!("__{}_0.distcp", item % 10));
        text(&mut out, "offset");
        out.extend(b"J");
        out.extend((item * 2000).to_le_bytes());
        text(&mut out, "length");
        out.extend(b"M\xd0\x07ub");
    }
    out.extend(b"usb.");
    out
}

#[test]
fn many_chunks_of_a_tensor_with_a_long_name_are_no_attack() {
    let mut storage_data = b"}(".to_vec();
    storage_data.extend([&b"X\xe8\x03\0\0"[..], &[b'x'; 1000], b"\x940"].concat());
    for chunk in 0..5000u16 {
        storage_data
            .extend(b"ctorch.distributed.checkpoint.metadata\nMetadataIndex\n)\x81}(\x8c\x03fqnh\x00");
        storage_data
            .extend([b"\x8c\x06offsetctorch\nSize\nM", &chunk.to_le_bytes()[..], b"\x85\x85Rub"].concat());
        storage_data.extend([INFO, STATE, b"b"].concat());
    }
    storage_data.push(b'u');
    check_index(&index_of(&storage_data), &AllowList::default_globals()).unwrap();
}

#[test]
fn a_large_index_is_read_whole() {
    let index = large_index(200_000);
    assert_eq!(scan_index(&index, &AllowList::default_globals()).unwrap(), index.len());
    let facts = read_facts(&index).unwrap();
    assert_eq!(facts.item_count, 200_000);
    assert_eq!(facts.relative_paths.len(), 10);
}
