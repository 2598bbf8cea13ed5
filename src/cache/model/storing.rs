//! RFC 9111: what may be stored (section 3), for how long it is fresh (4.2), and when it may be used (4.2.4, 5.2; RFC
//! 5861).

use super::text::{Argument, date, directives, lines, seconds};
use super::{Choice, Fields, History, Said};

/// What a stored answer may be used for, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// As it is.
    Fresh,
    /// As it is, while it is refreshed.
    WhileRevalidated,
    /// If the upstream fails.
    IfError,
    /// After confirmation only.
    Confirmed,
}

/// What Weir is to keep of an answer; times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) age: u64,
    pub(super) lifetime: u64,
    pub(super) while_revalidated: u64,
    pub(super) if_error: u64,
    /// Nobody but the service may let it be used stale.
    pub(super) is_strict: bool,
    pub(super) is_always_confirmed: bool,
    pub(super) is_by_rule: bool,
}

/// What a request wants, where that is honoured.
#[derive(Debug, Clone)]
pub(super) struct Wanted(Vec<(String, Argument)>);

impl Wanted {
    pub(super) fn by(request: &Fields) -> Self {
        Self(directives(&lines(request, "cache-control")))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(own, _)| own == name)
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &Argument> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, argument)| argument)
    }

    /// In milliseconds; what cannot be read is `unreadable`.
    fn least(&self, name: &str, absent: u64, unreadable: u64) -> Option<u64> {
        let read = self.all(name).map(|argument| match argument {
            Argument::Seconds(seconds) => seconds * 1000,
            Argument::Absent => absent,
            Argument::Not | Argument::Other => unreadable,
        });
        read.min()
    }
}

fn has(fields: &Fields, name: &str) -> bool {
    !lines(fields, name).is_empty()
}

/// The date of a field that has one line and can be read.
fn only_date(fields: &Fields, name: &str) -> Option<u64> {
    match lines(fields, name)[..] {
        [only] => date(only),
        _ => None,
    }
}

// What the RFC permits at most.

/// Section 3, one condition after the other; section 3.5 for the last but one.
pub(super) fn may_be_stored(history: &History) -> bool {
    let said = Said::by(&history.answer);
    let is_method_understood = history.method == "GET";
    let is_final = history.status >= 200;
    let needs_understanding = matches!(history.status, 206 | 304) || said.has("must-understand");
    let is_understood = !needs_understanding || understands(history.status);
    // Section 5.2.2.3: who understands the status ignores the no-store beside it.
    let is_not_forbidden = !said.has("no-store") || said.has("must-understand");
    // Section 5.2.2.7: where it names fields, the rest may be stored.
    let is_not_private = !said.has_plain("private");
    let is_guarded = has(&history.request, "authorization")
        && !history.route.shares_credentials
        && !history.route.keys_authorization;
    let is_released = said.has("must-revalidate") || said.has("public") || said.names("s-maxage");
    let says_so = said.has("public")
        || !lines(&history.answer, "expires").is_empty() && !said.is_targeted
        || said.names("max-age")
        || said.names("s-maxage")
        || is_heuristic(history.status);
    is_method_understood
        && is_final
        && is_understood
        && is_not_forbidden
        && is_not_private
        && (!is_guarded || is_released)
        && says_so
}

/// RFC 9110 section 15, but for what is reserved, deprecated, or no answer (304); RFC 6585 and 7725.
fn understands(status: u16) -> bool {
    matches!(status, 200..=206 | 300..=303 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505)
}

/// RFC 9110 section 15.1.
fn is_heuristic(status: u16) -> bool {
    [200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501].contains(&status)
}

/// Section 4.2.1, from the first that is there; section 4.2.2 has no bound.
fn lifetime_at_most(history: &History) -> u64 {
    let said = Said::by(&history.answer);
    if let Some(seconds) = said.first("s-maxage").or_else(|| said.first("max-age")) {
        return seconds * 1000;
    }
    let expires = lines(&history.answer, "expires");
    if let Some(first) = expires.first().filter(|_| !said.is_targeted) {
        // Section 5.3: what is no date has passed.
        let date = only_date(&history.answer, "date").unwrap_or(history.received_at);
        return super::text::date(first).map_or(0, |expires| expires.saturating_sub(date));
    }
    if is_heuristic(history.status) || said.has("public") { u64::MAX } else { 0 }
}

/// Section 4.2.3, with the value of `Age` as section 5.1 has it.
fn age_at_least(history: &History) -> u64 {
    let ages = lines(&history.answer, "age").join(",");
    let age_value = seconds(ages.split(',').next().unwrap_or_default().trim()).unwrap_or(0) * 1000;
    corrected_initial_age(history, age_value)
}

fn corrected_initial_age(history: &History, age_value: u64) -> u64 {
    // A Date has whole seconds, and so has the time that it is held against.
    let response_time = history.received_at / 1000 * 1000;
    let apparent_age = only_date(&history.answer, "date").map_or(0, |date| response_time.saturating_sub(date));
    let response_delay = history.received_at - history.asked_at;
    let corrected_age_value = age_value + response_delay;
    apparent_age.max(corrected_age_value)
}

