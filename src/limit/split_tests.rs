//! Limits of one request in several slots: the same decisions and states as in one, and nothing is over-admitted where a
//! slot does not answer. A Redis that stands alone is asked as if it were a Cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::config::{AnswerCost, Place};
use crate::limit::dice::Dice;

const DAY_MS: u32 = 86_400_000;

const IP: [u8; 4] = [192, 0, 2, 1];

fn sharded(server: &Server, limits: Vec<config::Limit>) -> Pod {
    Pod::of(1, Some(kv::Redis::new(server.sharded())), limits)
}

/// A limit by address and one by host, in slots of their own.
fn two(ip: config::Limit, host: config::Limit) -> Vec<config::Limit> {
    vec![ip, config::Limit { key: vec![IdentityPart::Host], ..host }]
}

/// Asks each time.
fn exact(limit: config::Limit) -> config::Limit {
    config::Limit { loans: false, ..limit }
}

/// The request that [`Pod::take`] makes.
fn facts(headers: &HeaderMap) -> Facts<'_> {
    Facts { ip: IP.into(), headers, query: None, route: "catalog", host: "shop.example", method: &Method::GET }
}

fn key_of(pod: &Pod, nth: usize) -> String {
    let headers = HeaderMap::new();
    let bound = &pod.limits.stage(Stage::Request).bounds[nth];
    String::from_utf8(pod.limiter.key(pod.redis.as_ref().unwrap(), bound, &facts(&headers))).unwrap()
}

