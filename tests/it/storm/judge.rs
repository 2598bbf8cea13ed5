//! What may not be, whatever happened to Redis: errors, waiting, old answers, and more than a limit admits.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::faults::Fault;
use super::machine::Machine;
use super::traffic::{Kind, LATE, Notes, Seen};
use super::{BOUND, BURST, DEADLINE, PODS, RATE, slack};
use crate::fleet::Micros;
use crate::fleet::check::{check, story};
use crate::harness::optimised;
use crate::limits_fleet::check::worst;

/// Within this the breaker has opened.
const OPENED: Duration = Duration::from_secs(1);

/// From the load's beginning on, so long until what is measured counts.
const WARM: Duration = Duration::from_secs(1);

/// What requests may cost more once the breaker is open.
const LITTLE: Duration = Duration::from_millis(5);

/// Most of what requests wait for in which Weir has no part that is taken for the machine's doing.
const MACHINE: Duration = Duration::from_millis(5);

/// Longest from repair to use.
const BACK: Duration = Duration::from_secs(2);

/// So long tokens may be spent that were lent.
const LENT: Duration = Duration::from_secs(2);

/// Of all requests at most so large a part may be sent late, or the load was not what it is to be..
const LATE_OF_ALL: f64 = 0.02;

/// ..and of those in a span, or in a second if that is longer.
const LATE_IN_A_SPAN: f64 = 0.1;

/// Requests of a second.
const OF_A_SECOND: u32 = 2000;

/// What doubles and two clocks that are held to one time may differ by, in requests.
const ROUNDING: f64 = 0.01;

/// One fault, and what came of it.
pub struct Event {
    /// Which.
    pub fault: Fault,
    /// Whether limits may be forgotten by it.
    pub forgets: bool,
    /// For how long some pods may have asked the old master while others asked its heir, and each gave what is due.
    pub split: Duration,
    /// Whether nobody waits for Redis, after a while.
    pub opens: bool,
    /// When it began, by the service's time.
    pub from: Micros,
    /// When it was over: Redis may answer again, and breakers be closed.
    pub undone: Micros,
    /// Since when Redis is well again.
    pub healed: Micros,
    /// From then until it is used.
    pub back: Duration,
    /// Since when nothing more is lost by it.
    pub settled: Micros,
}

/// What a run shows.
#[derive(Default)]
pub struct Verdict {
    /// What is wrong.
    pub wrong: Vec<String>,
    /// What nobody can say, of which event, and why: for too much of the time the processors were others'.
    pub unknown: BTreeMap<usize, Vec<String>>,
    /// What is to be said of all of it.
    pub told: String,
}

/// Judges a run that began at `start`.
pub fn judge(notes: &Notes, events: &[Event], start: Micros) -> Verdict {
    let mut verdict = Verdict::default();
    let Verdict { wrong, unknown, told } = &mut verdict;
    let findings = check(&notes.history, BOUND.as_micros() as Micros);
    let _ = writeln!(told, "  {} requests, {} errors; {findings}", notes.seen.len(), notes.history.faults.len());
    wrong.extend(findings.violations.iter().cloned());
    if let Some(read) = &findings.worst {
        wrong.push(story(&notes.history, read));
    }
    if findings.tempted == 0 {
        wrong.push("no read was tempted".to_owned());
    }
    limits(notes, events, wrong, told);
    let late = notes.seen.iter().filter(|seen| seen.late > LATE).count();
    let _ = writeln!(told, "  {late} sent more than {LATE:?} late");
    // What all are compared with.
    let before = (start + WARM.as_micros() as Micros, events.first().map_or(0, |event| event.from));
    let of_every_event = if optimised() && late as f64 > notes.seen.len() as f64 * LATE_OF_ALL {
        Some(format!("{late} of all requests were sent more than {LATE:?} late"))
    } else {
        machine_was_taken(notes, before).map(|taken| format!("before the first fault {}", taken.why))
    };
    let calm = |class| p99(&notes.seen, class, before);
    for (number, event) in events.iter().enumerate() {
        let mut whys = times(notes, event, &calm, wrong, told);
        whys.extend(of_every_event.iter().map(|why| format!("{:?}: {why}", event.fault)));
        if !whys.is_empty() {
            unknown.insert(number, whys);
        }
    }
    verdict
}

/// The processors were others' for so much of a span that nothing can be said of what was waited for in it.
struct Taken {
    /// For so long.
    time: Duration,
    /// How that was seen.
    why: String,
}

