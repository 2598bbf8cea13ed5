//! Cache directives: RFC 9111 section 5.2 and RFC 5861, in `Cache-Control` and in the fields that are meant for caches
//! like this one (RFC 9213).
//!
//! Read for the worse: of a directive that comes twice the most restrictive counts, a lifetime that cannot be read is
//! zero (RFC 9111 section 4.2.1), and the forms of `private` and `no-cache` that name fields mean the whole answer, as
//! sections 5.2.2.4 and 5.2.2.7 permit. Unknown directives mean nothing. Nothing allocates.

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName};

use super::structured::{self, Value};

/// Largest delta-seconds; what is larger means this (RFC 9111 section 1.2.2).
pub const MAX_SECONDS: u32 = 1 << 31;

/// What an answer's directives say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Freshness lifetime in seconds.
    pub max_age: Option<u32>,
    /// Freshness lifetime in shared caches, in seconds.
    pub s_maxage: Option<u32>,
    /// Seconds past the lifetime in which the answer may be used while it is refreshed.
    pub stale_while_revalidate: Option<u32>,
    /// Seconds past the lifetime in which the answer may be used if the upstream fails.
    pub stale_if_error: Option<u32>,
    /// May be stored, but not used without validation.
    pub no_cache: bool,
    /// May not be stored.
    pub no_store: bool,
    /// May not be stored by a shared cache.
    pub private: bool,
    /// May be stored although the request was authorised.
    pub public: bool,
    /// May not be used stale.
    pub must_revalidate: bool,
    /// May not be used stale by a shared cache.
    pub proxy_revalidate: bool,
    /// May be stored only by who knows the status; then `no_store` does not count.
    pub must_understand: bool,
    /// The body may not be transformed.
    pub no_transform: bool,
    /// Does not change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// Said by a field that is meant for this cache: `Expires` does not count beside it.
    pub targeted: bool,
}

/// Fields that are meant for caches like this one, the narrowest first (RFC 9213 section 2.2).
static TARGETED: [HeaderName; 2] =
    [HeaderName::from_static("weir-cache-control"), HeaderName::from_static("cdn-cache-control")];

/// The older field for caches in front of a service (W3C Edge Architecture Specification 1.0), which counts behind
/// those.
static SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// The field that is meant for every cache.
static FOR_EVERY_CACHE: HeaderName = CACHE_CONTROL;

/// By what name a `Surrogate-Control` directive is addressed to this cache alone, and how it says so to the upstream.
const SURROGATE: &[u8] = b"weir";

/// The `Surrogate-Capability` that goes with a fetch, so that the upstream knows whom it can address.
pub const SURROGATE_CAPABILITY: &str = "weir=\"Surrogate/1.0\"";

