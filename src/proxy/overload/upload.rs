//! Request bodies that are still on their way when their request is to be sent.
//!
//! A client decides how long its body takes, and while it goes on to the upstream it holds a connection, and perhaps a
//! thread of the service's. So what is short waits here until it is whole, and of the rest only a part of all requests may be
//! on their way at once: however many clients are slow, the others find the upstream free of them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Micros;
use super::gate::Door;
use crate::message::{Again, Body, BodyError};

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
    /// # Errors
    /// See [`Unreceived`].
    pub async fn receive(&self, body: &mut Body) -> Result<Option<Turn>, Unreceived> {
        if matches!(body, Body::Empty | Body::Full(_)) {
            return Ok(None);
        }
        if body.size_hint().exact().is_some_and(|length| length <= self.short as u64) {
            *body = self.whole(std::mem::take(body)).await.map_err(Unreceived::Body)?;
            if matches!(body, Body::Empty | Body::Full(_)) {
                return Ok(None);
            }
        }
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(Some(turn));
        }
        let waiting = Waiting::among(&self.waiting);
        if waiting.others >= MOST_WAITING {
            return Err(Unreceived::NoTurn);
        }
        let turn = timeout(self.queue_timeout, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).map(Some).ok_or(Unreceived::NoTurn)
    }

    /// The body once it is here; as far as it came where there is no room for all of it, or something stands behind it.
    async fn whole(&self, mut body: Body) -> Result<Body, BodyError> {
        let (mut bytes, mut share) = (BytesMut::new(), Share { of: Arc::clone(&self.held), bytes: 0 });
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame?.into_data() {
                // Copied: a piece may keep a whole buffer of its connection's.
                Ok(data) => {
                    bytes.extend_from_slice(&data);
                    if !share.grow(data.len()) {
                        return Ok(Again::body(bytes.freeze(), None, body));
                    }
                }
                Err(trailers) => return Ok(Again::body(bytes.freeze(), Some(trailers), body)),
            }
        }
        Ok(Bytes::from_owner(Kept { bytes, _share: share }).into())
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
    /// Takes so many more; whether they were free.
    fn grow(&mut self, more: usize) -> bool {
        self.bytes += more;
        self.of.0.fetch_add(more, Ordering::Relaxed) + more <= HELD_BYTES
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
pub(super) struct Upload(Mutex<Stage>);

#[derive(Debug)]
enum Stage {
    /// Some is missing: the upstream cannot be at work yet, and the request is not in flight.
    Coming { _turn: Turn, door: Arc<Door> },
    /// It is whole since then, and the request in flight.
    Whole(Micros),
    /// The request has ended, or its answer begun.
    Over,
}

impl Upload {
    /// `body`, as it goes on by this leave.
    pub(super) fn begin(turn: Turn, door: Arc<Door>, body: &mut Body) -> Arc<Self> {
        let upload = Arc::new(Self(Mutex::new(Stage::Coming { _turn: turn, door })));
        let end = End(Arc::clone(&upload));
        *body = Body::stream(OnItsWay { inner: std::mem::take(body), _end: end });
        upload
    }

    /// Since when the request is in flight, if it is.
    pub(super) fn over(&self) -> Option<Micros> {
        match self.replace(|_| Stage::Over) {
            Stage::Whole(since) => Some(since),
            Stage::Coming { .. } | Stage::Over => None,
        }
    }

    fn whole(&self) {
        let _ = self.replace(|stage| match stage {
            Stage::Coming { door, .. } => Stage::Whole(door.gate().begins()),
            Stage::Whole(since) => Stage::Whole(*since),
            Stage::Over => Stage::Over,
        });
    }

    /// The stage before; what it held is given back outside the lock.
    fn replace(&self, next: impl FnOnce(&Stage) -> Stage) -> Stage {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next(&stage);
        std::mem::replace(&mut stage, next)
    }
}

/// Dropped with a body that is whole, or given up.
struct End(Arc<Upload>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.whole();
    }
}

struct OnItsWay {
    inner: Body,
    _end: End,
}

impl HttpBody for OnItsWay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
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
            let turn = uploads.receive(&mut body).await.unwrap();
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
        let turn = uploads.receive(&mut first).await.unwrap();
        assert!(turn.is_some() && uploads.on_their_way() == 1);
        assert!(matches!(uploads.receive(&mut second).await, Err(Unreceived::NoTurn)));
        uploads.waiting.store(MOST_WAITING, Ordering::Relaxed);
        drop(turn);
        let turn = uploads.receive(&mut second).await.unwrap();
        assert!(turn.is_some());
        assert!(matches!(uploads.receive(&mut first).await, Err(Unreceived::NoTurn)), "as many wait as may");
    }
}
