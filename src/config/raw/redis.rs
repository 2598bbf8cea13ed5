//! `[redis]` as it is written.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::tls::RedisTls;
use super::{Maybe, MaybeText, Namespace};
use crate::config::{Bus, Resp};

/// `[redis]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Redis {
    /// `redis://host:port/db`, `rediss://` for TLS, or `unix:///path`.
    #[schemars(example = "redis://127.0.0.1:6379/0")]
    pub(in crate::config) url: Maybe<String>,
    /// Not available in this version.
    #[schemars(example = ["10.0.0.1:6379"])]
    pub(in crate::config) nodes: Maybe<Vec<String>>,
    /// Kind of Redis; only "standalone" is available in this version.
    pub(in crate::config) mode: Maybe<RedisMode>,
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
    /// Whom to believe that it is Redis, and who Weir says that it is, where the address is `rediss://`.
    pub(in crate::config) tls: Maybe<RedisTls>,
    /// What is spoken.
    pub(in crate::config) protocol: Maybe<Resp>,
    /// Pods that share the limits, where the fleet cannot be seen.
    pub(in crate::config) replicas: Maybe<i64>,
    /// How pods hear of one another's invalidations.
    pub(in crate::config) bus: Maybe<Bus>,
}

/// `redis.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RedisMode {
    /// One server.
    Standalone,
    /// Not available in this version.
    Cluster,
    /// Not available in this version.
    Sentinel,
}
