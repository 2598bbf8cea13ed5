//! TLS from clients: who is let in and by which certificate, what ends it, and that HTTP is the same behind it.

use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Authority, Caller, Connection, Ended, Gate, H2, PATIENCE, Scratch, Setup, eventually, get, noise, raw, reply,
    request, upstream, weir, within_async,
};

const PASS: &str = r#"
[server.limits]
head_timeout = "20s"

[[route]]
name = "all"
path = "/{*path}"
"#;

/// The deadlines of these tests, with room for a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A Weir whose address has a certificate of this authority's.
fn secure(config: &str, authority: &Authority, scratch: &Scratch) -> Setup {
    let (cert, key) = authority.issue(&["127.0.0.1", "localhost"]).put(scratch, "own");
    weir(config).set("server.tls.cert", cert).set("server.tls.key", key)
}

#[tokio::test]
async fn the_handshake_decides_the_protocol() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("*", reply("ok"));
    let weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    let caller = Caller::new(&authority);
    for offered in [&["http/1.1"][..], &[]] {
        let mut connection = caller.clone().offering(offered).open(weir.proxy).await;
        assert_eq!(connection.send(&get("/1")).await.text(), "ok");
        assert_eq!(connection.send(&get("/2")).await.text(), "ok", "the connection is kept");
    }
    let h2 = caller.h2(weir.proxy).await;
    assert_eq!(h2.get("/h2").await.text(), "ok");
    for path in ["/1", "/h2"] {
        assert_eq!(up.last(path).header("x-forwarded-proto"), Some("https"), "{path}");
    }
    let both = caller.clone().offering(&["http/1.1", "h2"]).try_open(weir.proxy).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "of both, HTTP/2");
    assert!(caller.clone().offering(&["spdy/3"]).try_open(weir.proxy).await.is_err(), "nothing in common");
    // Who agreed to one protocol and speaks the other is not heard.
    let before = up.total();
    for (agreed, spoken) in
        [("h2", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"), ("http/1.1", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    {
        let mut connection = Connection::over(caller.clone().offering(&[agreed]).try_open(weir.proxy).await.unwrap());
        connection.write(spoken.as_bytes()).await;
        let (heard, _) = connection.read_to_end().await;
        assert!(heard.is_empty(), "{agreed}: {:?}", String::from_utf8_lossy(&heard));
    }
    assert_eq!(up.total(), before);
}

#[tokio::test]
async fn the_asked_name_chooses_the_certificate() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("*", reply("ok"));
    let (shop, wild) = (authority.issue(&["shop.test"]), authority.issue(&["*.shop.test"]));
    let further: Vec<toml::Value> = [(&shop, "shop"), (&wild, "wild")]
        .into_iter()
        .map(|(issued, name)| {
            let (cert, key) = issued.put(&scratch, name);
            toml::Table::from_iter([("cert".to_owned(), cert.into()), ("key".to_owned(), key.into())]).into()
        })
        .collect();
    let setup = secure(PASS, &authority, &scratch).set("server.tls.certificates", further);
    let weir = setup.to(up.url()).start().await;
    for (name, certificate) in [("shop.test", &shop), ("a.shop.test", &wild)] {
        let stream = Caller::new(&authority).named(name).try_open(weir.proxy).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], certificate.cert, "{name}");
    }
    assert!(Caller::new(&authority).try_open(weir.proxy).await.is_ok(), "the first for who names nobody");
    let stream = Caller::new(&authority).named("localhost").try_open(weir.proxy).await;
    assert!(stream.is_ok());
    let other = Caller::new(&authority).named("a.b.shop.test").try_open(weir.proxy).await.unwrap_err();
    assert!(other.to_string().contains("not valid for name"), "the first for an unknown name: {other}");
}

#[tokio::test]
async fn clients_prove_who_they_are() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (scratch, up) = (Scratch::new(), upstream());
    up.route("*", reply("ok"));
    let (known, unknown) = (clients.issue(&["client.test"]), strangers.issue(&["client.test"]));
    let ca = clients.put(&scratch);
    for (auth, without) in [(None, false), (Some("require"), false), (Some("optional"), true)] {
        let mut setup = secure(PASS, &authority, &scratch).set("server.tls.client_ca", ca.clone());
        if let Some(auth) = auth {
            setup = setup.set("server.tls.client_auth", auth);
        }
        let weir = setup.to(up.url()).start().await;
        // With TLS 1.3 a client learns only after its own part whether it was let in.
        let passes = async |caller: Caller| match caller.try_open(weir.proxy).await {
            Ok(stream) => Connection::over(stream).try_send(&get("/")).await.is_ok_and(|answer| answer.status == 200),
            Err(_) => false,
        };
        assert!(passes(Caller::with(&authority, &known)).await, "{auth:?}");
        assert_eq!(passes(Caller::new(&authority)).await, without, "{auth:?}");
        assert!(!passes(Caller::with(&authority, &unknown)).await, "{auth:?}: of another authority");
        let refused = if without { 1.0 } else { 2.0 };
        weir.metric_reaches(r#"weir_connections_failed_total{layer="tls",reason="certificate"}"#, refused).await;
    }
}

