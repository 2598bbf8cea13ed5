//! The yardsticks of the comparison: a bare hyper server that answers from memory, and a plain hyper forwarder.
//!
//! `bare origin PORT` answers `/<anything>?size=N` (1024 bytes where it says nothing) with a lifetime of an hour, and
//! `/count` with the number of requests before it. `bare forward PORT UPSTREAM_PORT` forwards every request over a pool
//! of kept connections, and does nothing else. Both are one current-thread runtime, as one worker of Weir's is.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

type Bare = Either<Full<Bytes>, Incoming>;

/// Most bytes that `size` gives; a larger one counts as this.
const SIZE_MAX: usize = 128 << 20;
/// Most bodies of different sizes that are kept; the sizes of a comparison are few.
const SIZES_MAX: usize = 64;

/// What one program does with a request.
enum Role {
    Origin(Origin),
    Forward(Forward),
}

#[derive(Default)]
struct Origin {
    answered: Cell<u64>,
    bodies: RefCell<HashMap<usize, Bytes>>,
}

struct Forward {
    port: u16,
    idle: RefCell<Vec<SendRequest<Incoming>>>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let port = |text: &str| text.parse::<u16>().expect("a port is a number up to 65535");
    let (at, role) = match args[..] {
        ["origin", at] => (port(at), Role::Origin(Origin::default())),
        ["forward", at, to] => (port(at), Role::Forward(Forward { port: port(to), idle: RefCell::default() })),
        _ => panic!("usage: bare origin PORT | bare forward PORT UPSTREAM_PORT"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, serve(at, Rc::new(role)));
}

async fn serve(port: u16, role: Rc<Role>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let role = Rc::clone(&role);
        spawn_local(async move {
            let service = service_fn(|request| {
                let role = Rc::clone(&role);
                async move {
                    Ok::<_, Infallible>(match &*role {
                        Role::Origin(origin) => origin.answer(&request),
                        Role::Forward(forward) => forward.answer(request).await,
                    })
                }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Origin {
    fn answer(&self, request: &Request<Incoming>) -> Response<Bare> {
        let is_count = request.uri().path() == "/count";
        let body = if is_count {
            self.answered.get().to_string().into()
        } else {
            self.answered.set(self.answered.get() + 1);
            let size = request.uri().query().and_then(|query| query.strip_prefix("size=")?.parse().ok());
            self.body(size.unwrap_or(1024))
        };
        let mut response = Response::new(Either::Left(Full::new(body)));
        let lifetime = if is_count { "no-store" } else { "max-age=3600" };
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static(lifetime));
        response
    }

    fn body(&self, size: usize) -> Bytes {
        let size = size.min(SIZE_MAX);
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() >= SIZES_MAX && !bodies.contains_key(&size) {
            bodies.clear();
        }
        bodies.entry(size).or_insert_with(|| vec![b'x'; size].into()).clone()
    }
}

impl Forward {
    async fn answer(&self, request: Request<Incoming>) -> Response<Bare> {
        let Some(mut sender) = self.sender().await else { return bad_gateway() };
        let Ok(response) = sender.send_request(request).await else { return bad_gateway() };
        self.idle.borrow_mut().push(sender);
        response.map(Either::Right)
    }

    /// The connection that was used last among those that have finished their answers, or a new one.
    async fn sender(&self) -> Option<SendRequest<Incoming>> {
        let kept = {
            let mut idle = self.idle.borrow_mut();
            idle.retain(|sender| !sender.is_closed());
            idle.iter().rposition(SendRequest::is_ready).map(|at| idle.swap_remove(at))
        };
        match kept {
            Some(sender) => Some(sender),
            None => connect(self.port).await,
        }
    }
}

fn bad_gateway() -> Response<Bare> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

async fn connect(port: u16) -> Option<SendRequest<Incoming>> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    spawn_local(async move {
        let _ = connection.await;
    });
    Some(sender)
}
