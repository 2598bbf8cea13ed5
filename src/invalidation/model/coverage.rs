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
    HitsInMemory: 50_000,
    HitsInRedis: 10_000,
    Fetches: 50_000,
    Followers: 5_000,
    Acknowledged: 20_000,
    AppliedHereOnly: 1_000,
    OldCopyAfterAck: 20_000,
    OldCopyPastBound: 5_000,
    OverlapsFill: 5_000,
    RefusedByEpoch: 20_000,
    RefusedWithoutProof: 5_000,
    ServedStale: 1_000,
    OwnPositions: 1_000,
    Gaps: 1_000,
    GapsRepaired: 1_000,
    Trimmed: 100,
    Foreign: 50,
    GivenUp: 50,
    EqualMessages: 100,
    Drained: 1_000,
    ReadBack: 5_000,
    Followed: 10_000,
    Superseded: 500,
    TakenOver: 500,
    FencesFell: 100,
    Pauses: 1_000,
    Crashes: 1_000,
    BusCut: 1_000,
    BusStalled: 1_000,
    BusSlow: 1_000,
    LinkSlow: 1_000,
    LinkCut: 1_000,
    RedisAway: 1_000,
    RedisEmptied: 500,
    Failovers: 500,
    LogTrimmed: 500,
    LeasesExpired: 500,
    LateCommands: 500,
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
