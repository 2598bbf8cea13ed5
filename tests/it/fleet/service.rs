//! The service behind the fleet: every answer says which version of its key it is, and when it was asked for.

use std::collections::BTreeMap;
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

/// What an answer under [`SLOW`] and [`OWN`] takes.
pub const SLOWLY: Duration = Duration::from_secs(1);

/// Paths below this are answered slowly, by how often they were asked for.
pub const SLOW: &str = "/slow/";

/// So are those, and nobody may store it.
pub const OWN: &str = "/own/";

/// Paths below this are answered at once.
pub const DIRECT: &str = "/direct/";

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
    /// How often each path was asked for that is answered slowly.
    asked: Mutex<BTreeMap<String, usize>>,
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

    /// How often a path was asked for that is answered slowly.
    pub fn asked(&self, path: &str) -> usize {
        self.asked.lock().expect("no panic while held").get(path).copied().unwrap_or(0)
    }

    /// A request for such a path; how many there were, with it.
    fn ask(&self, path: &str) -> usize {
        let mut asked = self.asked.lock().expect("no panic while held");
        let count = asked.entry(path.to_owned()).or_default();
        *count += 1;
        *count
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
    let state = Arc::new(State {
        began: Instant::now(),
        versions,
        last_asked: AtomicUsize::new(0),
        fetches: Mutex::default(),
        asked: Mutex::default(),
    });
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
        let (method, path) = (words.next()?, words.next()?);
        if let Some(answer) = aside(&state, path).await {
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        let key = key_of(path)?;
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

/// Paths that are no key's.
async fn aside(state: &State, path: &str) -> Option<String> {
    let (body, fields) = if path.starts_with(DIRECT) {
        (String::new(), "")
    } else {
        let fields = match path {
            _ if path.starts_with(SLOW) => "",
            _ if path.starts_with(OWN) => "cache-control: no-store\r\n",
            _ => return None,
        };
        let count = state.ask(path);
        tokio::time::sleep(SLOWLY).await;
        (count.to_string(), fields)
    };
    Some(format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len()))
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
