//! Judges the bytes of an index before anything is unpickled, and reads from them what this crate needs.

use s3dcp_s3::Error;

use crate::error::corrupt;
use crate::index::allow::AllowList;
use crate::index::facts::IndexFacts;
use crate::index::scan::{Others, Survey};
use crate::index::seal::sealed_pickle;
use crate::pickle::value::Tree;
use crate::two_threads::both;

/// Walks the pickle of an index that may be unpickled; `is_sealed`: a trailer vouches for its bytes.
fn judge<'a>(pickle: &'a [u8], is_sealed: bool, allow: &AllowList) -> Result<Survey<'a>, Error> {
    let survey = Survey::of(pickle, allow, Others::Refused)?;
    let has_checksums = survey.check()?;
    if has_checksums && !is_sealed {
        return Err(cut_off());
    }
    Ok(survey)
}

/// Sees that the bytes of an index may be unpickled: every opcode is known, every global on the list, the trailer
/// fits if there is one, and what comes out is a checkpoint's `Metadata` whose items have a name, offset and length.
///
/// # Errors
/// `Corrupt`, saying what was refused; also for an index whose items carry checksums while its trailer is missing.
pub fn check_index(bytes: &[u8], allow: &AllowList) -> Result<(), Error> {
    judged(bytes, allow).map(drop)
}

/// The pickle of an index that has passed [`check_index`], and what the walk noted on its way.
pub(crate) fn judged<'a>(bytes: &'a [u8], allow: &AllowList) -> Result<(&'a [u8], Survey<'a>), Error> {
    let sealed = sealed_pickle(bytes)?;
    let survey = judge(sealed.unwrap_or(bytes), sealed.is_some(), allow)?;
    Ok((&bytes[..survey.length], survey))
}

/// The same, and the pickle as a tree. Of a large one both are made at once.
pub(crate) fn judged_tree<'a>(bytes: &'a [u8], allow: &AllowList) -> Result<(Tree<'a>, Survey<'a>), Error> {
    let sealed = sealed_pickle(bytes)?;
    let pickle = sealed.unwrap_or(bytes);
    let (tree, survey) = both(pickle.len(), || Tree::read(pickle), || judge(pickle, sealed.is_some(), allow));
    let survey = survey?;
    Ok((tree?, survey))
}

fn cut_off() -> Error {
    corrupt("index: its trailer is missing, the end was cut off")
}

/// Reads the facts from the bytes of an index, without unpickling it. Which globals it names does not matter here.
///
/// # Errors
/// `Corrupt` for a trailer that does not fit and a pickle that is malformed or no checkpoint metadata, for items that
/// name no shard file, and for an index whose items carry checksums while its trailer is missing (it was cut off).
pub fn read_facts(index: &[u8]) -> Result<IndexFacts, Error> {
    let sealed = sealed_pickle(index)?;
    let allow = AllowList::default_globals();
    let facts = Survey::of(sealed.unwrap_or(index), &allow, Others::Ignored)?.facts()?;
    if facts.has_checksums && sealed.is_none() {
        return Err(cut_off());
    }
    Ok(facts)
}
