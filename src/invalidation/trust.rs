//! How long what is stored may be trusted: currency was proven lately, or this pod asked for it lately.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use super::Position;
use crate::clock::SteadyMs;

/// Shortest time between proofs, however small the bound.
const SHORTEST_PROOF: Duration = Duration::from_millis(250);

/// Proofs in each bound.
const PROOFS: u32 = 4;

/// Share of the bound over which the end of trust is spread, so that not every entry is fetched again in the same moment.
const SPREAD: f64 = 0.2;

/// For how long entries may be trusted without proof, by the routes' `max_staleness`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The shortest: proofs are as frequent as it needs.
    pub shortest: Duration,
    /// The longest: a pod that is silent for so long serves nothing old, whatever the route.
    pub longest: Duration,
}

impl Bounds {
    /// Of some.
    pub fn over(bounds: impl Iterator<Item = Duration>) -> Self {
        let widest = Self { shortest: Duration::MAX, longest: Duration::ZERO };
        bounds.fold(widest, |all, bound| Self { shortest: all.shortest.min(bound), longest: all.longest.max(bound) })
    }
}

/// What trust goes by, for all workers.
#[derive(Debug)]
pub(super) struct Trust {
    bounds: RwLock<Bounds>,
    /// When the question of the last proof was sent; 0 is never.
    proven_at: AtomicU64,
    /// The incarnation that is followed, if answers of those before are still judged by what was known under them, or 0.
    heir: AtomicU64,
    /// The process' own since then.
    own: AtomicU64,
    /// When currency was last proven before.
    former_proven_at: AtomicU64,
}

impl Trust {
    /// Of a process that has proven nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds: RwLock::new(bounds),
            proven_at: AtomicU64::new(0),
            heir: AtomicU64::new(0),
            own: AtomicU64::new(0),
            former_proven_at: AtomicU64::new(0),
        }
    }

    /// The bounds of this moment.
    pub fn bounds(&self) -> Bounds {
        *self.bounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a new configuration says.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// Time between two proofs.
    pub fn proof_every(&self) -> Duration {
        (self.bounds().shortest / PROOFS).max(SHORTEST_PROOF)
    }

    /// How long a silent pod counts: until it can trust nothing any more that it did not ask for itself.
    pub fn lasts(&self) -> Duration {
        self.bounds().longest.max(self.proof_every() * PROOFS)
    }

    /// Currency was proven by a question that was sent at `sent`.
    pub fn proven(&self, sent: SteadyMs) {
        self.proven_at.store(sent, Ordering::Release);
    }

    /// When it was last; 0 is never.
    pub fn proven_at(&self) -> SteadyMs {
        self.proven_at.load(Ordering::Acquire)
    }

    /// Another log is followed from now on. If it is an `heir`, answers that are neither of its incarnation nor of `own`, the
    /// process', are judged by what was known until now.
    pub fn followed_another(&self, heir: Option<u64>, own: u64) {
        self.former_proven_at.store(self.proven_at(), Ordering::Release);
        self.own.store(own, Ordering::Release);
        self.heir.store(heir.unwrap_or_default(), Ordering::Release);
    }

    /// Answers of those before are judged by the present one.
    pub fn inherited(&self) {
        self.heir.store(0, Ordering::Release);
    }

    /// Whether an entry of `position` may be used at `now`: currency was proven within `bound`, or this pod asked the
    /// upstream for the entry at `asked` (0: never), less than `bound` ago. `spread` (0.0 to 1.0, from the key) spreads the
    /// end of the former, which only shortens it: entries that were proven together are asked for apart, and then once in
    /// each bound.
    pub fn is_in(&self, position: Position, (now, asked): (SteadyMs, SteadyMs), bound: Duration, spread: f64) -> bool {
        let bound_ms = bound.as_millis() as u64;
        let within = |since: u64, limit_ms: u64| since != 0 && now.saturating_sub(since) <= limit_ms;
        let spread_ms = (bound_ms as f64 * (1.0 - SPREAD * spread.clamp(0.0, 1.0))) as u64;
        // In this order: a proof under a new incarnation comes after the note of the former one.
        let proven_at = self.proven_at();
        let heir = self.heir.load(Ordering::Acquire);
        let is_former = heir != 0 && ![heir, self.own.load(Ordering::Acquire)].contains(&position.incarnation);
        let proven_at = if is_former { self.former_proven_at.load(Ordering::Acquire) } else { proven_at };
        let is_proven = within(proven_at, spread_ms);
        is_proven || within(asked, bound_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_former_incarnation_are_trusted_by_the_last_proof_under_it() {
        let bound = Duration::from_secs(10);
        let trust = Trust::new(Bounds::over([bound, Duration::from_secs(2), Duration::from_secs(40)].into_iter()));
        assert_eq!(trust.proof_every(), Duration::from_millis(500));
        assert_eq!(trust.lasts(), Duration::from_secs(40));
        let (one, other) = (Position { incarnation: 1, seq: 5 }, Position { incarnation: 2, seq: 5 });
        let is_in = |position, now, spread| trust.is_in(position, (now, 0), bound, spread);
        assert!(!is_in(one, 1, 0.0), "nothing was proven");
        trust.proven(1_000);
        trust.followed_another(Some(2), 3);
        trust.proven(5_000);
        assert!(is_in(one, 11_000, 0.0) && !is_in(one, 11_001, 0.0) && !is_in(one, 9_001, 1.0));
        assert!(is_in(other, 15_000, 0.0) && !is_in(other, 15_001, 0.0) && !is_in(other, 13_001, 1.0));
        let own = Position { incarnation: 3, seq: 1 };
        assert!(is_in(own, 15_000, 0.0) && !is_in(own, 15_001, 0.0));
        assert!(trust.is_in(one, (12_000, 4_000), bound, 1.0), "asked for here");
        trust.inherited();
        assert!(is_in(one, 15_000, 0.0));
    }
}
