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

/// Which promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// G1, in the pod that acknowledged an invalidation.
    AtOnce,
    /// The same, where it was acknowledged before the pod had read the log back.
    Unready,
    /// The same, where it was acknowledged before the pod knew of the log that it is in.
    Elsewhere,
    /// G1, past the bound.
    Bound,
    /// The same, of a request that joined a fetch which had begun more than B before.
    Joined,
    /// The same of an invalidation that Redis has lost, by a process that had asked the upstream before it first reached
    /// Redis.
    LostBeforeJoining,
    /// The same of an invalidation that Redis has lost, by a process that had followed the log.
    LostWhileFollowing,
    /// G2: one fetch.
    OneFetch,
    /// G2: a slow fetch never replaces what a later one stored.
    Fence,
    /// The same, where the fences of a key have begun anew below one that was still on its way.
    FenceReused,
    /// The fleet is well again after its faults.
    Recovery,
}

/// How a pod stood to the log when it acknowledged an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Level,
    /// It had not read it back.
    Unready,
    /// It followed another.
    Elsewhere,
}

/// An order that somebody was told is in force.
#[derive(Debug)]
struct Acknowledged {
    order: Order,
    /// What the upstream was asked before then is overtaken.
    accepted: Step,
    /// When its record came into the log.
    logged: Step,
    at: When,
    /// By which it can be taken back.
    id: u64,
    /// In this process at once.
    by: Option<Process>,
    standing: Standing,
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
    /// Of what Redis lost, when the first was logged, and when it was lost.
    losses: Vec<(Step, Step)>,
    /// When processes first followed the log.
    joined: Vec<(Process, Step)>,
    /// When an order was logged last.
    logged: Option<Ms>,
    /// When the last fetch of each key began.
    fetched: [Option<Ms>; KEYS],
    /// What Redis handed out last.
    handed: [Option<Answer>; KEYS],
    /// Whether its fences have begun anew.
    forgiven: [bool; KEYS],
    pub coverage: Coverage,
    pub violation: Option<(Broken, String)>,
}

impl Oracle {
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            acknowledged: Vec::new(),
            losses: Vec::new(),
            joined: Vec::new(),
            logged: None,
            fetched: [None; KEYS],
            handed: [None; KEYS],
            forgiven: [false; KEYS],
            coverage: Coverage::default(),
            violation: None,
        }
    }

    pub fn count(&mut self, seen: Seen) {
        self.coverage[seen] += 1;
    }

    /// Somebody was told that an order is in the log, where its record came at `logged`.
    pub fn acknowledge(
        &mut self,
        order: Order,
        (accepted, logged): (Step, Step),
        at: When,
        by: Option<(Process, Standing)>,
    ) {
        self.count(Seen::Acknowledged);
        let standing = by.map_or(Standing::Level, |(_, standing)| standing);
        let by = by.map(|(process, _)| process);
        self.acknowledged.push(Acknowledged { order, accepted, logged, at, id: 0, by, standing, everywhere: true });
    }

    /// An order is in force in one process, until that ends.
    pub fn acknowledge_here(&mut self, order: Order, accepted: Step, at: When, (id, by): (u64, Process)) {
        self.count(Seen::AppliedHereOnly);
        self.acknowledged.push(Acknowledged {
            order,
            accepted,
            logged: 0,
            at,
            id,
            by: Some(by),
            standing: Standing::Level,
            everywhere: false,
        });
    }

    /// A process has given up to log an order, and said so in its own log: nothing is promised any more.
    pub fn give_up(&mut self, id: u64) {
        self.count(Seen::GivenUp);
        self.acknowledged.retain(|order| order.id != id);
    }

    /// Redis has lost what was logged since.
    pub fn lose(&mut self, since: Step, now: Step) {
        self.losses.push((since, now));
    }

    /// A process follows a log.
    pub fn join(&mut self, process: Process, now: Step) {
        if self.joined.iter().all(|(other, _)| *other != process) {
            self.joined.push((process, now));
        }
    }

    /// How an order could be forgotten, where Redis has lost it.
    fn loss(&self, order: &Acknowledged, by: Process, answer: Answer) -> Option<Broken> {
        self.losses.iter().find(|(since, lost)| (*since..*lost).contains(&order.logged))?;
        let had_joined = |(process, joined): &(Process, Step)| *process == by && *joined <= answer.read;
        let had_joined = self.joined.iter().any(had_joined);
        Some(if had_joined { Broken::LostWhileFollowing } else { Broken::LostBeforeJoining })
    }

    pub fn log(&mut self, now: Ms) {
        self.logged = Some(now);
    }

    /// G1: a request of `by` that began at `begun` got `answer`; by joining a fetch, if it did, of that time.
    pub fn serve(&mut self, by: Process, begun: When, answer: Answer, joined: Option<Ms>) {
        for order in &self.acknowledged {
            let is_overtaken = !order.order.soft && answer.read < order.accepted && order.order.names(answer);
            let here = order.by == Some(by) && begun.1 > order.at.1;
            let everywhere = order.everywhere && begun.0 > order.at.0 + BOUND;
            if is_overtaken && (here || everywhere) {
                let broken = match here {
                    true => match order.standing {
                        Standing::Level => Broken::AtOnce,
                        Standing::Unready => Broken::Unready,
                        Standing::Elsewhere => Broken::Elsewhere,
                    },
                    false if joined.is_some_and(|asked| begun.0 > asked + BOUND) => Broken::Joined,
                    false => self.loss(order, by, answer).unwrap_or(Broken::Bound),
                };
                let text = format!("{by:?} served {answer:?} to the request of {begun:?} in spite of {order:?}");
                self.violation = Some((broken, text));
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

    /// G2: the upstream is asked. Without a fault one fetch is enough for as long as nothing is invalidated, but for a pod
    /// that has only begun, and has yet to prove that it knows what was.
    pub fn fetch(&mut self, key: Key, now: Ms, is_unproven: bool) {
        self.count(Seen::Fetches);
        if let Some(last) = self.fetched[key].replace(now)
            && self.expected.is_calm
            && !is_unproven
            && self.logged.is_none_or(|logged| logged + HEARD < last)
        {
            self.violation = Some((Broken::OneFetch, format!("key {key} was fetched at {last} and again at {now}")));
        }
    }

    /// `lease.lua` finds a key's last fence in its entry and its lease. One that superseded another's, and ran out, takes
    /// the highest with it: the next is lower, and does not keep the slow fetch from replacing what it orders.
    pub fn forgive(&mut self, key: Key) {
        self.count(Seen::FencesFell);
        self.forgiven[key] = true;
    }

    /// G2: Redis gives a stored answer to a pod. A slow fetch never replaces what a later one stored.
    pub fn hand(&mut self, answer: Answer) {
        if let Some(last) = self.handed[answer.key].replace(answer)
            && self.expected.redis_is_well
            && answer.began < last.began
        {
            let broken = if self.forgiven[answer.key] { Broken::FenceReused } else { Broken::Fence };
            self.violation = Some((broken, format!("Redis gave {last:?}, and then {answer:?}")));
        }
    }
}
