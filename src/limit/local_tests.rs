use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::shard::{Kept, SHARD_ENTRIES_MAX};
use super::*;
use crate::limit::bucket;
use crate::limit::concurrency::Slots;
use crate::limit::window::Window;
use crate::syntax::rate::Rate;

const HOUR_US: Micros = 3.6e9;

/// `burst` requests, and one more an hour.
fn hourly(burst: u32) -> Shape {
    Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 3_600_000 }, burst))
}

fn ask(name: LocalName, shape: Shape) -> Ask<'static> {
    Ask { name, scope: "limit", shape, enforced: true, joined: false, cost: 1.0, id: 0 }
}

/// Names that share the first shard.
fn newcomer(number: u128) -> LocalName {
    number + 1
}

fn admits(local: &Local, asks: &[Ask<'_>], now: Micros) -> bool {
    local.take(asks, now).iter().zip(asks).all(|(reading, ask)| !ask.enforced || !reading.is_short())
}

#[test]
fn a_burst_is_exact_however_many_come_at_once() {
    const THREADS: usize = 8;
    let (local, admitted, gate) = (Local::new(), AtomicUsize::new(0), Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (local, admitted, gate) = (&local, &admitted, &gate);
            scope.spawn(move || {
                // Both in one stage, asked in either order: neither may wait for the other for ever.
                let mut asks = [ask(1 << 100, hourly(1000)), ask(2 << 100, hourly(700))];
                asks.rotate_left(thread % 2);
                gate.wait();
                for _ in 0..500 {
                    admitted.fetch_add(usize::from(admits(local, &asks, 0.0)), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 700);
    assert_eq!(local.take(&[ask(1 << 100, hourly(1000))], 0.0)[0].level.remaining, 299, "denied ones charged nothing");
}

#[test]
fn a_short_limit_charges_no_other_and_a_counting_one_denies_nobody() {
    let local = Local::new();
    let counting = Ask { enforced: false, ..ask(3, hourly(1)) };
    assert!(admits(&local, &[ask(1, hourly(5)), ask(2, hourly(1)), counting], 0.0));
    let readings = local.take(&[ask(1, hourly(5)), ask(2, hourly(1)), counting], 0.0);
    assert_eq!(readings.iter().map(|reading| reading.mark.is_some()).collect::<Vec<_>>(), [false; 3]);
    assert_eq!(readings.iter().map(Reading::is_short).collect::<Vec<_>>(), [false, true, true]);
    assert!(admits(&local, &[ask(1, hourly(5)), counting], 0.0));
}

#[test]
fn a_shadow_goes_down_to_nothing_and_is_given_back() {
    let local = Local::new();
    let marks = [(); 3].map(|()| local.shadow(&ask(1, hourly(2)), 0.0));
    assert!(!admits(&local, &[ask(1, hourly(2))], 0.0));
    local.refund(&ask(1, hourly(2)), &marks[2], 0.0);
    assert!(!admits(&local, &[ask(1, hourly(2))], 0.0), "the third had taken nothing");
    local.refund(&ask(1, hourly(2)), &marks[0], 0.0);
    assert!(admits(&local, &[ask(1, hourly(2))], 0.0));
}

/// `amount` requests from one hour to the next.
fn window(amount: u32) -> Shape {
    Shape::FixedWindow(Window::new(Rate { amount, period_ms: 3_600_000 }))
}

#[test]
fn a_flood_of_identities_is_bounded_and_refills_nobody() {
    let local = Local::with_shard_max(8);
    let known = ask(newcomer(0), hourly(2));
    assert!(admits(&local, &[known], 0.0) && admits(&local, &[known], 0.0));
    for number in 1..500 {
        local.take(&[ask(newcomer(number), hourly(2))], 0.0);
    }
    assert_eq!(local.len(), 8);
    assert!(!admits(&local, &[known], 0.0));
    let fresh = ask(newcomer(2000), hourly(2));
    assert!(admits(&local, &[fresh], 0.0), "who comes for the first time has a bucket of its own");
    assert!(admits(&local, &[fresh], 0.0) && !admits(&local, &[fresh], 0.0), "and no more than that");
}

#[test]
fn who_had_to_make_room_finds_what_it_left() {
    let local = Local::with_shard_max(1);
    let asks: Vec<_> = (0..4).map(|number| ask(newcomer(number), hourly(3))).collect();
    for _ in 0..3 {
        // Whoever has a bucket of its own has taken more than the others, who have to make room then.
        assert!(asks.iter().all(|ask| admits(&local, &[*ask], 0.0)));
    }
    assert!(asks.iter().all(|ask| !admits(&local, &[*ask], 0.0)));
    assert!(asks.iter().all(|ask| !admits(&local, &[*ask], HOUR_US - 1000.0)));
    assert!(asks.iter().all(|ask| admits(&local, &[*ask], HOUR_US)));
    assert!(asks.iter().all(|ask| !admits(&local, &[*ask], HOUR_US)));
}

#[test]
fn what_answers_cost_is_owed_by_whoever_has_no_room_too() {
    let local = Local::with_shard_max(1);
    assert!((0..3).all(|_| admits(&local, &[ask(newcomer(0), hourly(9))], 0.0)));
    // The one that is there lacks more, so that the newcomer has none of its own.
    let late = ask(newcomer(1), hourly(9));
    local.owe(&Ask { cost: 11.0, ..late }, 0.0);
    assert_eq!(local.len(), 1);
    let readings = [1.0, 2.0, 3.0].map(|hours| local.take(&[late], hours * HOUR_US)[0].mark.is_some());
    assert_eq!(readings, [false, false, true], "two more than it had, and one to ask with");
}

#[test]
fn a_bucket_makes_room_for_one_that_lacks_more() {
    let local = Local::with_shard_max(1);
    assert!(admits(&local, &[ask(newcomer(0), hourly(9))], 0.0));
    assert!(admits(&local, &[ask(newcomer(1), hourly(9))], 0.0));
    assert!(local.state(newcomer(0)).is_some(), "as much is not more");
    assert!(admits(&local, &[ask(newcomer(1), hourly(9))], 0.0));
    assert!(local.state(newcomer(0)).is_none() && local.state(newcomer(1)).is_some());
    assert!(admits(&local, &[Ask { cost: 8.0, ..ask(newcomer(0), hourly(9)) }], 0.0));
    assert!(!admits(&local, &[ask(newcomer(0), hourly(9))], 0.0));
}

#[test]
fn of_limits_that_a_reload_changed_as_much_is_owed_as_before() {
    let local = Local::with_shard_max(1);
    let secondly = |burst| Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 1000 }, burst));
    let keeper = Ask { scope: "keeper", ..ask(newcomer(0), hourly(100)) };
    assert!(admits(&local, &[Ask { cost: 100.0, ..keeper }], 0.0));
    let late = newcomer(1);
    assert!(admits(&local, &[Ask { cost: 4.0, ..ask(late, hourly(9)) }], 0.0));
    let left = local.take(&[Ask { cost: 9.0, ..ask(late, secondly(9)) }], 0.0)[0].level;
    assert_eq!((left.remaining, left.wait_ms), (5, 4000), "four requests, and not four hours");
    assert!(admits(&local, &[ask(newcomer(2), secondly(9))], 0.0));
    let left = local.take(&[Ask { cost: 9.0, ..ask(late, hourly(9)) }], 0.0)[0].level;
    assert_eq!((left.remaining, left.wait_ms), (5, 4 * 3_600_000));
}

/// What comes for another limit, and is soon forgotten.
fn passing(name: LocalName) -> Ask<'static> {
    let shape = Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 1000 }, 9));
    Ask { scope: "another", ..ask(name, shape) }
}

