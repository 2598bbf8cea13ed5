//! The log in Redis: one counter, one stream, and the scripts that keep them together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Position;
use super::doors::{self, Entry};
use super::lineage::{Lineage, Owed};
use crate::kv::{Budget, Redis, Reply, Script, Unavailable};
use crate::syntax::selector::{Order, Selector};

/// Records kept; what is older is refused. About 15 MB.
pub const RECORDS: u64 = 100_000;

/// Age up to which they are kept: longer than most answers live.
pub const RECORD_AGE: Duration = Duration::from_secs(24 * 3600);

/// Records read at once.
pub const PAGE: u64 = 512;

/// Longest that one question to the log waits.
pub const WAIT: Duration = Duration::from_millis(500);

static INVALIDATE: Script =
    Script { name: "invalidate", source: concat!(include_str!("../kv/log.lua"), include_str!("../kv/invalidate.lua")) };

static DRAIN: Script =
    Script { name: "drain", source: concat!(include_str!("../kv/log.lua"), include_str!("../kv/drain.lua")) };

static PROOF: Script =
    Script { name: "proof", source: concat!(include_str!("../kv/log.lua"), include_str!("../kv/proof.lua")) };

static READ: Script = Script { name: "read_log", source: include_str!("../kv/read.lua") };

static ROLL: Script = Script { name: "roll", source: include_str!("../kv/roll.lua") };

/// Takes out a member of a sorted set and what is known of it.
pub(super) static LEAVE: Script = Script { name: "leave", source: include_str!("../kv/leave.lua") };

/// Orders that are logged in one step.
pub const TOGETHER: usize = 64;

/// And their bytes; one alone may have more.
const TOGETHER_BYTES: usize = 256 << 10;

/// An order on its way into the log.
pub struct Draft<'a> {
    order: &'a str,
    hash: String,
    since: (String, String),
    intent: &'a str,
}

impl<'a> Draft<'a> {
    /// `order` (JSON). With `since`, an equal one logged after that position counts as this one. The `intent` that
    /// announced it is settled with it.
    pub fn new(order: &'a str, since: Option<Position>, intent: Option<&'a str>) -> Self {
        Self::named(order, order, since, intent)
    }

    /// What was logged before `base`, the last record that this log has in common with that one, once more: by one pod,
    /// whoever else knows it.
    pub fn owed(owed: &'a Owed, base: Position) -> Self {
        Self::named(&owed.order, &owed.name, Some(base), None)
    }

    fn named(order: &'a str, name: &str, since: Option<Position>, intent: Option<&'a str>) -> Self {
        let since = since.map(|since| (since.incarnation.to_string(), since.seq.to_string())).unwrap_or_default();
        Self { order, hash: doors::content_hash(name), since, intent: intent.unwrap_or_default() }
    }
}

/// One invalidation, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// Redis' time when it was logged, in ms.
    pub time_ms: u64,
    /// What it names. One that cannot be read (of a newer Weir's, say) names everything.
    pub selectors: Vec<Selector>,
    /// Stale instead of gone.
    pub soft: bool,
    /// As it was logged.
    pub order: Arc<str>,
}

impl Record {
    fn read(seq: u64, time_ms: u64, order: &[u8]) -> Self {
        let (selectors, soft) = read_order(order).unwrap_or_else(|| {
            tracing::warn!(seq, "a record of the invalidation log cannot be read: taken as naming everything");
            (vec![Selector::All], false)
        });
        Self { seq, time_ms, selectors, soft, order: String::from_utf8_lossy(order).into() }
    }
}

/// What a logged order names, and whether softly; `None` if it cannot be read.
pub fn read_order(order: &[u8]) -> Option<(Vec<Selector>, bool)> {
    let order = serde_json::from_slice::<Order>(order).ok()?;
    Some((order.selectors().ok()?, order.soft))
}

/// A record as the bus carries it, `<incarnation> <seq> <ms> <order>`, its order not read yet.
pub struct Announced<'a> {
    /// Where it is in the log.
    pub at: Position,
    /// Redis' time when it was logged, in ms.
    pub time_ms: u64,
    order: &'a [u8],
}

impl<'a> Announced<'a> {
    /// Reads it.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let mut parts = payload.splitn(4, |b| *b == b' ');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let (incarnation, seq, time_ms) = (number()?, number()?, number()?);
        Some(Self { at: Position { incarnation, seq }, time_ms, order: parts.next()? })
    }

    /// The record.
    pub fn record(&self) -> Record {
        Record::read(self.at.seq, self.time_ms, self.order)
    }
}

