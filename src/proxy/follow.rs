//! What a fetch brings, as its leader's client and those who wait for it have it.

use std::sync::Arc;

use http::StatusCode;
use http::request::Parts;

use super::lead::Lead;
use super::respond::{self, Forward, Forwarded};
use super::{Journey, forward};
use crate::cache::flight::{End, Follower, Origin, Seen};
use crate::cache::memory::Slot;
use crate::cache::{Ask, Look};
use crate::config::Stage;
use crate::message::Answer;
use crate::metrics::Outcome;

/// What waiting for another's fetch came to.
#[expect(clippy::large_enum_variant, reason = "it lives for one match")]
pub(super) enum Followed {
    Answer(Answer),
    /// Join anew, or lead.
    Again,
    /// The same, where there was no fetch to wait for yet: it does not count.
    Anew,
    /// Go alone: nothing will be shared, or the wait was long enough.
    Alone,
}

impl Journey<'_> {
    /// The leader's own client: it takes what its fetch brings.
    pub(super) async fn led(&mut self, lead: Lead, ask: &Ask<'_>, parts: &Parts, why: Forward) -> Option<Answer> {
        let Lead { mut follower, direct, timing } = lead;
        let seen = loop {
            match follower.next().await {
                Seen::Asking => {}
                seen => break seen,
            }
        };
        if let Ok((status, took)) = timing.await {
            self.exchange.asked_upstream(status, took);
        }
        match seen {
            Seen::Asking => None,
            Seen::Arriving(arrival) => {
                let length = arrival.length;
                self.exchange.decide(Outcome::Miss, arrival.head.status);
                let forwarded = Forwarded { stored: arrival.is_kept, ..Forwarded::because(why) };
                Some(respond::arriving(&arrival.head, follower.body(length), parts, &forwarded))
            }
            Seen::Ended(End::Stored(slot, origin)) => self.stored(&slot, origin, ask, parts, why, None),
            Seen::Ended(End::Failed(failed)) => Some(self.failed(&failed, why)),
            Seen::Ended(End::Uncacheable | End::TooLarge) => {
                let (response, detail) = direct.await.ok()?;
                self.exchange.decide(Outcome::Miss, response.status());
                let forwarded = Forwarded { detail: Some(detail), ..Forwarded::because(why) };
                Some(forward::answer(response, &forwarded))
            }
            Seen::Ended(End::Vacant | End::Yielded) => None,
        }
    }

    /// One who waits for another's fetch, and learns what to do next.
    pub(super) async fn follow(
        &mut self,
        mut follower: Follower,
        ask: &Ask<'_>,
        parts: &Parts,
        why: Forward,
    ) -> Followed {
        let wait = tokio::time::sleep_until(self.gives_up(ask.rule.wait_timeout));
        tokio::pin!(wait);
        loop {
            let seen = tokio::select! {
                biased;
                seen = follower.next() => seen,
                () = &mut wait => return Followed::Alone,
            };
            match seen {
                // The cache could not answer, so this request counts as a miss, though it asks nobody.
                Seen::Asking => {
                    if let Err(denial) = self.limited(Stage::Miss, parts).await {
                        return Followed::Answer(self.denied(&denial));
                    }
                }
                Seen::Arriving(arrival) => {
                    if !self.worker.shared.cache.suits(&arrival.head, ask, follower.knows_more()) {
                        return Followed::Again;
                    }
                    self.route.metrics.collapsed.inc();
                    self.exchange.decide(Outcome::Collapsed, arrival.head.status);
                    let forwarded = Forwarded { collapsed: true, ..Forwarded::because(why) };
                    let body = follower.body(arrival.length);
                    let answer = respond::arriving(&arrival.head, body, parts, &forwarded);
                    return Followed::Answer(answer);
                }
                Seen::Ended(End::Stored(slot, origin)) => {
                    return self
                        .stored(&slot, origin, ask, parts, why, Some(follower.knows_more()))
                        .map_or(Followed::Again, Followed::Answer);
                }
                Seen::Ended(End::Failed(failed)) => return Followed::Answer(self.failed(&failed, why)),
                Seen::Ended(End::Uncacheable | End::TooLarge) => return Followed::Alone,
                Seen::Ended(End::Vacant) => return Followed::Again,
                Seen::Ended(End::Yielded) => return Followed::Anew,
            }
        }
    }

    /// What a fetch left in the cache, if it is the answer to this request. `followed` is for one who followed the fetch,
    /// and says whether it knows of invalidations that the fetch did not.
    pub(super) fn stored(
        &mut self,
        slot: &Arc<Slot>,
        origin: Origin,
        ask: &Ask<'_>,
        parts: &Parts,
        why: Forward,
        followed: Option<bool>,
    ) -> Option<Answer> {
        let ask = &Ask { now: self.worker.shared.cache.times().0, ..*ask };
        let collapsed = followed.is_some();
        let entry = slot.stored.entry()?;
        if !self.worker.shared.cache.suits(entry, ask, followed.unwrap_or(false)) {
            return None;
        }
        // What was there before somebody asked is for each only what its own directives allow.
        let judged = || self.worker.shared.cache.judge(Arc::clone(slot), ask).0;
        let is_usable = match origin {
            Origin::Fetched | Origin::Confirmed | Origin::Passed => true,
            Origin::Shared | Origin::Awaited => matches!(judged(), Look::Fresh(_) | Look::Stale(_)),
            Origin::Excused => match judged() {
                Look::Fresh(_) | Look::Stale(_) => true,
                Look::Nothing(missing) => missing.previous.is_some_and(|previous| previous.excuses_errors),
                Look::Uncacheable => false,
            },
        };
        if !is_usable {
            return None;
        }
        let outcome = match origin {
            Origin::Excused => Outcome::Stale,
            Origin::Shared => Outcome::Hit,
            _ if collapsed => Outcome::Collapsed,
            Origin::Awaited => Outcome::Collapsed,
            Origin::Confirmed => Outcome::Revalidated,
            Origin::Fetched | Origin::Passed => Outcome::Miss,
        };
        if outcome == Outcome::Collapsed {
            self.route.metrics.collapsed.inc();
        }
        let because = Forwarded { collapsed, ..Forwarded::because(why) };
        let forwarded = match origin {
            Origin::Shared => None,
            Origin::Awaited => Some(Forwarded { collapsed: true, is_reused: true, ..because }),
            Origin::Excused => Some(Forwarded { detail: Some("stale-if-error"), is_reused: true, ..because }),
            Origin::Confirmed => Some(Forwarded { stored: true, status: Some(StatusCode::NOT_MODIFIED), ..because }),
            Origin::Fetched => Some(Forwarded { stored: !collapsed, ..because }),
            Origin::Passed => Some(because),
        };
        let found = self.worker.shared.cache.found(slot, ask);
        let answer = respond::stored(&found, parts, forwarded.as_ref());
        self.exchange.decide(outcome, answer.status);
        Some(answer)
    }
}
