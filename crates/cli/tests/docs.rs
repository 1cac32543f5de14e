//! The commands in `docs/partitions.md` print what stands below them: the simulator gives the same for the same seed.

use std::fs;
use std::process::Command;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/partitions.md");
/// Set to anything, the page is written anew instead.
const UPDATE: &str = "S3DCP_UPDATE_DOCS";

fn output(command: &str) -> String {
    let mut arguments = command.split_whitespace();
    assert_eq!(arguments.next(), Some("s3dcp"), "{command}");
    let ran = Command::new(env!("CARGO_BIN_EXE_s3dcp")).args(arguments).output().expect("the command runs");
    assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

/// The page with the output of every command of its `console` blocks below it.
fn with_outputs(page: &str) -> String {
    let mut written = String::new();
    let mut in_block = false;
    for line in page.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => in_block = line == "```console",
            Some(command) if in_block => {
                written += &format!("{line}\n{}\n", output(command).trim_end());
                continue;
            }
            // What a command printed before.
            _ if in_block => continue,
            _ => {}
        }
        written += &format!("{line}\n");
    }
    written
}

#[test]
fn the_page_shows_what_its_commands_print() {
    let page = fs::read_to_string(PAGE).unwrap();
    let current = with_outputs(&page);
    if std::env::var_os(UPDATE).is_some() {
        fs::write(PAGE, current).unwrap();
    } else {
        let differs = page.lines().zip(current.lines()).find(|(there, printed)| there != printed);
        assert_eq!(differs, None, "{UPDATE}=1 cargo test --release -p s3dcp-cli --test docs");
        assert_eq!(page.lines().count(), current.lines().count());
    }
}
