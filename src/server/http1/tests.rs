use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use crate::config::ServerLimits;
use crate::message::BodyFault;
use crate::server::sample::{LIMITS, talk, talk_with};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}")
}

/// All that the server says to `sent`, and how many requests reached the service.
async fn exchange(sent: impl AsRef<[u8]>) -> (String, usize) {
    let mut talk = talk();
    talk.send(sent).await;
    let heard = talk.rest().await;
    (heard, talk.service.seen().len())
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order_wherever_they_are_split() {
    let sent = [get("/hello"), post("/echo", "Content-Length: 5\r\n", "first"), get("/stream")].concat()
        + &post("/echo", "Transfer-Encoding: chunked\r\n", "3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n");
    let (whole, _) = exchange(&sent).await;
    assert_eq!(whole.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{whole}");
    assert!(whole.contains("first") && whole.ends_with("\r\n\r\nsecond"), "{whole}");
    assert!(whole.contains("transfer-encoding: chunked\r\n"), "{whole}");
    assert!(whole.contains("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP"), "{whole}");
    assert!(whole.contains("date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{whole}");
    for split in 1..sent.len() {
        let mut talk = talk();
        talk.send(&sent[..split]).await;
        sleep(Duration::from_millis(1)).await;
        talk.send(&sent[split..]).await;
        assert_eq!(talk.rest().await, whole, "split at {split}");
    }
    let mut slow = talk();
    for byte in sent.as_bytes() {
        slow.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(slow.rest().await, whole);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_answered_and_ends_the_connection() {
    let too_long = get(&format!("/{}", "x".repeat(LIMITS.head)));
    let too_large = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "x: y\r\n".repeat(LIMITS.head / 6));
    let cases = [
        (post("/echo", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("GET / HTTP/1.1\nHost: h\n\n".into(), 400),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("\n".into(), 400),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n".into(), 405),
        ("PRI * HTTP/2.0\r\nHost: h\r\n\r\n".into(), 505),
        (too_long, 414),
        (too_large, 431),
    ];
    for (sent, status) in cases {
        let began = Instant::now();
        let (heard, seen) = exchange(sent.clone() + &get("/smuggled")).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{sent:?}: {heard}");
        assert!(heard.contains("connection: close\r\n"), "{heard}");
        assert_eq!(heard.matches("HTTP/1.1").count(), 1, "{heard}");
        assert_eq!(heard.contains("allow: GET"), status == 405, "{heard}");
        assert_eq!(seen, 0, "{sent:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "it was not a deadline that ended it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_line_before_a_request_is_passed_over() {
    let (heard, _) = exchange(get("/hello") + "\r\n" + &get("/hello")).await;
    assert_eq!(heard.matches("200 OK").count(), 2, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn an_unread_body_is_never_read_as_a_request() {
    let inside = get("/smuggled");
    // Known and short, and here: the connection goes on behind it.
    let fields = format!("Content-Length: {}\r\n", inside.len());
    let mut kept = talk();
    kept.send(post("/ignore", &fields, &inside) + &get("/next")).await;
    assert_eq!(kept.rest().await.matches("200 OK").count(), 2);
    assert_eq!(kept.service.seen(), ["POST /ignore h", "GET /next h"]);
    // Short, but late.
    let mut late = talk();
    late.send(post("/ignore", &fields, "")).await;
    late.hear("hello").await;
    late.send(inside.clone() + &get("/next")).await;
    assert!(late.hear("hello").await.starts_with("HTTP/1.1 200"));
    assert_eq!(late.service.seen(), ["POST /ignore h", "GET /next h"]);
    // Too long to wait for.
    let (heard, seen) = exchange(post("/ignore", "Content-Length: 1000000\r\n", &inside)).await;
    assert!(heard.contains("connection: close\r\n"), "{heard}");
    assert_eq!(seen, 1);
    // Chunked: kept when all of it is here, else closed.
    let chunked = format!("{:x}\r\n{inside}\r\n0\r\n\r\n", inside.len());
    let (heard, seen) = exchange(post("/ignore", "Transfer-Encoding: chunked\r\n", &chunked) + &get("/next")).await;
    assert_eq!((heard.matches("200 OK").count(), seen), (2, 2), "{heard}");
    let cut = &chunked[..chunked.len() - 3];
    let (heard, seen) = exchange(post("/ignore", "Transfer-Encoding: chunked\r\n", cut)).await;
    assert!(heard.contains("connection: close\r\n") && seen == 1, "{heard}");
    // A refusing client gets its answer although it goes on sending.
    let mut sending = talk_with(LIMITS, 1024);
    sending.send(post("/ignore", "Content-Length: 1000000\r\n", "")).await;
    sending.send(vec![b'x'; 500_000]).await;
    assert!(sending.rest().await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_body_reaches_nobody_as_whole() {
    for body in ["+1\r\na\r\n0\r\n\r\n", "1\r\nab\r\n0\r\n\r\n", "1\na\r\n0\r\n\r\n"] {
        let mut talk = talk();
        talk.send(post("/echo", "Transfer-Encoding: chunked\r\n", body) + &get("/smuggled")).await;
        let heard = talk.rest().await;
        assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("connection: close"), "{heard}");
        assert_eq!(*talk.service.fault.lock().unwrap(), Some(BodyFault::Malformed));
        assert_eq!(talk.service.seen().len(), 1, "{body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_is_asked_for_when_the_service_wants_it() {
    let mut talk = talk();
    talk.send(post("/echo", "Expect: 100-continue\r\nContent-Length: 5\r\n", "")).await;
    assert_eq!(talk.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    talk.send("hello").await;
    assert!(talk.hear("hello").await.starts_with("HTTP/1.1 200 OK\r\n"));
    // Answered first: whether the body still comes is not known, so nothing behind it can be read.
    talk.send(post("/ignore", "Expect: 100-continue\r\nContent-Length: 5\r\n", "")).await;
    let heard = talk.rest().await;
    assert!(!heard.contains("100 Continue") && heard.contains("connection: close\r\n"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn trailers_are_passed_both_ways() {
    let body = "1\r\na\r\n0\r\nX-Sum: 9\r\n\r\n";
    let (heard, _) = exchange(post("/echo", "Transfer-Encoding: chunked\r\n", body)).await;
    assert!(heard.ends_with("a {\"x-sum\": \"9\"}"), "{heard}");
    let (heard, _) = exchange("GET /trailers HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n").await;
    assert!(heard.ends_with("3\r\none\r\n0\r\nx-sum: 1\r\n\r\n"), "{heard}");
    let (heard, _) = exchange(get("/trailers")).await;
    assert!(heard.ends_with("3\r\none\r\n0\r\n\r\n"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn answers_are_framed_for_the_version_that_asks() {
    let (heard, _) = exchange("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(heard.contains("connection: close\r\n") && heard.ends_with("\r\n\r\nonetwo"), "{heard}");
    let twice = "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(2);
    let (heard, _) = exchange(twice).await;
    assert_eq!(heard.matches("connection: keep-alive\r\n").count(), 2, "{heard}");
    let (heard, _) = exchange("GET /hello HTTP/1.0\r\n\r\nGET /hello HTTP/1.0\r\n\r\n").await;
    assert_eq!(heard.matches("connection: close\r\n").count(), 1, "{heard}");
    let (heard, _) = exchange("HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(heard.contains("content-length: 5\r\n") && heard.ends_with("\r\n\r\n"), "{heard}");
    let (heard, _) = exchange("HEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(heard.ends_with("\r\n\r\n") && !heard.contains("chunked"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_answer_never_looks_whole() {
    let (heard, _) = exchange(get("/cut") + &get("/hello")).await;
    assert!(!heard.contains("0\r\n\r\n") && heard.matches("HTTP/1.1").count() <= 1, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn large_bodies_pass_with_little_held() {
    let mut talk = talk_with(LIMITS, 4096);
    talk.send(get("/big")).await;
    let mut heard = talk.hear("\r\n\r\n").await;
    assert!(heard.contains("content-length: 1048576\r\n"), "{heard}");
    talk.send(get("/hello")).await;
    heard = talk.hear("hello").await;
    assert!(heard.starts_with(&"x".repeat(1 << 20)));
    // Both directions at once, the client reading and writing as it can.
    let sent = "y".repeat(300_000);
    let (mut read, mut write) = tokio::io::split(talk.client);
    let writing = async {
        let head = format!("POST /duplex HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", sent.len());
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(sent.as_bytes()).await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(writing, tokio::io::AsyncReadExt::read_to_end(&mut read, &mut heard));
    read.unwrap();
    assert_eq!(heard.iter().filter(|b| **b == b'y').count(), sent.len());
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_is_a_tunnel_from_the_first_byte() {
    let mut talk = talk();
    talk.send("GET /tunnel HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: shout\r\n\r\nGET /").await;
    let heard = talk.hear("\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.1 101 Switching Protocols\r\nupgrade: shout\r\n"), "{heard}");
    assert!(heard.contains("connection: upgrade\r\n"), "{heard}");
    talk.send(" words").await;
    talk.client.shutdown().await.unwrap();
    assert_eq!(talk.rest().await, "GET / WORDS");
    assert_eq!(talk.service.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_request_along() {
    let mut pending = talk();
    pending.send(get("/pending")).await;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(pending.service.over(), 0, "waiting for the service is nobody's silence");
    drop(pending.client);
    pending.served.await.unwrap();
    assert_eq!(pending.service.over(), 1);

    let mut events = talk();
    events.send(get("/events")).await;
    events.hear("tick").await;
    events.client.shutdown().await.unwrap();
    events.served.await.unwrap();

    let mut sending = talk();
    sending.send(post("/echo", "Content-Length: 10\r\n", "half")).await;
    sleep(Duration::from_millis(1)).await;
    sending.client.shutdown().await.unwrap();
    sending.served.await.unwrap();
    assert_eq!((sending.service.over(), *sending.service.fault.lock().unwrap()), (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_own_request_only() {
    let (heard, seen) = exchange(get("/hello") + &get("/panic")).await;
    assert!(heard.contains("HTTP/1.1 500 ") && seen == 2, "{heard}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_where_its_deadline_says() {
    let silent = async |sent: &str, after: Duration, status: Option<u16>| {
        let mut talk = talk();
        let began = Instant::now();
        talk.send(sent).await;
        let heard = talk.rest().await;
        assert_eq!(began.elapsed().as_secs(), after.as_secs(), "{sent:?}: {heard}");
        match status {
            Some(status) => assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{heard}"),
            None => assert_eq!(heard, ""),
        }
    };
    silent("", LIMITS.head_timeout, None).await;
    // Two seconds of lingering behind the refusal, since this client does not close.
    silent("GET / HT", LIMITS.head_timeout, Some(408)).await;
    silent(&get("/hello"), LIMITS.keep_alive, Some(200)).await;
    silent(&post("/echo", "Content-Length: 5\r\n", "1"), LIMITS.body_idle, Some(400)).await;
    silent(&(get("/hello") + "GET"), LIMITS.head_timeout, Some(200)).await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_ends_at_its_deadline_and_a_pause_does_not_count() {
    let mut talk = talk();
    talk.send(get("/hello")).await;
    talk.hear("hello").await;
    sleep(LIMITS.keep_alive - Duration::from_secs(1)).await;
    let began = Instant::now();
    for byte in get("/hello").bytes() {
        if talk.client.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    assert!(talk.rest().await.starts_with("HTTP/1.1 408 "));
    assert!(began.elapsed() < LIMITS.head_timeout + Duration::from_secs(4));
}

/// Sends a body in such pieces, a second apart, and returns how long it was listened to, and how it ended.
async fn trickle(piece: &'static str, pieces: usize) -> (Duration, Option<BodyFault>) {
    let mut talk = talk();
    let began = Instant::now();
    let length = format!("Content-Length: {}\r\n", piece.len() * pieces);
    talk.send(post("/echo", &length, "")).await;
    let mut over = began;
    for _ in 0..pieces {
        sleep(Duration::from_secs(1)).await;
        if talk.client.write_all(piece.as_bytes()).await.is_err() {
            break;
        }
        if talk.service.over() == 0 {
            over = Instant::now();
        }
    }
    let fault = *talk.service.fault.lock().unwrap();
    (over - began, fault)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_silent_and_a_slow_one_is_not() {
    let (listened, fault) = trickle("x", 100).await;
    assert_eq!(fault, Some(BodyFault::Silent));
    assert!((LIMITS.body_idle - listened).as_secs() <= 1, "{listened:?}");
    // 40 bytes a second are more than 1024 in 30.
    let (listened, fault) = trickle("0123456789012345678901234567890123456789", 100).await;
    assert_eq!((listened.as_secs(), fault), (100, None));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_trickles_is_cut() {
    let mut talk = talk_with(LIMITS, 4096);
    let began = Instant::now();
    talk.send(get("/big")).await;
    while !talk.served.is_finished() {
        sleep(Duration::from_secs(1)).await;
        let _ = talk.client.read_u8().await;
        assert!(began.elapsed() < LIMITS.body_idle * 2);
    }
    assert!(began.elapsed() >= LIMITS.body_idle);
    assert!(talk.metrics.render(0).contains("weir_connections_cut_total{reason=\"body_idle\"} 1\n"));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_is_cut_and_a_slow_one_is_not() {
    let mut stopped = talk_with(LIMITS, 4096);
    let began = Instant::now();
    stopped.send(get("/big")).await;
    stopped.served.await.unwrap();
    assert_eq!(began.elapsed().as_secs(), LIMITS.body_idle.as_secs());

    let mut slow = talk_with(LIMITS, 256 * 1024);
    slow.send(get("/big")).await;
    let mut read = 0;
    while read < 1 << 20 {
        sleep(LIMITS.body_idle / 2).await;
        let mut piece = vec![0; 128 * 1024];
        read += tokio::io::AsyncReadExt::read(&mut slow.client, &mut piece).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn draining_ends_idle_connections_and_finishes_the_others() {
    let mut idle = talk();
    idle.send(get("/hello")).await;
    idle.hear("hello").await;
    let mut busy = talk();
    busy.send(get("/gate")).await;
    sleep(Duration::from_millis(1)).await;
    let mut leaving = talk();
    leaving.send(get("/hello")).await;
    leaving.hear("hello").await;
    leaving.drain.leave();
    leaving.send(get("/hello")).await;
    assert!(leaving.rest().await.contains("connection: close\r\n"));

    let began = Instant::now();
    idle.drain.begin();
    busy.drain.begin();
    assert_eq!(idle.rest().await, "");
    busy.service.gate.notify_one();
    let heard = busy.rest().await;
    assert!(heard.contains("connection: close\r\n") && heard.ends_with("opened"), "{heard}");
    // A connection that has yet to send its first request is given a moment.
    let mut fresh = talk();
    fresh.drain.begin();
    sleep(Duration::from_millis(500)).await;
    fresh.send(get("/hello")).await;
    assert!(fresh.rest().await.ends_with("hello"));
    let mut silent = talk();
    silent.drain.begin();
    assert_eq!(silent.rest().await, "");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn short_deadlines_hold_after_long_ones() {
    let limits = ServerLimits { keep_alive: Duration::from_secs(1), ..LIMITS };
    let mut talk = talk_with(limits, 4096);
    let began = Instant::now();
    for _ in 0..5 {
        talk.send(get("/hello")).await;
        talk.hear("hello").await;
        sleep(Duration::from_millis(900)).await;
    }
    assert_eq!(talk.rest().await, "");
    assert!(began.elapsed() < Duration::from_millis(4700));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_rests_holds_nothing_and_wakes() {
    let mut talk = talk();
    for _ in 0..3 {
        talk.send(get("/hello")).await;
        talk.hear("hello").await;
        sleep(LIMITS.keep_alive / 2).await;
    }
    // A head that is larger than what a resting connection reads at once.
    let long = format!("GET /hello HTTP/1.1\r\nHost: h\r\nx-long: {}\r\n\r\n", "x".repeat(3_000));
    let (first, rest) = long.split_at(1);
    talk.send(first).await;
    sleep(Duration::from_secs(1)).await;
    talk.send(rest).await;
    talk.hear("hello").await;
    let rested = Instant::now();
    assert_eq!(talk.rest().await, "");
    assert_eq!(rested.elapsed().as_secs(), LIMITS.keep_alive.as_secs());
}
