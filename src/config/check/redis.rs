//! `[redis]`.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Check;
use crate::config::raw::{self, At, RedisMode};
use crate::config::{Bus, Redis, Secret};

const DEADLINE: Duration = Duration::from_millis(20);
const STARTUP_WAIT: Duration = Duration::from_secs(2);
const MAX_VALUE: usize = 256 * 1024;
/// Redis itself holds no larger value.
const MOST_VALUE: usize = 512 * 1024 * 1024;
/// Below this no answer could ever be in time.
const SHORTEST_DEADLINE: Duration = Duration::from_millis(1);
const MOST_REPLICAS: u32 = 10_000;
/// In front of the namespace, so that the digest is of use nowhere else.
const KEY_SECRET_LABEL: &[u8] = b"weir key secret, derived from the namespace:";

impl Check<'_, '_> {
    pub(super) fn redis(&mut self, raw: &At<raw::Redis>) -> Option<Redis> {
        let span = raw.span();
        let raw = &raw.value;
        if let Some(nodes) = &raw.nodes {
            self.refuse(&nodes.span(), "redis.nodes", "write `url` with the address of one Redis");
        }
        if let Some(mode) = &raw.mode {
            match mode.value {
                RedisMode::Standalone => {}
                RedisMode::Cluster => self.refuse(&mode.span(), "mode = \"cluster\"", "write \"standalone\""),
                RedisMode::Sentinel => self.refuse(&mode.span(), "mode = \"sentinel\"", "write \"standalone\""),
            }
        }
        if raw.url.is_none() && raw.nodes.is_none() {
            let remedy = "write url = \"redis://127.0.0.1:6379/0\", or leave the whole table out";
            self.error(&span, "`redis` has no key `url`", remedy);
        }
        let url = raw.url.as_ref().and_then(|url| self.redis_url(url));
        let namespace = self.read(&raw.namespace).map(|namespace| namespace.0);
        let deadline = self.duration(&raw.deadline, SHORTEST_DEADLINE).unwrap_or(DEADLINE);
        let startup_wait = self.duration(&raw.startup_wait, Duration::ZERO).unwrap_or(STARTUP_WAIT);
        let max_value = self.size(&raw.max_value, 0..=MOST_VALUE).unwrap_or(MAX_VALUE);
        let password = self.secret("redis.password", &raw.password_file, &raw.password);
        let key_secret = self.secret("redis.key_secret", &raw.key_secret_file, &raw.key_secret);
        let replicas = self.count(&raw.replicas, 1..=MOST_REPLICAS).unwrap_or(1);
        let bus = raw.bus.as_ref().map_or_else(Bus::default, |bus| bus.value);
        let (url, namespace) = (url?, namespace?);
        let key_secret = key_secret.unwrap_or_else(|| derived(&namespace));
        Some(Redis { url, password, namespace, deadline, startup_wait, max_value, key_secret, replicas, bus })
    }

    /// What is wrong is told without a word of the URL: it may hold a password.
    fn redis_url(&mut self, url: &At<String>) -> Option<Secret> {
        const EXAMPLE: &str = "write \"redis://127.0.0.1:6379/0\", or \"unix:///run/redis.sock\"";
        let span = url.span();
        let text = url.value.as_str();
        let Some((scheme, rest)) = text.split_once("://") else {
            self.error(&span, "`redis.url` has no scheme", EXAMPLE);
            return None;
        };
        let wrong = match scheme {
            "redis" => address_problem(rest),
            "unix" | "redis+unix" if rest.len() > 1 && rest.starts_with('/') => None,
            "unix" | "redis+unix" => Some("the path of the socket is not absolute"),
            "rediss" => {
                self.refuse(&span, "rediss://", "write \"redis://\", and protect the way to Redis by the network");
                return None;
            }
            _ => Some("`redis.url` has an unknown scheme"),
        };
        if let Some(wrong) = wrong {
            self.error(&span, wrong, EXAMPLE);
            return None;
        }
        Some(Secret::new(text.as_bytes()))
    }
}

/// What is wrong with `[user:password@]host[:port][/database][?parameters]`.
fn address_problem(rest: &str) -> Option<&'static str> {
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    let (host, port) = match host_port.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => return Some("`redis.url` has a bracket that does not end"),
        },
        None => match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        },
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Some("`redis.url` has no host");
    }
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Some("the port in `redis.url` is not a number from 1 to 65535");
    }
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Some("the database in `redis.url` is not a number");
    }
    None
}

/// The same in every pod of the namespace, without anything to hand out; who knows the namespace can compute it.
fn derived(namespace: &str) -> Secret {
    let mut hash = Sha256::new();
    hash.update(KEY_SECRET_LABEL);
    hash.update(namespace.as_bytes());
    Secret::new(hash.finalize().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_looked_at() {
        for good in ["h", "h:6379", "h/0", "u:p@h:1/2?protocol=resp3", ":p@[::1]:6379", "[::1]"] {
            assert_eq!(address_problem(good), None, "{good}");
        }
        for bad in ["", ":6379", "h:0", "h:99999", "h/a", "[::1", "p@"] {
            assert!(address_problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_derived_secret_differs_by_namespace() {
        assert_eq!(derived("a"), derived("a"));
        assert_ne!(derived("a"), derived("b"));
    }
}
