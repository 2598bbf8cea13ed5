//! What a process can tell the heir of a log: the records that it applied and that the heir may have lost. Pure.
//!
//! A replica that is promoted, or a Redis that comes back from its disk, goes on from the records that it has, as a new
//! incarnation. The last ones may be missing. Whoever applied them logs them once more; when every pod has, nothing that
//! was fetched under the old incarnation is worse known than what is fetched under the new one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Position;

/// Records that are remembered; if more were lost than that, everything is invalidated in their stead.
pub const RECORDS: usize = 8192;

/// Bytes that they may take.
pub const BYTES: usize = 4 << 20;

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
    /// What stands for whatever was known under this incarnation.
    pub fn everything(incarnation: u64) -> Self {
        Self { name: format!("{incarnation} all"), order: EVERYTHING.into() }
    }
}

/// What one incarnation goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The incarnation before.
    pub parent: u64,
    /// The last record that both have.
    pub base: u64,
}

impl Lineage {
    /// The position of the incarnation `child` that stands for one of its parent: whatever was logged after the last common
    /// record counts as later.
    pub fn translate(self, position: Position, child: u64) -> Position {
        if position.incarnation == self.parent {
            Position { incarnation: child, seq: position.seq.min(self.base) }
        } else {
            position
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

    /// What the heir of this log may have lost.
    pub fn owed(&self, Lineage { parent, base }: Lineage) -> Vec<Owed> {
        if base < self.above {
            return vec![Owed::everything(parent)];
        }
        let after = self.orders.range(base + 1..);
        after.map(|(seq, order)| Owed { name: format!("{parent} {seq}"), order: Arc::clone(order) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(records: &Records, base: u64) -> Vec<String> {
        records.owed(Lineage { parent: 1, base }).iter().map(|owed| owed.order.to_string()).collect()
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
        let lineage = Lineage { parent: 1, base: 10 };
        let at = |incarnation, seq| Position { incarnation, seq };
        assert_eq!(lineage.translate(at(1, 7), 2), at(2, 7));
        assert_eq!(lineage.translate(at(1, 12), 2), at(2, 10));
        assert_eq!(lineage.translate(at(3, 12), 2), at(3, 12));
    }
}
