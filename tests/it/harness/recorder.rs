//! A service that keeps every byte which it is sent, and takes only what can be read in one way.
//!
//! It reads the one form in which Weir writes HTTP/1.1 and calls anything else a fault, however well others would get on with
//! it. What it answers are bytes too, by target.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::background::Background;

/// What is answered where nothing else is said.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A running one, on a port of its own.
pub fn recorder() -> Recorder {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let record: Arc<Mutex<Record>> = Arc::default();
    let kept = Arc::clone(&record);
    let background = Background::run("recorder", move || async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        for connection in 0.. {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(serve(stream, connection, Arc::clone(&kept)));
        }
    });
    Recorder { address, record, _background: background }
}

/// A running recorder.
pub struct Recorder {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    _background: Background,
}

#[derive(Default)]
struct Record {
    seen: Vec<Seen>,
    faults: Vec<String>,
    answers: HashMap<String, Answer>,
}

#[derive(Clone)]
struct Answer {
    bytes: Vec<u8>,
    close: bool,
}

/// A request as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The connection that it came over, counted from 0.
    pub connection: usize,
    /// Method.
    pub method: String,
    /// Target.
    pub target: String,
    /// Fields in order; names are in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Body, without its framing.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Whether its end came.
    pub complete: bool,
}

impl Seen {
    /// The values of a field, as text.
    pub fn field(&self, name: &str) -> Vec<String> {
        let named = self.fields.iter().filter(|(field, _)| field == name);
        named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

impl Recorder {
    /// Its address as the configuration wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers `target` with `bytes` from now on, and then closes, if `close` says so.
    pub fn answer(&self, target: &str, bytes: &[u8], close: bool) {
        lock(&self.record).answers.insert(target.to_owned(), Answer { bytes: bytes.to_vec(), close });
    }

    /// Every request so far, in the order in which their heads came.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.record).seen.clone()
    }

    /// The requests for `target`.
    pub fn requests(&self, target: &str) -> Vec<Seen> {
        lock(&self.record).seen.iter().filter(|seen| seen.target == target).cloned().collect()
    }

    /// What came and could be read in two ways.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.record).faults.clone()
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().expect("no panic while held")
}

async fn serve(mut stream: TcpStream, connection: usize, record: Arc<Mutex<Record>>) {
    let mut input = Input { stream: &mut stream, bytes: Vec::new() };
    loop {
        let (index, answer) = match request(&mut input, connection, &record).await {
            Ok(Some(read)) => read,
            Ok(None) => return,
            Err(fault) => {
                lock(&record).faults.push(format!("connection {connection}: {fault}"));
                return;
            }
        };
        lock(&record).seen[index].complete = true;
        if input.stream.write_all(&answer.bytes).await.is_err() || answer.close {
            let _ = input.stream.shutdown().await;
            // What is still to come would make the close a reset, which takes the answer back.
            while let Ok(1..) = input.stream.read_buf(&mut input.bytes).await {
                input.bytes.clear();
            }
            return;
        }
    }
}

/// Reads one request; nothing where the connection ends.
async fn request(
    input: &mut Input<'_>,
    connection: usize,
    record: &Mutex<Record>,
) -> Result<Option<(usize, Answer)>, String> {
    let Some(head) = input.until(b"\r\n\r\n").await else {
        return if input.bytes.is_empty() { Ok(None) } else { Err(format!("half a head: {}", shown(&input.bytes))) };
    };
    let (line, fields) = match head.iter().position(|byte| *byte == b'\r') {
        Some(end) if end + 2 < head.len() => (&head[..end], &head[end + 2..]),
        _ => return Err(format!("a request without fields: {}", shown(&head))),
    };
    let words: Vec<&str> = std::str::from_utf8(line).map_err(|_| shown(line))?.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err(format!("a request line: {}", shown(line))) };
    let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
    let is_target =
        (target.starts_with('/') || target == "*") && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if !is_method || !is_target {
        return Err(format!("a request line: {}", shown(line)));
    }
    let fields = read_fields(fields)?;
    let values = |name: &str| fields.iter().filter(|(field, _)| field == name).map(|(_, v)| &v[..]).collect::<Vec<_>>();
    let framing = (values("content-length"), values("transfer-encoding"));
    if !matches!(values("host")[..], [host] if !host.is_empty()) {
        return Err(format!("not one Host: {}", shown(&head)));
    }
    let seen =
        Seen { connection, method: method.into(), target: target.into(), fields: fields.clone(), ..Seen::default() };
    let (index, answer) = {
        let mut record = lock(record);
        record.seen.push(seen);
        let scripted = record.answers.get(target).cloned();
        (record.seen.len() - 1, scripted.unwrap_or(Answer { bytes: OK.into(), close: false }))
    };
    let whole = match (&framing.0[..], &framing.1[..]) {
        ([], []) => true,
        ([length], []) => {
            let length = number(length, 10)?;
            let body = input.take(length).await;
            lock(record).seen[index].body.extend_from_slice(body.as_deref().unwrap_or_default());
            body.is_some()
        }
        ([], [b"chunked"]) => chunks(input, index, record).await?,
        _ => return Err(format!("an unclear framing: {}", shown(&head))),
    };
    Ok(whole.then_some((index, answer)))
}

