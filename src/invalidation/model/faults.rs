//! What goes wrong, and when.

use super::coverage::Seen;
use super::names::KEYS;
use super::oracle::Expected;
use super::random::Random;
use super::world::{BUSY, Event, World};
use super::{BOUND, Ms};

/// A fault; pods are meant modulo their number.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A pod does nothing for so long (SIGSTOP), while the clock goes on.
    Pause(usize, Ms),
    /// A pod is gone, and another process takes its place after so long.
    Crash(usize, Ms),
    Restart(usize),
    /// A subscription ends.
    CutBus(usize),
    /// A subscription goes silent.
    StallBus(usize),
    /// What a subscription brings comes up to so much later, for so long.
    SlowBus(usize, Ms, Ms),
    /// The same of what Redis answers.
    SlowLink(usize, Ms, Ms),
    /// A pod does not reach Redis for so long.
    Cut(usize, Ms),
    /// Redis is away for so long.
    Away(Ms),
    /// Redis crashes, and comes back without its data.
    Empty(Ms),
    /// The replica stops to follow.
    StallReplica,
    /// Redis is away for so long; then the replica is the master.
    FailOver(Ms),
    /// The log is cut to so many records.
    Trim(usize),
    ExpireLeases,
    /// No fault, but much to do just now: everything is written, and a pod is asked for it around the bound.
    Rush(usize),
    /// A pod is asked for everything, for so long.
    Crowd(usize, Ms),
    /// Everything is written, and every pod asked for it, within milliseconds.
    Storm,
}

/// The faults of a history.
pub fn plan(random: &mut Random) -> (Expected, Vec<(Ms, Fault)>) {
    let kind = random.below(8);
    let expected = Expected { is_calm: kind == 0, redis_is_well: kind <= 2 };
    let mut faults = Vec::new();
    if expected.is_calm {
        return (expected, faults);
    }
    for _ in 0..random.between(1, 6) {
        let at = random.between(BOUND / 4, BUSY - BOUND * 3 / 2);
        let pod = random.below(4) as usize;
        let one = if expected.redis_is_well { random.below(3) } else { random.below(17) };
        match one {
            0 => faults.push((at, Fault::Pause(pod, random.between(50, 1500)))),
            1 => faults.push((at, Fault::Crash(pod, random.between(20, 600)))),
            2 => faults.push((at, Fault::ExpireLeases)),
            3 => faults.push((at, Fault::CutBus(pod))),
            4 => faults.push((at, Fault::StallBus(pod))),
            5 => faults.push((at, Fault::SlowBus(pod, random.between(200, 1500), random.between(20, 1200)))),
            6 => faults.push((at, Fault::SlowLink(pod, random.between(200, 1500), random.between(20, 600)))),
            7 | 8 => faults.push((at, Fault::Cut(pod, random.between(100, 2500)))),
            9 => faults.push((at, Fault::Away(random.between(50, 2000)))),
            10 => faults.push((at, Fault::Empty(random.between(5, 500)))),
            11 => fail_over(at, random, &mut faults),
            12 => faults.push((at, Fault::Trim(random.below(3) as usize))),
            13 => reconnect(at, pod, random, &mut faults),
            14 => start_apart(at, pod, random, &mut faults),
            _ => isolate(at, pod, random, &mut faults),
        }
    }
    (expected, faults)
}

/// The replica lacks what was written last.
fn fail_over(at: Ms, random: &mut Random, faults: &mut Vec<(Ms, Fault)>) {
    if random.one_in(2) {
        faults.push((at, Fault::StallReplica));
    }
    let (at, away) = (at + random.below(200), random.between(0, 400));
    faults.push((at, Fault::FailOver(away)));
    if random.one_in(2) {
        faults.push((at + away + random.below(300), Fault::Storm));
    }
}

/// A pod was away for longer than B, and Redis fails over as it comes back.
fn reconnect(at: Ms, pod: usize, random: &mut Random, faults: &mut Vec<(Ms, Fault)>) {
    let away = random.between(BOUND, 2 * BOUND);
    let back = at + away;
    faults.push((at, Fault::Cut(pod, away)));
    faults.push((at + 10, Fault::StallReplica));
    faults.push((at + random.below(100), Fault::Rush(pod)));
    faults.push((at, Fault::SlowLink(pod, away + 800, random.between(2, 400))));
    faults.push((back + random.below(600), Fault::FailOver(random.below(3))));
    faults.push((back + 200, Fault::Crowd(pod, 800)));
}

/// A pod starts without Redis, which forgets something before the pod reaches it.
fn start_apart(at: Ms, pod: usize, random: &mut Random, faults: &mut Vec<(Ms, Fault)>) {
    let away = random.between(BOUND / 2, BOUND);
    let loss = random.of(&[Fault::Trim(1), Fault::Empty(0), Fault::FailOver(0)]);
    faults.push((at, Fault::Cut(pod, away)));
    faults.push((at, Fault::Crash(pod, 10)));
    faults.push((at + 20, Fault::Crowd(pod, 100)));
    faults.push((at + 200, Fault::StallReplica));
    faults.push((at + 210, Fault::Rush(pod)));
    faults.push((at + away - random.below(200), loss));
}

