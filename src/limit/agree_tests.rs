//! The scripts, in a real Redis, and their twin in memory, over the same random history: every answer and every state
//! alike. `WEIR_STEPS` steps an algorithm; `WEIR_SEED` begins with the history that a failure named.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::*;
use crate::config::Quota;
use crate::kv::tests::Server;
use crate::limit::algorithm::{Micros, State};
use crate::limit::dice::Dice;
use crate::limit::local::{Ask, Local};
use crate::syntax::rate::Rate;

/// States that a history is about.
const STATES: usize = 3;

/// Steps of one history.
const STEPS: u64 = 60;

/// Replies that are waited for at once.
const BATCH: usize = 200;

/// A connection on which commands are written ahead of their replies.
struct Wire {
    stream: UnixStream,
    replies: BufReader<UnixStream>,
    out: Vec<u8>,
}

impl Wire {
    fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        Self { replies: BufReader::new(stream.try_clone().unwrap()), stream, out: Vec::new() }
    }

    fn push(&mut self, parts: &[&[u8]]) {
        self.out.extend(format!("*{}\r\n", parts.len()).bytes());
        for part in parts {
            self.out.extend(format!("${}\r\n", part.len()).bytes());
            self.out.extend_from_slice(part);
            self.out.extend(b"\r\n");
        }
    }

    fn send(&mut self) {
        self.stream.write_all(&std::mem::take(&mut self.out)).unwrap();
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            ":" => Reply::Int(rest.parse().unwrap()),
            "+" => Reply::Bytes(rest.to_owned().into()),
            "$" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.replies.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes.into())
            }
            "*" => Reply::Array((0..rest.parse::<usize>().unwrap()).map(|_| self.reply()).collect()),
            _ => panic!("{line}"),
        }
    }

    fn load(&mut self, script: &Script) -> Vec<u8> {
        self.push(&[b"SCRIPT", b"LOAD", script.source.as_bytes()]);
        self.send();
        self.reply().bytes().unwrap().to_vec()
    }
}

/// What the twin says that a reply is.
enum Expected {
    Taken(u64, Vec<(Shape, f64)>, Vec<Reading>),
    State(State),
    Gone,
    Anything,
}

/// One history on both sides.
struct History {
    seed: u64,
    dice: Dice,
    local: Local,
    shapes: [Shape; STATES],
    now: i64,
    next_id: u64,
    admitted: Vec<Vec<(usize, Shape, Mark)>>,
}

/// The scripts by their digests, and what is still to be compared.
struct Fleet {
    wire: Wire,
    take: Vec<u8>,
    refund: Vec<u8>,
    owe: Vec<u8>,
    expected: Vec<(u64, u64, Expected)>,
}

impl Fleet {
    fn settle(&mut self) {
        self.wire.send();
        for (seed, step, expected) in std::mem::take(&mut self.expected) {
            let reply = self.wire.reply();
            let same = match &expected {
                Expected::Taken(id, asked, readings) => {
                    let said = taken(&reply, *id, asked.len(), |nth| asked[nth]);
                    assert_eq!(said.as_deref(), Some(&**readings), "step {step} of WEIR_SEED={seed}: {reply:?}");
                    true
                }
                Expected::State(state) => is_same(state, &reply),
                Expected::Gone => reply == Reply::Nil,
                Expected::Anything => true,
            };
            let state = if let Expected::State(state) = &expected { format!("{state:?}") } else { String::new() };
            assert!(same, "step {step} of WEIR_SEED={seed}: {reply:?}, not {state}");
        }
    }
}

/// Whether Redis holds what the twin does: the same bytes, or the same members at the same times.
fn is_same(state: &State, reply: &Reply) -> bool {
    if let Some(bytes) = state.bytes() {
        return *reply == Reply::Bytes(bytes.into());
    }
    let mut members: Vec<(Vec<u8>, f64)> = Vec::new();
    match state {
        State::SlidingLog(log) => {
            for entry in log.entries() {
                let id = entry.id.to_le_bytes();
                let number = members.iter().filter(|(member, _)| member.starts_with(&id)).count() as u16 + 1;
                let tail: &[u8] = if number == 1 { &[] } else { &number.to_le_bytes() };
                members.push(([&id, tail].concat(), entry.at));
            }
        }
        State::Concurrency(held) => {
            members.extend(held.slots().iter().map(|slot| (slot.id.to_le_bytes().to_vec(), slot.until)));
        }
        _ => return false,
    }
    let said = reply.items().chunks(2).map(|pair| {
        let score = std::str::from_utf8(pair[1].bytes().unwrap()).unwrap().parse::<f64>().unwrap();
        (pair[0].bytes().unwrap().to_vec(), score)
    });
    let mut said: Vec<_> = said.collect();
    members.sort_by(|a, b| a.partial_cmp(b).unwrap());
    said.sort_by(|a, b| a.partial_cmp(b).unwrap());
    members == said
}

