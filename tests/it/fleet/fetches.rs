//! G2 and M3 from the outside: which fetches the service need not have seen. Shares nothing with Weir: it knows who asked the
//! service when, what invalidations named, and what went wrong where.
//!
//! A fetch is explained if nothing that was fetched before could have been used in its stead. What could have been:
//!
//! - what the same process asked for less than B ago, whatever is wrong with Redis; less than a lifetime ago, if nothing is;
//! - what any process asked for less than a lifetime ago, if nothing was wrong with it while it stored that, and nothing is
//!   wrong with who asks now.
//!
//! Unless an invalidation, or a loss, came in between: and each explains one fetch of each key only, or one for each pod that is cut off.

use std::collections::HashMap;
use std::fmt;

use super::check::{History, Order, Read, Taken};
use super::service::Fetch;
use super::{BOUND, KEYS, Micros};

/// Something is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    /// With one pod, or its way to Redis; with all of them if it says none.
    pub whose: Option<usize>,
    /// Since when.
    pub from: Micros,
    /// Until all is as before.
    pub to: Micros,
    /// What it does to what is stored.
    pub loss: Loss,
    /// Its name.
    pub what: Option<super::faults::Fault>,
}

/// What becomes of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Each pod may have to do without what it fetched meanwhile: invalidations get new numbers.
    Anew,
    /// The same, and nothing from before is used any more.
    Whole,
}

/// Before the service hears from it, a pod has looked whether anybody else has it, or fetches it.
const LOOK: Micros = 100_000;

/// After the service's answer, for so long a fetch may be under way to Redis.
const STORE: Micros = 250_000;

/// Invalidations that are acknowledged have come everywhere, where nothing is wrong.
const LAG: Micros = 200_000;

/// After a message was published, some pods have heard of it, and it has no number yet: what they fetch is theirs alone.
const ANNOUNCED: Micros = 30_000;

/// For so long what was fetched need not be fetched again: the lifetime, less what it is spread by, less the time of early refreshes.
const LIFETIME: Micros = 15_500_000;

/// Between a request that is the first to want something, by whose time it is trusted, and the service's hearing of it.
const ASKING: Micros = 100_000;

/// Of how many fetches before one it is looked at whether it was still under way.
const NEAR: usize = 8;

/// Why the service was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// Nobody had asked for it.
    First,
    /// It was invalidated.
    Invalidated,
    /// Its lifetime was over.
    Expired,
    /// Redis came back without it, or with another time.
    Lost,
    /// Who asked before crashed, stood still or could not store it.
    Unshared,
    /// Who asks is cut off, or Redis is away.
    CutOff,
    /// An invalidation without a number made what was asked for before its asker's alone.
    Announced,
    /// Nothing explains it.
    Needless,
}

/// All of them, in order.
const ALL: [Why; 8] =
    [Why::First, Why::Invalidated, Why::Expired, Why::Lost, Why::Unshared, Why::CutOff, Why::Announced, Why::Needless];

/// What is to be said of the fetches.
#[derive(Debug, Default)]
pub struct Spent {
    /// How many there were, by reasons.
    pub by: HashMap<Why, usize>,
    /// Reads of a key that began while another pod fetched it, neither in trouble: each might have been one more fetch.
    pub crowded: usize,
    /// Those that nothing explains, each with what could have been used.
    pub violations: Vec<String>,
}

impl Spent {
    /// How many for this reason.
    pub fn of(&self, why: Why) -> usize {
        self.by.get(&why).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} fetches:", self.by.values().sum::<usize>())?;
        for why in ALL.into_iter().filter(|why| self.of(*why) > 0 || *why == Why::Needless) {
            write!(f, " {} {why:?},", self.of(why))?;
        }
        write!(f, " while {} reads came to what another pod was fetching", self.crowded)
    }
}

