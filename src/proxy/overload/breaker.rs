//! The breaker towards the upstream, pure: while nothing comes of asking it, requests fail at once, and one at a time
//! finds out whether it is back.

use super::Micros;

/// How far back attempts count, in slices of [`SLICE_US`].
const SLICES: usize = 10;

/// Length of a slice.
const SLICE_US: Micros = 500_000;

/// Fewer attempts than this in the window say nothing.
const LEAST_ATTEMPTS: u32 = 20;

/// First pause before the upstream is asked again.
const FIRST_PAUSE_US: Micros = 100_000;

/// Longest such pause, jitter included: what a service that is back may have to wait for its first request.
const LONGEST_PAUSE_US: Micros = 1_000_000;

/// How long one request that finds out may keep the others from it.
const LONGEST_PROBE_US: Micros = 5_000_000;

/// What to do with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Make it.
    Try,
    /// Make it: it is the one that finds out whether the upstream is back. Its end must be told.
    Probe,
    /// Do not; asking again is of use after so many microseconds.
    Refuse(Micros),
}

/// Opens when at least half of enough attempts in the window fail.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    slices: [Slice; SLICES],
    /// Until when successes were counted.
    counted_at: Micros,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Micros,
        pause: Micros,
    },
    /// One request is finding out, since then.
    HalfOpen {
        since: Micros,
        pause: Micros,
    },
}

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    number: u64,
    attempts: u32,
    failures: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(now: Micros) -> Self {
        Self { state: State::Closed, slices: [Slice::default(); SLICES], counted_at: now }
    }

    /// Whether requests are let through as ever.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What to do with an attempt at `now`.
    pub fn admit(&mut self, now: Micros) -> Verdict {
        match self.state {
            State::Closed => Verdict::Try,
            State::Open { until, .. } if now < until => Verdict::Refuse(until - now),
            State::Open { pause, .. } => {
                self.state = State::HalfOpen { since: now, pause };
                Verdict::Probe
            }
            // A probe that takes so long is no reason to ask nobody else.
            State::HalfOpen { since, pause } if now.saturating_sub(since) >= LONGEST_PROBE_US => {
                self.state = State::HalfOpen { since: now, pause };
                Verdict::Probe
            }
            State::HalfOpen { pause, .. } => Verdict::Refuse(pause),
        }
    }

    /// What [`Breaker::admit`] would refuse, without taking a probe's place.
    pub fn refuses(&self, now: Micros) -> Option<Micros> {
        match self.state {
            State::Open { until, .. } if now < until => Some(until - now),
            State::HalfOpen { since, pause } if now.saturating_sub(since) < LONGEST_PROBE_US => Some(pause),
            State::Closed | State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// The same for an attempt that may take as long as a client likes: it is made once nobody else has made one for long
    /// after it was due.
    pub fn refuses_slow(&self, now: Micros) -> Option<Micros> {
        match self.state {
            State::Open { until, .. } if now < until + LONGEST_PAUSE_US => Some(until + LONGEST_PAUSE_US - now),
            _ => self.refuses(now),
        }
    }

    /// Counts attempts that succeeded since this was last called; they were spread over that time.
    pub fn count_successes(&mut self, successes: u64, now: Micros) {
        let (from, to) = (self.counted_at / SLICE_US, now / SLICE_US);
        self.counted_at = now;
        let slices = to.saturating_sub(from) + 1;
        let counted = slices.min(SLICES as u64);
        let within = u32::try_from(successes.saturating_mul(counted) / slices).unwrap_or(u32::MAX);
        for number in to + 1 - counted..=to {
            let slice = self.slice(number);
            slice.attempts = slice.attempts.saturating_add(within / counted as u32);
        }
        let slice = self.slice(to);
        slice.attempts = slice.attempts.saturating_add(within % counted as u32);
    }

    /// An attempt failed while the breaker was closed. Whether that opened it; `jitter` is from 0 to 1.
    pub fn failed(&mut self, now: Micros, jitter: f64) -> bool {
        let number = now / SLICE_US;
        let slice = self.slice(number);
        slice.attempts = slice.attempts.saturating_add(1);
        slice.failures = slice.failures.saturating_add(1);
        if self.state != State::Closed {
            return false;
        }
        let recent = self.slices.iter().filter(|slice| slice.number + SLICES as u64 > number);
        let (attempts, failures) = recent.fold((0_u64, 0_u64), |(attempts, failures), slice| {
            (attempts + u64::from(slice.attempts), failures + u64::from(slice.failures))
        });
        if attempts < u64::from(LEAST_ATTEMPTS) || failures * 2 < attempts {
            return false;
        }
        self.state = State::Open { until: now + jittered(FIRST_PAUSE_US, jitter), pause: FIRST_PAUSE_US };
        true
    }

    /// The probe was answered.
    pub fn probe_succeeded(&mut self, now: Micros) {
        *self = Self::new(now);
    }

    /// The probe failed; `jitter` is from 0 to 1.
    pub fn probe_failed(&mut self, now: Micros, jitter: f64) {
        if let State::HalfOpen { pause, .. } = self.state {
            let pause = (pause * 2).min(LONGEST_PAUSE_US);
            self.state = State::Open { until: now + jittered(pause, jitter), pause };
        }
    }

    /// The probe came to nothing that says anything of the upstream: its client left. The next one finds out.
    pub fn probe_left(&mut self, now: Micros) {
        if let State::HalfOpen { pause, .. } = self.state {
            self.state = State::Open { until: now, pause };
        }
    }

    fn slice(&mut self, number: u64) -> &mut Slice {
        let slice = &mut self.slices[(number % SLICES as u64) as usize];
        if slice.number != number {
            *slice = Slice { number, ..Slice::default() };
        }
        slice
    }
}

/// `pause` less up to a quarter, so that a fleet does not come back all at once.
fn jittered(pause: Micros, jitter: f64) -> Micros {
    (pause as f64 * (1.0 - jitter.clamp(0.0, 1.0) / 4.0)) as Micros
}

#[cfg(test)]
mod tests;
