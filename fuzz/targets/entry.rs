//! Bytes from Redis: what decodes is encoded to the same, and using it cannot fail, whatever its numbers are.
#![no_main]

use bytes::Bytes;
use http::HeaderMap;
use weir::cache::conditional;
use weir::cache::entry::{Entry, Stored, codec};
use weir::cache::parts;
use weir::cache::ranges::Selection;
use weir_fuzz::{NOW, fuzz_target};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAX_BODY: usize = 1 << 20;
const CHECKSUM_AT: usize = 32;
const PAYLOAD_AT: usize = 40;

fuzz_target!(|data: &[u8]| {
    check(data);
    // A checksum is not guessed: behind a right one is where foreign bytes would do harm.
    if data.len() >= PAYLOAD_AT {
        let mut sealed = data.to_vec();
        sealed[..5].copy_from_slice(b"WEIR\x01");
        let sum = xxh3_64_with_seed(&sealed[PAYLOAD_AT..], xxh3_64(&sealed[..CHECKSUM_AT]));
        sealed[CHECKSUM_AT..PAYLOAD_AT].copy_from_slice(&sum.to_be_bytes());
        check(&sealed);
    }
});

fn check(data: &[u8]) {
    let Ok(stored) = codec::decode(&Bytes::copy_from_slice(data), MAX_BODY) else { return };
    for compress_over in [None, Some(0)] {
        let again = codec::encode(&stored, compress_over);
        assert_eq!(codec::decode(&again.into(), MAX_BODY).as_ref(), Ok(&stored));
    }
    let _ = (stored.weight(), stored.keep_ms(NOW), stored.position(), stored.fence());
    if let Stored::Entry(entry) = &stored {
        use_entry(entry);
    }
}

fn use_entry(entry: &Entry) {
    let freshness = entry.freshness;
    for now in [0, NOW, u64::MAX] {
        let _ = (freshness.age_ms(now), entry.keep_ms(now));
        for is_soft in [false, true] {
            let _ = freshness.evaluate(now, None, is_soft);
        }
    }
    let _ = freshness.refreshes_early(freshness.lifetime_ms, entry.fill_cost_ms.into());
    let mut conditions = HeaderMap::new();
    let asked = conditional::ask_to_confirm(&mut conditions, entry, conditional::By::AnyValidator);
    assert_eq!(asked, entry.has_validator());
    let _ = conditional::evaluate(&conditions, entry);
    let _ = conditional::not_modified_fields(entry);
    let _ = entry.merged(&HeaderMap::new());
    let _ = (parts::rest(entry), parts::whole(entry, b"key"), parts::joined(entry, entry, MAX_BODY));
    conditions.insert(http::header::RANGE, http::HeaderValue::from_static("bytes=0-5, -3"));
    let selected = match parts::select(&conditions, entry) {
        Some(Selection::One(range)) => vec![range],
        Some(Selection::Several(ranges)) => ranges,
        _ => Vec::new(),
    };
    selected.into_iter().for_each(|range| drop(entry.slice(range)));
}
