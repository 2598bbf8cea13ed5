//! The keeper: keeps the mirror level with the log, and proves that it is.
//!
//! The bus makes it fast, the log makes it whole, the proof says that it is so. What the bus loses is read from the log;
//! what the log has lost raises the floor; that nothing was lost is only ever known from an answer of the log's master.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::lineage::{self, Owed};
use super::log::{Direction, Log, PAGE, Proof, RECORDS, WAIT, read_order};
use super::mirror::Mirror;
use super::pending::Ticket;
use super::trust::Trust;
use super::{Invalidation, Leaving, Position, doors, stream};
use crate::clock::{SteadyMs, Stopwatch};
use crate::config::Bus;
use crate::kv::bus::{Message, Subscription};
use crate::kv::{Shared, Unavailable, jittered, random};
use crate::metrics::RedisPart;
use crate::syntax::selector::Selector;

mod heard;
mod heir;

/// Pause before Redis is tried again.
pub(super) const RETRY_EVERY: Duration = Duration::from_millis(250);

/// Pause before a lost subscription is renewed: a fleet that lost it at once does not come back at once.
const RENEW_AFTER: Duration = Duration::from_millis(20);

/// Least between two questions for where the log stands, however many messages and pages turn out to be another's: most of
/// them are from before the last answer.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// Losses in a row are said this often, not each: what evicts the log does so many times a second.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Pages that one catching up may read: the whole log, twice.
const PAGES: u64 = 2 * RECORDS / PAGE + 2;

/// Rounds of emptying the door that one proof may take.
const ROUNDS: u32 = 64;

/// Clock differences below this are the round trip's own, and not taken over.
const CLOCK_NOISE_MS: u64 = 5;

/// Round trips above this say too little of the time.
const CLOCK_TRIP: Duration = Duration::from_millis(100);

/// Pause between proofs while a new incarnation is not known to have all of the one before.
const INHERIT_EVERY: Duration = Duration::from_millis(100);

/// How often the gauge of the proof's age is set.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Follows one log.
pub(super) struct Keeper {
    state: Arc<Invalidation>,
    log: Log,
    shared: Arc<Shared>,
    subscription: Option<Subscription>,
    /// The highest record known when the last message of this subscription was read; `None` before a proof was had over
    /// it, and where records do not come over it.
    heard: Option<Position>,
    /// The record at which the next page backwards begins.
    backfill: Option<u64>,
    /// How far the fleet was told that this pod is.
    told: Option<Position>,
    /// What the log may have lost and is to be given once more.
    owed: Vec<Owed>,
    /// What it was given of that; if it is lost before this pod has read it there, it is owed again.
    given: Vec<Owed>,
    /// By what all of these are settled.
    owing: Vec<Ticket>,
    /// Pods that were heard of under the incarnations before that are not inherited; 0 if that is not known.
    pods_before: u32,
    due: Instant,
    /// When the log was asked last.
    asked: Instant,
    /// When the next page backwards may be read.
    page_due: Instant,
    /// When a loss was said last.
    said: Option<Instant>,
    /// When the log was joined that is followed.
    joined: SteadyMs,
    started: SteadyMs,
}

impl Keeper {
    pub(super) fn new(state: Arc<Invalidation>, log: Log, shared: Arc<Shared>) -> Self {
        let started = state.clock.steady();
        Self {
            state,
            log,
            shared,
            subscription: None,
            heard: None,
            backfill: None,
            told: None,
            owed: Vec::new(),
            given: Vec::new(),
            owing: Vec::new(),
            pods_before: 0,
            due: Instant::now(),
            asked: Instant::now(),
            page_due: Instant::now(),
            said: None,
            joined: started,
            started,
        }
    }

    /// Runs until the pod leaves.
    pub(super) async fn run(mut self) {
        let state = Arc::clone(&self.state);
        let fleet = state.fleet.as_ref().expect("there is a fleet");
        let mut leaving = fleet.leaving.subscribe();
        let mut moved = self.shared.changes();
        self.shared.found().await;
        loop {
            let kicked = fleet.kick.notified();
            tokio::select! {
                biased;
                _ = leaving.changed() => break,
                // Proofs before messages, and what they wait for: a flood of messages must not cost the trust in every entry.
                () = tokio::time::sleep_until(self.due) => self.tick().await,
                Ok(()) = moved.changed() => {
                    // Whoever waits for a server to subscribe at waits no longer.
                    if self.subscription.is_none() {
                        self.due = Instant::now();
                    }
                }
                () = kicked => self.due = self.due.min(self.asked + ASKED_EVERY),
                () = tokio::time::sleep_until(self.page_due), if self.backfill.is_some() => self.read_back().await,
                message = next(&mut self.subscription) => match message {
                    Some(message) => self.hear(message).await,
                    None => self.lose(),
                },
            }
        }
        self.leave().await;
        fleet.leaving.send_replace(Leaving::Done);
    }

