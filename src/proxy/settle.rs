//! Answers that say what their requests cost: their limits are settled as they pass, unchanged and at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::upstream::Failure;
use crate::limit::{Head, Meter, Tabs};
use crate::message::{Answer, Body, BodyError};
use crate::metrics::Outcome;

/// Settles what a request has taken by the answer that its client gets, wherever that comes from.
pub(crate) fn by_answer(tabs: Tabs, answer: &mut Answer, outcome: Outcome, unheard: bool) {
    // The service had nothing of it, and the answer is ours.
    if unheard || matches!(outcome, Outcome::Denied | Outcome::Shed | Outcome::Purged) {
        return tabs.forgive();
    }
    let head = Head { status: answer.status, fields: &answer.fields, prepared: &answer.prepared };
    if let Some(meter) = tabs.answered(&head) {
        answer.body = metered(std::mem::take(&mut answer.body), meter);
    }
}

/// Settles what a fetch has taken by the service's answer.
pub(crate) fn by_response(tabs: Tabs, response: Response<Body>) -> Response<Body> {
    let head = Head { status: response.status(), fields: response.headers(), prepared: &[] };
    match tabs.answered(&head) {
        Some(meter) => response.map(|body| metered(body, meter)),
        None => response,
    }
}

/// Settles what a fetch has taken that got no answer: nothing, if the service had nothing of it.
pub(crate) fn by_failure(tabs: Tabs, failure: &Failure) {
    if !failure.is_unknown() {
        tabs.forgive();
    }
}

/// The body, which the meter reads as it passes.
fn metered(body: Body, mut meter: Meter) -> Body {
    match body {
        body if body.is_end_stream() => {
            meter.end();
            return body;
        }
        Body::Empty => {}
        Body::Full(bytes) => {
            meter.feed(&bytes);
            meter.end();
            return Body::Full(bytes);
        }
        inner @ (Body::Hyper(_) | Body::Stream(_)) => return Body::stream(Metered { inner, meter: Some(meter) }),
    }
    Body::Empty
}

struct Metered {
    inner: Body,
    /// Until the end.
    meter: Option<Meter>,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(meter), Some(piece)) = (&mut this.meter, frame.data_ref()) {
                    meter.feed(piece);
                }
            }
            // Cut off: what was read of it counts.
            Poll::Ready(Some(Err(_))) => this.meter = None,
            Poll::Ready(None) | Poll::Pending => {}
        }
        // Who writes the answer may not ask again behind the last piece.
        let is_over = matches!(polled, Poll::Ready(None)) || this.inner.is_end_stream();
        if is_over && let Some(meter) = this.meter.take() {
            meter.end();
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
