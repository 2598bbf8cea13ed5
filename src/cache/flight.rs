//! One fetch in flight for a key: who leads it, who waits for it, and what they learn.
//!
//! A flight moves forward only: `Looking` (the leader asks the shared tier), `Asking` (the upstream is asked), `Arriving`
//! (the head is here, the body grows), `Ended`. A leader that is dropped ends its flight as `Vacant`, which is normal:
//! the next one who waits elects itself.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use ahash::RandomState;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::entry::Entry;
use super::memory::Slot;
use crate::clock::SteadyMs;
use crate::invalidation::Position;
use crate::message::{Body, BodyError};
use crate::metrics::Shed;

mod permit;
mod room;

pub use permit::Permit;
pub use room::Held;
use room::Room;

/// Tables of flights, each behind a lock of its own.
const SHARDS: usize = 16;

/// How a flight ended, as everybody who waited for it learns.
#[derive(Clone)]
pub enum End {
    /// Here is the answer, stored: from the shared tier, the upstream, or confirmed by it.
    Stored(Arc<Slot>, Origin),
    /// The upstream failed; the failure is everybody's, and the next request elects anew.
    Failed(Arc<Failed>),
    /// The answer may not be shared: everybody goes for themselves.
    Uncacheable,
    /// Too large, or no room: everybody goes for themselves.
    TooLarge,
    /// The leader left, or was denied: somebody else may lead.
    Vacant,
    /// The leader has to wait before it may ask, and others need not: somebody else may lead.
    Yielded,
}

/// Where a stored answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The shared tier.
    Shared,
    /// The shared tier, after another pod's fetch.
    Awaited,
    /// A new answer of the upstream's.
    Fetched,
    /// The upstream's failure: for those who waited, not stored.
    Passed,
    /// The stored one, confirmed by the upstream.
    Confirmed,
    /// The stored one, stale, because the upstream failed.
    Excused,
}

/// What to say of a failed fetch.
#[derive(Debug)]
pub struct Failed {
    /// Status of the answer: 502, 503 or 504.
    pub status: StatusCode,
    /// What happened.
    pub detail: String,
    /// Why the upstream was not asked, and after how many seconds to come again, where it was not.
    pub shed: Option<(Shed, u64)>,
    /// Whether the upstream surely had nothing of the request.
    pub unheard: bool,
}

/// A head that has come, while its body still comes.
pub struct Arrival {
    /// Status, fields and lifetimes; its body is empty.
    pub head: Arc<Entry>,
    /// The body's size, where the upstream said it.
    pub length: Option<u64>,
    /// Whether it will be stored, or is for those who wait only.
    pub is_kept: bool,
}

enum Phase {
    Looking,
    Asking,
    Arriving(Arc<Arrival>),
    Ended(End),
}

/// A fetch in flight.
pub struct Flight {
    key: Arc<[u8]>,
    state: Mutex<State>,
}

/// What was known when a fetch began: when the leader stopped to wait, and turned to the upstream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begun {
    /// The position of what it brings.
    pub position: Position,
    /// The version of the invalidations, read before the position.
    pub version: u64,
    /// When that was.
    pub at: SteadyMs,
}

struct State {
    phase: Phase,
    /// Nothing before the fetch begins: what it brings is as new as anybody who joins by then can want.
    begun: Option<Begun>,
    /// The head, once it came; the leader's own client sees it even if everything is over by then.
    arrival: Option<Arc<Arrival>>,
    /// Pieces of the body, in order.
    pieces: Vec<Bytes>,
    /// Whether `pieces` is all of it, or what cut it short.
    complete: Option<Result<(), &'static str>>,
    /// The rest of a body that turned out too large: for the leader.
    rest: Option<Body>,
    /// What `pieces` hold of the room for fetches; given back when the last reader is gone.
    held: Held,
    /// Of those who wait for a change, by their numbers.
    wakers: HashMap<u64, Waker, RandomState>,
    followers: usize,
    next_id: u64,
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody, outside the lock.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }
}

impl State {
    fn register(&mut self, id: u64, cx: &Context<'_>) {
        self.wakers.entry(id).and_modify(|waker| waker.clone_from(cx.waker())).or_insert_with(|| cx.waker().clone());
    }
}

type Table = HashMap<Arc<[u8]>, Arc<Flight>, RandomState>;

/// Every flight of the process; as many at most as there are requests.
pub struct Flights {
    shards: Vec<Mutex<Table>>,
    room: Arc<Room>,
    copies: Arc<Room>,
    hasher: RandomState,
}

/// What copies of passing answers may hold together, as a divisor of the room for fetches: the slow readers of such answers
/// leave the fetches theirs.
const COPIES_SHARE: usize = 4;

/// Most who wait for one flight, or read what it brings, its leader's own client among them: fewer than a process usually
/// has connections, so that one key that everybody wants leaves room for the others.
pub const FOLLOWERS: usize = 8_192;

/// What joining a flight gave.
pub enum Joined {
    /// Nobody flies yet: this request leads.
    Lead(Permit),
    /// Somebody does.
    Follow(Follower),
    /// Somebody does, and as many as may wait for it.
    Full,
}

