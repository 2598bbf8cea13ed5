//! What is not as it should be with a server: looked for when it is first reached, said in the log with a remedy, and never
//! a reason not to start.

pub mod commands;
pub mod info;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{Cmd, Value};
use tokio::time::Instant;

use super::bus::Dedicated;
use super::keys::Keys;
use super::reply::{Fault, Reply};
use super::topology::Node;
use super::{Shared, Unavailable, jittered};
use crate::clock::Stopwatch;
use crate::config::{self, Bus, Config, Servers};

use commands::{COMMANDS, Command, SUBSCRIBE};
use info::{Info, Memory, Version};

/// Pause before a server that could not be looked at is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Time after which one that was looked at is looked at anew: settings and permissions are changed while it runs.
const ANEW: Duration = Duration::from_secs(300);

/// Longest that one answer is waited for. Far above any deadline: a slow server is to be found slow.
const ANSWER: Duration = Duration::from_secs(5);

/// Reads of which the middle one tells how far away a server is; odd.
const READS: usize = 5;

/// Share of the deadline within which a read should be answered: a request may need three, and their times vary.
const PROMPT: u32 = 4;

/// The largest answers of which a server should have room for so many, else they drive each other out.
const LARGEST: u64 = 32;

/// Bytes of a full log of invalidations (`docs/redis.md`, "Sizing"), and of the server itself.
const LOG: u64 = 16 << 20;

/// Bytes of a stored answer beside its body, and of a bucket (there too).
const ANSWER_BYTES: u64 = 720;
const BUCKET_BYTES: u64 = 220;

/// What a configuration needs of a server.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Names of keys and channels.
    pub keys: Keys,
    /// Longest that one request waits for Redis.
    pub deadline: Duration,
    /// Bytes of the largest value that is stored.
    pub largest: u64,
    /// Whether a route has limits.
    pub has_limits: bool,
    /// What the operator expects to be stored at once, in bytes; 0: nobody says.
    pub expected: u64,
    /// Number of the database.
    pub database: u32,
    /// Whether Redis itself tells of changes.
    pub tracking: bool,
    /// Whether it is a Cluster.
    pub cluster: bool,
    /// Whether Sentinels name the master.
    pub sentinel: bool,
}

impl Needs {
    /// Those of this configuration, whose Redis this is.
    pub fn of(config: &Config, redis: &config::Redis) -> Self {
        Self {
            keys: Keys::new(&redis.namespace),
            deadline: redis.deadline,
            largest: redis.max_value.min(config.cache.max_object) as u64,
            has_limits: config.routes.iter().any(|route| !route.limits.is_empty()),
            expected: expected(config, redis),
            database: redis.database,
            tracking: redis.bus == Bus::Tracking,
            cluster: matches!(redis.servers, Servers::Cluster { .. }),
            sentinel: matches!(redis.servers, Servers::Sentinel { .. }),
        }
    }
}

