//! `No-Vary-Search`: which parameters of a query make a difference, as an answer says it
//! (draft-ietf-httpbis-no-vary-search), and the keys that follow from that.
//!
//! An answer with a rule stands under the *search key* (the primary key without the query), the rule and the parameters
//! that count by it; so it is found by every URL that the rule takes for the same, and by no other. Which rule to look by,
//! a record under the search key says.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::entry::{Entry, Stored};
use super::freshness::Freshness;
use super::key::part;
use super::structured::{self, Strings, Value};
use crate::clock::WallMs;
use crate::syntax::query::{decode, parameters};

/// Most parameters that a rule may name; one that names more counts as none.
pub const MAX_NAMES: usize = 64;

/// Longest that these names may be together: they are part of every key.
pub const MAX_NAMES_BYTES: usize = 2048;

const FIELD: HeaderName = HeaderName::from_static("no-vary-search");

/// A record outlives the answer that it came with, so that it need not be written anew with each answer.
const RECORD_LIVES: u64 = 2;

/// What an answer says of queries. None of them is the field's default: with that, queries are the same only if they are
/// so byte for byte, and answers are stored as if there were no field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    params: Params,
    any_order: bool,
}

/// Which parameters count; names are decoded, sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Params {
    All,
    AllBut(Vec<String>),
    Only(Vec<String>),
}

impl Rule {
    /// The rule of an answer with these fields, if it has one that can be read.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::read(headers.get_all(FIELD).iter().map(HeaderValue::as_bytes))
    }

    /// The rule of a stored answer.
    pub fn of_entry(entry: &Entry) -> Option<Self> {
        Self::read(entry.values(b"no-vary-search"))
    }

    fn read<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (mut order, mut params, mut except) = (None, None, None);
        let member = |name: &[u8], value| match name {
            b"key-order" => order = Some(value),
            b"params" => params = Some(value),
            b"except" => except = Some(value),
            // What later documents add makes more queries the same, never fewer.
            _ => {}
        };
        structured::dictionary(lines, member).ok()?;
        let any_order = match order {
            None => false,
            Some(Value::Boolean(any)) => any,
            Some(_) => return None,
        };
        let params = match (params, except) {
            (None | Some(Value::Boolean(false)), None) => Params::All,
            (Some(Value::Boolean(true)), None) => Params::Only(Vec::new()),
            (Some(Value::Boolean(true)), Some(Value::Strings(names))) => Params::Only(decoded(names)?),
            (Some(Value::Strings(names)), None) => match decoded(names)? {
                names if names.is_empty() => Params::All,
                names => Params::AllBut(names),
            },
            _ => return None,
        };
        (params != Params::All || any_order).then_some(Self { params, any_order })
    }

    /// The field's value, in the one form that all rules of the same meaning have.
    pub fn text(&self) -> String {
        let list = |names: &[String]| {
            let names = names.iter().map(|name| format!("\"{}\"", encoded(name)));
            names.collect::<Vec<_>>().join(" ")
        };
        let params = match &self.params {
            Params::All => None,
            Params::AllBut(names) => Some(format!("params=({})", list(names))),
            Params::Only(names) if names.is_empty() => Some("params".to_owned()),
            Params::Only(names) => Some(format!("params, except=({})", list(names))),
        };
        let order = self.any_order.then(|| "key-order".to_owned());
        order.into_iter().chain(params).collect::<Vec<_>>().join(", ")
    }

    /// The parameters that count, as forms are encoded: the same for two queries if and only if the rule takes them for
    /// the same. One of no parameters is empty.
    pub fn canonical(&self, query: Option<&str>) -> String {
        let mut out = String::with_capacity(query.map_or(0, str::len) + 1);
        for (name, parameter) in self.counted(query) {
            let value = parameter.split_once('=').map_or("", |(_, value)| value);
            if !out.is_empty() {
                out.push('&');
            }
            out.push_str(&encoded(&name));
            out.push('=');
            out.push_str(&encoded(&decode(value)));
        }
        out
    }

    /// The query with the parameters that count only, each as it came; in order of their names if no other matters.
    pub fn kept(&self, query: Option<&str>) -> Option<String> {
        let kept: Vec<_> = self.counted(query).into_iter().map(|(_, parameter)| parameter).collect();
        (!kept.is_empty()).then(|| kept.join("&"))
    }

    /// Each parameter that counts with its decoded name (WHATWG URL, application/x-www-form-urlencoded parsing).
    fn counted<'q>(&self, query: Option<&'q str>) -> Vec<(Cow<'q, str>, &'q str)> {
        let all = parameters(query.unwrap_or_default()).filter(|(_, parameter)| !parameter.is_empty());
        let mut counted: Vec<_> = all.filter(|(name, _)| self.counts(name)).collect();
        if self.any_order {
            // Those of one name keep their order.
            counted.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        counted
    }

    fn counts(&self, name: &str) -> bool {
        let is_among = |names: &[String]| names.binary_search_by(|own| own.as_str().cmp(name)).is_ok();
        match &self.params {
            Params::All => true,
            Params::AllBut(names) => !is_among(names),
            Params::Only(names) => is_among(names),
        }
    }
}

