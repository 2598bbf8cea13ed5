//! What limits said, how requests waited for them, and for whom they are others.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::labels::{Decision, Settled, Source, TiersRead};
use super::{Cells, Families, SECONDS};

/// What a limit's handles are resolved from; clones share it.
#[derive(Clone)]
pub(super) struct LimitFamilies {
    decisions: IntCounterVec,
    settled: IntCounterVec,
    delays: HistogramVec,
    waiting: IntGaugeVec,
}

/// Handles of one limit on one route.
pub struct LimitMetrics {
    route: String,
    limit: String,
    families: LimitFamilies,
    decisions: Cells<IntCounter>,
    settled: Cells<IntCounter>,
    delays: Cells<Histogram>,
    waiting: Cells<IntGauge>,
}

impl LimitFamilies {
    pub(super) fn register(families: &Families) -> Self {
        Self {
            decisions: families.counters(
                "weir_limit_decisions_total",
                "What limits said",
                &["route", "limit", "decision", "source"],
            ),
            settled: families.counters(
                "weir_limit_settled_total",
                "How it became known what requests cost limits whose answers say it",
                &["route", "limit", "cost"],
            ),
            delays: families.histograms(
                "weir_limit_delay_seconds",
                "How long requests waited for a limit",
                &["route", "limit"],
                SECONDS,
            ),
            waiting: families.levels("weir_limit_waiting", "Requests that wait for a limit", &["route", "limit"]),
        }
    }
}

impl LimitMetrics {
    pub(super) fn new(families: &LimitFamilies, route: &str, limit: &str) -> Self {
        Self {
            route: route.to_owned(),
            limit: limit.to_owned(),
            families: families.clone(),
            decisions: Cells::new(Decision::ALL.len() * Source::ALL.len()),
            settled: Cells::new(Settled::ALL.len()),
            delays: Cells::new(1),
            waiting: Cells::new(1),
        }
    }

    /// Counts a decision.
    pub fn decided(&self, decision: Decision, source: Source) {
        let labels = || [self.route.as_str(), self.limit.as_str(), decision.as_str(), source.as_str()];
        self.decisions
            .at(decision as usize * Source::ALL.len() + source as usize, || {
                self.families.decisions.with_label_values(&labels())
            })
            .inc();
    }

    /// How often it came to each kind of decision so far, whoever decided.
    pub fn so_far(&self) -> Vec<(Decision, u64)> {
        let families = self.families.decisions.collect();
        let series: Vec<_> = families.iter().flat_map(MetricFamily::get_metric).collect();
        let count = |decision: Decision| {
            let wanted = [("route", &*self.route), ("limit", &*self.limit), ("decision", decision.as_str())];
            let is_wanted = |one: &&&Metric| {
                let has = |(name, value): &(&str, &str)| {
                    one.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
                };
                wanted.iter().all(has)
            };
            series.iter().filter(is_wanted).map(|one| one.get_counter().get_value() as u64).sum()
        };
        Decision::ALL.iter().map(|decision| (*decision, count(*decision))).collect()
    }

    /// Counts a request whose cost became known with its answer.
    pub fn settled(&self, how: Settled) {
        let labels = || [self.route.as_str(), self.limit.as_str(), how.as_str()];
        self.settled.at(how as usize, || self.families.settled.with_label_values(&labels())).inc();
    }

    /// A request begins to wait.
    pub fn waits(&self) {
        self.waiting().inc();
    }

    /// It has waited for so long, whatever comes of it.
    pub fn waited(&self, took: Duration) {
        self.waiting().dec();
        let labels = [self.route.as_str(), self.limit.as_str()];
        self.delays.at(0, || self.families.delays.with_label_values(&labels)).observe(took.as_secs_f64());
    }

    fn waiting(&self) -> &IntGauge {
        let labels = [self.route.as_str(), self.limit.as_str()];
        self.waiting.at(0, || self.families.waiting.with_label_values(&labels))
    }
}

/// Identities for whom limits are others, by the hash that says so.
pub struct TiersMetrics {
    reads: IntCounterVec,
    identities: IntGaugeVec,
    unknown: IntGaugeVec,
}

impl TiersMetrics {
    pub(super) fn register(families: &Families) -> Self {
        Self {
            reads: families.counters("weir_limit_tiers_reads_total", "Readings of tiers", &["tiers", "result"]),
            identities: families.levels("weir_limit_tiers_identities", "Identities that have a tier", &["tiers"]),
            unknown: families.levels(
                "weir_limit_tiers_unknown",
                "Identities with a tier that no limit has",
                &["tiers"],
            ),
        }
    }

    /// Counts a reading of the hash called `tiers`.
    pub fn read(&self, tiers: &str, result: TiersRead) {
        self.reads.with_label_values(&[tiers, result.as_str()]).inc();
    }

    /// What it said.
    pub fn hold(&self, tiers: &str, identities: usize, unknown: usize) {
        self.identities.with_label_values(&[tiers]).set(identities as i64);
        self.unknown.with_label_values(&[tiers]).set(unknown as i64);
    }
}
