//! Limits by other algorithms than the token bucket, with costs and several rates, as clients meet them.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Connection, Gate, PATIENCE, Upstream, Weir, for_both, get, redis, reply, upstream, weir, within_async,
};

/// How long the slots of a pod that died are held, and some time for a busy machine.
const LEASE: Duration = Duration::from_secs(30);

fn limited(limit: &str) -> String {
    format!("[[route]]\nname = 'all'\npath = '/{{*path}}'\nlimits = [{limit}]\n")
}

/// A service that answers, and one that does not get to the end of `/slow` before the gate opens.
fn service(gate: &Gate) -> Upstream {
    let up = upstream();
    up.route("*", reply("here").header("cache-control", "no-store"));
    up.route("/slow", reply("first").then_gate(gate).then("last").header("cache-control", "no-store"));
    up
}

/// A request to `/slow` whose answer has begun. Who was admitted last gives his slot back behind his answer: denied, it is
/// tried again.
async fn begun(weir: &Weir) -> Connection {
    let start = Instant::now();
    loop {
        let mut client = Connection::open(weir.proxy).await;
        client.write(b"GET /slow HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
        if client.read_until(b"\r\n").await.starts_with(b"HTTP/1.1 200") {
            client.read_until(b"first").await;
            return client;
        }
        assert!(start.elapsed() < PATIENCE, "it is denied for good");
    }
}

async fn is_admitted(weir: &Weir) -> bool {
    weir.get("/").await.status == 200
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_last_byte_or_its_client_leaves() {
    for_both(|store| async move {
        let gate = Gate::new();
        let up = service(&gate);
        let config = limited("{ name = 'busy', key = ['ip'], algorithm = 'concurrency', max = 2 }");
        let weir = store.apply(weir(&config).to(up.url())).start().await;
        let (mut one, other) = (begun(&weir).await, begun(&weir).await);
        let denied = weir.get("/").await;
        assert_eq!((denied.status, denied.number("retry-after")), (429, Some(1)), "{denied:?}");
        assert_eq!(denied.header("ratelimit-policy"), Some(r#""busy";q=2;qu="concurrent-requests""#));
        assert_eq!(denied.header("ratelimit"), Some(r#""busy";r=0"#));
        assert!(denied.text().contains("2 requests in flight"), "{denied:?}");
        drop(other);
        within_async(Duration::from_secs(10), "who left is not in flight", async || is_admitted(&weir).await).await;
        let _third = begun(&weir).await;
        assert!(!is_admitted(&weir).await);
        gate.open();
        assert_eq!(one.read(false).await.unwrap().text(), "firstlast");
        within_async(Duration::from_secs(10), "who is answered is not", async || is_admitted(&weir).await).await;
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_pod_had_in_flight_leaves_with_its_lease_and_what_runs_stays() {
    let gate = Gate::new();
    let (up, redis) = (service(&gate), redis());
    let config = limited("{ name = 'busy', key = ['ip'], algorithm = 'concurrency', max = 2 }");
    let mut weirs = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", "2s").fleet(2).await;
    let (_lost, _kept) = (begun(&weirs[0]).await, begun(&weirs[1]).await);
    assert!(!is_admitted(&weirs[1]).await, "two of the fleet's two");
    weirs[0].kill();
    let took = within_async(LEASE, "the dead pod's slot", async || is_admitted(&weirs[1]).await).await;
    assert!(took > Duration::from_secs(5), "it was held for {took:?}: nobody gave it back");
    // The one that still runs outlived its own lease, because it was renewed.
    let _second = begun(&weirs[1]).await;
    assert!(!is_admitted(&weirs[1]).await);
    gate.open();
    within_async(Duration::from_secs(10), "its end", async || is_admitted(&weirs[1]).await).await;
}

#[tokio::test]
async fn a_fetch_that_outlives_its_client_is_in_flight_to_the_origin() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        up.route("/a", reply("kept").max_age(60).gate(&gate));
        up.route("/b", reply("other").max_age(60));
        let config = limited("{ name = 'busy', key = ['route'], algorithm = 'concurrency', max = 1, on = 'origin' }");
        let weir = store.apply(weir(&format!("{config}cache.ttl = '60s'\n")).to(up.url())).start().await;
        let mut leader = Connection::open(weir.proxy).await;
        leader.write(b"GET /a HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
        gate.reached(1).await;
        drop(leader);
        weir.metric_reaches(r#"weir_requests_total{outcome="cancelled"}"#, 1.0).await;
        assert_eq!(weir.get("/b").await.status, 429, "the fetch goes on");
        gate.open();
        let admitted = async || weir.get("/b").await.status == 200;
        within_async(Duration::from_secs(10), "the fetch has ended", admitted).await;
        assert!(weir.get("/a").await.is_hit(), "and hits are in nobody's way");
    })
    .await;
}

#[tokio::test]
async fn windows_admit_their_amount() {
    for_both(|store| async move {
        let up = service(&Gate::new());
        for algorithm in ["fixed_window", "sliding_window", "sliding_log"] {
            // A day's window ends once in the life of this test at most.
            let config =
                limited(&format!("{{ name = '{algorithm}', key = ['ip'], algorithm = '{algorithm}', rate = '3/d' }}"));
            let weir = store.apply(weir(&config).to(up.url())).start().await;
            let mut statuses = Vec::new();
            for _ in 0..5 {
                statuses.push(weir.get("/").await.status);
            }
            assert_eq!(statuses, [200, 200, 200, 429, 429], "{algorithm}");
            let denied = weir.get("/").await;
            assert!(
                denied.number("retry-after").is_some_and(|seconds| (1..=2 * 86_400).contains(&seconds)),
                "{denied:?}"
            );
            assert_eq!(denied.header("ratelimit-policy"), Some(&*format!("\"{algorithm}\";q=3;w=86400")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_costs_what_it_says_and_the_rate_that_binds_is_named() {
    for_both(|store| async move {
        let up = service(&Gate::new());
        let cost = "cost = { header = 'x-cost', max = 100, default = 2 }";
        let config = limited(&format!("{{ name = 'dear', key = ['ip'], rates = ['50/h', '60/d'], {cost} }}"));
        let weir = store.apply(weir(&config).to(up.url())).start().await;
        let costing = async |cost: &str| weir.send(get("/").header("x-cost", cost)).await;
        let first = costing("40").await;
        assert_eq!(first.status, 200, "{first:?}");
        let policy = r#""dear 50/h";q=50;w=3600, "dear 60/d";q=60;w=86400"#;
        assert_eq!(first.header("ratelimit-policy"), Some(policy));
        assert!(
            first.header("ratelimit").is_some_and(|field| field.starts_with(r#""dear 50/h";r=10;t="#)),
            "{first:?}"
        );
        let denied = costing("20").await;
        assert_eq!(denied.status, 429);
        assert!(denied.text().contains("50 units an hour"), "{denied:?}");
        assert!(denied.number("retry-after").is_some_and(|seconds| (600..=720).contains(&seconds)), "{denied:?}");
        let never = costing("100").await;
        assert_eq!((never.status, never.number("retry-after")), (429, None), "{never:?}");
        assert!(never.text().contains("never admits a request that costs more than"), "{never:?}");
        for _ in 0..5 {
            assert_eq!(weir.get("/").await.status, 200, "two each without a word");
        }
        assert_eq!(weir.get("/").await.status, 429);
        let allowed = r#"weir_limit_decisions_total{route="all",limit="dear",decision="allowed"}"#;
        assert_eq!(weir.metric(allowed).await, 6.0, "once a request, whatever rates there are");
    })
    .await;
}
