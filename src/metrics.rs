//! Metric families on an injected registry, and the handles that are resolved when a route is built.
//!
//! Labels are route names, limit names and closed enums, never paths or identities, so that the number of series does
//! not depend on what clients send.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Declares a closed enum of label values with one `as_str` for header, log and label.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Text in headers, logs and labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// How a request ended; each has exactly one.
    Outcome {
        /// Fresh, from the cache.
        Hit = "hit",
        /// Stale, from the cache, where that is allowed.
        Stale = "stale",
        /// From the cache, after the upstream confirmed it.
        Revalidated = "revalidated",
        /// From the upstream, on a route that caches.
        Miss = "miss",
        /// From a fetch that another request had started.
        Collapsed = "collapsed",
        /// From the upstream, past the cache.
        Pass = "pass",
        /// Denied by a limit.
        Denied = "denied",
        /// Refused as malformed, ambiguous or unroutable.
        Refused = "refused",
        /// The upstream could not be reached or did not answer; the answer is our own.
        Failed = "failed",
        /// The client left before its answer began.
        Cancelled = "cancelled",
        /// An invalidation by method.
        Purged = "purged",
    }
}

labels! {
    /// Where something was looked up.
    Tier {
        /// This process.
        Memory = "memory",
        /// The shared store.
        Redis = "redis",
    }
}

labels! {
    /// What a lookup found.
    Lookup {
        /// A fresh entry.
        Hit = "hit",
        /// A stale one.
        Stale = "stale",
        /// Nothing usable.
        Miss = "miss",
        /// An entry that an invalidation had overtaken.
        Invalidated = "invalidated",
        /// Bytes that do not decode.
        Corrupt = "corrupt",
        /// The store did not answer.
        Unavailable = "unavailable",
    }
}

labels! {
    /// How a fetch for the cache ended.
    Fill {
        /// Stored.
        Stored = "stored",
        /// The stored answer was confirmed.
        Revalidated = "revalidated",
        /// The answer may not be stored.
        Uncacheable = "uncacheable",
        /// Larger than may be stored, or no room to hold it.
        TooLarge = "too_large",
        /// Cut short, or never answered.
        Failed = "failed",
        /// Overtaken by a newer fill or an invalidation.
        Superseded = "superseded",
    }
}

labels! {
    /// What a limit said.
    Decision {
        /// Let through.
        Allowed = "allowed",
        /// Denied.
        Denied = "denied",
        /// Would have been denied (`dry_run`).
        DryRun = "dry_run",
    }
}

labels! {
    /// Who decided.
    Source {
        /// Redis.
        Redis = "redis",
        /// This process.
        Local = "local",
        /// The `redis_down` rule.
        Fallback = "fallback",
    }
}

labels! {
    /// The way an invalidation came in.
    Door {
        /// `POST /invalidate`.
        Admin = "admin",
        /// `PUBLISH` from a foreign program.
        Publish = "publish",
        /// `XADD` from a foreign program.
        Stream = "stream",
        /// `PURGE` on a route that allows it.
        Purge = "purge",
        /// `invalidates` of a route, or an unsafe method.
        Write = "write",
    }
}

labels! {
    /// How a Redis command ended.
    RedisResult {
        /// Answered.
        Ok = "ok",
        /// Answered with an error.
        Error = "error",
        /// Not answered in time.
        Timeout = "timeout",
        /// Not sent: no connection, or the breaker is open.
        Unavailable = "unavailable",
    }
}

labels! {
    /// How a configuration reload ended.
    Reload {
        /// Taken.
        Applied = "applied",
        /// Refused; the old one stays.
        Rejected = "rejected",
        /// Nothing had changed.
        Unchanged = "unchanged",
    }
}

/// Bucket bounds of every duration histogram, in seconds.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Bounds for what happens in memory or one Redis round trip away, in seconds.
const FINE_SECONDS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

/// Status classes, by `status / 100 - 1`.
const CLASSES: [&str; 9] = ["1xx", "2xx", "3xx", "4xx", "5xx", "6xx", "7xx", "8xx", "9xx"];

