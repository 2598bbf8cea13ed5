//! The catalogue's L4 and L5: more load than the upstream can carry, and an upstream that is not there.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Answer, Connection, Gate, Load, Servers, Setup, Upstream, Weir, eventually, flaky, get, join_all, optimised, redis,
    reply, request, scale, upstream, weir, within_async,
};

const ROUTES: &str = r#"
[[route]]
name = "kept"
path = "/kept/{*path}"
cache.ttl = "60s"
cache.stale_if_error = "10m"

[[route]]
name = "rest"
path = "/{*path}"
"#;

/// What one request keeps a server busy for.
const WORK: Duration = Duration::from_millis(20);

/// A service of so many servers.
fn service(servers: &Servers) -> Upstream {
    let up = upstream();
    let servers = servers.clone();
    up.on("*", move |request| reply(request.target().to_owned()).served(&servers, WORK));
    up
}

/// A Weir with `in_flight` places and no more, in front of an upstream that holds what comes to `/held` back.
async fn full(setup: Setup, in_flight: usize) -> (Upstream, Gate, Weir, Vec<tokio::task::JoinHandle<Answer>>) {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/held", reply("held").gate(&gate));
    up.on("*", |request| reply(request.target().to_owned()));
    let weir = setup.to(up.url()).set("upstream.in_flight", in_flight as i64).start().await;
    // What is to be found in the cache.
    weir.get("/kept/hot").await;
    weir.get("/kept/stale").await;
    weir.invalidate(r#"{"urls":["/kept/stale"],"soft":true}"#).await;
    let proxy = weir.proxy;
    let held = (0..in_flight).map(|_| tokio::spawn(async move { get("/held").send(proxy).await })).collect();
    gate.reached(in_flight).await;
    (up, gate, weir, held)
}

/// Clients that ask again as soon as they are answered, over connections of their own. Every answer.
async fn closed_loop(weir: &Weir, clients: usize, length: Duration) -> Vec<Answer> {
    let (proxy, until) = (weir.proxy, Instant::now() + length);
    let client = |client: usize| async move {
        let mut connection = Connection::open(proxy).await;
        let mut answers = Vec::new();
        while Instant::now() < until {
            answers.push(connection.send(&get(&format!("/loop/{client}"))).await);
        }
        answers
    };
    let tasks: Vec<_> = (0..clients).map(|i| tokio::spawn(client(i))).collect();
    join_all(tasks).await.into_iter().flat_map(|answers| answers.expect("no panic")).collect()
}

fn served(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.status == 200).count()
}

/// A time by which a busy machine without optimised code may miss.
fn grace(optimised_code: Duration, any_code: Duration) -> Duration {
    if optimised() { optimised_code } else { any_code }
}

