//! `[server]` and its tables.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::{AmbiguousPaths, Unmatched};
use super::{Maybe, MaybeText, Texts, Tls};

/// `[server]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Server {
    /// Address to accept on; port 0 takes a free one.
    pub(in crate::config) listen: MaybeText<SocketAddr>,
    /// Worker threads; by default the CPUs that this process may use.
    pub(in crate::config) workers: Maybe<i64>,
    /// Peers whose X-Forwarded-For and Forwarded are believed.
    pub(in crate::config) trusted_proxies: Texts<IpNet>,
    /// What happens to a request that no route takes.
    pub(in crate::config) unmatched: Maybe<Unmatched>,
    /// What happens to a path that two servers could read two ways.
    pub(in crate::config) ambiguous_paths: Maybe<AmbiguousPaths>,
    /// Unready but still accepting, after SIGTERM.
    pub(in crate::config) lame_duck: MaybeText<Duration>,
    /// Longest wait for requests in flight, after that.
    pub(in crate::config) drain: MaybeText<Duration>,
    /// Caps and deadlines of one connection.
    pub(in crate::config) limits: Option<ServerLimits>,
    /// Bounds of a connection that speaks HTTP/2.
    pub(in crate::config) http2: Option<Http2>,
    /// Peers that begin every connection with a PROXY header; others must not.
    pub(in crate::config) proxy_protocol: Texts<IpNet>,
    /// TLS towards clients.
    pub(in crate::config) tls: Maybe<Tls>,
}

/// `[server.limits]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ServerLimits {
    /// Open client connections.
    pub(in crate::config) connections: Maybe<i64>,
    /// Of them, those of one address, or of one /64 of IPv6; by default as many as there may be.
    pub(in crate::config) connections_per_client: Maybe<i64>,
    /// Size of request line and fields.
    #[schemars(extend("x-range" = ["1KiB", "1MiB"]))]
    pub(in crate::config) head: MaybeText<usize>,
    /// From the first byte wanted to the end of the head.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) head_timeout: MaybeText<Duration>,
    /// Longest silence inside a body, either direction.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) body_idle: MaybeText<Duration>,
    /// Bytes that must move in that time; fewer count as silence.
    #[schemars(extend("x-range" = ["1B", "1MiB"]))]
    pub(in crate::config) body_progress: MaybeText<usize>,
    /// Longest pause between requests on one connection.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) keep_alive: MaybeText<Duration>,
}

/// `[server.http2]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Http2 {
    /// Requests at once on a connection.
    pub(in crate::config) streams: Maybe<i64>,
    /// Bytes of a request's body that a client may send ahead.
    #[schemars(extend("x-range" = ["64KiB", "16MiB"]))]
    pub(in crate::config) stream_window: MaybeText<usize>,
    /// Bytes of all bodies of a connection that it may send ahead.
    #[schemars(extend("x-range" = ["64KiB", "16MiB"]))]
    pub(in crate::config) connection_window: MaybeText<usize>,
    /// Streams reset in ten seconds, beyond those that were answered; more ends the connection.
    pub(in crate::config) resets: Maybe<i64>,
    /// Frames in ten seconds that bring nothing, beyond those that belong to answers; more ends the connection.
    #[schemars(example = 2000)]
    pub(in crate::config) control_frames: Maybe<i64>,
    /// How often a quiet client is asked for a sign of life.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) ping_interval: MaybeText<Duration>,
    /// How long it has to give one.
    #[schemars(extend("x-range" = ["1ms", "3650d"]))]
    pub(in crate::config) ping_timeout: MaybeText<Duration>,
}
