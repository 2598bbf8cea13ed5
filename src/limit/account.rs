//! What a pod knows of one identity's state in Redis. Pure, as `loans.rs` is, which says what for.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::algorithm::{self, Level, Micros, NEVER_MS};
use super::bucket::Shape;
use super::loans::{Bell, Due, LIFE, Question, Repayment, Spent};
use super::local::Reading;

/// How much of a loan's life its borrower uses: clocks differ, and so do the moments at which both began to count.
pub(super) const USED: f64 = 0.9;

/// Time over which demand is remembered.
const MEMORY: Micros = 2_000_000.0;

/// A loan is for what so much time will ask for,
const AHEAD: Micros = 100_000.0;

/// or, of an identity that is less busy, for so many requests if as many came within [`MEMORY`],
const FEW: f64 = 8.0;

/// and never for more than this part of the bucket: others want theirs.
const PART: f64 = 16.0;

/// Pause before a pod asks again a bucket that had nothing left; a half more or less, so that pods take turns.
const HOLD_OFF: Micros = 25_000.0;

/// Requests within [`MEMORY`] from which on an identity is held off for longer than its bucket asks for.
const BUSY: f64 = 80.0;

/// Longest that a denial is remembered.
pub(super) const DENIED_AT_MOST: Micros = 10_000_000.0;

/// The same where answers on their way may give back what their requests took, to this pod or to others.
const DENIED_FOR_NOW: Micros = 100_000.0;

/// A question for as many requests is waited for, as is any where the bucket had too little: one at a time is enough.
const WORTH_WAITING: f64 = 4.0;

/// Longest that a question counts as being asked.
const ASKING_AT_MOST: Micros = 1_000_000.0;

/// Pause after which an identity counts as idle.
const IDLE: Micros = 500_000.0;

/// What is known of one identity's state.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Units that may be spent until `until`.
    held: f64,
    until: Micros,
    /// Of the last question.
    serial: u64,
    /// What came lately, in requests, as of `seen`.
    demand: f64,
    seen: Micros,
    /// Not before this is the bucket asked again, as it had nothing left; 0 if it had.
    ask_at: Micros,
    denied: Option<Refusal>,
    /// When the bucket would be full, as it last said.
    full_at: Micros,
    /// When this pod's own part of the limit has gained again all that was spent of it while Redis was away. It gains from
    /// `full_at` on only: until then the bucket gains what it lacked before.
    paid_off: Micros,
    /// The pods by which that part is counted.
    pods: f64,
    /// Where it is in Redis, while something is lent.
    pub(super) key: Option<Box<[u8]>>,
    asking: Option<(Bell, Micros)>,
    /// Whether who comes meanwhile waits for the answer.
    is_worth_waiting: bool,
    /// What the state last said, without what it had lent.
    level: Level,
    shape: Option<algorithm::Shape>,
}

/// What is shown of an account.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Known {
    /// Units of a loan that are left,
    pub(super) held: f64,
    /// and until when they may be spent.
    pub(super) until: Micros,
    /// Until when a denial is remembered.
    pub(super) denied_until: Option<Micros>,
}

/// A denial.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    /// Until when it is remembered.
    until: Micros,
    /// When it is lifted.
    lifted: Micros,
    cost: f64,
}

impl Due {
    /// Pause before a state that had too little is asked again: shorter where it would be full before. `serial` spreads it.
    fn hold_off(&self, serial: u64) -> Micros {
        let longest = self.bucket.map_or(HOLD_OFF, |shape| HOLD_OFF.min(shape.capacity / shape.accrual / 2.0));
        let mixed = (self.name as u64 ^ serial).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        (longest * (0.5 + mixed as f64 / 1024.0)).floor()
    }

    /// Whether its bucket lends enough to pay for it.
    pub(super) fn lends(&self) -> bool {
        self.borrows && self.bucket.is_some_and(|shape| shape.capacity / shape.price / PART >= self.cost)
    }
}

impl Account {
    /// A request has come, or has waited.
    pub(super) fn arrive(&mut self, due: &Due, again: bool, now: Micros) {
        self.fit(due, now);
        if !again {
            // Many come within a tick of the clock.
            if now != self.seen {
                self.demand *= (-(now - self.seen).max(0.0) / MEMORY).exp();
                self.seen = now;
            }
            self.demand += due.cost;
        }
        if now >= self.until {
            self.held = 0.0;
        }
    }

    /// What is known of another configuration's limit does not hold, nor what was asked by it. What is owed is, as so many
    /// requests.
    pub(super) fn fit(&mut self, due: &Due, now: Micros) {
        if self.shape == Some(due.shape) {
            return;
        }
        self.bell();
        let requests = match self.shape {
            Some(algorithm::Shape::TokenBucket(shape)) if self.pods > 0.0 => {
                self.owed(now) * shape.accrual / shape.price / self.pods
            }
            _ => 0.0,
        };
        let (serial, pods, full_at) = (self.serial + 1, self.pods, self.full_at);
        *self = Self { serial, pods, full_at, shape: Some(due.shape), key: self.key.take(), ..Self::default() };
        if let Some(shape) = due.debited {
            self.owe(requests * shape.price * pods / shape.accrual, now);
        }
    }

