//! One request's account: what it was, how it ended, and where that is written down.
//!
//! The account closes when it is dropped, wherever that is: a request has exactly one outcome, even one whose client
//! left or whose task was cancelled.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, Uri};

use crate::clock::{Clock, Stopwatch};
use crate::config;
use crate::limit::Slots;
use crate::log::{Access, Sink};
use crate::metrics::{Metrics, Outcome, RouteMetrics, Tier};

/// The status in metrics and logs where the client left before there was one (as nginx writes it).
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What every account needs, once a worker.
pub struct Books {
    /// Families without a route.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// Access lines.
    pub access: Sink,
}

/// A request's account.
pub struct Exchange {
    books: Arc<Books>,
    route: Arc<RouteMetrics>,
    started: Stopwatch,
    outcome: Outcome,
    status: Option<StatusCode>,
    line: Option<Box<Line>>,
    /// Bytes of the body that were handed to the client's connection.
    pub bytes: u64,
    /// What the request holds of limits until its end.
    pub slots: Slots,
}

/// What only the access line says.
struct Line {
    route: Arc<str>,
    client: IpAddr,
    method: Method,
    host: HeaderValue,
    uri: Uri,
    tier: Option<Tier>,
    upstream: Option<Duration>,
    limit: Option<Arc<config::Limit>>,
    dry_run: Vec<Arc<config::Limit>>,
}

impl Exchange {
    /// Opens the account of a request that `route` took.
    pub fn open(books: &Arc<Books>, route: &Arc<RouteMetrics>, started: Stopwatch) -> Self {
        books.metrics.requests_in_flight.inc();
        Self {
            books: Arc::clone(books),
            route: Arc::clone(route),
            started,
            outcome: Outcome::Cancelled,
            status: None,
            line: None,
            bytes: 0,
            slots: Slots::new(),
        }
    }

    /// Adds what the access line says, where one is wanted.
    pub fn describe(&mut self, route: &Arc<str>, client: IpAddr, method: &Method, host: &HeaderValue, uri: &Uri) {
        if self.books.access.logs_access() {
            self.line = Some(Box::new(Line {
                route: Arc::clone(route),
                client,
                method: method.clone(),
                host: host.clone(),
                uri: uri.clone(),
                tier: None,
                upstream: None,
                limit: None,
                dry_run: Vec::new(),
            }));
        }
    }

    /// The route's handles.
    pub fn route(&self) -> &RouteMetrics {
        &self.route
    }

    /// How it ends, as far as that is decided.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The answer is decided.
    pub fn decide(&mut self, outcome: Outcome, status: StatusCode) {
        self.outcome = outcome;
        self.status = Some(status);
    }

    /// The limit that denies it.
    pub fn denied_by(&mut self, limit: &Arc<config::Limit>) {
        if let Some(line) = &mut self.line {
            line.limit = Some(Arc::clone(limit));
        }
    }

    /// The limits so far that only count, and would have denied it.
    pub fn would_be_denied_by(&mut self, limits: &[Arc<config::Limit>]) {
        if let Some(line) = &mut self.line {
            line.dry_run.clear();
            line.dry_run.extend_from_slice(limits);
        }
    }

    /// The tier that the answer came from.
    pub fn from_tier(&mut self, tier: Tier) {
        if let Some(line) = &mut self.line {
            line.tier = Some(tier);
        }
    }

    /// The upstream was asked for this request, and took so long to send its head, if it did.
    pub fn asked_upstream(&mut self, status: Option<StatusCode>, took: Duration) {
        self.route.upstream(status, took);
        if let Some(line) = &mut self.line {
            line.upstream = Some(took);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let now = self.books.clock.now();
        let closed = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST);
        let status = self.status.unwrap_or(closed);
        self.books.metrics.requests_in_flight.dec();
        self.route.finish(self.outcome, status, took, now);
        if let Some(line) = &self.line {
            let dry_run: Vec<&str> = line.dry_run.iter().map(|limit| &*limit.name).collect();
            self.books.access.access(&Access {
                time_ms: now,
                method: line.method.as_str(),
                host: line.host.to_str().unwrap_or_default(),
                path: line.uri.path(),
                status: status.as_u16(),
                outcome: self.outcome,
                tier: line.tier,
                limit: line.limit.as_ref().map(|limit| &*limit.name),
                dry_run: &dry_run,
                route: &line.route,
                duration_us: took.as_micros() as u64,
                upstream_us: line.upstream.map(|took| took.as_micros() as u64),
                bytes: self.bytes,
                client: line.client,
                request_id: None,
            });
        }
    }
}
