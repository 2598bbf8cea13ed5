use proptest::prelude::*;

use super::*;
use crate::proxy::client::Scheme;

fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn values<'f>(fields: &'f HeaderMap, name: &str) -> Vec<&'f str> {
    fields.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

fn names(fields: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_one_connection_owns_is_removed() {
    let mut map = fields(&[
        ("accept", "*/*"),
        ("connection", "keep-alive, X-Mine"),
        ("connection", "x-other,,"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip;q=0.5, Trailers"),
        ("transfer-encoding", "chunked"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic x"),
        ("proxy-authentication-info", "x"),
        ("proxy-connection", "keep-alive"),
        ("proxy-status", "weir"),
        ("http2-settings", "AAA"),
        ("upgrade", "websocket"),
        ("x-mine", "1"),
        ("x-mine", "2"),
        ("x-other", "1"),
        ("x-third", "1"),
    ]);
    let hop = strip_hop_by_hop(&mut map);
    assert_eq!(hop, Hop { upgrade: None, te_trailers: true, close: false });
    assert_eq!(names(&map), ["accept", "proxy-status", "x-third"]);
}

#[test]
fn connection_takes_nothing_away_that_others_need() {
    let kept = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "forwarded",
        "host",
        "set-cookie",
        "vary",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
    ];
    for spelling in [str::to_owned, |name: &str| name.to_ascii_uppercase()] {
        let mut map = fields(&kept.map(|name| (name, "1")));
        let named = format!("close, {}, te", kept.map(spelling).join(", "));
        map.append(CONNECTION, HeaderValue::from_str(&named).unwrap());
        map.append(TE, HeaderValue::from_static("trailers"));
        assert_eq!(strip_hop_by_hop(&mut map), Hop { upgrade: None, te_trailers: true, close: true });
        assert_eq!(names(&map), kept);
    }
}

#[test]
fn an_upgrade_needs_both_fields_and_is_never_h2c() {
    for (connection, upgrade, expected) in [
        ("Upgrade", vec!["websocket"], Some("websocket")),
        ("keep-alive, UPGRADE", vec!["websocket"], Some("websocket")),
        ("keep-alive", vec!["websocket"], None),
        ("upgrade", vec![], None),
        ("upgrade", vec![""], None),
        ("upgrade, http2-settings", vec!["h2c"], None),
        ("upgrade", vec!["H2C, websocket"], Some("websocket")),
        ("upgrade", vec!["websocket/13, foo"], Some("websocket/13, foo")),
        ("upgrade", vec!["a", "h2c", "b"], Some("a, b")),
    ] {
        let mut map = fields(&[("connection", connection)]);
        for value in &upgrade {
            map.append(UPGRADE, HeaderValue::from_static(value));
        }
        let hop = strip_hop_by_hop(&mut map);
        assert_eq!(hop.upgrade.as_ref().map(|value| value.to_str().unwrap()), expected, "{connection} {upgrade:?}");
        assert!(map.is_empty());
    }
}

fn client(ip: &str, peer: &str, peer_trusted: bool) -> Client {
    Client { ip: ip.parse().unwrap(), proto: Scheme::Https, peer: peer.parse().unwrap(), peer_trusted }
}

#[test]
fn a_strangers_origin_is_replaced() {
    let mut map = fields(&[
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-host", "evil"),
        ("forwarded", "for=6.6.6.6"),
        ("accept", "*/*"),
    ]);
    set_forwarding(&mut map, &client("192.0.2.1", "192.0.2.1", false), "shop.example:8080");
    assert_eq!(values(&map, "x-forwarded-for"), ["192.0.2.1"]);
    assert_eq!(values(&map, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&map, "x-forwarded-host"), ["shop.example:8080"]);
    assert_eq!(values(&map, "forwarded"), ["for=192.0.2.1;host=\"shop.example:8080\";proto=https"]);
    assert_eq!(names(&map), ["accept", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
}

#[test]
fn a_trusted_proxys_origin_is_continued() {
    let proxied = client("192.0.2.1", "10.0.0.1", true);
    for (pairs, x_forwarded_for, forwarded) in [
        (
            vec![("x-forwarded-for", "192.0.2.1")],
            "192.0.2.1, 10.0.0.1",
            "for=192.0.2.1;host=h;proto=https, for=10.0.0.1",
        ),
        (
            vec![("x-forwarded-for", "6.6.6.6, 192.0.2.1"), ("x-forwarded-for", " 10.0.0.2 ")],
            "6.6.6.6, 192.0.2.1, 10.0.0.2, 10.0.0.1",
            "for=192.0.2.1;host=h;proto=https, for=10.0.0.1",
        ),
        (
            vec![("forwarded", "for=192.0.2.1;by=_x")],
            "192.0.2.1, 10.0.0.1",
            "for=192.0.2.1;by=_x, for=10.0.0.1;host=h;proto=https",
        ),
        (
            vec![("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=\"192.0.2.1")],
            "192.0.2.1, 10.0.0.1",
            "for=192.0.2.1;host=h;proto=https, for=10.0.0.1",
        ),
    ] {
        let mut map = fields(&pairs);
        set_forwarding(&mut map, &proxied, "h");
        assert_eq!(values(&map, "x-forwarded-for"), [x_forwarded_for], "{pairs:?}");
        assert_eq!(values(&map, "forwarded"), [forwarded], "{pairs:?}");
    }
}

#[test]
fn ipv6_and_strange_hosts_are_quoted() {
    let mut map = HeaderMap::new();
    set_forwarding(&mut map, &client("2001:db8::1", "2001:db8::1", false), "[::1]\"\\");
    assert_eq!(values(&map, "x-forwarded-for"), ["2001:db8::1"]);
    assert_eq!(values(&map, "forwarded"), ["for=\"[2001:db8::1]\";host=\"[::1]\\\"\\\\\";proto=https"]);
    set_forwarding(&mut map, &client("::1", "::1", false), "");
    assert_eq!(values(&map, "forwarded"), ["for=\"[::1]\";proto=https"]);
    assert!(!map.contains_key(X_FORWARDED_HOST));
}

#[test]
fn via_is_appended() {
    let mut map = fields(&[("via", "1.0 fred")]);
    append_via(&mut map, Version::HTTP_11);
    append_via(&mut map, Version::HTTP_2);
    assert_eq!(values(&map, "via"), ["1.0 fred", "1.1 weir", "2.0 weir"]);
}

#[test]
fn unkeyed_overrides_do_not_pass() {
    let all = ["x-forwarded-host", "X-Original-URL", "x-rewrite-url", "x-forwarded-prefix", "forwarded", "x-host"];
    let mut map = fields(&all.map(|name| (name, "evil")));
    map.append("x-forwarded-for", HeaderValue::from_static("1.1.1.1"));
    map.append("accept", HeaderValue::from_static("*/*"));
    drop_overrides(&mut map, &[HeaderName::from_static("x-rewrite-url")]);
    assert_eq!(names(&map), ["accept", "x-forwarded-for", "x-rewrite-url"]);
    for name in ["X-HTTP-Method-Override", "x-http-method", "x-method-override"] {
        assert!(overrides_method(&fields(&[("accept", "*/*"), (name, "PUT")])), "{name}");
    }
    assert!(!overrides_method(&fields(&[("accept", "*/*"), ("x-http", "PUT")])));
}

#[test]
fn cookies_become_one() {
    for (cookies, expected) in [
        (vec![], vec![]),
        (vec!["a=1"], vec!["a=1"]),
        (vec!["a=1", "b=2", "c"], vec!["a=1; b=2; c"]),
        (vec!["a=1", "", "b=2"], vec!["a=1; b=2"]),
    ] {
        let mut map = fields(&cookies.iter().map(|cookie| ("cookie", *cookie)).collect::<Vec<_>>());
        join_cookies(&mut map);
        assert_eq!(values(&map, "cookie"), expected);
    }
}

#[test]
fn trailers_decide_nothing() {
    let forbidden = [
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "if-none-match",
        "range",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "x-forwarded-for",
        "x-http-method-override",
        "x-original-url",
    ];
    let allowed = ["content-digest", "etag", "grpc-message", "grpc-status", "server-timing", "x-checksum"];
    let mut map = fields(&forbidden.map(|name| (name, "1")));
    map.extend(fields(&allowed.map(|name| (name, "1"))));
    filter_trailers(&mut map);
    assert_eq!(names(&map), allowed);
}

proptest! {
    #[test]
    fn stripping_leaves_nothing_of_the_hop_and_all_of_the_rest(
        pairs in prop::collection::vec(
            (
                prop::sample::select(vec!["connection", "te", "upgrade", "keep-alive", "x-a", "x-b", "host", "cookie"]),
                prop::sample::select(vec!["x-a", "X-B, close", "host, cookie", "upgrade", "trailers", "", "\u{e9}", "h2c,a"]),
            ),
            0..10,
        ),
    ) {
        let mut map = fields(&pairs);
        let before = map.clone();
        strip_hop_by_hop(&mut map);
        prop_assert!(!map.keys().any(is_hop_by_hop));
        for name in ["host", "cookie"] {
            prop_assert!(map.get_all(name).iter().eq(before.get_all(name).iter()));
        }
        let named = |name: &str| {
            let all: Vec<_> = before.get_all("connection").iter().flat_map(tokens).collect();
            all.iter().any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
        };
        for name in ["x-a", "x-b"] {
            prop_assert_eq!(map.contains_key(name), before.contains_key(name) && !named(name));
        }
        prop_assert_eq!(strip_hop_by_hop(&mut map), Hop::default());
    }

    #[test]
    fn what_is_written_is_read_back(bits: u32, wide: u128, six: bool, host in "[ -~]{0,12}") {
        let ip: IpAddr = if six { IpAddr::V6(wide.into()) } else { IpAddr::V4(bits.into()) };
        let ip = ip.to_canonical();
        let mut map = HeaderMap::new();
        set_forwarding(&mut map, &Client { ip, proto: Scheme::Http, peer: ip, peer_trusted: false }, &host);
        let elements = split_unquoted(map[FORWARDED].to_str().unwrap()).map(|elements| elements.len());
        prop_assert_eq!(elements, Some(1));
        prop_assert_eq!(map[X_FORWARDED_FOR].to_str().unwrap().parse::<IpAddr>().ok(), Some(ip));
    }
}

#[test]
fn an_underscore_is_no_disguise() {
    let spelled = [("x_forwarded_for", "6.6.6.6"), ("X-Forwarded_Host", "evil"), ("x_forwarded_tls", "1")];
    for peer_trusted in [false, true] {
        let mut map = fields(&spelled);
        let ip = "192.0.2.1".parse().unwrap();
        set_forwarding(&mut map, &Client { ip, proto: Scheme::Http, peer: ip, peer_trusted }, "a");
        assert_eq!(names(&map), ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
        assert_eq!(values(&map, "x-forwarded-for"), ["192.0.2.1"]);
    }
    let mut map = fields(&[("x_original_url", "/admin"), ("x-rewrite_url", "/admin"), ("x_other", "1")]);
    assert!(steers(&map, &[]) && !overrides_method(&map));
    drop_overrides(&mut map, &[]);
    assert_eq!(names(&map), ["x_other"]);
    assert!(overrides_method(&fields(&[("x_http_method_override", "DELETE")])));
    let mut trailers = fields(&[("x_method_override", "DELETE"), ("x_sum", "1")]);
    filter_trailers(&mut trailers);
    assert_eq!(names(&trailers), ["x_sum"]);
}

#[test]
fn what_is_no_token_hides_none() {
    let mut map = HeaderMap::new();
    map.append("connection", HeaderValue::from_bytes(b"\xff, x-secret, upgrade").unwrap());
    map.append("upgrade", HeaderValue::from_bytes(b"\xff, websocket, H2C").unwrap());
    map.append("x-secret", HeaderValue::from_static("1"));
    let hop = strip_hop_by_hop(&mut map);
    assert!(map.is_empty(), "{map:?}");
    assert_eq!(hop.upgrade.unwrap().as_bytes(), b"websocket");
}

#[test]
fn two_open_quotes_do_not_close_each_other() {
    let mut map = fields(&[("forwarded", "a=\""), ("forwarded", "\";for=6.6.6.6")]);
    let ip = "10.0.0.1".parse().unwrap();
    set_forwarding(&mut map, &Client { ip, proto: Scheme::Http, peer: ip, peer_trusted: true }, "a");
    assert_eq!(values(&map, "forwarded"), ["for=10.0.0.1;host=a;proto=http"]);
}
