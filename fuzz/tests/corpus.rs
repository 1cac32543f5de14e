//! Every target over its corpus and the golden files of the crates, whole and cut.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use s3dcp_fuzz::TARGETS;

/// Places at which each file is cut.
const CUTS: usize = 16;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort_unstable();
    files
}

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let mut corpus = files(&format!("corpus/{name}"));
    match name {
        "index" => corpus.extend(files("../crates/checkpoint/tests/data/index")),
        "archive" => corpus.extend(files("../crates/checkpoint/tests/data/archives")),
        _ => {}
    }
    for file in corpus {
        eprintln!("{}", file.display());
        let data = fs::read(file).unwrap();
        target(&data);
        for cut in 0..CUTS {
            target(&data[..data.len() * cut / CUTS]);
        }
    }
}

#[test]
fn every_folder_of_the_corpus_has_its_target() {
    let folders: Vec<_> =
        files("corpus").into_iter().map(|folder| folder.file_name().unwrap().to_owned()).collect();
    assert_eq!(folders, TARGETS.map(|(name, _)| name));
}

#[test]
fn answers() {
    replay("answers");
}

#[test]
fn archive() {
    replay("archive");
}

#[test]
fn index() {
    replay("index");
}

#[test]
fn keys() {
    replay("keys");
}

#[test]
fn names() {
    replay("names");
}

#[test]
fn objects() {
    replay("objects");
}

#[test]
fn wire() {
    replay("wire");
}