impl Flights {
    /// No flights yet; their bodies may hold `fill_memory` bytes together.
    pub fn new(fill_memory: usize) -> Arc<Self> {
        let hasher = RandomState::new();
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Table::with_hasher(hasher.clone()))).collect(),
            room: Room::new(fill_memory),
            copies: Room::new(fill_memory / COPIES_SHARE),
            hasher,
        })
    }

    /// Joins the flight for `key`, or starts one. `version` is that of the invalidations that the request knows.
    ///
    /// A fetch that has begun and that `usable` turns down (an invalidation has overtaken it, or might have) is left to
    /// those who joined it before; a new flight takes its place in the table.
    pub fn join(self: &Arc<Self>, key: &[u8], version: u64, usable: impl FnOnce(&Begun) -> bool) -> Joined {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key) {
            let (begun, followers) = {
                let state = flight.lock();
                (state.begun, state.followers)
            };
            if begun.as_ref().is_none_or(usable) {
                let is_full = followers >= FOLLOWERS;
                return if is_full { Joined::Full } else { Joined::Follow(Follower::new(Arc::clone(flight), version)) };
            }
        }
        let key: Arc<[u8]> = key.into();
        let flight = Arc::new(Flight {
            key: Arc::clone(&key),
            state: Mutex::new(State {
                phase: Phase::Looking,
                begun: None,
                arrival: None,
                pieces: Vec::new(),
                complete: None,
                rest: None,
                held: self.room.enter(),
                wakers: HashMap::default(),
                followers: 0,
                next_id: 0,
            }),
        });
        shard.insert(key, Arc::clone(&flight));
        Joined::Lead(Permit::new(flight, Arc::clone(self)))
    }

    /// A place in the room for copies.
    pub fn room(&self) -> Held {
        self.copies.enter()
    }

    /// Whether somebody flies for `key`.
    pub fn is_flying(&self, key: &[u8]) -> bool {
        self.shard(key).contains_key(key)
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Table> {
        // By other bits than those by which a table finds a bucket.
        let index = (self.hasher.hash_one(key) >> 32) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, flight: &Arc<Flight>, key: &[u8]) {
        let mut shard = self.shard(key);
        if shard.get(key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            shard.remove(key);
        }
    }
}

/// What somebody who waits sees next.
pub enum Seen {
    /// The shared tier has nothing; the upstream is being asked.
    Asking,
    /// The head is here and the body's size is known, or this is the leader's client.
    Arriving(Arc<Arrival>),
    /// It is over.
    Ended(End),
}

/// A place among those who wait for a flight.
pub struct Follower {
    flight: Arc<Flight>,
    id: u64,
    saw_asking: bool,
    leads: bool,
    /// Of the invalidations that it knew when it joined.
    version: u64,
}

impl Follower {
    fn new(flight: Arc<Flight>, version: u64) -> Self {
        let id = {
            let mut state = flight.lock();
            state.followers += 1;
            state.next_id += 1;
            state.next_id
        };
        Self { flight, id, saw_asking: false, leads: false, version }
    }

    /// Marks the leader's own client, who takes what comes even where its size is unknown.
    pub fn leading(mut self) -> Self {
        self.leads = true;
        self.saw_asking = true;
        self
    }

    /// Whether an invalidation came between the beginning of the fetch and this request's joining it. What came later
    /// is no reason to refuse what was asked for before.
    pub fn knows_more(&self) -> bool {
        self.flight.lock().begun.is_some_and(|begun| self.version > begun.version)
    }

    /// Waits for the next thing worth knowing. Each phase is seen once; with a body of unknown size only its end.
    pub async fn next(&mut self) -> Seen {
        let (saw_asking, leads, id) = (self.saw_asking, self.leads, self.id);
        let seen = poll_fn(|cx| {
            let mut state = self.flight.lock();
            let seen = match &state.phase {
                Phase::Ended(End::TooLarge | End::Vacant | End::Failed(_)) if leads && state.arrival.is_some() => {
                    state.arrival.clone().map(Seen::Arriving)
                }
                Phase::Ended(end) => Some(Seen::Ended(end.clone())),
                Phase::Arriving(arrival) if leads || arrival.length.is_some() => {
                    Some(Seen::Arriving(Arc::clone(arrival)))
                }
                Phase::Asking | Phase::Arriving(_) if !saw_asking => Some(Seen::Asking),
                Phase::Looking | Phase::Asking | Phase::Arriving(_) => None,
            };
            seen.map_or_else(
                || {
                    state.register(id, cx);
                    Poll::Pending
                },
                Poll::Ready,
            )
        })
        .await;
        self.saw_asking |= matches!(seen, Seen::Asking);
        seen
    }

    /// The body as it comes.
    pub fn body(self, length: Option<u64>) -> FlightBody {
        FlightBody { follower: self, read: 0, length, bytes: 0, rest: None, ended: false }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = self.flight.lock();
        state.followers -= 1;
        state.wakers.remove(&self.id);
    }
}

/// A flight's body, read at its reader's own pace; the pieces are shared.
pub struct FlightBody {
    follower: Follower,
    read: usize,
    length: Option<u64>,
    bytes: u64,
    rest: Option<Body>,
    ended: bool,
}

impl HttpBody for FlightBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(rest) = &mut this.rest {
            return Pin::new(rest).poll_frame(cx);
        }
        if this.ended {
            return Poll::Ready(None);
        }
        let id = this.follower.id;
        let mut state = this.follower.flight.lock();
        if let Some(piece) = state.pieces.get(this.read).cloned() {
            this.read += 1;
            this.bytes += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.complete {
            None => {
                state.register(id, cx);
                Poll::Pending
            }
            Some(Err(why)) => Poll::Ready(Some(Err(why.into()))),
            Some(Ok(())) => match state.rest.take() {
                Some(mut rest) => {
                    drop(state);
                    let next = Pin::new(&mut rest).poll_frame(cx);
                    this.rest = Some(rest);
                    next
                }
                None => {
                    drop(state);
                    this.ended = true;
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length.saturating_sub(self.bytes)))
    }
}

#[cfg(test)]
mod tests;
