//! What has been invalidated, in which order, and how sure we are to know it.
//!
//! Nothing is deleted to invalidate. Each invalidation gets a number in Redis' log; each stored answer carries the
//! position that its process had reached when it *began* to ask the upstream; an answer is used only if nothing later
//! names it. Three tasks on the control runtime keep this process level with the log: `bus` follows and proves, `clerk`
//! logs what comes in here, `stream` empties the durable door. Without Redis the same code counts by itself.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::clock::{Clock, SteadyMs, Stopwatch};
use crate::kv;
use crate::metrics::{Door, Metrics};
use crate::syntax::SyntaxError;
use crate::syntax::selector::{Order, Selector};

mod bus;
mod clerk;
mod doors;
pub mod epochs;
mod intents;
mod lineage;
mod log;
pub mod mirror;
#[cfg(test)]
mod model;
mod pending;
mod roll;
mod stream;
mod trust;

use clerk::{Fate, Submission};
pub use intents::Intent;
use mirror::{Applied, Mirror};
use pending::Ticket;
use roll::Call;
pub use roll::Confirmation;
pub use trust::Bounds;
use trust::Trust;

/// Longest that a door waits for its order to be logged; then it is answered as not logged, and retried.
pub const SUBMIT_WAIT: Duration = Duration::from_secs(1);

/// Longest that a door waits for what was logged before its own order to be applied here.
const LEVEL_WAIT: Duration = Duration::from_millis(50);

/// What has not come over the bus after so long may not come at all.
const MISSED: Duration = Duration::from_millis(10);

/// Longest that the end of the process waits for Redis to note it.
const LEAVE_WAIT: Duration = Duration::from_millis(500);

/// A place in the sequence of invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Which sequence: a random id kept beside the counter.
    pub incarnation: u64,
    /// Number of the last invalidation applied.
    pub seq: u64,
}

/// What of a stored answer invalidations can name, as its reader computes it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Lower-case authority.
    pub host: &'a str,
    /// Normalised path.
    pub path: &'a str,
    /// Query as keyed.
    pub query: Option<&'a str>,
    /// Other queries by which it is known, where not every parameter counts.
    pub also: &'a [Option<String>],
    /// The route that stored it.
    pub route: &'a str,
    /// Tags from the configuration.
    pub tags: &'a [String],
    /// Tags from the answer.
    pub answer_tags: &'a [String],
}

/// What invalidations say of a stored answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has named it since its fill began.
    Valid,
    /// Softly invalidated: stale, whatever its lifetime says.
    Stale,
    /// Gone: never used again, but for revalidation by strong ETag.
    Gone,
}

/// Where an accepted order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its position.
    pub position: Position,
    /// Whether it is in the fleet's log (or there is no fleet); else it is applied here and being retried.
    pub logged: bool,
}

/// What operators are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether the process hears the bus and could last prove its currency; always, without Redis.
    pub connected: bool,
    /// How long ago it last proved that it knows every invalidation; `None` if it never did, or has no Redis.
    pub proven: Option<Duration>,
    /// How far it has followed the log, or its own count.
    pub position: Position,
    /// Pods heard of lately, this one included.
    pub pods: u32,
    /// Invalidations that Redis has not taken yet.
    pub queued: usize,
}

/// The process's knowledge of every invalidation, and the doors' way in; shared by all workers.
pub struct Invalidation {
    mirror: RwLock<Mirror>,
    version: AtomicU64,
    /// Wakes who waits for the mirror to move.
    moved: Notify,
    clock: Clock,
    metrics: Arc<Metrics>,
    fleet: Option<FleetSide>,
}

/// Where a pod stands that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    Asked,
    Done,
}

/// What there is only with Redis.
struct FleetSide {
    submissions: mpsc::Sender<Submission>,
    calls: mpsc::Sender<Call>,
    trust: Trust,
    /// This process among the pods.
    pod: String,
    /// Asks for a proof now.
    kick: Notify,
    connected: AtomicBool,
    pods: AtomicU32,
    queued: AtomicUsize,
    /// Whether this pod is to leave the membership, and whether it has.
    leaving: watch::Sender<Leaving>,
    ready: watch::Sender<bool>,
    ready_by: SteadyMs,
}

