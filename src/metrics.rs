//! Metric families on an injected registry, and the handles that are resolved when a route is built.
//!
//! Labels are route names, limit names and closed enums, never paths or identities, so that the number of series does
//! not depend on what clients send.

mod labels;
mod limits;
mod ratio;
mod upstream;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use self::labels::{
    Decision, Door, Ended, Fault, Fill, Layer, Lookup, NotTaken, Outcome, RedisFault, RedisPart, RedisResult, Reload,
    Retry, Settled, Shed, Source, Tier, TiersRead,
};
use self::limits::LimitFamilies;
pub use self::limits::{LimitMetrics, TiersMetrics};
use self::ratio::RatioWindow;
pub use self::upstream::UpstreamMetrics;

/// Bucket bounds of every duration histogram, in seconds.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Bounds for what happens in memory or one Redis round trip away, in seconds.
const FINE_SECONDS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

/// Status classes, by `status / 100 - 1`.
const CLASSES: [&str; 9] = ["1xx", "2xx", "3xx", "4xx", "5xx", "6xx", "7xx", "8xx", "9xx"];

/// Every family.
pub struct Metrics {
    registry: Registry,
    route_families: RouteFamilies,
    hit_ratio: GaugeVec,
    limits: LimitFamilies,
    /// Identities for whom limits are others.
    pub tiers: TiersMetrics,
    invalidations: IntCounterVec,
    redis_commands: IntCounterVec,
    redis_seconds: HistogramVec,
    reloads: IntCounterVec,
    connections_failed: IntCounterVec,
    /// Requests between head and last byte.
    pub requests_in_flight: IntGauge,
    /// Bytes that the memory tier holds.
    pub cache_memory_bytes: IntGauge,
    /// Entries that the memory tier holds.
    pub cache_entries: IntGauge,
    /// Entries that left the memory tier for want of room.
    pub cache_evictions: IntCounter,
    /// Invalidations that wait until Redis takes them.
    pub invalidations_waiting: IntGauge,
    /// From an invalidation's acknowledgement to its being applied here.
    pub invalidation_lag: Histogram,
    /// Time since this pod last proved that it knows every invalidation; 0 without Redis.
    pub bus_age_seconds: Gauge,
    /// 1 while the breaker keeps requests from Redis.
    pub redis_breaker_open: IntGauge,
    redis_faults: IntCounterVec,
    redis_degraded: IntGaugeVec,
    /// What protects the upstream.
    pub upstream: UpstreamMetrics,
    /// Open client connections.
    pub connections: IntGauge,
    connections_refused: IntCounterVec,
    connections_cut: IntCounterVec,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_errors: IntCounter,
    /// Panics, each of which ended one request or one task.
    pub panics: IntCounter,
    routes: std::sync::Mutex<std::collections::HashMap<String, Arc<RouteMetrics>>>,
    levels: std::sync::Mutex<Vec<Level>>,
}

/// Sets gauges whose values cost too much to follow at each change.
type Level = Box<dyn Fn(&Metrics) + Send>;

/// Handles of one route.
///
/// A series exists from its first event on: twelve outcomes by nine status classes on a hundred routes would be thousands
/// of lines in every scrape that never move.
pub struct RouteMetrics {
    name: String,
    families: RouteFamilies,
    requests: Cells<IntCounter>,
    seconds: Cells<Histogram>,
    lookups: Cells<IntCounter>,
    fills: Cells<IntCounter>,
    upstream_seconds: Cells<Histogram>,
    upstream: Cells<IntCounter>,
    /// Requests answered by another's fetch.
    pub collapsed: IntCounter,
    /// Cache answers and all cacheable requests, for the ratio gauge.
    ratio: RatioWindow,
}

/// What a route's handles are resolved from; clones share it.
#[derive(Clone)]
struct RouteFamilies {
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    lookups: IntCounterVec,
    fills: IntCounterVec,
    collapsed: IntCounterVec,
    upstream_requests: IntCounterVec,
    upstream_seconds: HistogramVec,
}

/// Handles of one Redis command.
pub struct CommandMetrics {
    name: String,
    family: IntCounterVec,
    results: Cells<IntCounter>,
    seconds: Histogram,
}

/// Handles that are resolved when first used; afterwards a use is one atomic load.
struct Cells<T>(Box<[OnceLock<T>]>);

impl<T> Cells<T> {
    fn new(count: usize) -> Self {
        Self(std::iter::repeat_with(OnceLock::new).take(count).collect())
    }

    fn at(&self, index: usize, resolve: impl FnOnce() -> T) -> &T {
        self.0[index].get_or_init(resolve)
    }
}

