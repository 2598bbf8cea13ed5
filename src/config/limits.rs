//! `[server.limits]` and `[server.http2]`: caps and deadlines of what clients send.

use std::num::NonZeroUsize;
use std::time::Duration;

/// `[server.limits]`.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Open client connections.
    pub connections: usize,
    /// Of them, those of one address, or of one /64 of IPv6.
    pub connections_per_client: Option<NonZeroUsize>,
    /// Bytes of request line and fields.
    pub head: usize,
    /// From the first byte wanted to the end of the head.
    pub head_timeout: Duration,
    /// Longest silence inside a body, either direction.
    pub body_idle: Duration,
    /// Bytes that must move in that time; fewer count as silence.
    pub body_progress: usize,
    /// Longest pause between requests on one connection.
    pub keep_alive: Duration,
    /// Bounds of a connection that speaks HTTP/2.
    pub http2: Http2Limits,
}

/// `[server.http2]`.
#[derive(Debug, Clone, Copy)]
pub struct Http2Limits {
    /// Requests at once on a connection.
    pub streams: u32,
    /// Bytes of a request's body that a client may send ahead.
    pub stream_window: u32,
    /// Bytes of all bodies of a connection that it may send ahead.
    pub connection_window: u32,
    /// Streams reset in ten seconds, beyond those that were answered.
    pub resets: u32,
    /// Frames in ten seconds that bring nothing, beyond those that belong to answers.
    pub control_frames: u32,
    /// How often a quiet client is asked for a sign of life.
    pub ping_interval: Duration,
    /// How long it has to give one.
    pub ping_timeout: Duration,
}
