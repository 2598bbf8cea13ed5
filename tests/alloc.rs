//! What is decided on a hit is decided without allocating. A binary of its own, since its allocator counts for everybody
//! in it.

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prometheus::Registry;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use weir::cache::conditional::{self, Reply};
use weir::cache::directives::RequestDirectives;
use weir::cache::entry::{Entry, Origin, Stored};
use weir::cache::key::{self, KeyBuilder, Target};
use weir::cache::policy::{self, Received, RequestFacts};
use weir::cache::{Ask, Cache, Look, ranges};
use weir::clock::{Clock, WallMs};
use weir::config::{CacheRule, Config, Limit, Overrides, Secret, Stage};
use weir::invalidation::{Invalidation, Subject};
use weir::kv::Budget;
use weir::limit::{Charged, Facts, Limiter, RouteLimits, Settings, Verdict};
use weir::message::Answer;
use weir::metrics::Metrics;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const NOW: WallMs = 1_800_000_000_000;

const CONFIG: &str = r#"
[upstream]
url = "http://127.0.0.1:1"
[[route]]
name = "item"
path = "/catalog/{id}"
cache.enabled = true
cache.key_headers = ["accept-language", "accept-encoding", "x-currency"]
cache.client_directives = "honor"
cache.tags = ["product:{id}"]
limits = [
    { name = "a", key = ["ip"], rate = "100/s" , burst = 100 },
    { name = "b", key = ["header:accept-language"], rate = "1000/m", algorithm = "fixed_window" },
    { name = "c", key = ["route"], rate = "1000/s", burst = 1000 },
]
"#;

fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// One route's cache with one answer in it.
struct Shop {
    cache: Arc<Cache>,
    clock: Clock,
    keys: KeyBuilder,
    rule: CacheRule,
    limits: Vec<Arc<Limit>>,
}

impl Shop {
    fn new() -> Self {
        let Ok(loaded) = Config::from_toml("test.toml", CONFIG, &Overrides::default()) else { panic!("it is sound") };
        let rule = loaded.config.routes[0].cache.clone().expect("the route caches");
        let clock = Clock::fixed(NOW);
        let metrics = Metrics::new(Registry::new());
        let invalidation = Invalidation::local(clock.clone(), Arc::clone(&metrics));
        let cache = Cache::new(&loaded.config.cache, invalidation, clock.clone(), &metrics);
        let keys = KeyBuilder::new("v1", "item", &rule, b"secret");
        Self { cache, clock, keys, rule, limits: loaded.config.routes[0].limits.clone() }
    }

    fn key(&self, key: &mut Vec<u8>, request: &HeaderMap) {
        let target = Target { scheme: "http", host: "shop.example", path: "/catalog/4711", query: Some("page=2") };
        self.keys.primary(key, &target, request);
    }

    fn store(&self, request: &HeaderMap, answer: &HeaderMap) {
        let received = Received { status: StatusCode::OK, headers: answer, asked_at: NOW, received_at: NOW };
        let facts = RequestFacts::of(&self.rule, &Method::GET, request);
        let plan = policy::storable(&self.rule, facts, &received, 0.5).expect("it may be stored");
        let mut primary = Vec::new();
        self.key(&mut primary, request);
        let mut key = primary.clone();
        if !plan.vary.is_empty() {
            key.clear();
            self.keys.variant(&mut key, &primary, &plan.vary, request);
        }
        let position = self.cache.invalidation().position(&subject(&[]));
        let origin = Origin { key: Bytes::copy_from_slice(&key), position, fence: 1, fill_cost_ms: 5 };
        let entry = Entry::new(origin, StatusCode::OK, answer, plan, Bytes::from_static(b"body"));
        self.cache.keep(&primary, Stored::Entry(Arc::new(entry)), self.clock.steady());
    }

    fn limits(&self, count: usize) -> (Limiter, RouteLimits) {
        let settings = Settings { secret: Secret::new("secret"), replicas: 1 };
        let limits = RouteLimits::new(&Metrics::new(Registry::new()), "item", &self.limits[..count]);
        (Limiter::new(self.clock.clone(), settings), limits)
    }

    /// What is decided between a request's parsed head and its answer's: as `proxy` does it.
    fn decide(&self, request: &HeaderMap, tags: Option<&[String]>) -> Decision {
        let directives = RequestDirectives::of(request);
        if policy::request_may_use_cache(&Method::GET, request, false, Some(&directives)).is_err() {
            return Decision::Past;
        }
        key::with_buffer(|key| {
            self.key(key, request);
            self.answered(key, request, directives, tags)
        })
    }

