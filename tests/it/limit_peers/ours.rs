//! Weir itself, on a history's time: the loans, the states in memory and the scripts that it decides by, as `limit.rs` puts them together.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use weir::kv::{Reply, Script};
use weir::limit::algorithm::Shape;
use weir::limit::bucket;
use weir::limit::loans::{Due, Heard, Known, Loans, borrower};
use weir::limit::local::{Ask, Local};
use weir::limit::shared::{self, Mode, REPAY, ShapeArgs, TAKE_TOKENS};
use weir::syntax::rate::Rate;

use super::Peer;
use super::histories::{JUDGED, Micros, PODS, Quota};
use crate::harness::Redis;

/// Between two looks for loans that others may miss (`REPAYMENT` in `limit.rs`).
const REPAYMENT: Micros = 250_000;

/// A fleet of Weirs whose limits are token buckets with loans.
pub struct Weir {
    limits: Vec<Limit>,
    pods: Vec<Pod>,
    redis: Option<Line>,
    is_up: bool,
    repay_at: Micros,
    /// When the first request came: until then the buckets are full.
    began: Option<f64>,
    born: u64,
}

struct Limit {
    shape: bucket::Shape,
    args: ShapeArgs,
    scope: String,
}

/// What one process has.
struct Pod {
    loans: Loans,
    local: Local,
}

impl Weir {
    /// `redis` is emptied; without one, everything is counted in memory.
    pub fn new(quotas: &[Quota], redis: Option<&Redis>) -> Self {
        let limit = |(nth, quota): (usize, &Quota)| {
            let rate = Rate { amount: quota.amount, period_ms: quota.period_s as u32 * 1_000 };
            let shape = bucket::Shape::new(rate, quota.amount);
            Limit { shape, args: ShapeArgs::new(&Shape::TokenBucket(shape)), scope: format!("limit-{nth}") }
        };
        let limits = quotas.iter().enumerate().map(limit).collect();
        let redis = redis.map(|redis| {
            redis.cli(&["FLUSHALL"]);
            Line::open(redis)
        });
        let mut one = Self { limits, pods: Vec::new(), redis, is_up: true, repay_at: 0, began: None, born: 0 };
        one.pods = (0..PODS).map(|_| one.pod()).collect();
        one
    }

    fn pod(&mut self) -> Pod {
        self.born += 1;
        Pod { loans: Loans::new(borrower(self.born.wrapping_mul(0x9e37_79b9_7f4a_7c15))), local: Local::new() }
    }

    /// Loans of a pod that go back to Redis, if it is there.
    fn repay(&mut self, pod: usize, end: bool, at: Micros) {
        let loans = &self.pods[pod].loans;
        for one in loans.repayments(end, at as f64) {
            let Some(redis) = self.redis.as_mut().filter(|_| self.is_up) else { continue };
            let mut args = vec![wall(at)];
            args.extend(ShapeArgs::new(&Shape::TokenBucket(one.shape)).iter().map(<[u8]>::to_vec));
            args.extend([loans.who(), one.serial as f64, one.held].map(|number| number.to_string().into_bytes()));
            redis.run(&REPAY, &[one.key.to_vec()], &args);
        }
    }
}

/// Redis' time, as the scripts take a test's.
fn wall(at: Micros) -> Vec<u8> {
    (super::EPOCH + at).to_string().into_bytes()
}

/// What an identity is called in memory, and in Redis.
fn names(limit: usize, who: u32) -> (u128, Vec<u8>) {
    let mixed = (u64::from(who) << 8 | limit as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(mixed ^ (mixed >> 29)) << 64 | u128::from(mixed), format!("l:{limit}:{who}").into_bytes())
}

