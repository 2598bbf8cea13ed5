//! Judges what a fleet let through, by what was seen outside alone.
//!
//! When a request was decided nobody outside knows, but it was between its sending and its answer. If one window holds more such
//! intervals whole than a limit admits in its length, then wherever in them the decisions were, the window has more than the
//! limit allows. Every window is looked at: of those that matter, each begins with an interval and ends with one.

/// Nanoseconds since the beginning of a run.
pub type Nanos = u64;

/// When a request that was let through was decided: not before the one, not behind the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Admitted {
    /// When its first byte was sent, or before.
    pub from: Nanos,
    /// When its answer was read, or later.
    pub to: Nanos,
}

/// The window that is farthest above the rate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Worst {
    /// Admissions in it, without those that the rate gives in its length: what the burst must give.
    pub above: f64,
    /// Its beginning.
    pub from: Nanos,
    /// Its end.
    pub to: Nanos,
}

/// What a rate a second gives in so long.
fn gained(rate: f64, time: Nanos) -> f64 {
    rate * time as f64 / 1e9
}

/// The worst of all windows. A limit holds if it is at most its burst above the rate, which is a second's.
///
/// By ends in their order: each window `[s, e]` has as many as ended by `e` and began at `s` or later, so whoever joins counts
/// for all windows that begin no later than he does; a tree over the beginnings knows the best of them.
pub fn worst(admitted: &[Admitted], rate: f64) -> Worst {
    let mut by_from: Vec<usize> = (0..admitted.len()).collect();
    by_from.sort_by_key(|&one| admitted[one].from);
    let mut place = vec![0; admitted.len()];
    by_from.iter().enumerate().for_each(|(at, &one)| place[one] = at);
    let mut by_to: Vec<usize> = (0..admitted.len()).collect();
    by_to.sort_by_key(|&one| admitted[one].to);
    let mut begins = Begins::new(admitted.len());
    let mut worst = Worst::default();
    for one in by_to {
        let Admitted { from, to } = admitted[one];
        begins.open(place[one], gained(rate, from));
        begins.count_up_to(place[one]);
        let (most, at) = begins.most();
        let above = most - gained(rate, to);
        if above > worst.above {
            worst = Worst { above, from: admitted[by_from[at]].from, to };
        }
    }
    worst
}

/// Of each beginning of a window: how many it holds, and what the rate had given before it. Those that nobody opened count as
/// minus infinity.
struct Begins {
    leaves: usize,
    /// The most below each node, without what was added above it.
    most: Vec<(f64, usize)>,
    added: Vec<f64>,
}

impl Begins {
    fn new(count: usize) -> Self {
        let leaves = count.next_power_of_two().max(1);
        let most = (0..2 * leaves).map(|node| (f64::NEG_INFINITY, node.saturating_sub(leaves))).collect();
        Self { leaves, most, added: vec![0.0; 2 * leaves] }
    }

    /// A window may begin here. What was counted for it before stays.
    fn open(&mut self, at: usize, base: f64) {
        let leaf = self.leaves + at;
        self.most[leaf] = (base + self.added[leaf], at);
        self.climb(leaf);
    }

    /// One more in each window that begins here or before.
    fn count_up_to(&mut self, at: usize) {
        let (mut low, mut high) = (self.leaves, self.leaves + at + 1);
        let (first, last) = (low, high - 1);
        while low < high {
            if low % 2 == 1 {
                self.add(low);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                self.add(high);
            }
            (low, high) = (low / 2, high / 2);
        }
        self.climb(first);
        self.climb(last);
    }

    fn add(&mut self, node: usize) {
        self.added[node] += 1.0;
        self.most[node].0 += 1.0;
    }

    fn climb(&mut self, mut node: usize) {
        while node > 1 {
            node /= 2;
            let (left, right) = (self.most[2 * node], self.most[2 * node + 1]);
            let best = if left.0 >= right.0 { left } else { right };
            self.most[node] = (best.0 + self.added[node], best.1);
        }
    }

    fn most(&self) -> (f64, usize) {
        self.most[1]
    }
}

