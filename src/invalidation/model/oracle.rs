//! What can be seen from outside, and whether it was as promised.

use super::coverage::{Coverage, Seen};
use super::names::{Answer, KEYS, Key, Order};
use super::{BOUND, Ms, Step};

/// In a history without faults, longest that a pod takes to hear of an invalidation and to be level again.
const HEARD: Ms = 60;

/// A process: a pod, and which life of it.
pub type Process = (usize, u32);

/// A moment, by the clock and among all others.
pub type When = (Ms, Step);

/// An order that somebody was told is in force.
#[derive(Debug)]
struct Acknowledged {
    order: Order,
    /// What the upstream was asked before then is overtaken.
    accepted: Step,
    at: When,
    /// In this process at once.
    by: Option<Process>,
    /// Everywhere after B.
    everywhere: bool,
}

/// What may be expected of a history, by its faults.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// There is none: one fetch will do.
    pub is_calm: bool,
    /// Redis loses nothing and is always reached.
    pub redis_is_well: bool,
}

/// Judges a history.
#[derive(Debug)]
pub struct Oracle {
    expected: Expected,
    acknowledged: Vec<Acknowledged>,
    /// When an order was logged last.
    logged: Option<Ms>,
    /// When the last fetch of each key began.
    fetched: [Option<Ms>; KEYS],
    /// What Redis handed out last.
    handed: [Option<Answer>; KEYS],
    pub coverage: Coverage,
    pub violation: Option<String>,
}

impl Oracle {
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            acknowledged: Vec::new(),
            logged: None,
            fetched: [None; KEYS],
            handed: [None; KEYS],
            coverage: Coverage::default(),
            violation: None,
        }
    }

    pub fn count(&mut self, seen: Seen) {
        self.coverage[seen] += 1;
    }

    /// Somebody was told that an order is in the log, into which it came at `accepted`.
    pub fn acknowledge(&mut self, order: Order, accepted: Step, at: When, by: Option<Process>) {
        self.count(Seen::Acknowledged);
        self.acknowledged.push(Acknowledged { order, accepted, at, by, everywhere: true });
    }

    /// An order is in force in one process, until that ends.
    pub fn acknowledge_here(&mut self, order: Order, accepted: Step, at: When, by: Process) {
        self.count(Seen::AppliedHereOnly);
        self.acknowledged.push(Acknowledged { order, accepted, at, by: Some(by), everywhere: false });
    }

    pub fn log(&mut self, now: Ms) {
        self.logged = Some(now);
    }

    /// G1: a request of `by` that began at `begun` got `answer`.
    pub fn serve(&mut self, by: Process, begun: When, answer: Answer) {
        for order in &self.acknowledged {
            let is_overtaken = !order.order.soft && answer.read < order.accepted && order.order.names(answer);
            let here = order.by == Some(by) && begun.1 > order.at.1;
            let everywhere = order.everywhere && begun.0 > order.at.0 + BOUND;
            if is_overtaken && (here || everywhere) {
                let place = if here { "in the pod that acknowledged it" } else { "past the bound" };
                self.violation = Some(format!(
                    "G1 {place}: pod {by:?} served {answer:?} to a request of {begun:?}, overtaken by {order:?}"
                ));
            }
        }
    }

    /// Whether an order that was acknowledged less than two bounds ago has overtaken a copy, and whether that was more than
    /// one bound ago.
    pub fn overtaken_lately(&self, now: Ms, copy: Answer) -> Option<bool> {
        let overtaken = self.acknowledged.iter().filter(|order| {
            order.everywhere && !order.order.soft && copy.read < order.accepted && order.order.names(copy)
        });
        let ages = overtaken.map(|order| now - order.at.0).filter(|age| *age <= 2 * BOUND);
        ages.max().map(|age| age > BOUND)
    }

    /// G2: the upstream is asked. Without a fault one fetch is enough for as long as nothing is invalidated.
    pub fn fetch(&mut self, key: Key, now: Ms) {
        self.count(Seen::Fetches);
        if let Some(last) = self.fetched[key].replace(now)
            && self.expected.is_calm
            && self.logged.is_none_or(|logged| logged + HEARD < last)
        {
            self.violation = Some(format!("G2: key {key} was fetched at {last} and again at {now} ms"));
        }
    }

    /// G2: Redis gives a stored answer to a pod. A slow fetch never replaces what a later one stored.
    pub fn hand(&mut self, answer: Answer) {
        if let Some(last) = self.handed[answer.key].replace(answer)
            && self.expected.redis_is_well
            && answer.read < last.read
        {
            self.violation = Some(format!("G2: Redis gave {last:?}, and then {answer:?}"));
        }
    }
}
