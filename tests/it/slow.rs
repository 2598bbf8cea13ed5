//! The catalogue's D rows: silence and slowness end by a deadline, and caps hold.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Connection, Gate, PATIENCE, Weir, eventually, get, h2_upstream, noise, reply, request, upstream, weir, within_async,
};

const SHORT: &str = r#"
[server.limits]
head_timeout = "300ms"
body_idle = "400ms"
keep_alive = "1500ms"

[[route]]
name = "all"
path = "/{*path}"
"#;

/// The deadlines of these tests, with room for a busy machine.
const SOON: Duration = Duration::from_secs(5);

async fn opened(weir: &Weir, bytes: &[u8]) -> Connection {
    let mut connection = Connection::open(weir.proxy).await;
    connection.write(bytes).await;
    connection
}

#[tokio::test]
async fn silent_and_slow_heads_are_ended() {
    let up = upstream();
    let weir = weir(SHORT).to(up.url()).start().await;
    for head in [&b""[..], b"G", b"GET / HTTP/1.1\r\nhost:", b"PRI * HTTP/2.0\r\n"] {
        let mut connection = opened(&weir, head).await;
        assert!(connection.closes_within(SOON).await, "{:?} stays open", String::from_utf8_lossy(head));
    }
    assert_eq!(up.total(), 0);
}

#[tokio::test]
async fn a_keep_alive_pause_is_no_head() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(SHORT).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    assert_eq!(connection.send(&get("/1")).await.status, 200);
    // Longer than a head may take, shorter than a pause may.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(connection.send(&get("/2")).await.status, 200);
    assert!(connection.closes_within(SOON).await, "the pause has an end too");
}

#[tokio::test]
async fn a_slow_upload_is_ended() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(SHORT).to(up.url()).start().await;
    let mut connection = opened(&weir, b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
    assert!(connection.closes_within(SOON).await);
    assert!(up.requests("/up").iter().all(|seen| !seen.complete));
}

#[tokio::test]
async fn a_reader_who_stops_reading_is_ended_and_held_in_little_memory() {
    let up = upstream();
    up.route("/big", reply(noise(64 << 20)));
    let weir = weir(SHORT).to(up.url()).start().await;
    let before = weir.resident();
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(opened(&weir, b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await);
    }
    let mut most = 0;
    within_async(PATIENCE, "all are ended", async || {
        most = most.max(weir.resident());
        weir.metric("weir_requests_total").await >= 8.0
    })
    .await;
    let held = most.saturating_sub(before) >> 20;
    eprintln!("8 stalled readers of 64 MiB each held {held} MiB");
    assert!(held < 48, "{held} MiB for readers who do not read");
}

