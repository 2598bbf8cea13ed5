//! Redis, however it is set up, and what the pods reach it by.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::harness::{
    Clock, Flaky, Redis, RedisCluster, Sentinels, Setup, clock, flaky, is_before_7, redis_cluster_by_clocks,
    redis_with_by, sentinels_by_clocks,
};

/// The slot of the log, of which everybody wants to hear.
pub const LOG: &str = "{it:invalidate:in}";

/// How Redis is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Alone,
    /// Three masters with a replica each.
    Cluster,
    /// A master with two replicas, and three sentinels.
    Sentinels,
}

/// A Redis that is set up so.
pub enum Place {
    /// One server, behind a relay.
    Alone {
        /// The server of the moment.
        redis: Mutex<Arc<Redis>>,
        /// All pods' way to it.
        relay: Flaky,
        /// What it goes by.
        clock: Clock,
    },
    /// A cluster.
    Cluster(RedisCluster),
    /// What sentinels watch over.
    Sentinels(Sentinels),
}

/// One that takes its time to load what it had saved, and none to begin copying to another.
pub fn server(clock: &Clock) -> Redis {
    let (slowly, at_once) = (["--key-load-delay", "500"], ["--repl-diskless-sync-delay", "0"]);
    // Before Redis 7 it says nothing while it loads.
    let telling = if is_before_7() { at_once } else { ["--loading-process-events-interval-bytes", "1024"] };
    redis_with_by(&[slowly, telling, at_once].concat(), clock)
}

impl Place {
    /// A new one.
    pub fn new(topology: Topology) -> Self {
        match topology {
            Topology::Alone => {
                let clock = clock();
                let redis = server(&clock);
                let relay = flaky(redis.address());
                Self::Alone { redis: Mutex::new(Arc::new(redis)), relay, clock }
            }
            Topology::Cluster => Self::Cluster(redis_cluster_by_clocks()),
            Topology::Sentinels => Self::Sentinels(sentinels_by_clocks()),
        }
    }

    /// None takes over from a master but by command; in a Cluster none stops serving because another does.
    pub fn without_failovers(self) -> Self {
        match self {
            Self::Alone { .. } => self,
            Self::Cluster(cluster) => Self::Cluster(cluster.without_failovers()),
            Self::Sentinels(sentinels) => Self::Sentinels(sentinels.without_failovers()),
        }
    }

    /// A pod that uses it.
    pub fn apply(&self, setup: Setup) -> Setup {
        match self {
            Self::Alone { relay, .. } => setup.redis_at(relay.address()),
            Self::Cluster(cluster) => setup.redis_cluster(cluster),
            Self::Sentinels(sentinels) => setup.sentinels(sentinels),
        }
    }

    /// Does something to every server that holds data.
    pub fn each(&self, mut what: impl FnMut(&Redis)) {
        match self {
            Self::Alone { redis, .. } => what(&Arc::clone(&redis.lock().expect("no panic while held"))),
            Self::Cluster(cluster) => cluster.here().into_iter().for_each(|node| what(cluster.node(node))),
            Self::Sentinels(sentinels) => (0..sentinels.servers()).for_each(|server| what(sentinels.server(server))),
        }
    }

    /// Ends every server, sentinels among them, at once.
    pub fn kill(&self) {
        match self {
            Self::Alone { .. } => self.alone().kill(),
            Self::Cluster(cluster) => (0..cluster.len()).for_each(|node| cluster.kill(node)),
            Self::Sentinels(sentinels) => {
                (0..sentinels.addresses().len()).for_each(|sentinel| sentinels.kill_sentinel(sentinel));
                (0..sentinels.servers()).for_each(|server| sentinels.kill(server));
            }
        }
    }

    /// All come back, without data, and with what they knew of one another.
    pub fn start(&self) {
        match self {
            Self::Alone { .. } => self.alone().start(),
            Self::Cluster(cluster) => (0..cluster.len()).for_each(|node| cluster.restart(node)),
            Self::Sentinels(sentinels) => {
                (0..sentinels.servers()).for_each(|server| sentinels.restart(server));
                (0..sentinels.addresses().len()).for_each(|sentinel| sentinels.restart_sentinel(sentinel));
            }
        }
        self.settle();
    }

    /// Waits until somebody serves everything.
    pub fn settle(&self) {
        match self {
            Self::Alone { .. } => {}
            Self::Cluster(cluster) => cluster.is_well(),
            Self::Sentinels(sentinels) => sentinels.is_calm(),
        }
    }

    /// Runs a command on every server that holds data.
    pub fn say(&self, words: &[&str]) {
        self.each(|redis| drop(redis.cli(words)));
    }

    /// Does something to the master that has the log.
    pub fn with_master<T>(&self, what: impl FnOnce(&Redis) -> T) -> T {
        match self {
            Self::Alone { redis, .. } => what(&Arc::clone(&redis.lock().expect("no panic while held"))),
            Self::Cluster(cluster) => what(cluster.node(cluster.owner_of(LOG))),
            Self::Sentinels(sentinels) => what(sentinels.server(sentinels.master())),
        }
    }

    /// All ways to it.
    pub fn ways(&self) -> Vec<&Flaky> {
        match self {
            Self::Alone { relay, .. } => vec![relay],
            Self::Cluster(cluster) => (0..cluster.len()).map(|node| cluster.relay(node)).collect(),
            Self::Sentinels(sentinels) => (0..sentinels.servers()).map(|server| sentinels.relay(server)).collect(),
        }
    }

    /// The only server.
    pub fn alone(&self) -> Arc<Redis> {
        match self {
            Self::Alone { redis, .. } => Arc::clone(&redis.lock().expect("no panic while held")),
            _ => panic!("there are several servers"),
        }
    }

    /// What the clock of the log's master says, in seconds.
    pub fn time(&self) -> i64 {
        let said = self.with_master(|redis| redis.cli(&["TIME"]));
        said.lines().next().and_then(|seconds| seconds.parse().ok()).expect("a time")
    }

    /// Whether servers go by different clocks.
    pub fn clocks_differ(&self) -> bool {
        let ahead: BTreeSet<i64> = match self {
            Self::Alone { .. } => BTreeSet::new(),
            Self::Cluster(cluster) => (0..cluster.len()).map(|node| cluster.clock(node).ahead()).collect(),
            Self::Sentinels(sentinels) => {
                (0..sentinels.servers()).map(|server| sentinels.clock(server).ahead()).collect()
            }
        };
        ahead.len() > 1
    }

    /// How many of a cluster's servers were started anew, because it would not have been well again without.
    pub fn started_anew(&self) -> usize {
        match self {
            Self::Cluster(cluster) => cluster.started_anew(),
            Self::Alone { .. } | Self::Sentinels(_) => 0,
        }
    }

    /// Sets the clock of the log's master so many seconds ahead, or back; those of the others go on as they did.
    pub fn step(&self, seconds: i64) {
        match self {
            Self::Alone { clock, .. } => clock.advance(seconds),
            Self::Cluster(cluster) => cluster.clock(cluster.owner_of(LOG)).advance(seconds),
            Self::Sentinels(sentinels) => sentinels.clock(sentinels.master()).advance(seconds),
        }
    }

    /// The sentinels.
    pub fn sentinels(&self) -> &Sentinels {
        match self {
            Self::Sentinels(sentinels) => sentinels,
            _ => panic!("no sentinels"),
        }
    }
}
