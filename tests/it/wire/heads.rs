//! Lines and fields: ends, names, values, what fields of one hop may say (S5, S6, S10 to S12, S16).

use super::{BAD, Case, Expected, Refused, TARGET, Taken, case, check, get, post};
use crate::harness::{Connection, PATIENCE, recorder, upstream, weir};

const PLAIN: Expected = Taken("GET", TARGET, "a", "");
const UNEXPECTED: Expected = Refused(&[417]);

fn lines() -> Vec<Case> {
    let raw = |behind: &str| format!("GET {TARGET} HTTP/1.1\r\n{behind}");
    vec![
        case("S5 folded by a space", get("x-a: 1\r\n folded\r\n"), BAD),
        case("S5 folded by a tab", get("x-a: 1\r\n\tfolded\r\n"), BAD),
        case("S5 folded Host", raw("host:\r\n a\r\n\r\n"), BAD),
        case("S5 a line of blanks", get("x-a: 1\r\n \r\n"), BAD),
        case("S5 the first field begins with a space", raw(" host: a\r\n\r\n"), BAD),
        case("S5 the first field begins with a tab", raw("\thost: a\r\n\r\n"), BAD),
        case("S5 a space before the colon", get("x-a : 1\r\n"), BAD),
        case("S5 a tab before the colon", get("x-a\t: 1\r\n"), BAD),
        case("S5 Host with a space before the colon", raw("host : a\r\n\r\n"), BAD),
        case("S5 two Hosts by a space", get("host : b\r\n"), BAD),
        case("S5 NUL in a value", get("x-a: 1\0\r\n"), BAD),
        case("S5 NUL alone", get("x-a: \0\r\n"), BAD),
        case("S5 NUL in a name", get("x\0a: 1\r\n"), BAD),
        case("S5 NUL behind the head", get("").trim_end().to_owned() + "\r\n\0\r\n\r\n", BAD),
        case("S5 a control byte", get("x-a: \x01\r\n"), BAD),
        case("S5 a backspace", get("x-a: 1\x08\r\n"), BAD),
        case("S5 a vertical tab", get("x-a: 1\x0b2\r\n"), BAD),
        case("S5 a form feed", get("x-a:\x0c1\r\n"), BAD),
        case("S5 an escape", get("x-a: \x1b[2J\r\n"), BAD),
        case("S5 DEL", get("x-a: 1\x7f\r\n"), BAD),
        case("S5 a bare CR in a value", get("x-a: 1\rx-b: 2\r\n"), BAD),
        case("S5 a bare CR at its end", get("x-a: 1\r\r\n"), BAD),
        case("S5 a bare CR at its beginning", get("x-a:\r1\r\n"), BAD),
        case("S5 a bare CR in a name", get("x\ra: 1\r\n"), BAD),
        case("S5 CR for line ends", format!("GET {TARGET} HTTP/1.1\rhost: a\r\r\r\n\r\n"), BAD),
        case("S5 no name", get(": 1\r\n"), BAD),
        case("S5 a colon alone", get(":\r\n"), BAD),
        case("S5 no colon", get("nonsense\r\n"), BAD),
        case("S5 a name in quotes", get("\"x\": 1\r\n"), BAD),
        case("S5 a name in brackets", get("x[a]: 1\r\n"), BAD),
        case("S5 a slash in a name", get("x/a: 1\r\n"), BAD),
        case("S5 an @ in a name", get("x@a: 1\r\n"), BAD),
        case("S5 a comma in a name", get("x,a: 1\r\n"), BAD),
        case("S5 a semicolon in a name", get("x;a: 1\r\n"), BAD),
        case("S5 an equals sign in a name", get("x=a: 1\r\n"), BAD),
        case("S5 a space in a name", get("x a: 1\r\n"), BAD),
        case("S5 an umlaut in a name", get("x-\u{e4}: 1\r\n"), BAD),
        case("S5 a byte over 127 in a name", [get("").trim_end().as_bytes(), b"\r\nx\xff: 1\r\n\r\n"].concat(), BAD),
        case("S5 a zero-width space in a name", get("host\u{200b}: b\r\n"), BAD),
        case("S5 a request line for a field", get("GET /smuggled HTTP/1.1\r\n"), BAD),
        case("S6 LF everywhere", format!("GET {TARGET} HTTP/1.1\nhost: a\n\n"), BAD),
        case("S6 LF behind the request line", format!("GET {TARGET} HTTP/1.1\nhost: a\r\n\r\n"), BAD),
        case("S6 LF behind a field", get("x-a: 1\nx-b: 2\r\n"), BAD),
        case("S6 LF before the end", get("x-a: 1\n"), BAD),
        case("S6 LF for the empty line", get("x-a: 1\r\n").trim_end().to_owned() + "\r\n\n", BAD),
        case("S6 LF CR", get("x-a: 1\n\rx-b: 2\r\n"), BAD),
        case("S6 LF in a value", get("x-a: 1\n2\r\n"), BAD),
        case("S6 LF first", format!("\n{}", get("")), BAD),
        case("S6 CR first", format!("\r{}", get("")), BAD),
        case("two empty lines first", format!("\r\n\r\n{}", get("")), BAD),
        case("ten thousand empty lines", "\r\n".repeat(10_000), BAD),
        case("a blank before the method", format!(" {}", get("")), BAD),
        case("a byte order mark", format!("\u{feff}{}", get("")), BAD),
        case("NUL before the method", format!("\0{}", get("")), BAD),
        case("two Authorizations", get("authorization: Basic x\r\nx: y\r\nAuthorization: Basic y\r\n"), BAD),
        case("the same Range twice", get("range: bytes=0-1\r\nrange: bytes=0-1\r\n"), BAD),
        case("two Content-Types", post("content-type: a/b\r\ncontent-type: a/c\r\n", ""), BAD),
        case("two If-Ranges", get("if-range: \"a\"\r\nif-range: \"b\"\r\n"), BAD),
        case("too many fields", get(&"x: y\r\n".repeat(101)), Refused(&[431])),
        case("a field too long", get(&format!("x: {}\r\n", "y".repeat(17 << 10))), Refused(&[431])),
        case("fields too long", get(&format!("x: {}\r\n", "y".repeat(400)).repeat(60)), Refused(&[431])),
        case("a head without end", format!("GET {TARGET} HTTP/1.1\r\nx: {}", "y".repeat(40 << 10)), Refused(&[431])),
        case("one empty line first", format!("\r\n{}", get("")), PLAIN),
        case("bytes over 127 in a value", [get("").trim_end().as_bytes(), b"\r\nx: \xff\xfe\r\n\r\n"].concat(), PLAIN),
        case("blanks around a value", get("x-a: \t 1 \t \r\nx-b:\r\nx-c:1\r\n"), PLAIN),
        case("a list in two lines", get("if-none-match: \"a\"\r\nif-none-match: \"b\"\r\n"), PLAIN),
        case("a hundred fields", get(&"x: y\r\n".repeat(98)), PLAIN),
        case("an odd name", get("!#$%&'*+-.^_`|~09: 1\r\n"), PLAIN),
    ]
}