/// If so.
fn machine_was_taken(notes: &Notes, (from, to): (Micros, Micros)) -> Option<Taken> {
    let sent = notes.seen.iter().filter(|seen| seen.sent >= from && seen.sent < to);
    let (late, all) = sent.fold((0, 0), |(late, all), seen| (late + usize::from(seen.late > LATE), all + 1));
    let time = notes.machine.taken(from, to);
    if optimised() && late as f64 > f64::from(OF_A_SECOND.max(all)) * LATE_IN_A_SPAN {
        return Some(Taken { time, why: format!("{late} of {all} requests were sent more than {LATE:?} late") });
    }
    let whole = Duration::from_micros(to.saturating_sub(from));
    let is_taken = notes.machine.was_taken(from, to);
    is_taken.then(|| Taken { time, why: format!("there was no processor for {time:?} of {whole:?}") })
}

/// G3: a burst, and the rate; and a burst more for each time that Redis forgot, and the rate again while there are two masters.
/// Each span is judged by what was forgotten in it.
fn limits(notes: &Notes, events: &[Event], wrong: &mut Vec<String>, told: &mut String) {
    let lost: Vec<&Event> = events.iter().filter(|event| event.forgets).collect();
    // Who was lent tokens before a loss has them for a while behind it.
    let behind = |event: &&Event| event.settled + LENT.as_micros() as Micros;
    let begins: Vec<Micros> = std::iter::once(0).chain(lost.iter().map(behind)).collect();
    let ends: Vec<Micros> = lost.iter().map(|event| event.from).chain([Micros::MAX / 1000]).collect();
    let mut most = [0.0_f64; 2];
    for (kind, admitted) in &notes.admitted {
        // Where each pod has its part while Redis is away, a window has one burst more for each outage, or late answer.
        let has_parts = matches!(kind, Kind::Local(_));
        let who = usize::from(has_parts);
        for (first, begin) in begins.iter().enumerate() {
            for (last, end) in ends.iter().enumerate().skip(first) {
                // A burst more for each bucket that was evicted, and nobody knows how often one was.
                if lost[first..last].iter().any(|event| event.fault == Fault::Evicting) {
                    break;
                }
                let inside = admitted.iter().filter(|one| one.from >= begin * 1000 && one.to <= end * 1000);
                let away = |event: &&Event| event.from < *end && behind(event) > *begin;
                let outages = events.iter().filter(away).map(|event| event.fault.outages()).sum::<usize>();
                let bursts = if has_parts { (1 + outages).max(2) } else { 1 };
                let found = worst(&inside.copied().collect::<Vec<_>>(), f64::from(RATE));
                most[who] = most[who].max(found.above);
                let split: Duration = lost[first..last].iter().map(|event| event.split).sum();
                let of_both = f64::from(RATE) * split.as_secs_f64();
                let allowed = f64::from(BURST) * (bursts + last - first) as f64 + of_both + ROUNDING;
                if found.above > allowed {
                    let [from, to] = [found.from, found.to].map(|at| at as f64 / 1e9);
                    let above = found.above;
                    let by_pod = admitted_by_pod(&notes.seen, *kind, (found.from / 1000, found.to / 1000));
                    wrong.push(format!(
                        "{kind:?}: {above:.2} above its rate from {from:.3} to {to:.3} s, not {allowed}: {by_pod}"
                    ));
                }
            }
        }
    }
    let denied = notes.seen.iter().filter(|seen| seen.status == 429).count();
    if denied == 0 {
        wrong.push("nothing was denied".to_owned());
    }
    let [strict, local] = most;
    let _ = writeln!(told, "  {denied} denied; {strict:.2} and, with each pod's part, {local:.2} above the rate");
}

/// How many each pod admitted in each tenth of a second.
fn admitted_by_pod(seen: &[Seen], kind: Kind, (from, to): (Micros, Micros)) -> String {
    const TENTH: Micros = 100_000;
    let admitted = seen.iter().filter(|seen| seen.kind == kind && seen.status == 200);
    let mut counts = vec![vec![0; to.saturating_sub(from).div_ceil(TENTH) as usize]; PODS];
    for seen in admitted.filter(|seen| seen.sent >= from && seen.sent < to) {
        counts[seen.pod][((seen.sent - from) / TENTH) as usize] += 1;
    }
    format!("by pod and tenth of a second {counts:?}")
}

