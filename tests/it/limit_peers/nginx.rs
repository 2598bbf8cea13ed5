//! A model of nginx' `limit_req` with `nodelay`, one zone a limit.
//!
//! Sources: github.com/nginx/nginx, `src/http/modules/ngx_http_limit_req_module.c` at 6460d898f95a (the excess, what a request is
//! charged when another zone denies it, which state makes room), `src/core/ngx_times.c` (`ngx_current_msec` is monotonic);
//! nginx.org/en/docs/http/ngx_http_limit_req_module.html (a state takes 128 bytes, and a megabyte has 8 thousand).

use super::Peer;
use super::histories::{Micros, PODS, Quota};
use super::table::Lru;

/// States in a zone of ten megabytes, as the manual's example has it.
const STATES: usize = 80_000;

pub struct LimitReq {
    quotas: &'static [Quota],
    /// Of each pod, of each limit: the excess in thousandths of a request, and when that was, in milliseconds.
    zones: Vec<Vec<Lru<u32, (i64, i64)>>>,
    charged: f64,
}

impl LimitReq {
    pub fn new(quotas: &'static [Quota]) -> Self {
        Self { quotas, zones: (0..PODS).map(|_| zones(quotas)).collect(), charged: 0.0 }
    }
}

fn zones(quotas: &[Quota]) -> Vec<Lru<u32, (i64, i64)>> {
    quotas.iter().map(|_| Lru::new(STATES)).collect()
}

impl Peer for LimitReq {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        let now_ms = (at / 1_000) as i64;
        let mut excesses = Vec::new();
        for (quota, zone) in self.quotas.iter().zip(&mut self.zones[pod]) {
            // A request that finds no state is free; so many more may exceed the rate at once.
            let burst = i64::from(quota.amount) - 1;
            let mut is_new = false;
            let (excess, last_ms) = *zone.of(who, || {
                is_new = true;
                (0, now_ms)
            });
            let rate = i64::from(quota.amount) * 1_000 / quota.period_s as i64;
            let excess = if is_new { 0 } else { (excess - rate * (now_ms - last_ms) / 1_000 + 1_000).max(0) };
            if excess > burst * 1_000 {
                // Nothing is written to the zones that came before.
                return false;
            }
            excesses.push(excess);
        }
        for (zone, excess) in self.zones[pod].iter_mut().zip(excesses) {
            *zone.of(who, || (0, now_ms)) = (excess, now_ms);
        }
        self.charged += 1.0;
        true
    }

    fn restart(&mut self, pod: usize) {
        self.zones[pod] = zones(self.quotas);
    }

    fn charged(&mut self) -> f64 {
        self.charged
    }
}
