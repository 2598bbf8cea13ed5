//! The configuration, checked: once a [`Config`] exists nothing in it can be wrong.
//!
//! `raw` mirrors the TOML with spans, `check` turns it into these types and collects every problem with its place and
//! remedy, `report` prints them, `watch` reloads. Everything here is immutable and shared behind an `Arc`.

pub mod overrides;
pub mod report;
pub mod schema;
pub mod tls;
pub mod watch;

mod check;
mod dump;
mod limit;
mod limits;
mod load;
mod machine;
mod raw;
mod redis;
mod reload;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

pub use limit::{
    AfterLoss, AnswerCost, Cost, Delay, IdentityPart, Limit, Missing, Notice, Place, Quota, RedisDown, Stage, Statuses,
    Tiers, Told,
};
pub use limits::{Http2Limits, ServerLimits};
pub use overrides::Overrides;
pub use redis::{Access, Address, Bus, ReadFrom, Redis, Resp, Servers};
pub use report::Report;
use watch::Seen;

use crate::syntax::glob::Glob;
use crate::syntax::pattern::Pattern;
use crate::syntax::template::Template;

/// The whole configuration of one Weir.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where requests come in.
    pub server: Server,
    /// The operator's port.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
    /// The service this Weir stands beside.
    pub upstream: Upstream,
    /// The shared store; without it everything stays inside this process.
    pub redis: Option<Redis>,
    /// Process-wide bounds of the cache.
    pub cache: CacheTiers,
    /// Routes in the order of the file.
    pub routes: Vec<Arc<Route>>,
}

/// `[server]`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Address to accept on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// Peers whose forwarding fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Peers that begin every connection with a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    /// TLS towards clients; without it they speak in plain text.
    pub tls: Option<tls::ServerTls>,
    /// What happens to a request that no route takes.
    pub unmatched: Unmatched,
    /// What happens to a path that two servers could read two ways.
    pub ambiguous_paths: AmbiguousPaths,
    /// Unready but still accepting, after SIGTERM.
    pub lame_duck: Duration,
    /// Longest wait for requests in flight, after that.
    pub drain: Duration,
    /// Caps and deadlines of one connection.
    pub limits: ServerLimits,
}

/// `server.unmatched`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// Forward untouched, counted as route `-`.
    Forward,
    /// Answer 404.
    #[serde(rename = "404")]
    NotFound,
}

/// `server.ambiguous_paths`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AmbiguousPaths {
    /// Answer 400.
    Reject,
    /// Forward as it came, never cached.
    Pass,
}

/// `[admin]`.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address of the operator's port.
    pub listen: SocketAddr,
    /// Bearer token; without one only loopback peers may change anything.
    pub token: Option<Secret>,
    /// Whether `/limits` shows identities in clear text.
    pub show_identities: bool,
}

/// `[log]`.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// JSON lines or text for people.
    pub format: LogFormat,
    /// One line a request.
    pub access: bool,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// A value that is never shown: not by `Debug`, not in a dump, not in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Keeps `bytes` from being shown.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves, for the one place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

/// `[upstream]`.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where the service listens.
    pub target: Target,
    /// TLS towards it: there if and only if the URL says `https`.
    pub tls: Option<tls::UpstreamTls>,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// `Host` sent to it: the client's own (`preserve`) or the upstream's authority.
    pub preserve_host: bool,
    /// Longest wait for a connection to open.
    pub connect_timeout: Duration,
    /// Longest wait for a response head, from the request's last byte.
    pub response_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Open connections in the whole process.
    pub connections: NonZeroUsize,
    /// Most requests that wait for a response head at once, in the whole process.
    pub in_flight: NonZeroUsize,
    /// Whether fewer may where the upstream's latency says so.
    pub adaptive: bool,
    /// Longest wait for a place among them.
    pub queue_timeout: Duration,
    /// Most requests at once that are sent before their body is here, in the whole process.
    pub uploads: NonZeroUsize,
    /// Longest body that is held until it is whole, in bytes.
    pub request_buffer: usize,
    /// Whether requests fail at once while most of them fail.
    pub breaker: bool,
    /// Further attempts at what was never sent, or is safe and unanswered.
    pub retries: u32,
    /// Share of the requests that may be such attempts, 0.0 to 1.0.
    pub retry_budget: f64,
}

