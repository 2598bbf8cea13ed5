//! HTTP/2 frame by frame (RFC 9113 section 4): what no library would send can be written, and what comes back is read.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

/// What a client says first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const PRIORITY: u8 = 2;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PUSH_PROMISE: u8 = 5;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const END_STREAM: u8 = 1;
/// See [`END_STREAM`]; of SETTINGS and PING.
pub const ACK: u8 = 1;
/// See [`END_STREAM`].
pub const END_HEADERS: u8 = 4;
/// See [`END_STREAM`].
pub const PADDED: u8 = 8;
/// See [`END_STREAM`].
pub const PRIORITISED: u8 = 0x20;

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Fields as literals that no table keeps (RFC 7541 section 6.2.2), byte for byte.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

/// A length with a prefix of seven bits (RFC 7541 section 5.1).
fn integer(bytes: &mut Vec<u8>, mut value: usize) {
    const PREFIX: usize = 127;
    if value < PREFIX {
        bytes.push(value as u8);
        return;
    }
    bytes.push(PREFIX as u8);
    value -= PREFIX;
    while value >= 128 {
        bytes.push((value % 128 + 128) as u8);
        value /= 128;
    }
    bytes.push(value as u8);
}

/// What a server says to one stream, or to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The stream's answer has begun with this status.
    Status(u16),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The connection is to end, with this code.
    Goaway(u32),
    /// It has ended.
    Closed,
    /// A PING of ours came back.
    Pong,
    /// Nothing, for too long.
    Nothing,
}

/// A connection of which every byte is the test's.
pub struct Frames {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Frames {
    /// Opens one and writes `bytes`; what cannot be written any more is not.
    pub async fn open(to: SocketAddr, bytes: &[u8]) -> Self {
        let stream = TcpStream::connect(to).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let mut frames = Self { stream, input: Vec::new() };
        frames.write(bytes).await;
        frames
    }

    /// Writes bytes; whoever was refused before may have no reader any more.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads on to what is said to `stream`, or to all.
    pub async fn said(&mut self, stream: u32) -> Said {
        let heard = async {
            loop {
                let Ok((kind, flags, on, payload)) = self.read().await else { return Said::Closed };
                let code =
                    |at: usize| payload.get(at..at + 4).map_or(0, |c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
                match kind {
                    HEADERS if on == stream => {
                        if let Some(status) = status(&payload).filter(|status| *status >= 200) {
                            return Said::Status(status);
                        }
                    }
                    RST_STREAM if on == stream => return Said::Reset(code(0)),
                    GOAWAY if code(4) != 0 => return Said::Goaway(code(4)),
                    PING if flags & ACK != 0 => return Said::Pong,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or(Said::Nothing)
    }

    /// One frame: type, flags, stream, payload.
    async fn read(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let head = self.take(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, self.take(length).await?))
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.input.len() < count {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.input.drain(..count).collect())
    }
}

/// The status that a block begins with: indexed, or a literal under the indexed name.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A change of the table's size may stand first.
    let start = block.iter().position(|byte| byte & 0xe0 != 0x20)?;
    match *block.get(start)? {
        byte @ 0x88..=0x8e => Some(INDEXED[usize::from(byte - 0x88)]),
        0x08 | 0x18 | 0x48..=0x4e => {
            let length = *block.get(start + 1)?;
            let text = block.get(start + 2..start + 2 + usize::from(length & 127))?;
            if length & 128 == 0 { std::str::from_utf8(text).ok()?.parse().ok() } else { Some(digits(text)) }
        }
        _ => None,
    }
}

/// Three digits in Huffman's code (RFC 7541 appendix B): 0 to 2 have five bits, the others six.
fn digits(code: &[u8]) -> u16 {
    let bits = code.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    let mut left = 8 * code.len() as u32;
    (0..3).fold(0, |number, _| {
        let five = bits >> (left - 5) & 31;
        let digit = if five <= 2 {
            left -= 5;
            five
        } else {
            left -= 6;
            (bits >> left & 63) - 0x16
        };
        10 * number + digit as u16
    })
}

#[test]
fn statuses_are_read() {
    assert_eq!(status(&[0x88]), Some(200));
    assert_eq!(status(&[0x3f, 0xe1, 0x1f, 0x8c]), None, "only one byte of a change is passed over");
    assert_eq!(status(b"\x48\x03405"), Some(405));
    // 405: 011010 00000 011011, then ones.
    assert_eq!(status(&[0x48, 0x83, 0b0110_1000, 0b0000_1101, 0b1111_1111]), Some(405));
}
