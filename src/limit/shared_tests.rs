use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::algorithm::State;
use super::super::bucket;
use super::super::local::{Ask, Local};
use super::*;
use crate::kv::bus::Dedicated;
use crate::kv::tests::Server;
use crate::syntax::rate::Rate;

/// Longest that a bucket outlives its being full.
const TTL_MARGIN_MS: u64 = 1000;

/// Buckets that a history is about.
const BUCKETS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    /// Takes from the first `n` buckets; which of them only count.
    Take(usize, [bool; BUCKETS]),
    /// Gives back the `n`th last admitted take.
    Refund(usize),
    /// A reload changes one limit.
    Reshape(usize, Shape),
}

fn shapes() -> impl Strategy<Value = Shape> {
    let periods = prop_oneof![Just(1000), Just(60_000), Just(3_600_000), Just(86_400_000)];
    let bursts = prop_oneof![4 => 1..6u32, 1 => 1..100_000u32];
    (1..5000u32, periods, bursts, 1..4u32).prop_map(|(amount, period_ms, burst, pods)| {
        Shape::TokenBucket(bucket::Shape::new(Rate { amount, period_ms }, burst)).divided(pods)
    })
}

fn histories() -> impl Strategy<Value = ([Shape; BUCKETS], Vec<Step>)> {
    let pass = prop_oneof![
        4 => 0..2000i64,
        4 => 0..3_000_000i64,
        1 => -900_000..0i64,
        1 => -4_000_000_000..-1_000_000i64,
    ];
    let step = prop_oneof![
        8 => (1..=BUCKETS, any::<[bool; BUCKETS]>()).prop_map(|(n, counting)| Step::Take(n, counting)),
        5 => pass.prop_map(Step::Pass),
        2 => (0..4usize).prop_map(Step::Refund),
        1 => (0..BUCKETS, shapes()).prop_map(|(n, shape)| Step::Reshape(n, shape)),
    ];
    ([shapes(), shapes(), shapes()], prop::collection::vec(step, 1..60))
}

/// Redis on one side, its twin on the other.
struct Twins {
    redis: Dedicated,
    local: Local,
    keys: [String; BUCKETS],
    shapes: [Shape; BUCKETS],
    now: i64,
    admitted: Vec<Vec<(usize, Shape, Mark)>>,
}

impl Twins {
    async fn script(&mut self, script: &Script, keys: &[usize], mut args: Vec<Vec<u8>>) -> Reply {
        args[0] = self.now.to_string().into_bytes();
        let count = keys.len().to_string();
        let mut parts: Vec<&[u8]> = vec![b"EVAL", script.source.as_bytes(), count.as_bytes()];
        parts.extend(keys.iter().map(|&index| self.keys[index].as_bytes()));
        parts.extend(args.iter().map(Vec::as_slice));
        self.redis.command(&parts, Duration::from_secs(5)).await.unwrap()
    }

    async fn take(&mut self, limits: usize, counting: [bool; BUCKETS]) {
        let now = self.now as f64;
        let asks: Vec<_> = (0..limits)
            .map(|i| Ask {
                name: i as u128,
                scope: "",
                shape: self.shapes[i],
                enforced: !counting[i],
                joined: false,
                cost: 1.0,
            })
            .collect();
        let local = self.local.take(&asks, now);
        let shapes: Vec<_> = asks.iter().map(|ask| ShapeArgs::new(&ask.shape)).collect();
        let mode = |ask: &Ask<'_>| if ask.enforced { Mode::Enforced } else { Mode::Counting };
        let args = take_args(b"", shapes.iter().zip(&asks).map(|(shape, ask)| (shape, &b"1"[..], mode(ask))));
        let args = args.into_iter().map(<[u8]>::to_vec).collect();
        let reply = self.script(&TAKE, &(0..limits).collect::<Vec<_>>(), args).await;
        let shared = taken(&reply, limits, |i| (self.shapes[i], 1.0)).unwrap();
        assert_eq!(shared, local, "at {now}");
        let charges = shared.iter().enumerate().filter_map(|(i, reading)| Some((i, self.shapes[i], reading.mark?)));
        self.admitted.push(charges.collect());
    }

    async fn refund(&mut self, nth_last: usize) {
        let Some(index) = self.admitted.len().checked_sub(nth_last + 1) else { return };
        let charges = self.admitted.remove(index);
        for (i, shape, mark) in &charges {
            // Only what is there: the script leaves out what is gone, which is full.
            if self.local.state(*i as u128).is_some() {
                let ask = Ask { name: *i as u128, scope: "", shape: *shape, enforced: true, joined: false, cost: 1.0 };
                self.local.refund(&ask, mark, self.now as f64);
            }
        }
        let shapes: Vec<_> = charges.iter().map(|(_, shape, _)| ShapeArgs::new(shape)).collect();
        let args = refund_args(b"", shapes.iter().zip(charges.iter().map(|(_, _, mark)| mark)));
        let keys: Vec<_> = charges.iter().map(|(i, _, _)| *i).collect();
        assert_eq!(self.script(&REFUND, &keys, args).await, Reply::Int(charges.len() as i64));
    }

