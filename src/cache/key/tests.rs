use std::collections::HashSet;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::cache::policy::tests::rule;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn builder(generation: &str, route: &str, fields: &[&'static str]) -> KeyBuilder {
    let mut rule = rule();
    rule.key_headers = fields.iter().map(|name| HeaderName::from_static(name)).collect();
    KeyBuilder::new(generation, route, &rule, b"secret")
}

const TARGET: Target<'_> = Target { scheme: "http", host: "shop.example", path: "/catalog/7", query: None };

fn key(builder: &KeyBuilder, target: &Target<'_>, fields: &[(&'static str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    builder.primary(&mut out, target, &headers(fields));
    out
}

#[test]
fn every_part_tells_keys_apart() {
    let plain = builder("v1", "catalog", &[]);
    let keys = [
        key(&plain, &TARGET, &[]),
        key(&builder("v2", "catalog", &[]), &TARGET, &[]),
        key(&builder("v1", "list", &[]), &TARGET, &[]),
        key(&plain, &Target { scheme: "https", ..TARGET }, &[]),
        key(&plain, &Target { host: "shop2.example", ..TARGET }, &[]),
        key(&plain, &Target { path: "/catalog/8", ..TARGET }, &[]),
        key(&plain, &Target { query: Some(""), ..TARGET }, &[]),
        key(&plain, &Target { query: Some("a=1"), ..TARGET }, &[]),
        key(&builder("v1", "catalog", &["x-a"]), &TARGET, &[]),
        key(&builder("v1", "catalog", &["x-a"]), &TARGET, &[("x-a", "")]),
        key(&builder("v1", "catalog", &["x-a"]), &TARGET, &[("x-a", "1")]),
        key(&builder("v1", "catalog", &["x-a"]), &TARGET, &[("x-a", "1"), ("x-a", "2")]),
        key(&builder("v1", "catalog", &["x-b"]), &TARGET, &[("x-b", "1")]),
    ];
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    let combined = key(&builder("v1", "catalog", &["x-a"]), &TARGET, &[("x-a", "1, 2")]);
    assert_eq!(keys[11], combined, "lines of one field mean one line with commas");
}

#[test]
fn what_is_not_keyed_does_not_count() {
    let builder = builder("v1", "catalog", &["x-b", "x-a"]);
    assert_eq!(key(&builder, &TARGET, &[("x-a", "1"), ("cookie", "a")]), key(&builder, &TARGET, &[("x-a", "1")]));
    let other_order = self::builder("v1", "catalog", &["x-a", "x-b", "x-a"]);
    assert_eq!(key(&other_order, &TARGET, &[("x-a", "1")]), key(&builder, &TARGET, &[("x-a", "1")]));
}

#[test]
fn negotiation_fields_are_keyed_in_their_one_form() {
    let builder = builder("v1", "catalog", &["accept-language", "accept-encoding"]);
    let one = key(&builder, &TARGET, &[("accept-language", "de-DE,en;q=0.2"), ("accept-encoding", "gzip,deflate")]);
    let same = key(&builder, &TARGET, &[("accept-language", "DE-de, en;q=0.9"), ("accept-encoding", "gzip;q=0.5")]);
    let other = key(&builder, &TARGET, &[("accept-language", "en, de-de;q=0.2"), ("accept-encoding", "gzip")]);
    assert_eq!(one, same);
    assert_ne!(one, other);
}

#[test]
fn credentials_are_never_in_a_key() {
    let builder = builder("v1", "catalog", &["cookie", "authorization", "x-api-key"]);
    let fields = [("cookie", "sid=hunter2"), ("authorization", "Bearer hunter3"), ("x-api-key", "hunter4")];
    let whole = key(&builder, &TARGET, &fields);
    assert!(!whole.windows(6).any(|window| window == b"hunter"));
    for left_out in 0..3 {
        let mut fewer = fields.to_vec();
        fewer.remove(left_out);
        assert_ne!(key(&builder, &TARGET, &fewer), whole);
        fewer.push((fields[left_out].0, "other"));
        assert_ne!(key(&builder, &TARGET, &fewer), whole);
    }
    assert_ne!(
        key(&builder, &TARGET, &[("cookie", "ab")]),
        key(&builder, &TARGET, &[("cookie", "a"), ("cookie", "b")])
    );

    let mut variant = Vec::new();
    builder.variant(&mut variant, b"primary", &[COOKIE], &headers(&fields));
    assert!(!variant.windows(6).any(|window| window == b"hunter"));
    let other_secret = KeyBuilder::new("v1", "catalog", &rule(), b"other");
    let mut other = Vec::new();
    other_secret.variant(&mut other, b"primary", &[COOKIE], &headers(&fields));
    assert_ne!(variant, other);
    assert!(!format!("{builder:?}").contains("secret"));
}

#[test]
fn variants() {
    let builder = builder("v1", "catalog", &[]);
    let primary = key(&builder, &TARGET, &[]);
    let variant = |names: &[HeaderName], fields: &[(&'static str, &str)]| {
        let mut out = Vec::new();
        builder.variant(&mut out, &primary, names, &headers(fields));
        out
    };
    let names = vary_names(&headers(&[("vary", "X-B, x-a"), ("vary", "x-b")])).unwrap();
    assert_eq!(names, ["x-a", "x-b"]);
    let one = variant(&names, &[("x-a", "1")]);
    assert_eq!(one, variant(&names, &[("x-a", "1"), ("x-c", "2")]));
    assert_ne!(one, variant(&names, &[("x-b", "1")]));
    assert_ne!(one, variant(&names[..1], &[("x-a", "1")]));
    assert_ne!(one, primary);
}

#[test]
fn vary_that_cannot_be_stored() {
    let of = |value: &str| vary_names(&headers(&[("vary", value)]));
    assert_eq!(of(""), Ok(vec![]));
    assert_eq!(of("*"), Err(VaryRefused::Star));
    assert_eq!(of("accept, *"), Err(VaryRefused::Star));
    assert_eq!(of("a b"), Err(VaryRefused::Malformed));
    let many = |count: usize| (0..count).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
    assert_eq!(of(&many(MAX_VARY_NAMES)).unwrap().len(), MAX_VARY_NAMES);
    assert_eq!(of(&many(MAX_VARY_NAMES + 1)), Err(VaryRefused::TooMany));
}

#[test]
fn hashes_are_the_same_everywhere() {
    assert_eq!(hash(b""), 0x2d06_8005_38d3_94c2);
}

#[test]
fn spread_is_even() {
    let mut buckets = [0; 10];
    for salt in 0..10_000 {
        let value = spread(hash(b"key"), salt);
        assert!((0.0..1.0).contains(&value));
        buckets[(value * 10.0) as usize] += 1;
    }
    assert!(buckets.iter().all(|count| (850..1150).contains(count)), "{buckets:?}");
}

proptest! {
    #[test]
    fn keys_are_injective(
        one in prop::array::uniform4("[a/\\x00\\x01]{0,4}"), other in prop::array::uniform4("[a/\\x00\\x01]{0,4}"),
        query in prop::option::of("[a\\x00]{0,2}"), other_query in prop::option::of("[a\\x00]{0,2}"),
        values in prop::collection::vec("[a,]{0,2}", 0..3), other_values in prop::collection::vec("[a,]{0,2}", 0..3),
    ) {
        let key = |parts: &[String; 4], query: &Option<String>, values: &[String]| {
            let builder = builder("v1", &parts[0], &["x-a"]);
            let target = Target { scheme: &parts[1], host: &parts[2], path: &parts[3], query: query.as_deref() };
            let fields: Vec<_> = values.iter().map(|value| ("x-a", value.as_str())).collect();
            self::key(&builder, &target, &fields)
        };
        let same = one == other && query == other_query && values == other_values;
        prop_assert_eq!(key(&one, &query, &values) == key(&other, &other_query, &other_values), same);
    }

    #[test]
    fn variants_keys_are_injective(
        one in prop::collection::vec(("x-[ab]", prop::option::of("[ax,:\\- ]{0,4}")), 0..3),
        other in prop::collection::vec(("x-[ab]", prop::option::of("[ax,:\\- ]{0,4}")), 0..3),
        path in "/[ab\\x00]{0,2}", other_path in "/[ab\\x00]{0,2}",
    ) {
        // What a request is told apart by: the path, and for each field that `Vary` names whether it is there, and as what.
        let told = |fields: &[(String, Option<String>)]| {
            let mut told: Vec<(String, Option<String>)> = Vec::new();
            for (name, value) in fields {
                if !told.iter().any(|(known, _)| known == name) {
                    told.push((name.clone(), value.clone()));
                }
            }
            told.sort();
            told
        };
        let key = |path: &str, fields: &[(String, Option<String>)]| {
            let builder = builder("v1", "all", &[]);
            let mut primary = Vec::new();
            builder.primary(&mut primary, &Target { path, ..TARGET }, &HeaderMap::new());
            let mut request = HeaderMap::new();
            for (name, value) in fields {
                if let Some(value) = value {
                    request.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
                }
            }
            let names: Vec<_> = fields.iter().map(|(name, _)| HeaderName::from_bytes(name.as_bytes()).unwrap()).collect();
            let mut out = Vec::new();
            builder.variant(&mut out, &primary, &names, &request);
            prop_assert!(out.len() > primary.len() && !out.starts_with(&primary));
            Ok(out)
        };
        let (one, other) = (told(&one), told(&other));
        let same = one == other && path == other_path;
        prop_assert_eq!(key(&path, &one)? == key(&other_path, &other)?, same);
    }
}
