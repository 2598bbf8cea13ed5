//! The TOML as it is written, every value with its place. Nothing here is checked beyond its type.
//!
//! These types are also where the known keys come from: `schema` turns them into a JSON Schema, and `check::shape` holds
//! the document against that before it is read into them.

mod limit;
mod redis;
mod server;
mod tls;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};

pub(super) use self::limit::{Algorithm, Charge, Cost, CostPlace, Limit, LimitUse, Status, Tier};
pub(super) use self::redis::{Redis, RedisMode};
pub(super) use self::server::{Http2, Server, ServerLimits};
pub(super) use self::tls::{CertificateFiles, ClientAuthMode, RedisTls, Tls, UpstreamTls};

use super::report::Span;
use super::text::{Host, Name, Namespace, Text};
use super::{
    AfterLoss, ClientDirectives, Cookies, Credentials, CutOff, LogFormat, Missing, Protocol, RedisDown, Stage, Told,
    UpstreamTtl,
};
use crate::syntax::glob::Glob;
use crate::syntax::pattern::Pattern;
use crate::syntax::template::Template;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At<T> {
    /// What was written.
    pub(super) value: T,
    /// Where; last, so that values are what is compared first.
    pub(super) span: SpanKey,
}

/// A span that can be compared, so that [`At`] can be a key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SpanKey(usize, usize);

impl<T> At<T> {
    /// Where it stands.
    pub(super) fn span(&self) -> Span {
        self.span.0..self.span.1
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self { value: spanned.into_inner(), span: SpanKey(span.start, span.end) })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A setting that may be left out.
pub(super) type Maybe<T> = Option<At<T>>;
/// A setting that is text with a grammar, and may be left out.
pub(super) type MaybeText<T> = Option<At<Text<T>>>;
/// A list of texts with a grammar.
pub(super) type Texts<T> = Option<Vec<At<Text<T>>>>;

/// Configuration of Weir.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Weir")]
pub(super) struct Raw {
    /// Where requests come in.
    pub(super) server: Option<Server>,
    /// The operator's port.
    pub(super) admin: Option<Admin>,
    /// What is logged.
    pub(super) log: Option<Log>,
    /// The service that Weir stands beside.
    #[schemars(required)]
    pub(super) upstream: Option<Upstream>,
    /// The store that all pods share; without it everything stays inside the process.
    pub(super) redis: Maybe<Redis>,
    /// Bounds of the cache that all routes share.
    pub(super) cache: Option<Cache>,
    /// Limits that routes share by name.
    pub(super) limit: Option<Vec<At<Limit>>>,
    /// Which requests are treated how.
    pub(super) route: Option<Vec<At<Route>>>,
}

/// `[admin]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// Address of the operator's port.
    pub(super) listen: MaybeText<SocketAddr>,
    /// File with the bearer token; without one only loopback peers may change anything.
    #[schemars(example = "admin-token")]
    pub(super) token_file: Maybe<String>,
    /// The token itself; only from the environment (`WEIR__ADMIN__TOKEN`).
    pub(super) token: Maybe<String>,
    /// Whether `/limits` shows identities in clear text.
    pub(super) show_identities: Maybe<bool>,
}

/// `[log]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// JSON lines or text for people.
    pub(super) format: Maybe<LogFormat>,
    /// One line a request.
    pub(super) access: Maybe<bool>,
}

