//! The end of a worker's connections, told to all of them at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

const SERVING: u8 = 0;
const LEAVING: u8 = 1;
const DRAINING: u8 = 2;

/// How far the end has come: serving, leaving (answers ask for no further request), draining (idle connections close).
///
/// One for each worker, so that its lock is never contended.
#[derive(Debug, Clone, Default)]
pub(super) struct Drain(Arc<Stage>);

#[derive(Debug, Default)]
struct Stage {
    at: AtomicU8,
    changed: Arc<Notify>,
}

impl Drain {
    /// From now on every answer over HTTP/1 ends its connection.
    pub(super) fn leave(&self) {
        self.0.at.fetch_max(LEAVING, Ordering::AcqRel);
    }

    /// From now on connections end as soon as no request is in flight on them.
    pub(super) fn begin(&self) {
        self.0.at.fetch_max(DRAINING, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }

    /// Whether answers ask for no further request.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.at.load(Ordering::Acquire) > SERVING
    }

    /// Whether connections without a request close.
    pub(super) fn is_draining(&self) -> bool {
        self.0.at.load(Ordering::Acquire) >= DRAINING
    }

    /// A connection's own view.
    pub(super) fn watch(&self) -> Watch {
        Watch { drain: self.clone(), changed: Box::pin(Arc::clone(&self.0.changed).notified_owned()) }
    }
}

/// What a connection sees of the drain.
pub(super) struct Watch {
    drain: Drain,
    changed: Pin<Box<OwnedNotified>>,
}

impl Watch {
    /// See [`Drain::is_leaving`].
    pub(super) fn is_leaving(&self) -> bool {
        self.drain.is_leaving()
    }

    /// Ready once connections without a request close.
    pub(super) fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A `Notified` made before `notify_waiters` is woken by it, so looking at the stage afterwards misses nothing;
        // one that has fired is not asked again.
        if self.drain.is_draining() {
            return Poll::Ready(());
        }
        self.changed.as_mut().poll(cx)
    }

    /// Waits until connections without a request close.
    pub(super) async fn draining(&mut self) {
        std::future::poll_fn(|cx| self.poll_draining(cx)).await;
    }
}
