//! A real Redis Cluster of one test's own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::redis::{BUS, free_port_with_bus, is_before_7, poll, poll_or_say, redis_not_started, redis_on};
use super::{Clock, Flaky, Identity, Redis, clock, flaky, free_port};

/// Slots of every cluster.
const SLOTS: usize = 16_384;

/// After so long without an answer a node counts as failed.
const NODE_TIMEOUT_MS: &str = "1000";

/// A cluster that is not well after so long does not get well by itself.
const STUCK: Duration = Duration::from_secs(5);

/// After so long a replica that was asked to take over no longer tries (`CLUSTER_MF_TIMEOUT`, 5 s).
const GIVEN_UP: Duration = Duration::from_secs(6);

/// Keys that are moved at once.
const BATCH: &str = "100";

/// Longest that moving a batch may take.
const MOVE_MS: &str = "2000";

/// A cluster of three masters with a replica each.
pub fn redis_cluster() -> RedisCluster {
    RedisCluster::of(3, 1)
}

/// The same, where each node goes by a clock of its own.
pub fn redis_cluster_by_clocks() -> RedisCluster {
    RedisCluster::made(3, 1, None, (0..6).map(|_| clock()).collect())
}

/// A cluster of two masters that speak TLS only, with this certificate, and are called by this name if there is one.
pub fn redis_cluster_over_tls(identity: &Identity, hostname: Option<&str>) -> RedisCluster {
    RedisCluster::made(2, 0, Some((identity, hostname)), Vec::new())
}

/// Servers that are one cluster. The masters came first; who is one now, the cluster says.
pub struct RedisCluster {
    nodes: Vec<Redis>,
    /// What they go by, if it is not the machine's.
    clocks: Vec<Clock>,
    /// What each of them says that it is reached by. They hear of each other past it.
    relays: Vec<Flaky>,
    /// Killed or frozen: not to be asked.
    away: Mutex<BTreeSet<usize>>,
    /// How many had to be started anew.
    started_anew: AtomicUsize,
    is_patient: bool,
}

/// A node, in its own words.
struct Member {
    id: String,
    /// Whom it copies, if it is no master.
    master: Option<String>,
    epoch: u64,
    slots: Vec<(usize, usize)>,
}

/// A slot that is on its way to another node.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Which.
    pub slot: usize,
    /// From which node.
    pub from: usize,
    /// To which.
    pub to: usize,
}

impl RedisCluster {
    /// So many masters, each with so many replicas; all know one another, and every slot is served.
    pub fn of(masters: usize, replicas: usize) -> Self {
        Self::made(masters, replicas, None, Vec::new())
    }

