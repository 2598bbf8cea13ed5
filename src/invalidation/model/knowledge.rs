//! The real mirror, as the model uses it: the only place that calls it.

use super::names::{Answer, Key, Order, subject, subject_of};
use std::sync::Arc;

use crate::invalidation::mirror::{Applied, Elsewhere, Mirror};
use crate::invalidation::pending::Ticket;
use crate::invalidation::{Position, Verdict};

/// What a pod knows, and the version that moves with it.
#[derive(Debug)]
pub struct Knowledge {
    mirror: Mirror,
    /// What was logged where this pod did not follow.
    elsewhere: Vec<(Elsewhere, Order)>,
    /// The text of any order: only an heir is told.
    text: Arc<str>,
    pub version: u64,
}

impl Knowledge {
    pub fn new(own: u64) -> Self {
        Self { mirror: Mirror::new(own), elsewhere: Vec::new(), text: "{}".into(), version: 1 }
    }

    pub fn least(&self, position: Position, key: Key) -> u64 {
        self.mirror.least(position, &subject(key))
    }

    pub fn position(&self, key: Key) -> Position {
        self.mirror.position(&subject(key))
    }

    pub fn is_own(&self, position: Position) -> bool {
        position.incarnation == self.mirror.own().incarnation
    }

    /// What is known of an answer; see [`Mirror::verdict`].
    pub fn verdict(&self, position: Position, answer: Answer) -> Verdict {
        self.mirror.verdict(position, &subject_of(answer))
    }

    /// Whether a flight that began there may be joined.
    pub fn is_joinable(&self, position: Position, key: Key) -> bool {
        self.mirror.verdict(position, &subject(key)) != Verdict::Gone
    }

    pub fn followed(&self) -> Option<Position> {
        self.mirror.followed()
    }

    pub fn elsewhere(&self) -> Vec<Elsewhere> {
        self.mirror.elsewhere()
    }

    pub fn record(&mut self, at: Position, order: Order) -> Applied {
        self.version += 1;
        self.mirror.record(at, order.selectors(), order.soft, &self.text)
    }

    /// Applies what was logged here, wherever this pod stands.
    pub fn logged(&mut self, at: Position, order: Order) -> Applied {
        let applied = self.record(at, order);
        if applied == Applied::Foreign {
            self.mirror.foreign(at.incarnation, order.selectors(), order.soft, &self.text);
            self.elsewhere.extend(self.mirror.elsewhere().pop().map(|one| (one, order)));
        }
        applied
    }

    pub fn pending(&mut self, order: Order) -> Ticket {
        self.version += 1;
        self.mirror.pending(order.selectors(), order.soft)
    }

    pub fn settle(&mut self, ticket: Ticket) {
        self.version += 1;
        self.mirror.settle(ticket);
    }

    /// Settles what was in another log when a proof was asked for: what is in the present one is applied by now, the rest
    /// is to be logged once more.
    pub fn settle_elsewhere(&mut self, then: &[Elsewhere]) -> Vec<Order> {
        self.version += 1;
        let Some(present) = self.followed() else { return Vec::new() };
        let (here, lost): (Vec<_>, Vec<_>) =
            then.iter().cloned().partition(|one| one.incarnation == present.incarnation);
        self.mirror.settle_elsewhere(&here);
        let mut orders = Vec::new();
        for one in lost {
            self.mirror.moved(&one, present.incarnation);
            orders.extend(self.elsewhere.iter().find(|(other, _)| *other == one).map(|(_, order)| *order));
        }
        let left = self.mirror.elsewhere();
        self.elsewhere.retain(|(one, _)| left.contains(one));
        orders
    }

    /// What was to be logged never will be.
    pub fn give_up(&mut self, ticket: Ticket, order: Order) {
        self.version += 1;
        self.mirror.unlogged(order.selectors(), order.soft);
        self.mirror.settle(ticket);
    }

    pub fn follow(&mut self, head: Position, own: u64) {
        self.version += 1;
        self.mirror.follow(head, own, None);
    }

    pub fn lost_up_to(&mut self, seq: u64) {
        self.version += 1;
        self.mirror.lost_up_to(seq);
    }

    pub fn backfill(&mut self, seq: u64, order: Order) {
        self.version += 1;
        self.mirror.backfill(seq, order.selectors(), order.soft, &self.text);
    }

    pub fn lower_floor(&mut self, floor: u64) {
        self.version += 1;
        self.mirror.lower_floor(floor);
    }

    pub fn unknown_past(&mut self) {
        self.version += 1;
        self.mirror.unknown_past();
    }
}
