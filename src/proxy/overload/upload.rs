//! Request bodies that are still on their way when their request is to be sent.
//!
//! A client decides how long its body takes, and while it goes on to the upstream it holds a connection, and perhaps a
//! thread of the service's. So what is short waits here until it is whole, and of the rest only a part of all requests may be
//! on their way at once: however many clients are slow, the others find the upstream free of them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Micros;
use super::gate::Door;
use crate::message::{Again, Body, BodyError, BodyFault};

/// Bytes of bodies that wait here, in the whole process; what comes beyond goes on as it comes.
const HELD_BYTES: usize = 64 << 20;

/// Bodies that may wait for their turn.
const MOST_WAITING: usize = 1024;

/// The bodies of the process.
#[derive(Debug)]
pub struct Uploads {
    most: usize,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue_timeout: Duration,
    held: Arc<Held>,
    /// Longest body that is held until it is whole.
    short: usize,
}

/// Leave to send a request whose body is still coming; given back when it is dropped.
pub type Turn = OwnedSemaphorePermit;

/// Why a body is not sent.
#[derive(Debug)]
pub enum Unreceived {
    /// It ended early.
    Body(BodyError),
    /// Its turn did not come.
    NoTurn,
}

impl Uploads {
    /// At most `most` at once, of which each may wait for `queue_timeout`; those of up to `short` bytes are held.
    pub fn new(most: usize, queue_timeout: Duration, short: usize) -> Self {
        let turns = Arc::new(Semaphore::new(most));
        Self { most, turns, waiting: AtomicUsize::new(0), queue_timeout, held: Arc::default(), short }
    }

    /// Bodies that are on their way to the upstream.
    pub fn on_their_way(&self) -> usize {
        self.most.saturating_sub(self.turns.available_permits())
    }

    /// Waits until the request that `body` belongs to may be sent; if the body is still coming then, by what leave.
    ///
    /// A short one is waited for. Of others as much is taken as is here already: what turns out to be whole needs no leave.
    /// Nothing is taken of one that `is_expected` to be asked for (100-continue): it is not here, and should not come in vain.
    ///
    /// # Errors
    /// See [`Unreceived`].
    pub async fn receive(&self, body: &mut Body, is_expected: bool) -> Result<Option<Turn>, Unreceived> {
        if matches!(body, Body::Empty | Body::Full(_)) {
            return Ok(None);
        }
        let is_short = body.size_hint().exact().is_some_and(|length| length <= self.short as u64);
        if is_expected && !is_short {
            return self.turn().await.map(Some);
        }
        let (read, is_whole) = self.read(std::mem::take(body), is_short).await.map_err(Unreceived::Body)?;
        *body = read;
        if is_whole { Ok(None) } else { self.turn().await.map(Some) }
    }

    /// The body as far as it came, and whether that is all of it.
    async fn read(&self, mut body: Body, is_short: bool) -> Result<(Body, bool), BodyError> {
        let (mut bytes, mut share) = (BytesMut::new(), Share { of: Arc::clone(&self.held), bytes: 0 });
        let most = if is_short { usize::MAX } else { self.short };
        let mut trailers = None;
        let is_whole = loop {
            if bytes.len() > most || !share.has_room() {
                break false;
            }
            let frame = if is_short { Some(next(&mut body).await) } else { ready(&mut body).await };
            match frame {
                // Nothing more is here.
                None => break false,
                Some(None) => break true,
                Some(Some(frame)) => match frame?.into_data() {
                    // Copied: a piece may keep a whole buffer of its connection's.
                    Ok(data) => {
                        bytes.extend_from_slice(&data);
                        share.grow(data.len());
                    }
                    // They are the last of a body.
                    Err(last) => {
                        trailers = Some(last);
                        break true;
                    }
                },
            }
        };
        let bytes = if bytes.is_empty() { Bytes::new() } else { Bytes::from_owner(Kept { bytes, _share: share }) };
        let body = match trailers {
            None if is_whole => bytes.into(),
            trailers => Again::body(bytes, trailers, body),
        };
        Ok((body, is_whole))
    }

