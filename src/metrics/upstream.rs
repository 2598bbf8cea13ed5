//! Families about the protection of the upstream.

use prometheus::{IntCounterVec, IntGauge};

use super::{Families, Retry, Shed};

/// Their handles; clones share them.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    /// Requests that wait for the upstream's head.
    pub in_flight: IntGauge,
    /// How many may at this moment.
    pub limit: IntGauge,
    /// Requests that wait for a place among them.
    pub waiting: IntGauge,
    /// Requests let through whose body is still on its way.
    pub uploads: IntGauge,
    /// 1 while the breaker keeps requests from the upstream.
    pub breaker_open: IntGauge,
    sheds: IntCounterVec,
    retries: IntCounterVec,
}

impl UpstreamMetrics {
    pub(super) fn register(families: &Families) -> Self {
        let metrics = Self {
            in_flight: families.gauge("weir_upstream_in_flight", "Requests that wait for the upstream's head"),
            limit: families.gauge("weir_upstream_limit", "How many requests may be in flight at this moment"),
            waiting: families.gauge("weir_upstream_waiting", "Requests that wait for a place in flight"),
            uploads: families.gauge("weir_upstream_uploads", "Requests let through whose body is still on its way"),
            breaker_open: families
                .gauge("weir_upstream_breaker_open", "1 while the breaker keeps requests from the upstream"),
            sheds: families.counters(
                "weir_upstream_sheds_total",
                "Requests that were not sent, to protect the upstream",
                &["reason"],
            ),
            retries: families.counters("weir_upstream_retries_total", "Attempts made again, or not", &["result"]),
        };
        for why in Shed::ALL {
            metrics.sheds.with_label_values(&[why.as_str()]);
        }
        for result in Retry::ALL {
            metrics.retries.with_label_values(&[result.as_str()]);
        }
        metrics
    }

    /// Counts a request that was not sent.
    pub fn shed(&self, why: Shed) {
        self.sheds.with_label_values(&[why.as_str()]).inc();
    }

    /// Counts an attempt that was made again, or was not for want of budget.
    pub fn retried(&self, result: Retry) {
        self.retries.with_label_values(&[result.as_str()]).inc();
    }
}
