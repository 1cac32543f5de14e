//! Faults on purpose: what goes wrong between a client and S3, scripted by one-line rules.
//!
//! A rule names what happens and to which requests ([`Fault`]); the first rule that is due for a request is applied
//! to it, and one at most. What is left to chance comes from one seeded generator. A rule acts around the S3
//! operation ([`active`]): before it, so that nothing takes effect, or on the response, after everything did.

mod active;
mod body;
mod rule;
mod target;

use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

pub(crate) use active::{ActiveFault, InjectedError};
pub(crate) use body::Dropped;
pub use rule::{Fault, InvalidFault};
pub(crate) use target::Target;

/// The rules in force.
pub(crate) struct Faults {
    rules: Mutex<Rules>,
}

struct Rules {
    active: Vec<Active>,
    random: Rng,
}

struct Active {
    fault: Fault,
    /// Requests that the rule is about, so far.
    matched: u64,
    /// Those to which it was applied.
    applied: u64,
}

impl Faults {
    pub(crate) fn new(faults: &[Fault], seed: u64) -> Self {
        let active = faults.iter().cloned().map(Active::new).collect();
        Self { rules: Mutex::new(Rules { active, random: Rng::with_seed(seed) }) }
    }

    pub(crate) fn add(&self, fault: Fault) {
        self.lock().active.push(Active::new(fault));
    }

    pub(crate) fn clear(&self) {
        self.lock().active.clear();
    }

    /// Every rule, and to how many requests it was applied.
    pub(crate) fn applied(&self) -> Vec<(Fault, u64)> {
        self.lock().active.iter().map(|rule| (rule.fault.clone(), rule.applied)).collect()
    }

    /// What is to happen to the request that `target` gives; asked once for each request.
    pub(crate) fn select(&self, target: impl FnOnce() -> Target) -> Option<ActiveFault> {
        let mut rules = self.lock();
        let Rules { active, random } = &mut *rules;
        if active.is_empty() {
            return None;
        }
        let target = target();
        let due =
            active.iter_mut().find_map(|rule| rule.due(&target, random).then(|| rule.fault.action().clone()));
        due.map(|action| ActiveFault::new(action, random.u64(..)))
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    fn new(fault: Fault) -> Self {
        Self { fault, matched: 0, applied: 0 }
    }

    fn due(&mut self, target: &Target, random: &mut Rng) -> bool {
        if !self.fault.is_about(target) {
            return false;
        }
        self.matched += 1;
        let due = self.fault.is_due(self.matched, self.applied) && random.f64() < self.fault.chance();
        self.applied += u64::from(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: [&str; 2] = ["host", "x-amz-checksum-crc32"];

    fn applied(rules: &[&str], seed: u64, requests: &[(&'static str, &str, Option<u32>)]) -> Vec<u64> {
        let rules: Vec<Fault> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let faults = Faults::new(&rules, seed);
        for &(operation, key, part) in requests {
            let headers = HEADERS.map(str::to_owned).to_vec();
            faults.select(|| Target { operation, key: key.to_owned(), part, headers });
        }
        faults.applied().into_iter().map(|(_, count)| count).collect()
    }

    #[test]
    fn a_rule_is_applied_to_the_requests_it_is_about() {
        let requests = [
            ("UploadPart", "a/__0_0.distcp", Some(1)),
            ("UploadPart", "a/__0_0.distcp", Some(3)),
            ("PutObject", "a/__1_0.distcp", None),
            ("PutObject", "a/.metadata", None),
        ];
        for (rule, count) in [
            ("drop", 4),
            ("drop on=UploadPart", 2),
            ("drop on=UploadPart,PutObject", 4),
            ("drop on=UploadPart part=3", 1),
            ("drop key=*.distcp", 3),
            ("drop key=a/__?_0.distcp on=PutObject", 1),
            ("drop key=.metadata", 0),
            ("drop header=x-amz-checksum-*", 4),
            ("drop header=x-amz-checksum", 0),
            ("drop header=if-match on=PutObject", 0),
            ("drop skip=1", 3),
            ("drop skip=1 times=2", 2),
            ("drop chance=0", 0),
        ] {
            assert_eq!(applied(&[rule], 0, &requests), [count], "{rule}");
        }
    }

    #[test]
    fn the_first_rule_that_is_due_is_the_one_applied() {
        let requests = [("PutObject", "k", None); 5];
        assert_eq!(applied(&["drop times=2", "lose skip=1 times=1", "silence"], 0, &requests), [2, 1, 2]);
    }

    #[test]
    fn chance_follows_the_seed() {
        let requests = [("PutObject", "k", None); 1000];
        let some = applied(&["drop chance=0.25"], 7, &requests);
        assert!((200..300).contains(&some[0]), "{some:?}");
        assert_eq!(some, applied(&["drop chance=0.25"], 7, &requests));
        assert_ne!(some, applied(&["drop chance=0.25"], 8, &requests));
    }
}
