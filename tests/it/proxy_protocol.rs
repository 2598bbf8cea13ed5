//! PROXY protocol: a balancer's word about its client counts, and nobody else's.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{
    Answer, Authority, Caller, Connection, PATIENCE, Scratch, Setup, get, noise, raw, reply, request, upstream, weir,
};

const PASS: &str = r#"
[server]
proxy_protocol = ["127.0.0.0/8"]

[server.limits]
head_timeout = "20s"

[[route]]
name = "all"
path = "/{*path}"
"#;

/// The deadlines of these tests, with room for a busy machine.
const SOON: Duration = Duration::from_secs(5);

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.2 56324 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2.
fn binary(command: u8, kind: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short block").to_be_bytes();
    [SIGNATURE, &[command, kind], &length, block].concat()
}

/// TCP over IPv4, from this client.
fn block(client: [u8; 4]) -> Vec<u8> {
    [&client[..], &[198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb]].concat()
}

/// A connection that begins with `header`, written in pieces of `step` bytes.
async fn announced(to: SocketAddr, header: &[u8], step: usize) -> Connection {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    stream.set_nodelay(true).expect("nodelay");
    for piece in header.chunks(step) {
        stream.write_all(piece).await.expect("the connection takes bytes");
        tokio::task::yield_now().await;
    }
    Connection::over(stream)
}

fn seen_by(up: &crate::harness::Upstream, path: &str) -> String {
    up.last(path).header("x-forwarded-for").unwrap_or("-").to_owned()
}

