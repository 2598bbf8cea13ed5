//! Who waits for limits in this process: a line for each identity, in the order of coming.
//!
//! The first of a line knows when its turn is, and is the only one to ask; those behind it are woken one by one. A limit has
//! so many places; where all are taken, somebody of a shorter line gets that of the last of the longest, so that a flood of
//! one identity leaves room for the others.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::algorithm::{Level, Shape};
use super::bounds::Bound;
use super::identity::LocalName;
use crate::metrics::Source;

/// What somebody is told to wait whose line is gone: it was the last of it.
const LOST: Duration = Duration::from_millis(1);

/// All lines.
#[derive(Default)]
pub(super) struct Lines {
    /// Who waits, whatever for: where nobody does, nobody has to look.
    waiting: AtomicUsize,
    /// The next ticket.
    tickets: AtomicU64,
    /// By the limit's scope.
    limits: Mutex<HashMap<Box<str>, Lobby>>,
}

/// Who waits for one limit.
#[derive(Default)]
struct Lobby {
    taken: usize,
    lines: HashMap<LocalName, Line>,
}

/// Who waits for one identity's state. Never empty.
struct Line {
    /// When the first is to ask.
    due: Instant,
    told: Told,
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    ticket: u64,
    /// Time in which the state gains what it will take.
    gap: Duration,
    /// It is the first now, or has lost its place.
    woken: Arc<Notify>,
}

/// What a state said last, to those who wait for it.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) bound: Arc<Bound>,
    /// By what it was decided: the limit, or the part of it that is this pod's while Redis is away.
    pub(super) shape: Shape,
    pub(super) level: Level,
    pub(super) source: Source,
}

/// What a wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is to ask now. It stays the first meanwhile.
    Yours,
    /// Its turn would come too late, or its place went to somebody else; it would have been in so long.
    Late(Duration),
}

/// A place in a line; given up when it is dropped.
pub(super) struct Place<'l> {
    lines: &'l Lines,
    bound: Arc<Bound>,
    name: LocalName,
    ticket: u64,
    gap: Duration,
    woken: Arc<Notify>,
    since: Instant,
}

impl Line {
    /// When it is the turn of the one at `position`, or of one more that gains its part in `gap`.
    fn due_at(&self, position: usize, gap: Duration) -> Instant {
        let ahead: Duration = self.waiters.iter().take(position).skip(1).map(|waiter| waiter.gap).sum();
        if position == 0 { self.due } else { self.due + ahead + gap }
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.waiters.iter().position(|waiter| waiter.ticket == ticket)
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.woken.notify_one();
        }
    }
}

impl Lobby {
    /// Takes the place of the last of the longest line, for one who is behind `own` others; whether that was fair.
    fn evict(&mut self, own: usize) -> bool {
        // Every other line has one at least: often no look at them is needed to know that none is longer.
        let others = self.lines.len() - usize::from(own > 0);
        if self.taken < own + others + own + 1 {
            return false;
        }
        let Some(longest) = self.lines.values_mut().max_by_key(|line| line.waiters.len()) else { return false };
        // Else whoever leaves would be as short of it.
        if longest.waiters.len() <= own + 1 {
            return false;
        }
        let Some(last) = longest.waiters.pop_back() else { return false };
        self.taken -= 1;
        last.woken.notify_one();
        true
    }
}

