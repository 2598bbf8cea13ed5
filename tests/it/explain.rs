//! `weir explain` and `GET /explain` say what the proxy then does, change nothing, and keep secrets.

use serde_json::Value;

use crate::caching::stored;
use crate::harness::{Answer, Ended, Reply, Scratch, Weir, get, redis, reply, request, upstream, weir};

/// As `Host` of the tests' requests.
const SERVICE: &str = "http://service.test";

const ROUTES: &str = r#"
[[route]]
name = "ttl"
path = "/ttl/{id}"
cache.ttl = "100s"
cache.stale_while_revalidate = "30s"
cache.status_ttl = { 404 = "5s" }
cache.query = { ignore = ["utm_*"] }
cache.key_headers = ["x-tenant"]
cache.tags = ["item:{id}"]
cache.client_directives = "honor"
limits = [{ name = "l", key = ["ip"], rate = "1/h", burst = 1000 }]

[[route]]
name = "plain"
path = "/plain/{id}"
cache.enabled = true

[[route]]
name = "open"
path = "/open/{id}"
cache.ttl = "50s"
cache.upstream_ttl = "ignore"
cache.credentials = "share"
cache.cookies = "store"

[[route]]
name = "query"
path = "/query/{id}"
cache.ttl = "50s"
cache.key_body = ["QUERY"]

[[route]]
name = "rest"
path = "/{*path}"
"#;

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A request, and what the service answers.
struct Row {
    method: &'static str,
    body: &'static str,
    target: &'static str,
    asks: Fields<'static>,
    status: u16,
    says: Fields<'static>,
}

const fn row(target: &'static str, asks: Fields<'static>, status: u16, says: Fields<'static>) -> Row {
    by("GET", "", target, asks, status, says)
}

const fn by(
    method: &'static str,
    body: &'static str,
    target: &'static str,
    asks: Fields<'static>,
    status: u16,
    says: Fields<'static>,
) -> Row {
    Row { method, body, target, asks, status, says }
}

const MAX_AGE: (&str, &str) = ("cache-control", "max-age=60");

const FRONT: (&str, &str) = ("range", "bytes=0-3");

