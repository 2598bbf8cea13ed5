//! Identities for whom a limit is another, as the hash in Redis says.

use std::collections::BTreeMap;

use http::header::HeaderName;

use super::*;
use crate::config::Tiers;
use crate::limit::view::{Asked, View, Who};

const KEY: HeaderName = HeaderName::from_static("x-api-key");

/// By API key, two at once; five for who is gold.
fn tiered(quota: Quota, gold: Quota) -> config::Limit {
    let tiers = Tiers { hash: "api".to_owned(), quotas: BTreeMap::from([("gold".to_owned(), gold)]) };
    config::Limit {
        key: vec![IdentityPart::Header(KEY)],
        quotas: vec![quota],
        tiers: Some(tiers),
        ..hourly("api", 2, Stage::Request)
    }
}

fn bucket(amount: u32, burst: u32) -> Quota {
    Quota::TokenBucket { rate: Rate { amount, period_ms: 3_600_000 }, burst }
}

/// Pods that read what their limits say.
async fn pods<const N: usize>(server: &Server, limit: impl Fn() -> config::Limit) -> [Pod; N] {
    let pods = std::array::from_fn(|_| Pod::of(1, Some(kv::Redis::new(server.shared())), vec![limit()]));
    for pod in &pods {
        pod.limiter.follow(std::iter::once(&limit()));
    }
    read(&pods).await;
    pods
}

async fn read(pods: &[Pod]) {
    for pod in pods {
        pod.limiter.read_tiers(pod.redis.as_ref().unwrap()).await;
    }
}

impl Pod {
    /// Comes `times` times with this API key; how often it got through, and the quota that it was told.
    async fn by_key(&self, key: &str, times: usize) -> (usize, String) {
        let headers = HeaderMap::from_iter([(KEY, key.parse().unwrap())]);
        let (mut admitted, mut fields) = (0, HeaderMap::new());
        for _ in 0..times {
            let mut charged = Charged::default();
            fields = HeaderMap::new();
            match self.take_with([192, 0, 2, 1].into(), &headers, Stage::Request, &mut charged).await {
                Verdict::Allow => {
                    admitted += 1;
                    charged.append_fields(&mut fields);
                }
                Verdict::Deny(denial) => denial.append_fields(&mut fields),
            }
        }
        let policy = fields[fields::RATELIMIT_POLICY].to_str().unwrap();
        (admitted, policy.split(';').nth(1).unwrap().to_owned())
    }

