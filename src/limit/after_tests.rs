//! What only answers settle: charged afterwards, given back, owed; in memory, in Redis, and while that is away.

use http::HeaderName;

use super::*;
use crate::config::{AnswerCost, Place, Statuses};
use crate::metrics::Settled;

const HOUR_MS: u64 = 3_600_000;

const USED: &str = "x-tokens-used";

/// What an answer's field says, at most 100, else 3, and `reserve` until then.
fn by_field(reserve: u32) -> Cost {
    let place = Place::Header(HeaderName::from_static(USED));
    Cost::Answer(AnswerCost { place, max: 100, default: 3, reserve })
}

/// `burst` tokens and one more an hour, for what costs so much.
fn costing(cost: Cost, burst: u32) -> config::Limit {
    config::Limit { cost, ..hourly("a", burst, Stage::Request) }
}

/// `burst` wrong passwords.
fn login(burst: u32) -> config::Limit {
    config::Limit { charge: Some(Statuses(vec![401..=401, 500..=599])), ..hourly("a", burst, Stage::Request) }
}

async fn admit(pod: &Pod) -> Option<Tabs> {
    let mut charged = Charged::default();
    matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow).then(|| charged.take_tabs())
}

fn fields(of: &[(&'static str, &str)]) -> HeaderMap {
    of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

/// Answers so; the meter of what its body says.
async fn answer(pod: &Pod, tabs: Tabs, status: u16, of: &[(&'static str, &str)]) -> Option<Meter> {
    let status = StatusCode::from_u16(status).unwrap();
    let meter = tabs.answered(&Head { status, fields: &fields(of), prepared: b"" });
    pod.limiter.settled().await;
    meter
}

async fn used(pod: &Pod, tabs: Tabs, tokens: &str) {
    assert!(answer(pod, tabs, 200, &[(USED, tokens)]).await.is_none(), "the head says it");
}

/// Whole hours until a request is admitted; 0 if it is at once.
async fn hours_denied(pod: &Pod) -> u64 {
    let Some(denial) = pod.denied(Stage::Request).await else { return 0 };
    let wait_ms = denial.retry_after.unwrap().as_millis() as u64;
    let hours = wait_ms.div_ceil(HOUR_MS);
    // Redis' clock goes on while a test runs.
    assert!(hours * HOUR_MS - wait_ms < 60_000, "{wait_ms} ms");
    hours
}

fn settled(pod: &Pod, how: Settled) -> u64 {
    const FAMILY: &str = "weir_limit_settled_total";
    let line = format!("{FAMILY}{{cost=\"{}\",limit=\"a\",route=\"catalog\"}} ", how.as_str());
    let text = pod.metrics.render(0);
    text.lines().find_map(|one| one.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn what_an_answer_costs_is_owed_and_the_wait_until_it_is_gained_again_is_true() {
    both(
        1,
        || vec![costing(by_field(1), 5)],
        async |pod, _| {
            let first = admit(pod).await.unwrap();
            used(pod, first, "3").await;
            let second = admit(pod).await.expect("2 are left");
            used(pod, second, "10").await;
            // 5 - 13 = -8; another needs 1.
            assert_eq!(hours_denied(pod).await, 9);
            assert_eq!(hours_denied(pod).await, 9, "a denied request charges nothing");
            assert_eq!(settled(pod, Settled::Said), 2);
        },
    )
    .await;
    let pod = Pod::new(vec![costing(by_field(1), 5)]);
    let tabs = admit(&pod).await.unwrap();
    used(&pod, tabs, "13").await;
    pod.clock.advance(Duration::from_millis(9 * HOUR_MS - 1));
    assert!(admit(&pod).await.is_none());
    pod.clock.advance(Duration::from_millis(1));
    assert!(admit(&pod).await.is_some());
}

#[tokio::test]
async fn what_answers_say_is_read_strictly_and_bounded() {
    for (said, cost, how) in [
        ("7", 7, Settled::Said),
        (" 7 ", 7, Settled::Said),
        ("0", 0, Settled::Said),
        ("100", 100, Settled::Said),
        ("101", 100, Settled::Capped),
        ("99999999999999999999999", 100, Settled::Capped),
        ("-7", 3, Settled::Missing),
        ("7.5", 3, Settled::Missing),
        ("NaN", 3, Settled::Missing),
        ("", 3, Settled::Missing),
    ] {
        let pod = Pod::new(vec![costing(by_field(1), 1)]);
        let tabs = admit(&pod).await.unwrap();
        used(&pod, tabs, said).await;
        assert_eq!(hours_denied(&pod).await, cost, "{said:?}");
        assert_eq!(settled(&pod, how), 1, "{said:?}");
    }
    let pod = Pod::new(vec![costing(by_field(1), 1)]);
    let tabs = admit(&pod).await.unwrap();
    assert!(answer(&pod, tabs, 200, &[]).await.is_none());
    assert_eq!((hours_denied(&pod).await, settled(&pod, Settled::Missing)), (3, 1));
}

#[tokio::test]
async fn a_stored_answers_lines_say_it_too() {
    let pod = Pod::new(vec![costing(by_field(1), 1)]);
    let tabs = admit(&pod).await.unwrap();
    let prepared = b"content-type: text/plain\r\nx-tokens-used-up: 2\r\nx-tokens-used: 6\r\nx-last: 1\r\n";
    let head = Head { status: StatusCode::OK, fields: &HeaderMap::new(), prepared };
    assert!(tabs.answered(&head).is_none());
    assert_eq!(hours_denied(&pod).await, 6);
}

#[tokio::test]
async fn no_more_come_side_by_side_than_there_is_held_for_them() {
    both(
        1,
        || vec![costing(by_field(2), 5)],
        async |pod, _| {
            let mut open = Vec::new();
            for _ in 0..20 {
                open.extend(admit(pod).await);
            }
            assert_eq!(open.len(), 2, "two hold two each, and one is left");
            for tabs in open {
                used(pod, tabs, "100").await;
            }
            // 5 - 200 = -195; another needs 2.
            assert_eq!(hours_denied(pod).await, 197);
        },
    )
    .await;
}

#[tokio::test]
async fn what_was_held_for_nothing_comes_back() {
    both(
        1,
        || vec![costing(by_field(4), 5)],
        async |pod, _| {
            let tabs = admit(pod).await.unwrap();
            assert!(admit(pod).await.is_none(), "1 is left");
            used(pod, tabs, "1").await;
            let tabs = admit(pod).await.expect("4 are left");
            used(pod, tabs, "0").await;
            let tabs = admit(pod).await.expect("it cost nothing");
            assert_eq!(hours_denied(pod).await, 4);
            tabs.forgive();
            pod.limiter.settled().await;
            assert!(admit(pod).await.is_some(), "the service was not asked");
            assert_eq!(settled(pod, Settled::Returned), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_request_without_an_answer_pays_the_default() {
    both(
        1,
        || vec![costing(by_field(1), 5)],
        async |pod, _| {
            drop(admit(pod).await.unwrap());
            pod.limiter.settled().await;
            assert!(admit(pod).await.is_some(), "2 are left");
            pod.limiter.settled().await;
            // 5 - 3 - 3 = -1.
            assert_eq!(hours_denied(pod).await, 2);
            assert_eq!(settled(pod, Settled::Unfinished), 2);
        },
    )
    .await;
}

#[tokio::test]
async fn only_answers_that_are_charged_are_and_guesses_side_by_side_find_no_gap() {
    both(
        1,
        || vec![login(5)],
        async |pod, _| {
            for _ in 0..20 {
                let tabs = admit(pod).await.expect("what is right costs nothing");
                answer(pod, tabs, 200, &[]).await;
            }
            assert_eq!(settled(pod, Settled::Returned), 20);
            // A hundred at once: none is answered before all were asked.
            let mut open = Vec::new();
            for _ in 0..100 {
                open.extend(admit(pod).await);
            }
            assert_eq!(open.len(), 5);
            let (abandoned, right) = (open.pop(), open.pop().unwrap());
            for tabs in open {
                answer(pod, tabs, 401, &[]).await;
            }
            drop(abandoned);
            assert!(admit(pod).await.is_none(), "who leaves before the answer stays charged");
            answer(pod, right, 403, &[]).await;
            let last = admit(pod).await.expect("what is not listed comes back");
            answer(pod, last, 503, &[]).await;
            assert!(admit(pod).await.is_none(), "a class lists all of it");
            assert_eq!((settled(pod, Settled::Said), settled(pod, Settled::Unfinished)), (4, 1));
        },
    )
    .await;
}

#[tokio::test]
async fn every_algorithm_gives_back_what_is_not_charged() {
    let rate = Rate { amount: 2, period_ms: HOUR_MS as u32 };
    for quota in [Quota::FixedWindow(rate), Quota::SlidingWindow(rate), Quota::SlidingLog(rate)] {
        let limits = || vec![config::Limit { quotas: vec![quota], ..login(1) }];
        both(1, limits, async |pod, _| {
            for _ in 0..5 {
                let tabs = admit(pod).await.unwrap_or_else(|| panic!("{quota:?}"));
                answer(pod, tabs, 200, &[]).await;
            }
            for _ in 0..2 {
                let tabs = admit(pod).await.unwrap();
                answer(pod, tabs, 401, &[]).await;
            }
            assert!(admit(pod).await.is_none(), "{quota:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_fixed_window_counts_what_is_beyond_it_and_forgets_it_with_its_end() {
    let rate = Rate { amount: 10, period_ms: 86_400_000 };
    let limits = || vec![config::Limit { quotas: vec![Quota::FixedWindow(rate)], ..costing(by_field(1), 1) }];
    both(1, limits, async |pod, source| {
        let (one, other) = (admit(pod).await.unwrap(), admit(pod).await.unwrap());
        used(pod, one, "9").await;
        assert!(admit(pod).await.is_none(), "9 and 1");
        used(pod, other, "30").await;
        let wait = pod.denied(Stage::Request).await.unwrap().retry_after.unwrap();
        assert!(wait <= Duration::from_secs(86_400), "{wait:?}");
        if source == Source::Local {
            pod.clock.advance(wait);
            assert!(admit(pod).await.is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn several_rates_are_settled_as_one_limit() {
    let bucket = |period_ms, burst| Quota::TokenBucket { rate: Rate { amount: 1, period_ms }, burst };
    let quotas = vec![bucket(HOUR_MS as u32, 5), bucket(86_400_000, 50)];
    let limits = || vec![config::Limit { quotas: quotas.clone(), ..costing(by_field(1), 1) }];
    both(1, limits, async |pod, _| {
        let tabs = admit(pod).await.unwrap();
        used(pod, tabs, "52").await;
        // Of the hour 5 - 52 + 48 = 1 in two days; of the day 50 - 52 = -2, and another needs 1.
        assert_eq!(hours_denied(pod).await, 3 * 24);
        assert_eq!(settled(pod, Settled::Said), 1, "it is one limit");
    })
    .await;
}

#[tokio::test]
async fn a_later_stages_denial_gives_back_what_was_held() {
    let limits = || vec![costing(by_field(4), 4), hourly("c", 1, Stage::Origin)];
    both(1, limits, async |pod, _| {
        let mut charged = Charged::default();
        for stage in [Stage::Request, Stage::Origin] {
            assert!(matches!(pod.take(stage, &mut charged).await, Verdict::Allow));
        }
        charged.take_tabs().forgive();
        pod.limiter.settled().await;
        for _ in 0..3 {
            let mut charged = Charged::default();
            assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
            assert!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Deny(_)));
            assert_eq!(charged.owes(), 0);
        }
        // What was kept is left to the answer.
        let mut charged = Charged::default();
        assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
        charged.keep();
        assert!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Deny(_)));
        assert_eq!(charged.owes(), 1);
        used(pod, charged.take_tabs(), "6").await;
        assert_eq!(hours_denied(pod).await, 6);
        assert_eq!(settled(pod, Settled::Unfinished), 0);
    })
    .await;
}

#[tokio::test]
async fn a_stage_takes_its_own_charges_along() {
    let limits = || vec![costing(by_field(1), 5), config::Limit { on: Stage::Origin, ..login(5) }];
    both(1, limits, async |pod, _| {
        let mut charged = Charged::default();
        assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
        let own = charged.owes();
        assert!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Allow));
        let fetch = charged.take_tabs_beyond(own);
        assert_eq!((own, fetch.len(), charged.owes()), (1, 1, 1));
        answer(pod, fetch, 200, &[]).await;
        used(pod, charged.take_tabs(), "5").await;
        assert_eq!((settled(pod, Settled::Returned), settled(pod, Settled::Said)), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_charges_whom_it_would_have_admitted() {
    both(
        1,
        || vec![config::Limit { dry_run: true, ..costing(by_field(1), 5) }],
        async |pod, source| {
            let tabs = admit(pod).await.unwrap();
            used(pod, tabs, "9").await;
            let tabs = admit(pod).await.expect("it denies nobody");
            assert!(tabs.is_empty(), "and charges nobody whom it would have denied");
            assert_eq!(pod.counted("a", Decision::DryRun, source), 1);
        },
    )
    .await;
}

/// What is lent could not be settled; and whoever owes is denied without a question.
#[tokio::test]
async fn nothing_is_lent_and_denials_are_remembered() {
    let server = Server::up().await;
    let pod = |limit| Pod::of(1, Some(kv::Redis::new(server.shared())), vec![limit]);
    let busy = pod(costing(by_field(1), 1000));
    for _ in 0..20 {
        let tabs = admit(&busy).await.unwrap();
        used(&busy, tabs, "1").await;
    }
    assert_eq!(busy.counted("a", Decision::Allowed, Source::Loan), 0);
    let tabs = admit(&busy).await.unwrap();
    used(&busy, tabs, "100").await;
    for _ in 0..9 {
        let tabs = admit(&busy).await;
        used(&busy, tabs.expect("it has some left"), "100").await;
    }
    assert_eq!(busy.admitted(20, Stage::Request).await, 0);
    assert_eq!(busy.counted("a", Decision::Denied, Source::Loan), 19, "only the first was asked for");
}

/// Two pods: what one learns from an answer, the other goes by.
#[tokio::test]
async fn a_debt_is_the_fleets() {
    let server = Server::up().await;
    let pod = || Pod::of(2, Some(kv::Redis::new(server.shared())), vec![costing(by_field(1), 5)]);
    let (one, other) = (pod(), pod());
    let tabs = admit(&one).await.unwrap();
    used(&one, tabs, "15").await;
    assert_eq!(hours_denied(&other).await, 11);
    let Reply::Int(ttl_ms) = server.command(&["PTTL", &only_key(&server).await]).await else { panic!("a number") };
    assert!((ttl_ms - 15 * HOUR_MS as i64).abs() < 60_000, "{ttl_ms}: a debt outlives nothing but itself");
}

async fn only_key(server: &Server) -> String {
    let Reply::Array(keys) = server.command(&["KEYS", "*"]).await else { panic!("keys are listed") };
    assert_eq!(keys.len(), 1, "{keys:?}");
    String::from_utf8(keys[0].bytes().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn while_redis_is_away_the_pods_own_part_owes_and_redis_hears_of_it() {
    let mut server = Server::up().await;
    let shared = server.shared();
    let pod = Pod::of(1, Some(kv::Redis::new(Arc::clone(&shared))), vec![costing(by_field(1), 10)]);
    let asked = admit(&pod).await.unwrap();
    server.kill();
    let redis = pod.redis.as_ref().unwrap();
    crate::kv::tests::eventually("it is known to be away", async || {
        let _ = redis.get(b"k", &mut redis.budget()).await;
        shared.is_away()
    })
    .await;
    // Asked while Redis was there, answered when it is not.
    used(&pod, asked, "5").await;
    let own = admit(&pod).await.expect("10 - 5 are left here");
    assert_eq!(pod.counted("a", Decision::Allowed, Source::Fallback), 1);
    // Decided here, it is owed here.
    used(&pod, own, "9").await;
    assert_eq!(hours_denied(&pod).await, 5);
    server.start().await;
    let probe = tokio::spawn(kv::bus::probe(Arc::clone(&shared)));
    crate::kv::tests::eventually("Redis is back", async || !shared.is_away()).await;
    // It knows nothing, and would be full: 4 and 9 are taken off.
    let denial = pod.denied(Stage::Request).await.expect("nothing is left");
    assert_eq!(denial.source, Source::Redis);
    probe.abort();
}

/// A pod's part may have less than a request costs: it takes all of that, owes what it costs, and gives back the same.
#[tokio::test]
async fn what_a_later_stage_denies_while_redis_is_away_is_owed_by_nobody() {
    let mut server = Server::up().await;
    let five = config::Limit { cost: Cost::Fixed(5), ..hourly("a", 10, Stage::Request) };
    let none = config::Limit { redis_down: RedisDown::Deny, ..hourly("c", 1, Stage::Origin) };
    let shared = server.shared();
    let pod = Pod::of(4, Some(kv::Redis::new(Arc::clone(&shared))), vec![five, none]);
    server.kill();
    for _ in 0..2 {
        assert_eq!(pod.denied(Stage::Origin).await.map(|denial| denial.source), Some(Source::Fallback));
    }
    server.start().await;
    let probe = tokio::spawn(kv::bus::probe(Arc::clone(&shared)));
    crate::kv::tests::eventually("Redis is back", async || !shared.is_away()).await;
    assert_eq!(pod.admitted(3, Stage::Request).await, 2, "ten are there");
    probe.abort();
}

/// What one pod sees of a fleet's identity is more than its part: while Redis decides, that is empty at most.
#[tokio::test]
async fn what_redis_admitted_is_not_owed_by_the_part_of_one_pod() {
    let mut server = Server::up().await;
    let pod = Pod::of(1, Some(kv::Redis::new(server.shared())), vec![costing(by_field(1), 5)]);
    let tabs = admit(&pod).await.unwrap();
    used(&pod, tabs, "100").await;
    server.kill();
    // No denial is remembered: the debt has lifted what there was.
    let fallen_back = async || pod.denied(Stage::Request).await.unwrap().source == Source::Fallback;
    crate::kv::tests::eventually("it decides alone", fallen_back).await;
    assert_eq!(hours_denied(&pod).await, 1);
}

/// What other pods give back is noticed soon, though a denial is remembered.
#[tokio::test]
async fn a_denial_that_answers_may_lift_is_remembered_for_a_moment() {
    let server = Server::up().await;
    let pod = || Pod::of(2, Some(kv::Redis::new(server.shared())), vec![login(1)]);
    let (one, other) = (pod(), pod());
    let tabs = admit(&one).await.unwrap();
    for _ in 0..20 {
        assert!(admit(&other).await.is_none());
    }
    assert!(other.counted("a", Decision::Denied, Source::Loan) >= 19, "it is remembered");
    answer(&one, tabs, 200, &[]).await;
    // By Redis' clock an hour is left, by the pod's no time passes.
    other.clock.advance(Duration::from_millis(99));
    assert!(admit(&other).await.is_none());
    other.clock.advance(Duration::from_millis(1));
    assert!(admit(&other).await.is_some());
}

/// A pod that owes a bucket what it spent must not pay the bucket's own debt by that.
#[tokio::test]
async fn what_a_pod_owes_does_not_pay_what_an_identity_owes() {
    let server = Server::up().await;
    let pod = Pod::of(1, Some(kv::Redis::new(server.shared())), vec![costing(by_field(1), 5)]);
    let tabs = admit(&pod).await.unwrap();
    let due = tabs.due_of_first();
    used(&pod, tabs, "15").await;
    pod.limiter.loans.spent_away(&due, due.cost, None, pod.limiter.shelf.steady());
    assert_eq!(hours_denied(&pod).await, 12, "it is owed besides");
}

#[path = "meter_tests.rs"]
mod bodies;