fn expectations() -> Vec<Case> {
    let expects = |lines: &str| post(&format!("{lines}content-length: 5\r\n"), "hello");
    vec![
        case("S16 unknown", expects("expect: 200-ok\r\n"), UNEXPECTED),
        case("S16 two", expects("expect: 100-continue\r\nexpect: 200-ok\r\n"), UNEXPECTED),
        case("S16 two, the other way", expects("expect: x\r\nexpect: 100-continue\r\n"), UNEXPECTED),
        case("S16 a list", expects("expect: 100-continue, x\r\n"), UNEXPECTED),
        case("S16 a parameter", expects("expect: 100-continue;q=1\r\n"), UNEXPECTED),
        case("S16 empty", expects("expect:\r\n"), UNEXPECTED),
        case("S16 quoted", expects("expect: \"100-continue\"\r\n"), UNEXPECTED),
        case("S16 longer", expects("expect: 100-continued\r\n"), UNEXPECTED),
        case("S16 with GET", get("expect: x\r\n"), UNEXPECTED),
        case("S16 known", expects("expect: 100-Continue\r\n"), Taken("POST", TARGET, "a", "hello")),
        case("S16 without a body", get("expect: 100-continue\r\n"), PLAIN),
    ]
}

#[tokio::test]
async fn lines_and_fields_are_plain() {
    check(&lines()).await;
}

#[tokio::test]
async fn expectations_are_known() {
    check(&expectations()).await;
}

/// What goes out of a request with these lines: each field as `name: value`.
async fn written(lines: &[&str]) -> Vec<String> {
    let up = recorder();
    let weir = weir("[[route]]\nname = \"all\"\npath = \"/{*path}\"\n").to(up.url()).start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    connection.write(format!("POST /x HTTP/1.1\r\nhost: a\r\n{lines}\r\nhello").as_bytes()).await;
    assert_eq!(connection.read(false).await.expect("an answer").status, 200);
    let seen = up.requests("/x").pop().expect("it arrived");
    assert_eq!((seen.body.as_slice(), up.faults().len()), (&b"hello"[..], 0));
    seen.fields.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value))).collect()
}

