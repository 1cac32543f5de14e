//! The same index with other names of shard files: nothing is unpickled, and every other byte stays.
//!
//! Frames are what a pickle is read in, nothing that it says: one whose length changes goes.

use std::collections::BTreeMap;

use s3dcp_s3::Error;

use crate::error::corrupt;
use crate::index::allow::AllowList;
use crate::index::judge::read_facts;
use crate::index::scan::{Others, Survey};
use crate::index::seal::{seal_index, sealed_pickle};
use crate::pickle::opcode::{Op, Opcodes};
use crate::pickle::write::text_opcode;

/// FRAME and its length.
const FRAME: usize = 9;

/// An index that names its shard files by `names` of what it calls them, sealed anew where it was sealed.
///
/// # Errors
/// `Corrupt` for what is no index, and for one that names a file in a way that cannot be changed.
pub(crate) fn rename_files(index: &[u8], names: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let sealed = sealed_pickle(index)?;
    let pickle = sealed.unwrap_or(index);
    let survey = Survey::of(pickle, &AllowList::default_globals(), Others::Refused)?;
    let pickle = &pickle[..survey.length];
    let mut edits: Vec<(usize, usize, Vec<u8>)> = Vec::new();
    let mut frame: Option<(usize, usize)> = None;
    let mut opcodes = Opcodes::new(pickle);
    let mut texts = 0;
    loop {
        let start = opcodes.position();
        match opcodes.next()? {
            Op::Stop => break,
            Op::Frame => {
                let length = pickle[start + 1..start + FRAME].try_into().map(u64::from_le_bytes).unwrap_or(0);
                frame = Some((start, opcodes.position() + length as usize));
            }
            Op::Text(text) => {
                if survey.file_texts().contains(&texts) {
                    let new = names
                        .get(text)
                        .ok_or_else(|| corrupt(format!("index: {text:?} is named in no way known")))?;
                    if let Some((at, _)) = frame.take_if(|(_, end)| start < *end) {
                        edits.push((at, at + FRAME, Vec::new()));
                    }
                    edits.push((start, opcodes.position(), text_opcode(new)));
                }
                texts += 1;
            }
            _ => {}
        }
    }
    let mut renamed = Vec::with_capacity(pickle.len());
    let mut at = 0;
    for (start, end, bytes) in edits {
        renamed.extend_from_slice(&pickle[at..start]);
        renamed.extend_from_slice(&bytes);
        at = end;
    }
    renamed.extend_from_slice(&pickle[at..]);
    let renamed = if sealed.is_some() { seal_index(renamed) } else { renamed };
    if !read_facts(&renamed)?
        .relative_paths
        .iter()
        .eq(names.values().collect::<std::collections::BTreeSet<_>>())
    {
        return Err(corrupt("index: its shard files cannot be given other names"));
    }
    Ok(renamed)
}
