//! The clerk: logs what comes in through this pod's doors, and goes on trying while Redis cannot take it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::log::{Draft, Log, TOGETHER};
use super::pending::Ticket;
use super::{Invalidation, Position, Receipt};
use crate::kv::{Unavailable, jittered};
use crate::metrics::Door;
use crate::syntax::selector::Selector;

/// Orders that may wait for the clerk.
pub const SUBMISSIONS: usize = 1024;

/// Orders that Redis has not taken and that are tried again; the oldest is given up for one more, which is logged.
pub const RETRIES: usize = 4096;

/// Pause after Redis did not take one.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// One order on its way to the log.
pub(super) struct Submission {
    /// As JSON.
    pub order: Arc<str>,
    pub selectors: Arc<[Selector]>,
    pub soft: bool,
    /// An equal record after this position is this very order, logged by another pod; `None` logs it in any case.
    pub since: Option<Position>,
    /// What announced it, and is settled with it.
    pub intent: Option<Arc<str>>,
    pub door: Door,
    pub fate: Arc<Fate>,
    /// Who waits for it. Where nobody does, it was applied here already.
    pub answer: Option<oneshot::Sender<Receipt>>,
}

/// What has become of an order, for those who wait for it and the clerk, who may come to it at the same time.
#[derive(Debug, Default)]
pub(super) struct Fate(Mutex<Stage>);

#[derive(Debug, Default)]
enum Stage {
    /// It has not been applied here.
    #[default]
    Open,
    /// It has, as the last that was at this position of the process, and is to be logged.
    Pending(Ticket, Position),
    /// It is in the log.
    Logged(Position),
}

impl Fate {
    /// Applies it here by `apply` if nobody has; where it stands.
    pub fn applied(&self, apply: impl FnOnce() -> (Ticket, Position)) -> Receipt {
        let mut stage = self.lock();
        match *stage {
            Stage::Open => {
                let (ticket, position) = apply();
                *stage = Stage::Pending(ticket, position);
                Receipt { position, logged: false }
            }
            Stage::Pending(_, position) => Receipt { position, logged: false },
            Stage::Logged(position) => Receipt { position, logged: true },
        }
    }

    /// It is in the log; by what it was pending, if it was.
    pub fn logged(&self, position: Position) -> Option<Ticket> {
        match std::mem::replace(&mut *self.lock(), Stage::Logged(position)) {
            Stage::Pending(ticket, _) => Some(ticket),
            Stage::Open | Stage::Logged(_) => None,
        }
    }

    /// By what it is pending, if it is.
    pub fn ticket(&self) -> Option<Ticket> {
        if let Stage::Pending(ticket, _) = *self.lock() { Some(ticket) } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().expect("no panic while held")
    }
}

/// Takes submissions: what came while the last ones were on their way goes together.
pub(super) struct Clerk {
    state: Arc<Invalidation>,
    log: Log,
    inbox: mpsc::Receiver<Submission>,
    retries: VecDeque<Submission>,
    retry_at: Instant,
    /// How many were given up since the last time that none waited.
    given_up: u64,
}

impl Clerk {
    pub(super) fn new(state: Arc<Invalidation>, log: Log, inbox: mpsc::Receiver<Submission>) -> Self {
        // Due at once: what it says only counts while something waits.
        let retry_at = tokio::time::Instant::now();
        Self { state, log, inbox, retries: VecDeque::new(), retry_at, given_up: 0 }
    }

    /// Works until no door is left.
    pub(super) async fn run(mut self) {
        let mut taken = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                count = self.inbox.recv_many(&mut taken, TOGETHER) => match count {
                    0 => return,
                    // While Redis takes nothing, asking it for each would make every door wait in line.
                    _ if !self.retries.is_empty() => taken.drain(..).for_each(|submission| self.put_off(submission)),
                    _ => self.take(taken.drain(..).collect()).await,
                },
                () = tokio::time::sleep_until(self.retry_at), if !self.retries.is_empty() => self.retry().await,
            }
            if let Some(fleet) = &self.state.fleet {
                fleet.queued.store(self.retries.len(), Ordering::Relaxed);
            }
            self.state.metrics.invalidations_waiting.set(self.retries.len() as i64);
        }
    }

    async fn take(&mut self, mut submissions: VecDeque<Submission>) {
        while !submissions.is_empty() {
            match self.log(&submissions).await {
                Ok(receipts) => {
                    for (mut submission, receipt) in submissions.drain(..receipts.len()).zip(receipts) {
                        answer(&mut submission, receipt);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "an invalidation could not be logged: applied in this pod, tried again until it is");
                    self.retry_at = Instant::now() + jittered(RETRY_EVERY);
                    submissions.drain(..).for_each(|submission| self.put_off(submission));
                }
            }
        }
    }

    /// Logs the first of `submissions`, as many as go together, and applies them.
    async fn log(&self, submissions: &VecDeque<Submission>) -> Result<Vec<Receipt>, Unavailable> {
        let first = submissions.iter().take(TOGETHER);
        let drafts = first.map(|one| Draft::new(&one.order, one.since, one.intent.as_deref()));
        let logged = self.log.append(&drafts.collect::<Vec<_>>()).await?;
        let receipt = |(submission, (position, new)): (&Submission, (Position, bool))| {
            self.state.apply_logged(position, submission);
            // A message is heard by every pod; it counts where it was logged.
            if new && submission.door == Door::Publish {
                self.state.count(&submission.selectors, submission.door);
            }
            Receipt { position, logged: true }
        };
        Ok(submissions.iter().zip(logged).map(receipt).collect())
    }

    /// Applies it here, says so, and keeps it for later.
    fn put_off(&mut self, mut submission: Submission) {
        if submission.answer.is_some() {
            let receipt = self.state.apply_here(&submission.fate, &submission.selectors, submission.soft);
            answer(&mut submission, receipt);
        }
        if self.retries.len() == RETRIES {
            if let Some(oldest) = self.retries.pop_front() {
                self.state.give_up(&oldest.fate, &oldest.selectors, oldest.soft);
            }
            if self.given_up == 0 {
                tracing::error!("too many invalidations wait for Redis: the oldest is given up for each that comes");
            }
            self.given_up += 1;
        }
        self.retries.push_back(submission);
    }

    async fn retry(&mut self) {
        while !self.retries.is_empty() {
            match self.log(&self.retries).await {
                Ok(receipts) => drop(self.retries.drain(..receipts.len())),
                Err(_) => {
                    self.retry_at = Instant::now() + jittered(RETRY_EVERY);
                    return;
                }
            }
        }
        match std::mem::take(&mut self.given_up) {
            0 => tracing::info!("every invalidation is logged again"),
            given_up => {
                tracing::error!(given_up, "every invalidation is logged again but for those that were given up");
            }
        }
    }
}

fn answer(submission: &mut Submission, receipt: Receipt) {
    if let Some(answer) = submission.answer.take() {
        // Whoever no longer waits has its answer: not logged, applied here.
        let _ = answer.send(receipt);
    }
}