    /// Until when it is known to be denied, and what a client is told.
    pub(super) fn denies(&self, due: &Due, now: Micros) -> Option<(Micros, Level)> {
        let refusal = self.denied.filter(|refusal| now < refusal.until && due.cost >= refusal.cost)?;
        Some((refusal.lifted, self.waiting(refusal.lifted, now)))
    }

    /// The same of a bucket that had nothing left, and is not asked for a while.
    pub(super) fn holds_off(&self, due: &Due, now: Micros) -> Option<Level> {
        let lacks = due.bucket.is_some_and(|shape| self.held < due.cost * shape.price);
        (lacks && now < self.ask_at).then(|| self.waiting(self.ask_at, now))
    }

    /// The state's level, for who is to come back at `until`.
    fn waiting(&self, until: Micros, now: Micros) -> Level {
        let wait_ms = ((until - now) / 1000.0).ceil() as u64;
        Level { remaining: self.level.remaining, wait_ms, full_ms: self.level.full_ms.max(wait_ms) }
    }

    /// Pays for a request, if the loan suffices.
    pub(super) fn spend(&mut self, shape: &Shape, cost: f64) -> Option<Spent> {
        let units = cost * shape.price;
        if self.held < units {
            return None;
        }
        self.held -= units;
        let remaining = self.level.remaining + (self.held / shape.price) as u64;
        Some(Spent { units, level: Level { remaining, wait_ms: 0, ..self.level }, serial: self.serial })
    }

    /// Takes back what was spent, unless the bucket was asked since: it was told that it is gone.
    pub(super) fn refund(&mut self, spent: &Spent, now: Micros) {
        if self.serial == spent.serial && now < self.until {
            self.held += spent.units;
        }
    }

    /// Something came back to it: a denial may not hold any more.
    pub(super) fn lift(&mut self) {
        self.denied = None;
    }

    /// Its state is as good as new: nothing holds that was known against it.
    pub(super) fn pardon(&mut self) {
        (self.denied, self.ask_at, self.paid_off) = (None, 0.0, 0.0);
    }

    /// Units that it has left, and until when; and until when a denial is remembered.
    pub(super) fn shown(&self, now: Micros) -> Known {
        Known {
            held: if self.holds(now) { self.held } else { 0.0 },
            until: self.until,
            denied_until: self.denied.map(|refusal| refusal.until).filter(|until| now < *until),
        }
    }

    /// Who asks just now, if that is worth waiting for.
    pub(super) fn awaited(&self, now: Micros) -> Option<&Bell> {
        self.asking(now).filter(|_| self.is_worth_waiting)
    }

    fn asking(&self, now: Micros) -> Option<&Bell> {
        self.asking.as_ref().filter(|(_, until)| now < *until).map(|(bell, _)| bell)
    }

    /// Wakes who waits for an answer.
    fn bell(&mut self) {
        if let Some((bell, _)) = self.asking.take() {
            bell.close();
        }
    }

    /// So much was taken from this pod's own part of the limit, or given back, because Redis is away. That part was full, or
    /// would have been, at `full_at`; the bucket is taken to be so too where nothing is known of it.
    pub(super) fn spent_away(&mut self, due: &Due, cost: f64, full_at: Option<Micros>, now: Micros) {
        // Charged by another configuration, it is owed by this one: nothing else that is known is of less use by that.
        let shape = match (self.shape, due.debited) {
            (Some(algorithm::Shape::TokenBucket(shape)), _) => shape,
            (_, Some(shape)) => {
                self.fit(due, now);
                shape
            }
            (_, None) => return,
        };
        if let Some(full_at) = full_at.filter(|_| self.full_at == 0.0 && self.paid_off == 0.0) {
            self.full_at = full_at;
        }
        self.count_by(due.pods, now);
        self.owe(self.owed(now) + cost * shape.price * due.pods / shape.accrual, now);
    }

    /// This pod's part of the limit is another: as much is owed as before.
    fn count_by(&mut self, pods: f64, now: Micros) {
        if self.pods != pods {
            if self.pods > 0.0 {
                self.owe(self.owed(now) / self.pods * pods, now);
            }
            self.pods = pods;
        }
    }

    fn owe(&mut self, owed: Micros, now: Micros) {
        self.paid_off = if owed > 0.0 { now.max(self.full_at) + owed } else { 0.0 };
    }

    /// What was spent while Redis was away and is not told yet, as the time in which this pod's part gains it.
    fn owed(&self, now: Micros) -> Micros {
        (self.paid_off - now.max(self.full_at)).max(0.0)
    }

