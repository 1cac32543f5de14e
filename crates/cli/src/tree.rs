//! `s3dcp tree`: what lies below a path, as a tree of prefixes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use s3dcp_s3::join_key;
use serde_json::{Value, json};

use crate::format::{printable, size};
use crate::output::Output;
use crate::report::Failure;
use crate::service::{Service, not_there, runtime};

/// Show the objects below a path as a tree of prefixes, with counts and sizes
///
/// Credentials come from the usual AWS places: environment, profile, web identity, container, instance.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  s3dcp tree s3://bucket/run --depth 2\n  s3dcp tree /data/run --json")]
pub(crate) struct Arguments {
    /// What to show: s3://bucket, s3://bucket/path, or a local folder
    uri: String,
    /// Show no more than this many levels
    #[arg(long, value_name = "LEVELS")]
    depth: Option<usize>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    service: Service,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (storage, path_key) = arguments.service.source(&arguments.uri)?;
    let prefix = join_key(&path_key, "");
    let runtime = runtime()?;
    let objects = runtime.block_on(storage.list(&prefix, None))?.objects;
    if objects.is_empty() {
        return Err(not_there(
            &runtime,
            &storage,
            &path_key,
            &format!("there is nothing below {}", storage.uri(&prefix)),
        ));
    }
    let mut root = Folder::default();
    for object in &objects {
        root.add(object.key.strip_prefix(&prefix).unwrap_or(&object.key), object.size);
    }
    let depth = arguments.depth.unwrap_or(usize::MAX);
    let title = storage.uri(&prefix);
    arguments
        .output
        .show(|| root.json(&title, depth), |out| out.write_all(root.render(&title, depth).as_bytes()))
}

/// Everything that shares a prefix.
#[derive(Debug, Default)]
struct Folder {
    objects: u64,
    bytes: u64,
    /// By name, and whether it is an object: a folder and an object may both be called `name/`.
    entries: BTreeMap<(String, bool), Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder(Folder),
    Object(u64),
}

impl Folder {
    fn add(&mut self, key: &str, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
        match key.find('/') {
            Some(slash) if slash + 1 < key.len() => {
                let (name, rest) = key.split_at(slash + 1);
                let entry = self
                    .entries
                    .entry((name.to_owned(), false))
                    .or_insert_with(|| Entry::Folder(Self::default()));
                if let Entry::Folder(folder) = entry {
                    folder.add(rest, bytes);
                }
            }
            _ => {
                self.entries.insert((key.to_owned(), true), Entry::Object(bytes));
            }
        }
    }

    /// The same as JSON: name, objects and bytes of each folder, and what is in it.
    fn json(&self, name: &str, depth: usize) -> Value {
        let entries = self.entries.iter().map(|((name, _), entry)| match entry {
            Entry::Object(bytes) => json!({ "name": name, "bytes": bytes }),
            Entry::Folder(folder) => folder.json(name, depth - 1),
        });
        let entries: Vec<Value> = if depth == 0 { Vec::new() } else { entries.collect() };
        json!({ "name": name, "objects": self.objects, "bytes": self.bytes, "entries": entries })
    }

    fn render(&self, title: &str, depth: usize) -> String {
        let mut text = format!("{title}  {}\n", self.summary());
        self.render_below(&mut text, "", depth);
        text
    }

    fn render_below(&self, text: &mut String, indent: &str, depth: usize) {
        if depth == 0 {
            return;
        }
        for (position, ((name, _), entry)) in self.entries.iter().enumerate() {
            let last = position + 1 == self.entries.len();
            let (branch, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
            // Writing to a String cannot fail.
            let _infallible = match entry {
                Entry::Object(bytes) => {
                    writeln!(text, "{indent}{branch}{}  {}", printable(name), size(*bytes))
                }
                Entry::Folder(folder) => {
                    let (name, folder) = folder.joined(name);
                    let line = writeln!(text, "{indent}{branch}{}  {}", printable(&name), folder.summary());
                    folder.render_below(text, &format!("{indent}{below}"), depth - 1);
                    line
                }
            };
        }
    }

    /// This folder, or the one at the end of a chain of folders with nothing else in them, which take one line.
    fn joined(&self, name: &str) -> (String, &Self) {
        let (mut name, mut folder) = (name.to_owned(), self);
        while let Some(((below, _), Entry::Folder(only))) =
            folder.entries.first_key_value().filter(|_| folder.entries.len() == 1)
        {
            name.push_str(below);
            folder = only;
        }
        (name, folder)
    }

    fn summary(&self) -> String {
        let plural = if self.objects == 1 { "" } else { "s" };
        format!("{} object{plural}, {}", self.objects, size(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(keys: &[(&str, u64)], depth: usize) -> String {
        let mut root = Folder::default();
        for (key, bytes) in keys {
            root.add(key, *bytes);
        }
        root.render("s3://b/", depth)
    }

    const CHECKPOINT: &[(&str, u64)] = &[
        (".metadata", 900),
        ("0000000000/epoch_5/__0_0.distcp", 3 << 20),
        ("1000000000/epoch_5/__1_0.distcp", 1 << 20),
        ("1000000000/epoch_6/__1_0.distcp", 1 << 20),
    ];

    #[test]
    fn a_checkpoint_shows_its_prefixes() {
        let expected = "\
s3://b/  4 objects, 5.0 MiB
├── .metadata  900 B
├── 0000000000/epoch_5/  1 object, 3.0 MiB
│   └── __0_0.distcp  3.0 MiB
└── 1000000000/  2 objects, 2.0 MiB
    ├── epoch_5/  1 object, 1.0 MiB
    │   └── __1_0.distcp  1.0 MiB
    └── epoch_6/  1 object, 1.0 MiB
        └── __1_0.distcp  1.0 MiB
";
        assert_eq!(tree(CHECKPOINT, usize::MAX), expected);
    }

    #[test]
    fn depth_hides_what_lies_deeper_but_still_counts_it() {
        let shown = tree(CHECKPOINT, 1);
        assert_eq!(shown.lines().count(), 4);
        assert!(shown.ends_with("└── 1000000000/  2 objects, 2.0 MiB\n"), "{shown}");
    }

    #[test]
    fn odd_keys_are_shown_as_they_are() {
        let shown = tree(&[("a", 1), ("a/", 2), ("a//b", 3), ("a/b", 4), ("\u{1b}[2J", 5)], usize::MAX);
        assert!(shown.starts_with("s3://b/  5 objects, 15 B\n"), "{shown}");
        assert!(!shown.contains('\u{1b}'));
    }
}