    fn made(masters: usize, replicas: usize, secured: Option<(&Identity, Option<&str>)>, clocks: Vec<Clock>) -> Self {
        let count = masters * (1 + replicas);
        let (nodes, relays) = (0..count).map(|node| start(secured, clocks.get(node))).unzip();
        let (away, started_anew) = (Mutex::default(), AtomicUsize::new(0));
        let cluster = Self { nodes, clocks, relays, away, started_anew, is_patient: false };
        for (i, node) in cluster.nodes.iter().enumerate() {
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            if i < masters {
                let slots = SLOTS * i / masters..SLOTS * (i + 1) / masters;
                let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
                let words = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str));
                node.cli(&words.collect::<Vec<_>>());
            }
        }
        cluster.meet();
        for replica in masters..cluster.nodes.len() {
            let master = cluster.member(replica % masters).id;
            // Not before it has heard that the other is a master.
            poll("the replica knows its master", || {
                cluster.nodes[replica].try_cli(&["CLUSTER", "REPLICATE", &master]).is_ok()
            });
        }
        cluster.is_well();
        cluster
    }

    /// Everybody is introduced to everybody, which gossip alone would take seconds for.
    fn meet(&self) {
        for (i, one) in self.nodes.iter().enumerate() {
            for other in &self.nodes[i + 1..] {
                let bus = other.cli(&["CONFIG", "GET", "cluster-announce-bus-port"]);
                let bus = bus.lines().nth(1).expect("a port");
                one.cli(&["CLUSTER", "MEET", "127.0.0.1", &other.address().port().to_string(), bus]);
            }
        }
        let knows_all = |node: &Redis| {
            let told = node.cli(&["CLUSTER", "NODES"]);
            told.lines().count() == self.nodes.len() && !told.contains("handshake")
        };
        poll("the nodes know one another", || self.nodes.iter().all(knows_all));
    }

    /// Nobody takes over by himself, or stops serving, however long a busy machine keeps a node waiting, or whatever others say.
    pub fn without_failovers(self) -> Self {
        (0..self.len()).for_each(|node| self.be_patient(node));
        Self { is_patient: true, ..self }
    }

    fn be_patient(&self, node: usize) {
        for (name, value) in [("cluster-node-timeout", "15000"), ("cluster-require-full-coverage", "no")] {
            self.cli(node, &["CONFIG", "SET", name, value]);
        }
    }

    /// Where clients reach them.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.relays.iter().map(Flaky::address).collect()
    }

    /// The way to one of them, for clients and for those who copy it.
    pub fn relay(&self, node: usize) -> &Flaky {
        &self.relays[node]
    }

    /// What one of them goes by.
    pub fn clock(&self, node: usize) -> &Clock {
        &self.clocks[node]
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// One of them.
    pub fn node(&self, node: usize) -> &Redis {
        &self.nodes[node]
    }

    /// Runs a command on one of them, whatever slots it serves.
    pub fn cli(&self, node: usize, words: &[&str]) -> String {
        self.nodes[node].cli(words)
    }

    /// Waits until all that are there serve, every replica has a master whose data it has, and all agree.
    pub fn is_well(&self) {
        self.wait("the cluster is well", || {
            let here = self.here();
            let agree = |node: &usize| self.try_agrees(*node).unwrap_or(false);
            here.iter().all(agree) && here.iter().map(|node| self.claims(*node)).sum::<usize>() == SLOTS
        });
    }

    /// Waits until every slot is served by a master that knows that it serves.
    pub fn serves(&self) {
        self.wait("every slot is served", || {
            let masters = self.masters();
            let ok = |node: &usize| {
                self.nodes[*node].try_cli(&["CLUSTER", "INFO"]).is_ok_and(|it| it.contains("cluster_state:ok"))
            };
            masters.iter().all(ok) && masters.iter().map(|node| self.claims(*node)).sum::<usize>() == SLOTS
        });
    }

    /// Waits for the cluster, and starts those anew whose clocks were set back if that keeps it. Such a master does not serve
    /// again, once it has stopped, before its clock is where it was at its start (`clusterUpdateState` counts from then), and
    /// does not take another for dead that it had heard of last when its clock was ahead (`clusterCron`).
    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        let condition = || {
            if began.elapsed() > STUCK {
                self.here()
                    .into_iter()
                    .filter(|node| self.clocks.get(*node).is_some_and(Clock::was_set_back))
                    .for_each(|node| {
                        self.kill(node);
                        self.restart(node);
                        self.started_anew.fetch_add(1, Ordering::Relaxed);
                    });
            }
            condition()
        };
        poll_or_say(what, condition, || self.told());
    }

    /// How many had to be started anew while somebody waited for the cluster: it may have lost what they had.
    pub fn started_anew(&self) -> usize {
        self.started_anew.load(Ordering::Relaxed)
    }

    /// What each says of itself and the others.
    fn told(&self) -> String {
        let mut told = String::new();
        for node in self.here() {
            let ahead = self.clocks.get(node).map(Clock::ahead);
            let nodes = self.nodes[node].try_cli(&["CLUSTER", "NODES"]).unwrap_or_else(|error| error.to_string());
            let _ = write!(told, "\nnode {node}, its clock ahead by {ahead:?}:\n{nodes}{}", self.nodes[node].story());
        }
        told
    }

    /// Whether a node sees a whole cluster, and as a replica has its master's data.
    fn try_agrees(&self, node: usize) -> std::io::Result<bool> {
        let info = self.nodes[node].try_cli(&["CLUSTER", "INFO"])?;
        let serves = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
        let replication = self.nodes[node].try_cli(&["INFO", "replication"])?;
        Ok(serves && !replication.contains("master_link_status:down"))
    }

    /// How many slots a node says are its own.
    fn claims(&self, node: usize) -> usize {
        self.try_member(node).map_or(0, |it| it.slots.iter().map(|(first, last)| last - first + 1).sum())
    }

    /// Those that were neither killed nor frozen.
    pub fn here(&self) -> Vec<usize> {
        let away = self.away.lock().expect("no panic while held");
        (0..self.nodes.len()).filter(|node| !away.contains(node)).collect()
    }

    /// Those of them that are masters.
    pub fn masters(&self) -> Vec<usize> {
        self.here().into_iter().filter(|node| self.try_member(*node).is_some_and(|it| it.master.is_none())).collect()
    }

    /// The master of a key's slot.
    pub fn owner_of(&self, key: &str) -> usize {
        self.owner(self.slot_of(key))
    }

    /// A key's slot.
    pub fn slot_of(&self, key: &str) -> usize {
        self.cli(self.here()[0], &["CLUSTER", "KEYSLOT", key]).parse().expect("a slot")
    }

    /// The master of a slot; of several that say so, as after a partition, the one of the latest epoch.
    pub fn owner(&self, slot: usize) -> usize {
        let mut found = None;
        poll("the slot has a master", || {
            let members = self.here().into_iter().filter_map(|node| Some((node, self.try_member(node)?)));
            let owns = |it: &Member| it.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            let owners = members.filter(|(_, it)| it.master.is_none() && owns(it));
            found = owners.max_by_key(|(_, it)| it.epoch).map(|(node, _)| node);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// A replica of this master that is there.
    pub fn replica_of(&self, master: usize) -> usize {
        let id = self.id(master);
        let copies = |node: &usize| self.try_member(*node).is_some_and(|it| it.master.as_ref() == Some(&id));
        self.here().into_iter().find(copies).unwrap_or_else(|| panic!("node {master} has no replica"))
    }

    /// A node's name, which all know, whether it is there or not.
    fn id(&self, node: usize) -> String {
        let port = self.relays[node].address().port();
        let told = self.cli(self.here()[0], &["CLUSTER", "NODES"]);
        let line = told.lines().find(|line| line.contains(&format!(":{port}@"))).expect("all know one another");
        line.split(' ').next().expect("a name").to_owned()
    }

    /// Ends one at once.
    pub fn kill(&self, node: usize) {
        self.leaves(node);
        self.nodes[node].kill();
    }

    /// One accepts connections and answers nothing.
    pub fn freeze(&self, node: usize) {
        self.leaves(node);
        self.nodes[node].freeze();
    }

    /// It goes on, as what the others think that it is.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].thaw();
        self.is_back(node);
    }

    /// One that was killed comes back without its data, and with what it knew of the cluster.
    pub fn restart(&self, node: usize) {
        if let Some(clock) = self.clocks.get(node) {
            clock.begins();
        }
        self.nodes[node].start();
        if self.is_patient {
            self.be_patient(node);
        }
        self.is_back(node);
    }

    fn leaves(&self, node: usize) {
        self.away.lock().expect("no panic while held").insert(node);
    }

    fn is_back(&self, node: usize) {
        self.away.lock().expect("no panic while held").remove(&node);
    }

    /// Waits until another serves what `node` did, and says which.
    pub fn taken_over(&self, slot: usize, from: usize) -> usize {
        let mut owner = from;
        self.wait("a replica takes over", || {
            owner = self.owner(slot);
            owner != from && self.nodes[owner].cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
        owner
    }

    /// A replica takes over from its master, which helps; it is asked again where it gave up.
    pub fn fail_over(&self, replica: usize) {
        // When it said that it would.
        let mut asked: Option<Instant> = None;
        self.wait("the replica takes over", || {
            if self.try_member(replica).is_some_and(|it| it.master.is_none()) {
                return true;
            }
            if asked.is_none_or(|at| at.elapsed() > GIVEN_UP) {
                asked = self.nodes[replica].try_cli(&["CLUSTER", "FAILOVER"]).ok().map(|_| Instant::now());
            }
            false
        });
    }

    /// Moves a slot with all that is in it.
    pub fn move_slot(&self, slot: usize, to: usize) {
        if let Some(on_its_way) = self.begin_move(slot, to) {
            self.finish_move(on_its_way);
        }
    }

    /// Both nodes know that a slot moves, and none of its keys has moved; nothing if it is there already.
    pub fn begin_move(&self, slot: usize, to: usize) -> Option<Move> {
        let from = self.owner(slot);
        if from == to {
            return None;
        }
        let (text, [source, target]) = (slot.to_string(), [from, to].map(|node| self.id(node)));
        self.cli(to, &["CLUSTER", "SETSLOT", &text, "IMPORTING", &source]);
        self.cli(from, &["CLUSTER", "SETSLOT", &text, "MIGRATING", &target]);
        Some(Move { slot, from, to })
    }

    /// One key moves with its slot: who asks for it is sent on by ASK, and for it and another one, by TRYAGAIN.
    pub fn move_key(&self, Move { from, to, .. }: Move, key: &str) {
        let port = self.nodes[to].address().port().to_string();
        self.cli(from, &["MIGRATE", "127.0.0.1", &port, key, "0", MOVE_MS, "REPLACE"]);
    }

    /// Keys of a slot that have not moved.
    pub fn left(&self, Move { slot, from, .. }: Move) -> Vec<String> {
        let told = self.cli(from, &["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), BATCH]);
        told.lines().map(str::to_owned).collect()
    }

    /// What is left moves, and all masters are told who has the slot now.
    pub fn finish_move(&self, on_its_way: Move) {
        let Move { slot, from, to } = on_its_way;
        let port = self.nodes[to].address().port().to_string();
        loop {
            let left = self.left(on_its_way);
            if left.is_empty() {
                break;
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", MOVE_MS, "REPLACE", "KEYS"];
            words.extend(left.iter().map(String::as_str));
            self.cli(from, &words);
        }
        let (text, target) = (slot.to_string(), self.id(to));
        // First the one who gets it: nobody may think that nobody has it.
        let others = self.masters().into_iter().filter(|node| ![from, to].contains(node));
        for node in [to, from].into_iter().chain(others) {
            self.cli(node, &["CLUSTER", "SETSLOT", &text, "NODE", &target]);
        }
    }

    /// How often a command was called on the nodes that are there: `calls("evalsha")`.
    pub fn calls(&self, command: &str) -> u64 {
        let wanted = format!("cmdstat_{command}:calls=");
        let of = |node: usize| {
            let told = self.cli(node, &["INFO", "commandstats"]);
            let calls =
                told.lines().find_map(|line| line.strip_prefix(&wanted)?.split(',').next()?.parse::<u64>().ok());
            calls.unwrap_or(0)
        };
        self.here().into_iter().map(of).sum()
    }

    fn member(&self, node: usize) -> Member {
        self.try_member(node).unwrap_or_else(|| panic!("node {node} does not say what it is"))
    }

    /// What a node says of itself, if it answers.
    fn try_member(&self, node: usize) -> Option<Member> {
        let told = self.nodes[node].try_cli(&["CLUSTER", "NODES"]).ok()?;
        let line = told.lines().find(|line| line.contains("myself"))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let range = |word: &&str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        Some(Member {
            id: (*words.first()?).to_owned(),
            master: words.get(3).filter(|id| **id != "-").map(|id| (*id).to_owned()),
            epoch: words.get(6)?.parse().ok()?,
            slots: words.iter().skip(8).filter_map(range).collect(),
        })
    }
}

/// A node that knows nobody, and the way to it.
fn start(secured: Option<(&Identity, Option<&str>)>, clock: Option<&Clock>) -> (Redis, Flaky) {
    let (node, bus) = match is_before_7() {
        true => {
            let port = free_port_with_bus();
            (redis_on(port), (port + BUS).to_string())
        }
        false => {
            let bus = free_port().to_string();
            (redis_not_started().with(&["--cluster-port", &bus]), bus)
        }
    };
    let relay = flaky(node.address());
    let announced = relay.address().port().to_string();
    let mut node = node.with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        NODE_TIMEOUT_MS,
        "--cluster-announce-ip",
        "127.0.0.1",
        "--cluster-announce-bus-port",
        &bus,
        // However long it has not heard of its master, it takes over.
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync-delay",
        "0",
        "--repl-ping-replica-period",
        "1",
    ]);
    node = match secured {
        None => node.with(&["--cluster-announce-port", &announced]),
        Some((identity, hostname)) => {
            let node =
                node.over_tls(identity).with(&["--tls-cluster", "yes", "--cluster-announce-tls-port", &announced]);
            hostname.iter().fold(node, |node, name| node.with(&["--cluster-announce-hostname", name]))
        }
    };
    node = clock.into_iter().fold(node, Redis::by);
    node.start();
    (node, relay)
}
