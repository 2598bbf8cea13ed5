//! Answers that could be read two ways (S17): 502, or an answer that is cut; the connection ends, and nothing is stored.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Answer, Connection, get, patiently, raw_upstream, recorder, request, weir};

const ROUTES: &str = r#"
[upstream]
response_timeout = "5s"

[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
"#;

const UNCACHED: &str = "[[route]]\nname = \"all\"\npath = \"/{*path}\"\n";

/// An answer to somebody else, which nobody may get.
const OTHERS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nothers";

/// What becomes of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// 502.
    Refused,
    /// Its head went out; its end does not.
    Cut,
    /// It is whole, and its connection carries no other.
    Whole(u16),
}

use Fate::{Cut, Refused, Whole};

/// Name, bytes, fate.
type Case = (&'static str, String, Fate);

fn heads() -> Vec<Case> {
    let with = |lines: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}");
    let first = |line: &str| format!("{line}\r\ncontent-length: 2\r\n\r\nok");
    vec![
        (
            "length and chunked",
            with("content-length: 2\r\ntransfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            "chunked and length",
            with("transfer-encoding: chunked\r\ncontent-length: 2\r\n", "2\r\nok\r\n0\r\n\r\n"),
            Refused,
        ),
        ("two lengths", with("content-length: 2\r\ncontent-length: 3\r\n", "oki"), Refused),
        ("the same length twice", with("content-length: 2\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("a list of lengths", with("content-length: 2, 2\r\n", "ok"), Refused),
        ("a length with a sign", with("content-length: +2\r\n", "ok"), Refused),
        ("a negative length", with("content-length: -2\r\n", "ok"), Refused),
        ("a length in hex", with("content-length: 0x2\r\n", "ok"), Refused),
        ("an empty length", with("content-length:\r\n", "ok"), Refused),
        ("a length over 2^64", with("content-length: 18446744073709551618\r\n", "ok"), Refused),
        (
            "chunked twice",
            with("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
            Refused,
        ),
        ("gzip, chunked", with("transfer-encoding: gzip, chunked\r\n", "2\r\nok\r\n0\r\n\r\n"), Refused),
        ("identity", with("transfer-encoding: identity\r\n", "ok"), Refused),
        ("an empty coding", with("transfer-encoding:\r\n", "ok"), Refused),
        ("a coding with a vertical tab", with("transfer-encoding: \x0bchunked\r\n", "2\r\nok\r\n0\r\n\r\n"), Refused),
        (
            "chunked in HTTP/1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".into(),
            Refused,
        ),
        ("folded", with("x: a\r\n b\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("a space before the colon", with("content-length : 2\r\n", "ok"), Refused),
        ("no colon", with("nonsense\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("no name", with(": x\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("NUL in a value", with("x: \0\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("a bare CR in a value", with("x: a\rb\r\ncontent-length: 2\r\n", "ok"), Refused),
        ("LF behind a field", with("x: a\ncontent-length: 2\r\n", "ok"), Refused),
        ("LF everywhere", "HTTP/1.1 200 OK\ncontent-length: 2\n\nok".into(), Refused),
        ("LF for the empty line", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\nok".into(), Refused),
        ("an empty line first", format!("\r\n{}", with("content-length: 2\r\n", "ok")), Refused),
        ("a space first", first(" HTTP/1.1 200 OK"), Refused),
        ("no HTTP", "hello\r\n\r\n".into(), Refused),
        ("HTTP/0.9", "<html>hello</html>\r\n\r\n".into(), Refused),
        ("HTTP/2.0", first("HTTP/2.0 200 OK"), Refused),
        ("HTTP/1.2", first("HTTP/1.2 200 OK"), Refused),
        ("lower case", first("http/1.1 200 OK"), Refused),
        ("ICY", first("ICY 200 OK"), Refused),
        ("two spaces", first("HTTP/1.1  200 OK"), Refused),
        ("no status", first("HTTP/1.1 OK"), Refused),
        ("status 99", first("HTTP/1.1 99 x"), Refused),
        ("status 099", first("HTTP/1.1 099 x"), Refused),
        ("status 1000", first("HTTP/1.1 1000 x"), Refused),
        ("status 2e2", first("HTTP/1.1 2e2 x"), Refused),
        ("a negative status", first("HTTP/1.1 -20 x"), Refused),
        ("a control byte in the reason", first("HTTP/1.1 200 O\x01K"), Refused),
        (
            "101 unasked",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".into(),
            Refused,
        ),
        ("endless interim ones", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(200), Refused),
        ("an interim one with a length", format!("HTTP/1.1 103 x\r\ncontent-length: 2\r\n\r\nok{OTHERS}"), Refused),
        ("an interim one in chunks", format!("HTTP/1.1 100 x\r\ntransfer-encoding: chunked\r\n\r\n{OTHERS}"), Refused),
        ("a head without end", with(&format!("x: {}", "y".repeat(80 << 10)), ""), Refused),
        ("fields without end", with(&"x: y\r\n".repeat(20_000), ""), Refused),
        ("a head that ends in the middle", "HTTP/1.1 200 OK\r\ncontent-le".into(), Refused),
    ]
}

fn bodies() -> Vec<Case> {
    let chunks = |chunks: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n{chunks}");
    let end = "5\r\nhello\r\n0\r\n\r\n";
    vec![
        ("a chunk in hex with a prefix", chunks("0x5\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk with a sign", chunks("+5\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a negative chunk", chunks("-5\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk without a size", chunks("\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk over 2^64", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk of words", chunks("five\r\nhello\r\n0\r\n\r\n"), Cut),
        ("LF behind a size", chunks("5\nhello\r\n0\r\n\r\n"), Cut),
        ("LF in an extension", chunks("5;a\nb\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk longer than it says", chunks("4\r\nhello\r\n0\r\n\r\n"), Cut),
        ("a chunk shorter than it says", chunks("6\r\nhello\r\n0\r\n\r\n"), Cut),
        ("nothing behind a chunk", chunks("5\r\nhello0\r\n\r\n"), Cut),
        ("a bare LF among the trailers", chunks("0\r\nx: y\n\r\n"), Cut),
        ("a trailer with a space before the colon", chunks("0\r\nx : y\r\n\r\n"), Cut),
        ("trailers without end", chunks(&format!("0\r\n{}", "x: y\r\n".repeat(20_000))), Cut),
        ("chunks that end in the middle", chunks("5\r\nhel"), Cut),
        ("chunks without a last", chunks("5\r\nhello\r\n"), Cut),
        ("a body that ends in the middle", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello".into(), Cut),
        ("bytes behind a length", format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello{OTHERS}"), Refused),
        ("bytes behind the last chunk", chunks(&format!("{end}{OTHERS}")), Cut),
        ("an empty line behind a length", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello\r\n".into(), Refused),
        (
            "a body for 204",
            format!("HTTP/1.1 204 No Content\r\ncontent-length: {}\r\n\r\n{OTHERS}", OTHERS.len()),
            Refused,
        ),
        ("a length for 204", "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n".into(), Whole(204)),
        ("chunks for 204", "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(), Refused),
        ("a coding for 204", "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n".into(), Whole(204)),
        ("a body for 304", format!("HTTP/1.1 304 Not Modified\r\n\r\n{OTHERS}"), Refused),
        ("a length and a body for 304", format!("HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\n{OTHERS}"), Refused),
    ]
}

/// Asks for every answer twice, and each time then for one that is in order.
async fn check(cases: &[Case]) {
    let up = recorder();
    let weir = weir(ROUTES).set("upstream.breaker", false).to(up.url()).start().await;
    let mut wrong = Vec::new();
    for (number, (name, bytes, fate)) in cases.iter().enumerate() {
        let target = format!("/case/{number}");
        // Whatever ends in the middle can only be told by its end.
        let ends = name.contains("middle") || name.contains("without a last") || name.contains("without end");
        up.answer(&target, bytes.as_bytes(), ends || name.contains("HTTP/0.9"));
        for turn in 1..=2 {
            let answer = get(&target).try_send(weir.proxy).await;
            if let Err(fault) = judged(&answer, *fate) {
                wrong.push(format!("{name}, time {turn}: {fault}"));
            }
            let after = weir.get(&format!("/after/{number}/{turn}")).await;
            assert_eq!((after.status, after.text()), (200, "ok"), "behind {name}");
            let reused = up.requests(&target).iter().any(|seen| {
                let all = up.seen();
                let place = all.iter().position(|other| other == seen).expect("it is there");
                all[place + 1..].iter().any(|later| later.connection == seen.connection)
            });
            if reused {
                wrong.push(format!("{name}, time {turn}: its connection carried another"));
            }
        }
        if !matches!(fate, Whole(_)) && up.requests(&target).len() != 2 {
            wrong.push(format!("{name}: asked for {} times, not 2", up.requests(&target).len()));
        }
    }
    assert!(up.faults().is_empty(), "{:?}", up.faults());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn judged(answer: &Result<Answer, std::io::Error>, fate: Fate) -> Result<(), String> {
    let fits = match (answer, fate) {
        (Ok(answer), Refused) => answer.status == 502 && answer.header("cache-control") == Some("no-store"),
        (Ok(answer), Whole(status)) => answer.status == status,
        (Err(_), Cut) => true,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{answer:?}")) }
}

#[tokio::test]
async fn heads_that_are_not_plain_are_refused() {
    check(&heads()).await;
}

#[tokio::test]
async fn bodies_end_where_they_say() {
    check(&bodies()).await;
}

#[tokio::test]
async fn what_follows_an_answer_to_head_is_no_answer() {
    let up = raw_upstream(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello{OTHERS}").as_bytes(), false);
    let weir = weir(UNCACHED).set("upstream.breaker", false).to(up.url()).start().await;
    for _ in 0..3 {
        let mut connection = Connection::open(weir.proxy).await;
        let answer = connection.send(&request("HEAD", "/x")).await;
        assert_eq!((answer.status, answer.body.len()), (502, 0), "{answer:?}");
    }
    assert_eq!(up.used_connections(), 3, "none was used again");
}

#[tokio::test]
async fn text_behind_a_length_goes_with_its_connection() {
    let up = raw_upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, and more than that", false);
    let weir = weir(UNCACHED).set("upstream.breaker", false).to(up.url()).start().await;
    for _ in 0..3 {
        let answer = weir.get("/x").await;
        assert_eq!((answer.status, answer.text()), (200, "hello"), "{answer:?}");
    }
    assert_eq!(up.used_connections(), 3, "none was used again");
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys() {
    // Two answers to each request, the second in a piece of its own: when it comes, the connection is unused, or lost.
    let up = recorder();
    let weir = weir(UNCACHED).set("upstream.breaker", false).to(up.url()).start().await;
    let own = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nown";
    up.answer("/two", format!("{own}{OTHERS}").as_bytes(), false);
    up.answer("/one", own.as_bytes(), false);
    for _ in 0..20 {
        assert_eq!(weir.get("/two").await.status, 502);
        let after = weir.get("/one").await;
        assert_eq!((after.status, after.text()), (200, "own"));
    }
}

#[tokio::test]
async fn what_came_before_the_request_is_no_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let weir = weir(UNCACHED).set("upstream.breaker", false).to(url).start().await;
    let mut earlier: Option<TcpStream> = None;
    for turn in 0..4 {
        let target = format!("/{turn}");
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a connection of its own");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut head).await.expect("a request"), 0);
            }
            assert!(head.starts_with(format!("GET {target} ").as_bytes()), "{}", head.escape_ascii());
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nown").await.expect("Weir reads");
            stream
        };
        let (mut stream, answer) = patiently("an answer", async { tokio::join!(serve, weir.get(&target)) }).await;
        assert_eq!((answer.status, answer.text()), (200, "own"));
        if let Some(mut earlier) = earlier.take() {
            let mut rest = Vec::new();
            let read = patiently("its end", earlier.read_to_end(&mut rest)).await;
            assert!(rest.is_empty(), "{read:?}: {}", rest.escape_ascii());
        }
        // Nobody has asked for this, and who asks next does not get it.
        stream.write_all(OTHERS.as_bytes()).await.expect("Weir reads");
        earlier = Some(stream);
    }
}