/// Every family.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    lookups: IntCounterVec,
    fills: IntCounterVec,
    collapsed: IntCounterVec,
    hit_ratio: GaugeVec,
    upstream_requests: IntCounterVec,
    upstream_seconds: HistogramVec,
    limit_decisions: IntCounterVec,
    invalidations: IntCounterVec,
    redis_commands: IntCounterVec,
    redis_seconds: HistogramVec,
    reloads: IntCounterVec,
    /// Requests between head and last byte.
    pub requests_in_flight: IntGauge,
    /// Bytes that the memory tier holds.
    pub cache_memory_bytes: IntGauge,
    /// Entries that the memory tier holds.
    pub cache_entries: IntGauge,
    /// Entries that left the memory tier for want of room.
    pub cache_evictions: IntCounter,
    /// From an invalidation's acknowledgement to its being applied here.
    pub invalidation_lag: Histogram,
    /// Time since this pod last proved that it knows every invalidation; 0 without Redis.
    pub bus_age_seconds: Gauge,
    /// 1 while the breaker keeps requests from Redis.
    pub redis_breaker_open: IntGauge,
    /// Open client connections.
    pub connections: IntGauge,
    /// Client connections over the cap.
    pub connections_refused: IntCounter,
    routes: std::sync::Mutex<std::collections::HashMap<String, Arc<RouteMetrics>>>,
}

/// Handles of one route.
pub struct RouteMetrics {
    requests: Vec<[IntCounter; 9]>,
    seconds: Vec<Histogram>,
    lookups: Vec<Vec<IntCounter>>,
    fills: Vec<IntCounter>,
    upstream_seconds: Histogram,
    upstream: [IntCounter; 10],
    /// Requests answered by another's fetch.
    pub collapsed: IntCounter,
    /// Cache answers and all cacheable requests, for the ratio gauge.
    ratio: RatioWindow,
    ratio_gauge: Gauge,
}

/// Handles of one limit on one route.
pub struct LimitMetrics {
    decisions: Vec<Vec<IntCounter>>,
}

/// Handles of one Redis command.
pub struct CommandMetrics {
    results: Vec<IntCounter>,
    seconds: Histogram,
}

