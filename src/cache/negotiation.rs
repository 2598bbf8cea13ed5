//! `Accept-Encoding` and `Accept-Language` in one form each, so that clients who want the same share one variant.
//!
//! What is keyed is what is forwarded: [`normalise_negotiation`] before a request goes to the upstream, and the key is
//! built from the same form. Both forms are their own normal form, and neither is computed by allocating.

use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE};
use http::{HeaderMap, HeaderValue};

/// Most language ranges that are kept: weights have steps of a tenth.
const MAX_LANGUAGES: usize = 10;

/// Longest language range that is kept (RFC 5646 section 4.4.1 asks for 35).
const MAX_LANGUAGE_BYTES: usize = 35;

/// Codings that count.
const CODINGS: [&str; 3] = ["br", "zstd", "gzip"];

/// Every set of them: the coding at place `n` of [`CODINGS`] is in the sets whose index has bit `n`.
const ENCODINGS: [&str; 8] = ["identity", "br", "zstd", "br, zstd", "gzip", "br, gzip", "zstd, gzip", "br, zstd, gzip"];

/// A request's `Accept-Encoding` (RFC 9110 section 12.5.3): the known codings that it accepts, in one order and without
/// weights; `identity` where it accepts none, or says nothing.
///
/// What it prefers among those is left to the upstream: eight variants at most, where orders would make sixteen and
/// weights any number.
pub fn normalise_accept_encoding(headers: &HeaderMap) -> &'static str {
    let mut named: [Option<bool>; 3] = [None; 3];
    let mut any = false;
    for (coding, weight) in members(headers, &ACCEPT_ENCODING) {
        let coding = if coding.eq_ignore_ascii_case(b"x-gzip") { b"gzip" } else { coding };
        if coding == b"*" {
            any = weight > 0;
        } else if let Some(at) = CODINGS.iter().position(|known| coding.eq_ignore_ascii_case(known.as_bytes())) {
            named[at] = Some(weight > 0 && named[at] != Some(false));
        }
    }
    let accepted = named.iter().enumerate().filter(|(_, named)| named.unwrap_or(any));
    ENCODINGS[accepted.fold(0, |set, (at, _)| set | 1 << at)]
}

/// Appends a request's `Accept-Language` (RFC 9110 section 12.5.4): ranges in lower case, each once, the preferred first
/// and equals by name, with weights that say no more than their rank (`en-gb, de;q=0.9, en;q=0.9, fr;q=0.8`); nothing
/// where it has none.
pub fn normalise_accept_language(headers: &HeaderMap, out: &mut Vec<u8>) {
    let mut ranges: [(&[u8], u16); MAX_LANGUAGES] = [(b"", 0); MAX_LANGUAGES];
    let mut count = 0;
    for (range, weight) in members(headers, &ACCEPT_LANGUAGE) {
        let kept = &ranges[..count];
        if weight == 0 || !is_language_range(range) || kept.iter().any(|(known, _)| known.eq_ignore_ascii_case(range)) {
            continue;
        }
        // The least wanted of too many is dropped.
        let behind = |(other, its): &(&[u8], u16)| *its < weight || (*its == weight && lower(other).gt(lower(range)));
        let at = kept.iter().position(behind).unwrap_or(count);
        if at == MAX_LANGUAGES {
            continue;
        }
        count = (count + 1).min(MAX_LANGUAGES);
        ranges[at..count].rotate_right(1);
        ranges[at] = (range, weight);
    }
    let mut rank = 0;
    for (at, (range, weight)) in ranges[..count].iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b", ");
            rank += u8::from(ranges[at - 1].1 != *weight);
        }
        out.extend(lower(range));
        if rank > 0 {
            out.extend_from_slice(b";q=0.");
            out.push(b'0' + MAX_LANGUAGES as u8 - rank);
        }
    }
}

fn lower(range: &[u8]) -> impl Iterator<Item = u8> {
    range.iter().map(u8::to_ascii_lowercase)
}

/// Makes one line of the lines of each field (RFC 9110 section 5.3), since the key does not tell them apart. Cookies have
/// a rule of their own.
pub fn combine_lines(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    let repeated: Vec<_> =
        headers.keys().filter(|name| headers.get_all(*name).iter().nth(1).is_some()).cloned().collect();
    for name in repeated.into_iter().filter(|name| *name != COOKIE) {
        let lines: Vec<_> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        let combined = HeaderValue::from_bytes(&lines.join(&b", "[..])).expect("what joins sound values is sound");
        headers.insert(name, combined);
    }
}

/// Replaces both fields by their one form, before a request that the cache may answer is forwarded.
pub fn normalise_negotiation(headers: &mut HeaderMap) {
    let encoding = normalise_accept_encoding(headers);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encoding));
    if headers.contains_key(ACCEPT_LANGUAGE) {
        let mut language = Vec::new();
        normalise_accept_language(headers, &mut language);
        match HeaderValue::from_maybe_shared(bytes::Bytes::from(language)) {
            Ok(value) if !value.is_empty() => drop(headers.insert(ACCEPT_LANGUAGE, value)),
            _ => drop(headers.remove(ACCEPT_LANGUAGE)),
        }
    }
}