/// `upstream.url`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `http://host:port` or `https://host:port`.
    Tcp {
        /// Name or address literal, without brackets.
        host: String,
        /// Port; 80 or, with TLS, 443 where the URL has none.
        port: u16,
        /// `host[:port]` as it is sent in `Host` when the client's own is not kept.
        authority: String,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// `upstream.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    #[serde(rename = "h2")]
    Http2,
}

/// `[cache]`: the bounds that all routes share.
#[derive(Debug, Clone)]
pub struct CacheTiers {
    /// Bytes of the memory tier; 0 turns it off.
    pub memory: usize,
    /// Bytes that fetches in progress may hold together.
    pub fill_memory: usize,
    /// Largest body that is stored.
    pub max_object: usize,
    /// Bodies above this are compressed towards Redis.
    pub compress_over: usize,
    /// The bound B: how long a pod may go on trusting entries without proof that it knows every invalidation.
    pub max_staleness: Duration,
    /// Part of every key.
    pub generation: String,
    /// Keys that a new pod loads from Redis before it is ready; 0: none.
    pub preload: usize,
    /// Longest that it waits for that.
    pub preload_wait: Duration,
}

/// `[[route]]`.
#[derive(Debug, Clone)]
pub struct Route {
    /// Label in metrics, selectors and logs; unique.
    pub name: String,
    /// Path pattern; its captures feed templates.
    pub path: Pattern,
    /// Hosts taken, lower case, `*.` allowed in front; empty takes all.
    pub hosts: Vec<String>,
    /// Methods taken; empty takes all.
    pub methods: Vec<Method>,
    /// Fields that must be there, with this value where one is given.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
    /// Caching, or `None` where nothing is stored.
    pub cache: Option<CacheRule>,
    /// Limits, shared and own.
    pub limits: Vec<Arc<Limit>>,
    /// Selectors that a successful (or unknown) outcome invalidates.
    pub invalidates: Option<Invalidates>,
    /// Changes to what is forwarded.
    pub request: FieldEdits,
    /// Changes to what is answered.
    pub response: FieldEdits,
    /// Overrides `upstream.response_timeout`.
    pub response_timeout: Duration,
    /// Overrides `server.limits.body_idle`.
    pub body_idle: Duration,
    /// Longest silence in a tunnel (after an upgrade).
    pub tunnel_idle: Duration,
    /// Who invalidates on this route by `PURGE` and `SOFTPURGE`, if anybody does.
    pub purge: Option<Purge>,
}

/// `route.purge` and `route.purge_from`.
#[derive(Debug, Clone, Default)]
pub struct Purge {
    /// Clients that may; all of them if none is named.
    pub from: Vec<IpNet>,
}

impl Purge {
    /// Whether this client may.
    pub fn is_open_to(&self, client: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|net| net.contains(&client))
    }
}

