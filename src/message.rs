//! What server, proxy and cache hand each other: one body type and one answer type.

pub mod chunked;
pub mod interim;
pub mod question;

use std::collections::VecDeque;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What ends a body early: a cut connection, a deadline, a framing error.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// How a request's body ended early; what its reader finds behind a [`BodyError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// It broke its framing: the request deserves 400.
    Malformed,
    /// It was silent for longer than `body_idle`: 408.
    Silent,
    /// The client left, or the answer was complete before the body was.
    Left,
}

impl std::fmt::Display for BodyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the request body is malformed",
            Self::Silent => "the request body stopped arriving",
            Self::Left => "the request body was cut short",
        })
    }
}

impl Error for BodyFault {}

impl BodyFault {
    /// What was wrong, wherever in the chain of errors it stands; a client that left, if nothing else is said.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        match error.downcast_ref() {
            Some(fault) => *fault,
            None => error.source().map_or(Self::Left, Self::of),
        }
    }
}

/// Goes along with a request whose client waits to be asked for its body (RFC 9110 section 10.1.1).
#[derive(Debug, Clone, Copy)]
pub struct Expected;

/// A body of ours that arrives in pieces.
pub type BoxBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A request's or an answer's body: chunks of [`Bytes`], never copied, then perhaps trailers.
#[derive(Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// All of it, already here.
    Full(Bytes),
    /// From a hyper connection (HTTP/2 in, or the upstream).
    Hyper(hyper::body::Incoming),
    /// Anything else that arrives in pieces.
    Stream(BoxBody),
}

impl Body {
    /// Wraps a body that arrives in pieces.
    pub fn stream(body: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

/// Pieces that are all here already, one behind the other.
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl Pieces {
    /// A body of these pieces.
    pub fn body(pieces: VecDeque<Bytes>) -> Body {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Body::stream(Self { pieces, left })
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A body of which some was read already.
pub struct Again {
    read: Bytes,
    trailers: Option<Frame<Bytes>>,
    rest: Body,
}

impl Again {
    /// What was read of a body, trailers included, and the rest of it.
    pub fn body(read: Bytes, trailers: Option<Frame<Bytes>>, rest: Body) -> Body {
        Body::stream(Self { read, trailers, rest })
    }
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read)))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(trailers))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint().exact();
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(self.read.len() as u64 + rest))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(_) => {
                let Self::Full(bytes) = std::mem::take(&mut *self) else { return Poll::Ready(None) };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Hyper(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::Hyper(incoming) => incoming.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Hyper(incoming) => incoming.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// An answer on its way to the client.
///
/// `prepared` holds whole field lines (`name: value\r\n`, names in lower case) that were serialised when the entry was
/// stored, so that a hit over HTTP/1 copies them as they are; `fields` are added behind them. Neither holds hop-by-hop
/// fields, `Content-Length` or `Transfer-Encoding`: framing is the server's own, from the body's size, except that an
/// answer without a body (to HEAD, or 304) may carry `Content-Length` in `fields` or `prepared` to say what the size
/// would have been.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Serialised field lines, each ended by CRLF.
    pub prepared: Bytes,
    /// Lines that change from hit to hit.
    pub lines: Lines,
    /// Further fields.
    pub fields: HeaderMap,
    /// Body.
    pub body: Body,
    /// The connection's other end, where `status` is 101: bytes go to and fro until either side ends.
    pub tunnel: Option<Tunnel>,
}

impl Answer {
    /// An answer with this status, no fields and no body.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            prepared: Bytes::new(),
            lines: Lines::default(),
            fields: HeaderMap::new(),
            body: Body::Empty,
            tunnel: None,
        }
    }
}

/// Room for a hit's `age` and `cache-status`, 120 bytes at most, and for what most limits say of themselves.
const LINES_BYTES: usize = 192;

/// A few short field lines (`name: value\r\n`), in place: a hit allocates nothing for them.
pub struct Lines {
    bytes: [u8; LINES_BYTES],
    length: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { bytes: [0; LINES_BYTES], length: 0 }
    }
}

impl Lines {
    /// Appends text as it stands; what does not fit is a bug of the caller's and left out whole.
    pub fn push(&mut self, text: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + text.len()) {
            room.copy_from_slice(text);
            self.length += text.len();
        } else {
            debug_assert!(false, "the lines of a hit have a known greatest length");
        }
    }

    /// Appends text in pieces, if all of it fits; whether it did.
    pub fn push_all(&mut self, pieces: &[&[u8]]) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let fits = length <= LINES_BYTES - self.length;
        if fits {
            pieces.iter().for_each(|piece| self.push(piece));
        }
        fits
    }

    /// Keeps the lines that `is_kept` is true of.
    pub fn retain(&mut self, is_kept: impl Fn(&[u8]) -> bool) {
        let mut kept = Self::default();
        for line in self.as_bytes().split_inclusive(|byte| *byte == b'\n').filter(|line| is_kept(line)) {
            kept.push(line);
        }
        *self = kept;
    }

    /// The lines.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Bytes in both directions, as an upgraded connection has them.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// The upstream's side of an upgraded connection, and how long it may be silent.
pub struct Tunnel {
    /// The upstream's side.
    pub upstream: Box<dyn Duplex>,
    /// Longest silence in both directions together before the tunnel is closed.
    pub idle: std::time::Duration,
}

/// Who sent a request and over what.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The transport's remote address.
    pub address: std::net::SocketAddr,
    /// Whether the connection was encrypted.
    pub encrypted: bool,
}
