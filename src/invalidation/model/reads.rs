//! A request's way through memory, the pod's flight, the shared tier, the lease and the upstream, as `cache.rs`,
//! `lead.rs`, `fetch.rs` and `follow.rs` have it.

use super::coverage::Seen;
use super::names::{Answer, Key, Order};
use super::oracle::{Process, When};
use super::pod::Slot;
use super::redis::{Ask, Entry, LEASE, Reply};
use super::world::{Event, From, World};
use super::{BOUND, Design, Ms, Step};
use crate::invalidation::{Position, Verdict};

/// How long a leader waits for another pod's fetch.
const WAIT: Ms = 1500;

/// Pause between questions for a lease.
const POLL: Ms = 40;

/// Times that a request begins anew.
const TRIES: u32 = 4;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    key: Key,
    begun: When,
    tries: u32,
}

/// A pod's fetch in flight.
#[derive(Debug)]
pub struct Flight {
    id: u64,
    key: Key,
    /// When its leader's request began.
    since: Ms,
    /// What was known when it turned to the upstream, if it did.
    begun: Option<Begun>,
    stage: Stage,
    /// The leader's request; none behind an answer.
    leader: Option<Read>,
    /// The others, and the version of the invalidations that they knew.
    followers: Vec<(Read, u64)>,
    /// Whether it may be joined.
    is_listed: bool,
    /// Token and fence.
    lease: Option<(u64, u64)>,
    /// Fence of the entry that is of no use.
    seen: Option<u64>,
    has_waited: bool,
    /// Redis has an entry that this pod could not trust, since it has never proven that it knows the log.
    is_unproven: bool,
    /// What the upstream said, on its way.
    answer: Option<Answer>,
    /// What it brings is not stored: [`Design::PubSubOnly`].
    pub is_doomed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    position: Position,
    version: u64,
    at: Ms,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Looking,
    Leasing,
    Fetching,
}

impl Flight {
    /// Whether it is asking the upstream for something that `order` names.
    pub fn is_overlapped_by(&self, order: Order) -> bool {
        let version = |version| Answer { key: self.key, version, read: 0, began: 0 };
        let may_name = || order.names(version(0)) || order.names(version(1));
        self.stage == Stage::Fetching && self.answer.map_or_else(may_name, |answer| order.names(answer))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Fresh,
    Stale,
    Nothing,
}

impl World {
    pub fn request(&mut self, pod: usize, key: Key) {
        self.oracle.count(Seen::Reads);
        self.count_old_copies(pod, key);
        let read = Read { key, begun: self.when(), tries: 0 };
        if self.random.one_in(3) {
            let (process, at) = (self.process(pod), self.now + self.random.below(3));
            return self.at(at, Event::Again(process, read));
        }
        self.look(pod, read);
    }

    /// Looks into memory, and joins or leads a flight.
    pub fn look(&mut self, pod: usize, read: Read) {
        let slot = self.pods[pod].memory[read.key];
        match slot.map(|slot| (self.judge(pod, slot, read.begun.0), slot)) {
            Some((Look::Nothing, _)) | None => {}
            Some((look, slot)) => {
                self.oracle.count(Seen::HitsInMemory);
                self.serve(pod, read, slot.entry.answer);
                if look == Look::Stale {
                    self.refresh(pod, read, slot);
                }
                return;
            }
        }
        if let Some((flight, version)) = self.joinable(pod, read) {
            self.oracle.count(Seen::Followers);
            return self.pods[pod].flights[flight].followers.push((read, version));
        }
        let id = self.take_off(pod, read.key, read.begun.0);
        self.change(pod, id, |flight| {
            flight.leader = Some(read);
            flight.seen = slot.map(|slot| slot.entry.fence);
        });
        self.call(pod, From::Flight(id), Ask::Get(read.key));
    }

