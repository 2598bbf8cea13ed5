//! What a request's own work costs on its hottest paths: each a part of a hit, which as a whole is to stay below one
//! microsecond, or of passing a body on.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Bencher, BenchmarkId, Criterion, Throughput};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prometheus::Registry;
use weir::cache::conditional::{self, Reply};
use weir::cache::entry::{Entry, Origin, Stored, codec};
use weir::cache::key::{self, KeyBuilder, Target};
use weir::cache::policy::{self, Received, RequestFacts};
use weir::cache::{Ask, Cache, Found, Look};
use weir::clock::{Clock, WallMs};
use weir::config::{CacheRule, Config, Overrides, Route, Secret, Stage};
use weir::invalidation::{Invalidation, Subject};
use weir::kv::Budget;
use weir::limit::{Charged, Facts, Limiter, RouteLimits, Settings, Verdict};
use weir::log::Access;
use weir::message::Answer;
use weir::message::chunked::{ChunkDecoder, Decoded};
use weir::metrics::{Metrics, Outcome, Tier};
use weir::proxy::route::Router;
use weir::syntax::path;

/// Any moment will do.
const NOW: WallMs = 1_800_000_000_000;
/// Requests on as many paths as make a cold processor cache likely, and a hot one for their entries' beginning.
const KEYS: usize = 1024;

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[upstream]
url = "http://127.0.0.1:1"
[cache]
memory = "256MiB"

[[limit]]
name = "per-client"
key = ["ip"]
rate = "1000000/s"
burst = 1000000

[[limit]]
name = "per-network"
key = ["ip", "host"]
rate = "1000000/s"
burst = 1000000

[[limit]]
name = "all"
key = ["route"]
rate = "1000000/s"
burst = 1000000

[[route]]
name = "item"
path = "/catalog/{id}"
cache.ttl = "60s"
cache.key_headers = ["accept-language"]
cache.tags = ["product:{id}"]
limits = ["per-client", "per-network", "all"]
"#;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    paths(&mut criterion);
    routes(&mut criterion);
    keys(&mut criterion);
    looks(&mut criterion);
    decisions(&mut criterion);
    entries(&mut criterion);
    limits(&mut criterion);
    chunks(&mut criterion);
    access_lines(&mut criterion);
    criterion.final_summary();
}

/// A path in its one form, which most are, and one that has to be rewritten.
fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, text) in
        [("normal", "/catalog/books/4711/reviews"), ("rewritten", "/catalog/./b%6foks/../4711%2dreviews")]
    {
        group.bench_function(name, |b| b.iter(|| path::normalise(black_box(text))));
    }
    group.finish();
}

/// A hundred routes are to cost what one does; the route that is found is the last of the file.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [1_usize, 10, 100, 300] {
        let tables: String =
            (0..count).map(|n| format!("[[route]]\nname = \"r{n}\"\npath = \"/service-{n}/items/{{id}}\"\n")).collect();
        let config = configuration(&format!("[upstream]\nurl = \"http://127.0.0.1:1\"\n{tables}"));
        let router = Router::new(&config.routes);
        let (path, fields) = (format!("/service-{}/items/4711", count - 1), request_fields());
        assert_eq!(router.find("shop.example", &Method::GET, &path, &fields), Some(count - 1));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| router.find(black_box("shop.example"), &Method::GET, black_box(&path), &fields));
        });
    }
    group.finish();
}

fn keys(criterion: &mut Criterion) {
    let shop = Shop::new();
    let fields = request_fields();
    let mut out = Vec::with_capacity(512);
    criterion.bench_function("key", |b| {
        b.iter(|| {
            out.clear();
            shop.keys.primary(&mut out, &target(black_box("/catalog/4711")), &fields);
            black_box(&out);
        });
    });
}

