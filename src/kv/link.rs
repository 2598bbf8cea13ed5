//! Connections that are shared: kept in slots, replaced when they are of no use any more.

use std::sync::{Arc, Mutex};

use deadpool_redis::redis::AsyncConnectionConfig;
use tokio::sync::Notify;

use super::Shared;
use super::dial::{NoConnection, Wire};
use super::reply::Fault;
use super::topology::Node;

/// Unanswered commands in a row after which a connection is replaced, even if Redis answers on others: its packets may
/// be swallowed on the way.
const MISSES: u32 = 3;

/// A handle on a connection.
pub(super) struct Link {
    pub(super) wire: Wire,
    /// Above 0.
    pub(super) id: u64,
}

/// Holds one connection, of which everybody gets a clone.
#[derive(Default)]
pub(super) struct Slot {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    of_copies: bool,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    building: bool,
    built: u64,
    /// Whether nobody was there when one was to be opened last.
    gone: bool,
    misses: u32,
}

struct Held {
    wire: Wire,
    id: u64,
    /// The breaker's when it was opened.
    generation: u64,
}

impl Slot {
    /// For what is read from a server as another's copy.
    pub(super) fn of_copies() -> Self {
        Self { of_copies: true, ..Self::default() }
    }

    /// A handle on the connection; on a new one if there is none, however long that takes. If it `is_judged`, one that
    /// does not open in time is held against the server.
    pub(super) async fn acquire(&self, shared: &Arc<Shared>, node: &Arc<Node>, is_judged: bool) -> Result<Link, Fault> {
        let changed = self.changed.notified();
        if let Some(link) = self.held_or_build(shared, node, is_judged) {
            return Ok(link);
        }
        changed.await;
        let state = self.state.lock().expect("no panic while held");
        state.held.as_ref().map(Held::link).ok_or(if state.gone { Fault::Gone } else { Fault::NotSent })
    }

    /// Connection `id` answered.
    pub(super) fn answered(&self, id: u64) {
        let mut state = self.state.lock().expect("no panic while held");
        if state.holds(id) {
            state.misses = 0;
        }
    }

    /// It did not, in time.
    pub(super) fn missed(&self, id: u64) {
        let mut state = self.state.lock().expect("no panic while held");
        if state.holds(id) {
            state.misses += 1;
            if state.misses >= MISSES {
                state.held = None;
            }
        }
    }

    /// Connection `id` is dead.
    pub(super) fn discard(&self, id: u64) {
        let mut state = self.state.lock().expect("no panic while held");
        if state.holds(id) {
            state.held = None;
        }
    }

    fn held_or_build(&self, shared: &Arc<Shared>, node: &Arc<Node>, is_judged: bool) -> Option<Link> {
        let mut state = self.state.lock().expect("no panic while held");
        let generation = node.breaker.generation();
        if state.held.as_ref().is_some_and(|held| held.generation != generation || held.wire.has_ended()) {
            state.held = None;
        }
        if let Some(held) = &state.held {
            return Some(held.link());
        }
        if !state.building {
            state.building = true;
            // A task of its own: opening may take longer than the budget of the request that needs it first, and would
            // begin anew with every one.
            let (state, changed) = (Arc::clone(&self.state), Arc::clone(&self.changed));
            let (shared, node) = (Arc::clone(shared), Arc::clone(node));
            tokio::spawn(build(Building { state, changed }, self.of_copies, is_judged, shared, node));
        }
        None
    }
}

impl State {
    fn holds(&self, id: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.id == id)
    }
}

impl Held {
    fn link(&self) -> Link {
        Link { wire: self.wire.clone(), id: self.id }
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

async fn build(building: Building, of_copies: bool, is_judged: bool, shared: Arc<Shared>, node: Arc<Node>) {
    let generation = node.breaker.generation();
    // Every command has a timeout of its own, from its request's budget.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    match shared.dialer.open(&node.address, config, None, of_copies).await {
        Ok(wire) => {
            // Who ends a connection may be about to go, and another have what he had: better to know before somebody asks.
            let (ended, shared) = (wire.ended(), Arc::clone(&shared));
            tokio::spawn(async move {
                ended.await;
                shared.topology.doubt();
            });
            let mut state = building.state.lock().expect("no panic while held");
            state.built += 1;
            state.misses = 0;
            state.gone = false;
            state.held = Some(Held { wire, id: state.built, generation });
        }
        Err(none) => {
            shared.not_opened(&none);
            building.state.lock().expect("no panic while held").gone = none.is_gone();
            match none {
                NoConnection::NobodyListens | NoConnection::Tls(_) => node.breaker.refused(&none.to_string()),
                NoConnection::Late if !is_judged => {}
                _ => node.breaker.failed(&none.to_string()),
            }
        }
    }
}
