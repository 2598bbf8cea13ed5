//! What the machine itself holds requests up by, in which Weir has no part: measured beside the storm, and taken off what
//! requests took. Two processors run the pods, every server of Redis, the service and the clients.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::PODS;
use super::traffic::{LATE, Seen, Traffic};
use crate::fleet::Micros;

/// The kernel's clock of who has a processor, as programs see it (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// How often it is looked at whether pods have a processor.
const OFTEN: Duration = Duration::from_millis(5);

/// A pod that is ready to run and does not get to for as large a part of the time was held up.
const STARVED: f64 = 0.4;

/// Of a span, or of [`SHORTEST`] if that is longer, the processors may be others' for so much: else nothing can be said of it.
const TAKEN: f64 = 0.2;

/// Of a shorter span a share is too little to tell.
const SHORTEST: Duration = Duration::from_millis(250);

/// Nothing is sent for longer than this though something is due: the machine stands still. It is less than what requests may
/// cost more once the breaker is open, for else a standstill that nobody sees could be found to be Weir's doing.
const STANDSTILL: Duration = Duration::from_millis(3);

/// Where the machine stood still, what was due meanwhile is sent at once, and worked off beside what comes: that takes until
/// requests are sent when they are due again, and longer than this part of the standstill, for a fifth of the machine and more
/// is busy at this rate; but no longer than the standstill itself.
const CATCHING_UP: Micros = 4;

/// The thread of a pod that serves requests; there is one.
const WORKER: &str = "weir-worker-0";

/// Of the numbers of a processor in `/proc/stat`, what its host took (proc(5): user, nice, system, idle, iowait, irq,
/// softirq, steal).
const STEAL: usize = 7;

/// A time at which there was no processor: its host gave it to another, or it ran another process.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// It was at some time between these; of two in a row, the second begins where the first ended.
    from: Micros,
    to: Micros,
    /// For so long.
    time: Micros,
}

/// Times that are added up when they are over.
struct Sum {
    at: Micros,
    /// Until when what was taken is told.
    last: Micros,
    taken: Vec<Taken>,
}

impl Sum {
    fn new(at: Micros) -> Self {
        Self { at, last: at, taken: Vec::new() }
    }

    /// By now it is so much more, which counts if it is more than what is `least` of the time since it was looked at.
    fn grows(&mut self, to: Micros, by: Duration, least: impl FnOnce(Duration) -> Duration) {
        if by > least(Duration::from_micros(to - self.at)) {
            let time = by.as_micros() as Micros;
            self.taken.push(Taken { from: self.at.saturating_sub(time).max(self.last), to, time });
            self.last = to;
        }
        self.at = to;
    }
}

/// What one pod's worker has waited for a processor.
#[derive(Default)]
struct Worker {
    pid: u32,
    /// Where the kernel tells of it.
    file: String,
    waited: Duration,
}

impl Worker {
    /// How much longer it is since this was asked last.
    fn waits(&mut self, pid: u32) -> Duration {
        if self.pid != pid || self.file.is_empty() {
            let (file, waited) = (schedstat_of(pid), Duration::MAX);
            *self = Self { pid, file: file.unwrap_or_default(), waited };
        }
        // Where it is not told, nothing is known of it.
        let now = fs::read_to_string(&self.file).ok().and_then(|stat| waited(&stat)).unwrap_or(self.waited);
        now.saturating_sub(std::mem::replace(&mut self.waited, now))
    }
}

/// The file that tells of a pod's worker; none until that runs.
fn schedstat_of(pid: u32) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().map(|task| task.path());
    let is_worker = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == WORKER);
    Some(tasks.into_iter().find(is_worker)?.join("schedstat").to_string_lossy().into_owned())
}

