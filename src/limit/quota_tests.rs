//! The algorithms as routes use them: in memory and in Redis, together, across stages, with costs, and while Redis is away.

use std::net::Ipv4Addr;

use super::*;
use crate::limit::concurrency::LEASE_MS;

const HOURLY: u32 = 3_600_000;

fn by(name: &str, quotas: Vec<Quota>, on: Stage) -> config::Limit {
    config::Limit { quotas, ..hourly(name, 1, on) }
}

/// `amount` an hour by each algorithm that has a rate, as the limit `a`.
fn windows(amount: u32) -> [Quota; 4] {
    let rate = Rate { amount, period_ms: HOURLY };
    [
        Quota::TokenBucket { rate: Rate { amount: 1, period_ms: HOURLY }, burst: amount },
        Quota::FixedWindow(rate),
        Quota::SlidingWindow(rate),
        Quota::SlidingLog(rate),
    ]
}

fn slots(max: u32, on: Stage) -> config::Limit {
    by("slots", vec![Quota::Concurrency { max }], on)
}

fn costing(said: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-cost", said.parse().unwrap());
    headers
}

async fn hold(pod: &Pod) -> Option<Charged> {
    let mut charged = Charged::default();
    let verdict = pod.take(Stage::Request, &mut charged).await;
    matches!(verdict, Verdict::Allow).then_some(charged)
}

/// Waits until as many may be in flight again: what a dropped request held in Redis is given back by a task.
async fn held_in_redis(server: &Server, expected: i64) {
    let count = async || {
        let Reply::Array(keys) = server.command(&["KEYS", "*:concurrency:*"]).await else { panic!("keys are listed") };
        let Some(key) = keys.first().and_then(Reply::bytes) else { return 0 };
        let Reply::Int(count) = server.command(&["ZCARD", std::str::from_utf8(key).unwrap()]).await else { panic!() };
        count
    };
    crate::kv::tests::eventually("slots are held", async || count().await == expected).await;
}

#[tokio::test]
async fn a_denied_request_charges_nothing_by_any_algorithm() {
    for quota in windows(5) {
        let limits = || vec![by("a", vec![quota], Stage::Request), hourly("c", 2, Stage::Origin)];
        both(1, limits, async |pod, source| {
            assert_eq!(pod.admitted(20, Stage::Origin).await, 2, "{quota:?}");
            assert_eq!(pod.admitted(20, Stage::Request).await, 3, "{quota:?} by {source:?}");
            assert_eq!(pod.counted("a", Decision::Denied, source), 17);
        })
        .await;
    }
}

