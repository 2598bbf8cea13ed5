use std::net::IpAddr;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, Method, StatusCode};
use prometheus::Registry;

use super::bounds::STAGES;
use super::*;
use crate::config;
use crate::config::{AfterLoss, Cost, IdentityPart, Missing, Quota, Told};
use crate::kv::Reply;
use crate::kv::tests::Server;
use crate::message;
use crate::metrics::{Decision, Metrics};
use crate::syntax::rate::Rate;

/// A process, and a request that comes to it.
pub(super) struct Pod {
    pub(super) clock: Clock,
    pub(super) limiter: Limiter,
    metrics: Arc<Metrics>,
    pub(super) redis: Option<kv::Redis>,
    pub(super) limits: RouteLimits,
}

pub(super) fn limit(name: &str, rate: (u32, u32), burst: u32, on: Stage) -> config::Limit {
    config::Limit {
        name: name.to_owned(),
        scope: name.to_owned(),
        key: vec![IdentityPart::Ip],
        quotas: vec![Quota::TokenBucket { rate: Rate { amount: rate.0, period_ms: rate.1 }, burst }],
        cost: Cost::Fixed(1),
        charge: None,
        on,
        dry_run: false,
        redis_down: RedisDown::Local,
        loans: true,
        after_loss: AfterLoss::Full,
        missing: Missing::Share,
        allow: Vec::new(),
        deny: Vec::new(),
        headers: Told::Draft,
        status: StatusCode::TOO_MANY_REQUESTS,
        notice: None,
        delay: None,
        tiers: None,
    }
}

/// `burst` requests, and one more an hour.
pub(super) fn hourly(name: &str, burst: u32, on: Stage) -> config::Limit {
    limit(name, (1, 3_600_000), burst, on)
}

impl Pod {
    fn new(limits: Vec<config::Limit>) -> Self {
        Self::of(2, None, limits)
    }

    pub(super) fn of(replicas: u32, redis: Option<kv::Redis>, limits: Vec<config::Limit>) -> Self {
        let (clock, metrics) = (Clock::fixed(1_700_000_000_000), Metrics::new(Registry::new()));
        let limiter = Limiter::new(clock.clone(), Settings { secret: Secret::new("secret"), replicas });
        let limits: Vec<_> = limits.into_iter().map(Arc::new).collect();
        let limits = RouteLimits::new(&metrics, "catalog", &limits);
        Self { clock, limiter, metrics, redis, limits }
    }

    async fn take(&self, stage: Stage, charged: &mut Charged) -> Verdict {
        self.take_as([192, 0, 2, 1].into(), stage, charged).await
    }

    pub(super) async fn take_as(&self, ip: IpAddr, stage: Stage, charged: &mut Charged) -> Verdict {
        self.take_with(ip, &HeaderMap::new(), stage, charged).await
    }

    async fn take_with(&self, ip: IpAddr, headers: &HeaderMap, stage: Stage, charged: &mut Charged) -> Verdict {
        let facts = Facts { ip, headers, query: None, route: "catalog", host: "shop.example", method: &Method::GET };
        let mut budget = Budget::new(Duration::from_secs(5));
        self.limiter.take(self.redis.as_ref(), &self.limits, stage, &facts, charged, &mut budget).await
    }

    /// Comes `times` times; how often it got past `stage` (and all before it).
    async fn admitted(&self, times: usize, stage: Stage) -> usize {
        let mut admitted = 0;
        for _ in 0..times {
            admitted += usize::from(self.denied(stage).await.is_none());
        }
        admitted
    }

    async fn denied(&self, last: Stage) -> Option<Denial> {
        let mut charged = Charged::default();
        for stage in STAGES.into_iter().filter(|stage| *stage <= last) {
            if let Verdict::Deny(denial) = self.take(stage, &mut charged).await {
                return Some(*denial);
            }
        }
        None
    }

    /// Decisions of this source; of Redis, those included that this pod made by what Redis had lent or told it.
    fn counted(&self, limit: &str, decision: Decision, source: Source) -> u64 {
        let unasked = if source == Source::Redis { self.counted(limit, decision, Source::Loan) } else { 0 };
        let (decision, source) = (decision.as_str(), source.as_str());
        let labels = format!("{{decision=\"{decision}\",limit=\"{limit}\",route=\"catalog\",source=\"{source}\"}} ");
        let text = self.metrics.render(0);
        let line = text.lines().find(|line| line.starts_with("weir_limit_decisions_total") && line.contains(&labels));
        // A series appears with its first event.
        let count: u64 = line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap());
        count + unasked
    }
}