/// No request waits for longer than the deadline at first, and hardly at all later on. What the service takes for its answer is
/// not counted. Says what cannot be judged.
fn times(
    notes: &Notes,
    event: &Event,
    calm: &impl Fn(Class) -> Duration,
    wrong: &mut Vec<String>,
    told: &mut String,
) -> Vec<String> {
    let mut unknown = Vec::new();
    let Event { fault, opens, from, undone, healed, back, .. } = event;
    let [from_s, to_s] = [*from, *healed].map(|at| at as f64 / 1e6);
    let _ = writeln!(told, "  {fault:?} from {from_s:.2} to {to_s:.2} s, used again {back:?} later");
    let opened = from + OPENED.as_micros() as Micros;
    let end = opened.max(healed + back.as_micros() as Micros);
    // Who is sent from then on may find the breaker closed, and have to wait again.
    let closed = if *opens { opened.max(undone - DEADLINE.as_micros() as Micros) } else { end };
    let spans = [(*from, opened), (opened, closed), (closed, end)];
    let in_spans = |class| spans.map(|span| p99(&notes.seen, class, span));
    let as_clients = |class| {
        spans.map(|span| percentile(sent(&notes.seen, class, span).map(|seen| seen.took.saturating_sub(seen.served()))))
    };
    // What goes past the pods waits for the machine alone.
    let machine = in_spans(Class::Direct).map(|time| time.saturating_sub(calm(Class::Direct)).min(MACHINE));
    let (still, stolen) = (notes.machine.still(*from, end), notes.machine.stolen(*from, end));
    let starved: Vec<_> = (0..PODS).map(|pod| notes.machine.starved(pod, *from, end)).collect();
    let _ = writeln!(
        told,
        "    the machine's own: {machine:?}; it stood still for {still:?}; its host took a processor for {stolen:?}; pods \
         waited for one for {starved:?}"
    );
    for class in CLASSES {
        let (calm, [first, later, back], with) = (calm(class), in_spans(class), as_clients(class));
        let _ = writeln!(
            told,
            "    p99 of {class:?}: {calm:?} before, {first:?} at first, {later:?} later, {back:?} on return; with what the \
             machine held up {with:?}"
        );
        let afterwards = if *opens { Duration::ZERO } else { DEADLINE };
        let judged = [(first, DEADLINE), (later, afterwards), (back, DEADLINE)];
        let judged = judged.into_iter().zip(with).zip(machine).zip(spans).zip(SPANS);
        for (((((time, most), as_client), machine), span), what) in judged {
            let allowed = calm + most + LITTLE + machine + slack();
            if time.max(as_client) <= allowed {
                continue;
            }
            let finding = format!("{fault:?}: the p99 of {class:?} was {time:?} {what}, and {calm:?} before");
            let taken = machine_was_taken(notes, span);
            // What is longer than that, too, is not the machine's doing.
            if let Some(Taken { why, .. }) = taken.filter(|taken| time <= allowed + taken.time) {
                unknown.push(format!("{finding}; with what the machine held up {as_client:?}: {why}"));
            } else if time > allowed {
                wrong.push(format!("{finding}: {}", slow(&notes.seen, class, span, allowed)));
            }
        }
    }
    if *back > BACK + if optimised() { Duration::ZERO } else { BACK } {
        let finding = format!("{fault:?}: Redis was used again only after {back:?}");
        match machine_was_taken(notes, (*healed, end)).filter(|taken| *back <= BACK + taken.time) {
            Some(Taken { why, .. }) => unknown.push(format!("{finding}: {why}")),
            None => wrong.push(finding),
        }
    }
    unknown
}

/// The spans of a fault: until the breaker is sure to be open, until Redis may answer again, and until it is used.
const SPANS: [&str; 3] = ["at first", "later", "on return"];

/// Requests that may wait alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Hits and denials.
    Quick,
    /// What is fetched.
    Misses,
    /// What is not answered before it is logged, or has waited for that.
    Writes,
    /// What Weir has no part in.
    Direct,
}

const CLASSES: [Class; 3] = [Class::Quick, Class::Misses, Class::Writes];

/// Those of a class that were sent between the two.
fn sent(seen: &[Seen], class: Class, (from, to): (Micros, Micros)) -> impl Iterator<Item = &Seen> {
    let counts = move |seen: &&Seen| match seen.kind {
        Kind::Order(_) => false,
        Kind::Write(_) => class == Class::Writes,
        Kind::Direct => class == Class::Direct,
        _ if seen.is_hit || seen.status == 429 => class == Class::Quick,
        _ => class == Class::Misses,
    };
    seen.iter().filter(counts).filter(move |seen| seen.sent >= from && seen.sent < to)
}

