//! What a limit counts by: `algorithm`, `rate` or `rates` with `burst`, and `max`.

use super::Check;
use crate::config::Quota;
use crate::config::raw::{self, Algorithm};
use crate::config::report::Span;
use crate::syntax::rate::Rate;

/// Largest bucket, in requests; the scripts count in doubles, which hold it exactly.
pub(super) const MOST_BURST: u32 = 1_000_000_000;
/// Most times that a log keeps of one identity.
pub(super) const MOST_LOGGED: u32 = 10_000;
/// Most requests in flight that are told apart.
pub(super) const MOST_IN_FLIGHT: u32 = 10_000;

impl Check<'_, '_> {
    /// One quota a rate; `None` if there is none that can be read.
    pub(super) fn quotas(&mut self, raw: &raw::Limit, span: &Span) -> Option<Vec<Quota>> {
        let algorithm = raw.algorithm.as_ref().map_or(Algorithm::TokenBucket, |at| at.value);
        let max = self.max(raw, algorithm, span);
        let burst = self.burst(raw, algorithm);
        let rates = self.rates(raw, algorithm, span);
        let several = raw.rates.is_some();
        let quota = |rate: Rate| match algorithm {
            // Of several, each is what its period may have.
            Algorithm::TokenBucket if several => Quota::TokenBucket { rate, burst: rate.amount.min(MOST_BURST) },
            Algorithm::TokenBucket => Quota::TokenBucket { rate, burst: burst.unwrap_or_else(|| default_burst(rate)) },
            Algorithm::FixedWindow => Quota::FixedWindow(rate),
            Algorithm::SlidingWindow => Quota::SlidingWindow(rate),
            Algorithm::SlidingLog => Quota::SlidingLog(rate),
            Algorithm::Concurrency => Quota::Concurrency { max },
        };
        Some(rates?.into_iter().map(quota).collect())
    }

    /// `max`, for requests in flight; what is wrong is 1.
    fn max(&mut self, raw: &raw::Limit, algorithm: Algorithm, span: &Span) -> u32 {
        match (&raw.max, algorithm) {
            (None, Algorithm::Concurrency) if !self.was_misread_in_limit(&["max"]) => {
                let text = "`algorithm = \"concurrency\"` has no `max`";
                self.error(span, text, "write max = 20 for at most 20 requests in flight");
            }
            (Some(at), Algorithm::Concurrency) if at.value == 0 => {
                self.error(&at.span(), "a max of 0 lets nothing through", "write at least 1");
            }
            (Some(_), Algorithm::Concurrency) => return self.count(&raw.max, 1..=MOST_IN_FLIGHT).unwrap_or(1),
            (Some(at), _) => {
                let remedy = "write `rate`, or algorithm = \"concurrency\"";
                self.error(&at.span(), "`max` is for requests in flight", remedy);
            }
            (None, _) => {}
        }
        1
    }

    /// `burst`, for a token bucket with one rate.
    fn burst(&mut self, raw: &raw::Limit, algorithm: Algorithm) -> Option<u32> {
        let at = raw.burst.as_ref()?;
        let (text, remedy) = match algorithm {
            Algorithm::TokenBucket if raw.rates.is_some() => {
                ("`burst` does not go with `rates`: each admits what its period may have at once", "remove `burst`")
            }
            Algorithm::TokenBucket if at.value == 0 => ("a burst of 0 lets nothing through", "write at least 1"),
            Algorithm::TokenBucket => return self.count(&raw.burst, 1..=MOST_BURST),
            Algorithm::Concurrency => ("`burst` does not go with requests in flight", "write `max` alone"),
            _ => ("`burst` does not go with a window: its rate is what it admits", "remove `burst`"),
        };
        self.error(&at.span(), text, remedy);
        None
    }

    /// `rate`, or `rates`: no more than there are periods. Requests in flight have one that says nothing.
    fn rates(&mut self, raw: &raw::Limit, algorithm: Algorithm, span: &Span) -> Option<Vec<Rate>> {
        let written = raw.rate.iter().chain(raw.rates.iter().flatten());
        if algorithm == Algorithm::Concurrency {
            for text in written {
                self.error(&text.span(), "requests in flight have no rate", "write `max` alone");
            }
            return Some(vec![Rate { amount: 1, period_ms: 1000 }]);
        }
        if let (Some(_), Some(several)) = (&raw.rate, raw.rates.as_ref().and_then(|rates| rates.first())) {
            self.error(&several.span(), "this limit has `rate` and `rates`", "write all of them in `rates`");
        }
        let mut rates: Vec<Rate> = Vec::new();
        let mut found = false;
        for text in written {
            found = true;
            let Some(rate) = self.read_at(text) else { continue };
            if rates.iter().any(|other| other.period_ms == rate.period_ms) {
                let problem = format!("there is another rate by \"/{}\"", rate.unit());
                self.error(&text.span(), problem, "keep the smaller one");
            }
            if algorithm == Algorithm::SlidingLog && rate.amount > MOST_LOGGED {
                let problem = format!("a log of {} requests is too long", rate.amount);
                let remedy = format!("write at most {MOST_LOGGED}, or algorithm = \"token_bucket\"");
                self.error(&text.span(), problem, remedy);
            }
            rates.push(rate);
        }
        if let ([rate], Algorithm::TokenBucket, None, None, Some(text)) =
            (&rates[..], algorithm, &raw.burst, &raw.rates, &raw.rate)
            && is_one_by_default(*rate)
        {
            self.slow_default(text, *rate);
        }
        // One that is no text has been taken out, and said so.
        if !found && !self.was_misread_in_limit(&["rate", "rates"]) {
            self.error(span, "this limit has no `rate`", "write rate = \"100/s\"");
        }
        (!rates.is_empty()).then_some(rates)
    }
}

/// Whether a bucket of this rate holds one request where nothing else is said, and its period is longer than a second.
pub(super) fn is_one_by_default(rate: Rate) -> bool {
    rate.period_ms > 1000 && default_burst(rate) == 1
}

/// The requests of one second, at least one.
pub(super) fn default_burst(rate: Rate) -> u32 {
    let second = u64::from(rate.amount) * 1000 / u64::from(rate.period_ms.max(1));
    u32::try_from(second).unwrap_or(MOST_BURST).clamp(1, MOST_BURST)
}
