//! What clients and those who invalidate send, whatever becomes of it, and what they saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::PODS;
use super::machine::{Machine, Watch};
use crate::fleet::check::{Fault, History, Order, Read, Taken};
use crate::fleet::dice::Dice;
use crate::fleet::pods::At;
use crate::fleet::service::{DIRECT, Service, State, path_of};
use crate::fleet::{KEYS, Micros, TAGS};
use crate::harness::{Answer, Load, Report, Request, get, optimised, request};
use crate::limits_fleet::check::Admitted;

/// Longest that any load goes on.
const LONGEST: Duration = Duration::from_secs(900);

/// What is sent later than this was held up at its client.
pub const LATE: Duration = Duration::from_millis(10);

/// Identities of the limited routes.
pub const IDENTITIES: usize = 2;

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of one of few keys: a hit, unless it was invalidated.
    Hit(usize),
    /// Of a path that nobody asked for before.
    Miss(usize),
    /// Of a route that denies everything while Redis is away; by which identity.
    Strict(usize),
    /// Of a route on which each pod has its part then.
    Local(usize),
    /// A write, which invalidates its key.
    Write(usize),
    /// An order at the operator's port.
    Order(usize),
    /// Past the pods, to the service: what the machine itself takes.
    Direct,
}

/// All traffic of one run.
pub struct Traffic {
    seed: u64,
    pods: Mutex<Vec<At>>,
    service: SocketAddr,
    state: Arc<State>,
    /// Of each request when it was made, and what it names.
    made: Mutex<Vec<Made>>,
}

#[derive(Clone)]
struct Made {
    at: Micros,
    to: At,
    keys: Vec<(usize, u64)>,
}

/// A request that was sent.
pub struct Seen {
    /// What it was.
    pub kind: Kind,
    /// When its client came to send it.
    pub sent: Micros,
    /// By how much that was too late.
    pub late: Duration,
    /// From its being sent to its answer's end.
    pub took: Duration,
    /// When, of that, the service was at its answer: at no time, if it was there before.
    pub served: (Micros, Micros),
    /// Of the rest, what it waited for the machine to run at all.
    pub held_up: Duration,
    /// To which pod, unless it went past them.
    pub pod: usize,
    /// The answer's status; 0 if there was none.
    pub status: u16,
    /// Whether it was there already.
    pub is_hit: bool,
    /// What Weir says of it, if it was not.
    pub story: String,
}

impl Seen {
    /// What the service took for its answer.
    pub fn served(&self) -> Duration {
        Duration::from_micros(self.served.1 - self.served.0)
    }

    /// What it waited for Weir.
    pub fn of_weir(&self) -> Duration {
        self.took.saturating_sub(self.served() + self.held_up)
    }
}

/// All that was seen.
#[derive(Default)]
pub struct Notes {
    /// Every request.
    pub seen: Vec<Seen>,
    /// What held them up that is not Weir's.
    pub machine: Machine,
    /// For the checker of what is served.
    pub history: History,
    /// For that of limits: what each identity was let through.
    pub admitted: BTreeMap<Kind, Vec<Admitted>>,
}

impl Traffic {
    /// Between these pods and their service, by this seed.
    pub fn new(seed: u64, pods: Vec<At>, service: &Service) -> Arc<Self> {
        let (pods, state) = (Mutex::new(pods), Arc::clone(&service.state));
        Arc::new(Self { seed, pods, service: service.address, state, made: Mutex::default() })
    }

    /// Where a pod is.
    pub fn at(&self, pod: usize) -> At {
        self.pods.lock().expect("no panic while held")[pod]
    }

    /// Time since the beginning.
    pub fn now(&self) -> Micros {
        self.state.now()
    }

    /// From now on a pod is here.
    pub fn turn_to(&self, at: At) {
        self.pods.lock().expect("no panic while held")[at.life.pod] = at;
    }

    /// So many requests a second.
    pub fn load(self: &Arc<Self>, rate: u32) -> Load {
        let (makes, chooses) = (Arc::clone(self), Arc::clone(self));
        Load::new(rate, LONGEST, move |i| makes.make(i)).choosing(move |i| {
            let to = chooses.made.lock().expect("no panic while held")[i].to;
            match chooses.kind(i) {
                Kind::Direct => chooses.service,
                Kind::Order(_) => to.admin,
                _ => to.proxy,
            }
        })
    }

    fn kind(&self, i: usize) -> Kind {
        let mut dice = Dice::new(self.seed, i as u64);
        // Some are read far more often than others.
        let (key, who) = (dice.below(KEYS).min(dice.below(KEYS)), dice.below(IDENTITIES));
        match dice.below(100) {
            0..65 => Kind::Hit(key),
            65..70 => Kind::Direct,
            70..80 => Kind::Miss(key),
            80..88 => Kind::Strict(who),
            88..96 => Kind::Local(who),
            96..97 => Kind::Write(key),
            _ => Kind::Order(key),
        }
    }

