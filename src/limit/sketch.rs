//! What identities still owe whose buckets had to make room: an estimate that is never too low.
//!
//! A count-min sketch (Cormode and Muthukrishnan, "An improved data stream summary", 2005) with the largest in place of
//! the sum: an identity has one cell in each of a few rows, and a cell says when the last of all who share it has paid
//! off what it took, that is when its bucket is full. An identity owes no more than the least of its cells says, and is
//! taken to owe that. Raising a cell only where it says less is conservative update (Estan and Varghese, "New directions
//! in traffic measurement", 2002). Time pays off: nothing has to be decayed.
//!
//! So an identity that comes back finds no more in its bucket than it had left, and one whose cells others share may
//! find less. In every window `w` each still has at most burst + rate * w.
//!
//! Pure: `now` is an argument.

use super::algorithm::Micros;
use super::bucket::Shape;
use super::identity::LocalName;

/// Cells that an identity has.
const ROWS: usize = 4;

/// Cells of a row; a power of two.
const CELLS: usize = 1024;

/// What those owe of one limit whose buckets had to make room.
pub(super) struct Sketch {
    /// By which the times are counted.
    shape: Shape,
    /// Row by row: when everybody's bucket is full who was put there.
    cells: Box<[Micros]>,
    /// The latest of them.
    latest: Micros,
}

impl Sketch {
    /// Nobody owes anything.
    pub(super) fn new(shape: &Shape) -> Self {
        Self { shape: *shape, cells: vec![0.0; ROWS * CELLS].into(), latest: 0.0 }
    }

    /// When the bucket of an identity will be full that has none.
    pub(super) fn full_at(&self, name: LocalName, shape: &Shape, now: Micros) -> Micros {
        let full_at = cells(name).map(|cell| self.cells[cell]).fold(Micros::INFINITY, Micros::min);
        self.converted(full_at, shape, now)
    }

    /// Remembers that an identity's bucket will be full at `full_at`.
    pub(super) fn put(&mut self, name: LocalName, full_at: Micros, shape: &Shape, now: Micros) {
        if self.shape != *shape {
            self.reshape(shape, now);
        }
        for cell in cells(name) {
            self.cells[cell] = self.cells[cell].max(full_at);
        }
        self.latest = self.latest.max(full_at);
    }

    /// Whether nobody owes anything any more.
    pub(super) fn is_idle(&self, now: Micros) -> bool {
        self.latest <= now
    }

    /// Counts by another shape: everybody owes as many requests as before.
    fn reshape(&mut self, shape: &Shape, now: Micros) {
        for cell in 0..self.cells.len() {
            self.cells[cell] = self.converted(self.cells[cell], shape, now);
        }
        self.latest = self.converted(self.latest, shape, now);
        self.shape = *shape;
    }

    /// When as many requests are paid off by another shape.
    fn converted(&self, full_at: Micros, shape: &Shape, now: Micros) -> Micros {
        if self.shape == *shape || full_at <= now {
            return full_at;
        }
        let requests = (full_at - now) * self.shape.accrual / self.shape.price;
        now + (requests * shape.price / shape.accrual).ceil()
    }
}

/// Where an identity's cells are.
fn cells(name: LocalName) -> impl Iterator<Item = usize> {
    // Other bits than those that chose the shard, and the place in its table, count as well.
    let mixed = (name as u64 ^ (name >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let (first, step) = (mixed as u32, (mixed >> 32) as u32 | 1);
    (0..ROWS).map(move |row| {
        let hash = first.wrapping_add(step.wrapping_mul(row as u32));
        row * CELLS + (hash >> 16 ^ hash) as usize % CELLS
    })
}

#[cfg(test)]
#[path = "sketch_tests.rs"]
mod tests;
