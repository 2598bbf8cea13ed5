//! Loans: what this pod knows of a bucket in Redis, so that most decisions about a busy identity need no round trip.
//!
//! A bucket lends a pod several tokens, which the pod spends by itself. In Redis, what a bucket holds and what it has lent
//! never exceed its capacity together, and a loan that expires is forgotten, never credited: so in every window `w`, over
//! all pods and whatever crashes, admitted <= burst + rate * w. With each question a pod gives back what it has left, and
//! is lent anew; unanswered, that is lost. Redis counts a loan until it has expired, and its borrower, on his own clock,
//! stops before that. A denial is remembered until it could be lifted.
//!
//! Pure: `now` is an argument, in microseconds of a clock that counts suspension.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Semaphore;

use super::algorithm::{Level, Micros, NEVER_MS};
use super::bucket::Shape;
use super::identity::LocalName;
use super::local::{Few, Reading, Spread};

/// How long Redis counts a loan, in microseconds of its time. In `bucket.lua` as well.
pub const LIFE: Micros = 2_000_000.0;

/// How much of that its borrower uses: clocks differ, and so do the moments at which both began to count.
const USED: f64 = 0.9;

/// Time over which demand is remembered.
const MEMORY: Micros = 2_000_000.0;

/// A loan is for what so much time will ask for,
const AHEAD: Micros = 100_000.0;

/// or, of an identity that is less busy, for so many requests if as many came within [`MEMORY`],
const FEW: f64 = 8.0;

/// and never for more than this part of the bucket: others want theirs.
const PART: f64 = 16.0;

/// Pause before a pod asks again a bucket that gave it less than it wanted.
const HOLD_OFF: Micros = 25_000.0;

/// Requests within [`MEMORY`] from which on an identity is held off for longer than its bucket asks for.
const BUSY: f64 = 80.0;

/// Longest that a denial is remembered.
const DENIED_AT_MOST: Micros = 10_000_000.0;

/// A question for as many requests is waited for, as is any where the bucket had too little: one at a time is enough.
const WORTH_WAITING: f64 = 4.0;

/// Longest that a question counts as being asked.
const ASKING_AT_MOST: Micros = 1_000_000.0;

/// Pause after which an identity counts as idle.
const IDLE: Micros = 500_000.0;

/// Loans that are given back at once.
pub const REPAID_AT_ONCE: usize = 256;

/// Identities that are remembered in all shards together: about 16 MiB of them.
pub const ACCOUNTS_MAX: usize = 100_000;

/// Locks that they are spread over.
const SHARDS: usize = 64;

/// Pause between two searches of a full shard for what may be forgotten.
const SWEEP_EVERY: Micros = 100_000.0;

/// One limit that a request is to be taken from.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// The identity's bucket.
    pub name: LocalName,
    /// The shape of a bucket that lends; `None` if it is none.
    pub bucket: Option<Shape>,
    /// What the request costs.
    pub cost: f64,
    /// Pods that share the limit.
    pub pods: f64,
    /// Whether a denial holds until the time that it names: not where somebody else's end lifts it, nor where none does.
    pub remembers: bool,
}

/// What a process is called among borrowers: of a random number what a double holds exactly.
pub fn borrower(random: u64) -> f64 {
    (random >> 11) as f64
}

/// Is closed when a question was answered: who waits for a permit is woken then, and finds it closed whenever he comes.
pub type Bell = Arc<Semaphore>;

/// What is known without asking.
pub enum Known<'l> {
    /// Admitted, and paid for from loans.
    Spent(Few<Spent>),
    /// This limit denies.
    Denied(usize, Level),
    /// Somebody else asks just now: to be looked at again when he has his answer.
    Wait(Bell),
    /// Redis is to be asked.
    Ask(Box<Asked<'l>>),
}

/// What was paid from a loan, to be given back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    /// Units.
    pub units: f64,
    /// What the bucket says of itself, as far as that is known.
    pub level: Level,
    serial: u64,
}

/// What a bucket is told with a request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Question {
    /// Number of the question, of this pod and identity; 0 if there is nothing to say.
    pub serial: u64,
    /// Units of its last loan that the pod has left.
    pub held: f64,
    /// Units that it wants to have.
    pub wanted: f64,
    /// Units that it spent of its own part of the limit while Redis was away.
    pub debit: f64,
}

