//! Requests that read by their body: QUERY, and POST where a route says so.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::{Body as HttpBody, Frame, SizeHint};
use sha2::{Digest, Sha256};

use crate::cache::key;
use crate::config::CacheRule;
use crate::message::{Body, BodyError};

/// Longest body that is read into a key. A longer one's request goes past the cache.
const MAX_CONTENT_BYTES: usize = 64 << 10;

/// A body that is part of the key.
#[derive(Clone)]
pub(crate) struct Content {
    /// All of it.
    pub(crate) bytes: Bytes,
    method: Method,
    digest: [u8; 32],
}

impl Content {
    /// A body, where the route keys a request with this method by it.
    pub(crate) fn keying(rule: Option<&CacheRule>, method: &Method, bytes: Bytes) -> Option<Self> {
        let is_keyed = keys(rule, method) && bytes.len() <= MAX_CONTENT_BYTES;
        is_keyed.then(|| Self { digest: Sha256::digest(&bytes).into(), bytes, method: method.clone() })
    }

    /// What of it is part of the key.
    pub(crate) fn keyed(&self) -> key::Content<'_> {
        key::Content { method: self.method.as_str(), digest: &self.digest }
    }

    /// The body as it is forwarded.
    pub(crate) fn body(&self) -> Body {
        self.bytes.clone().into()
    }
}

/// Reads the body of a request whose answers the route keys by it; the body comes back as it was.
///
/// # Errors
/// What ended the body early.
pub(crate) async fn read(
    rule: Option<&CacheRule>,
    method: &Method,
    mut body: Body,
) -> Result<(Option<Content>, Body), BodyError> {
    let exact = body.size_hint().exact();
    if !keys(rule, method) || exact.is_some_and(|length| length > MAX_CONTENT_BYTES as u64) {
        return Ok((None, body));
    }
    let mut frames = VecDeque::new();
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame?;
        let data = frame.data_ref().map(|data| bytes.extend_from_slice(data));
        frames.push_back(frame);
        // Trailers are no part of the key.
        if data.is_none() || bytes.len() > MAX_CONTENT_BYTES {
            return Ok((None, Body::stream(Again { frames, rest: body })));
        }
    }
    let bytes = bytes.freeze();
    Ok((Content::keying(rule, method, bytes.clone()), bytes.into()))
}

fn keys(rule: Option<&CacheRule>, method: &Method) -> bool {
    rule.is_some_and(|rule| rule.key_body.contains(method))
}

/// A body of which some was read already.
struct Again {
    frames: VecDeque<Frame<Bytes>>,
    rest: Body,
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        self.rest.size_hint().exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(read + rest))
    }
}
