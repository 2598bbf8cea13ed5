//! The scheduler: what happens next, when, and whom it reaches.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::coverage::Seen;
use super::faults::Fault;
use super::names::{Answer, KEYS, Key, Order};
use super::oracle::{Broken, Oracle, Process, When};
use super::pod::{Message, Pod, Published, Wire};
use super::random::Random;
use super::reads::Read;
use super::redis::{Ask, Entry, Moment, Redis, Reply};
use super::{Design, Ms, Step};

/// Requests, writes and faults come until then.
pub const BUSY: Ms = 4500;

/// Then the fleet has time to recover.
pub const END: Ms = BUSY + 2500;

/// When the first request comes: every pod is ready.
const WARM: Ms = 150;

/// Longest that one command waits, as for the log so for the cache.
const WAIT: Ms = 500;

/// A command on its way.
#[derive(Debug)]
pub struct Call {
    pub process: Process,
    pub from: From,
    pub ask: Ask,
    /// When its answer is no longer waited for.
    by: Ms,
}

/// Who in a pod asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Keeper,
    Clerk,
    Flight(u64),
    /// A store behind an answer.
    Store(Option<Answer>),
}

/// How an order comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// By a request to this pod.
    Pod(usize),
    Publish,
    Stream,
}

#[derive(Debug)]
pub enum Event {
    /// The keeper's loop goes round.
    Turn(Process),
    /// A clerk's does.
    Clerk(Process),
    /// A door no longer waits for the clerk.
    Impatient(Process, u64),
    /// A command reaches Redis.
    Asked(Box<Call>),
    /// Its answer reaches the pod, or its wait is over.
    Answered(Box<(Process, From, Option<Reply>)>),
    /// A request for a key comes to a pod.
    Request(usize, Key),
    /// One that was put off goes on.
    Again(Process, Read),
    /// A flight polls.
    Poll(Process, u64),
    /// A fetch reaches the upstream.
    Upstream(Process, u64, Key, Step),
    /// Its answer reaches the pod.
    Arrived(Process, u64, Answer),
    /// The upstream's content changes.
    Write(Key),
    Submit(Door, Order),
    Fault(Fault),
}

struct Due {
    at: Ms,
    /// Chance decides between what is due in one millisecond.
    tie: (u32, Step),
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// A history while it happens.
pub struct World {
    pub design: Design,
    pub now: Ms,
    pub step: Step,
    pub random: Random,
    queue: BinaryHeap<Due>,
    pushed: Step,
    pub redis: Redis,
    /// What the upstream has.
    pub versions: [u64; KEYS],
    pub pods: Vec<Pod>,
    pub oracle: Oracle,
    /// Whether fetches may outlive their lease.
    pub slow_upstream: bool,
    last_id: u64,
    trace: Option<Vec<String>>,
}

impl World {
    /// Plays the history of a seed to its end, or to the first violation.
    pub fn play(seed: u64, design: Design, is_traced: bool) -> (Oracle, Vec<String>) {
        let mut random = Random::new(seed);
        let (expected, faults) = super::faults::plan(&mut random);
        let pods = (0..random.between(2, 4)).map(|_| Pod::new(random.next())).collect();
        let redis = Redis::new(random.next());
        let mut world = Self {
            design,
            now: 0,
            step: 0,
            random,
            queue: BinaryHeap::new(),
            pushed: 0,
            redis,
            versions: [1; KEYS],
            pods,
            oracle: Oracle::new(expected),
            slow_upstream: !expected.is_calm,
            last_id: 0,
            trace: is_traced.then(Vec::new),
        };
        world.plan(faults);
        while let Some(due) = world.queue.pop().filter(|due| due.at <= END) {
            (world.now, world.step) = (due.at, world.step + 1);
            world.happen(due.event);
            if world.oracle.violation.is_some() {
                break;
            }
        }
        world.end();
        (world.oracle, world.trace.unwrap_or_default())
    }

    fn plan(&mut self, faults: Vec<(Ms, Fault)>) {
        for (at, fault) in faults {
            self.at(at, Event::Fault(fault));
        }
        for pod in 0..self.pods.len() {
            self.turn_at(pod, 0);
        }
        for _ in 0..self.random.between(20, 40) {
            let (at, key) = (self.random.between(WARM, BUSY), self.random.below(KEYS as u64) as Key);
            self.request_at(at, key);
        }
        for _ in 0..self.random.between(3, 8) {
            let (at, key) = (self.random.between(WARM, BUSY), self.random.below(KEYS as u64) as Key);
            self.at(at, Event::Write(key));
        }
    }

    fn request_at(&mut self, at: Ms, key: Key) {
        let pod = self.random.below(self.pods.len() as u64) as usize;
        self.at(at, Event::Request(pod, key));
    }

    /// Schedules an event.
    pub fn at(&mut self, at: Ms, event: Event) {
        self.pushed += 1;
        let tie = (self.random.next() as u32, self.pushed);
        self.queue.push(Due { at, tie, event });
    }

