//! One Redis, and the scripts once more: `log.lua` with what stands behind it, `lease.lua`, `store.lua`.

use std::collections::VecDeque;

use super::Design;
use super::names::{Answer, KEYS, Key, Order};
use super::random::Random;
use super::{Ms, Step};
use crate::invalidation::Position;

/// Records that a page holds.
pub const PAGE: usize = 3;

/// Entries of the door that one call takes.
pub const DOOR: usize = 2;

/// How long a fetch is leased.
pub const LEASE: Ms = 400;

/// A record of the log.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub seq: u64,
    pub order: Order,
    /// When it was logged; for the oracle only.
    pub logged: Step,
}

/// A stored answer.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub answer: Answer,
    pub position: Position,
    pub fence: u64,
    pub received: Ms,
}

impl Entry {
    /// As `Stored::is_newer_than` has it.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let (this, that) = (self.position, other.position);
        this.incarnation == that.incarnation
            && (this.seq > that.seq || (this.seq == that.seq && self.received > other.received))
    }
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    token: u64,
    fence: u64,
    position: Position,
    until: Ms,
}

#[derive(Debug, Clone, Copy)]
struct Counter {
    incarnation: u64,
    seq: u64,
    run_id: u64,
}

/// What is lost with the data.
#[derive(Debug, Clone, Default)]
struct Data {
    counter: Option<Counter>,
    log: VecDeque<Record>,
    seen: Vec<(Order, u64)>,
    door: VecDeque<(u64, Order)>,
    entries: [Option<Entry>; KEYS],
    leases: [Option<Lease>; KEYS],
    /// For each selector the keys that it is known to name: [`Design::TagIndex`].
    index: [[bool; KEYS]; 11],
}

/// What a pod asks of Redis.
#[derive(Debug, Clone)]
pub enum Ask {
    Subscribe,
    Prove,
    Forward(u64),
    Backward(u64),
    Append {
        order: Order,
        since: Option<Position>,
    },
    Drain(Vec<(u64, Order)>),
    Get(Key),
    Lease {
        key: Key,
        token: u64,
        /// The fetch's own position, and the lowest number that is as good.
        place: (Position, u64),
        seen: Option<u64>,
    },
    Store {
        key: Key,
        lease: Option<(u64, u64)>,
        entry: Option<Entry>,
    },
    /// Adds a stored answer to the sets of its tags: [`Design::TagIndex`].
    Index(Answer),
}

/// What it answers.
#[derive(Debug, Clone)]
pub enum Reply {
    Done,
    Proof { head: Position, door: Vec<(u64, Order)> },
    Page { head: Option<Position>, records: Vec<Record> },
    Logged { at: Position, logged: Step, is_new: bool },
    Drained { head: Position, taken: Vec<Order> },
    Entry(Option<Entry>),
    Lead { fence: u64, takes_over: bool, granted: Step },
    Held,
    Superseded,
}

/// One moment at Redis.
pub struct Moment<'a> {
    pub now: Ms,
    pub step: Step,
    pub design: Design,
    pub random: &'a mut Random,
}

/// A server with its data, and a replica that may have stopped to follow.
#[derive(Debug)]
pub struct Redis {
    data: Data,
    run_id: u64,
    replica: Option<(Step, Data)>,
    /// It answers from then on.
    pub up_at: Ms,
    /// Records logged in the call that ran last, to be announced.
    pub announced: Vec<(u64, Record)>,
    /// The fetch leased last has a lower fence than one that has outlived its lease.
    pub fence_fell: bool,
    /// The master whose incarnation this is, and when that began.
    pub began: (u64, Ms),
    door_id: u64,
}

impl Redis {
    pub fn new(run_id: u64) -> Self {
        Self {
            data: Data::default(),
            run_id,
            replica: None,
            up_at: 0,
            announced: Vec::new(),
            fence_fell: false,
            began: (0, 0),
            door_id: 0,
        }
    }