/// Every other limit by another identity, so that those of one stage lie in several slots.
pub(super) fn apart(mut limits: Vec<config::Limit>) -> Vec<config::Limit> {
    for limit in limits.iter_mut().skip(1).step_by(2).filter(|limit| limit.key == [IdentityPart::Ip]) {
        limit.key.push(IdentityPart::Host);
    }
    limits
}

/// The same pod in memory, on a Redis of its own, and on one that is a Cluster.
async fn both(replicas: u32, limits: impl Fn() -> Vec<config::Limit>, test: impl AsyncFn(&Pod, Source)) {
    test(&Pod::of(replicas, None, limits()), Source::Local).await;
    let server = Server::up().await;
    test(&Pod::of(replicas, Some(kv::Redis::new(server.shared())), limits()), Source::Redis).await;
    let server = Server::up().await;
    test(&Pod::of(replicas, Some(kv::Redis::new(server.sharded())), apart(limits())), Source::Redis).await;
}

#[tokio::test]
async fn a_denied_request_charges_nothing() {
    let limits = || vec![hourly("a", 5, Stage::Request), hourly("b", 9, Stage::Miss), hourly("c", 2, Stage::Origin)];
    both(1, limits, async |pod, source| {
        assert_eq!(pod.admitted(20, Stage::Origin).await, 2);
        assert_eq!(pod.counted("c", Decision::Denied, source), 18);
        // Hits and followers have all that is left.
        assert_eq!(pod.admitted(20, Stage::Request).await, 3);
        assert_eq!(pod.counted("a", Decision::Denied, source), 17);
    })
    .await;
}

#[tokio::test]
async fn what_is_kept_stays_charged() {
    let limits = || vec![hourly("a", 5, Stage::Request), hourly("c", 1, Stage::Origin)];
    both(1, limits, async |pod, _| {
        for turn in 0..3 {
            let mut charged = Charged::default();
            assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
            charged.keep();
            assert_eq!(matches!(pod.take(Stage::Origin, &mut charged).await, Verdict::Deny(_)), turn > 0);
        }
        assert_eq!(pod.admitted(9, Stage::Request).await, 2);
    })
    .await;
}

