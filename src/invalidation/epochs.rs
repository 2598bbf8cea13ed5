//! Epochs: for each selector the number of the last invalidation that named it. Pure, bounded, and never too low: what
//! does not fit is folded, and then counts as named a little later than it was.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use ahash::RandomState;

use self::folded::Folded;
use super::Subject;
use crate::syntax::selector::{Selector, UrlQuery};

mod folded;

/// Selectors kept exactly; when there are more, the older half is folded.
pub const EXACT_SELECTORS: usize = 65_536;

/// Slashes of a prefix that count; one with as many is widened to what ends with the last of them.
pub const PREFIX_DEPTH: usize = 32;

/// When a selector was last named, in one numbering; 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch {
    /// By an invalidation.
    pub hard: u64,
    /// By a soft one.
    pub soft: u64,
}

impl Epoch {
    /// The later of the two.
    pub fn last(self) -> u64 {
        self.hard.max(self.soft)
    }

    /// Raises it to `other` where that is later.
    fn raise(&mut self, other: Self) {
        self.hard = self.hard.max(other.hard);
        self.soft = self.soft.max(other.soft);
    }
}

/// Epochs in both numberings: the fleet's log, and this process' own count of what it applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Number in the log.
    pub log: Epoch,
    /// Number in the process.
    pub own: Epoch,
}

impl Stamp {
    /// The epoch of one invalidation.
    pub fn of(log: u64, own: u64, soft: bool) -> Self {
        let epoch = |seq| if soft { Epoch { hard: 0, soft: seq } } else { Epoch { hard: seq, soft: 0 } };
        Self { log: epoch(log), own: epoch(own) }
    }

    fn raise(&mut self, other: Self) {
        self.log.raise(other.log);
        self.own.raise(other.own);
    }

    /// When it was last raised here.
    fn age(&self) -> u64 {
        self.own.last()
    }
}

/// The epochs of all selectors.
#[derive(Debug)]
pub struct Epochs {
    hasher: RandomState,
    exact: HashMap<u64, Stamp, RandomState>,
    folded: Folded,
    /// Whether any prefix was named.
    has_prefixes: bool,
    all: Stamp,
}

impl Default for Epochs {
    fn default() -> Self {
        let hasher = RandomState::new();
        Self {
            exact: HashMap::with_hasher(hasher.clone()),
            hasher,
            folded: Folded::default(),
            has_prefixes: false,
            all: Stamp::default(),
        }
    }
}

