//! `[redis]`.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Check;
use crate::config::raw::{self, At, RedisMode};
use crate::config::tls::RedisTls;
use crate::config::{Access, Address, Bus, Redis, Resp, Secret, Servers};
use crate::syntax::query::decode;

/// Where Redis listens, if nobody says otherwise.
const PORT: u16 = 6379;

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
        let user = raw.user.as_ref().map(|user| user.value.clone()).filter(|user| !user.is_empty());
        let password = self.secret("redis.password", &raw.password_file, &raw.password);
        let key_secret = self.secret("redis.key_secret", &raw.key_secret_file, &raw.key_secret);
        let replicas = self.count(&raw.replicas, 1..=MOST_REPLICAS).unwrap_or(1);
        let bus = raw.bus.as_ref().map_or_else(Bus::default, |bus| bus.value);
        let tls = url.as_ref().map(|url| self.redis_way(url, raw));
        if let (Some(bytes), Some(file)) = (&password, &raw.password_file)
            && std::str::from_utf8(bytes.expose()).is_err()
        {
            let text = format!("the password in {} is not UTF-8", self.directory.join(&file.value).display());
            self.file_error(&file.span(), text, "write one of printable characters, and set it in Redis' ACL too");
        }
        let url = url?;
        let (user, password) = (user.or(url.user), password.or(url.password));
        if user.is_some() && password.is_none() && raw.password_file.is_none() {
            let place = raw.user.as_ref().or(raw.url.as_ref()).map_or(span, At::span);
            let remedy = "write `password_file`, or set WEIR__REDIS__PASSWORD in the environment";
            self.error(&place, "the user has no password", remedy);
        }
        let (namespace, tls) = (namespace?, tls??);
        let access = Access { user, password, tls };
        let protocol = raw.protocol.as_ref().map(|protocol| protocol.value).or(url.protocol).unwrap_or_default();
        let key_secret = key_secret.unwrap_or_else(|| derived(&namespace));
        Some(Redis {
            servers: Servers::Standalone(url.address),
            database: url.database,
            protocol,
            access,
            namespace,
            deadline,
            startup_wait,
            max_value,
            key_secret,
            replicas,
            bus,
        })
    }

    /// How the way to Redis is protected; `None` where something is wrong.
    fn redis_way(&mut self, url: &Parsed, raw: &raw::Redis) -> Option<Option<RedisTls>> {
        match (&raw.tls, &raw.url) {
            (Some(tls), _) if !url.uses_tls => {
                let text = "`redis.tls` is there, and `redis.url` is not \"rediss://\": nothing would be encrypted";
                self.error(&tls.span(), text, "write \"rediss://\" in the URL, or remove the table");
                None
            }
            (Some(tls), _) => self.redis_tls(Some(&tls.value), &url.address, &tls.span()).map(Some),
            (None, Some(place)) if url.uses_tls => self.redis_tls(None, &url.address, &place.span()).map(Some),
            (None, _) => Some(None),
        }
    }

    /// What is wrong is told without a word of the URL: it may hold a password.
    fn redis_url(&mut self, url: &At<String>) -> Option<Parsed> {
        const EXAMPLE: &str =
            "write \"redis://127.0.0.1:6379/0\", \"rediss://\" for TLS, or \"unix:///run/redis.sock\"";
        let span = url.span();
        let parsed = parsed(&url.value);
        parsed.map_err(|wrong| self.error(&span, wrong, EXAMPLE)).ok()
    }
}

/// What a URL says.
#[derive(Debug, PartialEq)]
struct Parsed {
    address: Address,
    uses_tls: bool,
    user: Option<String>,
    password: Option<Secret>,
    database: u32,
    protocol: Option<Resp>,
}