/// Looking a stored answer up in memory and judging it: freshness, invalidations, trust.
fn looks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look");
    let shop = Shop::new();
    let paths: Vec<String> = (0..KEYS).map(|n| format!("/catalog/{n}")).collect();
    let keys: Vec<Vec<u8>> = paths.iter().map(|path| shop.key(path)).collect();
    for key in &keys {
        shop.cache.keep(key, Stored::Entry(Arc::new(shop.entry(key, 1024))), shop.clock.steady());
    }
    let fields = request_fields();
    let absent = shop.key("/catalog/absent");
    assert!(matches!(shop.cache.look(&shop.ask(&paths[0], &keys[0], &fields)).0, Look::Fresh(_)), "it was stored");
    let mut at = 0;
    group.bench_function("hit", |b| {
        b.iter(|| {
            at = (at + 1) % KEYS;
            black_box(shop.cache.look(&shop.ask(&paths[at], &keys[at], &fields)))
        });
    });
    group.bench_function("miss", |b| {
        b.iter(|| black_box(shop.cache.look(&shop.ask("/catalog/absent", black_box(&absent), &fields))));
    });
    group.finish();
}

/// From a request's parsed head to what it is answered with from memory, and from an answer's head to what is stored.
fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    let shop = Shop::new();
    let paths: Vec<String> = (0..KEYS).map(|n| format!("/catalog/{n}")).collect();
    for path in &paths {
        let key = shop.key(path);
        shop.cache.keep(&key, Stored::Entry(Arc::new(shop.entry(&key, 1024))), shop.clock.steady());
        assert!(matches!(shop.cache.look(&shop.ask(path, &key, &request_fields())).0, Look::Fresh(_)));
    }
    let fields = request_fields();
    let mut at = 0;
    group.bench_function("hit", |b| {
        b.iter(|| {
            at = (at + 1) % KEYS;
            shop.decide(&paths[at], black_box(&fields)).expect("it is stored and valid")
        });
    });
    let plain = [
        ("content-type", "application/json"),
        ("cache-control", "public, max-age=60, stale-while-revalidate=30"),
        ("etag", "\"4711-1\""),
        ("date", "Fri, 15 Jan 2027 08:00:00 GMT"),
        ("last-modified", "Fri, 15 Jan 2027 07:59:59 GMT"),
    ];
    let further = (0..20).map(|n| (OTHER_FIELDS[n], "some value of the usual length")).collect::<Vec<_>>();
    let with = |extra: &[(&'static str, &'static str)]| self::fields(&[&plain, extra].concat());
    let targeted = ("cdn-cache-control", "max-age=600, stale-if-error=86400");
    let varying = [("vary", "Accept, X-Currency"), ("surrogate-key", "product:4711 catalog brand:17")];
    for (name, answer) in [
        ("store, 5 fields", with(&[])),
        ("store, 12 fields", with(&further[..7])),
        ("store, 25 fields", with(&further)),
        ("store, 12 fields, CDN-Cache-Control", with(&[&further[..6], &[targeted]].concat())),
        ("store, 12 fields, Vary and tags", with(&[&further[..5], &varying].concat())),
    ] {
        let key = shop.key(&paths[0]);
        group.bench_function(name, |b| b.iter(|| shop.planned(black_box(&key), &fields, black_box(&answer))));
    }
    group.finish();
}

/// Names of fields that no cache minds.
const OTHER_FIELDS: [&str; 20] = [
    "server",
    "x-request-id",
    "x-frame-options",
    "x-content-type-options",
    "referrer-policy",
    "permissions-policy",
    "strict-transport-security",
    "content-security-policy",
    "content-language",
    "link",
    "x-powered-by",
    "x-runtime",
    "x-served-by",
    "x-region",
    "x-version",
    "accept-ranges",
    "alt-svc",
    "nel",
    "report-to",
    "server-timing",
];

