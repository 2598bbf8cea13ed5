//! Ranges and parts: what is selected is there, what is joined has every byte in its place, and what is no part is told.
//!
//! Input: request fields, fields of a first part, and of a second, with a NUL between them; a line each. Bodies are
//! what `Content-Range` says of a known representation.
#![no_main]

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use weir::cache::entry::{Entry, Origin};
use weir::cache::freshness::Freshness;
use weir::cache::parts;
use weir::cache::policy::{Plan, Source};
use weir::cache::ranges::{self, Selection};
use weir::invalidation::Position;
use weir_fuzz::{NOW, fields, fuzz_target};

/// Bytes of the representation; one that says to be of another length is no part of it.
const COMPLETE: u64 = 300;

fuzz_target!(|data: &[u8]| {
    let whole: Bytes = (0..COMPLETE).map(|at| (at % 251) as u8).collect();
    let mut sections = data.split(|byte| *byte == 0).map(fields);
    let mut next = || sections.next().unwrap_or_default();
    let (request, one, other) = (next(), next(), next());

    let full = entry(&HeaderMap::new(), whole.clone());
    check(&ranges::select(&request, &full), 0..whole.len());

    let (Some(one), Some(other)) = (part(&one, &whole), part(&other, &whole)) else { return };
    for part in [&one, &other] {
        sound(part, &whole);
        if let Some(selection) = parts::select(&request, part) {
            let first = part.part.map_or(0, |part| part.first as usize);
            check(&selection, first..first + part.body.len());
        }
        let mut asked = request.clone();
        assert_eq!(parts::ask_for_rest(&mut asked, part), parts::rest(part).is_some());
    }
    if let Some(both) = parts::joined(&one, &other, whole.len()) {
        sound(&both, &whole);
        assert!(both.body.len() >= one.body.len().max(other.body.len()));
        if let Some(all) = parts::whole(&both, b"key") {
            assert_eq!(all.body, whole);
        }
    }
});

fn entry(headers: &HeaderMap, body: Bytes) -> Entry {
    let freshness = Freshness { received_at: NOW, lifetime_ms: 1000, ..Freshness::default() };
    let plan = Plan { freshness, source: Source::Upstream, vary: Vec::new(), tags: Vec::new() };
    let origin = Origin { key: Bytes::from_static(b"key"), position: Position::default(), fence: 0, fill_cost_ms: 0 };
    Entry::new(origin, StatusCode::OK, headers, plan, body)
}

fn part(headers: &HeaderMap, whole: &Bytes) -> Option<Entry> {
    let (range, complete) = parts::described(headers)?;
    assert!(range.start < range.end && range.end <= complete);
    if complete != COMPLETE {
        return None;
    }
    let body = whole.slice(range.start as usize..range.end as usize);
    let mut kept = headers.clone();
    kept.remove(http::header::CONTENT_RANGE);
    Some(Entry { part: Some(parts::place(&range, complete)), ..entry(&kept, body) })
}

fn sound(part: &Entry, whole: &Bytes) {
    let first = part.part.map_or(0, |part| part.first as usize);
    assert_eq!(part.body, whole.slice(first..first + part.body.len()));
}

fn check(selection: &Selection, here: Range<usize>) {
    let lies_here = |range: &Range<usize>| !range.is_empty() && here.start <= range.start && range.end <= here.end;
    match selection {
        Selection::One(range) => assert!(lies_here(range)),
        Selection::Several(ranges) => assert!(ranges.len() > 1 && ranges.iter().all(lies_here)),
        Selection::Whole | Selection::Nothing => {}
    }
}
