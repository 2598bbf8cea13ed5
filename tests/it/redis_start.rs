//! What Weir finds out about Redis when it first reaches it, and that the documented permissions are all that it needs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Connection, Gate, Redis, Setup, Upstream, Weir, eventually, flaky, get, redis_with, reply, request, sum, upstream,
    weir, within_async,
};
use crate::redis_ways::{SECRET, add_user};

const ROUTE: &str = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.ttl = '60s'\n";

/// The line that ends a look, whatever was found.
pub const LOOKED_AT: &str = "Redis was looked at";

/// Longest that everything may take to have happened once; some of it happens every five seconds.
const ALL_OF_IT: Duration = Duration::from_secs(60);

/// A line of the log, by its fields.
fn line(text: &str) -> Option<Value> {
    let line: Value = serde_json::from_str(text).ok()?;
    Some(line.get("fields").cloned().unwrap_or(line))
}

fn said<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// Waits for the end of the first look, and gives its line and what it found.
async fn looked_at(weir: &Weir) -> (Value, Vec<Value>) {
    let lines = || weir.output().iter().filter_map(|text| line(text)).collect::<Vec<_>>();
    let is_end = |line: &Value| said(line, "message") == LOOKED_AT;
    eventually("Redis is looked at", || lines().iter().any(is_end)).await;
    let (end, others): (Vec<_>, Vec<_>) = lines().into_iter().partition(is_end);
    let is_finding = |line: &Value| line.get("remedy").is_some() && line.get("server").is_some();
    (end[0].clone(), others.into_iter().filter(is_finding).collect())
}

/// A server of which nothing is to be said.
fn redis() -> Redis {
    redis_with(&["--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru"])
}

fn setup(up: &Upstream, redis: &Redis) -> Setup {
    weir(ROUTE).to(up.url()).redis(redis).set("redis.deadline", "10s")
}

#[tokio::test]
async fn a_redis_that_is_as_it_should_be_gets_one_line() {
    let (up, redis) = (upstream(), redis());
    let weir = setup(&up, &redis).start().await;
    let (end, warnings) = looked_at(&weir).await;
    assert_eq!(warnings, [] as [Value; 0]);
    assert!(said(&end, "version").starts_with("Redis ") || said(&end, "version").starts_with("Valkey "), "{end}");
    assert_eq!((said(&end, "policy"), &end["maxmemory"]), ("volatile-lru", &(256 << 20).into()), "{end}");
    assert!(said(&end, "when_full").contains("log of invalidations and its counter stay"), "{end}");
    assert!(!said(&end, "latency").is_empty() && end["findings"] == 0, "{end}");
    assert_eq!(said(&end, "server"), redis.address().to_string());
}

#[tokio::test]
async fn a_policy_that_costs_more_than_answers_is_warned_of_with_what_it_costs() {
    let up = upstream();
    let redis = redis_with(&["--maxmemory", "256mb"]);
    for (policy, consequence) in [
        ("allkeys-lru", "the counter or the log of invalidations"),
        ("volatile-ttl", "leases (a second fetch of the same), then buckets"),
        ("volatile-random", "used or not"),
        ("noeviction", "invalidations are not logged until there is room"),
    ] {
        redis.cli(&["CONFIG", "SET", "maxmemory-policy", policy]);
        let weir = setup(&up, &redis).start().await;
        let (_, warnings) = looked_at(&weir).await;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let text = said(&warnings[0], "message");
        assert!(text.contains(policy) && text.contains(consequence), "{text}");
        assert!(said(&warnings[0], "remedy").contains("volatile-lru"), "{warnings:?}");
    }
    // Where nobody may exceed a limit, a full Redis that refuses is a choice.
    let limited = ROUTE.to_owned() + "limits = [{ name = 'l', key = ['ip'], rate = '10/s', burst = 10 }]\n";
    let weir = weir(&limited).to(up.url()).redis(&redis).set("redis.deadline", "10s").start().await;
    let (end, warnings) = looked_at(&weir).await;
    assert!(warnings.is_empty() && said(&end, "when_full").starts_with("writes are refused"), "{end} {warnings:?}");
}