/// How often these scripts were sent.
fn sent(pod: &Pod, script: &str) -> u64 {
    let text = pod.redis.as_ref().unwrap().shared().metrics.render(0);
    const FAMILY: &str = "weir_redis_commands_total";
    let of = format!("{FAMILY}{{command=\"{script}\"");
    let counts = text.lines().filter(|line| line.starts_with(&of)).filter_map(|line| line.rsplit(' ').next());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

fn scope_of(key: &str) -> &str {
    key.strip_prefix("shop-prod:l:").unwrap().split(":{").next().unwrap()
}

/// What each state has taken of its limit, as far as it has any.
async fn taken(server: &Server, bursts: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let Reply::Array(keys) = server.command(&["KEYS", "*:l:*"]).await else { panic!("keys are listed") };
    let mut all = BTreeMap::new();
    for key in keys.iter().map(|key| String::from_utf8(key.bytes().unwrap().to_vec()).unwrap()) {
        let is_set = key.contains("concurrency") || key.contains("sliding_log");
        let taken = match server.command(&[if is_set { "ZCARD" } else { "GET" }, &key]).await {
            Reply::Int(count) => count as f64,
            Reply::Bytes(bytes) => {
                let numbers: Vec<f64> = bytes.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
                let burst = bursts.get(scope_of(&key)).unwrap_or(&f64::NAN);
                if key.contains("_window") { numbers[2] } else { burst - numbers[0] / numbers[2] }
            }
            other => panic!("{other:?}"),
        };
        if taken > 0.01 {
            all.insert(key, taken);
        }
    }
    all
}

async fn taken_of(server: &Server, key: &str, burst: f64) -> f64 {
    taken(server, &[(scope_of(key).to_owned(), burst)].into()).await.get(key).copied().unwrap_or(0.0).round()
}

fn any_limit(dice: &mut Dice, nth: u64) -> config::Limit {
    let name = format!("l{nth}");
    let amount = 2 + dice.roll(12) as u32;
    let rate = Rate { amount, period_ms: DAY_MS };
    let bucket = Quota::TokenBucket { rate: Rate { amount: 1, period_ms: DAY_MS }, burst: amount };
    let hourly = Quota::TokenBucket { rate: Rate { amount: 1, period_ms: 3_600_000 }, burst: amount + 1 };
    let quotas = match dice.roll(7) {
        0 | 1 => vec![bucket],
        2 => vec![bucket, hourly],
        3 => vec![Quota::FixedWindow(rate)],
        4 => vec![Quota::SlidingWindow(rate)],
        5 => vec![Quota::SlidingLog(rate)],
        _ => vec![Quota::Concurrency { max: amount }],
    };
    let is_held = matches!(quotas[0], Quota::Concurrency { .. });
    let cost = Cost::Header { name: "x-cost".parse().unwrap(), max: 3, default: 1 };
    let (ip, host) = (IdentityPart::Ip, IdentityPart::Host);
    config::Limit {
        key: match dice.roll(5) {
            0 | 1 => vec![ip],
            2 => vec![host],
            3 => vec![ip, host],
            _ => vec![IdentityPart::Route],
        },
        quotas,
        cost: if is_held { Cost::Fixed(1) } else { cost },
        dry_run: dice.roll(4) == 0,
        loans: dice.roll(2) == 0,
        ..super::hourly(&name, 1, dice.of(&[Stage::Request, Stage::Request, Stage::Miss]))
    }
}

/// What a client hears: whether it is denied, and for how long; or how much is left.
async fn outcome(pod: &Pod, ip: IpAddr, cost: &str, running: &mut Vec<Charged>) -> (bool, u64, String) {
    let (mut charged, mut fields) = (Charged::default(), HeaderMap::new());
    let mut headers = HeaderMap::new();
    headers.insert("x-cost", cost.parse().unwrap());
    let left = |fields: &HeaderMap| {
        let said = fields.get("ratelimit").map(|said| said.to_str().unwrap().to_owned()).unwrap_or_default();
        said.split(';').find(|part| part.starts_with("r=")).unwrap_or_default().to_owned()
    };
    for stage in [Stage::Request, Stage::Miss] {
        if let Verdict::Deny(denial) = pod.take_with(ip, &headers, stage, &mut charged).await {
            // Which of two equal waits is told, and so what is left, is up to milliseconds.
            let wait = denial.retry_after.unwrap_or_default();
            return (true, (wait.as_secs() + 30) / 60, String::new());
        }
    }
    charged.append_fields(&mut fields);
    running.push(charged);
    (false, 0, left(&fields))
}

/// One after the other, it makes no difference where the keys lie.
#[tokio::test]
async fn in_several_slots_limits_decide_and_hold_what_they_do_in_one() {
    let (whole, split) = (Server::up().await, Server::up().await);
    let (mut scripts, mut denials) = ([0, 0], 0);
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let count = 2 + dice.roll(4);
        let limits: Vec<_> = (0..count).map(|nth| any_limit(&mut dice, nth)).collect();
        // Names of the states of several rates say which they are.
        let bursts = limits.iter().flat_map(|limit| {
            limit.quotas.iter().filter_map(|quota| match quota {
                Quota::TokenBucket { rate, burst } if limit.quotas.len() > 1 => {
                    Some((format!("{}:{}", limit.scope, rate.unit()), f64::from(*burst)))
                }
                Quota::TokenBucket { burst, .. } => Some((limit.scope.clone(), f64::from(*burst))),
                _ => None,
            })
        });
        let bursts: BTreeMap<String, f64> = bursts.collect();
        for server in [&whole, &split] {
            server.command(&["FLUSHALL"]).await;
        }
        let one = Pod::of(1, Some(kv::Redis::new(whole.shared())), limits.clone());
        let many = sharded(&split, limits);
        let mut running = [Vec::new(), Vec::new()];
        for step in 0..40 {
            let ip: IpAddr = [192, 0, 2, dice.roll(3) as u8].into();
            let cost = dice.of(&["1", "1", "2", "3"]);
            let expected = outcome(&one, ip, cost, &mut running[0]).await;
            denials += usize::from(expected.0);
            assert_eq!(outcome(&many, ip, cost, &mut running[1]).await, expected, "seed {seed}, step {step}");
        }
        let (expected, found) = (taken(&whole, &bursts).await, taken(&split, &bursts).await);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "seed {seed}");
        for (key, taken) in &found {
            assert!((taken - expected[key]).abs() < 0.01, "seed {seed}: {key} has {taken} of {}", expected[key]);
        }
        let decisions = |pod: &Pod| {
            const FAMILY: &str = "weir_limit_decisions_total";
            let text = pod.metrics.render(0);
            text.lines().filter(|line| line.starts_with(FAMILY)).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(decisions(&many), decisions(&one), "seed {seed}");
        for (pod, scripts) in [&one, &many].into_iter().zip(&mut scripts) {
            *scripts += sent(pod, "limit_take") + sent(pod, "limit_take_any");
        }
    }
    assert!(denials > 400, "{denials}");
    assert!(scripts[1] > scripts[0] * 3 / 2, "few were split: {scripts:?}");
}

