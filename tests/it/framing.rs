//! G6 for bodies: sizes, streaming, trailers, upgrades, early answers; nothing is held that can flow.

use crate::harness::{
    Connection, Gate, H2, PATIENCE, Request, eventually, get, join_all, noise, reply, request, upstream, weir,
};

const PASS: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
"#;

#[tokio::test]
async fn bodies_of_every_size_are_equal_both_ways() {
    let up = upstream();
    up.echo("/echo");
    up.on("/get", |request| reply(noise(request.header("x-size").and_then(|size| size.parse().ok()).unwrap_or(0))));
    let weir = weir(PASS).to(up.url()).start().await;
    for size in [0, 1, 1023, 16 << 10, (64 << 10) + 1, 1 << 20, 10 << 20] {
        let sent = noise(size);
        let answer = weir.send(request("POST", "/echo").body(sent.clone())).await;
        assert!(answer.status == 200 && answer.body == sent, "{size} there and back: {answer:?}");
        let answer = weir.send(get("/get").header("x-size", &size.to_string())).await;
        assert!(answer.body == sent && answer.number("content-length") == Some(size as u64), "{size}: {answer:?}");
    }
}

#[tokio::test]
async fn a_hundred_mebibytes_stream_through_in_little_memory() {
    let up = upstream();
    up.echo("/echo");
    let weir = weir(PASS).to(up.url()).start().await;
    let before = weir.resident();
    let sent = noise(100 << 20);
    let answer = weir.send(request("PUT", "/echo").body(sent.clone())).await;
    assert!(answer.status == 200 && answer.body == sent, "{answer:?}");
    let held = weir.resident().saturating_sub(before) >> 20;
    eprintln!("100 MiB both ways left {held} MiB resident");
    assert!(held < 40, "{held} MiB more than before");
}

#[tokio::test]
async fn chunked_uploads_and_answers_pass_with_their_trailers() {
    let up = upstream();
    up.route("/t", reply("one").then("two").trailer("x-sum", "6"));
    let weir = weir(PASS).to(up.url()).start().await;
    let sent = request("POST", "/t").header("te", "trailers").header("connection", "te");
    let sent =
        sent.chunked(&[b"first ", b"second"], &[("x-check", "1"), ("authorization", "smuggled"), ("host", "evil")]);
    let answer = weir.send(sent).await;
    assert_eq!(answer.text(), "onetwo");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "6".to_owned())]);
    let seen = up.last("/t");
    assert_eq!((&seen.body[..], seen.complete), (&b"first second"[..], true));
    assert!(seen.trailers.get("authorization").is_none() && seen.trailers.get("host").is_none(), "{seen:?}");
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let up = upstream();
    up.route("/h", reply("twelve bytes"));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let head = connection.send(&request("HEAD", "/h")).await;
    assert_eq!((head.status, head.number("content-length"), head.body.len()), (200, Some(12), 0));
    assert_eq!(connection.send(&get("/h")).await.text(), "twelve bytes", "the connection is still in step");
}

#[tokio::test]
async fn ranges_pass_through() {
    let up = upstream();
    up.on("/r", |request| {
        assert_eq!(request.header("range"), Some("bytes=2-4"));
        reply("cde").status(206).header("content-range", "bytes 2-4/10")
    });
    let weir = weir(PASS).to(up.url()).start().await;
    let part = weir.send(get("/r").header("range", "bytes=2-4")).await;
    assert_eq!((part.status, part.text(), part.header("content-range")), (206, "cde", Some("bytes 2-4/10")));
}

#[tokio::test]
async fn an_expectation_is_answered_before_the_body() {
    let up = upstream();
    up.on("/e", |request| reply(request.body.clone()));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let head = b"PUT /e HTTP/1.1\r\nhost: service.test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    connection.write(head).await;
    connection.read_until(b"HTTP/1.1 100").await;
    connection.write(b"hello").await;
    let answer = connection.read(false).await.unwrap();
    assert_eq!((answer.status, answer.text(), answer.interim.as_slice()), (200, "hello", &[100][..]));
}

#[tokio::test]
async fn an_answer_flows_while_it_is_made() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/s", reply("first").then_gate(&gate).then("second"));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    connection.write(b"GET /s HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    connection.read_until(b"first").await;
    gate.open();
    assert_eq!(connection.read(false).await.unwrap().text(), "firstsecond");
}

