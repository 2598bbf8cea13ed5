//! Which uses of Redis work and which do not, for people: one line in the log when that changes, a metric, and a line in
//! `/readyz?verbose` that says what is degraded and what still holds.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::reply::Fault;
use super::topology::Topology;
use crate::clock::{Clock, SteadyMs};
use crate::metrics::{Metrics, RedisFault, RedisPart};

/// A use that failed now and then works again once the command that failed last has been answered, and it has not failed
/// for so long.
const HEALED: Duration = Duration::from_secs(2);

/// Or, if nobody asks for that command any more, for so long: more than between two of any of the commands that are sent
/// whether requests come or not.
const FORGOTTEN: Duration = Duration::from_secs(15);

/// Least time between two lines of a use that fails for one reason and then for another, where every reason counts.
const SAID_NEXT: Duration = Duration::from_secs(1);

/// Keys that are on their way to another server for longer than this are stuck. Shorter than that, it is no trouble.
const STUCK: Duration = Duration::from_secs(1);

/// How each use of Redis fares.
pub struct Health {
    metrics: Arc<Metrics>,
    topology: Arc<Topology>,
    clock: Clock,
    /// Whether a use has something in `states`, so that what works looks no further.
    failing: [AtomicBool; RedisPart::ALL.len()],
    states: Mutex<[Option<Failing>; RedisPart::ALL.len()]>,
    /// Since when keys are on their way to another server without a pause, and when that was last answered.
    moving: Mutex<Option<(SteadyMs, SteadyMs)>>,
}

/// Why a use does not work, since when, and when it failed last.
struct Failing {
    cause: String,
    since: SteadyMs,
    last: SteadyMs,
    /// What was said of it last, and when.
    said: (String, SteadyMs),
    /// The command, where there are several.
    command: &'static str,
}

