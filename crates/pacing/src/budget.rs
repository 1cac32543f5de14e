//! What a client counts on before S3 has refused anything.

use s3dcp_partition::Limits;

/// Whose requests S3 counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Budget {
    /// Those of one range of keys.
    #[default]
    Partition,
    /// Those of a directory bucket, which has no such ranges.
    DirectoryBucket,
}

impl Budget {
    /// What AWS says of it.
    pub fn promised(self) -> Limits {
        match self {
            Budget::Partition => Limits::default(),
            Budget::DirectoryBucket => Limits::directory_bucket(),
        }
    }
}

/// Requests per second, writes or else reads, that each of `files` files may cost each of `ranks` ranks.
///
/// S3 counts requests per range of keys, whatever their size. New prefixes bring no range of their own: all of a job's keys
/// lie in one until S3 has seen it under load for a while. So one range is what is counted on, with what AWS promises for it
/// ([`Limits::default`]), and ranks and files are taken to be alike; parts and ranges grow until a rank's requests fit its
/// share. Where S3 has split, they are larger than they need be, which costs a part's time at the end of a save; where it has
/// not, smaller ones would cost minutes.
pub fn share_of_budget(budget: Budget, write: bool, ranks: u64, files: u64) -> f64 {
    let promised = budget.promised();
    let all = if write { promised.writes_per_second } else { promised.reads_per_second };
    all / ranks.max(1) as f64 / files.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_files_have_equal_shares() {
        for (budget, write, ranks, files, share) in [
            (Budget::Partition, true, 7, 5, 100.0),
            (Budget::Partition, false, 1, 1, 5_500.0),
            (Budget::Partition, true, 0, 0, 3_500.0),
            (Budget::DirectoryBucket, true, 100, 2, 1_000.0),
            (Budget::DirectoryBucket, false, 1, 1, 2_000_000.0),
        ] {
            assert_eq!(share_of_budget(budget, write, ranks, files), share);
        }
    }
}
