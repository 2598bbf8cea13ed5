//! Random histories, in which Weir does what the model says it does, and never more than the RFCs permit.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use proptest::prelude::*;

use super::serving::{self, Reply, Stored};
use super::storing::{self, Kept, Use, Wanted};
use super::text::{lines, spell};
use super::{Choice, Fields, History, Route};
use crate::cache::conditional::{self, By};
use crate::cache::directives::RequestDirectives;
use crate::cache::entry::{Entry, Origin};
use crate::cache::freshness::{Freshness, State, http_date, http_date_ms};
use crate::cache::policy::{self, Bypass, Plan, Received, RequestFacts, Source};
use crate::cache::ranges::{self, Selection};
use crate::config::{CacheRule, Cookies, Credentials, UpstreamTtl};
use crate::invalidation::Position;

const NOW: u64 = 1_700_000_000_000;

/// How many histories: as many as `PROPTEST_CASES` says, if that is more.
fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.max(8192), ..usual }
}

/// Bytes to draw from, so that fewer and smaller ones make a simpler history.
struct Tape<'a>(std::slice::Iter<'a, u8>);

impl Tape<'_> {
    fn pick(&mut self, below: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % below
    }

    fn is(&mut self, one_in: usize) -> bool {
        self.pick(one_in) == one_in - 1
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.pick(of.len())]
    }

    fn route(&mut self) -> Route {
        Route {
            ttl: self.one(&[None, None, None, Some(60)]),
            ignores_lifetimes: self.is(8),
            stale_while_revalidate: self.one(&[0, 0, 0, 30]),
            stale_if_error: self.one(&[0, 0, 0, 600]),
            stores_cookies: self.is(8),
            shares_credentials: self.is(8),
            keys_authorization: self.is(8),
        }
    }

    fn history(&mut self) -> History {
        let received_at = NOW + self.one(&[0, 0, 500, 999]);
        History {
            route: self.route(),
            method: if self.is(16) { "HEAD" } else { "GET" },
            request: self.credentials(),
            status: self.status(),
            answer: self.answer(),
            asked_at: received_at - self.one(&[0, 0, 1, 500, 3000]),
            received_at,
        }
    }

    fn status(&mut self) -> u16 {
        const STATUSES: [u16; 40] = [
            201, 202, 203, 204, 205, 206, 207, 299, 300, 301, 302, 303, 304, 305, 307, 308, 400, 401, 402, 403, 404,
            405, 407, 408, 410, 412, 414, 416, 418, 422, 426, 429, 431, 451, 500, 501, 502, 503, 511, 599,
        ];
        if self.is(2) { self.one(&STATUSES) } else { 200 }
    }

    fn credentials(&mut self) -> Fields {
        let fields = [("authorization", "Bearer x"), ("cookie", "a=1"), ("x-api-key", "k"), ("pragma", "no-cache")];
        let fields = fields.into_iter().filter(|_| self.is(8)).collect::<Vec<_>>();
        fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn answer(&mut self) -> Fields {
        (0..self.pick(7)).map(|_| self.answer_field()).collect()
    }

    fn answer_field(&mut self) -> (String, String) {
        let (name, value) = match self.pick(22) {
            0..=6 => ("cache-control", self.cache_control()),
            7 => ("expires", self.date()),
            8 | 9 => ("date", self.date()),
            10 | 11 => ("last-modified", self.date()),
            12 | 13 => ("etag", self.entity_tag()),
            14 | 15 => ("age", self.number()),
            16 => {
                let many = (0..17).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
                let names = ["", "accept", "Accept, X-A ,accept", "*", "x-a, *", "a b", "Forwarded", &many];
                ("vary", self.one(&names).to_owned())
            }
            17 => ("set-cookie", "a=1".to_owned()),
            18 => ("pragma", "no-cache".to_owned()),
            19 => ("weir-cache-control", self.dictionary()),
            20 => ("cdn-cache-control", self.dictionary()),
            _ => ("x-a", self.number()),
        };
        (name.to_owned(), value)
    }

    /// A number of seconds in many spellings, wrong ones among them.
    fn number(&mut self) -> String {
        const SPELT: [&str; 26] = [
            "60",
            "0",
            "1",
            "5",
            "7",
            "30",
            "59",
            "61",
            "600",
            "007",
            "86400",
            "2147483647",
            "2147483648",
            "2147483649",
            "99999999999999999999",
            "-1",
            "+5",
            "5.0",
            "1.5",
            "5s",
            "x",
            "",
            "5, 60",
            "60, 5",
            "0x5",
            "5;a=1",
        ];
        self.one(&SPELT).to_owned()
    }

    fn date(&mut self) -> String {
        const AWAY_S: [i64; 15] =
            [0, -1, 1, -5, 5, -60, 60, -600, 600, -86_400, 86_400, -864_000, -3_456_000, 946_684_800, -946_684_800];
        let at = (NOW as i64 + self.one(&AWAY_S) * 1000) as u64;
        let form = self.one(&[0, 0, 0, 1, 2]);
        let date = spell(at, form);
        match self.pick(16) {
            12 => self.one(&["0", "-1", "", "yesterday", "1700000000"]).to_owned(),
            13 => date.to_lowercase(),
            14 => date.replace("GMT", "UTC"),
            15 => self.one(&["Sun, 31 Feb 2027 00:00:00 GMT", "Mon, 06 Nov 1994 08:49:37 GMT"]).to_owned(),
            _ => date,
        }
    }

    fn entity_tag(&mut self) -> String {
        self.one(&["\"a\"", "W/\"a\"", "\"b\"", "\"\"", "\"a,b\"", "W/\"b\"", "a"]).to_owned()
    }

    /// Directives of answers and requests, in all the ways that they are met with.
    fn cache_control(&mut self) -> String {
        let mut value = String::new();
        for _ in 0..=self.pick(4) {
            if !value.is_empty() {
                value.push_str(self.one(&[", ", ", ", ",", " , ", ",,", " ", "\t", ",\t"]));
            }
            value.push_str(&self.directive());
        }
        value
    }

    fn directive(&mut self) -> String {
        let mut directive = match self.pick(3) {
            0 => self.one(&["max-age", "max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"]).to_owned(),
            1 => self.one(&["max-stale", "min-fresh", "max-age", "s-maxage", "stale-if-error"]).to_owned(),
            _ => {
                const FLAGS: [&str; 14] = [
                    "public",
                    "no-cache",
                    "must-revalidate",
                    "proxy-revalidate",
                    "must-understand",
                    "no-store",
                    "private",
                    "immutable",
                    "no-transform",
                    "only-if-cached",
                    "x-unknown",
                    "no-stored",
                    "private=\"a, b\"",
                    "no-cache=\"set-cookie\"",
                ];
                let flag = self.one(&FLAGS);
                return if self.is(8) { flag.to_uppercase() } else { flag.to_owned() };
            }
        };
        if self.is(8) {
            directive = directive.to_uppercase();
        }
        let number = self.number();
        match self.pick(16) {
            11 => directive,
            12 => format!("{directive}='{number}'"),
            13 => format!("{directive} = {number}"),
            14 => format!("{directive}=\"{number}"),
            15 => format!("{directive}=\"{number}\"x"),
            8..=10 => format!("{directive}=\"{number}\""),
            _ => format!("{directive}={number}"),
        }
    }

    /// What RFC 9213 has for a value, and what it does not.
    fn dictionary(&mut self) -> String {
        const MEMBERS: [&str; 22] = [
            "max-age=60",
            "max-age=5",
            "max-age=0",
            "max-age=-5",
            "max-age=\"5\"",
            "max-age=5.5",
            "max-age",
            "max-age=?0",
            "s-maxage=7",
            "no-store",
            "no-store=?0",
            "private",
            "private;a=1",
            "no-cache",
            "must-revalidate=5",
            "public",
            "stale-while-revalidate=30;a",
            "stale-if-error=60",
            "must-understand",
            "x=token/a:b",
            "max-age=999999999999999",
            "*x=?1",
        ];
        const FAULTS: [&str; 6] = ["Max-Age=5", "max-age = 5", "max-age=", "=5", "", "max-age=1234567890123456"];
        let members: Vec<&str> =
            (0..=self.pick(3)).map(|_| if self.is(16) { self.one(&FAULTS) } else { self.one(&MEMBERS) }).collect();
        members.join(self.one(&[", ", ",", " ,\t"]))
    }

    /// A moment near those at which something changes.
    fn elapsed(&mut self, kept: &Kept) -> u64 {
        let (ends, stale_for) = (kept.lifetime, self.one(&[kept.while_revalidated, kept.if_error, 5000, 60_000]));
        let age = self.one(&[0, 5000, 60_000, ends, ends, ends + stale_for, ends + stale_for]);
        age.saturating_add_signed(self.one(&[0, -1, 1, -1000, 1000, 86_400_000])).saturating_sub(kept.age)
    }

    fn conditional(&mut self, stored: &Fields) -> Fields {
        let count = self.pick(4);
        let mut fields = Fields::new();
        let own = |name| lines(stored, name).first().map(|value| (*value).to_owned());
        let (own_tag, own_date) = (own("etag"), own("last-modified"));
        for _ in 0..count {
            let (name, value) = match self.pick(5) {
                0 => {
                    let date = self.date();
                    ("if-modified-since", own_date.clone().filter(|_| self.is(3)).unwrap_or(date))
                }
                1 => {
                    let condition = if self.is(2) { self.date() } else { self.entity_tag() };
                    let own = if self.is(2) { own_date.clone() } else { own_tag.clone() };
                    ("if-range", own.filter(|_| !self.is(3)).unwrap_or(condition))
                }
                2 => {
                    let tags = (0..=self.pick(3)).map(|_| self.entity_tag()).collect::<Vec<_>>();
                    let tags = tags.join(self.one(&[", ", ",", " ,, "]));
                    ("if-none-match", if self.is(8) { "*".to_owned() } else { tags })
                }
                _ => ("range", self.range()),
            };
            fields.push((name.to_owned(), value));
        }
        fields
    }

    fn range(&mut self) -> String {
        let unit = self.one(&["bytes=", "bytes=", "bytes=", "Bytes=", "bytes", "items="]);
        let count = if self.is(16) { 17 } else { self.pick(5) };
        let specs = (0..count).map(|_| {
            let (first, last) = (self.pick(14), self.pick(14));
            match self.pick(10) {
                0..=4 => format!("{}-{}", first.min(last), first.max(last)),
                5 => format!("{first}-{last}"),
                6 => format!("{first}-"),
                7 => format!("-{last}"),
                8 => self.one(&["", " 1-2 ", "99999999999999999999-", "0-99999999999999999999"]).to_owned(),
                _ => self.one(&["0-0", "1-2", "-", "a-b", "1", "1-2-3", "+1-2"]).to_owned(),
            }
        });
        let specs = specs.collect::<Vec<_>>();
        format!("{unit}{}", specs.join(","))
    }
}

