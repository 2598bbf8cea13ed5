//! The service that Weir stands beside, scripted and counted.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::background::Background;
use super::reply::{Piece, Reply, Wait};
use super::{Scratch, reply};

/// A service on a TCP port that speaks HTTP/1.1.
pub fn upstream() -> Upstream {
    Upstream::start(false, None)
}

/// A service on a TCP port that speaks HTTP/2 by prior knowledge.
pub fn h2_upstream() -> Upstream {
    Upstream::start(true, None)
}

/// A service on a TCP port behind TLS, in the protocol that `tls` names.
pub fn tls_upstream(tls: Arc<ServerConfig>) -> Upstream {
    Upstream::start(tls.alpn_protocols == [b"h2"], Some(tls))
}

/// A service on a unix socket that speaks HTTP/1.1.
pub fn unix_upstream() -> Upstream {
    let scratch = Scratch::new();
    let path = scratch.path().join("up.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("non-blocking");
    let state = Arc::new(State::default());
    let served = Arc::clone(&state);
    let background = Background::run("upstream", move || async move {
        let listener = UnixListener::from_std(listener).expect("a listener");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(serve(stream, false, Arc::clone(&served)));
        }
    });
    Upstream { place: Place::Unix(path), scheme: "unix", state, _scratch: Some(scratch), _background: background }
}

/// A running fake service; a panic in it fails the test.
pub struct Upstream {
    place: Place,
    scheme: &'static str,
    state: Arc<State>,
    _scratch: Option<Scratch>,
    _background: Background,
}

enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Method.
    pub method: Method,
    /// Target as it stood in the request.
    pub uri: Uri,
    /// Protocol version.
    pub version: Version,
    /// Fields, without trailers.
    pub fields: HeaderMap,
    /// Body, where the script waits for it.
    pub body: Bytes,
    /// Trailers.
    pub trailers: HeaderMap,
    /// Whether its end arrived.
    pub complete: bool,
}

impl Recorded {
    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().expect("text"))
    }

    /// Every value of a field.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.fields.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str)
    }
}

type Handler = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;

#[derive(Clone)]
enum Script {
    /// Reads the request to its end, then answers.
    Whole(Handler),
    /// Answers at once and leaves the body unread.
    Early(Reply),
    /// Sends the request's body back while it comes in.
    Echo,
    /// Agrees to any upgrade and sends back what comes.
    Tunnel,
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

#[derive(Default)]
struct State {
    scripts: Mutex<HashMap<String, Script>>,
    requests: Mutex<Vec<Recorded>>,
    faults: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

impl Upstream {
    fn start(h2: bool, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        // The library's own 128 overflow when hundreds connect at once, which costs each of the others a second.
        rustix::net::listen(&listener, BACKLOG).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let background = Background::run("upstream", move || async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                stream.set_nodelay(true).expect("nodelay");
                let state = Arc::clone(&served);
                let Some(tls) = tls.clone().map(TlsAcceptor::from) else {
                    tokio::spawn(serve(stream, h2, state));
                    continue;
                };
                tokio::spawn(async move {
                    // Who does not get so far has not connected.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, h2, state).await;
                    }
                });
            }
        });
        Self { place: Place::Tcp(address), scheme, state, _scratch: None, _background: background }
    }

    /// Its address as the configuration wants it.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("{}://{address}", self.scheme),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Its TCP address.
    pub fn address(&self) -> SocketAddr {
        match &self.place {
            Place::Tcp(address) => *address,
            Place::Unix(path) => panic!("{} is no TCP address", path.display()),
        }
    }

    /// Answers `path` (any query) so from now on; `*` stands for what has no script.
    pub fn route(&self, path: &str, reply: Reply) -> &Self {
        self.on(path, move |_| reply.clone())
    }

    /// Answers `path` with each of `replies` in turn, then with the last again and again.
    pub fn sequence(&self, path: &str, replies: Vec<Reply>) -> &Self {
        let next = AtomicUsize::new(0);
        self.on(path, move |_| {
            let turn = next.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1);
            replies[turn].clone()
        })
    }

    /// Answers `path` with what `handler` makes of the request.
    pub fn on(&self, path: &str, handler: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> &Self {
        self.script(path, Script::Whole(Arc::new(handler)))
    }

    /// Answers `path` before the request's body has come.
    pub fn early(&self, path: &str, reply: Reply) -> &Self {
        self.script(path, Script::Early(reply))
    }

    /// Sends bodies to `path` back while they come in.
    pub fn echo(&self, path: &str) -> &Self {
        self.script(path, Script::Echo)
    }

    /// Agrees to upgrades on `path`, and echoes.
    pub fn tunnel(&self, path: &str) -> &Self {
        self.script(path, Script::Tunnel)
    }

    fn script(&self, path: &str, script: Script) -> &Self {
        self.state.scripts.lock().expect("no panic while held").insert(path.to_owned(), script);
        self
    }

    /// Requests that arrived for `path`; with a query, for exactly this target.
    pub fn count(&self, path: &str) -> usize {
        self.requests(path).len()
    }

    /// Requests that arrived.
    pub fn total(&self) -> usize {
        self.state.requests.lock().expect("no panic while held").len()
    }

    /// Connections that were opened.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The requests for `path`; with a query, for exactly this target.
    pub fn requests(&self, path: &str) -> Vec<Recorded> {
        let wanted = |r: &&Recorded| if path.contains('?') { r.target() == path } else { r.uri.path() == path };
        self.state.requests.lock().expect("no panic while held").iter().filter(wanted).cloned().collect()
    }

    /// The last request for `path`.
    pub fn last(&self, path: &str) -> Recorded {
        self.requests(path).pop().unwrap_or_else(|| panic!("no request for {path}"))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let faults = std::mem::take(&mut *self.state.faults.lock().expect("no panic while held"));
        if !faults.is_empty() && !std::thread::panicking() {
            panic!("the fake upstream panicked: {}", faults.join("; "));
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool, state: Arc<State>) {
    state.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(&state, request).await) }
    });
    // A connection that Weir drops is no fault of the script's.
    if h2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }
}

