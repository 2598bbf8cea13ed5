//! Which servers Redis is, and which of them has which keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, Guard};
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

use super::breaker::Breaker;
use super::keys::{SLOTS, slot};
use crate::clock::Clock;
use crate::config::{Address, Servers};

/// Servers that are known at once; more than any Cluster has. Those that only redirections have named go first.
const NODES: usize = 2048;

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
}

/// Who has what, as far as is known; a new one takes its place whole.
#[derive(Default)]
pub(super) struct Map {
    /// Each has a higher one than the one before.
    pub(super) version: u64,
    masters: Vec<Master>,
    /// Positions in `masters`, by slot; none: the first has all.
    slots: Option<Box<[u16; SLOTS]>>,
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
    fn uncovered(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.iter().filter(|owner| **owner == NOBODY).count())
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
        self.node(self.map().names.get(address).unwrap_or(address))
    }

    /// The server at `address`.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.lock().expect("no panic while held");
        if nodes.len() >= NODES && !nodes.contains_key(address) {
            self.map().keep(&mut nodes);
        }
        let make = || {
            Arc::new(Node {
                id: self.ids.fetch_add(1, Ordering::Relaxed),
                address: address.clone(),
                breaker: Breaker::new(address.to_string(), Arc::clone(&self.opened), self.clock.clone()),
                probed: AtomicBool::new(false),
            })
        };
        Arc::clone(nodes.entry(address.clone()).or_insert_with(make))
    }

    /// Goes by what was found, and forgets servers that are not in it.
    pub(super) fn adopt(&self, found: &Found) {
        let before = self.map();
        if before.is_as(found) {
            // Whom only redirections named, they will name again.
            before.keep(&mut self.nodes.lock().expect("no panic while held"));
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
        let map = Arc::new(Map { version: before.version + 1, masters, slots, names: found.names.clone() });
        map.keep(&mut self.nodes.lock().expect("no panic while held"));
        if before.masters.iter().map(|one| one.node.id).ne(map.masters.iter().map(|one| one.node.id))
            || before.uncovered() != map.uncovered()
        {
            let names: Vec<_> = map.masters.iter().map(|master| master.node.address.to_string()).collect();
            let (masters, uncovered_slots) = (names.join(" "), map.uncovered());
            tracing::info!(%masters, replicas = map.nodes().count() - names.len(), uncovered_slots, "Redis' masters");
        }
        self.map.store(map);
        self.changed.send_replace(());
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

    /// Whether a master is kept from requests, or none is known.
    pub(super) fn is_troubled(&self) -> bool {
        let map = self.map();
        map.masters.is_empty() || map.masters.iter().any(|master| master.node.breaker.is_open())
    }

    /// Whether requests do without all of them.
    pub(super) fn is_away(&self) -> bool {
        self.map().masters.iter().all(|master| master.node.breaker.is_open())
    }

    /// Which masters are kept from requests and why; empty if none is.
    pub(super) fn troubles(&self) -> String {
        let map = self.map();
        if map.masters.is_empty() {
            return "no server is known to be it".to_owned();
        }
        let open = map.masters.iter().map(|master| &master.node).filter(|node| node.breaker.is_open());
        open.map(|node| format!("{}: {}", node.address, node.breaker.cause())).collect::<Vec<_>>().join("; ")
    }

    /// Brings the gauge up to date.
    pub(super) fn show(&self) {
        let map = self.map();
        let open = map.masters.iter().filter(|master| master.node.breaker.is_open()).count();
        // One that cannot be found is done without too.
        self.open.set(if map.masters.is_empty() { 1 } else { open as i64 });
    }
}

impl Map {
    /// Takes out all that are not in it.
    fn keep(&self, nodes: &mut HashMap<Address, Arc<Node>>) {
        nodes.retain(|_, node| self.nodes().any(|known| known.id == node.id));
    }

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
