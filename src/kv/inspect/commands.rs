//! Every command that Weir sends or that its scripts call, and how to find out at no cost whether the ACL allows it.
//!
//! The line for operators is in `docs/redis.md`, "Permissions"; a test holds the two to each other.

use super::Needs;

/// When a command is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Sent by every Weir.
    Always,
    /// Called by scripts.
    InScripts,
    /// For a database other than 0.
    Database,
    /// For `redis.bus = "tracking"`.
    Tracking,
    /// For Redis Cluster.
    Cluster,
    /// For a master that Sentinels name.
    Sentinel,
}

/// A command, and a way to ask for it that changes nothing.
#[derive(Debug)]
pub struct Command {
    /// As `ACL SETUSER` has it, without the `+`.
    pub word: &'static str,
    /// When it is needed.
    pub when: When,
    /// What is sent to try it, by words. `{key}` stands for a key that never exists, `{bell}` for a channel whose listeners
    /// take an empty message for nothing, `{channels}` for all that are listened to, `{database}` for the database's number.
    /// Redis counts a command's arguments, asks the ACL, and only then reads them: where a command has no form that does
    /// nothing, one with a wrong argument is it.
    pub harmless: &'static str,
}

const fn always(word: &'static str, harmless: &'static str) -> Command {
    Command { word, when: When::Always, harmless }
}

const fn in_scripts(word: &'static str, harmless: &'static str) -> Command {
    Command { word, when: When::InScripts, harmless }
}

/// Behind it a connection is of no other use.
pub(super) const SUBSCRIBE: &str = "subscribe";

/// All of them.
pub const COMMANDS: &[Command] = &[
    Command { word: "select", when: When::Database, harmless: "SELECT {database}" },
    always("ping", "PING"),
    always("get", "GET {key}"),
    always("eval", "EVAL return 0"),
    always("evalsha", "EVALSHA 0000000000000000000000000000000000000000 0"),
    always(SUBSCRIBE, "SUBSCRIBE {channels}"),
    always("xread", "XREAD STREAMS {key} 0"),
    always("info", "INFO server"),
    in_scripts("exists", "EXISTS {key}"),
    in_scripts("set", "SET {key} 0 XX PX 1"),
    in_scripts("getrange", "GETRANGE {key} 0 0"),
    in_scripts("del", "DEL {key}"),
    in_scripts("pexpire", "PEXPIRE {key} 1"),
    in_scripts("pttl", "PTTL {key}"),
    in_scripts("hget", "HGET {key} field"),
    in_scripts("hset", "HSET {key} field 0 without-a-value"),
    in_scripts("hmget", "HMGET {key} field"),
    in_scripts("hlen", "HLEN {key}"),
    in_scripts("hdel", "HDEL {key} field"),
    in_scripts("hvals", "HVALS {key}"),
    in_scripts("hscan", "HSCAN {key} 0"),
    in_scripts("xadd", "XADD {key} NOMKSTREAM * field 0"),
    in_scripts("xdel", "XDEL {key} 0-1"),
    in_scripts("xrange", "XRANGE {key} - +"),
    in_scripts("xrevrange", "XREVRANGE {key} + -"),
    in_scripts("xtrim", "XTRIM {key} MAXLEN 0"),
    in_scripts("zadd", "ZADD {key} XX 0 member"),
    in_scripts("zcard", "ZCARD {key}"),
    in_scripts("zcount", "ZCOUNT {key} 0 0"),
    in_scripts("zrangebyscore", "ZRANGEBYSCORE {key} 0 0"),
    in_scripts("zrevrange", "ZREVRANGE {key} 0 0"),
    in_scripts("zincrby", "ZINCRBY {key} not-a-number member"),
    in_scripts("zunionstore", "ZUNIONSTORE {key} 1 {key}"),
    in_scripts("zremrangebyrank", "ZREMRANGEBYRANK {key} 0 0"),
    in_scripts("zscore", "ZSCORE {key} member"),
    in_scripts("zrem", "ZREM {key} member"),
    in_scripts("zremrangebyscore", "ZREMRANGEBYSCORE {key} 0 0"),
    in_scripts("publish", "PUBLISH {bell} "),
    in_scripts("time", "TIME"),
    Command { word: "client|tracking", when: When::Tracking, harmless: "CLIENT TRACKING OFF" },
    Command { word: "cluster|nodes", when: When::Cluster, harmless: "CLUSTER NODES" },
    Command { word: "asking", when: When::Cluster, harmless: "ASKING" },
    Command { word: "readonly", when: When::Cluster, harmless: "READONLY" },
    Command { word: "role", when: When::Sentinel, harmless: "ROLE" },
];

impl Command {
    /// Whether a configuration with these needs uses it.
    pub fn is_needed(&self, needs: &Needs) -> bool {
        match self.when {
            When::Always | When::InScripts => true,
            When::Database => needs.database != 0,
            When::Tracking => needs.tracking,
            When::Cluster => needs.cluster,
            When::Sentinel => needs.sentinel,
        }
    }

    /// What to send to try it.
    pub(super) fn trial(&self, needs: &Needs) -> Vec<Vec<u8>> {
        let keys = &needs.keys;
        let arguments = |word: &str| match word {
            "{key}" => vec![keys.probe()],
            "{bell}" => vec![keys.bell().into_bytes()],
            "{channels}" => [keys.bus(), keys.bell(), keys.roll(), keys.door()].map(String::into_bytes).into(),
            "{database}" => vec![needs.database.to_string().into_bytes()],
            word => vec![word.as_bytes().to_vec()],
        };
        self.harmless.split(' ').flat_map(arguments).collect()
    }
}