impl Metrics {
    /// Registers every family on `registry`.
    ///
    /// # Panics
    /// If a family of the same name is registered already.
    #[expect(clippy::too_many_lines, reason = "one declaration a family")]
    pub fn new(registry: Registry) -> Arc<Self> {
        let families = Families(&registry);
        let metrics = Self {
            requests: families.counters(
                "weir_requests_total",
                "Requests by how they ended",
                &["route", "outcome", "status_class"],
            ),
            request_seconds: families.histograms(
                "weir_request_seconds",
                "From head to last byte",
                &["route", "outcome"],
                SECONDS,
            ),
            lookups: families.counters(
                "weir_cache_lookups_total",
                "Cache lookups by tier and result",
                &["route", "tier", "result"],
            ),
            fills: families.counters(
                "weir_cache_fills_total",
                "Fetches for the cache by how they ended",
                &["route", "result"],
            ),
            collapsed: families.counters(
                "weir_cache_collapsed_total",
                "Requests answered by another's fetch",
                &["route"],
            ),
            hit_ratio: families.gauges(
                "weir_cache_hit_ratio",
                "Share answered from the cache in the last minute",
                &["route"],
            ),
            upstream_requests: families.counters(
                "weir_upstream_requests_total",
                "Requests to the upstream by status class",
                &["route", "status"],
            ),
            upstream_seconds: families.histograms(
                "weir_upstream_seconds",
                "From request to response head",
                &["route"],
                SECONDS,
            ),
            limit_decisions: families.counters(
                "weir_limit_decisions_total",
                "What limits said",
                &["route", "limit", "decision", "source"],
            ),
            invalidations: families.counters(
                "weir_invalidations_total",
                "Invalidations that came in here",
                &["selector", "door"],
            ),
            redis_commands: families.counters(
                "weir_redis_commands_total",
                "Redis commands by how they ended",
                &["command", "result"],
            ),
            redis_seconds: families.histograms("weir_redis_seconds", "Redis round trips", &["command"], FINE_SECONDS),
            reloads: families.counters(
                "weir_config_reloads_total",
                "Configuration reloads by how they ended",
                &["result"],
            ),
            requests_in_flight: families.gauge("weir_requests_in_flight", "Requests between head and last byte"),
            cache_memory_bytes: families.gauge("weir_cache_memory_bytes", "Bytes that the memory tier holds"),
            cache_entries: families.gauge("weir_cache_entries", "Entries that the memory tier holds"),
            cache_evictions: families
                .counter("weir_cache_evictions_total", "Entries that left the memory tier for want of room"),
            invalidation_lag: families
                .histogram("weir_invalidation_lag_seconds", "From an invalidation's number to its being applied here"),
            bus_age_seconds: families
                .float("weir_bus_age_seconds", "Time since the last proof that every invalidation is known"),
            redis_breaker_open: families
                .gauge("weir_redis_breaker_open", "1 while the breaker keeps requests from Redis"),
            connections: families.gauge("weir_connections", "Open client connections"),
            connections_refused: families.counter("weir_connections_refused_total", "Client connections over the cap"),
            routes: std::sync::Mutex::default(),
            registry: registry.clone(),
        };
        let build = families.gauges("weir_build_info", "Always 1; the label says which build runs", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("process metrics are registered once");
        for result in Reload::ALL {
            metrics.reloads.with_label_values(&[result.as_str()]);
        }
        Arc::new(metrics)
    }

    /// The families in Prometheus' text format.
    pub fn render(&self, now_ms: u64) -> String {
        for route in self.routes.lock().expect("no panic while held").values() {
            route.ratio_gauge.set(route.ratio.share(now_ms));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// The handles of the route called `name`; the same ones for the same name.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock().expect("no panic while held");
        Arc::clone(routes.entry(name.to_owned()).or_insert_with(|| Arc::new(self.resolve(name))))
    }

    /// The handles of `limit` on `route`.
    pub fn limit(&self, route: &str, limit: &str) -> LimitMetrics {
        let one = |decision: &Decision| {
            Source::ALL
                .iter()
                .map(|source| {
                    self.limit_decisions.with_label_values(&[route, limit, decision.as_str(), source.as_str()])
                })
                .collect()
        };
        LimitMetrics { decisions: Decision::ALL.iter().map(one).collect() }
    }

    /// The handles of a Redis command or script.
    pub fn command(&self, name: &str) -> CommandMetrics {
        CommandMetrics {
            results: RedisResult::ALL
                .iter()
                .map(|r| self.redis_commands.with_label_values(&[name, r.as_str()]))
                .collect(),
            seconds: self.redis_seconds.with_label_values(&[name]),
        }
    }

    /// Counts an invalidation that came in through `door`; `selector` is a selector kind's text.
    pub fn invalidated(&self, selector: &'static str, door: Door) {
        self.invalidations.with_label_values(&[selector, door.as_str()]).inc();
    }

    /// Counts a configuration reload.
    pub fn reloaded(&self, result: Reload) {
        self.reloads.with_label_values(&[result.as_str()]).inc();
    }

    fn resolve(&self, route: &str) -> RouteMetrics {
        let by_class =
            |outcome: &Outcome| CLASSES.map(|class| self.requests.with_label_values(&[route, outcome.as_str(), class]));
        let by_result = |tier: &Tier| {
            Lookup::ALL.iter().map(|l| self.lookups.with_label_values(&[route, tier.as_str(), l.as_str()])).collect()
        };
        let status =
            |i: usize| self.upstream_requests.with_label_values(&[route, CLASSES.get(i).copied().unwrap_or("none")]);
        RouteMetrics {
            requests: Outcome::ALL.iter().map(by_class).collect(),
            seconds: Outcome::ALL
                .iter()
                .map(|o| self.request_seconds.with_label_values(&[route, o.as_str()]))
                .collect(),
            lookups: Tier::ALL.iter().map(by_result).collect(),
            fills: Fill::ALL.iter().map(|f| self.fills.with_label_values(&[route, f.as_str()])).collect(),
            upstream_seconds: self.upstream_seconds.with_label_values(&[route]),
            upstream: std::array::from_fn(status),
            collapsed: self.collapsed.with_label_values(&[route]),
            ratio: RatioWindow::default(),
            ratio_gauge: self.hit_ratio.with_label_values(&[route]),
        }
    }
}

impl RouteMetrics {
    /// Counts a request that ended.
    pub fn finish(&self, outcome: Outcome, status: StatusCode, took: Duration, now_ms: u64) {
        self.requests[outcome as usize][class(status)].inc();
        self.seconds[outcome as usize].observe(took.as_secs_f64());
        match outcome {
            Outcome::Hit | Outcome::Stale | Outcome::Revalidated | Outcome::Collapsed => self.ratio.count(true, now_ms),
            Outcome::Miss => self.ratio.count(false, now_ms),
            _ => {}
        }
    }

    /// Counts a lookup.
    pub fn lookup(&self, tier: Tier, result: Lookup) {
        self.lookups[tier as usize][result as usize].inc();
    }

    /// Counts a fetch for the cache.
    pub fn fill(&self, result: Fill) {
        self.fills[result as usize].inc();
    }

    /// Counts a request to the upstream; `None` where no head came back.
    pub fn upstream(&self, status: Option<StatusCode>, took: Duration) {
        self.upstream[status.map_or(9, class)].inc();
        self.upstream_seconds.observe(took.as_secs_f64());
    }
}

impl LimitMetrics {
    /// Counts a decision.
    pub fn decided(&self, decision: Decision, source: Source) {
        self.decisions[decision as usize][source as usize].inc();
    }
}

impl CommandMetrics {
    /// Counts a command that ended.
    pub fn ended(&self, result: RedisResult, took: Duration) {
        self.results[result as usize].inc();
        if result != RedisResult::Unavailable {
            self.seconds.observe(took.as_secs_f64());
        }
    }
}

fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100 - 1).min(8)
}