/// The best that an answer may be used for when it is `elapsed` old here (sections 4.2 and 4.2.4, RFC 5861).
pub(super) fn use_at_most(history: &History, elapsed: u64, wanted: Option<&Wanted>) -> Use {
    let said = Said::by(&history.answer);
    let route = &history.route;
    if said.has_plain("no-cache") && !route.ignores_lifetimes {
        return Use::Confirmed;
    }
    let (age, lifetime) = (age_at_least(history) + elapsed, lifetime_at_most(history));
    // Choice::OperatorsWord.
    if lifetime > age || route.ignores_lifetimes {
        return Use::Fresh;
    }
    let stale = age - lifetime;
    let own = |name| said.first(name).is_some_and(|seconds| stale < seconds * 1000);
    let is_forbidden = said.has("must-revalidate") || said.has("proxy-revalidate");
    let is_s_maxage = said.names("s-maxage");
    if !is_forbidden && own("stale-while-revalidate") {
        // Choice::StaleBesideSMaxage.
        return Use::WhileRevalidated;
    }
    let accepted = wanted.is_some_and(|wanted| wanted.has("max-stale"));
    let told = stale < route.stale_while_revalidate * 1000 && said.first("stale-while-revalidate").is_none();
    if !is_forbidden && !is_s_maxage && (accepted || told) {
        return Use::WhileRevalidated;
    }
    if !is_forbidden && own("stale-if-error") {
        return Use::IfError;
    }
    let accepted = wanted.is_some_and(|wanted| wanted.has("stale-if-error"));
    let told = stale < route.stale_if_error * 1000 && said.first("stale-if-error").is_none();
    if !is_forbidden && !is_s_maxage && (accepted || told) { Use::IfError } else { Use::Confirmed }
}

/// What may make Weir stricter with a stored answer than section 4 would have it, or laxer.
pub(super) fn choices(history: &History, wanted: Option<&Wanted>) -> Vec<Choice> {
    let (said, route) = (Said::by(&history.answer), &history.route);
    let repeats = |name: &str| lines(&history.answer, name).len() > 1;
    let is_explicit = said.names("s-maxage") || said.names("max-age") || has(&history.answer, "expires");
    let own_stale = said.names("stale-while-revalidate") || said.names("stale-if-error");
    let guarded = has(&history.request, "authorization");
    let operators = route.ignores_lifetimes
        || guarded && (route.keys_authorization || route.shares_credentials)
        || route.ttl.is_some();
    let all = [
        (said.directives.iter().any(|(name, _)| said.seconds(name).len() > 1), Choice::LeastOfSeveral),
        (["expires", "date", "last-modified"].into_iter().any(repeats), Choice::OneLine),
        (age(history) > age_at_least(history), Choice::AgeIsOneNumber),
        (!is_explicit || said.is_targeted, Choice::GuessesAreShort),
        (said.has("no-cache") && !said.has_plain("no-cache"), Choice::NamedFieldsMeanAll),
        (said.names("s-maxage") && own_stale, Choice::StaleBesideSMaxage),
        (operators, Choice::OperatorsWord),
        (wanted.is_some_and(|wanted| !wanted.0.is_empty()), Choice::ClientsWord),
    ];
    all.into_iter().filter(|(applies, _)| *applies).map(|(_, choice)| choice).collect()
}

// What Weir does.

/// What is kept of an answer, or what it is refused for; nothing where the RFC itself forbids it.
pub(super) fn kept(history: &History) -> Result<Kept, Option<Choice>> {
    if !may_be_stored(history) {
        return Err(None);
    }
    let (said, route) = (Said::by(&history.answer), &history.route);
    let carries = |name| has(&history.request, name) && !route.shares_credentials;
    let has_credentials =
        carries("cookie") || carries("x-api-key") || carries("authorization") && !route.keys_authorization;
    let is_clients_own =
        [304, 400, 401, 407, 408, 412, 413, 414, 416, 417, 421, 425, 426, 431].contains(&history.status);
    let refused = [
        (history.status == 206, Choice::NoParts),
        (is_clients_own, Choice::ClientsOwnStatus),
        (said.has("private"), Choice::NamedFieldsMeanAll),
        (has(&history.answer, "set-cookie") && !route.stores_cookies, Choice::NoCookies),
        (!vary_makes_a_key(&history.answer), Choice::VaryMakesAKey),
    ];
    if let Some((_, choice)) = refused.into_iter().find(|(is_so, _)| *is_so) {
        return Err(Some(choice));
    }
    let age = age(history);
    let (lifetime, is_by_rule) = lifetime(history, age).ok_or(Some(Choice::NothingGained))?;
    if is_by_rule && has_credentials {
        return Err(Some(Choice::Credentials));
    }

    let respected = !route.ignores_lifetimes;
    let is_always_confirmed = respected && said.has("no-cache");
    let is_forbidden = said.has("must-revalidate") || said.has("proxy-revalidate");
    let is_strict = is_forbidden || respected && said.names("s-maxage");
    let window = |name, told: u64| match said.least(name).filter(|_| respected) {
        _ if is_forbidden || is_always_confirmed => 0,
        Some(own) => own * 1000,
        None if is_strict => 0,
        None => told * 1000,
    };
    let kept = Kept {
        age,
        lifetime,
        while_revalidated: window("stale-while-revalidate", route.stale_while_revalidate),
        if_error: window("stale-if-error", route.stale_if_error),
        is_strict,
        is_always_confirmed,
        is_by_rule,
    };

    let is_fresh = kept.lifetime > age && !is_always_confirmed;
    if !is_fresh && has_credentials {
        return Err(Some(Choice::Credentials));
    }
    let is_usable_stale = [kept.while_revalidated, kept.if_error].iter().any(|window| kept.lifetime + window > age);
    let has_validator = has(&history.answer, "etag") || only_date(&history.answer, "last-modified").is_some();
    let is_gain = is_fresh || has_validator || is_usable_stale && !is_always_confirmed;
    if is_gain { Ok(kept) } else { Err(Some(Choice::NothingGained)) }
}

