//! Costs that answers say, and answers whose requests alone are charged, as clients meet them.

use std::time::Duration;

use crate::harness::{
    Connection, Gate, H2, Reply, Store, Upstream, Weir, for_both, join_all, raw_upstream, redis, reply, request,
    upstream, weir, within_async,
};

const EVENTS: &str = "text/event-stream";

/// One route past the cache, with a limit that in the length of a test refills nothing.
fn limited(limit: &str) -> String {
    format!("[[route]]\nname = 'all'\npath = '/{{*path}}'\nlimits = [{{ name = 'l', key = ['route'], {limit} }}]\n")
}

fn costing(cost: &str, burst: u32) -> String {
    limited(&format!("rate = '1/h', burst = {burst}, cost = {{ {cost}, max = 1000, default = 3 }}"))
}

/// Patient with Redis, so that on a busy machine too it is Redis that decides.
async fn started(store: &Store, config: &str, up: &Upstream) -> Weir {
    let setup = store.apply(weir(config).to(up.url()));
    match store {
        Store::Memory => setup.start().await,
        Store::Redis(_) => setup.set("redis.deadline", "5s").start().await,
    }
}

/// Waits until so many answers were settled in this way, and Redis has heard of it.
async fn settled(weir: &Weir, store: &Store, how: &str, count: f64) {
    weir.metric_reaches(&format!("weir_limit_settled_total{{limit=\"l\",cost=\"{how}\"}}"), count).await;
    if matches!(store, Store::Redis(_)) && how != "returned" {
        weir.metric_reaches("weir_redis_commands_total{command=\"limit_owe\",result=\"ok\"}", count).await;
    }
}

/// Whole hours until the next is admitted, of one that is denied.
async fn hours_denied(weir: &Weir) -> u64 {
    let denied = weir.get("/next").await;
    assert_eq!(denied.status, 429, "{denied:?}");
    denied.number("retry-after").expect("a wait").div_ceil(3600)
}

#[tokio::test]
async fn a_field_of_the_answer_says_the_cost_and_need_not_reach_the_client() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |_| reply("told").header("x-tokens-used", "12"));
        let config = costing("response_header = 'x-tokens-used'", 5) + "response.remove = ['x-tokens-used']\n";
        let weir = started(&store, &config, &up).await;
        let answer = weir.get("/").await;
        assert_eq!((answer.status, answer.text(), answer.header("x-tokens-used")), (200, "told", None), "{answer:?}");
        settled(&weir, &store, "said", 1.0).await;
        // 5 - 12 = -7.
        assert_eq!(hours_denied(&weir).await, 8);
        assert_eq!(up.total(), 1);
    })
    .await;
}

/// The service holds the last event back until the client has seen the first.
#[tokio::test]
async fn events_reach_the_client_as_they_come_and_the_last_number_counts() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let first = "data: {\"text\":\"Hello\",\"usage\":{\"total_tokens\":2}}\n\n";
        // A number's digits, and a line's end, come in two pieces.
        let rest = ["data: {\"usage\":{\"total_tok", "ens\":1", "7}}\r", "\n\r\n", "data: [DONE]\n\n"];
        let streamed = reply(first).header("content-type", EVENTS).then_gate(&gate);
        up.route("/", rest.into_iter().fold(streamed, Reply::then));
        let weir = started(&store, &costing("json = '/usage/total_tokens'", 5), &up).await;
        let mut client = Connection::open(weir.proxy).await;
        client.write(b"GET / HTTP/1.1\r\nhost: service.test\r\nconnection: close\r\n\r\n").await;
        client.read_until(b"Hello").await;
        gate.open();
        let (received, ended) = client.read_to_end().await;
        let received = String::from_utf8(received).expect("text");
        assert!(ended && received.ends_with("0\r\n\r\n"), "{received}");
        for piece in rest.into_iter().chain([first]) {
            assert!(received.contains(piece), "{piece:?} of {received:?}");
        }
        settled(&weir, &store, "said", 1.0).await;
        assert_eq!(hours_denied(&weir).await, 13);
    })
    .await;
}