const TABLE: &[Row] = &[
    row("/ttl/1", &[], 200, &[]),
    row("/ttl/2?utm_source=x&a=1", &[], 200, &[MAX_AGE]),
    row("/ttl/3", &[], 200, &[("cache-control", "max-age=60, s-maxage=40"), ("age", "9")]),
    row("/ttl/4", &[], 404, &[]),
    row("/ttl/5", &[], 500, &[]),
    row("/ttl/6", &[], 500, &[MAX_AGE]),
    row("/ttl/7", &[], 206, &[MAX_AGE]),
    row("/ttl/8", &[], 400, &[MAX_AGE]),
    row("/ttl/9", &[], 200, &[("cache-control", "private, max-age=60")]),
    row("/ttl/10", &[], 200, &[("cache-control", "no-store")]),
    row("/ttl/11", &[], 200, &[MAX_AGE, ("set-cookie", "a=s3cret")]),
    row("/ttl/12", &[], 200, &[MAX_AGE, ("vary", "*")]),
    row("/ttl/13", &[("accept-language", "de")], 200, &[MAX_AGE, ("vary", "accept-language")]),
    row("/ttl/14", &[("cookie", "a=s3cret")], 200, &[]),
    row("/ttl/15", &[("cookie", "a=s3cret")], 200, &[MAX_AGE]),
    row("/ttl/16", &[("authorization", "Bearer s3cret")], 200, &[MAX_AGE]),
    row("/ttl/17", &[("authorization", "Bearer s3cret")], 200, &[("cache-control", "public, max-age=60")]),
    row("/ttl/18", &[("x-api-key", "s3cret")], 200, &[]),
    row("/ttl/19", &[("x-tenant", "a")], 200, &[]),
    row("/ttl/20", &[("cache-control", "no-store")], 200, &[]),
    row("/ttl/21", &[("cache-control", "max-age=5")], 200, &[("age", "9")]),
    row("/ttl/22", &[("if-match", "\"a\"")], 200, &[]),
    row("/ttl/23", &[("x-http-method-override", "PUT")], 200, &[]),
    row("/ttl/24", &[], 200, &[("weir-cache-control", "max-age=30"), ("cache-control", "no-store")]),
    row("/ttl/25", &[], 200, &[("cdn-cache-control", "no-store"), MAX_AGE]),
    row("/ttl/26", &[], 200, &[("surrogate-control", "max-age=20"), ("cache-control", "private")]),
    row("/ttl/27", &[], 200, &[("cache-control", "max-age=0")]),
    row("/ttl/28", &[], 200, &[("cache-control", "no-cache"), ("etag", "\"a\"")]),
    row("/ttl/29", &[("range", "bytes=0-1")], 200, &[MAX_AGE]),
    row("/ttl/30", &[], 200, &[MAX_AGE, ("connection", "cache-control")]),
    row("/ttl/31", &[("cookie", "a=s3cret")], 500, &[]),
    row("/ttl/32", &[], 503, &[("vary", "*")]),
    row("/ttl/33", &[], 429, &[]),
    row("/ttl//34", &[], 200, &[MAX_AGE]),
    row("/ttl/35", &[], 200, &[("age", "7, 100")]),
    row("/ttl/36", &[], 200, &[MAX_AGE, ("age", "7s")]),
    row("/ttl/37", &[], 201, &[("cache-control", "no-cache"), ("etag", "\"a\"")]),
    row("/plain/1", &[], 200, &[]),
    row("/plain/2", &[], 200, &[("etag", "\"a\"")]),
    row("/plain/3", &[], 200, &[("expires", "Thu, 01 Jan 1970 00:00:00 GMT")]),
    row("/plain/4", &[], 200, &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]),
    row("/plain/5", &[], 200, &[MAX_AGE, ("content-encoding", "gzip")]),
    row("/plain/6", &[], 299, &[("cache-control", "max-age=60, must-understand")]),
    row("/plain/7", &[("authorization", "s3cret")], 200, &[("cache-control", "s-maxage=60")]),
    row("/open/1", &[("authorization", "s3cret")], 200, &[("cache-control", "max-age=1"), ("set-cookie", "a=b")]),
    row("/open/2", &[("cookie", "a=s3cret")], 200, &[("cache-control", "private")]),
    row("/other", &[], 200, &[MAX_AGE]),
    by("HEAD", "", "/ttl/40", &[], 200, &[MAX_AGE]),
    by("POST", "x", "/ttl/41", &[], 200, &[MAX_AGE]),
    by("OPTIONS", "", "/ttl/42", &[], 200, &[MAX_AGE]),
    by("POST", "x", "/ttl/43", &[], 200, &[MAX_AGE, ("content-location", "/ttl/43")]),
    by("POST", "x", "/ttl/44", &[], 200, &[("content-location", "/ttl/44")]),
    by("POST", "x", "/ttl/45", &[], 200, &[MAX_AGE, ("content-location", "/ttl/46")]),
    by("POST", "x", "/other", &[], 200, &[MAX_AGE, ("content-location", "/other")]),
    by("QUERY", "a", "/query/1", &[("content-type", "text/plain")], 200, &[]),
    by("QUERY", "s3cret", "/query/1", &[("content-type", "text/plain")], 200, &[MAX_AGE]),
    by("QUERY", "a", "/query/2", &[("range", "bytes=0-1")], 200, &[MAX_AGE]),
    by("GET", "a", "/query/3", &[], 200, &[MAX_AGE]),
    row("/ttl/50", &[FRONT], 206, &[MAX_AGE, ("content-range", "bytes 0-3/10")]),
    row("/ttl/51", &[FRONT], 206, &[("content-range", "bytes 0-3/10")]),
    row("/ttl/52", &[FRONT], 206, &[MAX_AGE]),
    row("/ttl/53", &[FRONT], 206, &[MAX_AGE, ("content-range", "bytes 0-3/10"), ("vary", "x-a")]),
    row("/ttl/54", &[FRONT], 206, &[("cache-control", "no-store"), ("content-range", "bytes 0-3/10")]),
];

