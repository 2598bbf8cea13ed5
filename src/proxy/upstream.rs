//! The service behind this Weir: its connections, under one cap for the process, and one exchange on one of them.
//!
//! Who has a place in flight (`overload/gate.rs`) has a connection too: there are never more exchanges than connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::http1::{self, Connection, Head};
use super::http2;
use super::overload::gate::Door;
use super::overload::upload::{Unreceived, Upload};
use super::overload::{Attempt, Micros, Overload, Refusal};
use super::socket::Socket;
use super::tls::Tls;
use crate::config::{Protocol, Target, Upstream as Settings};
use crate::message::{Body, BodyError, Expected};
use crate::metrics::{Metrics, Shed};

/// Times that a request looks for an unused connection to close in favour of its own before it waits for one: others do
/// the same at the same time.
const CLAIMS: usize = 8;

/// Why no response head came.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be opened.
    Connect(io::Error),
    /// None was opened within `connect_timeout`.
    ConnectTimeout,
    /// It was not sent, to protect the upstream.
    Shed(Refusal),
    /// No head within `response_timeout`.
    ResponseTimeout,
    /// The connection ended before a head came.
    Closed(io::Error),
    /// What came is not HTTP, or can be read two ways.
    Malformed(&'static str),
    /// The client's body ended early.
    RequestBody {
        /// How.
        error: BodyError,
        /// Whether the upstream has had some of the request.
        was_begun: bool,
    },
}

impl Failure {
    /// Whether the upstream may have acted on the request.
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Connect(_) | Self::ConnectTimeout | Self::Shed(_) => false,
            Self::RequestBody { was_begun, .. } => *was_begun,
            Self::ResponseTimeout | Self::Closed(_) | Self::Malformed(_) => true,
        }
    }

    /// Whether the upstream fails whatever is asked of it, and not for this request alone.
    pub fn is_of_no_request(&self) -> bool {
        match self {
            Self::Connect(_) | Self::ConnectTimeout => true,
            Self::Shed(refusal) => refusal.why == Shed::BreakerOpen,
            Self::ResponseTimeout | Self::Closed(_) | Self::Malformed(_) | Self::RequestBody { .. } => false,
        }
    }

    /// Whether the upstream was not even tried.
    pub fn is_untried(&self) -> bool {
        matches!(self, Self::Shed(_) | Self::RequestBody { was_begun: false, .. })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "the upstream refused the connection: {error}"),
            Self::ConnectTimeout => f.write_str("the upstream did not accept a connection in time"),
            Self::Shed(refusal) => f.write_str(match refusal.why {
                Shed::QueueFull => "too many requests wait for the upstream",
                Shed::KeyQueueFull => "too many requests wait for this answer",
                Shed::ExpectedWait => "the wait for the upstream would be too long",
                Shed::QueueTimeout => "the upstream had no room in time",
                Shed::NoSpare => "the upstream has no room to spare",
                Shed::BreakerOpen => "the upstream has failed too often of late",
                Shed::Uploads => "too many request bodies are still on their way",
            }),
            Self::ResponseTimeout => f.write_str("the upstream did not answer in time"),
            Self::Closed(error) => write!(f, "the upstream closed the connection without an answer: {error}"),
            Self::Malformed(what) => write!(f, "the upstream's answer is not valid HTTP: {what}"),
            Self::RequestBody { error, .. } => write!(f, "the request's body ended early: {error}"),
        }
    }
}

/// A response whose head has come.
pub struct Reply {
    /// Head and body.
    pub response: Response<Body>,
    /// After 101: the connection, with what came behind the head.
    pub upgraded: Option<(Socket, Bytes)>,
}

/// How long each step of one exchange may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Whether it may wait in line for a place in flight: what nobody waits for may not.
    pub may_queue: bool,
    /// From the request's last byte to the head.
    pub response: Duration,
    /// Longest silence in a body.
    pub body_idle: Duration,
}

/// What all workers share: the caps, and every worker's unused connections.
pub struct Connections {
    settings: Settings,
    tls: ArcSwapOption<Tls>,
    overload: Overload,
    permits: Arc<Semaphore>,
    /// One list a worker, so that the usual case takes a lock that nobody else wants.
    idle: Vec<Mutex<Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Micros,
}

