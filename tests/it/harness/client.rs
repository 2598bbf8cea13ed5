//! Clients that hide nothing: HTTP/1 written and read byte by byte.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{PATIENCE, patiently};

/// `Host` of every request that names none: the same for each Weir of a fleet, so that they share keys.
pub const HOST: &str = "service.test";

/// Most fields that an answer may have.
const FIELDS: usize = 128;

/// A GET.
pub fn get(target: &str) -> Request {
    request("GET", target)
}

/// A request.
pub fn request(method: &str, target: &str) -> Request {
    Request { method: method.into(), target: target.into(), fields: Vec::new(), body: Payload::None }
}

/// A request to be sent.
#[derive(Clone)]
pub struct Request {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    body: Payload,
}

#[derive(Clone)]
enum Payload {
    None,
    Sized(Bytes),
    Chunked { chunks: Vec<Bytes>, trailers: Vec<(String, String)> },
}

impl Request {
    /// One more field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// A body whose size is announced.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Payload::Sized(body.into());
        self
    }

    /// A body in chunks, with trailers behind.
    pub fn chunked(mut self, chunks: &[&'static [u8]], trailers: &[(&str, &str)]) -> Self {
        let chunks = chunks.iter().map(|chunk| Bytes::from_static(chunk)).collect();
        let trailers = trailers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.body = Payload::Chunked { chunks, trailers };
        self
    }

    fn names(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(field))
    }

    /// The bytes of the head, and then of the body.
    fn encode(&self) -> (Vec<u8>, Bytes) {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.names("host") {
            head += &format!("host: {HOST}\r\n");
        }
        for (name, value) in &self.fields {
            head += &format!("{name}: {value}\r\n");
        }
        let body = match &self.body {
            Payload::None => Bytes::new(),
            Payload::Sized(body) => {
                head += &format!("content-length: {}\r\n", body.len());
                body.clone()
            }
            Payload::Chunked { chunks, trailers } => {
                head += "transfer-encoding: chunked\r\n";
                let mut out = Vec::new();
                for chunk in chunks {
                    out.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    out.extend_from_slice(chunk);
                    out.extend(b"\r\n");
                }
                out.extend(b"0\r\n");
                for (name, value) in trailers {
                    out.extend(format!("{name}: {value}\r\n").into_bytes());
                }
                out.extend(b"\r\n");
                out.into()
            }
        };
        head += "\r\n";
        (head.into_bytes(), body)
    }

    /// Sends it over a connection of its own.
    pub async fn send(&self, to: SocketAddr) -> Answer {
        match self.try_send(to).await {
            Ok(answer) => answer,
            Err(error) => panic!("{} {}: {error}", self.method, self.target),
        }
    }

    /// Sends it over a connection of its own.
    ///
    /// # Errors
    /// No connection, a broken or malformed answer, or none in time.
    pub async fn try_send(&self, to: SocketAddr) -> io::Result<Answer> {
        let exchange = async { Connection::try_open(to).await?.try_send(self).await };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// An answer, whole.
#[derive(Clone, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Fields in order, names as they came.
    pub fields: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
    /// Interim answers before it.
    pub interim: Vec<u16>,
    /// From the request's first byte to the answer's last.
    pub took: Duration,
}

impl Answer {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }

    /// Every value of a field.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let named = |(field, _): &&(String, String)| field.eq_ignore_ascii_case(name);
        self.fields.iter().filter(named).map(|(_, value)| value.as_str()).collect()
    }

    /// A field as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    /// What `Cache-Status` says of this answer; every answer has one.
    pub fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_else(|| panic!("no Cache-Status in {self:?}"))
    }

    /// Fresh, from the cache.
    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("weir; hit") && !self.is_stale()
    }

    /// Stale, from the cache.
    pub fn is_stale(&self) -> bool {
        let status = self.cache_status();
        status.contains("; hit; ttl=-") || status.contains("detail=stale-if-error")
    }

    /// From the upstream, on a route that caches.
    pub fn is_miss(&self) -> bool {
        self.cache_status().contains("fwd=miss") || self.cache_status().contains("fwd=uri-miss")
    }

    /// Put into the cache.
    pub fn is_stored(&self) -> bool {
        self.cache_status().contains("; stored")
    }

    /// From another request's fetch.
    pub fn is_collapsed(&self) -> bool {
        self.cache_status().contains("; collapsed")
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} after {:?}", self.status, self.took)?;
        for (name, value) in &self.fields {
            writeln!(f, "  {name}: {value}")?;
        }
        let shown = &self.body[..self.body.len().min(200)];
        write!(f, "  [{} bytes] {}", self.body.len(), String::from_utf8_lossy(shown))
    }
}

