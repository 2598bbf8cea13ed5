//! What a process can tell the heir of a log: the records that it applied and that the heir may have lost. Pure.
//!
//! A replica that is promoted, or a Redis that comes back from its disk, goes on from the records that it has, as a new
//! incarnation. The last ones may be missing. Whoever applied them logs them once more; when every pod has, nothing that
//! was fetched under the old incarnation is worse known than what is fetched under the new one; nor is what was fetched
//! under those of which the old one was the heir in its turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Position;

/// Records that are remembered; if more were lost than that, everything is invalidated in their stead.
pub const RECORDS: usize = 8192;

/// Bytes that they may take.
pub const BYTES: usize = 4 << 20;

/// Incarnations before the one that is followed whose answers are used; `log.lua` keeps as many.
pub const GENERATIONS: usize = 8;

/// The order that stands for all those that are not known one by one.
const EVERYTHING: &str = "{\"all\":true}";

/// An order that an heir may have lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// The same for each pod that knows this record, and for no other.
    pub name: String,
    /// Its text.
    pub order: Arc<str>,
}

impl Owed {
    /// What stands for whatever is known of a log that was followed up to `at`.
    pub fn everything(at: Position) -> Self {
        Self { name: format!("{} all {}", at.incarnation, at.seq), order: EVERYTHING.into() }
    }
}

/// What one incarnation goes on from: its parent and the last record that both have, the parent's parent and the last that
/// those have, and so on; [`GENERATIONS`] at most. An heir of an heir has what its parent had of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<Position>);

impl Lineage {
    /// Of these, the parent first; none of an incarnation that goes on from none.
    pub fn of(mut ancestors: Vec<Position>) -> Option<Self> {
        // What the heir of an heir lacks of its parent it lacks of those before, too.
        let mut common = u64::MAX;
        for ancestor in &mut ancestors {
            common = common.min(ancestor.seq);
            ancestor.seq = common;
        }
        ancestors.truncate(GENERATIONS);
        (!ancestors.is_empty()).then_some(Self(ancestors))
    }

    /// The last record that it has in common with its parent.
    pub fn base(&self) -> u64 {
        self.0.first().map_or(0, |parent| parent.seq)
    }

    /// The last record that it has in common with this one; `None` if it does not go on from that.
    pub fn common_with(&self, incarnation: u64) -> Option<u64> {
        self.0.iter().find(|ancestor| ancestor.incarnation == incarnation).map(|ancestor| ancestor.seq)
    }

    /// The position of the incarnation `child` that stands for one of an ancestor: whatever was logged after the last common
    /// record counts as later.
    pub fn translate(&self, position: Position, child: u64) -> Position {
        match self.common_with(position.incarnation) {
            Some(common) => Position { incarnation: child, seq: position.seq.min(common) },
            None => position,
        }
    }
}

/// The last records of the log that is followed, as they were logged.
#[derive(Debug, Default)]
pub struct Records {
    /// Each record above this one that was applied is here.
    above: u64,
    orders: BTreeMap<u64, Arc<str>>,
    bytes: usize,
}

impl Records {
    /// None of a log that is joined at `head`.
    pub fn new(head: u64) -> Self {
        Self { above: head, ..Self::default() }
    }

    /// Record `seq` was applied.
    pub fn add(&mut self, seq: u64, order: &Arc<str>) {
        if seq > self.above && self.orders.insert(seq, Arc::clone(order)).is_none() {
            self.bytes += order.len();
        }
        while self.orders.len() > RECORDS || self.bytes > BYTES {
            let Some((seq, order)) = self.orders.pop_first() else { return };
            self.bytes -= order.len();
            self.above = seq;
        }
    }

    /// Record `seq`, from before the point at which the log was joined, was applied.
    pub fn add_older(&mut self, seq: u64, order: &Arc<str>) {
        let fits = self.orders.len() < RECORDS && self.bytes + order.len() <= BYTES;
        if seq == self.above && fits {
            self.above -= 1;
            self.bytes += order.len();
            self.orders.insert(seq, Arc::clone(order));
        }
    }

