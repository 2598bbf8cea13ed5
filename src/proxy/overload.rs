//! What stands between requests and an upstream that cannot take them all, or takes none: the gate, the breaker, and the
//! budget of what may be tried again.
//!
//! `gradient`, `breaker`, `budget` and `pace` are pure; `gate` lets in and lets wait, and `upload` keeps slow clients away from
//! it; here they are joined and counted.

pub mod breaker;
pub mod budget;
pub mod gate;
pub mod gradient;
pub mod pace;
pub mod upload;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::breaker::{Breaker, Verdict};
use self::budget::Budget;
use self::gate::{Bounds, Door, Gate, Place};
use self::upload::Uploads;
use crate::config::{Protocol, Upstream as Settings};
use crate::kv;
use crate::metrics::{Metrics, Retry, Shed, UpstreamMetrics};

/// Microseconds since the gate was made.
pub type Micros = u64;

/// Longest `Retry-After`: an estimate that says more is a guess.
const LONGEST_RETRY_AFTER_S: u64 = 10;

/// A request that was not sent, to protect the upstream and those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Shed,
    /// When to come again, in whole seconds and at least one; spread a little, so that not all come at once.
    pub retry_after_s: u64,
}

/// All of it, for the process.
#[derive(Debug)]
pub struct Overload {
    gate: Arc<Gate>,
    breaker: Option<Guarded>,
    budget: Budget,
    uploads: Arc<Uploads>,
    metrics: UpstreamMetrics,
}

/// The breaker, and what can be said of it without its lock.
#[derive(Debug)]
struct Guarded {
    is_closed: AtomicBool,
    /// Since the machine last heard of them.
    successes: AtomicU64,
    machine: Mutex<Breaker>,
}

impl Guarded {
    fn machine(&self) -> MutexGuard<'_, Breaker> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overload {
    /// By these settings, for so many workers; its gauges show in `metrics`.
    pub fn new(settings: &Settings, workers: usize, metrics: &Metrics) -> Self {
        let connections = settings.connections.get();
        // One connection carries many exchanges in HTTP/2.
        let exchanges = (settings.protocol == Protocol::Http1).then_some(connections);
        let bounds = Bounds {
            in_flight: exchanges.map_or(settings.in_flight.get(), |most| settings.in_flight.get().min(most)),
            adaptive: settings.adaptive,
            exchanges,
            queue_timeout: settings.queue_timeout,
        };
        let gate = Gate::new(bounds, workers);
        let now = gate.now();
        let uploads = Uploads::new(settings.uploads.get(), settings.queue_timeout, settings.request_buffer);
        let uploads = Arc::new(uploads);
        let (shown, bodies) = (Arc::clone(&gate), Arc::clone(&uploads));
        metrics.before_each_scrape(move |metrics| {
            metrics.upstream.in_flight.set(shown.in_flight() as i64);
            metrics.upstream.limit.set(shown.limit() as i64);
            metrics.upstream.waiting.set(shown.waiting() as i64);
            metrics.upstream.uploads.set(bodies.on_their_way() as i64);
        });
        Self {
            breaker: settings.breaker.then(|| Guarded {
                is_closed: AtomicBool::new(true),
                successes: AtomicU64::new(0),
                machine: Mutex::new(Breaker::new(now)),
            }),
            budget: Budget::new(settings.retry_budget, now),
            uploads,
            metrics: metrics.upstream.clone(),
            gate,
        }
    }

    /// Worker `worker`'s way in.
    pub fn door(&self, worker: usize) -> Arc<Door> {
        Door::new(Arc::clone(&self.gate), worker)
    }

    /// Time since the gate was made.
    pub fn now(&self) -> Micros {
        self.gate.now()
    }

    /// Whether what nobody waits for may be begun at all; counted as shed if not.
    pub fn has_spare(&self) -> bool {
        let why = match () {
            () if self.open_for().is_some() => Shed::BreakerOpen,
            () if !self.gate.has_spare() => Shed::NoSpare,
            () => return true,
        };
        self.metrics.shed(why);
        false
    }

    /// A place in flight, at once or after a wait in line; what nobody waits for takes spare room or nothing.
    ///
    /// # Errors
    /// The request is shed, and counted.
    pub async fn enter(&self, door: &Arc<Door>, may_wait: bool) -> Result<Place, Refusal> {
        // Before the line: who would be refused behind it has no need to wait.
        if let Some(pause) = self.open_for() {
            return Err(self.refused(Shed::BreakerOpen, pause));
        }
        let entered = door.enter(may_wait).await;
        entered.map_err(|why| self.refused(why, self.gate.expected_wait()))
    }

    /// Whether a request whose body is still to come would be refused now, before anybody waits for that.
    ///
    /// # Errors
    /// The request is shed, and counted.
    pub fn foresee(&self, door: &Door) -> Result<(), Refusal> {
        match (self.closed_to_uploads(), door.refuses()) {
            (Some(pause), _) => Err(self.refused(Shed::BreakerOpen, pause)),
            (None, Some(why)) => Err(self.refused(why, self.gate.expected_wait())),
            (None, None) => Ok(()),
        }
    }