#[tokio::test]
async fn an_upload_flows_while_it_comes() {
    let up = upstream();
    up.echo("/echo");
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    connection
        .write(b"POST /echo HTTP/1.1\r\nhost: service.test\r\ntransfer-encoding: chunked\r\n\r\n4\r\nping\r\n")
        .await;
    connection.read_until(b"ping").await;
    connection.write(b"4\r\npong\r\n0\r\n\r\n").await;
    assert_eq!(connection.read(false).await.unwrap().text(), "pingpong");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let up = upstream();
    up.tunnel("/ws");
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let upgrade = get("/ws").header("connection", "Upgrade").header("upgrade", "websocket");
    let answer = connection.send(&upgrade).await;
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")), "{answer:?}");
    let blob = noise(300 << 10);
    for message in [&b"ping"[..], &blob[..]] {
        connection.write(message).await;
        assert!(connection.read_bytes(message.len()).await.unwrap() == message);
    }
    connection.finish().await;
    assert!(connection.closes_within(PATIENCE).await, "an end on one side ends the other");
}

#[tokio::test]
async fn bytes_behind_an_upgrade_wait_for_101_and_h2c_is_stripped() {
    let up = upstream();
    up.route("/no", reply("not here"));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    connection
        .write(b"GET /no HTTP/1.1\r\nhost: service.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(
        connection.read(false).await.unwrap().text(),
        "not here",
        "a refused upgrade is an answer like any other"
    );
    let offered = get("/no").header("connection", "upgrade, http2-settings").header("upgrade", "h2c");
    let answer = weir.send(offered.header("http2-settings", "AAMAAABkAAQAAP__")).await;
    assert_eq!(answer.status, 200);
    let seen = up.last("/no");
    assert_eq!((seen.header("upgrade"), seen.header("http2-settings")), (None, None));
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_arrives() {
    let up = upstream();
    up.early("/early", reply("too much").status(413));
    let weir = weir(PASS).to(up.url()).start().await;
    let answer = weir.send(request("POST", "/early").body(noise(8 << 20))).await;
    assert_eq!((answer.status, answer.text()), (413, "too much"), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_off_for_the_client() {
    let up = upstream();
    up.route("/cut", reply("half of it").cut(100));
    let weir = weir(PASS).to(up.url()).start().await;
    assert!(get("/cut").try_send(weir.proxy).await.is_err(), "a cut body must not look whole");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_upload() {
    let up = upstream();
    up.on("/up", |_| reply(""));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    connection.write(b"POST /up HTTP/1.1\r\nhost: service.test\r\ncontent-length: 1000000\r\n\r\nonly this").await;
    eventually("the head arrived", || up.count("/up") == 1).await;
    drop(connection);
    weir.metric_reaches("weir_requests_total", 1.0).await;
    assert!(!up.last("/up").complete, "a cut upload must not look whole");
}

#[tokio::test]
async fn keep_alive_and_pipelined_requests_are_answered_in_order() {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    let weir = weir(PASS).to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let pipelined: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nhost: service.test\r\n\r\n")).collect();
    connection.write(pipelined.as_bytes()).await;
    for i in 0..20 {
        assert_eq!(connection.read(false).await.unwrap().text(), format!("/{i}"));
    }
    let old = Connection::open(weir.proxy).await;
    let mut old = old;
    old.write(b"GET /old HTTP/1.0\r\nhost: service.test\r\n\r\n").await;
    assert_eq!(old.read(false).await.unwrap().text(), "/old");
    assert!(old.closes_within(PATIENCE).await, "HTTP/1.0 closes unless asked not to");
}

#[tokio::test]
async fn two_hundred_clients_at_once_each_get_their_own_answer() {
    let up = upstream();
    up.on("*", |request| reply(format!("{} {}", request.target(), request.header("x-user").unwrap_or("-"))));
    let weir = weir(PASS).to(up.url()).start().await;
    let h2 = H2::open(weir.proxy).await;
    let one = |i: usize| -> Request { get(&format!("/{i}")).header("x-user", &i.to_string()) };
    let over_1 = join_all((0..200).map(|i| weir.send(one(i)))).await;
    let paths: Vec<String> = (0..200).map(|i| format!("/{i}")).collect();
    let over_2 = join_all(paths.iter().map(|path| h2.get(path))).await;
    for i in 0..200 {
        assert_eq!(over_1[i].text(), format!("/{i} {i}"));
        assert_eq!(over_2[i].text(), format!("/{i} -"));
    }
}
