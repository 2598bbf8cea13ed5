//! The harness itself: a tool that lies makes every test after it worthless.

use std::time::Duration;

use crate::harness::{
    Connection, Gate, H2, Load, PATIENCE, Scratch, eventually, flaky, get, h2_upstream, nginx, noise, patiently,
    python, raw, raw_upstream, redis, redis_not_started, refusing, reply, request, sum, upstream,
};

#[tokio::test]
async fn the_upstream_answers_counts_and_records() {
    let up = upstream();
    up.route("/a", reply("hello").header("x-one", "1").header("x-one", "2").max_age(5));
    let answer = get("/a?q=1").header("x-in", "v").send(up.address()).await;
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    assert_eq!(answer.headers("x-one"), ["1", "2"]);
    assert_eq!((up.count("/a"), up.count("/a?q=1"), up.count("/a?q=2"), up.total()), (1, 1, 0, 1));
    assert_eq!(up.last("/a").header("x-in"), Some("v"));
    assert_eq!(get("/none").send(up.address()).await.status, 404);
}

#[tokio::test]
async fn the_upstream_follows_its_script() {
    let up = upstream();
    up.sequence("/s", vec![reply("1"), reply("2")]);
    up.route("/t", reply("a").then("b").trailer("x-sum", "9"));
    up.route("/cut", reply("half").cut(8));
    up.echo("/echo");
    for expected in ["1", "2", "2"] {
        assert_eq!(get("/s").send(up.address()).await.text(), expected);
    }
    let trailed = get("/t").header("te", "trailers").header("connection", "te").send(up.address()).await;
    assert_eq!((trailed.text(), trailed.trailers.len()), ("ab", 1));
    let cut = get("/cut").try_send(up.address()).await;
    assert_eq!(cut.expect_err("a cut body is an error").kind(), std::io::ErrorKind::UnexpectedEof);
    let big = noise(3 << 20);
    assert!(request("POST", "/echo").body(big.clone()).send(up.address()).await.body == big);
    let chunked = request("PUT", "/s").chunked(&[b"ab", b"c"], &[("x-t", "1")]).send(up.address()).await;
    assert_eq!(chunked.status, 200);
    let seen = up.last("/s");
    assert_eq!((&seen.body[..], seen.trailers.get("x-t").is_some(), seen.complete), (&b"abc"[..], true, true));
}

#[tokio::test]
async fn a_gate_holds_and_tells() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/g", reply("late").gate(&gate));
    let address = up.address();
    let waiting = tokio::spawn(async move { get("/g").send(address).await });
    gate.reached(1).await;
    assert!(!waiting.is_finished());
    gate.open();
    assert_eq!(patiently("the answer", waiting).await.unwrap().text(), "late");
}

#[tokio::test]
async fn the_upstream_tunnels() {
    let up = upstream();
    up.tunnel("/ws");
    let mut connection = Connection::open(up.address()).await;
    let upgrade = get("/ws").header("connection", "upgrade").header("upgrade", "echo");
    assert_eq!(connection.send(&upgrade).await.status, 101);
    connection.write(b"ping").await;
    assert_eq!(connection.read_bytes(4).await.unwrap(), b"ping");
    connection.finish().await;
    assert!(connection.closes_within(PATIENCE).await);
}

#[tokio::test]
async fn http2_works_without_weir() {
    let up = h2_upstream();
    up.route("/a", reply("two"));
    let client = H2::open(up.address()).await;
    assert_eq!(client.get("/a").await.text(), "two");
    assert_eq!(up.last("/a").version, http::Version::HTTP_2);
}

