//! Requests that read by their body: QUERY, and POST where a route says so.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Body as HttpBody;
use sha2::{Digest, Sha256};

use super::body::Patient;
use crate::cache::key;
use crate::config::CacheRule;
use crate::message::{Again, Body, BodyError};

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

/// Reads the body of a request whose answers the route keys by it; the body comes back as it was. Between its pieces it may
/// be silent for `idle`.
///
/// # Errors
/// What ended the body early.
pub(crate) async fn read(
    rule: Option<&CacheRule>,
    method: &Method,
    body: Body,
    idle: Duration,
) -> Result<(Option<Content>, Body), BodyError> {
    let exact = body.size_hint().exact();
    if !keys(rule, method) || exact.is_some_and(|length| length > MAX_CONTENT_BYTES as u64) {
        return Ok((None, body));
    }
    let mut body = Patient::request(body, idle);
    let mut read = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => read.extend_from_slice(&data),
            // Trailers are no part of the key.
            Err(trailers) => {
                return Ok((None, Again::body(read.freeze(), Some(trailers), body)));
            }
        }
        if read.len() > MAX_CONTENT_BYTES {
            return Ok((None, Again::body(read.freeze(), None, body)));
        }
    }
    let bytes = read.freeze();
    Ok((Content::keying(rule, method, bytes.clone()), bytes.into()))
}

fn keys(rule: Option<&CacheRule>, method: &Method) -> bool {
    rule.is_some_and(|rule| rule.key_body.contains(method))
}
