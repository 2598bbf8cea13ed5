//! The clerk: logs what comes in through this pod's doors, and goes on trying while Redis cannot take it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::log::Log;
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
    pub order: String,
    pub selectors: Arc<[Selector]>,
    pub soft: bool,
    /// An equal record after this position is this very order, logged by another pod; `None` logs it in any case.
    pub since: Option<Position>,
    pub door: Door,
    /// Who waits for it. Where nobody does, it was applied here already.
    pub answer: Option<oneshot::Sender<Receipt>>,
}

/// Takes submissions, one at a time.
pub(super) struct Clerk {
    state: Arc<Invalidation>,
    log: Log,
    inbox: mpsc::Receiver<Submission>,
    retries: VecDeque<Submission>,
    retry_at: Instant,
}

impl Clerk {
    pub(super) fn new(state: Arc<Invalidation>, log: Log, inbox: mpsc::Receiver<Submission>) -> Self {
        // Due at once: what it says only counts while something waits.
        let retry_at = tokio::time::Instant::now();
        Self { state, log, inbox, retries: VecDeque::new(), retry_at }
    }

    /// Works until no door is left.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                submission = self.inbox.recv() => match submission {
                    // While Redis takes nothing, asking it for each would make every door wait in line.
                    Some(submission) if !self.retries.is_empty() => self.put_off(submission),
                    Some(submission) => self.take(submission).await,
                    None => return,
                },
                () = tokio::time::sleep_until(self.retry_at), if !self.retries.is_empty() => self.retry().await,
            }
            if let Some(fleet) = &self.state.fleet {
                fleet.queued.store(self.retries.len(), Ordering::Relaxed);
            }
        }
    }

    async fn take(&mut self, mut submission: Submission) {
        match self.log(&submission).await {
            Ok(receipt) => answer(&mut submission, receipt),
            Err(error) => {
                tracing::warn!(%error, "an invalidation could not be logged: applied in this pod, tried again until it is");
                self.retry_at = Instant::now() + jittered(RETRY_EVERY);
                self.put_off(submission);
            }
        }
    }

    async fn log(&self, submission: &Submission) -> Result<Receipt, Unavailable> {
        let (position, new) = self.log.append(&submission.order, submission.since).await?;
        self.state.apply_logged(position, &submission.selectors, submission.soft);
        // A message is heard by every pod; it counts where it was logged.
        if new && submission.door == Door::Publish {
            self.state.count(&submission.selectors, submission.door);
        }
        Ok(Receipt { position, logged: true })
    }

    /// Applies it here, says so, and keeps it for later.
    fn put_off(&mut self, mut submission: Submission) {
        if submission.answer.is_some() {
            let receipt = self.state.apply_here(&submission.selectors, submission.soft, false);
            answer(&mut submission, receipt);
        }
        if self.retries.len() == RETRIES {
            self.retries.pop_front();
            tracing::error!("too many invalidations wait for Redis: the oldest is given up");
        }
        self.retries.push_back(submission);
    }

    async fn retry(&mut self) {
        while let Some(submission) = self.retries.front() {
            match self.log(submission).await {
                Ok(_) => self.retries.pop_front(),
                Err(_) => {
                    self.retry_at = Instant::now() + jittered(RETRY_EVERY);
                    return;
                }
            };
        }
        tracing::info!("every invalidation is logged again");
    }
}

fn answer(submission: &mut Submission, receipt: Receipt) {
    if let Some(answer) = submission.answer.take() {
        // Whoever no longer waits has its answer: not logged, applied here.
        let _ = answer.send(receipt);
    }
}