/// `[upstream]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    /// Where the service listens: `http://host:port`, `https://host:port` or `unix:/path`.
    #[schemars(required)]
    #[schemars(example = "http://127.0.0.1:3000")]
    pub(super) url: Maybe<String>,
    /// How it is spoken to.
    pub(super) protocol: Maybe<Protocol>,
    /// The `Host` that it sees: the client's own, or its own name.
    pub(super) host: Maybe<UpstreamHost>,
    /// Longest wait for a connection to open.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) connect_timeout: MaybeText<Duration>,
    /// Longest wait for a response head.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) response_timeout: MaybeText<Duration>,
    /// How long an unused connection is kept; below the upstream's own time.
    pub(super) idle_timeout: MaybeText<Duration>,
    /// Open connections in the whole process.
    pub(super) connections: Maybe<i64>,
    /// Most requests that wait for a response head at once.
    pub(super) in_flight: Maybe<i64>,
    /// Whether fewer may where the upstream's latency says so.
    pub(super) adaptive: Maybe<bool>,
    /// Longest wait for a place among them.
    pub(super) queue_timeout: MaybeText<Duration>,
    /// Most requests at once that are sent before their body is here.
    pub(super) uploads: Maybe<i64>,
    /// Longest body that is held until it is whole.
    #[schemars(extend("x-range" = ["0", "1MiB"]))]
    pub(super) request_buffer: MaybeText<usize>,
    /// Whether requests fail at once while most of them fail.
    pub(super) breaker: Maybe<bool>,
    /// Further attempts at what was never sent, or is safe and unanswered.
    pub(super) retries: Maybe<i64>,
    /// Share of the requests that may be such attempts.
    pub(super) retry_budget: MaybeText<f64>,
    /// TLS towards an `https` service.
    pub(super) tls: Maybe<UpstreamTls>,
}

/// `upstream.host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum UpstreamHost {
    /// The client's own.
    Preserve,
    /// The upstream's authority.
    Upstream,
}

/// `[cache]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    /// Size of the memory tier; "0" turns it off.
    #[schemars(extend("x-range" = ["0", "16TiB"]))]
    pub(super) memory: MaybeText<usize>,
    /// What fetches in progress may hold together.
    #[schemars(extend("x-range" = ["1B", "16TiB"]))]
    pub(super) fill_memory: MaybeText<usize>,
    /// Largest body that is stored.
    #[schemars(extend("x-range" = ["1B", "16TiB"]))]
    pub(super) max_object: MaybeText<usize>,
    /// Bodies above this are compressed towards Redis.
    #[schemars(extend("x-range" = ["0", "16TiB"]))]
    pub(super) compress_over: MaybeText<usize>,
    /// How long a pod trusts its entries without proof that it knows every invalidation.
    #[schemars(extend("x-range" = ["100ms", "3650d"]))]
    pub(super) max_staleness: MaybeText<Duration>,
    /// Part of every key: a new one leaves every older entry behind.
    pub(super) generation: MaybeText<Name>,
    /// Keys that a new pod loads from Redis before it is ready, of those that the fleet reads most.
    pub(super) preload: Maybe<i64>,
    /// Longest that it waits for that.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) preload_wait: MaybeText<Duration>,
}

/// `[[route]]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Label in metrics, selectors and logs; unique.
    #[schemars(required)]
    pub(super) name: MaybeText<Name>,
    /// Path pattern: `{name}` is one segment, `{*name}` zero or more at the end.
    #[schemars(required)]
    pub(super) path: MaybeText<Pattern>,
    /// Hosts taken, `*.` allowed in front; all by default.
    pub(super) hosts: Texts<Host>,
    /// Methods taken; all by default.
    pub(super) methods: Texts<Method>,
    /// Request fields that must be there: with this value, or with any (`true`).
    #[schemars(example = BTreeMap::from([("x-version", "2")]))]
    pub(super) headers: Option<BTreeMap<At<String>, At<FieldMatch>>>,
    /// Caching; without any key in it nothing is stored.
    pub(super) cache: Maybe<CacheRule>,
    /// Limits, by name or written out.
    #[schemars(example = ["per-client"])]
    pub(super) limits: Option<Vec<At<LimitUse>>>,
    /// What a request to this route invalidates.
    pub(super) invalidates: Maybe<Invalidates>,
    /// Changes to what is forwarded.
    pub(super) request: Option<FieldEdits>,
    /// Changes to what is answered.
    pub(super) response: Option<FieldEdits>,
    /// In place of `upstream.response_timeout`.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) response_timeout: MaybeText<Duration>,
    /// In place of `server.limits.body_idle`.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) body_idle: MaybeText<Duration>,
    /// Longest silence in a tunnel, after an upgrade.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(super) tunnel_idle: MaybeText<Duration>,
    /// Whether PURGE and SOFTPURGE invalidate on this route.
    pub(super) purge: Maybe<bool>,
    /// Clients that may.
    pub(super) purge_from: Texts<IpNet>,
}