    /// Leaves the membership, unless others must wait for what only this pod knows.
    async fn leave(&mut self) {
        let proven = self.prove().await;
        let has_given =
            self.owed.is_empty() && self.state.mirror.read().is_ok_and(|mirror| mirror.elsewhere().is_empty());
        let pod = &self.state.fleet.as_ref().expect("there is a fleet").pod;
        let left = match proven {
            Ok(()) if has_given => self.log.leave(pod).await,
            unproven => unproven,
        };
        if let Err(error) = left {
            tracing::debug!(%error, "Redis could not be told that this pod ends");
        }
    }

    /// Renews the subscription, then proves, in this order: what is published after the question is heard.
    async fn tick(&mut self) {
        let subscribed = self.subscribe().await;
        let proven = self.prove().await;
        let alive = match &mut self.subscription {
            // A stalled subscription looks like silence.
            Some(subscription) if proven.is_ok() => subscription.is_alive(WAIT).await,
            _ => true,
        };
        let well = subscribed.is_ok() && proven.is_ok() && alive;
        if let Some(fleet) = &self.state.fleet {
            fleet.connected.store(well, Ordering::Relaxed);
        }
        let cause = subscribed.and(proven).err().map(|error| error.to_string());
        let cause = || cause.unwrap_or_else(|| "the subscription does not answer".to_owned());
        self.shared.health.tell(RedisPart::Bus, if well { Ok(()) } else { Err(cause()) });
        if alive {
            // A quarter less, never more: the bound counts on a proof in each B/4.
            let pause = match well {
                true if self.is_settling() => ASKED_EVERY,
                true if self.may_inherit() => jittered(INHERIT_EVERY),
                true => self.trust().proof_every().mul_f64(0.75 + jitter() / 4.0),
                false => jittered(RETRY_EVERY),
            };
            self.due = Instant::now() + pause;
        } else {
            self.lose();
        }
    }

    async fn subscribe(&mut self) -> Result<(), Unavailable> {
        if self.subscription.is_none() {
            let keys = &self.shared.keys;
            let mut channels = vec![keys.door(), keys.bell(), keys.roll()];
            let tracked = match self.shared.bus {
                Bus::Publish => {
                    channels.push(keys.bus());
                    None
                }
                Bus::Tracking => Some(keys.log()),
            };
            let mut moved = self.shared.changes();
            let open = tokio::select! {
                open = Subscription::open(&self.shared, &channels, tracked.as_deref()) => open?,
                // One who has the log no more may take his time.
                Ok(()) = moved.changed() => return Err(Unavailable::NotSent),
            };
            self.subscription = Some(open);
            // Bells that rang meanwhile were not heard.
            self.shared.bells().ring_some();
        }
        Ok(())
    }

    fn lose(&mut self) {
        (self.subscription, self.heard) = (None, None);
        self.due = Instant::now() + jittered(RENEW_AFTER);
    }

    fn observe_lag(&self, logged_ms: u64) {
        let lag_ms = self.state.clock.now().saturating_sub(logged_ms);
        self.state.metrics.invalidation_lag.observe(lag_ms as f64 / 1000.0);
    }

