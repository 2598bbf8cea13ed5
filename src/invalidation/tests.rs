use prometheus::Registry;
use tokio::task::JoinHandle;

use super::bus::RETRY_EVERY;
use super::*;
use crate::clock::Stopwatch;
use crate::config::{self, Bus};
use crate::kv::bus::Dedicated;
use crate::kv::tests::{Server, eventually, turn_to};

/// The bound B of these tests: a proof each 250 ms.
const BOUND: Duration = Duration::from_secs(1);

/// One pod, with its control work running.
struct Pod {
    state: Arc<Invalidation>,
    shared: Arc<kv::Shared>,
    work: JoinHandle<()>,
}

impl Pod {
    fn start(server: &Server) -> Self {
        Self::on(server, Bus::Publish)
    }

    fn on(server: &Server, bus: Bus) -> Self {
        let shared = server.shared_with(&config::Redis { bus, ..server.config() });
        let (state, work) = Invalidation::shared(Arc::clone(&shared), Bounds { shortest: BOUND, longest: BOUND });
        Self { state, shared, work: tokio::spawn(work) }
    }

    async fn ready(server: &Server) -> Self {
        Self::ready_on(server, Bus::Publish).await
    }

    async fn ready_on(server: &Server, bus: Bus) -> Self {
        let pod = Self::on(server, bus);
        eventually("connected", async || pod.state.status().connected).await;
        assert!(pod.state.ready().await);
        pod
    }

    fn verdict(&self, position: Position, tag: &str) -> Verdict {
        verdict(&self.state, position, tag)
    }

    /// Whether what was fetched under the log that is followed may be used.
    fn trusts(&self, now: SteadyMs, asked: SteadyMs, spread: f64) -> bool {
        self.state.trusted(self.state.followed().unwrap_or_default(), (now, asked), BOUND, spread)
    }