fn headers(fields: &Fields) -> HeaderMap {
    let field = |(name, value): &(String, String)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields.iter().map(field) {
        headers.append(name, value);
    }
    headers
}

fn rule(route: &Route) -> CacheRule {
    CacheRule {
        ttl: route.ttl.map(Duration::from_secs),
        upstream_ttl: if route.ignores_lifetimes { UpstreamTtl::Ignore } else { UpstreamTtl::Respect },
        stale_while_revalidate: Duration::from_secs(route.stale_while_revalidate),
        stale_if_error: Duration::from_secs(route.stale_if_error),
        cookies: if route.stores_cookies { Cookies::Store } else { Cookies::Refuse },
        credentials: if route.shares_credentials { Credentials::Share } else { Credentials::Protect },
        key_headers: if route.keys_authorization { vec![header::AUTHORIZATION] } else { Vec::new() },
        ..policy::tests::rule()
    }
}

fn weir_keeps(history: &History) -> Option<Plan> {
    let (request, answer, rule) = (headers(&history.request), headers(&history.answer), rule(&history.route));
    let facts = RequestFacts::of(&rule, &history.method.parse::<Method>().unwrap(), &request);
    let received = Received {
        status: StatusCode::from_u16(history.status).unwrap(),
        headers: &answer,
        asked_at: history.asked_at,
        received_at: history.received_at,
    };
    policy::storable(&rule, facts, &received, 0.5).ok()
}