    /// Asks where the log stands, and gets there. Then everything acknowledged before the question was sent is applied.
    async fn prove(&mut self) -> Result<(), Unavailable> {
        let (sent, trip) = (self.state.clock.steady(), Stopwatch::start());
        let before = self.state.followed();
        // What is in another log before the question is asked is below the head if it turns out to be in this one.
        let elsewhere = self.state.mirror.read().expect("no panic while held").elsewhere();
        let was_given = self.owed.is_empty();
        let mut proof = self.ask(before).await?;
        self.adopt(proof.time_ms, trip.elapsed());
        self.shared.note_loss(proof.lost_ms);
        let asked = proof.head;
        self.reach(&proof, before).await?;
        match self.give(elsewhere).await {
            // A Redis that takes nothing still proves; what it did not take is tried again.
            Ok(()) | Err(Unavailable::Refused(_)) => {}
            Err(unavailable) => return Err(unavailable),
        }
        let mut head = asked;
        for _ in 0..ROUNDS {
            if proof.door.is_empty() {
                break;
            }
            (head, _) = stream::drain(&self.state, &self.log, &proof.door).await?;
            if proof.door.len() < doors::ENTRIES {
                proof.door.clear();
            } else {
                proof = self.ask(Some(asked)).await?;
            }
        }
        self.catch_up_to(head, asked).await?;
        // Whoever has just joined this log has its past to read first.
        if was_given {
            self.settle_given();
        }
        if self.subscription.is_some() && self.shared.bus == Bus::Publish {
            let heard = self.heard.filter(|heard| heard.incarnation == head.incarnation).map_or(0, |heard| heard.seq);
            self.heard = Some(Position { incarnation: head.incarnation, seq: heard.max(head.seq) });
        }
        let state = Arc::clone(&self.state);
        if proof.door.is_empty()
            && let Some(fleet) = &state.fleet
        {
            fleet.pods.store(proof.pods, Ordering::Relaxed);
            // While the log's past is not read back, something in it may name what is stored here, or by others.
            if self.backfill.is_none() {
                fleet.trust.proven(sent);
                self.inherit(&proof, before);
                fleet.ready.send_replace(true);
            }
        }
        Ok(())
    }

    /// Asks where the log stands, and says that this pod is at `at`, unless it has something to give or to read first.
    async fn ask(&mut self, at: Option<Position>) -> Result<Proof, Unavailable> {
        self.asked = Instant::now();
        let fleet = self.state.fleet.as_ref().expect("there is a fleet");
        let knew = at;
        let at = at.filter(|_| self.owed.is_empty() && self.backfill.is_none());
        let proof = self.log.prove(&fleet.pod, at, knew, fleet.trust.lasts()).await?;
        self.told = at;
        Ok(proof)
    }

