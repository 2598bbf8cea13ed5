//! Histories: who asks when, through which of a fleet's pods, and what happens to these meanwhile. All of it is a function of the seed.

use std::time::Duration;

use crate::fleet::dice::Dice;

/// Microseconds since the beginning of a history, which is a full hour by every clock.
pub type Micros = u64;

const SECOND: Micros = 1_000_000;

/// Pods of a fleet.
pub const PODS: usize = 4;

/// The identity that is judged.
pub const JUDGED: u32 = 0;

/// So many requests in so many seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    pub amount: u32,
    pub period_s: u64,
}

impl Quota {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.amount) / self.period_s as f64
    }
}

/// What most are about: ten requests a second, counted by the minute.
pub const USUAL: Quota = Quota { amount: 600, period_s: 60 };

/// Limits that every request is to be taken from: the first is much tighter than the second.
pub const TWO: [Quota; 2] = [Quota { amount: 5, period_s: 1 }, Quota { amount: 6_000, period_s: 3_600 }];

/// What is offered: five times the usual rate.
const OFFERED: f64 = 50.0;

/// Identities that are rotated through: more than any table of those that are compared has places.
const ROTATED: u32 = 120_000;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// A request comes to a pod.
    Ask {
        pod: usize,
        who: u32,
    },
    /// A pod is killed, and another comes in its place.
    Restart {
        pod: usize,
    },
    Redis {
        is_up: bool,
    },
    /// A pod's wall clock is set, so many microseconds ahead of the others.
    Clock {
        pod: usize,
        ahead: i64,
    },
}

/// One of them.
pub struct History {
    pub name: &'static str,
    pub quotas: &'static [Quota],
    /// Whether there is a Redis for those that count in one and can do without.
    pub has_redis: bool,
    /// In the order of their times.
    pub steps: Vec<(Micros, Step)>,
}

/// All of a seed, in the order of the table's columns.
pub fn all(seed: u64) -> Vec<History> {
    let steps = [
        ("edges", edges(Dice::new(seed, 10))),
        ("waves", waves(Dice::new(seed, 11))),
        ("uneven", flood(&mut Dice::new(seed, 12), 1, 180)),
        ("restarts", restarts(Dice::new(seed, 13))),
        ("away", away(Dice::new(seed, 14))),
        ("clocks", clocks(Dice::new(seed, 15))),
        ("rotation", rotation()),
        ("two limits", flood(&mut Dice::new(seed, 16), 1, 300)),
    ];
    let history = |(name, mut steps): (&'static str, Vec<(Micros, Step)>)| {
        steps.sort_by_key(|(at, _)| *at);
        let quotas: &[Quota] = if name == "two limits" { &TWO } else { &[USUAL] };
        History { name, quotas, has_redis: name != "rotation", steps }
    };
    steps.map(history).into()
}

/// `count` requests to one pod within so long.
fn burst(dice: &mut Dice, from: Micros, length: Micros, count: u32, pod: usize) -> Vec<(Micros, Step)> {
    let one = |_| (from + within(dice, length), Step::Ask { pod, who: JUDGED });
    (0..count).map(one).collect()
}

fn within(dice: &mut Dice, length: Micros) -> Micros {
    dice.below(length as usize) as Micros
}

/// Five times the rate through so many pods.
fn flood(dice: &mut Dice, pods: usize, seconds: u64) -> Vec<(Micros, Step)> {
    let count = (seconds as f64 * OFFERED) as usize;
    let one = |_| (within(dice, seconds * SECOND), Step::Ask { pod: dice.below(pods), who: JUDGED });
    (0..count).map(one).collect()
}

/// One request as a minute begins; all of the minute's at its end, and all of the next one's as that begins.
fn edges(mut dice: Dice) -> Vec<(Micros, Step)> {
    const ASIDE: Micros = 200_000;
    let mut steps = Vec::new();
    for minute in [0, 3, 6] {
        let (begin, end) = (minute * 60 * SECOND, (minute + 1) * 60 * SECOND);
        steps.push((begin, Step::Ask { pod: 0, who: JUDGED }));
        steps.extend(burst(&mut dice, end - ASIDE, ASIDE, USUAL.amount, 0));
        steps.extend(burst(&mut dice, end, ASIDE, USUAL.amount, 0));
    }
    steps
}

/// Now and then, everything that is allowed at every pod at once, and a flood in between.
fn waves(mut dice: Dice) -> Vec<(Micros, Step)> {
    let mut steps = flood(&mut dice, PODS, 60);
    for nth in 1..5 {
        let from = nth * 75 * SECOND + within(&mut dice, 10 * SECOND);
        for pod in 0..PODS {
            steps.extend(burst(&mut dice, from, 300_000, USUAL.amount, pod));
        }
    }
    steps
}

/// A flood while pods are killed.
fn restarts(mut dice: Dice) -> Vec<(Micros, Step)> {
    let mut steps = flood(&mut dice, PODS, 180);
    let mut at = 0;
    loop {
        at += dice.between(Duration::from_secs(2), Duration::from_secs(10)).as_micros() as Micros;
        if at > 180 * SECOND {
            return steps;
        }
        steps.push((at, Step::Restart { pod: dice.below(PODS) }));
    }
}

/// A flood, and Redis away for a minute of it, in the middle of which a minute of the clock ends.
fn away(mut dice: Dice) -> Vec<(Micros, Step)> {
    let mut steps = flood(&mut dice, PODS, 240);
    let gone = 85 * SECOND + within(&mut dice, 10 * SECOND);
    steps.push((gone, Step::Redis { is_up: false }));
    steps.push((gone + 60 * SECOND, Step::Redis { is_up: true }));
    steps
}

/// A flood while the clocks of pods are set: the first one's an hour ahead, where it stays.
fn clocks(mut dice: Dice) -> Vec<(Micros, Step)> {
    const HOUR: i64 = 3_600 * SECOND as i64;
    let mut steps = flood(&mut dice, PODS, 180);
    steps.push((within(&mut dice, 20 * SECOND), Step::Clock { pod: 0, ahead: HOUR }));
    for nth in 1..9 {
        let at = nth * 20 * SECOND + within(&mut dice, 20 * SECOND);
        let ahead = dice.one_of(&[HOUR, -HOUR, 2 * HOUR, 90 * SECOND as i64, -90 * SECOND as i64]);
        steps.push((at, Step::Clock { pod: 1 + dice.below(PODS - 1), ahead }));
    }
    steps
}

/// One identity takes all that it gets, then a crowd of others comes, and it comes again.
fn rotation() -> Vec<(Micros, Step)> {
    const ROUND: Micros = 15 * SECOND;
    let mut steps = Vec::new();
    for round in 0..3 {
        let begin = round * ROUND;
        let all = u64::from(USUAL.amount) + 100;
        steps.extend((0..all).map(|nth| (begin + nth * 1_000, Step::Ask { pod: 0, who: JUDGED })));
        if round < 2 {
            let crowd = |nth: u32| (begin + SECOND + u64::from(nth) * 100, Step::Ask { pod: 0, who: 1 + nth });
            steps.extend((0..ROTATED).map(crowd));
        }
    }
    steps
}

#[test]
fn a_seed_replays_and_another_is_another() {
    let steps = |seed| all(seed).into_iter().map(|history| history.steps).collect::<Vec<_>>();
    let (one, again, other) = (steps(7), steps(7), steps(8));
    assert_eq!(one, again);
    assert_ne!(one[0], other[0]);
}