/// Slots of the ratio's minute.
const RATIO_SLOTS: u64 = 12;

/// Length of one of them.
const RATIO_SLOT_MS: u64 = 5_000;

/// Hits and lookups of the last minute, in slots of five seconds.
///
/// A slot packs its number (24 bits), hits (20 bits) and lookups (20 bits, saturating) so that counting is one atomic
/// update without a lock.
#[derive(Default)]
struct RatioWindow([AtomicU64; RATIO_SLOTS as usize]);

impl RatioWindow {
    fn count(&self, hit: bool, now_ms: u64) {
        let number = (now_ms / RATIO_SLOT_MS) & 0xff_ffff;
        let slot = &self.0[(number % RATIO_SLOTS) as usize];
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (hits, all) =
                if packed >> 40 == number { ((packed >> 20) & 0xf_ffff, packed & 0xf_ffff) } else { (0, 0) };
            // A full slot halves both counts: the share stays, the bits suffice.
            let (hits, all) = if all == 0xf_ffff { (hits / 2, all / 2) } else { (hits, all) };
            Some(number << 40 | (hits + u64::from(hit)) << 20 | (all + 1))
        });
    }

    fn share(&self, now_ms: u64) -> f64 {
        let now = (now_ms / RATIO_SLOT_MS) & 0xff_ffff;
        let (mut hits, mut all) = (0, 0);
        for slot in &self.0 {
            let packed = slot.load(Ordering::Relaxed);
            if now.wrapping_sub(packed >> 40) & 0xff_ffff < RATIO_SLOTS {
                hits += (packed >> 20) & 0xf_ffff;
                all += packed & 0xf_ffff;
            }
        }
        if all == 0 { 0.0 } else { hits as f64 / all as f64 }
    }
}

/// Registers families; a duplicate name is a programmer's error.
struct Families<'r>(&'r Registry);

impl Families<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("the name is valid");
        self.0.register(Box::new(family.clone())).expect("the name is registered once");
        family
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn float(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(FINE_SECONDS.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_covers_the_last_minute_only() {
        let window = RatioWindow::default();
        for _ in 0..3 {
            window.count(true, 10_000);
        }
        window.count(false, 20_000);
        assert_eq!(window.share(20_000), 0.75);
        assert_eq!(window.share(72_000), 0.0, "only the miss is left");
        assert_eq!(window.share(200_000), 0.0);
    }

    #[test]
    fn every_status_has_a_class() {
        assert_eq!(CLASSES[class(StatusCode::OK)], "2xx");
        assert_eq!(CLASSES[class(StatusCode::from_u16(999).expect("valid"))], "9xx");
    }
}
