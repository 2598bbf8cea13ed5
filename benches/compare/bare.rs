//! The yardsticks of the comparison: a bare hyper server that answers from memory, and a plain hyper forwarder.
//!
//! `bare origin [PORT]` answers `/<anything>?size=N` (1024 bytes where it says nothing) with a lifetime of an hour;
//! `bare forward PORT UPSTREAM_PORT` forwards every request over a pool of kept connections, and does nothing else.
//! Both are one current-thread runtime, as one worker of Weir's is.

use std::cell::RefCell;
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

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let port = |at: usize| args.get(at).and_then(|text| text.parse::<u16>().ok()).unwrap_or(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let upstream = (args.first().map(String::as_str) == Some("forward")).then(|| port(2));
    LocalSet::new().block_on(&runtime, serve(port(1), upstream));
}

async fn serve(port: u16, upstream: Option<u16>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
    println!("{}", listener.local_addr().expect("it is bound").port());
    let idle = Rc::new(RefCell::new(Vec::new()));
    let sizes = Rc::new(RefCell::new(std::collections::HashMap::new()));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let (idle, sizes) = (Rc::clone(&idle), Rc::clone(&sizes));
        spawn_local(async move {
            let service = service_fn(|request| {
                let (idle, sizes) = (Rc::clone(&idle), Rc::clone(&sizes));
                async move {
                    Ok::<_, Infallible>(match upstream {
                        None => answer(&mut sizes.borrow_mut(), &request),
                        Some(port) => forward(&idle, port, request).await,
                    })
                }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(sizes: &mut std::collections::HashMap<usize, Bytes>, request: &Request<Incoming>) -> Response<Bare> {
    let size = request.uri().query().and_then(|query| query.strip_prefix("size=")?.parse().ok()).unwrap_or(1024);
    let body = sizes.entry(size).or_insert_with(|| vec![b'x'; size].into()).clone();
    let mut response = Response::new(Either::Left(Full::new(body)));
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response
}

async fn forward(idle: &RefCell<Vec<SendRequest<Incoming>>>, port: u16, request: Request<Incoming>) -> Response<Bare> {
    let kept = loop {
        let Some(mut sender) = idle.borrow_mut().pop() else { break None };
        if sender.ready().await.is_ok() {
            break Some(sender);
        }
    };
    let sender = match kept {
        Some(sender) => Some(sender),
        None => connect(port).await,
    };
    let failed = || {
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    };
    let Some(mut sender) = sender else { return failed() };
    match sender.send_request(request).await {
        Ok(response) => {
            idle.borrow_mut().push(sender);
            response.map(Either::Right)
        }
        Err(_) => failed(),
    }
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
