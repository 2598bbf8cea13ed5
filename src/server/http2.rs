//! One HTTP/2 connection: hyper's framing and flow control, our bounds, and requests in HTTP/1's shape.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, request};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::MissedTickBehavior;

use crate::config::ServerLimits;
use crate::message::interim::Interim;
use crate::message::{Answer, Body, BodyError, BodyFault, Peer};

use super::head::{self, Refusal};
use super::http1::Http2;
use super::wire::{Timer, Transport};
use super::{Service, guard};

/// Streams open at once on a connection.
const STREAMS_MAX: u32 = 128;

/// Bytes of a request body that a client may send ahead, on one stream and on all of them.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// Bytes of an answer that wait for one stream's window.
const SEND_MAX: usize = 64 * 1024;

/// Streams that were reset before they were accepted; more ends the connection (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;

/// Streams that were reset for the client's own errors; more ends the connection (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 100;

/// How often a quiet client is asked for a sign of life, and how long it has to give one.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The watch looks this often within the shortest deadline.
const LOOKS_PER_DEADLINE: u32 = 4;

/// Serves a connection to its end.
pub(super) async fn serve<T: Transport, S: Service>(http2: Http2<T>, service: S) {
    let Http2 { wire, mut context } = http2;
    let (limits, peer) = (context.limits, context.peer);
    let activity = Arc::new(Activity::default());
    let seen = Arc::clone(&activity);
    let respond = service_fn(move |request| {
        let (service, stream) = (service.clone(), Stream::begin(&activity));
        async move { Ok::<_, Infallible>(respond(&service, request, peer, limits, stream).await) }
    });
    let io = TokioIo::new(Rewound { io: wire.io, read: wire.input });
    let mut connection = pin!(builder(&limits).serve_connection(io, respond));
    let mut watch = Watch::new(limits);
    let mut looks = tokio::time::interval(watch.every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "an HTTP/2 connection ended early");
                }
                return;
            }
            () = context.drain.draining(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = looks.tick() => match watch.look(&seen) {
                Verdict::Fine => {}
                Verdict::Unused if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Unused => {}
                Verdict::Stalled => return,
            },
        }
    }
}

fn builder(limits: &ServerLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

async fn respond<S: Service>(
    service: &S,
    request: Request<Incoming>,
    peer: Peer,
    limits: ServerLimits,
    stream: Stream,
) -> Response<AnswerBody> {
    let (mut parts, body) = request.into_parts();
    let head_only = parts.method == Method::HEAD;
    let answer = match normalise(&mut parts) {
        Err(refusal) => {
            let mut answer = service.refuse(refusal.status, refusal.why);
            if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
                answer.fields.entry(header::ALLOW).or_insert(head::ALLOWED);
            }
            answer
        }
        Ok(()) => {
            let body = if body.is_end_stream() {
                Body::Empty
            } else {
                Body::stream(Asked { body, idle: limits.body_idle, silence: Timer::default() })
            };
            let mut call = pin!(service.call(Request::from_parts(parts, body), peer, Interim::none()));
            std::future::poll_fn(|cx| guard::poll(call.as_mut(), cx)).await.unwrap_or_else(guard::panicked)
        }
    };
    response(answer, head_only, stream)
}

/// Gives a request the shape that it would have over HTTP/1 (RFC 9113 section 8.3).
fn normalise(parts: &mut request::Parts) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method is not allowed"));
    }
    let path = match parts.uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => path.clone(),
        Some(path) if path.as_str() == "*" && parts.method == Method::OPTIONS => path.clone(),
        None if parts.method == Method::OPTIONS => PathAndQuery::from_static("*"),
        _ => return Err(Refusal::bad("the request target does not begin with a slash")),
    };
    let fields = &mut parts.headers;
    let mut hosts = fields.get_all(header::HOST).iter();
    let host = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (_, _, Some(_)) => return Err(Refusal::bad("there is more than one Host")),
        (None, None, _) => return Err(Refusal::bad("there is no Host")),
        (Some(authority), Some(host), _) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(Refusal::bad("the Host differs from the authority"));
        }
        (Some(authority), _, _) => {
            HeaderValue::from_str(authority.as_str()).map_err(|_| Refusal::bad("the Host is malformed"))?
        }
        (None, Some(host), _) => host.clone(),
    };
    if !head::is_host(host.as_bytes()) {
        return Err(Refusal::bad("the Host is malformed"));
    }
    fields.insert(header::HOST, host);
    if let Some(expected) = fields.remove(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "the expectation is unknown"));
    }
    join_cookies(fields)?;
    parts.uri = Uri::from(path);
    Ok(())
}

/// RFC 9113 section 8.2.3: HTTP/2 may split what HTTP/1 has in one line.
fn join_cookies(fields: &mut http::HeaderMap) -> Result<(), Refusal> {
    let cookies: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined =
            HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_err(|_| Refusal::bad("a cookie is malformed"))?;
        fields.insert(header::COOKIE, joined);
    }
    Ok(())
}

