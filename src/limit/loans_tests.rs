//! Several pods and a real Redis on a clock of the test's, with crashes, freezes, lost and late questions: nobody ever
//! admits more than the bucket's bound, in any window. `WEIR_STEPS` steps; `WEIR_SEED` begins with the history that a
//! failure named.

use std::time::Duration;

use super::super::account::USED;
use super::*;
use crate::config::Quota;
use crate::kv::Reply;
use crate::kv::bus::Dedicated;
use crate::kv::tests::Server;
use crate::limit::algorithm;
use crate::limit::dice::Dice;
use crate::limit::shared::{self, Mode, REPAY, ShapeArgs, TAKE_TOKENS};
use crate::syntax::rate::Rate;

const PODS: usize = 4;
const NAME: LocalName = 7;
const WAIT: Duration = Duration::from_secs(5);

/// Steps of one history.
const STEPS: usize = 3000;

/// One process; its clock runs `speed` times as fast as Redis'.
struct Pod {
    loans: Loans,
    speed: f64,
    spent: Vec<(Spent, Micros)>,
}

impl Pod {
    fn new(dice: &mut Dice) -> Self {
        let who = borrower((dice.roll(u64::MAX) << 1) | (1 << 11));
        Self { loans: Loans::new(who), speed: 0.97 + dice.roll(61) as f64 / 1000.0, spent: Vec::new() }
    }
}

/// What was sent to Redis, which has not done it yet.
struct Late {
    args: Vec<Vec<u8>>,
    script: &'static crate::kv::Script,
}

/// The bucket, on a clock of the test's.
struct Lender {
    redis: Dedicated,
    shape: Shape,
}

impl Lender {
    async fn run(&mut self, late: &Late, now: Micros) -> Reply {
        let at = now.to_string();
        let mut parts: Vec<&[u8]> = vec![b"EVAL", late.script.source.as_bytes(), b"1", b"key", at.as_bytes()];
        parts.extend(late.args.iter().map(Vec::as_slice));
        self.redis.command(&parts, WAIT).await.unwrap()
    }

    fn take(&self, who: f64, question: &Question, cost: f64) -> Late {
        let shape = ShapeArgs::new(&algorithm::Shape::TokenBucket(self.shape));
        let mut args: Vec<Vec<u8>> = vec![vec![0; 8]];
        args.extend(shape.iter().map(<[u8]>::to_vec));
        args.extend([cost.to_string().into_bytes(), b"1".to_vec()]);
        assert_eq!(shared::take_args(b"", [(&shape, &b"1"[..], Mode::Enforced)].into_iter()).len(), args.len() + 1);
        args.push(shared::loan_arg(who, question));
        Late { args, script: &TAKE_TOKENS }
    }

    fn repay(&self, who: f64, one: &Repayment) -> Late {
        let mut args: Vec<Vec<u8>> =
            ShapeArgs::new(&algorithm::Shape::TokenBucket(self.shape)).iter().map(<[u8]>::to_vec).collect();
        args.extend([who, one.serial as f64, one.held].map(|number| number.to_string().into_bytes()));
        Late { args, script: &REPAY }
    }
}

/// What a history was like.
#[derive(Debug, Default)]
struct Seen {
    admitted: usize,
    from_loans: usize,
    asked: usize,
    denied_unasked: usize,
    lost: usize,
    repaid: usize,
}