impl Lines {
    /// What is known of the state that others of this identity wait for, and in how long it would be there for one more.
    pub(super) fn behind(&self, scope: &str, name: LocalName, cost: f64) -> Option<(Told, Duration)> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let limits = self.lock();
        let line = limits.get(scope)?.lines.get(&name)?;
        let due = line.due_at(line.waiters.len(), gap(&line.told.shape, cost));
        Some((line.told.clone(), due.saturating_duration_since(Instant::now())))
    }

    /// A place among those who wait for `told.bound`, with `wait` to go where nobody else does.
    ///
    /// # Errors
    /// Its turn would come after `deadline`, or there is no place; then it would have been in so long.
    pub(super) fn join(
        &self,
        told: Told,
        name: LocalName,
        cost: f64,
        wait: Duration,
        deadline: Instant,
    ) -> Result<Place<'_>, Duration> {
        let bound = Arc::clone(&told.bound);
        let places = bound.delay().map_or(0, |delay| delay.places);
        let gap = gap(&told.shape, cost);
        let now = Instant::now();
        let mut limits = self.lock();
        let lobby = limits.entry(bound.limit.scope.as_str().into()).or_default();
        let own = lobby.lines.get(&name).map_or(0, |line| line.waiters.len());
        // Nobody is there: it was found to be in time a moment ago.
        let due = lobby.lines.get(&name).map_or((now + wait).min(deadline), |line| line.due_at(own, gap));
        if due > deadline || (lobby.taken >= places && !lobby.evict(own)) {
            if lobby.lines.is_empty() {
                limits.remove(bound.limit.scope.as_str());
            }
            return Err(due.saturating_duration_since(now));
        }
        let (ticket, woken) = (self.tickets.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        lobby.taken += 1;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let line = lobby.lines.entry(name).or_insert_with(|| Line { due, told, waiters: VecDeque::new() });
        line.waiters.push_back(Waiter { ticket, gap, woken: Arc::clone(&woken) });
        drop(limits);
        bound.metrics.waits();
        Ok(Place { lines: self, bound, name, ticket, gap, woken, since: now })
    }

    /// When it would be the turn of one more, of those who wait for the same.
    fn last(&self, bound: &Bound, name: LocalName, gap: Duration) -> Option<Instant> {
        let limits = self.lock();
        let line = limits.get(bound.limit.scope.as_str())?.lines.get(&name)?;
        Some(line.due_at(line.waiters.len(), gap))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Lobby>> {
        self.limits.lock().expect("no panic while held")
    }
}

impl Place<'_> {
    /// Whether it is in this identity's line for this limit.
    pub(super) fn is_of(&self, bound: &Bound, name: LocalName) -> bool {
        self.name == name && self.bound.limit.scope == bound.limit.scope
    }

    /// Waits for its turn, up to `deadline`.
    pub(super) async fn turn(&self, deadline: Instant) -> Turn {
        loop {
            let now = Instant::now();
            let left = |due: Instant| due.saturating_duration_since(now);
            match self.with(|line, position| (position, line.due_at(position, self.gap))) {
                None => return Turn::Late(self.lines.last(&self.bound, self.name, self.gap).map_or(LOST, left)),
                Some((0, due)) if due > deadline => return Turn::Late(left(due)),
                Some((0, due)) => {
                    sleep_until(due).await;
                    return Turn::Yours;
                }
                Some((_, due)) if now >= deadline => return Turn::Late(left(due)),
                Some(_) => {
                    // Woken or not, what is known by then counts.
                    let _ = timeout_at(deadline, self.woken.notified()).await;
                }
            }
        }
    }

    /// It asked, and was told so; it, or whoever comes next, is to ask again at `due`.
    pub(super) fn put_off(&self, told: Told, due: Instant) {
        self.with(|line, _| (line.due, line.told) = (due, told));
    }

    /// It asked, and has what it waited for; the next is to ask in `wait`.
    pub(super) fn served(self, wait: Duration) {
        self.with(|line, _| line.due = Instant::now() + wait);
    }

    /// Its line and where it stands, if it still does.
    fn with<T>(&self, act: impl FnOnce(&mut Line, usize) -> T) -> Option<T> {
        let mut limits = self.lines.lock();
        let line = limits.get_mut(self.bound.limit.scope.as_str())?.lines.get_mut(&self.name)?;
        let position = line.position(self.ticket)?;
        Some(act(line, position))
    }

    fn leave(&self) {
        let mut limits = self.lines.lock();
        let scope = self.bound.limit.scope.as_str();
        let Some(lobby) = limits.get_mut(scope) else { return };
        let Some(line) = lobby.lines.get_mut(&self.name) else { return };
        let Some(position) = line.position(self.ticket) else { return };
        line.waiters.remove(position);
        lobby.taken -= 1;
        if line.waiters.is_empty() {
            lobby.lines.remove(&self.name);
        } else if position == 0 {
            line.wake_first();
        }
        if lobby.lines.is_empty() {
            limits.remove(scope);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
        self.lines.waiting.fetch_sub(1, Ordering::Relaxed);
        self.bound.metrics.waited(self.since.elapsed());
    }
}

/// Time in which a state gains what costs so much; nothing where it comes back all at once.
fn gap(shape: &Shape, cost: f64) -> Duration {
    let micros = match shape {
        Shape::TokenBucket(shape) => cost * shape.price / shape.accrual,
        Shape::SlidingWindow(window) => cost * window.period / window.amount,
        Shape::FixedWindow(_) | Shape::SlidingLog(_) | Shape::Concurrency(_) => 0.0,
    };
    Duration::from_micros(micros as u64)
}
