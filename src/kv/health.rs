//! Which uses of Redis work and which do not, for people: one line in the log when that changes, a metric, and a line in
//! `/readyz?verbose` that says what is degraded and what still holds.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::reply::Fault;
use super::topology::Topology;
use crate::clock::{Clock, SteadyMs};
use crate::metrics::{Metrics, RedisPart};

/// A use that failed now and then works again once the command that failed last has been answered, and it has not failed
/// for so long.
const HEALED: Duration = Duration::from_secs(2);

/// Or, if nobody asks for that command any more, for so long: more than between two of any of the commands that are sent
/// whether requests come or not.
const FORGOTTEN: Duration = Duration::from_secs(15);

/// How each use of Redis fares.
pub struct Health {
    metrics: Arc<Metrics>,
    topology: Arc<Topology>,
    clock: Clock,
    /// Whether a use has something in `states`, so that what works looks no further.
    failing: [AtomicBool; RedisPart::ALL.len()],
    states: Mutex<[Option<Failing>; RedisPart::ALL.len()]>,
}

/// Why a use does not work, since when, and when it failed last.
struct Failing {
    cause: String,
    since: SteadyMs,
    last: SteadyMs,
    /// The command, where there are several.
    command: &'static str,
}

impl Health {
    /// Of a Redis of which nothing is known to fail.
    pub(super) fn new(metrics: Arc<Metrics>, topology: Arc<Topology>, clock: Clock) -> Self {
        let health = Self { metrics, topology, clock, failing: Default::default(), states: Mutex::default() };
        health.show();
        health
    }

    /// The outcome of a command or script. What only says that a server is out of reach is told by its breaker.
    pub(super) fn answered(&self, part: RedisPart, command: &'static str, fault: Option<&Fault>) {
        match fault {
            None if self.failing[part as usize].load(Ordering::Relaxed) => {
                self.mend(part, |failing| if failing.command == command { HEALED } else { FORGOTTEN });
            }
            None => {}
            Some(fault) => {
                if let Some(kind) = fault.kind() {
                    self.metrics.redis_failed(kind);
                    if kind.is_refusal() {
                        self.fail(part, command, &fault.to_string());
                    }
                }
            }
        }
    }

    /// Whether a use that is looked after by one task works; the cause if not.
    pub fn tell(&self, part: RedisPart, outcome: Result<(), String>) {
        match outcome {
            Ok(()) if self.failing[part as usize].load(Ordering::Relaxed) => self.mend(part, |_| Duration::ZERO),
            Ok(()) => {}
            Err(cause) => self.fail(part, "", &cause),
        }
    }

    fn fail(&self, part: RedisPart, command: &'static str, cause: &str) {
        let now = self.clock.steady();
        let mut states = self.states.lock().expect("no panic while held");
        match &mut states[part as usize] {
            Some(failing) => {
                cause.clone_into(&mut failing.cause);
                (failing.last, failing.command) = (now, command);
            }
            none => {
                *none = Some(Failing { cause: cause.to_owned(), since: now, last: now, command });
                self.failing[part as usize].store(true, Ordering::Relaxed);
                drop(states);
                tracing::warn!(part = part.as_str(), cause, "Redis is degraded: {}", meanwhile(part));
                self.show();
            }
        }
    }

    fn mend(&self, part: RedisPart, after: impl Fn(&Failing) -> Duration) {
        let now = self.clock.steady();
        let mut states = self.states.lock().expect("no panic while held");
        let calm = |failing: &Failing| u128::from(now.saturating_sub(failing.last)) >= after(failing).as_millis();
        if states[part as usize].as_ref().is_some_and(calm) {
            states[part as usize] = None;
            self.failing[part as usize].store(false, Ordering::Relaxed);
            drop(states);
            tracing::info!(part = part.as_str(), "Redis is well again");
            self.show();
        }
    }

    /// Brings the metric up to date.
    pub(super) fn show(&self) {
        // Under the lock, so that who comes later knows more.
        let states = self.states.lock().expect("no panic while held");
        let away = self.topology.is_troubled();
        for part in RedisPart::ALL {
            let is_degraded = states[*part as usize].is_some() || (away && part.is_asked_by_requests());
            self.metrics.redis_degraded(*part, is_degraded);
        }
    }

