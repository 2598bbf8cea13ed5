use proptest::prelude::*;

use super::*;

const SECOND: Micros = 1_000_000;

/// One that `LEAST_ATTEMPTS` failures at `now` have opened.
fn open(now: Micros) -> Breaker {
    let mut breaker = Breaker::new(0);
    for i in 1..=LEAST_ATTEMPTS {
        assert_eq!(breaker.admit(now), Verdict::Try);
        assert_eq!(breaker.failed(now, 0.0), i == LEAST_ATTEMPTS, "failure {i}");
    }
    breaker
}

#[test]
fn it_opens_when_half_of_enough_fail() {
    let mut breaker = open(SECOND);
    assert_eq!(breaker.admit(SECOND), Verdict::Refuse(FIRST_PAUSE_US));
    let mut breaker = Breaker::new(0);
    breaker.count_successes(30, SECOND);
    let opened = (0..).position(|_| breaker.failed(SECOND, 0.0));
    assert_eq!(opened, Some(29), "thirty of sixty");
}

#[test]
fn successes_of_long_ago_do_not_keep_it_closed_and_rare_failures_do_not_open_it() {
    let mut breaker = Breaker::new(0);
    // A million in an hour are a few hundred a second.
    breaker.count_successes(1_000_000, 3_600 * SECOND);
    let needed = (1..).find(|_| breaker.failed(3_600 * SECOND, 0.0)).unwrap_or_default();
    assert!((1_000..2_000).contains(&needed), "those of the window count: {needed}");
    let mut breaker = Breaker::new(0);
    for second in 1..10_000 {
        assert!(!breaker.failed(second * SECOND, 0.0), "one a second is never enough");
    }
}

#[test]
fn what_may_take_long_finds_out_only_where_nobody_else_does() {
    let mut breaker = open(SECOND);
    let due = SECOND + FIRST_PAUSE_US;
    assert_eq!((breaker.refuses(due), breaker.refuses_slow(due)), (None, Some(LONGEST_PAUSE_US)));
    let overdue = due + LONGEST_PAUSE_US;
    assert_eq!(breaker.refuses_slow(overdue), None);
    assert_eq!(breaker.admit(overdue), Verdict::Probe);
    assert!(breaker.refuses_slow(overdue).is_some(), "one at a time");
    assert_eq!(Breaker::new(0).refuses_slow(SECOND), None);
}

#[test]
fn one_probe_at_a_time_with_growing_pauses_finds_out() {
    let mut now = SECOND;
    let mut breaker = open(now);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let Verdict::Refuse(pause) = breaker.admit(now) else { panic!("it is open") };
        pauses.push(pause);
        now += pause;
        assert_eq!(breaker.refuses(now), None);
        assert_eq!(breaker.admit(now), Verdict::Probe);
        assert!(matches!(breaker.admit(now), Verdict::Refuse(_)), "one at a time");
        assert!(breaker.refuses(now).is_some());
        breaker.probe_failed(now, 0.0);
    }
    assert_eq!(pauses, [100_000, 200_000, 400_000, 800_000, 1_000_000, 1_000_000]);
    now += LONGEST_PAUSE_US;
    assert_eq!(breaker.admit(now), Verdict::Probe);
    breaker.probe_succeeded(now);
    assert!(breaker.is_closed());
    assert!(!breaker.failed(now, 0.0), "what was before is forgotten");
}

#[test]
fn a_probe_whose_client_left_is_followed_by_another() {
    let mut breaker = open(SECOND);
    let now = SECOND + FIRST_PAUSE_US;
    assert_eq!(breaker.admit(now), Verdict::Probe);
    breaker.probe_left(now);
    assert_eq!(breaker.admit(now), Verdict::Probe);
    // One that hangs does not keep the others out for ever.
    assert_eq!(breaker.admit(now + LONGEST_PROBE_US), Verdict::Probe);
}

#[derive(Debug, Clone)]
enum Step {
    Pass(Micros),
    Succeed(u8),
    Fail,
    EndProbe(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..400_000).prop_map(Step::Pass),
        (0_u8..20).prop_map(Step::Succeed),
        Just(Step::Fail),
        (0_u8..3).prop_map(Step::EndProbe),
    ]
}

proptest! {
    #[test]
    fn it_never_refuses_for_longer_than_it_says_and_never_opens_on_few(steps in prop::collection::vec(step(), 1..400)) {
        let (mut breaker, mut now, mut failures, mut probing) = (Breaker::new(0), 0, 0, false);
        for step in steps {
            match step {
                Step::Pass(time) => now += time,
                Step::Succeed(successes) => breaker.count_successes(u64::from(successes), now),
                Step::Fail => {
                    failures += 1;
                    let opened = breaker.failed(now, 0.5);
                    prop_assert!(!opened || failures * 2 >= LEAST_ATTEMPTS, "after {failures}");
                }
                Step::EndProbe(how) if probing => {
                    probing = false;
                    match how {
                        0 => breaker.probe_succeeded(now),
                        1 => breaker.probe_failed(now, 0.5),
                        _ => breaker.probe_left(now),
                    }
                    if how == 0 { failures = 0; }
                }
                Step::EndProbe(_) => {}
            }
            match breaker.admit(now) {
                Verdict::Try => prop_assert!(breaker.is_closed()),
                Verdict::Probe => {
                    prop_assert!(!breaker.is_closed());
                    probing = true;
                }
                Verdict::Refuse(pause) => {
                    prop_assert!(pause <= LONGEST_PAUSE_US && !breaker.is_closed());
                    let later = now + if probing { LONGEST_PROBE_US } else { pause };
                    prop_assert_eq!(breaker.refuses(later), None, "somebody is asked then");
                }
            }
        }
    }
}