/// What is known of one identity's bucket.
#[derive(Debug, Default)]
struct Account {
    /// Units that may be spent until `until`.
    held: f64,
    until: Micros,
    /// Of the last question.
    serial: u64,
    /// What came lately, in requests, as of `seen`.
    demand: f64,
    seen: Micros,
    /// Not before this is the bucket asked again, as it gave less than was wanted.
    ask_at: Micros,
    denied: Option<Refusal>,
    /// Units spent of this pod's own part of the limit, while Redis was away, that this part had not gained again at
    /// `away_at`.
    away: f64,
    away_at: Micros,
    /// Where it is in Redis, while something is lent.
    key: Option<Box<[u8]>>,
    asking: Option<(Bell, Micros)>,
    /// Whether who comes meanwhile waits for the answer.
    is_worth_waiting: bool,
    /// What the bucket last said, without what it had lent.
    level: Level,
    shape: Option<Shape>,
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

/// What this pod knows of buckets.
pub struct Loans {
    /// What this process is called among the borrowers.
    who: f64,
    shards: Box<[Mutex<Shard>]>,
}

/// A loan that is to be given back.
#[derive(Debug, Clone)]
pub struct Repayment {
    /// Where the bucket is in Redis.
    pub key: Box<[u8]>,
    /// The bucket's shape.
    pub shape: Shape,
    /// A number above that of the last question.
    pub serial: u64,
    /// Units that are left.
    pub held: f64,
}

#[derive(Default)]
struct Shard {
    accounts: HashMap<LocalName, Account, BuildHasherDefault<Spread>>,
    /// Those that were lent something and have not been looked at since.
    borrowers: Vec<LocalName>,
    sweep_at: Micros,
}

/// A question that is being asked; dropped unanswered, the next may ask.
pub struct Asked<'l> {
    loans: &'l Loans,
    dues: Few<Due>,
    /// What each bucket is told.
    pub questions: Few<Question>,
    sent: Micros,
}

impl Account {
    /// A request has come, or has waited.
    fn arrive(&mut self, due: &Due, again: bool, now: Micros) {
        if !again {
            let past = (now - self.seen).max(0.0);
            self.demand = self.demand * (-past / MEMORY).exp() + due.cost;
            self.seen = now;
        }
        if due.bucket.is_some() && self.shape != due.bucket {
            // Another configuration's: nothing of it holds.
            (self.shape, self.denied, self.held, self.ask_at) = (due.bucket, None, 0.0, 0.0);
        }
        if now >= self.until {
            self.held = 0.0;
        }
    }

    /// What is known to deny it.
    fn denies(&self, cost: f64, now: Micros) -> Option<Level> {
        let refusal = self.denied.filter(|refusal| now < refusal.until && cost >= refusal.cost)?;
        Some(self.waiting(refusal.lifted, now))
    }

    /// The bucket's level, for who is to come back at `until`.
    fn waiting(&self, until: Micros, now: Micros) -> Level {
        let wait_ms = ((until - now) / 1000.0).ceil() as u64;
        Level { remaining: 0, wait_ms, full_ms: self.level.full_ms.max(wait_ms) }
    }

    /// Pays for a request, if the loan suffices.
    fn spend(&mut self, shape: &Shape, cost: f64) -> Option<Spent> {
        let units = cost * shape.price;
        if self.held < units {
            return None;
        }
        self.held -= units;
        let remaining = self.level.remaining + (self.held / shape.price) as u64;
        Some(Spent { units, level: Level { remaining, wait_ms: 0, ..self.level }, serial: self.serial })
    }

    /// Who asks just now.
    fn asking(&self, now: Micros) -> Option<&Bell> {
        self.asking.as_ref().filter(|(_, until)| now < *until).map(|(bell, _)| bell)
    }

    /// What was spent while Redis was away, as the pod's own part of the limit has it at `now`.
    fn away(&self, shape: &Shape, pods: f64, now: Micros) -> f64 {
        (self.away - (now - self.away_at).max(0.0) * shape.accrual / pods).max(0.0)
    }

    fn question(&mut self, shape: &Shape, pods: f64, now: Micros) -> Question {
        let (wanted, debit) = (self.wanted(shape), self.away(shape, pods, now).floor());
        if self.asking(now).is_some() || (wanted == 0.0 && self.held == 0.0 && debit == 0.0) {
            return Question::default();
        }
        self.serial += 1;
        self.asking = Some((Arc::new(Semaphore::new(0)), now + ASKING_AT_MOST));
        self.is_worth_waiting = self.ask_at > 0.0 || wanted >= WORTH_WAITING * shape.price;
        Question { serial: self.serial, held: std::mem::take(&mut self.held), wanted, debit }
    }