/// What a proof says.
#[derive(Debug)]
pub struct Proof {
    /// Where the log stands.
    pub head: Position,
    /// Redis' time, in ms.
    pub time_ms: u64,
    /// Pods heard of lately, this one included.
    pub pods: u32,
    /// What lies at the door.
    pub door: Vec<Entry>,
    /// The incarnations that this one goes on from.
    pub lineage: Option<Lineage>,
    /// Time since this one began.
    pub age: Duration,
    /// Pods that do not follow it yet, or have yet to log what they know of those before.
    pub behind: u64,
    /// When Redis, which had a log that somebody followed, began without one, by its own time in ms; 0: that was not seen.
    pub lost_ms: u64,
}

/// How far each pod has followed the log.
#[derive(Debug)]
pub struct Roll {
    /// The incarnation of the log; `None` while there is no log.
    pub incarnation: Option<u64>,
    /// Time since it began.
    pub age: Duration,
    /// Each pod that was heard of lately, with the position it then was at.
    pub pods: Vec<(String, Option<Position>)>,
}

/// A page of the log.
#[derive(Debug)]
pub struct Page {
    /// Where the log stands; `None` while there is none.
    pub head: Option<Position>,
    /// The records.
    pub records: Vec<Record>,
}

/// Which way a page is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To newer ones.
    Forward,
    /// To older ones.
    Backward,
}

/// The log, as seen from one runtime.
#[derive(Clone)]
pub struct Log {
    redis: Redis,
    keys: [Vec<u8>; 8],
    bus: String,
    roll: String,
}

impl Log {
    /// The log that `redis` leads to.
    pub fn new(redis: Redis) -> Self {
        let keys = &redis.shared().keys;
        let (bus, roll) = (keys.bus(), keys.roll());
        let keys = [
            keys.counter(),
            keys.log(),
            keys.seen(),
            keys.door_stream(),
            keys.pods(),
            keys.applied(),
            keys.intents(),
            keys.intended(),
        ];
        Self { redis, keys, bus, roll }
    }

