use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;

const MS: Micros = 1_000;
const SECOND: Micros = 1_000_000;

/// A simulated upstream behind a limit, in steps of events: so many servers with one line before them.
struct Simulation {
    gradient: Gradient,
    servers: usize,
    busy: usize,
    /// In the upstream and not yet served: when sent, and how long it takes.
    inside: VecDeque<(Micros, Micros, bool)>,
    /// When served, when sent, and whether among few.
    ends: BinaryHeap<Reverse<(Micros, Micros, bool)>>,
    /// Before the gate: how long each takes.
    outside: VecDeque<Micros>,
    in_flight: usize,
    served: usize,
    /// The lowest limit since it was last set.
    lowest: usize,
    now: Micros,
}

impl Simulation {
    fn new(most: usize, servers: usize) -> Self {
        Self {
            gradient: Gradient::new(most),
            servers,
            busy: 0,
            inside: VecDeque::new(),
            ends: BinaryHeap::new(),
            outside: VecDeque::new(),
            in_flight: 0,
            served: 0,
            lowest: usize::MAX,
            now: 0,
        }
    }

    fn arrives(&mut self, takes: Micros) {
        self.outside.push_back(takes);
        self.let_in();
    }

    fn let_in(&mut self) {
        while self.in_flight < self.gradient.limit()
            && let Some(takes) = self.outside.pop_front()
        {
            self.in_flight += 1;
            self.inside.push_back((self.now, takes, self.in_flight <= FLOOR));
        }
        while self.busy < self.servers
            && let Some((sent, takes, was_alone)) = self.inside.pop_front()
        {
            self.busy += 1;
            self.ends.push(Reverse((self.now + takes, sent, was_alone)));
        }
    }

