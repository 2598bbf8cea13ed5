//! What was spent while Redis was away, and how it is told.

use super::*;

#[test]
fn what_was_spent_while_redis_was_away_is_owed_less_what_the_pods_part_gains() {
    let loans = Loans::new(1.0);
    let price = due(1.0).bucket.unwrap().price;
    loans.consult(&[due(1.0)], false, 0.0);
    (0..10).for_each(|_| loans.spent_away(&due(1.0), 1.0, None, 0.0));
    // Five a second is this pod's part.
    let asked = asks(&loans, 1.0, 1_000_000.0);
    assert_eq!(asked.questions[0].debit, 5.0 * price);
    said(asked, Some(0.0));
    assert_eq!(asks(&loans, 1.0, 1_000_001.0).questions[0].debit, 0.0);
}

#[test]
fn what_was_given_back_while_redis_was_away_is_owed_no_more() {
    let loans = Loans::new(1.0);
    (0..10).for_each(|_| loans.spent_away(&due(1.0), 1.0, None, 0.0));
    (0..4).for_each(|_| loans.spent_away(&due(1.0), -1.0, None, 0.0));
    let price = due(1.0).bucket.unwrap().price;
    assert_eq!(asks(&loans, 1.0, 0.0).questions[0].debit, 6.0 * price);
    (0..9).for_each(|_| loans.spent_away(&due(1.0), -1.0, None, 0.0));
    let Known::Ask(asked) = loans.consult(&[due(1.0)], true, 2_000_000.0) else { panic!("Redis is not asked") };
    assert_eq!(asked.questions[0].debit, 0.0, "nor is anybody owed anything");
}

#[test]
fn as_much_is_owed_however_many_pods_there_are_by_then() {
    for (then, now) in [(1.0, 8.0), (8.0, 1.0)] {
        let loans = Loans::new(1.0);
        let of = |pods| Due { pods, ..due(1.0) };
        (0..8).for_each(|_| loans.spent_away(&of(then), 1.0, None, 0.0));
        let Known::Ask(asked) = loans.consult(&[of(now)], false, 0.0) else { panic!("Redis is not asked") };
        assert_eq!((asked.questions[0].debit / due(1.0).bucket.unwrap().price).round(), 8.0, "{then} and {now} pods");
    }
}

/// Where a pod decides nothing by itself, and where an answer's cost is larger than the bucket.
#[test]
fn what_was_spent_while_redis_was_away_is_told_without_loans_too() {
    let loans = Loans::new(1.0);
    let price = due(1.0).bucket.unwrap().price;
    let unlent = Due { bucket: None, remembers: false, ..due(1.0) };
    loans.spent_away(&unlent, 5.0, None, 0.0);
    let Known::Ask(asked) = loans.consult(&[unlent], false, 0.0) else { panic!("Redis is not asked") };
    assert_eq!((asked.questions[0].debit, asked.questions[0].wanted), (5.0 * price, 0.0));
    said(asked, Some(0.0));
    let Known::Ask(asked) = loans.consult(&[unlent], false, 0.0) else { panic!("Redis is not asked") };
    assert_eq!(asked.questions[0].debit, 0.0, "it was told");
    let settled = Due { borrows: false, ..due(1.0) };
    loans.spent_away(&settled, 1000.0, None, 0.0);
    let Known::Ask(asked) = loans.consult(&[settled], false, 0.0) else { panic!("Redis is not asked") };
    assert_eq!(asked.questions[0].debit, -1000.0 * price, "whatever the bucket has");
}