impl ResponseDirectives {
    /// What an answer says to this cache: the first targeted field that can be read and is not empty, else its
    /// `Cache-Control`.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::heard(headers).0
    }

    /// [`ResponseDirectives::of`], and the field that it was read from.
    pub fn heard(headers: &HeaderMap) -> (Self, &'static HeaderName) {
        let lines = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        let targeted = TARGETED.iter().filter(|name| headers.contains_key(*name));
        targeted
            .filter_map(|name| Some((Self::dictionary(lines(name))?, name)))
            .next()
            .or_else(|| Some((Self::surrogate(lines(&SURROGATE_CONTROL))?, &SURROGATE_CONTROL)))
            .unwrap_or_else(|| (Self::parse(lines(&FOR_EVERY_CACHE)), &FOR_EVERY_CACHE))
    }

    /// What a targeted field says (RFC 9213 section 2.1); nothing if it is empty or no dictionary.
    fn dictionary<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut said = Self { targeted: true, ..Self::default() };
        let mut is_empty = true;
        let read = structured::dictionary(lines, |name, value| {
            is_empty = false;
            // A lifetime of another type is none that can be read, and a flag of another type is set: for the worse.
            let seconds = match value {
                Value::Integer(seconds) => u32::try_from(seconds.max(0)).unwrap_or(u32::MAX).min(MAX_SECONDS),
                Value::Boolean(_) | Value::Strings(_) | Value::Other => 0,
            };
            said.set(name, seconds, value != Value::Boolean(false));
        });
        read.ok().filter(|()| !is_empty)?;
        Some(said)
    }

    /// What `Surrogate-Control` says to this cache; nothing if that is neither a lifetime nor `no-store`.
    fn surrogate<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut said = Self { targeted: true, ..Self::default() };
        for directive in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
            let mut parts = directive.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let directive = parts.next().unwrap_or_default();
            if !parts.all(|target| target == SURROGATE) {
                continue;
            }
            if directive.eq_ignore_ascii_case(b"no-store") {
                said.no_store = true;
            } else if let Some((name, argument)) = directive.split_at_checked("max-age=".len())
                && name.eq_ignore_ascii_case(b"max-age=")
            {
                // What stands behind a plus is for how long it may be used stale; the route says that here.
                let lifetime = argument.split(|byte| *byte == b'+').next();
                lower(&mut said.max_age, seconds(lifetime));
            }
        }
        (said.no_store || said.max_age.is_some()).then_some(said)
    }

    /// Sets the lifetime or flag of this name.
    fn set(&mut self, name: &[u8], seconds: u32, flag: bool) {
        match name {
            b"max-age" => self.max_age = Some(seconds),
            b"s-maxage" => self.s_maxage = Some(seconds),
            b"stale-while-revalidate" => self.stale_while_revalidate = Some(seconds),
            b"stale-if-error" => self.stale_if_error = Some(seconds),
            b"no-cache" => self.no_cache = flag,
            b"no-store" => self.no_store = flag,
            b"private" => self.private = flag,
            b"public" => self.public = flag,
            b"must-revalidate" => self.must_revalidate = flag,
            b"proxy-revalidate" => self.proxy_revalidate = flag,
            b"must-understand" => self.must_understand = flag,
            b"no-transform" => self.no_transform = flag,
            b"immutable" => self.immutable = flag,
            _ => {}
        }
    }

    /// What these values of `Cache-Control` say, taken together.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut said = Self::default();
        for (name, argument) in values.into_iter().flat_map(|value| Elements { rest: value }) {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("max-age") {
                lower(&mut said.max_age, seconds(argument));
            } else if is("s-maxage") {
                lower(&mut said.s_maxage, seconds(argument));
            } else if is("stale-while-revalidate") {
                lower(&mut said.stale_while_revalidate, seconds(argument));
            } else if is("stale-if-error") {
                lower(&mut said.stale_if_error, seconds(argument));
            } else {
                said.no_cache |= is("no-cache");
                said.no_store |= is("no-store");
                said.private |= is("private");
                said.public |= is("public");
                said.must_revalidate |= is("must-revalidate");
                said.proxy_revalidate |= is("proxy-revalidate");
                said.must_understand |= is("must-understand");
                said.no_transform |= is("no-transform");
                said.immutable |= is("immutable");
            }
        }
        said
    }

    /// The lifetime in seconds that a shared cache goes by (RFC 9111 section 4.2.1).
    pub fn shared_max_age(&self) -> Option<u32> {
        self.s_maxage.or(self.max_age)
    }
}

/// What a request's directives say (RFC 9111 section 5.2.1), where a route honours them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Greatest age wanted, in seconds.
    pub max_age: Option<u32>,
    /// Staleness accepted, in seconds; [`u32::MAX`] is any.
    pub max_stale: Option<u32>,
    /// Seconds for which the answer shall remain fresh.
    pub min_fresh: Option<u32>,
    /// Staleness accepted if the upstream fails, in seconds (RFC 5861 section 4).
    pub stale_if_error: Option<u32>,
    /// Nothing without validation.
    pub no_cache: bool,
    /// Nothing of this exchange may be stored.
    pub no_store: bool,
    /// From the cache, or 504.
    pub only_if_cached: bool,
}