/// A pod hears nothing any more, then answers come late, then none.
fn isolate(at: Ms, pod: usize, random: &mut Random, faults: &mut Vec<(Ms, Fault)>) {
    faults.push((at, Fault::SlowLink(pod, 600, 460)));
    faults.push((at, Fault::SlowBus(pod, 1500, 1500)));
    faults.push((at + random.between(100, 400), Fault::Rush(pod)));
    faults.push((at + random.between(200, 500), Fault::Cut(pod, random.between(BOUND, 2 * BOUND))));
}

impl World {
    pub fn fault(&mut self, fault: Fault) {
        self.note(|| format!("fault: {fault:?}"));
        let now = self.now;
        let seen = match fault {
            Fault::Pause(pod, pause) => {
                self.pod(pod).paused_until = now + pause;
                Seen::Pauses
            }
            Fault::Crash(pod, away) => {
                let state = self.pod(pod);
                (state.is_alive, state.wire) = (false, None);
                self.at(now + away, Event::Fault(Fault::Restart(pod)));
                Seen::Crashes
            }
            Fault::Restart(pod) => return self.restart(pod),
            Fault::CutBus(pod) => {
                self.end_bus(pod, true);
                Seen::BusCut
            }
            Fault::StallBus(pod) => {
                self.end_bus(pod, false);
                Seen::BusStalled
            }
            Fault::SlowBus(pod, pause, by) => {
                self.pod(pod).slow_bus = (now + pause, by);
                Seen::BusSlow
            }
            Fault::SlowLink(pod, pause, by) => {
                self.pod(pod).slow = (now + pause, by);
                Seen::LinkSlow
            }
            Fault::Cut(pod, pause) => {
                self.pod(pod).cut_until = now + pause;
                let is_told = self.random.one_in(2);
                self.end_bus(pod, is_told);
                Seen::LinkCut
            }
            Fault::StallReplica => return self.redis.stall_replica(self.step),
            Fault::Rush(pod) => {
                self.write_everything();
                return self.crowd(pod, BOUND, BOUND * 3 / 2, 4);
            }
            Fault::Crowd(pod, lasts) => return self.crowd(pod, 0, lasts, 6),
            Fault::Storm => {
                self.write_everything();
                return (0..self.pods.len()).for_each(|pod| self.crowd(pod, 0, 60, 2));
            }
            Fault::Trim(keep) => {
                self.redis.trim(keep);
                Seen::LogTrimmed
            }
            Fault::ExpireLeases => {
                self.redis.expire_leases();
                Seen::LeasesExpired
            }
            Fault::Away(_) | Fault::Empty(_) | Fault::FailOver(_) => self.lose_redis(fault),
        };
        self.oracle.count(seen);
    }

    fn write_everything(&mut self) {
        for key in 0..KEYS {
            self.at(self.now, Event::Write(key));
        }
    }

    /// A pod is asked for each key so many times, between these times from now.
    fn crowd(&mut self, pod: usize, first: Ms, last: Ms, times: usize) {
        let pod = pod % self.pods.len();
        for key in (0..KEYS).cycle().take(KEYS * times) {
            let at = self.now + self.random.between(first, last);
            self.at(at, Event::Request(pod, key));
        }
    }

    fn lose_redis(&mut self, fault: Fault) -> Seen {
        let run_id = self.random.next();
        let (away, seen) = match fault {
            Fault::Empty(away) => {
                self.redis.empty(run_id);
                self.oracle.lose(0, self.step);
                (away, Seen::RedisEmptied)
            }
            Fault::FailOver(away) => {
                if let Some(since) = self.redis.fail_over(run_id) {
                    self.oracle.lose(since, self.step);
                }
                (away, Seen::Failovers)
            }
            Fault::Away(away) => (away, Seen::RedisAway),
            _ => (0, Seen::RedisAway),
        };
        self.redis.up_at = self.now + away;
        for pod in 0..self.pods.len() {
            let is_told = self.random.one_in(2);
            self.end_bus(pod, is_told);
        }
        seen
    }

    fn pod(&mut self, pod: usize) -> &mut super::pod::Pod {
        let pod = pod % self.pods.len();
        &mut self.pods[pod]
    }

    fn end_bus(&mut self, pod: usize, is_told: bool) {
        let pod = pod % self.pods.len();
        if let Some(wire) = &mut self.pods[pod].wire {
            (wire.is_closed, wire.is_stalled) = (wire.is_closed || is_told, wire.is_stalled || !is_told);
            self.turn_at(pod, self.now);
        }
    }

    fn restart(&mut self, pod: usize) {
        let now = self.now;
        let (pod, own) = (pod % self.pods.len(), self.random.next());
        if !self.pods[pod].is_alive {
            self.pods[pod].restart(own, now);
            self.turn_at(pod, self.now);
        }
    }
}
