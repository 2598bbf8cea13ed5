//! A service for the server's tests, and a way to talk to it in raw bytes.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;

use super::drain::Drain;
use super::{Context, Service, Spoken};
use crate::clock::Clock;
use crate::config::{Http2Limits, ServerLimits};
use crate::message::interim::Interim;
use crate::message::{Answer, Body, BodyError, BodyFault, Peer, Tunnel};
use crate::metrics::Metrics;

pub(super) const LIMITS: ServerLimits = ServerLimits {
    connections: 100,
    connections_per_client: None,
    head: 4096,
    head_timeout: Duration::from_secs(10),
    body_idle: Duration::from_secs(30),
    body_progress: 1024,
    keep_alive: Duration::from_secs(75),
    http2: Http2Limits {
        streams: 128,
        stream_window: 64 * 1024,
        connection_window: 256 * 1024,
        resets: 200,
        control_frames: 2_000,
        ping_interval: Duration::from_secs(20),
        ping_timeout: Duration::from_secs(20),
    },
};

/// Answers by path, and remembers what it saw.
#[derive(Clone, Default)]
pub(super) struct Sample {
    /// `METHOD target host` of each request.
    pub seen: Arc<Mutex<Vec<String>>>,
    /// Requests whose future ended or was dropped.
    pub over: Arc<AtomicUsize>,
    /// Opens `/gate`.
    pub gate: Arc<Notify>,
    /// How the last request's body ended, where not well.
    pub fault: Arc<Mutex<Option<BodyFault>>>,
}

struct Over(Arc<AtomicUsize>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Pieces for as long as somebody takes them.
struct Endless(#[expect(dead_code, reason = "counts where it is dropped")] Over);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))))
    }
}

/// Frames that are at hand, and then perhaps a silence.
pub(super) struct Frames {
    frames: Vec<Result<Frame<Bytes>, BodyError>>,
    then_silent: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.frames.is_empty() {
            return if self.then_silent { Poll::Pending } else { Poll::Ready(None) };
        }
        Poll::Ready(Some(self.frames.remove(0)))
    }
}

fn frames(pieces: &[&'static str]) -> Frames {
    let frames = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
    Frames { frames, then_silent: false }
}

fn ok(body: impl Into<Body>) -> Answer {
    Answer { body: body.into(), ..Answer::new(StatusCode::OK) }
}

impl Service for Sample {
    async fn call(&self, request: Request<Body>, _: Peer, _: Interim<'_>) -> Answer {
        let _over = Over(Arc::clone(&self.over));
        let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap());
        let line = format!("{} {} {host}", request.method(), request.uri());
        self.seen.lock().unwrap().push(line);
        match request.uri().path() {
            "/echo" => self.echo(request).await,
            "/pending" => pending().await,
            "/gate" => {
                self.gate.notified().await;
                ok(String::from("opened"))
            }
            "/panic" => panic!("as asked"),
            "/endless" => ok(Body::stream(Endless(Over(Arc::clone(&self.over))))),
            "/big" => ok("x".repeat(1 << 20)),
            "/stream" => ok(Body::stream(frames(&["one", "two"]))),
            "/duplex" => {
                let body = request.into_body().map_frame(|frame| Frame::data(frame.into_data().unwrap_or_default()));
                ok(Body::stream(body))
            }
            "/events" => ok(Body::stream(Frames { then_silent: true, ..frames(&["tick"]) })),
            "/trailers" => {
                let mut body = frames(&["one"]);
                let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("1"))]);
                body.frames.push(Ok(Frame::trailers(trailers)));
                ok(Body::stream(body))
            }
            "/cut" => {
                let mut body = frames(&["one"]);
                body.frames.push(Err("cut".into()));
                ok(Body::stream(body))
            }
            "/tunnel" => {
                let (upstream, mut other) = duplex(1024);
                tokio::spawn(async move {
                    let mut heard = String::new();
                    other.read_to_string(&mut heard).await.unwrap();
                    other.write_all(heard.to_uppercase().as_bytes()).await.unwrap();
                });
                let mut answer = Answer::new(StatusCode::SWITCHING_PROTOCOLS);
                answer.fields.insert("upgrade", HeaderValue::from_static("shout"));
                answer.tunnel = Some(Tunnel { upstream: Box::new(upstream), idle: Duration::from_secs(60) });
                answer
            }
            _ => ok(String::from("hello")),
        }
    }

    fn refuse(&self, status: StatusCode, why: &'static str) -> Answer {
        Answer { body: format!("{why}\n").into(), ..Answer::new(status) }
    }
}

impl Sample {
    async fn echo(&self, request: Request<Body>) -> Answer {
        match request.into_body().collect().await {
            Ok(body) => {
                let trailers = body.trailers().map_or(String::new(), |trailers| format!(" {trailers:?}"));
                ok(String::from_utf8(body.to_bytes().to_vec()).unwrap() + &trailers)
            }
            Err(error) => {
                *self.fault.lock().unwrap() = error.downcast_ref().copied();
                Answer::new(StatusCode::BAD_REQUEST)
            }
        }
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn over(&self) -> usize {
        self.over.load(Ordering::SeqCst)
    }
}

/// A served connection; its service, its drain and its client's end.
pub(super) struct Talk {
    pub service: Sample,
    pub drain: Drain,
    pub metrics: Arc<Metrics>,
    pub client: DuplexStream,
    pub served: tokio::task::JoinHandle<()>,
}

pub(super) fn talk() -> Talk {
    talk_with(LIMITS, 64 * 1024)
}

pub(super) fn talk_with(limits: ServerLimits, pipe: usize) -> Talk {
    let (client, io) = duplex(pipe);
    let (service, drain) = (Sample::default(), Drain::default());
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), encrypted: false };
    let (metrics, clock) = (Metrics::new(Registry::new()), Clock::fixed(784_111_777_000));
    let context =
        Context { peer, limits, metrics: Arc::clone(&metrics), clock, drain: drain.watch(), spoken: Spoken::Either };
    let served = tokio::spawn(super::connection(io, service.clone(), context, ()));
    Talk { service, drain, metrics, client, served }
}

impl Talk {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    /// What comes until `end` does.
    pub(super) async fn hear(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            let byte = self.client.read_u8().await;
            let text = || String::from_utf8_lossy(&heard).into_owned();
            heard.push(byte.unwrap_or_else(|_| panic!("ended before {end:?} came: {}", text())));
        }
        String::from_utf8(heard).unwrap()
    }

    /// Everything up to the connection's end; time that is paused runs on to its deadlines.
    pub(super) async fn rest(&mut self) -> String {
        let mut heard = Vec::new();
        self.client.read_to_end(&mut heard).await.unwrap();
        String::from_utf8(heard).unwrap()
    }
}
