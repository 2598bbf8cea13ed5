//! Whatever the upstream answers, and however it is cut, a fetch ends in time, in the same way.
//!
//! Input: a byte that says how long the cuts are, then what the upstream sends before it closes.
#![no_main]

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use weir::message::Body;
use weir::metrics::Metrics;
use weir::proxy::upstream::{Connections, Patience, Upstream};
use weir_fuzz::{config, fuzz_target, step};

/// Far beyond what an answer takes; what is not over then hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most writes of one input: more only cost time.
const WRITES: usize = 64;

/// The answer, if there was one, and its body with its trailers, if it came to its end.
type Outcome = Option<(StatusCode, HeaderMap, Option<(Bytes, Option<HeaderMap>)>)>;

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fuzz_target!(|data: &[u8]| {
    let Some((step, answer)) = step(data) else { return };
    RUNTIME.with(|runtime| {
        let whole = runtime.block_on(fetch(answer, answer.len().max(1)));
        let cut = runtime.block_on(fetch(answer, step.max(answer.len() / WRITES)));
        // Bytes behind an answer's end say that it is none, if they are there when it is read.
        let allowed = match (&whole, &cut) {
            (None, _) => true,
            (Some((status, fields, None)), Some((other, others, _))) => (status, fields) == (other, others),
            (Some(_), _) => whole == cut,
        };
        assert!(allowed, "{whole:?}, and in pieces {cut:?}");
    });
});

async fn fetch(answer: &[u8], step: usize) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let settings = config(&format!("[upstream]\nurl = \"http://127.0.0.1:{port}\"\nretries = 0\n")).upstream;
    let metrics = Metrics::new(Registry::new());
    let upstream = Upstream::new(Connections::new(settings, 1, &metrics), 0);
    let both = async {
        tokio::select! {
            outcome = ask(&upstream) => outcome,
            never = serve(listener, answer, step) => match never {},
        }
    };
    tokio::time::timeout(2 * PATIENCE, both).await.expect("a fetch ends")
}

async fn serve(listener: TcpListener, answer: &[u8], step: usize) -> Infallible {
    let (mut socket, _) = listener.accept().await.expect("Weir connects");
    socket.set_nodelay(true).expect("a socket");
    let mut request = [0; 1024];
    let _ = socket.read(&mut request).await;
    for piece in answer.chunks(step) {
        if socket.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let _ = socket.shutdown().await;
    // Open until Weir is done with it: a close would take back what it has not read.
    std::future::pending().await
}

async fn ask(upstream: &Upstream) -> Outcome {
    let request = Request::get("/").header("host", "a.example").body(Body::default()).expect("a request");
    let patience = Patience { may_queue: true, response: PATIENCE, body_idle: PATIENCE };
    let reply = upstream.send(request, patience).await.ok()?;
    let (parts, body) = reply.response.into_parts();
    let body = body.collect().await.ok().map(|body| {
        let trailers = body.trailers().cloned();
        (body.to_bytes(), trailers)
    });
    Some((parts.status, parts.headers, body))
}