impl RequestDirectives {
    /// What the `Cache-Control` of a request says.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::parse(headers.get_all(CACHE_CONTROL).iter().map(http::HeaderValue::as_bytes))
    }

    /// What these field values say, taken together.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut said = Self::default();
        for (name, argument) in values.into_iter().flat_map(|value| Elements { rest: value }) {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("max-age") {
                lower(&mut said.max_age, seconds(argument));
            } else if is("max-stale") {
                lower(&mut said.max_stale, argument.map_or(u32::MAX, |text| seconds(Some(text))));
            } else if is("min-fresh") {
                let wanted = argument.and_then(delta_seconds).unwrap_or(MAX_SECONDS);
                said.min_fresh = said.min_fresh.max(Some(wanted));
            } else if is("stale-if-error") {
                lower(&mut said.stale_if_error, seconds(argument));
            } else {
                said.no_cache |= is("no-cache");
                said.no_store |= is("no-store");
                said.only_if_cached |= is("only-if-cached");
            }
        }
        said
    }
}

/// Digits only, capped at [`MAX_SECONDS`] (RFC 9111 section 1.2.2); anything else is `None`.
pub fn delta_seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u32, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum.saturating_mul(10).saturating_add(u32::from(byte - b'0')).min(MAX_SECONDS)),
        _ => None,
    })
}

fn seconds(argument: Option<&[u8]>) -> u32 {
    argument.and_then(delta_seconds).unwrap_or(0)
}

fn lower(slot: &mut Option<u32>, value: u32) {
    *slot = Some(slot.map_or(value, |earlier| earlier.min(value)));
}

/// The elements of one field value: name, and argument without its quotes.
///
/// White space separates as a comma does: `private max-age=0` then means both, and `max-age = 5` has an unreadable
/// lifetime. A quote that is never closed quotes nothing, so that it cannot hide what follows.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|byte| !separates(*byte))?;
        let rest = &self.rest[start..];
        let name_end = rest.iter().position(|byte| *byte == b'=' || separates(*byte)).unwrap_or(rest.len());
        let (name, tail) = rest.split_at(name_end);
        let Some(tail) = tail.strip_prefix(b"=") else {
            self.rest = tail;
            return Some((name, None));
        };
        let quoted = closing_quote(tail);
        let scan_from = quoted.map_or(0, |close| close + 1);
        let end = tail[scan_from..].iter().position(|byte| separates(*byte)).map_or(tail.len(), |at| scan_from + at);
        self.rest = &tail[end..];
        match quoted {
            Some(close) if close + 1 == end => Some((name, Some(&tail[1..close]))),
            _ => Some((name, Some(&tail[..end]))),
        }
    }
}

fn separates(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t')
}

