//! Clients who read, and programs that invalidate, each writing down what it saw.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;

use super::check::{Fault, Order, Read, Taken};
use super::dice::Dice;
use super::fetches::Trouble;
use super::pods::{At, Pod};
use super::service::{State, path_of};
use super::{GROUP, KEYS, TAGS};
use crate::harness::{Clock, Connection, Redis, get, request};

/// Longest that a client waits: longer than any pod is away.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often invalidators look whether it is their turn.
const PACE: Duration = Duration::from_millis(5);

/// Pause after a pod did not answer.
const AFTER_FAULT: Duration = Duration::from_millis(20);

/// What all of them share.
pub struct Stage {
    /// The fleet.
    pub pods: Arc<[Pod]>,
    /// The service's versions, and the time.
    pub state: Arc<State>,
    /// Redis itself, for programs that know no Weir; another one after a failover.
    pub redis: Mutex<Arc<Redis>>,
    /// Its clock, and that of those that take over from it.
    pub clock: Clock,
    /// Reads without which it is not over.
    pub reads: usize,
    /// Reads so far.
    pub read: AtomicUsize,
    /// Faults without which it is not over: reads may be faster than anything goes wrong.
    pub faults: usize,
    /// Faults so far.
    pub inflicted: AtomicUsize,
    /// Reads for each invalidation: those go on for as long as the reads do.
    pub reads_each: usize,
    /// Invalidations so far.
    pub ordered: AtomicUsize,
    /// What went wrong so far.
    pub troubles: Mutex<Vec<Trouble>>,
}

impl Stage {
    /// The server of the moment.
    pub fn redis(&self) -> Arc<Redis> {
        Arc::clone(&self.redis.lock().expect("no panic while held"))
    }

    /// Whether invalidations are ahead of the reads.
    fn is_ahead(&self) -> bool {
        self.ordered.load(Ordering::Relaxed) * self.reads_each > self.read.load(Ordering::Relaxed)
    }

    /// Whether there is anything left to do.
    pub fn goes_on(&self) -> bool {
        self.read.load(Ordering::Relaxed) < self.reads || self.inflicted.load(Ordering::Relaxed) < self.faults
    }
}

/// Reads one pod until enough was read in all.
pub async fn reader(stage: Arc<Stage>, pod: usize, mut dice: Dice) -> (Vec<Read>, Vec<Fault>) {
    let (mut reads, mut faults) = (Vec::new(), Vec::new());
    let mut open: Option<(Connection, At)> = None;
    while stage.goes_on() {
        stage.read.fetch_add(1, Ordering::Relaxed);
        // Some are read far more often than others.
        let key = dice.below(KEYS).min(dice.below(KEYS));
        let start = stage.state.now();
        let at = stage.pods[pod].at();
        let asked = async {
            let (connection, at) = match open.take().filter(|(_, there)| there.proxy == at.proxy) {
                Some(open) => open,
                None => (Connection::try_open(at.proxy).await.map_err(|error| error.to_string())?, at),
            };
            let mut connection = connection;
            let answer = connection.try_send(&get(&path_of(key))).await.map_err(|error| error.to_string())?;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let mut numbers = body.split(' ').map(str::parse::<u64>);
            let (Some(Ok(got)), Some(Ok(version)), 200) = (numbers.next(), numbers.next(), answer.status) else {
                return Err(format!("{} {body}", answer.status));
            };
            let read = Read { key, by: at.life, start, end: stage.state.now(), got: got as usize, version };
            Ok((read, connection.reusable.then_some((connection, at))))
        };
        match timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
            Ok((read, next)) => {
                reads.push(read);
                open = next;
            }
            Err(what) => {
                faults.push(Fault { pod, start, end: stage.state.now(), what });
                tokio::time::sleep(AFTER_FAULT).await;
            }
        }
    }
    (reads, faults)
}

/// How an invalidation comes in.
#[derive(Debug, Clone, Copy)]
enum Door {
    Admin,
    Purge,
    Write,
    Stream,
    Publish,
}