impl Peer for Weir {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        let now = at as f64;
        self.began.get_or_insert(now);
        if at >= self.repay_at {
            self.repay_at = at + REPAYMENT;
            (0..PODS).for_each(|pod| self.repay(pod, false, at));
        }
        let Pod { loans, local } = &self.pods[pod];
        let names: Vec<(u128, Vec<u8>)> = (0..self.limits.len()).map(|nth| names(nth, who)).collect();
        let pods = if self.redis.is_some() { PODS as u32 } else { 1 };
        let ask = |nth: usize| {
            let Limit { shape, scope, .. } = &self.limits[nth];
            let shape = Shape::TokenBucket(shape.divided(pods));
            Ask { name: names[nth].0, scope, shape, enforced: true, joined: false, cost: 1.0, id: 0 }
        };
        let asks: Vec<Ask<'_>> = (0..self.limits.len()).map(ask).collect();
        let Some(redis) = &mut self.redis else {
            return local.take(&asks, now).iter().all(|reading| reading.mark.is_some());
        };
        let due = |(limit, (name, _)): (&Limit, &(u128, Vec<u8>))| {
            let shape = Shape::TokenBucket(limit.shape);
            let (bucket, pods) = (Some(limit.shape), PODS as f64);
            let (borrows, remembers, may_lift, counts) = (true, true, false, false);
            Due { name: *name, shape, bucket, debited: bucket, borrows, cost: 1.0, pods, remembers, may_lift, counts }
        };
        let dues: Vec<Due> = self.limits.iter().zip(&names).map(due).collect();
        let admitted = match loans.consult(&dues, false, now) {
            Known::Spent(_) => true,
            Known::Denied(..) => return false,
            Known::Wait(_) => unreachable!("one asks after the other"),
            Known::Ask(asked) if self.is_up => {
                let limits = self.limits.iter().map(|limit| (&limit.args, &b"1"[..], Mode::Enforced));
                let mut args: Vec<Vec<u8>> =
                    shared::take_args(&[0; 8], limits).into_iter().map(<[u8]>::to_vec).collect();
                args[0] = wall(at);
                args.extend(asked.questions.iter().map(|question| shared::loan_arg(loans.who(), question)));
                let keys: Vec<Vec<u8>> = names.iter().map(|(_, key)| key.clone()).collect();
                let reply = redis.run(&TAKE_TOKENS, &keys, &args);
                let of = |nth: usize| (Shape::TokenBucket(self.limits[nth].shape), 1.0);
                let readings = shared::taken(&reply, 0, self.limits.len(), of).expect("a reply");
                let heard: Vec<Heard> = readings.iter().copied().map(Heard::Answer).collect();
                asked.answered(heard.iter().zip(keys.iter().map(Vec::as_slice)));
                readings.iter().all(|reading| reading.mark.is_some())
            }
            Known::Ask(asked) => {
                drop(asked);
                let readings = local.take(&asks, now);
                let admitted = readings.iter().all(|reading| reading.mark.is_some());
                if admitted {
                    dues.iter().for_each(|due| loans.spent_away(due, due.cost, None, now));
                }
                return admitted;
            }
        };
        if admitted {
            for ask in &asks {
                local.shadow(ask, now);
            }
        }
        admitted
    }

    fn restart(&mut self, pod: usize) {
        self.pods[pod] = self.pod();
    }

    fn redis(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    /// What the bucket in Redis lacks, and what it gained meanwhile.
    fn charged(&mut self) -> f64 {
        let nth = self.limits.len() - 1;
        (0..PODS).for_each(|pod| self.repay(pod, true, self.repay_at));
        let shape = self.limits[nth].shape;
        let redis = self.redis.as_mut().expect("there is a Redis");
        let raw = redis.command(&[b"GET".to_vec(), names(nth, JUDGED).1]);
        let raw = raw.bytes().expect("somebody was charged");
        let number = |at: usize| f64::from_le_bytes(raw[8 * at..8 * at + 8].try_into().expect("eight bytes"));
        let gained = (number(1) - super::EPOCH as f64 - self.began.expect("somebody asked")) * shape.accrual;
        (shape.capacity + gained - number(0)) / shape.price
    }
}

/// A connection to Redis, and the scripts that it knows.
struct Line {
    stream: BufReader<TcpStream>,
    known: BTreeMap<&'static str, Vec<u8>>,
}

impl Line {
    fn open(redis: &Redis) -> Self {
        let stream = TcpStream::connect(redis.address()).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        Self { stream: BufReader::new(stream), known: BTreeMap::new() }
    }

    fn run(&mut self, script: &Script, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Reply {
        if !self.known.contains_key(script.name) {
            let reply = self.command(&[b"SCRIPT".to_vec(), b"LOAD".to_vec(), script.source.into()]);
            self.known.insert(script.name, reply.bytes().expect("its digest").to_vec());
        }
        let digest = self.known[script.name].clone();
        let mut parts = vec![b"EVALSHA".to_vec(), digest, keys.len().to_string().into_bytes()];
        parts.extend_from_slice(keys);
        parts.extend_from_slice(args);
        self.command(&parts)
    }

    fn command(&mut self, parts: &[Vec<u8>]) -> Reply {
        let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            write!(bytes, "${}\r\n", part.len()).expect("memory");
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&bytes).expect("it takes it");
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a reply");
        let (kind, rest) = line.trim_end().split_at(1);
        match (kind, rest.parse::<i64>()) {
            (":", Ok(number)) => Reply::Int(number),
            ("*", Ok(count)) => Reply::Array((0..count).map(|_| self.reply()).collect()),
            ("$", Ok(length @ 0..)) => {
                let mut bytes = vec![0; length as usize + 2];
                self.stream.read_exact(&mut bytes).expect("all of it");
                bytes.truncate(length as usize);
                Reply::Bytes(Bytes::from(bytes))
            }
            ("$", Ok(_)) => Reply::Nil,
            _ => panic!("Redis says: {line}"),
        }
    }
}