#[tokio::test]
async fn what_one_slot_denies_is_given_back_in_the_others() {
    let server = Server::up().await;
    let running = config::Limit { quotas: vec![Quota::Concurrency { max: 9 }], ..hourly("r", 1, Stage::Request) };
    let mut limits = two(exact(hourly("a", 2, Stage::Request)), exact(hourly("b", 9, Stage::Request)));
    limits.push(config::Limit { key: vec![IdentityPart::Route], ..running });
    limits.push(exact(config::Limit {
        dry_run: true,
        key: vec![IdentityPart::Method],
        ..hourly("d", 9, Stage::Request)
    }));
    let pod = sharded(&server, limits);
    let mut running = Vec::new();
    for _ in 0..20 {
        let mut charged = Charged::default();
        if let Verdict::Allow = pod.take(Stage::Request, &mut charged).await {
            running.push(charged);
        }
    }
    assert_eq!(running.len(), 2);
    assert_eq!(sent(&pod, "limit_refund"), 18 * 3, "by three slots, once for each denial");
    for nth in [0, 1, 3] {
        assert_eq!(taken_of(&server, &key_of(&pod, nth), [2.0, 9.0, 0.0, 9.0][nth]).await, 2.0, "limit {nth}");
    }
    assert_eq!(taken_of(&server, &key_of(&pod, 2), 0.0).await, 2.0);
    assert!(pod.limiter.shelf.local.counts().values().all(|count| *count == 1));
    assert_eq!(pod.counted("d", Decision::Allowed, Source::Redis), 2);
}

/// The wait that is told is the longest of all slots.
#[tokio::test]
async fn of_several_slots_that_deny_the_longest_wait_is_told() {
    let server = Server::up().await;
    for turned in [false, true] {
        server.command(&["FLUSHALL"]).await;
        let mut limits = two(limit("a", (1, 60_000), 1, Stage::Request), hourly("b", 1, Stage::Request));
        if turned {
            limits.reverse();
        }
        let pod = sharded(&server, limits.into_iter().map(exact).collect());
        assert_eq!(pod.admitted(1, Stage::Request).await, 1);
        assert_eq!(pod.denied(Stage::Request).await.unwrap().limit.name, "b");
    }
}

/// One of two slots answers with an error each time.
#[tokio::test]
async fn where_a_slot_does_not_answer_the_others_admit_no_more_than_they_say() {
    for (redis_down, expected, of_a) in
        [(RedisDown::Allow, 4, 4.0), (RedisDown::Local, 3, 3.0), (RedisDown::Deny, 0, 0.0)]
    {
        let server = Server::up().await;
        let silent = config::Limit { redis_down, ..hourly("b", 3, Stage::Request) };
        let pod = sharded(&server, two(exact(hourly("a", 4, Stage::Request)), exact(silent)));
        let (a, b) = (key_of(&pod, 0), key_of(&pod, 1));
        server.command(&["LPUSH", &b, "no bucket"]).await;
        assert_eq!(pod.admitted(20, Stage::Request).await, expected, "{redis_down:?}");
        pod.limiter.settled().await;
        server.command(&["DEL", &b]).await;
        assert_eq!(taken_of(&server, &a, 4.0).await, of_a, "{redis_down:?}: denied, it charges nothing");
        let said =
            |name, decision| pod.counted(name, decision, if name == "a" { Source::Redis } else { Source::Fallback });
        assert_eq!(said("a", Decision::Allowed), expected as u64);
        assert_eq!(said("b", Decision::Allowed), expected as u64);
        assert_eq!(said("a", Decision::Denied), if redis_down == RedisDown::Allow { 16 } else { 0 });
        // What the pod let through of the other meanwhile is owed.
        let owing = if redis_down == RedisDown::Deny { 3 } else { 0 };
        assert_eq!(pod.admitted(20, Stage::Request).await, owing, "{redis_down:?}");
    }
}

