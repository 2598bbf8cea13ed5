//! What goes wrong, every few seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::dice::Dice;
use super::driver::Stage;
use super::fetches::{Loss, Trouble};
use super::pods::Pod;
use super::{BOUND, Micros};
use crate::harness::{Line, redis_by};

/// Between the end of one fault and the next.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1_500));

/// How long one lasts: shorter and longer than B.
const LENGTHS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(4_000));

/// So many bytes are evicted at once.
const EVICTED: u64 = 64 << 10;

/// How far clocks are set, in seconds.
const STEP: i64 = 3600;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A pod is stopped.
    PodStopped,
    /// A pod is killed and started anew.
    PodKilled,
    /// A pod's connections to Redis break.
    WayCut,
    /// Nothing comes through them.
    WaySwallowed,
    /// They are slow.
    WaySlow,
    /// All pods' connections break.
    AllCut,
    /// Nothing comes through to any.
    AllSwallowed,
    /// The subscriptions are ended.
    BusKicked,
    /// Redis accepts and does not answer.
    RedisFrozen,
    /// It comes back without its data; or, if it has taken over from another, with what it copied then.
    RedisEmpty,
    /// All its data is deleted.
    RedisFlushed,
    /// It can take nothing.
    RedisFull,
    /// It takes nothing, for want of replicas.
    RedisWithoutReplicas,
    /// It is a replica that has lost its master, and answers nothing.
    RedisWithoutMaster,
    /// It runs somebody's script that does not end.
    RedisBusy,
    /// It has room for three connections.
    RedisCrowded,
    /// It lets nobody run scripts.
    RedisForbids,
    /// It evicts some of its keys, whatever they are.
    RedisEvicts,
    /// The log is trimmed to nothing.
    LogTrimmed,
    /// Its scripts are gone.
    ScriptsGone,
    /// A replica takes over that has everything.
    FailedOver,
    /// A replica takes over from a master that died: it may not have everything.
    FailedOverLate,
    /// A replica takes over that lacks what the master took last, and the pods applied.
    FailedOverLossy,
    /// Its clock is set forward.
    RedisClockForward,
    /// Its clock is set back.
    RedisClockBack,
    /// It comes back without its data, and by a clock that was set back.
    RedisEmptyClockBack,
    /// A pod's clock is set forward.
    PodClockForward,
    /// A pod's clock is set back.
    PodClockBack,
}

/// After a pod or its way is well again, it may take so long to find that out.
const SETTLED: Duration = Duration::from_secs(1);

impl Fault {
    /// What of it may show at the service; it was done from `from` to `to`.
    fn trouble(self, pod: usize, from: Micros, to: Micros) -> Option<Trouble> {
        let (whose, settled, loss) = match self {
            // It listens before it has read the log.
            Self::PodKilled => (Some(pod), SETTLED * 3, Loss::None),
            Self::PodStopped | Self::WayCut | Self::WaySwallowed | Self::WaySlow => (Some(pod), SETTLED, Loss::None),
            Self::AllCut
            | Self::AllSwallowed
            | Self::BusKicked
            | Self::RedisFrozen
            | Self::RedisFull
            | Self::RedisWithoutReplicas
            | Self::RedisWithoutMaster
            | Self::RedisBusy
            | Self::RedisCrowded
            | Self::RedisForbids => (None, SETTLED, Loss::None),
            Self::PodClockForward | Self::PodClockBack => (Some(pod), SETTLED, Loss::Whole),
            Self::RedisEmpty
            | Self::RedisFlushed
            | Self::RedisEvicts
            | Self::LogTrimmed
            | Self::RedisClockForward
            | Self::RedisClockBack
            | Self::RedisEmptyClockBack => (None, SETTLED, Loss::Whole),
            // With pods that are gone, everything is logged again after B.
            Self::FailedOver | Self::FailedOverLate | Self::FailedOverLossy => (None, SETTLED + BOUND, Loss::Anew),
            Self::ScriptsGone => return None,
        };
        Some(Trouble { whose, from, to: to + settled.as_micros() as Micros, loss, what: Some(self) })
    }
}

/// What is done to pods, and to their ways.
pub const OF_PODS: &[Fault] = &[
    Fault::PodStopped,
    Fault::PodKilled,
    Fault::WayCut,
    Fault::WaySwallowed,
    Fault::WaySlow,
    Fault::AllCut,
    Fault::AllSwallowed,
    Fault::PodClockForward,
    Fault::PodClockBack,
];

/// What is done to one pod at a time, which is nothing to the others.
pub const OF_ONE_POD: &[Fault] = &[
    Fault::PodStopped,
    Fault::PodKilled,
    Fault::WayCut,
    Fault::WaySwallowed,
    Fault::WaySlow,
    Fault::ScriptsGone,
    Fault::PodClockForward,
    Fault::PodClockBack,
];

