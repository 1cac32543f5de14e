//! What must hold whatever is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use s3dcp_partition::{Access, KeySpace, Limits};

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.writes_per_second = 20.0;
    limits.reads_per_second = 50.0;
    limits.heat_window = Duration::from_secs(2);
    limits.split_after = Duration::from_secs(5);
    limits.merge_after = Duration::from_secs(60);
    limits
}

/// Asks at a steady rate; how many were admitted.
fn load(space: &mut KeySpace, from: f64, seconds: f64, per_second: f64, key: impl Fn(u64) -> String) -> u64 {
    let mut admitted = 0;
    for number in 0..(seconds * per_second) as u64 {
        let now = Duration::from_secs_f64(from + number as f64 / per_second);
        admitted += u64::from(space.admit(now, &key(number), Access::Write).is_ok());
    }
    admitted
}

fn spread(number: u64) -> String {
    format!("{:x}/file", number % 16)
}

#[test]
fn one_partition_admits_its_budget_whatever_the_prefixes() {
    let mut limits = limits();
    limits.split_after = Duration::from_secs(1000);
    for key in [spread as fn(u64) -> String, |_| "one".to_owned()] {
        let admitted = load(&mut KeySpace::new(limits.clone()), 0.0, 10.0, 100.0, key);
        assert!(
            (200..=220).contains(&admitted),
            "{admitted} of 10 seconds at 20 a second and a burst of one"
        );
    }
}

#[test]
fn sustained_heat_splits_until_the_load_fits() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 60.0, 120.0, spread);
    assert!(space.count() >= 8, "{}", space.count());
    let admitted = load(&mut space, 60.0, 10.0, 120.0, spread);
    assert_eq!(admitted, 1200, "nothing is refused any more");
}

#[test]
fn what_is_short_or_weak_splits_nothing() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 4.0, 200.0, spread);
    assert_eq!(space.count(), 1, "four seconds are not five");
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 100.0, 10.0, spread);
    assert_eq!(space.count(), 1, "half of the budget is not hot");
}

#[test]
fn one_hot_key_cannot_be_split() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 60.0, 200.0, |_| "one".to_owned());
    assert_eq!(space.count(), 1);
}

#[test]
fn a_split_leaves_half_of_the_load_on_either_side() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 6.0, 100.0, spread);
    let now = Duration::from_secs(6);
    let [lower, upper] = &space.partitions(now)[..] else { panic!("{:?}", space.partitions(now)) };
    assert_eq!(lower.end_key.as_deref(), Some(upper.first_key.as_str()));
    assert!((lower.writes_per_second / upper.writes_per_second - 1.0).abs() < 0.2, "{lower:?} {upper:?}");
}

#[test]
fn prefixes_that_come_back_find_their_partitions_and_new_ones_do_not() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 60.0, 120.0, |number| format!("a{}", spread(number)));
    let again = load(&mut space.clone(), 70.0, 3.0, 120.0, |number| format!("a{}", spread(number)));
    let fresh = load(&mut space, 70.0, 3.0, 120.0, |number| format!("b{}", spread(number)));
    assert_eq!(again, 360);
    assert!(fresh < 120, "{fresh} of 360 in the one partition above");
}

#[test]
fn what_stays_cold_is_merged_and_its_keys_stay_served() {
    let mut space = KeySpace::new(limits());
    load(&mut space, 0.0, 60.0, 120.0, spread);
    let before = space.count();
    load(&mut space, 60.0, 200.0, 0.5, |_| "7/file".to_owned());
    assert!(space.count() < before / 2, "{} of {before}", space.count());
    assert!(space.admit(Duration::from_secs(300), "zzz", Access::Write).is_ok());
}

#[test]
fn a_space_divided_from_the_start_takes_the_load_at_once() {
    let first_keys = (1..16).map(|digit| format!("{digit:x}"));
    let admitted = load(&mut KeySpace::divided(limits(), first_keys), 0.0, 5.0, 160.0, spread);
    assert_eq!(admitted, 800);
}

#[test]
fn budgets_of_writes_and_reads_are_apart() {
    let mut space = KeySpace::new(limits());
    let count = |space: &mut KeySpace, access| {
        (0..100).filter(|_| space.admit(Duration::from_secs(1), "k", access).is_ok()).count()
    };
    assert_eq!((count(&mut space, Access::Write), count(&mut space, Access::Read)), (20, 50));
}

#[test]
fn a_refusal_says_when_another_would_be_admitted() {
    let mut space = KeySpace::new(limits());
    let now = Duration::from_secs(3);
    let refused = (0..100).find_map(|_| space.admit(now, "k", Access::Write).err()).unwrap();
    assert!(space.admit(now + refused.retry_after, "k", Access::Write).is_ok());
}

/// Random load of random keys: no partition admits more than its budget in any stretch of time, and every key has exactly
/// one partition, before and after every split and merge.
#[test]
fn random_load_is_never_over_admitted_and_every_key_has_one_partition() {
    for seed in 0..30 {
        let mut random = Rng::with_seed(seed);
        let mut limits = limits();
        limits.merge_after = Duration::from_secs(10);
        let mut space = KeySpace::new(limits.clone());
        let mut now = 0.0;
        // By first key: the times of admitted writes since the partition came to be as it is.
        let mut admitted: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut shapes = 0;
        let mut names: Vec<String> = Vec::new();
        for _ in 0..6000 {
            now += if random.u32(..1500) == 0 { random.f64() * 15.0 } else { random.f64() * 0.02 };
            let key = format!("{:02x}/{}", random.u8(..) >> random.u8(..5), random.u8(..3));
            let time = Duration::from_secs_f64(now);
            let shape: Vec<String> = space.partitions(time).into_iter().map(|view| view.first_key).collect();
            if shape != names {
                shapes += 1;
                admitted.clear();
                names = shape;
            }
            let holders = names.iter().filter(|first_key| **first_key <= key).count();
            let home = names[holders - 1].clone();
            if space.admit(time, &key, Access::Write).is_ok() {
                let times = admitted.entry(home).or_default();
                times.push(now);
                for start in 0..times.len() {
                    let (count, stretch) = (times.len() - start, now - times[start]);
                    let budget = limits.writes_per_second * (stretch + limits.burst.as_secs_f64());
                    assert!(count as f64 <= budget + 1e-6, "seed {seed}: {count} in {stretch} s");
                }
            }
            let views = space.partitions(time);
            assert_eq!(views[0].first_key, "");
            assert_eq!(views.last().unwrap().end_key, None);
            for pair in views.windows(2) {
                assert_eq!(pair[0].end_key.as_ref(), Some(&pair[1].first_key));
                assert!(pair[0].first_key < pair[1].first_key);
            }
        }
        assert!(shapes > 2, "seed {seed}: nothing split");
    }
}
