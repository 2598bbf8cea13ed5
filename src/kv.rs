//! Redis: connections, deadlines, breaker, scripts; the only module that imports `deadpool_redis`.
//!
//! [`Shared`] is what the process has once: address, names, breaker, waiters. [`Redis`] is one runtime's way there:
//! commands go through cloned handles on its two connections, so that concurrent requests are pipelined. No request waits longer than its [`Budget`]; while the breaker is open none waits at all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use deadpool_redis::redis::{Cmd, Value};
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::config;
use crate::metrics::{CommandMetrics, Metrics, RedisResult};

pub mod breaker;
pub mod bus;
mod dial;
pub mod doorbell;
pub mod inspect;
pub mod keys;
mod link;
mod reply;

pub use doorbell::Ring;
pub use reply::Reply;

use breaker::Breaker;
use dial::Dialer;
use doorbell::Doorbells;
use keys::Keys;
use link::Slot;
use reply::Fault;

/// The kind of error that answers EVALSHA where the script is not known.
const NOSCRIPT: &str = "NOSCRIPT";

/// What one request may still wait for Redis, all in all.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    left: Duration,
}

impl Budget {
    /// A request's whole allowance.
    pub fn new(left: Duration) -> Self {
        Self { left }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Takes `spent` off.
    pub fn spend(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }
}

/// Why Redis gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// The breaker is open, or there is no connection.
    NotSent,
    /// Not answered within the budget, or the connection ended first; it may have been done all the same.
    Timeout,
    /// Answered with an error; its kind (`READONLY`, `OOM`, ...).
    Refused(String),
}

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent => f.write_str("Redis cannot be reached"),
            Self::Timeout => f.write_str("Redis did not answer in time"),
            Self::Refused(kind) => write!(f, "Redis refused: {kind}"),
        }
    }
}

/// A Lua script; one `static` each.
#[derive(Debug)]
pub struct Script {
    /// Name in metrics; no two scripts share one.
    pub name: &'static str,
    /// Source text.
    pub source: &'static str,
}

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
    /// See [`Shared::lost_ms`].
    lost_ms: AtomicU64,
    breaker: Breaker,
    bells: Doorbells,
    server: config::Address,
    dialer: Dialer,
}

impl Shared {
    /// When Redis was last found to have lost its data, by its own time in ms; 0: never.
    pub fn lost_ms(&self) -> u64 {
        self.lost_ms.load(Ordering::Relaxed)
    }

    /// Redis has lost its data at this time of its own, in ms; 0: it has not.
    pub fn note_loss(&self, at_ms: u64) {
        self.lost_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Connects to nothing.
    pub fn new(config: &config::Redis, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        let config::Servers::Standalone(server) = &config.servers;
        Arc::new(Self {
            keys: Keys::new(&config.namespace),
            deadline: config.deadline,
            startup_wait: config.startup_wait,
            bus: config.bus,
            lost_ms: AtomicU64::new(0),
            breaker: Breaker::new(metrics.redis_breaker_open.clone(), clock.clone()),
            clock,
            metrics,
            bells: Doorbells::default(),
            server: server.clone(),
            dialer: Dialer::new(config),
        })
    }

    /// Another way to the same Redis, whose commands count in `metrics`, and whose troubles are its own.
    pub fn apart(&self, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            keys: self.keys.clone(),
            deadline: self.deadline,
            startup_wait: self.startup_wait,
            bus: self.bus,
            lost_ms: AtomicU64::new(self.lost_ms()),
            breaker: Breaker::new(metrics.redis_breaker_open.clone(), self.clock.clone()),
            clock: self.clock.clone(),
            metrics,
            bells: Doorbells::default(),
            server: self.server.clone(),
            dialer: self.dialer.clone(),
        })
    }

    /// How connections are opened from now on.
    pub fn set_access(&self, access: &config::Access) {
        self.dialer.set_access(access);
    }

    /// The breaker that all runtimes share.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Who waits for a key in this process.
    pub fn bells(&self) -> &Doorbells {
        &self.bells
    }
}

/// This runtime's way to Redis; cheap to clone. Its connections live on the runtime on which it was made.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// GET and scripts with bodies: what is long must not stand in front of what is short.
    bodies: Slot,
    scripts: Slot,
    /// Whether this is the control runtime's: not gated by the breaker, which is there for requests.
    control: bool,
    get: Arc<Known>,
    known: Mutex<Vec<(&'static str, Arc<Known>)>>,
}

