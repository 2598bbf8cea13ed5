//! How requests wait for a limit: `max_delay` and `max_delayed`.

use std::time::Duration;

use super::{Check, shown};
use crate::config::raw::{self, Algorithm};
use crate::config::{Delay, Stage};

/// `max_delayed` where it is not set.
const PLACES: usize = 100;
/// Most requests of one limit that wait in one pod: each holds its client's connection.
const MOST_PLACES: u32 = 1000;
/// Below this no timer is of use.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longest wait: whoever has to wait for longer does that better by himself.
const LONGEST: Duration = Duration::from_secs(10);
/// The same where the wait is for what reaches the upstream: it has the fleet's lease on its fetch by then, which lasts for
/// twice as long.
const LONGEST_TO_ORIGIN: Duration = Duration::from_secs(1);

impl Check<'_, '_> {
    /// `max_delay` and `max_delayed`.
    pub(super) fn delay(&mut self, raw: &raw::Limit, on: Stage) -> Option<Delay> {
        let Some(at) = &raw.max_delay else {
            if let Some(places) = &raw.max_delayed {
                let remedy = "write max_delay = \"500ms\" beside it, or remove it";
                self.error(&places.span(), "nobody waits without `max_delay`", remedy);
            }
            return None;
        };
        let places = self.count(&raw.max_delayed, 1..=MOST_PLACES).map_or(PLACES, |places| places as usize);
        if raw.algorithm.as_ref().is_some_and(|at| at.value == Algorithm::Concurrency) {
            let text = "nobody knows when a request in flight ends: a wait for that has no end that could be told";
            self.error(&at.span(), text, "remove `max_delay`");
            return None;
        }
        let longest = self.duration(&raw.max_delay, SHORTEST)?;
        let (most, whom) = match on {
            Stage::Origin => (LONGEST_TO_ORIGIN, " with on = \"origin\""),
            Stage::Request | Stage::Miss => (LONGEST, ""),
        };
        if longest > most {
            let text = format!("\"{}\" is too long a delay{whom}", at.value.source());
            self.error(&at.span(), text, format!("write at most \"{}\"", shown(most)));
            return None;
        }
        Some(Delay { longest, places })
    }
}
