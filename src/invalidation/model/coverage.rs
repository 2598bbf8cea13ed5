//! What the histories held: zero violations of nothing proves nothing.

use std::fmt;
use std::ops::{Index, IndexMut};

macro_rules! counted {
    ($($name:ident: $least:literal),* $(,)?) => {
        /// Something that a history can hold, with how often it must come in ten thousand.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Seen { $($name),* }

        const ALL: &[(Seen, u64)] = &[$((Seen::$name, $least)),*];
    };
}

counted! {
    Reads: 400_000,
    HitsInMemory: 200_000,
    HitsInRedis: 50_000,
    Fetches: 80_000,
    Followers: 30_000,
    Acknowledged: 40_000,
    AppliedHereOnly: 10_000,
    OldCopyAfterAck: 80_000,
    OldCopyPastBound: 15_000,
    OverlapsFill: 5_000,
    RefusedByEpoch: 100_000,
    RefusedWithoutProof: 15_000,
    ServedStale: 10_000,
    OwnPositions: 5_000,
    Gaps: 1_000,
    GapsRepaired: 15_000,
    Trimmed: 40,
    Foreign: 1_000,
    GivenUp: 300,
    EqualMessages: 5_000,
    Drained: 3_000,
    ReadBack: 15_000,
    Followed: 20_000,
    Superseded: 3_000,
    TakenOver: 5_000,
    FencesFell: 0,
    Pauses: 2_000,
    Crashes: 2_000,
    BusCut: 500,
    BusStalled: 500,
    BusSlow: 1_500,
    LinkSlow: 1_500,
    LinkCut: 3_000,
    RedisAway: 500,
    RedisEmptied: 500,
    Failovers: 1_000,
    LogTrimmed: 500,
    LeasesExpired: 1_500,
    LateCommands: 3_000,
}

/// How often each came.
#[derive(Debug, Clone)]
pub struct Coverage([u64; ALL.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; ALL.len()])
    }
}

impl Index<Seen> for Coverage {
    type Output = u64;

    fn index(&self, seen: Seen) -> &u64 {
        &self.0[seen as usize]
    }
}

impl IndexMut<Seen> for Coverage {
    fn index_mut(&mut self, seen: Seen) -> &mut u64 {
        &mut self.0[seen as usize]
    }
}

impl Coverage {
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    /// What came less often than it must in so many histories.
    pub fn lacking(&self, histories: u64) -> Vec<Seen> {
        ALL.iter().filter(|(seen, least)| self[*seen] * 10_000 < least * histories).map(|(seen, _)| *seen).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ALL.iter().try_for_each(|(seen, _)| write!(f, "{seen:?} {}  ", self[*seen]))
    }
}
