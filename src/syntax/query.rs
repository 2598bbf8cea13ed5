//! Query strings as they are keyed and forwarded: parameters kept or dropped, sorted where the route says so.

use std::borrow::Cow;

/// `query` (without `?`) with the parameters for whose decoded name `keep` says so, in order of their names if `sort`.
///
/// Parameters stand between `&`; a name ends at the first `=`, and in it `+` is a space and escapes are read (what is no
/// UTF-8 then becomes U+FFFD). Parameters of one name keep their order, and all that is kept stays as it came. Borrowed
/// where nothing changes, without an allocation unless a name is escaped.
pub fn filter<'q>(query: &'q str, keep: impl Fn(&str) -> bool, sort: bool) -> Cow<'q, str> {
    if query.is_empty() || is_unchanged(query, &keep, sort) {
        return Cow::Borrowed(query);
    }
    let mut kept: Vec<_> = parameters(query).filter(|(name, _)| keep(name)).collect();
    if sort {
        kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    let mut out = String::with_capacity(query.len());
    for (index, (_, parameter)) in kept.iter().enumerate() {
        if index > 0 {
            out.push('&');
        }
        out.push_str(parameter);
    }
    Cow::Owned(out)
}

fn is_unchanged(query: &str, keep: impl Fn(&str) -> bool, sort: bool) -> bool {
    let mut last = Cow::Borrowed("");
    for (name, _) in parameters(query) {
        if !keep(&name) || (sort && name < last) {
            return false;
        }
        last = name;
    }
    true
}

/// Each parameter with its decoded name.
pub fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').map(|parameter| {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        (decode(name), parameter)
    })
}

/// `text` with its escapes read and `+` as a space, as forms are sent; an escape without two hex digits stays.
pub fn decode(text: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = (
            bytes.get(at + 1).copied().and_then(super::hex_digit),
            bytes.get(at + 2).copied().and_then(super::hex_digit),
        );
        match (byte, digits) {
            (b'%', (Some(high), Some(low))) => {
                out.push(high << 4 | low);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn drops_and_sorts_by_decoded_name() {
        let no_utm = |name: &str| !name.starts_with("utm_");
        for (query, sort, expected) in [
            ("", false, ""),
            ("a=1", false, "a=1"),
            ("a=1&utm_source=x", false, "a=1"),
            ("utm_source=x&a=1&b", false, "a=1&b"),
            ("utm%5Fsource=x&a=1", false, "a=1"),
            ("%75tm_x&a=1", false, "a=1"),
            ("utm_a=1&utm_b=2", false, ""),
            ("b=1&a=2", false, "b=1&a=2"),
            ("b=1&a=2", true, "a=2&b=1"),
            ("b=2&a=1&b=1", true, "a=1&b=2&b=1"),
            ("b=1&%61=2", true, "%61=2&b=1"),
            ("b=1&utm_x&a=%zz", true, "a=%zz&b=1"),
            ("a=utm_x&&=", false, "a=utm_x&&="),
            ("a=%7e+%41", false, "a=%7e+%41"),
        ] {
            assert_eq!(filter(query, no_utm, sort), expected, "{query} {sort}");
        }
    }

    #[test]
    fn borrows_what_does_not_change() {
        for (query, sort) in [("", true), ("a=1&b=2", true), ("b=1&a=2", false), ("%61=1&b&b=0", true), ("&&", true)] {
            assert!(matches!(filter(query, |_| true, sort), Cow::Borrowed(_)), "{query}");
        }
    }

    #[test]
    fn decodes_names() {
        for (text, expected) in [
            ("a", "a"),
            ("a+b%20c", "a b c"),
            ("%C3%A9", "é"),
            ("%", "%"),
            ("%4", "%4"),
            ("%g1", "%g1"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decode(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn keeps_order_and_multiplicity(query in "([ab%6123=&+é]|utm_){0,16}", sort: bool) {
            let keep = |name: &str| !name.starts_with("utm_") && name != "b";
            let once = filter(&query, keep, sort).into_owned();
            let expected: Vec<_> = parameters(&query).filter(|(name, _)| keep(name)).collect();
            let mut found: Vec<_> = if expected.is_empty() { Vec::new() } else { parameters(&once).collect() };
            prop_assert!(!sort || found.is_sorted_by(|(a, _), (b, _)| a <= b));
            for (name, _) in &expected {
                let of = |list: &[(Cow<'_, str>, &str)]| {
                    list.iter().filter(|(n, _)| n == name).map(|(_, p)| (*p).to_owned()).collect::<Vec<_>>()
                };
                prop_assert_eq!(of(&found), of(&expected));
            }
            if sort {
                prop_assert_eq!(found.len(), expected.len());
                found.sort();
            } else {
                prop_assert_eq!(&found, &expected);
            }
            prop_assert!(once.is_empty() || matches!(filter(&once, keep, sort), Cow::Borrowed(_)));
        }
    }
}