    /// A flight that may be joined, and the version of what is known now.
    fn joinable(&self, pod: usize, read: Read) -> Option<(usize, u64)> {
        let state = &self.pods[pod];
        let at = state.flights.iter().position(|flight| flight.is_listed && flight.key == read.key)?;
        let flight = &state.flights[at];
        let is_joinable = |begun: Begun| {
            (self.design.removes() || state.known.is_joinable(begun.position, read.key))
                && (self.design == Design::JoinsUntrusted || self.is_trusted(pod, begun.at, read.begun.0))
        };
        flight.begun.is_none_or(is_joinable).then_some((at, state.known.version))
    }

    /// A flight in the place of any other for this key.
    fn take_off(&mut self, pod: usize, key: Key, since: Ms) -> u64 {
        let id = self.id();
        let state = &mut self.pods[pod];
        for other in state.flights.iter_mut().filter(|flight| flight.key == key) {
            other.is_listed = false;
        }
        let flight = Flight {
            id,
            key,
            since,
            begun: None,
            stage: Stage::Looking,
            leader: None,
            followers: Vec::new(),
            is_listed: true,
            lease: None,
            seen: None,
            has_waited: false,
            is_unproven: false,
            answer: None,
            is_doomed: false,
        };
        state.flights.push(flight);
        id
    }

    fn judge(&mut self, pod: usize, slot: Slot, begun: Ms) -> Look {
        let state = &self.pods[pod];
        let is_unchecked = self.design == Design::SharedUnchecked && slot.asked == 0;
        let verdict = match self.design.removes() || is_unchecked {
            true => Verdict::Valid,
            false => state.known.verdict(slot.entry.position, slot.entry.answer),
        };
        if verdict == Verdict::Gone {
            self.oracle.count(Seen::RefusedByEpoch);
            return Look::Nothing;
        }
        if !self.is_trusted(pod, slot.asked, begun) {
            self.oracle.count(Seen::RefusedWithoutProof);
            return Look::Nothing;
        }
        if verdict == Verdict::Stale {
            self.oracle.count(Seen::ServedStale);
            return Look::Stale;
        }
        Look::Fresh
    }

    /// As `Invalidation::trusted` has it, for a key whose trust ends last.
    fn is_trusted(&self, pod: usize, asked: Ms, begun: Ms) -> bool {
        let within = |since: Ms| since != 0 && begun.saturating_sub(since) <= BOUND;
        let is_exempt = matches!(self.design, Design::TrustForEver | Design::PubSubOnly);
        is_exempt || within(self.pods[pod].proven) || within(asked)
    }

    fn serve(&mut self, pod: usize, read: Read, answer: Answer) {
        self.serve_joined(pod, read, answer, None);
    }

    fn serve_joined(&mut self, pod: usize, read: Read, answer: Answer, joined: Option<Ms>) {
        let process = self.process(pod);
        self.note(|| format!("pod {pod} serves {answer:?} to the request of {:?}", read.begun));
        self.oracle.serve(process, read.begun, answer, joined);
    }

    /// Behind an answer that is served stale.
    fn refresh(&mut self, pod: usize, read: Read, slot: Slot) {
        if self.joinable(pod, read).is_some() {
            return;
        }
        let id = self.take_off(pod, read.key, read.begun.0);
        let begun = self.begin(pod, read.key);
        self.change(pod, id, |flight| (flight.seen, flight.begun) = (Some(slot.entry.fence), Some(begun)));
        self.ask_for_lease(pod, id);
    }

    fn change(&mut self, pod: usize, id: u64, change: impl FnOnce(&mut Flight)) {
        if let Some(flight) = self.pods[pod].flights.iter_mut().find(|flight| flight.id == id) {
            change(flight);
        }
    }

    fn flight(&self, pod: usize, id: u64) -> Option<&Flight> {
        self.pods[pod].flights.iter().find(|flight| flight.id == id)
    }

