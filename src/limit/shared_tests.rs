use std::time::Duration;

use super::super::bucket;
use super::*;
use crate::kv::bus::Dedicated;
use crate::kv::tests::Server;
use crate::syntax::rate::Rate;

/// Longest that a bucket outlives its being full.
const TTL_MARGIN_MS: u64 = 1000;

#[tokio::test]
async fn a_bucket_in_redis_has_a_ttl_of_its_time_to_full() {
    let server = Server::up().await;
    let shape = ShapeArgs::new(&Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 60_000 }, 5)));
    let mut redis = Dedicated::open(&server.shared()).await.unwrap();
    let mut parts: Vec<&[u8]> = vec![b"EVAL", TAKE_TOKENS.source.as_bytes(), b"1", b"key"];
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
    let good = [5.0, 1.0, 9.0, 0.0, 7.0, 0.0, 0.0, 4.0];
    let shape = Shape::TokenBucket(bucket::Shape { accrual: 1.0, price: 3.0, capacity: 9.0 });
    let asked = |_| (shape, 2.0);
    let readings = taken(&packed(&good), 0, 1, asked).unwrap();
    let mark = bucket::Mark { at: 5.0, room: 0.0, paid: 6.0, returned: 0.0 };
    assert_eq!(readings[0].mark, Some(Mark::Tokens(mark)));
    assert_eq!(readings[0].lent, 4.0);
    assert_eq!(readings[0].level, Level { remaining: 9, wait_ms: 0, full_ms: 7 });
    for at in 0..good.len() {
        for number in [-1.0, f64::NAN] {
            let mut bad = good.to_vec();
            bad[at] = number;
            assert_eq!(taken(&packed(&bad), 0, 1, asked), None);
            bad.remove(at);
            assert_eq!(taken(&packed(&bad), 0, 1, asked), None);
        }
    }
    let cut = packed(&good).bytes().unwrap().slice(1..);
    assert_eq!(taken(&Reply::Bytes(cut), 0, 1, asked), None);
    assert_eq!(taken(&packed(&good), 0, 2, asked), None);
    assert_eq!(taken(&Reply::Nil, 0, 0, asked), None);
}

fn packed(numbers: &[f64]) -> Reply {
    Reply::Bytes(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
}

/// The numbers of a reply.
fn unpacked(reply: &Reply) -> Vec<f64> {
    let (numbers, rest) = reply.bytes().unwrap().as_chunks();
    assert!(rest.is_empty());
    numbers.iter().map(|number| f64::from_le_bytes(*number)).collect()
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
        let mut parts: Vec<&[u8]> = vec![b"EVAL", TAKE_TOKENS.source.as_bytes(), b"1", b"key"];
        parts.extend(args);
        unpacked(&redis.command(&parts, Duration::from_secs(5)).await.unwrap())[1] == 1.0
    };
    let now = 1_700_000_000_000_000;
    let back = now - 3_600_000_000;
    assert!(admitted(now).await);
    assert!(!admitted(back).await);
    assert!(!admitted(back + 500_000).await);
    assert!(admitted(back + 1_000_000).await);
}

/// A bucket of 4 that gains one a second: empty at the loss, whether or not somebody was denied since, and full in the end.
#[tokio::test]
async fn a_bucket_that_redis_lost_holds_what_it_gained_since() {
    let server = Server::up().await;
    let shape = ShapeArgs::new(&Shape::TokenBucket(bucket::Shape::new(Rate { amount: 1, period_ms: 1000 }, 4)));
    let mut redis = Dedicated::open(&server.shared()).await.unwrap();
    let lost_ms: i64 = 1_700_000_000_000;
    let lost = lost_arg(lost_ms as u64).unwrap();
    assert_eq!(lost_arg(0), None);
    let mut left = async |key: &str, after_ms: i64, lost: &[u8]| {
        let now = ((lost_ms + after_ms) * 1000).to_string();
        let mut args = take_args(b"", [(&shape, &b"1"[..], Mode::Enforced)].into_iter());
        args[0] = now.as_bytes();
        args.extend([&b""[..], lost]);
        let mut parts: Vec<&[u8]> = vec![b"EVAL", TAKE_TOKENS.source.as_bytes(), b"1", key.as_bytes()];
        parts.extend(args);
        let said = unpacked(&redis.command(&parts, Duration::from_secs(5)).await.unwrap());
        if said[1] == 1.0 { Ok(said[2]) } else { Err(said[3]) }
    };
    let mut other = Dedicated::open(&server.shared()).await.unwrap();
    let mut owe = async |key: &str, after_ms: i64| {
        let mut args = owe_args([(&shape, 2.0, &lost[..])].into_iter());
        args[0] = ((lost_ms + after_ms) * 1000).to_string().into_bytes();
        let mut parts: Vec<&[u8]> = vec![b"EVAL", OWE.source.as_bytes(), b"1", key.as_bytes()];
        parts.extend(args.iter().map(Vec::as_slice));
        other.command(&parts, Duration::from_secs(5)).await.unwrap();
    };
    owe("g", 0).await;
    assert_eq!(left("g", 0, &lost).await, Err(3000.0), "an answer that was on its way fills nothing");
    assert_eq!(left("a", 0, &lost).await, Err(1000.0));
    assert_eq!(left("a", 600, &lost).await, Err(400.0), "a denial writes nothing, and it gains all the same");
    assert_eq!(left("a", 1000, &lost).await, Ok(0.0));
    assert_eq!(left("a", 1999, &lost).await, Err(1.0), "from then on it is known");
    assert_eq!(left("b", 2500, &lost).await, Ok(1.0));
    assert_eq!(left("c", 60_000, &lost).await, Ok(3.0));
    assert_eq!(left("d", 0, b"").await, Ok(3.0), "of no loss, it is full");
    assert_eq!(left("e", -500, &lost).await, Err(1500.0), "a clock that was set back by little is waited for");
    assert_eq!(left("f", -5000, &lost).await, Ok(3.0), "by more, nobody waits an hour for it");
}
