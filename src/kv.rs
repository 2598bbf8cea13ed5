//! Redis: connections, deadlines, breaker, scripts; the only module that imports `deadpool_redis`.
//!
//! [`Shared`] is what the process has once: which servers there are, each with its breaker, names, waiters. [`Redis`] is
//! one runtime's way there: a command goes to the server that has its first key, through a cloned handle on one of the two
//! connections to it, so that concurrent requests are pipelined. No request waits longer than its [`Budget`]; none that comes
//! while a server's breaker is open waits for it at all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use deadpool_redis::redis::Cmd;
use tokio::time::{Instant, timeout_at};

use crate::config::{ReadFrom, Servers};
use crate::metrics::{CommandMetrics, RedisPart, RedisResult};

pub mod breaker;
mod budget;
pub mod bus;
mod cluster;
mod command;
mod dial;
pub mod doorbell;
pub mod follow;
pub mod health;
pub mod inspect;
pub mod keys;
mod link;
mod reply;
mod sentinel;
mod server;
mod shared;
mod topology;

pub use budget::Budget;
pub use command::Script;
pub use doorbell::Ring;
pub use reply::{Reply, Unavailable};
pub use server::Server;
pub use shared::Shared;

use command::{ask, invocation};
use link::Slot;
use reply::Fault;
use topology::Node;

/// The kind of error that answers EVALSHA where the script is not known.
const NOSCRIPT: &str = "NOSCRIPT";

/// The kind of error that answers a script whose keys are on their way to another server.
const TRYAGAIN: &str = "TRYAGAIN";

/// After this it is asked again.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// Times that one command is sent, each answer but the last having named another server, or asked for patience.
const REDIRECTS: usize = 4;

/// Less than this share of the deadline is too little to judge a server by, if others had the rest.
const FAIR: u32 = 4;

/// Who takes a server's place is waited for with this share of what is left: the request may have more to ask elsewhere.
const OF_AN_HEIR: u32 = 2;

/// This runtime's way to Redis; cheap to clone. Its connections live on the runtime on which it was made.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    ways: Mutex<Ways>,
    /// Whose turn it is among copies.
    turn: AtomicUsize,
    /// Whether this is the control runtime's: not gated by the breaker, which is there for requests.
    control: bool,
    get: Arc<Known>,
    known: Mutex<Vec<(&'static str, Arc<Known>)>>,
}

/// This runtime's ways to the servers that are known.
#[derive(Default)]
struct Ways {
    by_node: HashMap<u64, Arc<Way>, ahash::RandomState>,
    /// [`Topology::forgotten`](topology::Topology::forgotten) when servers that had gone were taken out.
    forgotten: u64,
}

/// This runtime's connections to one server.
struct Way {
    node: Arc<Node>,
    /// GET and scripts with bodies: what is long must not stand in front of what is short.
    bodies: Slot,
    scripts: Slot,
    /// GET, where it is a copy of another.
    copies: Slot,
}

/// A command's metrics and, if it is a script, its SHA-1.
struct Known {
    name: &'static str,
    part: RedisPart,
    metrics: CommandMetrics,
    /// Whether it may be sent again where it may have been done.
    changes_nothing: bool,
    sha1: String,
}

#[derive(Clone, Copy)]
enum Lane {
    Scripts,
    Bodies,
    Copies,
}