impl Row {
    fn reply(&self) -> Reply {
        self.says.iter().fold(reply("body").status(self.status), |reply, (name, value)| reply.header(name, value))
    }

    async fn send(&self, weir: &Weir) -> Answer {
        let ask =
            self.asks.iter().fold(request(self.method, self.target), |ask, (name, value)| ask.header(name, value));
        weir.send(if self.body.is_empty() { ask } else { ask.body(self.body) }).await
    }

    /// By the command line.
    fn offline(&self, weir: &Weir) -> Value {
        let lines =
            |fields: Fields<'_>| fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
        let (config, url) = (weir.config.display().to_string(), format!("{SERVICE}{}", self.target));
        let (asks, says, status) = (lines(self.asks), lines(self.says), self.status.to_string());
        let mut args = vec!["explain", "--json", "--config", &config, "--status", &status, self.method, &url];
        asks.iter().for_each(|line| args.extend(["-H", line]));
        says.iter().for_each(|line| args.extend(["--response", line]));
        if !self.body.is_empty() {
            args.extend(["--body", self.body]);
        }
        let ended = Ended::of(&args);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!ended.said().contains("s3cret"), "{}", ended.said());
        serde_json::from_str(&ended.out).expect("JSON")
    }

    fn query(&self) -> String {
        let mut query = vec![("method", self.method.to_owned()), ("url", format!("{SERVICE}{}", self.target))];
        query.push(("status", self.status.to_string()));
        query.push(("body", self.body.to_owned()));
        query.extend(self.asks.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
        query.extend(self.says.iter().map(|(name, value)| ("response", format!("{name}: {value}"))));
        form(&query)
    }
}

/// A query as a form sends it.
fn form(pairs: &[(&str, String)]) -> String {
    let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect::<Vec<_>>().join("&")
}