#[tokio::test]
async fn too_little_room_is_warned_of() {
    let (up, redis) = (upstream(), redis_with(&["--maxmemory", "20mb", "--maxmemory-policy", "volatile-lru"]));
    let weir = setup(&up, &redis).start().await;
    let (_, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(said(&warnings[0], "message").contains("maxmemory is 20971520 bytes"), "{warnings:?}");
    assert!(said(&warnings[0], "remedy").contains("`redis.max_value`"), "{warnings:?}");
    // Smaller answers need less.
    let weir = setup(&up, &redis).set("redis.max_value", "64KiB").start().await;
    assert!(looked_at(&weir).await.1.is_empty());
}

#[tokio::test]
async fn no_bound_and_less_than_is_expected_are_warned_of() {
    let (up, redis) = (upstream(), redis_with(&["--maxmemory", "0"]));
    let weir = setup(&up, &redis).start().await;
    let (_, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(said(&warnings[0], "message").starts_with("maxmemory is not set"), "{warnings:?}");
    redis.cli(&["CONFIG", "SET", "maxmemory", "1gb"]);
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    let expecting = setup(&up, &redis).set("redis.expected_entries", 1_000_000);
    let weir = expecting.start().await;
    let (_, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    // 1.25 * (1,000,000 * (720 + 4096) + 16 MiB)
    assert!(said(&warnings[0], "remedy").starts_with("set maxmemory to 6040971520 or more"), "{warnings:?}");
    let weir = expecting.set("redis.expected_body", "100B").start().await;
    assert!(looked_at(&weir).await.1.is_empty());
}

#[tokio::test]
async fn a_replica_is_warned_of_by_its_masters_name() {
    let (up, master, replica) = (upstream(), redis(), redis());
    replica.follow(&master);
    let weir = setup(&up, &replica).launch().await;
    let (_, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let address = master.address().to_string();
    assert!(said(&warnings[0], "message").contains(&format!("a replica of {address}")), "{warnings:?}");
    assert!(said(&warnings[0], "remedy").contains(&address), "{warnings:?}");
}

#[tokio::test]
async fn a_redis_that_is_far_away_is_warned_of_with_its_deadline() {
    let (up, redis) = (upstream(), redis());
    let relay = flaky(redis.address());
    relay.delay(Duration::from_millis(20));
    let weir = weir(ROUTE).to(up.url()).redis_at(relay.address()).set("redis.deadline", "40ms").launch().await;
    let (end, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(said(&warnings[0], "message").contains("a quarter of `redis.deadline` (40ms)"), "{warnings:?}");
    assert!(said(&warnings[0], "message").contains(said(&end, "latency")), "{warnings:?}");
}

#[tokio::test]
async fn a_redis_that_comes_later_is_looked_at_then_and_another_in_its_place_anew() {
    let (up, redis) = (upstream(), crate::harness::redis_not_started());
    let weir = setup(&up, &redis).set("redis.startup_wait", "50ms").start().await;
    assert!(!weir.output().iter().any(|line| line.contains(LOOKED_AT)));
    redis.start();
    looked_at(&weir).await;
    redis.kill();
    weir.metric_reaches("weir_redis_breaker_open", 1.0).await;
    redis.start();
    let looks = || weir.output().iter().filter(|line| line.contains(LOOKED_AT)).count();
    eventually("it is looked at anew", || looks() == 2).await;
}

fn by_user(up: &Upstream, redis: &Redis, config: &str) -> Setup {
    weir(config)
        .to(up.url())
        .set("redis.url", format!("redis://weir:{SECRET}@{}/1", redis.address()))
        .set("redis.namespace", "it")
        .set("redis.deadline", "2s")
}

#[tokio::test]
async fn what_the_acl_denies_is_named_with_the_words_to_add() {
    let (up, redis) = (upstream(), redis());
    add_user(&redis, "weir");
    redis.cli(&["ACL", "SETUSER", "weir", "-xadd", "-zincrby", "resetkeys", "~it:e:*", "~it:probe", "resetchannels"]);
    let weir = by_user(&up, &redis, ROUTE).launch().await;
    let (_, warnings) = looked_at(&weir).await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let text = said(&warnings[0], "message");
    assert!(text.contains("the commands xadd, zincrby and the keys it:p:{") && text.contains("its channels"), "{text}");
    assert!(said(&warnings[0], "remedy").contains(" +xadd +zincrby ~it:* &it:* "), "{warnings:?}");
    // The database cannot even be chosen.
    add_user(&redis, "weir");
    redis.cli(&["ACL", "SETUSER", "weir", "-select"]);
    let weir = by_user(&up, &redis, ROUTE).launch().await;
    let is_told = || weir.output().iter().any(|line| line.contains("to run the 'select' command"));
    eventually("that the database cannot be chosen", is_told).await;
}

const EVERYTHING: &str = r#"
[cache]
max_staleness = "2s"
preload = 8
preload_wait = "5s"

[[limit]]
name = "single"
key = ["ip"]
rate = "100/h"
burst = 200

[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]

[[route]]
name = "write"
path = "/write/{id}"
invalidates = { tags = ["item:{id}"] }

[[route]]
name = "single"
path = "/single"
limits = ["single"]

[[route]]
name = "limited"
path = "/limited"
limits = [
  { name = "fixed", key = ["ip"], rate = "1000/m", algorithm = "fixed_window" },
  { name = "sliding", key = ["ip"], rate = "1000/m", algorithm = "sliding_window" },
  { name = "log", key = ["ip"], rate = "1000/m", algorithm = "sliding_log" },
  { name = "busy", key = ["ip"], max = 10, algorithm = "concurrency" },
  { name = "rates", key = ["ip"], rates = ["100/s", "1000/m"] },
]

[[route]]
name = "paid"
path = "/paid"
limits = [{ name = "paid", key = ["ip"], rate = "1000/m", burst = 1000, cost = { response_header = "x-cost", max = 100, default = 1 } }]

[[route]]
name = "login"
path = "/login"
limits = [{ name = "guesses", key = ["ip"], rate = "5/m", burst = 5, charge = { status = [401] } }]

[[route]]
name = "tiers"
path = "/tiers"

[[route.limits]]
name = "api"
key = ["header:x-api-key"]
rate = "100/h"
burst = 100
tiers = "api"
tier.gold = { rate = "600/h", burst = 600 }
"#;

/// Everything that one user makes Redis do.
struct Monitor(Arc<Mutex<Vec<String>>>);

impl Monitor {
    fn of(redis: &Redis) -> Self {
        let mut connection = redis.line();
        assert_eq!(connection.say(&["MONITOR"]).expect("it answers"), "OK");
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&lines);
        std::thread::spawn(move || {
            while let Ok(line) = connection.answer() {
                notes.lock().expect("no panic while held").push(line);
            }
        });
        Self(lines)
    }

    /// The commands that were sent, or called by scripts, what the first look tries left out.
    fn seen(&self) -> BTreeSet<String> {
        let lines = self.0.lock().expect("no panic while held");
        let one = |line: &String| {
            let (front, command) = line.split_once("] ")?;
            let is_script = front.ends_with(" lua");
            let mut words = command.split('"').skip(1).step_by(2);
            let name = words.next()?.to_lowercase();
            let is_trial = !is_script && (command.contains(":probe") || command.contains("\"return\""));
            // What the test itself says begins in database 0.
            let is_ours = !is_script && front.contains("[0 ") && name != "select";
            (!is_trial && !is_ours).then_some(name)
        };
        lines.iter().filter_map(one).collect()
    }
}

fn rights() -> BTreeSet<String> {
    let page = include_str!("../../docs/redis.md");
    let (_, line) = page.split_once("ACL SETUSER weir on >password ").expect("the page has the line");
    let (line, _) = line.split_once("```").expect("the block ends");
    line.split_whitespace().filter_map(|word| word.strip_prefix('+')).map(str::to_owned).collect()
}

/// What the ACL denied.
fn refused(redis: &Redis) -> Vec<String> {
    let log = redis.cli(&["ACL", "LOG"]);
    let lines: Vec<&str> = log.lines().collect();
    let objects = lines.windows(2).filter(|pair| pair[0] == "object").map(|pair| pair[1].to_owned());
    objects.collect()
}

/// The scripts that the page lists, by their names in metrics.
fn scripts() -> Vec<String> {
    let page = include_str!("../../docs/redis.md");
    let rows = page.lines().filter(|line| line.starts_with("| `src/"));
    let names = rows.flat_map(|row| row.split('|').nth(2).unwrap_or_default().split(','));
    names.map(|name| name.trim().trim_matches('`').to_owned()).collect()
}

fn everything() -> (Upstream, Gate) {
    let (up, gate) = (upstream(), Gate::new());
    up.on("*", |request| reply(request.target().to_owned()).header("cache-control", "no-store"));
    up.on("/items/1", |_| reply("an item").max_age(600));
    up.on("/items/2", |_| reply("an item").max_age(600));
    up.on("/items/part", |request| match request.header("range") {
        Some(_) => reply("23").status(206).max_age(60).header("content-range", "bytes 2-3/10"),
        None => reply("0123456789").max_age(60),
    });
    up.route("/items/slow", reply("first").then_gate(&gate).then("last").max_age(600));
    up.route("/limited", reply("first").then_gate(&gate).then("last").header("cache-control", "no-store"));
    up.on("/paid", |_| reply("paid").header("x-cost", "7").header("cache-control", "no-store"));
    (up, gate)
}

/// Every script runs, every documented command is called, and nothing is refused: the line is enough, and none of its words
/// is there in vain.
#[tokio::test]
async fn with_the_documented_permissions_everything_runs_and_each_of_them_is_used() {
    let ((up, gate), redis) = (everything(), redis());
    add_user(&redis, "weir");
    let mut shell = redis.line();
    shell.say(&["SELECT", "1"]).unwrap();
    shell.say(&["HSET", "it:tiers:api", "alice", "gold"]).unwrap();
    let monitor = Monitor::of(&redis);
    let setup = by_user(&up, &redis, EVERYTHING);
    let mut weirs = setup.fleet(2).await;
    for weir in &weirs {
        assert!(looked_at(weir).await.1.is_empty());
    }
    let (one, other) = (&weirs[0], &weirs[1]);
    // A record from long ago, to be trimmed.
    shell.say(&["XADD", "it:log:{it:invalidate:in}", "0-1", "t", "1", "o", "{}"]).unwrap();

    // One fetch for both pods, which takes long, and requests in flight which do.
    let ask = |weir: &Weir, path: &'static str| {
        let proxy = weir.proxy;
        tokio::spawn(async move { get(path).send(proxy).await })
    };
    let mut waiting = vec![ask(one, "/items/slow"), ask(one, "/limited")];
    gate.reached(2).await;
    waiting.extend([ask(other, "/items/slow"), ask(other, "/limited")]);
    let ran = |script: &str| format!(r#"weir_redis_commands_total{{command="{script}",result="ok"}}"#);
    for script in ["renew", "limit_renew"] {
        one.metric_reaches(&ran(script), 1.0).await;
    }
    gate.open();
    for answer in waiting {
        assert!(answer.await.unwrap().text().ends_with("last"));
    }

    // Parts, the whole in their place, what cannot be read.
    assert_eq!(one.send(get("/items/part").header("range", "bytes=2-3")).await.status, 206);
    assert_eq!(one.get("/items/part").await.status, 200);
    assert_eq!(one.get("/items/2").await.status, 200);
    let stored = || redis.cli(&["EVAL", "redis.call('SELECT', 1) return redis.call('KEYS', 'it:e:*')", "0"]);
    eventually("all are stored", || stored().lines().count() >= 3).await;
    for key in stored().lines() {
        shell.say(&["SET", key, "nonsense"]).unwrap();
    }
    assert_eq!(other.get("/items/2").await.status, 200);

    // Limits.
    for weir in &weirs {
        for path in ["/single", "/paid", "/login", "/limited"] {
            for _ in 0..20 {
                assert_eq!(weir.get(path).await.status, 200, "{path}");
            }
        }
        assert_eq!(weir.send(get("/tiers").header("x-api-key", "alice")).await.status, 200);
        assert_eq!(weir.admin("/limits/single?ip=127.0.0.1").await.status, 200);
        assert_eq!(weir.admin("/limits").await.status, 200);
        let reset = request("DELETE", "/limits/log?ip=127.0.0.1").header("host", &weir.admin.to_string());
        assert_eq!(reset.send(weir.admin).await.status, 200);
        let explained = weir.admin("/explain?method=GET&url=http://service.test/items/1").await;
        assert_eq!(explained.status, 200, "{explained:?}");
    }

    // Every door.
    let mut connection = Connection::open(one.proxy).await;
    for (at, door) in ["write", "admin", "stream", "channel"].into_iter().enumerate() {
        within_async(ALL_OF_IT, "it is stored for both", async || {
            one.get("/items/1").await.status == 200 && other.get("/items/1").await.is_hit()
        })
        .await;
        match door {
            "write" => assert_eq!(one.send(request("POST", "/write/1")).await.status, 200),
            "admin" => {
                let answer = one.invalidate(r#"{"tags": ["item:1"], "wait": "all"}"#).await;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            "stream" => drop(shell.say(&["XADD", "it:invalidate:in", "*", "tags", "item:1"]).unwrap()),
            _ => drop(shell.say(&["PUBLISH", "it:invalidate", r#"{"tags":["item:1"]}"#]).unwrap()),
        }
        let fetched = up.count("/items/1");
        within_async(ALL_OF_IT, door, async || {
            other.get("/items/1").await.status == 200 && up.count("/items/1") > fetched
        })
        .await;
        assert!(up.count("/items/1") > at);
    }

    // What is read most.
    within_async(ALL_OF_IT, "it is told what is read most", async || {
        for _ in 0..200 {
            assert_eq!(connection.send(&get("/items/2")).await.status, 200);
        }
        one.metric(&ran("hot")).await > 0.0
    })
    .await;
    // What was lent of a bucket that is half empty is given back once its client is quiet.
    for _ in 0..100 {
        assert_eq!(connection.send(&get("/single")).await.status, 200);
    }
    one.metric_reaches(&ran("limit_repay"), 1.0).await;
    // A new pod, which reads the log from its end, and one that leaves.
    weirs.push(setup.start().await);
    looked_at(&weirs[2]).await;
    let mut leaving = weirs.remove(1);
    let mut metrics = leaving.metrics().await;
    leaving.sigterm();
    assert_eq!(leaving.ended(ALL_OF_IT).await, Some(0));

    let unused = || rights().difference(&monitor.seen()).cloned().collect::<Vec<_>>();
    within_async(ALL_OF_IT, &format!("{:?} are used", unused()), async || unused().is_empty()).await;
    for weir in &weirs {
        metrics += &weir.metrics().await;
    }
    // Who leaves shows no metrics any more.
    for script in scripts().iter().filter(|script| *script != "leave") {
        assert!(sum(&metrics, &ran(script)) > 0.0, "{script} did not run");
    }
    assert_eq!(sum(&metrics, r#"weir_redis_commands_total{result="error"}"#), 0.0);
    assert_eq!(refused(&redis), [] as [String; 0]);

    // By client tracking, with what that needs in addition.
    redis.cli(&["ACL", "SETUSER", "weir", "+client|tracking"]);
    let tracking = setup.set("redis.bus", "tracking").start().await;
    assert!(looked_at(&tracking).await.1.is_empty());
    one_more_is_heard(&weirs[0], &tracking, &up).await;
    assert_eq!(refused(&redis), [] as [String; 0]);
}

async fn one_more_is_heard(one: &Weir, other: &Weir, up: &Upstream) {
    assert_eq!(other.get("/items/1").await.status, 200);
    let fetched = up.count("/items/1");
    one.invalidate(r#"{"tags": ["item:1"]}"#).await;
    within_async(ALL_OF_IT, "it is heard", async || {
        other.get("/items/1").await.status == 200 && up.count("/items/1") > fetched
    })
    .await;
}