fn response(mut answer: Answer, head_only: bool, stream: Stream) -> Response<AnswerBody> {
    if answer.status.is_informational() {
        // HTTP/2 has no upgrade (RFC 9113 section 8.6).
        answer = guard::panicked();
    }
    let mut fields = answer.fields;
    fields.remove(header::TRANSFER_ENCODING);
    fields.remove(header::CONNECTION);
    let lines = Bytes::copy_from_slice(answer.lines.as_bytes());
    for (name, value) in prepared(&answer.prepared).chain(prepared(&lines)) {
        fields.append(name, value);
    }
    let bodiless = head_only || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = answer.body.size_hint().exact().filter(|length| *length > 0);
    let body = if bodiless { Body::Empty } else { answer.body };
    if !bodiless {
        fields.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length
        && answer.status != StatusCode::NO_CONTENT
    {
        fields.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    let mut response = Response::new(AnswerBody { body, handed: false, stream });
    *response.status_mut() = answer.status;
    *response.headers_mut() = fields;
    response
}

/// The fields in serialised lines.
fn prepared(lines: &Bytes) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    lines.split(|b| *b == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r")?;
        let colon = memchr::memchr(b':', line)?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_maybe_shared(lines.slice_ref(line[colon + 1..].trim_ascii())).ok()?;
        Some((name, value))
    })
}

/// What happens on a connection, as far as its deadlines need to know.
#[derive(Default)]
struct Activity {
    /// Requests between head and last byte.
    open: AtomicUsize,
    /// Answers of which the client has yet to take what was made.
    unread: AtomicUsize,
    /// Grows with everything that moves.
    moves: AtomicU64,
}

/// A request, from its head until its answer has been handed over.
struct Stream(Arc<Activity>);

impl Stream {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.moves.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.moves.fetch_add(1, Ordering::Relaxed);
    }
}

enum Verdict {
    Fine,
    /// No request for too long.
    Unused,
    /// Nothing moves although something should.
    Stalled,
}

/// Looks now and then, so that no stream needs a timer.
struct Watch {
    limits: ServerLimits,
    every: Duration,
    moves: u64,
    still: Duration,
}

impl Watch {
    fn new(limits: ServerLimits) -> Self {
        let shortest = limits.body_idle.min(limits.keep_alive).min(limits.head_timeout);
        let every = (shortest / LOOKS_PER_DEADLINE).max(Duration::from_millis(1));
        Self { limits, every, moves: 0, still: Duration::ZERO }
    }

    fn look(&mut self, activity: &Activity) -> Verdict {
        let moves = activity.moves.load(Ordering::Relaxed);
        if moves != self.moves {
            (self.moves, self.still) = (moves, Duration::ZERO);
            return Verdict::Fine;
        }
        self.still += self.every;
        // A connection that has asked for nothing yet is a head that is awaited.
        let unused_max = if moves == 0 { self.limits.head_timeout } else { self.limits.keep_alive };
        let unused = activity.open.load(Ordering::Relaxed) == 0;
        if activity.unread.load(Ordering::Relaxed) > 0 && self.still >= self.limits.body_idle {
            Verdict::Stalled
        } else if unused && self.still >= unused_max + self.limits.body_idle {
            // It was told to go, and small answers that nobody takes keep it from going.
            Verdict::Stalled
        } else if unused && self.still >= unused_max {
            Verdict::Unused
        } else {
            Verdict::Fine
        }
    }
}

/// An answer's body that notes whether it waits for the client or the client for it.
struct AnswerBody {
    body: Body,
    handed: bool,
    stream: Stream,
}

impl AnswerBody {
    fn hand(&mut self, handed: bool) {
        let activity = &self.stream.0;
        activity.moves.fetch_add(1, Ordering::Relaxed);
        match (self.handed, handed) {
            (false, true) => _ = activity.unread.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = activity.unread.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        self.handed = handed;
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.hand(matches!(frame, Poll::Ready(Some(Ok(_)))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.hand(false);
    }
}

/// A request's body that ends in an error when it is silent for too long.
struct Asked {
    body: Incoming,
    idle: Duration,
    silence: Timer,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.silence.clear();
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !this.silence.is_set() {
            this.silence.set(this.idle);
        }
        this.silence.poll(cx).map(|()| Some(Err(BodyFault::Silent.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection whose first bytes have been read already.
struct Rewound<T> {
    io: T,
    read: BytesMut,
}

impl<T: Transport> AsyncRead for Rewound<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, into);
        }
        let count = self.read.len().min(into.remaining());
        into.put_slice(&self.read[..count]);
        self.read.advance(count);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport> AsyncWrite for Rewound<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Poller<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
