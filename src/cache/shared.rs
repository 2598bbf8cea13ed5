//! The shared tier: entries in Redis, the fleet's lease on a fetch, and the scripts for both.
//!
//! An entry stands under its key's hash; the full key is inside, so that a collision is a miss. What varies stands
//! behind a marker that names the fields. Names and times to live are in docs/redis.md.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use sha2::{Digest, Sha256};

use super::entry::{Stored, Variant, Vary, codec};
use super::memory::Slot;
use super::{Ask, Cache, Kept, parts};
use crate::clock::WallMs;
use crate::config::CacheTiers;
use crate::invalidation::Position;
use crate::kv::keys::Keys;
use crate::kv::{self, Budget, Redis, Reply, Script, Server, Unavailable};
use crate::metrics::Lookup;

mod ended;
mod lease;

use ended::Ended;
use lease::{FAILURE, gateway_status};
pub use lease::{LEASE, Lease, Leased, Token};

/// Writing a body may take longer than a request waits for an answer; nobody waits for it.
const STORE_DEADLINES: u32 = 10;

/// So much of an entry that does not decode tells it from one that was stored meanwhile.
const CORRUPT_FRONT_BYTES: usize = 64;

/// Where the scripts find position and fence in an entry.
fn place(source: &str) -> &'static str {
    source
        .replace("INCARNATION_AT", &codec::INCARNATION_AT.to_string())
        .replace("KIND_AT", &codec::KIND_AT.to_string())
        .replace("RECEIVED_AT + 7", &(codec::RECEIVED_AT + 7).to_string())
        .replace("RECEIVED_AT", &codec::RECEIVED_AT.to_string())
        .replace("FENCE_AT + 7", &(codec::FENCE_AT + 7).to_string())
        .replace("FENCE_AT", &codec::FENCE_AT.to_string())
        .leak()
}

static LEASE_SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script { name: "lease", source: place(include_str!("lease.lua")) });
static DROP_SCRIPT: Script = Script { name: "drop", source: include_str!("drop.lua") };
static HOT_SCRIPT: Script = Script { name: "hot", source: include_str!("../kv/hot.lua") };
static HOTTEST_SCRIPT: Script = Script { name: "hottest", source: include_str!("../kv/hottest.lua") };
static STORE_SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script { name: "store", source: place(include_str!("store.lua")) });

/// Redis' side of the cache.
pub struct SharedTier {
    keys: Keys,
    kv: Arc<kv::Shared>,
    /// Tells this process's failures from those of others.
    pod: String,
    max_value: usize,
    max_object: usize,
    compress_over: usize,
    preload: usize,
    ended: Arc<Ended>,
}

/// What was found for a request, and where.
pub struct Read<'k> {
    /// The key that was looked under in the end: the variant's, where the answers vary.
    pub key: Cow<'k, [u8]>,
    /// What stands there.
    pub slot: Option<Arc<Slot>>,
}

/// Why it is not known what stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unseen {
    /// Redis gave no answer.
    Unavailable(Unavailable),
    /// What stands there does not decode; who reads it removes it.
    Corrupt,
}

impl SharedTier {
    /// The tier under one namespace.
    pub fn new(kv: Arc<kv::Shared>, redis: &crate::config::Redis, settings: &CacheTiers) -> Self {
        Self {
            keys: Keys::new(&redis.namespace),
            kv,
            pod: format!("{:016x}", kv::random()),
            max_value: redis.max_value,
            max_object: settings.max_object,
            compress_over: settings.compress_over,
            preload: settings.preload,
            ended: Arc::default(),
        }
    }

