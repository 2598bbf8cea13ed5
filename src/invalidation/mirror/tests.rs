//! What a process knows, case by case.

use super::*;
use crate::syntax::selector::UrlSelector;

fn at(seq: u64) -> Position {
    Position { incarnation: 7, seq }
}

fn tag(name: &str) -> [Selector; 1] {
    [Selector::Tag(name.to_owned())]
}

/// The text of an order; it matters to nothing but what an heir is told.
fn text() -> Arc<str> {
    "{}".into()
}

fn subject(tags: &[String]) -> Subject<'_> {
    Subject { host: "h", path: "/p", query: None, also: &[], route: "r", tags, answer_tags: &[] }
}

#[test]
fn what_came_between_is_known_or_taken_for_the_worst() {
    let tags = ["a".to_owned()];
    let about = subject(&tags);
    let mut mirror = Mirror::new(1);
    mirror.follow(at(10), 2, None);
    assert!(mirror.untouched(&about, at(10), at(11)), "nothing lies between");
    assert!(!mirror.untouched(&about, at(10), at(12)), "11 was not seen");
    mirror.record(at(11), &tag("b"), false, &text());
    assert!(mirror.untouched(&about, at(10), at(12)));
    assert!(!mirror.untouched(&about, at(10), at(13)));
    mirror.record(at(12), &tag("a"), true, &text());
    assert!(!mirror.untouched(&about, at(10), at(13)), "it was named");
    assert!(mirror.untouched(&about, at(12), at(13)));
    assert!(!mirror.untouched(&about, at(13), at(12)) && !mirror.untouched(&about, mirror.own(), at(12)));
    let own = mirror.own();
    mirror.unlogged(&tag("b"), false);
    mirror.unlogged(&tag("a"), false);
    assert!(mirror.untouched(&about, own, Position { seq: own.seq + 2, ..own }));
    assert!(!mirror.untouched(&about, own, Position { seq: own.seq + 3, ..own }));
    for _ in 0..RECENT {
        mirror.unlogged(&tag("b"), false);
    }
    let end = Position { seq: mirror.own().seq + 1, ..own };
    assert!(!mirror.untouched(&about, Position { seq: own.seq + 2, ..own }, Position { seq: end.seq + 1, ..end }));
    assert!(mirror.untouched(&about, Position { seq: own.seq + 2, ..own }, end));
    mirror.unlogged(&tag("b"), false);
    assert!(!mirror.untouched(&about, Position { seq: own.seq + 2, ..own }, end), "the first is forgotten");
}

fn position(mirror: &Mirror, tag: &str) -> Position {
    mirror.position(&subject(&[tag.to_owned()]))
}

fn verdict(mirror: &Mirror, position: Position, tag: &str) -> Verdict {
    mirror.verdict(position, &subject(&[tag.to_owned()]))
}

#[test]
fn what_began_before_is_refused_and_what_began_after_is_not() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    let before = position(&mirror, "a");
    assert_eq!(mirror.record(at(6), &tag("a"), false, &text()), Applied::InOrder);
    assert_eq!(mirror.record(at(7), &tag("b"), true, &text()), Applied::InOrder);
    assert_eq!(verdict(&mirror, before, "a"), Verdict::Gone);
    assert_eq!(verdict(&mirror, before, "b"), Verdict::Stale);
    assert_eq!(verdict(&mirror, before, "c"), Verdict::Valid);
    assert_eq!(verdict(&mirror, position(&mirror, "a"), "a"), Verdict::Valid);
    assert_eq!(verdict(&mirror, at(4), "c"), Verdict::Gone, "below the floor");
    mirror.lower_floor(3);
    assert_eq!(verdict(&mirror, at(4), "c"), Verdict::Valid);
}

#[test]
fn behind_a_gap_it_counts_at_once_and_fills_of_what_it_names_carry_own_positions() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    assert_eq!(mirror.record(at(8), &tag("a"), false, &text()), Applied::Gap);
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
    let own = position(&mirror, "a");
    assert_eq!(own.incarnation, 1);
    assert_eq!(position(&mirror, "b").incarnation, 1, "its answer may have the tag");
    assert_eq!(verdict(&mirror, own, "a"), Verdict::Valid);
    mirror.record(at(6), &tag("b"), false, &text());
    assert_eq!(verdict(&mirror, own, "b"), Verdict::Gone);
    assert_eq!(verdict(&mirror, at(5), "b"), Verdict::Gone);
    mirror.record(at(7), &[], false, &text());
    mirror.record(at(8), &tag("a"), false, &text());
    assert_eq!(position(&mirror, "a"), at(8));
}

