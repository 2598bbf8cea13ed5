//! Interim (1xx) responses on their way from the upstream to the client that waits (RFC 9110 section 15.2).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, StatusCode};

/// Responses that may wait for the client's connection; what comes beyond is dropped, as it may be.
const WAITING: usize = 16;

/// Bytes of their names and values.
const WAITING_BYTES: usize = 16 * 1024;

/// Where the interim responses to a connection's requests wait to be sent. Nothing is allocated, and nothing locked, for a
/// request that nobody answers so.
#[derive(Debug, Default)]
pub struct Interims {
    /// The request that is being answered.
    current: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    of: u64,
    responses: Vec<(StatusCode, HeaderMap)>,
    waker: Option<Waker>,
}

impl Interims {
    /// Begins the next request: what still comes for the one before is dropped.
    pub fn begin(self: &Arc<Self>) -> Interim<'_> {
        let number = self.current.fetch_add(1, Ordering::Relaxed) + 1;
        Interim { interims: Some(self), number }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits for the request that is being answered; whoever waits for it is woken by the next.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Vec<(StatusCode, HeaderMap)>> {
        let current = self.current.load(Ordering::Relaxed);
        let mut queue = self.lock();
        if queue.of == current && !queue.responses.is_empty() {
            return Poll::Ready(std::mem::take(&mut queue.responses));
        }
        if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            queue.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Where the interim responses to one request go.
#[derive(Debug, Clone, Copy)]
pub struct Interim<'c> {
    interims: Option<&'c Arc<Interims>>,
    number: u64,
}

impl Interim<'_> {
    /// Nowhere: the client's protocol has none, or nobody can send them.
    pub fn none() -> Self {
        Self { interims: None, number: 0 }
    }

    /// The same for whoever asks the upstream.
    pub fn sender(&self) -> Option<InterimSender> {
        self.interims.map(|interims| InterimSender { interims: Arc::clone(interims), number: self.number })
    }
}

/// Hands interim responses to the client's connection; goes along with a request to the upstream.
#[derive(Debug, Clone)]
pub struct InterimSender {
    interims: Arc<Interims>,
    number: u64,
}

impl InterimSender {
    /// Hands one over, unless the request has been answered.
    pub fn send(&self, status: StatusCode, fields: HeaderMap) {
        if self.interims.current.load(Ordering::Relaxed) != self.number {
            return;
        }
        let waker = {
            let mut queue = self.interims.lock();
            if queue.of != self.number {
                queue.responses.clear();
                queue.of = self.number;
            }
            let bytes = |fields: &HeaderMap| {
                fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
            };
            let held: usize = queue.responses.iter().map(|(_, fields)| bytes(fields)).sum();
            if queue.responses.len() < WAITING && held + bytes(&fields) <= WAITING_BYTES {
                queue.responses.push((status, fields));
            }
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