/// Reads a chunked body; whether it came whole.
async fn chunks(input: &mut Input<'_>, index: usize, record: &Mutex<Record>) -> Result<bool, String> {
    loop {
        let Some(line) = input.until(b"\r\n").await else { return Ok(false) };
        match number(&line, 16)? {
            0 => break,
            size => {
                let Some(mut chunk) = input.take(size + 2).await else { return Ok(false) };
                if chunk.split_off(size) != b"\r\n" {
                    return Err("a chunk of another size than it says".into());
                }
                lock(record).seen[index].body.extend_from_slice(&chunk);
            }
        }
    }
    let mut block = Vec::new();
    loop {
        let Some(line) = input.until(b"\r\n").await else { return Ok(false) };
        if line.is_empty() {
            break;
        }
        block.extend_from_slice(if block.is_empty() { b"" } else { b"\r\n" });
        block.extend_from_slice(&line);
    }
    if !block.is_empty() {
        lock(record).seen[index].trailers = read_fields(&block)?;
    }
    Ok(true)
}

/// Lines `name: value`, joined by CRLF.
fn read_fields(block: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut fields = Vec::new();
    let mut rest = block;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 2..).unwrap_or_default();
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| format!("no field: {}", shown(line)))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_name = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(b);
        let value = value.strip_prefix(b" ").filter(|value| value.trim_ascii() == *value);
        let is_value = |b: &u8| matches!(b, b'\t' | b' '..=b'~' | 0x80..);
        match value {
            Some(value) if !name.is_empty() && name.iter().all(is_name) && value.iter().all(is_value) => {
                fields.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
            }
            _ => return Err(format!("no plain field: {}", shown(line))),
        }
    }
    Ok(fields)
}

/// A number as short as it can be written.
fn number(digits: &[u8], radix: u32) -> Result<usize, String> {
    let is_digit = |b: &u8| char::from(*b).is_digit(radix) && !b.is_ascii_uppercase();
    let plain = !digits.is_empty() && digits.iter().all(is_digit) && (digits.len() == 1 || digits[0] != b'0');
    let text = std::str::from_utf8(digits).ok().filter(|_| plain);
    text.and_then(|text| usize::from_str_radix(text, radix).ok()).ok_or_else(|| format!("no number: {}", shown(digits)))
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(300)].escape_ascii().to_string()
}

struct Input<'s> {
    stream: &'s mut TcpStream,
    bytes: Vec<u8>,
}

impl Input<'_> {
    /// Everything before `end`, which goes too; nothing if the connection ends first.
    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                let taken = self.bytes.drain(..at + end.len()).take(at).collect();
                return Some(taken);
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < count {
            self.more().await?;
        }
        Some(self.bytes.drain(..count).collect())
    }

    async fn more(&mut self) -> Option<()> {
        matches!(self.stream.read_buf(&mut self.bytes).await, Ok(1..)).then_some(())
    }
}
