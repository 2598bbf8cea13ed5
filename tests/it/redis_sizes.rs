//! How much room things take in Redis, and that the page by which operators size it says so.

use crate::harness::{Connection, Redis, eventually, get, redis, reply, upstream, weir};

const CONFIG: &str = r#"
[[limit]]
name = "all"
key = ["header:x-api-key"]
rate = "100/h"
burst = 100

[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
limits = ["all"]
"#;

/// A page's body.
const BODY: usize = 1000;

/// What `MEMORY USAGE` leaves out of a key with a TTL: its places in the tables of keys and of TTLs (`used_memory` of 200,000
/// keys).
const TABLES: u64 = 60;

/// Bytes that a key takes, its name included.
fn usage(redis: &Redis, key: &str) -> u64 {
    redis.cli(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).trim().parse().unwrap_or_default()
}

fn mean(all: &[u64]) -> u64 {
    all.iter().sum::<u64>() / all.len() as u64
}

/// What the page says that something takes: the first number of its row.
fn sized(what: &str) -> u64 {
    let page = include_str!("../../docs/redis.md");
    let sizing = page.split("\n## Sizing").nth(1).expect("the page says how to size");
    let row = sizing.lines().find(|row| row.starts_with(&format!("| {what} |"))).unwrap_or_else(|| panic!("no {what}"));
    let cell = row.split('|').nth(2).expect("a cell");
    let number = cell.split_whitespace().find_map(|word| word.replace(',', "").parse().ok());
    number.expect("a number")
}

/// The figures are not below what things take, nor far above.
#[tokio::test]
async fn things_take_as_much_as_the_page_says() {
    const ENTRIES: usize = 200;
    const ORDERS: u64 = 5_000;
    let (up, redis) = (upstream(), redis());
    up.on("*", move |_| {
        reply("x".repeat(BODY))
            .max_age(600)
            .header("vary", "x-kind")
            .header("surrogate-key", "item")
            .header("content-type", "text/html; charset=utf-8")
            .header("etag", "\"0123456789abcdef\"")
    });
    let setup = weir(CONFIG).to(up.url()).redis(&redis).set("redis.deadline", "2s");
    let weir = setup.set("cache.compress_over", "1MiB").start().await;
    let mut connection = Connection::open(weir.proxy).await;
    for i in 0..ENTRIES {
        let request = get(&format!("/catalogue/articles/{i}")).header("x-kind", "a");
        assert_eq!(connection.send(&request.header("x-api-key", &i.to_string())).await.status, 200);
    }
    let keys = |kind: &str| redis.cli(&["KEYS", kind]).lines().map(str::to_owned).collect::<Vec<_>>();
    eventually("all are stored", || keys("it:e:*").len() == 2 * ENTRIES).await;
    let usages = |kind: &str| keys(kind).iter().map(|key| usage(&redis, key) + TABLES).collect::<Vec<_>>();
    let (answers, records): (Vec<u64>, Vec<u64>) = usages("it:e:*").into_iter().partition(|bytes| *bytes > BODY as u64);
    let buckets = usages("it:l:all:*");

    let beside = |kind: &str| usage(&redis, &format!("it:{kind}:{{it:invalidate:in}}"));
    let mut shell = redis.line();
    for i in 0..ORDERS {
        shell.say(&["XADD", "it:invalidate:in", "*", "tags", &format!("article:{i}")]).expect("it takes it");
    }
    let logged = || redis.cli(&["XLEN", "it:log:{it:invalidate:in}"]).trim() == ORDERS.to_string();
    eventually("all are logged", logged).await;
    for (what, bytes) in [
        ("a stored answer", mean(&answers) - BODY as u64),
        ("a record of variants", mean(&records)),
        ("a bucket", mean(&buckets)),
        ("a logged invalidation", beside("log") / ORDERS),
        ("one logged within a minute", beside("seen") / ORDERS),
        ("a pod", beside("pods") + beside("applied") + 2 * TABLES),
    ] {
        let said = sized(what);
        eprintln!("{what}: {bytes}, and the page says {said}");
        assert!(bytes <= said && said <= bytes * 2, "{what}: {bytes} bytes, and the page says {said}");
    }
}
