use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::server::sample::{LIMITS, Talk, talk, talk_with};

async fn client(talk: Talk) -> (SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>, Talk) {
    let (spare, _) = tokio::io::duplex(1);
    let Talk { service, drain, metrics, client, served } = talk;
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    let connection = tokio::spawn(async move {
        // A connection that the server cut ends in an error.
        let _ = connection.await;
    });
    (send, connection, Talk { service, drain, metrics, client: spare, served })
}

fn request(method: &str, uri: &str, body: &'static str) -> http::request::Builder {
    assert!(body.is_empty() || method == "POST");
    Request::builder().method(method).uri(uri)
}

#[tokio::test(start_paused = true)]
async fn requests_have_the_shape_of_http1() {
    let (mut send, _connection, talk) = client(talk()).await;
    let asked = request("GET", "http://shop.example/a?b", "").header("cookie", "a=1").header("cookie", "b=2");
    let answer = send.send_request(asked.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    let asked = request("POST", "http://shop.example/echo", "x").body(Full::from("said")).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "said");
    let asked = request("HEAD", "http://shop.example/hello", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "5");
    assert_eq!(talk.service.seen()[0], "GET /a?b shop.example");
    let asked = request("GET", "http://shop.example/trailers", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["x-sum"], "1");
}

#[tokio::test(start_paused = true)]
async fn what_is_ambiguous_or_unwanted_is_refused() {
    let (mut send, _connection, talk) = client(talk()).await;
    let cases = [
        (request("GET", "http://a/", "").header("host", "b"), 400),
        (request("GET", "http://a/", "").header("host", "a").header("host", "a"), 400),
        (request("GET", "http://u@a/", ""), 400),
        (request("GET", "http://a/", "").header("expect", "miracles"), 417),
        (request("GET", "http://a/", "").header("expect", "100-continue").header("expect", "x"), 417),
        (request("GET", "http://a/", "").header("x", " y"), 400),
        (request("GET", "http://a/", "").header("transfer_encoding", "chunked"), 400),
        (request("GET", "http://a/", "").header("range", "bytes=0-1").header("range", "bytes=2-3"), 400),
        (request("GET", "ftp://a/", ""), 400),
        (request("GET", "http://a/?\u{e4}", ""), 400),
        (request("get", "http://a/", ""), 400),
        (request("TRACE", "http://a/", ""), 405),
        (request("GET", "http://a/panic", ""), 500),
    ];
    for (asked, status) in cases {
        let answer = send.send_request(asked.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
    }
    assert_eq!(talk.service.seen(), ["GET /panic a"]);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_what_is_in_flight_and_says_goodbye() {
    let (mut send, connection, talk) = client(talk()).await;
    let asked = request("GET", "http://a/gate", "").body(Full::default()).unwrap();
    let waiting = send.send_request(asked);
    let gate = async {
        sleep(Duration::from_millis(10)).await;
        talk.drain.begin();
        sleep(Duration::from_millis(10)).await;
        talk.service.gate.notify_one();
    };
    let (answer, ()) = tokio::join!(waiting, gate);
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "opened");
    talk.served.await.unwrap();
    connection.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unused_and_stalled_connections_end() {
    let began = Instant::now();
    let (mut send, _connection, quiet) = client(talk()).await;
    let asked = request("GET", "http://a/hello", "").body(Full::default()).unwrap();
    send.send_request(asked).await.unwrap().into_body().collect().await.unwrap();
    quiet.served.await.unwrap();
    let took = began.elapsed();
    assert!(took >= LIMITS.keep_alive && took < LIMITS.keep_alive * 5 / 4 + LIMITS.body_idle, "{took:?}");

    let mut silent = talk();
    silent.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let began = Instant::now();
    silent.served.await.unwrap();
    assert!(began.elapsed() < (LIMITS.head_timeout + LIMITS.body_idle) * 5 / 4, "{:?}", began.elapsed());

    // A client that asks for a large answer and takes none of it.
    let (mut send, _connection, stalled) = client(talk()).await;
    let asked = request("GET", "http://a/big", "").body(Full::default()).unwrap();
    let answer = send.send_request(asked).await.unwrap();
    let began = Instant::now();
    stalled.served.await.unwrap();
    assert!(began.elapsed() < (LIMITS.keep_alive + LIMITS.body_idle) * 5 / 4, "{:?}", began.elapsed());
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_answer_is_no_stall() {
    let (mut send, _connection, talk) = client(talk()).await;
    let asked = request("GET", "http://a/events", "").body(Full::default()).unwrap();
    let mut answer = send.send_request(asked).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "tick");
    sleep(LIMITS.keep_alive * 4).await;
    assert!(!talk.served.is_finished());
}

/// A client that speaks in frames of its own making.
struct Raw(Talk);

const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

impl Raw {
    async fn open() -> Self {
        let mut raw = Self(talk_with(LIMITS, 1 << 20));
        raw.0.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(4, 0, 0, b"").await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // Who floods writes on when the connection has ended.
        let _ = self.0.client.write_all(&frame).await;
    }

    /// A GET without a body.
    async fn get(&mut self, stream: u32, path: &str) {
        // RFC 7541 appendix A: GET, http; then path and authority as literals without indexing.
        let mut fields = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        fields.extend(path.as_bytes());
        fields.extend([0x01, 1, b'a']);
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &fields).await;
    }

    /// The next frame: its kind, flags, stream and payload.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.client.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.client.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// The codes of every farewell up to the connection's end.
    async fn farewells(&mut self) -> Vec<u32> {
        let mut codes = Vec::new();
        while let Some((kind, _, _, payload)) = self.frame().await {
            if kind == GOAWAY {
                codes.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        codes
    }

    /// What every flood must come to: the client is told, soon, and nothing of its requests goes on.
    async fn expect_calm(mut self, reason: &str) {
        let began = Instant::now();
        let farewells = self.farewells().await;
        assert!(farewells.contains(&ENHANCE_YOUR_CALM), "{reason}: {farewells:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{reason}: {:?}", began.elapsed());
        while self.0.service.over() < self.0.service.seen().len() {
            sleep(Duration::from_millis(1)).await;
        }
        let cut = format!("weir_connections_cut_total{{reason=\"{reason}\"}} 1");
        let counted = self.0.metrics.render(0);
        let counted: Vec<_> = counted.lines().filter(|line| line.contains("_cut_total{")).collect();
        assert!(counted.contains(&cut.as_str()), "{counted:?}");
    }
}

const ENHANCE_YOUR_CALM: u32 = 0xb;

/// More than any limit, and few enough to fit into the pipe.
const MANY: u32 = 6_000;

#[tokio::test(start_paused = true)]
async fn requests_that_are_reset_at_once_end_their_connection() {
    let mut raw = Raw::open().await;
    for stream in (0..MANY).map(|n| 2 * n + 1) {
        raw.get(stream, "/pending").await;
        raw.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
    }
    raw.expect_calm("http2_resets").await;
}

#[tokio::test(start_paused = true)]
async fn resets_that_the_client_provokes_end_its_connection() {
    let mut raw = Raw::open().await;
    for stream in (0..MANY).map(|n| 2 * n + 1) {
        raw.get(stream, "/pending").await;
        // A window that overflows is an error of the stream (RFC 9113 section 6.9.1).
        raw.send(WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes()).await;
    }
    raw.expect_calm("http2_resets").await;
}

#[tokio::test(start_paused = true)]
async fn frames_that_bring_nothing_end_their_connection() {
    const EMPTY: &[u8] = b"";
    const CONTROL: &str = "http2_control_frames";
    let floods: [(u8, u32, &[u8], &str); 7] = [
        (6, 0, &[0; 8], CONTROL),
        (4, 0, &[0, 3, 0, 0, 0, 100], CONTROL),
        (2, 1, &[0, 0, 0, 0, 1], CONTROL),
        (WINDOW_UPDATE, 0, &[0, 0, 0, 1], CONTROL),
        (0xbe, 0, b"unknown", CONTROL),
        // The framing library has a bound of its own for these.
        (0, 1, EMPTY, "http2_error"),
        (0, 1, b"x", "http2_error"),
    ];
    for (kind, stream, payload, reason) in floods {
        let mut raw = Raw::open().await;
        if stream > 0 {
            let fields = [0x83, 0x86, 0x84, 0x01, 1, b'a'];
            raw.send(HEADERS, END_HEADERS, stream, &fields).await;
        }
        for _ in 0..MANY {
            raw.send(kind, 0, stream, payload).await;
        }
        raw.expect_calm(reason).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_now_and_then_is_left_alone() {
    let mut raw = Raw::open().await;
    let mut stream = 1;
    for _ in 0..40 {
        for _ in 0..50 {
            raw.get(stream, "/pending").await;
            raw.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
            stream += 2;
        }
        sleep(Duration::from_secs(4)).await;
    }
    raw.get(stream, "/hello").await;
    while let Some((kind, _, at, payload)) = raw.frame().await {
        assert_ne!(kind, GOAWAY);
        if (kind, at) == (0, stream) && !payload.is_empty() {
            assert_eq!(payload, b"hello");
            return;
        }
    }
    panic!("the connection ended");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_let_go_beside_others_that_move() {
    let mut raw = Raw::open().await;
    raw.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()).await;
    raw.get(1, "/endless").await;
    let began = Instant::now();
    let mut stream = 3;
    // Each request counts once when it was answered, the endless one once more when its answer is let go. Asks on meanwhile,
    // so that the connection never stands still.
    while raw.0.service.over() <= raw.0.service.seen().len() {
        raw.get(stream, "/hello").await;
        loop {
            let (kind, _, at, payload) = raw.frame().await.expect("the connection stays");
            if (kind, at) == (0, stream) && payload == b"hello" {
                break;
            }
        }
        stream += 2;
        sleep(LIMITS.body_idle / 4).await;
        assert!(began.elapsed() < LIMITS.body_idle * 2, "the answer is still held");
    }
    assert!(began.elapsed() >= LIMITS.body_idle);
    assert!(!raw.0.served.is_finished());
}