/// One HTTP/1 connection.
pub struct Connection<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
    /// Whether another request may follow.
    pub reusable: bool,
}

impl Connection {
    /// Opens one.
    pub async fn open(to: SocketAddr) -> Self {
        patiently("connecting", Self::try_open(to)).await.unwrap_or_else(|error| panic!("connecting to {to}: {error}"))
    }

    /// Opens one.
    ///
    /// # Errors
    /// The connection is refused.
    pub async fn try_open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Over a stream that is open already.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), reusable: true }
    }

    /// Sends a request and reads its answer.
    pub async fn send(&mut self, request: &Request) -> Answer {
        let answer = patiently("an answer", self.try_send(request)).await;
        answer.unwrap_or_else(|error| panic!("{} {}: {error}", request.method, request.target))
    }

    /// Sends a request and reads its answer, which may come before the request is out.
    ///
    /// # Errors
    /// The connection breaks, or the answer is malformed.
    pub async fn try_send(&mut self, request: &Request) -> io::Result<Answer> {
        let began = Instant::now();
        let (head, body) = request.encode();
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let mut written = false;
        let writing = async {
            let sent = async {
                write.write_all(&head).await?;
                write.write_all(&body).await?;
                write.flush().await
            };
            // Whoever answers early may close its side; the answer is what counts.
            let sent = sent.await;
            written = sent.is_ok();
            std::future::pending::<()>().await;
        };
        let reading = read_answer(&mut read, &mut self.buffer, request.method == "HEAD");
        let answer = tokio::select! {
            answer = reading => answer,
            () = writing => unreachable!("writing never ends the exchange"),
        };
        self.reusable = written
            && matches!(&answer, Ok(answer) if !answer.headers("connection").iter().any(|v| v.eq_ignore_ascii_case("close")));
        let mut answer = answer?;
        answer.took = began.elapsed();
        Ok(answer)
    }

    /// Writes bytes as they are; TLS may not keep what the socket does not take.
    pub async fn write(&mut self, bytes: &[u8]) {
        patiently("writing", self.stream.write_all(bytes)).await.expect("the connection takes bytes");
        patiently("writing", self.stream.flush()).await.expect("the connection takes bytes");
    }

    /// Ends the sending side.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("the connection can be half closed");
    }

    /// Reads one answer.
    pub async fn read(&mut self, to_head: bool) -> io::Result<Answer> {
        patiently("an answer", read_answer(&mut self.stream, &mut self.buffer, to_head)).await
    }

    /// Reads exactly `len` bytes.
    pub async fn read_bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        patiently("bytes", async {
            while self.buffer.len() < len {
                fill(&mut self.stream, &mut self.buffer).await?;
            }
            Ok(self.buffer.drain(..len).collect())
        })
        .await
    }

    /// Reads on until `text` has come; all that has.
    pub async fn read_until(&mut self, text: &[u8]) -> &[u8] {
        patiently("bytes", async {
            while !self.buffer.windows(text.len()).any(|window| window == text) {
                fill(&mut self.stream, &mut self.buffer).await.expect("the connection goes on");
            }
        })
        .await;
        &self.buffer
    }

    /// Reads on to the end; says what came, and whether it ended as it should (over TLS: with `close_notify`).
    pub async fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let mut received = std::mem::take(&mut self.buffer);
        let read = patiently("an end", self.stream.read_to_end(&mut received)).await;
        (received, read.is_ok())
    }

    /// Whether the other side closes it within `longest`.
    pub async fn closes_within(&mut self, longest: Duration) -> bool {
        let end = async { while fill(&mut self.stream, &mut self.buffer).await.is_ok() {} };
        tokio::time::timeout(longest, end).await.is_ok()
    }
}

