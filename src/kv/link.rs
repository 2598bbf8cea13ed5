//! Connections: built by the pool, kept in slots, replaced when they are of no use any more.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, ConnectionInfo, RedisError};
use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime};
use tokio::sync::Notify;

use super::Shared;
use super::reply::Fault;

/// Connections of one runtime: one for bodies, one for scripts.
const CONNECTIONS: usize = 2;

/// Longest that opening one may take, handshake included.
pub(super) const OPENING: Duration = Duration::from_millis(500);

/// Unanswered commands in a row after which a connection is replaced, even if Redis answers on others: its packets may
/// be swallowed on the way.
const MISSES: u32 = 3;

/// The runtime's pool, or why there is none.
#[derive(Clone)]
pub(super) struct Pooled(Option<Pool>);

impl Pooled {
    /// A pool for `address`; opens nothing.
    pub(super) fn new(address: &ConnectionInfo) -> Self {
        // Every command has a timeout of its own, from its request's budget.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(OPENING)).set_response_timeout(None);
        let pool = Manager::new_with_config(address.clone(), config).ok().and_then(|manager| {
            Pool::builder(manager)
                .max_size(CONNECTIONS)
                .wait_timeout(Some(OPENING))
                .create_timeout(Some(OPENING))
                .recycle_timeout(Some(OPENING))
                .runtime(Runtime::Tokio1)
                .build()
                .ok()
        });
        Self(pool)
    }
}

/// A handle on a connection.
pub(super) struct Link {
    pub(super) connection: MultiplexedConnection,
    pub(super) id: u64,
}

/// Holds one connection, of which everybody gets a clone.
pub(super) struct Slot {
    pool: Pooled,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    building: bool,
    built: u64,
    misses: u32,
}

struct Held {
    pooled: Connection,
    id: u64,
    /// The breaker's when it was opened.
    generation: u64,
}

impl State {
    /// Ends the connection. Given back to the pool it would come out again, dead or frozen as it is.
    fn end_held(&mut self) {
        if let Some(held) = self.held.take() {
            drop(Connection::take(held.pooled));
        }
    }
}

impl Slot {
    /// An empty slot.
    pub(super) fn new(pool: Pooled) -> Self {
        Self { pool, state: Arc::default(), changed: Arc::default() }
    }

    /// A handle on the connection; on a new one if there is none, however long that takes.
    pub(super) async fn acquire(&self, shared: &Arc<Shared>) -> Result<Link, Fault> {
        let changed = self.changed.notified();
        if let Some(link) = self.held_or_build(shared) {
            return Ok(link);
        }
        changed.await;
        self.state.lock().expect("no panic while held").held.as_ref().map(Held::link).ok_or(Fault::NotSent)
    }

    /// The connection answered.
    pub(super) fn answered(&self) {
        self.state.lock().expect("no panic while held").misses = 0;
    }

    /// It did not, in time.
    pub(super) fn missed(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        state.misses += 1;
        if state.misses >= MISSES {
            state.misses = 0;
            state.end_held();
        }
    }

    /// Connection `id` is dead.
    pub(super) fn discard(&self, id: u64) {
        let mut state = self.state.lock().expect("no panic while held");
        if state.held.as_ref().is_some_and(|held| held.id == id) {
            state.end_held();
        }
    }

    fn held_or_build(&self, shared: &Arc<Shared>) -> Option<Link> {
        let mut state = self.state.lock().expect("no panic while held");
        let generation = shared.breaker.generation();
        if state.held.as_ref().is_some_and(|held| held.generation != generation) {
            state.end_held();
        }
        if let Some(held) = &state.held {
            return Some(held.link());
        }
        if !state.building {
            state.building = true;
            // A task of its own: opening may take longer than the budget of the request that needs it first, and would
            // begin anew with every one.
            let build =
                build(self.pool.clone(), Arc::clone(&self.state), Arc::clone(&self.changed), Arc::clone(shared));
            tokio::spawn(build);
        }
        None
    }
}

impl Held {
    fn link(&self) -> Link {
        Link { connection: self.pooled.clone(), id: self.id }
    }
}

/// Ends a build however it ends, so that the next request may start another.
struct Building {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Drop for Building {
    fn drop(&mut self) {
        self.state.lock().expect("no panic while held").building = false;
        self.changed.notify_waiters();
    }
}

async fn build(pool: Pooled, state: Arc<Mutex<State>>, changed: Arc<Notify>, shared: Arc<Shared>) {
    let building = Building { state, changed };
    let generation = shared.breaker.generation();
    let Some(pool) = pool.0 else { return shared.breaker.refused("the address cannot be used") };
    match tokio::time::timeout(OPENING, pool.get()).await {
        Ok(Ok(pooled)) => {
            let mut state = building.state.lock().expect("no panic while held");
            state.built += 1;
            state.misses = 0;
            state.held = Some(Held { pooled, id: state.built, generation });
        }
        Ok(Err(PoolError::Backend(error))) => report(&shared, error),
        Ok(Err(_)) | Err(_) => shared.breaker.failed("connections do not open"),
    }
}

fn report(shared: &Shared, error: RedisError) {
    if error.is_connection_refusal() {
        return shared.breaker.refused("connection refused");
    }
    match Fault::from(error) {
        Fault::Refused(kind) => shared.breaker.failed(&kind),
        _ => shared.breaker.failed("connections do not open"),
    }
}