impl Connections {
    /// For so many workers.
    pub fn new(settings: Settings, workers: usize, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            tls: ArcSwapOption::from_pointee(settings.tls.as_ref().map(|tls| Tls::new(tls, settings.protocol))),
            overload: Overload::new(&settings, workers, metrics),
            permits: Arc::new(Semaphore::new(settings.connections.get())),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            settings,
        })
    }

    /// Opens connections with other certificates from now on. An upstream that was reached over TLS never is without.
    pub fn renew(&self, settings: &Settings) {
        if let Some(tls) = &settings.tls {
            self.tls.store(Some(Arc::new(Tls::new(tls, self.settings.protocol))));
        }
    }

    /// Closes connections that were unused for longer than `idle_timeout`.
    pub fn sweep(&self) {
        let now = self.overload.now();
        for list in &self.idle {
            self.lock(list).retain_mut(|idle| {
                let is_young = self.is_young(idle, now);
                if !is_young {
                    idle.connection.farewell();
                }
                is_young
            });
        }
    }

    /// Closes a connection that nobody uses, of any worker: a socket cannot change its runtime.
    fn close_an_unused_one(&self) -> bool {
        self.idle.iter().any(|list| self.lock(list).pop().is_some())
    }

    fn is_young(&self, idle: &Idle, now: Micros) -> bool {
        u128::from(now.saturating_sub(idle.since)) < self.settings.idle_timeout.as_micros()
    }

    fn lock<'l>(&self, list: &'l Mutex<Vec<Idle>>) -> std::sync::MutexGuard<'l, Vec<Idle>> {
        list.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One worker's way to the upstream; cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Worker>);

struct Worker {
    shared: Arc<Connections>,
    index: usize,
    door: Arc<Door>,
    http2: http2::Shared,
}

impl Upstream {
    /// The way of worker `index`.
    pub fn new(shared: Arc<Connections>, index: usize) -> Self {
        let door = shared.overload.door(index);
        Self(Arc::new(Worker { shared, index, door, http2: http2::Shared::default() }))
    }

    /// How it is reached.
    pub fn settings(&self) -> &Settings {
        &self.0.shared.settings
    }

    /// Whether there is room for what nobody waits for; counted as shed if not.
    pub fn has_spare(&self) -> bool {
        self.0.shared.overload.has_spare()
    }

    /// Why there is no room to wait for another's fetch; counted as shed.
    pub fn key_queue_full(&self) -> Failure {
        Failure::Shed(self.0.shared.overload.key_queue_full())
    }

    /// Sends a request, perhaps after a wait in line, and waits for the response's head.
    ///
    /// What was never sent is tried again, and so is a safe request without a body that was not answered, up to `retries`
    /// times in all, and within the budget of the process.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(&self, mut request: Request<Body>, patience: Patience) -> Result<Reply, Failure> {
        let overload = &self.0.shared.overload;
        if !matches!(request.body(), Body::Empty | Body::Full(_)) {
            overload.foresee(&self.0.door).map_err(Failure::Shed)?;
        }
        let is_expected = request.extensions().get::<Expected>().is_some();
        let upload = match overload.uploads().receive(request.body_mut(), is_expected).await {
            Ok(upload) => upload,
            Err(Unreceived::NoTurn) => return Err(Failure::Shed(overload.no_turn())),
            Err(Unreceived::Body(error)) => return Err(Failure::RequestBody { error, was_begun: false }),
        };
        let mut place = overload.enter(&self.0.door, patience.may_queue).await.map_err(Failure::Shed)?;
        if let Some(upload) = upload {
            place.lend(upload, request.body_mut());
        }
        overload.sending();
        let repeatable = is_repeatable(&request);
        let mut attempts_left = self.settings().retries;
        let mut fresh_only = false;
        let mut attempt = overload.attempt(place.upload().is_none()).map_err(Failure::Shed)?;
        loop {
            let failure = match self.attempt(&mut request, patience, fresh_only, place.upload()).await {
                Ok(sent) => match sent.judged(&request) {
                    Ok(Sent { at, what }) => {
                        attempt.succeeded();
                        let answered = overload.now();
                        return Ok(match what {
                            What::Whole(reply) => {
                                drop(place.answered(at, answered));
                                reply
                            }
                            // A tunnel is no exchange: it may last for hours.
                            What::Begun(connection, head) if head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                                http1::receive(connection, head, self.clone(), answered)
                            }
                            What::Begun(connection, head) => {
                                let connection = connection.within(place.answered(at, answered));
                                http1::receive(connection, head, self.clone(), answered)
                            }
                        });
                    }
                    Err(failure) => Failed { failure, was_reused: false },
                },
                Err(failed) => failed,
            };
            tell(attempt, &failure);
            let Failed { failure, .. } = failure;
            let again = match &failure {
                Failure::Connect(_) | Failure::ConnectTimeout => true,
                Failure::Closed(_) => repeatable,
                _ => false,
            };
            if !again || attempts_left == 0 {
                return Err(failure);
            }
            let Some(next) = overload.again() else { return Err(failure) };
            (attempt, attempts_left) = (next, attempts_left - 1);
            // An unused connection may have been closed by the other side at this very moment; a new one has not.
            fresh_only = true;
        }
    }

    async fn attempt(
        &self,
        request: &mut Request<Body>,
        patience: Patience,
        fresh_only: bool,
        upload: Option<&Upload>,
    ) -> Result<Sent, Failed> {
        let overload = &self.0.shared.overload;
        if self.settings().protocol == Protocol::Http2 {
            let at = overload.now();
            let reply = http2::exchange(self, request, patience, upload).await;
            return reply
                .map(|reply| Sent { at, what: What::Whole(reply) })
                .map_err(|failure| Failed { failure, was_reused: false });
        }
        let connection = self.connection(fresh_only).await;
        let (mut connection, at) = connection.map_err(|failure| Failed { failure, was_reused: false })?;
        let was_reused = connection.was_used();
        match http1::exchange(&mut connection, request, patience).await {
            Ok(head) => Ok(Sent { at, what: What::Begun(connection, head) }),
            Err(failure) => Err(Failed { failure, was_reused }),
        }
    }

    /// An open connection, an unused one or else a new one, and since when it is there.
    async fn connection(&self, fresh_only: bool) -> Result<(Connection, Micros), Failure> {
        let now = self.now();
        if !fresh_only && let Some(connection) = self.unused(now) {
            return Ok((connection, now));
        }
        let permit = self.claim().await?;
        let socket = self.connect().await?;
        Ok((Connection::new(socket, Some(permit)), self.now()))
    }

    /// By the clock that all of it goes by.
    pub(super) fn now(&self) -> Micros {
        self.0.shared.overload.now()
    }

    /// Leave to open a connection. Whoever asks has a place in flight, so that where all are open one is unused.
    async fn claim(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let shared = &self.0.shared;
        for _ in 0..CLAIMS {
            if let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() {
                return Ok(permit);
            }
            if !shared.close_an_unused_one() {
                tokio::task::yield_now().await;
            }
        }
        self.permit().await
    }

    /// Leave to open a connection, after a wait if need be.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = Arc::clone(&self.0.shared.permits).acquire_owned();
        let permit = timeout(self.settings().queue_timeout, permit).await;
        permit.ok().and_then(Result::ok).ok_or_else(|| self.no_connection())
    }

    /// No connection came free in time.
    pub(super) fn no_connection(&self) -> Failure {
        Failure::Shed(self.0.shared.overload.no_connection())
    }

    pub(super) fn http2(&self) -> &http2::Shared {
        &self.0.http2
    }

    fn unused(&self, now: Micros) -> Option<Connection> {
        let shared = &self.0.shared;
        loop {
            let mut idle = shared.lock(&shared.idle[self.0.index]).pop()?;
            if shared.is_young(&idle, now) && idle.connection.is_quiet() {
                return Some(idle.connection);
            }
            idle.connection.farewell();
        }
    }

    /// Takes back a connection whose exchange ended cleanly at `since`.
    pub(super) fn give_back(&self, connection: Connection, since: Micros) {
        let shared = &self.0.shared;
        shared.lock(&shared.idle[self.0.index]).push(Idle { connection, since });
    }

    pub(super) async fn connect(&self) -> Result<Socket, Failure> {
        let settings = self.settings();
        let opened = async {
            match &settings.target {
                Target::Tcp { host, port, .. } => {
                    let stream = connect_tcp(host, *port).await?;
                    match self.0.shared.tls.load_full() {
                        None => Ok(Socket::Tcp(stream)),
                        Some(tls) => tls.connect(stream).await.map(Socket::Tls),
                    }
                }
                Target::Unix(path) => tokio::net::UnixStream::connect(path).await.map(Socket::Unix),
            }
        };
        match timeout(settings.connect_timeout, opened).await {
            Ok(opened) => opened.map_err(Failure::Connect),
            Err(_) => Err(Failure::ConnectTimeout),
        }
    }
}

