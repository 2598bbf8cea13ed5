//! What the leader of a flight does with it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Arrival, Begun, End, Flight, Flights, Follower, Phase};
use crate::message::Body;

/// The right to fetch for everybody who waits; ends the flight as [`End::Vacant`] when dropped.
pub struct Permit {
    flight: Arc<Flight>,
    flights: Arc<Flights>,
    /// Another key under which it is joined.
    also: Option<Arc<[u8]>>,
    ended: bool,
}

impl Permit {
    pub(super) fn new(flight: Arc<Flight>, flights: Arc<Flights>) -> Self {
        Self { flight, flights, also: None, ended: false }
    }

    /// The key that is fetched.
    pub fn key(&self) -> &[u8] {
        &self.flight.key
    }

    /// Lets those join who ask for what is fetched by this key, under which the answer belongs; unless a fetch of that
    /// key is in flight already.
    pub fn also_by(&mut self, key: &[u8]) {
        let mut shard = self.flights.shard(key);
        if !shard.contains_key(key) {
            let key: Arc<[u8]> = key.into();
            shard.insert(Arc::clone(&key), Arc::clone(&self.flight));
            self.also = Some(key);
        }
    }

    /// A place among those who wait, for the leader's own client.
    pub fn follower(&self) -> Follower {
        Follower::new(Arc::clone(&self.flight), 0)
    }

    /// The fetch begins: who knows more from here on has another.
    pub fn begin(&self, begun: Begun) {
        self.flight.lock().begun = Some(begun);
    }

    /// The shared tier has nothing: the upstream is asked.
    pub fn asking(&self) {
        self.flight.change(|state| state.phase = Phase::Asking);
    }

    /// The head is here.
    pub fn arriving(&self, arrival: Arrival) {
        let arrival = Arc::new(arrival);
        self.flight.change(|state| {
            state.arrival = Some(Arc::clone(&arrival));
            state.phase = Phase::Arriving(arrival);
        });
    }

    /// Takes room for `bytes` of the body, if there is any.
    pub fn reserve(&self, bytes: usize) -> bool {
        self.flight.lock().held.grow(bytes)
    }

    /// A piece of the body is here; room for it has been reserved.
    pub fn grow(&self, piece: Bytes) {
        self.flight.change(|state| state.pieces.push(piece));
    }

    /// All of the body, copied together so that it holds on to no buffer larger than itself.
    pub fn assemble(&self) -> Bytes {
        let state = self.flight.lock();
        let length = state.pieces.iter().map(Bytes::len).sum::<usize>();
        let mut whole = BytesMut::with_capacity(length);
        for piece in &state.pieces {
            whole.extend_from_slice(piece);
        }
        whole.freeze()
    }

    /// Ends the flight.
    pub fn end(mut self, end: End) {
        self.finish(end, Ok(()));
    }

    /// Ends the flight in the middle of its body: so for those who have seen none of it.
    pub fn cut(mut self, why: &'static str, end: End) {
        self.finish(end, Err(why));
    }

    /// Ends the flight because the body is too large to hold: the leader's client gets the rest of it directly.
    pub fn overflow(mut self, rest: Body) {
        self.flight.change(|state| state.rest = Some(rest));
        self.finish(End::TooLarge, Ok(()));
    }

    fn finish(&mut self, end: End, body: Result<(), &'static str>) {
        self.ended = true;
        self.flights.remove(&self.flight, &self.flight.key);
        if let Some(key) = &self.also {
            self.flights.remove(&self.flight, key);
        }
        self.flight.change(|state| {
            state.phase = Phase::Ended(end);
            state.complete = Some(body);
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(End::Vacant, Err("the fetch was given up"));
        }
    }
}