    /// Logs the first of `drafts`, as many as go together, in one step; where each of these stands, and whether it was logged
    /// by this very call.
    pub async fn append(&self, drafts: &[Draft<'_>]) -> Result<Vec<(Position, bool)>, Unavailable> {
        let (candidate, most) = (candidate(), RECORDS.to_string());
        let mut args = vec![candidate.as_bytes(), self.bus.as_bytes(), most.as_bytes()];
        let mut bytes = 0;
        let together = drafts.iter().take(TOGETHER).take_while(|draft| {
            let is_first = bytes == 0;
            bytes += draft.order.len();
            is_first || bytes <= TOGETHER_BYTES
        });
        for Draft { order, hash, since: (incarnation, seq), intent } in together {
            args.extend([*order, hash, incarnation, seq, *intent].map(str::as_bytes));
        }
        let [counter, log, seen, .., intents, intended] = &self.keys;
        let keys = [counter, log, seen, intents, intended].map(Vec::as_slice);
        let reply = self.redis.run(&INVALIDATE, &keys, &args, &mut Budget::new(WAIT)).await?;
        let incarnation = position(&reply)?.incarnation;
        let read = |[seq, new]: &[Reply; 2]| {
            let seq = seq.number().ok_or_else(malformed)?;
            Ok((Position { incarnation, seq }, new.number() == Some(1)))
        };
        reply.items()[2..].as_chunks::<2>().0.iter().map(read).collect()
    }

    /// Moves `entries` from the door into the log. Says where the log stands, and which entries this call took.
    pub async fn drain(&self, entries: &[(&Entry, String)]) -> Result<(Position, Vec<bool>), Unavailable> {
        let (candidate, most) = (candidate(), RECORDS.to_string());
        let hashes: Vec<String> = entries.iter().map(|(_, order)| doors::content_hash(order)).collect();
        let mut args = vec![candidate.as_bytes(), self.bus.as_bytes(), most.as_bytes()];
        for ((entry, order), hash) in entries.iter().zip(&hashes) {
            args.extend([&entry.id[..], order.as_bytes(), hash.as_bytes()]);
        }
        let reply = self.run(&DRAIN, 4, &args).await?;
        let taken = reply.items().iter().skip(2).map(|taken| taken.number() == Some(1)).collect();
        Ok((position(&reply)?, taken))
    }

    /// Asks where the log stands, says how far `pod` has followed it, and which incarnation it `knew` last. The pod counts for
    /// so long.
    pub async fn prove(
        &self,
        pod: &str,
        at: Option<Position>,
        knew: Option<Position>,
        counts_for: Duration,
    ) -> Result<Proof, Unavailable> {
        let (candidate, lasts) = (candidate(), counts_for.as_millis().to_string());
        let (most, age) = (doors::ENTRIES.to_string(), RECORD_AGE.as_millis().to_string());
        let at = at.map(at_text).unwrap_or_default();
        let (records, knew) = (RECORDS.to_string(), knew.map(|at| at.incarnation.to_string()).unwrap_or_default());
        let args =
            [&candidate, pod, &lasts, &most, &age, &at, &self.bus, &records, &knew].map(|arg: &str| arg.as_bytes());
        let reply = self.run(&PROOF, 8, &args).await?;
        let number = |i: usize| reply.items().get(i).and_then(Reply::number).ok_or_else(malformed);
        let door = reply.items().get(4).map(doors::entries).unwrap_or_default();
        let pods = u32::try_from(number(3)?).unwrap_or(u32::MAX);
        let line = reply.items().get(5).map(text).unwrap_or_default();
        Ok(Proof {
            head: position(&reply)?,
            time_ms: number(2)?,
            pods,
            door,
            lineage: Lineage::of(read_line(&line).ok_or_else(malformed)?),
            age: Duration::from_millis(number(6)?),
            behind: number(7)?,
            lost_ms: number(8)?,
        })
    }

    /// How far each pod is that was heard of within `counts_for`. All of them are asked to say so anew once they have
    /// reached `asked`.
    pub async fn roll(&self, asked: Option<Position>, counts_for: Duration) -> Result<Roll, Unavailable> {
        let (lasts, asked) = (counts_for.as_millis().to_string(), asked.map(at_text).unwrap_or_default());
        let keys = [&self.keys[0][..], &self.keys[4], &self.keys[5]];
        let args = [&lasts, &self.roll, &asked].map(|arg: &String| arg.as_bytes());
        let reply = self.redis.run(&ROLL, &keys, &args, &mut Budget::new(WAIT)).await?;
        let [incarnation, age, pods @ ..] = reply.items() else { return Err(malformed()) };
        let read = |[pod, at]: &[Reply; 2]| (String::from_utf8_lossy(&text(pod)).into_owned(), read_at(&text(at)));
        Ok(Roll {
            incarnation: incarnation.number(),
            age: Duration::from_millis(age.number().ok_or_else(malformed)?),
            pods: pods.as_chunks::<2>().0.iter().map(read).collect(),
        })
    }

    /// Takes `pod` out of the membership.
    pub async fn leave(&self, pod: &str) -> Result<(), Unavailable> {
        let keys = [&self.keys[4][..], &self.keys[5]];
        self.redis.run(&LEAVE, &keys, &[pod.as_bytes()], &mut Budget::new(WAIT)).await.map(|_| ())
    }

    /// Reads up to [`PAGE`] records from `from` on.
    pub async fn read(&self, direction: Direction, from: u64) -> Result<Page, Unavailable> {
        let way = if direction == Direction::Forward { "forward" } else { "backward" };
        let (from, most) = (from.to_string(), PAGE.to_string());
        let args = [way, &from, &most].map(|arg: &str| arg.as_bytes());
        let reply = self.run(&READ, 2, &args).await?;
        let records = reply.items().get(2).ok_or_else(malformed)?.items().iter();
        let records = records.map(|record| match record.items() {
            [seq, time, Reply::Bytes(order)] => {
                Some(Record::read(seq.number()?, time.number().unwrap_or_default(), order))
            }
            _ => None,
        });
        let records = records.collect::<Option<Vec<Record>>>().ok_or_else(malformed)?;
        Ok(Page { head: position(&reply).ok(), records })
    }

    async fn run(&self, script: &'static Script, keys: usize, args: &[&[u8]]) -> Result<Reply, Unavailable> {
        let keys: Vec<&[u8]> = self.keys[..keys].iter().map(Vec::as_slice).collect();
        self.redis.run(script, &keys, args, &mut Budget::new(WAIT)).await
    }
}

/// Reads `<incarnation> <seq>`.
pub(super) fn read_at(text: &[u8]) -> Option<Position> {
    let (incarnation, seq) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some(Position { incarnation: incarnation.parse().ok()?, seq: seq.parse().ok()? })
}

fn at_text(at: Position) -> String {
    format!("{} {}", at.incarnation, at.seq)
}

/// An incarnation, should one begin.
fn candidate() -> String {
    crate::kv::random().max(1).to_string()
}

fn position(reply: &Reply) -> Result<Position, Unavailable> {
    match reply.items() {
        [incarnation, seq, ..] => {
            let (incarnation, seq) = incarnation.number().zip(seq.number()).ok_or_else(malformed)?;
            Ok(Position { incarnation, seq })
        }
        _ => Err(malformed()),
    }
}

/// A reply that none of the scripts gives: something else lies under the keys.
fn malformed() -> Unavailable {
    Unavailable::Refused("MALFORMED".to_owned())
}

/// Incarnations and records, by turns.
fn read_line(text: &[u8]) -> Option<Vec<Position>> {
    let words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let numbers = words.map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[incarnation, seq]| Position { incarnation: *incarnation, seq: *seq }).collect())
}

/// A string of a reply.
pub(super) fn text(reply: &Reply) -> Bytes {
    reply.bytes().cloned().unwrap_or_default()
}
