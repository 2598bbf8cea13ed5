//! What a keeper does about what it hears on the bus.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Keeper, RETRY_EVERY};
use crate::config::Bus;
use crate::invalidation::clerk::{Fate, Submission};
use crate::invalidation::log::{self, Announced};
use crate::invalidation::mirror::Applied;
use crate::invalidation::{Position, doors, to_json};
use crate::kv::bus::Message;
use crate::kv::{Unavailable, jittered};
use crate::metrics::Door;
use crate::syntax::selector::Selector;

impl Keeper {
    pub(super) async fn hear(&mut self, message: Message) {
        let keys = &self.shared.keys;
        if message.channel == keys.bell().as_bytes() {
            self.shared.bells().ring(&message.payload);
        } else if message.channel == keys.door().as_bytes() {
            self.knock(&message.payload);
        } else if message.channel == keys.roll().as_bytes() {
            self.called(&message.payload).await;
        } else {
            let followed = match self.shared.bus {
                Bus::Publish => self.announce(&message.payload).await,
                Bus::Tracking => self.catch_up().await,
            };
            if followed.is_err() {
                // The log could not be read; the next proof tries again.
                self.due = self.due.min(Instant::now() + jittered(RETRY_EVERY));
            }
        }
    }

    /// Somebody waits for every pod to be at this position.
    async fn called(&mut self, payload: &[u8]) {
        let Some(asked) = log::read_at(payload) else { return };
        let is_there = |at: &Position| at.incarnation == asked.incarnation && at.seq >= asked.seq;
        if self.told.as_ref().is_some_and(is_there) {
            return;
        }
        // What is missing comes with the proof, which says only after that how far this pod is: then once more.
        if self.state.followed().as_ref().is_some_and(is_there) || self.catch_up().await.is_ok() {
            self.due = Instant::now();
        }
    }

    /// A record on the bus.
    async fn announce(&mut self, payload: &[u8]) -> Result<(), Unavailable> {
        let Some(announced) = Announced::read(payload) else {
            tracing::warn!("a message on the bus cannot be read: the log is asked instead");
            self.state.kick();
            return Ok(());
        };
        let at = announced.at;
        if let Some(heard) = self.heard.as_mut().filter(|heard| heard.incarnation == at.incarnation) {
            heard.seq = heard.seq.max(at.seq);
        }
        let known = |followed: Position| followed.incarnation == at.incarnation && followed.seq >= at.seq;
        if self.state.followed().is_some_and(known) {
            return Ok(());
        }
        let record = announced.record();
        match self.state.change(|mirror| mirror.record(at, &record.selectors, record.soft, &record.order)) {
            Applied::InOrder => {
                self.observe_lag(record.time_ms);
                Ok(())
            }
            Applied::Gap => self.catch_up().await,
            Applied::Foreign => {
                self.state.kick();
                Ok(())
            }
        }
    }

    /// A message at the PUBLISH door: applied here at once, then logged by whichever pod comes first.
    ///
    /// Every pod hears it, and one record is enough; but a second, equal message that came after somebody had fetched
    /// anew must not be taken for the first. `heard` decides: a record equal to this message stands for it only if it has
    /// a higher number. Redis writes to one subscriber in the order in which it does things. So every record logged
    /// before this message was published has been read from this subscription before this message, or had a number at
    /// or below the head that was proven over this subscription; its number is at most `heard`. A higher number means
    /// logged after the publishing, and such a record refuses all that began before, which is all that this message asks
    /// for. A `heard` that is too high only logs twice. Where there is none, it is logged in any case, by every pod.
    fn knock(&self, payload: &[u8]) {
        let (order, selectors) = match doors::message(payload) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "a message at the PUBLISH door was dropped: it cannot be read");
                return;
            }
        };
        let fate = Arc::new(Fate::default());
        self.state.apply_here(&fate, &selectors, order.soft);
        let selectors: Arc<[Selector]> = selectors.into();
        let submission = Submission {
            order: to_json(&order).into(),
            selectors: Arc::clone(&selectors),
            soft: order.soft,
            since: self.heard,
            intent: None,
            door: Door::Publish,
            fate: Arc::clone(&fate),
            answer: None,
        };
        let fleet = self.state.fleet.as_ref().expect("there is a fleet");
        if fleet.submissions.try_send(submission).is_err() {
            tracing::error!("the queue of invalidations is full: a published one was applied in this pod only");
            self.state.give_up(&fate, &selectors, order.soft);
        }
    }
}