/// What may come between two fetches of a key.
struct Event {
    from: Micros,
    /// What was asked for later knows of it.
    to: Micros,
    /// How many fetches it explains.
    grants: usize,
    /// Each pod learns of it by itself.
    each: bool,
    /// The one that it is about, if it is not about all.
    whose: Option<usize>,
    used: usize,
    used_by: HashMap<usize, usize>,
}

impl Event {
    fn new(from: Micros, to: Micros, grants: usize, each: bool) -> Self {
        Self { from, to, grants, each, whose: None, used: 0, used_by: HashMap::new() }
    }

    /// Whether it explains one more of `pod`'s; one that is shared is everybody's.
    fn explains(&self, pod: usize, alone: bool) -> bool {
        let own = self.used_by.get(&pod).copied().unwrap_or_default();
        own < self.grants
            && self.whose.is_none_or(|whose| whose == pod)
            && (alone || self.each || self.used < self.grants)
    }

    fn spend(&mut self, pod: usize, is_shared: bool) {
        self.used += usize::from(is_shared);
        if !is_shared || self.each {
            *self.used_by.entry(pod).or_default() += 1;
        }
    }
}

/// Judges the fetches of a history.
pub fn judge(history: &History) -> Spent {
    let troubles = Troubles(&history.troubles);
    let mut fetches = vec![Vec::new(); KEYS];
    for fetch in &history.fetches {
        fetches[fetch.key].push(*fetch);
    }
    let mut events: Vec<Vec<Event>> = (0..KEYS).map(|_| troubles.losses()).collect();
    let mut announced = Vec::new();
    for order in &history.orders {
        for (key, _) in &order.keys {
            events[*key].push(troubles.event(order));
        }
        if order.is_announced {
            announced.push(order.start);
        }
    }
    announced.sort_unstable();
    let mut spent = Spent::default();
    for (fetches, events) in fetches.iter_mut().zip(&mut events) {
        fetches.sort_unstable_by_key(|fetch| fetch.from);
        events.sort_by_key(|event| event.to);
        let of_key = OfKey { fetches, announced: &announced, troubles };
        for at in 0..of_key.fetches.len() {
            let why = of_key.explain(at, events).unwrap_or_else(|before| {
                let Fetch { key, by, from, .. } = of_key.fetches[at];
                let Fetch { by: whose, from: when, .. } = before;
                spent
                    .violations
                    .push(format!("fetched needlessly: key {key} by {by:?} at {from}, after {whose:?} at {when}"));
                Why::Needless
            });
            *spent.by.entry(why).or_default() += 1;
        }
    }
    spent.crowded = history.reads.iter().filter(|read| is_crowded(read, &fetches[read.key], troubles)).count();
    spent
}

/// Whether another pod was fetching what is read.
fn is_crowded(read: &Read, fetches: &[Fetch], troubles: Troubles<'_>) -> bool {
    let is_well = |pod| troubles.of(pod, read.start.saturating_sub(LOOK), read.start + STORE).next().is_none();
    let until = fetches.partition_point(|fetch| fetch.from <= read.start);
    let under_way = fetches[..until].iter().rev().take(NEAR).filter(|fetch| read.start < fetch.to);
    is_well(read.by.pod) && under_way.map(|fetch| fetch.by.pod).any(|pod| pod != read.by.pod && is_well(pod))
}

/// The fetches of one key, in order.
struct OfKey<'a> {
    fetches: &'a [Fetch],
    announced: &'a [Micros],
    troubles: Troubles<'a>,
}

