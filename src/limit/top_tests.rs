use std::collections::BTreeMap;
use std::sync::Barrier;

use super::super::dice::Dice;
use super::super::tests::hourly;
use super::*;
use crate::clock::Stopwatch;
use crate::config::Stage;

fn limit() -> Arc<config::Limit> {
    Arc::new(hourly("limit", 1, Stage::Request))
}

fn count(top: &Top, limit: &Arc<config::Limit>, number: u64) {
    top.count(u128::from(number) + 1, limit, number as f64, |out| out.extend_from_slice(&number.to_le_bytes()));
}

/// Of whom it is, as they were counted here.
fn number(one: &Denied) -> u64 {
    u64::from_le_bytes(one.identity[..].try_into().unwrap())
}

#[test]
fn a_short_list_is_exact() {
    let (top, limit) = (Top::new(), limit());
    for number in 0..TRACKED as u64 {
        for _ in 0..=number {
            count(&top, &limit, number);
        }
    }
    let list = top.list();
    let seen: Vec<_> = list.iter().map(|one| (number(one), one.at_least, one.at_most, one.last)).collect();
    let expected: Vec<_> = (0..TRACKED as u64).rev().map(|n| (n, n + 1, n + 1, n as f64)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn whoever_is_denied_often_is_there_however_many_others_are() {
    for seed in 0..20 {
        let (top, limit, mut dice) = (Top::new(), limit(), Dice(seed));
        let mut truth: BTreeMap<u64, u64> = BTreeMap::new();
        const ALL: u64 = 20_000;
        for _ in 0..ALL {
            // A few often, and many once.
            let who = if dice.roll(3) == 0 { dice.roll(10) } else { 1000 + dice.roll(1 << 40) };
            *truth.entry(who).or_default() += 1;
            count(&top, &limit, who);
        }
        let list = top.list();
        assert_eq!(list.len(), TRACKED);
        for one in &list {
            let real = truth[&number(one)];
            assert!(one.at_least <= real && real <= one.at_most, "seed {seed}: {real} is not in {one:?}");
        }
        for (who, count) in truth.iter().filter(|(_, count)| **count > ALL / TRACKED as u64) {
            assert!(list.iter().any(|one| number(one) == *who), "seed {seed}: {who}, {count} times, is not there");
        }
        assert!(list[..10].iter().all(|one| number(one) < 10), "seed {seed}: they come first");
    }
}

#[test]
fn threads_count_together() {
    const THREADS: u64 = 4;
    let each = std::env::var("WEIR_DENIALS").map_or(20_000, |text| text.parse().unwrap());
    let (top, limit, gate) = (Top::new(), limit(), Barrier::new(THREADS as usize));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (top, limit, gate) = (&top, &limit, &gate);
            scope.spawn(move || {
                gate.wait();
                let watch = Stopwatch::start();
                // One denied by all of them, one by this, and others that nobody has seen before.
                for turn in 0..each {
                    count(top, limit, if turn % 2 == 0 { 1 } else { 2 + thread });
                }
                let known = watch.elapsed().as_nanos() as u64 / each;
                let watch = Stopwatch::start();
                (0..each).for_each(|turn| count(top, limit, 1000 + thread * each + turn));
                eprintln!("{known} ns a denial, {} ns of a newcomer", watch.elapsed().as_nanos() as u64 / each);
            });
        }
    });
    let list = top.list();
    let of = |wanted: u64| list.iter().find(|one| number(one) == wanted).map(|one| one.at_least);
    assert_eq!(of(1), Some(THREADS * each / 2));
    assert!((0..THREADS).all(|thread| of(2 + thread) == Some(each / 2)));
}