impl Invalidation {
    /// Knowledge of this process alone, for running without Redis.
    pub fn local(clock: Clock, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self::build(clock, metrics, None))
    }

    /// Knowledge that the fleet shares, and the work that keeps it so, to be run on the control runtime for as long as the
    /// process lives.
    pub fn shared(shared: Arc<kv::Shared>, bounds: Bounds) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (submissions, inbox) = mpsc::channel(clerk::SUBMISSIONS);
        let (calls, called) = mpsc::channel(roll::CALLS);
        let fleet = FleetSide {
            submissions,
            calls,
            trust: Trust::new(bounds),
            pod: pod_name(),
            kick: Notify::new(),
            connected: AtomicBool::new(false),
            pods: AtomicU32::new(0),
            queued: AtomicUsize::new(0),
            leaving: watch::Sender::new(Leaving::No),
            ready: watch::Sender::new(false),
            ready_by: shared.clock.steady() + shared.startup_wait.as_millis() as u64,
        };
        let state = Arc::new(Self::build(shared.clock.clone(), Arc::clone(&shared.metrics), Some(fleet)));
        let work = {
            let state = Arc::clone(&state);
            async move {
                // Made here, because connections live on the runtime that opens them.
                let log = log::Log::new(kv::Redis::control(Arc::clone(&shared)));
                tokio::join!(
                    bus::Keeper::new(Arc::clone(&state), log.clone(), Arc::clone(&shared)).run(),
                    roll::Caller::new(Arc::clone(&state), log.clone(), called).run(),
                    clerk::Clerk::new(Arc::clone(&state), log.clone(), inbox).run(),
                    stream::listen(&state, &log, &shared),
                    bus::show_age(&state),
                );
            }
        };
        (state, work)
    }

    fn build(clock: Clock, metrics: Arc<Metrics>, fleet: Option<FleetSide>) -> Self {
        Self {
            mirror: RwLock::new(Mirror::new(kv::random())),
            version: AtomicU64::new(1),
            moved: Notify::new(),
            clock,
            metrics,
            fleet,
        }
    }

    /// The position to give a fill for `subject` that begins now.
    pub fn position(&self, subject: &Subject<'_>) -> Position {
        self.mirror.read().expect("no panic while held").position(subject)
    }

    /// A number that moves whenever a verdict could change; one atomic load.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What is known of an answer whose fill began at `position`.
    pub fn verdict(&self, position: Position, subject: &Subject<'_>) -> Verdict {
        self.mirror.read().expect("no panic while held").verdict(position, subject)
    }

    /// The position to give a fill for `subject` that begins now, and the lowest number whose fill is as good as that.
    pub fn place(&self, subject: &Subject<'_>) -> (Position, u64) {
        let mirror = self.mirror.read().expect("no panic while held");
        let position = mirror.position(subject);
        (position, mirror.least(position, subject))
    }

    /// Whether nothing was invalidated between two positions, themselves left out, that names `subject`; false where that is
    /// not known.
    pub fn untouched(&self, subject: &Subject<'_>, after: Position, before: Position) -> bool {
        self.mirror.read().expect("no panic while held").untouched(subject, after, before)
    }

    /// The selectors that have named an answer, each with the numbers of its last invalidations.
    pub fn epochs(&self, position: Position, subject: &Subject<'_>) -> Vec<(String, epochs::Epoch)> {
        self.mirror.read().expect("no panic while held").epochs(position, subject)
    }

    /// Whether an entry of `position` may be used now, which is the first of `times`: currency was proven within `bound`,
    /// or this pod asked the upstream for the entry at the second (0: never), less than `bound` ago. `spread` (0.0 to 1.0,
    /// from the key) spreads the end.
    pub fn trusted(&self, position: Position, times: (SteadyMs, SteadyMs), bound: Duration, spread: f64) -> bool {
        self.fleet.as_ref().is_none_or(|fleet| fleet.trust.is_in(position, times, bound, spread))
    }

    /// Takes over what a new configuration says.
    pub fn set_bounds(&self, bounds: Bounds) {
        if let Some(fleet) = &self.fleet {
            fleet.trust.set_bounds(bounds);
            self.kick();
        }
    }

    /// Waits until every pod has applied what was logged at `position`, or can serve nothing from before any more; or for
    /// `wait`, if that is shorter, or for a minute.
    pub async fn confirmed(&self, position: Position, wait: Option<Duration>) -> Confirmation {
        let alone = Confirmation { is_complete: true, pods: 1, silent: Vec::new() };
        let Some(fleet) = &self.fleet else { return alone };
        let since = tokio::time::Instant::now();
        let until = since + wait.unwrap_or_else(|| fleet.trust.lasts()).min(roll::LONGEST_WAIT);
        let (answer, confirmation) = oneshot::channel();
        let unknown = Confirmation { is_complete: false, ..alone };
        if fleet.calls.try_send(Call { position, since, until, answer }).is_err() {
            return unknown;
        }
        confirmation.await.unwrap_or(unknown)
    }

    /// Logs and applies an order. When this returns, no answer from before is used in this process.
    ///
    /// # Errors
    /// The order cannot be read. A Redis that cannot take it is no error here: see [`Receipt::logged`].
    pub async fn submit(&self, order: &Order, door: Door) -> Result<Receipt, SyntaxError> {
        self.submit_announced(order, door, None, SUBMIT_WAIT).await
    }

    /// [`submit`](Self::submit) for an order that `intent` announced, which is settled as soon as it is logged; that is waited
    /// for no longer than `patience`.
    ///
    /// # Errors
    /// As there.
    pub async fn submit_announced(
        &self,
        order: &Order,
        door: Door,
        intent: Option<&Intent>,
        patience: Duration,
    ) -> Result<Receipt, SyntaxError> {
        let watch = Stopwatch::start();
        let selectors: Arc<[Selector]> = order.selectors()?.into();
        self.count(&selectors, door);
        let Some(fleet) = &self.fleet else {
            return Ok(Receipt { position: self.apply_unlogged(&selectors, order.soft), logged: true });
        };
        let fate = Arc::new(Fate::default());
        // While others wait for Redis to take theirs, this one joins them; whoever sent it does not.
        let waits = fleet.queued.load(Ordering::Relaxed) == 0 && !patience.is_zero();
        let here = (!waits).then(|| self.apply_here(&fate, &selectors, order.soft));
        let (answer, logged) = oneshot::channel();
        let submission = Submission {
            order: to_json(order).into(),
            selectors: Arc::clone(&selectors),
            soft: order.soft,
            since: None,
            intent: intent.map(Intent::id),
            door,
            fate: Arc::clone(&fate),
            answer: waits.then_some(answer),
        };
        if fleet.submissions.try_send(submission).is_err() {
            tracing::error!("the queue of invalidations is full: applied in this pod only");
            let receipt = here.unwrap_or_else(|| self.apply_here(&fate, &selectors, order.soft));
            self.give_up(&fate, &selectors, order.soft);
            return Ok(receipt);
        }
        if let Some(receipt) = here {
            return Ok(receipt);
        }
        match tokio::time::timeout(patience, logged).await {
            Ok(Ok(receipt)) => {
                if receipt.logged {
                    // Fills get the log's positions again once this process is level with it.
                    let left = LEVEL_WAIT.min(patience.saturating_sub(watch.elapsed()));
                    let is_level = tokio::time::timeout(left, self.reached(receipt.position)).await.is_ok();
                    if !is_level && left >= MISSED {
                        // What is missing before it should have come over the bus.
                        self.kick();
                    }
                }
                Ok(receipt)
            }
            // The clerk is slow, or gone with its runtime; what it has taken on, it goes on trying.
            Ok(Err(_)) | Err(_) => Ok(self.apply_here(&fate, &selectors, order.soft)),
        }
    }

    /// Completes with true when everything that was logged before the start is known, and is known to be, so that what others
    /// stored under the present incarnation may be used; with false if that is not so after `redis.startup_wait`.
    pub async fn ready(&self) -> bool {
        let Some(fleet) = &self.fleet else { return true };
        let left = Duration::from_millis(fleet.ready_by.saturating_sub(self.clock.steady()));
        let mut ready = fleet.ready.subscribe();
        tokio::time::timeout(left, ready.wait_for(|ready| *ready)).await.is_ok()
    }

    /// Leaves the fleet: nobody need wait for this pod any more. It proves nothing afterwards.
    pub async fn leave(&self) {
        let Some(fleet) = &self.fleet else { return };
        fleet.leaving.send_replace(Leaving::Asked);
        let mut leaving = fleet.leaving.subscribe();
        let _ = tokio::time::timeout(LEAVE_WAIT, leaving.wait_for(|leaving| *leaving == Leaving::Done)).await;
    }

    /// What operators are told.
    pub fn status(&self) -> Status {
        let mirror = self.mirror.read().expect("no panic while held");
        let position = mirror.followed().unwrap_or_else(|| mirror.own());
        drop(mirror);
        let Some(fleet) = &self.fleet else {
            return Status { connected: true, proven: None, position, pods: 1, queued: 0 };
        };
        Status {
            connected: fleet.connected.load(Ordering::Relaxed),
            proven: self.proof_age(),
            position,
            pods: fleet.pods.load(Ordering::Relaxed),
            queued: fleet.queued.load(Ordering::Relaxed),
        }
    }

    fn proof_age(&self) -> Option<Duration> {
        match self.fleet.as_ref()?.trust.proven_at() {
            0 => None,
            at => Some(Duration::from_millis(self.clock.steady().saturating_sub(at))),
        }
    }

    fn count(&self, selectors: &[Selector], door: Door) {
        for selector in selectors {
            self.metrics.invalidated(selector.kind().as_str(), door);
        }
    }

    /// Applies what will be in the log, unless it is by now.
    fn apply_here(&self, fate: &Fate, selectors: &[Selector], soft: bool) -> Receipt {
        fate.applied(|| {
            self.change(|mirror| {
                let ticket = mirror.pending(selectors, soft);
                (ticket, mirror.own())
            })
        })
    }

    /// Applies what nobody else is told of; the position of this process.
    fn apply_unlogged(&self, selectors: &[Selector], soft: bool) -> Position {
        self.change(|mirror| {
            mirror.unlogged(selectors, soft);
            mirror.own()
        })
    }

    /// What was to be logged never will be: it keeps its place in what is known now.
    fn give_up(&self, fate: &Fate, selectors: &[Selector], soft: bool) {
        if let Some(ticket) = fate.ticket() {
            self.change(|mirror| {
                mirror.unlogged(selectors, soft);
                mirror.settle(ticket);
            });
        }
    }

    /// Applies what was logged at `at`, wherever this process stands; it waits for nothing any more.
    fn apply_logged(&self, at: Position, Submission { order, selectors, soft, fate, .. }: &Submission) {
        let applied = self.change(|mirror| {
            let applied = mirror.record(at, selectors, *soft, order);
            if applied == Applied::Foreign {
                mirror.foreign(at.incarnation, selectors, *soft, order);
            }
            applied
        });
        if let Some(ticket) = fate.logged(at) {
            self.settle(ticket);
        }
        // Of this log, what is missing before it comes over the bus.
        if applied == Applied::Foreign {
            self.kick();
        }
    }

    fn settle(&self, ticket: Ticket) {
        self.change(|mirror| mirror.settle(ticket));
    }

    /// Changes the mirror. The version moves before the lock is released: who reads the new version waits for the lock,
    /// and finds the change made.
    fn change<R>(&self, change: impl FnOnce(&mut Mirror) -> R) -> R {
        let mut mirror = self.mirror.write().expect("no panic while held");
        let result = change(&mut mirror);
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(mirror);
        self.moved.notify_waiters();
        result
    }

    fn followed(&self) -> Option<Position> {
        self.mirror.read().expect("no panic while held").followed()
    }

    async fn reached(&self, position: Position) {
        loop {
            let moved = self.moved.notified();
            let level = |at: Position| at.incarnation != position.incarnation || at.seq >= position.seq;
            if self.followed().is_none_or(level) {
                return;
            }
            moved.await;
        }
    }

    fn kick(&self) {
        if let Some(fleet) = &self.fleet {
            fleet.kick.notify_one();
        }
    }
}

/// What the process is called among the pods: the machine's name, which in Kubernetes is the pod's, and a number that is
/// its own.
fn pod_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{:08x}", if host.is_empty() { "pod" } else { host }, kv::random() as u32)
}

fn to_json(order: &Order) -> String {
    serde_json::to_string(order).expect("strings and booleans always serialise")
}

#[cfg(test)]
mod tests;