/// One of an algorithm's shapes; with `like`, one that the same limit may have after a reload.
fn shape(algorithm: &str, dice: &mut Dice, like: Option<&Shape>) -> Shape {
    let algorithm = match (algorithm, like) {
        ("mixed", Some(Shape::TokenBucket(_))) => "token_bucket",
        ("mixed", Some(Shape::FixedWindow(_))) => "fixed_window",
        ("mixed", Some(Shape::SlidingWindow(_))) => "sliding_window",
        ("mixed", Some(Shape::SlidingLog(_))) => "sliding_log",
        ("mixed", Some(Shape::Concurrency(_))) => "concurrency",
        ("mixed", None) => dice.of(&["token_bucket", "fixed_window", "sliding_window", "sliding_log", "concurrency"]),
        (one, _) => one,
    };
    let few = dice.roll(4) > 0;
    let amount = 1 + dice.roll(if few { 6 } else { 200 }) as u32;
    let mut period_ms = dice.of(&[1000, 60_000, 3_600_000, 86_400_000]);
    if let Some(Shape::FixedWindow(window) | Shape::SlidingWindow(window) | Shape::SlidingLog(window)) = like {
        period_ms = (window.period / 1000.0) as u32;
    }
    // Beyond what doubles count exactly, both still round alike.
    let vast = dice.roll(8) == 0 && algorithm != "sliding_log";
    let rate = Rate { amount: if vast { u32::MAX - dice.roll(1000) as u32 } else { amount }, period_ms };
    match algorithm {
        "token_bucket" => {
            let burst = 1 + dice.roll(if few { 6 } else { 100_000 }) as u32;
            let rate = Rate { amount: 1 + dice.roll(5000) as u32, ..rate };
            Shape::new(&Quota::TokenBucket { rate, burst }).divided(1 + dice.roll(3) as u32)
        }
        "fixed_window" => Shape::new(&Quota::FixedWindow(rate)),
        "sliding_window" => Shape::new(&Quota::SlidingWindow(rate)),
        "sliding_log" => Shape::new(&Quota::SlidingLog(rate)),
        _ => Shape::new(&Quota::Concurrency { max: amount }),
    }
}

impl History {
    fn new(seed: u64, algorithm: &str) -> Self {
        let mut dice = Dice(seed);
        let shapes = [(); STATES].map(|()| shape(algorithm, &mut dice, None));
        let now = 1_700_000_000_000_000 + dice.roll(86_400_000_000) as i64;
        Self { seed, dice, local: Local::new(), shapes, now, next_id: seed, admitted: Vec::new() }
    }

    fn play(&mut self, algorithm: &str, fleet: &mut Fleet) {
        for step in 0..STEPS {
            match self.dice.roll(18) {
                0..8 => self.take(fleet, step),
                8..13 => self.pass(),
                13..15 => self.refund(fleet, step),
                15..17 => self.owe(fleet, step),
                _ => {
                    let nth = self.dice.roll(STATES as u64) as usize;
                    self.shapes[nth] = shape(algorithm, &mut self.dice, Some(&self.shapes[nth]));
                }
            }
            if step + 1 == STEPS || self.dice.roll(4) == 0 {
                self.compare(fleet, step);
            }
            if fleet.expected.len() >= BATCH {
                fleet.settle();
            }
        }
    }

    fn key(&self, nth: usize) -> Vec<u8> {
        format!("{:x}:{nth}", self.seed).into_bytes()
    }

