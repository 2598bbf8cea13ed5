//! The catalogue's S and H rows, byte by byte: what two parsers could read two ways is refused, however it arrives, and the
//! upstream sees nothing of it, or one request that everybody reads alike.

mod answers;
mod bodies;
mod edges;
mod heads;
mod http2;
mod targets;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Recorder, Seen, Weir, eventually, join_all, recorder, scale, weir};

/// A request behind another, which must never be read as one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// Stands for a target of the case's own.
const TARGET: &str = "{T}";

/// Connections at once.
const ABREAST: usize = 16;

/// What a pause between two pieces is: long enough for Weir to read the first by itself, as a rule.
const PAUSE: Duration = Duration::from_millis(2);

const ROUTES: &str = r#"
[server.limits]
head = "16KiB"

[[route]]
name = "all"
path = "/{*path}"
"#;

/// Bytes to be sent, and what may become of them.
pub struct Case {
    name: String,
    bytes: Vec<u8>,
    expected: Expected,
}

/// What becomes of a case.
#[derive(Clone, Copy)]
pub enum Expected {
    /// Refused with one of these, and the connection closed: the upstream never hears of it.
    Refused(&'static [u16]),
    /// Answered 400, although it is in order: what comes behind is the next request.
    Declined,
    /// The head was in order, so the upstream may have begun to read; it must not find the end. 400, and closed.
    Cut,
    /// Taken, and written anew so: method, target, `Host`, body.
    Taken(&'static str, &'static str, &'static str, &'static str),
}

use Expected::{Cut, Declined, Refused, Taken};

const BAD: Expected = Refused(&[400]);

/// How the bytes of a case arrive.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// At once, a request behind them.
    Whole,
    /// Behind a request that is in order.
    Behind,
    /// In two pieces, cut here.
    Cut(usize),
    /// One by one.
    Bytes,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name: name.into(), bytes: bytes.into(), expected }
}

/// A GET with these lines, each with its end.
fn get(lines: &str) -> String {
    format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n{lines}\r\n")
}

/// A POST with these lines, and what stands behind its head.
fn post(lines: &str, behind: &str) -> String {
    format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\n{lines}\r\n{behind}")
}

/// A request with this first line.
fn line(line: &str) -> String {
    format!("{line}\r\nhost: a\r\n\r\n")
}

/// Weir and what it is in front of.
struct Stage {
    up: Recorder,
    weir: Weir,
}

impl Stage {
    async fn new() -> Self {
        let up = recorder();
        let weir = weir(ROUTES).to(up.url()).start().await;
        Self { up, weir }
    }
}

/// Sends every case in every way and says what went wrong.
async fn check(cases: &[Case]) {
    let stage = Stage::new().await;
    let mut runs = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        runs.extend([(number, Way::Whole), (number, Way::Behind)]);
        runs.extend(cuts(&case.bytes).into_iter().map(|at| (number, Way::Cut(at))));
        if number % scale("WEIR_BYTEWISE", 6) == 0 && case.bytes.len() < 600 {
            runs.push((number, Way::Bytes));
        }
    }
    // Those that take long go together, and hold up no others.
    runs.sort_by_key(|(_, way)| matches!(way, Way::Bytes));
    let mut wrong = Vec::new();
    for (batch, some) in runs.chunks(ABREAST).enumerate() {
        let some = some
            .iter()
            .enumerate()
            .map(|(nth, (number, way))| run(&stage, &cases[*number], *way, batch * ABREAST + nth));
        wrong.extend(join_all(some).await.into_iter().filter_map(Result::err));
    }
    eprintln!("{} cases, sent in {} ways", cases.len(), runs.len());
    nothing_else_arrived(&stage, &mut wrong).await;
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), runs.len(), wrong.join("\n"));
}

/// A request that is in order is answered, and the upstream has seen nothing that was not meant for it.
async fn nothing_else_arrived(stage: &Stage, wrong: &mut Vec<String>) {
    let after = stage.weir.get("/after").await;
    assert_eq!((after.status, after.text()), (200, "ok"), "others are served as before");
    eventually("the last request", || !stage.up.requests("/after").is_empty()).await;
    wrong.extend(stage.up.faults().into_iter().map(|fault| format!("the upstream read {fault}")));
    let strays = stage.up.seen().into_iter().filter(|seen| {
        let known = ["/after", "/good/", "/case/"].iter().any(|known| seen.target.starts_with(known));
        !known && !["/", "*", "/?q", "/taken", "/taken?q"].contains(&seen.target.as_str())
    });
    wrong.extend(strays.map(|seen| format!("the upstream saw {seen:?}")));
}

/// Where a case is cut: behind the first byte, in the middle of what ends lines and names, and elsewhere.
fn cuts(bytes: &[u8]) -> Vec<usize> {
    let mut cuts: Vec<usize> = Vec::new();
    let ends = bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b'\r' | b'\n' | b':' | b' ' | b';' | b','));
    let ends: Vec<usize> = ends.map(|(at, _)| at + 1).collect();
    // The last are where the malformed part stands.
    cuts.extend(ends.iter().rev().take(5));
    cuts.extend([1, bytes.len() / 2, bytes.len().saturating_sub(1)]);
    cuts.retain(|at| (1..bytes.len()).contains(at));
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