/// What is done to Redis, meanwhile.
pub const OF_REDIS: &[Fault] = &[
    Fault::BusKicked,
    Fault::RedisFrozen,
    Fault::RedisEmpty,
    Fault::RedisFlushed,
    Fault::RedisFull,
    Fault::RedisWithoutReplicas,
    Fault::RedisWithoutMaster,
    Fault::RedisBusy,
    Fault::RedisCrowded,
    Fault::RedisForbids,
    Fault::RedisEvicts,
    Fault::LogTrimmed,
    Fault::ScriptsGone,
    Fault::FailedOver,
    Fault::FailedOverLate,
    Fault::FailedOverLossy,
    Fault::RedisClockForward,
    Fault::RedisClockBack,
    Fault::RedisEmptyClockBack,
];

/// Those that `WEIR_ONLY` names, separated by commas; all without it.
fn chosen(faults: &[Fault]) -> Vec<Fault> {
    let only = std::env::var("WEIR_ONLY").unwrap_or_default();
    let is_named = |fault: &Fault| only.is_empty() || only.split(',').any(|name| name == format!("{fault:?}"));
    faults.iter().filter(|fault| is_named(fault)).copied().collect()
}

/// Does them until there is nothing left to do; how often each was done.
pub async fn driver(stage: Arc<Stage>, mut dice: Dice, faults: &[Fault]) -> BTreeMap<String, usize> {
    let mut done = BTreeMap::new();
    let faults = chosen(faults);
    if faults.is_empty() {
        return done;
    }
    // In each round every one of them, so that a short run has seen them all as far as it can.
    let mut left = Vec::new();
    while stage.goes_on() {
        tokio::time::sleep(dice.between(PAUSES.0, PAUSES.1)).await;
        if left.is_empty() {
            left.clone_from(&faults);
        }
        let fault = left.swap_remove(dice.below(left.len()));
        let length = dice.between(LENGTHS.0, LENGTHS.1);
        let pod = dice.below(stage.pods.len());
        let from = stage.state.now();
        inflict(&stage, fault, pod, length).await;
        stage.inflicted.fetch_add(1, Ordering::Relaxed);
        stage.troubles.lock().expect("no panic while held").extend(fault.trouble(pod, from, stage.state.now()));
        *done.entry(format!("{fault:?}")).or_default() += 1;
    }
    done
}

