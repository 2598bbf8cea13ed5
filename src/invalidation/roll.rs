//! The roll call: who has applied an invalidation, for those who want to know it of every pod.
//!
//! A pod says with each proof how far it has followed the log; called, it proves at once. A pod that says nothing cannot
//! serve for longer than the bound what it then trusts, so the wait has an end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::log::{Log, Roll};
use super::{Invalidation, Position};

/// Who may wait at once.
pub const CALLS: usize = 256;

/// Longest that one may wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// First pause before the roll is read again.
const FIRST_LOOK: Duration = Duration::from_millis(2);

/// Longest such pause.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// Pods are called again after this time: a call may be lost.
const CALL_AGAIN: Duration = Duration::from_millis(500);

/// What became of a wait for every pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// Whether no pod that was heard of within the bound can serve what was invalidated any more; else the wait ended
    /// first.
    pub is_complete: bool,
    /// Pods that were heard of lately.
    pub pods: usize,
    /// Those that have not said that they applied it.
    pub silent: Vec<String>,
}

/// A wait for every pod.
pub(super) struct Call {
    /// Of the invalidation.
    pub position: Position,
    /// When it was known to be logged.
    pub since: Instant,
    pub until: Instant,
    pub answer: oneshot::Sender<Confirmation>,
}

/// Reads the roll for all who wait.
pub(super) struct Caller {
    state: Arc<Invalidation>,
    log: Log,
    inbox: mpsc::Receiver<Call>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    call: Call,
    called: Option<Instant>,
    look_at: Instant,
    pause: Duration,
    seen: Confirmation,
}

impl Caller {
    pub(super) fn new(state: Arc<Invalidation>, log: Log, inbox: mpsc::Receiver<Call>) -> Self {
        Self { state, log, inbox, waiting: Vec::new() }
    }

    /// Works until nobody can ask any more.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.waiting.iter().map(|waiting| waiting.look_at).min();
            tokio::select! {
                call = self.inbox.recv() => match call {
                    Some(call) => self.waiting.push(Waiting::new(call)),
                    None => return,
                },
                () = sleep_until(due) => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let Some(bound) = self.state.fleet.as_ref().map(|fleet| fleet.trust.lasts()) else { return };
        let now = Instant::now();
        let newest = self.waiting.iter_mut().filter(|waiting| waiting.is_to_be_called(now)).map(|waiting| {
            waiting.called = Some(now);
            waiting.call.position
        });
        let newest = newest.max_by_key(|position| position.seq);
        let roll = self.log.roll(newest, bound).await.ok();
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.look_at > now {
                self.waiting.push(waiting);
            } else if let Some(waiting) = waiting.look(roll.as_ref(), bound, now) {
                self.waiting.push(waiting);
            }
        }
    }
}

impl Waiting {
    fn new(call: Call) -> Self {
        let seen = Confirmation { is_complete: false, pods: 0, silent: Vec::new() };
        Self { look_at: call.since, called: None, pause: FIRST_LOOK, seen, call }
    }

    fn is_to_be_called(&self, now: Instant) -> bool {
        self.called.is_none_or(|at| now.duration_since(at) >= CALL_AGAIN)
    }

    /// Answers if there is anything to say; the wait that goes on, if not.
    fn look(mut self, roll: Option<&Roll>, bound: Duration, now: Instant) -> Option<Self> {
        if let Some(roll) = roll {
            let silent = silent(roll, self.call.position);
            // Of those who had joined another log nothing is known yet.
            let is_all = roll.age >= bound && roll.incarnation == Some(self.call.position.incarnation);
            self.seen = Confirmation { is_complete: is_all && silent.is_empty(), pods: roll.pods.len(), silent };
        }
        // By now nobody trusts what they had when it was logged.
        self.seen.is_complete |= now.duration_since(self.call.since) >= bound;
        if self.seen.is_complete || now >= self.call.until {
            let _ = self.call.answer.send(self.seen);
            return None;
        }
        if self.call.answer.is_closed() {
            return None;
        }
        self.look_at = (now + self.pause).min(self.call.until).min(self.call.since + bound);
        self.pause = (self.pause * 2).min(LONGEST_LOOK);
        Some(self)
    }
}

/// Pods that have not said that they applied what is at `position`.
fn silent(roll: &Roll, position: Position) -> Vec<String> {
    let has_applied =
        |at: &Option<Position>| at.is_some_and(|at| at.incarnation == position.incarnation && at.seq >= position.seq);
    let silent = roll.pods.iter().filter(|(_, at)| !has_applied(at));
    silent.map(|(pod, _)| pod.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
