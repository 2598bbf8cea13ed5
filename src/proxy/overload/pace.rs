//! How fast a queue moves, pure: requests that left the upstream while others waited, counted so that old ones fade.

use super::Micros;

/// After this time a departure counts for a little over a third.
const MEMORY_S: f64 = 1.0;

/// Departures without which a pace is not known.
const LEAST: u32 = 8;

/// A pause without a queue after which nothing is known any more: the upstream may be another by then.
const FORGOTTEN_US: Micros = 5_000_000;

/// The rate of departures while there is a queue. Without one it says nothing of what the upstream can do.
#[derive(Debug, Default)]
pub struct Pace {
    departures: u32,
    /// Departures, faded.
    weight: f64,
    /// Seconds with a queue, faded in the same way: what `weight` is to be divided by.
    time_s: f64,
    /// Up to when both are counted.
    at: Micros,
    /// The last departure, or the queue's beginning.
    moved_at: Micros,
}

impl Pace {
    /// A queue forms.
    pub fn begins(&mut self, now: Micros) {
        if now.saturating_sub(self.at) > FORGOTTEN_US {
            *self = Self::default();
        }
        (self.at, self.moved_at) = (now, now);
    }

    /// A request left the upstream while others waited.
    pub fn departed(&mut self, now: Micros) {
        self.fade(now);
        self.weight += 1.0;
        self.departures = self.departures.saturating_add(1);
        self.moved_at = now;
    }

    /// How long it has been standing still.
    pub fn stood_for(&self, now: Micros) -> Micros {
        now.saturating_sub(self.moved_at)
    }

    /// How long so many departures will take at this pace, in microseconds, if it is known.
    pub fn takes(&mut self, departures: usize, now: Micros) -> Option<Micros> {
        self.fade(now);
        (self.departures >= LEAST && self.weight > 0.0)
            .then(|| (departures as f64 * self.time_s / self.weight * 1e6) as Micros)
    }

    fn fade(&mut self, now: Micros) {
        let passed_s = now.saturating_sub(self.at) as f64 / 1e6;
        self.at = self.at.max(now);
        let left = (-passed_s / MEMORY_S).exp();
        self.weight *= left;
        self.time_s = self.time_s * left + MEMORY_S * (1.0 - left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `departures` at this interval, beginning at `from`; when the last was.
    fn run(pace: &mut Pace, from: Micros, interval: Micros, departures: u64) -> Micros {
        for i in 1..=departures {
            pace.departed(from + i * interval);
        }
        from + departures * interval
    }

    #[test]
    fn a_steady_pace_is_known_after_a_few_and_stays() {
        let mut pace = Pace::default();
        pace.begins(0);
        assert_eq!(pace.takes(100, 1_000), None, "nobody has left yet");
        for departures in [LEAST as u64, 100, 5_000] {
            let mut pace = Pace::default();
            pace.begins(0);
            let now = run(&mut pace, 0, 2_000, departures);
            let takes = pace.takes(256, now).expect("known");
            assert!((450_000..=560_000).contains(&takes), "256 at 2 ms each: {takes} after {departures}");
        }
    }

    #[test]
    fn time_without_a_queue_does_not_count() {
        let mut pace = Pace::default();
        pace.begins(0);
        let now = run(&mut pace, 0, 2_000, 500);
        pace.begins(now + 3_000_000);
        let takes = pace.takes(256, now + 3_000_000).expect("known");
        assert!((450_000..=560_000).contains(&takes), "{takes}");
        pace.begins(now + 30_000_000);
        assert_eq!(pace.takes(256, now + 30_000_000), None, "long ago");
    }

    #[test]
    fn it_slows_down_while_nothing_moves() {
        let mut pace = Pace::default();
        pace.begins(0);
        let now = run(&mut pace, 0, 2_000, 500);
        let before = pace.takes(100, now).expect("known");
        let after = pace.takes(100, now + 1_000_000).expect("known");
        assert!(after > before * 2, "{before} then {after}");
        assert_eq!(pace.stood_for(now + 1_000_000), 1_000_000);
    }

    #[test]
    fn departures_in_bursts_have_the_pace_of_their_mean() {
        let mut pace = Pace::default();
        pace.begins(0);
        for burst in 1..=10 {
            for _ in 0..150 {
                pace.departed(burst * 300_000);
            }
        }
        let takes = pace.takes(500, 3_000_000).expect("known");
        assert!((700_000..=1_100_000).contains(&takes), "500 at 500 a second: {takes}");
    }
}
