//! HTTP/1.1 towards the upstream: one connection, one exchange at a time, read strictly.
//!
//! An own path rather than hyper's client: no task and no channel a connection, a small response's body is there with
//! its head, and the caller knows exactly what was sent (see docs/benchmarks.md).

mod response;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::AsyncWrite;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use self::response::parse;
use super::forward::Herald;
use super::overload::Micros;
use super::overload::gate::Exchange;
use super::socket::Socket;
use super::upstream::{Failure, Patience, Reply, Upstream};
use crate::message::chunked::{ChunkDecoder, Decoded};
use crate::message::{Body, BodyError};

/// Interim (1xx) responses to one request; more is an attack or a bug.
const INTERIM_RESPONSES: usize = 16;

/// Room made before each read.
const READ_BYTES: usize = 16 * 1024;

/// Request bodies up to this size go out in one write with the head.
const COALESCED_BYTES: usize = 16 * 1024;

/// What stands behind a response's end, and could be a response itself, says that the end is in another place to whoever wrote
/// it: nothing of the response can be believed, nor what comes after it.
const BEHIND: &str = "there are bytes behind its end";

/// An open connection, its buffers, and its place under the process's cap.
pub struct Connection {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
    /// Bytes written so far: what tells a slow upload from one that has stopped.
    written: u64,
    /// Given back to the cap on drop.
    _permit: Option<OwnedSemaphorePermit>,
    /// What it carries at this moment; dropped after the permit, so that who comes next finds that free.
    exchange: Option<Exchange>,
}

impl Connection {
    /// A connection that has carried nothing yet.
    pub fn new(socket: Socket, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { socket, input: BytesMut::new(), output: BytesMut::new(), written: 0, _permit: permit, exchange: None }
    }

    /// The same, as it carries this exchange.
    pub fn within(mut self, exchange: Option<Exchange>) -> Self {
        self.exchange = exchange;
        self
    }

    /// Whether it has carried anything.
    pub fn was_used(&self) -> bool {
        self.written > 0
    }

    /// Whether the other side has neither closed it nor sent what nobody asked for.
    pub fn is_quiet(&mut self) -> bool {
        self.socket.is_quiet()
    }

    /// See [`Socket::farewell`].
    pub fn farewell(&mut self) {
        self.socket.farewell();
    }

    /// Reads once; 0 is the other side's end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(READ_BYTES);
        tokio_util::io::poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.input)
    }

    /// Writes what stands in `output`.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.written += written as u64;
                    self.output.advance(written);
                }
            }
        }
        // TLS may have taken bytes that the socket has not.
        Pin::new(&mut self.socket).poll_flush(cx)
    }
}

/// How a response's end is found (RFC 9112 section 6.3).
#[derive(Debug)]
enum Framing {
    Length(u64),
    Chunked(ChunkDecoder),
    Close,
}

/// A response's head, and what of the request is still unsent.
pub struct Head {
    response: Response<()>,
    framing: Framing,
    keep_alive: bool,
    unsent: Option<Unsent>,
}

impl Head {
    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// A request body on its way out.
struct Unsent {
    body: Body,
    /// Bytes of it that were announced and are still to come; none are announced where it goes out in chunks.
    left: Option<u64>,
    /// What of it is here.
    piece: Bytes,
    /// Whether nothing is, and all that was is out: it is the client's turn.
    is_awaited: bool,
}

impl Unsent {
    fn new(body: Body, left: Option<u64>) -> Self {
        Self { body, left, piece: Bytes::new(), is_awaited: false }
    }
}

/// Sends `request` and reads the response's head. The body is taken out of `request` if it arrives in pieces.
pub async fn exchange(
    connection: &mut Connection,
    request: &mut Request<Body>,
    patience: Patience,
) -> Result<Head, Failure> {
    let mut unsent = serialise(&mut connection.output, request);
    let (mut sent, mut was_pending, mut waits_for_client) = (false, false, false);
    let mut interim = 0;
    let mut deadline = std::pin::pin!(sleep(patience.response));
    let is_head = request.method() == Method::HEAD;
    let herald = request.extensions().get::<Herald>().cloned();
    poll_fn(|cx| {
        if !sent {
            let before = connection.written;
            match poll_send(connection, &mut unsent, cx) {
                Poll::Ready(Ok(())) => {
                    sent = true;
                    if was_pending {
                        deadline.as_mut().reset(Instant::now() + patience.response);
                    }
                }
                // It may have answered before it stopped reading.
                Poll::Ready(Err(SendError::Write(_))) => sent = true,
                Poll::Ready(Err(SendError::Body(error))) => {
                    return Poll::Ready(Err(Failure::RequestBody { error, was_begun: true }));
                }
                Poll::Pending => {
                    was_pending = true;
                    // A client that is silent has deadlines of its own.
                    waits_for_client = unsent.as_ref().is_some_and(|unsent| unsent.is_awaited);
                    if waits_for_client || connection.written != before {
                        deadline.as_mut().reset(Instant::now() + patience.body_idle.max(patience.response));
                    }
                }
            }
        }
        loop {
            while let Some((response, framing, keep_alive)) = parse(&mut connection.input, is_head)? {
                if response.status().is_informational() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    interim += 1;
                    if interim > INTERIM_RESPONSES {
                        return Poll::Ready(Err(Failure::Malformed("too many interim responses")));
                    }
                    if let Some(herald) = &herald {
                        herald.tell(response);
                    }
                    continue;
                }
                if let Framing::Length(length) = framing
                    && connection.input.len() as u64 > length
                    && contradicts(length > 0, &connection.input[length as usize..])
                    && response.status() != StatusCode::SWITCHING_PROTOCOLS
                {
                    return Poll::Ready(Err(Failure::Malformed(BEHIND)));
                }
                let unsent = if sent { None } else { unsent.take() };
                let keep_alive = keep_alive && unsent.is_none();
                return Poll::Ready(Ok(Head { response, framing, keep_alive, unsent }));
            }
            match connection.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(if connection.input.is_empty() {
                        Failure::Closed(io::ErrorKind::UnexpectedEof.into())
                    } else {
                        Failure::Malformed("its head ends in the middle")
                    }));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Closed(error))),
                Poll::Pending => break,
            }
        }
        if !sent && waits_for_client {
            return Poll::Pending;
        }
        deadline.as_mut().poll(cx).map(|()| Err(Failure::ResponseTimeout))
    })
    .await
}

