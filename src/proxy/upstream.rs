//! The service behind this Weir: its connections, under one cap for the process, and one exchange on one of them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::http1::{self, Connection};
use super::http2;
use super::socket::Socket;
use super::tls::Tls;
use crate::clock::{Clock, SteadyMs};
use crate::config::{Protocol, Target, Upstream as Settings};
use crate::message::Body;

/// Requests that may wait for a connection, for each connection there may be; more are refused at once.
const QUEUED_PER_CONNECTION: usize = 16;

/// Why no response head came.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be opened.
    Connect(io::Error),
    /// None was opened within `connect_timeout`.
    ConnectTimeout,
    /// None became free within `queue_timeout`.
    QueueTimeout,
    /// Too many requests wait for one already.
    QueueFull,
    /// No head within `response_timeout`.
    ResponseTimeout,
    /// The connection ended before a head came.
    Closed(io::Error),
    /// What came is not HTTP, or can be read two ways.
    Malformed(&'static str),
    /// The client's body ended early.
    RequestBody(crate::message::BodyError),
}

impl Failure {
    /// Whether the upstream may have acted on the request.
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Connect(_) | Self::ConnectTimeout | Self::QueueTimeout | Self::QueueFull => false,
            Self::ResponseTimeout | Self::Closed(_) | Self::Malformed(_) | Self::RequestBody(_) => true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "the upstream refused the connection: {error}"),
            Self::ConnectTimeout => f.write_str("the upstream did not accept a connection in time"),
            Self::QueueTimeout => f.write_str("no connection to the upstream became free in time"),
            Self::QueueFull => f.write_str("too many requests wait for the upstream"),
            Self::ResponseTimeout => f.write_str("the upstream did not answer in time"),
            Self::Closed(error) => write!(f, "the upstream closed the connection without an answer: {error}"),
            Self::Malformed(what) => write!(f, "the upstream's answer is not valid HTTP: {what}"),
            Self::RequestBody(error) => write!(f, "the request's body ended early: {error}"),
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
    /// From the request's last byte to the head.
    pub response: Duration,
    /// Longest silence in a body.
    pub body_idle: Duration,
}

/// What all workers share: the cap, and every worker's unused connections.
pub struct Connections {
    settings: Settings,
    tls: ArcSwapOption<Tls>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// One list a worker, so that the usual case takes a lock that nobody else wants.
    idle: Vec<Mutex<Vec<Idle>>>,
    clock: Clock,
}

struct Idle {
    connection: Connection,
    since: SteadyMs,
}