    pub fn ask_for_lease(&mut self, pod: usize, id: u64) {
        self.change(pod, id, |flight| flight.stage = Stage::Leasing);
        let Some(flight) = self.flight(pod, id) else { return };
        let is_patient = flight.leader.is_none() || self.now < flight.since + WAIT;
        let Flight { key, seen, .. } = *flight;
        let position = self.pods[pod].known.position(key);
        let place = (position, self.pods[pod].known.least(position, key));
        let ask = Ask::Lease { key, token: id, place, seen };
        if is_patient {
            return self.call(pod, From::Flight(id), ask);
        }
        // It has waited long enough: its request goes for itself.
        let Some(flight) = self.land(pod, id) else { return };
        self.go_alone(pod, flight.leader);
        for (read, _) in flight.followers {
            self.again(pod, read);
        }
    }

    pub fn flight_answered(&mut self, pod: usize, id: u64, reply: Option<&Reply>) {
        let Some(flight) = self.flight(pod, id) else { return };
        let (stage, is_behind, has_waited) = (flight.stage, flight.leader.is_none(), flight.has_waited);
        match reply {
            Some(Reply::Entry(Some(entry))) => self.found(pod, id, *entry),
            _ if stage == Stage::Looking => self.ask_for_lease(pod, id),
            Some(Reply::Lead { fence, granted, .. }) => {
                self.change(pod, id, |flight| flight.lease = Some((id, *fence)));
                self.fetch(pod, id, *granted);
            }
            Some(Reply::Held) if is_behind && has_waited => drop(self.land(pod, id)),
            Some(Reply::Held) => {
                self.change(pod, id, |flight| flight.has_waited = true);
                let (process, pause) = (self.process(pod), if is_behind { LEASE } else { POLL });
                self.at(self.now + pause, Event::Poll(process, id));
            }
            _ => self.fetch(pod, id, self.step),
        }
    }

    /// Redis has an entry.
    fn found(&mut self, pod: usize, id: u64, entry: Entry) {
        let slot = Slot { entry, asked: 0 };
        self.pods[pod].keep(slot);
        let Some(flight) = self.flight(pod, id) else { return };
        let leader = flight.leader;
        let look = leader.map_or(Look::Fresh, |leader| self.judge(pod, slot, leader.begun.0));
        if look == Look::Nothing {
            let known = &self.pods[pod].known;
            let is_valid = known.verdict(entry.position, entry.answer) == Verdict::Valid;
            let is_unproven = is_valid && self.pods[pod].proven == 0;
            self.change(pod, id, |flight| {
                flight.seen = Some(entry.fence);
                flight.is_unproven |= is_unproven;
            });
            return self.ask_for_lease(pod, id);
        }
        let Some(flight) = self.land(pod, id) else { return };
        if let Some(leader) = leader {
            self.oracle.count(Seen::HitsInRedis);
            self.serve(pod, leader, entry.answer);
        }
        self.hand_out(pod, flight.followers, slot, None);
        if let Some(leader) = leader.filter(|_| look == Look::Stale) {
            self.refresh(pod, leader, slot);
        }
    }

    fn land(&mut self, pod: usize, id: u64) -> Option<Flight> {
        let flights = &mut self.pods[pod].flights;
        let at = flights.iter().position(|flight| flight.id == id)?;
        Some(flights.remove(at))
    }

    fn begin(&self, pod: usize, key: Key) -> Begun {
        let known = &self.pods[pod].known;
        Begun { position: known.position(key), version: known.version, at: self.now }
    }

    /// Asks the upstream; `began` is when the lease was granted.
    fn fetch(&mut self, pod: usize, id: u64, began: Step) {
        let Some(key) = self.flight(pod, id).map(|flight| flight.key) else { return };
        let begun = self.begin(pod, key);
        self.change(pod, id, |flight| (flight.stage, flight.begun) = (Stage::Fetching, Some(begun)));
        if self.pods[pod].known.is_own(begun.position) {
            self.oracle.count(Seen::OwnPositions);
        }
        let (process, at) = (self.process(pod), self.now + self.upstream_takes(10));
        self.note(|| format!("pod {pod} asks the upstream for key {key}: flight {id}"));
        self.at(at, Event::Upstream(process, id, key, began));
    }

