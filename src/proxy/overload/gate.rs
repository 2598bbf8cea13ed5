//! The gate before the upstream: how many requests are in flight, who waits for a place, and who is shed.
//!
//! A request is in flight from here to its response's head: for that time it is work that the upstream has not done, and
//! that time is what the adaptive limit measures. To the end of its body it is an exchange, of which there may be as many
//! as connections. While nobody waits, a request costs a few atomic operations; nothing else takes the lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Micros;
use super::gradient::{FLOOR, Gradient};
use super::pace::Pace;
use super::upload::{Turn, Upload};
use crate::clock::Stopwatch;
use crate::message::Body;
use crate::metrics::Shed;

/// Requests that may wait for each that may be in flight.
const WAITING_PER_PLACE: usize = 16;

/// Requests that may always wait.
const LEAST_WAITING: usize = 1024;

/// Share of `queue_timeout` above which an expected wait is refused: an estimate may be wrong, and who was let in and waits
/// in vain is refused late. It is for a line that has not stood for `queue_timeout` yet: a burst, which will be gone.
const BURST_SHARE: (u64, u64) = (3, 4);

/// The same for a line that has stood for longer, and so is an overload: a shorter one serves as many, and is gone sooner
/// when the overload ends. The distinction is that of `CoDel` (RFC 8289 section 3.2).
const STANDING_SHARE: (u64, u64) = (1, 2);

/// Part of the limit that is left to requests with a client, one in so many.
const SPARE_PART: usize = 8;

/// How much longer a request on another worker may have waited than one on the worker that has a connection free: a socket
/// cannot change its runtime, and a new connection costs more than a short wait.
const PREFERENCE_US: Micros = 20_000;

/// First pause after which one in line looks whether anything moves; each next one is twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(110);

/// One request in flight, in the upper half of the counts; the lower half is for exchanges.
const IN_FLIGHT: u64 = 1 << 32;

/// One exchange.
const EXCHANGE: u64 = 1;

/// There is no queue inside the upstream.
const NO_QUEUE: u64 = u64::MAX;

/// What the gate goes by.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most requests in flight, whatever the adaptive limit says.
    pub in_flight: usize,
    /// Whether the limit adapts.
    pub adaptive: bool,
    /// Most exchanges; none where one connection carries many.
    pub exchanges: Option<usize>,
    /// Longest wait for a place.
    pub queue_timeout: Duration,
}

/// What all workers share.
#[derive(Debug)]
pub struct Gate {
    bounds: Bounds,
    counts: AtomicU64,
    limit: AtomicUsize,
    gradient: Option<Mutex<Gradient>>,
    /// What [`Gradient::without_queue_us`] says, or [`NO_QUEUE`].
    without_queue_us: AtomicU64,
    /// Those in `queue`, for who has no need of the lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    began: Stopwatch,
}

#[derive(Debug, Default)]
struct Queue {
    /// One line a worker, each in order of arrival.
    lines: Vec<VecDeque<Waiter>>,
    waiting: usize,
    next: u64,
    /// When the line formed.
    since: Micros,
    pace: Pace,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    since: Micros,
    place: oneshot::Sender<Place>,
    door: Arc<Door>,
}

/// One worker's way to the gate.
#[derive(Debug)]
pub struct Door {
    gate: Arc<Gate>,
    worker: usize,
}

/// A place in flight; given back when it is dropped, whatever ends it.
#[derive(Debug)]
#[must_use = "dropped, it lets the next one in"]
pub struct Place {
    door: Option<Arc<Door>>,
    /// How many were in flight when it was taken, itself included.
    among: usize,
    /// The request's body, where it was still coming when the place was taken.
    upload: Option<Arc<Upload>>,
}

/// An exchange whose head has come; given back when it is dropped.
#[derive(Debug)]
pub struct Exchange {
    door: Arc<Door>,
}

