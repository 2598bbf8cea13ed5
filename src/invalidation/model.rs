//! The fleet's coherence under a scheduler drawn from a seed: pods with their tiers, leases and fetches, one Redis with
//! counter, log, bus and doors, an upstream, and every fault that G1 is to hold through. Time is virtual, and a seed is a
//! history.
//!
//! The mirror is the real one ([`knowledge`]). What surrounds it is async and spread over tasks; it is written down here
//! once more, step by step, as `bus.rs` ([`keeper`]), `clerk.rs` ([`clerk`]), the cache and the proxy ([`reads`]) and the
//! scripts ([`redis`]) have it; that a new master's log inherits the answers of the old one is not played. The [`oracle`] knows nothing of positions: it sees what was acknowledged when, what the
//! upstream was asked when, and what was served. That it sees enough is shown by other [`Design`]s, which it must catch.

mod clerk;
mod coverage;
mod faults;
mod keeper;
mod knowledge;
mod names;
mod oracle;
mod pod;
mod random;
mod reads;
mod redis;
mod tests;
mod world;

/// Milliseconds of the history.
type Ms = u64;

/// Number of an event in the history: orders what happens in one millisecond.
type Step = u64;

/// The bound B of these histories.
const BOUND: Ms = 1000;

/// Whose design is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Design {
    /// This repository's.
    Weir,
    /// Varnish's `purge`: it removes what is stored, and what is being fetched is not stored yet.
    PurgeSkipsBusy,
    /// Souin's: invalidations are published to whoever listens, and in no log.
    PubSubOnly,
    /// That of most tag libraries over Redis: a set for each tag names the keys to delete, and is added to once the entry
    /// is stored.
    TagIndex,
    /// Weir that takes what the shared tier has for valid.
    SharedUnchecked,
    /// Weir whose fills carry the position of their end.
    PositionAtEnd,
    /// Weir that trusts entries without a proof.
    TrustForEver,
    /// Weir whose proofs count from their answer.
    ProofFromAnswer,
    /// Weir whose stores are not ordered by fence.
    FenceDropped,
    /// Weir whose pods fetch without asking each other.
    NoLease,
    /// Weir whose requests join a fetch that is older than B, though nothing proves it current.
    JoinsUntrusted,
    /// Weir that keeps what it had asked for before its first log began.
    KeepsBeforeItsLog,
    /// Weir that is level when a page says so, whatever the master had said.
    BelievesPages,
    /// Weir whose leases leave no fence behind when they run out.
    FencesRepeat,
}

impl Design {
    /// Whether it invalidates by removing what is stored.
    fn removes(self) -> bool {
        matches!(self, Self::PurgeSkipsBusy | Self::PubSubOnly | Self::TagIndex)
    }
}
