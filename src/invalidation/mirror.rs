//! The mirror: how far this process has followed the log, and what that says of an answer's position. Pure.
//!
//! There are two numberings. The log's is the fleet's. The process' own counts what was applied here, in the order in
//! which it was, and needs nobody: it is all there is without Redis, before Redis was first reached, and while something
//! has been applied here that is not in the log yet. A fill that begins in such a time carries an own position, which
//! other pods refuse; one with the log's position would either outlive an unlogged invalidation or be refused for as
//! long as Redis is away. The same goes for a fill of what a record names, or may name by a tag, that was applied before
//! its turn: its number is beyond what was followed. Everything else that is fetched while records are missing is the
//! fleet's.

use std::collections::{BTreeSet, VecDeque};

use super::epochs::{Epoch, Epochs, Stamp};
use super::pending::{Pending, Ticket};
use super::{Position, Subject, Verdict};
use crate::syntax::selector::Selector;

/// What a process knows of every invalidation.
#[derive(Debug)]
pub struct Mirror {
    epochs: Epochs,
    own: Position,
    log: Option<Followed>,
    /// What was applied last, oldest first; [`RECENT`] at most.
    recent: VecDeque<Recent>,
    /// What is not in the log yet.
    pending: Pending,
    /// Of it, what is in a log that is not followed yet.
    elsewhere: Vec<Ticket>,
}

/// Invalidations that are remembered one by one.
const RECENT: usize = 256;

/// An invalidation that was applied.
#[derive(Debug)]
struct Recent {
    /// Its number in the log, if it has one.
    log: Option<u64>,
    /// Its number in this process.
    own: u64,
    /// What it named; nothing is known of one with more than [`RECENT_SELECTORS`].
    selectors: Option<Box<[Selector]>>,
}

/// Selectors of one invalidation that are remembered.
const RECENT_SELECTORS: usize = 8;

/// The log, as far as it was followed.
#[derive(Debug)]
struct Followed {
    incarnation: u64,
    /// Every record up to this one was applied, but for those at or below the floor.
    applied: u64,
    /// Answers from before this one are refused: not every record behind it is known.
    floor: u64,
    /// The highest record that was applied before its turn.
    early: u64,
    /// Until the log was followed up to here, every fill carries an own position.
    own_until: u64,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was the next one, or known already.
    InOrder,
    /// Records before it are missing.
    Gap,
    /// It is of another incarnation.
    Foreign,
}

impl Mirror {
    /// Knows of nothing; `own` is the process' own incarnation.
    pub fn new(own: u64) -> Self {
        Self {
            epochs: Epochs::default(),
            own: Position { incarnation: own, seq: 0 },
            log: None,
            recent: VecDeque::new(),
            pending: Pending::default(),
            elsewhere: Vec::new(),
        }
    }

    /// The position to give a fill for `subject` that begins now.
    pub fn position(&self, subject: &Subject<'_>) -> Position {
        let is_level = |log: &&Followed| {
            let names_nothing_early = || self.epochs.of(subject).log.last() <= log.applied;
            log.own_until <= log.applied && (log.early <= log.applied || names_nothing_early())
        };
        match self.log.as_ref().filter(is_level).filter(|_| self.pending.is_empty()) {
            Some(log) => Position { incarnation: log.incarnation, seq: log.applied },
            None => self.own,
        }
    }

    /// The position of the last that was applied here.
    pub fn own(&self) -> Position {
        self.own
    }

    /// How far the log was followed.
    pub fn followed(&self) -> Option<Position> {
        self.log.as_ref().map(|log| Position { incarnation: log.incarnation, seq: log.applied })
    }

    /// What is known of an answer whose fill began at `position`.
    pub fn verdict(&self, position: Position, subject: &Subject<'_>) -> Verdict {
        let (epoch, pending) = if position.incarnation == self.own.incarnation {
            (self.epochs.of(subject).own, Verdict::Valid)
        } else {
            match &self.log {
                Some(log) if log.incarnation == position.incarnation && position.seq >= log.floor => {
                    (self.epochs.of(subject).log, self.pending.verdict(subject))
                }
                _ => return Verdict::Gone,
            }
        };
        if epoch.hard > position.seq || pending == Verdict::Gone {
            Verdict::Gone
        } else if epoch.soft > position.seq || pending == Verdict::Stale {
            Verdict::Stale
        } else {
            Verdict::Valid
        }
    }

