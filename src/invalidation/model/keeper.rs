//! The keeper of `bus.rs`, one await at a time: what it waits for is its [`Task`].

use super::coverage::Seen;
use super::names::Order;
use super::pod::{Message, Published};
use super::redis::{Ask, DOOR, Record, Reply};
use super::world::{Event, From, World};
use super::{BOUND, Design, Ms};
use crate::invalidation::Position;
use crate::invalidation::mirror::Applied;
use crate::invalidation::mirror::Elsewhere;

/// Time between proofs.
const EVERY: Ms = BOUND / 4;

/// How long a stalled subscription is waited for.
const PING: Ms = 500;

/// Pages that one catching up may read.
const PAGES: u32 = 12;

/// What the keeper knows beside the mirror.
#[derive(Debug, Default)]
pub struct Keeper {
    task: Task,
    due: Ms,
    /// It does nothing before.
    rests_until: Ms,
    is_kicked: bool,
    is_subscribed: bool,
    heard: Option<Position>,
    pub backfill: Option<u64>,
    /// When the loop goes round next.
    turn: Option<Ms>,
}

/// What it waits for.
#[derive(Debug, Default)]
enum Task {
    #[default]
    Nothing,
    Subscribe,
    Prove(Question),
    /// A page forward, from what had been followed; so many were read before.
    CatchUp(Then, Position, u32),
    Drain(Proof),
    /// The door was full: the log is asked again.
    AskAgain(Proof),
    ReadBack(u64, Position),
    /// Nothing, for a while.
    Rest,
    /// A subscription that does not answer.
    Ping,
}

#[derive(Debug)]
struct Question {
    why: Why,
    sent: Ms,
    before: Option<Position>,
    elsewhere: Vec<Elsewhere>,
}

/// Who wants a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Tick,
    Announced,
}

/// A proof whose answer came.
#[derive(Debug)]
struct Proof {
    why: Why,
    sent: Ms,
    elsewhere: Vec<Elsewhere>,
    asked: Position,
    head: Position,
    door: Vec<(u64, Order)>,
}

/// What catching up is for.
#[derive(Debug)]
enum Then {
    Announced,
    Asked(Proof),
    Drained(Proof),
}

impl Then {
    /// How far the log is known to reach.
    fn head(&self) -> Option<u64> {
        match self {
            Self::Announced => None,
            Self::Asked(proof) => Some(proof.asked.seq),
            Self::Drained(proof) => Some(proof.head.seq),
        }
    }
}

impl World {
    /// The loop goes round again at `at`, unless it does before.
    pub fn turn_at(&mut self, pod: usize, at: Ms) {
        let at = at.max(self.now);
        if self.pods[pod].keeper.turn.is_none_or(|turn| turn > at) {
            self.pods[pod].keeper.turn = Some(at);
            let process = self.process(pod);
            self.at(at, Event::Turn(process));
        }
    }

    /// Asks for a proof now.
    pub fn kick(&mut self, pod: usize) {
        self.pods[pod].keeper.is_kicked = true;
        self.turn_at(pod, self.now);
    }

    pub fn turn(&mut self, pod: usize) {
        let now = self.now;
        let state = &mut self.pods[pod];
        let keeper = &mut state.keeper;
        if keeper.turn.is_some_and(|turn| turn <= now) {
            keeper.turn = None;
        }
        let is_resting = matches!(keeper.task, Task::Rest | Task::Ping);
        if is_resting && keeper.rests_until <= now {
            if matches!(std::mem::take(&mut keeper.task), Task::Ping) {
                return self.lose(pod);
            }
        } else if is_resting {
            let until = keeper.rests_until;
            return self.turn_at(pod, until);
        } else if !matches!(keeper.task, Task::Nothing) {
            return;
        }
        let wire = state.wire.as_mut().filter(|_| state.keeper.is_subscribed);
        let next = wire.as_ref().and_then(|wire| wire.queue.front().map(|(at, _)| *at));
        let has_ended = wire.as_ref().is_none_or(|wire| wire.is_closed && wire.queue.is_empty());
        if state.keeper.due <= now {
            return self.tick(pod);
        }
        if let Some((_, message)) = wire.filter(|_| next.is_some_and(|at| at <= now)).and_then(|w| w.queue.pop_front())
        {
            return self.hear(pod, message);
        }
        if has_ended && self.pods[pod].keeper.is_subscribed {
            return self.lose(pod);
        }
        let keeper = &mut self.pods[pod].keeper;
        if std::mem::take(&mut keeper.is_kicked) {
            keeper.due = now;
            return self.turn_at(pod, now);
        }
        if let (Some(from), Some(at)) = (keeper.backfill, self.pods[pod].followed()) {
            self.pods[pod].keeper.task = Task::ReadBack(from, at);
            return self.call(pod, From::Keeper, Ask::Backward(from));
        }
        let at = next.unwrap_or(Ms::MAX).min(self.pods[pod].keeper.due);
        self.turn_at(pod, at);
    }