    pub fn run(&mut self, ask: &Ask, moment: &mut Moment<'_>) -> Reply {
        match ask {
            Ask::Subscribe => Reply::Done,
            Ask::Prove => {
                let head = self.position(moment);
                Reply::Proof { head, door: self.data.door.iter().take(DOOR).copied().collect() }
            }
            Ask::Forward(from) => self.page(self.data.log.iter().filter(|record| record.seq >= *from)),
            Ask::Backward(from) => self.page(self.data.log.iter().rev().filter(|record| record.seq <= *from)),
            Ask::Append { order, since } => self.invalidate(*order, *since, moment),
            Ask::Drain(entries) => self.drain(entries, moment),
            Ask::Get(key) => Reply::Entry(self.data.entries[*key]),
            Ask::Lease { key, token, place, seen } => self.lease(*key, *token, *place, *seen, moment),
            Ask::Store { key, lease, entry } => self.store(*key, *lease, *entry, moment),
            Ask::Index(answer) => {
                for (what, keys) in self.data.index.iter_mut().enumerate() {
                    keys[answer.key] |= Order { what, soft: false }.names(*answer);
                }
                Reply::Done
            }
        }
    }

    /// Adds to the durable door.
    pub fn knock(&mut self, order: Order) {
        self.door_id += 1;
        self.data.door.push_back((self.door_id, order));
    }

    /// Back after a crash, without anything.
    pub fn empty(&mut self, run_id: u64) {
        (self.data, self.replica, self.run_id) = (Data::default(), None, run_id);
    }

    /// From now on the replica learns of nothing.
    pub fn stall_replica(&mut self, now: Step) {
        self.replica.get_or_insert_with(|| (now, self.data.clone()));
    }

    /// The replica becomes the master. Says since when it knows of nothing, if it has stopped to follow.
    pub fn fail_over(&mut self, run_id: u64) -> Option<Step> {
        self.run_id = run_id;
        let (since, data) = self.replica.take()?;
        self.data = data;
        Some(since)
    }

    /// Forgets all records but the last `keep`.
    pub fn trim(&mut self, keep: usize) {
        self.data.log.drain(..self.data.log.len().saturating_sub(keep));
    }

    /// Every lease has run out.
    pub fn expire_leases(&mut self) {
        self.data.leases.iter_mut().flatten().for_each(|lease| lease.until = 0);
    }

    /// What stands under a key; for counting only.
    pub fn peek(&self, key: Key) -> Option<Entry> {
        self.data.entries[key]
    }

    /// Where the log stands; for the end only.
    pub fn head(&self) -> Option<Position> {
        self.data.counter.map(|counter| Position { incarnation: counter.incarnation, seq: counter.seq })
    }

    fn position(&mut self, moment: &mut Moment<'_>) -> Position {
        let run_id = self.run_id;
        let counter = match self.data.counter {
            Some(counter) if counter.run_id == run_id => counter,
            other => {
                let seq = other.map_or(0, |counter| counter.seq);
                if other.is_none() {
                    self.data.log.clear();
                }
                self.data.seen.clear();
                *self.data.counter.insert(Counter { incarnation: moment.random.next(), seq, run_id })
            }
        };
        if counter.run_id != self.began.0 {
            self.began = (counter.run_id, moment.now);
        }
        Position { incarnation: counter.incarnation, seq: counter.seq }
    }

    fn page<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Reply {
        Reply::Page { head: self.head(), records: records.take(PAGE).copied().collect() }
    }

    fn append(&mut self, order: Order, moment: &mut Moment<'_>) -> Position {
        let mut at = self.position(moment);
        at.seq += 1;
        let record = Record { seq: at.seq, order, logged: moment.step };
        self.data.log.push_back(record);
        if let Some(counter) = &mut self.data.counter {
            counter.seq = at.seq;
        }
        self.data.seen.retain(|(equal, _)| *equal != order);
        self.data.seen.push((order, at.seq));
        self.announced.push((at.incarnation, record));
        self.remove(order, moment.design);
        at
    }

    fn remove(&mut self, order: Order, design: Design) {
        if !design.removes() {
            return;
        }
        for key in 0..KEYS {
            let is_named = match design {
                Design::TagIndex => std::mem::take(&mut self.data.index[order.what][key]),
                _ => self.data.entries[key].is_some_and(|entry| order.names(entry.answer)),
            };
            if is_named {
                self.data.entries[key] = None;
            }
        }
    }

