//! How many requests the upstream is given at once: an adaptive limit by the gradient of its latency, pure.
//!
//! The idea is that of Netflix' concurrency-limits and Envoy's adaptive concurrency: latency without load over latency now
//! says what share of the requests under way is served, and what share only waits inside the upstream. Three things are
//! different, so that no work that is merely slow is taken for overload:
//!
//! - A window is judged by a low percentile, for the reason for which `CoDel` (RFC 8289 section 4) takes a minimum: only a
//!   queue that stands for the whole of it delays its fastest requests. A slow route or long polls among fast ones do not.
//! - A request counts in a window if it was also sent in it, so that what is judged is what the present limit brought about.
//! - A cut that does not help is taken back: where half as many requests are no faster, it is not their number that makes
//!   them slow, and what they take now is the new latency without load.

use super::Micros;

/// The limit begins here, and again after [`FORGOTTEN_US`]; it doubles in each window until a queue is seen.
const INITIAL: usize = 128;

/// The limit never falls below this: so few at once overload nothing that is worth its own process. What is sent among no
/// more than these says what latency is without load.
pub const FLOOR: usize = 8;

/// The last so many that were sent among few.
const ALONE: usize = 16;

/// The one of them in order that is taken: a high one, because a change to slower work shows in a few of them first.
const ALONE_RANK: usize = 3 * ALONE / 4;

/// Times the latency without load that is still no queue.
const TOLERANCE: f64 = 1.5;

/// Longer than that is still no queue: its cost would not be worth a cut (RFC 8289 section 4.3 has the same 5 ms).
const TARGET_US: f64 = 5_000.0;

/// Most that one window may cut.
const STEEPEST: f64 = 0.5;

/// The percentile that a window is judged by, as a share.
const PERCENTILE: f64 = 0.1;

/// Requests that make a window.
const WINDOW_SAMPLES: u32 = 20;

/// Shortest window, but while the limit doubles.
const WINDOW_US: Micros = 100_000;

/// A cut to half must bring latency below this share of what it was.
const HELPED: f64 = 0.75;

/// A limit that nobody needed for so long is forgotten: it protected nobody, and may be wrong by now.
const FORGOTTEN_US: Micros = 3_000_000;

/// Time in which nobody was answered, though others wait, after which the limit doubles: nothing is learnt from long polls
/// that fill it.
const STUCK_US: Micros = 100_000;

/// The same, where a queue was seen inside the upstream before.
const STUCK_AFTER_QUEUE_US: Micros = 1_000_000;

/// Classes of latency: eight for each doubling, from 1 microsecond to 16 s.
const CLASSES: usize = 24 * 8;

/// The limit, and what it is learnt from.
#[derive(Debug)]
pub struct Gradient {
    most: usize,
    floor: usize,
    limit: f64,
    /// Latency without load.
    unloaded_us: Option<f64>,
    /// Latencies of the last ones that were sent among few, and how many there were in all.
    alone_us: [Micros; ALONE],
    alone: usize,
    /// As many as were taken into account.
    alone_known: usize,
    /// Whether the limit doubles: until the first queue, and after a cut that was taken back.
    is_doubling: bool,
    trial: Option<Trial>,
    /// When the limit was last raised because it was stuck.
    stuck_at: Micros,
    /// When at least half of the limit was last in use.
    used_at: Micros,
    /// Whether it was when the window began.
    is_used: bool,
    /// Whether the upstream may have a queue inside: the last window had, or none was judged since the limit came into use.
    may_queue: bool,
    window: Window,
}

/// A cut that has yet to show that it helps.
#[derive(Debug, Clone, Copy)]
struct Trial {
    limit: f64,
    latency_us: f64,
}

#[derive(Debug)]
struct Window {
    began: Micros,
    samples: u32,
    /// Most requests under way at once.
    peak: usize,
    counts: Box<[u32; CLASSES]>,
}

