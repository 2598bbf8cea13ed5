//! A body on its way to the client: its account is open until its last byte, and its silence has a limit.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::exchange::Exchange;
use super::headers;
use crate::message::{Answer, Body, BodyError, BodyFault};

/// Closes the account with the answer's last byte: at once where all of it is here.
pub fn settle(mut answer: Answer, mut exchange: Exchange, idle: Duration) -> Answer {
    match &answer.body {
        Body::Empty => {}
        Body::Full(bytes) => exchange.bytes = bytes.len() as u64,
        Body::Hyper(_) | Body::Stream(_) => {
            let inner = std::mem::take(&mut answer.body);
            answer.body = Body::stream(Metered { inner: Patient::new(inner, idle), exchange });
        }
    }
    answer
}

struct Metered {
    inner: Patient,
    exchange: Exchange,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.exchange.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
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

/// A body of either side's that may not be silent for longer than `idle`; its trailers carry nothing forbidden.
///
/// The timer is armed only once the body is found silent, so that a body which is there costs none.
pub struct Patient {
    inner: Body,
    idle: Duration,
    silence: Option<Pin<Box<Sleep>>>,
    is_silent: bool,
    is_request: bool,
}

impl Patient {
    /// `inner`, which may be silent for `idle`.
    pub fn new(inner: Body, idle: Duration) -> Self {
        Self { inner, idle, silence: None, is_silent: false, is_request: false }
    }

    /// A client's body, which may be silent for `idle`; [`Duration::MAX`] is for ever.
    pub fn request(inner: Body, idle: Duration) -> Body {
        match inner {
            Body::Empty | Body::Full(_) => inner,
            Body::Hyper(_) | Body::Stream(_) => Body::stream(Self { is_request: true, ..Self::new(inner, idle) }),
        }
    }

    /// The body itself.
    pub fn into_inner(self) -> Body {
        self.inner
    }
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.is_silent = false;
                Poll::Ready(Some(Ok(match frame.into_trailers() {
                    Ok(mut trailers) => {
                        headers::filter_trailers(&mut trailers);
                        Frame::trailers(trailers)
                    }
                    Err(frame) => frame,
                })))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending if this.idle == Duration::MAX => Poll::Pending,
            Poll::Pending => {
                let idle = this.idle;
                let silence = this.silence.get_or_insert_with(|| Box::pin(sleep(idle)));
                if !this.is_silent {
                    this.is_silent = true;
                    silence.as_mut().reset(Instant::now() + idle);
                }
                let is_request = this.is_request;
                silence.as_mut().poll(cx).map(|()| {
                    Some(Err(match is_request {
                        true => BodyFault::Silent.into(),
                        false => "the upstream's body was silent for too long".into(),
                    }))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
