//! Request lines, targets and hosts (S13 to S15), and how many of each.

use super::{BAD, Case, Declined, Expected, Refused, TARGET, Taken, case, check, line};

const DENIED: Expected = Refused(&[405]);
const OTHER_VERSION: Expected = Refused(&[505]);

fn hosts() -> Vec<Case> {
    let hosts = |lines: &str| format!("GET {TARGET} HTTP/1.1\r\n{lines}\r\n");
    let is = |host: &str| hosts(&format!("host: {host}\r\n"));
    let mut cases = vec![
        case("S13 none", hosts(""), BAD),
        case("S13 none, others", hosts("x-forwarded-host: a\r\n"), BAD),
        case("S13 two", hosts("host: a\r\nhost: b\r\n"), BAD),
        case("S13 the same twice", hosts("host: a\r\nHost: a\r\n"), BAD),
        case("S13 two, apart", hosts("host: a\r\nx: y\r\nHOST: b\r\n"), BAD),
        case("S13 two in HTTP/1.0", hosts("host: a\r\nhost: b\r\n").replace("1.1", "1.0"), BAD),
        case("S13 two, one empty", hosts("host:\r\nhost: b\r\n"), BAD),
        case("S13 empty in HTTP/1.0", hosts("host:\r\n").replace("1.1", "1.0"), BAD),
        case("S13 bytes over 127", [hosts("host: ").trim_end().as_bytes(), b" \xe4\r\n\r\n"].concat(), BAD),
    ];
    let malformed = [
        "",
        "a/b",
        "/a",
        "a b",
        "a\tb",
        "a,b",
        "a@b",
        "u:p@a",
        "a:b",
        "a:80:80",
        "a:65536",
        "a:-1",
        "a:+80",
        "a: 80",
        ":80",
        ":",
        "a?b",
        "a#b",
        "a\\b",
        "a%2fb",
        "a%00",
        "a%",
        "http://a",
        "//a",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]:x",
        "[]",
        "[a]",
        "[1.2.3.4]",
        "[::1%25eth0]",
        "[v1.a]",
        "a..b",
        ".a",
        ".",
        "..",
        "\"a\"",
        "<a>",
        "a|b",
        "a^b",
        "{a}",
        "a`b",
        "a\u{7f}",
    ];
    cases.extend(malformed.map(|host| case(format!("S13 {host:?}"), is(host), BAD)));
    let right = ["a", "A.Example", "a.example.", "a-b_c~d", "127.0.0.1:8080", "[::1]", "[::ffff:1.2.3.4]:80", "a:"];
    cases.extend(right.map(|host| case(format!("{host:?}"), is(host), Taken("GET", TARGET, host, ""))));
    cases
}

