//! What a reload cannot change, because it was bound, sized or connected at start.

use super::Config;

/// A setting, or a table of them, that only a restart changes.
struct Fixed {
    key: &'static str,
    differs: fn(&Config, &Config) -> bool,
    keep: fn(&mut Config, &Config),
}

macro_rules! fixed {
    ($key:literal, $($field:ident).+) => {
        Fixed {
            key: $key,
            differs: |old, new| old.$($field).+ != new.$($field).+,
            keep: |new, old| new.$($field).+.clone_from(&old.$($field).+),
        }
    };
}

const FIXED: [Fixed; 28] = [
    fixed!("server.listen", server.listen),
    fixed!("server.workers", server.workers),
    fixed!("server.limits.connections", server.limits.connections),
    fixed!("admin.listen", admin.listen),
    fixed!("log.format", log.format),
    Fixed {
        key: "upstream.url",
        differs: |old, new| !old.upstream.is_same_place(&new.upstream),
        keep: |new, old| {
            // Certificates and names for another place are of no use at this one.
            if !new.upstream.is_same_place(&old.upstream) {
                new.upstream.target.clone_from(&old.upstream.target);
                new.upstream.tls.clone_from(&old.upstream.tls);
            }
        },
    },
    fixed!("upstream.protocol", upstream.protocol),
    fixed!("upstream.host", upstream.preserve_host),
    fixed!("upstream.connect_timeout", upstream.connect_timeout),
    fixed!("upstream.idle_timeout", upstream.idle_timeout),
    fixed!("upstream.connections", upstream.connections),
    fixed!("upstream.in_flight", upstream.in_flight),
    fixed!("upstream.adaptive", upstream.adaptive),
    fixed!("upstream.queue_timeout", upstream.queue_timeout),
    fixed!("upstream.uploads", upstream.uploads),
    fixed!("upstream.request_buffer", upstream.request_buffer),
    fixed!("upstream.breaker", upstream.breaker),
    fixed!("upstream.retries", upstream.retries),
    fixed!("upstream.retry_budget", upstream.retry_budget),
    Fixed {
        key: "redis",
        differs: |old, new| match (&old.redis, &new.redis) {
            (Some(old), Some(new)) => !old.is_same_but_for_access(new),
            (old, new) => old.is_some() != new.is_some(),
        },
        keep: |new, old| {
            let mut kept = old.redis.clone();
            // A password for another place is of no use at this one.
            if let (Some(kept), Some(new)) = (&mut kept, &new.redis)
                && kept.is_same_place(new)
            {
                kept.access.clone_from(&new.access);
            }
            new.redis = kept;
        },
    },
    fixed!("cache.memory", cache.memory),
    fixed!("cache.fill_memory", cache.fill_memory),
    fixed!("cache.max_object", cache.max_object),
    fixed!("cache.compress_over", cache.compress_over),
    fixed!("cache.max_staleness", cache.max_staleness),
    fixed!("cache.generation", cache.generation),
    fixed!("cache.preload", cache.preload),
    fixed!("cache.preload_wait", cache.preload_wait),
];

/// What of `redis` a reload can change: for connections to come.
const ACCESS: [&str; 7] = [
    "redis.user",
    "redis.password",
    "redis.password_file",
    "redis.sentinel_user",
    "redis.sentinel_password",
    "redis.sentinel_password_file",
    "redis.tls",
];

impl Config {
    /// Settings in which `new` differs and that only a restart changes; `redis` stands for its whole table.
    pub fn restart_needed(&self, new: &Self) -> Vec<&'static str> {
        FIXED.iter().filter(|fixed| (fixed.differs)(self, new)).map(|fixed| fixed.key).collect()
    }

    /// `self`, as far as a reload may change it, and `running` in everything else.
    #[must_use]
    pub fn keeping(mut self, running: &Self) -> Self {
        for fixed in &FIXED {
            (fixed.keep)(&mut self, running);
        }
        self
    }

    /// Whether a reload can change the setting at `key`, such as `server.drain` or `route.cache.ttl`.
    pub fn reloadable(key: &str) -> bool {
        let belongs_to =
            |table: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        ACCESS.iter().any(|own| belongs_to(own)) || !FIXED.iter().any(|fixed| belongs_to(fixed.key))
    }
}