#[tokio::test]
async fn five_times_the_load_keeps_goodput_sheds_at_once_and_is_over_soon() {
    let servers = Servers::new(scale("WEIR_SERVERS", if optimised() { 10 } else { 2 }));
    let up = service(&servers);
    let weir = weir(ROUTES).to(up.url()).start().await;
    let length = Duration::from_secs(scale("WEIR_SECONDS", if optimised() { 10 } else { 4 }) as u64);
    let began = Instant::now();
    let answers = closed_loop(&weir, 40, Duration::from_secs(3)).await;
    let peak = served(&answers) as f64 / began.elapsed().as_secs_f64();

    let overload = Load::new((peak * 5.0) as u32, length, |i| get(&format!("/x/{i}"))).to(&[weir.proxy]).run();
    // From the moment at which the last of the overload was sent: its answers are still to come.
    let after = async {
        tokio::time::sleep(length).await;
        let after = Load::new((peak / 2.0) as u32, Duration::from_secs(4), |i| get(&format!("/y/{i}")));
        after.to(&[weir.proxy]).run().await
    };
    let (overload, after) = tokio::join!(overload, after);

    // The first second fills the line.
    let filled = Duration::from_secs(1);
    let mut good = 0;
    let mut shed = Vec::new();
    for sample in &overload.samples {
        let done = sample.at + sample.took;
        match &sample.result {
            Ok(answer) if answer.status == 200 => good += usize::from(done >= filled && done < length),
            Ok(answer) if answer.status == 503 => {
                let again = answer.number("retry-after").expect("when to come again");
                assert!((1..=10).contains(&again), "{answer:?}");
                shed.push(sample.took);
            }
            other => panic!("neither served nor shed: {other:?}"),
        }
    }
    shed.sort_unstable();
    let goodput = good as f64 / (length - filled).as_secs_f64();
    let shed_p99 = shed[shed.len() * 99 / 100];
    let slow = after.samples.iter().filter(|sample| {
        sample.took > grace(Duration::from_millis(250), Duration::from_secs(1))
            || !matches!(&sample.result, Ok(answer) if answer.status == 200)
    });
    let recovery = slow.map(|sample| sample.at).max().unwrap_or_default();
    eprintln!(
        "peak {peak:.0}/s, goodput {goodput:.0}/s ({:.1}%), {} shed, p99 {shed_p99:?}, recovered after {recovery:?}, \
         most at the upstream {}; {overload}",
        goodput / peak * 100.0,
        shed.len(),
        servers.peak()
    );
    assert!(goodput > peak * if optimised() { 0.9 } else { 0.6 }, "{goodput:.0} of {peak:.0}");
    assert!(shed_p99 < grace(Duration::from_millis(10), Duration::from_secs(1)), "{shed_p99:?}");
    assert!(recovery < grace(Duration::from_secs(2), Duration::from_millis(3_500)), "{recovery:?}");
    let counted = weir.metric(r#"weir_requests_total{outcome="shed"}"#).await;
    assert!(counted as usize >= shed.len(), "{counted} of {} are counted", shed.len());
    assert!(weir.metric("weir_upstream_sheds_total").await as usize >= shed.len());
}

#[tokio::test]
async fn clients_that_wait_for_their_answers_are_never_shed() {
    let servers = Servers::new(4);
    let up = service(&servers);
    let weir = weir(ROUTES).to(up.url()).start().await;
    let answers = closed_loop(&weir, scale("WEIR_CLIENTS", 128), Duration::from_secs(4)).await;
    eprintln!("{} answers, {} at the upstream at most", answers.len(), servers.peak());
    assert_eq!(served(&answers), answers.len());
    assert!(weir.metric("weir_upstream_sheds_total").await == 0.0);
}

#[tokio::test]
async fn five_hundred_at_once_on_a_slow_upstream_are_all_served() {
    let up = upstream();
    up.route("/quick", reply("quick"));
    up.route("/slow", reply("slow").takes(Duration::from_millis(300)));
    let weir = weir(ROUTES).to(up.url()).start().await;
    // What is quick must not make what is slow look like trouble.
    for _ in 0..50 {
        assert_eq!(weir.get("/quick").await.status, 200);
    }
    let connections = join_all((0..500).map(|_| Connection::open(weir.proxy))).await;
    let waves = connections.into_iter().map(|mut connection| async move {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(connection.send(&get("/slow")).await.status);
        }
        statuses
    });
    let statuses: Vec<u16> = join_all(waves).await.into_iter().flatten().collect();
    let others: Vec<_> = statuses.iter().filter(|status| **status != 200).collect();
    assert!(others.is_empty() && statuses.len() == 1500, "{others:?}");
    eprintln!("limit {}", weir.metric("weir_upstream_limit").await);
}

