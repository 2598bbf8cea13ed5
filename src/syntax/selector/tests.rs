use proptest::prelude::*;

use super::*;

fn url(host: Option<&str>, path: &str, query: UrlQuery) -> UrlSelector {
    UrlSelector { host: host.map(str::to_owned), path: path.to_owned(), query }
}

fn exactly(query: &str) -> UrlQuery {
    UrlQuery::Exact(Some(query.to_owned()))
}

#[test]
fn reads_urls_as_requests_are_normalised() {
    for (text, expected) in [
        ("/", url(None, "/", UrlQuery::Exact(None))),
        ("/x", url(None, "/x", UrlQuery::Exact(None))),
        ("/x?", url(None, "/x", UrlQuery::Exact(None))),
        ("/x?q=1&p", url(None, "/x", exactly("q=1&p"))),
        ("/x?*", url(None, "/x", UrlQuery::Any)),
        ("/x?a=*", url(None, "/x", exactly("a=*"))),
        ("/x??", url(None, "/x", exactly("?"))),
        ("/a/./%7eb?%7e", url(None, "/a/~b", exactly("%7e"))),
        ("/x?u=http://h/y", url(None, "/x", exactly("u=http://h/y"))),
        ("http://Shop.Example/x", url(Some("shop.example"), "/x", UrlQuery::Exact(None))),
        ("HTTPS://shop.example:443/x?*", url(Some("shop.example"), "/x", UrlQuery::Any)),
        ("http://shop.example:80", url(Some("shop.example"), "/", UrlQuery::Exact(None))),
        ("http://shop.example:8080?a", url(Some("shop.example:8080"), "/", exactly("a"))),
        ("http://[::1]:80/x", url(Some("[::1]"), "/x", UrlQuery::Exact(None))),
    ] {
        assert_eq!(UrlSelector::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn refuses_what_is_no_url() {
    for text in [
        "",
        "x",
        "?a",
        "*",
        "//x",
        "/a//b",
        "/a#b",
        "/a b",
        "/a\n",
        "/a%2fb",
        "ftp://h/x",
        "http:///x",
        "http://",
        "http://u@h/x",
        "http://h:port:/x",
        "/..",
    ] {
        let error = UrlSelector::parse(text).unwrap_err();
        assert!(error.to_string().chars().all(|c| !c.is_control()), "{text}");
    }
    assert!(UrlSelector::parse(&format!("/{}", "x".repeat(URL_BYTES))).is_err());
}

#[test]
fn reads_every_kind_of_selector() {
    let order = Order {
        urls: vec!["/x?*".to_owned()],
        tags: vec!["product:7".to_owned()],
        prefixes: vec!["/a/./b/".to_owned(), "/".to_owned()],
        routes: vec!["catalog".to_owned()],
        all: true,
        soft: true,
    };
    let selectors = order.selectors().unwrap();
    let kinds: Vec<_> = selectors.iter().map(|selector| selector.kind().as_str()).collect();
    assert_eq!(kinds, ["url", "tag", "prefix", "prefix", "route", "all"]);
    assert_eq!(selectors[2], Selector::Prefix("/a/b/".to_owned()));
}

#[test]
fn refuses_bad_orders() {
    let tags = |tags: &[&str]| Order { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..Order::default() };
    let prefix = |prefix: &str| Order { prefixes: vec![prefix.to_owned()], ..Order::default() };
    let route = |route: &str| Order { routes: vec![route.to_owned()], ..Order::default() };
    for order in [
        Order::default(),
        Order { soft: true, ..Order::default() },
        tags(&[""]),
        tags(&["a b"]),
        tags(&["é"]),
        tags(&["a", "b\r\n"]),
        tags(&[&"t".repeat(NAME_BYTES + 1)]),
        tags(&vec!["t"; SELECTORS_PER_ORDER + 1]),
        prefix("catalog"),
        prefix("/a?b"),
        prefix("/a/*"),
        prefix("/a//"),
        prefix(""),
        route(""),
        route("a\nb"),
    ] {
        assert!(order.selectors().is_err(), "{order:?}");
    }
    assert!(tags(&vec!["t"; SELECTORS_PER_ORDER]).selectors().is_ok());
    assert!(tags(&[&"t".repeat(NAME_BYTES)]).selectors().is_ok());
}

#[test]
fn reads_messages() {
    let order = Order::parse_message(br#"{"tags":["product:7"],"soft":true}"#).unwrap();
    assert_eq!(order, Order { tags: vec!["product:7".to_owned()], soft: true, ..Order::default() });
    for message in ["", "[]", "{", r#"{"tag":["x"]}"#, r#"{"tags":"x"}"#, r#"{"all":1}"#, "{} {}", "\u{feff}{}", "null"]
    {
        assert!(Order::parse_message(message.as_bytes()).is_err(), "{message}");
    }
    assert!(Order::parse_message(b"\xff\xfe").is_err());
    assert!(Order::parse_message(&vec![b' '; MESSAGE_BYTES + 1]).unwrap_err().problem.contains("long"));
}

proptest! {
    #[test]
    fn messages_come_back(tags in prop::collection::vec("[!-~]{1,20}", 0..4), all: bool, soft: bool) {
        let order = Order { tags, all, soft, ..Order::default() };
        let message = serde_json::to_vec(&order).unwrap();
        prop_assert_eq!(Order::parse_message(&message), Ok(order.clone()));
        prop_assert_eq!(order.selectors().is_ok(), all || !order.tags.is_empty());
    }

    #[test]
    fn no_text_breaks_a_parser(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Order::parse_message(&bytes);
        let order = Order { urls: vec![text.clone()], ..Order::default() };
        let _ = order.selectors();
        let _ = parse_prefix(&text);
        let _ = check_route(&text);
    }

    #[test]
    fn a_read_url_names_what_a_request_has(path in "/[ab.%2e~]{0,8}", query in "[ab=*?&]{0,5}") {
        if let Ok(selector) = UrlSelector::parse(&format!("http://H/{path}?{query}")) {
            let normal = path::normalise(&selector.path);
            prop_assert_eq!(normal.as_deref(), Ok(selector.path.as_str()));
            prop_assert_eq!(selector.host.as_deref(), Some("h"));
        }
    }
}