#[tokio::test]
async fn a_dry_run_denies_nobody_by_any_algorithm() {
    for quota in windows(2).into_iter().chain([Quota::Concurrency { max: 2 }]) {
        let limits = || vec![config::Limit { dry_run: true, ..by("a", vec![quota], Stage::Request) }];
        both(1, limits, async |pod, source| {
            let mut running = Vec::new();
            for _ in 0..5 {
                running.push(hold(pod).await.unwrap());
            }
            assert_eq!(pod.counted("a", Decision::Allowed, source), 2, "{quota:?}");
            assert_eq!(pod.counted("a", Decision::DryRun, source), 3, "{quota:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn fields_and_text_say_what_each_algorithm_means() {
    let cases = [
        (Quota::FixedWindow(Rate { amount: 1, period_ms: 60_000 }), r#""a";q=1;w=60"#, "1 request a minute"),
        (Quota::SlidingLog(Rate { amount: 1, period_ms: 1000 }), r#""a";q=1;w=1"#, "1 request a second"),
        (Quota::SlidingWindow(Rate { amount: 1, period_ms: 1000 }), r#""a";q=1;w=1"#, "1 request a second"),
        (Quota::Concurrency { max: 1 }, r#""a";q=1;qu="concurrent-requests""#, "1 request in flight"),
    ];
    for (quota, policy, text) in cases {
        let pod = Pod::new(vec![by("a", vec![quota], Stage::Request)]);
        let first = hold(&pod).await.unwrap();
        let denial = pod.denied(Stage::Request).await.unwrap();
        let (mut fields, mut before) = (HeaderMap::new(), HeaderMap::new());
        first.append_fields(&mut before);
        denial.append_fields(&mut fields);
        assert_eq!(
            (&fields["ratelimit-policy"], &before["ratelimit-policy"]),
            (&policy.parse().unwrap(), &policy.parse().unwrap())
        );
        assert!(denial.explain().contains(&format!("is used up: {text}; try again in ")), "{}", denial.explain());
        assert!(fields.contains_key(RETRY_AFTER));
        let timeless = matches!(quota, Quota::Concurrency { .. });
        assert_eq!(fields["ratelimit"].to_str().unwrap().starts_with("\"a\";r=0;t="), !timeless, "{fields:?}");
    }
}

#[tokio::test]
async fn of_several_rates_all_are_taken_and_the_one_that_binds_is_named() {
    let quotas = || {
        let bucket = |amount, period_ms| Quota::TokenBucket { rate: Rate { amount, period_ms }, burst: amount };
        vec![bucket(3, 1000), bucket(5, HOURLY)]
    };
    let limits = || vec![by("a", quotas(), Stage::Request)];
    both(1, limits, async |pod, source| {
        assert_eq!(pod.admitted(5, Stage::Request).await, 3);
        let denial = pod.denied(Stage::Request).await.unwrap();
        assert!(denial.explain().contains("3 requests a second, bursts of 3"), "{}", denial.explain());
        if source == Source::Local {
            pod.clock.advance(Duration::from_secs(10));
            assert_eq!(
                pod.admitted(5, Stage::Request).await,
                2,
                "denied by the one rate, they took nothing of the other"
            );
            let denial = pod.denied(Stage::Request).await.unwrap();
            let mut fields = HeaderMap::new();
            denial.append_fields(&mut fields);
            assert!(denial.explain().contains("5 requests an hour"), "{}", denial.explain());
            assert_eq!(fields["ratelimit-policy"], r#""a 3/s";q=3;w=1, "a 5/h";q=5;w=3600"#);
            assert_eq!(fields["ratelimit"], r#""a 5/h";r=0;t=710"#);
        }
        let allowed = if source == Source::Local { 5 } else { 3 };
        assert_eq!(
            pod.counted("a", Decision::Allowed, source),
            allowed,
            "a request counts once, whatever rates there are"
        );
    })
    .await;
}

#[tokio::test]
async fn a_cost_is_what_the_request_says_within_its_bounds() {
    let limits = || {
        let name = http::HeaderName::from_static("x-cost");
        windows(20).map(|quota| config::Limit {
            cost: Cost::Header { name: name.clone(), max: 30, default: 2 },
            ..by("a", vec![quota], Stage::Request)
        })
    };
    for nth in 0..limits().len() {
        both(
            1,
            || vec![limits()[nth].clone()],
            async |pod, _| {
                let left = async |said: Option<&str>| {
                    let headers = said.map_or_else(HeaderMap::new, costing);
                    let mut charged = Charged::default();
                    match pod.take_with(Ipv4Addr::LOCALHOST.into(), &headers, Stage::Request, &mut charged).await {
                        Verdict::Deny(denial) => Err(denial),
                        Verdict::Allow => {
                            let mut fields = HeaderMap::new();
                            charged.append_fields(&mut fields);
                            let text = fields["ratelimit"].to_str().unwrap().to_owned();
                            Ok(text.split(";r=").nth(1).unwrap().split(';').next().unwrap().parse::<u32>().unwrap())
                        }
                    }
                };
                for (said, expected) in
                    [(Some("7"), 13), (None, 11), (Some("much"), 9), (Some("0"), 8), (Some("-4"), 6)]
                {
                    assert_eq!(left(said).await.ok(), Some(expected), "{said:?}");
                }
                let denial = left(Some("7")).await.unwrap_err();
                assert!(denial.retry_after.is_some(), "seven will be there");
                // Both are more than the limit ever has, whatever they say: thirty is the most that counts.
                for said in ["25", "99999999999999999999999"] {
                    let denial = left(Some(said)).await.unwrap_err();
                    let mut fields = HeaderMap::new();
                    denial.append_fields(&mut fields);
                    assert!(!fields.contains_key(RETRY_AFTER), "no wait helps");
                    let text = denial.explain();
                    assert!(text.contains("never admits a request that costs more than 20; this one costs "), "{text}");
                }
                assert_eq!(left(Some("6")).await.ok(), Some(0));
            },
        )
        .await;
    }
}

#[tokio::test]
async fn a_slot_is_held_until_its_request_ends() {
    both(
        1,
        || vec![slots(2, Stage::Request)],
        async |pod, source| {
            let (one, _other) = (hold(pod).await.unwrap(), hold(pod).await.unwrap());
            let denial = pod.denied(Stage::Request).await.unwrap();
            assert_eq!(denial.retry_after, Some(Duration::from_secs(1)));
            assert_eq!(pod.counted("slots", Decision::Denied, source), 1);
            drop(one);
            if pod.redis.is_some() {
                crate::kv::tests::eventually("its slot is free", async || hold(pod).await.is_some()).await;
            } else {
                assert!(hold(pod).await.is_some());
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_later_stages_denial_gives_a_slot_back_at_once_but_not_where_it_is_kept() {
    let limits = || vec![slots(1, Stage::Request), hourly("c", 1, Stage::Origin)];
    both(1, limits, async |pod, _| {
        assert!(pod.denied(Stage::Origin).await.is_none());
        let mut charged = Charged::default();
        for _ in 0..3 {
            // The first gives back behind its end.
            let begun = async || matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow);
            crate::kv::tests::eventually("another may begin", begun).await;
            assert!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Deny(_)));
            assert_eq!(charged.holds(), 0);
        }
        assert!(
            matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow),
            "free as soon as it is answered"
        );
        charged.keep();
        assert!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Deny(_)));
        assert_eq!(charged.holds(), 1);
        assert!(hold(pod).await.is_none(), "a stale answer is in flight too");
    })
    .await;
}

#[tokio::test]
async fn slots_of_a_fleet_are_one_and_a_dead_pods_leave_with_their_lease() {
    let server = Server::up().await;
    let pod = || Pod::of(2, Some(kv::Redis::new(server.shared())), vec![slots(3, Stage::Request)]);
    let (one, other) = (pod(), pod());
    let dead = hold(&one).await.unwrap();
    let _alive = [hold(&one).await.unwrap(), hold(&other).await.unwrap()];
    assert!(hold(&one).await.is_none() && hold(&other).await.is_none());
    // It died: nothing of it is given back, nor renewed.
    std::mem::forget(dead);
    held_in_redis(&server, 3).await;
    let Reply::Array(keys) = server.command(&["KEYS", "*"]).await else { panic!("keys are listed") };
    let key = std::str::from_utf8(keys[0].bytes().unwrap()).unwrap();
    let Reply::Int(ttl_ms) = server.command(&["PTTL", key]).await else { panic!("PTTL is a number") };
    assert!((1..=LEASE_MS as i64 + 1000).contains(&ttl_ms), "{ttl_ms}");
    // Its lease is over: as time would have it, but sooner.
    let Reply::Array(oldest) = server.command(&["ZRANGE", key, "0", "0"]).await else { panic!("members are listed") };
    let member = oldest[0].bytes().unwrap().clone();
    server.command_bytes(&[b"ZADD", key.as_bytes(), b"1", &member]).await;
    assert!(hold(&other).await.is_some());
}

#[tokio::test]
async fn the_slots_of_what_still_runs_are_renewed() {
    let server = Server::up().await;
    let pod = Pod::of(1, Some(kv::Redis::new(server.shared())), vec![slots(3, Stage::Request)]);
    let _running = hold(&pod).await.unwrap();
    let ended = hold(&pod).await.unwrap();
    let Reply::Array(keys) = server.command(&["KEYS", "*"]).await else { panic!("keys are listed") };
    let key = std::str::from_utf8(keys[0].bytes().unwrap()).unwrap();
    let until = async || {
        let Reply::Array(all) = server.command(&["ZRANGE", key, "0", "-1", "WITHSCORES"]).await else { panic!("list") };
        let score = |pair: &[Reply]| std::str::from_utf8(pair[1].bytes().unwrap()).unwrap().parse::<f64>().unwrap();
        all.chunks(2).map(score).collect::<Vec<_>>()
    };
    let before = until().await;
    drop(ended);
    held_in_redis(&server, 1).await;
    pod.limiter.renew(pod.redis.as_ref().unwrap()).await;
    let after = until().await;
    assert_eq!(after.len(), 1, "what has ended is not taken anew");
    assert!(after[0] > before[0], "{before:?}, then {after:?}");
}

#[tokio::test]
async fn without_redis_a_pod_goes_on_with_its_part_by_any_algorithm() {
    for quota in windows(10) {
        let mut server = Server::up().await;
        let pod = Pod::of(2, Some(kv::Redis::new(server.shared())), vec![by("a", vec![quota], Stage::Request)]);
        assert_eq!(pod.admitted(3, Stage::Request).await, 3);
        server.kill();
        assert_eq!(pod.admitted(20, Stage::Request).await, 5 - 3, "half, less what was let through here: {quota:?}");
    }
    let mut server = Server::up().await;
    let pod = Pod::of(2, Some(kv::Redis::new(server.shared())), vec![slots(6, Stage::Request)]);
    let first = hold(&pod).await.unwrap();
    server.kill();
    let _more = [hold(&pod).await.unwrap(), hold(&pod).await.unwrap()];
    assert!(hold(&pod).await.is_none(), "half of six");
    drop(first);
    assert!(hold(&pod).await.is_some());
}

#[tokio::test]
async fn a_limit_that_changes_its_algorithm_never_reads_what_another_wrote() {
    let server = Server::up().await;
    let mut running = Vec::new();
    for quota in windows(2).into_iter().chain([Quota::Concurrency { max: 2 }]) {
        let redis = Some(kv::Redis::new(server.shared()));
        let pod = Pod::of(1, redis, vec![by("a", vec![quota], Stage::Request)]);
        running.extend([hold(&pod).await.unwrap(), hold(&pod).await.unwrap()]);
        assert!(hold(&pod).await.is_none(), "{quota:?}");
    }
    let Reply::Array(keys) = server.command(&["KEYS", "*"]).await else { panic!("keys are listed") };
    let mut kinds: Vec<String> = keys
        .iter()
        .map(|key| String::from_utf8(key.bytes().unwrap().to_vec()).unwrap())
        .map(|key| key.rsplit_once(':').unwrap().0.to_owned())
        .collect();
    kinds.sort();
    let expected = ["", ":concurrency", ":fixed_window:h", ":sliding_log:h", ":sliding_window:h"];
    assert_eq!(kinds, expected.map(|kind| format!("shop-prod:l:a{kind}")));
}
