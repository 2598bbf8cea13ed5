//! What is forwarded is what was keyed, and keying it again changes nothing.
//!
//! Input: host, line end, request target.
#![no_main]

use http::{HeaderValue, Request, Uri, header};
use weir::config::{QueryKeep, QueryRule};
use weir::proxy::client::Scheme;
use weir::proxy::target::Target;
use weir::syntax::glob::Glob;
use weir_fuzz::fuzz_target;

fuzz_target!(|text: &str| {
    let Some((host, target)) = text.split_once('\n') else { return };
    let (Ok(host), Ok(uri)) = (HeaderValue::from_str(host), target.parse::<Uri>()) else { return };
    let Some(once) = read(uri, &host) else { return };
    let forwarded = once.origin_form();
    assert_eq!(forwarded.path(), once.path());
    assert_eq!(forwarded.query().unwrap_or_default(), once.query().unwrap_or_default());
    let again = read(forwarded, once.host_value()).expect("what was read once can be read");
    assert_eq!((again.host(), again.path()), (once.host(), once.path()));
    assert_eq!(again.query().unwrap_or_default(), once.query().unwrap_or_default());
});

/// The target, unless two servers could read it two ways.
fn read(uri: Uri, host: &HeaderValue) -> Option<Target> {
    let mut parts = Request::new(()).into_parts().0;
    parts.uri = uri;
    parts.headers.insert(header::HOST, host.clone());
    let mut target = Target::of(&parts, Scheme::Http);
    if target.ambiguity().is_some() {
        return None;
    }
    let ignored = Glob::parse("utm_*").expect("it is one");
    target.keep_query(&QueryRule { keep: QueryKeep::Except(vec![ignored]), sort: true });
    Some(target)
}