/// A selector that names a subject; what it is hashed as. Host and query are `None` where the selector means any.
#[derive(Debug, Hash)]
pub enum Name<'a> {
    /// A URL.
    Url {
        /// Host, or any.
        host: Option<&'a str>,
        /// Path.
        path: &'a str,
        /// Query, or any.
        query: Option<Option<&'a str>>,
    },
    /// A tag.
    Tag(&'a str),
    /// A route.
    Route(&'a str),
    /// A path prefix.
    Prefix(&'a str),
    /// Everything; not kept by its hash.
    All,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { host, path, query } => {
                let scheme = if host.is_some() { "http://" } else { "" };
                write!(f, "url {scheme}{}{path}", host.unwrap_or_default())?;
                match query {
                    Some(None) => Ok(()),
                    Some(Some(query)) => write!(f, "?{query}"),
                    None => f.write_str("?*"),
                }
            }
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl Epochs {
    /// Notes that `selector` was named.
    pub fn raise(&mut self, selector: &Selector, epoch: Stamp) {
        match selector {
            Selector::Url(url) => {
                let query = match &url.query {
                    UrlQuery::Exact(query) => Some(query.as_deref()),
                    UrlQuery::Any => None,
                };
                self.raise_exact(&Name::Url { host: url.host.as_deref(), path: &url.path, query }, epoch);
            }
            Selector::Tag(tag) => self.raise_exact(&Name::Tag(tag), epoch),
            Selector::Route(route) => self.raise_exact(&Name::Route(route), epoch),
            Selector::Prefix(prefix) => {
                self.has_prefixes = true;
                self.raise_exact(&Name::Prefix(widened(prefix)), epoch);
            }
            Selector::All => self.all.raise(epoch),
        }
    }

    /// The latest epochs of all selectors that name `subject`. Allocates nothing.
    pub fn of(&self, subject: &Subject<'_>) -> Stamp {
        let mut latest = Stamp::default();
        self.each(subject, |_, stamp| latest.raise(stamp));
        latest
    }

    /// Hands `to` the epochs of every selector that names `subject`, those that were never named left out.
    pub fn each(&self, subject: &Subject<'_>, mut to: impl FnMut(&Name<'_>, Stamp)) {
        let mut to = |name: &Name<'_>, stamp: Stamp| {
            if stamp != Stamp::default() {
                to(name, stamp);
            }
        };
        to(&Name::All, self.all);
        if !self.exact.is_empty() || !self.folded.is_empty() {
            for host in [Some(subject.host), None] {
                // What the request's own query is as well is handed out once.
                let also = subject.also.iter().map(Option::as_deref).filter(|query| *query != subject.query);
                for query in [Some(subject.query), None].into_iter().chain(also.map(Some)) {
                    let url = Name::Url { host, path: subject.path, query };
                    to(&url, self.look(&url));
                }
            }
            for tag in subject.tags.iter().chain(subject.answer_tags) {
                to(&Name::Tag(tag), self.look(&Name::Tag(tag)));
            }
            let route = Name::Route(subject.route);
            to(&route, self.look(&route));
        }
        if self.has_prefixes {
            for prefix in prefixes(subject.path) {
                to(&Name::Prefix(prefix), self.look(&Name::Prefix(prefix)));
            }
        }
    }

    fn raise_exact(&mut self, name: &Name<'_>, epoch: Stamp) {
        let hash = self.hasher.hash_one(name);
        self.exact.entry(hash).or_default().raise(epoch);
        if self.exact.len() > EXACT_SELECTORS {
            self.fold();
        }
    }

    /// Folds the older half: a million invalidations cost a fold each 32,768th.
    fn fold(&mut self) {
        let mut ages: Vec<u64> = self.exact.values().map(Stamp::age).collect();
        let (_, median, _) = ages.select_nth_unstable(EXACT_SELECTORS / 2);
        let median = *median;
        let mut last = Stamp::default();
        let older: Vec<_> = self.exact.extract_if(|_, epoch| epoch.age() <= median).collect();
        older.iter().for_each(|(_, epoch)| last.raise(*epoch));
        self.folded.fold(older.into_iter(), last);
    }

    fn look(&self, name: &Name<'_>) -> Stamp {
        let hash = self.hasher.hash_one(name);
        let mut stamp = self.exact.get(&hash).copied().unwrap_or_default();
        if !self.folded.is_empty() {
            stamp.raise(self.folded.look(hash));
        }
        stamp
    }
}

/// Every prefix under which `path` lies: itself, and what ends before or behind one of its slashes.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let slashes = path.match_indices('/').take(PREFIX_DEPTH).map(|(at, _)| at);
    let itself = (!path.ends_with('/') && path.matches('/').count() < PREFIX_DEPTH).then_some(path);
    slashes.flat_map(|at| [&path[..at], &path[..=at]]).chain(itself)
}