    /// Follows the log to where `proof` found it. `before` is how far it had been followed when it was asked for: a head
    /// below that, or of another incarnation, means that the log is not the one that was followed.
    async fn reach(&mut self, proof: &Proof, before: Option<Position>) -> Result<(), Unavailable> {
        let head = proof.head;
        if let Some(before) = before.filter(|at| at.incarnation == head.incarnation && at.seq <= head.seq) {
            return self.catch_up_to(head, before).await;
        }
        let fleet = self.state.fleet.as_ref().expect("there is a fleet");
        let (mut is_heir, mut was_inherited) = (false, false);
        let now = self.state.clock.steady();
        // One that was there beside the one that is left, as a master that was cut off is, lacks whatever that had. One that
        // begins when the other is lost is younger than what was proven last.
        let last_known = self.joined.max(fleet.trust.proven_at());
        let was_beside = proof.lineage.is_none() && proof.age.as_millis() as u64 > now.saturating_sub(last_known);
        self.joined = now;
        // Before this process first reached Redis there may have been another log, of which it knows nothing.
        let lived_ms = now.saturating_sub(self.started);
        let is_younger = self.state.followed().is_none() && proof.age.as_millis() as u64 <= lived_ms;
        self.state.change(|mirror| {
            self.owed.append(&mut self.given);
            was_inherited = !mirror.may_inherit();
            let left = mirror.followed();
            let mut owed = mirror.follow(head, random(), proof.lineage.clone());
            owed.extend(left.filter(|_| was_beside).map(Owed::everything));
            for one in &owed {
                let (selectors, soft) = read_order(one.order.as_bytes()).unwrap_or((vec![Selector::All], false));
                self.owing.push(mirror.owe(&selectors, soft));
            }
            self.owed.extend(owed);
            if let Some(before) = before.filter(|_| self.owed.len() > lineage::RECORDS) {
                self.owed = vec![Owed::everything(before)];
                self.owing.push(mirror.owe(&[Selector::All], false));
            }
            if is_younger {
                mirror.unknown_past();
            }
            is_heir = mirror.has_former();
            fleet.trust.followed_another(is_heir.then_some(head.incarnation), mirror.own().incarnation);
        });
        let pods = fleet.pods.load(Ordering::Relaxed);
        self.pods_before = match self.pods_before {
            _ if was_inherited => pods,
            // Those of whom nobody knows how many they were are still waited for.
            0 => 0,
            others => others.max(pods),
        };
        self.backfill = Some(head.seq);
        if is_heir {
            let given = self.owed.len();
            tracing::warn!(
                head.seq,
                given,
                "Redis goes on from a copy of the invalidation log: what it may have lost is logged again"
            );
        } else if before.is_some() && self.said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(head.seq, "Redis lost the invalidation log: answers from before are not used");
        }
        Ok(())
    }

    /// Follows the log to `head`, which was asked for when it had been followed to `before`.
    async fn catch_up_to(&mut self, head: Position, before: Position) -> Result<(), Unavailable> {
        if head.incarnation != before.incarnation || head.seq < before.seq {
            // It was lost in between: the next proof joins the other one.
            self.state.kick();
            return Err(Unavailable::NotSent);
        }
        if self.state.followed().is_some_and(|at| at.seq < head.seq) {
            self.catch_up().await?;
        }
        // A page of a copy that takes over just now ends before what was asked for.
        let is_there = |at: Position| at.incarnation == head.incarnation && at.seq >= head.seq;
        if self.state.followed().is_some_and(is_there) { Ok(()) } else { Err(Unavailable::NotSent) }
    }

    fn trust(&self) -> &Trust {
        &self.state.fleet.as_ref().expect("there is a fleet").trust
    }

    /// Reads what is missing from the log.
    async fn catch_up(&mut self) -> Result<(), Unavailable> {
        for _ in 0..PAGES {
            let Some(at) = self.state.followed() else { return Ok(()) };
            let page = self.log.read(Direction::Forward, at.seq + 1).await?;
            let Some(head) = page.head.filter(|head| head.incarnation == at.incarnation) else {
                // Another log: the next proof joins it.
                self.state.kick();
                return Err(Unavailable::NotSent);
            };
            page.records.iter().for_each(|record| self.observe_lag(record.time_ms));
            self.state.change(|mirror| {
                for record in &page.records {
                    // Trimmed before it was read, if there is a hole.
                    mirror.lost_up_to(record.seq - 1);
                    let at = Position { seq: record.seq, ..at };
                    mirror.record(at, &record.selectors, record.soft, &record.order);
                }
                if page.records.is_empty() {
                    mirror.lost_up_to(head.seq);
                }
            });
            if self.state.followed().is_none_or(|at| at.seq >= head.seq) {
                return Ok(());
            }
        }
        // Not level is not proven.
        Err(Unavailable::Timeout)
    }

    /// Reads one page backwards and lowers the floor to it.
    async fn read_back(&mut self) {
        let (Some(from), Some(at)) = (self.backfill, self.state.followed()) else { return self.backfill = None };
        let page = match self.log.read(Direction::Backward, from).await {
            Ok(page) if page.head.is_some_and(|head| head.incarnation == at.incarnation) => page,
            Ok(_) => {
                self.page_due = self.asked + ASKED_EVERY;
                return self.state.kick();
            }
            Err(_) => {
                self.page_due = Instant::now() + jittered(RETRY_EVERY);
                return;
            }
        };
        let mut below = from;
        self.state.change(|mirror| {
            for record in page.records.iter().take_while(|record| {
                let next = record.seq == below;
                below -= u64::from(next);
                next
            }) {
                mirror.backfill(record.seq, &record.selectors, record.soft, &record.order);
            }
            mirror.lower_floor(below);
        });
        if below > 0 && below < from && page.records.len() as u64 == PAGE {
            self.backfill = Some(below);
            return;
        }
        if below > 0 {
            // The log begins above 1: of what was trimmed nothing is known.
            self.state.change(Mirror::unknown_past);
        }
        self.backfill = None;
        self.due = Instant::now();
    }

    /// Takes Redis' time over, half a round trip old.
    fn adopt(&self, time_ms: u64, trip: Duration) {
        let theirs = time_ms + trip.as_millis() as u64 / 2;
        if trip <= CLOCK_TRIP && theirs.abs_diff(self.state.clock.now()) > CLOCK_NOISE_MS {
            self.state.clock.adopt(theirs);
        }
    }
}

/// Keeps the gauge of the proof's age. Runs for ever.
pub(super) async fn show_age(state: &Invalidation) {
    let started = state.clock.steady();
    loop {
        let unproven = || Duration::from_millis(state.clock.steady() - started);
        state.metrics.bus_age_seconds.set(state.proof_age().unwrap_or_else(unproven).as_secs_f64());
        tokio::time::sleep(SHOW_EVERY).await;
    }
}

/// The next message; never, without a subscription.
async fn next(subscription: &mut Option<Subscription>) -> Option<Message> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

fn jitter() -> f64 {
    (random() % 1024) as f64 / 1024.0
}