#[tokio::test]
async fn the_limits_of_a_stage_are_taken_together_and_the_longest_wait_is_told() {
    let limits = || vec![hourly("a", 4, Stage::Request), limit("b", (1, 60_000), 2, Stage::Request)];
    both(1, limits, async |pod, source| {
        assert_eq!(pod.admitted(7, Stage::Request).await, 2);
        let denial = pod.denied(Stage::Request).await.unwrap();
        assert_eq!(denial.limit.name, "b");
        assert_eq!(denial.source, if source == Source::Redis { Source::Loan } else { source }, "it was denied before");
        assert!((59_000..=60_000).contains(&denial.retry_after.unwrap().as_millis()), "{:?}", denial.retry_after);
        assert_eq!(pod.counted("a", Decision::Allowed, source), 2);
        assert_eq!(pod.counted("a", Decision::Denied, source), 0);
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_counts_and_denies_nobody() {
    let limits = || {
        let dry = config::Limit { dry_run: true, ..hourly("dry", 1, Stage::Request) };
        vec![dry, config::Limit { loans: false, ..hourly("real", 3, Stage::Request) }]
    };
    both(1, limits, async |pod, source| {
        assert_eq!(pod.admitted(5, Stage::Request).await, 3);
        assert_eq!(pod.counted("dry", Decision::Allowed, source), 1);
        assert_eq!(pod.counted("dry", Decision::DryRun, source), 4);
        assert_eq!(pod.counted("real", Decision::Denied, source), 2);
    })
    .await;
}

#[tokio::test]
async fn the_wait_that_is_told_is_true() {
    let pod = Pod::new(vec![limit("a", (3, 1000), 2, Stage::Request)]);
    assert_eq!(pod.admitted(2, Stage::Request).await, 2);
    let denial = pod.denied(Stage::Request).await.unwrap();
    assert_eq!(denial.retry_after, Some(Duration::from_millis(334)));
    pod.clock.advance(denial.retry_after.unwrap() - Duration::from_millis(1));
    assert!(pod.denied(Stage::Request).await.is_some());
    pod.clock.advance(Duration::from_millis(1));
    assert!(pod.denied(Stage::Request).await.is_none());
}

/// In place where it is the first and there is room, else among other fields; the same either way.
#[tokio::test]
async fn an_answer_is_told_of_limits_wherever_there_is_room() {
    for (name, has_fields, is_in_place) in
        [("a".to_owned(), false, true), ("a".to_owned(), true, false), ("n".repeat(200), false, false)]
    {
        let pod = Pod::new(vec![limit(&name, (50, 1000), 100, Stage::Request)]);
        let mut charged = Charged::default();
        pod.take(Stage::Request, &mut charged).await;
        let mut answer = message::Answer::new(StatusCode::OK);
        answer.lines.push(b"age: 1\r\n");
        if has_fields {
            answer.fields.insert("ratelimit", "theirs".parse().unwrap());
        }
        charged.tell(&mut answer);
        let said = [format!("\"{name}\";q=100;w=2"), format!("\"{name}\";r=99;t=1")];
        let lines = if is_in_place {
            format!("age: 1\r\nratelimit-policy: {}\r\nratelimit: {}\r\n", said[0], said[1])
        } else {
            "age: 1\r\n".to_owned()
        };
        assert_eq!(String::from_utf8_lossy(answer.lines.as_bytes()), lines);
        let policy: Vec<_> = answer.fields.get_all("ratelimit-policy").iter().collect();
        let own: Vec<_> = answer.fields.get_all("ratelimit").iter().filter(|value| *value != "theirs").collect();
        let (none, one) = (Vec::<&str>::new(), |nth: usize| vec![said[nth].as_str()]);
        assert_eq!(policy, if is_in_place { none.clone() } else { one(0) });
        assert_eq!(own, if is_in_place { none } else { one(1) });
    }
}

#[tokio::test]
async fn fields_tell_of_the_tightest_limit_and_of_all_that_were_taken() {
    let pod = Pod::new(vec![
        limit("wide", (50, 1000), 100, Stage::Request),
        limit("tight", (1, 1000), 3, Stage::Request),
        config::Limit { dry_run: true, ..hourly("dry", 1, Stage::Request) },
        hourly("later", 1, Stage::Origin),
    ]);
    let (mut charged, mut fields) = (Charged::default(), HeaderMap::new());
    charged.append_fields(&mut fields);
    assert!(fields.is_empty(), "no limit, no fields");
    pod.take(Stage::Request, &mut charged).await;
    charged.append_fields(&mut fields);
    assert_eq!(fields["ratelimit-policy"], r#""wide";q=100;w=2, "tight";q=3;w=3"#);
    assert_eq!(fields["ratelimit"], r#""tight";r=2;t=1"#);

    pod.take(Stage::Origin, &mut charged).await;
    let Verdict::Deny(denial) = pod.take(Stage::Origin, &mut charged).await else { panic!("denied") };
    let mut fields = HeaderMap::new();
    denial.append_fields(&mut fields);
    assert_eq!(fields["ratelimit-policy"], r#""wide";q=100;w=2, "tight";q=3;w=3, "later";q=1;w=3600"#);
    assert_eq!(fields["ratelimit"], r#""later";r=0;t=3600"#);
    assert_eq!(fields[RETRY_AFTER], "3600");
    assert_eq!(
        denial.explain(),
        "The limit \"later\" is used up: 1 request an hour, bursts of 1; try again in 3600 s."
    );
}

#[tokio::test]
async fn a_limit_whose_requests_are_not_all_one_speaks_of_units() {
    let header = Cost::Header { name: "x-cost".parse().unwrap(), max: 9, default: 1 };
    let (one, other) = ("1 unit an hour, bursts of 2;", "1 request an hour, bursts of 1;");
    for (cost, burst, said) in [(Cost::Fixed(2), 2, one), (header, 2, one), (Cost::Fixed(1), 1, other)] {
        let pod = Pod::new(vec![config::Limit { cost, ..hourly("a", burst, Stage::Request) }]);
        pod.admitted(2, Stage::Request).await;
        let denial = pod.denied(Stage::Request).await.expect("it is used up");
        assert!(denial.explain().contains(said), "{}", denial.explain());
    }
}

#[tokio::test]
async fn what_pods_are_lent_is_part_of_what_all_may_have() {
    let server = Server::up().await;
    let pod = || Pod::of(2, Some(kv::Redis::new(server.shared())), vec![hourly("a", 160, Stage::Request)]);
    let (one, other) = (pod(), pod());
    assert_eq!((one.admitted(60, Stage::Request).await, other.admitted(60, Stage::Request).await), (60, 60));
    for pod in [&one, &other] {
        assert!(pod.counted("a", Decision::Allowed, Source::Loan) > 30, "most were decided here");
        pod.limiter.repay(pod.redis.as_ref().unwrap(), true).await;
    }
    assert_eq!(one.admitted(60, Stage::Request).await, 40, "nothing was lost, nor made");
}

#[tokio::test]
async fn what_was_paid_from_a_loan_comes_back_if_a_later_stage_denies() {
    let server = Server::up().await;
    let limits = vec![hourly("a", 160, Stage::Request), hourly("c", 5, Stage::Origin)];
    let pod = Pod::of(1, Some(kv::Redis::new(server.shared())), limits);
    assert_eq!(pod.admitted(60, Stage::Origin).await, 5);
    assert!(pod.counted("a", Decision::Allowed, Source::Loan) > 30);
    pod.limiter.repay(pod.redis.as_ref().unwrap(), true).await;
    let left = pod.admitted(200, Stage::Request).await;
    // While a charge is out, what a full bucket gains is spilled; and a loan that was asked for meanwhile keeps its own.
    assert!((145..=155).contains(&left), "{left} of 155");
}

#[tokio::test]
async fn what_was_admitted_while_redis_was_away_is_owed() {
    let mut server = Server::up().await;
    let shared = server.shared();
    let probe = tokio::spawn(kv::bus::probe(Arc::clone(&shared)));
    let pod = Pod::of(1, Some(kv::Redis::new(shared)), vec![hourly("a", 40, Stage::Request)]);
    assert_eq!(pod.admitted(1, Stage::Request).await, 1);
    server.freeze(true);
    let away = pod.admitted(20, Stage::Request).await;
    assert_eq!(pod.counted("a", Decision::Allowed, Source::Fallback), away as u64);
    server.freeze(false);
    let mut back = 0;
    crate::kv::tests::eventually("Redis is asked again", async || {
        back += pod.admitted(1, Stage::Request).await;
        let asked = |decision| pod.counted("a", decision, Source::Redis);
        asked(Decision::Allowed) > 1 || asked(Decision::Denied) > 0
    })
    .await;
    back += pod.admitted(100, Stage::Request).await;
    assert!(away > 0, "nobody was let through meanwhile");
    assert!(1 + away + back <= 40, "more than the limit admits: {away} and {back} of 40");
    probe.abort();
    server.kill();
}

#[tokio::test]
async fn two_pods_on_one_redis_are_one_limiter_and_redis_learns_no_address() {
    let server = Server::up().await;
    let pod = || Pod::of(2, Some(kv::Redis::new(server.shared())), vec![hourly("a", 10, Stage::Request)]);
    let (one, other) = (pod(), pod());
    assert_eq!(one.admitted(7, Stage::Request).await + other.admitted(7, Stage::Request).await, 10);
    let Reply::Array(keys) = server.command(&["KEYS", "*"]).await else { panic!("keys are listed") };
    assert_eq!(keys.len(), 1);
    assert!(!format!("{keys:?}").contains("192"), "{keys:?}");
}

#[tokio::test]
async fn without_redis_a_pod_goes_on_with_its_part_of_what_was_left_to_it() {
    let mut server = Server::up().await;
    let redis = kv::Redis::new(server.shared());
    let pod = Pod::of(2, Some(redis), vec![hourly("a", 10, Stage::Request), hourly("c", 1, Stage::Origin)]);
    assert_eq!(pod.admitted(3, Stage::Origin).await, 1);
    assert_eq!(pod.admitted(2, Stage::Request).await, 2);
    server.kill();
    assert_eq!(pod.admitted(20, Stage::Request).await, 5 - 3, "half the burst, less what Redis had let through here");
    assert_eq!(pod.counted("a", Decision::Denied, Source::Fallback), 18);
}

#[tokio::test]
async fn redis_down_may_let_all_or_nothing_through() {
    let server = Server::down();
    let with = |redis_down| {
        let limits = vec![
            config::Limit { redis_down, ..hourly("a", 1, Stage::Request) },
            config::Limit { redis_down: RedisDown::Local, ..hourly("local", 4, Stage::Request) },
        ];
        Pod::of(2, Some(kv::Redis::new(server.shared())), limits)
    };
    let open = with(RedisDown::Allow);
    assert_eq!(open.admitted(9, Stage::Request).await, 2, "the local one still holds");
    assert_eq!(open.counted("a", Decision::Allowed, Source::Fallback), 2);

    let shut = with(RedisDown::Deny);
    assert_eq!(shut.admitted(9, Stage::Request).await, 0);
    assert!(shut.limiter.shelf.local.is_empty(), "a denied request charges nothing");
    let denial = shut.denied(Stage::Request).await.unwrap();
    let mut fields = HeaderMap::new();
    denial.append_fields(&mut fields);
    assert_eq!(fields[RETRY_AFTER], "1");
    assert!(!fields.contains_key("ratelimit"));
    assert!(denial.explain().contains("cannot be checked"));
}

#[tokio::test]
async fn each_identity_has_its_own_bucket_and_a_limit_named_twice_counts_once() {
    let pod = Pod::new(vec![hourly("a", 2, Stage::Request), hourly("a", 2, Stage::Request)]);
    assert!(pod.limits.is_empty(Stage::Miss) && !pod.limits.is_empty(Stage::Request));
    assert_eq!(pod.admitted(5, Stage::Request).await, 2);
    let mut charged = Charged::default();
    assert!(matches!(pod.take_as([192, 0, 2, 2].into(), Stage::Request, &mut charged).await, Verdict::Allow));
    assert!(charged.charges.is_empty(), "no later stage can deny: nothing to remember");
}

#[path = "quota_tests.rs"]
mod quotas;

#[path = "after_tests.rs"]
mod afterwards;

#[tokio::test]
async fn after_a_loss_buckets_that_mind_it_hold_what_they_gained_since() {
    let server = Server::up().await;
    let wary = || config::Limit { after_loss: AfterLoss::Empty, ..hourly("wary", 5, Stage::Request) };
    let redis = || Some(kv::Redis::new(server.shared()));
    let pod = Pod::of(1, redis(), vec![wary(), hourly("plain", 9, Stage::Request)]);
    let other = Pod::of(1, redis(), vec![hourly("plain", 9, Stage::Request)]);
    assert_eq!(pod.admitted(1, Stage::Request).await, 1, "nothing was lost yet");
    server.command(&["FLUSHALL"]).await;
    let Reply::Array(time) = server.command(&["TIME"]).await else { panic!("TIME is a list") };
    let now_ms = time[0].number().unwrap() * 1000;
    for pod in [&pod, &other] {
        pod.redis.as_ref().unwrap().shared().note_loss(now_ms - 2 * 3_600_000);
    }
    let ip = |last| [192, 0, 2, last].into();
    let mut said = Vec::new();
    for _ in 0..4 {
        let verdict = pod.take_as(ip(9), Stage::Request, &mut Charged::default()).await;
        said.push(matches!(verdict, Verdict::Allow));
    }
    assert_eq!(said, [true, true, false, false], "two hours' worth");
    let mut admitted = 0;
    for _ in 0..12 {
        let verdict = other.take_as(ip(8), Stage::Request, &mut Charged::default()).await;
        admitted += usize::from(matches!(verdict, Verdict::Allow));
    }
    assert_eq!(admitted, 9, "one that does not mind it is full");
}

#[path = "screen_tests.rs"]
mod screen_tests;

#[path = "delay_tests.rs"]
mod delays;

#[path = "tiers_tests.rs"]
mod tiered;

#[path = "split_tests.rs"]
mod split;
