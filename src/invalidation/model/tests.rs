use super::coverage::Coverage;
use super::oracle::Broken;
use super::world::World;
use super::*;

/// Histories that are played if nobody asks for more.
const SEEDS: u64 = 10_000;

/// A number in the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// What a design's histories held, up to the first that broke a promise: which, by which seed, and how.
struct Played {
    coverage: Coverage,
    broken: Option<(Broken, u64, String)>,
}

fn play(design: Design, seeds: u64) -> Played {
    let mut coverage = Coverage::default();
    for seed in 1..=seeds {
        let (oracle, _) = World::play(seed, design, false);
        coverage.add(&oracle.coverage);
        if let Some((broken, text)) = oracle.violation {
            return Played { coverage, broken: Some((broken, seed, text)) };
        }
    }
    Played { coverage, broken: None }
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
    let Played { coverage, broken } = play(Design::Weir, seeds);
    println!("{seeds} histories: {coverage}");
    assert!(broken.is_none(), "WEIR_MODEL_SEED prints the history of {broken:#?}");
    assert_eq!(coverage.lacking(seeds), [], "{coverage}");
}

#[test]
fn a_seed_is_a_history() {
    for seed in 1..=20 {
        assert_eq!(World::play(seed, Design::Weir, true).1, World::play(seed, Design::Weir, true).1);
    }
}

/// The design breaks a promise that Weir keeps.
fn is_caught(design: Design, seeds: u64) {
    let Played { broken, .. } = play(design, seeds);
    println!("{design:?}: {broken:?}");
    assert!(broken.is_some(), "{design:?} passes {seeds} histories");
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

#[test]
fn joining_a_fetch_that_may_be_overtaken_is_caught() {
    is_caught(Design::JoinsUntrusted, 1000);
}

#[test]
fn keeping_what_is_older_than_the_first_log_is_caught() {
    is_caught(Design::KeepsBeforeItsLog, 2000);
}

#[test]
fn fences_that_repeat_are_caught() {
    is_caught(Design::FencesRepeat, 4000);
}

#[test]
fn believing_a_page_of_another_log_is_caught() {
    is_caught(Design::BelievesPages, 20_000);
}
