//! The operator's port: metrics, probes, drain and the invalidation door, on a thread of its own.
//!
//! Nothing here runs on a worker: a scrape of many series takes no request's time, and a flood of requests leaves the
//! probes answered. Everything is bounded: connections ([`CONNECTIONS`]; the oldest idle one makes room, so that probes
//! get through whoever else holds the port), heads, bodies and the time of one request.

mod access;
mod api;
pub mod client;
mod explain;
mod limits;
pub mod readiness;
mod shown;

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

pub use self::readiness::Readiness;
use crate::clock::Clock;
use crate::config::Secret;
use crate::invalidation::{Confirmation, Invalidation, Position, Receipt};
use crate::limit::view::{Asked, Problem};
use crate::message::question::Question;
use crate::metrics::{Door, Metrics};
use crate::syntax::SyntaxError;
use crate::syntax::selector::Order;

/// Open connections; probes, a few scrapers and people need a handful.
pub const CONNECTIONS: usize = 64;

/// Longest that a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// Longest that a request may take, its body and Redis included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept: the process is out of descriptors, and asking at once again would only burn its time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Lines about what works only in part.
pub type Condition = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// The token that changes need, shared with whoever reloads the configuration.
pub type Token = Arc<ArcSwapOption<Secret>>;

/// What an invalidation order comes to, in time.
pub type Submission<'a> = Pin<Box<dyn Future<Output = Result<Receipt, SyntaxError>> + 'a>>;

/// What a wait for every pod comes to.
pub type Confirming<'a> = Pin<Box<dyn Future<Output = Confirmation> + 'a>>;

/// Takes invalidation orders.
pub trait Invalidate: Send + Sync {
    /// Logs and applies `order`.
    fn submit<'a>(&'a self, order: &'a Order) -> Submission<'a>;

    /// Waits until every pod has applied what is at `position`, or for `wait`.
    fn confirmed(&self, position: Position, wait: Option<Duration>) -> Confirming<'_>;
}

impl Invalidate for Invalidation {
    fn submit<'a>(&'a self, order: &'a Order) -> Submission<'a> {
        Box::pin(Invalidation::submit(self, order, Door::Admin))
    }

    fn confirmed(&self, position: Position, wait: Option<Duration>) -> Confirming<'_> {
        Box::pin(Invalidation::confirmed(self, position, wait))
    }
}

/// What explaining a request comes to, in time.
pub type Explanation<'a> = Pin<Box<dyn Future<Output = Result<String, SyntaxError>> + 'a>>;

/// Explains requests.
pub trait Explain: Send + Sync {
    /// What would be done with a request and why, as text or as JSON. Nothing is changed by it.
    fn explain<'a>(&'a self, question: &'a Question, json: bool) -> Explanation<'a>;
}

/// What a question about an identity comes to, in time.
pub type Viewed<'a> = Pin<Box<dyn Future<Output = Result<Value, Problem>> + 'a>>;

/// Shows limits.
pub trait Limits: Send + Sync {
    /// All limits, what they decided, and who is denied most.
    fn list(&self) -> Value;

    /// The state of one identity; nothing is charged.
    fn state<'a>(&'a self, asked: &'a Asked) -> Viewed<'a>;

    /// Makes one identity as good as new.
    fn reset<'a>(&'a self, asked: &'a Asked) -> Viewed<'a>;
}

/// A text that is replaced with each reload.
pub type Shown = Arc<ArcSwap<String>>;

/// What the port shows and moves.
pub struct AdminState {
    /// Shown at `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The time of a scrape.
    pub clock: Clock,
    /// Behind `POST /invalidate`.
    pub invalidation: Arc<dyn Invalidate>,
    /// Behind `GET /explain`.
    pub explain: Arc<dyn Explain>,
    /// Behind `/limits`.
    pub limits: Arc<dyn Limits>,
    /// Behind `GET /config`: what is in force, as TOML without secrets.
    pub config: Shown,
    /// What changes need.
    pub token: Token,
    /// Behind `/readyz`, and drained by `/drain`.
    pub readiness: Readiness,
    /// What `/readyz?verbose` says beyond that, by lines.
    pub condition: Condition,
    /// Becomes true with `/drain`.
    pub drain: watch::Sender<bool>,
}

/// A port that is taken and not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// Takes `address`; port 0 takes a free one.
///
/// # Errors
/// The address is taken, or not one of this host's.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `state` on a thread of its own until the handle is dropped.
    ///
    /// # Errors
    /// No thread or no runtime to be had.
    pub fn serve(self, state: AdminState) -> io::Result<Serving> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener)?
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("weir-admin".to_owned()).spawn(move || {
            let state = Rc::new(api::Api::new(state));
            LocalSet::new().block_on(&runtime, accept(listener, &state, &stopped));
        })?;
        Ok(Serving { stop, thread: Some(thread) })
    }
}

/// A port that is served; dropped, it is closed.
#[derive(Debug)]
pub struct Serving {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook; there is nothing left to do about it.
            let _ = thread.join();
        }
    }
}

/// Takes connections until `stop`; those still open end with it.
async fn accept(listener: tokio::net::TcpListener, state: &Rc<api::Api>, stop: &CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::with_capacity(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(problem) => {
                tracing::warn!(%problem, "the admin port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        make_room(&mut open);
        let busy = Rc::new(Cell::new(false));
        let task = tasks.spawn_local(serve(stream, peer, Rc::clone(state), Rc::clone(&busy)));
        open.push_back(Open { busy, task });
    }
}

/// A connection that is open.
struct Open {
    /// A request of it is being answered.
    busy: Rc<Cell<bool>>,
    task: AbortHandle,
}

/// Leaves room for one more: the oldest idle connection goes, or the oldest of all.
fn make_room(open: &mut VecDeque<Open>) {
    open.retain(|connection| !connection.task.is_finished());
    while open.len() >= CONNECTIONS {
        let oldest_idle = open.iter().position(|connection| !connection.busy.get()).unwrap_or_default();
        if let Some(connection) = open.remove(oldest_idle) {
            connection.task.abort();
        }
    }
}

/// Answers one connection's requests.
async fn serve(stream: TcpStream, peer: SocketAddr, state: Rc<api::Api>, busy: Rc<Cell<bool>>) {
    // Without it a small answer may wait for the peer's acknowledgement; the answer is the same.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let (state, busy) = (Rc::clone(&state), Rc::clone(&busy));
        async move {
            busy.set(true);
            let answer = match tokio::time::timeout(REQUEST_TIMEOUT, state.answer(peer.ip(), request)).await {
                Ok(api::Answer::Ready(reply)) => reply,
                Ok(api::Answer::Waits(receipt, wait)) => state.confirm(receipt, wait).await,
                Err(_) => api::timed_out(),
            };
            busy.set(false);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(problem) = connection.await {
        tracing::debug!(%peer, %problem, "an admin connection broke");
    }
}

#[cfg(test)]
mod tests;