    /// Ready for whatever is next.
    fn idle(&mut self, pod: usize) {
        self.pods[pod].keeper.task = Task::Nothing;
        self.turn_at(pod, self.now);
    }

    fn lose(&mut self, pod: usize) {
        self.note(|| format!("pod {pod} has lost its subscription"));
        let due = self.now + 20;
        let state = &mut self.pods[pod];
        state.wire = None;
        (state.keeper.is_subscribed, state.keeper.heard, state.keeper.due) = (false, None, due);
        self.idle(pod);
    }

    fn tick(&mut self, pod: usize) {
        if self.pods[pod].keeper.is_subscribed {
            return self.prove(pod, Why::Tick);
        }
        self.pods[pod].keeper.task = Task::Subscribe;
        self.call(pod, From::Keeper, Ask::Subscribe);
    }

    fn prove(&mut self, pod: usize, why: Why) {
        let known = &self.pods[pod].known;
        let question = Question { why, sent: self.now, before: known.followed(), elsewhere: known.elsewhere() };
        self.pods[pod].keeper.task = Task::Prove(question);
        self.call(pod, From::Keeper, Ask::Prove);
    }

    pub fn keeper_answered(&mut self, pod: usize, reply: Option<Reply>) {
        match (std::mem::take(&mut self.pods[pod].keeper.task), reply) {
            (Task::Subscribe, reply) => {
                self.pods[pod].keeper.is_subscribed = reply.is_some();
                self.prove(pod, Why::Tick);
            }
            (Task::Prove(question), Some(Reply::Proof { head, door })) => {
                let Question { why, sent, before, elsewhere } = question;
                let sent = if self.design == Design::ProofFromAnswer { self.now } else { sent };
                let proof = Proof { why, sent, elsewhere, asked: head, head, door };
                self.reach(pod, head, before, Then::Asked(proof));
            }
            (Task::Prove(Question { why, .. }), _) => self.proven(pod, why, false),
            (Task::CatchUp(then, at, pages), Some(Reply::Page { head, records })) => {
                self.read_forward(pod, at, head, &records);
                self.go_on(pod, at, head, pages, then);
            }
            (Task::CatchUp(then, ..), _) => self.failed(pod, then),
            (Task::Drain(mut proof), Some(Reply::Drained { head, .. })) => {
                proof.head = head;
                if proof.door.len() < DOOR {
                    proof.door.clear();
                    return self.drained(pod, proof);
                }
                self.pods[pod].keeper.task = Task::AskAgain(proof);
                self.call(pod, From::Keeper, Ask::Prove);
            }
            (Task::AskAgain(mut proof), Some(Reply::Proof { door, .. })) => {
                proof.door = door;
                self.empty_the_door(pod, proof);
            }
            (Task::Drain(proof) | Task::AskAgain(proof), _) => self.proven(pod, proof.why, false),
            (Task::ReadBack(from, at), reply) => self.read_back(pod, from, at, reply),
            (Task::Nothing | Task::Rest | Task::Ping, _) => unreachable!("nothing was asked"),
        }
    }

    fn reach(&mut self, pod: usize, head: Position, before: Option<Position>, then: Then) {
        let followed = self.pods[pod].followed();
        match before {
            Some(before) if before.incarnation == head.incarnation && before.seq <= head.seq => {
                if followed.is_some_and(|at| at.seq < head.seq) {
                    self.catch_up(pod, 0, then);
                } else {
                    self.reached(pod, then);
                }
            }
            _ => {
                self.note(|| format!("pod {pod} joins the log at {head:?}"));
                self.oracle.count(Seen::Followed);
                self.oracle.join(self.process(pod), self.step);
                let own = self.random.next();
                self.pods[pod].known.follow(head, own);
                self.forget_all(pod);
                let is_younger = followed.is_none() && self.redis.began.1 >= self.pods[pod].started;
                if is_younger && self.design != Design::KeepsBeforeItsLog {
                    self.pods[pod].known.unknown_past();
                }
                self.pods[pod].keeper.backfill = Some(head.seq);
                self.reached(pod, then);
            }
        }
    }