    fn pass(&mut self) {
        let period_us = match self.shapes[0] {
            Shape::FixedWindow(window) | Shape::SlidingWindow(window) | Shape::SlidingLog(window) => window.period,
            Shape::TokenBucket(_) => 3e6,
            Shape::Concurrency(slots) => slots.lease,
        };
        let longest = self.dice.of(&[2000.0, 3e6, period_us / 4.0, period_us, period_us * 3.0]);
        let by = self.dice.roll(longest as u64) as i64;
        self.now += match self.dice.roll(10) {
            0 => -(self.dice.roll(900_000) as i64),
            1 => -(1_000_000 + self.dice.roll(4_000_000_000) as i64),
            // Edges are met exactly.
            2 => self.dice.of(&[period_us, period_us - 1.0, period_us / 2.0]) as i64,
            _ => by,
        };
    }

    fn take(&mut self, fleet: &mut Fleet, step: u64) {
        let limits = 1 + self.dice.roll(STATES as u64) as usize;
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        let mut modes: Vec<Mode> = Vec::new();
        let mut asks = Vec::new();
        for nth in 0..limits {
            let shape = self.shapes[nth];
            let follows = modes.last().is_some_and(|mode| *mode != Mode::Enforced);
            let mode = match self.dice.roll(6) {
                0 => Mode::Counting,
                1 if follows => Mode::Joined,
                _ => Mode::Enforced,
            };
            let cost = match self.dice.roll(8) {
                _ if shape.is_held() => 1,
                0 => 1 + self.dice.roll(shape.capacity() as u64 + 2),
                1 if shape.capacity() > 1e6 => shape.capacity() as u64 / (1 + self.dice.roll(7)),
                1 => 1 + self.dice.roll(4),
                _ => 1,
            };
            let (enforced, joined) = (mode == Mode::Enforced, mode == Mode::Joined);
            asks.push(Ask { name: nth as u128, scope: "", shape, enforced, joined, cost: cost as f64, id });
            modes.push(mode);
        }
        let readings = self.local.take(&asks, self.now as Micros);
        let shapes: Vec<_> = asks.iter().map(|ask| ShapeArgs::new(&ask.shape)).collect();
        let costs: Vec<_> = asks.iter().map(|ask| ask.cost.to_string().into_bytes()).collect();
        let own = id.to_le_bytes();
        let each = shapes.iter().zip(&costs).zip(&modes).map(|((shape, cost), mode)| (shape, &**cost, *mode));
        let mut args = take_args(&own, each);
        let now = self.now.to_string();
        args[0] = now.as_bytes();
        let keys: Vec<_> = (0..limits).map(|nth| self.key(nth)).collect();
        let asked = asks.iter().map(|ask| (ask.shape, ask.cost)).collect();
        let charges = readings.iter().enumerate().filter_map(|(nth, one)| Some((nth, self.shapes[nth], one.mark?)));
        self.admitted.push(charges.collect());
        let script = fleet.take.clone();
        self.script(fleet, &script, &keys, &args);
        fleet.expected.push((self.seed, step, Expected::Taken(id, asked, readings.to_vec())));
    }

    fn refund(&mut self, fleet: &mut Fleet, step: u64) {
        let Some(index) = self.admitted.len().checked_sub(1 + self.dice.roll(4) as usize) else { return };
        // What is kept by the request's name may come back twice.
        let named = |charges: &[(usize, Shape, Mark)]| charges.iter().all(|one| matches!(one.2, Mark::Request { .. }));
        let again = named(&self.admitted[index]) && self.dice.roll(4) == 0;
        let charges = if again { self.admitted[index].clone() } else { self.admitted.remove(index) };
        // Of some only what an answer left of it.
        let kept = if self.dice.roll(3) == 0 { self.dice.roll(4) as f64 } else { 0.0 };
        let charges: Vec<_> =
            charges.into_iter().map(|(nth, shape, mark)| (nth, shape, mark.beyond(&shape, kept))).collect();
        for (nth, shape, mark) in &charges {
            let (name, cost, id) = (*nth as u128, 1.0, 0);
            let ask = Ask { name, scope: "", shape: *shape, enforced: true, joined: false, cost, id };
            self.local.refund(&ask, mark, self.now as Micros);
        }
        let shapes: Vec<_> = charges.iter().map(|(_, shape, _)| ShapeArgs::new(shape)).collect();
        let mut args = refund_args(shapes.iter().zip(charges.iter().map(|(_, _, mark)| mark)));
        args[0] = self.now.to_string().into_bytes();
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let keys: Vec<_> = charges.iter().map(|(nth, _, _)| self.key(*nth)).collect();
        let script = fleet.refund.clone();
        self.script(fleet, &script, &keys, &args);
        fleet.expected.push((self.seed, step, Expected::Anything));
    }

