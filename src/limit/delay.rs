//! Waiting in place of a denial: a request that a limit would deny for no longer than its `max_delay` waits for its turn.
//!
//! While it waits, nothing is charged: what earlier stages took is given back, and taken again with the rest. Whoever is
//! served goes by one line for each limit and identity (`line.rs`), and a newcomer stands behind those who wait,
//! whatever the limit has by then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bounds::{STAGES, StageLimits};
use super::identity::LocalName;
use super::line::{Place, Told, Turn};
use super::screen::{self, Reach};
use super::verdict::{Charged, Denial, Verdict};
use super::{Facts, Limiter, RouteLimits, identity, with_scratch};
use crate::config::{self, Stage};
use crate::kv::{self, Budget};
use crate::metrics::{Decision, Source};

/// Why a request does not go on.
#[derive(Debug)]
pub enum Halt {
    /// It is denied.
    Denied(Box<Denial>),
    /// It may wait, by [`Limiter::delay`]; nothing is charged.
    Wait(Box<Denial>),
}

impl Halt {
    /// The denial of who does not wait.
    pub fn denied(self) -> Box<Denial> {
        match self {
            Self::Denied(denial) => denial,
            Self::Wait(denial) => counted(denial),
        }
    }
}

/// A request at a stage at which it may have to wait.
#[derive(Clone, Copy)]
pub struct Taking<'a> {
    /// Where states are; without it, here.
    pub redis: Option<&'a kv::Redis>,
    /// Its route's limits.
    pub limits: &'a RouteLimits,
    /// How far it has come.
    pub stage: Stage,
    /// What it is.
    pub facts: &'a Facts<'a>,
}

impl Limiter {
    /// [`Limiter::take`] for a request that may wait.
    ///
    /// # Errors
    /// It does not go on; nothing is charged.
    pub async fn admit(&self, taking: &Taking<'_>, charged: &mut Charged, budget: &mut Budget) -> Result<(), Halt> {
        let Taking { redis, limits, stage, facts } = *taking;
        charged.waited.get_or_insert(Duration::ZERO);
        if let Some(denial) = self.behind(limits.stage(stage), facts) {
            self.refund(redis, charged, budget).await;
            return Err(Halt::Wait(denial));
        }
        match self.take(redis, limits, stage, facts, charged, budget).await {
            Verdict::Allow => Ok(()),
            Verdict::Deny(denial) if charged.puts_off(&denial) => Err(Halt::Wait(denial)),
            Verdict::Deny(denial) => Err(Halt::Denied(denial)),
        }
    }

    /// Waits for what `denial` says, and takes the request from all limits up to its stage.
    ///
    /// # Errors
    /// It would have to wait for too long, or there is no place; nothing is charged.
    pub async fn delay(
        &self,
        taking: &Taking<'_>,
        charged: &mut Charged,
        budget: &mut Budget,
        mut denial: Box<Denial>,
    ) -> Result<(), Box<Denial>> {
        let began = Instant::now();
        let before = charged.waited.unwrap_or_default();
        let mut place: Option<Place<'_>> = None;
        loop {
            let Some((what, wait, longest)) = self.told(&denial) else {
                return Err(self.counted(denial, taking.facts));
            };
            let deadline = began + longest.saturating_sub(before);
            let name = self.line_of(&denial.limit, taking.facts);
            let own = match place.take().filter(|place| place.is_of(&what.bound, name)) {
                Some(own) => {
                    own.put_off(what, (Instant::now() + wait).min(deadline));
                    own
                }
                None => match self.lines.join(what, name, denial.cost, wait, deadline) {
                    Ok(own) => {
                        denial.bound.metrics.decided(Decision::Delayed, denial.source);
                        own
                    }
                    Err(wait) => return Err(self.late(denial, wait, taking.facts)),
                },
            };
            if let Turn::Late(wait) = own.turn(deadline).await {
                return Err(self.late(denial, wait, taking.facts));
            }
            if let Some(redis) = taking.redis {
                // Waiting for a limit is not Redis' work.
                *budget = redis.budget();
            }
            charged.waited = Some(before + began.elapsed());
            match self.take_again(taking, charged, budget).await {
                Verdict::Allow => {
                    own.served(charged.next_wait());
                    return Ok(());
                }
                Verdict::Deny(next) if charged.puts_off(&next) => denial = next,
                Verdict::Deny(next) => {
                    // Those behind it know as much.
                    if let Some((told, wait, _)) = self.told(&next).filter(|(told, ..)| own.is_of(&told.bound, name)) {
                        own.put_off(told, Instant::now() + wait);
                    }
                    return Err(next);
                }
            }
            place = Some(own);
        }
    }