    fn catch_up(&mut self, pod: usize, pages: u32, then: Then) {
        // Who listens only reads no log.
        let at = self.pods[pod].followed().filter(|_| self.design != Design::PubSubOnly);
        let Some(at) = at else { return self.reached(pod, then) };
        self.pods[pod].keeper.task = Task::CatchUp(then, at, pages);
        self.call(pod, From::Keeper, Ask::Forward(at.seq + 1));
    }

    fn read_forward(&mut self, pod: usize, at: Position, head: Option<Position>, records: &[Record]) {
        let Some(head) = head.filter(|head| head.incarnation == at.incarnation) else { return };
        for record in records {
            self.lose_up_to(pod, record.seq - 1);
            let is_news = self.pods[pod].followed().is_some_and(|followed| followed.seq < record.seq);
            self.pods[pod].known.record(Position { seq: record.seq, ..at }, record.order);
            self.forget(pod, record.order);
            if is_news {
                self.oracle.count(Seen::GapsRepaired);
            }
        }
        if records.is_empty() {
            self.lose_up_to(pod, head.seq);
        }
    }

    fn lose_up_to(&mut self, pod: usize, seq: u64) {
        if self.pods[pod].followed().is_some_and(|followed| followed.seq < seq) {
            self.oracle.count(Seen::Trimmed);
            self.forget_all(pod);
        }
        self.pods[pod].known.lost_up_to(seq);
    }

    fn go_on(&mut self, pod: usize, at: Position, head: Option<Position>, pages: u32, then: Then) {
        let Some(head) = head.filter(|head| head.incarnation == at.incarnation) else {
            self.kick(pod);
            return self.failed(pod, then);
        };
        let followed = self.pods[pod].followed();
        if followed.is_none_or(|at| at.seq >= head.seq) {
            // What answered is no longer the master that was asked.
            if self.design != Design::BelievesPages && followed.map(|at| at.seq) < then.head() {
                self.kick(pod);
                return self.failed(pod, then);
            }
            self.reached(pod, then);
        } else if pages + 1 < PAGES {
            self.catch_up(pod, pages + 1, then);
        } else {
            self.failed(pod, then);
        }
    }

    fn reached(&mut self, pod: usize, then: Then) {
        match then {
            Then::Announced => self.idle(pod),
            Then::Asked(proof) => {
                for order in self.pods[pod].known.settle_elsewhere(&proof.elsewhere) {
                    self.log_once_more(pod, order);
                }
                self.empty_the_door(pod, proof);
            }
            Then::Drained(proof) => self.prove_it(pod, &proof),
        }
    }

    fn empty_the_door(&mut self, pod: usize, proof: Proof) {
        if proof.door.is_empty() {
            return self.drained(pod, proof);
        }
        let ask = Ask::Drain(proof.door.clone());
        self.pods[pod].keeper.task = Task::Drain(proof);
        self.call(pod, From::Keeper, ask);
    }

    fn drained(&mut self, pod: usize, proof: Proof) {
        self.reach(pod, proof.head, Some(proof.asked), Then::Drained(proof));
    }

    fn prove_it(&mut self, pod: usize, proof: &Proof) {
        let state = &mut self.pods[pod];
        if state.keeper.is_subscribed {
            let heard = state.keeper.heard.filter(|heard| heard.incarnation == proof.head.incarnation);
            let seq = heard.map_or(0, |heard| heard.seq).max(proof.head.seq);
            state.keeper.heard = Some(Position { seq, ..proof.head });
        }
        if state.keeper.backfill.is_none() {
            state.proven = proof.sent;
            self.note(|| format!("pod {pod} has proven that it knew everything at {}", proof.sent));
        }
        self.proven(pod, proof.why, true);
    }

    fn failed(&mut self, pod: usize, then: Then) {
        match then {
            Then::Announced => self.try_again(pod),
            Then::Asked(proof) | Then::Drained(proof) => self.proven(pod, proof.why, false),
        }
    }