    /// Whether nothing was applied between two positions, themselves left out, that names `subject`; false where that is
    /// not known.
    pub fn untouched(&self, subject: &Subject<'_>, after: Position, before: Position) -> bool {
        if after.incarnation != before.incarnation || after.seq >= before.seq {
            return false;
        }
        let is_own = after.incarnation == self.own.incarnation;
        let between = after.seq + 1..before.seq;
        let (mut seen, mut named) = (BTreeSet::new(), Epochs::default());
        for recent in &self.recent {
            let number = if is_own { Some(recent.own) } else { recent.log };
            let Some(number) = number.filter(|number| between.contains(number)) else { continue };
            let Some(selectors) = &recent.selectors else { return false };
            seen.insert(number);
            for selector in selectors {
                named.raise(selector, Stamp::of(number, number, false));
            }
        }
        seen.len() as u64 == between.end - between.start && named.of(subject) == Stamp::default()
    }

    /// The selectors that have named `subject`, each with its last numbers in the numbering of `position`; none where that
    /// is unknown here, so that whatever carries it is refused.
    pub fn epochs(&self, position: Position, subject: &Subject<'_>) -> Vec<(String, Epoch)> {
        let is_own = position.incarnation == self.own.incarnation;
        let is_log = self.log.as_ref().is_some_and(|log| log.incarnation == position.incarnation);
        let mut found = Vec::new();
        if is_own || is_log {
            self.epochs.each(subject, |name, stamp| {
                found.push((name.to_string(), if is_own { stamp.own } else { stamp.log }));
            });
        }
        found
    }

    /// Begins to follow a log that stands at `head`: all of it is still to be read. If another was followed before, every
    /// answer from before is refused, own ones too: what was logged last in the old one may be lost, unseen.
    pub fn follow(&mut self, head: Position, new_own: u64) {
        for ticket in std::mem::take(&mut self.elsewhere) {
            self.pending.settle(ticket);
        }
        if self.log.is_some() {
            // What is in no log is in the new one no more than it was in the old one.
            *self = Self { pending: std::mem::take(&mut self.pending), ..Self::new(new_own) };
        }
        self.log = Some(Followed {
            incarnation: head.incarnation,
            applied: head.seq,
            floor: head.seq,
            early: 0,
            own_until: 0,
        });
    }

    /// Applies record `at` of the log; its selectors at once, even behind a gap.
    pub fn record(&mut self, at: Position, selectors: &[Selector], soft: bool) -> Applied {
        let Some(log) = self.log.as_mut().filter(|log| log.incarnation == at.incarnation) else {
            return Applied::Foreign;
        };
        if at.seq <= log.applied {
            return Applied::InOrder;
        }
        let next = at.seq == log.applied + 1;
        if next {
            log.applied = at.seq;
        } else {
            log.early = log.early.max(at.seq);
            // Any answer may turn out to carry a tag.
            if selectors.iter().any(|selector| matches!(selector, Selector::Tag(_))) {
                log.own_until = log.own_until.max(at.seq);
            }
        }
        self.raise(at.seq, selectors, soft, Some(at.seq));
        if next { Applied::InOrder } else { Applied::Gap }
    }

    /// Applies a record from before the point at which the log was joined.
    pub fn backfill(&mut self, seq: u64, selectors: &[Selector], soft: bool) {
        self.raise(seq, selectors, soft, Some(seq));
    }

    /// Applies what will be in the log, to every fill that began before now; it is to be settled when it is.
    pub fn pending(&mut self, selectors: &[Selector], soft: bool) -> Ticket {
        // It has no number in the log, and may get one that is known already.
        self.raise(0, selectors, soft, None);
        self.pending.add(selectors, soft)
    }

    /// What was pending is in the log, and was recorded, or is given up.
    pub fn settle(&mut self, ticket: Ticket) {
        self.pending.settle(ticket);
    }

    /// Applies what is in another log than the one that is followed.
    pub fn foreign(&mut self, selectors: &[Selector], soft: bool) {
        let ticket = self.pending(selectors, soft);
        self.elsewhere.push(ticket);
    }

    /// What is in another log, as far as that is known now.
    pub fn elsewhere(&self) -> Vec<Ticket> {
        self.elsewhere.clone()
    }

    /// The log that is followed was found to be the one that counts: what was in another is in this one, or lost with that.
    pub fn settle_elsewhere(&mut self, tickets: &[Ticket]) {
        self.elsewhere.retain(|ticket| !tickets.contains(ticket));
        tickets.iter().for_each(|ticket| self.pending.settle(*ticket));
    }

