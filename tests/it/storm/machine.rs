//! What the machine itself holds requests up by, in which Weir has no part: measured beside the storm, and taken off what
//! requests took.

use std::fs;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::traffic::{LATE, Seen};
use crate::fleet::Micros;
use crate::fleet::service::State;

/// The kernel's clock of who has a processor, as programs see it (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Of the numbers of a processor in `/proc/stat`, what its host took (proc(5): user, nice, system, idle, iowait, irq,
/// softirq, steal).
const STEAL: usize = 7;

/// A time at which a processor of a virtual machine was not there: its host gave it to another.
#[derive(Debug, Clone, Copy)]
struct Stolen {
    /// It was at some time between these; of two in a row, the second begins where the first ended.
    from: Micros,
    to: Micros,
    /// For so long.
    time: Micros,
}

/// Looks at what the host takes, until it is asked.
pub struct Watch {
    ends: mpsc::Sender<()>,
    watches: JoinHandle<Vec<Stolen>>,
}

impl Watch {
    /// From now on, by the service's time.
    pub fn start(state: Arc<State>) -> Self {
        let (ends, ended) = mpsc::channel();
        let watches = std::thread::spawn(move || {
            let (mut at, mut before) = (state.now(), by_processor(&stat()));
            let (mut stolen, mut last) = (Vec::new(), at);
            while ended.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let (to, now) = (state.now(), by_processor(&stat()));
                if let Some(time) = most(&before, &now).filter(|time| *time > LATE) {
                    let time = time.as_micros() as Micros;
                    // It is added up when the processor is back.
                    stolen.push(Stolen { from: at.saturating_sub(time).max(last), to, time });
                    last = to;
                }
                (at, before) = (to, now);
            }
            stolen
        });
        Self { ends, watches }
    }

    /// What held those requests up.
    pub fn end(self, seen: &[Seen]) -> Machine {
        drop(self.ends);
        let stolen = self.watches.join().expect("it only reads");
        Machine { stalls: stalls(seen), stolen }
    }
}

/// When the machine did not run what it should have.
#[derive(Default)]
pub struct Machine {
    /// The clients stood still, and with them the machine.
    stalls: Vec<(Micros, Micros)>,
    /// Its host took a processor, for longer than [`LATE`] at once.
    stolen: Vec<Stolen>,
}

impl Machine {
    /// For how long of the time between the two the clients stood still, and a processor was taken: at most, for nobody knows
    /// which processor a request wanted.
    pub fn held_up(&self, from: Micros, to: Micros) -> [Duration; 2] {
        let both = |begin: Micros, end: Micros| end.min(to).saturating_sub(begin.max(from));
        let still = self.stalls.iter().map(|stall| both(stall.0, stall.1)).sum();
        let stolen = self.stolen.iter().map(|one| both(one.from, one.to).min(one.time)).sum();
        [still, stolen].map(Duration::from_micros)
    }
}

fn stat() -> String {
    // Where there is none, nothing is known to be taken.
    fs::read_to_string("/proc/stat").unwrap_or_default()
}

/// What was taken so far of each processor.
fn by_processor(stat: &str) -> Vec<u32> {
    let numbers = stat.lines().filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
    // The line without a number is of all together.
    let each = numbers.filter(|(number, _)| !number.is_empty());
    each.filter_map(|(_, numbers)| numbers.split(' ').nth(STEAL)?.parse().ok()).collect()
}

/// What was taken since of the one of which most was.
fn most(before: &[u32], now: &[u32]) -> Option<Duration> {
    before.iter().zip(now).map(|(before, now)| TICK * now.saturating_sub(*before)).max()
}

/// When nothing was sent though something was due: the clients could not run.
fn stalls(seen: &[Seen]) -> Vec<(Micros, Micros)> {
    let mut sent: Vec<_> = seen.iter().map(|seen| (seen.sent, seen.sent - seen.late.as_micros() as Micros)).collect();
    sent.sort_unstable();
    let gaps = sent.windows(2).map(|pair| (pair[0].0.max(pair[1].1), pair[1].0));
    gaps.filter(|(from, to)| to - from > LATE.as_micros() as Micros).collect()
}

#[test]
fn what_the_host_takes_is_read_by_processor() {
    let before =
        by_processor("cpu  9 0 9 9 9 0 9 8 0 0\ncpu0 4 0 4 4 4 0 4 3 0 0\ncpu1 5 0 5 5 5 0 5 5 0 0\nintr 5 6 7");
    let now =
        by_processor("cpu  9 0 9 9 9 0 9 18 0 0\ncpu0 4 0 4 4 4 0 4 10 0 0\ncpu1 5 0 5 5 5 0 5 8 0 0\nintr 9 6 7");
    assert_eq!((&before, &now), (&vec![3, 5], &vec![10, 8]));
    assert_eq!(most(&before, &now), Some(7 * TICK));
    assert_eq!(most(&by_processor(""), &now), None);
}

#[test]
fn a_request_is_held_up_by_no_more_than_was_taken_while_it_was_under_way() {
    let stolen = vec![Stolen { from: 1_000, to: 81_000, time: 60_000 }];
    let machine = Machine { stalls: vec![(70_000, 90_000)], stolen };
    let held_up = |from, to| machine.held_up(from, to).map(|time| time.as_micros());
    assert_eq!(held_up(0, 100_000), [20_000, 60_000]);
    assert_eq!(held_up(60_000, 65_000), [0, 5_000]);
    assert_eq!(held_up(80_000, 85_000), [5_000, 1_000]);
    assert_eq!(held_up(90_000, 95_000), [0, 0]);
}