#[test]
fn who_was_forgotten_is_given_back_no_more_than_it_would_have_been() {
    let local = Local::with_shard_max(1);
    let known = ask(newcomer(0), hourly(2));
    let marks = [(); 2].map(|()| local.take(&[known], 0.0)[0].mark.unwrap());
    local.refund(&known, &marks[0], 0.0);
    // It is full by now, with the second as without it.
    assert!(admits(&local, &[passing(newcomer(1))], HOUR_US));
    assert!(local.state(known.name).is_none());
    assert!(admits(&local, &[known], HOUR_US));
    local.refund(&known, &marks[1], HOUR_US);
    assert!(admits(&local, &[known], HOUR_US));
    assert!(!admits(&local, &[known], HOUR_US), "two at once, and no third");
}

#[test]
fn who_had_to_make_room_is_given_back_no_more_than_it_would_have_been() {
    let local = Local::with_shard_max(1);
    let known = ask(newcomer(0), hourly(2));
    let marks = [(); 2].map(|()| local.take(&[known], 0.0)[0].mark.unwrap());
    local.refund(&known, &marks[0], 0.0);
    let all = |name| Ask { cost: 2.0, ..ask(name, hourly(2)) };
    assert!(admits(&local, &[all(newcomer(1))], HOUR_US / 2.0));
    assert!(local.state(known.name).is_none());
    assert!(admits(&local, &[all(known.name)], HOUR_US), "full, with the second as without it");
    assert!(local.state(known.name).is_some());
    local.refund(&known, &marks[1], HOUR_US);
    assert!(!admits(&local, &[known], HOUR_US), "two at once, and no third");
}

#[test]
fn who_was_reset_is_given_back_nothing_from_before() {
    for is_there in [true, false] {
        let local = Local::with_shard_max(1);
        let known = ask(newcomer(0), hourly(2));
        let marks = [(); 2].map(|()| local.take(&[known], 0.0)[0].mark.unwrap());
        if !is_there {
            let another = Ask { cost: 9.0, ..ask(newcomer(1), hourly(9)) };
            assert!(admits(&local, &[another], 0.0) && local.state(known.name).is_none());
        }
        local.reset(&known, 0.0);
        assert!((0..2).all(|_| admits(&local, &[known], 0.0)));
        for mark in &marks {
            local.refund(&known, mark, 0.0);
        }
        assert!(!admits(&local, &[known], 0.0), "two since then, and no third");
    }
}