#[tokio::test]
async fn json_says_the_cost_over_http_1_and_http_2_alike() {
    for_both(|store| async move {
        let up = upstream();
        let json = format!("{{\"text\":\"{}\",\"usage\":{{\"total_tokens\":4}}}}", "x".repeat(30_000));
        up.route("*", reply(json.clone()).header("content-type", "application/json"));
        let weir = started(&store, &costing("json = '/usage/total_tokens', max_scan = '32KiB'", 5), &up).await;
        let answer = weir.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, &*json));
        settled(&weir, &store, "said", 1.0).await;
        let answer = H2::open(weir.proxy).await.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, &*json));
        settled(&weir, &store, "said", 2.0).await;
        assert_eq!(hours_denied(&weir).await, 4);
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_passes_unchanged_and_costs_the_default() {
    for_both(|store| async move {
        let up = upstream();
        let json = "{\"usage\":{\"total_tokens\":100}}";
        let is_json = |body: String| reply(body).header("content-type", "application/json");
        up.route("/missing", is_json("{\"usage\":null}".to_owned()));
        up.route("/too_large", is_json(format!("{}{json}", " ".repeat(2000))));
        up.route("/encoded", is_json(json.to_owned()).header("content-encoding", "br"));
        for (path, cost) in [("missing", 3), ("too_large", 3), ("encoded", 3)] {
            let weir = started(&store, &costing("json = '/usage/total_tokens', max_scan = '1KiB'", 1), &up).await;
            if let Store::Redis(redis) = &store {
                redis.cli(&["FLUSHALL"]);
            }
            let answer = weir.get(&format!("/{path}")).await;
            assert_eq!(answer.status, 200);
            assert!(path == "missing" || answer.text().ends_with(json), "{answer:?}");
            settled(&weir, &store, path, 1.0).await;
            assert_eq!(hours_denied(&weir).await, cost, "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_pays_for_what_it_had_been_told() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let events = |text: &str| reply(text.to_owned()).header("content-type", EVENTS).then_gate(&gate).then("more");
        up.route("/told", events("data: {\"usage\":{\"total_tokens\":6}}\n\ndata: {\"usage\":"));
        up.route("/untold", events("data: {\"text\":\"Hello\"}\n\n"));
        for (path, how, hours) in [("/told", "said", 6), ("/untold", "unfinished", 3)] {
            let weir = started(&store, &costing("json = '/usage/total_tokens'", 1), &up).await;
            if let Store::Redis(redis) = &store {
                redis.cli(&["FLUSHALL"]);
            }
            let mut client = Connection::open(weir.proxy).await;
            client.write(format!("GET {path} HTTP/1.1\r\nhost: service.test\r\n\r\n").as_bytes()).await;
            client.read_until(b"data:").await;
            drop(client);
            settled(&weir, &store, how, 1.0).await;
            assert_eq!(hours_denied(&weir).await, hours, "{path}");
        }
        gate.open();
    })
    .await;
}

/// All are asked before one is answered: as many as are held for come through, and all that they cost is owed.
#[tokio::test]
async fn requests_side_by_side_owe_what_they_cost_together() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let held = gate.clone();
        up.on("*", move |_| reply("").header("x-tokens-used", "10").gate(&held));
        let weir = started(&store, &costing("response_header = 'x-tokens-used'", 5), &up).await;
        let asked = join_all((0..30).map(|_| weir.get("/")));
        let opened = async {
            weir.metric_reaches("weir_limit_decisions_total{decision=\"denied\"}", 25.0).await;
            gate.open();
        };
        let (answers, ()) = tokio::join!(asked, opened);
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 5);
        weir.metric_reaches("weir_limit_settled_total{cost=\"said\"}", 5.0).await;
        let owed = async || hours_denied(&weir).await == 46;
        within_async(Duration::from_secs(5), "5 - 50 = -45", owed).await;
    })
    .await;
}

