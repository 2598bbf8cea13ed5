//! G2 where the service fails: that is one pod's affair until two pods have seen it, and then everybody's who waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cold::{PODS, Served, clients, crowd, everybody_waits, margin, pod};
use crate::harness::{
    Answer, Background, Gate, Redis, Request, Setup, Weir, get, join_all, patiently, redis, reply, upstream, weir,
};

/// What the service takes to fail.
const FETCH: Duration = Duration::from_millis(500);

/// Everybody is answered within this and two fetches.
const ANSWERED: Duration = Duration::from_secs(1);

/// Questions for the fleet's lease.
const ASKED: &str = r#"weir_redis_commands_total{command="lease",result="ok"}"#;

/// Sixteen pods beside one service that is not asked again by the pod that asked in vain.
async fn sixteen(url: &str, redis: &Redis) -> Vec<Weir> {
    let up = upstream();
    let setups: Vec<_> = (0..PODS).map(|number| pod(number, &up, redis).to(url).set("upstream.retries", 0)).collect();
    join_all(setups.iter().map(Setup::start)).await
}

/// A crowd asks a service that fails once `gate` opens; `asked` counts what reaches it.
async fn fails(what: &str, weirs: &[Weir], gate: &Gate, asked: impl Fn() -> usize) -> Vec<Served> {
    let proxies: Vec<_> = weirs.iter().map(|weir| weir.proxy).collect();
    let crowd = crowd("/cold", &proxies).await;
    everybody_waits(weirs).await;
    // For Redis too: who asks it for the first time after all is over has not waited.
    for weir in weirs {
        weir.metric_reaches(ASKED, 1.0).await;
    }
    let opened = Instant::now();
    gate.open();
    let served = crowd.join_all().await;
    let last = served.iter().map(|one| one.when - opened).max().unwrap_or_default();
    eprintln!(
        "{what}: {} clients of {PODS} Weirs, {} fetches, the last answered after {last:?}",
        served.len(),
        asked()
    );
    assert_eq!(served.len(), clients(), "{what}");
    assert_eq!(asked(), 2, "{what}: a second pod tries, and no third");
    assert!(last <= 2 * FETCH + ANSWERED + margin(), "{what}: the last is answered after {last:?}");
    served
}

#[tokio::test]
async fn a_service_that_answers_503_is_asked_by_two_weirs_of_sixteen() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/cold", reply("down").status(503).gate(&gate).takes(FETCH));
    let weirs = sixteen(&up.url(), &redis).await;
    let served = fails("503", &weirs, &gate, || up.count("/cold")).await;
    let (mut pods, mut theirs) = (Vec::new(), 0);
    for one in &served {
        let answer = one.answer.as_ref().expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        match answer.text() {
            "down" => {
                pods.push(one.at);
                theirs += 1;
            }
            own => assert!(own.contains("has just failed two pods"), "{own}"),
        }
    }
    pods.sort_unstable();
    pods.dedup();
    assert_eq!((pods.len(), theirs), (2, 2 * clients() / PODS), "the service's own words stay in the pods that asked");
}

#[tokio::test]
async fn a_service_that_resets_connections_is_asked_by_two_weirs_of_sixteen() {
    let (redis, gate) = (redis(), Gate::new());
    let service = breaking(b"", &gate);
    let weirs = sixteen(&service.url(), &redis).await;
    let served = fails("resets", &weirs, &gate, || service.count()).await;
    let bad = served.iter().find(|one| !one.answer.as_ref().is_ok_and(|answer| answer.status == 502));
    assert!(bad.is_none(), "{:?}", bad.map(|one| &one.answer));
}

/// Of a body of unknown length nobody has seen anything but the leader's client.
#[tokio::test]
async fn a_service_that_breaks_off_is_asked_by_two_weirs_of_sixteen() {
    let (redis, gate) = (redis(), Gate::new());
    let service = breaking(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", &gate);
    let weirs = sixteen(&service.url(), &redis).await;
    let served = fails("breaks off", &weirs, &gate, || service.count()).await;
    let cut = served.iter().filter(|one| one.answer.is_err()).count();
    let failed = served.iter().filter(|one| one.answer.as_ref().is_ok_and(|answer| answer.status == 502)).count();
    assert_eq!((cut, failed), (2, clients() - 2));
}

/// A service that reads a request and, a `FETCH` after a gate has opened, says so much and no more: it closes the connection,
/// or resets it where it has said nothing.
struct Breaking {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _background: Background,
}

impl Breaking {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests that were read whole.
    fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn breaking(says: &'static [u8], gate: &Gate) -> Breaking {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let (asked, gate) = (Arc::<AtomicUsize>::default(), gate.clone());
    let count = Arc::clone(&asked);
    let background = Background::run("breaking", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(break_off(stream, says, gate.clone(), Arc::clone(&count)));
        }
    });
    Breaking { address, asked, _background: background }
}

async fn break_off(mut stream: TcpStream, says: &[u8], gate: Gate, asked: Arc<AtomicUsize>) {
    let mut input = Vec::new();
    while !input.ends_with(b"\r\n\r\n") {
        let Ok(1..) = stream.read_buf(&mut input).await else { return };
    }
    asked.fetch_add(1, Ordering::SeqCst);
    gate.pass().await;
    tokio::time::sleep(FETCH).await;
    if says.is_empty() {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    }
    stream.write_all(says).await.expect("it is read");
}

const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true
cache.wait_timeout = "15s"
"#;

fn setup(url: &str, redis: &Redis) -> Setup {
    weir(ROUTES).to(url).redis(redis).set("redis.deadline", "1s")
}

