//! A panic in one request ends that request only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;

use crate::message::Answer;

/// Polls the future of a request; a panic becomes `None`. The future must not be polled again after that.
pub(super) fn poll<F: Future<Output = Answer>>(call: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
    // Unwind safety: the future is dropped next, and what requests share is behind locks that poisoning guards.
    match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
        Ok(polled) => polled.map(Some),
        Err(_) => Poll::Ready(None),
    }
}

/// The answer to a request whose service panicked; its guards have counted it already.
pub(super) fn panicked() -> Answer {
    let mut answer = Answer::new(StatusCode::INTERNAL_SERVER_ERROR);
    answer.body = String::from("internal error\n").into();
    answer
}
