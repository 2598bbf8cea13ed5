//! What a request costs Redis: a hit in memory nothing, one in Redis a round trip, a miss two before the upstream is asked.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::harness::{Gate, PATIENCE, Redis, eventually, redis, reply, upstream, weir};
use crate::redis_start::LOOKED_AT;

const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
"#;

/// Everything that Redis is told to do.
struct Monitor<'r> {
    redis: &'r Redis,
    lines: BufReader<TcpStream>,
    asked: usize,
}

impl<'r> Monitor<'r> {
    fn of(redis: &'r Redis) -> Self {
        let mut stream = TcpStream::connect(redis.address()).expect("Redis listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.write_all(b"MONITOR\r\n").expect("it takes commands");
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).expect("an answer");
        assert_eq!(line, "+OK\r\n");
        Self { redis, lines, asked: 0 }
    }

    /// The commands since it was last asked that concern entries and leases; those that scripts run left out.
    fn trips(&mut self) -> Vec<String> {
        self.asked += 1;
        let mark = format!("mark {}", self.asked);
        self.redis.cli(&["PING", &mark]);
        let mut trips = Vec::new();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("Redis goes on");
            if line.contains(&mark) {
                return trips;
            }
            let concerns_a_fetch = [":e:{", ":f:{", ":p:{"].iter().any(|kind| line.contains(kind));
            if concerns_a_fetch && !line.contains(" lua]") {
                trips.push(line);
            }
        }
    }
}

#[tokio::test]
async fn a_hit_costs_redis_one_round_trip_and_a_miss_two_before_the_upstream_is_asked() {
    let (up, redis, gate) = (upstream(), &redis(), Gate::new());
    up.route("/a", reply("an answer").gate(&gate));
    let weirs = weir(ROUTES).to(up.url()).redis(redis).set("redis.deadline", "1s").fleet(2).await;
    // At start a pod asks whether it may read keys of each kind.
    for weir in &weirs {
        eventually("Redis is looked at", || weir.output().iter().any(|line| line.contains(LOOKED_AT))).await;
    }
    // Redis is told its scripts when they are first run.
    up.route("/warm", reply("an answer"));
    assert_eq!(weirs[0].get("/warm").await.status, 200);
    let stored = |count| eventually("stored", move || redis.cli(&["KEYS", "*:e:{*"]).lines().count() == count);
    stored(1).await;
    let mut monitor = Monitor::of(redis);

    let (answer, before) = tokio::join!(weirs[0].get("/a"), async {
        gate.reached(1).await;
        let before = monitor.trips();
        gate.open();
        before
    });
    assert!(answer.status == 200 && !answer.is_hit());
    assert_eq!(before.len(), 2, "before the upstream was asked: {before:#?}");
    stored(2).await;
    monitor.trips();

    assert!(weirs[1].get("/a").await.is_hit());
    let hit = monitor.trips();
    assert_eq!(hit.len(), 1, "a hit in Redis: {hit:#?}");

    for weir in &weirs {
        assert!(weir.get("/a").await.is_hit());
    }
    let hits = monitor.trips();
    assert!(hits.is_empty(), "hits in memory: {hits:#?}");
    assert_eq!(up.count("/a"), 1);
}
