//! What stands between requests: unread bodies (S9), refusals as their clients see them, requests behind requests.

use std::time::Duration;

use super::{ROUTES, SMUGGLED};
use crate::harness::{Connection, PATIENCE, Upstream, Weir, get, raw, reply, request, upstream, weir};

/// Longest that a connection may stay silently open.
const SILENCE: Duration = Duration::from_secs(3);

async fn guarded() -> (Upstream, Weir) {
    let up = upstream();
    up.route("*", reply("from the upstream"));
    let routes = format!("{ROUTES}cache.ttl = \"60s\"\n");
    let weir = weir(&routes).to(up.url()).start().await;
    (up, weir)
}

#[tokio::test]
async fn what_stands_in_an_unread_body_is_never_served() {
    let (up, weir) = guarded().await;
    assert_eq!(weir.get("/hit").await.status, 200);
    let sized = format!("content-length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    let coded = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    // A denial, an own answer, a hit: whatever came before, the next request is the next one.
    for body in [sized, coded] {
        for line in ["GET /hit", "POST /hit", "GET /a//b", "POST /a//b", "DELETE /hit"] {
            let mut connection = Connection::open(weir.proxy).await;
            connection.write(format!("{line} HTTP/1.1\r\nhost: service.test\r\n{body}").as_bytes()).await;
            let first = connection.read(false).await.expect("an answer");
            if first.headers("connection").contains(&"close") {
                assert!(connection.closes_within(PATIENCE).await);
            } else {
                connection.write(b"GET /after HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
                assert_eq!(connection.read(false).await.expect("an answer").text(), "from the upstream", "{line}");
            }
        }
    }
    // A body that is held back until it is asked for, and never is.
    let mut waiting = Connection::open(weir.proxy).await;
    let held = format!("content-length: {}\r\nexpect: 100-continue\r\n\r\n", SMUGGLED.len());
    waiting.write(format!("POST /a//b HTTP/1.1\r\nhost: a\r\n{held}").as_bytes()).await;
    assert_eq!(waiting.read(false).await.expect("an answer").headers("connection"), ["close"]);
    waiting.write(SMUGGLED.as_bytes()).await;
    assert!(waiting.closes_within(PATIENCE).await);
    assert_eq!(up.count("/smuggled"), 0);
}

#[tokio::test]
async fn refusals_say_what_was_wrong_and_count_as_one_outcome() {
    let (up, weir) = guarded().await;
    let (received, _) = raw(weir.proxy, b"GET /x HTTP/1.1\r\n\r\n", SILENCE).await;
    let text = String::from_utf8_lossy(&received).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 400") && text.contains("connection: close") && text.contains("host"), "{text}");
    let answer = weir.send(request("GET", "/a//b")).await;
    assert!(answer.header("cache-status").is_some() && answer.text().contains("//"), "{answer:?}");
    weir.metric_reaches(r#"weir_requests_total{outcome="refused"}"#, 2.0).await;
    assert_eq!(up.total(), 0);
    let mut ended = Connection::open(weir.proxy).await;
    assert_eq!(ended.send(&get("/ok").header("connection", "close")).await.status, 200);
    assert!(ended.closes_within(PATIENCE).await);
}

#[tokio::test]
async fn http_1_0_without_a_host_has_the_upstreams() {
    let (up, weir) = guarded().await;
    let mut old = Connection::open(weir.proxy).await;
    old.write(b"GET /old HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.read(false).await.expect("an answer").status, 200);
    let seen = up.last("/old");
    assert_eq!((seen.header("host"), seen.header("x-forwarded-host")), (Some(&*up.address().to_string()), None));
}

#[tokio::test]
async fn requests_behind_requests_keep_their_bodies_apart() {
    let up = upstream();
    up.echo("/echo");
    let weir = weir(ROUTES).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let mut all = String::new();
    for number in 0..50 {
        let body = format!("{number}{SMUGGLED}");
        all += "POST /echo HTTP/1.1\r\nhost: a\r\n";
        all += &match number % 3 {
            0 => format!("content-length: {}\r\n\r\n{body}", body.len()),
            1 => format!("transfer-encoding: chunked\r\n\r\n{:x};x=y\r\n{body}\r\n0\r\nx: y\r\n\r\n", body.len()),
            _ => format!("expect: 100-continue\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        };
    }
    connection.write(all.as_bytes()).await;
    for number in 0..50 {
        assert_eq!(connection.read(false).await.expect("an answer").text(), format!("{number}{SMUGGLED}"));
    }
    assert_eq!((up.total(), up.count("/smuggled")), (50, 0));
}