    /// Serves the next one; when that is, or nothing if nobody is there.
    fn serves(&mut self, until: Micros) -> bool {
        let Some(Reverse((at, sent, was_alone))) = self.ends.peek().copied().filter(|end| end.0.0 <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.ends.pop();
        self.now = at;
        self.busy -= 1;
        self.gradient.answered(sent, at, self.in_flight, was_alone);
        self.lowest = self.lowest.min(self.gradient.limit());
        self.in_flight -= 1;
        self.served += 1;
        self.let_in();
        true
    }

    /// So many clients that ask again as soon as they are answered, for `length`. Requests served in a second.
    fn closed_loop(&mut self, clients: usize, length: Micros, takes: impl Fn(usize) -> Micros) -> f64 {
        let (until, before) = (self.now + length, self.served);
        let here = self.in_flight + self.outside.len();
        for i in here..clients {
            self.arrives(takes(i));
        }
        while self.serves(until) {
            self.arrives(takes(self.served));
        }
        (self.served - before) as f64 * SECOND as f64 / length as f64
    }

    /// Requests at an even pace, whatever becomes of them; those over 2 s of the upstream's work are shed.
    fn open_loop(&mut self, per_second: u64, length: Micros, takes: impl Fn(usize) -> Micros) -> f64 {
        let (until, before) = (self.now + length, self.served);
        let (mut due, mut i) = (self.now, 0);
        while due < until {
            while self.serves(due) {}
            self.now = due;
            let most = 2 * SECOND * self.servers as u64 / takes(i);
            if (self.outside.len() as u64) < most {
                self.arrives(takes(i));
            }
            i += 1;
            due += SECOND / per_second;
        }
        while self.serves(until) {}
        (self.served - before) as f64 * SECOND as f64 / length as f64
    }
}

#[test]
fn classes_are_an_eighth_wide() {
    for latency in [1, 7, 100, 2_000, 123_456, 10_000_000] {
        let middle = middle_us(class(latency));
        let off = (middle - latency as f64).abs() / latency as f64;
        assert!(off < 0.13 || latency < 8, "{latency} in the class of {middle}");
    }
}

#[test]
fn an_upstream_of_one_thread_is_kept_busy_by_few() {
    for (servers, takes) in [(1, 2 * MS), (1, 10 * MS), (4, 5 * MS), (16, 40 * MS), (64, 100 * MS)] {
        let mut simulation = Simulation::new(512, servers);
        let capacity = servers as f64 * SECOND as f64 / takes as f64;
        simulation.open_loop((capacity * 0.8) as u64, 2 * SECOND, |_| takes);
        simulation.open_loop((capacity * 5.0) as u64, 5 * SECOND, |_| takes);
        let goodput = simulation.open_loop((capacity * 5.0) as u64, 10 * SECOND, |_| takes);
        let limit = simulation.gradient.limit();
        println!("{servers} servers of {takes} us: goodput {goodput:.0} of {capacity:.0}, limit {limit}");
        assert!(goodput > capacity * 0.97, "{goodput} of {capacity}");
        assert!(limit >= servers && limit <= servers * 4 + 32, "{limit} for {servers} servers");
    }
}

#[test]
fn it_stays_there_for_as_long_as_the_overload_does() {
    let mut simulation = Simulation::new(512, 4);
    simulation.open_loop(600, 2 * SECOND, |_| 5 * MS);
    for minute in 0..10 {
        let goodput = simulation.open_loop(4_000, 60 * SECOND, |_| 5 * MS);
        let limit = simulation.gradient.limit();
        assert!(goodput > 780.0 && limit < 64, "minute {minute}: {goodput} with a limit of {limit}");
    }
}

#[test]
fn slow_work_without_a_queue_is_no_overload() {
    let mut simulation = Simulation::new(512, 1_000);
    let goodput = simulation.closed_loop(500, 10 * SECOND, |_| 300 * MS);
    assert_eq!(simulation.gradient.limit(), 512, "everybody is let in");
    assert!(goodput > 1_500.0, "{goodput} of 1666, the beginning included");
}

#[test]
fn a_change_from_quick_to_slow_work_costs_a_moment_only() {
    let mut simulation = Simulation::new(512, 1_000);
    simulation.closed_loop(300, 5 * SECOND, |_| 2 * MS);
    simulation.closed_loop(500, 3 * SECOND, |_| 300 * MS);
    let goodput = simulation.closed_loop(500, 5 * SECOND, |_| 300 * MS);
    assert!(goodput > 1_500.0, "{goodput} of 1666");
}

#[test]
fn a_burst_of_slow_work_after_quick_work_is_let_in_without_a_cut() {
    let mut simulation = Simulation::new(512, 1_000);
    simulation.open_loop(100, SECOND, |_| 2 * MS);
    let goodput = simulation.closed_loop(500, 5 * SECOND, |_| 300 * MS);
    assert!(simulation.lowest >= INITIAL && goodput > 1_300.0, "{} at least, {goodput} of 1666", simulation.lowest);
}

#[test]
fn after_an_overload_a_limit_that_nobody_needs_is_forgotten() {
    let mut simulation = Simulation::new(512, 1);
    simulation.open_loop(400, SECOND, |_| 2 * MS);
    simulation.open_loop(2_500, 10 * SECOND, |_| 2 * MS);
    assert!(simulation.gradient.limit() < 64);
    simulation.open_loop(100, 10 * SECOND, |_| 2 * MS);
    assert!(simulation.gradient.limit() >= INITIAL, "{}", simulation.gradient.limit());
}

#[test]
fn long_polls_and_a_slow_route_among_quick_ones_cut_nothing() {
    for slow in [300 * MS, 20 * SECOND] {
        let mut simulation = Simulation::new(512, 1_000);
        simulation.closed_loop(200, 5 * SECOND, |_| 2 * MS);
        simulation.lowest = usize::MAX;
        simulation.closed_loop(400, 30 * SECOND, |i| if i % 5 == 0 { slow } else { 2 * MS });
        let lowest = simulation.lowest;
        assert!(lowest >= 512, "{lowest} with one in five of {slow} us");
    }
}

#[test]
fn a_limit_that_long_polls_fill_is_raised_in_time() {
    let mut gradient = Gradient::new(512);
    assert_eq!(gradient.stuck(0, STUCK_US - 1), None);
    assert_eq!(gradient.stuck(0, STUCK_US), Some(2 * INITIAL));
    assert_eq!(gradient.stuck(0, STUCK_US + 1), None, "once in that time");
    assert_eq!(gradient.stuck(0, 2 * STUCK_US), Some(512));
    assert_eq!(gradient.stuck(0, 30 * SECOND), None, "and not beyond its bound");
}

#[test]
fn an_upstream_that_becomes_slower_by_itself_is_not_throttled() {
    let mut simulation = Simulation::new(512, 300);
    simulation.closed_loop(200, 5 * SECOND, |_| 10 * MS);
    simulation.closed_loop(200, 5 * SECOND, |_| 80 * MS);
    let goodput = simulation.closed_loop(200, 5 * SECOND, |_| 80 * MS);
    assert!(goodput > 2_300.0, "{goodput} of 2500");
}

proptest! {
    #[test]
    fn the_limit_stays_within_its_bounds_and_grows_in_use_only(
        most in 1_usize..2_000,
        steps in prop::collection::vec((0_u64..50_000, 1_u64..2_000_000, 0.0..1.0_f64), 1..2_000),
    ) {
        let mut gradient = Gradient::new(most);
        let mut now = 0;
        for (pause, took, load) in steps {
            now += pause;
            let before = gradient.limit();
            let under_way = 1 + (load * before as f64) as usize;
            gradient.answered(now.saturating_sub(took), now, under_way, load < 0.05);
            let limit = gradient.limit();
            prop_assert!(limit >= FLOOR.min(most) && limit <= most, "{limit} of {most}");
        }
    }

    #[test]
    fn a_limit_that_is_not_in_use_does_not_grow(
        steps in prop::collection::vec((1_u64..10_000, 1_u64..1_000_000), 1..1_000),
    ) {
        let mut gradient = Gradient::new(1_000);
        let mut now = 0;
        for (pause, took) in steps {
            now += pause;
            gradient.answered(now.saturating_sub(took), now, 10, took % 2 == 0);
            prop_assert_eq!(gradient.limit(), INITIAL);
        }
    }
}

#[test]
fn a_window_is_as_fast_as_its_fastest_tenth() {
    let mut window = Window { began: 0, samples: 20, peak: 1, counts: Box::new([0; CLASSES]) };
    window.counts[class(300 * MS)] = 18;
    window.counts[class(2 * MS)] = 2;
    assert!(window.percentile() < 3_000.0, "{}", window.percentile());
}