#[test]
fn a_panic_in_a_script_fails_the_test() {
    let failed = std::panic::catch_unwind(|| {
        let up = upstream();
        up.on("/a", |_| panic!("on purpose"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(get("/a").send(up.address())).status, 500);
    });
    assert!(failed.is_err());
}

#[tokio::test]
async fn raw_bytes_arrive_as_they_are() {
    let up = raw_upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEXTRA", true);
    let address = up.url().trim_start_matches("http://").parse().unwrap();
    let (received, closed) = raw(address, b"GET / HTTP/1.1\r\n\r\n", PATIENCE).await;
    assert!(received.ends_with(b"okEXTRA") && closed);
    assert_eq!(up.received(), [b"GET / HTTP/1.1\r\n\r\n"]);
    let (_held, url) = refusing();
    assert!(get("/").try_send(url.trim_start_matches("http://").parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn redis_dies_freezes_and_comes_back_empty() {
    let redis = redis_not_started();
    assert!(std::net::TcpStream::connect(redis.address()).is_err());
    redis.start();
    redis.cli(&["SET", "a", "1"]);
    assert_eq!(redis.cli(&["GET", "a"]), "1");
    redis.freeze();
    redis.thaw();
    assert_eq!(redis.cli(&["GET", "a"]), "1");
    redis.restart_empty();
    assert_eq!(redis.cli(&["GET", "a"]), "");
    redis.kill();
    assert!(std::net::TcpStream::connect(redis.address()).is_err());
}

#[tokio::test]
async fn the_relay_delays_cuts_and_swallows() {
    let up = upstream();
    up.route("/", reply("ok"));
    let relay = flaky(up.address());
    assert_eq!(get("/").send(relay.address()).await.text(), "ok");
    relay.delay(Duration::from_millis(40));
    assert!(get("/").send(relay.address()).await.took >= Duration::from_millis(80));
    relay.cut();
    assert!(get("/").try_send(relay.address()).await.is_err());
    relay.swallow();
    let seen = up.total();
    let lost = tokio::time::timeout(Duration::from_millis(100), get("/").try_send(relay.address())).await;
    assert!(lost.is_err() && up.total() == seen, "nothing came through");
    relay.heal();
    assert_eq!(get("/").send(relay.address()).await.text(), "ok");
}

#[tokio::test]
async fn load_is_open_loop_and_counts_what_fails() {
    let (up, gate) = (upstream(), Gate::new());
    up.on("*", |_| reply("ok"));
    up.route("/slow", reply("late").gate(&gate));
    let make = |i| get(if i == 0 { "/slow" } else { "/x" });
    let load = Load::new(200, Duration::from_millis(500), make).to(&[up.address()]).start();
    eventually("the rest goes on while one waits", || up.count("/x") == 99).await;
    gate.open();
    let report = load.finish().await;
    assert_eq!((report.sent(), report.count(200), report.errors().len()), (100, 100, 0), "{report}");
    assert!(report.quantile(1.0) > Duration::from_millis(300), "the slow one counts from its due time: {report}");
    let (_held, url) = refusing();
    let nobody = url.trim_start_matches("http://").parse().unwrap();
    let report = Load::new(100, Duration::from_millis(100), |_| get("/")).to(&[nobody]).run().await;
    assert_eq!(report.errors().len(), 10, "{report}");
}

#[tokio::test]
async fn two_redis_servers_share_nothing() {
    let (one, other) = (redis(), redis());
    one.cli(&["SET", "a", "1"]);
    assert_eq!(other.cli(&["EXISTS", "a"]), "0");
}

#[tokio::test]
async fn foreign_services_serve_files() {
    let tree = Scratch::new();
    tree.write("a.txt", "hello");
    for service in [nginx(tree.path()), python(tree.path())].into_iter().flatten() {
        assert_eq!(get("/a.txt").send(service.address).await.text(), "hello");
    }
}

#[test]
fn series_are_summed_by_name_and_labels() {
    let page = "# HELP a_total x\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_more 9\nb 0.5\n";
    assert_eq!(sum(page, "a_total"), 7.0);
    assert_eq!(sum(page, "a_total{x=\"1\"}"), 7.0);
    assert_eq!(sum(page, "a_total{y=\"3\",x=\"1\"}"), 4.0);
    assert_eq!((sum(page, "a_total{x=\"2\"}"), sum(page, "b")), (0.0, 0.5));
}
