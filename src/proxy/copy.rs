//! Answers that pass to the one who asked for them and are copied for the cache on the way. Nobody waits for them: that
//! is what fetches are for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::state::{RouteState, Worker};
use crate::cache::entry::{Entry, Stored};
use crate::cache::flight::Held;
use crate::cache::memory::Slot;
use crate::clock::SteadyMs;
use crate::message::{Body, BodyError};
use crate::metrics::Fill;

/// What is to be stored once its body has passed whole; dropped before that, nothing is.
pub(crate) struct Copy {
    pub(crate) worker: Arc<Worker>,
    pub(crate) route: Arc<RouteState>,
    /// The primary key, of a part as well.
    pub(crate) primary: Box<[u8]>,
    /// The answer without its body.
    pub(crate) entry: Entry,
    /// A part that this one may be joined with.
    pub(crate) earlier: Option<Arc<Slot>>,
    /// Bytes of the body, where they are known.
    pub(crate) length: Option<u64>,
    /// Whether it is stored even if it turns out to be empty.
    pub(crate) may_be_empty: bool,
    pub(crate) asked: SteadyMs,
    pub(crate) redis_deadline: Duration,
}

impl Copy {
    /// The body, of which a copy is made as it passes.
    ///
    /// # Errors
    /// The body, where it is known to be too large, not to be as long as it should, or where there is no room.
    pub(crate) fn of(mut self, body: Body) -> Result<Body, Body> {
        let exact = body.size_hint().exact();
        if self.length.is_some() && exact.is_some() && self.length != exact {
            return Err(body);
        }
        self.length = self.length.or(exact);
        if self.length.is_some_and(|length| length > self.most()) {
            return Err(body);
        }
        match body {
            Body::Empty => self.store(Bytes::new()),
            // It is here already, and takes no room beside what it will take in the cache.
            Body::Full(bytes) => {
                self.store(Bytes::copy_from_slice(&bytes));
                return Ok(Body::Full(bytes));
            }
            body @ (Body::Hyper(_) | Body::Stream(_)) => {
                let held = self.worker.shared.cache.room();
                let taken = Taken { copy: self, held, bytes: BytesMut::new() };
                return Ok(Body::stream(Copied { inner: body, taken: Some(Box::new(taken)) }));
            }
        }
        Ok(Body::Empty)
    }

    fn most(&self) -> u64 {
        self.worker.shared.cache.settings().max_object as u64
    }

    /// Memory first, then the fleet, behind the answer.
    fn store(self, body: Bytes) {
        if body.is_empty() && !self.may_be_empty {
            return;
        }
        let cache = &self.worker.shared.cache;
        let entry = self.entry.with_body(body);
        let kept = match entry.part {
            Some(_) => {
                let earlier = self.earlier.as_ref().and_then(|slot| slot.stored.entry());
                cache.keep_part(&self.primary, entry, earlier.map(Arc::as_ref), self.asked)
            }
            None => cache.keep(&self.primary, Stored::Entry(Arc::new(entry)), self.asked),
        };
        let now = cache.times().0;
        let worker = Arc::clone(&self.worker);
        self.worker.behind.spawn(async move {
            let is_stored = match (&worker.redis, &worker.shared.tier) {
                (Some(redis), Some(tier)) => tier.store(redis, &kept, None, now, self.redis_deadline).await,
                _ => true,
            };
            self.route.metrics.fill(if is_stored { Fill::Stored } else { Fill::Superseded });
        });
    }
}

/// What has passed so far.
struct Taken {
    copy: Copy,
    held: Held,
    bytes: BytesMut,
}

impl Taken {
    /// Takes a piece, if there is room for it.
    fn take(&mut self, piece: &[u8]) -> bool {
        let total = (self.bytes.len() + piece.len()) as u64;
        let most = self.copy.length.unwrap_or_else(|| self.copy.most());
        let has_room = total <= most && self.held.grow(piece.len());
        if has_room {
            self.bytes.extend_from_slice(piece);
        }
        has_room
    }

    fn end(self) {
        if self.copy.length.is_none_or(|length| length == self.bytes.len() as u64) {
            self.copy.store(self.bytes.freeze());
        }
    }
}

struct Copied {
    inner: Body,
    /// Until the end, or until it turns out that it cannot be stored.
    taken: Option<Box<Taken>>,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => this.taken = None,
            Poll::Ready(Some(Ok(frame))) => {
                let has_room =
                    frame.data_ref().is_none_or(|piece| this.taken.as_mut().is_none_or(|taken| taken.take(piece)));
                if !has_room {
                    this.taken = None;
                }
            }
            Poll::Ready(None) => {}
        }
        // Who writes the answer may not ask again behind the last piece.
        let is_over = matches!(polled, Poll::Ready(None)) || this.inner.is_end_stream();
        if is_over && let Some(taken) = this.taken.take() {
            taken.end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