    fn make(&self, i: usize) -> Request {
        let (kind, to, mut keys) = (self.kind(i), self.at(i % PODS), Vec::new());
        let request = match kind {
            Kind::Direct => get(DIRECT),
            Kind::Hit(key) => get(&path_of(key)),
            Kind::Miss(key) => get(&format!("/m/{}-{i}/{key}", self.seed)),
            Kind::Strict(who) => get("/strict/0").header("x-id", &who.to_string()),
            Kind::Local(who) => get("/local/0").header("x-id", &who.to_string()),
            Kind::Write(key) => request("PUT", &path_of(key)).body(""),
            Kind::Order(key) => {
                let (named, body) = if i.is_multiple_of(4) {
                    let of_tag = (0..KEYS).filter(|other| other % TAGS == key % TAGS).collect();
                    (of_tag, format!(r#"{{"tags":["a{}"]}}"#, key % TAGS))
                } else {
                    (vec![key], format!(r#"{{"urls":["{}"]}}"#, path_of(key)))
                };
                keys = named.into_iter().map(|key| (key, self.state.change(key))).collect();
                let host = to.admin.to_string();
                let order = request("POST", "/invalidate").header("host", &host);
                order.header("content-type", "application/json").body(body)
            }
        };
        self.made.lock().expect("no panic while held").push(Made { at: self.state.now(), to, keys });
        request
    }

    /// What was seen, while this was watched, for who judges it.
    pub fn notes(&self, report: &Report, watch: Watch) -> Notes {
        let made = self.made.lock().expect("no panic while held").clone();
        let mut notes = Notes::default();
        notes.history.fetches = self.state.fetches();
        let answered_at: BTreeMap<_, _> =
            notes.history.fetches.iter().map(|one| ((one.key, one.from), one.to)).collect();
        // The load began when its first request was due.
        let first = made.first().zip(report.samples.first());
        let began = first.map_or(0, |(made, sample)| made.at.saturating_sub(sample.late.as_micros() as Micros));
        for (i, (sample, Made { at, to, keys })) in report.samples.iter().zip(made).enumerate() {
            let (kind, life) = (self.kind(i), to.life);
            let due = began + sample.at.as_micros() as Micros;
            let end = due + sample.took.as_micros() as Micros;
            let answer = sample.result.as_ref().ok();
            let status = answer.map_or(0, |answer| answer.status);
            let is_hit = answer.is_some_and(|answer| answer.header("cache-status").is_some() && answer.is_hit());
            let sent = due + sample.late.as_micros() as Micros;
            let (late, took) = (sample.late, sample.took - sample.late);
            let story = answer.and_then(|answer| answer.header("cache-status")).filter(|_| !is_hit);
            let story = story.unwrap_or_default().to_owned();
            let fetch =
                answer.filter(|_| matches!(kind, Kind::Hit(_) | Kind::Miss(_)) && status == 200).and_then(|answer| {
                    let (key, _, asked) = body_of(answer);
                    Some((asked, *answered_at.get(&(key, asked))?))
                });
            let served = fetch.map_or((sent, sent), |(from, to)| (from.clamp(sent, end), to.clamp(sent, end)));
            // What the machine did is known when all is.
            let (pod, held_up) = (life.pod, Duration::ZERO);
            notes.seen.push(Seen { kind, sent, late, took, served, held_up, pod, status, is_hit, story });
            if !is_well(kind, status) {
                let what = match &sample.result {
                    Ok(answer) => format!("{status} {}", String::from_utf8_lossy(&answer.body)),
                    Err(error) => error.clone(),
                };
                notes.history.faults.push(Fault { pod: life.pod, start: at, end, what: format!("{kind:?}: {what}") });
                continue;
            }
            let answer = answer.expect("it has a status");
            match kind {
                Kind::Hit(key) => {
                    let (got, version, _) = body_of(answer);
                    notes.history.reads.push(Read { key, by: life, start: at, end, got, version });
                }
                Kind::Miss(key) => assert_eq!(body_of(answer).0, key, "{answer:?}"),
                Kind::Strict(_) | Kind::Local(_) if status == 200 => {
                    let admitted = Admitted { from: at * 1000, to: end * 1000 };
                    notes.admitted.entry(kind).or_default().push(admitted);
                }
                Kind::Strict(_) | Kind::Local(_) | Kind::Direct => {}
                Kind::Write(key) => {
                    let version = answer.number("x-version").expect("the service says it");
                    let order = Order {
                        keys: vec![(key, version)],
                        start: at,
                        ack: end,
                        taken: Taken::Here(life),
                        is_announced: false,
                    };
                    notes.history.orders.push(order);
                }
                Kind::Order(_) => {
                    let taken = if status == 200 { Taken::Logged(Some(life)) } else { Taken::Here(life) };
                    notes.history.orders.push(Order { keys, start: at, ack: end, taken, is_announced: false });
                }
            }
        }
        if optimised() {
            notes.machine = watch.end(&notes.seen);
        }
        for seen in &mut notes.seen {
            let end = seen.sent + seen.took.as_micros() as Micros;
            let pod = (seen.kind != Kind::Direct).then_some(seen.pod);
            let spans = [(seen.sent, seen.served.0), (seen.served.1, end)];
            seen.held_up = spans.map(|(from, to)| notes.machine.held_up(from, to, pod)).into_iter().sum();
        }
        notes
    }
}

/// Whether this is what a client hopes for: a limit may deny, and Redis be unable to log.
fn is_well(kind: Kind, status: u16) -> bool {
    match kind {
        Kind::Hit(_) | Kind::Miss(_) | Kind::Write(_) | Kind::Direct => status == 200,
        Kind::Strict(_) | Kind::Local(_) => matches!(status, 200 | 429),
        Kind::Order(_) => matches!(status, 200 | 202),
    }
}

/// Of which key an answer is, in which version, and when the service was asked for it.
fn body_of(answer: &Answer) -> (usize, u64, Micros) {
    let numbers: Vec<u64> = answer.text().split(' ').filter_map(|number| number.parse().ok()).collect();
    let [key, version, asked] = numbers[..] else { panic!("{answer:?}") };
    (key as usize, version, asked)
}