    /// Leave to send a body as it comes, after a wait if need be.
    async fn turn(&self) -> Result<Turn, Unreceived> {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(turn);
        }
        let waiting = Waiting::among(&self.waiting);
        if waiting.others >= MOST_WAITING {
            return Err(Unreceived::NoTurn);
        }
        let turn = timeout(self.queue_timeout, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or(Unreceived::NoTurn)
    }
}

type Next = Option<Result<Frame<Bytes>, BodyError>>;

/// The next piece, once it is there.
async fn next(body: &mut Body) -> Next {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// The next piece, if it is there. What a client has sent is handed over by its connection's task, which comes round once
/// this one has yielded.
async fn ready(body: &mut Body) -> Option<Next> {
    if let Poll::Ready(next) = poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await {
        return Some(next);
    }
    tokio::task::yield_now().await;
    match poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await {
        Poll::Ready(next) => Some(next),
        Poll::Pending => None,
    }
}

/// One that waits for its turn.
struct Waiting<'u> {
    all: &'u AtomicUsize,
    others: usize,
}

impl<'u> Waiting<'u> {
    fn among(all: &'u AtomicUsize) -> Self {
        Self { all, others: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that are held, of [`HELD_BYTES`].
#[derive(Debug, Default)]
struct Held(AtomicUsize);

/// One body's part of them.
struct Share {
    of: Arc<Held>,
    bytes: usize,
}

impl Share {
    fn has_room(&self) -> bool {
        self.of.0.load(Ordering::Relaxed) <= HELD_BYTES
    }

    fn grow(&mut self, more: usize) {
        self.bytes += more;
        self.of.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body that is here, for as long as anybody needs it.
struct Kept {
    bytes: BytesMut,
    _share: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body on its way, and what its request's place has to know of it.
#[derive(Debug)]
pub struct Upload {
    stage: Mutex<Stage>,
    /// How the body ended, if it did so early.
    fault: OnceLock<BodyFault>,
    /// Whether all that is here of it was taken, so that it is the client's turn.
    is_awaited: AtomicBool,
    /// When a piece of it was last taken.
    moved: AtomicU64,
}

#[derive(Debug)]
enum Stage {
    /// Some is missing: the upstream cannot be at work yet, and the request is not in flight.
    Coming { turn: Turn, door: Arc<Door> },
    /// It is whole since then, and the request in flight, among so many.
    Whole { since: Micros, among: usize },
    /// Some is missing, and the answer has begun. It still holds a connection.
    Answered { _turn: Turn },
    /// There is nothing more to do.
    Over,
}

impl Upload {
    /// `body`, as it goes on by this leave.
    pub(super) fn begin(turn: Turn, door: Arc<Door>, body: &mut Body) -> Arc<Self> {
        let upload = Arc::new(Self {
            moved: AtomicU64::new(door.gate().now()),
            stage: Mutex::new(Stage::Coming { turn, door: Arc::clone(&door) }),
            fault: OnceLock::new(),
            is_awaited: AtomicBool::new(false),
        });
        let end = End { upload: Arc::clone(&upload), is_whole: false };
        *body = Body::stream(OnItsWay { inner: std::mem::take(body), door, end });
        upload
    }

    /// How much longer the answer is to be waited for at `now`: for `response` since the last byte. Until then the client
    /// has deadlines of its own; an upstream that takes nothing for `idle` has not.
    pub fn patience(&self, now: Micros, response: Duration, idle: Duration) -> Option<Duration> {
        let (since, most) = match *self.lock() {
            Stage::Coming { .. } if self.is_awaited.load(Ordering::Relaxed) => return Some(response),
            Stage::Coming { .. } => (self.moved.load(Ordering::Relaxed), response.max(idle)),
            Stage::Whole { since, .. } => (since, response),
            Stage::Answered { .. } | Stage::Over => return None,
        };
        most.checked_sub(Duration::from_micros(now.saturating_sub(since))).filter(|left| !left.is_zero())
    }

    /// How it ended, if it did so early.
    pub fn fault(&self) -> Option<BodyFault> {
        self.fault.get().copied()
    }

    /// The answer begins. Since when the request is in flight, and among how many, if it is. A body that is still coming goes
    /// on; its leave is kept if it `holds` a connection.
    pub(super) fn answered(&self, holds: bool) -> Option<(Micros, usize)> {
        let mut stage = self.lock();
        let (before, after) = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Coming { turn, .. } if holds => (Stage::Over, Stage::Answered { _turn: turn }),
            before => (before, Stage::Over),
        };
        *stage = after;
        drop(stage);
        if let Stage::Whole { since, among } = before { Some((since, among)) } else { None }
    }

    /// The body has ended.
    fn ends(&self, is_whole: bool) {
        let mut stage = self.lock();
        let next = match &*stage {
            Stage::Coming { door, .. } if is_whole => {
                let (since, among) = door.gate().begins();
                Stage::Whole { since, among }
            }
            Stage::Whole { .. } => return,
            Stage::Coming { .. } | Stage::Answered { .. } | Stage::Over => Stage::Over,
        };
        // What it held is given back outside the lock.
        let before = std::mem::replace(&mut *stage, next);
        drop((stage, before));
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped with a body that is whole, or given up.
struct End {
    upload: Arc<Upload>,
    is_whole: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        self.upload.ends(self.is_whole);
    }
}

struct OnItsWay {
    inner: Body,
    door: Arc<Door>,
    end: End,
}

impl HttpBody for OnItsWay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let upload = &self.end.upload;
        upload.is_awaited.store(polled.is_pending(), Ordering::Relaxed);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.end.is_whole = true,
            // The last byte that was announced is the last, whatever says so later.
            Poll::Ready(Some(Ok(frame))) => {
                upload.moved.store(self.door.gate().now(), Ordering::Relaxed);
                let is_last = self.inner.is_end_stream() || self.inner.size_hint().exact() == Some(0);
                self.end.is_whole = frame.is_trailers() || is_last;
            }
            Poll::Ready(Some(Err(error))) => _ = upload.fault.set(BodyFault::of(&**error)),
        }
        if self.end.is_whole {
            self.end.upload.ends(true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Pieces;

    fn pieces(length: usize, count: usize) -> Body {
        Pieces::body((0..count).map(|_| Bytes::from(vec![b'x'; length])).collect())
    }

    #[tokio::test]
    async fn short_bodies_are_held_while_there_is_room() {
        let uploads = Uploads::new(10_000, Duration::ZERO, 64 << 10);
        let mut held = Vec::new();
        for i in 0..=HELD_BYTES >> 16 {
            let mut body = pieces(1 << 10, 64);
            let turn = uploads.receive(&mut body, false).await.unwrap();
            let is_held = matches!(body, Body::Full(_)) && turn.is_none();
            assert_eq!(is_held, i < HELD_BYTES >> 16, "{i}");
            assert_eq!(body.size_hint().exact(), Some(64 << 10));
            held.push((body, turn));
        }
        held.clear();
        assert_eq!(uploads.held.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_long_body_needs_a_turn() {
        let uploads = Uploads::new(1, Duration::from_millis(1), 64 << 10);
        let (mut first, mut second) = (pieces(64 << 10, 2), pieces(64 << 10, 2));
        let turn = uploads.receive(&mut first, false).await.unwrap();
        assert!(turn.is_some() && uploads.on_their_way() == 1);
        assert!(matches!(uploads.receive(&mut second, false).await, Err(Unreceived::NoTurn)));
        uploads.waiting.store(MOST_WAITING, Ordering::Relaxed);
        drop(turn);
        let turn = uploads.receive(&mut second, false).await.unwrap();
        assert!(turn.is_some());
        assert!(matches!(uploads.receive(&mut first, false).await, Err(Unreceived::NoTurn)), "as many wait as may");
    }
}