fn ask(weir: &Weir, request: Request) -> JoinHandle<Answer> {
    let proxy = weir.proxy;
    tokio::spawn(async move { request.send(proxy).await })
}

/// Each of `weirs` is asked for `path` once, and all the others wait for the first, which `gate` holds.
async fn all_wait(path: &str, weirs: &[Weir], gate: &Gate) -> Vec<Answer> {
    let mut before = Vec::new();
    for weir in weirs {
        before.push(weir.metric(ASKED).await);
    }
    let mut asked = vec![ask(&weirs[0], get(path))];
    gate.reached(1).await;
    asked.extend(weirs[1..].iter().map(|weir| ask(weir, get(path))));
    for (weir, before) in weirs.iter().zip(before) {
        weir.metric_reaches(ASKED, before + 1.0).await;
    }
    gate.open();
    let answers = join_all(asked.into_iter().map(|one| patiently("an answer", one))).await;
    answers.into_iter().map(|answer| answer.expect("no panic")).collect()
}

#[tokio::test]
async fn what_fails_for_one_weir_alone_is_fetched_by_another() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.sequence("/a", vec![reply("down").status(503).gate(&gate), reply("fine").max_age(60)]);
    let weirs = setup(&up.url(), &redis).fleet(4).await;
    let answers = all_wait("/a", &weirs, &gate).await;
    assert_eq!((answers[0].status, answers[0].text()), (503, "down"), "its own failure");
    for answer in &answers[1..] {
        assert_eq!((answer.status, answer.text()), (200, "fine"), "{answer:?}");
    }
    assert_eq!(up.count("/a"), 2);
}

/// Its own earlier failure is no second pod's.
#[tokio::test]
async fn what_fails_for_one_weir_twice_is_fetched_by_another() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let down = || reply("down").status(503);
    up.sequence("/a", vec![down(), down().gate(&gate), reply("fine").max_age(60)]);
    let weirs = setup(&up.url(), &redis).fleet(3).await;
    assert_eq!(weirs[0].get("/a").await.status, 503);
    let answers = all_wait("/a", &weirs, &gate).await;
    assert_eq!((answers[0].status, answers[0].text()), (503, "down"));
    for answer in &answers[1..] {
        assert_eq!((answer.status, answer.text()), (200, "fine"), "{answer:?}");
    }
    assert_eq!(up.count("/a"), 3);
}

#[tokio::test]
async fn who_asks_after_a_failure_elects_anew() {
    let (up, redis, first, second) = (upstream(), redis(), Gate::new(), Gate::new());
    let down = || reply("down").status(503);
    up.sequence("/a", vec![down().gate(&first), down(), down().gate(&second), reply("fine").max_age(60)]);
    let weirs = setup(&up.url(), &redis).fleet(4).await;
    let answers = all_wait("/a", &weirs, &first).await;
    assert!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
    assert_eq!(up.count("/a"), 2, "two have seen it, and that is enough");
    // At once, while what failed is remembered: it counts for nobody who had not waited.
    let answers = all_wait("/a", &weirs, &second).await;
    assert_eq!((answers[0].status, answers[0].text()), (503, "down"));
    for answer in &answers[1..] {
        assert_eq!((answer.status, answer.text()), (200, "fine"), "{answer:?}");
    }
    assert_eq!(up.count("/a"), 4);
}

#[tokio::test]
async fn what_is_stale_stands_in_for_a_failure_that_others_saw() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let old = reply("old").header("cache-control", "max-age=0, stale-if-error=60").header("etag", "\"1\"");
    up.sequence("/a", vec![old, reply("down").status(503).gate(&gate), reply("down").status(503)]);
    let weirs = setup(&up.url(), &redis).fleet(4).await;
    weirs[0].get("/a").await;
    weirs[0].metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    for answer in all_wait("/a", &weirs, &gate).await {
        assert!(answer.is_stale() && answer.text() == "old", "{answer:?}");
        assert!(answer.cache_status().ends_with("; detail=stale-if-error"), "{answer:?}");
    }
    assert_eq!(up.count("/a"), 3, "the first, and two that failed");
}

/// What one client's request brings about, twice, is not what another gets that waits.
#[tokio::test]
async fn what_one_client_brings_about_fails_nobody_else() {
    let marks: [fn(Request) -> Request; 2] =
        [|asked| asked.header("cookie", "session=bad"), |asked| asked.header("x-tone", "bad")];
    for mark in marks {
        let (up, redis) = (upstream(), redis());
        let gates = [Gate::new(), Gate::new()];
        let (held, turn) = (gates.clone(), AtomicUsize::new(0));
        up.on("/a", move |request| match (request.header("cookie"), request.header("x-tone")) {
            (None, None) => reply("fine").max_age(60).header("vary", "x-tone"),
            _ => {
                let gate = &held[turn.fetch_add(1, Ordering::SeqCst)];
                reply("your fault").status(500).header("vary", "x-tone").gate(gate)
            }
        });
        let weirs = setup(&up.url(), &redis).fleet(3).await;
        let first = ask(&weirs[0], mark(get("/a")));
        gates[0].reached(1).await;
        let second = ask(&weirs[1], mark(get("/a")));
        weirs[1].metric_reaches(ASKED, 1.0).await;
        gates[0].open();
        gates[1].reached(1).await;
        let other = ask(&weirs[2], get("/a"));
        weirs[2].metric_reaches(ASKED, 1.0).await;
        gates[1].open();
        for one in [first, second] {
            let answer = patiently("a failure", one).await.expect("no panic");
            assert_eq!((answer.status, answer.text()), (500, "your fault"));
        }
        let answer = patiently("an answer", other).await.expect("no panic");
        assert_eq!((answer.status, answer.text()), (200, "fine"), "{answer:?}");
    }
}
