//! Which servers Redis is, and which of them has which keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use super::breaker::Breaker;
use super::keys::{SLOTS, slot};
use crate::clock::Clock;
use crate::config::{Address, Servers};

/// Servers that are known at once; more than any Cluster has. Those that only redirections have named go first.
const NODES: usize = 2048;

/// Time for which a server that only redirections name is kept, with its breaker and connections.
const NAMED: Duration = Duration::from_secs(10);

/// The owner of a slot that nobody has.
const NOBODY: u16 = u16::MAX;

/// One server. It stays the same for as long as its address is in use, with its breaker and everybody's connections.
pub(super) struct Node {
    /// No two nodes of a process have the same.
    pub(super) id: u64,
    pub(super) address: Address,
    pub(super) breaker: Breaker,
    /// Whether somebody probes it.
    pub(super) probed: AtomicBool,
    /// When a redirection named it last; 0: none has.
    named: AtomicU64,
}

/// Who has what, as far as is known; a new one takes its place whole.
#[derive(Default)]
pub(super) struct Map {
    masters: Vec<Master>,
    /// Positions in `masters`, by slot; none: the first has all.
    slots: Option<Box<[u16; SLOTS]>>,
    /// How many slots have no master.
    uncovered: usize,
    names: HashMap<Address, Address>,
}

/// A master, and what copies it.
pub(super) struct Master {
    pub(super) node: Arc<Node>,
    pub(super) replicas: Vec<Arc<Node>>,
}

impl Map {
    /// The master that has `key`.
    pub(super) fn owner(&self, key: &[u8]) -> Option<&Master> {
        match &self.slots {
            None => self.masters.first(),
            Some(slots) => self.masters.get(usize::from(slots[usize::from(slot(key))])),
        }
    }

    /// All of them.
    pub(super) fn masters(&self) -> &[Master] {
        &self.masters
    }

    /// Masters and replicas.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.masters.iter().flat_map(|master| std::iter::once(&master.node).chain(&master.replicas))
    }

    /// How many slots have no master.
    pub(super) fn uncovered(&self) -> usize {
        self.uncovered
    }
}

/// What was found out: masters with their replicas, and in a Cluster which of them has which slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) masters: Vec<(Address, Vec<Address>)>,
    /// By slot the position in `masters`; empty: the first has all.
    pub(super) slots: Vec<Option<usize>>,
    /// Where servers are called, by what else redirections may call them.
    pub(super) names: HashMap<Address, Address>,
}

/// The servers of one Redis, kept up to date by [`super::follow`].
pub(super) struct Topology {
    pub(super) servers: Servers,
    map: ArcSwap<Map>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    /// How often some of them were forgotten.
    forgotten: AtomicU64,
    ids: AtomicU64,
    /// Tells of each new map.
    changed: watch::Sender<()>,
    /// Somebody has reason to believe that the map is wrong.
    doubted: Notify,
    /// A breaker has opened.
    opened: Arc<Notify>,
    open: IntGauge,
    clock: Clock,
}

impl Topology {
    /// Of one server all is known; others have to be asked first. `open` shows how many servers requests do without.
    pub(super) fn new(servers: Servers, open: IntGauge, clock: Clock) -> Self {
        let topology = Self {
            map: ArcSwap::default(),
            nodes: Mutex::default(),
            forgotten: AtomicU64::new(0),
            ids: AtomicU64::new(0),
            changed: watch::channel(()).0,
            doubted: Notify::new(),
            opened: Arc::default(),
            open,
            clock,
            servers,
        };
        if let Servers::Standalone(server) = &topology.servers {
            topology.adopt(&Found { masters: vec![(server.clone(), Vec::new())], ..Found::default() });
        }
        topology.show();
        topology
    }

    /// Everybody who is known, redirections' servers too.
    pub(super) fn known(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().expect("no panic while held").values().cloned().collect()
    }

    /// Who has what.
    pub(super) fn map(&self) -> Guard<Arc<Map>> {
        self.map.load()
    }

    /// The server that a redirection calls `address`: by IP address mostly, of which its certificate need know nothing.
    pub(super) fn named(&self, address: &Address) -> Arc<Node> {
        let node = self.node(self.map().names.get(address).unwrap_or(address));
        node.named.store(self.clock.steady(), Ordering::Relaxed);
        node
    }

