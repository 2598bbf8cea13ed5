//! Answers: the client library's values and errors, as the rest of Weir sees them.

use std::fmt;

use bytes::Bytes;
use deadpool_redis::redis::{ErrorKind, RedisError, Value};

use crate::metrics::RedisFault;

/// A script's reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Nil.
    Nil,
    /// An integer.
    Int(i64),
    /// A bulk or simple string.
    Bytes(Bytes),
    /// An array.
    Array(Vec<Reply>),
}

impl Reply {
    /// The number, sent as integer or as text.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            Self::Bytes(text) => std::str::from_utf8(text).ok()?.parse().ok(),
            Self::Nil | Self::Array(_) => None,
        }
    }

    /// The string.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Nil | Self::Int(_) | Self::Array(_) => None,
        }
    }

    /// The items; none where it is no array.
    pub fn items(&self) -> &[Reply] {
        match self {
            Self::Array(items) => items,
            Self::Nil | Self::Int(_) | Self::Bytes(_) => &[],
        }
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(number) => Self::Int(number),
            Value::BulkString(bytes) => Self::Bytes(bytes.into()),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => Self::Bytes(text.into()),
            Value::Okay => Self::Bytes(Bytes::from_static(b"OK")),
            Value::Array(items) | Value::Set(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Map(pairs) => {
                Self::Array(pairs.into_iter().flat_map(|(key, value)| [Self::from(key), Self::from(value)]).collect())
            }
            Value::Attribute { data, .. } => Self::from(*data),
            Value::Boolean(truth) => Self::Int(truth.into()),
            Value::Double(number) => Self::Bytes(number.to_string().into()),
            Value::BigNumber(bytes) => Self::Bytes(bytes.into()),
            _ => Self::Nil,
        }
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

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent => f.write_str("Redis cannot be reached"),
            Self::Timeout => f.write_str("Redis did not answer in time"),
            Self::Refused(kind) => write!(f, "Redis refused: {kind}"),
        }
    }
}

/// What the client library says of one command: it hands out a server's error as a value like any other.
pub(super) fn read(answer: Result<Value, RedisError>) -> Result<Reply, Fault> {
    match answer {
        Ok(Value::ServerError(error)) => Err(RedisError::from(error).into()),
        Ok(value) => Ok(value.into()),
        Err(error) => Err(error.into()),
    }
}

/// Why there is no reply, in the detail that connections and breaker need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection, or the breaker is open.
    NotSent,
    /// No connection, because nobody is there ([`super::dial::NoConnection::is_gone`]).
    Gone,
    /// Not within the budget.
    Timeout,
    /// The connection ended; its handle is of no use any more.
    Dropped,
    /// An error of this kind.
    Refused(String),
    /// Another server has that slot: `host:port`, the host empty where it is the same.
    Moved(Box<str>),
    /// Another server has that key already, and answers who says ASKING first.
    Ask(Box<str>),
}

/// Kinds of errors that say more than the command was wrong, as they stand in Redis' answers.
const KINDS: &[&str] = &[
    "READONLY",
    "MASTERDOWN",
    "LOADING",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MAXCLIENTS",
    "DENIED",
];

/// The kind of error that answers in a Cluster for a slot that no server has, as opposed to one that is down as a whole.
pub(super) const UNSERVED: &str = "CLUSTERDOWN (slot not served)";

/// Those with which Redis as a whole is of no use: not even reading works.
const USELESS: &[&str] =
    &["MASTERDOWN", "LOADING", "BUSY", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "MAXCLIENTS", "DENIED"];

impl Fault {
    /// Whether it says that Redis as a whole is of no use. One that is full, read-only or cannot save still reads.
    pub(super) fn is_trouble(&self) -> bool {
        match self {
            Self::NotSent | Self::Gone | Self::Moved(_) | Self::Ask(_) => false,
            Self::Timeout | Self::Dropped => true,
            Self::Refused(kind) => USELESS.contains(&kind.as_str()),
        }
    }

    /// What it is called in metrics; none where nothing was asked, or another server is to be.
    pub(super) fn kind(&self) -> Option<RedisFault> {
        Some(match self {
            Self::NotSent | Self::Gone | Self::Moved(_) | Self::Ask(_) => return None,
            Self::Timeout => RedisFault::Late,
            Self::Dropped => RedisFault::Dropped,
            Self::Refused(kind) => match kind.as_str() {
                "NOSCRIPT" => return None,
                "READONLY" => RedisFault::ReadOnly,
                "MASTERDOWN" => RedisFault::MasterDown,
                "LOADING" => RedisFault::Loading,
                "OOM" => RedisFault::Oom,
                "MISCONF" => RedisFault::Misconf,
                "NOREPLICAS" => RedisFault::NoReplicas,
                "BUSY" => RedisFault::Busy,
                "CLUSTERDOWN" | UNSERVED => RedisFault::ClusterDown,
                "TRYAGAIN" => RedisFault::TryAgain,
                "NOAUTH" | "WRONGPASS" | "DENIED" => RedisFault::Auth,
                "NOPERM" => RedisFault::NoPerm,
                "MAXCLIENTS" => RedisFault::MaxClients,
                _ => RedisFault::Other,
            },
        })
    }

