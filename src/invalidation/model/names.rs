//! What is cached, and what invalidations can name of it.

use std::sync::LazyLock;

use super::Step;
use super::random::Random;
use crate::invalidation::Subject;
use crate::syntax::selector::{Selector, UrlSelector};

/// Keys in a history; few, so that much happens to each.
pub const KEYS: usize = 3;

pub type Key = usize;

/// One answer of the upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub key: Key,
    /// What the upstream had when it was asked.
    pub version: u64,
    /// When that was.
    pub read: Step,
    /// When the fetch was leased, or sent without a lease.
    pub began: Step,
}

/// An order; equal ones are equal in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Index of its selector.
    pub what: usize,
    pub soft: bool,
}

struct Resource {
    path: &'static str,
    route: &'static str,
    tags: Vec<String>,
}

static RESOURCES: LazyLock<[Resource; KEYS]> = LazyLock::new(|| {
    let resource = |path, route, tag: &str| Resource { path, route, tags: vec![tag.to_owned()] };
    [resource("/a/1", "a", "id:0"), resource("/a/2", "a", "id:1"), resource("/b", "b", "id:2")]
});

/// Tags that answers carry: another one with each version.
static ANSWER_TAGS: LazyLock<[Vec<String>; 2]> = LazyLock::new(|| [vec!["even".to_owned()], vec!["odd".to_owned()]]);

/// Each selector, and how many times it is drawn.
static SELECTORS: LazyLock<Vec<([Selector; 1], usize)>> = LazyLock::new(|| {
    let url = |path| Selector::Url(UrlSelector::parse(path).unwrap());
    let tag = |name: &str| Selector::Tag(name.to_owned());
    let all = [
        (url("/a/1"), 4),
        (url("/a/2"), 4),
        (url("/b"), 4),
        (tag("id:0"), 2),
        (tag("id:1"), 2),
        (tag("id:2"), 2),
        (tag("even"), 3),
        (tag("odd"), 3),
        (Selector::Prefix("/a".to_owned()), 2),
        (Selector::Route("b".to_owned()), 2),
        (Selector::All, 1),
    ];
    all.into_iter().map(|(selector, times)| ([selector], times)).collect()
});

impl Order {
    /// One of those that name `answer`.
    pub fn naming(answer: Answer, soft: bool, random: &mut Random) -> Self {
        let naming = (0..SELECTORS.len()).filter(|what| names(*what, answer));
        let drawn: Vec<usize> = naming.flat_map(|what| std::iter::repeat_n(what, SELECTORS[what].1)).collect();
        Self { what: random.of(&drawn), soft }
    }

    /// As the mirror takes it.
    pub fn selectors(self) -> &'static [Selector] {
        &SELECTORS[self.what].0
    }

    /// Whether it names an answer, by the table's own meaning.
    pub fn names(self, answer: Answer) -> bool {
        names(self.what, answer)
    }
}

fn names(what: usize, answer: Answer) -> bool {
    match what {
        0..3 => answer.key == what,
        3..6 => answer.key == what - 3,
        6 | 7 => answer.version % 2 == what as u64 - 6,
        8 => answer.key < 2,
        9 => answer.key == 2,
        _ => true,
    }
}

/// A key, as its readers compute it before they have an answer.
pub fn subject(key: Key) -> Subject<'static> {
    let Resource { path, route, tags } = &RESOURCES[key];
    Subject { host: "h", path, query: None, also: &[], route, tags, answer_tags: &[] }
}

/// An answer, with the tags that it carries.
pub fn subject_of(answer: Answer) -> Subject<'static> {
    Subject { answer_tags: &ANSWER_TAGS[(answer.version % 2) as usize], ..subject(answer.key) }
}
