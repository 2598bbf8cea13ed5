//! What moves on a connection, and what is done about what does not.
//!
//! One look now and then serves all streams, so that none needs a timer.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::config::ServerLimits;
use crate::message::{Body, BodyError, BodyFault};
use crate::server::wire::Pace;

/// The watch looks this often within the shortest deadline.
const LOOKS_PER_DEADLINE: u32 = 4;

/// What happens on a connection, as far as its deadlines need to know.
#[derive(Default)]
pub(super) struct Activity {
    /// Requests between head and last byte.
    open: AtomicUsize,
    /// Answers of which the client has yet to take what was made.
    unread: AtomicUsize,
    /// Grows with everything that moves.
    moves: AtomicU64,
    /// Answers that are still being made while the client takes them; at most one a stream.
    made: Mutex<Vec<Weak<Made>>>,
}

/// A request, from its head until its answer has been handed over.
pub(super) struct Stream(Arc<Activity>);

impl Stream {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.moves.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// No request yet, for too long.
    Silent,
    /// No further request for too long.
    Unused,
    /// Nothing moves although something should.
    Stalled,
}

/// Looks at a connection's activity.
pub(super) struct Watch {
    limits: ServerLimits,
    /// How often.
    pub(super) every: Duration,
    moves: u64,
    still: Duration,
}

impl Watch {
    pub(super) fn new(limits: ServerLimits) -> Self {
        let shortest = limits.body_idle.min(limits.keep_alive).min(limits.head_timeout);
        let every = (shortest / LOOKS_PER_DEADLINE).max(Duration::from_millis(1));
        Self { limits, every, moves: 0, still: Duration::ZERO }
    }

    pub(super) fn look(&mut self, activity: &Activity) -> Verdict {
        activity.cut_what_stands_still(self.every, self.limits.body_idle);
        let moves = activity.moves.load(Ordering::Relaxed);
        if moves != self.moves {
            (self.moves, self.still) = (moves, Duration::ZERO);
            return Verdict::Fine;
        }
        self.still += self.every;
        // A connection that has asked for nothing yet is a head that is awaited.
        let unused_max = if moves == 0 { self.limits.head_timeout } else { self.limits.keep_alive };
        let unused = activity.open.load(Ordering::Relaxed) == 0;
        if activity.unread.load(Ordering::Relaxed) > 0 && self.still >= self.limits.body_idle {
            Verdict::Stalled
        } else if unused && self.still >= unused_max + self.limits.body_idle {
            // It was told to go, and small answers that nobody takes keep it from going.
            Verdict::Stalled
        } else if unused && self.still >= unused_max {
            if moves == 0 { Verdict::Silent } else { Verdict::Unused }
        } else {
            Verdict::Fine
        }
    }
}

impl Activity {
    /// Lets go of each answer of which the client took nothing for `idle`: a connection whose other streams move is kept,
    /// but no upstream is held up by this one.
    fn cut_what_stands_still(&self, every: Duration, idle: Duration) {
        let mut made = self.made.lock().expect("no panic while held");
        let mut cut = Vec::new();
        made.retain(|made| {
            let Some(made) = made.upgrade() else { return false };
            let mut making = made.lock();
            making.still = if making.moved || !making.handed { Duration::ZERO } else { making.still + every };
            making.moved = false;
            let stands = making.still >= idle;
            if stands {
                cut.extend(making.body.take());
            }
            !stands
        });
        drop(made);
        // What ends with these bodies may be of any kind: not under the locks.
        drop(cut);
    }
}

/// An answer that is made while the client takes it.
struct Made(Mutex<Making>);

struct Making {
    /// Nothing once it was cut.
    body: Option<Body>,
    /// Whether the client has yet to take what was made last.
    handed: bool,
    moved: bool,
    still: Duration,
}

impl Made {
    fn lock(&self) -> MutexGuard<'_, Making> {
        self.0.lock().expect("no panic while held")
    }
}

/// An answer's body that notes whether it waits for the client or the client for it.
pub(super) struct AnswerBody {
    source: Source,
    handed: bool,
    stream: Stream,
}

enum Source {
    /// All of it is here: it holds nothing up.
    Here(Body),
    Made(Arc<Made>),
}

impl AnswerBody {
    pub(super) fn new(body: Body, stream: Stream) -> Self {
        let source = match body {
            Body::Empty | Body::Full(_) => Source::Here(body),
            body @ (Body::Hyper(_) | Body::Stream(_)) => {
                let making = Making { body: Some(body), handed: false, moved: true, still: Duration::ZERO };
                let made = Arc::new(Made(Mutex::new(making)));
                stream.0.made.lock().expect("no panic while held").push(Arc::downgrade(&made));
                Source::Made(made)
            }
        };
        Self { source, handed: false, stream }
    }

    fn hand(&mut self, handed: bool) {
        let activity = &self.stream.0;
        activity.moves.fetch_add(1, Ordering::Relaxed);
        match (self.handed, handed) {
            (false, true) => _ = activity.unread.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = activity.unread.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        self.handed = handed;
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let is_piece = |frame: &Poll<Option<Result<_, _>>>| matches!(frame, Poll::Ready(Some(Ok(_))));
        let frame = match &mut self.source {
            Source::Here(body) => Pin::new(body).poll_frame(cx),
            Source::Made(made) => {
                let mut making = made.lock();
                let Some(body) = &mut making.body else { return Poll::Ready(Some(Err(BodyFault::Silent.into()))) };
                let frame = Pin::new(body).poll_frame(cx);
                (making.handed, making.moved) = (is_piece(&frame), true);
                frame
            }
        };
        self.hand(is_piece(&frame));
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Here(body) => body.is_end_stream(),
            Source::Made(made) => made.lock().body.as_ref().is_some_and(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Here(body) => body.size_hint(),
            Source::Made(made) => made.lock().body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.hand(false);
    }
}

/// A request's body that ends in an error when it stands still for too long.
pub(super) struct Asked {
    body: Incoming,
    pace: Pace,
}

impl Asked {
    pub(super) fn new(body: Incoming, limits: &ServerLimits) -> Self {
        Self { body, pace: Pace::new(limits.body_idle, limits.body_progress) }
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
            this.pace.moved(bytes.map_or(0, Bytes::len));
            if let Some(Ok(frame)) = &frame
                && frame.trailers_ref().is_some_and(|trailers| trailers.values().any(super::is_padded))
            {
                return Poll::Ready(Some(Err(BodyFault::Malformed.into())));
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        this.pace.poll_waited(cx).map(|()| Some(Err(BodyFault::Silent.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