    /// Applies what never was and never will be in a log.
    pub fn unlogged(&mut self, selectors: &[Selector], soft: bool) {
        let epoch = self.log.as_mut().map_or(0, |log| {
            // No fill gets a higher position of the log before a record takes this number.
            log.own_until = log.own_until.max(log.applied + 1);
            log.applied + 1
        });
        self.raise(epoch, selectors, soft, None);
    }

    /// Every record from `floor` on is known now.
    pub fn lower_floor(&mut self, floor: u64) {
        if let Some(log) = &mut self.log {
            log.floor = log.floor.min(floor);
        }
    }

    /// Records up to `seq` were trimmed before they could be read: whatever began before is refused.
    pub fn lost_up_to(&mut self, seq: u64) {
        let Some(log) = self.log.as_mut().filter(|log| log.applied < seq) else { return };
        (log.applied, log.floor) = (seq, seq);
        self.raise(seq, &[Selector::All], false, None);
    }

    /// What was logged before this process joined is not all known: nothing from before now is used.
    pub fn unknown_past(&mut self) {
        self.raise(0, &[Selector::All], false, None);
    }

    fn raise(&mut self, seq: u64, selectors: &[Selector], soft: bool, logged: Option<u64>) {
        self.own.seq += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let selectors_kept = (selectors.len() <= RECENT_SELECTORS).then(|| selectors.into());
        self.recent.push_back(Recent { log: logged, own: self.own.seq, selectors: selectors_kept });
        let stamp = Stamp::of(seq, self.own.seq, soft);
        for selector in selectors {
            self.epochs.raise(selector, stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::selector::UrlSelector;

    fn at(seq: u64) -> Position {
        Position { incarnation: 7, seq }
    }

    fn tag(name: &str) -> [Selector; 1] {
        [Selector::Tag(name.to_owned())]
    }

    fn subject(tags: &[String]) -> Subject<'_> {
        Subject { host: "h", path: "/p", query: None, also: &[], route: "r", tags, answer_tags: &[] }
    }

    #[test]
    fn what_came_between_is_known_or_taken_for_the_worst() {
        let tags = ["a".to_owned()];
        let about = subject(&tags);
        let mut mirror = Mirror::new(1);
        mirror.follow(at(10), 2);
        assert!(mirror.untouched(&about, at(10), at(11)), "nothing lies between");
        assert!(!mirror.untouched(&about, at(10), at(12)), "11 was not seen");
        mirror.record(at(11), &tag("b"), false);
        assert!(mirror.untouched(&about, at(10), at(12)));
        assert!(!mirror.untouched(&about, at(10), at(13)));
        mirror.record(at(12), &tag("a"), true);
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
        mirror.follow(at(5), 2);
        let before = position(&mirror, "a");
        assert_eq!(mirror.record(at(6), &tag("a"), false), Applied::InOrder);
        assert_eq!(mirror.record(at(7), &tag("b"), true), Applied::InOrder);
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
        mirror.follow(at(5), 2);
        assert_eq!(mirror.record(at(8), &tag("a"), false), Applied::Gap);
        assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
        let own = position(&mirror, "a");
        assert_eq!(own.incarnation, 1);
        assert_eq!(position(&mirror, "b").incarnation, 1, "its answer may have the tag");
        assert_eq!(verdict(&mirror, own, "a"), Verdict::Valid);
        mirror.record(at(6), &tag("b"), false);
        assert_eq!(verdict(&mirror, own, "b"), Verdict::Gone);
        assert_eq!(verdict(&mirror, at(5), "b"), Verdict::Gone);
        mirror.record(at(7), &[], false);
        mirror.record(at(8), &tag("a"), false);
        assert_eq!(position(&mirror, "a"), at(8));
    }

    #[test]
    fn behind_a_gap_what_is_not_named_is_fetched_for_the_fleet() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        assert_eq!(mirror.record(at(8), &[Selector::Url(UrlSelector::parse("/p").unwrap())], false), Applied::Gap);
        assert_eq!(position(&mirror, "a").incarnation, 1);
        let other = Subject { path: "/other", ..subject(&[]) };
        assert_eq!(mirror.position(&other), at(5));
        mirror.record(at(6), &[Selector::Url(UrlSelector::parse("/other").unwrap())], false);
        assert_eq!(mirror.verdict(at(5), &other), Verdict::Gone);
        assert_eq!(mirror.position(&other), at(6));
    }

    #[test]
    fn what_is_not_logged_counts_until_a_record_takes_its_number() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        mirror.unlogged(&tag("a"), false);
        mirror.unlogged(&tag("a"), false);
        assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
        assert_eq!(position(&mirror, "a").incarnation, 1);
        assert_eq!(position(&mirror, "b").incarnation, 1, "its answer may have any tag");
        assert_eq!(verdict(&mirror, position(&mirror, "a"), "a"), Verdict::Valid);
        mirror.record(at(6), &tag("a"), false);
        assert_eq!(position(&mirror, "a"), at(6));
        assert_eq!(verdict(&mirror, at(6), "a"), Verdict::Valid);
    }