/// A reload, or another tier: what is owed is so many requests, whatever one is worth.
#[test]
fn what_is_owed_outlives_a_change_of_the_limit_and_is_told_once() {
    let other = Shape::new(Rate { amount: 20, period_ms: 1000 }, 200);
    for (borrows, remembers) in [(true, true), (true, false), (false, true), (false, false)] {
        let of = |shape: Shape| Due {
            shape: algorithm::Shape::TokenBucket(shape),
            bucket: Some(shape).filter(|_| remembers),
            debited: Some(shape),
            borrows,
            remembers,
            ..due(1.0)
        };
        let loans = Loans::new(1.0);
        let before = of(due(1.0).bucket.unwrap());
        loans.spent_away(&before, 6.0, None, 0.0);
        let Known::Ask(asked) = loans.consult(&[of(other)], false, 0.0) else { panic!("Redis is not asked") };
        assert_eq!((asked.questions[0].debit.abs() / other.price).round(), 6.0, "{borrows} {remembers}");
        said(asked, Some(0.0));
        // An answer that was charged before the change is settled now.
        loans.spent_away(&before, 2.0, None, 0.0);
        let Known::Ask(asked) = loans.consult(&[of(other)], false, 0.0) else { panic!("Redis is not asked") };
        assert_eq!((asked.questions[0].debit.abs() / other.price).round(), 2.0, "{borrows} {remembers}");
        said(asked, Some(0.0));
        let Known::Ask(asked) = loans.consult(&[of(other)], false, 0.0) else { panic!("Redis is not asked") };
        assert_eq!(asked.questions[0].debit, 0.0, "{borrows} {remembers}");
    }
}

/// What goes below nothing would be paid twice if it was told twice.
#[test]
fn what_answers_cost_is_told_again_only_if_it_was_not_heard() {
    for (heard, again) in [(Heard::Unknown, 0.0), (Heard::Nothing, 1000.0)] {
        let loans = Loans::new(1.0);
        let settled = Due { borrows: false, ..due(1.0) };
        loans.spent_away(&settled, 1000.0, None, 0.0);
        let Known::Ask(asked) = loans.consult(&[settled], false, 0.0) else { panic!("Redis is not asked") };
        assert!(asked.questions[0].debit < 0.0);
        asked.answered([(&heard, &b"key"[..])].into_iter());
        let Known::Ask(asked) = loans.consult(&[settled], false, 0.0) else { panic!("Redis is not asked") };
        assert_eq!(-asked.questions[0].debit / settled.debited.unwrap().price, again);
    }
}

/// Of a bucket that nothing is known of, the pod's own part says when it would be full.
#[test]
fn what_was_spent_of_a_bucket_that_was_not_asked_is_owed_whole_until_it_would_be_full() {
    let loans = Loans::new(1.0);
    let unlent = Due { bucket: None, remembers: false, ..due(1.0) };
    (0..10).for_each(|_| loans.spent_away(&unlent, 1.0, Some(5e6), 0.0));
    let debit = |now| {
        let Known::Ask(asked) = loans.consult(&[unlent], false, now) else { panic!("Redis is not asked") };
        asked.questions[0].debit / unlent.debited.unwrap().price
    };
    assert_eq!([1e6, 5e6, 6e6, 7e6].map(debit), [10.0, 10.0, 5.0, 0.0]);
}

/// A request that costs more than the bucket holds is denied for ever, which says nothing of others.
#[test]
fn who_asks_for_more_than_there_can_be_lifts_nobodys_denial() {
    let loans = Loans::new(1.0);
    said(asks(&loans, 1.0, 0.0), None);
    let huge = Due { bucket: None, remembers: false, cost: 1e6, ..due(1.0) };
    loans.spent_away(&huge, 1.0, None, 0.0);
    let Known::Ask(asked) = loans.consult(&[huge], false, 0.0) else { panic!("Redis is not asked") };
    said(asked, None);
    assert!(matches!(loans.consult(&[due(1.0)], false, 0.0), Known::Denied(..)));
}

/// Until the bucket is full it gains what it lacked before, and nobody's part gains what was spent meanwhile.
#[test]
fn what_was_spent_while_the_bucket_was_not_full_is_owed_whole_until_it_is() {
    let loans = Loans::new(1.0);
    let price = due(1.0).bucket.unwrap().price;
    // Full in five seconds.
    said(asks(&loans, 1.0, 0.0), Some(0.0));
    (0..10).for_each(|_| loans.spent_away(&due(1.0), 1.0, None, 0.0));
    let debit = |now| asks(&loans, 1.0, now).questions[0].debit / price;
    assert_eq!([1e6, 5e6, 6e6, 7e6].map(debit), [10.0, 10.0, 5.0, 0.0]);
    (0..10).for_each(|_| loans.spent_away(&due(1.0), 1.0, None, 8e6));
    assert_eq!(debit(9e6), 5.0, "by then it was full");
    said(asks(&loans, 1.0, 9e6), Some(0.0));
    assert_eq!(debit(10e6), 0.0, "and it was told");
}