    /// Whether it may mean that another server is the master by now.
    pub(super) fn casts_doubt(&self) -> bool {
        match self {
            Self::NotSent | Self::Gone | Self::Timeout | Self::Ask(_) => false,
            Self::Dropped | Self::Moved(_) => true,
            Self::Refused(kind) => ["READONLY", UNSERVED].contains(&kind.as_str()) || self.is_trouble(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Unavailable::from(self.clone()).fmt(f)
    }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        let detail = error.detail().unwrap_or_default();
        if let Some((to, _)) = error.redirect_node() {
            return if error.code() == Some("ASK") { Self::Ask(to.into()) } else { Self::Moved(to.into()) };
        }
        if let Some(code) = error.code() {
            if detail.contains("max number of clients") {
                return Self::Refused("MAXCLIENTS".to_owned());
            }
            // What scripts may not do, in the words of Redis 7.0 and of 7.2.
            if detail.contains("can't run this command") || detail.contains("ACL failure in script") {
                return Self::Refused("NOPERM".to_owned());
            }
            if code == "CLUSTERDOWN" && detail.contains("slot not served") {
                return Self::Refused(UNSERVED.to_owned());
            }
            // Before Redis 7 a script's error carries its cause behind `ERR Error running script`.
            let inner = || KINDS.iter().find(|kind| detail.contains(&format!("-{kind} "))).copied();
            let kind = if code == "ERR" { inner().unwrap_or(code) } else { code };
            return Self::Refused(kind.to_owned());
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                let kind = KINDS.iter().find(|kind| detail.contains(**kind)).copied().unwrap_or("WRONGPASS");
                Self::Refused(kind.to_owned())
            }
            _ if error.is_timeout() => Self::Timeout,
            _ => Self::Dropped,
        }
    }
}

impl From<Fault> for Unavailable {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotSent | Fault::Gone => Self::NotSent,
            Fault::Timeout | Fault::Dropped => Self::Timeout,
            Fault::Refused(kind) => Self::Refused(kind),
            Fault::Moved(_) => Self::Refused("MOVED".to_owned()),
            Fault::Ask(_) => Self::Refused("ASK".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::parse_redis_value;

    use super::*;

    fn fault(line: &str) -> Fault {
        match read(parse_redis_value(format!("-{line}\r\n").as_bytes())) {
            Err(fault) => fault,
            Ok(_) => panic!("no error: {line}"),
        }
    }

    #[test]
    fn each_kind_is_recognised() {
        for (line, kind, trouble) in [
            ("READONLY You can't write against a read only replica.", "READONLY", false),
            ("MASTERDOWN Link with MASTER is down", "MASTERDOWN", true),
            ("LOADING Redis is loading the dataset in memory", "LOADING", true),
            ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", false),
            ("MISCONF Redis is configured to save RDB snapshots", "MISCONF", false),
            ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", false),
            ("BUSY Redis is busy running a script.", "BUSY", true),
            ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN", true),
            ("NOAUTH Authentication required.", "NOAUTH", true),
            ("WRONGPASS invalid username-password pair", "WRONGPASS", true),
            ("NOPERM this user has no permissions", "NOPERM", false),
            ("ERR max number of clients reached", "MAXCLIENTS", true),
            ("ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed", "OOM", false),
            ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN", true),
            ("CLUSTERDOWN Hash slot not served", UNSERVED, false),
            ("ERR wrong number of arguments", "ERR", false),
            ("ERR The user executing the script can't run this command or subcommand script: f_1", "NOPERM", false),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN", false),
        ] {
            let fault = fault(line);
            assert_eq!(fault, Fault::Refused(kind.to_owned()), "{line}");
            assert_eq!(fault.is_trouble(), trouble, "{line}");
        }
        assert_eq!(fault("MOVED 3999 127.0.0.1:6381"), Fault::Moved("127.0.0.1:6381".into()));
        assert_eq!(fault("MOVED 3999 :6381"), Fault::Moved(":6381".into()));
        assert_eq!(fault("ASK 3999 ::1:6381"), Fault::Ask("::1:6381".into()));
    }
}