impl OfKey<'_> {
    /// Why the service was asked; or what should have been used.
    fn explain(&self, at: usize, events: &mut [Event]) -> Result<Why, Fetch> {
        let (fetch, before) = (self.fetches[at], &self.fetches[..at]);
        let Some(last) = before.last() else { return Ok(Why::First) };
        let alone = !self.troubles.reads_well(&fetch) || self.is_announced(&fetch);
        let Some(useful) = before.iter().rev().find(|before| self.is_useful(before, &fetch, alone)) else {
            return Ok(self.why_useless(last, &fetch, alone));
        };
        // What was there before a loss is of no use, or of use again after it.
        let between = |event: &&mut Event| {
            event.from <= fetch.from && event.to >= useful.from && (!event.each || event.from <= useful.from)
        };
        match events.iter_mut().filter(between).find(|event| event.explains(fetch.by.pod, alone)) {
            Some(event) => {
                event.spend(fetch.by.pod, !alone && self.is_shared(&fetch));
                Ok(if event.each { Why::Lost } else { Why::Invalidated })
            }
            None => Err(*useful),
        }
    }

    /// Whether what `before` brought could be used in the place of `fetch`, if nothing came in between.
    fn is_useful(&self, before: &Fetch, fetch: &Fetch, alone: bool) -> bool {
        let age = fetch.from - before.from;
        if age > LIFETIME || self.troubles.is_lost(fetch.by.pod, before.from, fetch.from) {
            return false;
        }
        let is_own = before.by == fetch.by && before.to <= fetch.from;
        // Where its currency cannot be proven, what a pod asked for is good for B.
        let is_trusted = age + ASKING <= BOUND.as_micros() as Micros
            || self.troubles.of(fetch.by.pod, before.from, fetch.from).next().is_none();
        is_own && is_trusted || !alone && self.is_shared(before)
    }

    /// Whether others may use what it brought.
    fn is_shared(&self, fetch: &Fetch) -> bool {
        self.troubles.stores_well(fetch) && !self.is_announced(fetch)
    }

    fn is_announced(&self, fetch: &Fetch) -> bool {
        let next = self.announced.partition_point(|at| *at + ANNOUNCED < fetch.from);
        self.announced.get(next).is_some_and(|at| *at <= fetch.from)
    }

    fn why_useless(&self, last: &Fetch, fetch: &Fetch, alone: bool) -> Why {
        if self.troubles.is_lost(fetch.by.pod, last.from, fetch.from) {
            Why::Lost
        } else if fetch.from - last.from > LIFETIME {
            Why::Expired
        } else if alone && !self.is_announced(fetch) {
            Why::CutOff
        } else if alone || self.is_announced(last) {
            Why::Announced
        } else {
            Why::Unshared
        }
    }
}

/// What went wrong, and when.
#[derive(Clone, Copy)]
struct Troubles<'a>(&'a [Trouble]);