    /// A line for each use.
    pub(super) fn lines(&self) -> Vec<String> {
        let now = self.clock.steady();
        let seconds = |since: SteadyMs| now.saturating_sub(since) / 1000;
        let states = self.states.lock().expect("no panic while held");
        let line = |part: &RedisPart| {
            let name = part.as_str();
            let mut causes = String::new();
            if part.is_asked_by_requests() {
                causes = self.topology.troubles();
            }
            if let Some(failing) = &states[*part as usize] {
                let separator = if causes.is_empty() { "" } else { "; " };
                let _ = write!(causes, "{separator}{} for {} s", failing.cause, seconds(failing.since));
            }
            match causes.is_empty() {
                true => format!("[+] redis {name}"),
                false => format!("[!] redis {name}: {causes}: {}", meanwhile(*part)),
            }
        };
        RedisPart::ALL.iter().map(line).collect()
    }
}

/// What is degraded while a use does not work, and what still holds.
fn meanwhile(part: RedisPart) -> &'static str {
    match part {
        RedisPart::Commands => {
            "requests do without it, with what memory has and limits as `redis_down` says; what was invalidated is served \
             for no longer than `max_staleness`"
        }
        RedisPart::Scripts => {
            "what is stored is read, if it can be; nothing new is stored there, limits go as `redis_down` says, and \
             invalidations hold in this pod until Redis takes them"
        }
        RedisPart::Bus => {
            "invalidations come with the next proof instead of at once; without one, nothing is trusted for longer than \
             `max_staleness`"
        }
        RedisPart::Stream => "what programs add to the stream is found with the next proof instead of at once",
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntGauge, Registry};

    use super::*;
    use crate::config::{Address, Servers};

    fn health() -> (Health, Clock) {
        let clock = Clock::fixed(1_000_000);
        let server = Servers::Standalone(Address::Tcp { host: "h".to_owned(), port: 1 });
        let topology = Topology::new(server, IntGauge::new("open", "test").unwrap(), clock.clone());
        (Health::new(Metrics::new(Registry::new()), Arc::new(topology), clock.clone()), clock)
    }

    fn refused(kind: &str) -> Fault {
        Fault::Refused(kind.to_owned())
    }

    #[test]
    fn what_is_refused_now_and_then_is_degraded_until_it_has_not_been_for_a_while() {
        let (health, clock) = health();
        let is_degraded =
            || health.lines()[RedisPart::Scripts as usize].starts_with("[!] redis scripts: Redis refused: OOM for ");
        health.answered(RedisPart::Scripts, "store", Some(&refused("OOM")));
        for _ in 0..3 {
            clock.advance(HEALED / 2);
            health.answered(RedisPart::Scripts, "store", None);
            assert!(is_degraded(), "{:?}", health.lines());
            health.answered(RedisPart::Scripts, "store", Some(&refused("OOM")));
        }
        clock.advance(HEALED);
        assert!(is_degraded(), "nothing has worked since");
        health.answered(RedisPart::Scripts, "proof", None);
        assert!(is_degraded(), "another script");
        health.answered(RedisPart::Scripts, "store", None);
        assert_eq!(health.lines()[RedisPart::Scripts as usize], "[+] redis scripts");
    }

    #[test]
    fn what_says_nothing_of_redis_as_a_whole_degrades_nothing() {
        let (health, _) = health();
        for fault in [refused("ERR"), refused("NOSCRIPT"), refused("TRYAGAIN"), Fault::Timeout, Fault::NotSent] {
            health.answered(RedisPart::Commands, "get", Some(&fault));
        }
        assert!(health.lines().iter().all(|line| line.starts_with("[+]")), "{:?}", health.lines());
    }

    #[test]
    fn a_server_that_is_kept_from_requests_degrades_what_they_ask() {
        let (health, _) = health();
        health.topology.map().masters()[0].node.breaker.refused("connection refused");
        health.tell(RedisPart::Bus, Err("cut".to_owned()));
        let lines = health.lines();
        assert!(
            lines[0].starts_with("[!] redis commands: h:1: connection refused: requests do without it"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("[!] redis scripts: h:1: connection refused: "), "{lines:?}");
        assert!(lines[2].starts_with("[!] redis bus: cut for 0 s: invalidations come"), "{lines:?}");
        assert_eq!(lines[3], "[+] redis stream");
        health.tell(RedisPart::Bus, Ok(()));
        assert_eq!(health.lines()[2], "[+] redis bus");
    }
}
