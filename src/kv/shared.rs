//! What the process has once of Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::dial::{Dialer, NoConnection};
use super::doorbell::Doorbells;
use super::health::Health;
use super::keys::{self, Keys};
use super::topology::{Node, Topology};
use crate::clock::Clock;
use crate::config::{self, ReadFrom};
use crate::metrics::Metrics;

/// Longest that servers are looked for at start before it is said that there are none.
const FOUND: Duration = Duration::from_secs(1);

/// What the process has once.
pub struct Shared {
    /// Names of keys and channels.
    pub keys: Keys,
    /// Longest that one request waits for Redis, all in all.
    pub deadline: Duration,
    /// Longest that readiness waits for Redis at start.
    pub startup_wait: Duration,
    /// How pods hear of one another's invalidations.
    pub bus: config::Bus,
    /// The fleet's clock.
    pub clock: Clock,
    /// Metric families.
    pub metrics: Arc<Metrics>,
    /// Which uses of it work.
    pub health: Arc<Health>,
    /// See [`Shared::lost_ms`].
    lost_ms: Arc<AtomicU64>,
    /// Whether keys are spread over slots, so that a script may touch those of one only.
    pub(super) is_sharded: bool,
    pub(super) bells: Doorbells,
    pub(super) topology: Arc<Topology>,
    pub(super) dialer: Dialer,
    pub(super) to_sentinels: Dialer,
    /// What stored answers are read from.
    pub(super) read_from: ReadFrom,
    /// Whether servers are spoken to by TLS.
    pub(super) is_encrypted: bool,
}

impl Shared {
    /// Connects to nothing.
    pub fn new(config: &config::Redis, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        let open = metrics.redis_breaker_open.clone();
        let topology = Arc::new(Topology::new(config.servers.clone(), open, clock.clone()));
        Arc::new(Self {
            keys: Keys::new(&config.namespace),
            deadline: config.deadline,
            startup_wait: config.startup_wait,
            bus: config.bus,
            lost_ms: Arc::default(),
            health: Arc::new(Health::new(Arc::clone(&metrics), Arc::clone(&topology), clock.clone())),
            topology,
            is_sharded: matches!(config.servers, config::Servers::Cluster { .. }),
            clock,
            metrics,
            bells: Doorbells::default(),
            dialer: Dialer::new(config),
            to_sentinels: Dialer::to_sentinels(config),
            read_from: config.read_from,
            is_encrypted: config.access.tls.is_some(),
        })
    }

    /// Another way to the same Redis, whose commands count in `metrics`.
    pub fn apart(&self, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            keys: self.keys.clone(),
            deadline: self.deadline,
            startup_wait: self.startup_wait,
            bus: self.bus,
            lost_ms: Arc::clone(&self.lost_ms),
            health: Arc::clone(&self.health),
            topology: Arc::clone(&self.topology),
            is_sharded: self.is_sharded,
            clock: self.clock.clone(),
            metrics,
            bells: Doorbells::default(),
            dialer: self.dialer.clone(),
            to_sentinels: self.to_sentinels.clone(),
            read_from: self.read_from,
            is_encrypted: self.is_encrypted,
        })
    }

    /// When Redis was last found to have lost its data, by its own time in ms; 0: never.
    pub fn lost_ms(&self) -> u64 {
        self.lost_ms.load(Ordering::Relaxed)
    }

    /// Redis has lost its data at this time of its own, in ms; 0: it has not.
    pub fn note_loss(&self, at_ms: u64) {
        self.lost_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Which of `keys` one script may touch, by their places; `None` if it may touch all of them.
    pub fn groups(&self, keys: &[&[u8]]) -> Option<Vec<Vec<usize>>> {
        if !self.is_sharded || keys.len() < 2 {
            return None;
        }
        Some(keys::by_slot(keys)).filter(|groups| groups.len() > 1)
    }

    /// How connections are opened from now on.
    pub fn set_access(&self, access: &config::Access) {
        self.dialer.set_access(access);
        self.to_sentinels.set_access(access);
    }

    /// What `/readyz?verbose` says of it: a line for each use.
    pub fn condition(&self) -> Vec<String> {
        self.health.lines()
    }

    /// Whether requests do without all of Redis.
    pub fn is_away(&self) -> bool {
        self.topology.is_away()
    }

    /// Whether requests do without the server that has the log.
    pub fn is_log_away(&self) -> bool {
        self.home().is_none_or(|home| home.breaker.is_open())
    }

    /// Who waits for a key in this process.
    pub fn bells(&self) -> &Doorbells {
        &self.bells
    }

    /// The server that has the log, the door, and what else lies beside them; `None` while none is known to.
    pub(super) fn home(&self) -> Option<Arc<Node>> {
        let map = self.topology.map();
        map.owner(&self.keys.door_stream()).map(|master| Arc::clone(&master.node))
    }

    /// Tells when other servers may have keys.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.topology.changes()
    }

    /// Completes when it is known which server has the log, or after a moment: before that there is nothing to complain of.
    pub async fn found(&self) {
        let mut changes = self.topology.changes();
        let known = async { while self.home().is_none() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(FOUND, known).await;
    }

    /// A connection could not be opened: counted, and a reason to look who is there.
    pub(super) fn not_opened(&self, none: &NoConnection) {
        self.metrics.redis_failed(none.kind());
        self.topology.doubt();
    }
}