impl Redis {
    /// A worker's way to Redis; to be called on that worker's runtime.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self::build(shared, false)
    }

    /// The control runtime's, for work that no request waits for: the breaker does not stop it, nor does its being slow
    /// open the breaker.
    pub fn control(shared: Arc<Shared>) -> Self {
        Self::build(shared, true)
    }

    fn build(shared: Arc<Shared>, control: bool) -> Self {
        let get = Arc::new(Known {
            name: "get",
            part: RedisPart::Commands,
            metrics: shared.metrics.command("get"),
            changes_nothing: true,
            sha1: String::new(),
        });
        Self(Arc::new(Inner {
            ways: Mutex::default(),
            turn: AtomicUsize::new(0),
            control,
            get,
            known: Mutex::default(),
            shared,
        }))
    }

    /// What the process has once.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// The longest that a request may wait for Redis.
    pub fn budget(&self) -> Budget {
        Budget::new(self.0.shared.deadline)
    }

    /// Waits for `key`'s bell.
    pub fn listen(&self, key: &[u8; 16]) -> Ring {
        self.0.shared.bells.listen(key)
    }

    /// GET.
    ///
    /// # Errors
    /// Redis gave no answer.
    pub async fn get(&self, key: &[u8], budget: &mut Budget) -> Result<Option<Bytes>, Unavailable> {
        let mut command = Cmd::with_capacity(2, 8 + key.len());
        command.arg("GET").arg(key);
        let copied = match self.0.shared.read_from {
            ReadFrom::Master => None,
            ReadFrom::Replica => self.replica_of(key),
        };
        let mut answer = match copied {
            Some(mut replica) => {
                let (mut share, began) = (budget.share(), Instant::now());
                let answer = self.follow(&mut replica, Lane::Copies, &command, &self.0.get, &mut share).await;
                budget.settle(&share, began.elapsed());
                answer
            }
            None => Err(Fault::NotSent),
        };
        // What a copy cannot say the master may.
        if answer.is_err() {
            answer = self.send(Lane::Bodies, key, &command, &self.0.get, budget).await;
        }
        match answer {
            Ok(Reply::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Runs a script, all of whose keys are in one slot: EVALSHA, loaded again on NOSCRIPT.
    ///
    /// # Errors
    /// Redis gave no answer.
    pub async fn run(
        &self,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
        budget: &mut Budget,
    ) -> Result<Reply, Unavailable> {
        self.run_on(Lane::Scripts, script, keys, args, budget).await
    }

    /// [`Redis::run`] for a script whose arguments or reply hold a body, on the connection for bodies.
    ///
    /// # Errors
    /// Redis gave no answer.
    pub async fn run_with_body(
        &self,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
        budget: &mut Budget,
    ) -> Result<Reply, Unavailable> {
        self.run_on(Lane::Bodies, script, keys, args, budget).await
    }

    async fn run_on(
        &self,
        lane: Lane,
        script: &'static Script,
        keys: &[&[u8]],
        args: &[&[u8]],
        budget: &mut Budget,
    ) -> Result<Reply, Unavailable> {
        debug_assert!(self.0.shared.groups(keys).is_none(), "{} touches several slots", script.name);
        let known = self.known(script);
        let command = invocation("EVALSHA", &known.sha1, keys, args);
        match self.send(lane, keys[0], &command, &known, budget).await {
            Err(Fault::Refused(kind)) if kind == NOSCRIPT => {}
            answer => return answer.map_err(Into::into),
        }
        // EVAL runs and keeps it, in one trip.
        let command = invocation("EVAL", script.source, keys, args);
        self.send(lane, keys[0], &command, &known, budget).await.map_err(Into::into)
    }

    async fn send(
        &self,
        lane: Lane,
        key: &[u8],
        command: &Cmd,
        known: &Known,
        budget: &mut Budget,
    ) -> Result<Reply, Fault> {
        let Some(mut way) = self.master_of(key) else {
            known.metrics.ended(RedisResult::Unavailable, Duration::ZERO);
            return Err(Fault::NotSent);
        };
        let first = way.node.id;
        let mut answer = self.follow(&mut way, lane, command, known, budget).await;
        // It may have been done: only what changes nothing is asked again.
        if matches!(answer, Err(Fault::Dropped)) && known.changes_nothing && !budget.left().is_zero() {
            answer = self.follow(&mut way, lane, command, known, budget).await;
        }
        let is_gone = matches!(answer, Err(Fault::Gone)) && way.node.id == first;
        if is_gone && let Some(mut heir) = self.heir_of(key, first, budget).await {
            answer = self.follow(&mut heir, lane, command, known, budget).await;
        }
        answer
    }

    /// The way to who has `key` in place of the server that is gone, if that is known within a share of the budget: once for each
    /// budget. Nobody waits for the control runtime, and it asks again.
    async fn heir_of(&self, key: &[u8], gone: u64, budget: &mut Budget) -> Option<Arc<Way>> {
        let is_alone = matches!(self.0.shared.topology.servers, Servers::Standalone(_));
        if is_alone || self.0.control || budget.has_waited() {
            return None;
        }
        let (mut changes, began) = (self.0.shared.changes(), Instant::now());
        let known = async {
            loop {
                match self.master_of(key) {
                    Some(way) if way.node.id != gone => return Some(way),
                    _ => changes.changed().await.ok()?,
                }
            }
        };
        let heir = timeout_at(began + budget.left() / OF_AN_HEIR, known).await.ok().flatten();
        budget.wait(began.elapsed());
        heir
    }

    /// Sends it there, and from there to whichever server has the key by now; `way` is then to the last of them.
    async fn follow(
        &self,
        way: &mut Arc<Way>,
        lane: Lane,
        command: &Cmd,
        known: &Known,
        budget: &mut Budget,
    ) -> Result<Reply, Fault> {
        let (mut asking, mut answer) = (false, Err(Fault::NotSent));
        for sent in 1..=REDIRECTS {
            answer = self.send_to(way, (lane, asking), command, known, budget).await;
            let topology = &self.0.shared.topology;
            if answer.as_ref().is_err_and(Fault::casts_doubt) {
                topology.doubt();
            }
            let to = match &answer {
                _ if sent == REDIRECTS => break,
                Err(Fault::Moved(to) | Fault::Ask(to)) => follow::address(to, &way.node.address),
                Err(Fault::Refused(kind)) if kind == TRYAGAIN && budget.left() > TRY_AGAIN => {
                    // Some of its keys are here and some there, for a moment.
                    let began = Instant::now();
                    tokio::time::sleep(TRY_AGAIN).await;
                    budget.pause(began.elapsed());
                    match budget.left().is_zero() {
                        true => break,
                        false => continue,
                    }
                }
                _ => break,
            };
            let Some(to) = to else { break };
            asking = matches!(answer, Err(Fault::Ask(_)));
            *way = self.way(&topology.named(&to));
        }
        answer
    }

    async fn send_to(
        &self,
        way: &Way,
        lane: (Lane, bool),
        command: &Cmd,
        known: &Known,
        budget: &mut Budget,
    ) -> Result<Reply, Fault> {
        let breaker = &way.node.breaker;
        if breaker.is_open() && !self.0.control {
            known.metrics.ended(RedisResult::Unavailable, Duration::ZERO);
            return Err(Fault::NotSent);
        }
        // Nor is it a server's doing that this process was too busy to look for an earlier answer.
        let is_judged =
            !budget.was_missed() && (budget.is_only(way.node.id) || budget.left() >= self.0.shared.deadline / FAIR);
        let started = Instant::now();
        let is_unsent = budget.left().is_zero();
        let answer = if is_unsent {
            // Earlier answers were so slow that nothing is left for this one: that is trouble too.
            Err(Fault::Timeout)
        } else {
            self.attempt(way, lane, command, started + budget.left()).await
        };
        let took = started.elapsed();
        let answered = !matches!(answer, Err(Fault::NotSent | Fault::Gone | Fault::Timeout | Fault::Dropped));
        budget.spend_on(way.node.id, took, answered);
        let (result, trouble) = match &answer {
            Ok(_) => (RedisResult::Ok, None),
            Err(Fault::NotSent | Fault::Gone) => (RedisResult::Unavailable, None),
            Err(Fault::Timeout) => {
                let is_trouble = is_judged && (budget.charge() || !is_unsent);
                (RedisResult::Timeout, is_trouble.then_some("answers are late"))
            }
            Err(Fault::Dropped) => (RedisResult::Timeout, Some("a connection ended")),
            Err(Fault::Moved(_) | Fault::Ask(_)) => (RedisResult::Redirected, None),
            Err(fault @ Fault::Refused(kind)) => (RedisResult::Error, fault.is_trouble().then_some(kind.as_str())),
        };
        // A script that Redis does not know yet is sent whole next, and counted then.
        if !matches!(&answer, Err(Fault::Refused(kind)) if kind == NOSCRIPT) {
            known.metrics.ended(result, took);
        }
        self.0.shared.health.answered(known.part, known.name, answer.as_ref().err());
        if !self.0.control {
            match trouble {
                Some(cause) => breaker.failed(cause),
                None if !matches!(result, RedisResult::Unavailable | RedisResult::Timeout) => breaker.succeeded(),
                None => {}
            }
        }
        answer
    }

    async fn attempt(
        &self,
        way: &Way,
        (lane, asking): (Lane, bool),
        command: &Cmd,
        until: Instant,
    ) -> Result<Reply, Fault> {
        let slot = match lane {
            Lane::Scripts => &way.scripts,
            Lane::Bodies => &way.bodies,
            Lane::Copies => &way.copies,
        };
        let sent_on = AtomicU64::new(0);
        let whole = async {
            let mut link = slot.acquire(&self.0.shared, &way.node, !self.0.control).await?;
            sent_on.store(link.id, Ordering::Relaxed);
            let answer = match asking {
                false => link.wire.connection.send_packed_command(command).await,
                true => ask(&mut link.wire.connection, command).await,
            };
            let answer = reply::read(answer);
            match answer {
                Err(Fault::Dropped) => slot.discard(link.id),
                _ => slot.answered(link.id),
            }
            answer
        };
        timeout_at(until, whole).await.unwrap_or_else(|_| {
            // Who got no connection says nothing of the one that came.
            slot.missed(sent_on.load(Ordering::Relaxed));
            Err(Fault::Timeout)
        })
    }

    fn master_of(&self, key: &[u8]) -> Option<Arc<Way>> {
        let map = self.0.shared.topology.map();
        map.owner(key).map(|master| self.way(&master.node))
    }

    /// One of the copies of what has `key`, unless none is of use.
    fn replica_of(&self, key: &[u8]) -> Option<Arc<Way>> {
        let map = self.0.shared.topology.map();
        let replicas = &map.owner(key)?.replicas;
        let useful = || replicas.iter().filter(|replica| !replica.breaker.is_open());
        let one = useful().nth(self.0.turn.fetch_add(1, Ordering::Relaxed) % useful().count().max(1))?;
        Some(self.way(one))
    }

    fn way(&self, node: &Arc<Node>) -> Arc<Way> {
        let mut ways = self.0.ways.lock().expect("no panic while held");
        let forgotten = self.0.shared.topology.forgotten();
        if ways.forgotten != forgotten {
            ways.forgotten = forgotten;
            let known = self.0.shared.topology.known();
            ways.by_node.retain(|id, _| known.iter().any(|node| node.id == *id));
        }
        let make = || {
            Arc::new(Way {
                node: Arc::clone(node),
                bodies: Slot::default(),
                scripts: Slot::default(),
                copies: Slot::of_copies(),
            })
        };
        Arc::clone(ways.by_node.entry(node.id).or_insert_with(make))
    }

    /// What is known of `script` on this runtime. A handful of scripts: a scan beats a map.
    fn known(&self, script: &'static Script) -> Arc<Known> {
        let mut known = self.0.known.lock().expect("no panic while held");
        if let Some((_, one)) = known.iter().find(|(name, _)| *name == script.name) {
            return Arc::clone(one);
        }
        let sha1 = deadpool_redis::redis::Script::new(script.source).get_hash().to_owned();
        let one = Arc::new(Known {
            name: script.name,
            part: RedisPart::Scripts,
            metrics: self.0.shared.metrics.command(script.name),
            changes_nothing: false,
            sha1,
        });
        known.push((script.name, Arc::clone(&one)));
        one
    }
}

/// A random number from the system: ids and incarnations.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(got, Ok(8), "the kernel always has eight random bytes");
    u64::from_ne_bytes(bytes)
}

/// `pause` give or take a quarter, so that a fleet that lost Redis at once does not come back at once.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + (random() % 1000) as f64 / 2000.0)
}

#[cfg(test)]
mod fake;

#[cfg(test)]
mod several_tests;

#[cfg(test)]
pub(crate) mod tests;
