//! What Redis is asked for one request, and what is decided where it does not answer.
//!
//! In a Cluster the keys of one stage may lie in several slots. Each slot is asked by a script of its own, all at once: it
//! takes no longer than one, within the same budget, and every limit says what it would say in one script, so that the
//! longest wait is told and what only counts is counted. If one of them denies, what the others took is given back. A limit
//! that Redis answered for does as Redis said; only those without an answer do as their `redis_down` says.

use std::sync::Arc;

use super::bounds::{Bound, CostText, cost_text};
use super::loans::{Due, Heard, Known};
use super::local::{Ask, Few};
use super::split::{self, Layout, Part};
use super::verdict::{Answer, Charge, Charged, Denial};
use super::{Going, Limiter, Named, denied_before, shared};
use crate::clock::Stopwatch;
use crate::config::RedisDown;
use crate::kv::{self, Budget, Unavailable};
use crate::metrics::Source;

impl Limiter {
    pub(super) async fn take_asking<'l>(
        &'l self,
        redis: &kv::Redis,
        asking: Box<(Going<'l>, Known<'l>)>,
        charged: &mut Charged,
        budget: &mut Budget,
    ) -> Option<Box<Denial>> {
        let (going, known) = *asking;
        let mut answers = self.take_shared(redis, &going, known, budget).await;
        let denial = self.conclude(Some(redis), going.stage, going.facts, &mut answers, charged);
        if denial.is_some() {
            self.void(redis, &going, &mut answers, charged, budget);
        }
        denial
    }

    /// Sees to it that what some slots took is given back, because another denies: with what earlier stages took, or behind
    /// the denial if nobody may wait for it any more.
    fn void(
        &self,
        redis: &kv::Redis,
        going: &Going<'_>,
        answers: &mut [Answer],
        charged: &mut Charged,
        budget: &Budget,
    ) {
        let taken = going.stage.bounds.iter().zip(answers).filter_map(|(bound, answer)| {
            let (bound, redis) = (Arc::clone(bound), Some(answer.redis.take()?));
            Some(Charge { bound, name: answer.name, cost: answer.cost, local: None, redis, loan: None })
        });
        if budget.left().is_zero() {
            self.till.give_back(redis, taken.collect());
        } else {
            charged.charges.extend(taken);
        }
    }

    async fn take_shared<'l>(
        &'l self,
        redis: &kv::Redis,
        going: &Going<'_>,
        known: Known<'l>,
        budget: &mut Budget,
    ) -> Few<Answer> {
        let Going { stage, facts, names, .. } = going;
        let bounds = &stage.bounds;
        let question = match self.wait(known, &going.dues, budget).await {
            Some(Known::Ask(question)) => question,
            Some(Known::Spent(spent)) => return self.spent(bounds, names, going.id, &spent, self.shelf.steady()),
            Some(Known::Denied(nth, level)) => return denied_before(names, nth, level),
            Some(Known::Wait(_)) | None => return self.fall_back(going, &(0..bounds.len()).collect::<Few<_>>()),
        };
        let keys: Few<Vec<u8>> = bounds.iter().map(|bound| self.key(redis, bound, facts)).collect();
        let keys: Few<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let own = going.id.to_le_bytes();
        let loans: Few<Vec<u8>> =
            question.questions.iter().map(|one| shared::loan_arg(self.loans.who(), one)).collect();
        let costs: Few<CostText> = names.iter().map(|named| cost_text(named.cost)).collect();
        let costs = bounds.iter().zip(&costs).map(|(bound, cost)| (&bound.args, &**cost, bound.mode()));
        let mut args = shared::take_args(&own, costs);
        args.extend(loans.iter().map(Vec::as_slice));
        let lost = if stage.minds_loss { shared::lost_arg(redis.shared().lost_ms()) } else { None };
        if let Some(lost) = &lost {
            args.extend(bounds.iter().map(|bound| if bound.minds_loss() { lost.as_slice() } else { b"" }));
        }
        let layout = if lost.is_some() { Layout::TAKE_AFTER_LOSS } else { Layout::TAKE };
        let mut heard: Few<Heard> = bounds.iter().map(|_| Heard::Unknown).collect();
        for Part { places, reply } in split::run(redis, stage.script, &keys, &args, layout, budget).await {
            match reply {
                Ok(reply) => {
                    let asked = |nth: usize| (bounds[places[nth]].shape, names[places[nth]].cost);
                    let readings = shared::taken(&reply, going.id, places.len(), asked).unwrap_or_default();
                    places.iter().zip(readings).for_each(|(place, reading)| heard[*place] = Heard::Answer(reading));
                }
                Err(Unavailable::NotSent | Unavailable::Refused(_)) => {
                    places.iter().for_each(|place| heard[*place] = Heard::Nothing);
                }
                Err(Unavailable::Timeout) => {}
            }
        }
        question.answered(heard.iter().zip(keys.iter().copied()));
        self.decided(going, &keys, &heard)
    }

    /// What is `known` in the end, once somebody else has his answer if that is waited for; `None` if it does not come.
    async fn wait<'l>(&'l self, mut known: Known<'l>, dues: &[Due], budget: &mut Budget) -> Option<Known<'l>> {
        while let Known::Wait(bell) = known {
            let watch = Stopwatch::start();
            // It is closed, and never gives a permit.
            let answered = tokio::time::timeout(budget.left(), bell.acquire()).await;
            budget.wait(watch.elapsed());
            answered.ok()?.err()?;
            known = self.loans.consult(dues, true, self.shelf.steady());
        }
        Some(known)
    }

    /// What Redis said and, of what it did not answer for, `redis_down`: all or nothing. The local states are charged as
    /// those in Redis: should Redis go, they take over where it was.
    fn decided(&self, going: &Going<'_>, keys: &[&[u8]], heard: &[Heard]) -> Few<Answer> {
        let Going { stage, names, id, .. } = going;
        let bounds = &stage.bounds;
        let denies = |bound: &Bound, is_short: bool| is_short && !bound.limit.dry_run;
        let said = |(bound, heard): (&Arc<Bound>, &Heard)| {
            denies(bound, matches!(heard, Heard::Answer(reading) if reading.is_short()))
        };
        let mut is_denied = bounds.iter().zip(heard).any(said);
        let silent: Few<usize> = (0..heard.len()).filter(|place| !matches!(heard[*place], Heard::Answer(_))).collect();
        let without = if is_denied {
            silent.iter().map(|place| unchecked(&names[*place], false)).collect()
        } else {
            self.fall_back(going, &silent)
        };
        is_denied |= silent.iter().zip(&without).any(|(place, answer)| denies(&bounds[*place], answer.short));
        let (now, mut without) = (self.shelf.steady(), without.into_iter());
        let mut answers = Few::new();
        for (((bound, named), key), heard) in bounds.iter().zip(names).zip(keys).zip(heard) {
            let Heard::Answer(reading) = heard else {
                answers.extend(without.next());
                continue;
            };
            answers.push(Answer {
                short: reading.is_short(),
                level: Some(reading.level),
                local: reading.mark.filter(|_| !is_denied).and_then(|_| self.shadow(bound, named, *id, now)),
                redis: reading.mark.map(|mark| (key.to_vec(), mark)),
                ..Answer::unchecked(named.name, named.cost, Source::Redis)
            });
        }
        answers
    }

    /// What `redis_down` says of the limits in these places, all or nothing as ever.
    fn fall_back(&self, Going { stage, names, dues, id, .. }: &Going<'_>, places: &[usize]) -> Few<Answer> {
        let of = |place: &usize| (&*stage.bounds[*place], &names[*place]);
        let is_refused = |bound: &Bound| bound.limit.redis_down == RedisDown::Deny;
        let refused = places.iter().map(of).any(|(bound, _)| is_refused(bound) && !bound.limit.dry_run);
        let asked = |bound: &Bound| bound.limit.redis_down == RedisDown::Local && !refused;
        let asks: Few<Ask<'_>> = places
            .iter()
            .map(of)
            .filter(|(bound, _)| asked(bound))
            .map(|(bound, named)| bound.ask(named.name, self.part(bound), named.cost, *id))
            .collect();
        let now = self.shelf.steady();
        let readings = self.shelf.local.take(&asks, now);
        for (ask, reading) in asks.iter().zip(&readings).filter(|(_, reading)| reading.mark.is_some()) {
            let due = dues.iter().filter(|due| due.name == ask.name);
            due.for_each(|due| self.loans.spent_away(due, due.cost, ask.was_full_at(&reading.level, now), now));
        }
        let mut taken = asks.iter().zip(&readings);
        let answer = |(bound, named): (&Bound, &Named)| match if asked(bound) { taken.next() } else { None } {
            // The part may have had less than it costs: what is given back is given back whole.
            Some((ask, reading)) => Answer { cost: named.cost, ..Answer::here(ask, reading, Source::Fallback) },
            None => unchecked(named, is_refused(bound)),
        };
        places.iter().map(of).map(answer).collect()
    }
}

/// Of a limit that was not asked while Redis was away.
fn unchecked(named: &Named, short: bool) -> Answer {
    Answer { short, ..Answer::unchecked(named.name, named.cost, Source::Fallback) }
}
