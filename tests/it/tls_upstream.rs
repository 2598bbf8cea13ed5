//! TLS towards the upstream: whom Weir believes, who it says it is, and that connections are kept and let go in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{
    Authority, Ended, PATIENCE, Scratch, Setup, Weir, eventually, get, join_all, noise, reply, request, tls_upstream,
    weir, within_async,
};

const PASS: &str = r#"
[upstream]
retries = 0
connect_timeout = "10s"

[[route]]
name = "all"
path = "/{*path}"
"#;

/// A Weir that believes `authority`.
fn believing(authority: &Authority, scratch: &Scratch) -> Setup {
    weir(PASS).set("upstream.tls.ca_file", authority.put(scratch))
}

/// Why a request is answered 502, from the log.
async fn cause(weir: &Weir) -> String {
    let answer = weir.get("/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    let mut found = None;
    assert!(!answer.text().contains("ertificate"), "who asks is not told: {}", answer.text());
    eventually("a line about it", || {
        found = weir.output().iter().find(|line| line.contains("there is no TLS with the upstream")).cloned();
        found.is_some()
    })
    .await;
    found.unwrap_or_default()
}

#[tokio::test]
async fn a_private_authority_is_believed_and_connections_are_kept() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let up = tls_upstream(Arc::new(authority.issue(&["127.0.0.1"]).server("http/1.1", None)));
    up.route("*", reply("ok")).echo("/echo").tunnel("/ws");
    let weir = believing(&authority, &scratch).set("server.workers", 1).to(up.url()).start().await;
    for i in 0..10 {
        assert_eq!(weir.get(&format!("/{i}")).await.text(), "ok");
    }
    assert_eq!(up.connections(), 1, "session tickets do not spend a connection");
    let sent = noise(10 << 20);
    let answer = weir.send(request("POST", "/echo").body(sent.clone())).await;
    assert!(answer.status == 200 && answer.body == sent, "{answer:?}");
    let mut tunnel = crate::harness::Connection::open(weir.proxy).await;
    let upgrade = get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    assert_eq!(tunnel.send(&upgrade).await.status, 101);
    tunnel.write(b"ping").await;
    assert_eq!(tunnel.read_bytes(4).await.unwrap(), b"ping");
    tunnel.finish().await;
    assert!(tunnel.closes_within(PATIENCE).await);
}

#[tokio::test]
async fn http2_is_agreed_on_and_one_connection_carries_all() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let issued = authority.issue(&["127.0.0.1"]);
    let up = tls_upstream(Arc::new(issued.server("h2", None)));
    up.on("*", |request| reply(request.target().to_owned()));
    let setup = believing(&authority, &scratch).set("server.workers", 1);
    let weir = setup.clone().set("upstream.protocol", "h2").to(up.url()).start().await;
    let paths: Vec<String> = (0..30).map(|i| format!("/{i}")).collect();
    for (answer, path) in join_all(paths.iter().map(|path| weir.get(path))).await.into_iter().zip(&paths) {
        assert_eq!(answer.text(), path);
    }
    assert_eq!(up.connections(), 1);
    assert_eq!(up.last("/0").uri.scheme_str(), Some("https"));
    // Two that want different protocols do not come together.
    let other = setup.to(up.url()).start().await;
    assert_eq!(other.get("/").await.status, 502);
    assert_eq!(up.connections(), 1);
}

#[tokio::test]
async fn a_wrong_certificate_is_502_with_its_cause_and_never_plain_text() {
    let (authority, stranger, scratch) = (Authority::new(), Authority::new(), Scratch::new());
    for (issued, said) in [
        (stranger.issue(&["127.0.0.1"]), "UnknownIssuer"),
        (authority.issue(&["10.9.9.9", "other.test"]), "not valid for name"),
    ] {
        let up = tls_upstream(Arc::new(issued.server("http/1.1", None)));
        up.route("*", reply("secret"));
        let weir = believing(&authority, &scratch).set("upstream.retries", 2).to(up.url()).start().await;
        let line = cause(&weir).await;
        assert!(line.contains(said), "{said}: {line}");
        assert_eq!((up.connections(), up.total()), (0, 0));
    }
    // A service without TLS hears a handshake, and no request.
    let up = crate::harness::raw_upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false);
    let weir = believing(&authority, &scratch).set("upstream.connect_timeout", "1s");
    let weir = weir.to(up.url().replace("http:", "https:")).start().await;
    assert_eq!(weir.get("/secret-path").await.status, 504, "it does not shake hands");
    for bytes in up.received() {
        assert!(!bytes.windows(11).any(|window| window == b"secret-path"));
    }
}

