use std::net::IpAddr;

use http::{HeaderMap, HeaderName, StatusCode};

use super::super::tests::{Pod, hourly, limit};
use super::*;
use crate::clock::Clock;
use crate::config::{AfterLoss, AnswerCost, IdentityPart, Place};
use crate::kv::Reply;
use crate::kv::tests::Server;
use crate::limit::{Charged, Head, Verdict};
use crate::syntax::rate::Rate;

const CLIENT: &str = "2001:db8:1:2::7";

fn view(pod: &Pod) -> View<'_> {
    View::new(&pod.limiter, [("catalog", &pod.limits)].into_iter(), pod.redis.as_ref(), false)
}

fn asked(limit: &str, parts: &[(&str, &str)]) -> Asked {
    let parts = parts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Asked { limit: limit.to_owned(), who: Who::Parts(parts) }
}

/// The client, by another address of its own.
fn client() -> Asked {
    asked("l", &[("ip", "2001:db8:1:2:ffff::1")])
}

fn by_id(state: &Value) -> Asked {
    Asked { limit: "l".to_owned(), who: Who::Id(state["id"].as_str().unwrap().to_owned()) }
}

/// How many of so many requests are let through.
async fn admitted(pod: &Pod, times: usize) -> usize {
    let client: IpAddr = CLIENT.parse().unwrap();
    let mut admitted = 0;
    for _ in 0..times {
        let verdict = pod.take_as(client, Stage::Request, &mut Charged::default()).await;
        admitted += usize::from(matches!(verdict, Verdict::Allow));
    }
    admitted
}

async fn on(server: &Server, limits: Vec<config::Limit>) -> Pod {
    Pod::of(2, Some(kv::Redis::new(server.shared())), limits)
}

#[tokio::test]
async fn looking_charges_nothing() {
    let server = Server::up().await;
    let two_rates = config::Limit {
        quotas: vec![
            Quota::TokenBucket { rate: Rate { amount: 1, period_ms: 3_600_000 }, burst: 3 },
            Quota::TokenBucket { rate: Rate { amount: 1, period_ms: 86_400_000 }, burst: 5 },
        ],
        ..hourly("l", 3, Stage::Request)
    };
    for pod in [Pod::of(1, None, vec![two_rates.clone()]), on(&server, vec![two_rates]).await] {
        let fresh = view(&pod).state(&client()).await.unwrap();
        let place = if pod.redis.is_some() { "redis" } else { "here" };
        assert_eq!(fresh["rates"][0][place]["known"], false, "{fresh}");
        assert_eq!((&fresh["rates"][0]["rate"], &fresh["rates"][0]["burst"]), (&json!("1/h"), &json!(3)));
        assert_eq!(admitted(&pod, 2).await, 2);
        for _ in 0..5 {
            let state = view(&pod).state(&client()).await.unwrap();
            let said = [0, 1].map(|nth| state["rates"][nth][place]["remaining"].as_u64().unwrap());
            assert_eq!(said, [1, 3], "{state}");
            assert_eq!(state["identity"], json!({ "ip": "2001:db8:1:2::/64" }), "who knows it may see it");
        }
        assert_eq!(admitted(&pod, 2).await, 1);
        let state = view(&pod).state(&by_id(&fresh)).await.unwrap();
        let wait_ms = state["rates"][0][place]["wait_ms"].as_u64().unwrap();
        assert!((3_500_000..=3_600_000).contains(&wait_ms), "{state}");
        assert!(state.get("identity").is_none(), "who does not know it has to be allowed to see it: {state}");
        let remembers = state["rates"][0]["here"]["denied_for_ms"].as_u64();
        assert_eq!(remembers.is_some_and(|ms| ms > 9_000), pod.redis.is_some(), "{state}");
    }
}