#[tokio::test]
async fn connection_names_away_what_is_its_own_and_no_more() {
    let fields = written(&[
        "content-length: 5",
        "connection: content-length, Transfer-Encoding, host, authorization, cookie, via",
        "connection: forwarded, x-forwarded-for, x-forwarded-host, x-forwarded-proto, content-type, cache-control",
        "connection: \u{e9}, x-hop, , close-not",
        "authorization: Basic x",
        "cookie: a=1",
        "content-type: text/plain",
        "cache-control: no-cache",
        "x-hop: 1",
        "close-not: 1",
        "x-end: 1",
    ])
    .await;
    for stays in [
        "host: a",
        "content-length: 5",
        "authorization: Basic x",
        "cookie: a=1",
        "content-type: text/plain",
        "x-end: 1",
    ] {
        assert!(fields.iter().any(|field| field == stays), "{stays} is gone: {fields:?}");
    }
    for made in ["x-forwarded-for: 127.0.0.1", "x-forwarded-host: a", "x-forwarded-proto: http", "via: 1.1 weir"] {
        assert!(fields.iter().any(|field| field == made), "{made} is not there: {fields:?}");
    }
    assert!(!fields.iter().any(|field| field.starts_with("x-hop") || field.starts_with("close-not")), "{fields:?}");
    assert!(!fields.iter().any(|field| field.starts_with("connection")), "{fields:?}");
}

#[tokio::test]
async fn what_is_one_hops_goes_no_further() {
    let fields = written(&[
        "content-length: 5",
        "keep-alive: timeout=5",
        "te: trailers, gzip;q=0.5",
        "proxy-authenticate: Basic",
        "proxy-authorization: Basic x",
        "proxy-connection: keep-alive",
        "http2-settings: AAAA",
        "upgrade: h2c, HTTP/2.0",
        "connection: upgrade, http2-settings",
        "trailer: x-sum",
        "proxy-status: other; error=x",
    ])
    .await;
    for gone in ["keep-alive", "proxy-auth", "proxy-connection", "http2-settings", "upgrade"] {
        assert!(!fields.iter().any(|field| field.starts_with(gone)), "{gone}: {fields:?}");
    }
    let of = |name: &str| fields.iter().filter(|field| field.starts_with(name)).cloned().collect::<Vec<_>>();
    assert_eq!((of("te:"), of("connection:")), (vec!["te: trailers".to_owned()], vec!["connection: te".to_owned()]));
    assert_eq!(of("proxy-status:"), ["proxy-status: other; error=x"]);
}

#[tokio::test]
async fn other_spellings_of_what_weir_writes_go_no_further() {
    let spelled = ["x_forwarded_for: 6.6.6.6", "X-Forwarded_Proto: https", "x_forwarded_host: evil"];
    let fields = written(&[&["content-length: 5"], &spelled[..]].concat()).await;
    assert!(!fields.iter().any(|field| field.split(':').next().is_some_and(|name| name.contains('_'))), "{fields:?}");
    let other = written(&["content-length: 5", "api_key: 1"]).await;
    assert!(other.iter().any(|field| field == "api_key: 1"), "{other:?}");
}

#[tokio::test]
async fn bytes_behind_an_upgrade_are_a_tunnels_only_after_it_is_agreed() {
    let up = upstream();
    up.tunnel("/ws");
    let weir = weir("[[route]]\nname = \"all\"\npath = \"/{*path}\"\n").to(up.url()).start().await;
    let ask = |target: &str, protocol: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n")
    };
    let next = "GET /next HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut agreed = Connection::open(weir.proxy).await;
    agreed.write((ask("/ws", "echo") + next).as_bytes()).await;
    assert_eq!(agreed.read(false).await.expect("an answer").status, 101);
    assert_eq!(agreed.read_bytes(next.len()).await.expect("an echo"), next.as_bytes());
    assert_eq!(up.count("/next"), 0, "what the tunnel carries is no request");
    agreed.finish().await;
    assert!(agreed.closes_within(PATIENCE).await);

    // Not agreed to, or never offered: what comes behind is a request.
    for (target, protocol) in [("/other", "echo"), ("/ws", "h2c"), ("/ws", "HTTP/2.0"), ("/ws", "h2c, h2")] {
        let before = up.count("/next");
        let mut refused = Connection::open(weir.proxy).await;
        refused.write((ask(target, protocol) + next).as_bytes()).await;
        assert!(refused.read(false).await.expect("an answer").status >= 400, "{protocol}");
        assert_eq!(refused.read(false).await.expect("an answer").status, 404, "{protocol}");
        assert_eq!(up.count("/next"), before + 1);
    }
}