    /// Says what happens, if somebody reads along.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:5} #{:<5} {}", self.now, self.step, what()));
        }
    }

    pub fn when(&self) -> When {
        (self.now, self.step)
    }

    pub fn process(&self, pod: usize) -> Process {
        (pod, self.pods[pod].life)
    }

    pub fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn happen(&mut self, event: Event) {
        if let Some((pod, life)) = process_of(&event) {
            let pod = &self.pods[pod];
            if !pod.is_alive || life.is_some_and(|life| life != pod.life) {
                return;
            }
            if pod.paused_until > self.now {
                let at = pod.paused_until;
                return self.at(at, event);
            }
        }
        match event {
            Event::Turn((pod, _)) => self.turn(pod),
            Event::Clerk((pod, _)) => self.clerk_turn(pod),
            Event::Impatient((pod, _), id) => self.lose_patience(pod, id),
            Event::Asked(call) => self.asked(*call),
            Event::Answered(answered) => {
                let (process, from, reply) = *answered;
                self.answered(process, from, reply);
            }
            Event::Request(pod, key) => self.request(pod, key),
            Event::Again((pod, _), read) => self.look(pod, read),
            Event::Poll((pod, _), id) => self.ask_for_lease(pod, id),
            Event::Upstream(process, id, key, began) => self.ask_upstream(process, id, key, began),
            Event::Arrived((pod, _), id, answer) => self.arrive(pod, id, answer),
            Event::Write(key) => self.write(key),
            Event::Submit(door, order) => self.submit_at(door, order),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    /// Sends a command.
    pub fn call(&mut self, pod: usize, from: From, ask: Ask) {
        let (at, process) = (self.now + self.random.below(3), self.process(pod));
        self.at(at, Event::Asked(Box::new(Call { process, from, ask, by: self.now + WAIT })));
    }

    fn reaches_redis(&self, pod: usize) -> bool {
        self.redis.up_at <= self.now && self.pods[pod].cut_until <= self.now
    }

    fn asked(&mut self, call: Call) {
        let Call { process, from, ask, by } = call;
        let (pod, _) = process;
        if !self.reaches_redis(pod) {
            return self.in_vain(Call { process, from, ask, by });
        }
        let reply = self.run(process, &ask);
        if by == 0 {
            return self.oracle.count(Seen::LateCommands);
        }
        let (slow_until, slower) = self.pods[pod].slow;
        let slower = if slow_until > self.now { self.random.below(slower) } else { 0 };
        let at = self.now + self.random.below(3) + slower;
        let (at, reply) = if at > by { (by, None) } else { (at, Some(reply)) };
        self.at(at, Event::Answered(Box::new((process, from, reply))));
    }

    /// A command that does not get through: refused at once, or swallowed, and then perhaps delivered when nobody waits
    /// for it any more.
    fn in_vain(&mut self, call: Call) {
        let Call { process, from, ask, by } = call;
        if by == 0 {
            return;
        }
        let is_refused = self.random.one_in(2);
        let at = if is_refused { self.now + 1 } else { by };
        self.at(at, Event::Answered(Box::new((process, from, None))));
        let writes = matches!(ask, Ask::Append { .. } | Ask::Drain(_) | Ask::Lease { .. } | Ask::Store { .. });
        if writes && !is_refused && self.random.one_in(2) {
            let at = by + self.random.below(1500);
            self.at(at, Event::Asked(Box::new(Call { process, from, ask, by: 0 })));
        }
    }

    /// Redis does what it is asked, and announces what it logged.
    fn run(&mut self, process: Process, ask: &Ask) -> Reply {
        let mut moment = Moment { now: self.now, step: self.step, design: self.design, random: &mut self.random };
        let reply = self.redis.run(ask, &mut moment);
        self.note(|| format!("redis: {process:?} asks {ask:?}: {reply:?}"));
        if matches!(ask, Ask::Subscribe) && self.process(process.0) == process {
            self.pods[process.0].wire = Some(Wire::default());
        }
        match &reply {
            Reply::Entry(Some(entry)) => self.oracle.hand(entry.answer),
            Reply::Drained { taken, .. } => {
                for order in taken {
                    self.oracle.count(Seen::Drained);
                    self.oracle.acknowledge(*order, (self.step, self.step), (self.now, self.step), None);
                }
            }
            Reply::Lead { takes_over: true, .. } => self.oracle.count(Seen::TakenOver),
            _ => {}
        }
        if let Ask::Lease { key, .. } = ask
            && std::mem::take(&mut self.redis.fence_fell)
        {
            self.oracle.forgive(*key);
        }
        for (incarnation, record) in std::mem::take(&mut self.redis.announced) {
            self.oracle.log(self.now);
            let overlaps = |pod: &Pod| pod.flights.iter().any(|flight| flight.is_overlapped_by(record.order));
            if self.pods.iter().any(overlaps) {
                self.oracle.count(Seen::OverlapsFill);
            }
            self.publish(Message::Record(incarnation, record));
        }
        reply
    }

    /// Sends a message to whoever is subscribed.
    pub fn publish(&mut self, message: Message) {
        for pod in 0..self.pods.len() {
            let is_reached = self.reaches_redis(pod);
            let (slow_until, slower) = self.pods[pod].slow_bus;
            let slower = if slow_until > self.now { self.random.below(slower) } else { 0 };
            let at = self.now + self.random.below(4) + slower;
            let Some(wire) = self.pods[pod].wire.as_mut().filter(|wire| !wire.is_closed && !wire.is_stalled) else {
                continue;
            };
            if !is_reached {
                wire.is_stalled = true;
                continue;
            }
            let at = wire.queue.back().map_or(at, |(last, _)| at.max(*last));
            wire.queue.push_back((at, message));
            self.turn_at(pod, at);
        }
    }

    fn answered(&mut self, process: Process, from: From, reply: Option<Reply>) {
        let (pod, _) = process;
        // What was on its way when the connection was cut is lost.
        let reply = reply.filter(|_| self.reaches_redis(pod));
        match from {
            From::Keeper => self.keeper_answered(pod, reply),
            From::Clerk => self.clerk_answered(pod, reply.as_ref()),
            From::Flight(id) => self.flight_answered(pod, id, reply.as_ref()),
            From::Store(answer) => self.store_answered(pod, answer, reply.as_ref()),
        }
    }

    /// The upstream's content changes, and most writers say so.
    fn write(&mut self, key: Key) {
        let before = Answer { key, version: self.versions[key], read: 0, began: 0 };
        self.versions[key] += 1;
        self.note(|| format!("write: key {key} is at version {}", before.version + 1));
        if self.random.one_in(6) {
            return;
        }
        let is_soft = self.random.one_in(6);
        let order = Order::naming(before, is_soft, &mut self.random);
        let pod = self.random.below(self.pods.len() as u64) as usize;
        let door = match self.random.below(8) {
            0 => Door::Publish,
            1 => Door::Stream,
            _ => Door::Pod(pod),
        };
        let at = self.now + self.random.below(20);
        self.at(at, Event::Submit(door, order));
        // Sometimes the same once more: a program that is not sure, or another write.
        if self.random.one_in(4) {
            let at = at + self.random.below(300);
            self.at(at, Event::Submit(door, order));
        }
        for _ in 0..self.random.between(4, 8) {
            let at = at + self.random.below(5 * super::BOUND / 2);
            self.request_at(at, key);
        }
    }

    fn submit_at(&mut self, door: Door, order: Order) {
        self.note(|| format!("order: {order:?} at {door:?}"));
        match door {
            Door::Pod(pod) => {
                let pod_state = &self.pods[pod];
                if pod_state.paused_until > self.now {
                    return self.at(pod_state.paused_until, Event::Submit(door, order));
                }
                if pod_state.is_alive {
                    self.submit(pod, order);
                }
            }
            Door::Publish if self.redis.up_at <= self.now => {
                self.publish(Message::Knock(Published { order, at: self.step }));
            }
            Door::Stream if self.redis.up_at <= self.now => self.redis.knock(order),
            Door::Publish | Door::Stream => {}
        }
    }

    /// Counts a request for which an overtaken copy is at hand.
    pub fn count_old_copies(&mut self, pod: usize, key: Key) {
        let copies: [Option<Entry>; 2] = [self.pods[pod].memory[key].map(|slot| slot.entry), self.redis.peek(key)];
        let ages = copies.into_iter().flatten();
        let past = ages.filter_map(|copy| self.oracle.overtaken_lately(self.now, copy.answer)).max();
        if let Some(past) = past {
            self.oracle.count(Seen::OldCopyAfterAck);
            if past {
                self.oracle.count(Seen::OldCopyPastBound);
            }
        }
    }

    /// Refusing everything would violate nothing: in the end every pod is level again, and can prove it.
    fn end(&mut self) {
        if self.oracle.violation.is_some() || self.design != Design::Weir {
            return;
        }
        let head = self.redis.head();
        for (number, pod) in self.pods.iter().enumerate().filter(|(_, pod)| pod.is_alive) {
            let is_proven = pod.proven + super::BOUND > END;
            let at = pod.known.position(0);
            // What was given up keeps a pod's fills its own until the next record.
            let is_shared = pod.clerk.gave_up || Some(at.incarnation) == head.map(|head| head.incarnation);
            if !is_proven || !is_shared {
                let text = format!("pod {number}: proven at {}, {at:?} of {head:?}", pod.proven);
                self.oracle.violation = Some((Broken::Recovery, text));
            }
        }
    }
}

/// Whom an event reaches, and in which life only.
fn process_of(event: &Event) -> Option<(usize, Option<u32>)> {
    let (pod, life) = match event {
        Event::Turn(process)
        | Event::Clerk(process)
        | Event::Impatient(process, _)
        | Event::Again(process, _)
        | Event::Poll(process, _)
        | Event::Arrived(process, ..) => *process,
        Event::Answered(answered) => answered.0,
        Event::Request(pod, _) => return Some((*pod, None)),
        // On the wire nothing stops with the pod.
        Event::Asked(_) | Event::Upstream(..) | Event::Write(_) | Event::Submit(..) | Event::Fault(_) => return None,
    };
    Some((pod, Some(life)))
}