    async fn learns(&self, what: &str, position: Position, tag: &str, expected: Verdict) {
        eventually(what, async || self.verdict(position, tag) == expected).await;
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// What nothing here names.
const ANYTHING: Subject<'static> =
    Subject { host: "h", path: "/elsewhere", query: None, also: &[], route: "elsewhere", tags: &[], answer_tags: &[] };

fn verdict(state: &Invalidation, position: Position, tag: &str) -> Verdict {
    let tags = [tag.to_owned()];
    state.verdict(
        position,
        &Subject { host: "h", path: "/p", query: None, also: &[], route: "r", tags: &tags, answer_tags: &[] },
    )
}

fn tags(name: &str) -> Order {
    Order { tags: vec![name.to_owned()], ..Order::default() }
}

async fn log_length(server: &Server) -> u64 {
    let key = String::from_utf8(server.shared().keys.log()).unwrap();
    server.command(&["XLEN", &key]).await.number().unwrap()
}

#[tokio::test]
async fn without_redis_it_counts_by_itself() {
    let state = Invalidation::local(Clock::system(), Metrics::new(Registry::new()));
    let before = state.position(&ANYTHING);
    let version = state.version();
    let receipt = state.submit(&tags("a"), Door::Admin).await.unwrap();
    assert!(receipt.logged && state.version() > version);
    assert_eq!(verdict(&state, before, "a"), Verdict::Gone);
    assert_eq!(verdict(&state, before, "b"), Verdict::Valid);
    assert_eq!(verdict(&state, state.position(&ANYTHING), "a"), Verdict::Valid);
    assert!(state.trusted(Position::default(), (1_000_000, 0), BOUND, 0.0));
    assert!(state.submit(&Order::default(), Door::Admin).await.is_err());
    state.ready().await;
}

#[tokio::test]
async fn who_is_ready_uses_what_others_stored() {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    one.state.submit(&tags("past"), Door::Admin).await.unwrap();
    let stored = one.state.position(&ANYTHING);
    let new = Pod::start(&server);
    assert!(new.state.ready().await);
    assert_eq!(new.verdict(stored, "any"), Verdict::Valid);
    assert!(new.state.trusted(stored, (new.shared.clock.steady(), 0), BOUND, 1.0));
}

#[tokio::test]
async fn each_door_reaches_the_other_pod() {
    let server = Server::up().await;
    let (one, other) = (Pod::ready(&server).await, Pod::ready(&server).await);
    let before = other.state.position(&ANYTHING);
    assert_eq!(before, one.state.position(&ANYTHING));

    let receipt = one.state.submit(&tags("admin"), Door::Admin).await.unwrap();
    assert!(receipt.logged);
    assert_eq!(one.verdict(before, "admin"), Verdict::Gone, "at once where it was acknowledged");
    other.learns("the admin door", before, "admin", Verdict::Gone).await;

    let soft = Order { soft: true, ..tags("soft") };
    one.state.submit(&soft, Door::Admin).await.unwrap();
    other.learns("a soft one", before, "soft", Verdict::Stale).await;

    server.command(&["PUBLISH", "shop-prod:invalidate", r#"{"tags":["publish"]}"#]).await;
    server.command(&["XADD", "shop-prod:invalidate:in", "*", "tags", "x stream", "soft", "0"]).await;
    server.command(&["XADD", "shop-prod:invalidate:in", "*", "nonsense", "x"]).await;
    for pod in [&one, &other] {
        pod.learns("the publish door", before, "publish", Verdict::Gone).await;
        pod.learns("the stream door", before, "stream", Verdict::Gone).await;
    }
    eventually("the stream is empty", async || {
        server.command(&["XLEN", "shop-prod:invalidate:in"]).await.number() == Some(0)
    })
    .await;
    eventually("level", async || one.state.position(&ANYTHING) == other.state.position(&ANYTHING)).await;
    assert_eq!(log_length(&server).await, 4, "each was logged once");
    assert_eq!(one.state.position(&ANYTHING), Position { seq: 4, ..before });
    assert_eq!(one.verdict(one.state.position(&ANYTHING), "publish"), Verdict::Valid);
    eventually("both are seen", async || one.state.status().pods == 2).await;
}

#[tokio::test]
async fn each_door_takes_milliseconds() {
    doors_take_milliseconds(Bus::Publish).await;
}

#[tokio::test]
async fn each_door_takes_milliseconds_by_tracking() {
    doors_take_milliseconds(Bus::Tracking).await;
}

async fn doors_take_milliseconds(bus: Bus) {
    let server = Server::up().await;
    let (one, other) = (Pod::ready_on(&server, bus).await, Pod::ready_on(&server, bus).await);
    let mut took = Vec::new();
    for round in 0..60 {
        let (tag, before) = (format!("t{round}"), other.state.position(&ANYTHING));
        let watch = Stopwatch::start();
        match round % 3 {
            0 => drop(one.state.submit(&tags(&tag), Door::Admin).await.unwrap()),
            1 => drop(server.command(&["PUBLISH", "shop-prod:invalidate", &format!(r#"{{"tags":["{tag}"]}}"#)]).await),
            _ => drop(server.command(&["XADD", "shop-prod:invalidate:in", "*", "tags", &tag]).await),
        }
        other.learns("the invalidation", before, &tag, Verdict::Gone).await;
        took.push(watch.elapsed());
    }
    took.sort();
    assert!(took[57] < Duration::from_millis(50), "{took:?}");
}

#[tokio::test]
async fn a_second_equal_message_is_not_taken_for_the_first() {
    second_equal_messages(Bus::Publish).await;
}

#[tokio::test]
async fn nor_is_it_by_tracking() {
    second_equal_messages(Bus::Tracking).await;
}

async fn second_equal_messages(bus: Bus) {
    let server = Server::up().await;
    let (one, other) = (Pod::ready_on(&server, bus).await, Pod::ready_on(&server, bus).await);
    for round in 1..=20 {
        let before = one.state.position(&ANYTHING);
        server.command(&["PUBLISH", "shop-prod:invalidate", r#"{"tags":["a"]}"#]).await;
        for pod in [&one, &other] {
            pod.learns("the message", before, "a", Verdict::Gone).await;
            eventually("logged", async || pod.state.position(&ANYTHING).seq > before.seq).await;
        }
        eventually("level", async || one.state.position(&ANYTHING) == other.state.position(&ANYTHING)).await;
        assert!(log_length(&server).await >= round);
    }
}

#[tokio::test]
async fn what_the_bus_loses_is_read_from_the_log() {
    lost_messages(Bus::Publish).await;
}

#[tokio::test]
async fn so_is_what_tracking_loses() {
    lost_messages(Bus::Tracking).await;
}

/// Redis tells everybody who tracks anything of a flush, of whatever database.
#[tokio::test]
async fn a_flush_of_another_database_makes_nobody_deaf() {
    let server = Server::up().await;
    let (one, other) = (Pod::ready_on(&server, Bus::Tracking).await, Pod::ready_on(&server, Bus::Tracking).await);
    let mut foreign = Dedicated::open(&server.shared()).await.unwrap();
    for round in 0..20 {
        let (tag, before) = (format!("t{round}"), one.state.position(&ANYTHING));
        foreign.command(&[b"SELECT", b"3"], Duration::from_secs(5)).await.unwrap();
        foreign.command(&[b"FLUSHDB"], Duration::from_secs(5)).await.unwrap();
        let heard = server.command(&["PUBLISH", "shop-prod:invalidate", &tag]).await;
        assert_eq!(heard.number(), Some(2), "both listen");
        for pod in [&one, &other] {
            pod.learns("the message", before, &tag, Verdict::Gone).await;
        }
    }
}

async fn lost_messages(bus: Bus) {
    let server = Server::up().await;
    let (one, other) = (Pod::ready_on(&server, bus).await, Pod::ready_on(&server, bus).await);
    let before = other.state.position(&ANYTHING);
    for i in 0..200 {
        if i % 20 == 0 {
            server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
        assert!(one.state.submit(&tags(&format!("t{i}")), Door::Admin).await.unwrap().logged);
    }
    for i in 0..200 {
        other.learns("every one", before, &format!("t{i}"), Verdict::Gone).await;
    }
    eventually("level", async || other.state.position(&ANYTHING).seq == before.seq + 200).await;
    assert_eq!(other.verdict(before, "never named"), Verdict::Valid, "nothing was lost");
}

/// Makes a log of nothing but record 9, logged at `time_ms`.
async fn trimmed_past_the_cursor(time_ms: &str) {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    let before = one.state.position(&ANYTHING);
    let keys = &server.shared().keys;
    let (counter, log) = (String::from_utf8(keys.counter()).unwrap(), String::from_utf8(keys.log()).unwrap());
    let script = "redis.call('XADD', KEYS[1], '9-0', 't', ARGV[1], 'o', '{\"tags\":[\"x\"]}') \
                  return redis.call('HSET', KEYS[2], 'seq', '9')";
    server.command(&["EVAL", script, "2", &log, &counter, time_ms]).await;
    one.learns("the loss", before, "never named", Verdict::Gone).await;
    eventually("level", async || one.state.position(&ANYTHING) == Position { seq: 9, ..before }).await;
    assert_eq!(one.verdict(one.state.position(&ANYTHING), "x"), Verdict::Valid);
}

#[tokio::test]
async fn trimmed_past_the_cursor_the_floor_rises() {
    trimmed_past_the_cursor("99999999999999").await;
}

#[tokio::test]
async fn trimmed_by_age_to_nothing_the_floor_rises_too() {
    trimmed_past_the_cursor("0").await;
}

#[tokio::test]
async fn a_joiner_learns_what_was_logged_before_it() {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    let before = one.state.position(&ANYTHING);
    let count = 2 * log::PAGE + 10;
    for i in 0..count {
        one.state.submit(&tags(&format!("t{i}")), Door::Admin).await.unwrap();
    }
    let joiner = Pod::ready(&server).await;
    assert_eq!(joiner.state.position(&ANYTHING), one.state.position(&ANYTHING));
    assert_eq!(joiner.verdict(before, "other"), Verdict::Valid, "the floor went down to the log's beginning");
    for i in 0..count {
        assert_eq!(joiner.verdict(before, &format!("t{i}")), Verdict::Gone);
    }
}

#[tokio::test]
async fn redis_back_empty_is_another_incarnation() {
    let mut server = Server::up().await;
    let one = Pod::ready(&server).await;
    let before = one.state.position(&ANYTHING);
    assert_eq!(one.verdict(before, "a"), Verdict::Valid);
    assert_eq!(one.shared.lost_ms(), 0, "a Redis that is new to all has lost nothing");
    server.kill();
    server.start().await;
    let watch = Stopwatch::start();
    one.learns("the loss", before, "a", Verdict::Gone).await;
    eventually("it is noted", async || one.shared.lost_ms() > 0).await;
    assert!(watch.elapsed() < Duration::from_secs(5));
    let after = one.state.position(&ANYTHING);
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!(one.verdict(after, "a"), Verdict::Valid);
    let first = one.shared.lost_ms();
    server.command(&["FLUSHALL"]).await;
    one.learns("emptied while running", after, "a", Verdict::Gone).await;
    eventually("that is noted too", async || one.shared.lost_ms() > first).await;
    let other = Pod::ready(&server).await;
    assert_eq!(other.shared.lost_ms(), one.shared.lost_ms(), "who starts later is told");
}

/// Redis is promoted twice, and forgets who was there: those who were there before the first time are still waited for.
#[tokio::test]
async fn who_was_there_before_an_heir_that_never_inherited_is_waited_for() {
    let server = Server::up().await;
    let (one, other) = (Pod::ready(&server).await, Pod::ready(&server).await);
    eventually("both are seen", async || one.state.status().pods == 2).await;
    drop(other);
    let keys = &server.shared().keys;
    let [counter, pods, applied] =
        [keys.counter(), keys.pods(), keys.applied()].map(|key| String::from_utf8(key).unwrap());
    let mut began = Stopwatch::start();
    for run_id in ["one", "two"] {
        let before = one.state.followed();
        server.command(&["DEL", &pods, &applied]).await;
        began = Stopwatch::start();
        server.command(&["HSET", &counter, "run_id", run_id]).await;
        eventually("it follows the heir", async || {
            one.state.followed().map(|at| at.incarnation) != before.map(|at| at.incarnation)
        })
        .await;
    }
    eventually("it inherits", async || !one.state.mirror.read().unwrap().may_inherit()).await;
    assert!(began.elapsed() >= BOUND, "{:?}", began.elapsed());
}

/// A master that was cut off is reached again: it lacks what its heir has, whose child it is not.
#[tokio::test]
async fn an_older_log_that_is_found_again_is_told_that_it_lacks_what_came_since() {
    let server = Server::up().await;
    let pod = Pod::ready(&server).await;
    pod.state.submit(&tags("a"), Door::Admin).await.unwrap();
    let older = pod.state.followed().unwrap();
    let keys = &server.shared().keys;
    let both = [keys.counter(), keys.log()].map(|key| String::from_utf8(key).unwrap());
    for key in &both {
        server.command(&["COPY", key, &format!("older {key}")]).await;
    }
    let follows =
        |what: fn(u64, u64) -> bool| pod.state.followed().is_some_and(|at| what(at.incarnation, older.incarnation));
    server.command(&["HSET", &both[0], "run_id", "another"]).await;
    eventually("it follows the heir", async || follows(|now, older| now != older)).await;
    pod.state.submit(&tags("b"), Door::Admin).await.unwrap();
    for key in &both {
        server.command(&["COPY", &format!("older {key}"), key, "REPLACE"]).await;
    }
    eventually("it is back", async || follows(|now, older| now == older)).await;
    assert_eq!(pod.verdict(older, "b"), Verdict::Gone);
    eventually("it is told", async || log_length(&server).await == older.seq + 1).await;
    let since = || pod.verdict(pod.state.followed().unwrap(), "b");
    eventually("what is fetched since is kept", async || since() == Verdict::Valid).await;
}

#[tokio::test]
async fn while_redis_is_away_it_is_applied_here_and_logged_later() {
    let mut server = Server::up().await;
    let one = Pod::ready(&server).await;
    let before = one.state.position(&ANYTHING);
    server.kill();
    let watch = Stopwatch::start();
    let receipt = one.state.submit(&tags("a"), Door::Write).await.unwrap();
    assert!(!receipt.logged && watch.elapsed() < SUBMIT_WAIT);
    assert_eq!(one.verdict(before, "a"), Verdict::Gone);
    let detached = one.state.position(&ANYTHING);
    assert_eq!(one.verdict(detached, "a"), Verdict::Valid, "a fill of now is of use in this pod");
    eventually("trust ends", async || !one.trusts(one.shared.clock.steady(), 0, 0.0)).await;
    let now = one.shared.clock.steady();
    assert!(one.trusts(now, now - 900, 1.0));
    assert!(!one.trusts(now, now - 1100, 1.0));
    server.start().await;
    eventually("logged", async || log_length(&server).await == 1).await;
    eventually("trusted again", async || one.trusts(one.shared.clock.steady(), 0, 0.0)).await;
    eventually("nothing waits", async || one.state.status().queued == 0).await;
}

#[tokio::test]
async fn after_a_freeze_it_hears_again() {
    let server = Server::up().await;
    let (one, other) = (Pod::ready(&server).await, Pod::ready(&server).await);
    let before = other.state.position(&ANYTHING);
    server.freeze(true);
    let receipt = one.state.submit(&tags("a"), Door::Admin).await.unwrap();
    assert!(!receipt.logged);
    assert_eq!(one.verdict(before, "a"), Verdict::Gone);
    eventually("noticed", async || !one.state.status().connected && !other.state.status().connected).await;
    server.freeze(false);
    let watch = Stopwatch::start();
    eventually("back", async || one.state.status().connected && other.state.status().connected).await;
    other.learns("what was queued", before, "a", Verdict::Gone).await;
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    assert_eq!(other.state.position(&ANYTHING).incarnation, before.incarnation, "nothing was lost");
}

/// Who waited for a key meanwhile may have waited for what is there by now.
#[tokio::test]
async fn once_it_hears_again_who_waits_for_a_key_looks() {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    let ring = one.shared.bells().listen(&[7; 16]);
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    tokio::time::timeout(Duration::from_secs(10), ring).await.expect("nobody rang");
}

/// On average it would have to wait for half of the pause between two tries.
#[tokio::test]
async fn another_server_with_the_log_is_joined_as_soon_as_it_is_known() {
    const TIMES: u32 = 12;
    let (server, gone) = (Server::up().await, Server::down());
    let one = Pod::ready(&server).await;
    let mut waited = Duration::ZERO;
    for _ in 0..TIMES {
        turn_to(&one.shared, &gone);
        eventually("it is gone", async || !one.state.status().connected).await;
        turn_to(&one.shared, &server);
        let watch = Stopwatch::start();
        eventually("it is back", async || one.state.status().connected).await;
        waited += watch.elapsed();
    }
    assert!(waited < RETRY_EVERY * TIMES * 3 / 10, "{waited:?}");
}

#[tokio::test]
async fn a_full_redis_acknowledges_nothing_and_still_proves() {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    let before = one.state.position(&ANYTHING);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let receipt = one.state.submit(&tags("a"), Door::Admin).await.unwrap();
    assert!(!receipt.logged);
    assert_eq!(one.verdict(before, "a"), Verdict::Gone);
    let proven_at = || one.state.fleet.as_ref().unwrap().trust.proven_at();
    let last = proven_at();
    eventually("another proof", async || proven_at() > last + 300).await;
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually("logged", async || log_length(&server).await == 1).await;
}

/// It may be one that was cut off, in whose place another takes invalidations.
#[tokio::test]
async fn a_master_that_refuses_writes_without_its_replicas_proves_nothing() {
    let server = Server::up().await;
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let script = "return redis.pcall('SET', 'shop-prod:probe', 0).err and 1 or 0";
    if server.command(&["EVAL", script, "0"]).await.number() == Some(0) {
        // Before Redis 7 that is not for scripts.
        return;
    }
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    let one = Pod::ready(&server).await;
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let refused = async |times: u32| {
        let line = format!(r#"weir_redis_commands_total{{command="proof",result="error"}} {times}"#);
        eventually("refusals", async || one.shared.metrics.render(0).contains(&line)).await;
    };
    refused(1).await;
    let last = one.state.fleet.as_ref().unwrap().trust.proven_at();
    refused(3).await;
    assert_eq!(one.state.fleet.as_ref().unwrap().trust.proven_at(), last);
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    eventually("another proof", async || one.state.fleet.as_ref().unwrap().trust.proven_at() > last).await;
}

#[tokio::test]
async fn an_entry_of_the_stream_leaves_it_only_for_the_log() {
    let server = Server::up().await;
    let first = Pod::ready(&server).await;
    let before = first.state.position(&ANYTHING);
    drop(first);
    for i in 0..3 * doors::ENTRIES {
        server.command(&["XADD", "shop-prod:invalidate:in", "*", "tags", &format!("t{i}")]).await;
    }
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let one = Pod::start(&server);
    let refused = r#"weir_redis_commands_total{command="drain",result="error"} 3"#;
    eventually("refusals", async || one.shared.metrics.render(0).contains(refused)).await;
    assert!(!one.state.status().connected, "what lies at the door is not known: that is no proof");
    let there = server.command(&["XLEN", "shop-prod:invalidate:in"]).await.number();
    assert_eq!(there, Some(3 * doors::ENTRIES as u64));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    for i in 0..3 * doors::ENTRIES {
        one.learns("every entry", before, &format!("t{i}"), Verdict::Gone).await;
    }
    eventually("connected", async || one.state.status().connected).await;
    assert_eq!(log_length(&server).await, 3 * doors::ENTRIES as u64);
}

#[tokio::test]
async fn down_at_start_it_serves_and_attaches() {
    let mut server = Server::down();
    let one = Pod::start(&server);
    let detached = one.state.position(&ANYTHING);
    assert_eq!(one.verdict(detached, "a"), Verdict::Valid);
    assert!(!one.state.submit(&tags("b"), Door::Admin).await.unwrap().logged);
    server.start().await;
    let watch = Stopwatch::start();
    eventually("connected", async || one.state.status().connected).await;
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    assert_eq!(
        one.verdict(detached, "a"),
        Verdict::Gone,
        "this log is younger: nobody knows what was in one before it"
    );
    assert_eq!(one.verdict(detached, "b"), Verdict::Gone);
    eventually("logged", async || log_length(&server).await == 1).await;
    eventually("level", async || one.state.position(&ANYTHING).seq == 1).await;
}

#[tokio::test]
async fn a_bell_rings_in_other_pods() {
    let server = Server::up().await;
    let one = Pod::ready(&server).await;
    let ring = kv::Redis::new(Arc::clone(&one.shared)).listen(&[9; 16]);
    server.command(&["PUBLISH", &one.shared.keys.bell(), &"09".repeat(16)]).await;
    tokio::time::timeout(Duration::from_secs(5), ring).await.unwrap();
}
