//! What a table admits that has too little room, by all windows of each identity; and what a flood does to the others.

use super::super::algorithm;
use super::super::bucket::Bucket;
use super::super::dice::Dice;
use super::super::local::{Ask, Local, Reading, STATES_MAX};
use super::*;
use crate::clock::Stopwatch;
use crate::syntax::rate::Rate;

fn shape(amount: u32, period_ms: u32, burst: u32) -> Shape {
    Shape::new(Rate { amount, period_ms }, burst)
}

fn ask(name: LocalName, shape: Shape, cost: f64) -> Ask<'static> {
    let shape = algorithm::Shape::TokenBucket(shape);
    Ask { name, scope: "limit", shape, enforced: true, joined: false, cost, id: 0 }
}

/// A name as hashes are.
fn hashed(number: u64) -> LocalName {
    let mut dice = Dice(number);
    u128::from(dice.roll(u64::MAX)) << 64 | u128::from(dice.roll(u64::MAX))
}

/// A setting for long runs.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn nobody_owes_less_than_it_did() {
    let (shape, mut sketch) = (shape(1, 1000, 10), Sketch::new(&shape(1, 1000, 10)));
    let mut dice = Dice(7);
    let mut owed = std::collections::HashMap::new();
    // More than there are cells, so that they are shared.
    for number in 0..5000 {
        let name = hashed(dice.roll(3000));
        let now = 1000.0 * number as f64;
        let mut bucket = Bucket::owing(&shape, now, sketch.full_at(name, &shape, now), 0.0);
        if bucket.covers(&shape, 1.0) {
            bucket.charge(&shape, 1.0, now);
        }
        let full_at = bucket.full_at(&shape);
        sketch.put(name, full_at, &shape, now);
        assert!(owed.insert(name, full_at).is_none_or(|before| before <= full_at.max(now)));
    }
    let last = 5_000_000.0;
    assert!(owed.iter().all(|(name, full_at)| sketch.full_at(*name, &shape, last) >= *full_at));
    assert!(!sketch.is_idle(last) && sketch.is_idle(last + 1e7));
}

/// A history of a table with too little room; the most by which an identity had more than it may in any window, in units.
fn excess(seed: u64) -> f64 {
    let mut dice = Dice(seed);
    let shape = shape(1 + dice.roll(20) as u32, 1000, 1 + dice.roll(12) as u32);
    let local = Local::with_shard_max(1 + dice.roll(3) as usize);
    let mut now = 1000.0;
    // Names that share a shard; what each was charged, and not given back.
    let mut admitted: Vec<Vec<(f64, f64)>> = vec![Vec::new(); 6];
    let mut out = Vec::new();
    for _ in 0..400 {
        now += 1000.0 * [0.0, 0.0, 1.0, 20.0, dice.roll(300) as f64][dice.roll(5) as usize];
        let who = dice.roll(6) as usize;
        let asked = ask(who as u128 + 1, shape, 1.0 + dice.roll(2) as f64);
        let Reading { mark, .. } = local.take(&[asked], now)[0];
        if let Some(mark) = mark {
            admitted[who].push((now, asked.cost * shape.price));
            out.push((who, admitted[who].len() - 1, asked, mark));
        }
        if !out.is_empty() && dice.roll(4) == 0 {
            let (who, nth, asked, mark) = out.swap_remove(dice.roll(out.len() as u64) as usize);
            local.refund(&asked, &mark, now);
            admitted[who][nth].1 = 0.0;
        }
    }
    assert!(local.len() <= 3);
    let mut worst = f64::NEG_INFINITY;
    for history in &admitted {
        for (first, &(from, _)) in history.iter().enumerate() {
            let mut sum = 0.0;
            for &(at, units) in &history[first..] {
                sum += units;
                worst = worst.max(sum - shape.capacity - (at - from) * shape.accrual);
            }
        }
    }
    worst
}

#[test]
fn whoever_makes_room_gets_no_more_than_burst_and_rate() {
    let mut most = f64::NEG_INFINITY;
    for seed in 0..setting("WEIR_HISTORIES", 300) {
        let excess = excess(seed);
        assert!(excess <= 0.0, "seed {seed}: {excess} units too many");
        most = most.max(excess);
    }
    assert_eq!(most, 0.0, "some had all that they may");
}

/// What became of those who came during a flood.
#[derive(Debug)]
struct Flooded {
    /// What the greediest was admitted, by what it may be.
    greedy: f64,
    /// Of those who came for the first time, and had to be admitted, the share that was denied.
    rotating: f64,
    /// Of those who come again and again, never too often, the share of requests that were denied.
    regulars: f64,
}

/// So many identities come once each, `per_ms` in a millisecond, while some come again and again within their rate, and
/// some take all that they can.
fn flood(local: &Local, identities: u64, per_ms: u64, shape: Shape) -> Flooded {
    const GREEDY: u64 = 8;
    const REGULARS: u64 = 1000;
    let names = |from: u64, count: u64| (0..count).map(move |number| hashed(from + number)).collect::<Vec<_>>();
    let (greedy, regulars) = (names(1 << 40, GREEDY), names(1 << 41, REGULARS));
    let admits = |name, now| local.take(&[ask(name, shape, 1.0)], now)[0].mark.is_some();
    let (mut had, mut lost, mut came, mut missed) = (0_u64, 0_u64, 0_u64, 0_u64);
    // A regular comes at half of its rate.
    let pause_ms = (2.0 * shape.price / shape.accrual / 1000.0).ceil() as u64;
    let length_ms = identities / per_ms;
    for ms in 0..length_ms {
        let now = (1_000_000 + ms * 1000) as f64;
        for nth in 0..per_ms {
            lost += u64::from(!admits(hashed(ms * per_ms + nth), now));
        }
        had += greedy.iter().filter(|name| admits(**name, now)).count() as u64;
        for regular in (0..REGULARS).filter(|nth| (ms + nth * pause_ms / REGULARS).is_multiple_of(pause_ms)) {
            came += 1;
            missed += u64::from(!admits(regulars[regular as usize], now));
        }
    }
    let may = shape.capacity / shape.price + (length_ms - 1) as f64 * 1000.0 * shape.accrual / shape.price;
    let share = |part: u64, all: u64| part as f64 / all.max(1) as f64;
    Flooded {
        greedy: had as f64 / GREEDY as f64 / may,
        rotating: share(lost, length_ms * per_ms),
        regulars: share(missed, came),
    }
}

/// `WEIR_IDENTITIES=10000000` for the whole of it.
#[test]
fn a_flood_of_identities_denies_hardly_anybody_else() {
    let identities = setting("WEIR_IDENTITIES", 100_000);
    for (rate, burst) in [((1, 1000), 10), ((6, 60_000), 10)] {
        // As many for each place as ten millions are for each of a hundred thousand.
        let local = Local::with_shard_max((identities as usize / 100).min(STATES_MAX) / 64);
        let watch = Stopwatch::start();
        let flooded = flood(&local, identities, 100, shape(rate.0, rate.1, burst));
        let each = watch.elapsed().as_nanos() as u64 / identities;
        eprintln!("{rate:?}, {burst} at once: {flooded:?}, {} states, {each} ns an identity", local.len());
        assert!(local.len() <= STATES_MAX);
        assert!(flooded.greedy <= 1.0, "{flooded:?}");
        assert!(flooded.rotating <= 0.001 && flooded.regulars <= 0.001, "{flooded:?}");
    }
}