/// Invalidates as often as there are reads for it, until enough was read.
pub async fn invalidator(stage: Arc<Stage>, mut dice: Dice) -> Vec<Order> {
    let mut orders = Vec::new();
    while stage.goes_on() {
        if stage.is_ahead() {
            tokio::time::sleep(PACE).await;
            continue;
        }
        stage.ordered.fetch_add(1, Ordering::Relaxed);
        let door = dice.one_of(&[
            Door::Admin,
            Door::Admin,
            Door::Admin,
            Door::Purge,
            Door::Write,
            Door::Stream,
            Door::Publish,
        ]);
        let at = stage.pods[dice.below(stage.pods.len())].at();
        // Some while their key is fetched.
        let key = if dice.below(3) == 0 { stage.state.last_asked() } else { dice.below(KEYS) };
        let order = match door {
            Door::Purge => purge(&stage, at, key).await,
            Door::Write => write(&stage, at, key).await,
            Door::Admin | Door::Stream | Door::Publish => {
                let (keys, kind, name) = names(&mut dice, key);
                let keys = keys.into_iter().map(|key| (key, stage.state.change(key))).collect();
                let start = stage.state.now();
                let taken = match door {
                    Door::Stream => add(&stage, kind, &name).await,
                    Door::Publish => publish(&stage, kind, &name).await,
                    _ => post(at, kind, &name).await,
                };
                Order { keys, start, ack: stage.state.now(), taken, is_announced: matches!(door, Door::Publish) }
            }
        };
        orders.push(order);
    }
    orders
}

/// What to name for `key`, and what else is named by it.
fn names(dice: &mut Dice, key: usize) -> (Vec<usize>, &'static str, String) {
    let all = |is_named: &dyn Fn(usize) -> bool| (0..KEYS).filter(|key| is_named(*key)).collect();
    match dice.below(100) {
        0..40 => (vec![key], "urls", path_of(key)),
        40..70 => (vec![key], "tags", format!("key:{key}")),
        70..90 => (all(&|other| other % TAGS == key % TAGS), "tags", format!("a{}", key % TAGS)),
        90..98 => (all(&|other| other / GROUP == key / GROUP), "prefixes", format!("/k/{}", key / GROUP)),
        _ => (all(&|_| true), "routes", "keys".to_owned()),
    }
}

async fn post(at: At, kind: &str, name: &str) -> Taken {
    let order = request("POST", "/invalidate")
        .header("host", &at.admin.to_string())
        .header("content-type", "application/json")
        .body(format!("{{\"{kind}\":[\"{name}\"]}}"));
    match timeout(PATIENCE, order.try_send(at.admin)).await {
        Ok(Ok(answer)) => taken(answer.status, at),
        _ => Taken::No,
    }
}

async fn purge(stage: &Stage, at: At, key: usize) -> Order {
    let keys = vec![(key, stage.state.change(key))];
    let start = stage.state.now();
    let answer = timeout(PATIENCE, request("PURGE", &path_of(key)).try_send(at.proxy)).await;
    let taken = answer.ok().and_then(Result::ok).map_or(Taken::No, |answer| taken(answer.status, at));
    Order { keys, start, ack: stage.state.now(), taken, is_announced: false }
}

fn taken(status: u16, at: At) -> Taken {
    match status {
        200 => Taken::Logged(Some(at.life)),
        202 => Taken::Here(at.life),
        _ => Taken::No,
    }
}

/// A write says nothing of the log: what is certain is that the process that answered it knows.
async fn write(stage: &Stage, at: At, key: usize) -> Order {
    let start = stage.state.now();
    let answer = timeout(PATIENCE, request("PUT", &path_of(key)).body("").try_send(at.proxy)).await;
    let version = answer.ok().and_then(Result::ok).filter(|answer| answer.status == 200);
    let version = version.and_then(|answer| answer.number("x-version"));
    let taken = version.map_or(Taken::No, |_| Taken::Here(at.life));
    let keys = version.map(|version| (key, version)).into_iter().collect();
    Order { keys, start, ack: stage.state.now(), taken, is_announced: false }
}

async fn add(stage: &Stage, kind: &'static str, name: &str) -> Taken {
    let said = foreign(stage, ["XADD", "it:invalidate:in", "*", kind, name].map(str::to_owned).to_vec()).await;
    if said.is_some() { Taken::Logged(None) } else { Taken::No }
}

/// Whoever listens has it; nobody is told whether anybody did.
async fn publish(stage: &Stage, kind: &'static str, name: &str) -> Taken {
    let message = format!("{{\"{kind}\":[\"{name}\"]}}");
    foreign(stage, vec!["PUBLISH".to_owned(), "it:invalidate".to_owned(), message]).await;
    Taken::No
}

/// Says something to Redis, past any Weir.
async fn foreign(stage: &Stage, words: Vec<String>) -> Option<String> {
    let redis = stage.redis();
    let said = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        redis.try_cli(&words).ok()
    });
    said.await.ok().flatten()
}