#[tokio::test]
async fn looking_writes_nothing_whatever_the_algorithm() {
    let server = Server::up().await;
    let rate = Rate { amount: 3, period_ms: 3_600_000 };
    let algorithms = [
        Quota::TokenBucket { rate, burst: 3 },
        Quota::FixedWindow(rate),
        Quota::SlidingWindow(rate),
        Quota::SlidingLog(rate),
        Quota::Concurrency { max: 3 },
    ];
    for (nth, quota) in algorithms.into_iter().enumerate() {
        let name = format!("l{nth}");
        let configured = config::Limit { quotas: vec![quota], ..hourly(&name, 3, Stage::Request) };
        let pod = on(&server, vec![configured]).await;
        let redis = pod.redis.as_ref().unwrap();
        let asked = asked(&name, &[("ip", CLIENT)]);
        let mut charged = Charged::default();
        let client = CLIENT.parse().unwrap();
        assert!(matches!(pod.take_as(client, Stage::Request, &mut charged).await, Verdict::Allow));
        let dump = async || {
            let view = view(&pod);
            let limits = view.limits();
            let id = view.found(&limits[0], &asked.who).unwrap().id;
            let key = keys(redis, &limits[0].bounds, &id).remove(0);
            redis.run(&DUMP, &[&key], &[], &mut Budget::new(ANSWERED_WITHIN)).await.unwrap()
        };
        let before = format!("{:?}", dump().await);
        let state = view(&pod).state(&asked).await.unwrap();
        assert_eq!(state["rates"][0]["redis"]["remaining"], 2, "{quota:?}: {state}");
        assert_eq!(state["rates"][0]["redis"]["known"], true, "{quota:?}: {state}");
        assert_eq!(format!("{:?}", dump().await), before, "{quota:?}");
        view(&pod).reset(&asked).await.unwrap();
        let state = view(&pod).state(&asked).await.unwrap();
        assert_eq!(state["rates"][0]["redis"]["remaining"], 3, "{quota:?}: {state}");
        assert_eq!(state["rates"][0]["here"]["remaining"].as_u64(), Some(1), "{quota:?}: {state}");
    }
}

static DUMP: kv::Script = kv::Script { name: "test_dump", source: "return redis.call('DUMP', KEYS[1])" };

#[tokio::test]
async fn a_reset_holds_here_at_once_and_elsewhere_once_denials_are_forgotten() {
    let server = Server::up().await;
    let limits = || vec![hourly("l", 4, Stage::Request)];
    let (one, other) = (on(&server, limits()).await, on(&server, limits()).await);
    assert_eq!((admitted(&one, 6).await, admitted(&other, 6).await), (4, 0));
    let done = view(&one).reset(&client()).await.unwrap();
    assert_eq!((&done["here"], &done["redis"], &done["elsewhere_within_s"]), (&json!(true), &json!(true), &json!(10)));
    assert_eq!(admitted(&one, 1).await, 1);
    assert_eq!(admitted(&other, 3).await, 0, "it remembers");
    other.clock.advance(Duration::from_secs(10));
    assert_eq!((admitted(&other, 6).await, admitted(&one, 6).await), (3, 0), "one burst, whoever asks");
}

/// Not known any more, it would be taken as empty at the loss.
#[tokio::test]
async fn a_reset_after_a_loss_holds_until_the_bucket_would_be_full_again() {
    let server = Server::up().await;
    let limits = vec![config::Limit { after_loss: AfterLoss::Empty, ..hourly("l", 4, Stage::Request) }];
    let pod = on(&server, limits).await;
    let redis = pod.redis.as_ref().unwrap();
    redis.shared().note_loss(Clock::system().now().saturating_sub(10_000));
    assert_eq!(admitted(&pod, 1).await, 0, "it was lost");
    view(&pod).reset(&client()).await.unwrap();
    assert_eq!(admitted(&pod, 1).await, 1);
    let Reply::Array(keys) = server.command(&["KEYS", "*:l:*"]).await else { panic!("keys are listed") };
    let key = String::from_utf8(keys[0].bytes().unwrap().to_vec()).unwrap();
    let Reply::Int(ttl_ms) = server.command(&["PTTL", &key]).await else { panic!("it has one") };
    assert!(ttl_ms >= 4 * 3_600_000, "{ttl_ms}");
}

