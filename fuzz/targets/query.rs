//! A filtered query holds what was to be kept, each as often as it came, and nothing is left to filter.
//!
//! Input: a name or `prefix*` to drop, a line end, the query.
#![no_main]

use weir::syntax::glob::Glob;
use weir::syntax::query::{filter, parameters};
use weir_fuzz::fuzz_target;

fuzz_target!(|text: &str| {
    let Some((dropped, query)) = text.split_once('\n') else { return };
    let Ok(dropped) = Glob::parse(dropped) else { return };
    assert_eq!(filter(query, |_| true, false), query);
    for sort in [false, true] {
        let kept = filter(query, |name| !dropped.matches(name), sort);
        assert_eq!(filter(&kept, |name| !dropped.matches(name), sort), kept);
        let mut expected: Vec<_> = parameters(query).filter(|(name, _)| !dropped.matches(name)).collect();
        if sort {
            expected.sort_by(|one, other| one.0.cmp(&other.0));
        }
        // An empty query still has one parameter without a name.
        if !expected.is_empty() {
            assert!(parameters(&kept).eq(expected), "{query:?} became {kept:?}");
        } else {
            assert_eq!(kept, "");
        }
    }
});