/// Sends bytes as they are over a connection of their own and reads until the other side closes, or is silent for `quiet`.
/// Says what came, and whether it closed.
pub async fn raw(to: SocketAddr, bytes: &[u8], quiet: Duration) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    let _ = stream.write_all(bytes).await;
    let mut received = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    loop {
        match tokio::time::timeout(quiet, stream.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => return (received, true),
            Ok(Ok(len)) => received.extend_from_slice(&piece[..len]),
            Err(_) => return (received, false),
        }
    }
}

async fn fill(read: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    match read.read_buf(buffer).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the middle of an answer")),
        _ => Ok(()),
    }
}

async fn read_answer(read: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, to_head: bool) -> io::Result<Answer> {
    let began = Instant::now();
    let mut interim = Vec::new();
    let (status, fields) = loop {
        let (status, fields) = read_head(read, buffer).await?;
        if status == 101 || status >= 200 {
            break (status, fields);
        }
        interim.push(status);
    };
    let field =
        |wanted: &str| fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, v)| v.clone());
    let mut trailers = Vec::new();
    let body = if to_head || status == 101 || status == 204 || status == 304 {
        Vec::new()
    } else if field("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked")) {
        read_chunks(read, buffer, &mut trailers).await?
    } else if let Some(len) = field("content-length") {
        let len: usize = len.parse().map_err(|_| malformed("Content-Length"))?;
        while buffer.len() < len {
            buffer.reserve(len - buffer.len());
            fill(read, buffer).await?;
        }
        let rest = buffer.split_off(len);
        std::mem::replace(buffer, rest)
    } else {
        while read.read_buf(buffer).await? > 0 {}
        std::mem::take(buffer)
    };
    Ok(Answer { status, fields, body: body.into(), trailers, interim, took: began.elapsed() })
}

async fn read_head(
    read: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> io::Result<(u16, Vec<(String, String)>)> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(buffer) {
            Ok(httparse::Status::Complete(len)) => {
                let status = response.code.ok_or_else(|| malformed("status"))?;
                let fields = owned(response.headers);
                buffer.drain(..len);
                return Ok((status, fields));
            }
            Ok(httparse::Status::Partial) => fill(read, buffer).await?,
            Err(error) => return Err(malformed(&format!("head ({error})"))),
        }
    }
}

async fn read_chunks(
    read: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    trailers: &mut Vec<(String, String)>,
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (at, len) = loop {
            match httparse::parse_chunk_size(buffer) {
                Ok(httparse::Status::Complete((at, len))) => break (at, usize::try_from(len).expect("64 bits")),
                Ok(httparse::Status::Partial) => fill(read, buffer).await?,
                Err(_) => return Err(malformed("chunk size")),
            }
        };
        if len == 0 {
            buffer.drain(..at);
            break;
        }
        while buffer.len() < at + len + 2 {
            fill(read, buffer).await?;
        }
        body.extend_from_slice(&buffer[at..at + len]);
        if &buffer[at + len..at + len + 2] != b"\r\n" {
            return Err(malformed("chunk end"));
        }
        buffer.drain(..at + len + 2);
    }
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        match httparse::parse_headers(buffer, &mut fields) {
            Ok(httparse::Status::Complete((len, parsed))) => {
                *trailers = owned(parsed);
                buffer.drain(..len);
                return Ok(body);
            }
            Ok(httparse::Status::Partial) => fill(read, buffer).await?,
            Err(_) => return Err(malformed("trailer")),
        }
    }
}

fn owned(fields: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    fields.iter().map(|f| (f.name.to_owned(), String::from_utf8_lossy(f.value).into_owned())).collect()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what} in an answer"))
}