/// Which of them took longer than that: how many, when, of which pods, and how late they were sent.
fn slow(seen: &[Seen], class: Class, span: (Micros, Micros), than: Duration) -> String {
    let slow: Vec<&Seen> = sent(seen, class, span).filter(|seen| seen.of_weir() > than).collect();
    let (Some(first), Some(last)) = (slow.first(), slow.last()) else { return "none".to_owned() };
    let [first, last] = [first, last].map(|seen| seen.sent as f64 / 1e6);
    let by_pod: Vec<_> = (0..PODS).map(|pod| slow.iter().filter(|seen| seen.pod == pod).count()).collect();
    let late = slow.iter().map(|seen| seen.late).max().unwrap_or_default();
    let most = slow.iter().map(|seen| seen.of_weir()).max().unwrap_or_default();
    let past = sent(seen, Class::Direct, span).map(|seen| seen.took).max().unwrap_or_default();
    let mut stories = BTreeMap::<_, usize>::new();
    for seen in &slow {
        let is_own = matches!(seen.kind, Kind::Miss(_));
        *stories.entry((if is_own { "own" } else { "shared" }, &*seen.story)).or_default() += 1;
    }
    format!(
        "by pod {by_pod:?} took more than {than:?}, up to {most:?}, sent from {first:.3} to {last:.3} s, up to {late:?} \
         late; past the pods {past:?} at most; {stories:?}"
    )
}

/// Of those sent between the two, without what the machine held them up.
fn p99(seen: &[Seen], class: Class, span: (Micros, Micros)) -> Duration {
    percentile(sent(seen, class, span).map(Seen::of_weir))
}

/// The 99th of a hundred.
fn percentile(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    // Of few, all but one.
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * 0.99) as usize).copied().unwrap_or_default()
}

/// Hits at the storm's rate for six seconds, from the third on under a fault, that wait as `waits` says and are held up by `machine`.
/// Says what is wrong, and what is to be done again.
fn judged(waits: impl Fn(Micros) -> Duration, machine: Machine) -> (Vec<String>, Vec<String>) {
    const SECOND: Micros = 1_000_000;
    let hit = |i: u32| {
        let sent = Micros::from(i) * SECOND / Micros::from(OF_A_SECOND);
        let (took, pod) = (waits(sent), i as usize % PODS);
        let held_up = machine.held_up(sent, sent + took.as_micros() as Micros, Some(pod));
        let (kind, late, story) = (Kind::Hit(0), Duration::ZERO, String::new());
        Seen { kind, sent, late, took, served: (sent, sent), held_up, pod, status: 200, is_hit: true, story }
    };
    let seen = (0..6 * OF_A_SECOND).map(hit).collect();
    let notes = Notes { seen, machine, ..Notes::default() };
    let (back, split) = (Duration::from_millis(100), Duration::ZERO);
    let (undone, healed, settled) = (5 * SECOND, 5 * SECOND, 6 * SECOND);
    let event = Event {
        fault: Fault::Frozen,
        forgets: false,
        split,
        opens: true,
        from: 2 * SECOND,
        undone,
        healed,
        back,
        settled,
    };
    let (mut wrong, mut told) = (Vec::new(), String::new());
    let unknown = times(&notes, &event, &|_| Duration::from_millis(1), &mut wrong, &mut told);
    (wrong, unknown)
}

#[test]
fn who_waits_longer_than_allowed_is_found_and_only_what_the_machine_accounts_for_is_excused() {
    let ms = Duration::from_millis;
    let (opened, longer) = (3_000_000, ms(1) + LITTLE + slack() + ms(1));
    let before_it_opens = |most: Duration| move |at| if at < opened { most } else { ms(1) };
    let later = |share: u64, most: Duration| move |at| if at > opened && at / 500 % 100 < share { most } else { ms(1) };
    let none = (Vec::new(), Vec::new());
    assert_eq!(judged(before_it_opens(ms(5) + DEADLINE), Machine::default()), none);
    assert_eq!(judged(before_it_opens(longer + DEADLINE), Machine::default()).0.len(), 1, "longer than the deadline");
    assert_eq!(judged(later(1, longer), Machine::default()), none, "one of a hundred may wait");
    assert_eq!(judged(later(2, longer), Machine::default()).0.len(), 1, "two may not");
    // It stood still for a tenth of a second, and for half of the time from when the breaker is open.
    let (little, much) = (vec![(3_500_000, 3_600_000)], vec![(3_500_000, 4_500_000)]);
    let (wrong, unknown) = judged(later(2, longer), Machine::stood_still(little));
    assert_eq!((wrong.len(), unknown.len()), (1, 0), "most of them waited at other times");
    let (wrong, unknown) = judged(later(2, longer), Machine::stood_still(much.clone()));
    assert_eq!((wrong.len(), unknown.len()), (0, 1), "nobody can say");
    let (wrong, unknown) = judged(later(2, longer + ms(2000)), Machine::stood_still(much));
    assert_eq!((wrong.is_empty(), unknown.len()), (false, 0), "longer than the machine accounts for");
}