    /// Units that it should have.
    fn wanted(&self, shape: &Shape) -> f64 {
        let few = if self.demand < 2.0 { 0.0 } else { self.demand.min(FEW) };
        let requests = few.max(self.demand / MEMORY * AHEAD).min(shape.capacity / shape.price / PART).floor();
        requests * shape.price
    }

    fn learn(&mut self, due: &Due, question: &Question, reply: &Reading, key: &[u8], sent: Micros) {
        let lent = self.shape.map_or(0, |shape| (reply.lent / shape.price) as u64);
        self.level = Level { remaining: reply.level.remaining.saturating_sub(lent), ..reply.level };
        if question.serial != 0 && question.serial == self.serial {
            self.held = reply.lent;
            if question.debit > 0.0 {
                self.away = 0.0;
            }
            if reply.mark.is_some() {
                self.until = sent + LIFE * USED;
                if self.held > 0.0 && self.key.is_none() {
                    self.key = Some(key.into());
                }
                self.ask_at = if reply.lent < question.wanted { sent + due.hold_off() } else { 0.0 };
            }
        }
        self.denied = None;
        if reply.is_short() && reply.level.wait_ms < NEVER_MS {
            let busy = if self.demand >= BUSY { due.hold_off() } else { 0.0 };
            let lifted = sent + (reply.level.wait_ms as f64 * 1000.0).max(busy);
            self.denied = Some(Refusal { until: lifted.min(sent + DENIED_AT_MOST), lifted, cost: due.cost });
        }
    }

    /// What it gives back, if it should.
    fn repayment(&mut self, end: bool, now: Micros) -> Option<Repayment> {
        let shape = self.shape?;
        let is_missed = (self.level.remaining as f64) < shape.capacity / shape.price / 2.0;
        let is_due = end || (is_missed && now - self.seen > IDLE);
        if !is_due || self.held == 0.0 || now >= self.until || self.asking(now).is_some() {
            return None;
        }
        self.serial += 1;
        let held = std::mem::take(&mut self.held);
        Some(Repayment { key: self.key.clone()?, shape, serial: self.serial, held })
    }

    /// Whether nothing of it is worth keeping.
    fn is_idle(&self, now: Micros) -> bool {
        let is_denied = self.denied.is_some_and(|refusal| now < refusal.until);
        now - self.seen > MEMORY
            && (self.held == 0.0 || now >= self.until)
            && !is_denied
            && self.away == 0.0
            && self.asking(now).is_none()
    }
}

impl Due {
    /// Pause before a bucket that had too little is asked again: shorter where it would be full before.
    fn hold_off(&self) -> Micros {
        self.bucket.map_or(HOLD_OFF, |shape| HOLD_OFF.min(shape.capacity / shape.accrual / 2.0))
    }
}

impl Loans {
    /// Nothing is known. `who` is a whole number that no other process has.
    pub fn new(who: f64) -> Self {
        Self { who, shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// What this process is called among the borrowers.
    pub fn who(&self) -> f64 {
        self.who
    }

    /// A request was taken from this pod's own part of the limit, because Redis is away.
    pub fn spent_away(&self, due: &Due, now: Micros) {
        let Some(shape) = due.bucket else { return };
        self.with(due.name, now, |account| {
            let before = account.away(&shape, due.pods, now);
            (account.away, account.away_at) = (before + due.cost * shape.price, now);
        });
    }

    /// Loans that are to be given back: of identities that have been idle, where others may miss it, or, at the `end`, of
    /// all. At most [`REPAID_AT_ONCE`]; the rest when it is called again.
    pub fn repayments(&self, end: bool, now: Micros) -> Vec<Repayment> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no panic while held");
            let Shard { accounts, borrowers, .. } = &mut *shard;
            borrowers.retain(|name| {
                let Some(account) = accounts.get_mut(name).filter(|account| account.key.is_some()) else {
                    return false;
                };
                match account.repayment(end, now) {
                    _ if all.len() >= REPAID_AT_ONCE => return true,
                    Some(repayment) => all.push(repayment),
                    None if account.held > 0.0 && now < account.until => return true,
                    None => {}
                }
                account.key = None;
                false
            });
        }
        all
    }