async fn respond(state: &State, request: http::Request<Incoming>) -> Response<Pieces> {
    let script = {
        let scripts = state.scripts.lock().expect("no panic while held");
        scripts.get(request.uri().path()).or_else(|| scripts.get("*")).cloned()
    };
    let index = record(state, &request);
    match script {
        Some(Script::Whole(handler)) => {
            let recorded = read_whole(state, index, request.into_body()).await;
            match catch_unwind(AssertUnwindSafe(|| handler(&recorded))) {
                Ok(reply) => play(reply).await,
                Err(panic) => fault(state, panic.as_ref()),
            }
        }
        Some(Script::Early(reply)) => play(reply).await,
        Some(Script::Echo) => echo(request.into_body()),
        Some(Script::Tunnel) => tunnel(request),
        None => {
            read_whole(state, index, request.into_body()).await;
            play(reply("the fake upstream has no such route").status(404)).await
        }
    }
}

fn fault(state: &State, panic: &(dyn std::any::Any + Send)) -> Response<Pieces> {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    state.faults.lock().expect("no panic while held").push(text);
    let mut response = Response::new(Pieces::of("the script panicked"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

fn record(state: &State, request: &http::Request<Incoming>) -> usize {
    let mut requests = state.requests.lock().expect("no panic while held");
    requests.push(Recorded {
        method: request.method().clone(),
        uri: request.uri().clone(),
        version: request.version(),
        fields: request.headers().clone(),
        body: Bytes::new(),
        trailers: HeaderMap::new(),
        complete: false,
    });
    requests.len() - 1
}

async fn read_whole(state: &State, index: usize, body: Incoming) -> Recorded {
    let read = body.collect().await;
    let mut requests = state.requests.lock().expect("no panic while held");
    let recorded = &mut requests[index];
    if let Ok(read) = read {
        recorded.trailers = read.trailers().cloned().unwrap_or_default();
        recorded.body = read.to_bytes();
        recorded.complete = true;
    }
    recorded.clone()
}

async fn play(reply: Reply) -> Response<Pieces> {
    for wait in reply.before {
        pause(&wait).await;
    }
    let body = match reply.body.as_slice() {
        [Piece::Data(data)] if reply.sized => Pieces::of(data.clone()),
        _ => feed(reply.body, reply.sized),
    };
    let mut response = Response::new(body);
    *response.status_mut() = reply.status;
    for (name, value) in reply.fields {
        response.headers_mut().append(name, value);
    }
    response
}

async fn pause(wait: &Wait) {
    match wait {
        Wait::Gate(gate) => gate.pass().await,
        Wait::Time(time) => tokio::time::sleep(*time).await,
        Wait::Served(by, time) => by.serve(*time).await,
    }
}

fn feed(pieces: Vec<Piece>, sized: bool) -> Pieces {
    let data = |piece: &Piece| if let Piece::Data(data) = piece { data.len() as u64 } else { 0 };
    let size = sized.then(|| pieces.iter().map(data).sum());
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        for piece in pieces {
            let frame = match piece {
                Piece::Data(data) => Ok(Frame::data(data)),
                Piece::Trailers(trailers) => Ok(Frame::trailers(trailers)),
                Piece::Wait(wait) => {
                    pause(&wait).await;
                    continue;
                }
                Piece::Cut => {
                    // Time for what was sent before to leave: hyper drops what is still in its buffer.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err("cut, as the script says".into())
                }
            };
            if send.send(frame).await.is_err() {
                return;
            }
        }
    });
    Pieces::Fed { frames: receive, size }
}

fn echo(mut body: Incoming) -> Response<Pieces> {
    let size = body.size_hint().exact();
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            if send.send(frame.map_err(Into::into)).await.is_err() {
                return;
            }
        }
    });
    Response::new(Pieces::Fed { frames: receive, size })
}

fn tunnel(request: http::Request<Incoming>) -> Response<Pieces> {
    let protocol = request.headers().get(UPGRADE).cloned();
    let Some(protocol) = protocol else {
        let mut response = Response::new(Pieces::of("nothing to upgrade to"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        }
    });
    let mut response = Response::new(Pieces::of(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, protocol);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

type PieceError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body.
enum Pieces {
    Whole(Full<Bytes>),
    Fed { frames: mpsc::Receiver<Result<Frame<Bytes>, PieceError>>, size: Option<u64> },
}

impl Pieces {
    fn of(data: impl Into<Bytes>) -> Self {
        Self::Whole(Full::new(data.into()))
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = PieceError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PieceError>>> {
        match &mut *self {
            Self::Whole(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Self::Fed { frames, .. } => frames.poll_recv(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(full) if full.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(full) => full.size_hint(),
            Self::Fed { size: Some(size), .. } => SizeHint::with_exact(*size),
            Self::Fed { size: None, .. } => SizeHint::default(),
        }
    }
}