/// A command's metrics and, if it is a script, its SHA-1.
struct Known {
    metrics: CommandMetrics,
    sha1: String,
}

#[derive(Clone, Copy)]
enum Lane {
    Scripts,
    Bodies,
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
        let get = Arc::new(Known { metrics: shared.metrics.command("get"), sha1: String::new() });
        Self(Arc::new(Inner {
            bodies: Slot::default(),
            scripts: Slot::default(),
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
        match self.send(Lane::Bodies, &command, &self.0.get, budget).await {
            Ok(Reply::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Runs a script: EVALSHA, loaded again on NOSCRIPT.
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
        let known = self.known(script);
        let command = invocation("EVALSHA", &known.sha1, keys, args);
        match self.send(lane, &command, &known, budget).await {
            Err(Fault::Refused(kind)) if kind == NOSCRIPT => {}
            answer => return answer.map_err(Into::into),
        }
        // EVAL runs and keeps it, in one trip.
        let command = invocation("EVAL", script.source, keys, args);
        self.send(lane, &command, &known, budget).await.map_err(Into::into)
    }

    async fn send(&self, lane: Lane, command: &Cmd, known: &Known, budget: &mut Budget) -> Result<Reply, Fault> {
        let breaker = &self.0.shared.breaker;
        if breaker.is_open() && !self.0.control {
            known.metrics.ended(RedisResult::Unavailable, Duration::ZERO);
            return Err(Fault::NotSent);
        }
        let started = Instant::now();
        let answer = if budget.left().is_zero() {
            // Earlier answers were so slow that nothing is left for this one: that is trouble too.
            Err(Fault::Timeout)
        } else {
            self.attempt(lane, command, started + budget.left()).await
        };
        let took = started.elapsed();
        budget.spend(took);
        let (result, trouble) = match &answer {
            Ok(_) => (RedisResult::Ok, None),
            Err(Fault::NotSent) => (RedisResult::Unavailable, None),
            Err(Fault::Timeout) => (RedisResult::Timeout, Some("answers are late")),
            Err(Fault::Dropped) => (RedisResult::Timeout, Some("a connection ended")),
            Err(fault @ Fault::Refused(kind)) => (RedisResult::Error, fault.is_trouble().then_some(kind.as_str())),
        };
        // A script that Redis does not know yet is sent whole next, and counted then.
        if !matches!(&answer, Err(Fault::Refused(kind)) if kind == NOSCRIPT) {
            known.metrics.ended(result, took);
        }
        if !self.0.control {
            match trouble {
                Some(cause) => breaker.failed(cause),
                None if result != RedisResult::Unavailable => breaker.succeeded(),
                None => {}
            }
        }
        answer
    }

    async fn attempt(&self, lane: Lane, command: &Cmd, until: Instant) -> Result<Reply, Fault> {
        let slot = match lane {
            Lane::Scripts => &self.0.scripts,
            Lane::Bodies => &self.0.bodies,
        };
        let whole = async {
            let mut link = slot.acquire(&self.0.shared).await?;
            match link.wire.connection.send_packed_command(command).await {
                Ok(Value::ServerError(error)) => Err(Fault::Refused(error.code().to_owned())),
                Ok(value) => {
                    slot.answered();
                    Ok(Reply::from(value))
                }
                Err(error) => {
                    let fault = Fault::from(error);
                    match fault {
                        Fault::Dropped => slot.discard(link.id),
                        _ => slot.answered(),
                    }
                    Err(fault)
                }
            }
        };
        timeout_at(until, whole).await.unwrap_or_else(|_| {
            slot.missed();
            Err(Fault::Timeout)
        })
    }

    /// What is known of `script` on this runtime. A handful of scripts: a scan beats a map.
    fn known(&self, script: &'static Script) -> Arc<Known> {
        let mut known = self.0.known.lock().expect("no panic while held");
        if let Some((_, one)) = known.iter().find(|(name, _)| *name == script.name) {
            return Arc::clone(one);
        }
        let sha1 = deadpool_redis::redis::Script::new(script.source).get_hash().to_owned();
        let one = Arc::new(Known { metrics: self.0.shared.metrics.command(script.name), sha1 });
        known.push((script.name, Arc::clone(&one)));
        one
    }
}

fn invocation(verb: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
    let size = keys.iter().chain(args).map(|part| part.len()).sum::<usize>();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), verb.len() + script.len() + 8 + size);
    command.arg(verb).arg(script).arg(keys.len());
    for part in keys.iter().chain(args) {
        command.arg(*part);
    }
    command
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
pub(crate) mod tests;