/// By the admin port, as JSON.
async fn live(weir: &Weir, target: &str, fields: Fields<'_>) -> Value {
    let mut query = vec![("url", format!("{SERVICE}{target}"))];
    query.extend(fields.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    ask(weir, &form(&query)).await
}

async fn ask(weir: &Weir, query: &str) -> Value {
    let answer = weir.admin(&format!("/explain?format=json&{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.text().contains("s3cret"), "{answer:?}");
    let text = weir.admin(&format!("/explain?{query}")).await;
    assert!(text.text().contains("\nRoute\n") && !text.text().contains("s3cret"), "{text:?}");
    serde_json::from_slice(&answer.body).expect("JSON")
}

fn ttl(status: &str) -> Option<i64> {
    status.split("; ").find_map(|part| part.strip_prefix("ttl="))?.parse().ok()
}

#[tokio::test]
async fn what_is_explained_is_what_the_proxy_does() {
    let up = upstream();
    let weir = weir(ROUTES).to(up.url()).start().await;
    let (mut yes, mut no) = (0, 0);
    for row in TABLE {
        let what = format!("{} {} {:?} -> {} {:?}", row.method, row.target, row.asks, row.status, row.says);
        up.route(row.target.split('?').next().unwrap_or_default(), row.reply());
        let explained = row.offline(&weir);
        let from_port = ask(&weir, &row.query()).await;
        for part in ["request", "route", "key", "way", "limits"] {
            assert_eq!(explained[part], from_port[part], "{what}: {part}");
        }
        // A refused request has no answer of the service's.
        let verdict = &explained["storing"]["supposed"];
        let expected = if verdict.is_null() { &explained["way"]["cache_status"] } else { &verdict["cache_status"] };
        assert_eq!(from_port["storing"]["supposed"]["cache_status"], verdict["cache_status"], "{what}");
        let is_stored = verdict["stored"] == true;
        let first = if is_stored { stored_by(&weir, row).await } else { row.send(&weir).await };
        assert_eq!(Some(first.cache_status()), expected.as_str(), "{what}: {explained:#}");
        assert_eq!(first.is_stored(), is_stored, "{what}");
        if !is_stored {
            no += 1;
            continue;
        }
        yes += 1;
        let Some(next) = verdict["next"].as_str() else {
            assert!(row.method == "POST" && weir.get(row.target).await.is_hit(), "{what}: {verdict:#}");
            continue;
        };
        let second = row.send(&weir).await;
        match ttl(next) {
            Some(least) => {
                let found = ttl(second.cache_status()).unwrap_or_else(|| panic!("{what}: {next}, {second:?}"));
                assert!((least - 5..=least).contains(&found), "{what}: {next}, {second:?}");
                // A second may have ended since it was received.
                assert!(verdict["freshness"]["ttl_ms"].as_i64().is_some_and(|ms| ms / 1000 >= found), "{verdict:#}");
            }
            None => assert!(second.cache_status().starts_with(next), "{what}: {next}, {second:?}"),
        }
    }
    assert!(yes > 15 && no > 15, "{yes} stored, {no} not");
}

async fn stored_by(weir: &Weir, row: &Row) -> Answer {
    const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;
    let before = weir.metric(STORED).await;
    let answer = row.send(weir).await;
    if answer.is_stored() {
        weir.metric_reaches(STORED, before + 1.0).await;
    }
    answer
}

/// What a request that is not sent would be told, and then is.
async fn foreseen(weir: &Weir, target: &str) -> (Value, Answer) {
    let explained = live(weir, target, &[]).await;
    let answer = weir.get(target).await;
    let said = explained["live"]["answer"]["cache_status"].as_str().unwrap_or_default().to_owned();
    match ttl(&said) {
        Some(ttl_said) => {
            let found = ttl(answer.cache_status()).unwrap_or_else(|| panic!("{said}: {answer:?}"));
            assert!((ttl_said - 3..=ttl_said).contains(&found), "{said}: {answer:?}");
        }
        None => assert!(answer.cache_status().starts_with(&said), "{said}: {answer:?}"),
    }
    (explained, answer)
}

#[tokio::test]
async fn memory_is_shown_and_left_as_it_is() {
    let up = upstream();
    up.route("/ttl/1", reply("12345").header("etag", "\"a\"").header("cache-tag", "t"));
    up.on("/ttl/2", |_| reply("").max_age(60).header("vary", "accept-language, cookie"));
    up.route("/ttl/3", reply("").header("cache-control", "no-store"));
    let named = ROUTES.replace("cache.client_directives", "cache.status_key = true\ncache.client_directives");
    let weir = weir(&named).to(up.url()).start().await;
    let nothing = live(&weir, "/ttl/1", &[]).await;
    assert_eq!(nothing["live"]["memory"]["holds"], "nothing", "{nothing:#}");
    assert_eq!(nothing["live"]["redis"]["holds"], "unknown");
    assert_eq!(nothing["live"]["answer"]["cache_status"], "weir; fwd=uri-miss");
    assert_eq!(up.total(), 0, "no question leads a fetch");

    stored(&weir, "/ttl/1").await;
    let counted = |metrics: String| {
        let names = ["weir_requests", "weir_cache_", "weir_limit_", "weir_upstream_", "weir_redis_"];
        let lines = metrics.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).map(str::to_owned);
        lines.filter(|line| !line.starts_with("weir_cache_hit_ratio")).collect::<Vec<_>>()
    };
    let before = counted(weir.metrics().await);
    let explained = live(&weir, "/ttl/1", &[]).await;
    assert_eq!(counted(weir.metrics().await), before, "no question counts");
    let entry = &explained["live"]["memory"];
    assert_eq!((&entry["holds"], &entry["status"], &entry["body_bytes"]), (&"entry".into(), &200.into(), &5.into()));
    assert_eq!((&entry["state"], &entry["validators"]), (&"fresh".into(), &serde_json::json!(["ETag"])));
    assert_eq!(entry["tags"], serde_json::json!(["t"]));
    assert_eq!((&entry["mark"]["verdict"], &entry["mark"]["trusted"]), (&"valid".into(), &true.into()));
    let term = |name: &str| entry["freshness"][name].as_i64().unwrap_or_else(|| panic!("{name}: {entry:#}"));
    assert_eq!(term("lifetime_ms") - term("initial_age_ms"), 100_000, "counted from the receipt");
    assert_eq!(term("age_ms"), term("initial_age_ms") + term("resident_ms"));
    assert_eq!(term("ttl_ms"), term("lifetime_ms") - term("age_ms"));
    assert_eq!(explained["live"]["answer"]["from"], "memory");
    let (explained, answer) = foreseen(&weir, "/ttl/1").await;
    let name = explained["live"]["key"].as_str().unwrap_or_default();
    assert!(answer.cache_status().ends_with(&format!("; key=\"{name}\"")), "{name}: {answer:?}");

    // Of its lifetime, for requests with credentials it is not.
    let with_cookie = live(&weir, "/ttl/1", &[("cookie", "a=s3cret")]).await;
    assert_eq!(with_cookie["live"]["answer"]["cache_status"], "weir; fwd=bypass");
    // A client's own directives count where they are honoured.
    let no_cache = live(&weir, "/ttl/1", &[("cache-control", "no-cache")]).await;
    assert_eq!(no_cache["live"]["answer"]["cache_status"], "weir; fwd=stale");

    weir.send(get("/ttl/2").header("accept-language", "de")).await;
    weir.send(get("/ttl/2").header("accept-language", "en")).await;
    weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 3.0).await;
    let explained = live(&weir, "/ttl/2", &[("accept-language", "EN")]).await;
    let memory = &explained["live"]["memory"];
    assert_eq!((&memory["holds"], &memory["variants"]), (&"vary".into(), &2.into()), "{memory:#}");
    assert_eq!(memory["names"][0], serde_json::json!({ "name": "accept-language", "value": "en" }));
    assert_eq!(memory["variant"]["holds"], "entry");
    let other = live(&weir, "/ttl/2", &[("accept-language", "fr")]).await;
    assert_eq!(other["live"]["memory"]["variant"]["holds"], "nothing");
    assert_eq!(other["live"]["answer"]["cache_status"], "weir; fwd=vary-miss");

    weir.invalidate(r#"{"tags":["item:1"],"soft":true}"#).await;
    let (explained, answer) = foreseen(&weir, "/ttl/1").await;
    let mark = &explained["live"]["memory"]["mark"];
    assert_eq!((&mark["verdict"], &mark["epochs"][0]["selector"]), (&"stale".into(), &"tag item:1".into()), "{mark:#}");
    assert!(answer.is_stale() || answer.cache_status().contains("hit"), "{answer:?}");

    weir.invalidate(r#"{"prefixes":["/ttl"]}"#).await;
    let explained = live(&weir, "/ttl/1", &[]).await;
    let mark = &explained["live"]["memory"]["mark"];
    assert_eq!(mark["verdict"], "gone", "{mark:#}");
    assert!(
        mark["epochs"].as_array().is_some_and(|all| all.iter().any(|one| one["selector"] == "prefix /ttl")),
        "{mark:#}"
    );
    assert_eq!(explained["live"]["answer"]["cache_status"], "weir; fwd=stale");

    weir.get("/ttl/3").await;
    let explained = live(&weir, "/ttl/3", &[]).await;
    assert_eq!(explained["live"]["memory"]["holds"], "uncacheable");
    foreseen(&weir, "/ttl/3").await;
}

#[tokio::test]
async fn parts_are_shown_and_found_where_the_proxy_finds_them() {
    let (up, redis) = (upstream(), redis());
    let part = reply("0123").status(206).max_age(60).header("content-range", "bytes 0-3/10").header("etag", "\"a\"");
    up.route("/ttl/1", part);
    // The connection is opened by the first question: on a busy machine that takes longer than a request may wait.
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("redis.deadline", "5s");
    let fleet = setup.fleet(2).await;
    let [one, other] = &fleet[..] else { panic!("two") };
    let before = live(one, "/ttl/1", &[FRONT]).await;
    assert_eq!(before["live"]["answer"]["from"], "upstream", "{before:#}");
    one.send(get("/ttl/1").header("range", "bytes=0-3")).await;
    one.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    for (weir, from, held) in [(one, "memory", "memory_part"), (other, "redis", "redis_part")] {
        let explained = live(weir, "/ttl/1", &[("range", "bytes=1-2")]).await;
        assert_eq!(explained["live"]["answer"]["from"], from, "{explained:#}");
        assert_eq!(explained["live"][held]["part"], "bytes 0-3 of 10", "{explained:#}");
        let beyond = live(weir, "/ttl/1", &[("range", "bytes=2-5")]).await;
        assert_eq!(beyond["live"]["answer"]["from"], "upstream", "{beyond:#}");
        assert!(weir.send(get("/ttl/1").header("range", "bytes=1-2")).await.is_hit());
    }
    assert_eq!(up.total(), 1);
}

#[tokio::test]
async fn redis_is_shown_and_nothing_is_kept_of_it() {
    let (up, redis) = (upstream(), redis());
    up.route("/ttl/1", reply("12345").max_age(60));
    up.on("/ttl/2", |_| reply("").max_age(60).header("vary", "x-a"));
    // The connection is opened by the first question: on a busy machine that takes longer than a request may wait.
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("redis.deadline", "5s");
    let fleet = setup.fleet(2).await;
    let [one, other] = &fleet[..] else { panic!("two") };
    stored(one, "/ttl/1").await;
    stored(one, "/ttl/2").await;
    for _ in 0..2 {
        let explained = live(other, "/ttl/1", &[]).await;
        assert_eq!(explained["live"]["memory"]["holds"], "nothing", "{explained:#}");
        let entry = &explained["live"]["redis"];
        assert_eq!(
            (&entry["holds"], &entry["body_bytes"], &entry["state"]),
            (&"entry".into(), &5.into(), &"fresh".into())
        );
        assert_eq!((&entry["mark"]["verdict"], &entry["mark"]["trusted"]), (&"valid".into(), &true.into()));
        assert_eq!(explained["live"]["answer"]["from"], "redis");
        assert!(explained["live"]["pod"]["proven_ms"].is_u64(), "{explained:#}");
    }
    let (explained, answer) = foreseen(other, "/ttl/1").await;
    assert!(answer.is_hit(), "{answer:?}");
    assert!(explained["live"]["redis"]["mark"]["fence"].is_u64(), "{explained:#}");
    assert_eq!(live(other, "/ttl/1", &[]).await["live"]["memory"]["holds"], "entry");
    let varying = live(other, "/ttl/2", &[]).await;
    assert_eq!(varying["live"]["redis"]["holds"], "vary", "{varying:#}");
    assert_eq!(varying["live"]["redis"]["variant"]["holds"], "entry");
    assert_eq!(up.total(), 2);

    redis.kill();
    let explained = live(other, "/ttl/1", &[]).await;
    let because = explained["live"]["redis"]["because"].as_str().unwrap_or_default();
    assert!(because.starts_with("unavailable"), "{explained:#}");
    assert_eq!(explained["live"]["memory"]["holds"], "entry");
}

#[tokio::test]
async fn who_may_ask_is_who_may_invalidate() {
    let scratch = Scratch::new();
    let token = scratch.write("token", "s3cret-token\n");
    let up = upstream();
    let guarded = weir(ROUTES).to(up.url()).set("admin.token_file", token.display().to_string()).start().await;
    let own = guarded.admin.to_string();
    let asked = |fields: Fields<'static>| {
        let ask = fields.iter().fold(get("/explain?url=http://h/ttl/1"), |ask, (name, value)| ask.header(name, value));
        let ask = if fields.iter().any(|(name, _)| *name == "host") { ask } else { ask.header("host", &own) };
        let admin = guarded.admin;
        async move { ask.send(admin).await }
    };
    let rows: [(Fields<'static>, u16); 5] = [
        (&[], 401),
        (&[("authorization", "Bearer wrong")], 401),
        (&[("authorization", "Bearer s3cret-token")], 200),
        (&[("authorization", "Bearer s3cret-token"), ("host", "evil.example")], 403),
        (&[("authorization", "Bearer s3cret-token"), ("origin", "http://evil.example")], 403),
    ];
    for (fields, status) in rows {
        assert_eq!(asked(fields).await.status, status, "{fields:?}");
    }
    let json = asked(&[("authorization", "Bearer s3cret-token"), ("accept", "application/json")]).await;
    assert_eq!(json.header("content-type"), Some("application/json"), "{json:?}");
    let weir = weir(ROUTES).to(up.url()).start().await;
    assert_eq!(weir.admin("/explain?url=http://h/ttl/1").await.status, 200, "a loopback peer, where no token is set");
    assert_eq!(weir.post("/explain?url=http://h/ttl/1", "").await.status, 405);
    for (query, says) in
        [("", "`url` is missing"), ("url=h", "no scheme"), ("url=http://h/&header=a", "request field 1")]
    {
        let answer = weir.admin(&format!("/explain?{query}")).await;
        assert!(answer.status == 400 && answer.text().contains(says) && answer.text().contains("remedy"), "{answer:?}");
    }
    assert_eq!(up.total(), 0);
}

#[tokio::test]
async fn a_bad_question_is_named_and_is_exit_code_1() {
    let scratch = Scratch::new();
    let config = scratch.write("weir.toml", &weir(ROUTES).to("http://127.0.0.1:1").toml()).display().to_string();
    let none = scratch.path().join("none.toml").display().to_string();
    let rows: [(&[&str], &str); 8] = [
        (&["GET", "http://h/"], "no configuration is given"),
        (
            &["--config", &config, "--upstream", "http://127.0.0.1:1", "GET", "http://h/"],
            "both --config and --upstream",
        ),
        (&["--config", &none, "GET", "http://h/"], "none.toml"),
        (&["--config", &config, "get", "http://h/"], "write GET"),
        (&["--config", &config, "GET", "h"], "no scheme"),
        (&["--config", &config, "GET", "/a"], "names no host"),
        (
            &["--config", &config, "GET", "http://h/", "-H", "s3cret"],
            "request field 1 (-H or header=): it has no colon",
        ),
        (&["--config", &config, "GET", "http://h/", "--status", "1000"], "status: `1000`"),
    ];
    for (args, says) in rows {
        let ended = Ended::of(&[&["explain"], args].concat());
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains(says) && ended.err.contains("help: ") && !ended.err.contains("s3cret"), "{ended:?}");
    }
    let ended = Ended::of(&[
        "explain",
        "--upstream",
        "http://127.0.0.1:1",
        "GET",
        "/a",
        "-H",
        "Host: h",
        "--response",
        "cache-control: max-age=5",
    ]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("the service: max-age"), "{ended:?}");
}
