use proptest::prelude::*;

use super::codec::{Corrupt, FENCE_AT, INCARNATION_AT, SEQ_AT, decode, encode};
use super::*;
use crate::cache::policy::Source;

const MAX_BODY: usize = 1 << 20;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// An entry of this status, fields and body, received at one million and fresh for a minute.
pub(in crate::cache) fn entry(status: u16, fields: &[(&'static str, &str)], body: &str) -> Entry {
    let origin = Origin {
        key: Bytes::from_static(b"key"),
        position: Position { incarnation: 0x0102_0304_0506_0708, seq: 9 },
        fence: 3,
        fill_cost_ms: 200,
    };
    let freshness = Freshness { received_at: 1_000_000, lifetime_ms: 60_000, ..Freshness::default() };
    let plan = Plan { freshness, source: Source::Upstream, vary: Vec::new(), tags: Vec::new() };
    let body = Bytes::copy_from_slice(body.as_bytes());
    Entry::new(origin, StatusCode::from_u16(status).unwrap(), &headers(fields), plan, body)
}

#[test]
fn validators_are_parts_of_the_fields() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let both = entry(200, &[("etag", "W/\"a\""), ("last-modified", date), ("date", date)], "");
    assert_eq!(both.etag().unwrap(), b"W/\"a\"");
    assert_eq!(both.last_modified().unwrap(), date.as_bytes());
    assert_eq!((both.modified_at(), both.date_at()), (Some(784_111_777_000), 784_111_777_000));
    let neither = entry(200, &[("etag", "\"a\""), ("etag", "\"b\""), ("last-modified", "x")], "");
    assert!(!neither.has_validator());
    assert_eq!(neither.date_at(), 1_000_000);
    let twice = entry(200, &[("last-modified", date), ("last-modified", date), ("date", date), ("date", date)], "");
    assert_eq!((twice.last_modified(), twice.modified_at(), twice.date_at()), (None, None, 1_000_000));
}

#[test]
fn what_is_kept_for_how_long() {
    let plain = entry(200, &[], "body");
    assert_eq!(plain.keep_ms(1_000_000), 60_000);
    assert_eq!(plain.keep_ms(1_060_001), 0);
    assert_eq!(entry(200, &[("etag", "\"a\"")], "").keep_ms(1_000_000), 60_000 + VALIDATOR_KEEP_MS);
    let mut windowed = entry(200, &[("etag", "\"a\"")], "");
    windowed.freshness.stale_if_error_ms = 600_000;
    assert_eq!(windowed.keep_ms(1_010_000), 650_000);
    windowed.freshness.initial_age_ms = 1_000_000;
    assert_eq!(windowed.keep_ms(1_010_000), VALIDATOR_KEEP_MS - 10_000, "it came stale, and may be confirmed");
    let verdict = Uncacheable { key: Bytes::new(), position: Position::default(), fence: 0, until: 5 };
    assert_eq!(Stored::Uncacheable(verdict.into()).keep_ms(3), 2);
}

#[test]
fn weights_count_every_byte_that_is_held() {
    let plain = entry(200, &[], "body");
    let mut more = plain.clone().with_body(Bytes::from(vec![0; 104]));
    more.tags = vec!["tag".to_owned()];
    assert_eq!(more.weight() - plain.weight(), 100 + 3 + size_of::<String>() as u64);
    assert!(plain.weight() as usize >= size_of::<Entry>() + plain.fields.len() + 4);
}

#[test]
fn a_304_replaces_fields_by_name() {
    let stored = entry(
        200,
        &[
            ("content-type", "text/plain"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-kept", "k"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("cache-control", "max-age=5"),
        ],
        "body",
    );
    let merged = stored.merged(&headers(&[
        ("x-a", "3"),
        ("x-new", "n"),
        ("x-new", "m"),
        ("content-type", "text/html"),
        ("content-length", "0"),
        ("content-encoding", "gzip"),
        ("content-digest", "sha-256=:AA==:"),
        ("age", "4"),
    ]));
    let all = |name: &str| merged.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("x-a"), ["3"]);
    assert_eq!(all("x-new"), ["n", "m"]);
    assert_eq!(all("x-kept"), ["k"]);
    assert_eq!(all("content-type"), ["text/html"]);
    assert_eq!(all("cache-control"), ["max-age=5"]);
    assert_eq!(all("age"), ["4"], "its age is computed from it, and it is not stored");
    assert!(all("date").is_empty());
    assert!(["content-length", "content-encoding", "content-digest"].iter().all(|name| all(name).is_empty()));
}

fn samples() -> Vec<Stored> {
    let mut tagged = entry(200, &[("etag", "\"a\""), ("x-b", "caf\u{e9}")], &"body ".repeat(1000));
    tagged.vary = vec![header::ACCEPT, HeaderName::from_static("x-b")];
    tagged.tags = vec!["a".to_owned(), "t\u{e4}g".repeat(40)];
    tagged.freshness.no_cache = true;
    let position = Position { incarnation: u64::MAX, seq: 1 << 40 };
    vec![
        Stored::Entry(tagged.into()),
        Stored::Entry(entry(404, &[], "").into()),
        Stored::Vary(Arc::new(Vary {
            key: Bytes::from_static(b"primary"),
            names: vec![header::ACCEPT],
            variants: vec![Variant::elsewhere(1, [1; 16], 7), Variant::elsewhere(u64::MAX, [u8::MAX; 16], u8::MAX)],
            left: 0,
            position,
            fence: 7,
            until: 5,
        })),
        Stored::Uncacheable(Arc::new(Uncacheable {
            key: Bytes::from_static(b"primary"),
            position,
            fence: 7,
            until: 5,
        })),
    ]
}

#[test]
fn scripts_find_position_and_fence_at_their_offsets() {
    for stored in samples() {
        let bytes = encode(&stored, None);
        let number = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(number(INCARNATION_AT), stored.position().incarnation);
        assert_eq!(number(SEQ_AT), stored.position().seq);
        assert_eq!(number(FENCE_AT), stored.fence());
    }
}

#[test]
fn bodies_are_packed_where_it_helps() {
    let long = "body ".repeat(1000);
    let stored = Stored::Entry(entry(200, &[], &long).into());
    let packed = Bytes::from(encode(&stored, Some(4999)));
    assert!(packed.len() < 1000);
    assert_eq!(decode(&packed, MAX_BODY).unwrap(), stored);
    assert_eq!(decode(&packed, 4999), Err(Corrupt::TooLarge));
    assert!(encode(&stored, Some(5000)).len() > 5000);
    let coded = Stored::Entry(entry(200, &[("content-encoding", "gzip")], &long).into());
    assert!(encode(&coded, Some(0)).len() > 5000);
}

#[test]
fn nothing_is_copied_out_of_what_was_read() {
    let bytes = Bytes::from(encode(&Stored::Entry(entry(200, &[("etag", "\"a\"")], "body").into()), None));
    let Ok(Stored::Entry(entry)) = decode(&bytes, MAX_BODY) else { panic!("an entry") };
    let range = bytes.as_ptr_range();
    for part in [&entry.key, &entry.fields, &entry.body] {
        assert!(range.contains(&part.as_ptr()));
    }
}

#[test]
fn what_others_write_is_named() {
    let bytes = encode(&samples()[0], None);
    let changed = |at: usize, to: u8| {
        let mut changed = bytes.clone();
        changed[at] = to;
        decode(&Bytes::from(changed), MAX_BODY).unwrap_err()
    };
    assert_eq!(decode(&Bytes::new(), MAX_BODY), Err(Corrupt::Foreign));
    assert_eq!(changed(0, b'X'), Corrupt::Foreign);
    assert_eq!(changed(4, 2), Corrupt::Version);
    assert_eq!(changed(SEQ_AT, 9), Corrupt::Checksum);
    assert_eq!(changed(bytes.len() - 1, 0), Corrupt::Checksum);
}

/// Bytes with a right checksum can still be anything: another program may have written them.
fn resealed(mut bytes: Vec<u8>) -> Bytes {
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
    let sum = xxh3_64_with_seed(&bytes[40..], xxh3_64(&bytes[..32]));
    bytes[32..40].copy_from_slice(&sum.to_be_bytes());
    bytes.into()
}

#[test]
fn a_false_length_allocates_nothing() {
    let packed = encode(&Stored::Entry(entry(200, &[], &"a".repeat(100)).into()), Some(0));
    let at = packed.iter().rposition(|byte| *byte == 100).unwrap();
    let mut huge = packed[..at].to_vec();
    huge.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    huge.extend_from_slice(&packed[at + 1..]);
    assert_eq!(decode(&resealed(huge.clone()), MAX_BODY), Err(Corrupt::TooLarge));
    assert_eq!(decode(&resealed(huge), usize::MAX), Err(Corrupt::TooLarge));
}

#[test]
fn fields_that_could_split_an_answer_are_refused() {
    let good = entry(200, &[("x-a", "bc")], "");
    let bytes = encode(&Stored::Entry(good.into()), None);
    let at = bytes.windows(2).position(|window| window == b"bc").unwrap();
    for evil in [*b"\r\n", *b"\nx", *b"\0\0"] {
        let mut changed = bytes.clone();
        changed[at..at + 2].copy_from_slice(&evil);
        assert_eq!(decode(&resealed(changed), MAX_BODY), Err(Corrupt::Malformed), "{evil:?}");
    }
}

fn any_stored() -> impl Strategy<Value = Stored> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from);
    let position = (any::<u64>(), any::<u64>()).prop_map(|(incarnation, seq)| Position { incarnation, seq });
    let names = prop::collection::vec("[a-z]{1,8}", 0..MAX_NAMES);
    let names =
        names.prop_map(|names| names.iter().map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap()).collect());
    let common = (bytes(40), position, any::<u64>(), names);
    let fields = prop::collection::vec(("[a-z-]{1,9}", "[ -~]{0,20}"), 0..6).prop_map(|fields| {
        Bytes::from(fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>())
    });
    let times = (prop::array::uniform5(any::<u64>()), any::<bool>(), any::<bool>());
    let body = (bytes(600), 1_usize..4).prop_map(|(body, times)| Bytes::from(body.repeat(times)));
    let costs = (any::<u32>(), prop::option::of(any::<u32>()));
    let rest = (fields, times, body, prop::collection::vec("\\PC{1,20}", 0..5), 200_u16..600, costs);
    let variant = any::<(u64, [u8; 16], u8)>().prop_map(|(hash, name, uses)| Variant::elsewhere(hash, name, uses));
    let variants = prop::collection::vec(variant, 0..MAX_VARIANTS);
    (0..3, common, rest, variants).prop_map(|(kind, (key, position, fence, names), rest, variants)| {
        let (fields, (times, must_revalidate, no_cache), body, tags, status, (fill_cost_ms, first)) = rest;
        let place = |first| Part { first: u64::from(first), complete: u64::from(first) + body.len() as u64 };
        let part = first.map(place);
        let [received_at, initial_age_ms, lifetime_ms, stale_while_revalidate_ms, stale_if_error_ms] = times;
        match kind {
            0 => Stored::Uncacheable(Uncacheable { key, position, fence, until: received_at }.into()),
            1 => Stored::Vary(Vary { key, names, variants, left: 0, position, fence, until: received_at }.into()),
            _ => Stored::Entry(Arc::new(Entry {
                key,
                status: StatusCode::from_u16(status).unwrap(),
                fields,
                body,
                position,
                fence,
                freshness: Freshness {
                    received_at,
                    initial_age_ms,
                    lifetime_ms,
                    stale_while_revalidate_ms,
                    stale_if_error_ms,
                    must_revalidate,
                    no_cache,
                    by_rule: false,
                },
                vary: names,
                tags,
                fill_cost_ms,
                part,
            })),
        }
    })
}

