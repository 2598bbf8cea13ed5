//! What each algorithm promises, over random histories: its bound in every window, by the time that has really passed,
//! whatever the clock says; waits that are true; refunds that mint nothing.

use proptest::prelude::*;

use super::*;
use crate::syntax::rate::Rate;

/// When histories begin.
const EPOCH_US: Micros = 1_700_000_000_000_000.0;

fn rate(amount: u32, period_ms: u32) -> Rate {
    Rate { amount, period_ms }
}

fn rates() -> impl Strategy<Value = Rate> {
    let periods = prop_oneof![4 => Just(1000), 1 => Just(60_000), 1 => Just(86_400_000)];
    (prop_oneof![1..4u32, 1..60u32], periods).prop_map(|(amount, period_ms)| rate(amount, period_ms))
}

/// Every algorithm whose states change with time.
fn shapes() -> impl Strategy<Value = Shape> {
    let bucket = (rates(), 1..60u32).prop_map(|(rate, burst)| Quota::TokenBucket { rate, burst });
    let quota = prop_oneof![
        bucket,
        rates().prop_map(Quota::FixedWindow),
        rates().prop_map(Quota::SlidingWindow),
        rates().prop_map(Quota::SlidingLog),
    ];
    (quota, 1..4u32).prop_map(|(quota, pods)| Shape::new(&quota).divided(pods))
}