    /// Whether others wait for a limit that this request would be taken from, as far as this pod knows.
    pub fn is_awaited(&self, limits: &RouteLimits, stage: Stage, facts: &Facts<'_>) -> bool {
        limits.delays(stage) && self.behind(limits.stage(stage), facts).is_some()
    }

    /// The stage and all before it.
    async fn take_again(&self, taking: &Taking<'_>, charged: &mut Charged, budget: &mut Budget) -> Verdict {
        let Taking { redis, limits, stage: last, facts } = *taking;
        charged.begin_anew();
        for stage in STAGES.into_iter().filter(|stage| *stage <= last) {
            match self.take(redis, limits, stage, facts, charged, budget).await {
                Verdict::Allow => {}
                denied @ Verdict::Deny(_) => return denied,
            }
        }
        Verdict::Allow
    }

    /// The denial of a request behind which others of its identity wait already.
    fn behind(&self, stage: &StageLimits, facts: &Facts<'_>) -> Option<Box<Denial>> {
        let mut longest: Option<(Told, f64, Duration)> = None;
        for bound in stage.bounds.iter().filter(|bound| !bound.follows) {
            if stage.is_screened && screen::is_needed(&bound.limit) {
                match Reach::of(&bound.limit, facts) {
                    Reach::Counts => {}
                    Reach::Allowed | Reach::Skipped => continue,
                    // It has something else to hear.
                    Reach::Listed | Reach::Unidentified if !bound.limit.dry_run => return None,
                    Reach::Listed | Reach::Unidentified => continue,
                }
            }
            if bound.delay().is_none() {
                continue;
            }
            let cost = bound.cost(facts);
            let Some((told, wait)) = self.lines.behind(&bound.limit.scope, self.line_of(&bound.limit, facts), cost)
            else {
                continue;
            };
            if longest.as_ref().is_none_or(|(.., other)| wait > *other) {
                longest = Some((told, cost, wait));
            }
        }
        let (told, cost, wait) = longest?;
        Some(Box::new(Denial::behind(told, cost, wait, facts, stage.policy.clone())))
    }

    /// The denial of who has to come back in `wait`.
    fn late(&self, mut denial: Box<Denial>, wait: Duration, facts: &Facts<'_>) -> Box<Denial> {
        denial.take_effect(wait);
        self.counted(denial, facts)
    }

    fn counted(&self, denial: Box<Denial>, facts: &Facts<'_>) -> Box<Denial> {
        self.tally(self.named(&denial.bound, facts).name, &denial.limit, facts);
        counted(denial)
    }

    /// What a denial says to those who wait, how long that is, and how long one waits at most; `None` if no wait helps.
    fn told(&self, denial: &Denial) -> Option<(Told, Duration, Duration)> {
        let (level, wait) = denial.level.zip(denial.retry_after)?;
        let (bound, source) = (Arc::clone(&denial.bound), denial.source);
        let longest = bound.delay()?.longest;
        let shape = if source == Source::Fallback { self.part(&bound) } else { bound.shape };
        Some((Told { bound, shape, level, source }, wait, longest))
    }

    /// The name of the request's line for a limit, whatever rates that has.
    fn line_of(&self, limit: &config::Limit, facts: &Facts<'_>) -> LocalName {
        with_scratch(|scratch| {
            identity::canonical(&limit.key, facts, scratch);
            self.names.of(&limit.scope, scratch)
        })
    }
}

fn counted(denial: Box<Denial>) -> Box<Denial> {
    denial.bound.metrics.decided(Decision::Denied, denial.source);
    denial
}