fn as_kept(freshness: &Freshness) -> Kept {
    Kept {
        age: freshness.initial_age_ms,
        lifetime: freshness.lifetime_ms,
        while_revalidated: freshness.stale_while_revalidate_ms,
        if_error: freshness.stale_if_error_ms,
        is_strict: freshness.must_revalidate,
        is_always_confirmed: freshness.no_cache,
        is_by_rule: freshness.by_rule,
    }
}

fn weir_uses(history: &History, freshness: &Freshness, elapsed: u64, request: Option<&Fields>) -> (Use, Option<u64>) {
    let wanted = request.map(|request| RequestDirectives::of(&headers(request)));
    match freshness.evaluate(history.received_at + elapsed, wanted.as_ref(), false) {
        State::Fresh { age_s, .. } => (Use::Fresh, Some(age_s)),
        State::StaleWhileRevalidate { age_s, .. } => (Use::WhileRevalidated, Some(age_s)),
        State::StaleIfError { age_s, .. } => (Use::IfError, Some(age_s)),
        State::MustRevalidate => (Use::Confirmed, None),
    }
}

/// Holds Weir to the model in one history; gives what came of it.
fn agree(history: &History, tape: &mut Tape<'_>) -> Result<(Option<Use>, Vec<Option<Choice>>), TestCaseError> {
    let expected = storing::kept(history);
    let plan = weir_keeps(history);
    prop_assert_eq!(plan.as_ref().map(|plan| as_kept(&plan.freshness)), expected.clone().ok());
    let (Some(plan), Ok(kept)) = (plan, &expected) else {
        return Ok((None, vec![expected.unwrap_err()]));
    };
    prop_assert!(storing::may_be_stored(history), "laxer than section 3");

    let elapsed = tape.elapsed(kept);
    let request = vec![("cache-control".to_owned(), tape.cache_control())];
    let request = tape.is(2).then_some(&request);
    let wanted = request.map(Wanted::by);
    let (used, age_s) = weir_uses(history, &plan.freshness, elapsed, request);
    let (expected, age) = storing::used(kept, elapsed, wanted.as_ref());
    prop_assert_eq!((used, age_s.unwrap_or(age / 1000)), (expected, age / 1000), "{}ms later: {:?}", elapsed, request);
    let most = storing::use_at_most(history, elapsed, wanted.as_ref());
    prop_assert!(used >= most, "{elapsed} ms later, laxer than section 4: {used:?}, not {most:?}: {request:?}");
    let choices = storing::choices(history, wanted.as_ref());
    prop_assert!(used == most || !choices.is_empty(), "stricter for no reason: {used:?}, not {most:?}");
    Ok((Some(used), choices.into_iter().map(Some).collect()))
}

