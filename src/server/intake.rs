//! A request's body on its way from the connection to the service, one piece at a time.
//!
//! The connection's own task moves the pieces, and only when they are asked for; whoever holds the body may live in
//! another task, and may outlive the request. At most one piece waits here, beside what was read ahead.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::message::{Body, BodyError, BodyFault};

use super::framing::{Decoded, Decoder};
use super::head::Framing;
use super::wire::{BODY_READ, Transport, Wire};

/// RFC 9110 section 15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The connection's side of a request's body.
pub(super) struct Intake {
    decoder: Decoder,
    sink: Option<Sink>,
    waits: Waits,
    broken: bool,
}

/// Whether the client holds the body back until it reads `100 Continue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// It does not.
    No,
    /// It does, until the service asks for the body.
    Yes,
    /// It did, and its answer came first: nobody knows whether it will send the body.
    Unknown,
}

impl Intake {
    /// The body behind a head, and the side that fills it. A short one that is here already needs no filling.
    pub(super) fn open<T: Transport>(framing: Framing, expects_continue: bool, wire: &mut Wire<T>) -> (Self, Body) {
        let whole = match framing {
            Framing::None => Some(Body::Empty),
            Framing::Length(length) => usize::try_from(length)
                .ok()
                .filter(|length| *length <= wire.input.len())
                .map(|length| wire.input.split_to(length).freeze().into()),
            Framing::Chunked => None,
        };
        match whole {
            Some(body) => (Self::new(Framing::None, None, Waits::No), body),
            None => {
                let decoder = Decoder::new(framing);
                let shared = Arc::new(Shared(Mutex::new(Slot { left: decoder.remaining(), ..Slot::default() })));
                let sink = Sink(Arc::clone(&shared));
                let waits = if expects_continue { Waits::Yes } else { Waits::No };
                (Self::new(framing, Some(sink), waits), Body::stream(Piped(shared)))
            }
        }
    }

    fn new(framing: Framing, sink: Option<Sink>, waits: Waits) -> Self {
        Self { decoder: Decoder::new(framing), sink, waits, broken: false }
    }

    /// Whether the connection stands right behind the body.
    pub(super) fn is_done(&self) -> bool {
        self.decoder.is_done() && !self.broken
    }

    /// Whether the rest of the body is surely at most `bound` bytes and on its way.
    pub(super) fn ends_within(&self, bound: u64) -> bool {
        let left = self.decoder.remaining();
        !self.broken && self.waits == Waits::No && left.is_some_and(|left| left <= bound)
    }

    /// The answer has begun: `100 Continue` is no longer possible.
    pub(super) fn answered(&mut self) {
        if self.waits == Waits::Yes {
            self.waits = Waits::Unknown;
        }
    }

    /// Moves what the service asked for. Ready once the client is known to have left.
    pub(super) fn poll<T: Transport>(&mut self, wire: &mut Wire<T>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(sink) = self.sink.as_ref().filter(|sink| sink.poll_asked(cx).is_ready()) else {
                return wire.poll_left(cx);
            };
            if self.waits == Waits::Yes {
                self.waits = Waits::No;
                wire.output.buffer().extend_from_slice(CONTINUE);
            }
            match self.decoder.decode(&mut wire.input) {
                Ok(Decoded::Data(piece)) => sink.put(Frame::data(piece)),
                Ok(Decoded::Trailers(trailers)) => sink.put(Frame::trailers(trailers)),
                Ok(Decoded::End) => {}
                Ok(Decoded::More) => {
                    if let Poll::Ready(Err(_)) = wire.poll_flush(cx) {
                        return Poll::Ready(());
                    }
                    match wire.poll_fill(BODY_READ, cx) {
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                        Poll::Ready(Ok(count)) => wire.coming.moved(count),
                        Poll::Pending => {
                            std::task::ready!(wire.coming.poll_waited(cx));
                            wire.stood_still = true;
                            self.fail(BodyFault::Silent);
                        }
                    }
                }
                Err(_) => self.fail(BodyFault::Malformed),
            }
            if self.decoder.is_done()
                && let Some(sink) = self.sink.take()
            {
                wire.coming.moved(wire.limits.body_progress);
                sink.end(Ok(()));
            }
        }
    }

    /// Throws away what is here of a body that nobody reads any more; whether it was the whole.
    pub(super) fn skip<T: Transport>(&mut self, wire: &mut Wire<T>) -> bool {
        if self.sink.as_ref().is_some_and(Sink::is_abandoned) {
            self.sink = None;
        }
        while self.sink.is_none() && !self.broken {
            match self.decoder.decode(&mut wire.input) {
                Ok(Decoded::End) => break,
                Ok(Decoded::More) => return false,
                Ok(_) => {}
                Err(_) => self.broken = true,
            }
        }
        self.is_done()
    }

    /// Takes the body from whoever still reads it: its answer is complete.
    pub(super) fn abandon(&mut self) {
        self.sink = None;
    }

    fn fail(&mut self, fault: BodyFault) {
        self.broken = true;
        if let Some(sink) = self.sink.take() {
            sink.end(Err(fault));
        }
    }
}

#[derive(Default)]
struct Slot {
    frame: Option<Frame<Bytes>>,
    end: Option<Result<(), BodyFault>>,
    left: Option<u64>,
    asked: bool,
    abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Shared(Mutex<Slot>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().expect("no panic while held")
    }
}

/// The side that puts pieces in; dropped before the end, it leaves a body that was cut short.
struct Sink(Arc<Shared>);

impl Sink {
    /// Ready while the reader waits for a piece, or has room for the next.
    fn poll_asked(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.0.lock();
        if slot.asked && slot.frame.is_none() && !slot.abandoned {
            return Poll::Ready(());
        }
        if !slot.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            slot.writer = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn is_abandoned(&self) -> bool {
        self.0.lock().abandoned
    }

    fn put(&self, frame: Frame<Bytes>) {
        let mut slot = self.0.lock();
        if let (Some(left), Some(piece)) = (slot.left, frame.data_ref()) {
            slot.left = Some(left.saturating_sub(piece.len() as u64));
        }
        slot.frame = Some(frame);
        wake(slot, |slot| &mut slot.reader);
    }

    fn end(self, end: Result<(), BodyFault>) {
        let mut slot = self.0.lock();
        slot.end = Some(end);
        wake(slot, |slot| &mut slot.reader);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.end.get_or_insert(Err(BodyFault::Left));
        wake(slot, |slot| &mut slot.reader);
    }
}

/// Wakes outside the lock.
fn wake(mut slot: MutexGuard<'_, Slot>, side: impl Fn(&mut Slot) -> &mut Option<Waker>) {
    let waker = side(&mut slot).take();
    drop(slot);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The service's side.
struct Piped(Arc<Shared>);

impl HttpBody for Piped {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut slot = self.0.lock();
        if let Some(frame) = slot.frame.take() {
            wake(slot, |slot| &mut slot.writer);
            return Poll::Ready(Some(Ok(frame)));
        }
        match slot.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(fault)) => Poll::Ready(Some(Err(fault.into()))),
            None => {
                slot.asked = true;
                slot.reader = Some(cx.waker().clone());
                wake(slot, |slot| &mut slot.writer);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let slot = self.0.lock();
        slot.frame.is_none() && slot.end == Some(Ok(()))
    }

    fn size_hint(&self) -> SizeHint {
        let slot = self.0.lock();
        let waiting = slot.frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        slot.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + waiting))
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        slot.abandoned = true;
        slot.frame = None;
        wake(slot, |slot| &mut slot.writer);
    }
}