    #[test]
    fn what_is_pending_is_older_than_nothing_that_others_logged() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        let ticket = mirror.pending(&tag("a"), false);
        let soft = mirror.pending(&tag("b"), true);
        // Another pod is ahead, and has not heard of them.
        assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Gone);
        assert_eq!(verdict(&mirror, at(9), "b"), Verdict::Stale);
        assert_eq!(verdict(&mirror, at(9), "c"), Verdict::Valid);
        for seq in 6..=9 {
            mirror.record(at(seq), &tag("c"), false);
        }
        assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Gone);
        let own = position(&mirror, "a");
        assert_eq!((own.incarnation, verdict(&mirror, own, "a")), (1, Verdict::Valid));
        mirror.record(at(10), &tag("a"), false);
        mirror.settle(ticket);
        assert_eq!((verdict(&mirror, at(9), "a"), verdict(&mirror, at(10), "a")), (Verdict::Gone, Verdict::Valid));
        assert_eq!(position(&mirror, "a").incarnation, 1, "the other is still pending");
        mirror.settle(soft);
        assert_eq!((position(&mirror, "a"), verdict(&mirror, at(9), "b")), (at(10), Verdict::Valid), "given up");
    }

    #[test]
    fn what_is_settled_leaves_nothing_behind() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        // Another pod's record turns out to be this very order.
        let ticket = mirror.pending(&tag("a"), false);
        assert_eq!(mirror.record(at(5), &tag("a"), false), Applied::InOrder);
        mirror.settle(ticket);
        assert_eq!((position(&mirror, "a"), verdict(&mirror, at(5), "a")), (at(5), Verdict::Valid));
        // It was in a log that is gone.
        mirror.foreign(&tag("a"), false);
        assert_eq!(position(&mirror, "b").incarnation, 1);
        let elsewhere = mirror.elsewhere();
        mirror.settle_elsewhere(&elsewhere);
        assert_eq!((position(&mirror, "a"), mirror.elsewhere()), (at(5), Vec::new()));
    }

    #[test]
    fn what_is_pending_stays_so_when_the_log_is_lost() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        mirror.foreign(&tag("b"), false);
        let ticket = mirror.pending(&tag("a"), false);
        let next = |seq| Position { incarnation: 8, seq };
        mirror.follow(next(3), 3);
        assert_eq!(verdict(&mirror, next(4), "a"), Verdict::Gone);
        assert_eq!(verdict(&mirror, next(4), "b"), Verdict::Valid, "that is in this log");
        mirror.record(next(4), &tag("a"), false);
        mirror.settle(ticket);
        assert_eq!((verdict(&mirror, next(4), "a"), position(&mirror, "a")), (Verdict::Valid, next(4)));
    }

    #[test]
    fn a_lost_log_refuses_everything_from_before() {
        let mut mirror = Mirror::new(1);
        let detached = position(&mirror, "a");
        mirror.follow(at(5), 2);
        assert_eq!(verdict(&mirror, detached, "a"), Verdict::Valid, "the first log says nothing of a loss");
        mirror.follow(Position { incarnation: 8, seq: 0 }, 3);
        assert_eq!(verdict(&mirror, detached, "a"), Verdict::Gone);
        assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
        assert_eq!(mirror.record(at(6), &tag("a"), false), Applied::Foreign);
        assert_eq!(verdict(&mirror, position(&mirror, "a"), "a"), Verdict::Valid);
    }

    #[test]
    fn trimmed_records_raise_the_floor() {
        let mut mirror = Mirror::new(1);
        mirror.follow(at(5), 2);
        mirror.lower_floor(0);
        mirror.lost_up_to(9);
        assert_eq!(verdict(&mirror, at(5), "a"), Verdict::Gone);
        assert_eq!(position(&mirror, "a"), at(9));
        assert_eq!(verdict(&mirror, at(9), "a"), Verdict::Valid);
    }
}