/// The most that may be admitted from a moment to another that comes `w` after it, both included.
fn bound(shape: &Shape, w: Micros) -> f64 {
    match shape {
        Shape::TokenBucket(shape) => ((shape.capacity + w * shape.accrual) / shape.price).floor(),
        Shape::FixedWindow(window) => window.amount * ((w / window.period).floor() + 2.0),
        Shape::SlidingWindow(window) => (window.amount * (window.period + w) / window.period).floor(),
        Shape::SlidingLog(window) => window.amount * ((w / window.period).floor() + 1.0),
        Shape::Concurrency(slots) => slots.max,
    }
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes, as a share of the period and beyond it.
    Pass(u32),
    /// The clock is set back.
    Back(u32),
    /// A request comes, at this cost.
    Come(u32),
    /// The `n`th last admitted one is given back.
    Refund(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pass = prop_oneof![0..20u32, 0..2000u32, 0..2_000_000u32, 900_000..1_100_000u32];
    let back = prop_oneof![3 => 0..1_000_000u32, 1 => 1_000_000..4_000_000_000u32];
    let step = prop_oneof![
        8 => prop_oneof![5 => Just(1u32), 1 => 1..8u32].prop_map(Step::Come),
        5 => pass.prop_map(Step::Pass),
        2 => (0..5usize).prop_map(Step::Refund),
        1 => back.prop_map(Step::Back),
    ];
    prop::collection::vec(step, 1..250)
}

/// How much of a second a step of time is, in the period's own measure.
fn scaled(shape: &Shape, micros: u32) -> Micros {
    let period = match shape {
        Shape::TokenBucket(shape) => (shape.capacity / shape.accrual).min(8.64e10),
        Shape::FixedWindow(window) | Shape::SlidingWindow(window) | Shape::SlidingLog(window) => window.period,
        Shape::Concurrency(slots) => slots.lease,
    };
    (f64::from(micros) * period / 1e6).floor()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_window_is_within_its_bound_whatever_the_clock_does(shape in shapes(), steps in steps()) {
        let (mut now, mut past) = (EPOCH_US, 0.0);
        let mut state = State::new(&shape, now);
        let mut admitted: Vec<(Micros, f64, Mark)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            state.rewind(&shape, now);
            match step {
                Step::Pass(us) => {
                    past += scaled(&shape, us);
                    now += scaled(&shape, us);
                }
                Step::Back(us) => now -= f64::from(us),
                Step::Come(cost) if state.covers(&shape, cost.into(), now) => {
                    admitted.push((past, cost.into(), state.charge(&shape, cost.into(), now, id as u64)));
                }
                Step::Come(_) => {}
                Step::Refund(n) => {
                    if let Some(index) = admitted.len().checked_sub(n + 1) {
                        state.refund(&shape, &admitted.remove(index).2, now);
                    }
                }
            }
        }
        for (first, (start, _, _)) in admitted.iter().enumerate() {
            let mut sum = 0.0;
            for (end, cost, _) in &admitted[first..] {
                sum += cost;
                prop_assert!(sum <= bound(&shape, end - start), "{sum} in {} us of {shape:?}", end - start);
            }
        }
    }

    #[test]
    fn the_wait_is_true_to_the_millisecond(shape in shapes(), steps in steps()) {
        let mut now = EPOCH_US;
        let mut state = State::new(&shape, now);
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Pass(us) => now += scaled(&shape, us),
                Step::Back(us) => now -= f64::from(us % 1_000_000),
                Step::Come(cost) => {
                    let cost = f64::from(cost);
                    state.rewind(&shape, now);
                    let wait_ms = state.level(&shape, cost, now).wait_ms;
                    prop_assert_eq!(wait_ms == 0, state.covers(&shape, cost, now));
                    prop_assert_eq!(wait_ms == NEVER_MS, cost > shape.capacity());
                    if wait_ms == 0 {
                        state.charge(&shape, cost, now, id as u64);
                    } else if wait_ms != NEVER_MS {
                        let then = now + wait_ms as f64 * 1000.0;
                        prop_assert!(!state.covers(&shape, cost, then - 1000.0), "{wait_ms} ms of {state:?}");
                        prop_assert!(state.covers(&shape, cost, then), "{wait_ms} ms of {state:?}");
                    }
                }
                Step::Refund(_) => {}
            }
        }
    }

    #[test]
    fn a_refund_leaves_no_more_than_if_the_charge_had_never_been_made(
        shape in shapes(), used in 0..80u32, passed in prop::collection::vec(0..1_500_000u32, 3), twice: bool,
    ) {
        let mut now = EPOCH_US;
        let mut state = State::new(&shape, now);
        for id in 0..used {
            if state.covers(&shape, 1.0, now) {
                state.charge(&shape, 1.0, now, id.into());
            }
            now += scaled(&shape, passed[0] / 40);
        }
        let mut untouched = state.clone();
        if !state.covers(&shape, 1.0, now) {
            return Ok(());
        }
        let mark = state.charge(&shape, 1.0, now, 1000);
        now += scaled(&shape, passed[1]);
        if state.covers(&shape, 1.0, now) {
            state.charge(&shape, 1.0, now, 1001);
            untouched.charge(&shape, 1.0, now, 1001);
        }
        state.refund(&shape, &mark, now);
        // What is kept by the request's name can be given back as often as one likes.
        if twice && matches!(mark, Mark::Request { .. }) {
            prop_assert!(state.refund(&shape, &mark, now).is_none());
        }
        now += scaled(&shape, passed[2]);
        let (left, expected) = (state.level(&shape, 1.0, now).remaining, untouched.level(&shape, 1.0, now).remaining);
        prop_assert!(left <= expected, "{left} of {expected}: {state:?}, {untouched:?}");
    }

    #[test]
    fn as_many_are_in_flight_as_may_be_and_no_more(
        max in 1..6u32, steps in prop::collection::vec((0..3u32, 0..3_000_000u32, 0..8usize), 1..200)
    ) {
        let shape = Shape::Concurrency(Slots::new(max));
        let lease = Slots::new(max).lease;
        let (mut now, mut state, mut running) = (EPOCH_US, State::new(&shape, EPOCH_US), Vec::new());
        for (id, (what, us, n)) in steps.into_iter().enumerate() {
            running.retain(|(begun, _): &(Micros, Mark)| begun + lease > now);
            match what {
                0 => now += f64::from(us),
                1 => {
                    prop_assert_eq!(state.covers(&shape, 1.0, now), running.len() < max as usize);
                    if state.covers(&shape, 1.0, now) {
                        running.push((now, state.charge(&shape, 1.0, now, id as u64)));
                    }
                }
                _ => {
                    if let Some(index) = running.len().checked_sub(n + 1) {
                        let mark = running.remove(index).1;
                        prop_assert!(state.refund(&shape, &mark, now).is_some());
                        prop_assert!(state.refund(&shape, &mark, now).is_none(), "once is enough");
                    }
                }
            }
        }
    }
}