impl Health {
    /// Of a Redis of which nothing is known to fail.
    pub(super) fn new(metrics: Arc<Metrics>, topology: Arc<Topology>, clock: Clock) -> Self {
        let (states, moving) = (Mutex::default(), Mutex::default());
        let health = Self { metrics, topology, clock, failing: Default::default(), states, moving };
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
                    if kind.is_refusal() || (kind == RedisFault::TryAgain && self.is_stuck()) {
                        self.fail(part, command, &fault.to_string());
                    }
                }
            }
        }
    }

    /// Whether a use that is looked after by one task works; the cause if not.
    pub fn tell(&self, part: RedisPart, outcome: Result<(), String>) {
        // Servers that are found and lost again in turn are not found.
        let calm = if part == RedisPart::Topology { HEALED } else { Duration::ZERO };
        match outcome {
            Ok(()) if self.failing[part as usize].load(Ordering::Relaxed) => self.mend(part, |_| calm),
            Ok(()) => {}
            Err(cause) => self.fail(part, "", &cause),
        }
    }

    /// Keys were found to be on their way to another server: whether they have been for long.
    fn is_stuck(&self) -> bool {
        let (now, limit) = (self.clock.steady(), STUCK.as_millis() as SteadyMs);
        let mut moving = self.moving.lock().expect("no panic while held");
        let since = moving.filter(|(_, last)| now.saturating_sub(*last) < limit).map_or(now, |(since, _)| since);
        *moving = Some((since, now));
        now.saturating_sub(since) >= limit
    }

    fn fail(&self, part: RedisPart, command: &'static str, cause: &str) {
        let now = self.clock.steady();
        let mut states = self.states.lock().expect("no panic while held");
        let is_new = match &mut states[part as usize] {
            Some(failing) => {
                // Who is asked where Redis is may be out of reach first, and then refuse: each has its remedy.
                let is_another = part == RedisPart::Topology && failing.said.0 != cause;
                let is_new = is_another && u128::from(now.saturating_sub(failing.said.1)) >= SAID_NEXT.as_millis();
                cause.clone_into(&mut failing.cause);
                (failing.last, failing.command) = (now, command);
                if is_new {
                    failing.said = (cause.to_owned(), now);
                }
                is_new
            }
            none => {
                let (cause, said) = (cause.to_owned(), (cause.to_owned(), now));
                *none = Some(Failing { cause, since: now, last: now, said, command });
                self.failing[part as usize].store(true, Ordering::Relaxed);
                true
            }
        };
        drop(states);
        if is_new {
            tracing::warn!(part = part.as_str(), cause, "Redis is degraded: {}", meanwhile(part));
            self.show();
        }
    }

    fn mend(&self, part: RedisPart, after: impl Fn(&Failing) -> Duration) {
        let now = self.clock.steady();
        let mut states = self.states.lock().expect("no panic while held");
        // What other servers answer says nothing of slots that none has.
        let is_whole = !part.is_asked_by_requests() || self.topology.map().uncovered() == 0;
        let calm =
            |failing: &Failing| is_whole && u128::from(now.saturating_sub(failing.last)) >= after(failing).as_millis();
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
            let copies = match part {
                RedisPart::Commands => self.topology.troubles_of_copies(),
                _ => String::new(),
            };
            match (causes.is_empty(), copies.is_empty()) {
                (true, true) => format!("[+] redis {name}"),
                (true, false) => format!("[+] redis {name}, but from its masters only: {copies}"),
                (false, _) => format!("[!] redis {name}: {causes}: {}", meanwhile(*part)),
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
        RedisPart::Topology => {
            "requests go on with the servers that are known, if there are any; a failover is not followed"
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntGauge, Registry};

    use super::*;
    use crate::config::{Address, Servers};
    use crate::kv::topology::Found;

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
    fn keys_that_stay_on_their_way_degrade_scripts_until_they_have_arrived() {
        let (health, clock) = health();
        let line = || health.lines().swap_remove(RedisPart::Scripts as usize);
        let moving = refused("TRYAGAIN");
        // Slots that are moved one after the other, with pauses.
        for pause in [STUCK / 2, STUCK, STUCK * 2, STUCK] {
            health.answered(RedisPart::Scripts, "store", Some(&moving));
            assert_eq!(line(), "[+] redis scripts");
            clock.advance(pause);
        }
        for _ in 0..3 {
            health.answered(RedisPart::Scripts, "store", Some(&moving));
            clock.advance(STUCK / 2);
        }
        assert!(line().starts_with("[!] redis scripts: Redis refused: TRYAGAIN for "), "{}", line());
        clock.advance(HEALED);
        health.answered(RedisPart::Scripts, "store", None);
        assert_eq!(line(), "[+] redis scripts");
    }

    #[test]
    fn slots_without_a_master_degrade_what_requests_ask_whatever_others_answer() {
        let (health, clock) = health();
        let server = Address::Tcp { host: "h".to_owned(), port: 1 };
        let with = |slots| Found { masters: vec![(server.clone(), Vec::new())], slots, ..Found::default() };
        let mut slots = vec![Some(0); 16_384];
        health.answered(RedisPart::Commands, "get", Some(&refused("CLUSTERDOWN (slot not served)")));
        slots[7] = None;
        health.topology.adopt(&with(slots.clone()));
        for _ in 0..3 {
            clock.advance(FORGOTTEN);
            health.answered(RedisPart::Commands, "get", None);
            let lines = health.lines();
            assert!(
                lines[0].starts_with("[!] redis commands: 1 of 16384 slots have no master; Redis refused: C"),
                "{lines:?}"
            );
            assert!(lines[1].starts_with("[!] redis scripts: 1 of 16384 slots have no master: what"), "{lines:?}");
        }
        slots[7] = Some(0);
        health.topology.adopt(&with(slots));
        health.answered(RedisPart::Commands, "get", None);
        assert!(health.lines().iter().all(|line| line.starts_with("[+]")), "{:?}", health.lines());
    }

    #[test]
    fn copies_that_are_kept_from_requests_are_named_and_degrade_nothing() {
        let (health, _) = health();
        let [master, copy] = ["h", "c"].map(|host| Address::Tcp { host: host.to_owned(), port: 1 });
        health.topology.adopt(&Found { masters: vec![(master, vec![copy])], ..Found::default() });
        health.topology.map().masters()[0].replicas[0].breaker.refused("connection refused");
        assert_eq!(health.lines()[0], "[+] redis commands, but from its masters only: c:1: connection refused");
    }

    #[test]
    fn servers_that_are_found_now_and_then_are_not_found() {
        let (health, clock) = health();
        let line = || health.lines().swap_remove(RedisPart::Topology as usize);
        health.tell(RedisPart::Topology, Err("s:2: connection refused".to_owned()));
        for _ in 0..3 {
            clock.advance(HEALED / 2);
            health.tell(RedisPart::Topology, Ok(()));
            assert!(line().starts_with("[!] redis topology: s:2: connection refused for "), "{}", line());
            health.tell(RedisPart::Topology, Err("s:2: connection refused".to_owned()));
        }
        clock.advance(HEALED);
        health.tell(RedisPart::Topology, Ok(()));
        assert_eq!(line(), "[+] redis topology");
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
