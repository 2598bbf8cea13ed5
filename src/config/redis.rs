//! `[redis]`: where it is, how it is spoken to, what is kept there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Secret;
use super::tls::RedisTls;

/// `[redis]`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where it is.
    pub servers: Servers,
    /// Number of the database there.
    pub database: u32,
    /// What is spoken there.
    pub protocol: Resp,
    /// Who Weir says that it is, and how the way there is protected.
    pub access: Access,
    /// Prefix of every key and channel.
    pub namespace: String,
    /// Longest that one request waits for Redis, all in all.
    pub deadline: Duration,
    /// Longest that readiness waits for Redis at start.
    pub startup_wait: Duration,
    /// Larger stored values stay in memory tiers.
    pub max_value: usize,
    /// Key of the HMAC under which identities and credentials reach Redis.
    pub key_secret: Secret,
    /// Pods that share the limits, where the fleet cannot be seen.
    pub replicas: u32,
    /// How pods hear of one another's invalidations.
    pub bus: Bus,
    /// What stored answers are read from.
    pub read_from: ReadFrom,
    /// Answers that are expected to be stored at once; 0: nobody says.
    pub expected_entries: u32,
    /// Bytes of their bodies, as they are stored, on average.
    pub expected_body: usize,
    /// Identities that each limit is expected to know at once; 0: nobody says.
    pub expected_identities: u32,
}

impl Redis {
    /// Whether the two are the same but for [`Access`], which alone a reload can change: for connections to come.
    pub fn is_same_but_for_access(&self, other: &Self) -> bool {
        // Field by field, so that none that is added is forgotten.
        let Self {
            servers: _,
            database,
            protocol,
            access: _,
            namespace,
            deadline,
            startup_wait,
            max_value,
            key_secret,
            replicas,
            bus,
            read_from,
            expected_entries,
            expected_body,
            expected_identities,
        } = self;
        self.is_same_place(other)
            && (database, protocol, namespace, deadline, startup_wait)
                == (&other.database, &other.protocol, &other.namespace, &other.deadline, &other.startup_wait)
            && (max_value, key_secret, replicas, bus, read_from)
                == (&other.max_value, &other.key_secret, &other.replicas, &other.bus, &other.read_from)
            && (expected_entries, expected_body, expected_identities)
                == (&other.expected_entries, &other.expected_body, &other.expected_identities)
    }

    /// Whether passwords and certificates for one are of use at the other: a reload neither begins nor ends TLS.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.servers == other.servers && self.access.tls.is_some() == other.access.tls.is_some()
    }
}

/// Which servers are Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// This one.
    Standalone(Address),
    /// The one that these Sentinels call the master of that name.
    Sentinel {
        /// Where they listen; one at least.
        sentinels: Vec<Address>,
        /// The master's name.
        master: String,
    },
    /// A Cluster's masters, each for its slots.
    Cluster {
        /// Where some of its servers listen, from which the others are learnt; one at least.
        seeds: Vec<Address>,
    },
}

impl Servers {
    /// What is known of where they listen.
    pub fn addresses(&self) -> &[Address] {
        match self {
            Self::Standalone(one) => std::slice::from_ref(one),
            Self::Sentinel { sentinels: all, .. } | Self::Cluster { seeds: all } => all,
        }
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// Name or address literal, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What opening a connection takes, beside knowing where to.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The ACL's user; none: `default`.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<Secret>,
    /// The user at the Sentinels; none: not named.
    pub sentinel_user: Option<String>,
    /// That user's password.
    pub sentinel_password: Option<Secret>,
    /// Whom to believe that it is Redis, and by which certificate Weir is known there. None: plain text.
    pub tls: Option<RedisTls>,
}

/// `redis.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resp {
    /// What every Redis speaks.
    #[default]
    Resp2,
    /// The newer one, since Redis 6.
    Resp3,
}

/// `redis.read_from`: what stored answers are read from. Everything else is asked of masters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    /// The server that they are written to.
    #[default]
    Master,
    /// A copy of it, where there is one that answers. A copy that lags costs a further trip, never an old answer.
    Replica,
}

/// `redis.bus`: how pods hear of one another's invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// Each is published with what it names.
    #[default]
    Publish,
    /// Redis itself tells that there are new ones (client tracking), and the log is read.
    Tracking,
}