#[tokio::test]
async fn a_hundred_guesses_at_once_meet_the_service_as_often_as_the_burst_says() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let held = gate.clone();
        up.on("/login", move |sent| match &sent.body[..] {
            b"right" => reply("welcome"),
            _ => reply("wrong").status(401).gate(&held),
        });
        let config = limited("rate = '1/h', burst = 7, charge = { status = [401, 403] }");
        let weir = started(&store, &config, &up).await;
        let attempt = |password: &'static str| weir.send(request("POST", "/login").body(password));
        for turn in 0..20 {
            assert_eq!(attempt("right").await.status, 200, "{turn}");
            weir.metric_reaches("weir_limit_settled_total{cost=\"returned\"}", f64::from(turn) + 1.0).await;
        }
        if matches!(store, Store::Redis(_)) {
            weir.metric_reaches("weir_redis_commands_total{command=\"limit_refund\",result=\"ok\"}", 20.0).await;
        }
        let guesses = join_all((0..100).map(|_| attempt("guess")));
        let opened = async {
            weir.metric_reaches("weir_limit_decisions_total{decision=\"denied\"}", 93.0).await;
            gate.open();
        };
        let (answers, ()) = tokio::join!(guesses, opened);
        assert_eq!(answers.iter().filter(|answer| answer.status == 401).count(), 7);
        assert_eq!(answers.iter().filter(|answer| answer.status == 429).count(), 93);
        assert_eq!(up.count("/login"), 27);
        assert_eq!(attempt("right").await.status, 429, "until a token is gained");
    })
    .await;
}

/// Who is gone before the answer has had his guess.
#[tokio::test]
async fn a_guess_whose_client_leaves_stays_charged() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        up.route("*", reply("wrong").status(401).gate(&gate));
        let config = limited("rate = '1/h', burst = 1, charge = { status = [401] }");
        let weir = started(&store, &config, &up).await;
        let mut client = Connection::open(weir.proxy).await;
        client.write(b"POST /login HTTP/1.1\r\nhost: service.test\r\ncontent-length: 0\r\n\r\n").await;
        within_async(Duration::from_secs(5), "the guess", async || up.total() == 1).await;
        drop(client);
        weir.metric_reaches("weir_limit_settled_total{cost=\"unfinished\"}", 1.0).await;
        assert_eq!(weir.get("/login").await.status, 429);
        gate.open();
    })
    .await;
}

/// Shed, because the only connection is taken: of requests past the cache, and of fetches for it.
#[tokio::test]
async fn what_the_service_never_got_costs_nothing() {
    for (on, cache) in [("request", ""), ("origin", "cache.ttl = '60s'\n")] {
        let (up, gate) = (upstream(), Gate::new());
        up.route("/held", reply("").header("x-tokens-used", "1").gate(&gate));
        up.route("*", reply("").header("x-tokens-used", "1"));
        let cost = "cost = { response_header = 'x-tokens-used', max = 9, default = 9 }";
        let config = "[upstream]\nconnections = 1\nqueue_timeout = '10ms'\n".to_owned()
            + &limited(&format!("rate = '1/h', burst = 2, on = '{on}', {cost}"))
            + cache;
        let weir = weir(&config).to(up.url()).start().await;
        let asked = weir.get("/held");
        let shed = async {
            within_async(Duration::from_secs(5), "the first", async || up.total() == 1).await;
            for nth in 0..5 {
                assert_eq!(weir.get(&format!("/{nth}")).await.status, 503, "{on}");
            }
            gate.open();
        };
        let (answer, ()) = tokio::join!(asked, shed);
        assert_eq!(answer.status, 200);
        weir.metric_reaches("weir_limit_settled_total{cost=\"returned\"}", 5.0).await;
        assert_eq!(weir.get("/last").await.status, 200, "one of two is left: {on}");
    }
}

#[tokio::test]
async fn a_service_that_nothing_reaches_costs_nothing() {
    for (on, cache) in [("request", ""), ("request", "cache.ttl = '60s'\n"), ("origin", "cache.ttl = '60s'\n")] {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", nobody.local_addr().unwrap());
        drop(nobody);
        let cost = "cost = { response_header = 'x-tokens-used', max = 9, default = 9 }";
        let config = limited(&format!("rate = '1/h', burst = 2, on = '{on}', {cost}")) + cache;
        let weir = weir(&config).to(url).set("upstream.breaker", false).start().await;
        for nth in 0..5 {
            assert_eq!(weir.get(&format!("/{nth}")).await.status, 502, "{on}");
        }
    }
}

