//! Buffers that idle connections leave to those that are busy: a few for each worker, and none for who says nothing.

use std::cell::RefCell;

use http::HeaderMap;

use super::wire::HEAD_READ;

/// Buffers of each kind that a worker keeps; as many connections can be busy at once before one is made.
const KEPT: usize = 32;

/// Largest buffer that is kept.
const BUFFER_MAX: usize = 8 * 1024;

/// Largest map, in fields.
const FIELDS_MAX: usize = 64;

#[derive(Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    maps: Vec<HeaderMap>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; HEAD_READ].into());
}

/// An empty buffer, perhaps with room.
pub(super) fn buffer() -> Vec<u8> {
    SPARE.with_borrow_mut(|spare| spare.buffers.pop()).unwrap_or_default()
}

/// Leaves an empty buffer to whoever needs one next.
pub(super) fn put_buffer(buffer: Vec<u8>) {
    debug_assert!(buffer.is_empty(), "what stands in it would be another's");
    if (1..=BUFFER_MAX).contains(&buffer.capacity()) {
        SPARE.with_borrow_mut(|spare| keep(&mut spare.buffers, buffer));
    }
}

/// An empty map, perhaps with room.
pub(super) fn fields() -> HeaderMap {
    SPARE.with_borrow_mut(|spare| spare.maps.pop()).unwrap_or_default()
}

/// Leaves an empty map to whoever needs one next.
pub(super) fn put_fields(fields: HeaderMap) {
    debug_assert!(fields.is_empty(), "what stands in it would be another's");
    if (1..=FIELDS_MAX).contains(&fields.capacity()) {
        SPARE.with_borrow_mut(|spare| keep(&mut spare.maps, fields));
    }
}

fn keep<T>(kept: &mut Vec<T>, one: T) {
    if kept.len() < KEPT {
        kept.push(one);
    }
}

/// Room to read into, for the length of one call.
pub(super) fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}