    /// Moves each time that servers were forgotten: what is kept for each is of no more use for those.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    /// The server at `address`.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.lock().expect("no panic while held");
        if nodes.len() >= NODES && !nodes.contains_key(address) {
            self.forget(&self.map(), &mut nodes, Duration::ZERO);
        }
        let make = || {
            Arc::new(Node {
                id: self.ids.fetch_add(1, Ordering::Relaxed),
                address: address.clone(),
                breaker: Breaker::new(address.to_string(), Arc::clone(&self.opened), self.clock.clone()),
                probed: AtomicBool::new(false),
                named: AtomicU64::new(0),
            })
        };
        Arc::clone(nodes.entry(address.clone()).or_insert_with(make))
    }

    /// Goes by what was found, and forgets servers that are not in it.
    pub(super) fn adopt(&self, found: &Found) {
        let before = self.map();
        if before.is_as(found) {
            self.forget(&before, &mut self.nodes.lock().expect("no panic while held"), NAMED);
            return;
        }
        let masters = found.masters.iter().map(|(address, replicas)| Master {
            node: self.node(address),
            replicas: replicas.iter().map(|replica| self.node(replica)).collect(),
        });
        let masters: Vec<_> = masters.collect();
        let slots = (!found.slots.is_empty()).then(|| {
            let mut slots = Box::new([NOBODY; SLOTS]);
            for (slot, owner) in slots.iter_mut().zip(&found.slots) {
                *slot = owner.and_then(|owner| u16::try_from(owner).ok()).unwrap_or(NOBODY);
            }
            slots
        });
        let uncovered = slots.as_ref().map_or(0, |slots| slots.iter().filter(|owner| **owner == NOBODY).count());
        let map = Arc::new(Map { masters, slots, uncovered, names: found.names.clone() });
        self.forget(&map, &mut self.nodes.lock().expect("no panic while held"), NAMED);
        if before.masters.iter().map(|one| one.node.id).ne(map.masters.iter().map(|one| one.node.id))
            || before.uncovered != uncovered
        {
            let names: Vec<_> = map.masters.iter().map(|master| master.node.address.to_string()).collect();
            let (masters, replicas) = (names.join(" "), map.nodes().count() - names.len());
            if uncovered == 0 {
                tracing::info!(%masters, replicas, "Redis' masters");
            } else {
                tracing::warn!(
                    %masters,
                    replicas,
                    uncovered_slots = uncovered,
                    "Redis' masters: some slots have none, and what is there is done without Redis"
                );
            }
        }
        self.map.store(map);
        self.changed.send_replace(());
    }

    /// Takes out all that are not in `map`, and whom no redirection has named within `lately`.
    fn forget(&self, map: &Map, nodes: &mut HashMap<Address, Arc<Node>>, lately: Duration) {
        let (now, before) = (self.clock.steady(), nodes.len());
        let is_named = |node: &Node| match node.named.load(Ordering::Relaxed) {
            0 => false,
            at => u128::from(now.saturating_sub(at)) < lately.as_millis(),
        };
        nodes.retain(|_, node| map.nodes().any(|known| known.id == node.id) || is_named(node));
        if nodes.len() < before {
            self.forgotten.fetch_add(1, Ordering::Release);
        }
    }

    /// Something says that the map may be wrong: it is looked at soon.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Completes when it was doubted since this completed last.
    pub(super) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Completes when a breaker has opened since this completed last.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Tells of each new map.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether a master is kept from requests, or none is known for some keys.
    pub(super) fn is_troubled(&self) -> bool {
        let map = self.map();
        map.masters.is_empty() || map.uncovered > 0 || map.masters.iter().any(|master| master.node.breaker.is_open())
    }

    /// Whether requests do without all of them.
    pub(super) fn is_away(&self) -> bool {
        self.map().masters.iter().all(|master| master.node.breaker.is_open())
    }

    /// Which masters are kept from requests and why, and how many slots have none; empty if all is well.
    pub(super) fn troubles(&self) -> String {
        let map = self.map();
        if map.masters.is_empty() {
            return "no server is known to be it".to_owned();
        }
        let mut troubles = causes(map.masters.iter().map(|master| &master.node));
        if map.uncovered > 0 {
            troubles.push(format!("{} of {SLOTS} slots have no master", map.uncovered));
        }
        troubles.join("; ")
    }

    /// Which copies are kept from requests and why; empty if none is.
    pub(super) fn troubles_of_copies(&self) -> String {
        causes(self.map().masters.iter().flat_map(|master| &master.replicas)).join("; ")
    }

    /// Brings the gauge up to date.
    pub(super) fn show(&self) {
        let map = self.map();
        let open = map.masters.iter().filter(|master| master.node.breaker.is_open()).count();
        // One that cannot be found is done without too.
        self.open.set(if map.masters.is_empty() { 1 } else { open as i64 });
    }
}

/// Of those who are kept from requests, why.
fn causes<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>) -> Vec<String> {
    let open = nodes.filter(|node| node.breaker.is_open());
    open.map(|node| format!("{}: {}", node.address, node.breaker.cause())).collect()
}

impl Map {
    fn is_as(&self, found: &Found) -> bool {
        let owner = |slot: u16| Some(usize::from(slot)).filter(|_| slot != NOBODY);
        let slots = self.slots.iter().flat_map(|slots| slots.iter()).map(|slot| owner(*slot));
        self.masters.len() == found.masters.len()
            && self.masters.iter().zip(&found.masters).all(|(master, (address, replicas))| {
                master.node.address == *address && master.replicas.iter().map(|replica| &replica.address).eq(replicas)
            })
            && slots.eq(found.slots.iter().copied())
            && self.names == found.names
    }
}