#[tokio::test]
async fn long_polls_keep_nobody_out() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/poll", reply("news").gate(&gate));
    up.route("/quick", reply("quick"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    let proxy = weir.proxy;
    // More than the limit begins with.
    let polls: Vec<_> = (0..300).map(|_| tokio::spawn(async move { get("/poll").send(proxy).await })).collect();
    gate.reached(300).await;
    for _ in 0..20 {
        assert_eq!(weir.get("/quick").await.status, 200);
    }
    gate.open();
    for poll in polls {
        assert_eq!(poll.await.expect("no panic").status, 200);
    }
    assert_eq!(weir.metric("weir_upstream_sheds_total").await, 0.0);
}

#[tokio::test]
async fn hits_probes_and_metrics_answer_while_the_upstream_is_full() {
    let setup = weir(ROUTES).set("upstream.queue_timeout", "60s");
    let (up, gate, weir, held) = full(setup, 2).await;
    let proxy = weir.proxy;
    let waits: Vec<_> = (0..5).map(|i| tokio::spawn(async move { get(&format!("/{i}")).send(proxy).await })).collect();
    weir.metric_reaches("weir_upstream_waiting", 5.0).await;
    assert!(weir.get("/kept/hot").await.is_hit());
    for probe in ["/livez", "/readyz"] {
        assert_eq!(weir.admin(probe).await.status, 200, "{probe}");
    }
    assert_eq!(weir.metric("weir_upstream_in_flight").await, 2.0);
    assert_eq!(weir.metric("weir_upstream_limit").await, 2.0);
    assert_eq!(up.total(), 4, "nobody else came through");
    gate.open();
    for answer in held.into_iter().chain(waits) {
        assert_eq!(answer.await.expect("no panic").status, 200);
    }
    assert_eq!(weir.metric("weir_upstream_in_flight").await, 0.0);
}

#[tokio::test]
async fn what_is_stale_is_served_instead_of_shedding() {
    let setup = weir(ROUTES).set("upstream.queue_timeout", "100ms");
    let (up, gate, weir, held) = full(setup, 1).await;
    let stale = weir.get("/kept/stale").await;
    assert_eq!((stale.status, stale.text()), (200, "/kept/stale"), "{stale:?}");
    assert!(stale.is_stale(), "{stale:?}");
    let shed = weir.get("/kept/new").await;
    assert_eq!(shed.status, 503, "{shed:?}");
    assert!(shed.number("retry-after").is_some_and(|seconds| seconds >= 1), "{shed:?}");
    assert!(shed.cache_status().contains("detail=queue_timeout"), "{shed:?}");
    assert_eq!((up.count("/kept/new"), up.count("/kept/stale")), (0, 1), "nothing was sent");
    // Shed, so surely not done: what it would have changed stays.
    assert_eq!(weir.send(request("DELETE", "/kept/hot")).await.status, 503);
    assert!(weir.get("/kept/hot").await.is_hit());
    assert_eq!(weir.metric(r#"weir_upstream_requests_total{status="none"}"#).await, 0.0);
    gate.open();
    join_all(held).await;
}

#[tokio::test]
async fn a_client_that_leaves_the_line_is_never_sent() {
    let setup = weir(ROUTES).set("upstream.queue_timeout", "60s");
    let (up, gate, weir, held) = full(setup, 1).await;
    let mut leaves = Connection::open(weir.proxy).await;
    leaves.write(b"GET /left HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    weir.metric_reaches("weir_upstream_waiting", 1.0).await;
    drop(leaves);
    within_async(Duration::from_secs(20), "it is out of the line", async || {
        weir.metric("weir_upstream_waiting").await == 0.0
    })
    .await;
    gate.open();
    join_all(held).await;
    assert_eq!(weir.get("/next").await.status, 200);
    assert_eq!(up.count("/left"), 0);
}

#[tokio::test]
async fn refreshes_take_spare_room_only() {
    let config = ROUTES.replace("cache.stale_if_error", "cache.stale_while_revalidate = \"10m\"\ncache.stale_if_error");
    let (up, gate, weir, held) = full(weir(&config).set("upstream.queue_timeout", "60s"), 1).await;
    for _ in 0..3 {
        assert!(weir.get("/kept/stale").await.is_stale());
    }
    weir.metric_reaches(r#"weir_upstream_sheds_total{reason="no_spare"}"#, 3.0).await;
    assert_eq!(up.count("/kept/stale"), 1, "no refresh went out");
    assert_eq!(weir.metric("weir_upstream_waiting").await, 0.0, "and none stands in line");
    gate.open();
    join_all(held).await;
    within_async(Duration::from_secs(20), "it is refreshed", async || weir.get("/kept/stale").await.is_hit()).await;
}

#[tokio::test]
async fn the_breaker_opens_fails_at_once_and_closes_when_the_service_is_back() {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    let relay = flaky(up.address());
    let weir = weir(ROUTES).to(format!("http://{}", relay.address())).set("upstream.retries", 0).start().await;
    weir.get("/kept/stale").await;
    weir.invalidate(r#"{"urls":["/kept/stale"],"soft":true}"#).await;
    relay.cut();
    let mut failed = 0;
    let refused = loop {
        let answer = weir.get("/x").await;
        match answer.status {
            502 => failed += 1,
            _ => break answer,
        }
        assert!(failed <= 60, "it does not open");
    };
    assert!(failed >= 19, "opened after {failed}");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.cache_status().contains("detail=breaker_open"), "{refused:?}");
    assert!(refused.number("retry-after").is_some_and(|seconds| seconds >= 1), "{refused:?}");
    assert_eq!(weir.metric("weir_upstream_breaker_open").await, 1.0);
    // Most are not tried; what is stale is served.
    let (tried, began) = (weir.metric(r#"weir_upstream_requests_total{status="none"}"#).await, Instant::now());
    for _ in 0..100 {
        assert!([502, 503].contains(&weir.get("/x").await.status));
        assert!(weir.get("/kept/stale").await.is_stale());
    }
    let tried = weir.metric(r#"weir_upstream_requests_total{status="none"}"#).await - tried;
    // A tenth of a second, and then longer and longer, lies between two.
    assert!(tried <= 4.0 + began.elapsed().as_secs_f64() * 2.0, "{tried} in {:?}", began.elapsed());
    relay.heal();
    let longest = grace(Duration::from_millis(1_500), Duration::from_secs(10));
    let back = within_async(longest, "served again", async || weir.get("/x").await.status == 200).await;
    eprintln!("opened after {failed}, {tried} probes, served again after {back:?}");
    assert_eq!(weir.metric("weir_upstream_breaker_open").await, 0.0);
}

#[tokio::test]
async fn redis_lost_at_peak_leaves_the_upstream_its_cap_and_clients_what_is_stale() {
    /// Keys that the load is spread over.
    const KEYS: usize = 300;
    let (servers, redis) = (Servers::new(2), redis());
    let up = service(&servers);
    let config = ROUTES.replace("ttl = \"60s\"", "ttl = \"1s\"");
    let weir = weir(&config).to(up.url()).redis(&redis).set("upstream.in_flight", 4).start().await;
    let rate = u32::try_from(scale("WEIR_RPS", if optimised() { 1000 } else { 300 })).expect("a rate");
    for i in 0..KEYS {
        weir.get(&format!("/kept/{i}")).await;
    }
    let load = Load::new(rate, Duration::from_secs(6), |i| get(&format!("/kept/{}", i % KEYS))).to(&[weir.proxy]);
    let load = load.start();
    eventually("the load runs", || up.total() > KEYS + 20).await;
    redis.kill();
    let report = load.finish().await;
    let stale = report.answers().filter(|answer| answer.is_stale()).count();
    eprintln!("{report}; {stale} stale, {} fetches, most at once {}", up.total() - KEYS, servers.peak());
    assert!(report.errors().is_empty(), "{:?}", report.errors().first());
    assert!(stale > 0, "more were stale than could be fetched");
    assert!(servers.peak() <= 4, "{} at once", servers.peak());
}