async fn inflict(stage: &Arc<Stage>, fault: Fault, pod: usize, length: Duration) {
    let pod = &stage.pods[pod];
    let all = |what: fn(&Pod)| stage.pods.iter().for_each(what);
    match fault {
        Fault::PodStopped => pod.stop(&stage.state, length).await,
        Fault::PodKilled => pod.kill(&stage.state, length / 10).await,
        Fault::WayCut => pod.relay.cut(),
        Fault::WaySwallowed => pod.relay.swallow(),
        Fault::WaySlow => pod.relay.delay(length / 20),
        Fault::AllCut => all(|pod| pod.relay.cut()),
        Fault::AllSwallowed => all(|pod| pod.relay.swallow()),
        Fault::BusKicked => say(stage, &["CLIENT", "KILL", "TYPE", "pubsub"]).await,
        Fault::RedisFrozen => stage.redis().freeze(),
        Fault::PodClockForward => pod.clock.advance(STEP),
        Fault::PodClockBack => pod.clock.advance(-STEP),
        Fault::RedisClockForward => stage.clock.advance(STEP),
        Fault::RedisClockBack => stage.clock.advance(-STEP),
        Fault::RedisEmpty | Fault::RedisEmptyClockBack => {
            let redis = stage.redis();
            redis.kill();
            if matches!(fault, Fault::RedisEmptyClockBack) {
                stage.clock.advance(-STEP);
            }
            tokio::time::sleep(length / 5).await;
            tokio::task::spawn_blocking(move || redis.start()).await.expect("it starts");
        }
        Fault::RedisFlushed => say(stage, &["FLUSHALL"]).await,
        Fault::RedisFull => say(stage, &["CONFIG", "SET", "maxmemory", "1"]).await,
        Fault::RedisWithoutReplicas => say(stage, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await,
        Fault::RedisWithoutMaster => {
            say(stage, &["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
            // Nobody listens there.
            say(stage, &["REPLICAOF", "127.0.0.1", "1"]).await;
        }
        Fault::RedisBusy => return by_line(stage, move |line| keep_busy(line, length)).await,
        Fault::RedisCrowded => return by_line(stage, move |line| crowd(line, length)).await,
        Fault::RedisForbids => say(stage, &["ACL", "SETUSER", "default", "-@scripting"]).await,
        Fault::RedisEvicts => by_line(stage, evict).await,
        Fault::LogTrimmed => say(stage, &["XTRIM", "it:log:{it:invalidate:in}", "MAXLEN", "0"]).await,
        Fault::ScriptsGone => say(stage, &["SCRIPT", "FLUSH"]).await,
        Fault::FailedOver => fail_over(stage, Heir::Whole).await,
        Fault::FailedOverLate => fail_over(stage, Heir::Late).await,
        Fault::FailedOverLossy => fail_over(stage, Heir::Lacking(length / 8)).await,
    }
    match fault {
        Fault::WayCut | Fault::WaySwallowed | Fault::WaySlow => {
            tokio::time::sleep(length).await;
            pod.relay.heal();
        }
        Fault::AllCut | Fault::AllSwallowed => {
            tokio::time::sleep(length).await;
            all(|pod| pod.relay.heal());
        }
        Fault::RedisFrozen => {
            tokio::time::sleep(length).await;
            stage.redis().thaw();
        }
        Fault::RedisFull => {
            tokio::time::sleep(length).await;
            say(stage, &["CONFIG", "SET", "maxmemory", "0"]).await;
        }
        Fault::RedisWithoutReplicas => {
            tokio::time::sleep(length).await;
            say(stage, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
        }
        Fault::RedisWithoutMaster => {
            tokio::time::sleep(length).await;
            say(stage, &["REPLICAOF", "NO", "ONE"]).await;
            say(stage, &["CONFIG", "SET", "replica-serve-stale-data", "yes"]).await;
        }
        Fault::RedisForbids => {
            tokio::time::sleep(length).await;
            say(stage, &["ACL", "SETUSER", "default", "+@all"]).await;
        }
        Fault::RedisEvicts => {
            tokio::time::sleep(length).await;
            say(stage, &["CONFIG", "SET", "maxmemory", "0"]).await;
            say(stage, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
        }
        _ => {}
    }
}

/// Does something by a connection of its own, which may wait.
async fn by_line(stage: &Arc<Stage>, what: impl FnOnce(&mut Line) -> std::io::Result<()> + Send + 'static) {
    let redis = stage.redis();
    let done = tokio::task::spawn_blocking(move || what(&mut redis.line())).await.expect("no panic");
    done.expect("Redis does as it is told");
}

/// A script runs for so long that Redis answers BUSY to everybody, until somebody ends it: a sentinel may be first.
///
/// # Errors
/// Redis does not do as it is told.
pub fn keep_busy(line: &mut Line, length: Duration) -> std::io::Result<()> {
    line.say(&["CONFIG", "SET", "lua-time-limit", "20"])?;
    let script = format!("local n = 0 while n < {} do n = n + 1 end", u64::MAX);
    let mut other = line.another()?;
    line.begin(&["EVAL", &script, "0"])?;
    std::thread::sleep(length);
    // A sentinel may have been first, and have made a replica of it, which ends connections.
    let _ = other.say(&["SCRIPT", "KILL"]);
    line.answer().expect_err("it was killed");
    // Refused, were it not over.
    line.another()?.say(&["CONFIG", "SET", "lua-time-limit", "5000"]).map(drop)
}

/// Everybody is sent away, and only two may come back.
///
/// # Errors
/// Redis does not do as it is told.
pub fn crowd(line: &mut Line, length: Duration) -> std::io::Result<()> {
    line.say(&["CONFIG", "SET", "maxclients", "3"])?;
    for kind in ["normal", "pubsub"] {
        line.say(&["CLIENT", "KILL", "TYPE", kind])?;
    }
    std::thread::sleep(length);
    line.say(&["CONFIG", "SET", "maxclients", "10000"]).map(drop)
}

/// From now on there is less room than what is there takes.
///
/// # Errors
/// Redis does not do as it is told.
pub fn evict(line: &mut Line) -> std::io::Result<()> {
    let memory = line.say(&["INFO", "memory"])?;
    let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse::<u64>().ok());
    let less = used.expect("INFO says it").saturating_sub(EVICTED).to_string();
    line.say(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"])?;
    line.say(&["CONFIG", "SET", "maxmemory", &less]).map(drop)
}

/// What a replica has when it takes over.
#[derive(Debug, Clone, Copy)]
enum Heir {
    /// All that the master took.
    Whole,
    /// What had come over when the master died.
    Late,
    /// Not what the master took in this time.
    Lacking(Duration),
}

/// The pods reach another server by the same address, as behind a service's.
async fn fail_over(stage: &Arc<Stage>, heir: Heir) {
    let (master, other) = (stage.redis(), Arc::clone(stage));
    let replica = tokio::task::spawn_blocking(move || {
        let replica = redis_by(&other.clock);
        replica.follow(&master);
        if matches!(heir, Heir::Late) {
            master.kill();
        }
        replica.take_over(&master, matches!(heir, Heir::Whole));
        Arc::new(replica)
    });
    let replica = replica.await.expect("no panic");
    if let Heir::Lacking(time) = heir {
        tokio::time::sleep(time).await;
    }
    stage.pods.iter().for_each(|pod| pod.relay.lead_to(replica.address()));
    let before = std::mem::replace(&mut *stage.redis.lock().expect("no panic while held"), replica);
    // Programs that have it still are answered until it is gone.
    tokio::task::spawn_blocking(move || drop(before)).await.expect("no panic");
}

async fn say(stage: &Arc<Stage>, words: &'static [&'static str]) {
    let redis = stage.redis();
    let said = tokio::task::spawn_blocking(move || redis.try_cli(words)).await.expect("no panic");
    said.unwrap_or_else(|error| panic!("{words:?}: {error}"));
}