/// A request that was answered, and when it was sent.
struct Sent {
    at: Micros,
    what: What,
}

enum What {
    /// By HTTP/2.
    Whole(Reply),
    /// By HTTP/1, whose connection the body still has to come over.
    Begun(Connection, Head),
}

/// An attempt that failed.
struct Failed {
    failure: Failure,
    /// Whether over a connection that had carried others before.
    was_reused: bool,
}

impl Sent {
    /// What was not asked for is no answer.
    fn judged(self, request: &Request<Body>) -> Result<Self, Failure> {
        let status = match &self.what {
            What::Whole(reply) => reply.response.status(),
            What::Begun(_, head) => head.status(),
        };
        if status == StatusCode::SWITCHING_PROTOCOLS && !request.headers().contains_key(header::UPGRADE) {
            return Err(Failure::Malformed("it switches protocols unasked"));
        }
        Ok(self)
    }
}

/// Tells the breaker of a failure, if it is one of the upstream's.
fn tell(attempt: Attempt<'_>, failed: &Failed) {
    match &failed.failure {
        // Closed while it was unused: a new connection will tell.
        Failure::Closed(_) if failed.was_reused => {}
        // Ours, and the client's.
        Failure::Shed(_) | Failure::RequestBody { .. } => {}
        failure => attempt.failed(failure),
    }
}

/// Whether a second copy of the request can do no harm (RFC 9110 section 9.2.1) and can be made.
fn is_repeatable(request: &Request<Body>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && matches!(request.body(), Body::Empty)
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<tokio::net::TcpStream> {
    let stream = match host.parse() {
        Ok(ip) => tokio::net::TcpStream::connect(SocketAddr::new(ip, port)).await?,
        Err(_) => tokio::net::TcpStream::connect((host, port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}
