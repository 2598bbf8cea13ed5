//! `[redis]`.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Check;
use crate::config::raw::{self, At, Maybe, RedisMode};
use crate::config::report::Span;
use crate::config::tls::RedisTls;
use crate::config::{Access, Address, Bus, ReadFrom, Redis, Resp, Secret, Servers};
use crate::syntax::query::decode;

/// Where Redis listens, if nobody says otherwise.
const PORT: u16 = 6379;

/// And where Sentinels do.
const SENTINEL_PORT: u16 = 26379;

/// Keys that have a meaning with Sentinels only.
const SENTINELS: [&str; 3] = ["master", "sentinel_user", "sentinel_password_file"];

/// More databases than any Redis has.
const MOST_DATABASE: u32 = 1_000_000;

const DEADLINE: Duration = Duration::from_millis(20);
const STARTUP_WAIT: Duration = Duration::from_secs(2);
const MAX_VALUE: usize = 256 * 1024;
/// Redis itself holds no larger value.
const MOST_VALUE: usize = 512 * 1024 * 1024;
/// Below this no answer could ever be in time.
const SHORTEST_DEADLINE: Duration = Duration::from_millis(1);
const MOST_REPLICAS: u32 = 10_000;
const EXPECTED_BODY: usize = 4 * 1024;
/// In front of the namespace, so that the digest is of use nowhere else.
const KEY_SECRET_LABEL: &[u8] = b"weir key secret, derived from the namespace:";

impl Check<'_, '_> {
    pub(super) fn redis(&mut self, raw: &At<raw::Redis>) -> Option<Redis> {
        let span = raw.span();
        let raw = &raw.value;
        let place = self.redis_place(raw, &span);
        let namespace = self.read(&raw.namespace).map(|namespace| namespace.0);
        let deadline = self.duration(&raw.deadline, SHORTEST_DEADLINE).unwrap_or(DEADLINE);
        let startup_wait = self.duration(&raw.startup_wait, Duration::ZERO).unwrap_or(STARTUP_WAIT);
        let max_value = self.size(&raw.max_value, 0..=MOST_VALUE).unwrap_or(MAX_VALUE);
        let named = |user: &Maybe<String>| user.as_ref().map(|user| user.value.clone()).filter(|user| !user.is_empty());
        let (user, sentinel_user) = (named(&raw.user), named(&raw.sentinel_user));
        let password = self.secret("redis.password", &raw.password_file, &raw.password);
        let sentinel_password =
            self.secret("redis.sentinel_password", &raw.sentinel_password_file, &raw.sentinel_password);
        let key_secret = self.secret("redis.key_secret", &raw.key_secret_file, &raw.key_secret);
        let replicas = self.count(&raw.replicas, 1..=MOST_REPLICAS).unwrap_or(1);
        let bus = raw.bus.as_ref().map_or_else(Bus::default, |bus| bus.value);
        let expected_entries = self.count(&raw.expected_entries, 0..=u32::MAX).unwrap_or(0);
        let expected_body = self.size(&raw.expected_body, 0..=MOST_VALUE).unwrap_or(EXPECTED_BODY);
        let expected_identities = self.count(&raw.expected_identities, 0..=u32::MAX).unwrap_or(0);
        let tls = place.as_ref().map(|place| self.redis_way(place, raw));
        for (password, file) in [(&password, &raw.password_file), (&sentinel_password, &raw.sentinel_password_file)] {
            if let (Some(bytes), Some(file)) = (password, file)
                && std::str::from_utf8(bytes.expose()).is_err()
            {
                let text = format!("the password in {} is not UTF-8", self.directory.join(&file.value).display());
                self.file_error(&file.span(), text, "write one of printable characters, and set it in Redis' ACL too");
            }
        }
        if let (Some(user), Some(_), None) = (&raw.sentinel_user, &sentinel_user, &sentinel_password)
            && raw.sentinel_password_file.is_none()
        {
            let remedy = "write `sentinel_password_file`, or set WEIR__REDIS__SENTINEL_PASSWORD in the environment";
            self.error(&user.span(), "the Sentinels' user has no password", remedy);
        }
        let place = place?;
        let (user, password) = (user.or(place.user), password.or(place.password));
        if user.is_some() && password.is_none() && raw.password_file.is_none() {
            let place = raw.user.as_ref().or(raw.url.as_ref()).map_or(span, At::span);
            let remedy = "write `password_file`, or set WEIR__REDIS__PASSWORD in the environment";
            self.error(&place, "the user has no password", remedy);
        }
        let (namespace, tls) = (namespace?, tls??);
        let access = Access { user, password, sentinel_user, sentinel_password, tls };
        let protocol = raw.protocol.as_ref().map(|protocol| protocol.value).or(place.protocol).unwrap_or_default();
        let key_secret = key_secret.unwrap_or_else(|| derived(&namespace));
        Some(Redis {
            servers: place.servers,
            database: place.database,
            protocol,
            access,
            namespace,
            deadline,
            startup_wait,
            max_value,
            key_secret,
            replicas,
            bus,
            read_from: raw.read_from.as_ref().map(|read_from| read_from.value).unwrap_or_default(),
            expected_entries,
            expected_body,
            expected_identities,
        })
    }