#[tokio::test]
async fn a_broken_answer_costs_the_default() {
    let broken = raw_upstream(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", true);
    let weir = weir(&costing("response_header = 'x-tokens-used'", 1)).to(broken.url()).start().await;
    assert_eq!(weir.get("/").await.status, 502);
    assert_eq!(hours_denied(&weir).await, 3);
}

/// Each stage by what it sees: every client's own answer, or the service's, of which all but the first are copies.
#[tokio::test]
async fn stored_answers_cost_those_who_are_counted_and_a_fetch_costs_once() {
    for_both(|store| async move {
        for (on, hours) in [("request", 4 * 6 - 20), ("miss", 0), ("origin", 0)] {
            let up = upstream();
            up.on("*", |_| reply("{\"usage\":6}").header("content-type", "application/json").max_age(60));
            let limit =
                format!("rate = '1/h', burst = 20, on = '{on}', cost = {{ json = '/usage', max = 50, default = 40 }}");
            let config = limited(&limit) + "cache.ttl = '60s'\n";
            let weir = started(&store, &config, &up).await;
            if let Store::Redis(redis) = &store {
                redis.cli(&["FLUSHALL"]);
            }
            let settled_here = async |count: usize| {
                let wanted = if on == "request" { count } else { 1 };
                weir.metric_reaches("weir_limit_settled_total{cost=\"said\"}", wanted as f64).await;
                if matches!(store, Store::Redis(_)) {
                    weir.metric_reaches("weir_redis_commands_total{command=\"limit_owe\"}", wanted as f64).await;
                }
            };
            for nth in 1..=4 {
                assert_eq!(weir.get("/stored").await.status, 200, "{on}, number {nth}");
                settled_here(nth).await;
            }
            assert_eq!(up.total(), 1);
            assert_eq!(weir.metric("weir_limit_settled_total").await, if on == "request" { 4.0 } else { 1.0 });
            let next = weir.get("/stored").await;
            if hours == 0 {
                assert_eq!(next.status, 200, "{on}");
            } else {
                assert_eq!((next.status, next.number("retry-after").unwrap().div_ceil(3600)), (429, hours + 1), "{on}");
            }
        }
    })
    .await;
}

/// The leader's client leaves; its fetch goes on, and pays for itself.
#[tokio::test]
async fn a_fetch_that_outlives_its_client_pays_what_it_costs() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/slow", reply("").header("x-tokens-used", "9").max_age(60).gate(&gate));
    up.route("/other", reply("").header("x-tokens-used", "1").max_age(60));
    let limit = "rate = '1/h', burst = 5, on = 'origin', cost = { response_header = 'x-tokens-used', max = 50 }";
    let weir = weir(&(limited(limit) + "cache.ttl = '60s'\n")).to(up.url()).start().await;
    let mut client = Connection::open(weir.proxy).await;
    client.write(b"GET /slow HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    within_async(Duration::from_secs(5), "the fetch", async || up.total() == 1).await;
    drop(client);
    gate.open();
    weir.metric_reaches("weir_limit_settled_total{cost=\"said\"}", 1.0).await;
    assert_eq!(weir.get("/slow").await.status, 200, "it was stored");
    let denied = weir.get("/other").await;
    // 5 - 9 = -4.
    assert_eq!((denied.status, denied.number("retry-after").unwrap().div_ceil(3600)), (429, 5), "{denied:?}");
}

/// What is still to be told to Redis when a pod is to end, is told first.
#[tokio::test]
async fn a_pod_that_ends_tells_redis_what_its_last_answers_cost() {
    let (up, gate, redis) = (upstream(), Gate::new(), redis());
    up.route("*", reply("").header("x-tokens-used", "9").gate(&gate));
    let config = costing("response_header = 'x-tokens-used'", 5);
    let mut one = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", "5s").start().await;
    let asked = one.get("/");
    let ends = async {
        within_async(Duration::from_secs(5), "the request", async || up.total() == 1).await;
        one.sigterm();
        gate.open();
    };
    let (answer, ()) = tokio::join!(asked, ends);
    assert_eq!(answer.status, 200);
    assert_eq!(one.ended(Duration::from_secs(30)).await, Some(0));
    let other = weir(&config).to(up.url()).redis(&redis).start().await;
    assert_eq!(hours_denied(&other).await, 5);
}
