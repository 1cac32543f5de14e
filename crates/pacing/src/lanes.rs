//! Which requests share a lane.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use crate::lane::Lane;

/// How long the rate of a lane says something of its neighbours.
const SAID_FOR: Duration = Duration::from_secs(15 * 60);
/// Lanes from which on those that nobody used for that long are dropped.
const MANY: usize = 1024;

/// A lane for every folder of keys, of writes or of reads: S3 has a budget for each.
///
/// Where the ranges of S3 end is not known, so the folder, which is what a prefix strategy gives a rank, stands for one.
/// A folder that was not used before begins with the rate of its nearest neighbour among the keys, for that lies in the
/// same range most often: another step of the same job, say.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<Box<str>, Used>,
    job: Option<Job>,
}

/// What is told of a job that begins: the folders that it writes or reads begin with `within`, so many clients are at it, and what
/// rate was found before for all of them together.
#[derive(Debug)]
struct Job {
    within: Box<str>,
    clients: u32,
    found: Option<f64>,
    at: Duration,
}

impl Job {
    /// Tells it a lane of its folders.
    fn tell(&self, now: Duration, lane: &mut Lane, random: f64) {
        lane.join(self.at, self.clients);
        if let Some(share) = self.share() {
            lane.resume(now, share, random);
        }
    }

    /// A client's share of the rate that was found before.
    fn share(&self) -> Option<f64> {
        Some(self.found? / f64::from(self.clients.max(1)))
    }
}

#[derive(Debug)]
struct Used {
    lane: Lane,
    at: Duration,
}

impl Lanes {
    /// The lane of a request for `key`, which is `<bucket>/<key>`. `random`, from 0 to 1, keeps clients out of step.
    pub fn lane(&mut self, now: Duration, key: &str, random: f64) -> &mut Lane {
        let folder = folder(key);
        if !self.lanes.contains_key(folder) {
            if self.lanes.len() >= MANY {
                self.lanes.retain(|_, used| now.saturating_sub(used.at) < SAID_FOR);
            }
            let mut lane =
                self.neighbour(now, folder).map_or_else(Lane::default, |lane| lane.follower(now, random));
            if let Some(job) = self.job_of(now, folder) {
                job.tell(now, &mut lane, random);
            }
            self.lanes.insert(folder.into(), Used { lane, at: now });
        }
        let used = self.lanes.get_mut(folder).expect("it is there now");
        used.at = now;
        &mut used.lane
    }

    /// A job of so many clients begins, in folders that begin with `within`. What rate was `found` before, for all of them together,
    /// is what it begins at. `random`, from 0 to 1, keeps clients out of step.
    pub fn begin(
        &mut self,
        now: Duration,
        within: &str,
        clients: u32,
        found: Option<f64>,
        mut random: impl FnMut() -> f64,
    ) {
        let found = found.filter(|rate| rate.is_finite() && *rate > 0.0);
        let job = Job { within: within.into(), clients, found, at: now };
        for (folder, used) in &mut self.lanes {
            if folder.starts_with(within) {
                job.tell(now, &mut used.lane, random());
            }
        }
        self.job = Some(job);
    }

    fn job_of(&self, now: Duration, folder: &str) -> Option<&Job> {
        let told = |job: &&Job| folder.starts_with(&*job.within) && now.saturating_sub(job.at) < SAID_FOR;
        self.job.as_ref().filter(told)
    }

    /// What the rate that was found before for these folders has become, by the lanes that were used since and still go by it.
    pub(crate) fn still_known(&self, within: &str, since: Duration) -> Option<f64> {
        let job = self.job.as_ref().filter(|job| *job.within == *within)?;
        let (found, share) = (job.found?, job.share()?);
        let used = self.lanes.iter().filter(|(folder, used)| folder.starts_with(within) && used.at >= since);
        let changes: Vec<f64> = used.filter_map(|(_, used)| Some(used.lane.known()? / share)).collect();
        (!changes.is_empty()).then(|| found * changes.iter().sum::<f64>() / changes.len() as f64)
    }

    /// Requests admitted in folders that begin with `within` since the job there began, by all of its clients if they are alike.
    pub(crate) fn served(&self, within: &str) -> f64 {
        let lanes = self.lanes.iter().filter(|(folder, _)| folder.starts_with(within));
        lanes.map(|(_, used)| used.lane.served()).sum::<u64>() as f64 * self.clients(within)
    }

    /// Clients of the job in folders that begin with `within`.
    pub(crate) fn clients(&self, within: &str) -> f64 {
        let job = self.job.as_ref().filter(|job| *job.within == *within);
        job.map_or(1.0, |job| f64::from(job.clients.max(1)))
    }

