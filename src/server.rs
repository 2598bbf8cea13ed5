//! Where requests come in: one listener, workers, strict HTTP/1 and HTTP/2, caps, deadlines, a graceful end.
//!
//! HTTP/1 is spoken by a loop of our own on `httparse` (`http1`, with `head`, `framing` and `answer` as its grammars), so
//! that there is one parser and nothing to repair or to read two ways, one place for every deadline, and one write for a
//! small answer. HTTP/2 is hyper's, by prior knowledge or by TLS' handshake (`http2`); its requests reach the service in the same shape.
//! What may come before HTTP is in `entrance`: the header that names a balancer's client (`proxy_protocol`), and `tls`.
//!
//! What a request has when it reaches the [`Service`]: a target in origin form (or `*`), one valid `Host` (HTTP/1.0 may
//! have none), and a body without its framing. `Expect` has been dealt with, an offer to upgrade to HTTP/2 is gone, and so
//! is `Transfer-Encoding`; other hop-by-hop fields are the service's.

mod answer;
mod clients;
mod drain;
mod entrance;
mod framing;
mod guard;
mod head;
mod http1;
mod http2;
mod intake;
mod listener;
pub mod proxy_protocol;
mod spare;
mod tls;
mod tunnel;
mod wire;
mod worker;

use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, StatusCode};

use crate::clock::Clock;
use crate::config::ServerLimits;
use crate::message::interim::Interim;
use crate::message::{Answer, Body, Peer};
use crate::metrics::Metrics;

pub use entrance::Entrance;
pub use listener::{Bound, Running, bind, start};
pub use worker::Drained;

/// What answers requests; each worker has its own, and its connections share it.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers `peer`'s `request`; what comes before the answer goes to `interim`. The future is dropped when the client
    /// leaves first.
    fn call(&self, request: Request<Body>, peer: Peer, interim: Interim<'_>) -> impl Future<Output = Answer> + Send;

    /// Counts a request that was never taken, and makes its answer; `why` is for people.
    fn refuse(&self, status: StatusCode, why: &'static str) -> Answer;

    /// Ends when the work that goes on behind the answers has ended; asked after the last connection, within the
    /// drain's deadline.
    fn settle(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// What the server needs beside its service.
#[derive(Clone)]
pub struct Settings {
    /// Caps and deadlines; a connection takes those of the moment it is accepted.
    pub limits: Arc<ArcSwap<ServerLimits>>,
    /// What stands in front of HTTP; a connection takes it likewise.
    pub entrance: Arc<ArcSwap<Entrance>>,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// Dates answers that have none.
    pub clock: Clock,
}

/// What one connection needs beside its service.
struct Context {
    peer: Peer,
    limits: ServerLimits,
    metrics: Arc<Metrics>,
    clock: Clock,
    drain: drain::Watch,
    spoken: Spoken,
}

/// What is known of a connection's protocol before its first byte of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    /// Nothing: the first bytes tell.
    Either,
    /// TLS' handshake settled on HTTP/1.1, or on nothing (RFC 7301, RFC 9113 section 3.2).
    Http1,
    /// It settled on HTTP/2.
    Http2,
}

impl Spoken {
    /// Whether a connection may begin so.
    fn allows(self, first: &[u8]) -> bool {
        match self {
            Self::Either => true,
            Self::Http1 => !first.starts_with(head::HTTP2_PREFACE),
            Self::Http2 => first.starts_with(head::HTTP2_PREFACE) || head::HTTP2_PREFACE.starts_with(first),
        }
    }
}

/// Serves one connection to its end, in the protocol that its first bytes speak; `_held` is dropped with it.
///
/// It is spawned as it is: a future around it would have room for it twice.
async fn connection<T: wire::Transport, S: Service>(io: T, service: S, context: Context, _held: impl Send) {
    if let Some(http2) = http1::serve(io, &service, context).await {
        http2::serve(http2, service).await;
    }
}

#[cfg(test)]
mod sample;
