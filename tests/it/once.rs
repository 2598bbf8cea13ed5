//! The catalogue's M5, and what may be sent again: nothing twice that is not safe, and nothing much more often than asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::harness::{Background, Connection, join_all, raw_upstream, request, scale, weir};

const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
"#;

/// What the upstream does with a request, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Answered,
    /// Answered, and the connection closed without a word of it.
    AnsweredThenClosed,
    /// Reset while the request is still unread.
    ResetUnread,
    /// Read, and then reset.
    ResetRead,
    /// Read, and half of an answer.
    HalfAnswered,
    /// Read, and closed without an answer.
    ClosedRead,
}

const FATES: [Fate; 12] = [
    Fate::Answered,
    Fate::AnsweredThenClosed,
    Fate::Answered,
    Fate::ResetRead,
    Fate::Answered,
    Fate::AnsweredThenClosed,
    Fate::Answered,
    Fate::ResetUnread,
    Fate::Answered,
    Fate::HalfAnswered,
    Fate::Answered,
    Fate::ClosedRead,
];

/// A service that fails in every way, and knows what it has read.
struct Treacherous {
    address: SocketAddr,
    state: Arc<State>,
    _background: Background,
}

#[derive(Default)]
struct State {
    turn: AtomicUsize,
    fates: Mutex<HashMap<Fate, usize>>,
    /// Requests that were read whole, by their target.
    read: Mutex<HashMap<String, usize>>,
}

fn treacherous() -> Treacherous {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let state = Arc::new(State::default());
    let served = Arc::clone(&state);
    let background = Background::run("treacherous", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(betray(stream, Arc::clone(&served)));
        }
    });
    Treacherous { address, state, _background: background }
}

async fn betray(mut stream: TcpStream, state: Arc<State>) {
    // A close is a reset from here on, where it is not ordered otherwise.
    let reset = |stream: &TcpStream| socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
    let mut input = Vec::new();
    loop {
        let fate = FATES[state.turn.fetch_add(1, Ordering::SeqCst) % FATES.len()];
        if fate == Fate::ResetUnread {
            // Something has come, and is not read.
            if stream.readable().await.is_ok() {
                *state.fates.lock().expect("no panic while held").entry(fate).or_default() += 1;
                reset(&stream).expect("an option");
            }
            return;
        }
        let Some(target) = read_request(&mut stream, &mut input).await else { return };
        *state.read.lock().expect("no panic while held").entry(target).or_default() += 1;
        *state.fates.lock().expect("no panic while held").entry(fate).or_default() += 1;
        let answer: &[u8] = match fate {
            Fate::HalfAnswered => b"HTTP/1.1 200 OK\r\ncontent-le",
            Fate::ResetRead | Fate::ClosedRead | Fate::ResetUnread => b"",
            Fate::Answered | Fate::AnsweredThenClosed => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        let is_over = stream.write_all(answer).await.is_err() || fate != Fate::Answered;
        if fate == Fate::ResetRead {
            reset(&stream).expect("an option");
        }
        if is_over {
            return;
        }
    }
}

/// The target of the next request, once all of it is there.
async fn read_request(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<String> {
    const BODY: usize = 4;
    loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n")
            && input.len() >= end + 4 + BODY
        {
            let rest = input.split_off(end + 4 + BODY);
            let whole = String::from_utf8(std::mem::replace(input, rest)).expect("text");
            return whole.split(' ').nth(1).map(str::to_owned);
        }
        match stream.read_buf(input).await {
            Ok(1..) => {}
            _ => return None,
        }
    }
}

#[tokio::test]
async fn thousands_of_posts_reach_a_treacherous_service_once_or_their_clients_see_an_error() {
    const CLIENTS: usize = 24;
    let posts = scale("WEIR_POSTS", 4_000) / CLIENTS;
    let up = treacherous();
    // The breaker would keep most of them from it.
    let weir = weir(ROUTES).to(format!("http://{}", up.address)).set("upstream.breaker", false).start().await;
    let proxy = weir.proxy;
    let client = |client: usize| async move {
        let mut connection = Connection::open(proxy).await;
        let mut seen = Vec::new();
        for post in 0..posts {
            let target = format!("/pay/{client}/{post}");
            let answer = connection.send(&request("POST", &target).body("once")).await;
            seen.push((target, answer.status));
            if !connection.reusable {
                connection = Connection::open(proxy).await;
            }
        }
        seen
    };
    let tasks: Vec<_> = (0..CLIENTS).map(|i| tokio::spawn(client(i))).collect();
    let seen: Vec<_> = join_all(tasks).await.into_iter().flat_map(|seen| seen.expect("no panic")).collect();
    let read = up.state.read.lock().expect("no panic while held").clone();
    let (mut succeeded, mut failed_and_read) = (0, 0);
    for (target, status) in &seen {
        let times = read.get(target).copied().unwrap_or_default();
        assert!(times <= 1, "{target} was sent {times} times");
        match status {
            200 => {
                succeeded += 1;
                assert_eq!(times, 1, "{target} succeeded and was never read");
            }
            502..=504 => failed_and_read += times,
            other => panic!("{target}: {other}"),
        }
    }
    let fates = up.state.fates.lock().expect("no panic while held").clone();
    eprintln!("{} POSTs, {succeeded} succeeded, {failed_and_read} failed though read; {fates:?}", seen.len());
    assert!(succeeded * 2 > seen.len() && succeeded < seen.len(), "{succeeded} of {}", seen.len());
    for fate in FATES {
        assert!(fates.get(&fate).is_some_and(|times| *times >= 50), "too few of {fate:?}: {fates:?}");
    }
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    const REQUESTS: usize = 800;
    let up = raw_upstream(b"", true);
    let weir = weir(ROUTES).to(up.url()).set("upstream.retries", 3).set("upstream.breaker", false).start().await;
    let (proxy, began) = (weir.proxy, Instant::now());
    let client = || async move {
        let mut connection = Connection::open(proxy).await;
        for _ in 0..REQUESTS / 8 {
            assert_eq!(connection.send(&crate::harness::get("/x")).await.status, 502);
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(client())).collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // What was saved up, a fifth of the requests, and ten a second.
    let most = REQUESTS + 100 + REQUESTS / 5 + (began.elapsed().as_secs_f64() * 10.0) as usize + 1;
    let attempts = up.used_connections();
    eprintln!("{attempts} attempts for {REQUESTS} requests, {most} at most");
    assert!(attempts > REQUESTS + 100 && attempts <= most, "{attempts} attempts");
    assert!(weir.metric(r#"weir_upstream_retries_total{result="over_budget"}"#).await > 0.0);
    let made = weir.metric(r#"weir_upstream_retries_total{result="made"}"#).await;
    assert_eq!(made as usize + REQUESTS, attempts);
}