impl Gate {
    /// An open one for so many workers.
    pub fn new(bounds: Bounds, workers: usize) -> Arc<Self> {
        let gradient = bounds.adaptive.then(|| Gradient::new(bounds.in_flight));
        Arc::new(Self {
            bounds,
            counts: AtomicU64::new(0),
            limit: AtomicUsize::new(gradient.as_ref().map_or(bounds.in_flight, Gradient::limit)),
            gradient: gradient.map(Mutex::new),
            without_queue_us: AtomicU64::new(NO_QUEUE),
            waiting: AtomicUsize::new(0),
            queue: Mutex::new(Queue { lines: (0..workers).map(|_| VecDeque::new()).collect(), ..Queue::default() }),
            began: Stopwatch::start(),
        })
    }

    /// Time since the gate was made.
    pub fn now(&self) -> Micros {
        self.began.elapsed().as_micros() as Micros
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        in_flight(self.counts.load(Ordering::Relaxed))
    }

    /// How many may be, at this moment.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Whether there is room that no client's request is about to need.
    pub fn has_spare(&self) -> bool {
        let limit = self.limit();
        self.waiting() == 0 && self.in_flight() < limit - limit / SPARE_PART
    }

    /// Takes a place if fewer than `limit` are taken; how many are now.
    fn take(&self, limit: usize) -> Option<usize> {
        let exchanges = self.bounds.exchanges.unwrap_or(u32::MAX as usize);
        let mut counts = self.counts.load(Ordering::SeqCst);
        loop {
            if in_flight(counts) >= limit || (counts % IN_FLIGHT) as usize >= exchanges {
                return None;
            }
            let more = counts + IN_FLIGHT + EXCHANGE;
            match self.counts.compare_exchange_weak(counts, more, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(in_flight(more)),
                Err(now) => counts = now,
            }
        }
    }

    /// Gives back, and lets in who may come instead. `is_departure` is for a request that leaves the upstream.
    fn give_back(&self, what: u64, worker: usize, is_departure: bool) {
        self.counts.fetch_sub(what, Ordering::SeqCst);
        // Who joins the line counts itself before it looks for room once more: one of the two sees the other.
        if self.waiting() > 0 {
            let mut queue = self.queue();
            if is_departure {
                queue.pace.departed(self.now());
            }
            self.let_in(&mut queue, worker);
        }
    }

    /// Lets in as many as there is room for; `worker` has a connection free.
    fn let_in(&self, queue: &mut Queue, worker: usize) {
        while queue.waiting > 0
            && let Some(among) = self.take(self.limit())
        {
            let Some(waiter) = queue.next(worker) else { return self.untake() };
            self.waiting.store(queue.waiting, Ordering::SeqCst);
            if let Err(mut place) = waiter.place.send(Place { door: Some(waiter.door), among, upload: None }) {
                // It is leaving, and takes itself out of the line before it stops listening; but should it ever not have:
                place.door = None;
                self.untake();
            }
        }
    }

    /// Raises a limit that nothing is learnt about, because nobody leaves.
    fn look(&self, worker: usize) {
        let Some(gradient) = &self.gradient else { return };
        let mut queue = self.queue();
        let raised = gradient.lock().unwrap_or_else(PoisonError::into_inner).stuck(queue.pace.moved_at(), self.now());
        if let Some(limit) = raised {
            self.limit.store(limit, Ordering::Relaxed);
            self.let_in(&mut queue, worker);
        }
    }

    /// Counts a request whose body became whole, whatever the limit says; when that was, and how many there are now.
    pub(super) fn begins(&self) -> (Micros, usize) {
        let before = self.counts.fetch_add(IN_FLIGHT, Ordering::SeqCst);
        (self.now(), in_flight(before) + 1)
    }

