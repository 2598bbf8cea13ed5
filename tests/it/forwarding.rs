//! G6 and G7 for what passes through: method, target, fields and status arrive as they were sent, and nothing is sent
//! twice that is not safe to send twice.

use std::time::Duration;

use crate::harness::{
    Gate, H2, Setup, Upstream, Weir, black_hole, eventually, flaky, get, h2_upstream, join_all, raw_upstream, refusing,
    reply, request, unix_upstream, upstream, weir,
};

/// One route that stores nothing.
const PASS: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
"#;

/// One route that stores for a minute whatever says nothing itself.
const CACHED: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
"#;

fn passing(up: &Upstream) -> Setup {
    weir(PASS).to(up.url())
}

#[tokio::test]
async fn every_method_target_and_status_arrives_as_sent() {
    let up = upstream();
    let weir = passing(&up).start().await;
    for (method, status) in
        [("GET", 200), ("POST", 201), ("PUT", 204), ("PATCH", 409), ("DELETE", 404), ("OPTIONS", 200), ("REPORT", 500)]
    {
        up.route("/m", reply("").status(status));
        let answer = weir.send(request(method, "/m?a=1&a=2&b=%20x+y")).await;
        assert_eq!(answer.status, status, "{method}: {answer:?}");
        let seen = up.last("/m");
        assert_eq!((seen.method.as_str(), seen.target()), (method, "/m?a=1&a=2&b=%20x+y"));
    }
}

#[tokio::test]
async fn end_to_end_fields_arrive_in_number_order_and_bytes() {
    let up = upstream();
    up.route("/f", reply("").header("x-out", "1").header("set-cookie", "a=1").header("set-cookie", "b=2; Path=/"));
    let weir = passing(&up).start().await;
    let sent = get("/f")
        .header("X-In", "one")
        .header("x-in", "two, three")
        .header("x-odd", "grün \" ; ,")
        .header("cookie", "a=1; b=2")
        .header("x-empty", "")
        .header("proxy-status", "kept");
    let answer = weir.send(sent).await;
    assert_eq!(answer.headers("set-cookie"), ["a=1", "b=2; Path=/"]);
    assert_eq!(answer.header("x-out"), Some("1"));
    let seen = up.last("/f");
    assert_eq!(seen.headers("x-in"), ["one", "two, three"]);
    assert_eq!(seen.fields["x-odd"].as_bytes(), "grün \" ; ,".as_bytes());
    assert_eq!((seen.header("cookie"), seen.header("x-empty")), (Some("a=1; b=2"), Some("")));
    assert_eq!(seen.header("proxy-status"), Some("kept"));
}

#[tokio::test]
async fn hop_by_hop_fields_end_here_both_ways() {
    let up = upstream();
    let noisy = reply("")
        .header("connection", "x-mine")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authenticate", "Basic")
        .header("x-kept", "1");
    up.route("/h", noisy);
    let weir = passing(&up).start().await;
    let sent = get("/h")
        .header("connection", "x-gone, keep-alive")
        .header("x-gone", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic eA==")
        .header("te", "gzip")
        .header("x-kept", "1");
    let answer = weir.send(sent).await;
    let seen = up.last("/h");
    for gone in ["x-gone", "keep-alive", "proxy-connection", "proxy-authorization"] {
        assert_eq!(seen.header(gone), None, "towards the upstream");
    }
    assert!(seen.header("te").is_none_or(|te| te == "trailers"), "{seen:?}");
    for gone in ["x-mine", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.header(gone), None, "towards the client: {answer:?}");
    }
    assert_eq!((seen.header("x-kept"), answer.header("x-kept")), (Some("1"), Some("1")));
}

