//! How fast a queue moves, pure: requests that left the upstream while others waited, counted so that old ones fade.

use super::Micros;

/// After this time a departure counts for a little over a third.
const MEMORY_S: f64 = 1.0;

/// Departures without which a pace is not known.
const LEAST: usize = 8;

/// Time with a queue, in seconds, without which it is not known either: the first of those that an upstream answers together
/// may come haltingly.
const LEAST_S: f64 = 0.2;

/// A pause without a queue after which nothing is known any more: the upstream may be another by then.
const FORGOTTEN_US: Micros = 5_000_000;

/// The rate of departures while there is a queue. Without one it says nothing of what the upstream can do.
///
/// It is measured from departure to departure: an upstream that takes a second lets the first one go after a second, and
/// perhaps all of them together, which says nothing of its pace.
#[derive(Debug, Default)]
pub struct Pace {
    departures: usize,
    /// Departures, faded.
    weight: f64,
    /// Seconds with a queue, faded in the same way: what `weight` is to be divided by.
    time_s: f64,
    /// The last departure, or the queue's beginning.
    at: Micros,
    /// Whether the next departure is the first since a queue formed.
    is_first: bool,
}

impl Pace {
    /// A queue forms.
    pub fn begins(&mut self, now: Micros) {
        if now.saturating_sub(self.at) > FORGOTTEN_US {
            *self = Self::default();
        }
        (self.at, self.is_first) = (now, true);
    }

    /// A request left the upstream while others waited.
    pub fn departed(&mut self, now: Micros) {
        if !std::mem::take(&mut self.is_first) {
            let passed_s = now.saturating_sub(self.at) as f64 / 1e6;
            let left = (-passed_s / MEMORY_S).exp();
            self.weight = self.weight * left + 1.0;
            self.time_s = self.time_s * left + MEMORY_S * (1.0 - left);
        }
        self.at = self.at.max(now);
        self.departures = self.departures.saturating_add(1);
    }

    /// The last departure, or when the queue formed.
    pub fn moved_at(&self) -> Micros {
        self.at
    }

    /// How long it has been standing still.
    pub fn stood_for(&self, now: Micros) -> Micros {
        now.saturating_sub(self.at)
    }

    /// How long so many departures take at this pace, in microseconds, if it is known.
    pub fn takes(&self, departures: usize) -> Option<Micros> {
        (self.departures >= LEAST && self.time_s >= LEAST_S)
            .then(|| (departures as f64 * self.time_s / self.weight * 1e6) as Micros)
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
        for departures in [120, 1_000, 5_000] {
            let mut pace = Pace::default();
            pace.begins(0);
            pace.departed(1_000);
            assert_eq!(pace.takes(100), None, "one says nothing");
            run(&mut pace, 1_000, 4_000, 20);
            assert_eq!(pace.takes(100), None, "nor do the first of many");
            let mut pace = Pace::default();
            pace.begins(0);
            run(&mut pace, 1_000, 2_000, departures);
            let takes = pace.takes(256).expect("known");
            assert!((500_000..=520_000).contains(&takes), "256 at 2 ms each: {takes} after {departures}");
        }
    }

    #[test]
    fn time_without_a_queue_does_not_count() {
        let mut pace = Pace::default();
        pace.begins(0);
        let now = run(&mut pace, 0, 2_000, 500);
        pace.begins(now + 3_000_000);
        pace.departed(now + 3_300_000);
        let takes = pace.takes(256).expect("known");
        assert!((500_000..=520_000).contains(&takes), "{takes}");
        pace.begins(now + 30_000_000);
        assert_eq!(pace.takes(256), None, "long ago");
    }

    #[test]
    fn it_follows_an_upstream_that_becomes_slower() {
        let mut pace = Pace::default();
        pace.begins(0);
        let now = run(&mut pace, 0, 2_000, 500);
        let now = run(&mut pace, now, 20_000, 200);
        let takes = pace.takes(100).expect("known");
        assert!((1_500_000..=2_100_000).contains(&takes), "{takes}");
        assert_eq!(pace.stood_for(now + 1_000_000), 1_000_000);
    }

    #[test]
    fn departures_in_bursts_hardly_look_slower_than_their_mean() {
        let mut pace = Pace::default();
        pace.begins(0);
        for burst in 1..=10 {
            for i in 0..150 {
                pace.departed(burst * 300_000);
                if let Some(takes) = pace.takes(500) {
                    assert!(takes <= 1_250_000, "500 at 500 a second: {takes}, {i} of {burst}");
                }
            }
        }
    }
}
