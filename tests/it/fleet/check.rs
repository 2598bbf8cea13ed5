//! What an outside observer can say of a history. Shares nothing with Weir: it knows when clients began, what they got, and
//! when they were told that an invalidation was taken.

use std::collections::HashMap;
use std::fmt;

use super::fetches::Trouble;
use super::service::Fetch;
use super::{KEYS, Micros};

/// One process of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Life {
    /// Which pod.
    pub pod: usize,
    /// How often it was started before.
    pub number: usize,
}

/// A read that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// Of which key.
    pub key: usize,
    /// By whom.
    pub by: Life,
    /// When the client sent it.
    pub start: Micros,
    /// When it had its answer.
    pub end: Micros,
    /// Of which key the answer says that it is.
    pub got: usize,
    /// In which version.
    pub version: u64,
}

/// How far an invalidation was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Not at all: it may have been lost.
    No,
    /// By this process, which could not tell the others.
    Here(Life),
    /// By the log; the process is the one that said so, if it was one.
    Logged(Option<Life>),
}

/// An invalidation.
#[derive(Debug, Clone)]
pub struct Order {
    /// What it names, each with the version that it has at least from `start` on.
    pub keys: Vec<(usize, u64)>,
    /// When it was sent: whatever was asked of the service before may be older.
    pub start: Micros,
    /// When it was answered.
    pub ack: Micros,
    /// How.
    pub taken: Taken,
    /// Whether it was told to all pods at once, before it had a number.
    pub is_announced: bool,
}

/// A request that got no answer, or a bad one.
#[derive(Debug, Clone)]
pub struct Fault {
    /// From whom.
    pub pod: usize,
    /// When it was sent.
    pub start: Micros,
    /// When it had failed.
    pub end: Micros,
    /// How.
    pub what: String,
}

/// A time in which a pod could not answer: it was stopped, or gone.
#[derive(Debug, Clone, Copy)]
pub struct Away {
    /// Which.
    pub pod: usize,
    /// Since when.
    pub from: Micros,
    /// Until when it was back.
    pub to: Micros,
}

/// All that was seen.
#[derive(Debug, Default)]
pub struct History {
    /// Reads.
    pub reads: Vec<Read>,
    /// Invalidations.
    pub orders: Vec<Order>,
    /// Failures.
    pub faults: Vec<Fault>,
    /// Times in which failures are no fault of Weir's.
    pub away: Vec<Away>,
    /// The service's own record.
    pub fetches: Vec<Fetch>,
    /// Times in which something was wrong.
    pub troubles: Vec<Trouble>,
}

/// What is to be said of it.
#[derive(Debug, Default)]
pub struct Findings {
    /// What must not be, each with its circumstances.
    pub violations: Vec<String>,
    /// The read that the first of them is about.
    pub worst: Option<Read>,
    /// Reads within 2 B after an acknowledgement for which an old copy existed.
    pub tempted: usize,
    /// Of all reads, those that got what an acknowledged invalidation had named, within its bound.
    pub old: usize,
    /// How long after the acknowledgement the last such read of each invalidation and pod began; 0 for most.
    pub lags: Vec<Micros>,
    /// Fetches that were under way when their key was invalidated.
    pub overtaken: usize,
    /// Those that began before an invalidation was sent and ended after it was acknowledged (M2), and the reads within 2 B of
    /// that for which what they brought was there.
    pub raced: (usize, usize),
    /// Invalidations by how they were taken: logged, here, not.
    pub taken: [usize; 3],
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { violations, tempted, old, overtaken, raced, taken: [logged, here, no], .. } = self;
        write!(
            f,
            "{} violations; {tempted} reads within 2 B of an invalidation with an old copy about, ",
            violations.len()
        )?;
        write!(f, "{old} of them old, within the bound; {overtaken} fetches overtaken, ")?;
        write!(f, "{} of them from before to after an acknowledgement, with {} reads after; ", raced.0, raced.1)?;
        write!(f, "invalidations: {logged} logged, {here} taken by one pod, {no} unanswered")?;
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| self.lag(share) as f64 / 1000.0);
        write!(f, "; old answers until p50 {p50:.1}, p99 {p99:.1}, at most {most:.1} ms after")
    }
}

impl Findings {
    /// The lag that so great a share of invalidations and pods stays within.
    pub fn lag(&self, share: f64) -> Micros {
        let mut lags = self.lags.clone();
        lags.sort_unstable();
        let at = ((lags.len() as f64 * share).ceil() as usize).clamp(1, lags.len().max(1)) - 1;
        lags.get(at).copied().unwrap_or(0)
    }
}