/// A way to the server on which what names `key` is held up while `armed`, and all behind it.
async fn detour(server: &Server, at: PathBuf, key: String, armed: Arc<AtomicBool>) {
    let (listener, socket) = (UnixListener::bind(at).unwrap(), server.socket());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = UnixStream::connect(&socket).await.unwrap();
            let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
            let (key, armed) = (key.clone(), Arc::clone(&armed));
            tokio::spawn(async move {
                let mut piece = vec![0; 1 << 16];
                while let Ok(length @ 1..) = near_read.read(&mut piece).await {
                    let text = String::from_utf8_lossy(&piece[..length]).into_owned();
                    let named = text.find(&key).filter(|_| armed.swap(false, Ordering::Relaxed));
                    let command = named.map_or(length, |named| text[..named].rfind("\r\n$7\r\nEVALSHA").unwrap() - 2);
                    far_write.write_all(&piece[..command]).await.unwrap();
                    if named.is_some() {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        far_write.write_all(&piece[command..length]).await.unwrap();
                    }
                }
            });
        }
    });
}

/// The request cannot wait for what it took elsewhere to be given back: that is done behind its denial.
#[tokio::test]
async fn where_a_slot_is_late_what_the_others_took_is_given_back_behind_the_denial() {
    let server = Server::up().await;
    let at = server.socket().with_extension("detour");
    let servers = config::Servers::Standalone(config::Address::Unix(at.clone()));
    let redis = kv::Redis::new(server.sharded_with(&config::Redis { servers, ..server.config() }));
    let strict = |name| config::Limit { redis_down: RedisDown::Deny, ..exact(hourly(name, 9, Stage::Request)) };
    let pod = Pod::of(1, Some(redis), two(strict("a"), strict("b")));
    // They are sent by the slot.
    let mut keys = [key_of(&pod, 0), key_of(&pod, 1)];
    keys.sort_by_key(|key| kv::keys::slot(key.as_bytes()));
    let armed = Arc::new(AtomicBool::new(false));
    detour(&server, at, keys[1].clone(), Arc::clone(&armed)).await;
    assert_eq!(pod.admitted(3, Stage::Request).await, 3);

    armed.store(true, Ordering::Relaxed);
    let headers = HeaderMap::new();
    let mut budget = Budget::new(Duration::from_millis(100));
    let mut charged = Charged::default();
    let facts = facts(&headers);
    let verdict = pod.limiter.take(pod.redis.as_ref(), &pod.limits, Stage::Request, &facts, &mut charged, &mut budget);
    let Verdict::Deny(denial) = verdict.await else { panic!("its answer did not come") };
    assert_eq!(denial.source, Source::Fallback);
    assert!(budget.left().is_zero());
    assert!(!armed.load(Ordering::Relaxed), "it was held up");
    pod.limiter.settled().await;
    let taken = [taken_of(&server, &keys[0], 9.0).await, taken_of(&server, &keys[1], 9.0).await];
    assert_eq!(taken, [3.0, 4.0], "what was late was heard, and is not given back: nobody knows that it was taken");
}

