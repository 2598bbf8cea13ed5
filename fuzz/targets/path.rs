//! A path has one normal form, which begins with a slash and is its own; nothing in it can be read two ways.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use weir::syntax::path::normalise;

fuzz_target!(|text: &str| {
    let Ok(once) = normalise(text) else { return };
    assert!(once.starts_with('/') || once == "*", "{once:?}");
    assert!(!once.contains("//") && !once.contains('\\'), "{once:?}");
    assert!(!once.split('/').any(|segment| segment == "." || segment == ".."), "{once:?}");
    assert!(matches!(normalise(&once), Ok(Cow::Borrowed(again)) if again == once), "{once:?}");
});
