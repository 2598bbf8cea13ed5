use std::cmp::Reverse;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::config::FieldEdits;
use crate::syntax::path;
use crate::syntax::pattern::Pattern;

fn route(pattern: &str) -> Route {
    Route {
        name: pattern.to_owned(),
        path: Pattern::parse(pattern).unwrap(),
        hosts: Vec::new(),
        methods: Vec::new(),
        headers: Vec::new(),
        cache: None,
        limits: Vec::new(),
        invalidates: None,
        request: FieldEdits::default(),
        response: FieldEdits::default(),
        response_timeout: Duration::from_secs(1),
        body_idle: Duration::from_secs(1),
        tunnel_idle: Duration::from_secs(1),
        purge: None,
    }
}

fn hosted(pattern: &str, hosts: &[&str]) -> Route {
    Route { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..route(pattern) }
}

fn with_methods(pattern: &str, methods: &[Method]) -> Route {
    Route { methods: methods.to_vec(), ..route(pattern) }
}

fn with_headers(pattern: &str, headers: &[(&str, Option<&str>)]) -> Route {
    let headers = headers
        .iter()
        .map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), value.map(|value| HeaderValue::from_str(value).unwrap()))
        })
        .collect();
    Route { headers, ..route(pattern) }
}

fn router(routes: impl IntoIterator<Item = Route>) -> Router {
    Router::new(&routes.into_iter().map(Arc::new).collect::<Vec<_>>())
}

fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

#[test]
fn a_literal_stands_before_a_name_before_the_rest() {
    let router = router(["/{*path}", "/{x}", "/a", "/a/{id}", "/a/{*rest}", "/a/b", "/", "/a/"].map(route));
    for (path, expected) in [
        ("/", 6),
        ("/a", 2),
        ("/z", 1),
        ("/a/", 7),
        ("/a/b", 5),
        ("/a/c", 3),
        ("/a/b/c", 4),
        ("/a/c/", 4),
        ("/z/", 0),
        ("/z/y", 0),
    ] {
        assert_eq!(router.find("h", &Method::GET, path, &HeaderMap::new()), Some(expected), "{path}");
    }
    assert_eq!(router.find("h", &Method::OPTIONS, "*", &HeaderMap::new()), None);
    assert_eq!(router.find("h", &Method::GET, "", &HeaderMap::new()), None);
}

#[test]
fn an_earlier_segment_counts_more_than_a_later_one() {
    let router = router(["/{x}/b", "/a/{*rest}"].map(route));
    assert_eq!(router.find("h", &Method::GET, "/a/b", &HeaderMap::new()), Some(1));
    assert_eq!(router.find("h", &Method::GET, "/c/b", &HeaderMap::new()), Some(0));
}

#[test]
fn a_dead_end_falls_back_to_less_specific_patterns() {
    let router = router([
        route("/{*all}"),
        route("/{x}/{y}/c"),
        with_methods("/a/b/c", &[Method::PUT]),
        with_headers("/a/{y}/c", &[("x-v", Some("2"))]),
    ]);
    let none = HeaderMap::new();
    assert_eq!(router.find("h", &Method::PUT, "/a/b/c", &none), Some(2));
    assert_eq!(router.find("h", &Method::GET, "/a/b/c", &fields(&[("x-v", "2")])), Some(3));
    assert_eq!(router.find("h", &Method::GET, "/a/b/c", &none), Some(1));
    assert_eq!(router.find("h", &Method::GET, "/a/b/d", &none), Some(0));
}

#[test]
fn a_more_specific_host_stands_first() {
    let router = router([
        route("/a"),
        hosted("/a", &["*.example"]),
        hosted("/{x}", &["*.shop.example"]),
        hosted("/{*all}", &["www.shop.example", "[::1]"]),
    ]);
    for (host, expected) in [
        ("www.shop.example", Some(3)),
        ("www.shop.example:8080", Some(3)),
        ("www.shop.example.", Some(3)),
        ("[::1]", Some(3)),
        ("[::1]:8080", Some(3)),
        ("m.shop.example", Some(2)),
        ("a.m.shop.example", Some(2)),
        ("shop.example", Some(1)),
        ("a.b.example", Some(1)),
        ("example", Some(0)),
        ("xexample", Some(0)),
        ("", Some(0)),
    ] {
        assert_eq!(router.find(host, &Method::GET, "/a", &HeaderMap::new()), expected, "{host}");
    }
    assert_eq!(router.find("m.shop.example", &Method::GET, "/b/c", &HeaderMap::new()), None);
}

#[test]
fn methods_then_fields_then_the_file_decide() {
    let router = router([
        route("/{x}"),
        with_headers("/{y}", &[("a", None)]),
        with_headers("/{y}", &[("a", None), ("b", Some("1"))]),
        with_methods("/{z}", &[Method::GET]),
        route("/{w}"),
    ]);
    let none = HeaderMap::new();
    assert_eq!(router.find("h", &Method::GET, "/q", &fields(&[("a", ""), ("b", "1")])), Some(3));
    assert_eq!(router.find("h", &Method::PUT, "/q", &fields(&[("a", ""), ("b", "0"), ("b", "1")])), Some(2));
    assert_eq!(router.find("h", &Method::PUT, "/q", &fields(&[("a", ""), ("b", "2")])), Some(1));
    assert_eq!(router.find("h", &Method::PUT, "/q", &none), Some(0));
}