/// Random requests; when each was admitted, and what it cost.
async fn history(seed: u64, rate: Rate, burst: u32, server: &Server) -> (Vec<(Micros, f64)>, Seen) {
    let mut dice = Dice(seed);
    let mut pods: Vec<Pod> = (0..PODS).map(|_| Pod::new(&mut dice)).collect();
    let mut redis = Dedicated::open(&server.shared()).await.unwrap();
    redis.command(&[b"DEL", b"key"], WAIT).await.unwrap();
    let mut lender = Lender { redis, shape: Shape::new(rate, burst) };
    let (mut now, mut admitted, mut seen, mut late) = (1e15, Vec::new(), Seen::default(), Vec::<Late>::new());
    let gap = 1e6 * f64::from(rate.period_ms) / 1000.0 / f64::from(rate.amount);
    // Pauses in which loans end and buckets fill, and everybody at once.
    let (mut left, mut pace, mut active) = (0, 0.0, PODS as u64);
    for _ in 0..STEPS {
        if left == 0 {
            (left, pace, active) = match dice.roll(4) {
                0 => (80 + dice.roll(80), 0.0, PODS as u64),
                1 => (1 + dice.roll(20), 1.0, 1),
                2 => (1 + dice.roll(100), 2.0, PODS as u64),
                _ => (1 + dice.roll(100), 0.3, PODS as u64),
            };
            now += [0.0, 5e4, 2e5, 1.7e6, 1.9e6, 2.05e6, 2.05e6, 6e6][dice.roll(8) as usize];
        }
        left -= 1;
        now += (pace * gap * dice.roll(1000) as f64 / 1000.0).floor();
        let nth = dice.roll(active) as usize;
        match dice.roll(100) {
            0 => pods[nth] = Pod::new(&mut dice),
            6..9 if !late.is_empty() => {
                let one = late.swap_remove(dice.roll(late.len() as u64) as usize);
                lender.run(&one, now).await;
            }
            2 => {
                let pod = &mut pods[nth];
                for one in pod.loans.repayments(dice.roll(2) == 0, (now * pod.speed).floor()) {
                    let repay = lender.repay(pod.loans.who(), &one);
                    if dice.roll(4) == 0 {
                        late.push(repay);
                    } else if lender.run(&repay, now).await.number().unwrap() > 0 {
                        seen.repaid += 1;
                    }
                }
            }
            3..6 => {
                // A later stage denied what was paid last.
                let pod = &mut pods[nth];
                if let Some((spent, at)) = pod.spent.pop() {
                    let index = admitted.iter().rposition(|(by, when, _)| (*by, *when) == (nth, at));
                    admitted.remove(index.expect("it was admitted"));
                    pod.loans.refund(NAME, &spent, (now * pod.speed).floor());
                }
            }
            _ => {
                let pod = &mut pods[nth];
                let own = (now * pod.speed).floor();
                let cost = [1.0, 1.0, 2.0, 3.0][dice.roll(4) as usize];
                let due = due_of(lender.shape, cost);
                match pod.loans.consult(&[due], false, own) {
                    Known::Spent(spent) => {
                        seen.from_loans += 1;
                        pod.spent.push((spent[0], now));
                        admitted.push((nth, now, cost));
                    }
                    Known::Denied(..) | Known::Wait(_) => seen.denied_unasked += 1,
                    Known::Ask(asked) => {
                        seen.asked += 1;
                        let take = lender.take(pod.loans.who(), &asked.questions[0], cost);
                        match dice.roll(20) {
                            0 => late.push(take),
                            fate => {
                                // On its way, and back.
                                now += (pace.min(1.0) * dice.roll(3000) as f64).floor();
                                let reply = lender.run(&take, now).await;
                                let algorithm = algorithm::Shape::TokenBucket(lender.shape);
                                let reading = shared::taken(&reply, 0, 1, |_| (algorithm, cost)).unwrap();
                                let decided = now;
                                now += (pace.min(1.0) * dice.roll(3000) as f64).floor();
                                if fate == 1 {
                                    seen.lost += 1;
                                } else {
                                    if reading[0].mark.is_some() {
                                        admitted.push((nth, decided, cost));
                                    }
                                    asked.answered([(&Heard::Answer(reading[0]), &b"key"[..])].into_iter());
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    seen.admitted = admitted.len();
    (admitted.into_iter().map(|(_, at, cost)| (at, cost)).collect(), seen)
}

/// The window that admitted more than its bound, if one did.
fn excess(admitted: &[(Micros, f64)], rate: Rate, burst: u32) -> Option<(usize, Micros)> {
    let per_us = f64::from(rate.amount) / (f64::from(rate.period_ms) * 1000.0);
    // The largest of `cost - rate * window` over all windows, by what went before each end.
    let (mut least, mut before) = (f64::INFINITY, 0.0);
    let mut admitted = admitted.to_vec();
    admitted.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let began = admitted.first().map_or(0.0, |(at, _)| *at);
    for (nth, (at, cost)) in admitted.iter().enumerate() {
        let gained = (at - began) * per_us;
        least = f64::min(least, before - gained);
        before += cost;
        let most = before - gained - least;
        if most > f64::from(burst) + 1e-6 * most.abs().max(1.0) {
            return Some((nth, most));
        }
    }
    None
}

#[tokio::test]
async fn no_window_admits_more_whatever_fails() {
    let server = Server::up().await;
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (first, histories) = (number("WEIR_SEED", 1), number("WEIR_STEPS", 36_000) / STEPS as u64);
    let mut all = Seen::default();
    for seed in first..first + histories {
        let (amount, burst) = [(1000, 32), (500, 48), (2000, 64), (100, 160)][seed as usize % 4];
        let rate = Rate { amount, period_ms: 1000 };
        let (admitted, seen) = history(seed, rate, burst, &server).await;
        if let Some((nth, most)) = excess(&admitted, rate, burst) {
            panic!("WEIR_SEED={seed}: {most} of {burst} at the {nth}th; {seen:?}");
        }
        all.admitted += seen.admitted;
        all.from_loans += seen.from_loans;
        all.asked += seen.asked;
        all.denied_unasked += seen.denied_unasked;
        all.lost += seen.lost;
        all.repaid += seen.repaid;
    }
    eprintln!("{all:?}");
    assert!(all.from_loans > all.asked / 2 && all.lost > 0 && all.repaid > 0 && all.denied_unasked > 0, "{all:?}");
}

fn due_of(bucket: Shape, cost: f64) -> Due {
    let shape = algorithm::Shape::TokenBucket(bucket);
    let (borrows, remembers, may_lift, counts) = (true, true, false, false);
    Due {
        name: NAME,
        shape,
        bucket: Some(bucket),
        debited: Some(bucket),
        borrows,
        cost,
        pods: 2.0,
        remembers,
        may_lift,
        counts,
    }
}

/// A bucket of 64, of which a loan is for 4.
fn due(cost: f64) -> Due {
    due_of(Shape::new(Rate { amount: 10, period_ms: 1000 }, 64), cost)
}

fn asks(loans: &Loans, cost: f64, now: Micros) -> Box<Asked<'_>> {
    match loans.consult(&[due(cost)], false, now) {
        Known::Ask(asked) => asked,
        _ => panic!("Redis is not asked"),
    }
}

/// What Redis says: charged, and so many requests lent; or denied for a second.
fn said(asked: Box<Asked<'_>>, lent: Option<f64>) {
    let price = due(1.0).bucket.unwrap().price;
    let (remaining, wait_ms) = if lent.is_some() { (9, 0) } else { (0, 1000) };
    let level = Level { remaining, wait_ms, full_ms: 5000 };
    let shape = algorithm::Shape::TokenBucket(due(1.0).bucket.unwrap());
    let mark = lent.map(|_| shape.mark(1.0, 0, 0.0, [0.0; 2]));
    let reading = Reading { mark, level, lent: lent.unwrap_or_default() * price };
    asked.answered([(&Heard::Answer(reading), &b"key"[..])].into_iter());
}

/// A pod that was lent four.
fn lent() -> Loans {
    let loans = Loans::new(1.0);
    said(asks(&loans, 2.0, 0.0), Some(4.0));
    loans
}

fn spends(loans: &Loans, cost: f64, now: Micros) -> Option<Spent> {
    match loans.consult(&[due(cost)], true, now) {
        Known::Spent(spent) => Some(spent[0]),
        _ => None,
    }
}

#[test]
fn a_loan_is_spent_until_its_life_ends_and_not_beyond() {
    let loans = lent();
    assert_eq!(spends(&loans, 3.0, LIFE * USED - 1.0).map(|spent| spent.level.remaining), Some(6));
    assert!(spends(&loans, 2.0, 0.0).is_none(), "one is left");
    assert!(spends(&loans, 1.0, LIFE * USED).is_none());
}

#[test]
fn what_was_spent_comes_back_only_if_the_bucket_was_not_asked_since() {
    let loans = lent();
    let spent = spends(&loans, 4.0, 1.0).unwrap();
    loans.refund(NAME, &spent, 2.0);
    let spent = spends(&loans, 4.0, 3.0).unwrap();
    let asked = asks(&loans, 1.0, 4.0);
    assert_eq!(asked.questions[0].held, 0.0);
    said(asked, Some(0.0));
    loans.refund(NAME, &spent, 5.0);
    assert!(spends(&loans, 1.0, 6.0).is_none());
}

#[test]
fn a_question_gives_back_what_is_left_and_a_denial_leaves_it() {
    let loans = lent();
    let price = due(1.0).bucket.unwrap().price;
    let asked = asks(&loans, 9.0, 1.0);
    assert_eq!(asked.questions[0].held, 4.0 * price);
    let denied = Reading { mark: None, level: Level { remaining: 0, wait_ms: 10, full_ms: 10 }, lent: 4.0 * price };
    asked.answered([(&Heard::Answer(denied), &b"key"[..])].into_iter());
    assert!(spends(&loans, 4.0, 2.0).is_some());
    drop(asks(&lent(), 9.0, 1.0));
    let unanswered = lent();
    drop(asks(&unanswered, 9.0, 1.0));
    assert!(spends(&unanswered, 1.0, 2.0).is_none(), "whether it was given back is not known");
}

#[test]
fn a_denial_is_remembered_for_as_long_as_it_holds_and_for_those_that_cost_as_much() {
    let loans = Loans::new(1.0);
    said(asks(&loans, 2.0, 0.0), None);
    let denied = |cost, now| matches!(loans.consult(&[due(cost)], true, now), Known::Denied(0, _));
    assert!(denied(2.0, 999_999.0) && denied(3.0, 0.0));
    assert!(!denied(1.0, 999_999.0) && !denied(2.0, 1_000_000.0));
}

#[test]
fn who_comes_while_a_loan_is_asked_for_waits_and_is_woken() {
    let loans = Loans::new(1.0);
    said(asks(&loans, 2.0, 0.0), Some(0.0));
    let asked = asks(&loans, 2.0, 0.0);
    let Known::Wait(bell) = loans.consult(&[due(1.0)], false, 1.0) else { panic!("nobody waits") };
    assert!(!bell.is_closed());
    said(asked, Some(4.0));
    assert!(bell.is_closed() && spends(&loans, 1.0, 2.0).is_some());
}

#[test]
fn accounts_are_bounded_and_those_that_matter_stay() {
    let loans = lent();
    for name in 0..2 * ACCOUNTS_MAX as u128 {
        let name = (name % 64) << 96 | (name + 100);
        loans.consult(&[Due { name, ..due(1.0) }], false, 10.0);
    }
    let kept: usize = loans.shards.iter().map(|shard| shard.lock().unwrap().accounts.len()).sum();
    assert!(kept <= ACCOUNTS_MAX, "{kept}");
    assert!(spends(&loans, 4.0, 10.0).is_some());
}

#[test]
fn of_several_denials_the_longest_is_told_and_a_refund_lifts_it() {
    let loans = Loans::new(1.0);
    let other = Due { name: NAME + 1, ..due(1.0) };
    said(asks(&loans, 1.0, 0.0), None);
    let Known::Ask(asked) = loans.consult(&[other], false, 500_000.0) else { panic!("Redis is not asked") };
    said(asked, None);
    let known = loans.consult(&[due(1.0), other], true, 600_000.0);
    assert!(matches!(known, Known::Denied(1, level) if level.wait_ms == 900));
    loans.lift(NAME + 1);
    assert!(matches!(loans.consult(&[due(1.0), other], true, 600_000.0), Known::Denied(0, _)));
    let counting = Due { name: NAME + 2, bucket: None, remembers: false, counts: true, ..due(1.0) };
    assert!(matches!(loans.consult(&[due(1.0), counting], true, 600_000.0), Known::Ask(_)), "it is to be counted");
}

#[test]
fn another_configuration_takes_nothing_over() {
    let loans = lent();
    let asked = asks(&loans, 9.0, 1.0);
    let other = due_of(Shape::new(Rate { amount: 10, period_ms: 60_000 }, 64), 1.0);
    assert!(matches!(loans.consult(&[other], false, 2.0), Known::Ask(_)), "what was lent is of other units");
    said(asked, Some(4.0));
    assert!(matches!(loans.consult(&[other], true, 3.0), Known::Ask(_)), "and so is what is lent late");
    said(asks(&loans, 1.0, 4.0), None);
    let more = Due { bucket: None, shape: algorithm::Shape::new(&Quota::FixedWindow(RATE)), ..due(1.0) };
    assert!(matches!(loans.consult(&[more], true, 5.0), Known::Ask(_)), "a denial by another limit is none");
}

const RATE: Rate = Rate { amount: 10, period_ms: 1000 };

#[test]
fn nothing_is_borrowed_that_could_not_be_spent() {
    let loans = Loans::new(1.0);
    let wants = |dues: &[Due]| {
        loans.consult(dues, false, 0.0);
        loans.consult(dues, false, 0.0);
        match loans.consult(dues, false, 3e6) {
            Known::Ask(asked) => asked.questions.iter().any(|question| question.wanted > 0.0),
            _ => panic!("Redis is not asked"),
        }
    };
    let name = |nth: u128, due: Due| Due { name: NAME + nth, ..due };
    assert!(!wants(&[name(1, due(5.0))]), "four are lent, and five are needed");
    let small = due_of(Shape::new(RATE, 15), 1.0);
    assert!(!wants(&[name(2, due(1.0)), name(3, small)]), "one of them lends nothing");
    let window = Due { bucket: None, shape: algorithm::Shape::new(&Quota::FixedWindow(RATE)), ..due(1.0) };
    assert!(!wants(&[name(4, due(1.0)), name(5, window)]));
    let three = name(6, due(3.0));
    (0..3).for_each(|_| drop(loans.consult(&[three], false, 0.0)));
    let Known::Ask(asked) = loans.consult(&[three], false, 2e6) else { panic!("Redis is not asked") };
    assert_eq!(asked.questions[0].wanted, 3.0 * three.bucket.unwrap().price, "whole requests");
}

#[test]
fn whoever_leaves_gives_everything_back() {
    let loans = Loans::new(1.0);
    for nth in 0..600 {
        let Known::Ask(asked) = loans.consult(&[Due { name: nth << 96 | nth, ..due(2.0) }], false, 0.0) else {
            panic!("Redis is not asked")
        };
        said(asked, Some(4.0));
    }
    let mut counts = Vec::new();
    while counts.last() != Some(&0) {
        counts.push(loans.repayments(true, 1.0).len());
    }
    assert_eq!(counts, [REPAID_AT_ONCE, REPAID_AT_ONCE, 600 - 2 * REPAID_AT_ONCE, 0]);
}

#[test]
fn who_owed_something_once_is_forgotten_like_others() {
    let loans = Loans::new(1.0);
    loans.consult(&[due(1.0)], false, 0.0);
    loans.spent_away(&due(1.0), 1.0, None, 0.0);
    let mut shard = loans.shard(NAME);
    shard.sweep(190_000.0);
    assert_eq!(shard.accounts.len(), 1, "five a second are this pod's, and one is not gained yet");
    shard.sweep(5e6);
    assert!(shard.accounts.is_empty());
}

/// No value is a full bucket: one that lent something is full later than by what it holds.
#[tokio::test]
async fn a_bucket_that_lent_outlives_the_time_that_its_loans_take() {
    let server = Server::up().await;
    let shape = Shape::new(Rate { amount: 1, period_ms: 60_000 }, 160);
    let lender = Lender { redis: Dedicated::open(&server.shared()).await.unwrap(), shape };
    let question = Question { serial: 1, wanted: 10.0 * shape.price, ..Question::default() };
    let mut take = lender.take(1.0, &question, 1.0);
    take.args.insert(0, Vec::new());
    let mut parts: Vec<&[u8]> = vec![b"EVAL", take.script.source.as_bytes(), b"1", b"key"];
    parts.extend(take.args.iter().map(Vec::as_slice));
    let mut redis = lender.redis;
    let reply = redis.command(&parts, WAIT).await.unwrap();
    let asked = |_| (algorithm::Shape::TokenBucket(shape), 1.0);
    assert_eq!(shared::taken(&reply, 0, 1, asked).unwrap()[0].lent, 10.0 * shape.price);
    let ttl = redis.command(&[b"PTTL", b"key"], WAIT).await.unwrap().number().unwrap();
    assert!(ttl > 11 * 60_000 - 1000, "{ttl} ms: eleven tokens are to be gained");
}

/// However many borrow, half of the bucket is for those who ask, and fills.
#[tokio::test]
async fn a_crowd_of_borrowers_leaves_half_of_the_bucket() {
    let server = Server::up().await;
    let shape = Shape::new(Rate { amount: 100, period_ms: 1000 }, 32);
    let mut lender = Lender { redis: Dedicated::open(&server.shared()).await.unwrap(), shape };
    let (mut admitted, mut now) = (0, 1e15);
    for round in 0..100 {
        // Thirty pods, a third more than the rate in all.
        for pod in 0..30 {
            now += 7_500.0;
            let question = Question { serial: round + 1, wanted: 2.0 * shape.price, ..Question::default() };
            let reply = lender.run(&lender.take(f64::from(pod), &question, 1.0), now).await;
            let asked = |_| (algorithm::Shape::TokenBucket(shape), 1.0);
            admitted += usize::from(shared::taken(&reply, 0, 1, asked).unwrap()[0].mark.is_some());
        }
    }
    // What was lent is spent as well, or was given back.
    assert!(admitted > 500, "{admitted} of 3,000 in 22 s");
}

#[path = "debts_tests.rs"]
mod debts;