fn vary_makes_a_key(answer: &Fields) -> bool {
    let mut names: Vec<String> = Vec::new();
    for member in lines(answer, "vary").join(",").split(',') {
        let member = member.trim().to_ascii_lowercase();
        let is_token = member.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c));
        if member == "*" || !is_token || member == "forwarded" || member == "x-forwarded-for" {
            return false;
        }
        if !member.is_empty() && !names.contains(&member) {
            names.push(member);
        }
    }
    names.len() <= 16
}

/// [`Choice::AgeIsOneNumber`].
fn age(history: &History) -> u64 {
    let age_value = match lines(&history.answer, "age")[..] {
        [] => 0,
        [only] => seconds(only.trim()).unwrap_or(1 << 31) * 1000,
        _ => (1 << 31) * 1000,
    };
    corrected_initial_age(history, age_value)
}

/// The lifetime, and whether it is the route's or a guess. [`Choice::LeastOfSeveral`], [`Choice::OneLine`],
/// [`Choice::GuessesAreShort`].
fn lifetime(history: &History, age: u64) -> Option<(u64, bool)> {
    let (said, route) = (Said::by(&history.answer), &history.route);
    let respected = !route.ignores_lifetimes;
    let sent_at = only_date(&history.answer, "date").unwrap_or(history.received_at);
    if respected {
        if let Some(seconds) = said.least("s-maxage").or_else(|| said.least("max-age")) {
            return Some((seconds * 1000, false));
        }
        if has(&history.answer, "expires") && !said.is_targeted {
            let expires = only_date(&history.answer, "expires").unwrap_or(0);
            return Some((expires.saturating_sub(sent_at), false));
        }
        if said.has("no-cache") {
            return Some((0, false));
        }
    }
    if let Some(ttl) = route.ttl.filter(|_| [200, 203, 204, 300, 301, 308].contains(&history.status)) {
        // Counted from the receipt.
        return Some((ttl * 1000 + age, true));
    }
    if respected && (is_heuristic(history.status) || said.has("public")) {
        let modified = only_date(&history.answer, "last-modified")?;
        let guess = (sent_at.saturating_sub(modified) / 10).min(24 * 60 * 60 * 1000);
        return (guess > 0).then_some((guess, true));
    }
    None
}

/// What Weir uses it for, and at what age.
pub(super) fn used(kept: &Kept, elapsed: u64, wanted: Option<&Wanted>) -> (Use, u64) {
    let age = kept.age + elapsed;
    let nothing = Wanted(Vec::new());
    let wanted = wanted.unwrap_or(&nothing);
    (judged(kept, age, wanted), age)
}

fn judged(kept: &Kept, age: u64, wanted: &Wanted) -> Use {
    if kept.is_always_confirmed || wanted.has("no-cache") {
        return Use::Confirmed;
    }
    let left = kept.lifetime.saturating_sub(age);
    let stale = age.saturating_sub(kept.lifetime);
    // Section 5.2.1.1.
    let is_too_old = wanted.least("max-age", 0, 0).is_some_and(|most| age > most);
    // Section 5.2.1.3; who wants what cannot be read wants more than there is.
    let all = (1 << 31) * 1000;
    let is_too_near = wanted.all("min-fresh").any(|argument| match argument {
        Argument::Seconds(seconds) => left < seconds * 1000,
        _ => left < all,
    });
    if left > 0 && !is_too_old && !is_too_near {
        return Use::Fresh;
    }
    // Section 5.2.1.2.
    let is_accepted = !kept.is_strict && wanted.least("max-stale", u64::MAX, 0).is_some_and(|most| stale <= most);
    if !is_too_old && !is_too_near && (is_accepted || stale < kept.while_revalidated) {
        return Use::WhileRevalidated;
    }
    // RFC 5861 section 4: the request's own, too.
    let asked = if kept.is_strict { 0 } else { wanted.least("stale-if-error", 0, 0).unwrap_or(0) };
    if stale < kept.if_error.max(asked) { Use::IfError } else { Use::Confirmed }
}
