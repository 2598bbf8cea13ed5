//! The service behind the fleet: every answer says which version of its key it is, and when it was asked for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::check::Life;
use super::{GROUP, KEYS, Micros, TAGS};
use crate::harness::Background;

/// Longest that an answer takes: long enough for invalidations to come in the middle.
const LONGEST: Duration = Duration::from_millis(15);

/// One answer that it gave.
#[derive(Debug, Clone, Copy)]
pub struct Fetch {
    /// Of which key.
    pub key: usize,
    /// Who asked.
    pub by: Life,
    /// Which version it got.
    pub version: u64,
    /// When the request came.
    pub from: Micros,
    /// When the answer went.
    pub to: Micros,
}

/// Shared by service and clients.
pub struct State {
    began: Instant,
    versions: Vec<AtomicU64>,
    last_asked: AtomicUsize,
    fetches: Mutex<Vec<Fetch>>,
}

impl State {
    /// Time since the beginning.
    pub fn now(&self) -> Micros {
        self.began.elapsed().as_micros() as Micros
    }

    /// Changes a key; its version from now on.
    pub fn change(&self, key: usize) -> u64 {
        self.versions[key].fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The key that was asked for last.
    pub fn last_asked(&self) -> usize {
        self.last_asked.load(Ordering::Relaxed)
    }

    /// What was answered so far.
    pub fn fetches(&self) -> Vec<Fetch> {
        self.fetches.lock().expect("no panic while held").clone()
    }

    fn answer(&self, key: usize) -> (u64, Micros) {
        self.last_asked.store(key, Ordering::Relaxed);
        (self.versions[key].load(Ordering::SeqCst), self.now())
    }
}

/// A running service.
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it knows.
    pub state: Arc<State>,
    _background: Background,
}

/// Starts one.
pub fn service() -> Service {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let versions = (0..KEYS).map(|_| AtomicU64::new(1)).collect();
    let state =
        Arc::new(State { began: Instant::now(), versions, last_asked: AtomicUsize::new(0), fetches: Mutex::default() });
    let shared = Arc::clone(&state);
    let background = Background::run("service", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(converse(stream, Arc::clone(&shared)));
        }
    });
    Service { address, state, _background: background }
}

/// Answers one request after the other, until the other side leaves.
async fn converse(mut stream: TcpStream, state: Arc<State>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut input = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut input).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(input.drain(..end).collect()).ok()?;
        let mut words = head.split(' ');
        let (method, key) = (words.next()?, key_of(words.next()?)?);
        let answer = if method == "PUT" {
            format!("HTTP/1.1 200 OK\r\nx-version: {}\r\ncontent-length: 0\r\n\r\n", state.change(key))
        } else {
            let (version, from) = state.answer(key);
            tokio::time::sleep(LONGEST.mul_f64((from % 101) as f64 / 100.0)).await;
            let body = format!("{key} {version} {from}");
            let fetch = Fetch { key, by: who_asks(&head)?, version, from, to: state.now() };
            state.fetches.lock().expect("no panic while held").push(fetch);
            let fields = format!("surrogate-key: a{}\r\ncontent-length: {}\r\n", key % TAGS, body.len());
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// The pod and process that a request comes from.
fn who_asks(head: &str) -> Option<Life> {
    let (pod, number) = head.lines().find_map(|line| line.strip_prefix("x-pod: "))?.split_once('.')?;
    Some(Life { pod: pod.parse().ok()?, number: number.parse().ok()? })
}

/// The path of a key.
pub fn path_of(key: usize) -> String {
    format!("/k/{}/{key}", key / GROUP)
}

fn key_of(path: &str) -> Option<usize> {
    path.rsplit('/').next()?.parse().ok().filter(|key| *key < KEYS)
}