    fn untake(&self) {
        self.counts.fetch_sub(IN_FLIGHT + EXCHANGE, Ordering::SeqCst);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request that comes now would wait for too long, as far as that can be known.
    fn refuses(&self, queue: &Queue, now: Micros) -> Option<Shed> {
        let most = self.bounds.in_flight.saturating_mul(WAITING_PER_PLACE).max(LEAST_WAITING);
        if queue.waiting >= most || self.bounds.queue_timeout.is_zero() {
            return Some(Shed::QueueFull);
        }
        if queue.waiting == 0 {
            return None;
        }
        let timeout_us = self.bounds.queue_timeout.as_micros() as Micros;
        // Nobody was let in for as long as anybody may wait.
        if queue.pace.stood_for(now) > timeout_us {
            return Some(Shed::ExpectedWait);
        }
        let expected_us = self.expected_us(queue)?;
        let is_standing = now.saturating_sub(queue.since) > timeout_us;
        let share = if is_standing { STANDING_SHARE } else { BURST_SHARE };
        (expected_us > timeout_us * share.0 / share.1).then_some(Shed::ExpectedWait)
    }

    /// How long a request that comes now will be held up, where that is known. A queue inside the upstream counts: what
    /// stands in it will not, once the limit is cut, make room for who waits here.
    fn expected_us(&self, queue: &Queue) -> Option<Micros> {
        let (in_flight, limit) = (self.in_flight(), self.limit());
        match self.without_queue_us.load(Ordering::Relaxed) {
            NO_QUEUE => queue.pace.takes(queue.waiting + in_flight.saturating_sub(limit)),
            without_us => queue.pace.takes(queue.waiting + in_flight).map(|all_us| all_us.saturating_sub(without_us)),
        }
    }

    /// How long a request that comes now might wait, for who is to come again later.
    pub fn expected_wait(&self) -> Duration {
        self.expected_us(&self.queue()).map_or(self.bounds.queue_timeout, Duration::from_micros)
    }
}

impl Queue {
    /// Takes out the one who is next.
    fn next(&mut self, worker: usize) -> Option<Waiter> {
        let since = |line: &VecDeque<Waiter>| line.front().map(|waiter| waiter.since);
        let own = self.lines.get(worker).and_then(since);
        let oldest = (0..self.lines.len()).filter_map(|i| Some((since(&self.lines[i])?, i))).min()?;
        let is_own = own.is_some_and(|since| since <= oldest.0.saturating_add(PREFERENCE_US));
        let waiter = self.lines[if is_own { worker } else { oldest.1 }].pop_front();
        self.waiting -= usize::from(waiter.is_some());
        waiter
    }
}

impl Door {
    /// The door of worker `worker`.
    pub fn new(gate: Arc<Gate>, worker: usize) -> Arc<Self> {
        Arc::new(Self { gate, worker })
    }

    /// The gate behind it.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Why who comes now would not be let in.
    pub fn refuses(&self) -> Option<Shed> {
        let gate = &*self.gate;
        if gate.waiting() == 0 { None } else { gate.refuses(&gate.queue(), gate.now()) }
    }

    /// A place in flight, at once or after a wait in line. What nobody waits for may not wait either, and takes spare room
    /// only.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn enter(self: &Arc<Self>, may_wait: bool) -> Result<Place, Shed> {
        let gate = &*self.gate;
        if !may_wait {
            let limit = gate.limit();
            let among = if gate.waiting() == 0 { gate.take(limit - limit / SPARE_PART) } else { None };
            return among.map(|among| self.place(among)).ok_or(Shed::NoSpare);
        }
        if gate.waiting() == 0
            && let Some(among) = gate.take(gate.limit())
        {
            return Ok(self.place(among));
        }
        let mut ticket = self.join()?;
        let (mut left, mut pause) = (gate.bounds.queue_timeout, FIRST_LOOK);
        while !left.is_zero() {
            let slice = pause.min(left);
            if let Ok(place) = timeout(slice, &mut ticket.place).await {
                return place.map_err(|_| Shed::QueueTimeout);
            }
            gate.look(self.worker);
            (left, pause) = (left - slice, pause * 2);
        }
        Err(Shed::QueueTimeout)
    }

