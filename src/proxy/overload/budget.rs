//! How many attempts may be made again, pure: a share of what was asked, so that retries cannot multiply a load that the
//! upstream fails under.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::Micros;

/// Retries a second that are always allowed: a quiet service closes idle connections, and each costs one.
const LEAST_PER_SECOND: i64 = 10;

/// Most that can be saved up: ten seconds of the least.
const MOST_SAVED: i64 = 100;

/// Parts of one retry in which shares are counted.
const WHOLE: i64 = 10_000;

/// A bucket that requests fill and retries empty.
#[derive(Debug)]
pub struct Budget {
    /// What a request brings, in parts of a retry.
    share: i64,
    saved: AtomicI64,
    /// Up to when the least was paid in.
    paid_at: AtomicU64,
}

impl Budget {
    /// A full one; `share` of the requests may be retries, from 0.0 to 1.0.
    pub fn new(share: f64, now: Micros) -> Self {
        Self {
            share: (share.clamp(0.0, 1.0) * WHOLE as f64) as i64,
            saved: AtomicI64::new(MOST_SAVED * WHOLE),
            paid_at: AtomicU64::new(now),
        }
    }

    /// A request was sent.
    pub fn deposit(&self) {
        // Once full this is one load.
        if self.saved.load(Ordering::Relaxed) < MOST_SAVED * WHOLE {
            self.saved.fetch_add(self.share, Ordering::Relaxed);
        }
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, now: Micros) -> bool {
        let paid_at = self.paid_at.fetch_max(now, Ordering::Relaxed);
        let due = now.saturating_sub(paid_at).min(MOST_SAVED as u64 * 1_000_000) as i64;
        let income = due * LEAST_PER_SECOND * WHOLE / 1_000_000;
        let left = |saved: i64| (saved + income).min(MOST_SAVED * WHOLE) - WHOLE;
        let taken = self
            .saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| (left(saved) >= 0).then(|| left(saved)));
        if taken.is_err() {
            self.saved.fetch_add(income, Ordering::Relaxed);
        }
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn retries_stay_within_share_least_and_what_was_saved(
            steps in prop::collection::vec((0_u64..200_000, 0_u32..50, 0_u32..50), 1..200),
            share in 0.0..1.0_f64,
        ) {
            let budget = Budget::new(share, 0);
            let (mut now, mut requests, mut retries) = (0, 0_u64, 0_u64);
            for (pause, asked, again) in steps {
                now += pause;
                for _ in 0..asked {
                    budget.deposit();
                    requests += 1;
                }
                for _ in 0..again {
                    retries += u64::from(budget.withdraw(now));
                }
                let most = MOST_SAVED as f64 + share * requests as f64 + now as f64 / 1e6 * LEAST_PER_SECOND as f64 + 1.0;
                prop_assert!(retries as f64 <= most, "{retries} retries, {requests} requests, {now} us");
            }
        }
    }

    #[test]
    fn a_quiet_service_has_the_least() {
        let budget = Budget::new(0.0, 0);
        assert_eq!((0..1000).filter(|_| budget.withdraw(0)).count(), MOST_SAVED as usize);
        assert!(!budget.withdraw(50_000), "half a retry is none");
        assert_eq!((0..1000).filter(|_| budget.withdraw(1_000_000)).count(), LEAST_PER_SECOND as usize);
    }

    #[test]
    fn one_in_five_is_retried_in_the_long_run() {
        let budget = Budget::new(0.2, 0);
        let retried = (0..10_000)
            .filter(|_| {
                budget.deposit();
                budget.withdraw(0)
            })
            .count();
        assert!((2_050..=2_125).contains(&retried), "{retried}");
    }
}