/// A value of a route's `headers`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FieldMatch {
    /// `true`: any value.
    Present(bool),
    /// This value.
    Value(Text<HeaderValue>),
}

/// `invalidates` of a route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Invalidates {
    /// Tags, with captures of the path.
    pub(super) tags: Texts<Template>,
    /// URLs, with captures of the path; `/x?*` is any query.
    pub(super) urls: Texts<Template>,
    /// Path prefixes, with captures of the path.
    pub(super) prefixes: Texts<Template>,
    /// Names of routes.
    #[schemars(example = ["catalog"])]
    pub(super) routes: Option<Vec<At<String>>>,
}

/// `request` and `response` of a route.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FieldEdits {
    /// Set to this value, whatever was there.
    #[schemars(example = BTreeMap::from([("x-frame-options", "DENY")]))]
    pub(super) set: Option<BTreeMap<At<String>, At<Text<HeaderValue>>>>,
    /// Removed.
    pub(super) remove: Texts<HeaderName>,
}

/// `cache` of a route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheRule {
    /// Whether anything is stored; true where any key of `cache` is there.
    pub(super) enabled: Maybe<bool>,
    /// Lifetime where the upstream says nothing.
    pub(super) ttl: MaybeText<Duration>,
    /// Whether the upstream's own lifetimes count.
    pub(super) upstream_ttl: Maybe<UpstreamTtl>,
    /// Share by which configured lifetimes are shortened at random.
    pub(super) jitter: MaybeText<f64>,
    /// Serve stale this long while refreshing.
    pub(super) stale_while_revalidate: MaybeText<Duration>,
    /// Serve stale this long when the upstream fails.
    pub(super) stale_if_error: MaybeText<Duration>,
    /// Lifetimes by status, where the upstream says nothing.
    #[schemars(example = BTreeMap::from([("404", "5s")]))]
    pub(super) status_ttl: Option<BTreeMap<At<String>, At<Text<Duration>>>>,
    /// Which query parameters count.
    pub(super) query: Maybe<Query>,
    /// Request fields that are part of the key.
    pub(super) key_headers: Texts<HeaderName>,
    /// Methods whose body is part of the key.
    pub(super) key_body: Texts<Method>,
    /// Whether answers say which query parameters count.
    pub(super) no_vary_search: Maybe<bool>,
    /// Whether the answer to a PUT is what a GET gets from then on.
    pub(super) write_through: Maybe<bool>,
    /// Tags, with captures of the path.
    pub(super) tags: Texts<Template>,
    /// Whether credentials in a request keep `ttl` from applying.
    pub(super) credentials: Maybe<Credentials>,
    /// Fields, beside Cookie and Authorization, that carry credentials.
    pub(super) credential_headers: Texts<HeaderName>,
    /// What is done with an answer that sets a cookie.
    pub(super) cookies: Maybe<Cookies>,
    /// What a client's own cache directives mean.
    pub(super) client_directives: Maybe<ClientDirectives>,
    /// In place of `cache.max_staleness`.
    #[schemars(extend("x-range" = ["100ms", "3650d"]))]
    pub(super) max_staleness: MaybeText<Duration>,
    /// What happens past `max_staleness` without proof.
    pub(super) cut_off: Maybe<CutOff>,
    /// Whether `Cache-Status` names the key.
    pub(super) status_key: Maybe<bool>,
    /// Longest wait for somebody else's fetch.
    pub(super) wait_timeout: MaybeText<Duration>,
}

/// `cache.query` of a route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// Parameters that neither count nor are forwarded.
    pub(super) ignore: Texts<Glob>,
    /// The only parameters that count and are forwarded.
    pub(super) only: Texts<Glob>,
    /// Whether parameters are put in order of their names.
    pub(super) sort: Maybe<bool>,
}