    /// The rate at which requests for `key` are held back, in requests per second, or would be, once it says how large requests
    /// should be.
    pub fn rate(&self, now: Duration, key: &str) -> Option<f64> {
        let folder = folder(key);
        match self.lanes.get(folder) {
            Some(used) => used.lane.settled_rate(now),
            None => {
                let share = self.job_of(now, folder).and_then(Job::share);
                share.or_else(|| self.neighbour(now, folder)?.rate())
            }
        }
    }

    /// The lane of `folder` goes at this rate from now on, if it is held back: see [`Lane::agree`].
    pub(crate) fn agree(&mut self, now: Duration, folder: &str, rate: f64, left: f64) {
        if let Some(used) = self.lanes.get_mut(folder) {
            used.lane.agree(now, rate, left);
        }
    }

    /// Whether the lane of `folder` was used since.
    pub(crate) fn used(&self, folder: &str, since: Duration) -> bool {
        self.lanes.get(folder).is_some_and(|used| used.at >= since)
    }

    /// The lanes that are held back and were used since: their folders and rates in requests per second.
    pub(crate) fn paced(&self, since: Duration) -> impl Iterator<Item = (&str, f64)> {
        let used = self.lanes.iter().filter(move |(_, used)| used.at >= since);
        used.filter_map(|(folder, used)| Some((&**folder, used.lane.rate()?)))
    }

    /// The lane whose folder shares the longest beginning with this one, of the same bucket.
    fn neighbour(&self, now: Duration, folder: &str) -> Option<&Lane> {
        let bucket = folder.find('/').map_or(folder.len(), |end| end + 1);
        let below = self.lanes.range::<str, _>((Bound::Unbounded, Bound::Excluded(folder))).next_back();
        let above = self.lanes.range::<str, _>((Bound::Excluded(folder), Bound::Unbounded)).next();
        [below, above]
            .into_iter()
            .flatten()
            .filter(|(_, used)| now.saturating_sub(used.at) < SAID_FOR)
            .map(|(other, used)| (shared(folder, other), &used.lane))
            .filter(|(shared, _)| *shared >= bucket)
            .max_by_key(|(shared, _)| *shared)
            .map(|(_, lane)| lane)
    }
}

/// What a key has its lane by: all of it up to the last slash.
pub fn folder(key: &str) -> &str {
    &key[..key.rfind('/').map_or(0, |end| end + 1)]
}

/// Bytes that two texts begin with alike.
fn shared(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    /// Lanes of which the one of this key was refused.
    fn refused(key: &str) -> Lanes {
        let mut lanes = Lanes::default();
        let lane = lanes.lane(START, key, 0.5);
        lane.admitted();
        lane.refused(START, START, 0.5);
        lanes
    }

    fn rate(lanes: &mut Lanes, now: Duration, key: &str) -> Option<f64> {
        lanes.lane(now, key, 0.5).rate()
    }

    #[test]
    fn files_of_a_folder_share_a_lane() {
        let mut lanes = refused("bkt/run/a0/__0_0.distcp");
        assert!(rate(&mut lanes, START, "bkt/run/a0/__0_1.distcp").is_some());
        assert_eq!(lanes.paced(START).map(|(folder, _)| folder).collect::<Vec<_>>(), ["bkt/run/a0/"]);
    }

    #[test]
    fn a_new_folder_begins_as_its_nearest_neighbour_does() {
        let mut lanes = refused("bkt/run/step-1/a0/x");
        assert!(rate(&mut lanes, START, "bkt/run/step-2/a0/x").is_some());
        assert_eq!(rate(&mut lanes, START, "other/run/step-2/a0/x"), None);
        assert_eq!(rate(&mut lanes, START + SAID_FOR, "bkt/run/step-3/a0/x"), None);
        let mut lanes = refused("bkt/a/x");
        lanes.lane(START, "bkt/other", 0.5);
        // Below lies an unpaced one of another folder, above the paced one that shares more.
        assert!(rate(&mut lanes, START, "bkt/a/b/x").is_some());
    }

    #[test]
    fn lanes_that_nobody_uses_are_dropped() {
        let mut lanes = refused("bkt/0/x");
        for number in 1..2 * MANY {
            let now = START + SAID_FOR / 100 * u32::try_from(number).unwrap();
            lanes.lane(now, &format!("bkt/{number}/x"), 0.5);
        }
        assert!(lanes.lanes.len() <= MANY, "{}", lanes.lanes.len());
    }
}