impl<'a> Troubles<'a> {
    /// Those of this pod in this time.
    fn of(self, pod: usize, from: Micros, to: Micros) -> impl Iterator<Item = &'a Trouble> {
        self.0.iter().filter(move |it| it.whose.is_none_or(|whose| whose == pod) && it.from <= to && from <= it.to)
    }

    /// Whether nothing is wrong with who asks, so that it knows what others have and do.
    fn reads_well(self, fetch: &Fetch) -> bool {
        self.of(fetch.by.pod, fetch.from.saturating_sub(LOOK), fetch.from).next().is_none()
    }

    /// Whether nothing was wrong while what was asked for was leased, fetched and stored.
    fn stores_well(self, fetch: &Fetch) -> bool {
        self.of(fetch.by.pod, fetch.from.saturating_sub(LOOK), fetch.to + STORE).next().is_none()
    }

    /// Whether what was there at `from` was lost to `pod` before `to`.
    fn is_lost(self, pod: usize, from: Micros, to: Micros) -> bool {
        let is_its = |it: &Trouble| it.whose.is_none_or(|whose| whose == pod);
        self.0.iter().any(|it| it.loss == Loss::Whole && is_its(it) && from < it.from && it.from <= to)
    }

    /// In each of them, each pod may fetch once before it notices, and once after.
    fn losses(self) -> Vec<Event> {
        let losses = self.0.iter().filter(|it| it.loss != Loss::None);
        losses.map(|it| Event { whose: it.whose, ..Event::new(it.from, it.to, 1, true) }).collect()
    }

    /// An invalidation, until every pod knows of it.
    fn event(self, order: &Order) -> Event {
        let mut end = order.ack + LAG;
        // What is logged is known within B; what is not, once it can be.
        while let Some(trouble) = self.0.iter().find(|it| it.from <= end && it.to + LAG > end) {
            end = trouble.to + LAG;
        }
        // Applied where it came in, and again when it has a number.
        let mut grants = 2;
        if matches!(order.taken, Taken::Logged(_)) {
            end = end.min(order.ack + LAG + BOUND.as_micros() as Micros);
            grants = 1;
        }
        Event::new(order.start, end, grants, false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Life;
    use super::*;

    const SECOND: Micros = 1_000_000;
    const HERE: Life = Life { pod: 0, number: 0 };
    const THERE: Life = Life { pod: 1, number: 0 };

    fn fetch(by: Life, from: Micros) -> Fetch {
        Fetch { key: 3, by, version: 1, from, to: from + 10_000 }
    }

    fn order(start: Micros, taken: Taken) -> Order {
        Order { keys: vec![(3, 2)], start, ack: start + 1_000, taken, is_announced: false }
    }

    fn trouble(whose: Option<usize>, from: Micros, to: Micros, loss: Loss) -> Trouble {
        Trouble { whose, from, to, loss, what: None }
    }

    fn spent(fetches: &[Fetch], orders: &[Order], troubles: &[Trouble]) -> Spent {
        let (fetches, orders, troubles) = (fetches.to_vec(), orders.to_vec(), troubles.to_vec());
        judge(&History { fetches, orders, troubles, ..History::default() })
    }

    fn whys(fetches: &[Fetch], orders: &[Order], troubles: &[Trouble]) -> [usize; 8] {
        let spent = spent(fetches, orders, troubles);
        assert_eq!(spent.violations.len(), spent.of(Why::Needless));
        ALL.map(|why| spent.of(why))
    }

    #[test]
    fn each_invalidation_explains_one_fetch_of_the_fleet() {
        let logged = order(2 * SECOND, Taken::Logged(Some(HERE)));
        let [before, after, more] = [fetch(HERE, SECOND), fetch(THERE, 3 * SECOND), fetch(HERE, 4 * SECOND)];
        assert_eq!(whys(&[before], &[], &[]), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(whys(&[before, after], &[], &[]), [1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(whys(&[before, after], std::slice::from_ref(&logged), &[]), [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(whys(&[before, after, more], std::slice::from_ref(&logged), &[]), [1, 1, 0, 0, 0, 0, 0, 1]);
        // Both at once: the lease was for one of them.
        assert_eq!(whys(&[before, after, fetch(HERE, 3 * SECOND + 1)], std::slice::from_ref(&logged), &[])[7], 1);
        // Two that came together are one fetch each at most; one that came before the fetch began is none.
        let two = [logged.clone(), order(2 * SECOND + 10, Taken::Logged(None))];
        assert_eq!(whys(&[before, fetch(HERE, 2 * SECOND + 100), fetch(THERE, 2 * SECOND + 200)], &two, &[])[7], 0);
        assert_eq!(whys(&[before, after, more], &two, &[])[7], 1);
        // One that names another key.
        let other = Order { keys: vec![(4, 2)], ..logged };
        assert_eq!(whys(&[before, after], &[other], &[])[7], 1);
    }

    #[test]
    fn what_was_not_logged_at_once_counts_twice_and_what_was_announced_is_its_askers_alone() {
        let fetches = [SECOND, 2 * SECOND + 5_000, 2 * SECOND + 50_000, 2 * SECOND + 90_000].map(|at| fetch(HERE, at));
        assert_eq!(whys(&fetches, &[order(2 * SECOND, Taken::Here(THERE))], &[]), [1, 2, 0, 0, 0, 0, 0, 1]);
        let announced = Order { is_announced: true, ..order(2 * SECOND, Taken::No) };
        let alone = [fetch(HERE, 2 * SECOND + 5_000), fetch(THERE, 2 * SECOND + 50_000)];
        assert_eq!(whys(&alone, &[announced], &[]), [1, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn lifetimes_end() {
        let fetches = [SECOND, SECOND + LIFETIME + 1, SECOND + LIFETIME + 2].map(|at| fetch(HERE, at));
        assert_eq!(whys(&fetches, &[], &[]), [1, 0, 1, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_leader_in_trouble_costs_one_more() {
        let stopped = [trouble(Some(0), SECOND + 5_000, 4 * SECOND, Loss::None)];
        let fetches = [fetch(HERE, SECOND), fetch(THERE, 3 * SECOND), fetch(THERE, 4 * SECOND)];
        assert_eq!(whys(&fetches, &[], &stopped), [1, 0, 0, 0, 1, 0, 0, 1]);
        // It was invalidated before, which is no reason for two.
        let before = [&[fetch(THERE, 100_000)], &fetches[..]].concat();
        let logged = [order(500_000, Taken::Logged(None))];
        assert_eq!(whys(&before, &logged, &stopped), [1, 2, 0, 0, 0, 0, 0, 1]);
        let other = [trouble(Some(2), SECOND, 4 * SECOND, Loss::None)];
        assert_eq!(whys(&fetches, &[], &other)[7], 2, "another pod's trouble is no reason");
    }

    #[test]
    fn without_redis_it_is_one_for_each_pod_and_bound() {
        let away = [trouble(None, 2 * SECOND, 9 * SECOND, Loss::None)];
        let bound = BOUND.as_micros() as Micros;
        let fetches =
            [fetch(HERE, SECOND), fetch(THERE, 3 * SECOND), fetch(HERE, 4 * SECOND), fetch(HERE, 4 * SECOND + bound)];
        assert_eq!(whys(&fetches, &[], &away), [1, 0, 0, 0, 0, 3, 0, 0]);
        let again = [fetch(HERE, 3 * SECOND), fetch(HERE, 3 * SECOND + bound - ASKING)];
        assert_eq!(whys(&again, &[], &away)[7], 1);
        // What came meanwhile is known to each by itself.
        let logged = [order(3 * SECOND + 100_000, Taken::Logged(None))];
        let both =
            [fetch(HERE, 3 * SECOND), fetch(THERE, 3 * SECOND + 10), fetch(HERE, 4 * SECOND), fetch(THERE, 4 * SECOND)];
        assert_eq!(whys(&both, &logged, &away), [1, 2, 0, 0, 0, 1, 0, 0]);
        let more = [&both[..], &[fetch(HERE, 4 * SECOND + 500_000)]].concat();
        assert_eq!(whys(&more, &logged, &away)[7], 1);
    }

    #[test]
    fn a_loss_is_two_for_each_pod_while_it_is_noticed_and_one_for_all_after() {
        let lost = [trouble(None, 2 * SECOND, 4 * SECOND, Loss::Whole)];
        let times = [SECOND, 2 * SECOND + 1, 3 * SECOND, 3 * SECOND + 500_000];
        let fetches: Vec<_> = times.map(|at| fetch(HERE, at)).into();
        assert_eq!(whys(&fetches, &[], &lost), [1, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(
            whys(&[fetch(HERE, SECOND), fetch(THERE, 5 * SECOND), fetch(HERE, 6 * SECOND)], &[], &lost),
            [1, 0, 0, 1, 0, 0, 0, 1]
        );
        let anew = [trouble(None, 2 * SECOND, 4 * SECOND, Loss::Anew)];
        assert_eq!(whys(&[fetch(HERE, SECOND), fetch(THERE, 5 * SECOND)], &[], &anew)[7], 1);
    }

    #[test]
    fn who_comes_to_what_another_fetches_is_counted() {
        let read = |by, start| Read { key: 3, by, start, end: start + 1, got: 3, version: 1 };
        let history = History {
            fetches: vec![fetch(HERE, SECOND)],
            reads: vec![read(HERE, SECOND + 1), read(THERE, SECOND + 1), read(THERE, 2 * SECOND)],
            ..History::default()
        };
        assert_eq!(judge(&history).crowded, 1);
    }
}
