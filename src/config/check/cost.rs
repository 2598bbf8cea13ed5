//! What requests cost and which are charged: `cost` and `charge` of a limit.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::Check;
use super::quota::MOST_BURST;
use crate::config::raw::{self, At, CostPlace, Status};
use crate::config::report::Span;
use crate::config::{AnswerCost, Cost, Place, Quota, Statuses};

/// Bytes of an answer that are looked through for its cost where nothing else is said.
const SCAN_BYTES: usize = 64 << 10;

/// What more of an answer's cost counts as where nothing else is said: a service means what it says, but for a slip.
const MAX_COST: u32 = 1_000_000;

/// Least and most that may be said. Nothing of it is kept: it is a bound on work.
const SCANS: RangeInclusive<usize> = 1 << 10..=64 << 20;

impl Check<'_, '_> {
    /// What requests cost; more than there ever is can never be admitted. What is wrong is 1.
    pub(super) fn cost(&mut self, raw: Option<&At<raw::Cost>>, quotas: Option<&[Quota]>) -> Cost {
        let Some(at) = raw else { return Cost::Fixed(1) };
        if is_in_flight(quotas) {
            self.error(&at.span(), "a request in flight counts as one", "remove `cost`");
            return Cost::Fixed(1);
        }
        let capacity = quotas.and_then(|quotas| quotas.iter().map(Quota::capacity).min());
        let place = match &at.value {
            raw::Cost::Fixed(cost) => return Cost::Fixed(self.whole(*cost, &at.span(), capacity).unwrap_or(1)),
            raw::Cost::Said(place) => &**place,
        };
        self.one_place(place, &at.span());
        if place.response_header.is_none() && place.json.is_none() {
            let asked = [
                place.reserve.as_ref().map(|at| ("reserve", at.span())),
                place.max_scan.as_ref().map(|at| ("max_scan", at.span())),
            ];
            for (key, span) in asked.into_iter().flatten() {
                let text = format!("`{key}` is for costs that the answer says");
                self.error(&span, text, "remove it, or write `json` or `response_header` in place of `header`");
            }
            let name = self.read(&place.header);
            if place.header.is_some() && place.max.is_none() {
                let text = "what a client may write into a field has no bound";
                self.error(&at.span(), text, "add max = 100, or what else is the most that a request may cost");
            }
            let max = place.max.as_ref().and_then(|max| self.whole(max.value, &max.span(), None));
            let most = max.into_iter().chain(capacity).min();
            let default = place.default.as_ref().and_then(|at| self.whole(at.value, &at.span(), most));
            let default = default.unwrap_or(1);
            return name.zip(max).map_or(Cost::Fixed(1), |(name, max)| Cost::Header { name, max, default });
        }
        self.answer_cost(place, &at.span(), quotas, capacity).map_or(Cost::Fixed(1), Cost::Answer)
    }

    /// Sees to it that a cost stands in one place.
    fn one_place(&mut self, place: &CostPlace, span: &Span) {
        let said = [
            place.header.as_ref().map(At::span),
            place.response_header.as_ref().map(At::span),
            place.json.as_ref().map(At::span),
        ];
        let mut said = said.into_iter().flatten();
        match (said.next(), said.next()) {
            (None, _) => {
                let text = "`cost` does not say where it stands";
                let remedy =
                    "write header = \"x-cost\", response_header = \"x-tokens-used\" or json = \"/usage/total_tokens\"";
                self.error(span, text, remedy);
            }
            (Some(_), Some(second)) => self.error(&second, "this cost stands in two places", "keep one of them"),
            (Some(_), None) => {}
        }
    }