impl Connections {
    /// For so many workers.
    pub fn new(settings: Settings, workers: usize, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            tls: ArcSwapOption::from_pointee(settings.tls.as_ref().map(|tls| Tls::new(tls, settings.protocol))),
            permits: Arc::new(Semaphore::new(settings.connections.get())),
            waiting: AtomicUsize::new(0),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            settings,
            clock,
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
        let now = self.clock.steady();
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

    fn is_young(&self, idle: &Idle, now: SteadyMs) -> bool {
        u128::from(now.saturating_sub(idle.since)) < self.settings.idle_timeout.as_millis()
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
    /// Requests of this worker that wait for a connection.
    waiting: AtomicUsize,
    returned: Notify,
    http2: http2::Shared,
}

impl Upstream {
    /// The way of worker `index`.
    pub fn new(shared: Arc<Connections>, index: usize) -> Self {
        Self(Arc::new(Worker {
            shared,
            index,
            waiting: AtomicUsize::new(0),
            returned: Notify::new(),
            http2: http2::Shared::default(),
        }))
    }

    /// How it is reached.
    pub fn settings(&self) -> &Settings {
        &self.0.shared.settings
    }

    /// Sends a request and waits for the response's head.
    ///
    /// What was never sent is tried again, and so is a safe request without a body that was not answered, up to `retries`
    /// times in all.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn send(&self, mut request: Request<Body>, patience: Patience) -> Result<Reply, Failure> {
        let repeatable = is_repeatable(&request);
        let mut attempts_left = self.settings().retries;
        let mut fresh_only = false;
        loop {
            let failure = match self.attempt(&mut request, patience, fresh_only).await {
                Ok(reply)
                    if reply.response.status() == StatusCode::SWITCHING_PROTOCOLS
                        && !request.headers().contains_key(header::UPGRADE) =>
                {
                    Failure::Malformed("it switches protocols unasked")
                }
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            let again = match &failure {
                Failure::Connect(_) | Failure::ConnectTimeout => true,
                Failure::Closed(_) => repeatable,
                _ => false,
            };
            if !again || attempts_left == 0 {
                return Err(failure);
            }
            attempts_left -= 1;
            // An unused connection may have been closed by the other side at this very moment; a new one has not.
            fresh_only = true;
        }
    }

    async fn attempt(
        &self,
        request: &mut Request<Body>,
        patience: Patience,
        fresh_only: bool,
    ) -> Result<Reply, Failure> {
        if self.settings().protocol == Protocol::Http2 {
            return http2::exchange(self, request, patience).await;
        }
        let mut connection = self.connection(fresh_only).await?;
        let head = http1::exchange(&mut connection, request, patience).await?;
        Ok(http1::receive(connection, head, self.clone()))
    }

    /// An open connection: an unused one, or a new one when the cap allows, or else the first that becomes free.
    async fn connection(&self, fresh_only: bool) -> Result<Connection, Failure> {
        if !fresh_only && let Some(connection) = self.unused() {
            return Ok(connection);
        }
        let permit = match Arc::clone(&self.0.shared.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => match self.queue().await? {
                Turn::Connection(connection) => return Ok(connection),
                Turn::Permit(permit) => permit,
            },
        };
        let socket = self.connect().await?;
        Ok(Connection::new(socket, Some(permit)))
    }

    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = Arc::clone(&self.0.shared.permits).acquire_owned();
        let permit = timeout(self.settings().queue_timeout, permit).await.map_err(|_| Failure::QueueTimeout)?;
        permit.map_err(|_| Failure::QueueFull)
    }

    pub(super) fn http2(&self) -> &http2::Shared {
        &self.0.http2
    }

    async fn queue(&self) -> Result<Turn, Failure> {
        let shared = &self.0.shared;
        let _waiting = Waiting::join(self)?;
        // Another worker's unused connection holds the permit that this one needs.
        for list in &shared.idle {
            let closed = shared.lock(list).pop();
            if closed.is_some() {
                break;
            }
        }
        let turn = async {
            let mut permit = pin!(Arc::clone(&shared.permits).acquire_owned());
            loop {
                let returned = self.0.returned.notified();
                if let Some(connection) = self.unused() {
                    return Ok(Turn::Connection(connection));
                }
                tokio::select! {
                    permit = &mut permit => return permit.map(Turn::Permit).map_err(|_| Failure::QueueFull),
                    () = returned => {}
                }
            }
        };
        timeout(self.settings().queue_timeout, turn).await.map_err(|_| Failure::QueueTimeout)?
    }

    fn unused(&self) -> Option<Connection> {
        let shared = &self.0.shared;
        let now = shared.clock.steady();
        loop {
            let mut idle = shared.lock(&shared.idle[self.0.index]).pop()?;
            if shared.is_young(&idle, now) && idle.connection.is_quiet() {
                return Some(idle.connection);
            }
            idle.connection.farewell();
        }
    }

    /// Takes back a connection whose exchange ended cleanly.
    pub(super) fn give_back(&self, connection: Connection) {
        let shared = &self.0.shared;
        let waiting_here = self.0.waiting.load(Ordering::Relaxed) > 0;
        if !waiting_here && shared.waiting.load(Ordering::Relaxed) > 0 {
            // Somebody on another worker waits for the permit; a socket cannot change its runtime.
            return;
        }
        let since = shared.clock.steady();
        shared.lock(&shared.idle[self.0.index]).push(Idle { connection, since });
        if waiting_here {
            self.0.returned.notify_one();
        }
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

enum Turn {
    Connection(Connection),
    Permit(OwnedSemaphorePermit),
}

/// Counts a request among those that wait.
struct Waiting<'u>(&'u Upstream);

impl<'u> Waiting<'u> {
    fn join(upstream: &'u Upstream) -> Result<Self, Failure> {
        let shared = &upstream.0.shared;
        let most = shared.settings.connections.get().saturating_mul(QUEUED_PER_CONNECTION);
        if shared.waiting.fetch_add(1, Ordering::Relaxed) >= most {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::QueueFull);
        }
        upstream.0.waiting.fetch_add(1, Ordering::Relaxed);
        Ok(Self(upstream))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.0.shared.waiting.fetch_sub(1, Ordering::Relaxed);
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