/// Twice less one is the most, and it is reached: the bound is no larger than it must be.
#[test]
fn a_sliding_window_that_is_empty_at_first_admits_almost_twice_the_amount_around_an_edge() {
    let shape = Shape::new(&Quota::SlidingWindow(rate(100, 1000)));
    let mut state = State::new(&shape, EPOCH_US);
    let mut admitted = 0;
    let (edge, mut id) = (EPOCH_US + 1e6, 0);
    for at in 0..1_000_000 / 1000 {
        let now = edge - 1.0 + f64::from(at) * 1000.0;
        while state.covers(&shape, 1.0, now) {
            id += 1;
            state.charge(&shape, 1.0, now, id);
            admitted += 1;
        }
    }
    assert_eq!(admitted, 199);
}

#[test]
fn a_fixed_window_admits_twice_around_an_edge_and_a_log_never() {
    let around = |quota: Quota| {
        let shape = Shape::new(&quota);
        let mut state = State::new(&shape, EPOCH_US);
        let times = [EPOCH_US + 999_999.0, EPOCH_US + 1e6, EPOCH_US + 1e6 + 999_998.0, EPOCH_US + 1e6 + 999_999.0];
        times.map(|now| {
            (0..20)
                .filter(|id| {
                    state.covers(&shape, 1.0, now) && {
                        state.charge(&shape, 1.0, now, *id);
                        true
                    }
                })
                .count()
        })
    };
    assert_eq!(around(Quota::FixedWindow(rate(10, 1000))), [10, 10, 0, 0]);
    assert_eq!(around(Quota::SlidingLog(rate(10, 1000))), [10, 0, 0, 10]);
}

/// A minute's window and a clock set back by an hour: what was left of the minute is waited for, not an hour.
#[test]
fn a_clock_set_back_takes_a_window_along() {
    for quota in [Quota::FixedWindow, Quota::SlidingWindow, Quota::SlidingLog].map(|of| of(rate(5, 60_000))) {
        let shape = Shape::new(&quota);
        let mut state = State::new(&shape, EPOCH_US);
        for id in 0..5 {
            state.charge(&shape, 1.0, EPOCH_US, id);
        }
        let back = EPOCH_US - 3.6e9;
        assert!(state.rewind(&shape, back));
        assert!(!state.rewind(&shape, back));
        let wait_ms = state.level(&shape, 1.0, back).wait_ms;
        assert!((1..=72_000).contains(&wait_ms), "{wait_ms} ms by {quota:?}");
        assert!(state.covers(&shape, 1.0, back + wait_ms as f64 * 1000.0));
    }
}

#[test]
fn a_cost_is_taken_whole_or_not_at_all() {
    for quota in [Quota::FixedWindow, Quota::SlidingWindow, Quota::SlidingLog].map(|of| of(rate(10, 1000))) {
        let shape = Shape::new(&quota);
        let mut state = State::new(&shape, EPOCH_US);
        state.charge(&shape, 7.0, EPOCH_US, 1);
        assert!(!state.covers(&shape, 4.0, EPOCH_US) && state.covers(&shape, 3.0, EPOCH_US), "{quota:?}");
        assert_eq!(state.level(&shape, 11.0, EPOCH_US).wait_ms, NEVER_MS);
    }
}

#[test]
fn a_state_is_small() {
    assert!(size_of::<State>() <= 40, "{} bytes", size_of::<State>());
}