fn request_lines() -> Vec<Case> {
    let target = |target: &str| line(&format!("GET {target} HTTP/1.1"));
    let method = |method: &str| line(&format!("{method} {TARGET} HTTP/1.1"));
    let version = |version: &str| line(&format!("GET {TARGET} {version}"));
    let mut cases = vec![
        case("S15 CONNECT", line("CONNECT a:443 HTTP/1.1"), DENIED),
        case("S15 CONNECT with a path", method("CONNECT"), DENIED),
        case("S15 TRACE", method("TRACE"), DENIED),
        case("S15 PRI", method("PRI"), DENIED),
        case("the preface, too late", format!("{}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\n\r\n"), BAD),
        case("no version", format!("GET {TARGET}\r\n\r\n"), BAD),
        case("no version, a Host", format!("GET {TARGET}\r\nhost: a\r\n\r\n"), BAD),
        case("a method alone", "GET\r\n\r\n", BAD),
        case("no target", line("GET HTTP/1.1"), BAD),
        case("no target, two spaces", line("GET  HTTP/1.1"), BAD),
        case("no method", line(&format!("{TARGET} HTTP/1.1")), BAD),
        case("two spaces first", line(&format!("GET  {TARGET} HTTP/1.1")), BAD),
        case("two spaces second", line(&format!("GET {TARGET}  HTTP/1.1")), BAD),
        case("a tab", line(&format!("GET\t{TARGET} HTTP/1.1")), BAD),
        case("a tab second", line(&format!("GET {TARGET}\tHTTP/1.1")), BAD),
        case("a vertical tab", line(&format!("GET\x0b{TARGET} HTTP/1.1")), BAD),
        case("a space behind", version("HTTP/1.1 "), BAD),
        case("a fourth word", version("HTTP/1.1 x"), BAD),
        case("a version in between", line(&format!("GET {TARGET} HTTP/1.1 HTTP/1.1")), BAD),
        case("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\r\n\r\n", BAD),
    ];
    let versions = [
        ("HTTP/2.0", OTHER_VERSION),
        ("HTTP/1.2", OTHER_VERSION),
        ("HTTP/0.9", OTHER_VERSION),
        ("HTTP/3.0", OTHER_VERSION),
        ("HTTP/9.9", OTHER_VERSION),
        ("http/1.1", BAD),
        ("Http/1.1", BAD),
        ("HTTP/1", BAD),
        ("HTTP/11", BAD),
        ("HTTP/1.1.1", BAD),
        ("HTTP/1,1", BAD),
        ("HTTP/01.1", BAD),
        ("HTTP/1.10", BAD),
        ("HTTP/1.01", BAD),
        ("HTTP/ 1.1", BAD),
        ("HTTP /1.1", BAD),
        ("HTTPS/1.1", BAD),
        ("HTP/1.1", BAD),
        ("HTTP/+1.1", BAD),
        ("HTTP/1.1\0", BAD),
        ("ICY", BAD),
        ("RTSP/1.0", BAD),
    ];
    cases.extend(versions.map(|(text, expected)| case(format!("version {text:?}"), version(text), expected)));
    let methods = [
        "get", "Get", "gET", "post", "trace", "connect", "G T", "GET,", "G(T", "\"GET\"", "GET:", "G\0T", "G\u{c9}T",
        "G|T", "get/", "GET1", "G.T", "G~T",
    ];
    cases.extend(methods.map(|name| case(format!("method {name:?}"), method(name), BAD)));
    let targets = [
        "x",
        "?q",
        "",
        "*",
        "a:443",
        "a",
        "/x#y",
        "/x#",
        "#",
        "/x y",
        "/\0",
        "/\x01",
        "/\x7f",
        "/x?\x7f",
        "/\t",
        "/\u{e4}",
        "/x?\u{e4}",
        "http:",
        "http:/",
        "http://",
        "http:///x",
        "http:x",
        "http://u@a/x",
        "http://u:p@a/x",
        "http://a b/x",
        "http://a/x#y",
        "http://a:b/x",
        "http://a:65536/x",
        "http://a%2f/x",
        "http://a..b/x",
        "http://[::1/x",
        "ftp://a/x",
        "ws://a/x",
        "file:///x",
        "urn:x",
        "javascript:x",
        "/x?\"",
        "/<x>",
    ];
    cases.extend(targets.map(|text| case(format!("target {text:?}"), target(text), BAD)));
    let ambiguous = [
        "//",
        "//a/x",
        "/a//x",
        "/..",
        "/a/../../x",
        "/%2e%2e/x",
        "/a%2fx",
        "/a%5cx",
        "/a\\x",
        "/%00",
        "/%0d%0a",
        "/%",
        "/%g0",
        "/a/..;/x",
        "/a/..%3b/x",
        "/%u002f",
        "/%7",
        "/a/%2E%2E;x/y",
        "http://b//x",
        "http://b/%2e%2e/x",
    ];
    cases.extend(ambiguous.map(|text| case(format!("target {text:?}"), target(text), Declined)));
    cases.push(case("a target too long", target(&format!("/{}", "x".repeat(20 << 10))), Refused(&[414])));
    cases
}

fn taken() -> Vec<Case> {
    let absolute = |target: &str| line(&format!("GET {target} HTTP/1.1"));
    let plain = |target: &'static str, written: &'static str| {
        case(format!("target {target:?}"), line(&format!("GET {target} HTTP/1.1")), Taken("GET", written, "a", ""))
    };
    vec![
        case("S14 the authority wins", absolute("http://b.example/taken"), Taken("GET", "/taken", "b.example", "")),
        case("S14 with a port", absolute("http://b:81/taken?q"), Taken("GET", "/taken?q", "b:81", "")),
        case("S14 in capitals", absolute("HTTP://B/taken"), Taken("GET", "/taken", "B", "")),
        case("S14 no path", absolute("http://b"), Taken("GET", "/", "b", "")),
        case("S14 no path, a query", absolute("http://b?q"), Taken("GET", "/?q", "b", "")),
        case("S14 https", absolute("https://b/taken"), Taken("GET", "/taken", "b", "")),
        case("OPTIONS *", line("OPTIONS * HTTP/1.1"), Taken("OPTIONS", "*", "a", "")),
        case("OPTIONS for a whole server", line("OPTIONS http://b HTTP/1.1"), Taken("OPTIONS", "*", "b", "")),
        case("another method", line(&format!("M-SEARCH {TARGET} HTTP/1.1")), Taken("M-SEARCH", TARGET, "a", "")),
        case(
            "a long method",
            line(&format!("{} {TARGET} HTTP/1.1", "LONG".repeat(10))),
            Taken("LONGLONGLONGLONGLONGLONGLONGLONGLONGLONG", TARGET, "a", ""),
        ),
        plain("{T}?a=b&c=%20", "{T}?a=b&c=%20"),
        plain("{T}/./x/../y", "{T}/y"),
        plain("{T}/%7e%41", "{T}/~A"),
        plain("{T}?{a:[1]}", "{T}?{a:[1]}"),
        plain("{T}?/../x", "{T}?/../x"),
    ]
}

#[tokio::test]
async fn hosts_are_exact() {
    check(&hosts()).await;
}

#[tokio::test]
async fn request_lines_are_exact() {
    check(&request_lines()).await;
}

#[tokio::test]
async fn targets_are_written_in_one_form() {
    check(&taken()).await;
}
