use proptest::prelude::*;

use super::*;

fn shape(amount: u32, period_ms: u32, burst: u32) -> Shape {
    Shape::new(Rate { amount, period_ms }, burst)
}

fn shapes() -> impl Strategy<Value = Shape> {
    let periods = prop_oneof![Just(1000), Just(60_000), Just(3_600_000), Just(86_400_000)];
    (1..2000u32, periods, prop_oneof![1..4u32, 1..500u32], 1..5u32)
        .prop_map(|(amount, period, burst, pods)| shape(amount, period, burst).divided(pods))
}

#[test]
fn a_shape_is_in_lowest_terms_and_whole_units() {
    assert_eq!(shape(50, 1000, 100), Shape { accrual: 1.0, price: 20_000.0, capacity: 2_000_000.0 });
    assert_eq!(shape(7, 60_000, 1), Shape { accrual: 7.0, price: 60_000_000.0, capacity: 60_000_000.0 });
    assert_eq!(shape(50, 1000, 100).window_secs(), 2);
}

#[test]
fn a_pods_part_has_room_for_one_request_at_least() {
    let part = shape(10, 1000, 8).divided(4);
    assert_eq!((part.capacity / part.price, part.price / part.accrual), (2.0, 400_000.0));
    assert_eq!(shape(10, 1000, 2).divided(4).capacity, shape(10, 1000, 2).divided(4).price);
}

#[test]
fn a_clock_that_goes_back_gains_nothing_and_starves_nobody() {
    let shape = shape(1, 1000, 2);
    let mut bucket = Bucket::full(&shape, 1e9);
    bucket.charge(&shape, 1.0, 1e9);
    bucket.charge(&shape, 1.0, 1e9);
    // Readers that are a little late: the stamp stays, and the same second is not gained twice.
    bucket.refill(&shape, 1e9 - 400_000.0);
    bucket.refill(&shape, 1e9 + 500_000.0);
    assert!(!bucket.covers(&shape, 1.0));
    assert_eq!(bucket.level(&shape, 1.0, 1e9 + 500_000.0).wait_ms, 500);
    // Seen from before its stamp, the wait is the longer.
    assert_eq!(bucket.level(&shape, 1.0, 1e9).wait_ms, 1000);
    // Set back by an hour: it goes on from there.
    bucket.refill(&shape, 1e9 - 3.6e9);
    assert_eq!(bucket.level(&shape, 1.0, 1e9 - 3.6e9).wait_ms, 500);
    bucket.refill(&shape, 1e9 - 3.6e9 + 500_000.0);
    assert!(bucket.covers(&shape, 1.0));
}

#[test]
fn another_rate_keeps_the_tokens() {
    let (old, new) = (shape(10, 1000, 10), shape(300, 60_000, 8));
    let mut bucket = Bucket::full(&old, 0.0);
    for _ in 0..7 {
        bucket.charge(&old, 1.0, 0.0);
    }
    bucket.refill(&new, 0.0);
    assert_eq!(bucket.level(&new, 1.0, 0.0).remaining, 3);
}

#[test]
fn a_refund_of_what_would_have_spilled_is_none() {
    let shape = shape(1, 1000, 1);
    let mut bucket = Bucket::full(&shape, 0.0);
    let mark = bucket.charge(&shape, 1.0, 0.0);
    bucket.refill(&shape, 1e6);
    bucket.charge(&shape, 1.0, 1e6);
    bucket.refund(&shape, &mark);
    assert!(!bucket.covers(&shape, 1.0), "two requests within one second");
}

/// The clock is where it was again, and the bucket has been full meanwhile.
#[test]
fn what_was_charged_before_the_clock_was_set_back_stays_charged() {
    let shape = shape(1, 1000, 3);
    let mut bucket = Bucket::full(&shape, 1e9);
    let mark = bucket.charge(&shape, 1.0, 1e9);
    bucket.refill(&shape, 1e9 - 5e6);
    bucket.refill(&shape, 1e9);
    for _ in 0..3 {
        bucket.charge(&shape, 1.0, 1e9);
    }
    bucket.refund(&shape, &mark);
    assert!(!bucket.covers(&shape, 1.0));
}

/// Shadows are charged as far as it goes: of one that owes, nothing, and nothing is forgiven.
#[test]
fn a_charge_as_far_as_it_goes_leaves_a_debt_as_it_is() {
    let shape = shape(1, 1000, 3);
    let mut bucket = Bucket::full(&shape, 0.0);
    bucket.owe(&shape, 5.0);
    assert_eq!(bucket.charge(&shape, 1.0, 0.0).paid, 0.0);
    assert_eq!(bucket.level(&shape, 1.0, 0.0), Level { remaining: 0, wait_ms: 3000, full_ms: 5000 });
}