    fn try_again(&mut self, pod: usize) {
        self.pods[pod].keeper.due = self.now + self.random.between(180, 320);
        self.idle(pod);
    }

    fn rest(&mut self, pod: usize, task: Task, pause: Ms) {
        let until = self.now + pause;
        let keeper = &mut self.pods[pod].keeper;
        (keeper.task, keeper.rests_until) = (task, until);
        self.turn_at(pod, until);
    }

    /// A proof was had or not.
    fn proven(&mut self, pod: usize, why: Why, is_proven: bool) {
        if why == Why::Announced {
            return if is_proven { self.idle(pod) } else { self.try_again(pod) };
        }
        let is_subscribed = self.pods[pod].keeper.is_subscribed;
        // What the ping would find.
        let is_dead = self.pods[pod].wire.as_ref().is_none_or(|wire| wire.is_stalled);
        if is_subscribed && is_proven && is_dead {
            return self.rest(pod, Task::Ping, PING);
        }
        if !is_subscribed || !is_proven {
            return self.try_again(pod);
        }
        self.pods[pod].keeper.due = self.now + self.random.between(EVERY * 3 / 4, EVERY);
        self.idle(pod);
    }

    fn read_back(&mut self, pod: usize, from: u64, at: Position, reply: Option<Reply>) {
        let Some(Reply::Page { head, records }) = reply else {
            let pause = self.random.between(180, 320);
            return self.rest(pod, Task::Rest, pause);
        };
        if head.is_none_or(|head| head.incarnation != at.incarnation) {
            self.kick(pod);
            return self.idle(pod);
        }
        let mut below = from;
        for record in &records {
            if record.seq != below {
                break;
            }
            below -= 1;
            self.pods[pod].known.backfill(record.seq, record.order);
            self.oracle.count(Seen::ReadBack);
        }
        let known = &mut self.pods[pod].known;
        known.lower_floor(below);
        if below > 0 && below < from && records.len() == super::redis::PAGE {
            self.pods[pod].keeper.backfill = Some(below);
            return self.idle(pod);
        }
        if below > 0 {
            known.unknown_past();
        }
        (self.pods[pod].keeper.backfill, self.pods[pod].keeper.due) = (None, self.now);
        self.idle(pod);
    }

    fn hear(&mut self, pod: usize, message: Message) {
        match message {
            Message::Record(incarnation, record) => self.announce(pod, incarnation, record),
            Message::Knock(published) => {
                self.knock(pod, published);
                self.idle(pod);
            }
        }
    }

    fn announce(&mut self, pod: usize, incarnation: u64, record: Record) {
        self.note(|| format!("pod {pod} hears {record:?}"));
        let at = Position { incarnation, seq: record.seq };
        let state = &mut self.pods[pod];
        if let Some(heard) = state.keeper.heard.as_mut().filter(|heard| heard.incarnation == incarnation) {
            heard.seq = heard.seq.max(at.seq);
        }
        if state.followed().is_some_and(|followed| followed.incarnation == incarnation && followed.seq >= at.seq) {
            return self.idle(pod);
        }
        let applied = state.known.record(at, record.order);
        self.forget(pod, record.order);
        match applied {
            Applied::InOrder => self.idle(pod),
            Applied::Gap => {
                self.oracle.count(Seen::Gaps);
                self.catch_up(pod, 0, Then::Announced);
            }
            Applied::Foreign => {
                self.oracle.count(Seen::Foreign);
                self.prove(pod, Why::Announced);
            }
        }
    }

    fn knock(&mut self, pod: usize, published: Published) {
        self.note(|| format!("pod {pod} hears {published:?}"));
        let since = self.pods[pod].keeper.heard;
        self.submit_published(pod, published, since);
    }

    /// What a design does that removes what is named.
    pub fn forget(&mut self, pod: usize, order: Order) {
        if !self.design.removes() {
            return;
        }
        let is_careful = self.design == Design::PubSubOnly;
        let state = &mut self.pods[pod];
        for slot in &mut state.memory {
            slot.take_if(|slot| order.names(slot.entry.answer));
        }
        for flight in state.flights.iter_mut().filter(|flight| is_careful && flight.is_overlapped_by(order)) {
            flight.is_doomed = true;
        }
    }

    fn forget_all(&mut self, pod: usize) {
        if self.design.removes() {
            self.pods[pod].memory = Default::default();
        }
    }
}
