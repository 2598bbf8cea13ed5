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
use std::sync::Arc;

use super::epochs::{Epoch, Epochs, Stamp};
use super::lineage::{Lineage, Owed, Records};
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
    /// Of it, what is in another log than the one that is followed, as it was logged.
    elsewhere: Vec<Elsewhere>,
    /// The last records of the log.
    records: Records,
    /// What was known under the incarnation before, and those that it had inherited from, until their answers are trusted again.
    former: Option<Former>,
}

/// An invalidation in another log than the one that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    ticket: Ticket,
    /// Which log that is.
    pub incarnation: u64,
    /// As it was logged.
    pub order: Arc<str>,
}

/// What was known under an incarnation that has an heir.
#[derive(Debug)]
struct Former {
    incarnation: u64,
    applied: u64,
    floor: u64,
    epochs: Epochs,
    /// Those of which it was the heir.
    lineage: Option<Lineage>,
}

impl Former {
    /// A position that it can judge, as one of its own.
    fn translated(&self, position: Position) -> Option<Position> {
        let own = self.lineage.iter().fold(position, |position, line| line.translate(position, self.incarnation));
        (own.incarnation == self.incarnation && own.seq >= self.floor).then_some(own)
    }
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
    /// The logs that it goes on from.
    lineage: Option<Lineage>,
    /// Whether all that was applied under those is in this one.
    is_heir: bool,
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
            records: Records::default(),
            former: None,
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

    /// The lowest number whose fill for `subject` is of use to who would begin one at `position`: nothing that is known
    /// here and came later names it.
    pub fn least(&self, position: Position, subject: &Subject<'_>) -> u64 {
        match &self.log {
            Some(log) if log.incarnation == position.incarnation => {
                self.epochs.of(subject).log.last().max(log.floor).min(position.seq)
            }
            _ => position.seq,
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
        let mut position = self.translated(position);
        let (epoch, pending) = if position.incarnation == self.own.incarnation {
            (self.epochs.of(subject).own, Verdict::Valid)
        } else {
            let epochs = match (&self.log, &self.former) {
                (Some(log), _) if log.incarnation == position.incarnation && position.seq >= log.floor => &self.epochs,
                (_, Some(former)) => {
                    let Some(translated) = former.translated(position) else { return Verdict::Gone };
                    position = translated;
                    &former.epochs
                }
                _ => return Verdict::Gone,
            };
            (epochs.of(subject).log, self.pending.verdict(subject))
        };
        if epoch.hard > position.seq || pending == Verdict::Gone {
            Verdict::Gone
        } else if epoch.soft > position.seq || pending == Verdict::Stale {
            Verdict::Stale
        } else {
            Verdict::Valid
        }
    }

    /// A position of an incarnation before, as one of the present, once that is its heir.
    fn translated(&self, position: Position) -> Position {
        match self.log.as_ref().filter(|log| log.is_heir) {
            Some(Followed { lineage: Some(lineage), incarnation, .. }) => lineage.translate(position, *incarnation),
            _ => position,
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
        let position = self.translated(position);
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
    ///
    /// If the new one goes on from the old one, or from an heir of that, by `lineage`, what was known is kept for the old one's
    /// answers, until [`inherit`](Self::inherit); and what the new one may have lost of it is returned, to be logged once more.
    /// If it goes on from others, as one does that comes back with an old copy, that is everything.
    pub fn follow(&mut self, head: Position, new_own: u64, lineage: Option<Lineage>) -> Vec<Owed> {
        let mut owed = Vec::new();
        if let Some(old) = self.log.take() {
            // What is not in the old log is in the new one no more than it was in the old one.
            let (pending, elsewhere) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.elsewhere));
            let known = std::mem::replace(self, Self { pending, elsewhere, ..Self::new(new_own) });
            let Followed { incarnation, applied, floor, lineage: line, is_heir, .. } = old;
            match lineage.as_ref().map(|lineage| lineage.common_with(incarnation)) {
                None => {}
                // One that does not go on from what was followed lacks what was known since, and does not say from where.
                Some(None) => owed = vec![Owed::everything(Position { incarnation, seq: applied })],
                Some(Some(common)) => {
                    owed = known.records.owed(Position { incarnation, seq: applied }, common);
                    // What the heir has beyond the common record was never known under its parent, whatever its number.
                    let (applied, lineage) = (applied.min(common), line.filter(|_| is_heir));
                    self.former = Some(Former { incarnation, applied, floor, epochs: known.epochs, lineage });
                }
            }
        }
        self.records = Records::new(head.seq);
        self.log = Some(Followed {
            incarnation: head.incarnation,
            applied: head.seq,
            floor: head.seq,
            early: 0,
            own_until: 0,
            lineage,
            is_heir: false,
        });
        owed
    }

    /// The last record that the log has in common with the one that it continues; its own beginning, if there is none.
    pub fn base(&self) -> Option<Position> {
        let log = self.log.as_ref()?;
        Some(Position { incarnation: log.incarnation, seq: log.lineage.as_ref().map_or(0, Lineage::base) })
    }

    /// Whether answers of an incarnation before are still judged by what was known under it.
    pub fn has_former(&self) -> bool {
        self.former.is_some()
    }

    /// Whether there are incarnations before, whose answers are not trusted by this one yet.
    pub fn may_inherit(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.lineage.is_some() && !log.is_heir)
    }