const MAX_NAMES: usize = crate::cache::key::MAX_VARY_NAMES;

proptest! {
    #[test]
    fn what_is_written_is_read(stored in any_stored(), pack in prop::option::of(0_usize..600)) {
        let bytes = Bytes::from(encode(&stored, pack));
        prop_assert_eq!(decode(&bytes, MAX_BODY), Ok(stored));
    }

    #[test]
    fn flipped_bits_never_read_as_something_else(stored in any_stored(), at: prop::sample::Index, bit in 0_u8..8) {
        let mut bytes = encode(&stored, Some(100));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(&Bytes::from(bytes), MAX_BODY).is_err());
    }

    #[test]
    fn cut_bytes_are_never_read(stored in any_stored(), at: prop::sample::Index) {
        let bytes = Bytes::from(encode(&stored, Some(100)));
        let cut = bytes.slice(..at.index(bytes.len()));
        prop_assert!(decode(&cut, MAX_BODY).is_err());
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&Bytes::from(bytes), MAX_BODY).is_err());
    }

    #[test]
    fn well_sealed_nonsense_is_survived(
        stored in any_stored(), at: prop::sample::Index, nonsense in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let mut bytes = encode(&stored, Some(100));
        let at = 5 + at.index(bytes.len() - 5);
        let end = (at + nonsense.len()).min(bytes.len());
        bytes.splice(at..end, nonsense);
        bytes.resize(bytes.len().max(40), 0);
        if let Ok(Stored::Entry(entry)) = decode(&resealed(bytes), MAX_BODY) {
            prop_assert!(entry.body.len() <= MAX_BODY);
            prop_assert!(lines(&entry.fields).all(|(name, _)| HeaderName::from_bytes(&entry.fields[name]).is_ok()));
        }
    }
}