fn entry(stored: &Stored) -> Entry {
    let origin = Origin { key: "key".into(), position: Position::default(), fence: 1, fill_cost_ms: 0 };
    let freshness = Freshness { received_at: stored.received_at, ..Freshness::default() };
    let plan = Plan { freshness, source: Source::Upstream, vary: Vec::new(), tags: Vec::new() };
    let body = vec![b'x'; stored.length];
    Entry::new(origin, StatusCode::from_u16(stored.status).unwrap(), &headers(&stored.fields), plan, body.into())
}

fn weir_replies(request: &Fields, stored: &Stored) -> Reply {
    let (request, entry) = (headers(request), entry(stored));
    if conditional::evaluate(&request, &entry) == conditional::Reply::NotModified {
        return Reply::NotModified;
    }
    let inclusive = |range: &std::ops::Range<usize>| (range.start, range.end - 1);
    match ranges::select(&request, &entry) {
        _ if stored.status != 200 => Reply::Whole,
        Selection::Whole => Reply::Whole,
        Selection::One(range) => Reply::Parts(vec![inclusive(&range)]),
        Selection::Several(ranges) => Reply::Parts(ranges.iter().map(inclusive).collect()),
        Selection::Nothing => Reply::NotSatisfiable,
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn answers_are_stored_and_used_as_the_model_says(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let mut tape = Tape(bytes.iter());
        let history = tape.history();
        let _ = agree(&history, &mut tape).map_err(|why| TestCaseError::fail(format!("{why}\n{history:#?}")))?;
    }

    #[test]
    fn what_a_304_makes_of_an_answer_is_judged_as_the_model_says(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut tape = Tape(bytes.iter());
        let first = History { method: "GET", status: 200, ..tape.history() };
        let stored =
            Stored { status: 200, fields: first.answer.clone(), length: 4, received_at: first.received_at };
        let update = tape.answer();
        let (is_confirmed, _) = serving::is_confirmed(&stored, &update);
        let entry = entry(&stored);
        prop_assert_eq!(conditional::confirms(&headers(&update), &entry, By::AnyValidator), is_confirmed, "{:?} {:?}", &first, &update);
        // Weir writes down when an answer came that does not say when it was sent; a 304 says anew.
        let answer = serving::merged(&first.answer, &update);
        let later = History { answer, asked_at: NOW + 60_000, received_at: NOW + 60_500, ..first };
        let merged = entry.merged(&headers(&update));
        let rule = rule(&later.route);
        let facts = RequestFacts::of(&rule, &Method::GET, &headers(&later.request));
        let received = Received { status: StatusCode::OK, headers: &merged, asked_at: later.asked_at, received_at: later.received_at };
        let plan = policy::storable(&rule, facts, &received, 0.5).ok();
        prop_assert_eq!(plan.map(|plan| as_kept(&plan.freshness)), storing::kept(&later).ok(), "{:?} {:?}", &later, &update);
    }

    #[test]
    fn conditions_and_ranges_are_answered_as_the_model_says(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let mut tape = Tape(bytes.iter());
        let stored = Stored {
            status: tape.one(&[200, 200, 200, 200, 203, 301, 404, 500]),
            length: tape.one(&[10, 10, 1, 0, 300]),
            received_at: NOW + tape.one(&[0, 999]),
            fields: tape.answer(),
        };
        let request = tape.conditional(&stored.fields);
        prop_assert_eq!(weir_replies(&request, &stored), serving::reply(&request, &stored), "{:?} {:?}", &request, &stored);
    }

    #[test]
    fn requests_go_past_the_cache_as_the_model_says(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut tape = Tape(bytes.iter());
        let method = tape.one(&["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "QUERY", "get"]);
        let names = ["if-match", "if-unmodified-since", "x-http-method-override", "upgrade", "if-none-match", "range"];
        let mut request: Fields = names.iter().filter(|_| tape.is(6)).map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        request.push(("cache-control".to_owned(), tape.cache_control()));
        let (has_body, honours) = (tape.is(6), tape.is(2));
        let has = |name: &str| request.iter().any(|(own, _)| own == name);
        let wants_no_store = honours && Wanted::by(&request).has("no-store");
        let expected = match () {
            () if !["GET", "HEAD"].contains(&method) => Err(Bypass::Method),
            () if has_body => Err(Bypass::Body),
            // RFC 9111 section 5.2.1.5.
            () if wants_no_store => Err(Bypass::NoStore),
            // RFC 9111 section 4.3.2 leaves these to the origin.
            () if names[..4].iter().any(|name| has(name)) => Err(Bypass::Precondition),
            () => Ok(()),
        };
        let honoured = honours.then(|| RequestDirectives::of(&headers(&request)));
        let weir = policy::request_may_use_cache(&method.parse().unwrap(), &headers(&request), has_body, honoured.as_ref());
        let by_a_field = [Bypass::MethodOverride, Bypass::Upgrade, Bypass::Precondition];
        prop_assert_eq!(weir.map_err(|why| if by_a_field.contains(&why) { Bypass::Precondition } else { why }), expected);
    }

    #[test]
    fn dates_are_read_in_all_forms(at_s in 0_u64..253_402_300_800, form in 0_usize..3) {
        let (at, text) = (at_s * 1000, spell(at_s * 1000, form));
        // Two digits name a year between 1970 and 2069.
        let is_named = form != 1 || at_s < 3_155_760_000;
        prop_assert_eq!(super::text::date(&text), http_date_ms(text.as_bytes()), "{}", &text);
        prop_assert!(!is_named || super::text::date(&text) == Some(at), "{}", &text);
        prop_assert!(form != 0 || http_date(at).as_bytes() == text.as_bytes());
    }
}

#[test]
fn the_histories_reach_everything() {
    let (mut uses, mut choices) = (BTreeSet::new(), BTreeSet::new());
    let mut bytes = [0_u8; 160];
    for seed in 0..20_000_u64 {
        let mut state = seed;
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        let mut tape = Tape(bytes.iter());
        let history = tape.history();
        let (used, chosen) = agree(&history, &mut tape).unwrap_or_else(|why| panic!("{why}\n{history:#?}"));
        uses.extend(used);
        choices.extend(chosen);
    }
    assert_eq!(Vec::from_iter(uses), [Use::Fresh, Use::WhileRevalidated, Use::IfError, Use::Confirmed]);
    // All but the last, which is about a 304.
    assert_eq!(choices.last(), Some(&Some(Choice::OperatorsWord)));
    assert_eq!(choices.len(), 1 + Choice::OperatorsWord as usize + 1);
}
