//! Pickles that attack, each refused by the walk alone, in little memory; `data/hostile.py` makes them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use s3dcp_checkpoint::{
    AllowList, CopyOptions, Disk, ExportOptions, FileNames, KeepRules, Layout, NameFilter, Storage,
    check_index, choose, find_leftovers, list_checkpoints, open_checkpoint, plan_copy, plan_export,
    read_contents,
};
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

/// The tools around a checkpoint: those that read items want an index that is right, those that count files read its facts
/// alone and run nothing.
#[tokio::test]
async fn no_tool_takes_an_index_that_attacks() {
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    let (folder, copy) = (scratch.join("run"), scratch.join("copy"));
    fs::create_dir_all(&folder).unwrap();
    let storage = Storage::Disk(Disk);
    let key = |path: &PathBuf| path.to_str().unwrap().trim_start_matches('/').to_owned();
    let (run, copied) = (key(&folder), key(&copy));
    let options = [FileNames::Keep, FileNames::Flatten].map(|names| {
        let mut options = CopyOptions::default();
        options.names = names;
        options
    });
    let mut some = CopyOptions::default();
    some.selection = NameFilter::new(&["x".to_owned()]).unwrap();
    for (name, pickle) in cases("refused").into_iter().chain(cases("refused by the walk")) {
        fs::write(folder.join(".metadata"), pickle).unwrap();
        let error = open_checkpoint(&storage, &run).await.expect_err(&name);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        for options in options.iter().chain([&some]) {
            assert!(plan_copy(&storage, &run, &storage, &copied, options).await.is_err(), "{name}");
        }
        assert!(
            plan_export(&storage, &run, &storage, &copied, &ExportOptions::default()).await.is_err(),
            "{name}"
        );
        let found = list_checkpoints(&storage, &run).await.expect(&name);
        if found.checkpoints.iter().any(|checkpoint| checkpoint.fault.is_some()) {
            let mut rules = KeepRules::default();
            rules.last = Some(1);
            assert!(choose(found, &rules).is_err(), "{name}");
        }
        let left = find_leftovers(&storage, &run, Duration::ZERO).await;
        assert!(left.is_ok_and(|left| left.old.is_empty()), "{name}");
    }
    assert!(!copy.exists());
    fs::remove_dir_all(scratch).unwrap();
}