    fn upstream_takes(&mut self, usual: Ms) -> Ms {
        let slow = self.slow_upstream && self.random.one_in(12);
        if slow { self.random.between(50, 900) } else { self.random.between(1, usual) }
    }

    pub fn ask_upstream(&mut self, process: Process, id: u64, key: Key, began: Step) {
        let (pod, life) = process;
        let is_unproven = self.flight(pod, id).is_some_and(|flight| flight.is_unproven);
        self.oracle.fetch(key, self.now, is_unproven);
        let answer = Answer { key, version: self.versions[key], read: self.step, began };
        if self.pods[pod].life == life {
            self.change(pod, id, |flight| flight.answer = Some(answer));
        }
        let at = self.now + self.upstream_takes(20);
        self.at(at, Event::Arrived(process, id, answer));
    }

    pub fn arrive(&mut self, pod: usize, id: u64, answer: Answer) {
        let Some(flight) = self.land(pod, id) else { return };
        let begun = flight.begun.expect("it has asked the upstream");
        let position = match self.design {
            Design::PositionAtEnd => self.pods[pod].known.position(answer.key),
            _ => begun.position,
        };
        let fence = flight.lease.map_or(0, |(_, fence)| fence);
        let entry = Entry { answer, position, fence, received: self.now };
        let slot = Slot { entry, asked: begun.at };
        self.note(|| format!("flight {id} of pod {pod} brings {entry:?}"));
        let is_newest = !flight.is_doomed && self.pods[pod].keep(slot);
        if let Some(leader) = flight.leader {
            self.serve(pod, leader, answer);
        }
        self.hand_out(pod, flight.followers, slot, Some(begun));
        let entry = is_newest.then_some(entry);
        if entry.is_some() || flight.lease.is_some() {
            let from = From::Store(entry.map(|_| answer));
            self.call(pod, from, Ask::Store { key: answer.key, lease: flight.lease, entry });
        }
    }

    /// Serves those who waited what was fetched, if it has `begun`, or was found; or lets them begin anew.
    fn hand_out(&mut self, pod: usize, followers: Vec<(Read, u64)>, slot: Slot, begun: Option<Begun>) {
        for (read, version) in followers {
            let known = &self.pods[pod].known;
            let suits = begun.is_none_or(|begun| version <= begun.version)
                || self.design.removes()
                || known.verdict(slot.entry.position, slot.entry.answer) != Verdict::Gone;
            let is_usable = begun.is_some() || self.judge(pod, slot, read.begun.0) != Look::Nothing;
            if suits && is_usable {
                let joined = begun.map(|begun| begun.at);
                self.serve_joined(pod, read, slot.entry.answer, joined);
            } else {
                self.again(pod, read);
            }
        }
    }

    fn again(&mut self, pod: usize, read: Read) {
        let read = Read { tries: read.tries + 1, ..read };
        if read.tries >= TRIES {
            return self.go_alone(pod, Some(read));
        }
        let (process, at) = (self.process(pod), self.now + self.random.below(2));
        self.at(at, Event::Again(process, read));
    }

    /// What it gets is younger than the request.
    fn go_alone(&mut self, pod: usize, read: Option<Read>) {
        if let Some(read) = read {
            self.oracle.fetch(read.key, self.now, false);
            let answer = Answer { key: read.key, version: self.versions[read.key], read: self.step, began: self.step };
            self.serve(pod, read, answer);
        }
    }

    pub fn store_answered(&mut self, pod: usize, answer: Option<Answer>, reply: Option<&Reply>) {
        match reply {
            Some(Reply::Superseded) => self.oracle.count(Seen::Superseded),
            Some(Reply::Done) if self.design == Design::TagIndex => {
                if let Some(answer) = answer {
                    self.call(pod, From::Store(None), Ask::Index(answer));
                }
            }
            _ => {}
        }
    }
}