#[tokio::test]
async fn connections_over_the_cap_are_refused_while_probes_answer() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/held", reply("ok").gate(&gate));
    let config = SHORT.replace("head_timeout = \"300ms\"", "head_timeout = \"20s\"\nconnections = 4");
    let weir = weir(&config).to(up.url()).start().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(opened(&weir, b"GET /held HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await);
    }
    gate.reached(4).await;
    let over = tokio::time::timeout(SOON, get("/held").try_send(weir.proxy)).await;
    let refused = matches!(&over, Ok(Err(_))) || matches!(&over, Ok(Ok(answer)) if answer.status == 503);
    assert!(refused, "the fifth is refused, not left waiting: {over:?}");
    let probe = weir.admin("/livez").await;
    assert!(probe.status == 200 && probe.took < Duration::from_secs(1), "{probe:?}");
    gate.open();
    for mut connection in held {
        assert_eq!(connection.read(false).await.unwrap().status, 200);
        assert!(connection.closes_within(PATIENCE).await);
    }
    within_async(PATIENCE, "there is room again", async || {
        get("/held").try_send(weir.proxy).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn want_of_descriptors_is_survived_and_counted() {
    let up = upstream();
    up.route("*", reply("ok"));
    // From the cache: a fetch would want a descriptor too.
    let weir = weir("[[route]]\nname = \"all\"\npath = \"/{*path}\"\ncache.ttl = \"1h\"").to(up.url()).start().await;
    assert_eq!(get("/").send(weir.proxy).await.status, 200);
    // One more client fits.
    let before = weir.allow_files(weir.files() + 1);
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(opened(&weir, b"GET / HTTP/1.1\r\nhost: service.test\r\n\r\n").await);
    }
    assert_eq!(open[0].read(false).await.unwrap().status, 200);
    within_async(PATIENCE, "it says so", async || {
        weir.output().iter().any(|line| line.contains("connections cannot be accepted"))
    })
    .await;
    weir.allow_files(before);
    for connection in &mut open[1..] {
        assert_eq!(connection.read(false).await.unwrap().status, 200, "who waited is served");
    }
    assert!(weir.metric("weir_accept_errors_total").await >= 1.0);
}

#[tokio::test]
async fn clients_leave_descriptors_for_the_upstream() {
    let up = upstream();
    up.route("*", reply("ok"));
    let setup = weir("").set("upstream.connections", 20).to(up.url()).files(200);
    let weir = setup.start().await;
    let (mut open, mut answered) = (Vec::new(), 0);
    for _ in 0..200 {
        let mut stream = tokio::net::TcpStream::connect(weir.proxy).await.unwrap();
        // Who is refused may see a reset.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut head = [0; 12];
        answered += usize::from(stream.read_exact(&mut head).await.is_ok() && &head == b"HTTP/1.1 200");
        open.push(stream);
    }
    assert!(weir.metric("weir_connections_refused_total{reason=\"total\"}").await >= 90.0);
    assert!(answered >= 40, "{answered} were served");
    assert!(weir.output().iter().any(|line| line.contains("more connections than file descriptors")));
}

/// An upload of each form that stops after a few bytes.
const STALLED: [&[u8]; 3] = [
    b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 8192\r\n\r\nonly this",
    b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\nonly this",
    b"POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n",
];

#[tokio::test]
async fn slow_uploads_leave_the_service_to_others() {
    for h2 in [false, true] {
        let up = if h2 { h2_upstream() } else { upstream() };
        up.on("*", |request| reply(request.target().to_owned()));
        let setup = weir("").to(up.url()).set("upstream.in_flight", 8).set("upstream.queue_timeout", "30s");
        let setup = if h2 { setup.set("upstream.protocol", "h2") } else { setup.set("upstream.connections", 8) };
        let weir = setup.start().await;
        let mut slow = Vec::new();
        for _ in 0..40 {
            for upload in STALLED {
                slow.push(opened(&weir, upload).await);
            }
        }
        eventually("some have come through", || up.count("/up") == 2).await;
        for i in 0..100 {
            let others = [get(&format!("/{i}")), request("POST", &format!("/{i}")).body(noise(60_000))];
            for other in others {
                let answer = weir.send(other).await;
                assert!(answer.status == 200 && answer.took < SOON, "HTTP/2 {h2}: {answer:?}");
            }
        }
        assert_eq!(up.count("/up"), 2, "as many as may hold a connection, and none of those that are short");
        assert_eq!(weir.metric("weir_upstream_uploads").await, 2.0);
        drop(slow);
        weir.metric_reaches("weir_requests_total{outcome=\"cancelled\"}", 120.0).await;
        assert_eq!(weir.metric("weir_upstream_uploads").await, 0.0);
        assert_eq!(weir.metric("weir_upstream_in_flight").await, 0.0);
    }
}

#[tokio::test]
async fn a_short_upload_comes_to_the_service_whole() {
    let up = upstream();
    up.on("/echo", |request| reply(request.body.clone()));
    let weir = weir("").to(up.url()).set("upstream.connections", 8).start().await;
    let head = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n";
    let sent = noise(65536);
    let mut connection = opened(&weir, head).await;
    for piece in sent.chunks(1000) {
        assert_eq!(up.total(), 0, "not before its last byte");
        connection.write(piece).await;
    }
    assert!(connection.read(false).await.unwrap().body == sent);
    assert!(up.last("/echo").complete);
    drop(opened(&weir, &[&head[..], &sent[..100]].concat()).await);
    weir.metric_reaches("weir_requests_total{outcome=\"cancelled\"}", 1.0).await;
    assert_eq!(up.total(), 1, "one that never becomes whole never comes");
}

#[tokio::test]
async fn uploads_wait_for_each_other_and_not_for_long() {
    let up = upstream();
    up.echo("/echo");
    let setup = weir("").to(up.url()).set("upstream.uploads", 1).set("upstream.queue_timeout", "1500ms");
    let weir = setup.start().await;
    let long = request("POST", "/echo").chunked(&[b"first ", b"second"], &[]);
    let mut first =
        opened(&weir, b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nping\r\n").await;
    first.read_until(b"ping").await;
    // One that is here needs no turn, in chunks or not.
    assert_eq!(weir.send(long.clone()).await.text(), "first second");
    // Its answer has begun, but it holds a connection still.
    let half = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let mut refused = opened(&weir, half).await;
    let refused = refused.read(false).await.unwrap();
    assert_eq!((refused.status, refused.header("cache-status")), (503, Some("weir; detail=uploads")), "{refused:?}");
    assert!(refused.number("retry-after").is_some_and(|seconds| seconds > 0));
    let expects = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n";
    let answer = opened(&weir, expects).await.read(false).await.unwrap();
    assert_eq!((answer.status, answer.interim), (503, vec![]), "its body would have come in vain");
    let mut second = opened(&weir, half).await;
    weir.metric_reaches("weir_upstream_uploads", 1.0).await;
    first.write(b"4\r\npong\r\n0\r\n\r\n").await;
    first.read_until(b"pong").await;
    second.read_until(b"half").await;
    second.write(b"0\r\n\r\n").await;
    assert_eq!(second.read(false).await.unwrap().status, 200, "it came in behind the one that has ended");
}

#[tokio::test]
async fn what_clients_do_wrong_is_not_held_against_the_service() {
    for h2 in [false, true] {
        let up = if h2 { h2_upstream() } else { upstream() };
        up.on("*", |request| reply(request.target().to_owned()));
        // The client's deadline and the service's in the same moment.
        let setup =
            weir("").to(up.url()).set("server.limits.body_idle", "500ms").set("upstream.response_timeout", "500ms");
        let setup = setup.set("upstream.uploads", 40).set("upstream.protocol", if h2 { "h2" } else { "http1" });
        let weir = setup.start().await;
        let silent = [STALLED[1], STALLED[2]].map(<[u8]>::to_vec);
        let broken = b"POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\nZZ\r\n".to_vec();
        let mut attackers = Vec::new();
        for i in 0..60 {
            attackers.push(opened(&weir, if i % 3 == 2 { &broken } else { &silent[i % 3] }).await);
        }
        for (i, mut attacker) in attackers.into_iter().enumerate() {
            let answer = attacker.read(false).await.unwrap();
            assert_eq!(answer.status, if i % 3 == 2 { 400 } else { 408 }, "HTTP/2 {h2}, {i}: {answer:?}");
        }
        assert_eq!(weir.metric("weir_upstream_breaker_open").await, 0.0, "HTTP/2 {h2}");
        assert_eq!(weir.get("/fine").await.status, 200);
        assert_eq!(weir.metric("weir_upstream_in_flight").await, 0.0);
        assert_eq!(weir.metric("weir_upstream_uploads").await, 0.0);
    }
}

#[tokio::test]
async fn a_long_upload_may_take_longer_than_an_answer() {
    for h2 in [false, true] {
        let up = if h2 { h2_upstream() } else { upstream() };
        up.on("*", |request| reply(request.body.len().to_string()).takes(Duration::from_millis(200)));
        let setup = weir("").to(up.url()).set("upstream.response_timeout", "300ms");
        let weir = setup.set("upstream.protocol", if h2 { "h2" } else { "http1" }).start().await;
        let head = b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
        let mut connection = opened(&weir, head).await;
        for piece in noise(1_000_000).chunks(100_000) {
            connection.write(piece).await;
            // The client's own time.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(connection.read(false).await.unwrap().text(), "1000000", "HTTP/2 {h2}");
    }
}

#[tokio::test]
async fn a_head_or_target_over_the_bound_is_refused() {
    let up = upstream();
    up.on("*", |_| reply("ok"));
    let weir = weir("").to(up.url()).set("server.limits.head", "8KiB").start().await;
    let long = |bytes: usize| "x".repeat(bytes);
    assert_eq!(weir.send(get("/").header("x-long", &long(7 << 10))).await.status, 200);
    assert_eq!(weir.send(get("/").header("x-long", &long(9 << 10))).await.status, 431);
    assert_eq!(weir.send(get(&format!("/{}", long(9 << 10)))).await.status, 414);
    let many = (0..150).fold(get("/"), |request, i| request.header(&format!("x-{i}"), "y"));
    assert_eq!(weir.send(many).await.status, 431);
    // Without an end: refused when it is too long, and not kept until it ends.
    let mut endless = opened(&weir, format!("GET / HTTP/1.1\r\nx: {}", long(64 << 10)).as_bytes()).await;
    assert_eq!(endless.read(false).await.unwrap().status, 431);
    assert_eq!(up.total(), 1);
}
