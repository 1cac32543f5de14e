//! Pickles that attack, each refused by the walk alone, in little memory; `data/hostile.py` makes them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use s3dcp_checkpoint::{AllowList, Layout, check_index, read_contents};
use s3dcp_s3::ErrorKind;

fn cases(group: &str) -> BTreeMap<String, Vec<u8>> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile.json");
    let mut groups: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let in_hex = groups.remove(group).unwrap();
    in_hex.into_iter().map(|(name, hex)| (name, unhex(&hex))).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The largest this process ever was, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn attacks_are_refused_by_the_walk_alone_in_little_memory() {
    let allow = AllowList::default_globals();
    let before = peak_memory();
    for (group, least) in [("refused", 100), ("refused by the walk", 25)] {
        let cases = cases(group);
        assert!(cases.len() >= least);
        for (name, pickle) in cases {
            let error = check_index(&pickle, &allow).expect_err(&name);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
            read_contents(&pickle, &Layout::new("run"), &allow).expect_err(&name);
        }
    }
    assert!(peak_memory() - before < 32 << 20, "{before} to {}", peak_memory());
}

#[test]
fn what_only_looks_odd_is_accepted() {
    for (name, pickle) in cases("accepted") {
        check_index(&pickle, &AllowList::default_globals()).expect(&name);
        if let Err(error) = read_contents(&pickle, &Layout::new("run"), &AllowList::default_globals()) {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        }
    }
}