#[test]
fn behind_a_gap_what_is_not_named_is_fetched_for_the_fleet() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    assert_eq!(mirror.record(at(8), &[Selector::Url(UrlSelector::parse("/p").unwrap())], false, &text()), Applied::Gap);
    assert_eq!(position(&mirror, "a").incarnation, 1);
    let other = Subject { path: "/other", ..subject(&[]) };
    assert_eq!(mirror.position(&other), at(5));
    mirror.record(at(6), &[Selector::Url(UrlSelector::parse("/other").unwrap())], false, &text());
    assert_eq!(mirror.verdict(at(5), &other), Verdict::Gone);
    assert_eq!(mirror.position(&other), at(6));
}

#[test]
fn what_is_not_logged_counts_until_a_record_takes_its_number() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.unlogged(&tag("a"), false);
    mirror.unlogged(&tag("a"), false);
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
    assert_eq!(position(&mirror, "a").incarnation, 1);
    assert_eq!(position(&mirror, "b").incarnation, 1, "its answer may have any tag");
    assert_eq!(verdict(&mirror, position(&mirror, "a"), "a"), Verdict::Valid);
    mirror.record(at(6), &tag("a"), false, &text());
    assert_eq!(position(&mirror, "a"), at(6));
    assert_eq!(verdict(&mirror, at(6), "a"), Verdict::Valid);
}

#[test]
fn what_is_pending_is_older_than_nothing_that_others_logged() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    let ticket = mirror.pending(&tag("a"), false);
    let soft = mirror.pending(&tag("b"), true);
    // Another pod is ahead, and has not heard of them.
    assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Gone);
    assert_eq!(verdict(&mirror, at(9), "b"), Verdict::Stale);
    assert_eq!(verdict(&mirror, at(9), "c"), Verdict::Valid);
    for seq in 6..=9 {
        mirror.record(at(seq), &tag("c"), false, &text());
    }
    assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Gone);
    let own = position(&mirror, "a");
    assert_eq!((own.incarnation, verdict(&mirror, own, "a")), (1, Verdict::Valid));
    mirror.record(at(10), &tag("a"), false, &text());
    mirror.settle(ticket);
    assert_eq!((verdict(&mirror, at(9), "a"), verdict(&mirror, at(10), "a")), (Verdict::Gone, Verdict::Valid));
    assert_eq!(position(&mirror, "a").incarnation, 1, "the other is still pending");
    mirror.settle(soft);
    assert_eq!((position(&mirror, "a"), verdict(&mirror, at(9), "b")), (at(10), Verdict::Valid), "given up");
}

#[test]
fn what_is_settled_leaves_nothing_behind() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    // Another pod's record turns out to be this very order.
    let ticket = mirror.pending(&tag("a"), false);
    assert_eq!(mirror.record(at(5), &tag("a"), false, &text()), Applied::InOrder);
    mirror.settle(ticket);
    assert_eq!((position(&mirror, "a"), verdict(&mirror, at(5), "a")), (at(5), Verdict::Valid));
    // It was in a log that is gone.
    mirror.foreign(8, &tag("a"), false, &text());
    assert_eq!(position(&mirror, "b").incarnation, 1);
    let elsewhere = mirror.elsewhere();
    mirror.settle_elsewhere(&elsewhere);
    assert_eq!((position(&mirror, "a"), mirror.elsewhere()), (at(5), Vec::new()));
}

#[test]
fn what_is_pending_stays_so_when_the_log_is_lost() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.foreign(8, &tag("b"), false, &text());
    let ticket = mirror.pending(&tag("a"), false);
    let next = |seq| Position { incarnation: 8, seq };
    mirror.follow(next(3), 3, None);
    assert_eq!(verdict(&mirror, next(4), "a"), Verdict::Gone);
    assert_eq!(verdict(&mirror, next(4), "b"), Verdict::Gone, "it is in this log, or will be");
    let elsewhere = mirror.elsewhere();
    mirror.moved(&elsewhere[0], 8);
    assert_eq!(mirror.elsewhere()[0].incarnation, 8);
    let elsewhere = mirror.elsewhere();
    mirror.settle_elsewhere(&elsewhere);
    assert_eq!(verdict(&mirror, next(4), "b"), Verdict::Valid);
    mirror.record(next(4), &tag("a"), false, &text());
    mirror.settle(ticket);
    assert_eq!((verdict(&mirror, next(4), "a"), position(&mirror, "a")), (Verdict::Valid, next(4)));
}

#[test]
fn a_lost_log_refuses_everything_from_before() {
    let mut mirror = Mirror::new(1);
    let detached = position(&mirror, "a");
    mirror.follow(at(5), 2, None);
    assert_eq!(verdict(&mirror, detached, "a"), Verdict::Valid, "the first log says nothing of a loss");
    mirror.follow(Position { incarnation: 8, seq: 0 }, 3, None);
    assert_eq!(verdict(&mirror, detached, "a"), Verdict::Gone);
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
    assert_eq!(mirror.record(at(6), &tag("a"), false, &text()), Applied::Foreign);
    assert_eq!(verdict(&mirror, position(&mirror, "a"), "a"), Verdict::Valid);
}