#[test]
fn windows_share_what_there_is_no_room_for() {
    let local = Local::with_shard_max(8);
    let known = ask(newcomer(0), window(2));
    assert!(admits(&local, &[known], 0.0) && admits(&local, &[known], 0.0));
    for number in 1..1000 {
        local.take(&[ask(newcomer(number), window(2))], 0.0);
    }
    assert_eq!(local.len(), 8);
    assert!(!admits(&local, &[known], 0.0));
    assert!(!admits(&local, &[ask(newcomer(2000), window(2))], 0.0), "newcomers share what is left");
    assert!(admits(&local, &[Ask { scope: "another", ..ask(newcomer(2001), window(2)) }], 0.0), "but within a limit");
}

#[test]
fn who_leaves_the_overflow_takes_its_level_along() {
    let local = Local::with_shard_max(1);
    let sliding = |amount| Shape::SlidingWindow(Window::new(Rate { amount, period_ms: 3_600_000 }));
    assert!(admits(&local, &[ask(newcomer(0), hourly(1))], 0.0));
    let late = ask(newcomer(1), sliding(3));
    for _ in 0..3 {
        assert!(admits(&local, &[late], 0.0));
    }
    // The first bucket is full and makes room; half of what the newcomer had an hour ago still counts.
    assert!(admits(&local, &[late], 1.5 * HOUR_US));
    assert!(local.state(late.name).is_some());
    assert!(!admits(&local, &[late], 1.5 * HOUR_US));
}

#[test]
fn full_buckets_make_room() {
    let local = Local::with_shard_max(2);
    for hour in 0..10 {
        for number in 0..2 {
            assert!(admits(&local, &[ask(newcomer(hour * 2 + number), hourly(1))], hour as f64 * HOUR_US));
        }
    }
    assert_eq!(local.len(), 2);
}

#[test]
fn what_only_counts_and_is_one_is_charged_together_or_not_at_all() {
    let local = Local::new();
    let counting = |name, burst| Ask { enforced: false, ..ask(name, hourly(burst)) };
    let asks = [counting(1, 9), Ask { joined: true, ..counting(2, 1) }, counting(3, 9)];
    let charged = || local.take(&asks, 0.0).iter().map(|reading| reading.mark.is_some()).collect::<Vec<_>>();
    assert_eq!(charged(), [true; 3]);
    assert_eq!(charged(), [false, false, true]);
    let readings = local.take(&asks, 0.0);
    assert_eq!(readings.iter().map(Reading::is_short).collect::<Vec<_>>(), [false, true, false]);
}

/// `amount` requests an hour, by their times.
fn log(amount: u32) -> Shape {
    Shape::SlidingLog(Window::new(Rate { amount, period_ms: 3_600_000 }))
}

#[test]
fn logs_take_no_more_memory_than_they_may() {
    let local = Local::new();
    // Each may come to ten thousand times: so many, and no more, have room in one shard.
    let room = SHARD_ENTRIES_MAX / 10_000;
    for number in 0..100 {
        assert!(admits(&local, &[ask(newcomer(number), log(10_000))], 0.0));
    }
    assert_eq!(local.len(), room);
    // Small ones still have.
    let small = Ask { scope: "another", ..ask(newcomer(200), log(1)) };
    assert!(admits(&local, &[small], 0.0) && !admits(&local, &[small], 0.0));
    assert_eq!(local.len(), room + 1);
    // An hour later the first are forgotten, and the others get logs of their own.
    assert!(admits(&local, &[ask(newcomer(300), log(10_000))], HOUR_US));
    assert!(local.state(newcomer(300)).is_some());
}

#[test]
fn a_slot_that_strangers_share_is_given_back_to_them() {
    let local = Local::with_shard_max(1);
    let slots = |name, id| Ask { id, ..ask(name, Shape::Concurrency(Slots::new(2).divided(1))) };
    assert!(admits(&local, &[ask(newcomer(0), hourly(1))], 0.0));
    let shared: Vec<_> = (1..=3).map(|id| (id, local.take(&[slots(newcomer(id as u128), id)], 0.0)[0].mark)).collect();
    assert!(shared[0].1.is_some() && shared[1].1.is_some() && shared[2].1.is_none(), "two share what there is");
    local.refund(&slots(newcomer(2), 2), &shared[1].1.unwrap(), HOUR_US);
    // There is room for a state of its own by now; what was taken before stays where it is.
    let own = slots(newcomer(1), 9);
    let mark = local.take(&[own], HOUR_US)[0].mark.unwrap();
    assert_eq!(local.state(newcomer(1)).map(|state| state.level(&own.shape, 1.0, HOUR_US).remaining), Some(1));
    local.refund(&slots(newcomer(1), 1), &shared[0].1.unwrap(), HOUR_US);
    local.refund(&own, &mark, HOUR_US);
    assert_eq!(local.state(newcomer(1)).map(|state| state.idle_at(&own.shape)), Some(0.0));
    assert!(local.take(&[slots(newcomer(4), 4)], HOUR_US)[0].mark.is_some(), "nothing is held for ever");
}

#[test]
fn a_kept_state_takes_64_bytes() {
    assert_eq!(size_of::<(LocalName, Kept)>(), 64);
}