/// How evenly something is shared: 1 if all have the same, `1 / n` if one has it all (Jain, Chiu and Hawe 1984).
pub fn evenness(shares: &[f64]) -> f64 {
    let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::dice::Dice;

    /// The same, word by word: every pair of a beginning and an end, every admission.
    fn slowly(admitted: &[Admitted], rate: f64) -> f64 {
        let mut worst = 0.0_f64;
        for from in admitted.iter().map(|one| one.from) {
            for to in admitted.iter().map(|one| one.to).filter(|to| *to >= from) {
                let inside = admitted.iter().filter(|one| one.from >= from && one.to <= to).count();
                worst = worst.max(inside as f64 - rate * (to - from) as f64 / 1e9);
            }
        }
        worst
    }

    fn at(millis: &[(u64, u64)]) -> Vec<Admitted> {
        millis.iter().map(|&(from, to)| Admitted { from: from * 1_000_000, to: to * 1_000_000 }).collect()
    }

    #[test]
    fn it_finds_what_the_definition_finds() {
        let mut dice = Dice::new(7, 0);
        let mut above = 0;
        for round in 0..3_000 {
            let (count, span) = (dice.below(24), 1 + dice.below(1_000));
            let some: Vec<Admitted> = (0..count)
                .map(|_| {
                    let (from, longest) = (dice.below(span) as u64, dice.one_of(&[1, 4, 1_000]));
                    let to = from + dice.below(1 + span / longest) as u64;
                    Admitted { from: from * 1_000_000, to: to * 1_000_000 }
                })
                .collect();
            let rate = dice.below(40) as f64;
            let (fast, slow) = (worst(&some, rate), slowly(&some, rate));
            assert!((fast.above - slow).abs() < 1e-6, "round {round}: {fast:?}, by the definition {slow}: {some:?}");
            let inside = some.iter().filter(|one| one.from >= fast.from && one.to <= fast.to).count();
            let named = inside as f64 - gained(rate, fast.to - fast.from);
            assert!(count == 0 || (named - slow).abs() < 1e-6, "round {round}: it names another window: {fast:?}");
            above += usize::from(slow > 5.0);
        }
        assert!(above > 300, "only {above} were worth finding");
    }

    #[test]
    fn hand_made_histories_are_judged_as_they_should_be() {
        let burst = 3.0;
        // Three at once, and one more when its token is there.
        assert!(worst(&at(&[(0, 1), (0, 1), (0, 1), (90, 101)]), 10.0).above <= burst);
        // A fourth at once.
        assert!(worst(&at(&[(0, 1), (0, 1), (0, 1), (1, 2)]), 10.0).above > burst);
        // Which may have been decided late.
        assert!(worst(&at(&[(0, 1), (0, 1), (0, 1), (1, 150)]), 10.0).above <= burst);
        // Or early: the others came after it.
        assert!(worst(&at(&[(0, 200), (199, 200), (199, 200), (199, 200), (50, 60)]), 10.0).above <= burst);
        // A token is minted while nobody looks: two windows' worth, each of which is well by itself.
        let twice = at(&[(0, 0), (0, 0), (0, 0), (250, 250), (250, 250), (250, 250)]);
        assert!(worst(&twice, 10.0).above > burst && worst(&twice[..3], 10.0).above <= burst);
        // The edge of a window: all of one second's at its end, all of the next one's at its beginning.
        let edge: Vec<_> = (0..20).map(|one| (990 + one, 990 + one)).collect();
        assert!(worst(&at(&edge), 10.0).above > 10.0);
        // Slowly too many: one in eleven, over a long time, which no short window shows.
        let slow: Vec<_> = (0..400).map(|one| (one * 90, one * 90)).collect();
        assert!(worst(&at(&slow), 10.0).above > burst && worst(&at(&slow[..15]), 10.0).above <= burst);
        assert_eq!(worst(&[], 10.0), Worst::default());
    }

    #[test]
    fn it_is_quick_enough_for_every_pair_of_a_long_run() {
        let mut dice = Dice::new(1, 1);
        let many: Vec<Admitted> = (0..60_000)
            .map(|_| {
                let from = dice.below(60_000_000) as u64 * 1_000;
                Admitted { from, to: from + dice.below(5_000_000) as u64 }
            })
            .collect();
        assert!(worst(&many, 1_000.0).above < 2_000.0);
    }

    #[test]
    fn evenness_is_one_for_equals_and_less_for_one_who_has_all() {
        assert_eq!(evenness(&[2.0, 2.0, 2.0, 2.0]), 1.0);
        assert_eq!(evenness(&[8.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(evenness(&[0.0, 0.0]), 1.0);
    }
}
