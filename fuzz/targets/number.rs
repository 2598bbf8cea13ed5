//! The number at a pointer is the same however a text, or a stream of events, is cut.
//!
//! Input: a byte that says how long the cuts are, a JSON pointer, a line end, the body.
#![no_main]

use std::sync::Arc;

use weir::limit::events::Events;
use weir::limit::number::Search;
use weir::syntax::pointer::Pointer;
use weir_fuzz::{fuzz_target, step};

/// Most bytes of an event that are looked through.
const MOST: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Some((step, rest)) = step(data) else { return };
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return };
    let (pointer, body) = (&rest[..end], &rest[end + 1..]);
    let Some(pointer) = std::str::from_utf8(pointer).ok().and_then(|text| Pointer::parse(text).ok()) else { return };
    let pointer = Arc::new(pointer);
    let whole = body.len().max(1);
    assert_eq!(json(&pointer, body, step), json(&pointer, body, whole));
    assert_eq!(events(&pointer, body, step), events(&pointer, body, whole));
});

fn json(pointer: &Arc<Pointer>, body: &[u8], step: usize) -> Option<f64> {
    let mut search = Search::new(Arc::clone(pointer));
    body.chunks(step).for_each(|piece| search.feed(piece));
    search.end();
    search.found()
}

fn events(pointer: &Arc<Pointer>, body: &[u8], step: usize) -> (Option<f64>, bool) {
    let mut events = Events::new(Search::new(Arc::clone(pointer)), MOST);
    body.chunks(step).for_each(|piece| events.feed(piece));
    events.end();
    (events.last(), events.was_cut())
}
