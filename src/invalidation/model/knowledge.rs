//! The real mirror, as the model uses it: the only place that calls it.

use super::names::{Answer, Key, Order, subject, subject_of};
use crate::invalidation::mirror::{Applied, Mirror};
use crate::invalidation::pending::Ticket;
use crate::invalidation::{Position, Verdict};

/// What a pod knows, and the version that moves with it.
#[derive(Debug)]
pub struct Knowledge {
    mirror: Mirror,
    /// What was logged where this pod did not follow.
    elsewhere: Vec<(Position, Order)>,
    pub version: u64,
}

impl Knowledge {
    pub fn new(own: u64) -> Self {
        Self { mirror: Mirror::new(own), elsewhere: Vec::new(), version: 1 }
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

    pub fn elsewhere(&self) -> Vec<Ticket> {
        self.mirror.elsewhere()
    }

    pub fn record(&mut self, at: Position, order: Order) -> Applied {
        self.version += 1;
        self.mirror.record(at, order.selectors(), order.soft)
    }

    /// Applies what was logged here, wherever this pod stands.
    pub fn logged(&mut self, at: Position, order: Order) -> Applied {
        let applied = self.record(at, order);
        if applied == Applied::Foreign {
            self.mirror.foreign(order.selectors(), order.soft);
            self.elsewhere.push((at, order));
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

    pub fn settle_elsewhere(&mut self, tickets: &[Ticket]) {
        self.version += 1;
        self.mirror.settle_elsewhere(tickets);
    }

    /// What was to be logged never will be.
    pub fn give_up(&mut self, ticket: Ticket, order: Order) {
        self.version += 1;
        self.mirror.unlogged(order.selectors(), order.soft);
        self.mirror.settle(ticket);
    }

    pub fn follow(&mut self, head: Position, own: u64) {
        self.version += 1;
        self.mirror.follow(head, own);
    }

    /// The same, but what came into the log behind its head is not forgotten: [`Design::Mended`](super::Design::Mended).
    pub fn follow_and_keep(&mut self, head: Position, own: u64) {
        self.follow(head, own);
        for (at, order) in std::mem::take(&mut self.elsewhere) {
            if at.incarnation != head.incarnation || at.seq > head.seq {
                self.logged(at, order);
            }
        }
    }

    pub fn lost_up_to(&mut self, seq: u64) {
        self.version += 1;
        self.mirror.lost_up_to(seq);
    }

    pub fn backfill(&mut self, seq: u64, order: Order) {
        self.version += 1;
        self.mirror.backfill(seq, order.selectors(), order.soft);
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