impl Gradient {
    /// A limit of at most `most` requests.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            floor: FLOOR.min(most),
            limit: INITIAL.min(most) as f64,
            unloaded_us: None,
            alone_us: [0; ALONE],
            alone: 0,
            alone_known: 0,
            is_doubling: true,
            trial: None,
            stuck_at: 0,
            used_at: 0,
            is_used: false,
            may_queue: false,
            window: Window { began: 0, samples: 0, peak: 0, counts: Box::new([0; CLASSES]) },
        }
    }

    /// The limit of this moment.
    pub fn limit(&self) -> usize {
        (self.limit as usize).clamp(self.floor, self.most)
    }

    /// Where requests in flight may be standing in a queue inside the upstream: what they would take without it.
    pub fn without_queue_us(&self) -> Option<Micros> {
        self.unloaded_us.filter(|_| self.may_queue).map(|latency| latency as Micros)
    }

    /// A request that was sent at `sent` was answered at `now`, while so many were `under_way`, itself included;
    /// `was_alone` says that it was sent among no more than [`FLOOR`]. The new limit, if this ended a window.
    pub fn answered(&mut self, sent: Micros, now: Micros, under_way: usize, was_alone: bool) -> Option<usize> {
        if was_alone {
            self.alone_us[self.alone % ALONE] = now.saturating_sub(sent);
            self.alone += 1;
        }
        if now.saturating_sub(self.used_at) > FORGOTTEN_US {
            self.forget(now);
        }
        if under_way * 2 >= self.limit() {
            self.used_at = now;
            // What was sent before says nothing of so many at once.
            if !std::mem::replace(&mut self.is_used, true) {
                self.may_queue = true;
                self.learn();
                self.window.restart(now);
            }
        }
        if sent < self.window.began {
            return None;
        }
        self.window.peak = self.window.peak.max(under_way);
        self.window.counts[class(now.saturating_sub(sent))] += 1;
        self.window.samples += 1;
        let length = now.saturating_sub(self.window.began);
        if self.window.samples < WINDOW_SAMPLES || (length < WINDOW_US && !self.is_doubling) {
            return None;
        }
        let (latency_us, peak) = (self.window.percentile(), self.window.peak);
        self.may_queue = self.judge(latency_us, peak);
        // Behind a queue, what is sent under a new limit is served after what was sent under the old one.
        self.window.restart(if self.may_queue { now + latency_us as Micros } else { now });
        Some(self.limit())
    }

    /// Others have waited, and nobody was answered since `since`. The new limit, if that was long enough.
    pub fn stuck(&mut self, since: Micros, now: Micros) -> Option<usize> {
        let bearable = if self.is_doubling { STUCK_US } else { STUCK_AFTER_QUEUE_US };
        if now.saturating_sub(since.max(self.stuck_at)) < bearable || self.limit() >= self.most {
            return None;
        }
        (self.stuck_at, self.is_doubling, self.trial) = (now, true, None);
        self.limit = (self.limit * 2.0).min(self.most as f64);
        Some(self.limit())
    }

    fn forget(&mut self, now: Micros) {
        self.limit = self.limit.max(INITIAL.min(self.most) as f64);
        (self.is_doubling, self.trial, self.used_at) = (true, None, now);
        (self.is_used, self.may_queue) = (false, false);
        self.window.restart(now);
    }

    /// Takes into account what was sent among few.
    fn learn(&mut self) {
        if self.alone > self.alone_known {
            self.alone_known = self.alone;
            let mut known = self.alone_us;
            let known = &mut known[..self.alone.min(ALONE)];
            known.sort_unstable();
            self.unloaded_us = known.get(ALONE_RANK.min(known.len() - 1)).map(|latency| *latency as f64);
        }
    }

    /// Sets the limit by a window. Whether there was a queue in the upstream.
    fn judge(&mut self, latency_us: f64, peak: usize) -> bool {
        self.learn();
        self.unloaded_us = Some(self.unloaded_us.unwrap_or(latency_us));
        // Less than half in use: nothing is learnt about a limit that nobody meets.
        self.is_used = peak * 2 >= self.limit();
        if !self.is_used {
            return false;
        }
        let in_use = self.limit.min(peak as f64);
        if let Some(trial) = self.trial
            && in_use <= trial.limit / 2.0
        {
            if latency_us > trial.latency_us * HELPED {
                self.unloaded_us = Some(latency_us);
                (self.limit, self.is_doubling, self.trial) = (trial.limit, true, None);
                return false;
            }
            self.trial = Some(Trial { limit: in_use, latency_us });
        }
        // A queue may still have been growing when the trial began.
        if let Some(trial) = &mut self.trial {
            trial.latency_us = trial.latency_us.max(latency_us);
        }
        let without_queue_us = self.unloaded_us.unwrap_or(latency_us) * TOLERANCE + TARGET_US;
        let gradient = (without_queue_us / latency_us).clamp(STEEPEST, 1.0);
        if gradient < 1.0 {
            self.is_doubling = false;
            self.trial.get_or_insert(Trial { limit: in_use, latency_us });
            // Room for bursts and for growth, as the square root of the limit: Netflix' own choice.
            self.limit = in_use * gradient + in_use.sqrt();
        } else {
            self.trial = None;
            self.limit = if self.is_doubling { self.limit * 2.0 } else { self.limit + self.limit.sqrt() };
        }
        self.limit = self.limit.clamp(self.floor as f64, self.most as f64);
        gradient < 1.0
    }
}

impl Window {
    fn restart(&mut self, now: Micros) {
        (self.began, self.samples, self.peak) = (now, 0, 0);
        self.counts.fill(0);
    }

    fn percentile(&self) -> f64 {
        let wanted = (f64::from(self.samples) * PERCENTILE).ceil() as u32;
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle_us(class);
            }
        }
        middle_us(CLASSES - 1)
    }
}

/// The class of a latency: its highest bit and the three behind it.
fn class(latency: Micros) -> usize {
    let latency = latency.max(1);
    let octave = latency.ilog2();
    let eighth = if octave >= 3 { (latency >> (octave - 3)) & 7 } else { (latency << (3 - octave)) & 7 };
    (octave as usize * 8 + eighth as usize).min(CLASSES - 1)
}

fn middle_us(class: usize) -> f64 {
    2_f64.powi((class / 8) as i32) * (1.0 + ((class % 8) as f64 + 0.5) / 8.0)
}

#[cfg(test)]
mod tests;