/// What happens next: time passes, a request comes, the `n`th last admitted one is given back.
#[derive(Debug, Clone)]
enum Step {
    Pass(u32),
    Come,
    Back(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pass = prop_oneof![0..50u32, 0..20_000u32, 0..3_000_000u32];
    let step =
        prop_oneof![3 => Just(Step::Come), 2 => pass.prop_map(Step::Pass), 2 => (0..6usize).prop_map(Step::Back)];
    prop::collection::vec(step, 1..300)
}

/// What happens next to requests that hold so much, and whose answers say what they cost: time passes, one comes, the
/// `n`th last in flight is answered.
#[derive(Debug, Clone)]
enum Answered {
    Pass(u32),
    Come,
    Costs(usize, u32),
}

fn answered() -> impl Strategy<Value = Vec<Answered>> {
    let pass = prop_oneof![0..50u32, 0..20_000u32, 0..30_000_000u32];
    let cost = prop_oneof![0..4u32, 0..50u32];
    let step = prop_oneof![
        3 => Just(Answered::Come),
        2 => pass.prop_map(Answered::Pass),
        3 => (0..6usize, cost).prop_map(|(n, cost)| Answered::Costs(n, cost)),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// Who owes is not admitted, and what is charged beyond the bound is owed by those that were in flight.
    #[test]
    fn every_window_charges_at_most_its_bound_and_what_is_owed(
        shape in shapes(),
        reserve in 1..4u32,
        steps in answered(),
    ) {
        let reserve = f64::from(reserve);
        let (mut bucket, mut now) = (Bucket::full(&shape, 0.0), 0.0);
        // In flight: its charge, and where that stands in the log of when how much was charged and what was owed then.
        let mut open: Vec<(Mark, usize)> = Vec::new();
        let mut log: Vec<(f64, f64, f64)> = Vec::new();
        for step in steps {
            bucket.refill(&shape, now);
            match step {
                Answered::Pass(us) => now += f64::from(us),
                Answered::Come if bucket.covers(&shape, reserve) => {
                    prop_assert!(bucket.credit > 0.0);
                    open.push((bucket.charge(&shape, reserve, now), log.len()));
                    log.push((now, reserve * shape.price, (-bucket.credit).max(0.0)));
                }
                Answered::Come => {}
                Answered::Costs(n, cost) => {
                    let Some(index) = open.len().checked_sub(n + 1) else { continue };
                    let (mark, at) = open.remove(index);
                    let cost = f64::from(cost);
                    if cost < reserve {
                        bucket.refund(&shape, &mark.beyond(&shape, cost));
                        log[at].1 = cost * shape.price;
                    } else {
                        bucket.owe(&shape, cost - reserve);
                        log.push((now, (cost - reserve) * shape.price, (-bucket.credit).max(0.0)));
                    }
                }
            }
        }
        for (first, (start, ..)) in log.iter().enumerate() {
            let mut charged = 0.0;
            for (end, price, owed) in &log[first..] {
                charged += price;
                let bound = shape.capacity + (end - start) * shape.accrual + owed;
                prop_assert!(charged <= bound, "{start} to {end}: {charged} of {bound}");
            }
        }
    }

    #[test]
    fn what_is_beyond_a_cost_comes_back_as_if_it_had_been_charged_apart(
        shape in shapes(),
        kept in 0..5u32,
        passed in 0..5_000_000u32,
    ) {
        let (mut one, mut two) = (Bucket::full(&shape, 0.0), Bucket::full(&shape, 0.0));
        let (all, kept) = (shape.capacity / shape.price, f64::from(kept));
        let mark = one.charge(&shape, all, 0.0);
        two.charge(&shape, kept, 0.0);
        let apart = two.charge(&shape, (all - kept).max(0.0), 0.0);
        one.refill(&shape, f64::from(passed));
        two.refill(&shape, f64::from(passed));
        one.refund(&shape, &mark.beyond(&shape, kept));
        two.refund(&shape, &apart);
        prop_assert!((one.credit - two.credit).abs() <= shape.accrual, "{one:?} {two:?}");
    }

    #[test]
    fn every_window_admits_at_most_burst_and_rate_times_its_length(shape in shapes(), steps in steps()) {
        let (mut bucket, mut now, mut admitted) = (Bucket::full(&shape, 0.0), 0.0, Vec::new());
        for step in steps {
            bucket.refill(&shape, now);
            match step {
                Step::Pass(us) => now += f64::from(us),
                Step::Come if bucket.covers(&shape, 1.0) => admitted.push(bucket.charge(&shape, 1.0, now)),
                Step::Come => {}
                Step::Back(n) => {
                    if let Some(index) = admitted.len().checked_sub(n + 1) {
                        bucket.refund(&shape, &admitted.remove(index));
                    }
                }
            }
        }
        for (first, start) in admitted.iter().enumerate() {
            for (last, end) in admitted.iter().enumerate().skip(first) {
                let price = (last - first + 1) as f64 * shape.price;
                prop_assert!(price <= shape.capacity + (end.at - start.at) * shape.accrual, "{start:?} to {end:?}");
            }
        }
    }

    #[test]
    fn the_wait_is_true_to_the_millisecond(shape in shapes(), ages in prop::collection::vec(0..200_000u32, 1..20)) {
        let (mut bucket, mut now) = (Bucket::full(&shape, 0.0), 0.0);
        for age in ages {
            now += f64::from(age);
            bucket.refill(&shape, now);
            while bucket.covers(&shape, 1.0) {
                bucket.charge(&shape, 1.0, now);
            }
            let wait_us = bucket.level(&shape, 1.0, now).wait_ms as f64 * 1000.0;
            let (mut before, mut at) = (bucket, bucket);
            before.refill(&shape, now + wait_us - 1000.0);
            at.refill(&shape, now + wait_us);
            prop_assert!(!before.covers(&shape, 1.0));
            prop_assert!(at.covers(&shape, 1.0));
        }
    }

    #[test]
    fn a_refund_leaves_no_trace(shape in shapes(), used in 0..20u32, passed in 0..5_000_000u32) {
        let mut bucket = Bucket::full(&shape, 0.0);
        for _ in 0..used {
            bucket.charge(&shape, 1.0, 0.0);
        }
        bucket.refill(&shape, 1000.0);
        let mut untouched = bucket;
        let mark = bucket.charge(&shape, 1.0, 1000.0);
        untouched.refill(&shape, 1000.0 + f64::from(passed));
        bucket.refill(&shape, 1000.0 + f64::from(passed));
        bucket.refund(&shape, &mark);
        prop_assert!(bucket.credit <= untouched.credit);
        // `room` is whole microseconds.
        prop_assert!(bucket.credit >= untouched.credit - shape.accrual);
    }
}
