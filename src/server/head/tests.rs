use bytes::Bytes;

use super::*;

fn parse_text(head: &str) -> Result<Head, Refusal> {
    let bytes = Bytes::copy_from_slice(head.as_bytes());
    match scan(&bytes, &mut 0) {
        Scan::End(end) => {
            assert_eq!(end, head.len(), "{head:?}");
            parse(&bytes, HeaderMap::new())
        }
        Scan::Partial => panic!("{head:?} is not whole"),
        Scan::BareLineFeed => Err(Refusal::bad("bare line feed")),
    }
}

/// The head of a request with these lines behind a valid beginning.
fn with(lines: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

#[test]
fn what_could_be_read_two_ways_is_refused() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(TARGET_MAX));
    let many_fields = with(&"a: b\r\n".repeat(FIELDS_MAX));
    let cases: &[(&str, u16)] = &[
        // Lengths and codings.
        (&with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400),
        (&with("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), 400),
        (&with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
        (&with("Transfer-Encoding: chunked, chunked\r\n"), 400),
        (&with("Transfer-Encoding: gzip, chunked\r\n"), 400),
        (&with("Transfer-Encoding: identity, chunked\r\n"), 400),
        (&with("Transfer-Encoding: chunked;q=1\r\n"), 400),
        (&with("Transfer-Encoding: \"chunked\"\r\n"), 400),
        (&with("Transfer-Encoding:\r\n"), 400),
        (&with("Transfer-Encoding: \u{b}chunked\r\n"), 400),
        (&with("Transfer-Encoding: gzip\r\n"), 501),
        (&with("Transfer-Encoding: identity\r\n"), 501),
        (&with("Transfer-Encoding: xchunked\r\n"), 501),
        ("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (&with("Content-Length: 1\r\nContent-Length: 2\r\n"), 400),
        (&with("Content-Length: 1\r\nContent-Length: 1\r\n"), 400),
        (&with("Content-Length: 1, 1\r\n"), 400),
        (&with("Content-Length: +1\r\n"), 400),
        (&with("Content-Length: -1\r\n"), 400),
        (&with("Content-Length: 0x1\r\n"), 400),
        (&with("Content-Length: 1 1\r\n"), 400),
        (&with("Content-Length: 18446744073709551616\r\n"), 400),
        (&with("Content-Length:\r\n"), 400),
        (&with("Content-Length: one\r\n"), 400),
        // Lines.
        (&with("X: a\r\n folded\r\n"), 400),
        (&with("X: a\r\n\tfolded\r\n"), 400),
        ("GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
        (&with("X : a\r\n"), 400),
        (&with("X\t: a\r\n"), 400),
        (&with("X: a\0b\r\n"), 400),
        (&with("X: a\u{1}b\r\n"), 400),
        (&with("X: a\u{7f}b\r\n"), 400),
        (&with("X: a\rb\r\n"), 400),
        (&with("X: a\r\r\n"), 400),
        (&with("X: a\nY: b\r\n"), 400),
        (&with(": a\r\n"), 400),
        (&with("no colon\r\n"), 400),
        (&with("a(b): c\r\n"), 400),
        ("GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
        (&many_fields, 431),
        // Request lines.
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
        ("GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET ?a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /#f HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http://h/#f HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http://h/ HTTP/1.1\r\n\r\n", 400),
        ("GET http://h/ HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
        (&long_target, 414),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505),
        ("GET / http/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1\r\nHost: h\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("PRI / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("get / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("trace / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("G|T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /\u{e4} HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /?\u{e4} HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /?\u{7f} HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (&with("Range: bytes=0-1\r\nRange: bytes=2-3\r\n"), 400),
        (&with("Authorization: a\r\nX: y\r\nauthorization: a\r\n"), 400),
        // What others read `_` as.
        (&with("Content_Length: 1\r\n"), 400),
        (&with("transfer_encoding: chunked\r\n"), 400),
        // Hosts.
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [a/b]\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [abcd]\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a%2fb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: .a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: .\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: \u{e4}\r\n\r\n", 400),
        // Expectations.
        (&with("Expect: miracles\r\n"), 417),
        (&with("Expect: 100-continue\r\nExpect: miracles\r\n"), 417),
    ];
    for (head, status) in cases {
        let shown = &head[..head.len().min(200)];
        match parse_text(head) {
            Ok(parsed) => panic!("{shown:?} was taken as {parsed:?}"),
            Err(refusal) => assert_eq!(refusal.status.as_u16(), *status, "{shown:?}: {}", refusal.why),
        }
    }
}

#[test]
fn what_is_right_is_taken() {
    let head = parse_text(&with("Content-Length: 12\r\nX-A: \u{e4} b \r\nX-A: c\r\n")).expect("valid");
    assert_eq!(head.framing, Framing::Length(12));
    assert_eq!(head.parts.headers.get_all("x-a").iter().count(), 2);
    assert_eq!(head.parts.headers["x-a"].as_bytes(), "\u{e4} b".as_bytes());
    assert!(head.keep_alive && !head.expects_continue && !head.takes_trailers);

    let head = parse_text(&with("Transfer-Encoding: Chunked\r\nTE: gzip, trailers\r\nConnection: x, Close\r\n"));
    let head = head.expect("valid");
    assert_eq!(head.framing, Framing::Chunked);
    assert!(!head.parts.headers.contains_key("transfer-encoding"), "framing ends at this hop");
    assert!(head.takes_trailers && !head.keep_alive);

    let head = parse_text(&with("Expect: 100-Continue\r\nContent-Length: 1\r\n")).expect("valid");
    assert!(head.expects_continue && !head.parts.headers.contains_key("expect"));
    assert_eq!(parse_text(&with("Content-Length: 0\r\n")).expect("valid").framing, Framing::None);

    let head = parse_text("GET / HTTP/1.0\r\n\r\n").expect("HTTP/1.0 needs no Host");
    assert!(!head.keep_alive);
    assert!(parse_text("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("valid").keep_alive);
    for host in ["a", "a.", "a.b-c_d:80", "127.0.0.1:1", "[::1]", "[::ffff:1.2.3.4]:8080", "a:"] {
        parse_text(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    }
}

#[test]
fn targets_come_in_origin_form() {
    let cases = [
        ("GET /a?b=%20{c} HTTP/1.1", "/a?b=%20{c}", "old"),
        ("GET //a/../b HTTP/1.1", "//a/../b", "old"),
        ("GET http://new:8080/a?b HTTP/1.1", "/a?b", "new:8080"),
        ("GET HTTP://new HTTP/1.1", "/", "new"),
        ("GET http://new?b HTTP/1.1", "/?b", "new"),
        ("OPTIONS * HTTP/1.1", "*", "old"),
        ("OPTIONS http://new HTTP/1.1", "*", "new"),
        ("OPTIONS http://new/ HTTP/1.1", "/", "new"),
    ];
    for (line, target, host) in cases {
        let head = parse_text(&format!("{line}\r\nHost: old\r\n\r\n")).unwrap_or_else(|e| panic!("{line}: {e:?}"));
        assert_eq!(head.parts.uri.to_string(), target, "{line}");
        assert_eq!(head.parts.headers["host"], host, "{line}");
        assert!(head.parts.uri.authority().is_none());
    }
}

#[test]
fn an_offer_of_http2_goes_and_other_offers_stay() {
    for offer in ["h2c", "websocket, H2C", "h2", "h3", "HTTP/2.0", "TLS/1.0, http/1.1"] {
        let head = parse_text(&with(&format!("Upgrade: {offer}\r\nHTTP2-Settings: a\r\n"))).expect("valid");
        assert!(!head.parts.headers.contains_key("upgrade") && !head.parts.headers.contains_key("http2-settings"));
    }
    assert!(parse_text(&with("Upgrade: websocket\r\n")).expect("valid").parts.headers.contains_key("upgrade"));
    let old = parse_text("GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n").expect("valid");
    assert!(!old.parts.headers.contains_key("upgrade"));
}

#[test]
fn the_end_is_found_however_the_bytes_arrive() {
    let head = with("X: a\r\nY: b\r\n");
    for split in 0..head.len() {
        let mut scanned = 0;
        assert_eq!(scan(&head.as_bytes()[..split], &mut scanned), Scan::Partial, "{split}");
        assert_eq!(scan(head.as_bytes(), &mut scanned), Scan::End(head.len()), "{split}");
    }
    assert_eq!(scan(b"\r\nrest", &mut 0), Scan::End(2));
    assert_eq!(scan(b"a\r\nb\n", &mut 0), Scan::BareLineFeed);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_taken_has_one_host_and_one_framing(
        lines in proptest::collection::vec("[ -~\r\n\t]{0,24}", 0..6),
        method in "(GET|POST|OPTIONS|[A-Z]{1,9})",
        target in "[!-~]{1,12}",
    ) {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", lines.join("\r\n"));
        let bytes = Bytes::from(text);
        if let Scan::End(end) = scan(&bytes, &mut 0)
            && let Ok(head) = parse(&bytes.slice(..end), HeaderMap::new())
        {
            proptest::prop_assert_eq!(head.parts.headers.get_all("host").iter().count(), 1);
            proptest::prop_assert!(!head.parts.headers.contains_key("transfer-encoding"));
            proptest::prop_assert!(head.parts.uri.path().starts_with('/') || head.parts.uri.path() == "*");
        }
    }
}