/// A rule's names; `None` if there are too many.
fn decoded(names: Strings<'_>) -> Option<Vec<String>> {
    let mut decoded = Vec::new();
    let mut bytes = 0;
    for name in names {
        bytes += name.len();
        if decoded.len() == MAX_NAMES || bytes > MAX_NAMES_BYTES {
            return None;
        }
        decoded.push(decode(&name).into_owned());
    }
    decoded.sort();
    decoded.dedup();
    Some(decoded)
}

/// `text` with everything escaped that [`decode`] would read as something else, that a structured string cannot hold, or
/// that nobody writes in a query as it is.
fn encoded(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$'()*,;:@/?[]".contains(&byte);
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(out)
}

/// What a request is looked up by where answers say which parameters count.
#[derive(Debug)]
pub struct Search {
    plain: Box<[u8]>,
    key: Box<[u8]>,
    query: Option<Box<str>>,
}

impl Search {
    /// Of a request with this `query`: `plain` is its primary key, `pathwise` the one that it would have without a query.
    pub fn new(plain: &[u8], pathwise: &[u8], query: Option<&str>) -> Self {
        // No key of anything else ends like this, since every part of one has its length in front.
        Self { plain: plain.into(), key: [pathwise, b"search"].concat().into(), query: query.map(Into::into) }
    }

    /// The key where no rule is known.
    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// Where the rule is recorded by which the answers to any query go.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key of the request's answer under a rule, or without one.
    pub fn under(&self, rule: Option<&Rule>) -> Cow<'_, [u8]> {
        let Some(rule) = rule else { return Cow::Borrowed(&self.plain) };
        let mut key = self.key.to_vec();
        part(&mut key, rule.text().as_bytes());
        part(&mut key, rule.canonical(self.query.as_deref()).as_bytes());
        Cow::Owned(key)
    }

    /// The queries by which the request's answer is known under a rule, beside the request's own: as it came, without what
    /// does not count, and in the form that all that are the same have.
    pub fn names(&self, rule: &Rule) -> Vec<Option<String>> {
        let query = self.query.as_deref();
        let mut names = vec![rule.kept(query)];
        let canonical = Some(rule.canonical(query)).filter(|query| !query.is_empty());
        if names[0] != canonical {
            names.push(canonical);
        }
        names
    }

    /// The record of the rule that came with `answer`.
    pub fn record(&self, rule: &Rule, answer: &Entry, now: WallMs) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(&self.key),
            status: StatusCode::OK,
            fields: format!("{FIELD}: {}\r\n", rule.text()).into(),
            body: Bytes::new(),
            position: answer.position,
            fence: 0,
            freshness: Freshness {
                received_at: now,
                lifetime_ms: answer.keep_ms(now).saturating_mul(RECORD_LIVES),
                ..Freshness::default()
            },
            vary: Vec::new(),
            tags: Vec::new(),
            fill_cost_ms: 0,
            part: None,
        }
    }
}

