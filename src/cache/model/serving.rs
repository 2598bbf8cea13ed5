//! RFC 9110 sections 13 and 14 for what is stored, and RFC 9111 section 4.3.4 for what the upstream says of it.

use super::text::{date, entity_tags, lines};
use super::{Choice, Fields};

/// How a GET is answered from a stored answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Whole,
    NotModified,
    /// First and last byte of each part.
    Parts(Vec<(usize, usize)>),
    NotSatisfiable,
}

/// A stored answer.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) status: u16,
    pub(super) fields: Fields,
    pub(super) length: usize,
    pub(super) received_at: u64,
}

impl Stored {
    /// Its line of this name; none if it has several ([`Choice::OneLine`]).
    fn only(&self, name: &str) -> Option<&str> {
        match lines(&self.fields, name)[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Its `Last-Modified`, if that is a date.
    fn modified(&self) -> Option<&str> {
        self.only("last-modified").filter(|text| date(text).is_some())
    }

    fn sent_at(&self) -> u64 {
        self.only("date").and_then(date).unwrap_or(self.received_at)
    }
}

/// Section 13.2.2, in its order; `If-Match` and `If-Unmodified-Since` are the upstream's.
pub(super) fn reply(request: &Fields, stored: &Stored) -> Reply {
    // Section 13.2.1: only what would go well is conditional.
    let goes_well = (200..300).contains(&stored.status);
    let conditions = lines(request, "if-none-match");
    if !conditions.is_empty() {
        if goes_well && !none_matches(&conditions, stored) {
            return Reply::NotModified;
        }
    } else if goes_well && !is_modified(request, stored) {
        return Reply::NotModified;
    }
    if stored.status == 200 { part(request, stored) } else { Reply::Whole }
}

/// Section 13.1.2: compared weakly, and `*` is whatever is there.
fn none_matches(conditions: &[&str], stored: &Stored) -> bool {
    let opaque = |tag: &str| tag.trim_start_matches("W/").to_owned();
    !conditions.iter().any(|list| match entity_tags(list) {
        None => true,
        Some(tags) => stored.only("etag").is_some_and(|own| tags.iter().any(|tag| opaque(tag) == opaque(own))),
    })
}

/// Section 13.1.3; RFC 9111 section 4.3.2 for what has no date of its own.
fn is_modified(request: &Fields, stored: &Stored) -> bool {
    let [since] = lines(request, "if-modified-since")[..] else { return true };
    let Some(since) = date(since) else { return true };
    let modified = stored.only("last-modified").and_then(date).unwrap_or_else(|| stored.sent_at());
    modified / 1000 > since / 1000
}

/// Sections 14.2 and 13.1.5.
fn part(request: &Fields, stored: &Stored) -> Reply {
    let [range] = lines(request, "range")[..] else { return Reply::Whole };
    match lines(request, "if-range")[..] {
        [] => {}
        [condition] if condition.starts_with('"') && stored.only("etag") == Some(condition) => {}
        [condition] if stored.only("last-modified") == Some(condition) => {
            // Section 8.8.2.2: strong if the answer was sent a second later.
            let Some(modified) = date(condition) else { return Reply::Whole };
            if stored.sent_at() < modified + 1000 {
                return Reply::Whole;
            }
        }
        _ => return Reply::Whole,
    }
    let Some((unit, specs)) = range.split_once('=') else { return Reply::Whole };
    if !unit.eq_ignore_ascii_case("bytes") {
        return Reply::Whole;
    }
    let specs: Vec<&str> = specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()).collect();
    // More than sixteen waste work, and section 14.2 lets a server ignore them.
    if specs.is_empty() || specs.len() > 16 {
        return Reply::Whole;
    }
    let mut parts = Vec::new();
    for spec in specs {
        match positions(spec, stored.length) {
            Position::Unreadable => return Reply::Whole,
            Position::Behind => {}
            Position::At(first, last) => parts.push((first, last)),
        }
    }
    if parts.is_empty() { Reply::NotSatisfiable } else { Reply::Parts(joined(parts, stored.length)) }
}

enum Position {
    Unreadable,
    Behind,
    At(usize, usize),
}

/// Section 14.1.2.
fn positions(spec: &str, length: usize) -> Position {
    let Some((first, last)) = spec.split_once('-') else { return Position::Unreadable };
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let number = |text: &str| text.parse().unwrap_or(usize::MAX);
    if first.is_empty() && is_number(last) {
        return match (number(last), length) {
            // There is no way to name a part of nothing: it is sent whole.
            (_, 0) => Position::Unreadable,
            (0, _) => Position::Behind,
            (suffix, length) => Position::At(length - suffix.min(length), length - 1),
        };
    }
    if !is_number(first) || !(last.is_empty() || is_number(last)) {
        return Position::Unreadable;
    }
    let (first, last) = (number(first), if last.is_empty() { usize::MAX } else { number(last) });
    if first > last {
        Position::Unreadable
    } else if first >= length {
        Position::Behind
    } else {
        Position::At(first, last.min(length - 1))
    }
}

/// Section 17.15: where two overlap or touch, every byte that was asked for, once and in order.
fn joined(parts: Vec<(usize, usize)>, length: usize) -> Vec<(usize, usize)> {
    let touch = |(a, b): (usize, usize), (c, d): (usize, usize)| a <= d + 1 && c <= b + 1;
    let meets_another =
        (0..parts.len()).any(|one| (0..parts.len()).any(|two| one != two && touch(parts[one], parts[two])));
    if !meets_another {
        return parts;
    }
    let is_asked = |at: usize| parts.iter().any(|(first, last)| (*first..=*last).contains(&at));
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..length).filter(|at| is_asked(*at)) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == at => *last = at,
            _ => runs.push((at, at)),
        }
    }
    runs
}

/// Whether a 304 with these fields is about this answer, and by which choice if the RFC would not say so.
pub(super) fn is_confirmed(stored: &Stored, update: &Fields) -> (bool, Option<Choice>) {
    match (&lines(update, "etag")[..], &lines(update, "last-modified")[..]) {
        ([tag], _) if tag.starts_with("W/") => {
            (stored.only("etag").is_some_and(|own| own.trim_start_matches("W/") == tag.trim_start_matches("W/")), None)
        }
        ([tag], _) => (stored.only("etag") == Some(tag), None),
        ([], [modified, ..]) => (stored.modified() == Some(modified), None),
        ([], []) => {
            let has_validator = stored.only("etag").is_some() || stored.modified().is_some();
            (true, has_validator.then_some(Choice::Bare304))
        }
        // Choice::OneLine.
        (_, _) => (false, None),
    }
}

/// Section 3.2: the 304's fields in the place of those of the same name. `Date` and `Age` are the 304's or none: they
/// are about one message.
pub(super) fn merged(stored: &Fields, update: &Fields) -> Fields {
    let stays = |name: &str| name != "date" && name != "age" && lines(update, name).is_empty();
    let kept = stored.iter().filter(|(name, _)| stays(name));
    kept.chain(update).cloned().collect()
}