/// For each moment, the least version that may still be read: acknowledgements in order, each with the highest version so far.
#[derive(Default)]
struct Least(Vec<(Micros, u64)>);

impl Least {
    fn of(mut acks: Vec<(Micros, u64)>) -> Self {
        acks.sort_unstable();
        let mut most = 0;
        for (_, version) in &mut acks {
            most = most.max(*version);
            *version = most;
        }
        Self(acks)
    }

    /// What was acknowledged before `at`.
    fn before(&self, at: Micros) -> u64 {
        let end = self.0.partition_point(|(ack, _)| *ack < at);
        end.checked_sub(1).map_or(0, |last| self.0[last].1)
    }

    /// Since when nothing below a version above `version` might be read.
    fn above(&self, version: u64) -> Option<Micros> {
        let first = self.0.partition_point(|(_, known)| *known <= version);
        self.0.get(first).map(|(ack, _)| *ack)
    }
}

/// How much of what came before a violation is told.
const TOLD_FOR: Micros = 20_000_000;

/// Most violations that are told.
const TOLD: usize = 20;

/// Judges a history; `bound` is B.
pub fn check(history: &History, bound: Micros) -> Findings {
    let mut findings = Findings::default();
    let (mut logged, mut here) = (vec![Vec::new(); KEYS], HashMap::<(usize, Life), Vec<(Micros, u64)>>::new());
    let mut begun = vec![Vec::new(); KEYS];
    for order in &history.orders {
        let by = match order.taken {
            Taken::No => None,
            Taken::Here(life) => Some(life),
            Taken::Logged(life) => life,
        };
        findings.taken[match order.taken {
            Taken::Logged(_) => 0,
            Taken::Here(_) => 1,
            Taken::No => 2,
        }] += 1;
        for (key, version) in &order.keys {
            if matches!(order.taken, Taken::Logged(_)) {
                logged[*key].push((taken_at(history, order), *version));
                begun[*key].push(order.start);
            }
            if let Some(life) = by {
                here.entry((*key, life)).or_default().push((order.ack, *version));
            }
        }
    }
    let logged: Vec<Least> = logged.into_iter().map(Least::of).collect();
    let here: HashMap<_, Least> = here.into_iter().map(|(at, acks)| (at, Least::of(acks))).collect();
    begun.iter_mut().for_each(|begun| begun.sort_unstable());
    let first = first_copies(&history.fetches);
    let raced = races(history);
    findings.raced.0 = raced.iter().map(Vec::len).sum();

    // The first that says that it must not be.
    let named = |key: usize, version: u64| {
        let is_about = |order: &&Order| order.keys.iter().any(|(named, least)| *named == key && *least > version);
        history.orders.iter().filter(is_about).min_by_key(|order| order.ack)
    };
    let mut last_old = HashMap::<(usize, Micros, usize), Micros>::new();
    for read in &history.reads {
        let Read { key, by, start, end, got, version } = *read;
        let mut wrong = |why: &str, order: Option<&Order>| {
            findings.worst.get_or_insert(*read);
            if findings.violations.len() < TOLD {
                let got = format!("key {key} by {by:?} from {start} to {end}: key {got}, version {version}");
                let order = order.map(|Order { start, ack, taken, .. }| format!(" after {start} to {ack} {taken:?}"));
                findings.violations.push(format!("{why}: {got}{}", order.unwrap_or_default()));
            }
        };
        if got != key {
            wrong("the answer is another key's", None);
            continue;
        }
        // M1: past the bound, and in the process that took it at once.
        if version < logged[key].before(start.saturating_sub(bound)) {
            wrong("older than an invalidation that was acknowledged more than B before", named(key, version));
        }
        if here.get(&(key, by)).is_some_and(|least| version < least.before(start)) {
            wrong("older than an invalidation that this very process had acknowledged", named(key, version));
        }
        // M2: what was fetched before, and stored after.
        let of_key = raced[key].iter().filter(|race| race.ack < start);
        if of_key.clone().any(|race| race.version == version && race.ack + bound < start) {
            wrong("fetched before an invalidation, stored after, and served more than B later", named(key, version));
        }
        findings.raced.1 += usize::from(of_key.clone().any(|race| start <= race.ack + 2 * bound && race.to < start));
        if let Some(ack) = logged[key].0.iter().rev().map(|(ack, _)| *ack).find(|ack| *ack < start)
            && start - ack <= 2 * bound
            && first[key] < ack
        {
            findings.tempted += 1;
        }
        if let Some(ack) = logged[key].above(version).filter(|ack| *ack < start) {
            findings.old += 1;
            let last = last_old.entry((key, ack, by.pod)).or_default();
            *last = (*last).max(start - ack);
        }
    }
    let pods = history.reads.iter().map(|read| read.by.pod).max().map_or(0, |last| last + 1);
    let acked = logged.iter().map(|least| least.0.len()).sum::<usize>();
    findings.lags = last_old.into_values().collect();
    findings.lags.resize((acked * pods).max(findings.lags.len()), 0);
    findings.overtaken = history.fetches.iter().filter(|fetch| overlaps(&begun[fetch.key], fetch)).count();
    for fault in &history.faults {
        let excused = |away: &Away| away.pod == fault.pod && away.from <= fault.end && fault.start <= away.to;
        if !history.away.iter().any(excused) && findings.violations.len() < TOLD {
            let Fault { pod, start, end, what } = fault;
            findings.violations.push(format!("pod {pod} was there, and a client saw from {start} to {end}: {what}"));
        }
    }
    findings
}

