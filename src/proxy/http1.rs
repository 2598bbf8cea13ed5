//! HTTP/1.1 towards the upstream: one connection, one exchange at a time, read strictly.
//!
//! An own path rather than hyper's client: no task and no channel a connection, a small response's body is there with
//! its head, and the caller knows exactly what was sent (see docs/benchmarks.md).

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::forward::Herald;
use super::socket::Socket;
use super::upstream::{Failure, Patience, Reply, Upstream};
use crate::message::chunked::{ChunkDecoder, Decoded};
use crate::message::{Body, BodyError};

/// Largest response head.
const HEAD_BYTES: usize = 64 * 1024;

/// Most response fields.
const FIELDS: usize = 128;

/// Interim (1xx) responses to one request; more is an attack or a bug.
const INTERIM_RESPONSES: usize = 16;

/// Fields for which reading a head needs no allocation of its own.
const USUAL_FIELDS: usize = 24;

/// Fields that Weir adds to a response: `Via`, `Cache-Status`, limits.
const FIELDS_ADDED: usize = 4;

/// Room made before each read.
const READ_BYTES: usize = 16 * 1024;

/// Request bodies up to this size go out in one write with the head.
const COALESCED_BYTES: usize = 16 * 1024;

/// An open connection, its buffers, and its place under the process's cap.
pub struct Connection {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
    /// Bytes written so far: what tells a slow upload from one that has stopped.
    written: u64,
    /// Given back to the cap on drop.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// A connection that has carried nothing yet.
    pub fn new(socket: Socket, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { socket, input: BytesMut::new(), output: BytesMut::new(), written: 0, _permit: permit }
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

/// A request body on its way out.
struct Unsent {
    body: Body,
    chunked: bool,
}

/// Sends `request` and reads the response's head. The body is taken out of `request` if it arrives in pieces.
pub async fn exchange(
    connection: &mut Connection,
    request: &mut Request<Body>,
    patience: Patience,
) -> Result<Head, Failure> {
    let mut unsent = serialise(&mut connection.output, request);
    let (mut sent, mut was_pending) = (false, false);
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
                Poll::Ready(Err(SendError::Body(error))) => return Poll::Ready(Err(Failure::RequestBody(error))),
                Poll::Pending if connection.written != before => {
                    was_pending = true;
                    deadline.as_mut().reset(Instant::now() + patience.body_idle.max(patience.response));
                }
                Poll::Pending => was_pending = true,
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
        deadline.as_mut().poll(cx).map(|()| Err(Failure::ResponseTimeout))
    })
    .await
}

/// The response, whose body gives the connection back when it has been read to its end.
pub fn receive(mut connection: Connection, head: Head, upstream: Upstream) -> Reply {
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
        finish(connection, keep_alive, &upstream);
        return Reply { response: response.map(|()| Body::from(bytes)), upgraded: None };
    }
    let body = Incoming { connection: Some(connection), framing, keep_alive, unsent, upstream };
    Reply { response: response.map(|()| Body::stream(body)), upgraded: None }
}

fn finish(connection: Connection, keep_alive: bool, upstream: &Upstream) {
    // Bytes behind the end belong to no response: nothing that comes after them can be believed.
    if keep_alive && connection.input.is_empty() {
        upstream.give_back(connection);
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

enum Step {
    Data(Bytes),
    More,
    End(Option<HeaderMap>),
}

impl Incoming {
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            finish(connection, self.keep_alive && self.unsent.is_none(), &self.upstream);
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
        ready!(connection.poll_drain(cx)).map_err(SendError::Write)?;
        let Some(rest) = unsent else { return Poll::Ready(Ok(())) };
        match ready!(Pin::new(&mut rest.body).poll_frame(cx)) {
            None => {
                if rest.chunked {
                    connection.output.extend_from_slice(b"0\r\n\r\n");
                }
                *unsent = None;
            }
            Some(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) if rest.chunked => {
                    connection.output.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                    connection.output.extend_from_slice(&data);
                    connection.output.extend_from_slice(b"\r\n");
                }
                Ok(data) => connection.output.extend_from_slice(&data),
                Err(frame) => {
                    if let (Ok(trailers), true) = (frame.into_trailers(), rest.chunked) {
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
            Some(Unsent { body, chunked: false })
        }
        (None, body) => {
            output.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            Some(Unsent { body, chunked: true })
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

/// The head at the input's front, once it is whole; the input then starts behind it.
fn parse(input: &mut BytesMut, is_head: bool) -> Result<Option<(Response<()>, Framing, bool)>, Failure> {
    if input.is_empty() {
        return Ok(None);
    }
    let mut slots = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut slots) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() >= HEAD_BYTES => {
            return Err(Failure::Malformed("its head is too large"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::Malformed("it has too many fields")),
        Err(_) => return Err(Failure::Malformed("its head cannot be read")),
    };
    let base = input.as_ptr() as usize;
    let code = parsed.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| Failure::Malformed("its status is no number"))?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut named: SmallVec<[(HeaderName, Range<usize>); USUAL_FIELDS]> = SmallVec::new();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let start = field.value.as_ptr() as usize - base;
        named.push((
            name.map_err(|_| Failure::Malformed("a field has no valid name"))?,
            start..start + field.value.len(),
        ));
    }
    let head = input.split_to(length).freeze();
    let mut fields = HeaderMap::with_capacity(named.len() + FIELDS_ADDED);
    for (name, place) in named {
        let value = HeaderValue::from_maybe_shared(head.slice(place));
        fields.append(name, value.map_err(|_| Failure::Malformed("a field has no valid value"))?);
    }
    let framing = framing(status, &fields, is_head)?;
    let closes = fields
        .get_all(header::CONNECTION)
        .iter()
        .any(|v| v.as_bytes().split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close")));
    let keep_alive = version == Version::HTTP_11 && !closes && !matches!(framing, Framing::Close);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = fields;
    Ok(Some((response, framing, keep_alive)))
}

fn framing(status: StatusCode, fields: &HeaderMap, is_head: bool) -> Result<Framing, Failure> {
    let coded = fields.contains_key(header::TRANSFER_ENCODING);
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if coded && length.is_some() {
        return Err(Failure::Malformed("Content-Length beside Transfer-Encoding"));
    }
    if lengths.next().is_some() {
        return Err(Failure::Malformed("two Content-Length fields"));
    }
    let length = length.map(|value| content_length(value).ok_or(Failure::Malformed("a malformed Content-Length")));
    let length = length.transpose()?;
    if is_head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Framing::Length(0));
    }
    if coded {
        let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only || codings.next().is_some() {
            return Err(Failure::Malformed("a Transfer-Encoding other than chunked"));
        }
        return Ok(Framing::Chunked(ChunkDecoder::default()));
    }
    Ok(length.map_or(Framing::Close, Framing::Length))
}

fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if valid { std::str::from_utf8(digits).ok()?.parse().ok() } else { None }
}