/// What an entry costs on its way to Redis and back.
fn entries(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    let shop = Shop::new();
    for size in [1024, 100 * 1024] {
        let stored = Stored::Entry(Arc::new(shop.entry(&shop.key("/catalog/4711"), size)));
        let bytes = Bytes::from(codec::encode(&stored, None));
        assert_eq!(codec::decode(&bytes, size).ok(), Some(stored.clone()));
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("encode", size), |b| b.iter(|| codec::encode(black_box(&stored), None)));
        group.bench_function(BenchmarkId::new("decode", size), |b| b.iter(|| codec::decode(black_box(&bytes), size)));
    }
    group.finish();
}

/// Limits by address in this process, from the request's facts to the verdict, and to what the answer says of it.
fn limits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limit");
    for (name, count) in [("one", 1), ("three", 3)] {
        group.bench_function(name, |b| limited(b, count));
    }
    group.finish();
}

fn limited(bencher: &mut Bencher<'_>, count: usize) {
    let shop = Shop::new();
    let limiter = Limiter::new(shop.clock.clone(), Settings { secret: Secret::new(*b"secret"), replicas: 1 });
    let route = RouteLimits::new(&shop.metrics, &shop.route.name, &shop.route.limits[..count]);
    let fields = request_fields();
    let facts = Facts {
        ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        headers: &fields,
        query: None,
        route: &shop.route.name,
        host: "shop.example",
        method: &Method::GET,
    };
    bencher.iter(|| {
        shop.clock.advance(Duration::from_millis(1));
        let (mut charged, mut budget) = (Charged::default(), Budget::new(Duration::ZERO));
        {
            let take = pin!(limiter.take(None, &route, Stage::Request, &facts, &mut charged, &mut budget));
            match take.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Verdict::Allow) => {}
                Poll::Ready(Verdict::Deny(_)) => panic!("a thousand a millisecond is enough"),
                Poll::Pending => panic!("without Redis nothing is waited for"),
            }
        }
        let mut answer = Answer::new(StatusCode::OK);
        charged.tell(&mut answer);
        answer
    });
}

fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunks");
    for (name, size, count) in [("1 KiB", 1024, 64), ("16 bytes", 16, 64)] {
        let mut body = Vec::new();
        for _ in 0..count {
            body.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            body.resize(body.len() + size, b'x');
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || BytesMut::from(&body[..]),
                |buffer| {
                    let mut decoder = ChunkDecoder::default();
                    while let Decoded::Data(piece) = decoder.decode(buffer).expect("it is well-formed") {
                        black_box(piece);
                    }
                    assert!(decoder.is_done());
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn access_lines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("access line");
    let access = Access {
        time_ms: NOW,
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
        method: "GET",
        host: "shop.example",
        path: "/catalog/books/4711/reviews",
        status: 200,
        outcome: Outcome::Hit,
        tier: Some(Tier::Memory),
        limit: None,
        dry_run: &[],
        route: "item",
        duration_us: 87,
        upstream_us: None,
        bytes: 1024,
        request_id: Some("6f1c52b4-7e0a-4c39-9a3e-0a4f3c1d9b55"),
    };
    let mut line = Vec::with_capacity(1024);
    group.bench_function("json", |b| {
        b.iter(|| {
            line.clear();
            black_box(&access).write_json(&mut line);
        });
    });
    group.bench_function("text", |b| {
        b.iter(|| {
            line.clear();
            black_box(&access).write_text(&mut line);
        });
    });
    group.finish();
}

/// One route with a cache, as the proxy has it.
struct Shop {
    clock: Clock,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
    route: Arc<Route>,
    keys: KeyBuilder,
}

impl Shop {
    fn new() -> Self {
        let config = configuration(CONFIG);
        let clock = Clock::fixed(NOW);
        let metrics = Metrics::new(Registry::new());
        let invalidation = Invalidation::local(clock.clone(), Arc::clone(&metrics));
        let cache = Cache::new(&config.cache, invalidation, clock.clone(), &metrics);
        let route = Arc::clone(&config.routes[0]);
        let keys = KeyBuilder::new("v1", &route.name, rule(&route), b"secret");
        Self { clock, metrics, cache, route, keys }
    }

    fn key(&self, path: &str) -> Vec<u8> {
        let mut key = Vec::new();
        self.keys.primary(&mut key, &target(path), &request_fields());
        key
    }

    fn entry(&self, key: &[u8], size: usize) -> Entry {
        let fields = fields(&[
            ("content-type", "application/json"),
            ("etag", "\"4711-1\""),
            ("last-modified", "Fri, 15 Jan 2027 07:59:59 GMT"),
            ("server", "shop"),
        ]);
        let received = Received { status: StatusCode::OK, headers: &fields, asked_at: NOW, received_at: NOW };
        let facts = RequestFacts::of(rule(&self.route), &Method::GET, &HeaderMap::new());
        let spread = key::spread(key::hash(key), NOW);
        let plan = policy::storable(rule(&self.route), facts, &received, spread).expect("it may be stored");
        let position = self.cache.invalidation().position(&subject("/catalog"));
        let origin = Origin { key: Bytes::copy_from_slice(key), position, fence: 1, fill_cost_ms: 5 };
        Entry::new(origin, StatusCode::OK, &fields, plan, Bytes::from(vec![b'x'; size]))
    }

    /// What is decided on a hit, in the proxy's order.
    fn decide(&self, path: &str, request: &HeaderMap) -> Option<(Found, Reply)> {
        policy::request_may_use_cache(&Method::GET, request, false, None).ok()?;
        let found = key::with_buffer(|key| {
            self.keys.primary(key, &target(path), request);
            let credentials = RequestFacts::of(rule(&self.route), &Method::GET, request).credentials;
            self.cache.glance(&Ask { credentials, ..self.ask(path, key, request) })
        })?;
        let reply = conditional::evaluate(request, found.slot.stored.entry()?);
        Some((found, reply))
    }

    /// What is decided on an answer, and made of its head.
    fn planned(&self, primary: &[u8], request: &HeaderMap, answer: &HeaderMap) -> Entry {
        let received = Received { status: StatusCode::OK, headers: answer, asked_at: NOW - 20, received_at: NOW };
        let facts = RequestFacts::of(rule(&self.route), &Method::GET, request);
        let spread = key::spread(key::hash(primary), NOW);
        let plan = policy::storable(rule(&self.route), facts, &received, spread).expect("it may be stored");
        let mut key = Vec::new();
        let key = if plan.vary.is_empty() {
            primary
        } else {
            self.keys.variant(&mut key, primary, &plan.vary, request);
            &key[..]
        };
        let position = self.cache.invalidation().position(&subject("/catalog"));
        let origin = Origin { key: Bytes::copy_from_slice(key), position, fence: 1, fill_cost_ms: 20 };
        Entry::new(origin, StatusCode::OK, answer, plan, Bytes::new())
    }

    fn ask<'a>(&'a self, path: &'a str, key: &'a [u8], headers: &'a HeaderMap) -> Ask<'a> {
        Ask {
            keys: &self.keys,
            key,
            search: None,
            headers,
            rule: rule(&self.route),
            subject: subject(path),
            credentials: false,
            directives: None,
            now: NOW,
            steady: self.clock.steady(),
        }
    }
}

fn subject(path: &str) -> Subject<'_> {
    Subject { host: "shop.example", path, query: None, also: &[], route: "item", tags: &[], answer_tags: &[] }
}

fn rule(route: &Route) -> &CacheRule {
    route.cache.as_ref().expect("the route caches")
}

fn configuration(text: &str) -> Config {
    match Config::from_toml("bench.toml", text, &Overrides::default()) {
        Ok(loaded) => loaded.config,
        Err(report) => panic!("{report}"),
    }
}

fn target(path: &str) -> Target<'_> {
    Target { scheme: "http", host: "shop.example", path, query: Some("page=2") }
}

/// What a browser sends, roughly.
fn request_fields() -> HeaderMap {
    fields(&[
        ("host", "shop.example"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "application/json"),
        ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("connection", "keep-alive"),
    ])
}

fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}
