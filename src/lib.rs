//! Weir: a sidecar reverse proxy that caches, collapses, limits and invalidates, as one fleet on one Redis.
//!
//! A request's way, in one function ([`proxy::handle`](proxy)):
//!
//! ```text
//! accept -> parse strictly -> who is it -> which route -> limits(on=request)
//!    -> cache lookup: memory -> redis
//!         hit            -> answer
//!         stale, allowed -> answer, refresh behind
//!         miss           -> join the fetch in flight, or lead it: limits(on=miss) -> lease -> limits(on=origin) -> upstream
//!    -> stream to the client while filling the cache -> one log line, one set of metrics
//! ```
//!
//! A module uses only what stands to its right, and `tests/it/tidy.rs` keeps it so:
//!
//! `main -> app -> {admin, server, proxy} -> {cache, limit} -> fleet -> invalidation -> kv -> log -> {metrics, clock, config, message} -> syntax`

pub mod admin;
pub mod app;
pub mod cache;
pub mod clock;
pub mod config;
pub mod demo;
pub mod fleet;
pub mod invalidation;
pub mod kv;
pub mod limit;
pub mod log;
pub mod message;
pub mod metrics;
pub mod proxy;
pub mod server;
pub mod syntax;
