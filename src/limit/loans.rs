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

use super::account::{self, Account};
use super::algorithm::{self, Level, Micros};
use super::bucket::Shape;
use super::identity::LocalName;
use super::local::{Few, Reading, Spread};

/// How long Redis counts a loan, in microseconds of its time. In `bucket.lua` as well.
pub const LIFE: Micros = 2_000_000.0;

/// Loans that are given back at once.
pub const REPAID_AT_ONCE: usize = 256;

/// Identities that are remembered in all shards together: about 26 MiB of them.
pub const ACCOUNTS_MAX: usize = 100_000;

/// Locks that they are spread over.
const SHARDS: usize = 64;

/// Pause between two searches of a full shard for what may be forgotten.
const SWEEP_EVERY: Micros = 100_000.0;

/// One limit that a request is to be taken from.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// The identity's state.
    pub name: LocalName,
    /// The limit's shape: what is known of another is of no use.
    pub shape: algorithm::Shape,
    /// That of a bucket that lends; `None` if it is none.
    pub bucket: Option<Shape>,
    /// That of a bucket that is told what was spent while Redis was away; `None` if it is none.
    pub debited: Option<Shape>,
    /// Whether the request may be paid for from a loan of it.
    pub borrows: bool,
    /// What the request costs.
    pub cost: f64,
    /// Pods that share the limit.
    pub pods: f64,
    /// Whether a denial holds until the time that it names: not where somebody else's end lifts it, nor where none does.
    pub remembers: bool,
    /// Whether answers on their way may lift a denial before the time that it names.
    pub may_lift: bool,
    /// Whether the limit only counts: it is to be asked, whatever the others are known to say.
    pub counts: bool,
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
    pub(super) serial: u64,
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
    /// Units that it spent of its own part of the limit while Redis was away; less than nothing where it owes them even if
    /// the bucket has less.
    pub debit: f64,
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

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Heard {
    /// This is what the state answered.
    Answer(Reading),
    /// Redis heard nothing of it.
    Nothing,
    /// It was not answered, and may have been heard.
    Unknown,
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

    /// So much was taken from this pod's own part of the limit, because Redis is away; or, less than nothing, given back.
    /// `full_at` is when that part would have been full but for this.
    pub fn spent_away(&self, due: &Due, cost: f64, full_at: Option<Micros>, now: Micros) {
        if due.debited.is_some() && cost != 0.0 {
            self.with(due.name, now, |account| account.spent_away(due, cost, full_at, now));
        }
    }

    /// Something came back to this state: a denial may not hold any more.
    pub fn lift(&self, name: LocalName) {
        if let Some(account) = self.shard(name).accounts.get_mut(&name) {
            account.lift();
        }
    }

    /// Its state in Redis was made as good as new. What it was lent counts there on, and may be spent.
    pub(super) fn pardon(&self, name: LocalName) {
        if let Some(account) = self.shard(name).accounts.get_mut(&name) {
            account.pardon();
        }
    }

    /// What is known of one identity; `None` if nothing is.
    pub(super) fn shown(&self, name: LocalName, now: Micros) -> Option<account::Known> {
        self.shard(name).accounts.get(&name).map(|account| account.shown(now))
    }

    /// Every loan of which something is left: where its bucket is in Redis, and units.
    pub(super) fn held(&self, now: Micros) -> Vec<(Box<[u8]>, f64)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().expect("no panic while held");
            let known = shard.borrowers.iter().filter_map(|name| shard.accounts.get(name));
            all.extend(
                known.filter(|one| one.holds(now)).filter_map(|one| Some((one.key.clone()?, one.shown(now).held))),
            );
        }
        all
    }

    /// Loans that are to be given back: of identities that have been idle, where others may miss it, or, at the `end`, of
    /// all. At most [`REPAID_AT_ONCE`]; the rest when it is called again.
    pub fn repayments(&self, end: bool, now: Micros) -> Vec<Repayment> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no panic while held");
            let Shard { accounts, borrowers, .. } = &mut *shard;
            borrowers.retain(|name| {
                let Some(account) = accounts.get_mut(name) else { return false };
                if all.len() >= REPAID_AT_ONCE {
                    return true;
                }
                match account.repayment(end, now) {
                    Some(repayment) => all.push(repayment),
                    None if account.holds(now) => return true,
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
        let mut again = again;
        // One limit is the usual: one look at its account, and most often that is all.
        if let [due] = dues
            && due.remembers
            && !again
        {
            let at_once = |account: &mut Account| {
                account.arrive(due, false, now);
                if let Some((_, level)) = account.denies(due, now) {
                    return Some(Known::Denied(0, level));
                }
                Some(Known::Spent(Few::from_iter([account.spend(&due.bucket.filter(|_| due.borrows)?, due.cost)?])))
            };
            if let Some(known) = self.with(due.name, now, at_once).flatten() {
                return known;
            }
            again = true;
        }
        let mut denied: Option<(usize, Micros, Level)> = None;
        for (nth, due) in dues.iter().enumerate().filter(|(_, due)| due.remembers) {
            let denies = |account: &mut Account| {
                account.arrive(due, again, now);
                account.denies(due, now)
            };
            // Of several, the longest wait.
            if let Some((lifted, level)) = self.with(due.name, now, denies).flatten()
                && denied.is_none_or(|(_, latest, _)| lifted > latest)
            {
                denied = Some((nth, lifted, level));
            }
        }
        let counts = dues.iter().any(|due| due.counts);
        if let Some((nth, _, level)) = denied.filter(|_| !counts) {
            return Known::Denied(nth, level);
        }
        let lends = dues.iter().all(Due::lends);
        if dues.iter().all(|due| due.bucket.is_some()) {
            if let Some(spent) = self.spend(dues, now) {
                return Known::Spent(spent);
            }
            for (nth, due) in dues.iter().enumerate() {
                if let Some(level) = self.with(due.name, now, |account| account.holds_off(due, now)).flatten() {
                    return Known::Denied(nth, level);
                }
            }
            for due in dues {
                if let Some(bell) = self.with(due.name, now, |account| account.awaited(now).cloned()).flatten() {
                    return Known::Wait(bell);
                }
            }
        }
        let question = |due: &Due| match due.bucket {
            Some(shape) => {
                self.with(due.name, now, |account| account.question(due, &shape, lends, now)).unwrap_or_default()
            }
            // It is known only if there is something to tell.
            None => {
                let debt = |shape: Shape| {
                    let mut shard = self.shard(due.name);
                    let account = shard.accounts.get_mut(&due.name)?;
                    account.fit(due, now);
                    Some(account.question(due, &shape, false, now))
                };
                due.debited.and_then(debt).unwrap_or_default()
            }
        };
        let questions = dues.iter().map(question).collect();
        Known::Ask(Box::new(Asked { loans: self, dues: dues.into(), questions, sent: now }))
    }

    /// Gives back what was spent, unless the bucket was asked since: it was told that it is gone.
    pub fn refund(&self, name: LocalName, spent: &Spent, now: Micros) {
        self.with(name, now, |account| account.refund(spent, now));
    }

    /// Pays for a request from every loan, or from none.
    fn spend(&self, dues: &[Due], now: Micros) -> Option<Few<Spent>> {
        let mut all = Few::new();
        for due in dues {
            let spend = |account: &mut Account| account.spend(&due.bucket.filter(|_| due.borrows)?, due.cost);
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
        if let Some(account) = shard.accounts.get_mut(&name) {
            return Some(act(account));
        }
        if shard.accounts.len() >= ACCOUNTS_MAX / SHARDS {
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
    /// What came of the questions, in their order, each with where its state is in Redis.
    pub fn answered<'k>(self: Box<Self>, each: impl Iterator<Item = (&'k Heard, &'k [u8])>) {
        for ((due, question), (heard, key)) in self.dues.iter().zip(&self.questions).zip(each) {
            match heard {
                Heard::Answer(reply) => self.learn(due, question, reply, key),
                Heard::Nothing if question.debit < 0.0 => {
                    self.loans.with(due.name, self.sent, |account| account.unheard(due, question, self.sent));
                }
                Heard::Nothing | Heard::Unknown => {}
            }
        }
    }

    fn learn(&self, due: &Due, question: &Question, reply: &Reading, key: &[u8]) {
        if !due.remembers && due.debited.is_none() {
            return;
        }
        let mut shard = self.loans.shard(due.name);
        let Shard { accounts, borrowers, .. } = &mut *shard;
        let Some(account) = accounts.get_mut(&due.name) else { return };
        let had_key = account.key.is_some();
        account.learn(due, question, reply, key, self.sent);
        if account.key.is_some() && !had_key {
            borrowers.push(due.name);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        for (due, question) in self.dues.iter().zip(&self.questions).filter(|(_, question)| question.serial != 0) {
            self.loans.with(due.name, self.sent, |account| account.asked(question.serial));
        }
    }
}

#[cfg(test)]
#[path = "loans_tests.rs"]
mod tests;