#[tokio::test]
async fn a_certificate_is_replaced_while_clients_come_and_a_bad_one_is_kept_out() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("*", reply("ok"));
    // As Kubernetes mounts a Secret: files behind a symlink that is swapped.
    let swap = |version: &str, cert: &str, key: &str| {
        std::fs::create_dir(scratch.path().join(version)).unwrap();
        scratch.write(&format!("{version}/tls.crt"), cert);
        scratch.write(&format!("{version}/tls.key"), key);
        symlink(version, scratch.path().join("..tmp")).unwrap();
        std::fs::rename(scratch.path().join("..tmp"), scratch.path().join("..data")).unwrap();
    };
    let (old, new) = (authority.issue(&["127.0.0.1"]), authority.issue(&["127.0.0.1"]));
    swap("..1", &old.cert_pem, &old.key_pem);
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), scratch.path().join(file)).unwrap();
    }
    let file = |name: &str| scratch.path().join(name).display().to_string();
    let setup = weir(PASS).set("server.tls.cert", file("tls.crt")).set("server.tls.key", file("tls.key"));
    let weir = setup.to(up.url()).start().await;
    let caller = Caller::new(&authority);
    let mut kept = caller.open(weir.proxy).await;
    assert_eq!(kept.send(&get("/kept")).await.status, 200);
    let shown = async || {
        let stream = caller.try_open(weir.proxy).await.expect("nobody is refused meanwhile");
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(Connection::over(stream).send(&get("/")).await.status, 200);
        certificate
    };
    assert_eq!(shown().await, old.cert);
    swap("..2", &new.cert_pem, &new.key_pem);
    within_async(PATIENCE, "the new certificate", async || shown().await == new.cert).await;
    assert_eq!(kept.send(&get("/kept")).await.status, 200, "what is open goes on");

    // The new certificate with the old key, then nothing that is one.
    swap("..3", &old.cert_pem, &new.key_pem);
    weir.metric_reaches(r#"weir_config_reloads_total{result="rejected"}"#, 1.0).await;
    assert_eq!(shown().await, new.cert);
    swap("..4", "garbage", &new.key_pem);
    weir.metric_reaches(r#"weir_config_reloads_total{result="rejected"}"#, 2.0).await;
    assert_eq!(shown().await, new.cert);
    let says = |what: &str| weir.output().iter().any(|line| line.contains(what));
    eventually("the one is reported", || says("does not belong to the certificate")).await;
    eventually("the other is reported", || says("tls.crt holds no certificate")).await;
    // A right one is taken again.
    swap("..5", &old.cert_pem, &old.key_pem);
    within_async(PATIENCE, "the old certificate again", async || shown().await == old.cert).await;
}

#[tokio::test]
async fn silent_slow_and_foreign_handshakes_end() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    let setup = secure(PASS, &authority, &scratch).to(up.url());
    let weir = setup.clone().set("server.limits.head_timeout", "300ms").start().await;
    // A record of 512 bytes that does not come, or comes byte by byte.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for begun in [&[][..], &hello[..1], &hello] {
        let mut connection = Connection::open(weir.proxy).await;
        connection.write(begun).await;
        assert!(connection.closes_within(SOON).await, "{begun:?} stays open");
    }
    let mut dripping = tokio::net::TcpStream::connect(weir.proxy).await.unwrap();
    dripping.write_all(&hello).await.unwrap();
    within_async(SOON, "dripping ends", async || dripping.write_all(&[0]).await.is_err()).await;
    weir.metric_reaches(r#"weir_connections_failed_total{layer="tls",reason="timeout"}"#, 4.0).await;

    // What is wrong is not waited for.
    let weir = setup.start().await;
    for garbage in [&b"\x00\x01garbage"[..], b"\x16garbage garbage garbage", b"\r\n\r\n\0\r\nQUIT\n"] {
        let (heard, closed) = raw(weir.proxy, garbage, PATIENCE).await;
        assert!(closed && !heard.starts_with(b"HTTP"), "{garbage:?}: {heard:?}");
    }
    weir.metric_reaches(r#"weir_connections_failed_total{layer="tls",reason="malformed"}"#, 3.0).await;
    let (heard, closed) = raw(weir.proxy, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", PATIENCE).await;
    assert!(closed && heard.starts_with(b"HTTP/1.1 400 ") && heard.ends_with(b"speaks TLS\n"), "{heard:?}");
    weir.metric_reaches(r#"weir_connections_failed_total{layer="tls",reason="plain_http"}"#, 1.0).await;
    assert_eq!((up.total(), weir.metric("weir_requests_total").await), (0, 0.0), "none of it was a request");
    // Strangers' failures are no warnings.
    let loud = |line: &String| line.contains("\"WARN\"") || line.contains("\"ERROR\"");
    assert!(!weir.output().iter().any(loud), "{:#?}", weir.output());
}

#[tokio::test]
async fn bodies_pass_both_ways() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.echo("/echo");
    let weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    let caller = Caller::new(&authority);
    let mut connection = caller.open(weir.proxy).await;
    let h2: H2 = caller.h2(weir.proxy).await;
    for size in [0, 1, 16 << 10, 10 << 20] {
        let sent = noise(size);
        let answer = connection.send(&request("POST", "/echo").body(sent.clone())).await;
        assert!(answer.status == 200 && answer.body == sent, "{size} over HTTP/1.1: {answer:?}");
        let over_h2 = http::Request::post("https://service.test/echo").body(sent.clone().into()).unwrap();
        let answer = h2.send(over_h2).await;
        assert!(answer.status == 200 && answer.body == sent, "{size} over HTTP/2: {answer:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_connection_says_whether_it_was_meant() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("/whole", reply("one").then("two"));
    up.route("/cut", reply("half of it").cut(100));
    let weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    let ask = async |path: &str| {
        let mut connection = Caller::new(&authority).open(weir.proxy).await;
        connection.write(format!("GET {path} HTTP/1.0\r\nhost: a\r\n\r\n").as_bytes()).await;
        connection.read_to_end().await
    };
    let (heard, is_whole) = ask("/whole").await;
    assert!(is_whole && heard.ends_with(b"onetwo"), "close_notify ends it: {:?}", String::from_utf8_lossy(&heard));
    let (heard, is_whole) = ask("/cut").await;
    assert!(!is_whole, "nothing says that it was whole: {:?}", String::from_utf8_lossy(&heard));
    // A refusal ends well too, although bytes behind it were not read.
    let mut connection = Caller::new(&authority).open(weir.proxy).await;
    connection.write(b"GET / HTTP/1.1\nhost: a\n\nmore and more").await;
    let (heard, is_whole) = connection.read_to_end().await;
    assert!(is_whole && heard.starts_with(b"HTTP/1.1 400 "), "{:?}", String::from_utf8_lossy(&heard));
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.tunnel("/ws");
    let weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    let mut connection = Caller::new(&authority).open(weir.proxy).await;
    let upgrade = get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    assert_eq!(connection.send(&upgrade).await.status, 101);
    let blob = noise(300 << 10);
    for message in [&b"ping"[..], &blob[..]] {
        connection.write(message).await;
        assert!(connection.read_bytes(message.len()).await.unwrap() == message);
    }
    connection.finish().await;
    let (rest, is_whole) = connection.read_to_end().await;
    assert!(rest.is_empty() && is_whole, "an end on one side is an end on the other, said so");
}

#[tokio::test]
async fn a_drain_ends_what_is_idle_and_finishes_the_rest() {
    let (authority, scratch, up, gate) = (Authority::new(), Scratch::new(), upstream(), Gate::new());
    up.route("/held", reply("held").gate(&gate)).route("*", reply("ok"));
    let mut weir = secure(PASS, &authority, &scratch).to(up.url()).start().await;
    let caller = Caller::new(&authority);
    let (mut idle, mut busy, h2) =
        (caller.open(weir.proxy).await, caller.open(weir.proxy).await, caller.h2(weir.proxy).await);
    assert_eq!(idle.send(&get("/")).await.status, 200);
    assert_eq!(h2.get("/").await.status, 200);
    busy.write(b"GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await;
    gate.reached(1).await;
    let in_flight = tokio::spawn(async move { h2.get("/held").await });
    gate.reached(2).await;
    // One that never shakes hands does not hold up the end.
    let silent = Connection::open(weir.proxy).await;
    weir.metric_reaches("weir_connections", 4.0).await;
    weir.sigterm();
    let (rest, is_whole) = idle.read_to_end().await;
    assert!(rest.is_empty() && is_whole, "an idle connection ends well");
    gate.open();
    let answer = busy.read(false).await.unwrap();
    assert_eq!((answer.text(), answer.header("connection")), ("held", Some("close")));
    assert!(busy.read_to_end().await.1);
    assert_eq!(in_flight.await.unwrap().text(), "held");
    assert_eq!(weir.ended(PATIENCE).await, Some(0));
    let cut = weir.output().iter().any(|line| line.contains("\"ended\"") && line.contains("\"cut\":0"));
    assert!(cut, "{:#?}", weir.output());
    drop(silent);
}

#[tokio::test]
async fn a_reader_who_stops_reading_is_ended() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("/big", reply(noise(64 << 20)));
    let config = PASS.replace("[[route]]", "body_idle = \"400ms\"\n\n[[route]]");
    let config = config.replace("head_timeout = \"20s\"\n\n", "head_timeout = \"20s\"\n");
    let weir = secure(&config, &authority, &scratch).to(up.url()).start().await;
    let mut connection = Caller::new(&authority).open(weir.proxy).await;
    connection.write(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n").await;
    weir.metric_reaches("weir_requests_total", 1.0).await;
    let (heard, is_whole) = connection.read_to_end().await;
    assert!(!is_whole && heard.len() < 64 << 20, "{} bytes", heard.len());
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_and_nothing_of_the_key() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let (own, other) = (authority.issue(&["a.test"]), authority.issue(&["b.test"]));
    let (cert, key) = own.put(&scratch, "own");
    let (_, other_key) = other.put(&scratch, "other");
    let half = scratch.write("half.key", &own.key_pem[..own.key_pem.len() / 2]).display().to_string();
    let missing = scratch.path().join("missing").display().to_string();
    let cases = [
        (&cert, &other_key, "does not belong to the certificate", "name the key that the certificate was made for"),
        (&cert, &missing, "cannot read", "name a file that this process may read"),
        (&missing, &key, "cannot read", "name a file that this process may read"),
        (&key, &key, "own.key holds no certificate", "BEGIN CERTIFICATE"),
        (&cert, &cert, "own.crt holds no private key", "PKCS#8"),
        (&cert, &half, "half.key holds no private key", "PKCS#8"),
    ];
    let secret = own.key_pem.lines().nth(1).expect("a line of the key");
    for (cert, key, problem, remedy) in cases {
        let setup = weir(PASS).set("server.tls.cert", cert.as_str()).set("server.tls.key", key.as_str());
        let setup = setup.to("http://127.0.0.1:9");
        let config = scratch.write("weir.toml", &setup.toml()).display().to_string();
        for (args, code) in [(&["check"][..], 1), (&["run", "--config"], 2)] {
            let ended = Ended::of(&[args, &[config.as_str()]].concat());
            let said = ended.said();
            assert_eq!(ended.code, Some(code), "{said}");
            assert!(said.contains(problem) && said.contains(remedy), "{problem}: {said}");
            assert!(!said.contains(secret), "{said}");
        }
    }
    // What is wrong with the configuration itself stays what it was.
    let setup = weir(PASS).set("server.tls.cert", missing.as_str()).set("server.tls.key", key.as_str());
    let setup = setup.set("server.drain", "never").to("http://127.0.0.1:9");
    assert_eq!(setup.run_to_end().code, Some(1));
}

#[tokio::test]
async fn keys_are_never_shown() {
    let (authority, scratch, up) = (Authority::new(), Scratch::new(), upstream());
    up.route("*", reply("ok"));
    let own = authority.issue(&["127.0.0.1"]);
    let (cert, key) = own.put(&scratch, "own");
    let setup = weir(PASS).set("server.tls.cert", cert).set("server.tls.key", key).env("WEIR_LOG", "trace");
    let weir = setup.to(up.url()).start().await;
    let mut stream = Caller::new(&authority).try_open(weir.proxy).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    drop(raw(weir.proxy, b"garbage", SOON).await);
    eventually("it says so", || weir.output().iter().any(|line| line.contains("malformed"))).await;
    weir.sighup();
    weir.metric_reaches(r#"weir_config_reloads_total{result="applied"}"#, 1.0).await;
    let said = weir.output().join("\n");
    for line in own.key_pem.lines().filter(|line| line.len() > 20) {
        assert!(!said.contains(line), "a line of the key is in the log");
    }
}