    /// Every pod has logged what it had applied under the incarnations before: their answers are judged by this one.
    pub fn inherit(&mut self) {
        if let Some(log) = &mut self.log {
            log.is_heir = log.lineage.is_some();
        }
        self.former = None;
    }

    /// Applies record `at` of the log; its selectors at once, even behind a gap. `order` is its text.
    pub fn record(&mut self, at: Position, selectors: &[Selector], soft: bool, order: &Arc<str>) -> Applied {
        let Some(log) = self.log.as_mut().filter(|log| log.incarnation == at.incarnation) else {
            return Applied::Foreign;
        };
        if at.seq <= log.applied {
            // One that was logged before the log was joined, and is not read back yet.
            if at.seq <= log.floor {
                self.raise(at.seq, selectors, soft, Some(at.seq));
            }
            return Applied::InOrder;
        }
        self.records.add(at.seq, order);
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
    pub fn backfill(&mut self, seq: u64, selectors: &[Selector], soft: bool, order: &Arc<str>) {
        self.records.add_older(seq, order);
        // What was applied then is known of then.
        let former = self.former.take_if(|former| seq <= former.applied);
        self.raise(seq, selectors, soft, Some(seq));
        self.former = former.or(self.former.take());
    }

    /// Applies what will be in the log, to every fill that began before now; it is to be settled when it is.
    pub fn pending(&mut self, selectors: &[Selector], soft: bool) -> Ticket {
        // It has no number in the log, and may get one that is known already.
        self.raise(0, selectors, soft, None);
        self.pending.add(selectors, soft)
    }

    /// What the log that is followed may lack of the one before, and is to be logged there: until it is settled, whatever it
    /// names is refused if it carries a position of the log.
    pub fn owe(&mut self, selectors: &[Selector], soft: bool) -> Ticket {
        self.pending.add(selectors, soft)
    }

    /// What was pending is in the log, and was recorded, or is given up.
    pub fn settle(&mut self, ticket: Ticket) {
        self.pending.settle(ticket);
    }

    /// Applies what is in the log of this `incarnation`, which is not the one that is followed. `order` is its text.
    pub fn foreign(&mut self, incarnation: u64, selectors: &[Selector], soft: bool, order: &Arc<str>) {
        let ticket = self.pending(selectors, soft);
        self.elsewhere.push(Elsewhere { ticket, incarnation, order: Arc::clone(order) });
    }

    /// What is in another log, as far as that is known now.
    pub fn elsewhere(&self) -> Vec<Elsewhere> {
        self.elsewhere.clone()
    }

    /// What was in another log was logged in this `incarnation` once more.
    pub fn moved(&mut self, moved: &Elsewhere, incarnation: u64) {
        for one in self.elsewhere.iter_mut().filter(|one| *one == moved) {
            one.incarnation = incarnation;
        }
    }

    /// These are in the log that is followed, and it was followed to beyond them.
    pub fn settle_elsewhere(&mut self, settled: &[Elsewhere]) {
        self.elsewhere.retain(|one| !settled.contains(one));
        settled.iter().for_each(|one| self.pending.settle(one.ticket));
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
        self.records.lost_up_to(seq);
        self.raise(seq, &[Selector::All], false, None);
    }

    /// What was logged before this process joined is not all known: nothing that it fetched before now is used.
    pub fn unknown_past(&mut self) {
        let former = self.former.take();
        self.raise(0, &[Selector::All], false, None);
        self.former = former;
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
            // Later than anything of the incarnation before.
            if let Some(former) = &mut self.former {
                former.epochs.raise(selector, Stamp::of(u64::MAX, self.own.seq, soft));
            }
        }
    }
}

#[cfg(test)]
mod tests;