#[tokio::test]
async fn connection_cannot_take_away_what_the_request_needs() {
    let up = upstream();
    up.route("/c", reply(""));
    let weir = passing(&up).start().await;
    let sent = request("POST", "/c")
        .header("connection", "authorization, content-length, host, x-forwarded-for")
        .header("authorization", "Bearer x")
        .body("body");
    assert_eq!(weir.send(sent).await.status, 200);
    let seen = up.last("/c");
    assert_eq!((&seen.body[..], seen.header("authorization")), (&b"body"[..], Some("Bearer x")));
    assert_eq!(seen.header("host"), Some("service.test"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn the_upstream_learns_who_asked_and_cannot_be_lied_to() {
    let up = upstream();
    up.route("/x", reply(""));
    let lies = || {
        get("/x")
            .header("x-forwarded-for", "203.0.113.9")
            .header("x-forwarded-proto", "https")
            .header("forwarded", "for=203.0.113.9;proto=https")
            .header("via", "1.1 before")
    };
    let nobody_trusted = passing(&up).start().await;
    let answer = nobody_trusted.send(lies()).await;
    let seen = up.last("/x");
    assert_eq!(seen.headers("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.headers("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.headers("x-forwarded-host"), ["service.test"]);
    let forwarded = seen.headers("forwarded").join(", ").to_ascii_lowercase();
    assert!(forwarded.contains("127.0.0.1") && !forwarded.contains("203.0.113.9"), "{forwarded}");
    let via = seen.headers("via").join(", ");
    assert!(via.starts_with("1.1 before, 1.1 "), "{via}");
    assert!(answer.header("via").is_some_and(|via| via.starts_with("1.1 ")), "{answer:?}");

    let trusting = passing(&up).set("server.trusted_proxies", vec!["127.0.0.0/8"]).start().await;
    trusting.send(lies()).await;
    let seen = up.last("/x");
    assert_eq!(seen.headers("x-forwarded-for").join(", "), "203.0.113.9, 127.0.0.1");
    assert_eq!(seen.headers("x-forwarded-proto"), ["https"]);
    let forwarded = seen.headers("forwarded").join(", ");
    assert!(forwarded.starts_with("for=203.0.113.9;proto=https, for="), "{forwarded}");
}

#[tokio::test]
async fn host_is_preserved_or_the_upstreams_own() {
    let up = upstream();
    up.route("/h", reply(""));
    passing(&up).start().await.send(get("/h").header("host", "shop.example:81")).await;
    assert_eq!(up.last("/h").header("host"), Some("shop.example:81"));
    passing(&up).set("upstream.host", "upstream").start().await.send(get("/h").header("host", "shop.example")).await;
    assert_eq!(up.last("/h").header("host"), Some(up.address().to_string().as_str()));
}

#[tokio::test]
async fn a_route_edits_fields() {
    let up = upstream();
    up.route("/e", reply("").header("server", "secret/1.0").header("x-kept", "1"));
    let edits = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        request.set = { x-team = "shop" }
        request.remove = ["x-debug"]
        response.set = { x-frame-options = "DENY" }
        response.remove = ["server"]
    "#;
    let weir = weir(edits).to(up.url()).start().await;
    let answer = weir.send(get("/e").header("x-debug", "1").header("x-team", "liar")).await;
    let seen = up.last("/e");
    assert_eq!((seen.headers("x-team"), seen.header("x-debug")), (vec!["shop"], None));
    assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    assert_eq!((answer.header("server"), answer.header("x-kept")), (None, Some("1")));
}

#[tokio::test]
async fn http2_comes_in() {
    let up = upstream();
    up.on("/two", |request| reply(request.body.clone()).header("x-out", "1"));
    let weir = passing(&up).start().await;
    let client = H2::open(weir.proxy).await;
    let post = http::Request::post("http://shop.example/two?a=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body("hello".into())
        .expect("a request");
    let answer = client.send(post).await;
    assert_eq!((answer.status, answer.text(), answer.header("x-out")), (200, "hello", Some("1")));
    let seen = up.last("/two");
    assert_eq!((seen.version, seen.header("host")), (http::Version::HTTP_11, Some("shop.example")));
    assert_eq!(seen.headers("cookie"), ["a=1; b=2"]);
    let many = (0..50).map(|_| client.get("/two"));
    for answer in join_all(many).await {
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn http2_goes_out() {
    let up = h2_upstream();
    up.on("/two", |request| reply(request.body.clone()));
    let weir = passing(&up).set("upstream.protocol", "h2").start().await;
    let answer = weir.send(request("POST", "/two").body("hello")).await;
    assert_eq!((answer.status, answer.text()), (200, "hello"), "{answer:?}");
    let seen = up.last("/two");
    assert_eq!(
        (seen.version, seen.uri.authority().map(http::uri::Authority::as_str)),
        (http::Version::HTTP_2, Some("service.test"))
    );
    let many = (0..50).map(|_| weir.get("/two"));
    assert!(join_all(many).await.iter().all(|answer| answer.status == 200));
    assert!(up.connections() <= 8, "streams share connections: {}", up.connections());
}

#[tokio::test]
async fn a_unix_socket_is_an_upstream() {
    let up = unix_upstream();
    up.route("/u", reply("over a socket"));
    let weir = passing(&up).start().await;
    assert_eq!(weir.get("/u").await.text(), "over a socket");
    assert_eq!(up.last("/u").header("host"), Some("service.test"));
}

#[tokio::test]
async fn upstream_connections_are_reused() {
    let up = upstream();
    up.route("/r", reply("ok"));
    let weir = passing(&up).set("server.workers", 1).start().await;
    for _ in 0..30 {
        assert_eq!(weir.get("/r").await.status, 200);
    }
    assert!(up.connections() <= 3, "{} connections for 30 requests in a row", up.connections());
}

/// Our own answer: this status, a body that says what happened, and nothing stored, so that a mended service is used.
async fn mended(weir: &Weir, status: u16, mend: impl FnOnce()) {
    let own = weir.get("/broken").await;
    assert_eq!(own.status, status, "{own:?}");
    assert!(own.text().len() > 10, "the body says what happened: {own:?}");
    assert!(own.header("cache-status").is_some() && own.header("age").is_none(), "{own:?}");
    mend();
    let next = weir.get("/broken").await;
    assert_eq!((next.status, next.text()), (200, "mended"), "our own answer is never stored: {next:?}");
}

#[tokio::test]
async fn an_upstream_that_is_down_is_502_and_never_stored() {
    let up = upstream();
    up.route("/broken", reply("mended"));
    let relay = flaky(up.address());
    relay.cut();
    let weir = weir(CACHED).to(format!("http://{}", relay.address())).start().await;
    mended(&weir, 502, || relay.heal()).await;
    assert_eq!(up.count("/broken"), 1);
}

#[tokio::test]
async fn an_upstream_that_refuses_is_502() {
    let (_held, url) = refusing();
    let weir = weir(PASS).to(url).start().await;
    let answer = weir.get("/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(weir.send(request("POST", "/").body("x")).await.status, 502);
    weir.metric_reaches(r#"weir_requests_total{outcome="failed"}"#, 2.0).await;
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_504() {
    let (_held, url) = black_hole();
    let weir = weir(PASS).to(url).set("upstream.connect_timeout", "200ms").set("upstream.retries", 0).start().await;
    let answer = weir.get("/").await;
    assert!([502, 504].contains(&answer.status), "{answer:?}");
    assert!(answer.took < Duration::from_secs(3), "connect_timeout bounds the wait: {answer:?}");
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_504_and_never_stored() {
    let (up, gate) = (upstream(), Gate::new());
    up.sequence("/broken", vec![reply("late").gate(&gate), reply("mended")]);
    let weir =
        weir(CACHED).to(up.url()).set("upstream.response_timeout", "200ms").set("upstream.retries", 0).start().await;
    mended(&weir, 504, || gate.open()).await;
}

#[tokio::test]
async fn a_full_upstream_queue_is_503() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/slow", reply("late").gate(&gate));
    up.route("/quick", reply("quick"));
    let weir =
        passing(&up).set("upstream.connections", 2).set("upstream.queue_timeout", "150ms").set("server.workers", 1);
    let weir = weir.start().await;
    let (proxy, slow) = (weir.proxy, get("/slow"));
    let held: Vec<_> = (0..2)
        .map(|_| {
            tokio::spawn({
                let slow = slow.clone();
                async move { slow.send(proxy).await }
            })
        })
        .collect();
    gate.reached(2).await;
    let shed = weir.get("/quick").await;
    assert_eq!(shed.status, 503, "{shed:?}");
    assert_eq!(up.count("/quick"), 0);
    gate.open();
    for answer in held {
        assert_eq!(answer.await.expect("no panic").status, 200);
    }
    assert_eq!(weir.get("/quick").await.status, 200);
}

#[tokio::test]
async fn what_is_not_safe_is_never_sent_twice() {
    let up = raw_upstream(b"", true);
    let weir = weir(PASS).to(up.url()).set("upstream.retries", 1).start().await;
    assert_eq!(weir.send(request("POST", "/pay").body("once")).await.status, 502);
    assert_eq!(up.used_connections(), 1, "a POST went out twice");
    assert_eq!(weir.get("/safe").await.status, 502);
    eventually("the retry was seen", || up.used_connections() >= 2).await;
    assert!(up.used_connections() <= 3, "one retry is one retry");
}

#[tokio::test]
async fn a_malformed_answer_is_502_and_never_stored() {
    let malformed: &[(&str, &[u8])] = &[
        ("both framings", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\ncache-control: max-age=60\r\n\r\n0\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
        ("no status", b"HTTP/1.1 \r\n\r\n"),
        ("no HTTP", b"SSH-2.0-OpenSSH_9\r\n\r\n"),
        ("space in a name", b"HTTP/1.1 200 OK\r\nx y: 1\r\ncontent-length: 0\r\n\r\n"),
        ("nothing", b""),
    ];
    for (what, bytes) in malformed {
        let up = raw_upstream(bytes, true);
        let weir = weir(CACHED).to(up.url()).set("upstream.retries", 0).start().await;
        for _ in 0..2 {
            let answer = weir.get("/x").await;
            assert_eq!(answer.status, 502, "{what}: {answer:?}");
        }
        assert_eq!(up.used_connections(), 2, "{what}: asked again, over a new connection");
    }
}

#[tokio::test]
async fn bytes_behind_an_answer_never_become_the_next_one() {
    let extra = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let up = raw_upstream(extra, false);
    let weir = weir(PASS).to(up.url()).set("server.workers", 1).start().await;
    for _ in 0..5 {
        let answer = weir.get("/x").await;
        assert!(answer.status == 502 || answer.text() == "ok", "{answer:?}");
    }
}