/// What precedence compares, one segment after the other.
fn rank(segment: &Segment) -> u8 {
    match segment {
        Segment::Literal(_) => 0,
        Segment::One(_) => 1,
        Segment::Rest(_) => 2,
    }
}

/// The rule as it is written down: all that match, sorted.
fn naive(routes: &[Route], host: &str, method: &Method, path: &str, headers: &HeaderMap) -> Option<usize> {
    let host = host.split(':').next().unwrap();
    let host_rank = |route: &Route| {
        let ranks = route.hosts.iter().filter_map(|pattern| match pattern.strip_prefix("*.") {
            Some(suffix) => host.ends_with(&format!(".{suffix}")).then_some((1, Reverse(suffix.len()))),
            None => (host == pattern).then_some((0, Reverse(0))),
        });
        if route.hosts.is_empty() { Some((2, Reverse(0))) } else { ranks.min() }
    };
    let matching = routes.iter().enumerate().filter_map(|(index, route)| {
        let host = host_rank(route)?;
        route.path.capture(path)?;
        if !takes(route, method, headers) {
            return None;
        }
        let segments: Vec<_> = route.path.segments().iter().map(rank).collect();
        Some((host, segments, route.methods.is_empty(), Reverse(route.headers.len()), index))
    });
    matching.min().map(|(.., index)| index)
}

fn patterns() -> impl Strategy<Value = String> {
    let segment = prop_oneof![3 => Just("a"), 2 => Just("b"), 3 => Just("{}")];
    let end = prop_oneof![3 => Just(None), 1 => Just(Some("")), 2 => Just(Some("{*rest}"))];
    (prop::collection::vec(segment, 0..4), end).prop_map(|(mut segments, end)| {
        if let Some(end) = end {
            segments.push(end);
        }
        let named = segments.iter().enumerate().map(|(index, segment)| match *segment {
            "{}" => format!("{{x{index}}}"),
            other => other.to_owned(),
        });
        format!("/{}", named.collect::<Vec<_>>().join("/"))
    })
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let hosts =
        prop::collection::vec(prop::sample::select(vec!["x.example", "*.example", "*.x.example", "y.x.example"]), 0..3);
    let methods = prop::sample::subsequence(vec![Method::GET, Method::PUT], 0..=2);
    let headers = prop::sample::subsequence(vec![("a", None), ("a", Some("1")), ("b", None)], 0..=3);
    let one = (patterns(), hosts, prop_oneof![Just(Vec::new()), methods], prop_oneof![Just(Vec::new()), headers]);
    let one = one.prop_map(|(pattern, hosts, methods, headers)| Route {
        methods,
        headers: with_headers("/", &headers).headers,
        ..hosted(&pattern, &hosts)
    });
    prop::collection::vec(one, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]
    #[test]
    fn finds_what_the_written_rule_finds(
        routes in routes(),
        requests in prop::collection::vec(
            (
                prop::sample::select(vec!["x.example", "x.example:81", "y.x.example", "z.x.example", "w.example", "other", ""]),
                prop::sample::select(vec![Method::GET, Method::PUT, Method::HEAD]),
                "(/[abc]){0,4}/?",
                prop::sample::subsequence(vec![("a", "1"), ("a", "2"), ("b", "")], 0..=3),
            ),
            1..30,
        ),
    ) {
        let shared: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        let router = Router::new(&shared);
        for (host, method, path, headers) in requests {
            let (path, headers) = (path::normalise(&path).unwrap(), fields(&headers));
            let found = router.find(host, &method, &path, &headers);
            prop_assert_eq!(found, naive(&routes, host, &method, &path, &headers), "{} {} {}", host, method, path);
            let fits = |route: &Route| misfit(route, host, &method, &path, &headers).is_none();
            prop_assert!(found.is_none_or(|found| fits(&routes[found])), "{} {} {}", host, method, path);
            prop_assert!(found.is_some() || !routes.iter().any(fits), "{} {} {}", host, method, path);
        }
    }

    #[test]
    fn spellings_of_a_path_are_routed_alike(path in "(/[ab.]{1,2}|/%2e|/%61){0,5}/?") {
        let router = router(["/{*all}", "/a/{x}", "/a", "/{x}/b/{*rest}", "/a/b"].map(route));
        if let Ok(normal) = path::normalise(&path) {
            let again = path::normalise(&normal).unwrap();
            let find = |path: &str| router.find("h", &Method::GET, path, &HeaderMap::new());
            prop_assert!(find(&normal).is_some());
            prop_assert_eq!(find(&normal), find(&again));
        }
    }
}