    /// What is known of a request that is to be taken from all of `dues`, or from none. `again` if it was asked for before.
    pub fn consult(&self, dues: &[Due], again: bool, now: Micros) -> Known<'_> {
        for (nth, due) in dues.iter().enumerate() {
            let denied = self.with(due.name, now, |account| {
                account.arrive(due, again, now);
                account.denies(due.cost, now).filter(|_| due.remembers)
            });
            if let Some(level) = denied.flatten() {
                return Known::Denied(nth, level);
            }
        }
        if dues.iter().all(|due| due.bucket.is_some()) {
            if let Some(spent) = self.spend(dues, now) {
                return Known::Spent(spent);
            }
            for (nth, due) in dues.iter().enumerate() {
                let held_off = |account: &mut Account| {
                    let lacks = due.bucket.is_some_and(|shape| account.held < due.cost * shape.price);
                    (lacks && now < account.ask_at).then(|| account.waiting(account.ask_at, now))
                };
                if let Some(level) = self.with(due.name, now, held_off).flatten() {
                    return Known::Denied(nth, level);
                }
            }
            for due in dues {
                let asking = |account: &mut Account| account.asking(now).filter(|_| account.is_worth_waiting).cloned();
                if let Some(bell) = self.with(due.name, now, asking).flatten() {
                    return Known::Wait(bell);
                }
            }
        }
        let question = |due: &Due| match due.bucket {
            Some(shape) => {
                self.with(due.name, now, |account| account.question(&shape, due.pods, now)).unwrap_or_default()
            }
            None => Question::default(),
        };
        let questions = dues.iter().map(question).collect();
        Known::Ask(Box::new(Asked { loans: self, dues: dues.into(), questions, sent: now }))
    }

    /// Gives back what was spent, unless the bucket was asked since: it was told that it is gone.
    pub fn refund(&self, name: LocalName, spent: &Spent, now: Micros) {
        self.with(name, now, |account| {
            if account.serial == spent.serial && now < account.until {
                account.held += spent.units;
            }
        });
    }

    /// Pays for a request from every loan, or from none.
    fn spend(&self, dues: &[Due], now: Micros) -> Option<Few<Spent>> {
        let mut all = Few::new();
        for due in dues {
            let spend = |account: &mut Account| account.spend(&due.bucket?, due.cost);
            match self.with(due.name, now, spend).flatten() {
                Some(spent) => all.push(spent),
                None => {
                    dues.iter().zip(&all).for_each(|(due, spent)| self.refund(due.name, spent, now));
                    return None;
                }
            }
        }
        Some(all)
    }

    /// The account of `name`; `None` if there is no room for it.
    fn with<T>(&self, name: LocalName, now: Micros, act: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let mut shard = self.shard(name);
        if !shard.accounts.contains_key(&name) && shard.accounts.len() >= ACCOUNTS_MAX / SHARDS {
            shard.sweep(now);
            if shard.accounts.len() >= ACCOUNTS_MAX / SHARDS {
                return None;
            }
        }
        Some(act(shard.accounts.entry(name).or_default()))
    }

    fn shard(&self, name: LocalName) -> MutexGuard<'_, Shard> {
        self.shards[(name >> 96) as usize % SHARDS].lock().expect("no panic while held")
    }
}

impl Shard {
    /// Forgets what is idle.
    fn sweep(&mut self, now: Micros) {
        if now >= self.sweep_at {
            self.accounts.retain(|_, account| !account.is_idle(now));
            self.sweep_at = now + SWEEP_EVERY;
        }
    }
}

impl Asked<'_> {
    /// The buckets' answers, in the order of the questions, each with where it is in Redis.
    pub fn answered<'k>(self: Box<Self>, replies: impl Iterator<Item = (&'k Reading, &'k [u8])>) {
        let asked = self.dues.iter().zip(&self.questions).filter(|(due, _)| due.remembers);
        for ((due, question), (reply, key)) in asked.zip(replies) {
            let mut shard = self.loans.shard(due.name);
            let Shard { accounts, borrowers, .. } = &mut *shard;
            let Some(account) = accounts.get_mut(&due.name) else { continue };
            let had_key = account.key.is_some();
            account.learn(due, question, reply, key, self.sent);
            if account.key.is_some() && !had_key {
                borrowers.push(due.name);
            }
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        for (due, question) in self.dues.iter().zip(&self.questions).filter(|(_, question)| question.serial != 0) {
            let asking = |account: &mut Account| account.asking.take_if(|_| account.serial == question.serial);
            if let Some((bell, _)) = self.loans.with(due.name, self.sent, asking).flatten() {
                bell.close();
            }
        }
    }
}

#[cfg(test)]
#[path = "loans_tests.rs"]
mod tests;