    /// What answers cost beyond what their requests took, of algorithms that keep debts.
    fn owe(&mut self, fleet: &mut Fleet, step: u64) {
        let mut debts = Vec::new();
        for (nth, shape) in self.shapes.iter().enumerate() {
            if !matches!(shape, Shape::TokenBucket(_) | Shape::FixedWindow(_)) || self.dice.roll(2) == 0 {
                continue;
            }
            let cost = (1 + self.dice.roll(shape.capacity() as u64 * 3)) as f64;
            let (name, shape) = (nth as u128, *shape);
            let ask = Ask { name, scope: "", shape, enforced: true, joined: false, cost, id: 0 };
            self.local.owe(&ask, self.now as Micros);
            debts.push((nth, ShapeArgs::new(&shape), cost));
        }
        if debts.is_empty() {
            return;
        }
        let mut args = owe_args(debts.iter().map(|(_, shape, cost)| (shape, *cost, &b""[..])));
        args[0] = self.now.to_string().into_bytes();
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let keys: Vec<_> = debts.iter().map(|(nth, ..)| self.key(*nth)).collect();
        let script = fleet.owe.clone();
        self.script(fleet, &script, &keys, &args);
        fleet.expected.push((self.seed, step, Expected::Anything));
    }

    fn script(&self, fleet: &mut Fleet, script: &[u8], keys: &[Vec<u8>], args: &[&[u8]]) {
        let count = keys.len().to_string();
        let mut parts: Vec<&[u8]> = vec![b"EVALSHA", script, count.as_bytes()];
        parts.extend(keys.iter().map(Vec::as_slice));
        parts.extend(args);
        fleet.wire.push(&parts);
    }

    fn compare(&self, fleet: &mut Fleet, step: u64) {
        for nth in 0..STATES {
            let (key, state) = (self.key(nth), self.local.state(nth as u128));
            match state {
                Some(State::SlidingLog(_) | State::Concurrency(_)) => {
                    fleet.wire.push(&[b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"]);
                }
                _ => fleet.wire.push(&[b"GET", &key]),
            }
            fleet.expected.push((self.seed, step, state.map_or(Expected::Gone, Expected::State)));
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn agree(algorithm: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::up());
    let mut wire = Wire::open(&server.socket());
    let script = if algorithm == "token_bucket" { &TAKE_TOKENS } else { &TAKE_ANY };
    let (take, refund, owe) = (wire.load(script), wire.load(&REFUND), wire.load(&OWE));
    let mut fleet = Fleet { wire, take, refund, owe, expected: Vec::new() };
    let (steps, seed) = (number("WEIR_STEPS", 3000), number("WEIR_SEED", kv::random() >> 16));
    let histories = steps.div_ceil(STEPS);
    for nth in 0..histories {
        let mut history = History::new(seed.wrapping_add(nth), algorithm);
        history.play(algorithm, &mut fleet);
        for nth in 0..STATES {
            fleet.wire.push(&[b"UNLINK", &history.key(nth)]);
            fleet.expected.push((0, 0, Expected::Anything));
        }
    }
    fleet.settle();
    println!("{algorithm}: {} steps alike, from WEIR_SEED={seed}", histories * STEPS);
}

#[test]
fn token_buckets_agree_on_every_step() {
    agree("token_bucket");
}

#[test]
fn fixed_windows_agree_on_every_step() {
    agree("fixed_window");
}

#[test]
fn sliding_windows_agree_on_every_step() {
    agree("sliding_window");
}

#[test]
fn sliding_logs_agree_on_every_step() {
    agree("sliding_log");
}

#[test]
fn slots_agree_on_every_step() {
    agree("concurrency");
}

#[test]
fn limits_by_several_algorithms_agree_on_every_step() {
    agree("mixed");
}
