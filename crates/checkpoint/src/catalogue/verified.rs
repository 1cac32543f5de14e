//! What has been verified of a checkpoint, in a file, so that a run that was killed is not for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use s3dcp_s3::{Error, ErrorKind, ObjectInfo};
use serde::{Deserialize, Serialize};

use super::open::OpenCheckpoint;
use crate::error::config;

/// Time between two writes of the file.
const PERIOD: Duration = Duration::from_secs(1);

/// The file and what it says.
#[derive(Debug)]
pub(crate) struct Verified {
    path: PathBuf,
    state: State,
    written: Instant,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The checkpoint.
    s3dcp_verify: String,
    /// The ETags of its indexes, by their keys.
    indexes: BTreeMap<String, Option<String>>,
    /// By key.
    files: BTreeMap<String, VerifiedFile>,
}

/// What has been verified of a file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct VerifiedFile {
    size: u64,
    etag: Option<String>,
    /// Bytes, by their start.
    ranges: BTreeMap<u64, u64>,
}

impl Verified {
    /// Opens the file at `path` for a checkpoint; nothing is verified where there is none, or one of other indexes.
    ///
    /// # Errors
    /// `Config` for a file that is none of these or of another checkpoint.
    pub(crate) fn open(path: &Path, checkpoint: &OpenCheckpoint) -> Result<Verified, Error> {
        let fresh = State {
            s3dcp_verify: checkpoint.uri.clone(),
            indexes: checkpoint.indexes.iter().map(|index| (index.key.clone(), index.etag.clone())).collect(),
            files: BTreeMap::new(),
        };
        let refuse = |why: String| config(format!("file {}: {why}", path.display()));
        let state = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fresh,
            Err(error) => return Err(refuse(error.to_string())),
            Ok(text) => {
                let state: State = serde_json::from_slice(&text)
                    .map_err(|_| refuse("holds something else than what has been verified".to_owned()))?;
                if state.s3dcp_verify != fresh.s3dcp_verify {
                    return Err(refuse(format!("tells of another checkpoint, {}", state.s3dcp_verify)));
                }
                // Where there are no ETags nobody can tell whether it is the same.
                let is_same = state.indexes == fresh.indexes && fresh.indexes.values().all(Option::is_some);
                if is_same { state } else { fresh }
            }
        };
        let verified = Verified { path: path.to_owned(), state, written: Instant::now() };
        verified.write()?;
        Ok(verified)
    }

    /// Forgets of a file what was verified before it changed.
    pub(crate) fn is(&mut self, file: &ObjectInfo) {
        let known = self.state.files.entry(file.key.clone()).or_default();
        if known.etag.is_none() || (known.size, &known.etag) != (file.size, &file.etag) {
            *known = VerifiedFile { size: file.size, etag: file.etag.clone(), ranges: BTreeMap::new() };
        }
    }

    /// Whether these bytes of a file have been verified.
    pub(crate) fn has(&self, key: &str, range: &Range<u64>) -> bool {
        let before = |file: &VerifiedFile| file.ranges.range(..=range.start).next_back().map(|(_, &end)| end);
        self.state.files.get(key).and_then(before).is_some_and(|end| end >= range.end)
    }

    /// Notes that they have been; writes the file now and then.
    ///
    /// # Errors
    /// Those of writing it.
    pub(crate) fn add(&mut self, key: &str, range: &Range<u64>) -> Result<(), Error> {
        let Some(file) = self.state.files.get_mut(key) else { return Ok(()) };
        let Range { mut start, mut end } = *range;
        if let Some((&before, &until)) = file.ranges.range(..=start).next_back()
            && until >= start
        {
            (start, end) = (before, end.max(until));
        }
        while let Some((&next, &until)) = file.ranges.range(start..=end).next() {
            file.ranges.remove(&next);
            end = end.max(until);
        }
        file.ranges.insert(start, end);
        if self.written.elapsed() < PERIOD {
            return Ok(());
        }
        self.written = Instant::now();
        self.write()
    }

    /// Writes the file beside its place and moves it there.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".part");
        let written = serde_json::to_vec(&self.state)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &self.path));
        written.map_err(|error| {
            let message = format!("file {} cannot be written: {error}", self.path.display());
            Error::new(ErrorKind::Service, message)
        })
    }

    /// All has been verified: the file has nothing more to say.
    pub(crate) fn end(self) {
        fs::remove_file(self.path).ok();
    }
}
