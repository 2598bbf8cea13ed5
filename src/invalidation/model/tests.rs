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

/// What histories break, for their seeds from 1 on: the first of each promise.
struct Played {
    coverage: Coverage,
    broken: Vec<(Broken, u64, String)>,
}

/// Plays histories until one breaks something other than what is `known`.
fn play(design: Design, seeds: u64, known: &[Broken]) -> Played {
    let mut played = Played { coverage: Coverage::default(), broken: Vec::new() };
    for seed in 1..=seeds {
        let (oracle, _) = World::play(seed, design, false);
        played.coverage.add(&oracle.coverage);
        let Some((broken, text)) = oracle.violation else { continue };
        if played.broken.iter().all(|(other, ..)| *other != broken) {
            played.broken.push((broken, seed, text));
        }
        if !known.contains(&broken) {
            break;
        }
    }
    played
}

/// What Weir is known to break. This list only shrinks.
const KNOWN: &[Broken] = &[
    Broken::FenceReused,
    Broken::Joined,
    Broken::Unready,
    Broken::Elsewhere,
    Broken::LostBeforeJoining,
    Broken::LostWhileFollowing,
];

/// Plays the histories of a design, or prints the one that was asked for.
fn breaks_nothing_but(known: &[Broken], design: Design, seeds: u64) {
    if let Some(seed) = asked("WEIR_MODEL_SEED") {
        let (oracle, trace) = World::play(seed, design, true);
        println!("{}", trace.join("\n"));
        assert_eq!(oracle.violation, None);
        return;
    }
    let Played { coverage, broken } = play(design, seeds, known);
    println!("{design:?}, {seeds} histories: {coverage}\nbroken: {broken:#?}");
    let unknown: Vec<_> = broken.iter().filter(|(broken, ..)| !known.contains(broken)).collect();
    assert!(unknown.is_empty(), "WEIR_MODEL_SEED prints the history of {unknown:#?}");
    assert_eq!(coverage.lacking(seeds), [], "{coverage}");
}

#[test]
fn ten_thousand_seeds_keep_the_guarantees() {
    breaks_nothing_but(KNOWN, Design::Weir, asked("WEIR_MODEL_SEEDS").unwrap_or(SEEDS));
}

#[test]
fn mended_it_breaks_nothing() {
    breaks_nothing_but(&[], Design::Mended, asked("WEIR_MODEL_SEEDS").unwrap_or(SEEDS / 4));
}

#[test]
fn a_seed_is_a_history() {
    for seed in 1..=20 {
        assert_eq!(World::play(seed, Design::Weir, true).1, World::play(seed, Design::Weir, true).1);
    }
}

/// The design breaks a promise that Weir keeps.
fn is_caught(design: Design, seeds: u64) {
    let Played { broken, .. } = play(design, seeds, KNOWN);
    println!("{design:?}: {broken:?}");
    assert!(broken.iter().any(|(broken, ..)| !KNOWN.contains(broken)), "{design:?} passes {seeds} histories");
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