    /// What Redis is told with a request; nothing is lent that would not be spent.
    pub(super) fn question(&mut self, due: &Due, shape: &Shape, lends: bool, now: Micros) -> Question {
        let wanted = if lends { self.wanted(due, shape) } else { 0.0 };
        self.count_by(due.pods, now);
        let debit = (self.owed(now) * shape.accrual / due.pods).floor();
        if self.asking(now).is_some() || (wanted == 0.0 && self.held == 0.0 && debit == 0.0) {
            return Question::default();
        }
        self.bell();
        self.serial += 1;
        self.asking = Some((Arc::new(Semaphore::new(0)), now + ASKING_AT_MOST));
        self.is_worth_waiting = self.ask_at > 0.0 || wanted >= WORTH_WAITING * shape.price;
        // What the bucket lacks was somebody else's to spend. What answers cost is owed whatever it has: that is told once.
        let debit = if due.borrows {
            debit
        } else {
            self.owe(0.0, now);
            -debit
        };
        Question { serial: self.serial, held: std::mem::take(&mut self.held), wanted, debit }
    }

    /// Redis did not hear of what was owed.
    pub(super) fn unheard(&mut self, due: &Due, question: &Question, now: Micros) {
        if let Some(shape) = due.debited.filter(|_| question.debit < 0.0 && self.shape == Some(due.shape)) {
            self.owe(self.owed(now) - question.debit * due.pods / shape.accrual, now);
        }
    }

    /// Units that it should have: for whole requests like this one.
    fn wanted(&self, due: &Due, shape: &Shape) -> f64 {
        let few = if self.demand < 2.0 { 0.0 } else { self.demand.min(FEW) };
        let tokens = few.max(self.demand / MEMORY * AHEAD).min(shape.capacity / shape.price / PART);
        (tokens / due.cost).floor() * due.cost * shape.price
    }

    /// What the state answered to a question that was sent at `sent`.
    pub(super) fn learn(&mut self, due: &Due, question: &Question, reply: &Reading, key: &[u8], sent: Micros) {
        if self.shape != Some(due.shape) {
            return;
        }
        let lent = due.debited.map_or(0, |shape| (reply.lent / shape.price) as u64);
        self.level = Level { remaining: reply.level.remaining.saturating_sub(lent), ..reply.level };
        let is_answer = question.serial != 0 && question.serial == self.serial;
        if let Some(shape) = due.debited {
            // What was spent since it was asked is still owed, of a bucket that is full at another time now.
            self.count_by(due.pods, sent);
            let told = if is_answer { question.debit.max(0.0) * due.pods / shape.accrual } else { 0.0 };
            let owed = self.owed(sent) - told;
            self.full_at = sent + reply.level.full_ms as f64 * 1000.0;
            self.owe(owed, sent);
        }
        if is_answer {
            self.held = reply.lent;
            if reply.mark.is_some() && due.remembers {
                self.until = sent + LIFE * USED;
                if self.held > 0.0 && self.key.is_none() {
                    self.key = Some(key.into());
                }
                // One that has more lends no more to anybody.
                let is_empty = reply.lent < question.wanted && self.level.remaining == 0;
                self.ask_at = if is_empty { sent + due.hold_off(self.serial) } else { 0.0 };
            }
        }
        if !due.remembers {
            return;
        }
        self.denied = None;
        if reply.is_short() && reply.level.wait_ms < NEVER_MS {
            let busy = if self.demand >= BUSY { due.hold_off(self.serial) } else { 0.0 };
            let lifted = sent + (reply.level.wait_ms as f64 * 1000.0).max(busy);
            let at_most = if due.may_lift { DENIED_FOR_NOW } else { DENIED_AT_MOST };
            self.denied = Some(Refusal { until: lifted.min(sent + at_most), lifted, cost: due.cost });
        }
    }

    /// The question of this number was answered, or given up.
    pub(super) fn asked(&mut self, serial: u64) {
        if self.serial == serial {
            self.bell();
        }
    }

    /// What it gives back, if it should: of an identity that is idle, where others may miss it; at the `end`, everything.
    pub(super) fn repayment(&mut self, end: bool, now: Micros) -> Option<Repayment> {
        let Some(algorithm::Shape::TokenBucket(shape)) = self.shape else { return None };
        let is_missed = (self.level.remaining as f64) < shape.capacity / shape.price / 2.0;
        let is_due = end || (is_missed && now - self.seen > IDLE);
        if !is_due || !self.holds(now) || self.asking(now).is_some() {
            return None;
        }
        self.serial += 1;
        let held = std::mem::take(&mut self.held);
        Some(Repayment { key: self.key.clone()?, shape, serial: self.serial, held })
    }

    /// Whether there is anything to spend.
    pub(super) fn holds(&self, now: Micros) -> bool {
        self.held > 0.0 && now < self.until
    }

    /// Whether nothing of it is worth keeping.
    pub(super) fn is_idle(&self, now: Micros) -> bool {
        let is_denied = self.denied.is_some_and(|refusal| now < refusal.until);
        now - self.seen > MEMORY && !self.holds(now) && !is_denied && now >= self.paid_off && self.asking(now).is_none()
    }
}
