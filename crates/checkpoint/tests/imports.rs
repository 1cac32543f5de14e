//! The files of this crate import each other in one direction only.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files below `folder`, each with the modules of this crate that it names.
fn files(root: &Path, folder: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
            continue;
        }
        let module: Vec<_> =
            path.strip_prefix(root).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
        let module = module.join("::").trim_end_matches(".rs").to_owned();
        if module == "lib" || module.ends_with("mod") {
            continue;
        }
        let folder = module.rsplit_once("::").map_or(String::new(), |(folder, _)| folder.to_owned());
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let named = code.flat_map(|line| {
            let line = line.replace("super::", &format!("crate::{folder}::"));
            line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>()
        });
        let named = named.collect();
        found.insert(module, named);
    }
}

/// Files with all that they import, however far: file → files.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut named = BTreeMap::new();
    files(&root, &root, &mut named);
    let modules: Vec<String> = named.keys().cloned().collect();
    let is = |name: &str, module: &String| {
        name.strip_prefix(&module[..])
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'))
    };
    let direct = |(file, names): (String, BTreeSet<String>)| {
        let imported = modules.iter().filter(|module| **module != file);
        let imported = imported.filter(|module| names.iter().any(|name| is(name, module))).cloned().collect();
        (file, imported)
    };
    named.into_iter().map(direct).collect()
}

#[test]
fn no_two_files_import_each_other_however_far() {
    let mut left = imports();
    assert!(left.len() > 25 && left["save::commit"].contains("layout"), "{left:?}");
    loop {
        let before = left.len();
        let files: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, imported| !imported.is_disjoint(&files));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "a circle among {left:?}");
}

#[test]
fn folders_import_each_other_in_one_direction() {
    // what each may import, besides itself and what lies in no folder
    let allowed = [
        ("pickle", vec![]),
        ("archive", vec!["pickle"]),
        ("index", vec!["pickle"]),
        ("catalogue", vec!["index"]),
        ("load", vec!["archive", "index"]),
        ("save", vec!["archive", "catalogue", "index"]),
    ];
    for (file, imported) in imports() {
        let folder = file.split_once("::").map_or("", |(folder, _)| folder);
        let allowed =
            allowed.iter().find(|(name, _)| *name == folder).map_or(&[][..], |(_, folders)| folders);
        for import in imported {
            let other = import.split_once("::").map_or("", |(folder, _)| folder);
            assert!(
                other.is_empty() || other == folder || allowed.contains(&other),
                "{file} imports {import}"
            );
        }
    }
}