#[tokio::test]
async fn what_pods_were_lent_in_several_slots_comes_back() {
    let server = Server::up().await;
    let pod = || sharded(&server, vec![hourly("a", 160, Stage::Request)]);
    let (one, other) = (pod(), pod());
    let ip = |last| IpAddr::from([192, 0, 2, last]);
    let admitted = async |pod: &Pod, last, times| {
        let mut admitted = 0;
        for _ in 0..times {
            let verdict = pod.take_as(ip(last), Stage::Request, &mut Charged::default()).await;
            admitted += usize::from(matches!(verdict, Verdict::Allow));
        }
        admitted
    };
    for last in 0..5 {
        assert_eq!(admitted(&one, last, 60).await, 60);
    }
    one.limiter.repay(one.redis.as_ref().unwrap(), true).await;
    assert_eq!(sent(&one, "limit_repay"), 5);
    for last in 0..5 {
        assert_eq!(admitted(&other, last, 120).await, 100, "nothing was lost, nor made");
    }
}

#[tokio::test]
async fn what_runs_is_renewed_in_all_slots() {
    let server = Server::up().await;
    let running =
        |name: &str| config::Limit { quotas: vec![Quota::Concurrency { max: 9 }], ..hourly(name, 1, Stage::Request) };
    let pod = sharded(&server, two(running("a"), running("b")));
    let mut charged = Charged::default();
    pod.take(Stage::Request, &mut charged).await;
    let ends = async || {
        let mut ends = Vec::new();
        for nth in [0, 1] {
            let Reply::Array(of) = server.command(&["ZRANGE", &key_of(&pod, nth), "0", "-1", "WITHSCORES"]).await
            else {
                panic!("a set")
            };
            ends.push(String::from_utf8(of[1].bytes().unwrap().to_vec()).unwrap().parse::<f64>().unwrap());
        }
        ends
    };
    let before = ends().await;
    pod.limiter.renew(pod.redis.as_ref().unwrap()).await;
    let after = ends().await;
    assert!(after.iter().zip(&before).all(|(after, before)| after > before), "{before:?} {after:?}");
    assert_eq!(sent(&pod, "limit_renew"), 2);
}

#[tokio::test]
async fn what_answers_cost_is_owed_or_given_back_in_all_slots() {
    let server = Server::up().await;
    let place = Place::Header("x-used".parse().unwrap());
    let cost = |reserve| Cost::Answer(AnswerCost { place: place.clone(), max: 100, default: 3, reserve });
    let limits = two(
        config::Limit { cost: cost(1), ..hourly("a", 50, Stage::Request) },
        config::Limit { cost: cost(9), ..hourly("b", 50, Stage::Request) },
    );
    let mut more = limits.clone();
    more.push(config::Limit { key: vec![IdentityPart::Route], cost: cost(1), ..hourly("c", 50, Stage::Request) });
    let pod = sharded(&server, more);
    let (a, b, c) = (key_of(&pod, 0), key_of(&pod, 1), key_of(&pod, 2));
    let answered = async |used: &str| {
        let mut charged = Charged::default();
        assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
        let mut fields = HeaderMap::new();
        fields.insert("x-used", used.parse().unwrap());
        let head = Head { status: StatusCode::OK, fields: &fields, prepared: b"" };
        assert!(charged.take_tabs().answered(&head).is_none());
        pod.limiter.settled().await;
    };
    answered("5").await;
    for key in [&a, &b, &c] {
        assert_eq!(taken_of(&server, key, 50.0).await, 5.0);
    }
    assert_eq!((sent(&pod, "limit_owe"), sent(&pod, "limit_refund")), (2, 1));
    // A slot that does not take it hears of it with the next question, and only that one.
    let mut charged = Charged::default();
    assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
    server.command(&["RENAME", &c, "away"]).await;
    server.command(&["LPUSH", &c, "no bucket"]).await;
    let mut fields = HeaderMap::new();
    fields.insert("x-used", "20".parse().unwrap());
    let head = Head { status: StatusCode::OK, fields: &fields, prepared: b"" };
    assert!(charged.take_tabs().answered(&head).is_none());
    pod.limiter.settled().await;
    server.command(&["RENAME", "away", &c]).await;
    let now = async || [taken_of(&server, &a, 50.0).await, taken_of(&server, &c, 50.0).await];
    assert_eq!(now().await, [25.0, 6.0]);
    assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
    assert_eq!(now().await, [26.0, 26.0]);
}
