//! Where a body ends: lengths, codings, chunks, trailers (S1 to S4, S7, S8).

use super::{BAD, Case, Cut, Expected, Refused, SMUGGLED, TARGET, Taken, case, check, get, post};

const UNKNOWN: Expected = Refused(&[501]);

fn framings() -> Vec<Case> {
    let end = format!("0\r\n\r\n{SMUGGLED}");
    let both = |lines: &str| post(lines, &end);
    let coded = |value: &str| post(&format!("transfer-encoding: {value}\r\n"), &end);
    vec![
        case("S1 length, then chunked", both("content-length: 5\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S1 chunked, then length", both("transfer-encoding: chunked\r\ncontent-length: 5\r\n"), BAD),
        case("S1 other fields between", both("content-length: 5\r\nx: y\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S1 in capitals", both("CONTENT-LENGTH: 5\r\nTRANSFER-ENCODING: CHUNKED\r\n"), BAD),
        case("S1 length 0", both("content-length: 0\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S1 empty length", both("content-length:\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S1 length and identity", both("content-length: 5\r\ntransfer-encoding: identity\r\n"), BAD),
        case("S1 length and no coding", both("content-length: 5\r\ntransfer-encoding:\r\n"), BAD),
        case(
            "S1 named by Connection",
            both("connection: content-length\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n"),
            BAD,
        ),
        case("S1 with GET", get("content-length: 5\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S2 chunked twice", both("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S2 chunked and identity", both("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n"), BAD),
        case("S2 identity and chunked", both("transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n"), BAD),
        case("S2 chunked and nothing", both("transfer-encoding: chunked\r\ntransfer-encoding:\r\n"), BAD),
        case("S2 a list of two", coded("chunked, chunked"), BAD),
        case("S2 identity, chunked", coded("identity, chunked"), BAD),
        case("S2 chunked, identity", coded("chunked, identity"), BAD),
        case("S2 gzip, chunked", coded("gzip, chunked"), BAD),
        case("S2 chunked, gzip", coded("chunked, gzip"), BAD),
        case("S2 an empty element first", coded(", chunked"), BAD),
        case("S2 an empty element last", coded("chunked,"), BAD),
        case("S2 a semicolon", coded("chunked;"), BAD),
        case("S2 a parameter", coded("chunked;q=1"), BAD),
        case("S2 quoted", coded("\"chunked\""), BAD),
        case("S2 single quotes", coded("'chunked'"), BAD),
        case("S2 two words", coded("chunked chunked"), BAD),
        case("S2 empty", coded(""), BAD),
        case("S2 a vertical tab before", coded("\x0bchunked"), BAD),
        case("S2 a vertical tab behind", coded("chunked\x0b"), BAD),
        case("S2 a form feed", coded("\x0cchunked"), BAD),
        case("S2 NUL behind", coded("chunked\0"), BAD),
        case("S2 a bare CR behind", coded("chunked\r"), BAD),
        case(
            "S2 a no-break space",
            [post("transfer-encoding: ", "").trim_end().as_bytes(), b" \xa0chunked\r\n\r\n"].concat(),
            BAD,
        ),
        case("S2 an underscore", both("transfer_encoding: chunked\r\n"), BAD),
        case("S2 an underscore, capitals", both("TRANSFER_ENCODING: chunked\r\ncontent-length: 5\r\n"), BAD),
        case("S2 a space for the dash", both("transfer encoding: chunked\r\n"), BAD),
        case("S2 a space before the colon", both("transfer-encoding : chunked\r\n"), BAD),
        case("S2 a tab before the colon", both("transfer-encoding\t: chunked\r\n"), BAD),
        case("S2 folded", both("transfer-encoding:\r\n chunked\r\n"), BAD),
        case("S2 identity", coded("identity"), UNKNOWN),
        case("S2 gzip", coded("gzip"), UNKNOWN),
        case("S2 deflate", coded("deflate"), UNKNOWN),
        case("S2 junk", coded("xchunked"), UNKNOWN),
        case("S2 cut short", coded("chunke"), UNKNOWN),
        case(
            "S3 HTTP/1.0",
            both("transfer-encoding: chunked\r\n").replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"),
            BAD,
        ),
        case(
            "S3 HTTP/1.0, kept",
            both("transfer-encoding: chunked\r\nconnection: keep-alive\r\n")
                .replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"),
            BAD,
        ),
        case(
            "tabs around chunked",
            post("transfer-encoding:\t chunked \t\r\n", "1\r\na\r\n0\r\n\r\n"),
            Taken("POST", TARGET, "a", "a"),
        ),
        case(
            "chunked in capitals",
            post("Transfer-Encoding: CHUNKED\r\n", "A\r\n0123456789\r\n0\r\n\r\n"),
            Taken("POST", TARGET, "a", "0123456789"),
        ),
    ]
}

fn lengths() -> Vec<Case> {
    let behind = format!("hello{SMUGGLED}");
    let with = |lines: &str| post(lines, &behind);
    let is = |value: &str| post(&format!("content-length: {value}\r\n"), &behind);
    vec![
        case("S4 two values", with("content-length: 5\r\ncontent-length: 6\r\n"), BAD),
        case("S4 the same twice", with("content-length: 5\r\ncontent-length: 5\r\n"), BAD),
        case("S4 twice, one empty", with("content-length: 5\r\ncontent-length:\r\n"), BAD),
        case("S4 twice, apart", with("content-length: 5\r\nx: y\r\nContent-Length: 5\r\n"), BAD),
        case("S4 a list", is("5, 6"), BAD),
        case("S4 a list of the same", is("5, 5"), BAD),
        case("S4 a list with an empty element", is("5,"), BAD),
        case("S4 plus", is("+5"), BAD),
        case("S4 minus", is("-5"), BAD),
        case("S4 minus zero", is("-0"), BAD),
        case("S4 hex", is("0x5"), BAD),
        case("S4 hex digits", is("5a"), BAD),
        case("S4 over 2^64", is("18446744073709551621"), BAD),
        case("S4 far over", is(&"9".repeat(400)), BAD),
        case("S4 a fraction", is("5.0"), BAD),
        case("S4 an exponent", is("5e0"), BAD),
        case("S4 an underscore in it", is("5_0"), BAD),
        case("S4 empty", is(""), BAD),
        case("S4 words", is("five"), BAD),
        case("S4 inner space", is("1 5"), BAD),
        case("S4 inner tab", is("1\t5"), BAD),
        case("S4 quoted", is("\"5\""), BAD),
        case("S4 a semicolon", is("5;"), BAD),
        case("S4 NUL", is("5\0"), BAD),
        case("S4 a vertical tab", is("\x0b5"), BAD),
        case("S4 a bare CR", is("5\r0"), BAD),
        case("S4 a superscript", is("\u{b2}"), BAD),
        case("S4 an Arabic digit", is("\u{665}"), BAD),
        case("S4 folded", with("content-length:\r\n 5\r\n"), BAD),
        case("S4 an underscore for the dash", with("content_length: 5\r\n"), BAD),
        case("S4 an underscore, beside", with("content-length: 5\r\nContent_Length: 6\r\n"), BAD),
        case("S4 a space for the dash", with("content length: 5\r\n"), BAD),
        case("S4 a space before the colon", with("content-length : 5\r\n"), BAD),
        case("S4 a NUL in the name", with("content-length\0: 5\r\n"), BAD),
        case("leading zeros", post("content-length: 0005\r\n", "hello"), Taken("POST", TARGET, "a", "hello")),
        case("a GET with a body", get("content-length: 5\r\n") + "hello", Taken("GET", TARGET, "a", "hello")),
        case(
            "a length named by Connection",
            post("connection: content-length\r\ncontent-length: 5\r\n", "hello"),
            Taken("POST", TARGET, "a", "hello"),
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let body = |chunks: &str| post("transfer-encoding: chunked\r\n", &format!("{chunks}{SMUGGLED}"));
    let sized = |size: &str| body(&format!("{size}\r\nhello\r\n0\r\n\r\n"));
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(400));
    let many = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(100));
    let trailed = |trailer: &str| body(&format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n"));
    vec![
        case("S7 LF behind the size", body("5\nhello\r\n0\r\n\r\n"), Cut),
        case("S7 CR behind the size", body("5\rhello\r\n0\r\n\r\n"), Cut),
        case("S7 LF in an extension", sized("5;a\n"), Cut),
        case("S7 CR in an extension", sized("5;a\rb"), Cut),
        case("S7 NUL in an extension", sized("5;a\0"), Cut),
        case("S7 an empty extension", sized("5;"), Cut),
        case("S7 an open quote", sized("5;a=\""), Cut),
        case("S7 a quote escaped away", sized("5;a=\"\\\""), Cut),
        case("S7 junk behind a quote", sized("5;a=\"b\"c"), Cut),
        case("S7 a line end in quotes", sized("5;a=\"\r\n\""), Cut),
        case("S7 an extension without a name", sized("5;=a"), Cut),
        case("S7 an extension without a value", sized("5;a="), Cut),
        case("S7 a comma", sized("5,6"), Cut),
        case("S7 signed", sized("+5"), Cut),
        case("S7 negative", sized("-5"), Cut),
        case("S7 0x", sized("0x5"), Cut),
        case("S7 0X", sized("0X5"), Cut),
        case("S7 a minus and a zero", sized("-0"), Cut),
        case("S7 an underscore", sized("0_5"), Cut),
        case("S7 a space before", sized(" 5"), Cut),
        case("S7 a space behind", sized("5 "), Cut),
        case("S7 a tab behind", sized("5\t"), Cut),
        case("S7 a space before the semicolon", sized("5 ;a"), Cut),
        case("S7 a space behind the semicolon", sized("5; a"), Cut),
        case("S7 two sizes", sized("5 5"), Cut),
        case("S7 a quoted size", sized("\"5\""), Cut),
        case("S7 a fraction", sized("5.0"), Cut),
        case("S7 no digit", sized("g"), Cut),
        case("S7 no size", body("\r\nhello\r\n0\r\n\r\n"), Cut),
        case("S7 over 2^64", sized("10000000000000005"), Cut),
        case("S7 2^64 - 1", sized("ffffffffffffffff"), Cut),
        case("S7 2^63", sized("8000000000000000"), Cut),
        case("S7 too many digits", sized("0000000000000005"), Cut),
        case("S7 far too many", sized(&"0".repeat(300)), Cut),
        case("S7 more data than said", body("5\r\nhello!\r\n0\r\n\r\n"), Cut),
        case("S7 less data than said", body("6\r\nhello\r\n0\r\n\r\n"), Cut),
        case("S7 LF behind the data", body("5\r\nhello\n0\r\n\r\n"), Cut),
        case("S7 nothing behind the data", body("5\r\nhello0\r\n\r\n"), Cut),
        case("S7 CR CR LF behind the data", body("5\r\nhello\r\r\n0\r\n\r\n"), Cut),
        case("S7 LF behind the last size", body("5\r\nhello\r\n0\n\r\n"), Cut),
        case("S7 LF for the empty line", body("5\r\nhello\r\n0\r\n\n"), Cut),
        case("S7 a long extension", body(&long), Cut),
        case("S7 long extensions", body(&many), Cut),
        case("S8 LF behind a trailer", body("5\r\nhello\r\n0\r\nx: y\n\r\n"), Cut),
        case("S8 a trailer without a colon", trailed("nonsense"), Cut),
        case("S8 a trailer without a name", trailed(": x"), Cut),
        case("S8 a space before the colon", trailed("x : y"), Cut),
        case("S8 a folded trailer", trailed("x: y\r\n z"), Cut),
        case("S8 NUL in a trailer", trailed("x: \0"), Cut),
        case("S8 a bare CR in a trailer", trailed("x: y\rz"), Cut),
        case("S8 long trailers", trailed(&format!("x: {}", "y".repeat(9000))), Cut),
        case("S8 many trailers", trailed(&["x: y"; 120].join("\r\n")), Cut),
        case("S8 a request for a trailer", trailed("GET /smuggled HTTP/1.1"), Cut),
        case(
            "zeros before a size",
            post("transfer-encoding: chunked\r\n", "0005\r\nhello\r\n000\r\n\r\n"),
            Taken("POST", TARGET, "a", "hello"),
        ),
        case(
            "extensions in order",
            post("transfer-encoding: chunked\r\n", "5;a;b=c;d=\"e;\\\"f\"\r\nhello\r\n0;g\r\n\r\n"),
            Taken("POST", TARGET, "a", "hello"),
        ),
        case(
            "a GET in chunks",
            get("transfer-encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
            Taken("GET", TARGET, "a", "hello"),
        ),
    ]
}

#[tokio::test]
async fn one_framing_or_none() {
    check(&framings()).await;
}

#[tokio::test]
async fn a_length_is_digits() {
    check(&lengths()).await;
}

#[tokio::test]
async fn chunks_are_exact() {
    check(&chunks()).await;
}