/// What happened to a key before `read`, and what was wrong meanwhile: for who looks for the reason.
pub fn story(history: &History, read: &Read) -> String {
    let since = read.start.saturating_sub(TOLD_FOR);
    let is_told = |from: Micros, to: Micros| from <= read.end && to >= since;
    let fetches = history.fetches.iter().filter(|it| it.key == read.key && is_told(it.from, it.to));
    let mut lines: Vec<_> = fetches.map(|it| (it.from, format!("{it:?}"))).collect();
    let names = |order: &&Order| order.keys.iter().any(|(key, _)| *key == read.key);
    let orders = history.orders.iter().filter(names).filter(|it| is_told(it.start, it.ack));
    lines.extend(orders.map(|it| {
        let least = it.keys.iter().find(|(key, _)| *key == read.key).map_or(0, |(_, least)| *least);
        (
            it.start,
            format!("invalidated {} to {}: least {least}, {:?}, {} keys", it.start, it.ack, it.taken, it.keys.len()),
        )
    }));
    let troubles = history.troubles.iter().filter(|it| is_told(it.from, it.to));
    lines.extend(
        troubles.map(|it| (it.from, format!("{:?} of {:?}, from {} to {}", it.what, it.whose, it.from, it.to))),
    );
    lines.sort();
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// When an invalidation counts as acknowledged. One in the stream does when a pod takes it, which nobody is told of: while no
/// pod reaches Redis, none does.
fn taken_at(history: &History, order: &Order) -> Micros {
    let mut at = order.ack;
    if order.taken == Taken::Logged(None) {
        while let Some(it) = history.troubles.iter().find(|it| it.whose.is_none() && it.from <= at && at < it.to) {
            at = it.to;
        }
    }
    at
}

/// A fetch that began before an invalidation was sent, and ended after it was acknowledged.
struct Race {
    version: u64,
    to: Micros,
    ack: Micros,
}

/// By keys. Of several invalidations the first counts.
fn races(history: &History) -> Vec<Vec<Race>> {
    let mut raced: Vec<Vec<Race>> = (0..KEYS).map(|_| Vec::new()).collect();
    let mut orders: Vec<Vec<(Micros, Micros, u64)>> = vec![Vec::new(); KEYS];
    for order in history.orders.iter().filter(|order| matches!(order.taken, Taken::Logged(_))) {
        for (key, least) in &order.keys {
            orders[*key].push((order.start, taken_at(history, order), *least));
        }
    }
    for Fetch { key, version, from, to, .. } in &history.fetches {
        let overtakes = |(start, ack, least): &&(Micros, Micros, u64)| from < start && ack < to && version < least;
        if let Some((_, ack, _)) = orders[*key].iter().filter(overtakes).min_by_key(|(_, ack, _)| *ack) {
            raced[*key].push(Race { version: *version, to: *to, ack: *ack });
        }
    }
    raced
}

/// When each key was first fetched.
fn first_copies(fetches: &[Fetch]) -> Vec<Micros> {
    let mut first = vec![Micros::MAX; KEYS];
    for fetch in fetches {
        first[fetch.key] = first[fetch.key].min(fetch.to);
    }
    first
}

fn overlaps(begun: &[Micros], fetch: &Fetch) -> bool {
    let next = begun.partition_point(|start| *start < fetch.from);
    begun.get(next).is_some_and(|start| *start <= fetch.to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Micros = 1_000;
    const FIRST: Life = Life { pod: 0, number: 0 };
    const SECOND: Life = Life { pod: 1, number: 0 };

    fn read(by: Life, start: Micros, version: u64) -> Read {
        Read { key: 3, by, start, end: start + 1, got: 3, version }
    }

    fn order(ack: Micros, version: u64, taken: Taken) -> Order {
        Order { keys: vec![(3, version)], start: ack - 10, ack, taken, is_announced: false }
    }

    fn fetch(from: Micros) -> Fetch {
        Fetch { key: 3, by: FIRST, version: 1, from, to: from + 10 }
    }

    fn violations(orders: &[Order], reads: &[Read]) -> usize {
        let history = History { reads: reads.to_vec(), orders: orders.to_vec(), ..History::default() };
        check(&history, BOUND).violations.len()
    }

    #[test]
    fn what_is_old_after_the_bound_is_found_and_nothing_else() {
        let logged = [order(100, 2, Taken::Logged(Some(FIRST)))];
        assert_eq!(violations(&logged, &[read(SECOND, 1_099, 1), read(SECOND, 1_101, 2)]), 0);
        assert_eq!(violations(&logged, &[read(SECOND, 1_101, 1)]), 1);
        assert_eq!(violations(&logged, &[read(FIRST, 101, 1)]), 1, "in the process itself at once");
        assert_eq!(violations(&logged, &[read(Life { number: 1, ..FIRST }, 101, 1)]), 0, "not in the next one");
        let here = [order(100, 2, Taken::Here(FIRST))];
        assert_eq!(violations(&here, &[read(SECOND, 9_999, 1)]), 0, "nobody else has heard of it");
        assert_eq!(violations(&here, &[read(FIRST, 9_999, 1)]), 1);
        assert_eq!(violations(&[order(100, 2, Taken::No)], &[read(FIRST, 9_999, 1)]), 0);
    }

    #[test]
    fn of_several_invalidations_the_highest_counts() {
        let orders = [2, 5, 3].map(|version| order(100 * version, version, Taken::Logged(None)));
        for (start, least) in [(1_250, 2), (1_350, 3), (1_550, 5), (9_000, 5)] {
            assert_eq!(violations(&orders, &[read(FIRST, start, least)]), 0, "{start}");
            assert_eq!(violations(&orders, &[read(FIRST, start, least - 1)]), 1, "{start}");
        }
    }

    #[test]
    fn other_keys_and_errors_are_found() {
        assert_eq!(violations(&[], &[Read { got: 4, ..read(FIRST, 5, 1) }]), 1);
        let faults = vec![Fault { pod: 1, start: 50, end: 60, what: "502".into() }];
        for (from, to, expected) in [(0, 49, 1), (0, 50, 0), (60, 70, 0), (61, 70, 1)] {
            let history =
                History { faults: faults.clone(), away: vec![Away { pod: 1, from, to }], ..History::default() };
            assert_eq!(check(&history, BOUND).violations.len(), expected, "{from} to {to}");
        }
    }

    #[test]
    fn what_was_fetched_before_an_invalidation_and_stored_after_is_followed() {
        let fetches = vec![Fetch { to: 120, ..fetch(80) }];
        let history = |version, start| History {
            reads: vec![read(SECOND, 150, 2), read(SECOND, start, version)],
            orders: vec![order(100, 2, Taken::Logged(None))],
            fetches: fetches.clone(),
            ..History::default()
        };
        let findings = check(&history(2, 1_500), BOUND);
        assert_eq!((findings.raced, findings.violations.len()), ((1, 2), 0));
        assert_eq!(check(&history(1, 1_100), BOUND).violations.len(), 0);
        let findings = check(&history(1, 1_101), BOUND);
        assert!(findings.violations.iter().any(|it| it.starts_with("fetched before")), "{:?}", findings.violations);
    }

    #[test]
    fn what_was_seen_is_counted() {
        let fetches = vec![fetch(10), fetch(85)];
        let history = History {
            reads: vec![read(SECOND, 150, 1), read(SECOND, 250, 1), read(SECOND, 5_000, 2)],
            orders: vec![order(100, 2, Taken::Logged(None))],
            fetches,
            ..History::default()
        };
        let findings = check(&history, BOUND);
        assert_eq!((findings.violations.len(), findings.tempted, findings.old, findings.overtaken), (0, 2, 2, 1));
        assert_eq!(findings.lag(1.0), 150);
    }
}