impl Metrics {
    /// Registers every family on `registry`.
    ///
    /// # Panics
    /// If a family of the same name is registered already.
    pub fn new(registry: Registry) -> Arc<Self> {
        let families = Families(registry);
        let metrics = Self {
            route_families: RouteFamilies::register(&families),
            hit_ratio: families.gauges(
                "weir_cache_hit_ratio",
                "Share answered from the cache in the last minute; NaN where nothing was asked",
                &["route"],
            ),
            limits: LimitFamilies::register(&families),
            tiers: TiersMetrics::register(&families),
            invalidations: families.counters(
                "weir_invalidations_total",
                "Invalidations that came in here",
                &["selector", "door"],
            ),
            invalidations_waiting: families.gauge(
                "weir_invalidations_waiting",
                "Invalidations that are applied here and wait until Redis takes them",
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
            redis_breaker_open: families.gauge(
                "weir_redis_breaker_open",
                "Masters that the breaker keeps requests from; 1 too while none is known",
            ),
            redis_faults: families.counters(
                "weir_redis_faults_total",
                "Commands that Redis did not do and connections that did not open, by cause",
                &["kind"],
            ),
            redis_degraded: families.levels(
                "weir_redis_degraded",
                "1 while this use of Redis does not work",
                &["part"],
            ),
            upstream: UpstreamMetrics::register(&families),
            connections: families.gauge("weir_connections", "Open client connections"),
            connections_refused: families.counters(
                "weir_connections_refused_total",
                "Client connections over a cap",
                &["reason"],
            ),
            connections_cut: families.counters(
                "weir_connections_cut_total",
                "Client connections ended before their time",
                &["reason"],
            ),
            accept_errors: families
                .counter("weir_accept_errors_total", "Accepts that failed for want of descriptors or memory"),
            panics: families.counter("weir_panics_total", "Panics, each of which ended one request or task"),
            connections_failed: families.counters(
                "weir_connections_failed_total",
                "Client connections that ended before HTTP began",
                &["layer", "reason"],
            ),
            routes: std::sync::Mutex::default(),
            levels: std::sync::Mutex::default(),
            registry: families.0.clone(),
        };
        let build = families.gauges("weir_build_info", "Always 1; the label says which build runs", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics.registry.register(Box::new(process)).expect("process metrics are registered once");
        for result in Reload::ALL {
            metrics.reloads.with_label_values(&[result.as_str()]);
        }
        for reason in NotTaken::ALL {
            metrics.connections_refused.with_label_values(&[reason.as_str()]);
        }
        for reason in Ended::ALL {
            metrics.connections_cut.with_label_values(&[reason.as_str()]);
        }
        for kind in RedisFault::ALL {
            metrics.redis_faults.with_label_values(&[kind.as_str()]);
        }
        for part in RedisPart::ALL {
            metrics.redis_degraded(*part, false);
        }
        Arc::new(metrics)
    }

    /// The families in Prometheus' text format.
    pub fn render(&self, now_ms: u64) -> String {
        for set in &*self.levels.lock().expect("no panic while held") {
            set(self);
        }
        for (name, route) in &*self.routes.lock().expect("no panic while held") {
            // A route that never asked the cache has no ratio, and no series.
            if let Some(share) = route.ratio.share(now_ms) {
                self.hit_ratio.with_label_values(&[name]).set(share);
            }
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Has `set` called before each scrape.
    pub fn before_each_scrape(&self, set: impl Fn(&Self) + Send + 'static) {
        self.levels.lock().expect("no panic while held").push(Box::new(set));
    }

    /// Adds a counter that is older than this registry, as the log's is.
    ///
    /// # Panics
    /// If a family of the same name is registered already.
    pub fn adopt(&self, counter: IntCounter) {
        self.registry.register(Box::new(counter)).expect("the name is registered once");
    }

    /// The handles of the route called `name`; the same ones for the same name.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock().expect("no panic while held");
        Arc::clone(routes.entry(name.to_owned()).or_insert_with(|| Arc::new(self.resolve(name))))
    }

    /// The handles of `limit` on `route`.
    pub fn limit(&self, route: &str, limit: &str) -> LimitMetrics {
        LimitMetrics::new(&self.limits, route, limit)
    }

    /// The handles of a Redis command or script.
    pub fn command(&self, name: &str) -> CommandMetrics {
        CommandMetrics {
            name: name.to_owned(),
            family: self.redis_commands.clone(),
            results: Cells::new(RedisResult::ALL.len()),
            seconds: self.redis_seconds.with_label_values(&[name]),
        }
    }

    /// Counts something that Redis did not do.
    pub fn redis_failed(&self, kind: RedisFault) {
        self.redis_faults.with_label_values(&[kind.as_str()]).inc();
    }

    /// Whether a use of Redis does not work.
    pub fn redis_degraded(&self, part: RedisPart, is_degraded: bool) {
        self.redis_degraded.with_label_values(&[part.as_str()]).set(is_degraded.into());
    }

    /// Counts an invalidation that came in through `door`; `selector` is a selector kind's text.
    pub fn invalidated(&self, selector: &'static str, door: Door) {
        self.invalidations.with_label_values(&[selector, door.as_str()]).inc();
    }

    /// Counts a client's connection that ended before HTTP began.
    pub fn connection_failed(&self, layer: Layer, fault: Fault) {
        self.connections_failed.with_label_values(&[layer.as_str(), fault.as_str()]).inc();
    }

    /// Counts a configuration reload.
    pub fn reloaded(&self, result: Reload) {
        self.reloads.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts a client's connection that was not taken.
    pub fn connection_refused(&self, reason: NotTaken) {
        self.connections_refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a client's connection that was ended before its time.
    pub fn connection_cut(&self, reason: Ended) {
        self.connections_cut.with_label_values(&[reason.as_str()]).inc();
    }

    fn resolve(&self, route: &str) -> RouteMetrics {
        let families = self.route_families.clone();
        RouteMetrics {
            name: route.to_owned(),
            requests: Cells::new(Outcome::ALL.len() * CLASSES.len()),
            seconds: Cells::new(Outcome::ALL.len()),
            lookups: Cells::new(Tier::ALL.len() * Lookup::ALL.len()),
            fills: Cells::new(Fill::ALL.len()),
            upstream_seconds: Cells::new(1),
            upstream: Cells::new(CLASSES.len() + 1),
            collapsed: families.collapsed.with_label_values(&[route]),
            ratio: RatioWindow::default(),
            families,
        }
    }
}

impl RouteFamilies {
    fn register(families: &Families) -> Self {
        Self {
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
        }
    }
}

impl RouteMetrics {
    /// Counts a request that ended.
    pub fn finish(&self, outcome: Outcome, status: StatusCode, took: Duration, now_ms: u64) {
        let class = class(status);
        let labels = || [self.name.as_str(), outcome.as_str(), CLASSES[class]];
        self.requests
            .at(outcome as usize * CLASSES.len() + class, || self.families.requests.with_label_values(&labels()))
            .inc();
        self.seconds
            .at(outcome as usize, || {
                self.families.request_seconds.with_label_values(&[self.name.as_str(), outcome.as_str()])
            })
            .observe(took.as_secs_f64());
        match outcome {
            Outcome::Hit | Outcome::Stale | Outcome::Revalidated | Outcome::Collapsed => self.ratio.count(true, now_ms),
            Outcome::Miss => self.ratio.count(false, now_ms),
            _ => {}
        }
    }

    /// Counts a lookup.
    pub fn lookup(&self, tier: Tier, result: Lookup) {
        let labels = || [self.name.as_str(), tier.as_str(), result.as_str()];
        self.lookups
            .at(tier as usize * Lookup::ALL.len() + result as usize, || {
                self.families.lookups.with_label_values(&labels())
            })
            .inc();
    }

    /// Counts a fetch for the cache.
    pub fn fill(&self, result: Fill) {
        let labels = || [self.name.as_str(), result.as_str()];
        self.fills.at(result as usize, || self.families.fills.with_label_values(&labels())).inc();
    }

    /// Counts a request to the upstream; `None` where no head came back.
    pub fn upstream(&self, status: Option<StatusCode>, took: Duration) {
        let class = status.map_or(CLASSES.len(), class);
        let labels = || [self.name.as_str(), CLASSES.get(class).copied().unwrap_or("none")];
        self.upstream.at(class, || self.families.upstream_requests.with_label_values(&labels())).inc();
        self.upstream_seconds
            .at(0, || self.families.upstream_seconds.with_label_values(&[self.name.as_str()]))
            .observe(took.as_secs_f64());
    }
}

impl CommandMetrics {
    /// Counts a command that ended.
    pub fn ended(&self, result: RedisResult, took: Duration) {
        let labels = || [self.name.as_str(), result.as_str()];
        self.results.at(result as usize, || self.family.with_label_values(&labels())).inc();
        if result != RedisResult::Unavailable {
            self.seconds.observe(took.as_secs_f64());
        }
    }
}

fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100 - 1).min(8)
}

/// Registers families; a duplicate name is a programmer's error.
struct Families(Registry);

impl Families {
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

    fn levels(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
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
mod tests;