#[tokio::test]
async fn a_name_of_its_own_can_be_asked_for() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let up = tls_upstream(Arc::new(authority.issue(&["shop.internal"]).server("http/1.1", None)));
    up.route("*", reply("ok"));
    let weir = believing(&authority, &scratch).set("upstream.tls.server_name", "shop.internal");
    assert_eq!(weir.to(up.url()).start().await.get("/").await.text(), "ok");
}

#[tokio::test]
async fn the_system_s_authorities_are_believed_where_none_is_named() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let up = tls_upstream(Arc::new(authority.issue(&["127.0.0.1"]).server("http/1.1", None)));
    up.route("*", reply("ok"));
    let (empty, file) = (scratch.path().join("none"), authority.put(&scratch));
    std::fs::create_dir(&empty).unwrap();
    let weir = weir(PASS).env("SSL_CERT_FILE", &file).env("SSL_CERT_DIR", &empty.display().to_string());
    assert_eq!(weir.to(up.url()).start().await.get("/").await.text(), "ok");
    let nobody = [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")];
    let nobody = nobody.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let ended = Ended::run(scratch.path(), &nobody, &["run", "--upstream", "https://127.0.0.1:9"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("nobody is trusted") && ended.err.contains("ca_file"), "{ended:?}");
}

#[tokio::test]
async fn weir_shows_its_own_certificate_and_a_new_one_after_a_change() {
    let (authority, clients, scratch) = (Authority::new(), Authority::new(), Scratch::new());
    let up = tls_upstream(Arc::new(authority.issue(&["127.0.0.1"]).server("http/1.1", Some(&clients))));
    up.route("*", reply("ok"));
    let without = believing(&authority, &scratch).to(up.url()).start().await;
    assert_eq!(without.get("/").await.status, 502, "who asks for one lets nobody in without");
    let (cert, key) = Authority::new().issue(&["weir.test"]).put(&scratch, "own");
    let setup = believing(&authority, &scratch).set("upstream.tls.cert", cert).set("upstream.tls.key", key);
    let weir = setup.to(up.url()).start().await;
    assert_eq!(weir.get("/").await.status, 502, "it is a stranger's");
    let right = clients.issue(&["weir.test"]);
    right.put(&scratch, "own");
    within_async(PATIENCE, "the new certificate", async || weir.get("/").await.status == 200).await;
}

/// A service that answers one request on each connection with `ok`, then does `then` and keeps the connection open.
async fn service(config: ServerConfig, then: Then) -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    let (acceptor, asked) = (TlsAcceptor::from(Arc::new(config)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            // What it writes second is not held back until the first is acknowledged.
            stream.set_nodelay(true).expect("nodelay");
            let mut stream = acceptor.accept(stream).await.expect("a handshake");
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.expect("the connection goes on") > 0);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            match then {
                Then::SaysMore => {
                    stream.write_all(answer).await.expect("the connection goes on");
                    stream.flush().await.expect("the connection goes on");
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
                        .await
                        .expect("the connection goes on");
                    stream.flush().await.expect("the connection goes on");
                }
                Then::Closes => {
                    stream.write_all(answer).await.expect("the connection goes on");
                    // `close_notify` alone: the TCP connection stays open.
                    let (io, session) = stream.get_mut();
                    session.send_close_notify();
                    let mut bytes = Vec::new();
                    session.write_tls(&mut bytes).expect("the connection goes on");
                    io.write_all(&bytes).await.expect("the connection goes on");
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    (url, asked, task)
}

#[derive(Clone, Copy)]
enum Then {
    SaysMore,
    Closes,
}

#[tokio::test]
async fn a_connection_that_said_more_or_is_closed_is_not_used_again() {
    for then in [Then::SaysMore, Then::Closes] {
        let (authority, scratch) = (Authority::new(), Scratch::new());
        let (url, asked, task) = service(authority.issue(&["127.0.0.1"]).server("http/1.1", None), then).await;
        let weir = believing(&authority, &scratch).set("server.workers", 1).to(url).start().await;
        for i in 1..=3 {
            // Not repeatable: a connection that was wrongly believed to be good would show as an error.
            let answer = weir.send(request("POST", "/").body("x")).await;
            // What is behind an answer when it is read spoils that answer; what comes later must not become the next.
            let is_spoilt = matches!(then, Then::SaysMore) && answer.status == 502;
            assert!(is_spoilt || answer.text() == "ok", "{answer:?}");
            eventually("it has done its part", || asked.load(Ordering::SeqCst) == i).await;
        }
        task.abort();
    }
}