#[tokio::test]
async fn what_is_lent_is_part_of_the_burst_after_a_reset() {
    let server = Server::up().await;
    let limits = || vec![hourly("l", 64, Stage::Request)];
    let (one, other) = (on(&server, limits()).await, on(&server, limits()).await);
    // The second is lent some, and keeps them.
    assert_eq!(admitted(&other, 10).await, 10);
    let lent = &view(&other).state(&client()).await.unwrap()["rates"][0];
    let (held, counted) = (lent["here"]["lent"]["requests"].as_f64(), &lent["redis"]["lent"][0]);
    assert!(held.is_some_and(|held| held >= 1.0), "{lent}");
    assert!(counted["this"] == true && counted["requests"].as_f64() >= held, "{lent}");
    assert_eq!(view(&other).list()["limits"][0]["loans"], json!({ "held": 1, "requests": held }));
    assert_eq!(view(&one).list()["limits"][0]["loans"], json!({ "held": 0, "requests": 0.0 }));
    view(&one).reset(&client()).await.unwrap();
    let (first, second) = (admitted(&one, 200).await, admitted(&other, 200).await);
    let all = first + second;
    assert!((60..=64).contains(&all) && second > 0, "{first} and {second}");
}

#[tokio::test]
async fn without_redis_a_reset_is_this_pods() {
    let pod = Pod::of(1, None, vec![hourly("l", 2, Stage::Request)]);
    assert_eq!(admitted(&pod, 5).await, 2);
    let id = by_id(&view(&pod).list()["denied"][0]);
    let done = view(&pod).reset(&id).await.unwrap();
    assert_eq!(
        (&done["here"], &done["redis"], &done["elsewhere_within_s"]),
        (&json!(true), &json!(false), &Value::Null)
    );
    assert_eq!(admitted(&pod, 5).await, 2);
    let stranger = Asked { who: Who::Id("0".repeat(32)), ..id };
    assert!(matches!(view(&pod).reset(&stranger).await, Err(Problem::Unknown(_))));
    let state = view(&pod).state(&stranger).await.unwrap();
    assert_eq!((&state["rates"][0]["here"], &state["rates"][0]["redis"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn by_its_id_an_identity_is_reset_that_another_pod_denied() {
    let server = Server::up().await;
    let limits = || vec![hourly("l", 2, Stage::Request)];
    let (one, other) = (on(&server, limits()).await, on(&server, limits()).await);
    assert_eq!(admitted(&other, 3).await, 2);
    let id = by_id(&view(&other).list()["denied"][0]);
    let done = view(&one).reset(&id).await.unwrap();
    assert_eq!((&done["here"], &done["redis"]), (&json!(false), &json!(true)), "this one has not heard of it");
    assert_eq!(admitted(&one, 3).await, 2);
}

#[tokio::test]
async fn without_an_answer_nothing_is_reset() {
    let mut server = Server::up().await;
    let pod = on(&server, vec![hourly("l", 2, Stage::Request)]).await;
    assert_eq!(admitted(&pod, 3).await, 2);
    server.kill();
    let problem = view(&pod).reset(&client()).await.unwrap_err();
    assert!(matches!(&problem, Problem::Redis(why) if why.problem.contains("nothing was reset")), "{problem:?}");
    let state = view(&pod).state(&client()).await.unwrap();
    assert!(state["rates"][0]["redis"]["error"].is_string(), "{state}");
    assert_eq!(state["rates"][0]["here"]["remaining"], 0, "{state}");
    assert_eq!((&state["decides"], &state["redis_down"]), (&json!("here"), &json!("local")), "{state}");
}

#[tokio::test]
async fn what_is_owed_is_shown_as_such() {
    let field = HeaderName::from_static("x-used");
    let rate = Rate { amount: 5, period_ms: 3_600_000 };
    let bucket = Quota::TokenBucket { rate: Rate { amount: 1, ..rate }, burst: 5 };
    let server = Server::up().await;
    for (nth, quota) in [bucket, Quota::FixedWindow(rate)].into_iter().enumerate() {
        let name = format!("l{nth}");
        let answer = AnswerCost { place: Place::Header(field.clone()), max: 100, default: 1, reserve: 1 };
        let costing = || config::Limit {
            quotas: vec![quota],
            cost: Cost::Answer(answer.clone()),
            ..hourly(&name, 5, Stage::Request)
        };
        for (pod, place) in [(Pod::of(1, None, vec![costing()]), "here"), (on(&server, vec![costing()]).await, "redis")]
        {
            let asked = asked(&name, &[("ip", CLIENT)]);
            let shown = async || view(&pod).state(&asked).await.unwrap();
            assert_eq!(shown().await["rates"][0][place]["owed"], 0);
            let mut charged = Charged::default();
            assert!(matches!(pod.take_as(CLIENT.parse().unwrap(), Stage::Request, &mut charged).await, Verdict::Allow));
            let fields = HeaderMap::from_iter([(field.clone(), "13".parse().unwrap())]);
            charged.take_tabs().answered(&Head { status: StatusCode::OK, fields: &fields, prepared: b"" });
            pod.limiter.settled().await;
            let state = shown().await;
            let said = &state["rates"][0][place];
            assert_eq!((&said["remaining"], &said["owed"]), (&json!(0), &json!(8)), "{quota:?}: {state}");
            assert_eq!(state["decides"], place, "{state}");
        }
    }
}

#[tokio::test]
async fn the_list_says_what_there_is_and_who_is_denied() {
    let gold = Quota::TokenBucket { rate: Rate { amount: 7, period_ms: 1000 }, burst: 8 };
    let by_key = config::Limit {
        key: vec![IdentityPart::Route],
        delay: Some(config::Delay { longest: Duration::from_millis(500), places: 9 }),
        tiers: Some(config::Tiers { hash: "h".to_owned(), quotas: [("gold".to_owned(), gold)].into() }),
        scope: "catalog/k".to_owned(),
        ..limit("k", (9, 1000), 9, Stage::Miss)
    };
    let pod = Pod::of(1, None, vec![hourly("l", 2, Stage::Request), by_key]);
    assert_eq!(admitted(&pod, 5).await, 2);
    let list = view(&pod).list();
    let expected = json!({
        "limit": "l", "routes": ["catalog"], "key": ["ip"], "on": "request", "dry_run": false, "tiers": null, "max_delay_ms": null,
        "rates": [{ "algorithm": "token_bucket", "rate": "1/h", "burst": 2 }],
        "decisions": { "allowed": 2, "denied": 3, "dry_run": 0, "delayed": 0 }, "states": 1, "loans": null,
    });
    assert_eq!(list["limits"][0], expected);
    assert_eq!((&list["limits"][1]["limit"], &list["limits"][1]["on"]), (&json!("catalog/k"), &json!("miss")));
    let tiers = json!({ "hash": "h", "rates": { "gold": { "algorithm": "token_bucket", "rate": "7/s", "burst": 8 } } });
    assert_eq!((&list["limits"][1]["tiers"], &list["limits"][1]["max_delay_ms"]), (&tiers, &json!(500)));
    assert_eq!(list["states"], json!({ "held": 1, "most": STATES_MAX }));
    let denied = &list["denied"][0];
    assert_eq!((&denied["limit"], &denied["at_least"], &denied["at_most"]), (&json!("l"), &json!(3), &json!(3)));
    assert!(denied.get("identity").is_none() && denied["id"].as_str().is_some_and(|id| id.len() == ID_DIGITS));
    let open = View { shows_identities: true, ..view(&pod) }.list();
    assert_eq!(open["denied"][0]["identity"], json!({ "ip": "2001:db8:1:2::/64" }));
    // The only one of its name needs no route.
    let missing = view(&pod).state(&asked("k", &[("ip", "::1")])).await;
    assert!(matches!(missing, Err(Problem::Wrong(why)) if why.problem.contains("`ip` is no part")));
    assert!(view(&pod).state(&asked("k", &[])).await.is_ok(), "its only route goes without saying");
    let unknown = view(&pod).state(&asked("x", &[("ip", "::1")])).await;
    assert!(matches!(unknown, Err(Problem::Unknown(why)) if why.remedy.contains("l, catalog/k")));
    let id = |id: &str| Asked { limit: "l".to_owned(), who: Who::Id(id.to_owned()) };
    assert!(matches!(view(&pod).state(&id("0123")).await, Err(Problem::Wrong(_))));
}

#[tokio::test]
async fn whom_a_dry_run_would_have_denied_is_in_the_list() {
    let tries = |dry_run| config::Limit { dry_run, ..hourly("l", 2, Stage::Request) };
    let pod = Pod::of(1, None, vec![tries(true), hourly("m", 4, Stage::Request)]);
    assert_eq!(admitted(&pod, 5).await, 4);
    let denied = &view(&pod).list()["denied"];
    let said: Vec<_> =
        denied.as_array().unwrap().iter().map(|one| (&one["limit"], &one["at_least"], &one["dry_run"])).collect();
    let (l, m) = (json!("l"), json!("m"));
    assert_eq!(said, [(&l, &json!(3), &json!(true)), (&m, &json!(1), &Value::Null)]);
    // In earnest, by the same states.
    let top = &pod.limiter.top;
    let count = |dry_run| top.count(7, &Arc::new(tries(dry_run)), 0.0, |out| out.extend_from_slice(b"-"));
    [true, false, false].into_iter().for_each(count);
    let said: Vec<_> =
        top.list().iter().filter(|one| one.identity == b"-").map(|one| (one.limit.dry_run, one.at_least)).collect();
    assert_eq!(said, [(false, 2), (true, 1)]);
}

#[test]
fn loans_of_one_rate_are_not_taken_for_another_rate() {
    let rate = |period_ms| Quota::TokenBucket { rate: Rate { amount: 64, period_ms }, burst: 64 };
    let quotas = vec![rate(1000), rate(60_000)];
    let pod = Pod::of(1, None, vec![config::Limit { quotas, ..hourly("l", 64, Stage::Request) }]);
    let view = view(&pod);
    let limits = view.limits();
    let price = match limits[0].bounds[0].shape {
        Shape::TokenBucket(shape) => shape.price as i64,
        _ => 0,
    };
    let numbers = [7, 1, 9, 0, 5, 3, 2, 11, price, 30, 12, 2 * price, 40, 0, 64, 0, 0, 0, 0];
    let reply = |count: usize| Reply::Array(numbers[..count].iter().map(|number| Reply::Int(*number)).collect());
    let all = view.peeked(&reply(numbers.len()), &limits[0].bounds).unwrap();
    let lent = |pod: &str, requests: f64, for_ms: u64| json!({ "pod": pod, "this": false, "requests": requests, "for_ms": for_ms });
    assert_eq!(all[0]["lent"], json!([lent("0000000000000b", 1.0, 30), lent("0000000000000c", 2.0, 40)]));
    assert_eq!((&all[0]["owed"], &all[1]["owed"]), (&json!(3), &json!(0)));
    assert_eq!((&all[1]["remaining"], &all[1]["known"], &all[1]["lent"]), (&json!(64), &json!(false), &json!([])));
    assert!(view.peeked(&reply(numbers.len() - 1), &limits[0].bounds).is_none());
}