    /// Where Redis is; `None` where that is not said, or cannot be.
    fn redis_place(&mut self, raw: &raw::Redis, span: &Span) -> Option<Place> {
        let mode = raw.mode.as_ref().map_or(RedisMode::Standalone, |mode| mode.value);
        let mode_span = raw.mode.as_ref().map_or_else(|| span.clone(), At::span);
        if mode != RedisMode::Sentinel {
            let sentinels = [&raw.master, &raw.sentinel_user, &raw.sentinel_password_file];
            for (one, name) in sentinels.into_iter().zip(SENTINELS) {
                if let Some(one) = one {
                    let text = format!("`redis.{name}` is for `mode = \"sentinel\"`, which is not set");
                    self.error(&one.span(), text, "write mode = \"sentinel\", or remove the line");
                }
            }
        }
        let database = raw.database.as_ref().map(|_| self.count(&raw.database, 0..=MOST_DATABASE).unwrap_or(0));
        if mode == RedisMode::Standalone {
            // An empty list takes back that of another file.
            if let Some(nodes) = raw.nodes.as_ref().filter(|nodes| !nodes.value.is_empty() || raw.url.is_none()) {
                let remedy =
                    "write mode = \"cluster\" or \"sentinel\" beside it, or remove the line: one server has a `url`";
                self.error(
                    &nodes.span(),
                    "`redis.nodes` is for a Cluster or Sentinels, and `mode` does not say so",
                    remedy,
                );
            }
            if let Some(read_from) = raw.read_from.as_ref().filter(|from| from.value == ReadFrom::Replica) {
                let remedy = "write mode = \"sentinel\" or \"cluster\", or remove the line";
                self.error(&read_from.span(), "one server has no replicas that Weir would know", remedy);
            }
            if raw.url.is_none() && raw.nodes.is_none() {
                let remedy = "write url = \"redis://127.0.0.1:6379/0\", or leave the whole table out";
                self.error(span, "`redis` has no key `url`", remedy);
            }
            let mut place = raw.url.as_ref().and_then(|url| self.redis_url(url))?;
            place.database = database.unwrap_or(place.database);
            return Some(place);
        }
        if let Some(url) = &raw.url {
            let text = "`redis.url` is for one server, and `mode` says that there are several";
            self.error(&url.span(), text, "write nodes = [\"host:port\", ...], user and password in keys of their own");
        }
        let nodes = self.redis_nodes(raw, mode, &mode_span);
        let uses_tls = raw.tls.is_some();
        let servers = if mode == RedisMode::Cluster {
            if let Some(at) = raw.database.as_ref().filter(|_| database != Some(0)) {
                self.error(&at.span(), "a Cluster has database 0 only", "remove the line");
            }
            Servers::Cluster { seeds: nodes? }
        } else {
            let Some(master) = raw.master.as_ref().filter(|master| !master.value.is_empty()) else {
                let remedy =
                    "write master = \"...\", the name behind `sentinel monitor` in the Sentinels' configuration";
                self.error(&mode_span, "`redis` has no key `master`", remedy);
                return None;
            };
            Servers::Sentinel { sentinels: nodes?, master: master.value.clone() }
        };
        let database = database.unwrap_or(0);
        Some(Place { servers, uses_tls, user: None, password: None, database, protocol: None })
    }