/// `prefix`, or what of it counts.
fn widened(prefix: &str) -> &str {
    prefix.match_indices('/').nth(PREFIX_DEPTH - 1).map_or(prefix, |(at, _)| &prefix[..=at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::syntax::selector::UrlSelector;

    const WORDS: [&str; 3] = ["a", "b", "c"];
    const PATHS: [&str; 4] = ["/a", "/a/b", "/ab", "/"];
    const QUERIES: [Option<&str>; 3] = [None, Some(""), Some("x=1")];

    fn word() -> impl Strategy<Value = String> {
        prop::sample::select(&WORDS).prop_map(str::to_owned)
    }

    fn path() -> impl Strategy<Value = String> {
        prop::sample::select(&PATHS).prop_map(str::to_owned)
    }

    fn query() -> impl Strategy<Value = Option<String>> {
        prop::sample::select(&QUERIES).prop_map(|q| q.map(str::to_owned))
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let wanted = prop_oneof![query().prop_map(UrlQuery::Exact), Just(UrlQuery::Any)];
        let url = (prop::option::of(word()), path(), wanted)
            .prop_map(|(host, path, query)| Selector::Url(UrlSelector { host, path, query }));
        let prefix = prop::sample::select(&["/", "/a", "/a/"]).prop_map(|p: &str| Selector::Prefix(p.to_owned()));
        prop_oneof![
            4 => url,
            3 => word().prop_map(Selector::Tag),
            2 => word().prop_map(Selector::Route),
            2 => prefix,
            1 => Just(Selector::All),
        ]
    }

    /// Whether a selector names a subject, by its definition.
    fn names(selector: &Selector, subject: &Subject<'_>) -> bool {
        match selector {
            Selector::Url(url) => {
                url.host.as_deref().is_none_or(|host| host == subject.host)
                    && url.path == subject.path
                    && match &url.query {
                        UrlQuery::Any => true,
                        UrlQuery::Exact(query) => query.as_deref() == subject.query || subject.also.contains(query),
                    }
            }
            Selector::Tag(tag) => subject.tags.iter().chain(subject.answer_tags).any(|t| t == tag),
            Selector::Prefix(p) if p.ends_with('/') => subject.path.starts_with(p.as_str()),
            Selector::Prefix(p) => {
                let (mut ours, mut theirs) = (subject.path.split('/'), p.split('/'));
                theirs.all(|segment| ours.next() == Some(segment))
            }
            Selector::Route(route) => route == subject.route,
            Selector::All => true,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_records(
            records in prop::collection::vec((selector(), any::<bool>()), 0..40),
            host in word(), path in path(), query in query(), also in prop::collection::vec(query(), 0..3), route in word(),
            tags in prop::collection::vec(word(), 0..2), answer_tags in prop::collection::vec(word(), 0..2),
        ) {
            let subject = Subject {
                host: &host, path: &path, query: query.as_deref(), also: &also, route: &route,
                tags: &tags, answer_tags: &answer_tags,
            };
            let mut epochs = Epochs::default();
            let mut expected = Stamp::default();
            for (i, (selector, soft)) in records.iter().enumerate() {
                let epoch = Stamp::of(i as u64 + 100, i as u64 + 1, *soft);
                epochs.raise(selector, epoch);
                if names(selector, &subject) {
                    expected.raise(epoch);
                }
            }
            prop_assert_eq!(epochs.of(&subject), expected);
        }
    }

    fn tagged(tags: &[String]) -> Subject<'_> {
        Subject { host: "h", path: "/p", query: None, also: &[], route: "r", tags, answer_tags: &[] }
    }

    #[test]
    fn what_does_not_fit_is_folded_and_never_forgotten() {
        let mut epochs = Epochs::default();
        let count = 3 * EXACT_SELECTORS as u64;
        for i in 1..=count {
            epochs.raise(&Selector::Tag(format!("t{i}")), Stamp::of(i, i, false));
        }
        assert!(epochs.exact.len() <= EXACT_SELECTORS && !epochs.folded.is_empty());
        for i in (1..=count).step_by(997) {
            let tags = [format!("t{i}")];
            assert!(epochs.of(&tagged(&tags)).log.hard >= i, "tag {i}");
        }
        let untouched = (0..10_000).filter(|i| epochs.of(&tagged(&[format!("never named {i}")])) == Stamp::default());
        assert!(untouched.count() > 9_900, "what was not named is not refused");
    }

    #[test]
    fn very_many_prefixes_are_told_apart() {
        let mut epochs = Epochs::default();
        let count = 3 * EXACT_SELECTORS as u64;
        for i in 1..=count {
            epochs.raise(&Selector::Prefix(format!("/{i}")), Stamp::of(i, i, false));
        }
        let under = |path: &str| epochs.of(&Subject { path, ..tagged(&[]) }).log.hard;
        for i in (1..=count).step_by(997) {
            assert!(under(&format!("/{i}")) >= i && under(&format!("/{i}/below/it")) >= i, "/{i}");
        }
        let untouched = (0..10_000).filter(|i| under(&format!("/never/named/{i}")) == 0);
        assert!(untouched.count() > 9_900, "what was not named is not refused");
    }

    #[test]
    fn a_prefix_that_is_too_deep_is_widened() {
        let mut epochs = Epochs::default();
        let deep = |segments: usize| "/a".repeat(segments);
        epochs.raise(&Selector::Prefix(deep(PREFIX_DEPTH + 3)), Stamp::of(1, 1, false));
        let is_named = |path: &str| epochs.of(&Subject { path, ..tagged(&[]) }) != Stamp::default();
        assert!(is_named(&deep(PREFIX_DEPTH + 3)) && is_named(&deep(PREFIX_DEPTH)));
        assert!(!is_named(&deep(PREFIX_DEPTH - 1)) && !is_named(&"/a".repeat(10_000).replace('a', "b")));
    }
}