    /// What is stored for a request, kept in memory from now on.
    ///
    /// # Errors
    /// What to count: the tier did not answer, or what it holds does not decode.
    pub async fn get<'k>(
        &self,
        redis: &Redis,
        cache: &Cache,
        ask: &Ask<'k>,
        budget: &mut Budget,
    ) -> Result<Read<'k>, Lookup> {
        let mut key = Cow::Borrowed(ask.key);
        let mut stored = self.read(redis, &key, budget).await?;
        if let Some(Stored::Vary(vary)) = &stored {
            cache.keep(ask.key, Stored::Vary(Arc::clone(vary)), 0);
            let mut variant = Vec::with_capacity(ask.key.len() + 128);
            ask.keys.variant(&mut variant, ask.key, &vary.names, ask.headers);
            key = Cow::Owned(variant);
            stored = self.read(redis, &key, budget).await?;
        }
        Ok(Read { key, slot: stored.map(|stored| cache.keep(ask.key, stored, 0).slot) })
    }

    /// The part that is stored for a request.
    ///
    /// # Errors
    /// As of [`get`](Self::get).
    pub async fn part(&self, redis: &Redis, ask: &Ask<'_>, budget: &mut Budget) -> Result<Option<Arc<Slot>>, Lookup> {
        let name = self.keys.part(&name(ask.key));
        let stored = self.read_at(redis, &name, &parts::key(ask.key), budget).await?;
        Ok(stored.filter(|stored| stored.entry().is_some()).map(|stored| Slot::new(stored, 0)))
    }

    /// The record of the rule by which answers are looked up.
    pub async fn record(&self, redis: &Redis, key: &[u8], budget: &mut Budget) -> Option<Stored> {
        self.read(redis, key, budget).await.ok().flatten()
    }

    /// Stores such a record. Others wait meanwhile, so it takes no longer than a request may.
    pub async fn store_record(&self, redis: &Redis, record: &Stored, now: WallMs, deadline: Duration) {
        let (name, bytes) = (name(record.key()), codec::encode(record, None));
        let budget = &mut Budget::new(deadline);
        let what = What {
            is_part: false,
            position: record.position(),
            received_at: received_at(record),
            bytes,
            time_to_live: record.keep_ms(now),
            failed: None,
        };
        let _ = self.write(redis, &name, None, what, budget).await;
    }

    /// Removes what is stored under `key`.
    pub async fn forget(&self, redis: &Redis, key: &[u8], deadline: Duration) {
        let _ = redis.run(&DROP_SCRIPT, &[&self.keys.entry(&name(key))], &[], &mut Budget::new(deadline)).await;
    }

    async fn read(&self, redis: &Redis, key: &[u8], budget: &mut Budget) -> Result<Option<Stored>, Lookup> {
        self.read_at(redis, &self.entry_name(key), key, budget).await
    }

    async fn read_at(
        &self,
        redis: &Redis,
        name: &[u8],
        key: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<Stored>, Lookup> {
        match redis.get(name, budget).await {
            Ok(None) => Ok(None),
            Err(_) => Err(Lookup::Unavailable),
            Ok(Some(bytes)) => match self.decode(key, &bytes) {
                Ok(stored) => Ok(stored),
                Err(_) => {
                    let front = &bytes[..bytes.len().min(CORRUPT_FRONT_BYTES)];
                    let _ = redis.run(&DROP_SCRIPT, &[name], &[front], budget).await;
                    Err(Lookup::Corrupt)
                }
            },
        }
    }

    /// What stands under a key, left as it is: not kept in memory, and not removed if it does not decode.
    ///
    /// # Errors
    /// See [`Unseen`].
    pub async fn peek(&self, redis: &Redis, key: &[u8], budget: &mut Budget) -> Result<Option<Stored>, Unseen> {
        self.peek_at(redis, &self.entry_name(key), key, budget).await
    }

    /// [`peek`](Self::peek) for the part of what has this primary key.
    ///
    /// # Errors
    /// See [`Unseen`].
    pub async fn peek_part(
        &self,
        redis: &Redis,
        primary: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<Stored>, Unseen> {
        self.peek_at(redis, &self.keys.part(&name(primary)), &parts::key(primary), budget).await
    }

    async fn peek_at(
        &self,
        redis: &Redis,
        name: &[u8],
        key: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<Stored>, Unseen> {
        match redis.get(name, budget).await {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.decode(key, &bytes).map_err(|_| Unseen::Corrupt),
            Err(unavailable) => Err(Unseen::Unavailable(unavailable)),
        }
    }

    /// Adds samples of what is read to the fleet's; older ones fade once in each `turn`.
    ///
    /// # Errors
    /// Redis gave no answer.
    pub async fn tell_hot(
        &self,
        redis: &Redis,
        samples: &[([u8; 16], u32)],
        turn: Duration,
        budget: &mut Budget,
    ) -> Result<(), Unavailable> {
        let head = [self.preload.to_string(), turn.as_millis().to_string()];
        let counts: Vec<String> = samples.iter().map(|(_, count)| count.to_string()).collect();
        let pairs = samples.iter().zip(&counts).flat_map(|((name, _), count)| [&name[..], count.as_bytes()]);
        let args: Vec<&[u8]> = head.iter().map(String::as_bytes).chain(pairs).collect();
        redis.run(&HOT_SCRIPT, &[&self.keys.hot(), &self.keys.hot_turn()], &args, budget).await.map(|_| ())
    }

    /// What the fleet reads most: names of at most so many keys, hottest first.
    ///
    /// # Errors
    /// Redis gave no answer.
    pub async fn hottest(&self, redis: &Redis, most: usize, budget: &mut Budget) -> Result<Vec<[u8; 16]>, Unavailable> {
        let reply = redis.run(&HOTTEST_SCRIPT, &[&self.keys.hot()], &[most.to_string().as_bytes()], budget).await?;
        Ok(reply.items().iter().filter_map(|name| name.bytes()?[..].try_into().ok()).collect())
    }

    /// What stands under a name, if it can be had and read.
    pub async fn named(&self, redis: &Redis, hash: &[u8; 16], budget: &mut Budget) -> Option<Stored> {
        let bytes = redis.get(&self.keys.entry(hash), budget).await.ok().flatten()?;
        codec::decode(&bytes, self.max_object).ok().filter(|stored| name(stored.key()) == *hash)
    }

    /// Name under which a key's entry stands in Redis.
    pub fn entry_name(&self, key: &[u8]) -> Vec<u8> {
        self.keys.entry(&name(key))
    }

    /// What an entry's bytes say; nothing if they are another key's.
    fn decode(&self, key: &[u8], bytes: &Bytes) -> Result<Option<Stored>, codec::Corrupt> {
        let stored = codec::decode(bytes, self.max_object)?;
        Ok(Some(stored).filter(|stored| *stored.key() == *key))
    }

    /// Completes when somebody's fetch for `key` has ended; perhaps never, so poll as well.
    pub fn listen(&self, key: &[u8]) -> kv::Ring {
        self.kv.bells().listen(&name(key))
    }

    /// Stores what a fetch brought and ends its lease; false if something newer stands there.
    ///
    /// Runs behind the answer: compression and the write hold up nobody.
    pub async fn store(
        &self,
        redis: &Redis,
        kept: &Kept,
        lease: Option<Lease>,
        now: WallMs,
        deadline: Duration,
    ) -> bool {
        let mut budget = Budget::new(deadline * STORE_DEADLINES);
        let stored = &kept.slot.stored;
        let time_to_live = stored.keep_ms(now);
        if !kept.is_newest {
            if let Some(lease) = lease {
                self.release(redis, &lease, None, &mut budget).await;
            }
            return false;
        }
        if size(stored) > self.max_value || time_to_live == 0 {
            if let Some(lease) = lease {
                self.release(redis, &lease, None, &mut budget).await;
            }
            return true;
        }
        let compress_over = Some(self.compress_over);
        let bytes = if size(stored) > self.compress_over {
            let stored = stored.clone();
            match tokio::task::spawn_blocking(move || codec::encode(&stored, compress_over)).await {
                Ok(bytes) => bytes,
                Err(_) => return false,
            }
        } else {
            codec::encode(stored, compress_over)
        };
        let is_part = stored.entry().is_some_and(|entry| entry.part.is_some());
        let hash = name(if is_part { parts::primary(stored.key()) } else { stored.key() });
        // A lease was taken for the key that was asked for, before it was known that its answers vary, or by what.
        let (own, mut other) = match lease {
            Some(lease) if lease.hash == hash => (Some(lease), None),
            other => (None, other),
        };
        let what = What {
            is_part,
            position: stored.position(),
            received_at: received_at(stored),
            bytes,
            time_to_live,
            failed: None,
        };
        let reply = self.write(redis, &hash, own.as_ref(), what, &mut budget).await;
        if let Some(marker) = &kept.marker {
            let (marker, dropped) = self.known_variants(redis, marker, kept.dropped.as_ref(), &mut budget).await;
            for dropped in &dropped {
                let _ = redis.run(&DROP_SCRIPT, &[&self.keys.entry(&dropped.name)], &[], &mut budget).await;
            }
            let record = codec::encode(&Stored::Vary(Arc::clone(&marker)), None);
            let what = What {
                is_part: false,
                position: marker.position,
                received_at: None,
                bytes: record,
                time_to_live,
                failed: None,
            };
            let hash = name(&marker.key);
            let own = other.take_if(|lease| lease.hash == hash);
            let _ = self.write(redis, &hash, own.as_ref(), what, &mut budget).await;
        }
        if let Some(lease) = other {
            self.release(redis, &lease, None, &mut budget).await;
        }
        !matches!(reply, Ok(reply) if reply.bytes().is_some_and(|word| word == "superseded"))
    }

    /// A record of variants as it is to be stored: together with those that other pods have stored, of which one may have
    /// to leave.
    async fn known_variants(
        &self,
        redis: &Redis,
        marker: &Arc<Vary>,
        gone: Option<&Variant>,
        budget: &mut Budget,
    ) -> (Arc<Vary>, Vec<Variant>) {
        let mut dropped = Vec::new();
        let Ok(Some(Stored::Vary(stored))) = self.read(redis, &marker.key, budget).await else {
            return (Arc::clone(marker), dropped);
        };
        let mut all = Vary { variants: stored.variants.clone(), ..Vary::clone(marker) };
        for variant in &marker.variants {
            dropped.extend(all.admit(variant.clone()));
        }
        // One that has just left here may stand there yet.
        dropped.extend(gone.and_then(|gone| all.forget(gone)));
        (Arc::new(all), dropped)
    }

    /// Writes what ends a lease, if there is one; what Redis does not take of that is tried again behind it.
    async fn write(
        &self,
        redis: &Redis,
        hash: &[u8; 16],
        lease: Option<&Lease>,
        what: What,
        budget: &mut Budget,
    ) -> Result<Reply, Unavailable> {
        debug_assert!(lease.is_none_or(|lease| lease.hash == *hash), "a lease ends where it was taken");
        let failed = what.failed;
        let owner = lease.and_then(|lease| self.owner(redis, lease));
        let written = self.write_to(redis, None, hash, lease, what, budget).await;
        if let Some(lease) = lease.cloned() {
            match owner.filter(|_| written.is_ok()) {
                Some(owner) => self.ended.is_heard(lease, failed, &owner, |lease| self.owner(redis, lease)),
                None => self.ended.is_unheard(lease, failed),
            }
        }
        written
    }

    /// Writes it where the key is, or at this server.
    async fn write_to(
        &self,
        redis: &Redis,
        server: Option<&Server>,
        hash: &[u8; 16],
        lease: Option<&Lease>,
        what: What,
        budget: &mut Budget,
    ) -> Result<Reply, Unavailable> {
        let What { is_part, position, received_at, bytes, time_to_live, failed } = what;
        let (entry, part, lease_key) = (self.keys.entry(hash), self.keys.part(hash), self.keys.lease(hash));
        // What is stored whole is not in parts any more.
        let keys: &[&[u8]] = if is_part { &[&part, &lease_key] } else { &[&entry, &lease_key, &part] };
        let fence = lease.map_or_else(|| "-1".to_owned(), |lease| lease.fence.to_string());
        let incarnation = position.incarnation.to_be_bytes();
        let seq = position.seq.to_string();
        let time_to_live = time_to_live.to_string();
        let received_at = received_at.map(|at| at.to_string()).unwrap_or_default();
        let bell = self.keys.bell();
        let (pod, status) = failed.map_or(("", StatusCode::OK), |status| (&self.pod, gateway_status(status)));
        let remembered_ms = FAILURE.as_millis().to_string();
        let args = [
            lease.map_or(&[][..], |lease| &lease.token),
            fence.as_bytes(),
            &incarnation,
            seq.as_bytes(),
            time_to_live.as_bytes(),
            &bytes,
            bell.as_bytes(),
            hash,
            received_at.as_bytes(),
            pod.as_bytes(),
            status.as_str().as_bytes(),
            remembered_ms.as_bytes(),
        ];
        match server {
            None => redis.run_with_body(&STORE_SCRIPT, keys, &args, budget).await,
            Some(server) => redis.run_at(server, &STORE_SCRIPT, keys, &args, *budget).await,
        }
    }
}

/// What is written, and by what it is ordered.
#[derive(Default)]
struct What {
    is_part: bool,
    position: Position,
    /// When an answer was received.
    received_at: Option<WallMs>,
    bytes: Vec<u8>,
    /// In milliseconds.
    time_to_live: u64,
    /// How the service failed, where that is no client's doing.
    failed: Option<StatusCode>,
}

fn received_at(stored: &Stored) -> Option<WallMs> {
    stored.entry().map(|entry| entry.freshness.received_at)
}

/// A key's name in Redis, without what stands around it: 128 bits of its SHA-256, so that nobody can choose a key that collides with another.
pub fn name(key: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(key).into();
    std::array::from_fn(|at| digest[at])
}

/// Bytes of the body: what decides whether it goes to Redis, and packed.
fn size(stored: &Stored) -> usize {
    stored.entry().map_or(0, |entry| entry.body.len())
}
