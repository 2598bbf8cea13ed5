//! What `INFO` says.

use std::fmt;

/// The oldest version that Weir is made for.
const OLDEST: (u32, u32) = (6, 2);

/// The text of `INFO`.
#[derive(Debug, Default)]
pub struct Info(String);

impl Info {
    /// Of this text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// What stands behind `name:`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
    }

    /// The same, as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// Which server it is.
    pub fn version(&self) -> Option<Version> {
        // Valkey says its own beside the version of Redis that it stands for.
        if let Some(text) = self.field("valkey_version") {
            return Some(Version { server: "Valkey", text: text.to_owned(), is_old: false });
        }
        let text = self.field("redis_version")?;
        let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
        let number = (parts.next()??, parts.next().flatten().unwrap_or(0));
        Some(Version { server: "Redis", text: text.to_owned(), is_old: number < OLDEST })
    }

    /// Room, and what becomes of data when it is used up.
    pub fn memory(&self) -> Memory {
        Memory {
            most: self.number("maxmemory").filter(|most| *most > 0),
            used: self.number("used_memory").unwrap_or(0),
            policy: self.field("maxmemory_policy").unwrap_or("unknown").to_owned(),
        }
    }

    /// Host and port of the master, if this is a replica.
    pub fn master(&self) -> Option<(&str, &str)> {
        let is_replica = self.field("role").is_some_and(|role| role != "master");
        is_replica.then(|| (self.field("master_host").unwrap_or("?"), self.field("master_port").unwrap_or("?")))
    }
}

/// A server's name and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// `Redis` or `Valkey`.
    pub server: &'static str,
    /// As it says it.
    pub text: String,
    /// Whether it is older than what Weir is made for.
    pub is_old: bool,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.server, self.text)
    }
}

/// How much a server may hold, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// `maxmemory`, if it is set.
    pub most: Option<u64>,
    /// What it holds.
    pub used: u64,
    /// `maxmemory-policy`.
    pub policy: String,
}

impl Memory {
    /// What happens when it is full; nothing where the operator set no bound.
    pub fn when_full(&self) -> Option<&'static str> {
        self.most?;
        Some(match &*self.policy {
            "noeviction" => {
                "writes are refused: nothing new is stored, every pod fetches for itself, limits fall back, and \
                 invalidations are not logged until there is room"
            }
            "volatile-lru" | "volatile-lfu" => {
                "what has a TTL and is used least goes: answers mostly; a bucket, which is full again, so one more burst; \
                 a note of a write under way. The log of invalidations and its counter stay"
            }
            "volatile-ttl" => {
                "what ends soonest goes first: leases (a second fetch of the same), then buckets (each one more burst), \
                 and answers only after them. The log of invalidations and its counter stay"
            }
            "volatile-random" => {
                "whatever has a TTL goes, used or not: answers, leases (a second fetch of the same), buckets (one more \
                 burst), notes of writes under way. The log of invalidations and its counter stay"
            }
            policy if policy.starts_with("allkeys-") => {
                "whatever there is goes: the counter or the log of invalidations (all answers from before are refused: a \
                 cold cache), orders that wait at the door (they are lost), the tiers of limits; also answers, leases (a \
                 second fetch of the same) and buckets (one more burst)"
            }
            _ => "what goes is not known to Weir",
        })
    }

    /// Whether the documentation recommends the policy. Where there are limits, it is a choice to have a full server refuse
    /// rather than let anybody exceed one.
    pub fn is_apt(&self, has_limits: bool) -> bool {
        match &*self.policy {
            _ if self.most.is_none() => true,
            "volatile-lru" | "volatile-lfu" => true,
            "noeviction" => has_limits,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> Info {
        Info::new(text.replace('\n', "\r\n"))
    }

    #[test]
    fn versions_are_told_apart() {
        for (text, shown, is_old) in [
            ("# Server\nredis_version:7.0.15\nredis_mode:standalone\n", "Redis 7.0.15", false),
            ("redis_version:6.2.0\n", "Redis 6.2.0", false),
            ("redis_version:6.0.16\n", "Redis 6.0.16", true),
            ("redis_version:5.0.14\n", "Redis 5.0.14", true),
            ("redis_version:10.0\n", "Redis 10.0", false),
            ("redis_version:7.2.4\nserver_name:valkey\nvalkey_version:8.0.1\n", "Valkey 8.0.1", false),
        ] {
            let version = info(text).version().unwrap();
            assert_eq!((version.to_string().as_str(), version.is_old), (shown, is_old));
        }
        assert_eq!(info("").version(), None);
        assert_eq!(info("redis_version:nonsense\n").version(), None);
    }

    #[test]
    fn a_field_is_its_own_line() {
        let info = info("maxmemory_policy:noeviction\nmaxmemory:0\nused_memory_peak:7\nused_memory:5\nrole:master\n");
        assert_eq!((info.field("maxmemory"), info.number("used_memory")), (Some("0"), Some(5)));
        assert_eq!((info.memory().most, info.master()), (None, None));
    }

    #[test]
    fn a_replica_names_its_master() {
        let info = info("role:slave\nmaster_host:10.0.0.7\nmaster_port:6380\n");
        assert_eq!(info.master(), Some(("10.0.0.7", "6380")));
    }

    #[test]
    fn every_policy_has_its_own_consequences() {
        let memory = |policy: &str| Memory { most: Some(1), used: 0, policy: policy.to_owned() };
        let policies = ["noeviction", "volatile-lru", "volatile-ttl", "volatile-random", "allkeys-lru", "other"];
        let mut told: Vec<_> = policies.iter().map(|policy| memory(policy).when_full().unwrap()).collect();
        told.dedup();
        assert_eq!(told.len(), policies.len());
        assert_eq!(Memory { most: None, ..memory("allkeys-lru") }.when_full(), None);
        for (policy, without_limits, with_limits) in [
            ("noeviction", false, true),
            ("volatile-lfu", true, true),
            ("volatile-random", false, false),
            ("allkeys-lru", false, false),
        ] {
            let memory = memory(policy);
            assert_eq!((memory.is_apt(false), memory.is_apt(true)), (without_limits, with_limits), "{policy}");
        }
    }
}
