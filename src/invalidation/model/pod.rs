//! A pod: what is lost when it crashes.

use std::collections::VecDeque;

use super::Ms;
use super::clerk::Clerk;
use super::keeper::Keeper;
use super::knowledge::Knowledge;
use super::names::{KEYS, Order};
use super::reads::Flight;
use super::redis::{Entry, Record};
use crate::invalidation::Position;

/// One pod, life after life.
#[derive(Debug)]
pub struct Pod {
    /// Which process it is.
    pub life: u32,
    pub is_alive: bool,
    pub started: Ms,
    /// Stopped until then.
    pub paused_until: Ms,
    /// Away from Redis until then.
    pub cut_until: Ms,
    /// Until then, what Redis answers takes so much longer.
    pub slow: (Ms, Ms),
    /// The same of what comes over the bus.
    pub slow_bus: (Ms, Ms),
    pub known: Knowledge,
    pub memory: [Option<Slot>; KEYS],
    /// When the question of the last proof was sent; 0 is never.
    pub proven: Ms,
    pub keeper: Keeper,
    pub clerk: Clerk,
    pub flights: Vec<Flight>,
    /// Redis' end of the subscription.
    pub wire: Option<Wire>,
}

/// A stored answer in a pod.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    pub entry: Entry,
    /// When this pod asked the upstream for it; 0 if it came from Redis.
    pub asked: Ms,
}

/// A subscription as Redis has it. What was sent comes in order and without a hole, until it ends.
#[derive(Debug, Default)]
pub struct Wire {
    /// What is on its way, and when it can be read.
    pub queue: VecDeque<(Ms, Message)>,
    /// Nothing more comes, and the pod is not told.
    pub is_stalled: bool,
    /// The pod is told so after what is in the queue.
    pub is_closed: bool,
}

/// What a subscriber reads.
#[derive(Debug, Clone, Copy)]
pub enum Message {
    /// A record of this incarnation.
    Record(u64, Record),
    /// An order that a program published.
    Knock(Published),
}

/// A message at the PUBLISH door.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    pub order: Order,
    /// When it was published; for the oracle only.
    pub at: super::Step,
}

impl Pod {
    pub fn new(own: u64) -> Self {
        Self {
            life: 0,
            is_alive: true,
            started: 0,
            paused_until: 0,
            cut_until: 0,
            slow: (0, 0),
            slow_bus: (0, 0),
            known: Knowledge::new(own),
            memory: [None; KEYS],
            proven: 0,
            keeper: Keeper::default(),
            clerk: Clerk::default(),
            flights: Vec::new(),
            wire: None,
        }
    }

    /// Another process in its place.
    pub fn restart(&mut self, own: u64, started: Ms) {
        let (life, cut_until, slow, slow_bus) = (self.life + 1, self.cut_until, self.slow, self.slow_bus);
        *self = Self { life, started, cut_until, slow, slow_bus, ..Self::new(own) };
    }

    /// Stores in memory unless what stands there is newer; whether nothing newer does.
    pub fn keep(&mut self, slot: Slot) -> bool {
        let place = &mut self.memory[slot.entry.answer.key];
        if place.is_some_and(|present| present.entry.is_newer_than(&slot.entry)) {
            return false;
        }
        *place = Some(slot);
        true
    }

    /// Whether it has read back the log that it follows.
    pub fn is_ready(&self) -> bool {
        self.keeper.backfill.is_none()
    }

    /// The highest position of the log that it has applied.
    pub fn followed(&self) -> Option<Position> {
        self.known.followed()
    }
}