/// The members of a weighted list and their weights in thousandths.
fn members<'h>(headers: &'h HeaderMap, name: &'h http::HeaderName) -> impl Iterator<Item = (&'h [u8], u16)> {
    let members = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.filter_map(|member| {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let what = parts.next().filter(|what| !what.is_empty())?;
        let weight = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
        Some((what, weight.map_or(1000, thousandths)))
    })
}

/// A weight (RFC 9110 section 12.4.2) in thousandths; one that cannot be read is none at all.
fn thousandths(text: &[u8]) -> u16 {
    let (whole, fraction) = match text {
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        [whole] => (*whole, &b""[..]),
        _ => return 0,
    };
    if !matches!(whole, b'0' | b'1') || !fraction.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let digits = (0..3).map(|at| u16::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    (u16::from(whole - b'0') * 1000 + digits.fold(0, |sum, digit| sum * 10 + digit)).min(1000)
}

/// RFC 4647 section 2.1, loosely.
fn is_language_range(range: &[u8]) -> bool {
    range.len() <= MAX_LANGUAGE_BYTES
        && range.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoding(values: &[&str]) -> &'static str {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
        }
        normalise_accept_encoding(&headers)
    }

    fn language(values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_LANGUAGE, HeaderValue::from_str(value).unwrap());
        }
        let mut out = Vec::new();
        normalise_accept_language(&headers, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn encodings() {
        for (values, expected) in [
            (&[][..], "identity"),
            (&[""], "identity"),
            (&["gzip, deflate, br, zstd"], "br, zstd, gzip"),
            (&["br", "gzip"], "br, gzip"),
            (&["gzip;q=1.0, br;q=0.5"], "br, gzip"),
            (&["GZIP;Q=0.5"], "gzip"),
            (&["x-gzip"], "gzip"),
            (&["gzip;q=0"], "identity"),
            (&["identity"], "identity"),
            (&["*"], "br, zstd, gzip"),
            (&["*;q=0.1, gzip"], "br, zstd, gzip"),
            (&["gzip, gzip;q=0"], "identity"),
            (&["*, br;q=0"], "zstd, gzip"),
            (&["gzip;q=2"], "identity"),
            (&["gzip;q=0.1234"], "identity"),
            (&["gzip ; q=0.123"], "gzip"),
            (&["br;q=0.2, gzip;q=0.2"], "br, gzip"),
        ] {
            assert_eq!(encoding(values), expected, "{values:?}");
        }
    }

    #[test]
    fn every_set_of_codings_has_its_text() {
        for (set, text) in ENCODINGS.iter().enumerate().skip(1) {
            let members = CODINGS.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
            let spelt = members.map(|(_, coding)| *coding).collect::<Vec<_>>().join(", ");
            assert_eq!(spelt, *text);
        }
    }

    #[test]
    fn languages() {
        for (values, expected) in [
            (&[][..], ""),
            (&["en"], "en"),
            (&["en-GB,en;q=0.5"], "en-gb, en;q=0.9"),
            (&["de;q=0.3, EN-gb, en;q=0.7"], "en-gb, en;q=0.9, de;q=0.8"),
            (&["fr, EN;q=0.5, de;q=0.5, it;q=0.1"], "fr, de;q=0.9, en;q=0.9, it;q=0.8"),
            (&["de, en"], "de, en"),
            (&["en, de"], "de, en"),
            (&["en", "de"], "de, en"),
            (&["de, de, DE;q=0.1"], "de"),
            (&["de;q=0, *"], "*"),
            (&["<script>, de"], "de"),
            (&["a,b,c,d,e,f,g,h,i,j,k"], "a, b, c, d, e, f, g, h, i, j"),
            (&["a;q=0.1,b,c,d,e,f,g,h,i,j,k"], "b, c, d, e, f, g, h, i, j, k"),
        ] {
            assert_eq!(language(values), expected, "{values:?}");
        }
    }

    #[test]
    fn what_is_forwarded_is_the_normal_form() {
        let mut headers = HeaderMap::new();
        normalise_negotiation(&mut headers);
        assert_eq!(headers[ACCEPT_ENCODING], "identity");
        assert!(!headers.contains_key(ACCEPT_LANGUAGE));
        headers.append(ACCEPT_LANGUAGE, HeaderValue::from_static("???"));
        headers.append(ACCEPT_ENCODING, HeaderValue::from_static("br"));
        normalise_negotiation(&mut headers);
        assert_eq!(headers[ACCEPT_ENCODING], "br");
        assert!(!headers.contains_key(ACCEPT_LANGUAGE));
    }

    proptest! {
        #[test]
        fn normal_forms_are_their_own(
            codings in prop::collection::vec("(gzip|br|zstd|deflate|identity|\\*)(;q=(0|1|0\\.[0-9]))?", 0..6),
            languages in prop::collection::vec("[a-zA-Z*]{1,3}(-[a-zA-Z0-9]{1,3})?(;q=(0|1|0\\.[0-9]{1,3}))?", 0..15),
        ) {
            let once = encoding(&[&codings.join(",")]);
            prop_assert_eq!(encoding(&[once]), once);
            let once = language(&[&languages.join(",")]);
            prop_assert_eq!(language(&[&once]), once);
        }

        #[test]
        fn any_value_is_survived(value in "[ -~]{0,80}") {
            let _ = encoding(&[&value]);
            let _ = language(&[&value]);
        }
    }
}