#[tokio::test]
async fn the_address_in_the_header_is_the_client_s() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(PASS).to(up.url()).start().await;
    let more = [block([192, 0, 2, 8]), vec![0x04, 0, 3, 1, 2, 3]].concat();
    let longest = [block([192, 0, 2, 9]), vec![0; 4096 - 16 - 12]].concat();
    let ipv6 = [&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16], &[0, 7, 0, 8]].concat();
    for (header, client) in [
        (LINE.to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::2 ::1 1 2\r\n".to_vec(), "2001:db8::2"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (binary(0x21, 0x11, &block([192, 0, 2, 7])), "192.0.2.7"),
        (binary(0x21, 0x11, &more), "192.0.2.8"),
        (binary(0x21, 0x11, &longest), "192.0.2.9"),
        (binary(0x21, 0x21, &ipv6), "2001:db8::1"),
        (binary(0x20, 0x00, &[]), "127.0.0.1"),
        (binary(0x21, 0x12, &block([192, 0, 2, 7])), "127.0.0.1"),
        (binary(0x21, 0x31, &[0; 216]), "127.0.0.1"),
    ] {
        let mut connection = announced(weir.proxy, &header, header.len()).await;
        for path in ["/1", "/2"] {
            assert_eq!(connection.send(&get(path)).await.text(), "ok", "{header:?}");
            assert_eq!(seen_by(&up, path), client, "{header:?}");
        }
    }
    // Nothing behind the header is lost: requests that come with it are answered, over HTTP/2 as well.
    let behind = [LINE, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n"].concat();
    let mut connection = announced(weir.proxy, &behind, behind.len()).await;
    for path in ["/a", "/b"] {
        assert_eq!(connection.read(false).await.unwrap().text(), "ok");
        assert_eq!(seen_by(&up, path), "192.0.2.7");
    }
    let preface = [LINE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"].concat();
    let mut h2 = announced(weir.proxy, &preface, 7).await;
    h2.write(b"\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(&h2.read_bytes(5).await.unwrap()[3..], [4, 0], "its settings");
}

#[tokio::test]
async fn a_header_may_come_in_any_pieces() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(PASS).to(up.url()).start().await;
    for header in [LINE.to_vec(), binary(0x21, 0x11, &block([192, 0, 2, 7]))] {
        let whole = [&header[..], b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"].concat();
        let mut pieces: Vec<usize> = (1..header.len() + 2).collect();
        pieces.reverse();
        for step in pieces {
            let mut connection = announced(weir.proxy, &whole, step).await;
            assert_eq!(connection.read(false).await.unwrap().text(), "ok", "in pieces of {step}");
            assert_eq!(seen_by(&up, "/x"), "192.0.2.7");
        }
    }
}

/// With a certificate of `authority`'s.
fn secure(config: &str, authority: &Authority, scratch: &Scratch) -> Setup {
    let (cert, key) = authority.issue(&["127.0.0.1"]).put(scratch, "own");
    weir(config).set("server.tls.cert", cert).set("server.tls.key", key)
}

#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("*", reply("ok")).echo("/echo");
    let weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    for header in [LINE.to_vec(), binary(0x21, 0x11, &block([192, 0, 2, 7]))] {
        let caller = Caller::new(&authority).after(&header);
        let mut connection = caller.open(weir.proxy).await;
        assert_eq!(connection.send(&get("/1")).await.text(), "ok");
        let sent = noise(1 << 20);
        assert!(connection.send(&request("POST", "/echo").body(sent.clone())).await.body == sent);
        assert_eq!(caller.h2(weir.proxy).await.get("/2").await.text(), "ok");
        for path in ["/1", "/2"] {
            assert_eq!(seen_by(&up, path), "192.0.2.7");
            assert_eq!(up.last(path).header("x-forwarded-proto"), Some("https"));
        }
    }
    assert!(Caller::new(&authority).try_open(weir.proxy).await.is_err(), "no header, no handshake");
}

#[tokio::test]
async fn who_must_send_a_header_and_does_not_is_not_heard() {
    let up = upstream();
    up.route("*", reply("ok"));
    let setup = weir(PASS).to(up.url());
    let weir = setup.start().await;
    for wrong in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.7 198.51.100.2 1\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01",
        &binary(0x31, 0x11, &block([1, 2, 3, 4])),
        &binary(0x21, 0x11, &[0; 4096]),
    ] {
        let (heard, closed) = raw(weir.proxy, wrong, PATIENCE).await;
        assert!(closed && heard.is_empty(), "{heard:?}");
    }
    weir.metric_reaches(r#"weir_connections_failed_total{layer="proxy_protocol",reason="malformed"}"#, 5.0).await;
    drop(announced(weir.proxy, &LINE[..20], 64).await);
    weir.metric_reaches(r#"weir_connections_failed_total{layer="proxy_protocol",reason="left"}"#, 1.0).await;

    let weir = setup.set("server.limits.head_timeout", "300ms").start().await;
    for partial in [&b""[..], &LINE[..20], SIGNATURE, &binary(0x21, 0x11, &block([1, 2, 3, 4]))[..20]] {
        let mut connection = announced(weir.proxy, partial, 64).await;
        assert!(connection.closes_within(SOON).await, "{partial:?} stays open");
    }
    weir.metric_reaches(r#"weir_connections_failed_total{layer="proxy_protocol",reason="timeout"}"#, 4.0).await;
    assert_eq!(up.total(), 0);
    // A deadline that was for the header is not one for the connection.
    let mut connection = announced(weir.proxy, LINE, 64).await;
    assert_eq!(connection.send(&get("/")).await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(connection.send(&get("/")).await.status, 200);
}

#[tokio::test]
async fn a_header_from_anybody_else_is_not_http() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(&PASS.replace("127.0.0.0/8", "10.0.0.0/8")).to(up.url()).start().await;
    assert_eq!(weir.get("/").await.status, 200);
    assert_eq!(seen_by(&up, "/"), "127.0.0.1");
    for header in [LINE.to_vec(), binary(0x21, 0x11, &block([192, 0, 2, 7]))] {
        let (heard, closed) =
            raw(weir.proxy, &[&header[..], b"GET /spoof HTTP/1.1\r\nhost: a\r\n\r\n"].concat(), PATIENCE).await;
        assert!(closed && heard.starts_with(b"HTTP/1.1 400 "), "{:?}", String::from_utf8_lossy(&heard));
    }
    assert_eq!(up.count("/spoof"), 0);
}

#[tokio::test]
async fn limits_and_trust_go_by_the_client_s_address() {
    let up = upstream();
    up.route("*", reply("ok"));
    let limited = "[[limit]]\nname = \"each\"\nkey = [\"ip\"]\nrate = \"1/h\"\nburst = 1\n\n[[route]]";
    let config = PASS.replace("[[route]]", limited) + "limits = [\"each\"]\n";
    let config = config.replace("[server]\n", "[server]\ntrusted_proxies = [\"203.0.113.0/24\"]\n");
    let weir = weir(&config).to(up.url()).start().await;
    let ask = async |client: [u8; 4], forwarded: &str| -> Answer {
        let header = binary(0x21, 0x11, &block(client));
        announced(weir.proxy, &header, 64).await.send(&get("/").header("x-forwarded-for", forwarded)).await
    };
    for (client, forwarded, status) in [
        ([192, 0, 2, 1], "198.51.100.1", 200),
        ([192, 0, 2, 1], "198.51.100.2", 429),
        ([192, 0, 2, 2], "198.51.100.1", 200),
        // Behind a proxy that is trusted, the client is who that proxy says.
        ([203, 0, 113, 1], "198.51.100.1", 200),
        ([203, 0, 113, 2], "198.51.100.1", 429),
        ([203, 0, 113, 2], "198.51.100.2", 200),
    ] {
        assert_eq!(ask(client, forwarded).await.status, status, "{client:?} for {forwarded}");
    }
}