    fn level(&self, series: &str) -> u64 {
        let text = self.redis.as_ref().unwrap().shared().metrics.render(0);
        let line = text
            .lines()
            .find(|line| line.strip_prefix("weir_").is_some_and(|line| line.starts_with(series)))
            .unwrap_or_else(|| panic!("{series}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn who_has_a_tier_has_its_limit_and_nobody_a_burst_for_changing() {
    let server = Server::up().await;
    let quotas = [
        (bucket(1, 2), bucket(1, 5)),
        (Quota::SlidingWindow(Rate::parse("2/d").unwrap()), Quota::SlidingWindow(Rate::parse("5/d").unwrap())),
        (Quota::FixedWindow(Rate::parse("2/d").unwrap()), Quota::FixedWindow(Rate::parse("5/d").unwrap())),
        (Quota::SlidingLog(Rate::parse("2/d").unwrap()), Quota::SlidingLog(Rate::parse("5/d").unwrap())),
    ];
    for (quota, gold) in quotas {
        server.command(&["FLUSHALL"]).await;
        server.command(&["HSET", "shop-prod:tiers:api", "alice", "gold", "zo\u{eb}%20b", "gold"]).await;
        let pods: [Pod; 2] = pods(&server, || tiered(quota, gold)).await;
        let [one, other] = &pods;
        assert_eq!(one.by_key("alice", 3).await, (3, "q=5".to_owned()), "{quota:?}");
        assert_eq!(other.by_key("alice", 4).await, (2, "q=5".to_owned()), "{quota:?}: what is left of it");
        assert_eq!(one.by_key("bob", 4).await, (2, "q=2".to_owned()), "{quota:?}");
        assert_eq!(one.by_key("zo\u{eb} b", 6).await, (5, "q=5".to_owned()), "{quota:?}");

        server.command(&["HSET", "shop-prod:tiers:api", "bob", "gold"]).await;
        server.command(&["HDEL", "shop-prod:tiers:api", "alice"]).await;
        assert_eq!(one.by_key("bob", 1).await, (0, "q=2".to_owned()), "{quota:?}: nobody has read it yet");
        read(&pods).await;
        for pod in &pods {
            assert_eq!(pod.by_key("alice", 1).await, (0, "q=2".to_owned()), "{quota:?}: no burst for a change");
        }
        // A bucket gains no tokens by it; a window has room for three more.
        let (room, told) = if matches!(quota, Quota::TokenBucket { .. }) { (0, "q=5") } else { (3, "q=5") };
        assert_eq!(one.by_key("bob", 6).await, (room, told.to_owned()), "{quota:?}");
    }
}

#[tokio::test]
async fn what_operators_see_and_reset_is_the_identitys_own_tier() {
    let server = Server::up().await;
    server.command(&["HSET", "shop-prod:tiers:api", "alice", "gold"]).await;
    let [pod]: [Pod; 1] = pods(&server, || tiered(bucket(1, 2), bucket(1, 5))).await;
    assert_eq!(pod.by_key("alice", 6).await.0, 5);
    let view = View::new(&pod.limiter, [("catalog", &pod.limits)].into_iter(), pod.redis.as_ref(), false);
    let parts = vec![("header:x-api-key".to_owned(), "alice".to_owned())];
    let asked = Asked { limit: pod.limits.stage(Stage::Request).bounds[0].limit.scope.clone(), who: Who::Parts(parts) };
    assert_eq!(view.state(&asked).await.unwrap()["rates"][0]["burst"], 5);
    view.reset(&asked).await.unwrap();
    assert_eq!(view.state(&asked).await.unwrap()["rates"][0]["redis"]["remaining"], 5);
    assert_eq!(pod.by_key("alice", 6).await.0, 5);
}

#[tokio::test]
async fn a_bucket_that_becomes_smaller_keeps_what_fits() {
    let server = Server::up().await;
    server.command(&["HSET", "shop-prod:tiers:api", "alice", "gold"]).await;
    let limit =
        || tiered(bucket(1, 2), Quota::TokenBucket { rate: Rate { amount: 7, period_ms: 86_400_000 }, burst: 640 });
    let pods: [Pod; 2] = pods(&server, limit).await;
    // Enough of it for a loan, which is out when the tier ends.
    assert_eq!(pods[0].by_key("alice", 10).await.0, 10);
    server.command(&["DEL", "shop-prod:tiers:api"]).await;
    read(&pods).await;
    let mut admitted = 0;
    for pod in &pods {
        admitted += pod.by_key("alice", 20).await.0;
    }
    assert!(admitted <= 2, "{admitted}: at most the smaller burst, whatever was lent");
}

#[tokio::test]
async fn what_cannot_be_read_changes_nothing() {
    let mut server = Server::up().await;
    server.command(&["HSET", "shop-prod:tiers:api", "alice", "gold", "bob", "platinum", "carol", ""]).await;
    let pods: [Pod; 1] = pods(&server, || tiered(bucket(1, 2), bucket(1, 5))).await;
    let [pod] = &pods;
    let reads = |result: &str| format!(r#"limit_tiers_reads_total{{result="{result}",tiers="api"}}"#);
    assert_eq!(pod.level("limit_tiers_identities{"), 1);
    assert_eq!(pod.level("limit_tiers_unknown{"), 2);
    assert_eq!(pod.by_key("bob", 4).await, (2, "q=2".to_owned()), "a tier that no limit has");
    assert_eq!(pod.by_key("alice", 3).await, (3, "q=5".to_owned()));
    // Too many, of several pages.
    let many: Vec<String> = (0..tiers::IDENTITIES_MAX).flat_map(|i| [format!("u{i}"), "gold".to_owned()]).collect();
    let many: Vec<&str> = ["HSET", "shop-prod:tiers:api"].into_iter().chain(many.iter().map(String::as_str)).collect();
    server.command(&many).await;
    server.command(&["HDEL", "shop-prod:tiers:api", "alice"]).await;
    read(&pods).await;
    assert_eq!((pod.level(&reads("ok")), pod.level(&reads("too_large"))), (1, 1));
    assert_eq!(pod.by_key("alice", 1).await, (1, "q=5".to_owned()), "what was read before holds");
    server.command(&["HDEL", "shop-prod:tiers:api", "bob", "carol"]).await;
    read(&pods).await;
    assert_eq!(pod.level(&reads("ok")), 2);
    assert_eq!(pod.level("limit_tiers_identities{"), tiers::IDENTITIES_MAX as u64, "every page");
    assert_eq!(pod.by_key("alice", 2).await, (1, "q=2".to_owned()), "what was left of it");
    assert_eq!(pod.by_key("u9999", 1).await, (1, "q=5".to_owned()));
    // Another type, and nobody there.
    server.command(&["DEL", "shop-prod:tiers:api"]).await;
    server.command(&["SET", "shop-prod:tiers:api", "x"]).await;
    read(&pods).await;
    server.kill();
    read(&pods).await;
    assert_eq!(pod.level(&reads("unavailable")), 2);
    assert_eq!(pod.by_key("u9998", 1).await.1, "q=5", "while Redis is away as well");
}