    fn answered(
        &self,
        key: &[u8],
        request: &HeaderMap,
        directives: RequestDirectives,
        tags: Option<&[String]>,
    ) -> Decision {
        let (now, steady) = self.cache.times();
        let ask = Ask {
            keys: &self.keys,
            key,
            search: None,
            headers: request,
            rule: &self.rule,
            subject: subject(tags.unwrap_or_default()),
            credentials: RequestFacts::of(&self.rule, &Method::GET, request).credentials,
            directives: Some(directives),
            now,
            steady,
        };
        let found = match tags {
            None => self.cache.glance(&ask),
            Some(_) => match self.cache.look(&ask).0 {
                Look::Fresh(found) | Look::Stale(found) => Some(found),
                Look::Uncacheable | Look::Nothing(_) => None,
            },
        };
        let Some(found) = found else { return Decision::Nothing };
        let entry = found.slot.stored.entry().expect("it is an answer");
        match conditional::evaluate(request, entry) {
            Reply::NotModified => Decision::NotModified,
            Reply::Full if ranges::select(request, entry) == ranges::Selection::Whole => Decision::Whole,
            Reply::Full => Decision::Part,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Past,
    Nothing,
    NotModified,
    Whole,
    Part,
}

/// The answer to a request that all limits of this process admit, with what it says of them.
fn taken(limiter: &Limiter, limits: &RouteLimits, request: &HeaderMap) -> Answer {
    let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    let (route, host) = ("item", "shop.example");
    let facts = Facts { ip, headers: request, query: None, route, host, method: &Method::GET };
    let (mut charged, mut budget) = (Charged::default(), Budget::new(Duration::ZERO));
    {
        let take = pin!(limiter.take(None, limits, Stage::Request, &facts, &mut charged, &mut budget));
        let verdict = take.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(verdict, Poll::Ready(Verdict::Allow)), "{verdict:?}");
    }
    let mut answer = Answer::new(StatusCode::OK);
    charged.tell(&mut answer);
    answer
}

fn subject(tags: &[String]) -> Subject<'_> {
    Subject {
        host: "shop.example",
        path: "/catalog/4711",
        query: Some("page=2"),
        also: &[],
        route: "item",
        tags,
        answer_tags: &[],
    }
}

/// The only test: whatever another did beside it would be counted too.
#[test]
fn a_hit_is_decided_without_allocating() {
    let shop = Shop::new();
    let tags = ["product:4711".to_owned()];
    let browser = [
        ("host", "shop.example"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "application/json"),
        ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("x-currency", "EUR"),
    ];
    let plain = [("cache-control", "max-age=60, stale-if-error=60"), ("etag", "\"4711\""), ("cache-tag", "a, b")];
    let varying = [plain[0], plain[1], plain[2], ("vary", "accept, user-agent")];
    for answer in [&plain[..], &varying] {
        let shop_has = |extra: &[(&'static str, &'static str)]| fields(&[&browser[..], extra].concat());
        shop.store(&shop_has(&[]), &fields(answer));
        for (extra, expected) in [
            (&[][..], Decision::Whole),
            (&[("if-none-match", "\"a\", W/\"4711\"")], Decision::NotModified),
            (&[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")], Decision::Whole),
            (&[("cache-control", "max-age=5, min-fresh=1")], Decision::Whole),
            (&[("cache-control", "no-cache")], Decision::Nothing),
            (&[("cookie", "session=1")], Decision::Whole),
            (&[("range", "items=0-1")], Decision::Whole),
        ] {
            let request = shop_has(extra);
            // The first look finds out whether it is valid, and leaves the thread its buffers.
            shop.decide(&request, Some(&tags));
            for known in [None, Some(&tags[..])] {
                let region = Region::new(ALLOCATOR);
                let decision = shop.decide(&request, known);
                let change = region.change();
                assert_eq!(decision, expected, "{extra:?}");
                assert_eq!(
                    (change.allocations, change.reallocations),
                    (0, 0),
                    "{extra:?} {known:?} {answer:?}: {change:?}"
                );
            }
        }
        let part = shop_has(&[("range", "bytes=0-1")]);
        let region = Region::new(ALLOCATOR);
        assert_eq!(shop.decide(&part, None), Decision::Part);
        assert_eq!(region.change().allocations, 1, "a part is a list of one");
    }
    let request = fields(&browser);
    for count in 1..=3 {
        let (limiter, limits) = shop.limits(count);
        // The first makes the states.
        taken(&limiter, &limits, &request);
        let region = Region::new(ALLOCATOR);
        let answer = taken(&limiter, &limits, &request);
        let change = region.change();
        let told = String::from_utf8_lossy(answer.lines.as_bytes()).into_owned();
        assert!(told.ends_with("ratelimit: \"a\";r=98;t=1\r\n"), "{told}");
        assert_eq!((change.allocations, change.reallocations), (0, 0), "{count} limits: {change:?}");
    }
    // What is left: a key longer than any that is kept.
    let long: &'static str = "x".repeat(5000).leak();
    let request = fields(&[("x-currency", long)]);
    let region = Region::new(ALLOCATOR);
    assert_eq!(shop.decide(&request, None), Decision::Nothing);
    let change = region.change();
    assert!(change.allocations + change.reallocations > 0, "{change:?}");
}
