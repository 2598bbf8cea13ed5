//! A path has one normal form, which begins with a slash and is its own; nothing in it can be read two ways.
#![no_main]

use std::borrow::Cow;

use weir::syntax::path::normalise;
use weir_fuzz::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(once) = normalise(text) else { return };
    assert!(once.starts_with('/') || once == "*", "{once:?}");
    assert!(!once.contains("//") && !once.contains('\\'), "{once:?}");
    assert!(!once.split('/').any(|segment| segment == "." || segment == ".."), "{once:?}");
    assert!(matches!(normalise(&once), Ok(Cow::Borrowed(again)) if again == once), "{once:?}");
    assert!(once.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control()), "{once:?}");

    // Who decodes escapes finds no other path in it: the same segments, none of them dots, with or without parameters.
    let decoded = decoded(once.as_bytes());
    assert!(!decoded.iter().any(|byte| byte.is_ascii_control() || *byte == b'\\'), "{once:?}");
    assert_eq!(slashes(&decoded), slashes(once.as_bytes()), "{once:?}");
    for segment in decoded.split(|byte| *byte == b'/') {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..", "{once:?}");
    }
});

fn slashes(path: &[u8]) -> usize {
    path.iter().filter(|byte| **byte == b'/').count()
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("an escape has two hex digits") as u8;
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let mut next = || digit(bytes.next().expect("an escape has two hex digits"));
            next() << 4 | next()
        } else {
            byte
        });
    }
    out
}