/// The rule that a record holds, if it is still of use. Invalidations do not matter to it: what it leads to is judged by
/// itself, and stands under no other rule than its own.
pub fn recorded(stored: &Stored, now: WallMs) -> Option<Rule> {
    let record = stored.entry().filter(|record| record.keep_ms(now) > 0)?;
    Rule::of_entry(record)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::entry;

    fn rule(value: &str) -> Option<Rule> {
        Rule::read([value.as_bytes()].into_iter())
    }

    #[test]
    fn rules() {
        for (value, text) in [
            ("key-order", "key-order"),
            ("key-order=?1;x=1, unknown=(1)", "key-order"),
            ("params", "params"),
            ("params=?1, except=()", "params"),
            ("params=(\"b\" \"a\";x \"b\")", "params=(\"a\" \"b\")"),
            ("except=(\"x\"), params, key-order", "key-order, params, except=(\"x\")"),
            ("params=(\"%C3%A9+%e6%b0%97\")", "params=(\"%C3%A9%20%E6%B0%97\")"),
            ("params=(\"a\\\"\\\\\")", "params=(\"a%22%5C\")"),
            ("params=?0, key-order", "key-order"),
            ("params=(), key-order", "key-order"),
            // Of a name that comes twice, the last counts.
            ("params=1, params=(\"a\")", "params=(\"a\")"),
        ] {
            let read = rule(value);
            assert_eq!(read.as_ref().map(Rule::text).as_deref(), Some(text), "{value}");
            assert_eq!(rule(text), read, "{value}");
        }
    }

    #[test]
    fn what_is_no_rule_is_absent() {
        for value in [
            "",
            "unknown-key",
            "params=?0",
            "params=()",
            "key-order=?0",
            "key-order=\"not a boolean\"",
            "key-order=1, params",
            "params=\"not a boolean or inner list\"",
            "params=(not-a-string)",
            "params=(\"a\" 1)",
            "params=(\"a\"), except=(\"x\")",
            "params=(), except=()",
            "params=?0, except=(\"x\")",
            "params, except=(not-a-string)",
            "params, except=\"not an inner list\"",
            "params, except=?1",
            "except=(\"x\")",
            "except=()",
            "params,",
            "Params",
        ] {
            assert_eq!(rule(value), None, "{value}");
        }
        assert_eq!(Rule::of(&HeaderMap::new()), None);
        let mut lines = HeaderMap::new();
        lines.append(FIELD, HeaderValue::from_static("params"));
        lines.append(FIELD, HeaderValue::from_static("except=(\"a\")"));
        assert_eq!(Rule::of(&lines).map(|rule| rule.text()).as_deref(), Some("params, except=(\"a\")"));
        lines.append(FIELD, HeaderValue::from_static("("));
        assert_eq!(Rule::of(&lines), None);
    }

    #[test]
    fn a_rule_with_too_many_names_is_absent() {
        let named = |count: usize, name: &str| {
            let names: Vec<_> = (0..count).map(|i| format!("\"{name}{i}\"")).collect();
            rule(&format!("params=({})", names.join(" ")))
        };
        assert!(named(MAX_NAMES, "p").is_some());
        assert!(named(MAX_NAMES + 1, "p").is_none());
        assert!(named(1, &"p".repeat(MAX_NAMES_BYTES)).is_none());
    }

    #[test]
    fn queries_that_are_the_same() {
        for (value, one, other, same) in [
            ("params=(\"u\")", "a=1&u=2", "u=3&a=1", true),
            ("params=(\"u\")", "a=1&b=2", "b=2&a=1", false),
            ("key-order", "a=1&b=2", "b=2&a=1", true),
            ("key-order", "a=1&a=2", "a=2&a=1", false),
            ("key-order", "a=1&b=2&a=3", "b=2&a=1&a=3", true),
            ("params", "a=1", "b=2", true),
            ("params, except=(\"a\")", "a=1&b=2", "c&a=1", true),
            ("params, except=(\"a\")", "a=1", "a=2", false),
            ("params=(\"\\\"\")", "%22=1&a", "a", true),
            ("params=(\"%C3%A9+%E6%B0%97\")", "%c3%a9%20%E6%B0%97=1", "é+\u{6c17}=2", true),
            // How forms are read.
            ("key-order", "a=x", "%61=%78", true),
            ("key-order", "a=%f6", "a=%ef%bf%bd", true),
            ("key-order", "a=x&&&&", "a=x", true),
            ("key-order", "a=", "a", true),
            ("key-order", "a=%20", "a=+", true),
            ("key-order", "a=%2B", "a=+", false),
            ("key-order", "a=1%26b=2", "a=1&b=2", false),
            ("key-order", "a%3D1", "a=1", false),
            ("key-order", "=", "", false),
            ("key-order", "=&=", "=", false),
        ] {
            let rule = rule(value).unwrap();
            assert_eq!(rule.canonical(Some(one)) == rule.canonical(Some(other)), same, "{value}: {one} {other}");
        }
        let params = rule("params").unwrap();
        assert_eq!((params.canonical(None), params.canonical(Some(""))), (String::new(), String::new()));
    }

    #[test]
    fn by_what_an_answer_is_known() {
        for (value, query, names) in [
            ("params=(\"u\")", Some("u=1&a=b/c&u"), &[Some("a=b/c")][..]),
            ("params=(\"u\")", Some("a=b+c&&u"), &[Some("a=b+c"), Some("a=b%20c")]),
            ("key-order", Some("b&a=1"), &[Some("a=1&b"), Some("a=1&b=")]),
            ("params", Some("a=1"), &[None]),
            ("params", None, &[None]),
        ] {
            let search = Search::new(b"plain", b"path", query);
            let found = search.names(&rule(value).unwrap());
            assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), names, "{value} {query:?}");
        }
    }

    #[test]
    fn a_record_holds_a_rule_for_as_long_as_it_is_of_use() {
        let answer = entry(200, &[("etag", "\"a\"")], "body");
        let now = answer.freshness.received_at;
        let search = Search::new(b"plain", b"path", None);
        let rule = rule("key-order, params=(\"a b\")").unwrap();
        let record = search.record(&rule, &answer, now);
        assert_eq!(record.position, answer.position);
        let record = Stored::Entry(record.into());
        assert_eq!(recorded(&record, now), Some(rule.clone()));
        assert_eq!(recorded(&record, now + answer.keep_ms(now)), Some(rule));
        assert_eq!(recorded(&record, now + 2 * answer.keep_ms(now)), None);
        assert_eq!(recorded(&Stored::Entry(answer.into()), now), None, "it says nothing of queries");
    }

    /// Pairs as a form's reader gets them, by the letter.
    fn pairs(query: Option<&str>) -> Vec<(String, String)> {
        let read = |text: &str| {
            let bytes = text.replace('+', " ").into_bytes();
            let (mut out, mut at) = (Vec::new(), 0);
            while at < bytes.len() {
                let escaped = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
                let escaped = escaped.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                match escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
                    Some(byte) => {
                        out.push(byte);
                        at += 3;
                    }
                    None => {
                        out.push(bytes[at]);
                        at += 1;
                    }
                }
            }
            String::from_utf8_lossy(&out).into_owned()
        };
        let parts = query.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                (read(name), read(value))
            })
            .collect()
    }

    /// The draft's comparison, by the letter.
    fn same(rule: &Rule, one: Option<&str>, other: Option<&str>) -> bool {
        let prepared = |query| {
            let mut pairs = pairs(query);
            match &rule.params {
                Params::All => {}
                Params::AllBut(names) => pairs.retain(|(name, _)| !names.contains(name)),
                Params::Only(names) => pairs.retain(|(name, _)| names.contains(name)),
            }
            if rule.any_order {
                pairs.sort_by_key(|(name, _)| name.encode_utf16().collect::<Vec<_>>());
            }
            pairs
        };
        prepared(one) == prepared(other)
    }

    fn rules_of_all_kinds() -> impl Strategy<Value = Rule> {
        let names = prop::collection::vec("[ab]|a b|é|\"|", 0..3).prop_map(|mut names| {
            names.sort();
            names.dedup();
            names
        });
        (0..3, names, any::<bool>()).prop_map(|(kind, names, any_order)| match kind {
            _ if kind > 0 && names.is_empty() => Rule { params: Params::Only(names), any_order },
            0 => Rule { params: Params::All, any_order: true },
            1 => Rule { params: Params::AllBut(names), any_order },
            _ => Rule { params: Params::Only(names), any_order },
        })
    }

    fn query() -> impl Strategy<Value = Option<String>> {
        prop::option::of("([ab]|=|&|&a=|&b=|\\+|%20|%61|%3D|%26|%2B|%25|%|%f6|é|%C3%A9|%22){0,8}")
    }

    proptest! {
        #[test]
        fn any_value_is_survived(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 0..3)) {
            let _ = Rule::read(lines.iter().map(Vec::as_slice));
        }

        #[test]
        fn a_rule_is_what_its_text_says(rule in rules_of_all_kinds()) {
            prop_assert_eq!(Rule::read([rule.text().as_bytes()].into_iter()), Some(rule));
        }

        #[test]
        fn keys_are_the_same_where_queries_are(rule in rules_of_all_kinds(), one in query(), other in query()) {
            let (one, other) = (one.as_deref(), other.as_deref());
            let expected = same(&rule, one, other);
            prop_assert_eq!(rule.canonical(one) == rule.canonical(other), expected);
            let under = |query| Search::new(b"plain", b"path", query).under(Some(&rule)).into_owned();
            prop_assert_eq!(under(one) == under(other), expected);
        }

        /// Those that are the same by chance are few: here one is made of the other.
        #[test]
        fn what_does_not_count_may_be_anything(rule in rules_of_all_kinds(), query in query(), at in 0_usize..4, name in "[abc]", value in "[a-c]?") {
            let mut parts: Vec<_> = query.as_deref().unwrap_or_default().split('&').map(str::to_owned).collect();
            parts.insert(at.min(parts.len()), format!("{name}={value}"));
            let more = parts.join("&");
            prop_assert_eq!(rule.canonical(Some(&more)) == rule.canonical(query.as_deref()), same(&rule, Some(&more), query.as_deref()));
            prop_assert!(!rule.counts("c") || rule.canonical(Some(&more)) != rule.canonical(query.as_deref()) || name != "c");
        }

        #[test]
        fn names_mean_the_same_and_only_what_counts(rule in rules_of_all_kinds(), query in query()) {
            for name in Search::new(b"plain", b"path", query.as_deref()).names(&rule) {
                prop_assert!(same(&rule, name.as_deref(), query.as_deref()), "{:?}", name);
                prop_assert_eq!(pairs(name.as_deref()).len(), rule.counted(query.as_deref()).len());
                prop_assert!(name.as_deref() != Some(""));
            }
        }

        /// No answer of one rule stands where one of another would, nor where one without a rule would.
        #[test]
        fn rules_are_kept_apart(one in rules_of_all_kinds(), other in rules_of_all_kinds(), a in query(), b in query()) {
            let (a, b) = (Search::new(b"plain", b"path", a.as_deref()), Search::new(b"plain", b"path", b.as_deref()));
            if one != other {
                prop_assert_ne!(a.under(Some(&one)), b.under(Some(&other)));
            }
            prop_assert_ne!(a.under(Some(&one)), a.under(None));
            prop_assert_ne!(&*a.under(Some(&one)), a.key());
        }
    }
}