/// `request` and `response` of a route.
#[derive(Debug, Clone, Default)]
pub struct FieldEdits {
    /// Set to this value, whatever was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

/// `invalidates` of a route: templates over the path's captures.
#[derive(Debug, Clone, Default)]
pub struct Invalidates {
    /// Tags.
    pub tags: Vec<Template>,
    /// URL selectors (`/x?*` is any query).
    pub urls: Vec<Template>,
    /// Path prefixes.
    pub prefixes: Vec<Template>,
    /// Names of routes.
    pub routes: Vec<String>,
}

/// `cache.*` of a route.
#[derive(Debug, Clone)]
pub struct CacheRule {
    /// Lifetime where the upstream says nothing.
    pub ttl: Option<Duration>,
    /// Whether the upstream's own lifetimes count.
    pub upstream_ttl: UpstreamTtl,
    /// Share by which configured lifetimes are shortened, 0.0 to 1.0.
    pub jitter: f64,
    /// Serve stale this long while refreshing; the upstream's own directive wins where it has one.
    pub stale_while_revalidate: Duration,
    /// Serve stale this long when the upstream fails.
    pub stale_if_error: Duration,
    /// Lifetimes by status, where the upstream says nothing.
    pub status_ttl: BTreeMap<StatusCode, Duration>,
    /// Which query parameters count.
    pub query: QueryRule,
    /// Request fields that are part of the key.
    pub key_headers: Vec<HeaderName>,
    /// Methods that read by their body, which is part of the key.
    pub key_body: Vec<Method>,
    /// Whether answers say, by `No-Vary-Search`, which query parameters count.
    pub no_vary_search: bool,
    /// Whether the answer to a PUT is what a GET gets from then on.
    pub write_through: bool,
    /// Tags computed from the path's captures.
    pub tags: Vec<Template>,
    /// Whether credentials in a request keep `ttl` from applying.
    pub credentials: Credentials,
    /// Fields, beside Cookie and Authorization, that carry credentials.
    pub credential_headers: Vec<HeaderName>,
    /// What is done with an answer that sets a cookie.
    pub cookies: Cookies,
    /// What a client's own cache directives mean.
    pub client_directives: ClientDirectives,
    /// The bound B for this route.
    pub max_staleness: Duration,
    /// What happens past B without proof.
    pub cut_off: CutOff,
    /// Whether `Cache-Status` names the key.
    pub status_key: bool,
    /// Longest wait for somebody else's fetch.
    pub wait_timeout: Duration,
}

/// `cache.upstream_ttl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamTtl {
    /// The upstream's lifetimes win.
    Respect,
    /// Only the configured ones count; `private` and `no-store` still do.
    Ignore,
}

/// `cache.credentials`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// `ttl` never applies to a request with credentials that are not part of the key.
    Protect,
    /// The route's answers are the same for everybody.
    Share,
}

/// `cache.cookies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cookies {
    /// An answer that sets a cookie is not stored.
    Refuse,
    /// It is stored, cookie and all.
    Store,
}

/// `cache.client_directives`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientDirectives {
    /// A client's reload is no way past the cache.
    Ignore,
    /// RFC 9111 section 5.2.1.
    Honor,
}

/// `cache.cut_off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutOff {
    /// Trust an entry for B after this pod asked for it.
    Bound,
    /// Trust it until its lifetime ends.
    Stale,
}

/// `cache.query`.
#[derive(Debug, Clone, Default)]
pub struct QueryRule {
    /// Which parameters count, and are forwarded.
    pub keep: QueryKeep,
    /// Whether parameters are put in order of their names.
    pub sort: bool,
}

/// `cache.query.ignore` or `.only`.
#[derive(Debug, Clone, Default)]
pub enum QueryKeep {
    /// All of them.
    #[default]
    All,
    /// All but these.
    Except(Vec<Glob>),
    /// Only these.
    Only(Vec<Glob>),
}

/// A configuration that holds, what is worth a word about it, and the files it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// What was loaded, as TOML without secrets.
    pub shown: String,
    /// Nothing that stops Weir; perhaps empty.
    pub warnings: Report,
    /// To watch: the file itself and every secret file it names.
    pub files: Vec<Seen>,
}

impl Upstream {
    /// Whether both name the same service, reached with or without TLS alike.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.target == other.target && self.tls.is_some() == other.tls.is_some()
    }
}

impl Config {
    /// Whether `peer` is a proxy whose forwarding fields are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.server.trusted_proxies.iter().any(|net| net.contains(&peer))
    }

    /// Every `max_staleness`: the usual one and the routes' own.
    pub fn bounds(&self) -> impl Iterator<Item = Duration> {
        let routes = self.routes.iter().filter_map(|route| Some(route.cache.as_ref()?.max_staleness));
        std::iter::once(self.cache.max_staleness).chain(routes)
    }
}
