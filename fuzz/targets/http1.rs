//! Whatever a client sends, its connection ends in time, and its answers are the same however the bytes are cut, as far as
//! they go: who closes its side may have left, and is owed none that is not ready.
//!
//! Input: a byte that says how long the cuts are, then what the client sends. What reaches the service is checked there.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use prometheus::Registry;
use weir::clock::Clock;
use weir::message::interim::Interim;
use weir::message::{Answer, Body, Peer};
use weir::metrics::Metrics;
use weir::server::{self, Running, Service, Settings};
use weir_fuzz::{NOW, config, fuzz_target, step};

/// Far beyond what an answer takes; a connection still open then hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most writes of one input: more only cost time.
const WRITES: usize = 64;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let Some((step, input)) = step(data) else { return };
    let whole = exchange(input, input.len().max(1));
    let cut = exchange(input, step.max(input.len() / WRITES));
    // The frames of HTTP/2 come as they come.
    if !input.starts_with(b"PRI ")
        && let (Some(whole), Some(cut)) = (whole, cut)
    {
        let common = whole.len().min(cut.len());
        assert_eq!(whole[..common].escape_ascii().to_string(), cut[..common].escape_ascii().to_string());
    }
});

/// What is answered, or nothing where a reset took it away.
fn exchange(input: &[u8], step: usize) -> Option<Vec<u8>> {
    let mut socket = TcpStream::connect(address()).expect("the server listens");
    socket.set_nodelay(true).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    for piece in input.chunks(step) {
        if socket.write_all(piece).is_err() {
            break;
        }
    }
    let _ = socket.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match socket.read_to_end(&mut answers) {
        Ok(_) => Some(without_continue(answers)),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => None,
        Err(error) => panic!("{error} after {:?}", answers.escape_ascii().to_string()),
    }
}

/// Whether a body was asked for depends on whether it had come already.
fn without_continue(mut answers: Vec<u8>) -> Vec<u8> {
    while let Some(at) = answers.windows(CONTINUE.len()).position(|window| window == CONTINUE) {
        answers.drain(at..at + CONTINUE.len());
    }
    answers
}

fn address() -> SocketAddr {
    static SERVER: OnceLock<Running> = OnceLock::new();
    SERVER.get_or_init(serve).address
}

fn serve() -> Running {
    let limits = config("[upstream]\nurl = \"http://127.0.0.1:1\"\n").server.limits;
    let settings = Settings {
        limits: Arc::new(ArcSwap::from_pointee(limits)),
        entrance: Arc::default(),
        metrics: Metrics::new(Registry::new()),
        clock: Clock::fixed(NOW),
    };
    let bound = server::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(server::start(bound, NonZeroUsize::MIN, settings, |_| async { Mirror })).expect("a server")
}

/// Tells the client what reached it.
#[derive(Clone)]
struct Mirror;

impl Service for Mirror {
    async fn call(&self, request: Request<Body>, _: Peer, _: Interim<'_>) -> Answer {
        let (parts, body) = request.into_parts();
        let target = parts.uri.to_string();
        assert!(target.starts_with('/') || target == "*", "{target:?}");
        assert!(parts.version < Version::HTTP_11 || parts.headers.get_all(header::HOST).iter().count() == 1);
        for gone in [header::TRANSFER_ENCODING, header::EXPECT] {
            assert!(!parts.headers.contains_key(gone));
        }
        let body = body.collect().await.map(|body| body.to_bytes());
        let mut answer = Answer::new(StatusCode::OK);
        answer.body = format!("{} {target} {:?}\n{body:?}\n", parts.method, parts.headers).into();
        answer
    }

    fn refuse(&self, status: StatusCode, why: &'static str) -> Answer {
        let mut answer = Answer::new(status);
        answer.body = why.to_owned().into();
        answer
    }
}