    fn answer_cost(
        &mut self,
        raw: &CostPlace,
        span: &Span,
        quotas: Option<&[Quota]>,
        capacity: Option<u32>,
    ) -> Option<AnswerCost> {
        let owes = |quota: &Quota| matches!(quota, Quota::TokenBucket { .. } | Quota::FixedWindow(_));
        if let Some(quota) = quotas.and_then(|quotas| quotas.iter().find(|quota| !owes(quota))) {
            let text = format!("{} cannot owe what an answer costs", quota.algorithm());
            self.error(
                span,
                text,
                "write algorithm = \"token_bucket\" or \"fixed_window\", or a cost that requests say",
            );
        }
        let max_scan = self.size(&raw.max_scan, SCANS).unwrap_or(SCAN_BYTES);
        let place = match (&raw.response_header, &raw.json) {
            (Some(_), None) => {
                if let Some(at) = &raw.max_scan {
                    self.error(&at.span(), "`max_scan` is for costs that bodies say", "remove it");
                }
                self.read(&raw.response_header).map(Place::Header)
            }
            _ => self.read(&raw.json).map(|pointer| Place::Json { pointer: Arc::new(pointer), max_scan }),
        };
        let max = match &raw.max {
            Some(max) => self.whole(max.value, &max.span(), None),
            None => Some(MAX_COST),
        };
        let default = raw.default.as_ref().and_then(|at| {
            let is_nothing = at.value == 0;
            if is_nothing { Some(0) } else { self.no_more(at, max, "more than `max` is never charged") }
        });
        let reserve = raw.reserve.as_ref().and_then(|at| {
            let reserve = self.no_more(at, max, "more is held than an answer can cost")?;
            self.whole(i64::from(reserve), &at.span(), capacity)
        });
        Some(AnswerCost { place: place?, max: max?, default: default.unwrap_or(1), reserve: reserve.unwrap_or(1) })
    }

    /// A cost from 1 to `max`.
    fn no_more(&mut self, at: &At<i64>, max: Option<u32>, problem: &str) -> Option<u32> {
        let cost = self.whole(at.value, &at.span(), None)?;
        match max {
            Some(max) if cost > max => {
                self.error(&at.span(), problem, format!("write at most {max}, or raise `max`"));
                None
            }
            _ => Some(cost),
        }
    }

    /// Statuses whose requests are charged.
    pub(super) fn charge(&mut self, raw: Option<&raw::Charge>, quotas: Option<&[Quota]>) -> Option<Statuses> {
        let at: &At<Vec<At<Status>>> = raw?.status.as_ref()?;
        if is_in_flight(quotas) {
            let remedy = "remove `charge`, or count by a `rate`";
            self.error(&at.span(), "a request in flight counts until its end, whatever its answer", remedy);
            return None;
        }
        if at.value.is_empty() {
            self.error(&at.span(), "`charge.status` is empty: nothing would be charged", "write status = [401, 403]");
            return None;
        }
        let ranges: Vec<_> = at.value.iter().filter_map(|status| self.statuses(status)).collect();
        (ranges.len() == at.value.len()).then_some(Statuses(ranges))
    }

    fn statuses(&mut self, at: &At<Status>) -> Option<RangeInclusive<u16>> {
        let one = |status: i64| u16::try_from(status).ok().filter(|status| (200..=599).contains(status));
        let (range, shown) = match &at.value {
            Status::One(status) => (one(*status).map(|status| status..=status), status.to_string()),
            Status::Class(class) => {
                let first = match class.as_bytes() {
                    [digit @ b'2'..=b'5', b'x' | b'X', b'x' | b'X'] => Some(u16::from(digit - b'0') * 100),
                    _ => None,
                };
                (first.map(|first| first..=first + 99), format!("\"{}\"", class.escape_debug()))
            }
        };
        if range.is_none() {
            let unquoted = match &at.value {
                Status::Class(class) => class.trim().parse().ok().and_then(one),
                Status::One(_) => None,
            };
            let (text, remedy) = match unquoted {
                Some(status) => (format!("{shown} is no class of statuses"), format!("write {status}, without quotes")),
                None => (
                    format!("{shown} is no status of an answer"),
                    "write a status from 200 to 599, or a class of them such as \"4xx\"".to_owned(),
                ),
            };
            self.error(&at.span(), text, remedy);
        }
        range
    }

    /// A cost from 1 to what a request can cost at most.
    fn whole(&mut self, cost: i64, span: &Span, most: Option<u32>) -> Option<u32> {
        let read = u32::try_from(cost).ok().filter(|cost| (1..=MOST_BURST).contains(cost));
        match (read, most) {
            (None, _) => {
                let remedy = format!("write a whole number from 1 to {MOST_BURST}");
                self.error(span, format!("{cost} is out of range"), remedy);
                None
            }
            (Some(_), Some(most)) if i64::from(most) < cost => {
                let text = format!("a request that costs {cost} is never admitted");
                self.error(span, text, format!("write at most {most}, or let the limit admit as much at once"));
                None
            }
            (read, _) => read,
        }
    }
}

fn is_in_flight(quotas: Option<&[Quota]>) -> bool {
    quotas.is_some_and(|quotas| quotas.iter().any(|quota| matches!(quota, Quota::Concurrency { .. })))
}
