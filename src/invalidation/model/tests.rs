use super::coverage::Coverage;
use super::world::World;
use super::*;

/// Histories that are played if nobody asks for more.
const SEEDS: u64 = 10_000;

/// A number in the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// The first seed whose history is not as promised, and what is wrong with it.
fn first_violation(design: Design, seeds: u64, coverage: &mut Coverage) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let (oracle, _) = World::play(seed, design, false);
        coverage.add(&oracle.coverage);
        Some((seed, oracle.violation?))
    })
}

#[test]
fn ten_thousand_seeds_keep_the_guarantees() {
    if let Some(seed) = asked("WEIR_MODEL_SEED") {
        let (oracle, trace) = World::play(seed, Design::Weir, true);
        println!("{}", trace.join("\n"));
        assert_eq!(oracle.violation, None);
        return;
    }
    let seeds = asked("WEIR_MODEL_SEEDS").unwrap_or(SEEDS);
    let mut coverage = Coverage::default();
    let violation = first_violation(Design::Weir, seeds, &mut coverage);
    println!("{seeds} histories: {coverage}");
    assert_eq!(violation, None, "WEIR_MODEL_SEED={} prints the history", violation.as_ref().map_or(0, |found| found.0));
    assert_eq!(coverage.lacking(seeds), [], "{coverage}");
}

#[test]
fn a_seed_is_a_history() {
    for seed in 1..=20 {
        assert_eq!(World::play(seed, Design::Weir, true).1, World::play(seed, Design::Weir, true).1);
    }
}

/// The design is not what it promises, and the oracle sees it.
fn is_caught(design: Design, seeds: u64) {
    let found = first_violation(design, seeds, &mut Coverage::default());
    println!("{design:?}: {found:?}");
    assert!(found.is_some(), "{design:?} passes {seeds} histories");
}

#[test]
fn a_purge_that_skips_what_is_being_fetched_is_caught() {
    is_caught(Design::PurgeSkipsBusy, 300);
}

#[test]
fn publishing_without_a_log_is_caught() {
    is_caught(Design::PubSubOnly, 300);
}

#[test]
fn an_index_of_tags_is_caught() {
    is_caught(Design::TagIndex, 300);
}

#[test]
fn entries_of_the_shared_tier_that_are_not_checked_are_caught() {
    is_caught(Design::SharedUnchecked, 300);
}

#[test]
fn a_position_from_the_end_of_the_fetch_is_caught() {
    is_caught(Design::PositionAtEnd, 300);
}

#[test]
fn trust_without_a_proof_is_caught() {
    is_caught(Design::TrustForEver, 300);
}

#[test]
fn a_proof_that_counts_from_its_answer_is_caught() {
    is_caught(Design::ProofFromAnswer, 1000);
}

#[test]
fn a_dropped_fence_is_caught() {
    is_caught(Design::FenceDropped, 300);
}

#[test]
fn fetches_without_a_lease_are_caught() {
    is_caught(Design::NoLease, 300);
}