async fn run(stage: &Stage, case: &Case, way: Way, number: usize) -> Result<(), String> {
    let own = format!("/case/{number}");
    let good = format!("/good/{number}");
    let bytes = replaced(&case.bytes, &own);
    let goes_on = matches!(case.expected, Taken(..) | Declined);
    let mut all = Vec::new();
    if matches!(way, Way::Behind) {
        all.extend(format!("GET {good} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes());
    }
    let begins = all.len();
    all.extend_from_slice(&bytes);
    if !goes_on {
        all.extend_from_slice(SMUGGLED.as_bytes());
    }
    let pieces: Vec<&[u8]> = match way {
        Way::Whole | Way::Behind => vec![&all],
        Way::Cut(at) => vec![&all[..begins + at], &all[begins + at..]],
        Way::Bytes => all.chunks(1).collect(),
    };
    // A refusal is read to the end: nothing may come behind it.
    let enough = if goes_on { 1 + usize::from(begins > 0) } else { 0 };
    let (received, closed) = talk(stage.weir.proxy, &pieces, enough).await;
    let told = |what: &str| {
        let (sent, heard) = (shown(&all), shown(&received));
        Err(format!("{} ({way:?}): {what}\n  sent {sent}\n  heard {heard}", case.name))
    };
    let mut statuses = statuses(&received);
    if begins > 0 && (statuses.is_empty() || statuses.remove(0) != 200) {
        return told("the request before it was not answered");
    }
    let arrived = stage.up.requests(&own);
    match case.expected {
        Refused(expected) => {
            if !matches!(statuses[..], [status] if expected.contains(&status)) || !closed {
                return told(&format!("statuses {statuses:?}, closed {closed}, expected {expected:?}"));
            }
            if !arrived.is_empty() {
                return told(&format!("the upstream saw {arrived:?}"));
            }
        }
        Declined => {
            if statuses != [400] || closed || !arrived.is_empty() {
                return told(&format!("statuses {statuses:?}, closed {closed}; the upstream saw {arrived:?}"));
            }
        }
        Cut => {
            if statuses != [400] || !closed {
                return told(&format!("statuses {statuses:?}, closed {closed}, expected 400"));
            }
            if arrived.iter().any(|seen| seen.complete) {
                return told(&format!("the upstream saw {arrived:?}"));
            }
        }
        Taken(method, target, host, body) => {
            let target = target.replace(TARGET, &own);
            let is_it = |seen: &&Seen| {
                let is_told = seen.method == method && seen.target == target && seen.field("host") == [host];
                is_told && seen.body == body.as_bytes() && seen.complete
            };
            if statuses != [200] {
                return told(&format!("statuses {statuses:?}, expected 200"));
            }
            if !stage.up.requests(&target).iter().any(|seen| is_it(&seen)) {
                return told(&format!("the upstream saw {:?}", stage.up.requests(&target)));
            }
        }
    }
    Ok(())
}

/// The case's bytes with its own target in them.
fn replaced(bytes: &[u8], own: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + own.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(TARGET.len()).position(|window| window == TARGET.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(own.as_bytes());
        rest = &rest[at + TARGET.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Writes the pieces, and reads until the other side closes, or `enough` answers have come, if any are. Says what came and
/// whether it closed.
async fn talk(to: SocketAddr, pieces: &[&[u8]], enough: usize) -> (Vec<u8>, bool) {
    let stream = TcpStream::connect(to).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let (mut read, mut write) = stream.into_split();
    let writing = async {
        for (nth, piece) in pieces.iter().enumerate() {
            if nth > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            // Whoever has refused the first piece may have closed.
            if write.write_all(piece).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut received = Vec::new();
        loop {
            if enough > 0 && finals(&received) >= enough && !must_close(&received) {
                return (received, false);
            }
            match read.read_buf(&mut received).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return (received, true),
            }
        }
    };
    let both = async {
        let ((), answered) = tokio::join!(writing, reading);
        answered
    };
    match tokio::time::timeout(PATIENCE, both).await {
        Ok(answered) => answered,
        Err(_) => (b"nothing, for too long".to_vec(), false),
    }
}

fn must_close(received: &[u8]) -> bool {
    received.windows(17).any(|window| window.eq_ignore_ascii_case(b"connection: close"))
}

/// The statuses of the answers, but for interim ones.
fn statuses(received: &[u8]) -> Vec<u16> {
    let starts = received.windows(12).filter(|window| window.starts_with(b"HTTP/1.1 "));
    let statuses = starts.filter_map(|window| std::str::from_utf8(&window[9..]).ok()?.parse().ok());
    statuses.filter(|status| *status >= 200 || *status == 101).collect()
}

fn finals(received: &[u8]) -> usize {
    statuses(received).len()
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(700)].escape_ascii().to_string()
}
