//! The hit ratio of the last minute.

use std::sync::atomic::{AtomicU64, Ordering};

/// Slots of the ratio's minute.
const RATIO_SLOTS: u64 = 12;

/// Length of one of them.
const RATIO_SLOT_MS: u64 = 5_000;

/// Hits and lookups of the last minute, in slots of five seconds.
///
/// A slot packs its number (24 bits), hits (20 bits) and lookups (20 bits, saturating) so that counting is one atomic
/// update without a lock.
#[derive(Default)]
pub(super) struct RatioWindow([AtomicU64; RATIO_SLOTS as usize]);

impl RatioWindow {
    /// Counts a lookup.
    pub(super) fn count(&self, hit: bool, now_ms: u64) {
        let number = (now_ms / RATIO_SLOT_MS) & 0xff_ffff;
        let slot = &self.0[(number % RATIO_SLOTS) as usize];
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (hits, all) =
                if packed >> 40 == number { ((packed >> 20) & 0xf_ffff, packed & 0xf_ffff) } else { (0, 0) };
            // A full slot halves both counts: the share stays, the bits suffice.
            let (hits, all) = if all == 0xf_ffff { (hits / 2, all / 2) } else { (hits, all) };
            Some(number << 40 | (hits + u64::from(hit)) << 20 | (all + 1))
        });
    }

    /// The share; NaN for a minute without lookups, `None` where none was ever counted.
    pub(super) fn share(&self, now_ms: u64) -> Option<f64> {
        let now = (now_ms / RATIO_SLOT_MS) & 0xff_ffff;
        let (mut hits, mut all, mut ever) = (0, 0, false);
        for slot in &self.0 {
            let packed = slot.load(Ordering::Relaxed);
            ever |= packed != 0;
            if now.wrapping_sub(packed >> 40) & 0xff_ffff < RATIO_SLOTS {
                hits += (packed >> 20) & 0xf_ffff;
                all += packed & 0xf_ffff;
            }
        }
        ever.then(|| hits as f64 / all as f64)
    }
}