    /// Records up to `seq` were never seen.
    pub fn lost_up_to(&mut self, seq: u64) {
        self.above = self.above.max(seq);
    }

    /// What an heir of this log, which was followed up to `at`, may have lost that has its records up to `base`.
    pub fn owed(&self, at: Position, base: u64) -> Vec<Owed> {
        if base < self.above {
            return vec![Owed::everything(at)];
        }
        let (incarnation, after) = (at.incarnation, self.orders.range(base + 1..));
        after.map(|(seq, order)| Owed { name: format!("{incarnation} {seq}"), order: Arc::clone(order) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(records: &Records, base: u64) -> Vec<String> {
        records.owed(Position { incarnation: 1, seq: 20 }, base).iter().map(|owed| owed.order.to_string()).collect()
    }

    #[test]
    fn what_an_heir_lacks_is_told_one_by_one_or_as_everything() {
        let mut records = Records::new(10);
        for seq in [11, 12, 14] {
            records.add(seq, &seq.to_string().into());
        }
        assert_eq!(owed(&records, 14), [""; 0]);
        assert_eq!(owed(&records, 11), ["12", "14"], "one that came early counts too");
        assert_eq!(owed(&records, 10), ["11", "12", "14"]);
        assert_eq!(owed(&records, 9), [EVERYTHING]);
        records.add_older(8, &"8".into());
        assert_eq!(owed(&records, 9), [EVERYTHING], "there is a hole");
        records.add_older(10, &"10".into());
        assert_eq!(owed(&records, 9), ["10", "11", "12", "14"]);
        records.lost_up_to(13);
        assert_eq!(owed(&records, 12), [EVERYTHING]);
        assert_eq!(owed(&records, 13), ["14"]);
    }

    #[test]
    fn they_are_bounded_by_number_and_bytes() {
        let mut records = Records::new(0);
        (1..=RECORDS as u64 + 5).for_each(|seq| records.add(seq, &"x".into()));
        assert_eq!((owed(&records, 4), owed(&records, 5).len()), (vec![EVERYTHING.to_owned()], RECORDS));
        let large: Arc<str> = "x".repeat(BYTES / 2).into();
        (0..3).for_each(|i| records.add(10_000 + i, &large));
        assert_eq!((owed(&records, 10_000).len(), records.bytes), (2, BYTES));
        records.add_older(10_000, &"y".into());
        assert_eq!(owed(&records, 9_999), [EVERYTHING], "there is no room");
    }

    #[test]
    fn a_parents_position_counts_up_to_the_last_common_record() {
        let at = |incarnation, seq| Position { incarnation, seq };
        assert_eq!(Lineage::of(Vec::new()), None);
        let lineage = Lineage::of(vec![at(1, 10), at(5, 4), at(6, 8)]).unwrap();
        assert_eq!(lineage.base(), 10);
        assert_eq!(lineage.translate(at(1, 7), 2), at(2, 7));
        assert_eq!(lineage.translate(at(1, 12), 2), at(2, 10));
        assert_eq!(lineage.translate(at(3, 12), 2), at(3, 12), "of none of them");
        assert_eq!(lineage.translate(at(5, 12), 2), at(2, 4));
        assert_eq!(lineage.translate(at(6, 7), 2), at(2, 4), "what an heir lacks, its own heirs lack, too");
    }

    #[test]
    fn so_many_generations_are_known_and_no_more() {
        let all: Vec<_> = (1..=20).map(|incarnation| Position { incarnation, seq: 100 - incarnation }).collect();
        let lineage = Lineage::of(all).unwrap();
        let known = |incarnation: &u64| lineage.common_with(*incarnation).is_some();
        assert_eq!((1..=20).filter(known).count(), GENERATIONS);
        assert!(include_str!("../kv/log.lua").contains(&format!("local GENERATIONS = {GENERATIONS}\n")));
    }
}
