//! `[redis]` as it is written.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::tls::RedisTls;
use super::{At, Maybe, MaybeText, Namespace};
use crate::config::{Bus, ReadFrom, Resp};

/// `[redis]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Redis {
    /// `redis://host:port/db`, `rediss://` for TLS, or `unix:///path`.
    #[schemars(example = "redis://127.0.0.1:6379/0")]
    pub(in crate::config) url: Maybe<String>,
    /// What kind of Redis it is.
    pub(in crate::config) mode: Maybe<RedisMode>,
    /// Some of the Cluster's servers, from which the others are learnt; or the Sentinels.
    #[schemars(example = ["10.0.0.1:6379", "10.0.0.2:6379"])]
    pub(in crate::config) nodes: Maybe<Vec<At<String>>>,
    /// What the Sentinels call the master.
    #[schemars(example = &"shop")]
    pub(in crate::config) master: Maybe<String>,
    /// Number of the database; wins over the one in the address.
    pub(in crate::config) database: Maybe<i64>,
    /// What stored answers are read from.
    pub(in crate::config) read_from: Maybe<ReadFrom>,
    /// Prefix of every key and channel: environment and service.
    #[schemars(required)]
    pub(in crate::config) namespace: MaybeText<Namespace>,
    /// Longest that one request waits for Redis, all in all.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) deadline: MaybeText<Duration>,
    /// Longest that readiness waits for Redis at start.
    pub(in crate::config) startup_wait: MaybeText<Duration>,
    /// Larger stored values stay in memory.
    #[schemars(extend("x-range" = ["0", "512MiB"]))]
    pub(in crate::config) max_value: MaybeText<usize>,
    /// File with the key under which identities and credentials are hashed; by default derived from the namespace.
    #[schemars(example = "key-secret")]
    pub(in crate::config) key_secret_file: Maybe<String>,
    /// That key itself; only from the environment (`WEIR__REDIS__KEY_SECRET`).
    pub(in crate::config) key_secret: Maybe<String>,
    /// The ACL's user; wins over the one in the address.
    #[schemars(example = &"weir")]
    pub(in crate::config) user: Maybe<String>,
    /// File with the password; wins over the one in the address.
    #[schemars(example = "redis-password")]
    pub(in crate::config) password_file: Maybe<String>,
    /// The password itself; only from the environment (`WEIR__REDIS__PASSWORD`).
    pub(in crate::config) password: Maybe<String>,
    /// User at the Sentinels; by default none is named.
    #[schemars(example = &"weir")]
    pub(in crate::config) sentinel_user: Maybe<String>,
    /// File with the password at the Sentinels.
    #[schemars(example = "sentinel-password")]
    pub(in crate::config) sentinel_password_file: Maybe<String>,
    /// That password itself; only from the environment (`WEIR__REDIS__SENTINEL_PASSWORD`).
    pub(in crate::config) sentinel_password: Maybe<String>,
    /// Whom to believe that it is Redis, and who Weir says that it is: with `rediss://`, or with `nodes`.
    pub(in crate::config) tls: Maybe<RedisTls>,
    /// What is spoken.
    pub(in crate::config) protocol: Maybe<Resp>,
    /// Pods that share the limits, where the fleet cannot be seen.
    pub(in crate::config) replicas: Maybe<i64>,
    /// How pods hear of one another's invalidations.
    pub(in crate::config) bus: Maybe<Bus>,
    /// Answers that will be stored at once: what Redis' memory is measured against when it is looked at.
    pub(in crate::config) expected_entries: Maybe<i64>,
    /// Bytes of their bodies, as they are stored, on average.
    pub(in crate::config) expected_body: MaybeText<usize>,
    /// Identities that each limit will know at once, for the same.
    pub(in crate::config) expected_identities: Maybe<i64>,
}

/// `redis.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RedisMode {
    /// One server.
    Standalone,
    /// Redis Cluster: each server has a part of the keys.
    Cluster,
    /// One master at a time, which Sentinels know.
    Sentinel,
}
