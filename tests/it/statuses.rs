//! Statuses that few services send, and interim responses.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::harness::{get, h2_upstream, raw, raw_upstream, reply, request, upstream, weir};

const ROUTES: &str = r#"
[[route]]
name = "passed"
path = "/passed/{*rest}"
response.remove = ["x-secret"]

[[route]]
name = "cached"
path = "/{*rest}"
cache.enabled = true
"#;

const HINTS: &str =
    "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x-hop\r\nx-hop: 1\r\nx-secret: 1\r\n\r\n";
const WHOLE: &str = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn interim_responses_pass_and_are_not_stored() {
    let up = raw_upstream(
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{HINTS}{WHOLE}").as_bytes(),
        true,
    );
    let weir = weir(ROUTES).to(up.url()).start().await;
    let fetched = weir.get("/a").await;
    assert_eq!((fetched.status, fetched.text()), (200, "ok"));
    assert_eq!(fetched.interim, [102, 103], "a 100 answers what the client never expected");
    weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    let hit = weir.get("/a").await;
    assert!(hit.is_hit() && hit.interim.is_empty());
    let passed = weir.get("/passed/a").await;
    assert_eq!((passed.text(), &passed.interim[..]), ("ok", &[102, 103][..]));

    // An old client would take the first for the answer.
    let old = "GET /passed/a HTTP/1.0\r\nhost: a\r\n\r\n";
    let (answer, _) = raw(weir.proxy, old.as_bytes(), Duration::from_secs(5)).await;
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200 OK\r\n"));
}

/// They are of use only if they do not wait for what comes after them.
#[tokio::test]
async fn interim_responses_come_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (seen, was_seen) = oneshot::channel::<()>();
    let service = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await.expect("a request");
        stream.write_all(HINTS.as_bytes()).await.expect("written");
        was_seen.await.expect("the client saw it");
        stream.write_all(WHOLE.as_bytes()).await.expect("written");
    });
    let weir = weir(ROUTES).to(url).start().await;
    let mut client = TcpStream::connect(weir.proxy).await.expect("a connection");
    client.write_all(b"GET /passed/a HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("written");
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        assert_ne!(client.read_buf(&mut bytes).await.expect("bytes"), 0);
    }
    let hints = String::from_utf8_lossy(&bytes);
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nvia: 1.1 weir\r\n\r\n");
    seen.send(()).expect("the service waits");
    bytes.clear();
    while !bytes.ends_with(b"ok") {
        assert_ne!(client.read_buf(&mut bytes).await.expect("bytes"), 0);
    }
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n"));
    service.await.expect("it ended well");
}

/// RFC 9110 section 15: a client treats an unknown status by its class; a proxy passes it on.
#[tokio::test]
async fn unknown_statuses_and_methods_pass() {
    let up = upstream();
    let h2 = h2_upstream();
    for up in [&up, &h2] {
        up.on("*", |request| {
            let status = request.uri.path().trim_start_matches("/passed").trim_matches('/').parse().unwrap_or(200);
            reply(request.method.as_str().to_owned()).status(status)
        });
    }
    let over_h2 = weir(ROUTES).to(h2.url()).set("upstream.protocol", "h2").start().await;
    let weir = weir(ROUTES).to(up.url()).start().await;
    for status in [299, 399, 499, 599, 600, 999] {
        for path in [format!("/passed/{status}"), format!("/{status}")] {
            for weir in [&weir, &over_h2] {
                for _ in 0..2 {
                    let answer = weir.get(&path).await;
                    assert_eq!((answer.status, answer.text()), (status, "GET"), "{path}");
                    assert!(!answer.is_hit());
                }
            }
        }
    }
    for method in ["M-SEARCH", "PROPFIND", "X", "LINK"] {
        let answer = weir.send(request(method, "/passed/200").body("x")).await;
        assert_eq!((answer.status, answer.text()), (200, method));
    }
    assert_eq!(weir.send(get("/passed/200")).await.text(), "GET");
}

/// With a lifetime that the service gives, they are stored as any other (RFC 9111 section 3).
#[tokio::test]
async fn unknown_statuses_are_stored_where_the_service_says_so() {
    let up = upstream();
    for status in [299, 499, 599, 999] {
        up.on(&format!("/{status}"), move |_| reply("x").status(status).max_age(60));
        up.on(&format!("/{status}/understood"), move |_| {
            reply("x").status(status).header("cache-control", "max-age=60, must-understand")
        });
    }
    let weir = weir(ROUTES).to(up.url()).start().await;
    for (index, status) in [299, 499, 599, 999].into_iter().enumerate() {
        weir.get(&format!("/{status}")).await;
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, index as f64 + 1.0).await;
        let again = weir.get(&format!("/{status}")).await;
        assert_eq!((again.status, again.is_hit()), (status, true));
        let path = format!("/{status}/understood");
        assert_eq!(weir.get(&path).await.cache_status(), "weir; fwd=uri-miss; detail=not-understood");
    }
}