    /// An attempt at the upstream, whose end must be told. What a slow client may hold up is not the one that finds out
    /// whether the upstream is back.
    ///
    /// # Errors
    /// The breaker is open.
    pub fn attempt(&self, may_probe: bool) -> Result<Attempt<'_>, Refusal> {
        if !may_probe && let Some(pause) = self.closed_to_uploads() {
            return Err(self.refused(Shed::BreakerOpen, pause));
        }
        self.admitted().map_err(|pause| self.refused(Shed::BreakerOpen, Duration::from_micros(pause)))
    }

    /// Another attempt, if there may be one: the breaker lets it through, and the budget allows it. Counted, but for the
    /// breaker.
    pub fn again(&self) -> Option<Attempt<'_>> {
        let attempt = self.admitted().ok()?;
        let may = self.budget.withdraw(self.now());
        self.metrics.retried(if may { Retry::Made } else { Retry::OverBudget });
        may.then_some(attempt)
    }

    fn admitted(&self) -> Result<Attempt<'_>, Micros> {
        let attempt = |is_probe| Attempt { overload: self, is_probe };
        let Some(breaker) = self.breaker.as_ref().filter(|breaker| !breaker.is_closed.load(Ordering::Relaxed)) else {
            return Ok(attempt(false));
        };
        let verdict = breaker.machine().admit(self.now());
        match verdict {
            Verdict::Try => Ok(attempt(false)),
            Verdict::Probe => Ok(attempt(true)),
            Verdict::Refuse(pause) => Err(pause),
        }
    }

    /// A request is about to be sent.
    pub fn sending(&self) {
        self.budget.deposit();
    }

    /// The bodies that are on their way.
    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    /// A body's turn did not come.
    pub fn no_turn(&self) -> Refusal {
        self.refused(Shed::Uploads, self.gate.expected_wait())
    }

    /// As many wait for one fetch as may.
    pub fn key_queue_full(&self) -> Refusal {
        self.refused(Shed::KeyQueueFull, self.gate.expected_wait())
    }

    /// No connection came free in time.
    pub fn no_connection(&self) -> Refusal {
        self.refused(Shed::QueueTimeout, self.gate.expected_wait())
    }

    /// How long the breaker will refuse, if it does.
    fn open_for(&self) -> Option<Duration> {
        let breaker = self.breaker.as_ref().filter(|breaker| !breaker.is_closed.load(Ordering::Relaxed))?;
        breaker.machine().refuses(self.now()).map(Duration::from_micros)
    }

    /// The same of what a slow client may hold up: it finds out only where nobody else does.
    fn closed_to_uploads(&self) -> Option<Duration> {
        let breaker = self.breaker.as_ref().filter(|breaker| !breaker.is_closed.load(Ordering::Relaxed))?;
        breaker.machine().refuses_slow(self.now()).map(Duration::from_micros)
    }

    fn refused(&self, why: Shed, wait: Duration) -> Refusal {
        self.metrics.shed(why);
        let spread = kv::random() % 2;
        let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Refusal { why, retry_after_s: (whole + spread).clamp(1, LONGEST_RETRY_AFTER_S) }
    }

    fn succeeded(&self, is_probe: bool) {
        let Some(breaker) = &self.breaker else { return };
        if !is_probe {
            breaker.successes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        breaker.successes.store(0, Ordering::Relaxed);
        breaker.machine().probe_succeeded(self.now());
        breaker.is_closed.store(true, Ordering::Relaxed);
        self.metrics.breaker_open.set(0);
        tracing::info!("the upstream answers again: the breaker is closed");
    }

    fn failed(&self, is_probe: bool, cause: &dyn std::fmt::Display) {
        let Some(breaker) = &self.breaker else { return };
        let (now, jitter) = (self.now(), (kv::random() % 1000) as f64 / 1000.0);
        let mut machine = breaker.machine();
        machine.count_successes(breaker.successes.swap(0, Ordering::Relaxed), now);
        if is_probe {
            return machine.probe_failed(now, jitter);
        }
        if machine.failed(now, jitter) {
            breaker.is_closed.store(false, Ordering::Relaxed);
            self.metrics.breaker_open.set(1);
            tracing::warn!(%cause, "the upstream is in trouble: the breaker is open, requests fail at once");
        }
    }
}

/// An attempt at the upstream. One of which nothing is told says nothing of the upstream.
#[derive(Debug)]
#[must_use = "its end must be told"]
pub struct Attempt<'o> {
    overload: &'o Overload,
    is_probe: bool,
}

impl Attempt<'_> {
    /// The upstream answered, whatever it said.
    pub fn succeeded(mut self) {
        let is_probe = std::mem::take(&mut self.is_probe);
        self.overload.succeeded(is_probe);
    }

    /// It did not, and that is its fault.
    pub fn failed(mut self, cause: &dyn std::fmt::Display) {
        let is_probe = std::mem::take(&mut self.is_probe);
        self.overload.failed(is_probe, cause);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(breaker) = &self.overload.breaker
        {
            breaker.machine().probe_left(self.overload.now());
        }
    }
}