#[test]
fn trimmed_records_raise_the_floor() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.lower_floor(0);
    mirror.lost_up_to(9);
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
    assert_eq!(position(&mirror, "a"), at(9));
    assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Valid);
}

/// Incarnations that one goes on from, each with the last record that it has in common with the one that came of it.
fn line(ancestors: &[(u64, u64)]) -> Option<Lineage> {
    Lineage::of(ancestors.iter().map(|(incarnation, seq)| Position { incarnation: *incarnation, seq: *seq }).collect())
}

fn next(seq: u64) -> Position {
    Position { incarnation: 8, seq }
}

/// One that followed log 7 up to 9, and then 8, which goes on from its record 6.
fn heir() -> (Mirror, Vec<Owed>) {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.lower_floor(0);
    for seq in 6..=9 {
        mirror.record(at(seq), &tag(&format!("t{seq}")), false, &seq.to_string().into());
    }
    let owed = mirror.follow(next(6), 3, line(&[(7, 6)]));
    (mirror, owed)
}

#[test]
fn an_heir_is_told_what_it_lost_and_judges_answers_from_before_when_it_has_it() {
    let (mut mirror, owed) = heir();
    assert_eq!(owed.iter().map(|owed| &*owed.order).collect::<Vec<_>>(), ["7", "8", "9"]);
    assert!(mirror.may_inherit() && mirror.has_former());
    // Until then, by what was known, and what came since.
    assert_eq!((verdict(&mirror, at(8), "t9"), verdict(&mirror, at(9), "t9")), (Verdict::Gone, Verdict::Valid));
    assert_eq!((verdict(&mirror, at(5), "a"), verdict(&mirror, at(12), "a")), (Verdict::Valid, Verdict::Valid));
    mirror.backfill(6, &tag("t6"), false, &text());
    assert_eq!(verdict(&mirror, at(6), "t6"), Verdict::Valid, "that was known");
    mirror.record(next(7), &tag("a"), false, &text());
    assert_eq!(verdict(&mirror, at(12), "a"), Verdict::Gone, "whatever its number was");
    // All of it is logged anew.
    for (i, seq) in (7..=9).enumerate() {
        mirror.record(next(8 + i as u64), &tag(&format!("t{seq}")), false, &text());
    }
    mirror.lower_floor(0);
    mirror.inherit();
    assert!(!mirror.may_inherit() && !mirror.has_former());
    assert_eq!((verdict(&mirror, at(5), "t6"), verdict(&mirror, at(6), "t6")), (Verdict::Gone, Verdict::Valid));
    assert_eq!(verdict(&mirror, at(9), "t9"), Verdict::Gone, "what has no number in both counts as older");
    assert_eq!((verdict(&mirror, at(9), "b"), verdict(&mirror, next(10), "t9")), (Verdict::Valid, Verdict::Valid));
    assert_eq!(verdict(&mirror, at(6), "a"), Verdict::Gone);
}

#[test]
fn what_another_pod_was_ahead_by_is_known_before_it_is_inherited() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.lower_floor(0);
    // Records 6 to 8 came to the heir, but not to this process.
    mirror.follow(next(8), 3, line(&[(7, 8)]));
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Valid, "within the bound");
    mirror.backfill(7, &tag("a"), false, &text());
    assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
}

#[test]
fn of_another_line_nothing_is_kept() {
    let (mut mirror, _) = heir();
    let other = |seq| Position { incarnation: 9, seq };
    // It comes back with an old copy: what was logged since may name whatever it has.
    assert_eq!(mirror.follow(other(6), 4, line(&[(5, 6)])), [Owed::everything(next(6))]);
    assert!(!mirror.has_former());
    mirror.lower_floor(0);
    mirror.inherit();
    assert_eq!((verdict(&mirror, at(6), "b"), verdict(&mirror, next(6), "b")), (Verdict::Gone, Verdict::Gone));
}