    fn invalidate(&mut self, order: Order, since: Option<Position>, moment: &mut Moment<'_>) -> Reply {
        let at = self.position(moment);
        let equal = self.data.seen.iter().find(|(equal, _)| *equal == order).map_or(0, |(_, seq)| *seq);
        if since.is_some_and(|since| since.incarnation == at.incarnation && equal > since.seq) {
            let record = self.data.log.iter().find(|record| record.seq == equal);
            let logged = record.map_or(0, |record| record.logged);
            return Reply::Logged { at: Position { seq: equal, ..at }, logged, is_new: false };
        }
        Reply::Logged { at: self.append(order, moment), logged: moment.step, is_new: true }
    }

    fn drain(&mut self, entries: &[(u64, Order)], moment: &mut Moment<'_>) -> Reply {
        let mut head = self.position(moment);
        let mut taken = Vec::new();
        for (id, order) in entries {
            if let Some(at) = self.data.door.iter().position(|(there, _)| there == id) {
                self.data.door.remove(at);
                head = self.append(*order, moment);
                taken.push(*order);
            }
        }
        Reply::Drained { head, taken }
    }

    fn lease(
        &mut self,
        key: Key,
        token: u64,
        (position, least): (Position, u64),
        seen: Option<u64>,
        moment: &Moment<'_>,
    ) -> Reply {
        let entry = self.data.entries[key];
        if entry.is_some_and(|entry| Some(entry.fence) != seen) {
            return Reply::Entry(entry);
        }
        let mut fence = entry.map(|entry| entry.fence);
        let held = self.data.leases[key].filter(|lease| lease.until > moment.now);
        if let Some(held) = held.filter(|_| moment.design != Design::NoLease) {
            if held.position.incarnation == position.incarnation && held.position.seq >= least {
                return Reply::Held;
            }
            fence = fence.max(Some(held.fence));
        }
        let last = self.data.leases[key];
        let takes_over = last.is_some();
        if moment.design != Design::FencesRepeat {
            fence = fence.max(last.map(|last| last.fence));
        }
        let fence = fence.map_or(0, |fence| fence + 1);
        self.fence_fell = last.is_some_and(|last| last.fence > fence);
        self.data.leases[key] = Some(Lease { token, fence, position, until: moment.now + LEASE });
        Reply::Lead { fence, takes_over, granted: moment.step }
    }

    fn store(&mut self, key: Key, lease: Option<(u64, u64)>, entry: Option<Entry>, moment: &Moment<'_>) -> Reply {
        let held = self.data.leases[key].filter(|lease| lease.until > moment.now);
        let is_mine = held.zip(lease).is_some_and(|(held, (token, _))| held.token == token);
        let mut reply = Reply::Done;
        if let Some(entry) = entry {
            if self.is_superseded(key, lease, &entry, held.filter(|_| !is_mine), moment.design) {
                reply = Reply::Superseded;
            } else {
                self.data.entries[key] = Some(entry);
            }
        }
        if is_mine {
            self.data.leases[key] = None;
        }
        reply
    }

    fn is_superseded(
        &self,
        key: Key,
        lease: Option<(u64, u64)>,
        entry: &Entry,
        held_by_another: Option<Lease>,
        design: Design,
    ) -> bool {
        let by_position = |stored: &Entry| {
            stored.position.incarnation == entry.position.incarnation && stored.position.seq > entry.position.seq
        };
        let received_later = |stored: &Entry| stored.position == entry.position && stored.received > entry.received;
        let stored = self.data.entries[key];
        let by_fence = |fence: u64| {
            design != Design::FenceDropped
                && (stored.is_some_and(|stored| stored.fence >= fence)
                    || held_by_another.is_some_and(|held| held.fence >= fence))
        };
        stored.as_ref().is_some_and(by_position)
            || match lease {
                Some((_, fence)) => by_fence(fence),
                None => stored.as_ref().is_some_and(received_later),
            }
    }
}