    fn place(self: &Arc<Self>, among: usize) -> Place {
        Place { door: Some(Arc::clone(self)), among, upload: None }
    }

    fn join(self: &Arc<Self>) -> Result<Ticket, Shed> {
        let gate = &*self.gate;
        let now = gate.now();
        let mut queue = gate.queue();
        if let Some(shed) = gate.refuses(&queue, now) {
            return Err(shed);
        }
        if queue.waiting == 0 {
            queue.since = now;
            queue.pace.begins(now);
        }
        let number = queue.next;
        queue.next += 1;
        let (send, place) = oneshot::channel();
        let waiter = Waiter { number, since: now, place: send, door: Arc::clone(self) };
        queue.lines[self.worker].push_back(waiter);
        queue.waiting += 1;
        gate.waiting.store(queue.waiting, Ordering::SeqCst);
        gate.let_in(&mut queue, self.worker);
        Ok(Ticket { number, door: Arc::clone(self), place })
    }
}

/// A place in line; left when it is dropped.
struct Ticket {
    number: u64,
    door: Arc<Door>,
    /// Dropped after the line is left; a place that came meanwhile goes to the next.
    place: oneshot::Receiver<Place>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let gate = &*self.door.gate;
        let mut queue = gate.queue();
        let line = &mut queue.lines[self.door.worker];
        if let Ok(at) = line.binary_search_by_key(&self.number, |waiter| waiter.number) {
            line.remove(at);
            queue.waiting -= 1;
            gate.waiting.store(queue.waiting, Ordering::SeqCst);
        }
    }
}

impl Place {
    /// Lets others be in flight until `body`, which is still coming, is whole: until then it keeps the upstream from
    /// nothing.
    pub fn lend(&mut self, turn: Turn, body: &mut Body) {
        if let Some(door) = &self.door {
            self.upload = Some(Upload::begin(turn, Arc::clone(door), body));
            door.gate.give_back(IN_FLIGHT, door.worker, false);
        }
    }

    /// The body that it was lent for.
    pub fn upload(&self) -> Option<&Upload> {
        self.upload.as_deref()
    }

    /// The response's head came, to a request that was sent at `sent`.
    pub fn answered(mut self, sent: Micros, now: Micros) -> Option<Exchange> {
        let door = self.door.take()?;
        let gate = &*door.gate;
        // What took the client's time says nothing of the upstream's.
        let (sent, among) = match self.upload.take() {
            Some(upload) => match upload.answered(gate.bounds.exchanges.is_some()) {
                Some(whole) => whole,
                None => return Some(Exchange { door }),
            },
            None => (sent, self.among),
        };
        // A sample that another worker's keeps out is not missed.
        if let Some(mut gradient) = gate.gradient.as_ref().and_then(|gradient| gradient.try_lock().ok()) {
            if let Some(limit) = gradient.answered(sent, now, gate.in_flight(), among <= FLOOR) {
                gate.limit.store(limit, Ordering::Relaxed);
            }
            let without_us = gradient.without_queue_us().unwrap_or(NO_QUEUE);
            if gate.without_queue_us.load(Ordering::Relaxed) != without_us {
                gate.without_queue_us.store(without_us, Ordering::Relaxed);
            }
        }
        gate.give_back(IN_FLIGHT, door.worker, true);
        Some(Exchange { door })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(door) = self.door.take() {
            let is_lent = self.upload.take().is_some_and(|upload| upload.answered(false).is_none());
            let what = if is_lent { EXCHANGE } else { IN_FLIGHT + EXCHANGE };
            door.gate.give_back(what, door.worker, !is_lent);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.door.gate.give_back(EXCHANGE, self.door.worker, false);
    }
}

fn in_flight(counts: u64) -> usize {
    (counts / IN_FLIGHT) as usize
}

#[cfg(test)]
mod tests;