#[test]
fn an_heir_of_an_heir_inherits_from_both() {
    let grandchild = |seq| Position { incarnation: 9, seq };
    let both = |mirror: &Mirror| (verdict(mirror, at(9), "b"), verdict(mirror, next(7), "b"));
    let (mut mirror, _) = heir();
    mirror.lower_floor(0);
    for (i, seq) in (7..=9).enumerate() {
        mirror.record(next(7 + i as u64), &tag(&format!("t{seq}")), false, &text());
    }
    mirror.inherit();
    assert_eq!(both(&mirror), (Verdict::Valid, Verdict::Valid));
    // Its heir has its records up to 8. Until that has inherited, both are judged by what is known.
    let owed = mirror.follow(grandchild(8), 4, line(&[(8, 8), (7, 6)]));
    assert_eq!(owed.iter().map(|owed| &*owed.name).collect::<Vec<_>>(), ["8 9"]);
    assert_eq!(both(&mirror), (Verdict::Valid, Verdict::Valid));
    let of_nine = |mirror: &Mirror| [at(5), at(9), next(7)].map(|position| verdict(mirror, position, "t9"));
    assert_eq!(of_nine(&mirror), [Verdict::Gone; 3]);
    mirror.record(grandchild(9), &tag("t9"), false, &text());
    mirror.record(grandchild(10), &tag("c"), false, &text());
    mirror.lower_floor(0);
    mirror.inherit();
    assert_eq!(both(&mirror), (Verdict::Valid, Verdict::Valid));
    assert_eq!(of_nine(&mirror), [Verdict::Gone; 3]);
    let of_c = [at(9), next(8), grandchild(9), grandchild(10)].map(|position| verdict(&mirror, position, "c"));
    assert_eq!(of_c, [Verdict::Gone, Verdict::Gone, Verdict::Gone, Verdict::Valid]);
    assert_eq!(verdict(&mirror, Position { incarnation: 6, seq: 1 }, "b"), Verdict::Gone, "of no ancestor");
}

#[test]
fn what_was_not_inherited_yet_is_not_judged_by_what_an_heir_knew() {
    // The first heir ended before it had all of its parent.
    let (mut mirror, _) = heir();
    mirror.follow(Position { incarnation: 9, seq: 6 }, 4, line(&[(8, 6), (7, 6)]));
    assert_eq!((verdict(&mirror, at(6), "b"), verdict(&mirror, next(6), "b")), (Verdict::Gone, Verdict::Valid));
    mirror.lower_floor(0);
    mirror.inherit();
    assert_eq!((verdict(&mirror, at(6), "b"), verdict(&mirror, next(6), "b")), (Verdict::Valid, Verdict::Valid));
}

#[test]
fn who_never_followed_the_first_heir_knows_what_the_second_may_lack() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.lower_floor(0);
    for seq in 6..=9 {
        mirror.record(at(seq), &tag(&format!("t{seq}")), false, &seq.to_string().into());
    }
    let owed = mirror.follow(Position { incarnation: 9, seq: 20 }, 3, line(&[(8, 15), (7, 6)]));
    assert_eq!(owed.iter().map(|owed| &*owed.order).collect::<Vec<_>>(), ["7", "8", "9"]);
    assert_eq!((verdict(&mirror, at(8), "t9"), verdict(&mirror, at(9), "t9")), (Verdict::Gone, Verdict::Valid));
}

#[test]
fn what_is_not_read_back_yet_counts_as_soon_as_it_is_known() {
    let mut mirror = Mirror::new(1);
    let own = position(&mirror, "a");
    // The answer to its own logging comes after the proof that has it.
    mirror.follow(at(5), 2, None);
    assert_eq!(verdict(&mirror, own, "a"), Verdict::Valid);
    assert_eq!(mirror.record(at(5), &tag("a"), false, &text()), Applied::InOrder);
    assert_eq!((verdict(&mirror, own, "a"), verdict(&mirror, own, "b")), (Verdict::Gone, Verdict::Valid));
    assert_eq!(position(&mirror, "a"), at(5));
}

#[test]
fn a_log_without_its_beginning_says_nothing_of_answers_from_before_its_parent() {
    let (mut mirror, _) = heir();
    mirror.unknown_past();
    assert_eq!(verdict(&mirror, at(8), "b"), Verdict::Valid, "they are judged by what was known then");
}

#[test]
fn what_an_heir_logged_under_a_number_that_its_parent_had_too_counts_for_both() {
    let mut mirror = Mirror::new(1);
    mirror.follow(at(5), 2, None);
    mirror.lower_floor(0);
    for seq in 6..=9 {
        mirror.record(at(seq), &tag("b"), false, &text());
    }
    // This process logged it with the heir before it followed it.
    mirror.foreign(8, &tag("a"), false, &text());
    mirror.follow(next(7), 3, line(&[(7, 6)]));
    assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Gone, "pending");
    mirror.backfill(7, &tag("a"), false, &text());
    let elsewhere = mirror.elsewhere();
    mirror.settle_elsewhere(&elsewhere);
    assert_eq!((verdict(&mirror, at(9), "a"), verdict(&mirror, at(9), "c")), (Verdict::Gone, Verdict::Valid));
}
