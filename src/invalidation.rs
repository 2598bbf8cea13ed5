//! What has been invalidated, in which order, and how sure we are to know it.

use std::time::Duration;

use crate::clock::SteadyMs;
use crate::metrics::Door;
use crate::syntax::SyntaxError;
use crate::syntax::selector::Order;

/// A place in the sequence of invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Which sequence: a random id kept beside the counter.
    pub incarnation: u64,
    /// Number of the last invalidation applied.
    pub seq: u64,
}

/// What of a stored answer invalidations can name, as its reader computes it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Lower-case authority.
    pub host: &'a str,
    /// Normalised path.
    pub path: &'a str,
    /// Query as keyed.
    pub query: Option<&'a str>,
    /// The route that stored it.
    pub route: &'a str,
    /// Tags from the configuration.
    pub tags: &'a [String],
    /// Tags from the answer.
    pub answer_tags: &'a [String],
}

/// What invalidations say of a stored answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing has named it since its fill began.
    Valid,
    /// Softly invalidated: stale, whatever its lifetime says.
    Stale,
    /// Gone: never used again, but for revalidation by strong ETag.
    Gone,
}

/// Where an accepted order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its position.
    pub position: Position,
    /// Whether it is in the fleet's log (or there is no fleet); else it is applied here and being retried.
    pub logged: bool,
}

/// The process's knowledge of every invalidation, and the doors' way in; shared by all workers.
pub struct Invalidation {}

impl Invalidation {
    /// The position to give a fill that begins now.
    pub fn position(&self) -> Position {
        Position::default()
    }

    /// A number that moves whenever a verdict could change; one atomic load.
    pub fn version(&self) -> u64 {
        0
    }

    /// What is known of an answer whose fill began at `position`.
    pub fn verdict(&self, position: Position, subject: &Subject<'_>) -> Verdict {
        let _ = (position, subject);
        Verdict::Valid
    }

    /// Whether entries may be used at `now`: currency was proven within `bound`, or this pod asked the upstream for the
    /// entry at `asked` (0: never), less than `bound` ago. `spread` (0.0 to 1.0, from the key) spreads the end.
    pub fn trusted(&self, now: SteadyMs, asked: SteadyMs, bound: Duration, spread: f64) -> bool {
        let _ = (now, asked, bound, spread);
        true
    }

    /// Logs and applies an order.
    ///
    /// # Errors
    /// The order cannot be read. A Redis that cannot take it is no error here: see [`Receipt::logged`].
    pub async fn submit(&self, order: &Order, door: Door) -> Result<Receipt, SyntaxError> {
        let _ = (order, door);
        Err(SyntaxError::new("not yet", ""))
    }
}