/// Reads `scheme://[user[:password]@]host[:port][/database][?protocol=resp3]`, or `unix:///path[?db=0&protocol=resp3]`.
fn parsed(url: &str) -> Result<Parsed, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("`redis.url` has no scheme")?;
    if rest.contains('#') {
        return Err("`redis.url` holds a `#`: in a password it is written %23");
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parsed = Parsed {
        address: Address::Unix(PathBuf::from(rest)),
        uses_tls: scheme == "rediss",
        user: None,
        password: None,
        database: 0,
        protocol: None,
    };
    let is_socket = match scheme {
        "redis" | "rediss" => false,
        "unix" | "redis+unix" if rest.len() > 1 && rest.starts_with('/') => true,
        "unix" | "redis+unix" => return Err("the path of the socket is not absolute"),
        _ => return Err("`redis.url` has an unknown scheme"),
    };
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("protocol", "resp2" | "2") => parsed.protocol = Some(Resp::Resp2),
            ("protocol", "resp3" | "3") => parsed.protocol = Some(Resp::Resp3),
            ("db", database) if is_socket => parsed.database = number(database)?,
            ("user" | "pass", _) => {
                return Err("user and password in `redis.url` stand in front of its host, or in keys of their own");
            }
            ("protocol", _) => return Err("the protocol in `redis.url` is neither resp2 nor resp3"),
            _ => return Err("`redis.url` has an unknown parameter"),
        }
    }
    if is_socket {
        return Ok(parsed);
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let host_port = match authority.rsplit_once('@') {
        None => authority,
        Some((login, host_port)) => {
            let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
            parsed.user = Some(unescaped(user)).filter(|user| !user.is_empty());
            parsed.password = password.filter(|word| !word.is_empty()).map(|word| Secret::new(unescaped(word)));
            host_port
        }
    };
    if !database.is_empty() {
        parsed.database = number(database)?;
    }
    parsed.address = address(host_port)?;
    Ok(parsed)
}

/// `host[:port]`, an IPv6 address in brackets.
fn address(text: &str) -> Result<Address, &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) if port.starts_with(':') => (host, Some(&port[1..])),
            _ => return Err("`redis.url` has a bracket that does not end, or something behind it that is no port"),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("`redis.url` has no host");
    }
    let port = port.map_or(Some(PORT), |port| port.parse::<u16>().ok().filter(|port| *port > 0));
    let port = port.ok_or("the port in `redis.url` is not a number from 1 to 65535")?;
    Ok(Address::Tcp { host: host.to_owned(), port })
}

fn number(database: &str) -> Result<u32, &'static str> {
    database.parse().map_err(|_| "the database in `redis.url` is not a number")
}

/// Text with `%` and two hex digits for a byte (RFC 3986 section 2.1).
fn unescaped(text: &str) -> String {
    // In a query, but not here, a plus is a space.
    decode(&text.replace('+', "%2B")).into_owned()
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
        let of = |url: &str| {
            let Parsed { address, uses_tls, user, password, database, protocol } = parsed(url).unwrap();
            let password = password.map(|word| String::from_utf8_lossy(word.expose()).into_owned());
            format!("{address} {uses_tls} {user:?} {password:?} {database} {protocol:?}")
        };
        for (url, expected) in [
            ("redis://h", "h:6379 false None None 0 None"),
            ("redis://h/", "h:6379 false None None 0 None"),
            ("rediss://h:1/3", "h:1 true None None 3 None"),
            ("redis://u:p%40+%2b@h:1/2?protocol=resp3", "h:1 false Some(\"u\") Some(\"p@++\") 2 Some(Resp3)"),
            ("redis://:p@[::1]:6379", "[::1]:6379 false None Some(\"p\") 0 None"),
            ("redis://u@[::1]", "[::1]:6379 false Some(\"u\") None 0 None"),
            ("unix:///run/r.sock", "/run/r.sock false None None 0 None"),
            ("unix:///r?db=2&protocol=resp2", "/r false None None 2 Some(Resp2)"),
        ] {
            assert_eq!(of(url), expected, "{url}");
        }
        for bad in [
            "h:6379",
            "redis://",
            "redis://:6379",
            "redis://h:0",
            "redis://h:99999",
            "redis://h/a",
            "redis://[::1",
            "redis://p@",
            "unix://r",
            "http://h",
            "redis://h?protocol=4",
            "redis://h?x=1",
            "unix:///r?db=a",
            "redis://:p#q@h",
            "unix:///r?pass=p",
            "redis://[::1]6379",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_derived_secret_differs_by_namespace() {
        assert_eq!(derived("a"), derived("a"));
        assert_ne!(derived("a"), derived("b"));
    }
}