/// Where the quoted string that `text` begins with ends.
fn closing_quote(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn response(values: &[&str]) -> ResponseDirectives {
        ResponseDirectives::parse(values.iter().map(|value| value.as_bytes()))
    }

    fn request(value: &str) -> RequestDirectives {
        RequestDirectives::parse([value.as_bytes()])
    }

    #[test]
    fn lifetimes_are_read_for_the_worse() {
        for (values, expected) in [
            (&["max-age=60"][..], Some(60)),
            (&["MAX-AGE=60"], Some(60)),
            (&["max-age=\"60\""], Some(60)),
            (&["max-age=007"], Some(7)),
            (&["max-age=60, max-age=5"], Some(5)),
            (&["max-age=5", "public", "max-age=60"], Some(5)),
            (&["max-age=99999999999999999999"], Some(MAX_SECONDS)),
            (&["max-age=2147483649"], Some(MAX_SECONDS)),
            (&["max-age=-1"], Some(0)),
            (&["max-age=1.5"], Some(0)),
            (&["max-age=60s"], Some(0)),
            (&["max-age='60'"], Some(0)),
            (&["max-age=\"60\"x"], Some(0)),
            (&["max-age=\"6\\0\""], Some(0)),
            (&["max-age="], Some(0)),
            (&["max-age"], Some(0)),
            (&["max-age = 60"], Some(0)),
            (&["max-age= 60"], Some(0)),
            (&["max-age=60,max-age=x"], Some(0)),
            (&["x-max-age=60"], None),
            (&["extension=\"max-age=60\""], None),
            (&["extension=\"a, max-age=60\""], None),
            (&["extension=\"a \\\" , max-age=60\""], None),
            (&[" , ,, max-age=60 ,"], Some(60)),
            (&["private max-age=60"], Some(60)),
            (&[""], None),
        ] {
            assert_eq!(response(values).max_age, expected, "{values:?}");
        }
    }

    #[test]
    fn flags_are_seen_in_every_form() {
        assert!(response(&["No-Store"]).no_store);
        assert!(response(&["max-age=5", "no-store"]).no_store);
        assert!(response(&["private=\"set-cookie\""]).private);
        assert!(response(&["no-cache=\"a, b\", max-age=5"]).no_cache);
        assert!(response(&["no-cache=set-cookie"]).no_cache);
        assert!(response(&["foo=\"bar, no-store"]).no_store, "an open quote hides nothing");
        assert!(response(&["foo\"bar, no-store, \""]).no_store, "a quote inside a name quotes nothing");
        assert!(!response(&["foo=\"bar, no-store\""]).no_store);
        assert!(!response(&["no-stored"]).no_store);
        let all = response(&["public, must-revalidate, proxy-revalidate, immutable, must-understand, no-transform"]);
        assert!(all.public && all.must_revalidate && all.proxy_revalidate);
        assert!(all.immutable && all.must_understand && all.no_transform);
    }

    #[test]
    fn stale_directives_and_the_shared_lifetime() {
        let said = response(&["s-maxage=10, max-age=60, stale-while-revalidate=30, stale-if-error=\"600\""]);
        assert_eq!(said.shared_max_age(), Some(10));
        assert_eq!((said.stale_while_revalidate, said.stale_if_error), (Some(30), Some(600)));
        assert_eq!(response(&["stale-while-revalidate"]).stale_while_revalidate, Some(0));
        assert_eq!(response(&["max-age=60"]).shared_max_age(), Some(60));
    }

    #[test]
    fn requests() {
        let said = request("max-age=0, max-stale, min-fresh=5, no-cache, no-store, only-if-cached, stale-if-error=9");
        assert_eq!((said.max_age, said.max_stale, said.min_fresh), (Some(0), Some(u32::MAX), Some(5)));
        assert!(said.no_cache && said.no_store && said.only_if_cached);
        assert_eq!(said.stale_if_error, Some(9));
        assert_eq!(request("max-stale=5, max-stale").max_stale, Some(5));
        assert_eq!(request("max-stale=x").max_stale, Some(0));
        assert_eq!(request("min-fresh=5, min-fresh=9").min_fresh, Some(9));
        assert_eq!(request("min-fresh=x").min_fresh, Some(MAX_SECONDS));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..4)) {
            let _ = ResponseDirectives::parse(values.iter().map(Vec::as_slice));
            let _ = RequestDirectives::parse(values.iter().map(Vec::as_slice));
        }

        #[test]
        fn a_further_field_never_loosens(first in "[a-z0-9=, \"-]{0,40}", seconds in 0_u32..100) {
            let plain = response(&[&format!("max-age={seconds}, no-store")]);
            let more = response(&[&format!("max-age={seconds}, no-store"), &first]);
            prop_assert!(more.no_store);
            prop_assert!(more.max_age <= plain.max_age);
        }
    }
}