/// The response, whose head came at `now`, and whose body gives the connection back when it has been read to its end.
pub fn receive(mut connection: Connection, head: Head, upstream: Upstream, now: Micros) -> Reply {
    let Head { response, framing, keep_alive, unsent } = head;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let behind = connection.input.split().freeze();
        return Reply { response: response.map(|()| Body::Empty), upgraded: Some((connection.socket, behind)) };
    }
    if let Framing::Length(length) = framing
        && connection.input.len() as u64 >= length
        && unsent.is_none()
    {
        let bytes = connection.input.split_to(length as usize).freeze();
        finish(connection, keep_alive, &upstream, now);
        return Reply { response: response.map(|()| Body::from(bytes)), upgraded: None };
    }
    let body = Incoming { connection: Some(connection), framing, keep_alive, unsent, upstream };
    Reply { response: response.map(|()| Body::stream(body)), upgraded: None }
}

fn finish(mut connection: Connection, keep_alive: bool, upstream: &Upstream, now: Micros) {
    if keep_alive && connection.input.is_empty() {
        let exchange = connection.exchange.take();
        upstream.give_back(connection, now);
        // Whoever comes next finds the connection.
        drop(exchange);
    }
}

/// A response body, and the connection that it comes from.
struct Incoming {
    connection: Option<Connection>,
    framing: Framing,
    keep_alive: bool,
    unsent: Option<Unsent>,
    upstream: Upstream,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(connection) = this.connection.as_mut() else { return Poll::Ready(None) };
        if this.unsent.is_some() {
            match poll_send(connection, &mut this.unsent, cx) {
                Poll::Pending => {}
                Poll::Ready(_) => this.unsent = None,
            }
        }
        loop {
            let step = match &mut this.framing {
                Framing::Length(0) => Step::End(None),
                Framing::Length(_) | Framing::Close if connection.input.is_empty() => Step::More,
                Framing::Length(left) => {
                    let take = (*left).min(connection.input.len() as u64);
                    *left -= take;
                    Step::Data(connection.input.split_to(take as usize).freeze())
                }
                Framing::Close => Step::Data(connection.input.split().freeze()),
                Framing::Chunked(decoder) => match decoder.decode(&mut connection.input)? {
                    Decoded::Data(data) => Step::Data(data),
                    Decoded::NeedMore => Step::More,
                    Decoded::End(trailers) => Step::End(trailers),
                },
            };
            let is_at_end = matches!(step, Step::End(_)) || matches!(this.framing, Framing::Length(0));
            if is_at_end && contradicts(matches!(step, Step::Data(_)), &connection.input) {
                return Poll::Ready(Some(Err(BEHIND.into())));
            }
            match step {
                Step::Data(data) => {
                    if matches!(this.framing, Framing::Length(0)) {
                        this.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Step::End(trailers) => {
                    this.end();
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Step::More => match ready!(connection.poll_fill(cx)) {
                    Ok(0) if matches!(this.framing, Framing::Close) => {
                        this.connection = None;
                        return Poll::Ready(None);
                    }
                    Ok(0) => return Poll::Ready(Some(Err("the upstream's body ended early".into()))),
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.connection, &self.framing) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Framing::Length(left)) => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }
}

/// Whether bytes behind a response's end say that it is none. More text than a length announced is a length that was
/// counted wrong: it goes with the connection (RFC 9112 section 6.3). What could be another response is not explained by that.
fn contradicts(counted: bool, behind: &[u8]) -> bool {
    const VERSION: &[u8] = b"HTTP/";
    let start = behind.trim_ascii_start();
    let seen = start.len().min(VERSION.len());
    !behind.is_empty() && (!counted || start[..seen].eq_ignore_ascii_case(&VERSION[..seen]))
}

enum Step {
    Data(Bytes),
    More,
    End(Option<HeaderMap>),
}

impl Incoming {
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            let now = self.upstream.now();
            finish(connection, self.keep_alive && self.unsent.is_none(), &self.upstream, now);
        }
    }
}

enum SendError {
    Write(#[expect(dead_code, reason = "kept for a debugger's eyes")] io::Error),
    Body(BodyError),
}

/// Writes the head and as much of the body as there is; ready when all of it is out.
fn poll_send(
    connection: &mut Connection,
    unsent: &mut Option<Unsent>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), SendError>> {
    loop {
        if let Some(rest) = unsent {
            rest.is_awaited = false;
        }
        ready!(connection.poll_drain(cx)).map_err(SendError::Write)?;
        let Some(rest) = unsent else { return Poll::Ready(Ok(())) };
        if !rest.piece.is_empty() {
            // A large piece does not leave a large buffer behind.
            let take = rest.piece.len().min(READ_BYTES);
            let data = rest.piece.split_to(take);
            match &mut rest.left {
                None => {
                    connection.output.extend_from_slice(format!("{take:x}\r\n").as_bytes());
                    connection.output.extend_from_slice(&data);
                    connection.output.extend_from_slice(b"\r\n");
                }
                Some(left) => match left.checked_sub(take as u64) {
                    Some(rest) => {
                        *left = rest;
                        connection.output.extend_from_slice(&data);
                    }
                    None => return Poll::Ready(Err(SendError::Body("the body is longer than announced".into()))),
                },
            }
            continue;
        }
        let Poll::Ready(frame) = Pin::new(&mut rest.body).poll_frame(cx) else {
            rest.is_awaited = true;
            return Poll::Pending;
        };
        match frame {
            None => {
                match rest.left {
                    None => connection.output.extend_from_slice(b"0\r\n\r\n"),
                    Some(0) => {}
                    Some(_) => return Poll::Ready(Err(SendError::Body("the body is shorter than announced".into()))),
                }
                *unsent = None;
            }
            Some(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => rest.piece = data,
                Err(frame) => {
                    if let (Ok(trailers), None) = (frame.into_trailers(), rest.left) {
                        connection.output.extend_from_slice(b"0\r\n");
                        for (name, value) in &trailers {
                            put_field(&mut connection.output, name, value);
                        }
                        connection.output.extend_from_slice(b"\r\n");
                        *unsent = None;
                    }
                }
            },
        }
    }
}

/// Writes the request's head, and its body if it is small and here; what remains to be sent is returned.
///
/// Framing is made anew from the body: no `Content-Length` or `Transfer-Encoding` of the client's passes.
fn serialise(output: &mut BytesMut, request: &mut Request<Body>) -> Option<Unsent> {
    output.clear();
    output.extend_from_slice(request.method().as_str().as_bytes());
    output.extend_from_slice(b" ");
    output.extend_from_slice(request.uri().path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    output.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        if name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            put_field(output, name, value);
        }
    }
    let body = std::mem::take(request.body_mut());
    match (body.size_hint().exact(), body) {
        (_, Body::Empty) => {
            *request.body_mut() = Body::Empty;
            if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
                output.extend_from_slice(b"content-length: 0\r\n");
            }
            output.extend_from_slice(b"\r\n");
            None
        }
        (Some(length), Body::Full(bytes)) if bytes.len() <= COALESCED_BYTES => {
            put_length(output, length);
            output.extend_from_slice(&bytes);
            None
        }
        (Some(length), body) => {
            put_length(output, length);
            Some(Unsent::new(body, Some(length)))
        }
        (None, body) => {
            output.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            Some(Unsent::new(body, None))
        }
    }
}

fn put_length(output: &mut BytesMut, length: u64) {
    output.extend_from_slice(b"content-length: ");
    output.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    output.extend_from_slice(b"\r\n\r\n");
}

fn put_field(output: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    output.extend_from_slice(name.as_str().as_bytes());
    output.extend_from_slice(b": ");
    output.extend_from_slice(value.as_bytes());
    output.extend_from_slice(b"\r\n");
}
