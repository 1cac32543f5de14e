//! What the files of a checkpoint are called where it is copied to.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use s3dcp_prefix::{
    BinaryPrefixStrategy, HexPrefixStrategy, NumericOptions, NumericPrefixStrategy, PrefixError,
    PrefixStrategy,
};
use s3dcp_s3::Error;

use crate::error::config;
use crate::layout::{Layout, Name};

/// Names of the shard files of a copy, relative to its index.
#[derive(Debug, Default)]
pub enum FileNames {
    /// Those that they have; what lay above the index (`../`) comes to lie below it.
    #[default]
    Keep,
    /// All beside the index.
    Flatten,
    /// Under the prefix that a strategy gives the rank in each name.
    Spread(Box<dyn PrefixStrategy>),
}

impl FileNames {
    /// Under the prefixes of a strategy with as many as there are ranks: `hex`, `binary`, or `numeric:BASE`.
    ///
    /// # Errors
    /// `Config` for another text.
    pub fn spread(strategy: &str) -> Result<FileNames, Error> {
        let options = NumericOptions::default();
        let base = strategy.strip_prefix("numeric:").and_then(|base| base.parse().ok());
        let built: Result<Box<dyn PrefixStrategy>, PrefixError> = match (strategy, base) {
            ("hex", _) => HexPrefixStrategy::new(options).map(|strategy| Box::new(strategy) as _),
            ("binary", _) => BinaryPrefixStrategy::new(options).map(|strategy| Box::new(strategy) as _),
            (_, Some(base)) => {
                NumericPrefixStrategy::new(base, options).map(|strategy| Box::new(strategy) as _)
            }
            _ => return Err(config("must be hex, binary or numeric:BASE")),
        };
        built.map(FileNames::Spread).map_err(|error| config(error.to_string()))
    }

    /// The new name of each file, by the old one.
    ///
    /// # Errors
    /// `Config` where two files would have one name, or one a name that no file can have below `layout`.
    pub(crate) fn map(
        &self,
        relative_paths: &BTreeSet<String>,
        layout: &Layout,
    ) -> Result<BTreeMap<String, String>, Error> {
        let ranks = relative_paths.iter().filter_map(|path| rank_of(base(path)).map(|(rank, _)| rank));
        let count = ranks.max().map_or(relative_paths.len() as u64, |rank| rank.saturating_add(1));
        let count = NonZeroU64::new(count).unwrap_or(NonZeroU64::MIN);
        let bound = match self {
            FileNames::Spread(strategy) => strategy.bind(count),
            _ => None,
        };
        let mut names = BTreeMap::new();
        let mut taken: BTreeMap<String, &str> = BTreeMap::new();
        for (number, path) in relative_paths.iter().enumerate() {
            let name = match self {
                FileNames::Keep => path.trim_start_matches("../").to_owned(),
                FileNames::Flatten => base(path).to_owned(),
                FileNames::Spread(strategy) => {
                    let strategy = bound.as_ref().unwrap_or(strategy);
                    let (rank, rest) = rank_of(base(path)).unwrap_or((number as u64, base(path)));
                    strategy.generate_prefix(rank as i64) + rest
                }
            };
            let key = layout.resolve(&name)?;
            if Name::of(&key).is_index() {
                return Err(config(format!("the index names a shard file {path:?}, as an index is called")));
            }
            if let Some(other) = taken.insert(name.clone(), path) {
                return Err(config(format!("the shard files {other:?} and {path:?} would both be {name:?}")));
            }
            names.insert(path.clone(), name);
        }
        Ok(names)
    }
}

pub(crate) fn base(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, base)| base)
}

/// The rank in `__<rank>_<rest>`, and the rest.
pub(crate) fn rank_of(base: &str) -> Option<(u64, &str)> {
    let (rank, rest) = base.strip_prefix("__")?.split_once('_')?;
    let rank = rank.parse().ok().filter(|&rank| rank < i64::MAX as u64)?;
    (!rest.is_empty()).then_some((rank, rest))
}

#[cfg(test)]
mod tests {
    use s3dcp_prefix::HexPrefixStrategy;

    use super::*;

    fn mapped(names: &FileNames, paths: &[&str]) -> Result<Vec<String>, Error> {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        names.map(&paths, &Layout::new("to")).map(|names| names.into_values().collect())
    }

    #[test]
    fn files_keep_their_prefixes_lose_them_or_get_others() {
        let paths = ["../a0/epoch_5/__0_0-00.distcp", "../b0/epoch_5/__1_0-00.distcp"];
        assert_eq!(
            mapped(&FileNames::Keep, &paths).unwrap(),
            ["a0/epoch_5/__0_0-00.distcp", "b0/epoch_5/__1_0-00.distcp"]
        );
        assert_eq!(mapped(&FileNames::Flatten, &paths).unwrap(), ["__0_0-00.distcp", "__1_0-00.distcp"]);
        let hex = HexPrefixStrategy::new(Default::default()).unwrap();
        assert_eq!(
            mapped(&FileNames::Spread(Box::new(hex)), &paths).unwrap(),
            ["0000000000/__0_0-00.distcp", "1000000000/__1_0-00.distcp"]
        );
    }

    #[test]
    fn two_files_of_one_name_and_a_file_called_as_an_index_are_refused() {
        let error = mapped(&FileNames::Flatten, &["a/__0_0.distcp", "b/__0_0.distcp"]).unwrap_err();
        assert!(error.message().contains("would both be"), "{error}");
        assert!(mapped(&FileNames::Keep, &["a/.metadata"]).is_err());
        assert!(mapped(&FileNames::Keep, &["__0.metadata"]).is_err());
    }
}