/// Bytes of the answers and buckets that the operator expects, all servers together.
fn expected(config: &Config, redis: &config::Redis) -> u64 {
    // One that several routes share is counted once.
    let counted = |limit: &config::Limit| (limit.scope.clone(), limit.quotas.len() as u64);
    let limits: HashMap<_, _> = config.routes.iter().flat_map(|route| &route.limits).map(|one| counted(one)).collect();
    let answers = u64::from(redis.expected_entries) * (ANSWER_BYTES + redis.expected_body as u64);
    answers + u64::from(redis.expected_identities) * BUCKET_BYTES * limits.values().sum::<u64>()
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, and what comes of it.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

/// What was seen of a server.
#[derive(Debug)]
pub struct Inspection {
    /// Which run of which server it was.
    pub run_id: String,
    /// Its version, if it says so.
    pub version: Option<Version>,
    /// Its room.
    pub memory: Memory,
    /// Time for a read.
    pub latency: Duration,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl Inspection {
    /// Says it in the log.
    pub fn report(&self, server: &str) {
        for Finding { text, remedy } in &self.findings {
            tracing::warn!(server, remedy, "{text}");
        }
        tracing::info!(
            server,
            version = self.version.as_ref().map(ToString::to_string),
            policy = self.memory.policy,
            maxmemory = self.memory.most,
            used_memory = self.memory.used,
            when_full = self.memory.when_full(),
            latency = ?self.latency,
            findings = self.findings.len(),
            "Redis was looked at"
        );
    }
}

/// What was seen of a server before.
struct Seen {
    /// Its breaker's generation then.
    generation: u64,
    at: Instant,
    run_id: String,
    findings: Vec<Finding>,
}

impl Seen {
    /// Whether nothing can be said to have happened since.
    fn is_fresh(&self, generation: u64) -> bool {
        self.generation == generation && self.at.elapsed() < ANEW
    }

    fn is_as(&self, now: &Inspection) -> bool {
        // How long a read took is never the same twice.
        let text = |findings: &[Finding]| findings.iter().map(|one| one.remedy.clone()).collect::<Vec<_>>();
        self.run_id == now.run_id && text(&self.findings) == text(&now.findings)
    }
}

/// Looks at each server that requests may ask once it can be reached, and again when it was in trouble, when there are
/// others, and now and then; says what it sees if that is news. Runs for ever.
pub async fn watch(shared: Arc<Shared>, needs: Needs) {
    let mut changes = shared.topology.changes();
    let mut known: HashMap<u64, Seen> = HashMap::new();
    loop {
        let mut servers = Vec::new();
        for master in shared.topology.map().masters() {
            let of_one = (master.node.clone(), Place::Master(shared.topology.map().masters().len()));
            servers.push(of_one);
            servers.extend(master.replicas.iter().map(|copy| (copy.clone(), Place::Copy)));
        }
        known.retain(|id, _| servers.iter().any(|(node, _)| node.id == *id));
        for (node, place) in servers.iter().filter(|(node, _)| !node.breaker.is_open()) {
            let generation = node.breaker.generation();
            let before = known.get(&node.id);
            if before.is_some_and(|before| before.is_fresh(generation)) {
                continue;
            }
            let Ok(seen) = look(&shared, node, *place, &needs).await else { continue };
            if before.is_none_or(|before| !before.is_as(&seen)) {
                seen.report(&node.address.to_string());
            }
            let (run_id, findings) = (seen.run_id, seen.findings);
            known.insert(node.id, Seen { generation, at: Instant::now(), run_id, findings });
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(jittered(AGAIN)) => {}
        }
    }
}

async fn look(shared: &Shared, node: &Node, place: Place, needs: &Needs) -> Result<Inspection, Unavailable> {
    inspect(&mut Dedicated::to(shared, node).await?, place, needs).await
}

/// What a server is among those of one Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One of so many masters, over which keys are spread.
    Master(usize),
    /// A copy, from which is read.
    Copy,
}

/// Looks at the server at the other end of `connection`, which is of no further use.
///
/// # Errors
/// It stopped answering.
pub async fn inspect(connection: &mut Dedicated, place: Place, needs: &Needs) -> Result<Inspection, Unavailable> {
    let info = match ask(connection, &[b"INFO"]).await? {
        Said::Yes(reply) => {
            Info::new(reply.bytes().map_or_else(String::new, |text| String::from_utf8_lossy(text).into()))
        }
        _ => Info::default(),
    };
    let latency = latency(connection, needs).await?;
    let mut findings = Vec::new();
    findings.extend(age(&info));
    if let Place::Master(masters) = place {
        findings.extend(role(&info, needs));
        findings.extend(room(&info.memory(), masters, needs));
    }
    findings.extend(eviction(&info.memory(), needs));
    findings.extend(pace(latency, needs));
    findings.extend(permissions(connection, needs).await?);
    Ok(Inspection {
        run_id: info.field("run_id").unwrap_or_default().to_owned(),
        version: info.version(),
        memory: info.memory(),
        latency,
        findings,
    })
}

fn age(info: &Info) -> Option<Finding> {
    let version = info.version().filter(|version| version.is_old)?;
    Some(Finding {
        text: format!(
            "this is {version}, and Weir is made for 6.2 or newer: the log of invalidations is not trimmed by age, and before \
             6.0 pods do not hear of invalidations at once"
        ),
        remedy: "run Redis 6.2 or newer, or Valkey".to_owned(),
    })
}

fn role(info: &Info, needs: &Needs) -> Option<Finding> {
    let (host, port) = info.master()?;
    let remedy = match needs.cluster || needs.sentinel {
        false => format!("let `redis.url` lead to the master, {host}:{port}"),
        true => "none, if a failover is under way; else look why those who name the masters name this one".to_owned(),
    };
    Some(Finding {
        text: format!(
            "this Redis is a replica of {host}:{port} and refuses writes: nothing is stored, limits fall back, and no \
             invalidation is logged or proven"
        ),
        remedy,
    })
}

fn eviction(memory: &Memory, needs: &Needs) -> Option<Finding> {
    let consequence = memory.when_full()?;
    if memory.is_apt(needs.has_limits) {
        return None;
    }
    Some(Finding {
        text: format!("maxmemory-policy is {}. When Redis is full, {consequence}", memory.policy),
        remedy:
            "set maxmemory-policy to volatile-lru, and maxmemory such that nothing is evicted (docs/redis.md, Sizing)"
                .to_owned(),
    })
}

fn room(memory: &Memory, masters: usize, needs: &Needs) -> Option<Finding> {
    let Some(most) = memory.most else {
        // Who does not say what it holds does not say this either.
        return (memory.used > 0).then(|| Finding {
            text: "maxmemory is not set: Redis grows until the system ends it for want of memory".to_owned(),
            remedy: "set maxmemory, with a policy of volatile-lru (docs/redis.md, Sizing)".to_owned(),
        });
    };
    // A quarter more than is stored, for what the allocator rounds up.
    let expected = (LOG + needs.expected / masters.max(1) as u64) / 4 * 5;
    if needs.expected > 0 && most < expected {
        return Some(Finding {
            text: format!(
                "maxmemory is {most} bytes, and what `redis.expected_entries` and `redis.expected_identities` say takes \
                 {expected} of each of {masters} masters: what is used least is evicted, or nothing new is stored"
            ),
            remedy: format!("set maxmemory to {expected} or more (docs/redis.md, Sizing)"),
        });
    }
    let least = LOG + LARGEST * needs.largest;
    if most >= least {
        return None;
    }
    Some(Finding {
        text: format!(
            "maxmemory is {most} bytes, and the log of invalidations may take {LOG}, {LARGEST} of the largest answers {} \
             ({} each)",
            LARGEST * needs.largest,
            needs.largest
        ),
        remedy: format!(
            "set maxmemory to {least} or more (docs/redis.md, Sizing), or lower `redis.max_value` or `cache.max_object`"
        ),
    })
}

fn pace(latency: Duration, needs: &Needs) -> Option<Finding> {
    if latency <= needs.deadline / PROMPT {
        return None;
    }
    Some(Finding {
        text: format!(
            "Redis took {latency:?} for a read, over a quarter of `redis.deadline` ({:?}): a request may need three, and goes \
             on without it when they take longer than that",
            needs.deadline
        ),
        remedy: "bring Redis nearer (the same zone, fewer hops), give it CPU, or raise `redis.deadline`".to_owned(),
    })
}

/// How long a read takes, the first one's warming up apart.
async fn latency(connection: &mut Dedicated, needs: &Needs) -> Result<Duration, Unavailable> {
    let key = needs.keys.probe();
    let mut took = [Duration::ZERO; READS];
    for took in &mut took {
        let watch = Stopwatch::start();
        ask(connection, &[b"GET", &key]).await?;
        *took = watch.elapsed();
    }
    took.sort_unstable();
    Ok(took[READS / 2])
}

/// What the ACL forbids, found out by asking for everything in a form that changes nothing.
async fn permissions(connection: &mut Dedicated, needs: &Needs) -> Result<Vec<Finding>, Unavailable> {
    let mut denied = Denied::default();
    let needed = COMMANDS.iter().filter(|command| command.is_needed(needs));
    // Behind SUBSCRIBE nothing else may be asked.
    let (last, first): (Vec<&Command>, Vec<&Command>) = needed.partition(|command| command.word == SUBSCRIBE);
    for command in first {
        denied.note(command, &ask_for(connection, command, needs).await?);
    }
    // A key that is denied to every command is told once.
    if !denied.every_key {
        for key in needs.keys.one_of_each() {
            if matches!(ask(connection, &[b"EXISTS", &key]).await?, Said::NotThisKey) {
                denied.keys.push(String::from_utf8_lossy(&key).into_owned());
            }
        }
    }
    for command in last {
        denied.note(command, &ask_for(connection, command, needs).await?);
    }
    Ok(denied.missing_rights(needs.keys.namespace()).into_iter().chain(denied.missing_commands()).collect())
}

/// What a server does not let Weir do.
#[derive(Debug, Default)]
struct Denied {
    /// By the ACL.
    commands: Vec<&'static str>,
    /// Because there are none such.
    unknown: Vec<&'static str>,
    /// Not even the key that never exists.
    every_key: bool,
    /// Kinds of keys, where some are allowed.
    keys: Vec<String>,
    channels: bool,
}

impl Denied {
    fn note(&mut self, command: &Command, said: &Said) {
        match said {
            Said::NotThisCommand => self.commands.push(command.word),
            Said::NotThisKey => self.every_key = true,
            Said::NotThisChannel => self.channels = true,
            Said::Unknown => self.unknown.push(command.word),
            Said::Yes(_) => {}
        }
    }

    fn missing_rights(&self, namespace: &str) -> Option<Finding> {
        let mut what = Vec::new();
        let mut words: Vec<String> = self.commands.iter().map(|word| format!("+{word}")).collect();
        if !self.commands.is_empty() {
            what.push(format!("the commands {}", self.commands.join(", ")));
        }
        if self.every_key || !self.keys.is_empty() {
            what.push(if self.every_key {
                "its keys".to_owned()
            } else {
                format!("the keys {}", self.keys.join(", "))
            });
            words.push(format!("~{namespace}:*"));
        }
        if self.channels {
            what.push("its channels".to_owned());
            words.push(format!("&{namespace}:*"));
        }
        (!what.is_empty()).then(|| Finding {
            text: format!(
                "Redis' ACL denies Weir {}: what needs them fails, or is done without Redis",
                what.join(" and ")
            ),
            remedy: format!("ACL SETUSER the user of `redis.user` {} (docs/redis.md, Permissions)", words.join(" ")),
        })
    }

    fn missing_commands(&self) -> Option<Finding> {
        (!self.unknown.is_empty()).then(|| Finding {
            text: format!(
                "this server does not know {}: what needs them fails, or is done without Redis",
                self.unknown.join(", ")
            ),
            remedy: "run Redis 6.2 or newer, or Valkey, with no command renamed".to_owned(),
        })
    }
}

/// What a server said to a question.
#[derive(Debug)]
enum Said {
    /// The answer; nil in place of an error that only the arguments are to blame for.
    Yes(Reply),
    /// The ACL forbids the command.
    NotThisCommand,
    /// It forbids the key.
    NotThisKey,
    /// It forbids the channel.
    NotThisChannel,
    /// There is no such command.
    Unknown,
}

async fn ask_for(connection: &mut Dedicated, command: &Command, needs: &Needs) -> Result<Said, Unavailable> {
    let words = command.trial(needs);
    ask(connection, &words.iter().map(Vec::as_slice).collect::<Vec<_>>()).await
}

async fn ask(connection: &mut Dedicated, words: &[&[u8]]) -> Result<Said, Unavailable> {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    let sent = connection.wire.connection.send_packed_command(&command);
    let answer = tokio::time::timeout(ANSWER, sent).await.map_err(|_| Unavailable::Timeout)?;
    let error = match answer.and_then(Value::extract_error) {
        Ok(value) => return Ok(Said::Yes(value.into())),
        Err(error) => error,
    };
    let detail = error.detail().unwrap_or_default().to_owned();
    match Fault::from(error) {
        Fault::Refused(kind) => Ok(read(&kind, &detail)),
        // In a Cluster it has some keys only, and sends on for others whom the ACL would have let.
        Fault::Moved(_) | Fault::Ask(_) => Ok(Said::Yes(Reply::Nil)),
        fault => Err(fault.into()),
    }
}

/// What an error means. Versions word it differently: `... to run the 'get' command`, `... to access one of the keys used as
/// arguments`, `No permissions to access a key`, and the same of channels.
fn read(kind: &str, detail: &str) -> Said {
    let accesses = |what: &str| detail.contains("access") && detail.contains(what);
    match kind {
        "NOPERM" if accesses("key") => Said::NotThisKey,
        "NOPERM" if accesses("channel") => Said::NotThisChannel,
        "NOPERM" => Said::NotThisCommand,
        "ERR" if detail.starts_with("unknown command") => Said::Unknown,
        _ => Said::Yes(Reply::Nil),
    }
}

#[cfg(test)]
mod tests;