    /// Both hold the same bits.
    async fn compare(&mut self) {
        for (i, key) in self.keys.clone().iter().enumerate() {
            let kept = self.command(&["GET", key]).await;
            let twin = self.local.state(i as u128);
            let same = twin.as_ref().map_or(Reply::Nil, |bucket| Reply::Bytes(State::bytes(bucket).into()));
            assert_eq!(kept, same, "bucket {i}: {twin:?}");
        }
    }

    async fn command(&mut self, parts: &[&str]) -> Reply {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        self.redis.command(&parts, Duration::from_secs(5)).await.unwrap()
    }
}

async fn play(redis: Dedicated, shapes: [Shape; BUCKETS], steps: &[Step]) {
    let keys = [0, 1, 2].map(|i| format!("{:016x}:{i}", crate::kv::random()));
    let mut twins =
        Twins { redis, local: Local::new(), keys, shapes, now: 1_700_000_000_000_000, admitted: Vec::new() };
    for step in steps {
        match step {
            Step::Pass(us) => twins.now += us,
            Step::Take(limits, counting) => twins.take(*limits, *counting).await,
            Step::Refund(nth_last) => twins.refund(*nth_last).await,
            Step::Reshape(index, shape) => twins.shapes[*index] = *shape,
        }
        twins.compare().await;
    }
}

#[test]
fn the_scripts_and_their_twin_agree_on_every_step() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::up());
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let played = TestRunner::new(config).run(&histories(), |(shapes, steps)| {
        runtime.block_on(async {
            let redis = Dedicated::open(&server.shared()).await.unwrap();
            play(redis, shapes, &steps).await;
        });
        Ok(())
    });
    played.unwrap();
}

#[tokio::test]
async fn a_bucket_in_redis_has_a_ttl_of_its_time_to_full() {
    let server = Server::up().await;
    let shape = ShapeArgs::new(&Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 60_000 }, 5)));
    let mut redis = Dedicated::open(&server.shared()).await.unwrap();
    let mut parts: Vec<&[u8]> = vec![b"EVAL", TAKE.source.as_bytes(), b"1", b"key"];
    parts.extend(take_args(b"", [(&shape, &b"1"[..], Mode::Enforced)].into_iter()));
    for charged in 1..=7 {
        redis.command(&parts, Duration::from_secs(5)).await.unwrap();
        let Reply::Int(ttl_ms) = server.command(&["PTTL", "key"]).await else { panic!("PTTL is a number") };
        let full_ms = charged.min(5) * 60_000;
        assert!((full_ms - 10_000..=full_ms + TTL_MARGIN_MS as i64).contains(&ttl_ms), "{ttl_ms} after {charged}");
    }
}

#[test]
fn a_reply_that_is_none_is_told_apart() {
    let good =
        vec![Reply::Int(5), Reply::Int(1), Reply::Int(9), Reply::Int(0), Reply::Int(7), Reply::Int(0), Reply::Int(0)];
    let shape = Shape::TokenBucket(bucket::Shape { accrual: 1.0, price: 3.0, capacity: 9.0 });
    let asked = |_| (shape, 2.0);
    let readings = taken(&Reply::Array(good.clone()), 1, asked).unwrap();
    let mark = bucket::Mark { at: 5.0, room: 0.0, paid: 6.0, returned: 0.0 };
    assert_eq!(readings[0].mark, Some(Mark::TokenBucket(mark)));
    assert_eq!(readings[0].level, Level { remaining: 9, wait_ms: 0, full_ms: 7 });
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] = Reply::Int(-1);
        assert_eq!(taken(&Reply::Array(bad.clone()), 1, asked), None);
        bad.remove(at);
        assert_eq!(taken(&Reply::Array(bad), 1, asked), None);
    }
    assert_eq!(taken(&Reply::Array(good), 2, asked), None);
    assert_eq!(taken(&Reply::Nil, 0, asked), None);
}

/// A denial writes nothing; but if it did not write that the clock was set back, the next would gain nothing either.
#[tokio::test]
async fn a_clock_set_back_denies_nobody_until_it_is_where_it_was() {
    let server = Server::up().await;
    let shape = ShapeArgs::new(&Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 1000 }, 1)));
    let mut redis = Dedicated::open(&server.shared()).await.unwrap();
    let mut admitted = async |at_us: i64| {
        let now = at_us.to_string();
        let mut args = take_args(b"", [(&shape, &b"1"[..], Mode::Enforced)].into_iter());
        args[0] = now.as_bytes();
        let mut parts: Vec<&[u8]> = vec![b"EVAL", TAKE.source.as_bytes(), b"1", b"key"];
        parts.extend(args);
        let Reply::Array(items) = redis.command(&parts, Duration::from_secs(5)).await.unwrap() else { panic!("list") };
        items[1] == Reply::Int(1)
    };
    let now = 1_700_000_000_000_000;
    let back = now - 3_600_000_000;
    assert!(admitted(now).await);
    assert!(!admitted(back).await);
    assert!(!admitted(back + 500_000).await);
    assert!(admitted(back + 1_000_000).await);
}