/// Of a task: time on a processor, time ready for one, and how often it got one (Documentation/scheduler/sched-stats.rst).
fn waited(schedstat: &str) -> Option<Duration> {
    schedstat.split(' ').nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// Looks at what the host takes, until it is asked.
pub struct Watch {
    ends: mpsc::Sender<()>,
    watches: JoinHandle<(Sum, [Sum; PODS], bool)>,
}

impl Watch {
    /// From now on, by the service's time.
    pub fn start(traffic: Arc<Traffic>) -> Self {
        let (ends, ended) = mpsc::channel();
        let watches = std::thread::spawn(move || {
            let (mut at, mut before) = (traffic.now(), by_processor(&stat()));
            let mut stolen = Sum::new(at);
            let (mut starved, mut workers) =
                ([(); PODS].map(|()| Sum::new(at)), [(); PODS].map(|()| Worker::default()));
            while ended.recv_timeout(OFTEN) == Err(mpsc::RecvTimeoutError::Timeout) {
                for (pod, (sum, worker)) in starved.iter_mut().zip(&mut workers).enumerate() {
                    let waits = worker.waits(traffic.at(pod).pid);
                    sum.grows(traffic.now(), waits, |time| time.mul_f64(STARVED));
                }
                let to = traffic.now();
                if to - at >= EVERY.as_micros() as Micros {
                    let now = by_processor(&stat());
                    stolen.grows(to, most(&before, &now).unwrap_or_default(), |_| LATE);
                    (at, before) = (to, now);
                }
            }
            let is_told = workers.iter().all(|worker| worker.waited < Duration::MAX);
            (stolen, starved, is_told)
        });
        Self { ends, watches }
    }

    /// What held those requests up.
    pub fn end(self, seen: &[Seen]) -> Machine {
        drop(self.ends);
        let (stolen, starved, is_told) = self.watches.join().expect("it only reads");
        assert!(is_told, "the kernel does not tell what {WORKER} waits for (CONFIG_SCHEDSTATS)");
        let sent = seen.iter().map(|seen| (seen.sent, seen.sent - seen.late.as_micros() as Micros));
        Machine { stalls: stalls(sent.collect()), stolen: stolen.taken, starved: starved.map(|sum| sum.taken) }
    }
}

/// When the machine did not run what it should have.
#[derive(Default)]
pub struct Machine {
    /// The clients stood still, and with them the machine; with what of the time after that is its doing.
    stalls: Vec<(Micros, Micros)>,
    /// Its host took a processor, for longer than [`LATE`] at once.
    stolen: Vec<Taken>,
    /// All processors ran others than this pod, which was ready, for more than [`STARVED`] of the time.
    starved: [Vec<Taken>; PODS],
}

impl Machine {
    /// It did nothing else.
    pub fn stood_still(stalls: Vec<(Micros, Micros)>) -> Self {
        Self { stalls, ..Self::default() }
    }

    /// For how long of the time between the two the clients stood still.
    pub fn still(&self, from: Micros, to: Micros) -> Duration {
        Duration::from_micros(self.stalls.iter().map(|stall| both(*stall, (from, to))).sum())
    }

    /// For how long its host had taken a processor: at most, for nobody knows which processor a request wanted.
    pub fn stolen(&self, from: Micros, to: Micros) -> Duration {
        time_of(&self.stolen, (from, to))
    }

    /// For how long a pod waited for a processor.
    pub fn starved(&self, pod: usize, from: Micros, to: Micros) -> Duration {
        time_of(&self.starved[pod], (from, to))
    }

    /// For how long of that time there was no processor for some pod, or for all.
    pub fn taken(&self, from: Micros, to: Micros) -> Duration {
        let starved = (0..PODS).map(|pod| self.starved(pod, from, to)).max().unwrap_or_default();
        self.still(from, to).max(self.stolen(from, to)).max(starved)
    }

    /// Whether that was for too much of it.
    pub fn was_taken(&self, from: Micros, to: Micros) -> bool {
        let whole = Duration::from_micros(to.saturating_sub(from)).max(SHORTEST);
        self.taken(from, to) > whole.mul_f64(TAKEN)
    }

    /// What a request to that pod, or past the pods, was held up by.
    pub fn held_up(&self, from: Micros, to: Micros, pod: Option<usize>) -> Duration {
        let starved = pod.map_or(Duration::ZERO, |pod| self.starved(pod, from, to));
        // All three may tell of the same.
        self.still(from, to).max(self.stolen(from, to)).max(starved)
    }
}

/// How much of a span is in the other.
fn both((begin, end): (Micros, Micros), (from, to): (Micros, Micros)) -> Micros {
    end.min(to).saturating_sub(begin.max(from))
}

fn time_of(taken: &[Taken], span: (Micros, Micros)) -> Duration {
    Duration::from_micros(taken.iter().map(|one| both((one.from, one.to), span).min(one.time)).sum())
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

/// When nothing was sent though something was due: the clients could not run. Of when each was sent, and when it was due.
fn stalls(mut sent: Vec<(Micros, Micros)>) -> Vec<(Micros, Micros)> {
    sent.sort_unstable();
    let gaps = sent.windows(2).map(|pair| (pair[0].0.max(pair[1].1), pair[1].0));
    let mut stalls: Vec<_> = gaps.filter(|(from, to)| to - from > STANDSTILL.as_micros() as Micros).collect();
    let mut next = Micros::MAX;
    for (from, to) in stalls.iter_mut().rev() {
        let after = &sent[sent.partition_point(|(at, _)| at < to)..];
        let in_time = after.iter().find(|(at, due)| at - due <= STANDSTILL.as_micros() as Micros).or(after.last());
        let length = *to - *from;
        let caught_up = in_time.map_or(*to, |(at, _)| *at).clamp(*to + length / CATCHING_UP, *to + length);
        *to = caught_up.min(next);
        next = *from;
    }
    stalls
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
    let stolen = vec![Taken { from: 1_000, to: 81_000, time: 60_000 }];
    let starved = [vec![Taken { from: 84_000, to: 92_000, time: 6_000 }], Vec::new()];
    let machine = Machine { stalls: vec![(70_000, 90_000)], stolen, starved };
    let held_up = |from, to| {
        [machine.still(from, to), machine.stolen(from, to), machine.starved(0, from, to)].map(|time| time.as_micros())
    };
    assert_eq!(held_up(0, 100_000), [20_000, 60_000, 6_000]);
    assert_eq!(held_up(60_000, 65_000), [0, 5_000, 0]);
    assert_eq!(held_up(80_000, 85_000), [5_000, 1_000, 1_000]);
    assert_eq!(held_up(90_000, 95_000), [0, 0, 2_000]);
    let longest = |pod| machine.held_up(90_000, 95_000, pod).as_micros();
    assert_eq!([Some(0), Some(1), None].map(longest), [2_000, 0, 0]);
    assert_eq!(machine.taken(0, 100_000), Duration::from_millis(60));
    assert!(machine.was_taken(0, 100_000));
    assert!(!machine.was_taken(80_000, 100_000), "of so short a time nobody can say");
    assert!(!machine.was_taken(0, 350_000), "it is less than a fifth");
}

#[test]
fn what_is_added_up_late_was_taken_before_that() {
    let mut sum = Sum::new(0);
    for (to, ms) in [(5_000, 1), (10_000, 4), (30_000, 21), (35_000, 5)] {
        sum.grows(to, Duration::from_millis(ms), |time| time.mul_f64(STARVED));
    }
    let taken: Vec<_> = sum.taken.iter().map(|one| (one.from, one.to, one.time)).collect();
    assert_eq!(taken, [(1_000, 10_000, 4_000), (10_000, 30_000, 21_000), (30_000, 35_000, 5_000)]);
}

#[test]
fn a_standstill_holds_up_what_comes_until_it_is_caught_up_with() {
    let sent =
        [(41_500, 2_000), (1_000, 1_000), (41_000, 1_500), (91_000, 46_000), (91_500, 91_500), (201_000, 198_000)];
    assert_eq!(stalls(sent.into()), [(1_500, 46_000), (46_000, 102_250)], "three milliseconds are none");
    let sent =
        [(1_000, 1_000), (41_000, 1_500), (43_000, 12_000), (46_000, 30_000), (55_000, 52_000), (63_000, 63_000)];
    assert_eq!(stalls(sent.into()), [(1_500, 55_000)], "what was due comes until nothing is late by more than three");
    let mut sent = vec![(1_000, 1_000), (41_000, 1_500)];
    sent.extend((0..6).map(|i| (82_000 + i * 2_500, 71_500 + i * 2_500)));
    assert_eq!(stalls(sent), [(1_500, 71_500), (71_500, 92_500)], "and for no longer than it stood still");
}

#[test]
fn what_a_task_waited_for_a_processor_is_read() {
    assert_eq!(waited("1531717143 1190440143 17627\n"), Some(Duration::from_nanos(1_190_440_143)));
    assert_eq!(waited(""), None);
}