    fn redis_nodes(&mut self, raw: &raw::Redis, mode: RedisMode, span: &Span) -> Option<Vec<Address>> {
        let (who, port) = match mode {
            RedisMode::Sentinel => ("the Sentinels", SENTINEL_PORT),
            _ => ("some of the Cluster's servers", PORT),
        };
        let remedy = format!("write nodes = [\"10.0.0.1:{port}\", \"10.0.0.2:{port}\"], the addresses of {who}");
        let Some(nodes) = &raw.nodes else {
            self.error(span, "`redis` has no key `nodes`", remedy);
            return None;
        };
        let listed = &nodes.value;
        if listed.is_empty() {
            self.error(&nodes.span(), "`redis.nodes` names no server", remedy);
            return None;
        }
        let read = |node: &At<String>| {
            if node.value.contains("://") || node.value.contains('@') {
                return Err(
                    "a server in `redis.nodes` is written host:port, TLS and password in keys of their own".to_owned()
                );
            }
            if !node.value.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c)) {
                return Err(
                    "a server in `redis.nodes` is written host:port, of letters, digits, `-`, `.` and `_`".to_owned()
                );
            }
            address(&node.value, port, "a server in `redis.nodes`")
        };
        let nodes: Vec<_> = listed
            .iter()
            .filter_map(|node| read(node).map_err(|wrong| self.error(&node.span(), wrong, remedy.as_str())).ok())
            .collect();
        for (nth, node) in listed.iter().enumerate() {
            if nodes.len() == listed.len() && nodes[..nth].contains(&nodes[nth]) {
                let text = format!("\"{}\" is there twice", node.value.escape_debug());
                self.error(&node.span(), text, "write each server once");
            }
        }
        (nodes.len() == listed.len()).then_some(nodes)
    }

    /// How the way to Redis is protected; `None` where something is wrong.
    fn redis_way(&mut self, place: &Place, raw: &raw::Redis) -> Option<Option<RedisTls>> {
        let addresses = place.servers.addresses();
        match (&raw.tls, &raw.url) {
            (Some(tls), _) if !place.uses_tls => {
                let text = "`redis.tls` is there, and `redis.url` is not \"rediss://\": nothing would be encrypted";
                self.error(&tls.span(), text, "write \"rediss://\" in the URL, or remove the table");
                None
            }
            (Some(tls), _) => self.redis_tls(Some(&tls.value), addresses, &tls.span()).map(Some),
            (None, Some(url)) if place.uses_tls => self.redis_tls(None, addresses, &url.span()).map(Some),
            (None, _) => Some(None),
        }
    }

    /// What is wrong is told without a word of the URL: it may hold a password.
    fn redis_url(&mut self, url: &At<String>) -> Option<Place> {
        const EXAMPLE: &str =
            "write \"redis://127.0.0.1:6379/0\", \"rediss://\" for TLS, or \"unix:///run/redis.sock\"";
        let span = url.span();
        let parsed = parsed(&url.value);
        parsed.map_err(|wrong| self.error(&span, wrong, EXAMPLE)).ok()
    }
}

/// Where Redis is, and what a URL says beside that.
#[derive(Debug, PartialEq)]
struct Place {
    servers: Servers,
    uses_tls: bool,
    user: Option<String>,
    password: Option<Secret>,
    database: u32,
    protocol: Option<Resp>,
}

/// Reads `scheme://[user[:password]@]host[:port][/database][?protocol=resp3]`, or `unix:///path[?db=0&protocol=resp3]`.
fn parsed(url: &str) -> Result<Place, String> {
    let (scheme, rest) = url.split_once("://").ok_or("`redis.url` has no scheme")?;
    if rest.contains('#') {
        return Err("`redis.url` holds a `#`: in a password it is written %23".into());
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parsed = Place {
        servers: Servers::Standalone(Address::Unix(PathBuf::from(rest))),
        uses_tls: scheme == "rediss",
        user: None,
        password: None,
        database: 0,
        protocol: None,
    };
    let is_socket = match scheme {
        "redis" | "rediss" => false,
        "unix" | "redis+unix" if rest.len() > 1 && rest.starts_with('/') => true,
        "unix" | "redis+unix" => return Err("the path of the socket is not absolute".into()),
        _ => return Err("`redis.url` has an unknown scheme".into()),
    };
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("protocol", "resp2" | "2") => parsed.protocol = Some(Resp::Resp2),
            ("protocol", "resp3" | "3") => parsed.protocol = Some(Resp::Resp3),
            ("db", database) if is_socket => parsed.database = number(database)?,
            ("user" | "pass", _) => {
                return Err(
                    "user and password in `redis.url` stand in front of its host, or in keys of their own".into()
                );
            }
            ("protocol", _) => return Err("the protocol in `redis.url` is neither resp2 nor resp3".into()),
            _ => return Err("`redis.url` has an unknown parameter".into()),
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
    parsed.servers = Servers::Standalone(address(host_port, PORT, "`redis.url`")?);
    Ok(parsed)
}

/// `host[:port]`, an IPv6 address in brackets.
fn address(text: &str, default: u16, what: &str) -> Result<Address, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) if port.starts_with(':') => (host, Some(&port[1..])),
            _ => return Err(format!("{what} has a bracket that does not end, or something behind it that is no port")),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(format!("{what} has no host"));
    }
    let port = port.map_or(Some(default), |port| port.parse::<u16>().ok().filter(|port| *port > 0));
    let port = port.ok_or_else(|| format!("the port of {what} is not a number from 1 to 65535"))?;
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
            let Place { servers, uses_tls, user, password, database, protocol } = parsed(url).unwrap();
            let [address] = servers.addresses() else { panic!("one: {servers:?}") };
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
