//! A request's body: bytes in, pieces, trailers and the end out (RFC 9112 sections 6 and 7).
//!
//! Pure: no I/O and no clock. Anything but the exact grammar is malformed, since what one server repairs another reads
//! differently.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head::{self, Framing, Scan};

/// Bytes of one chunk's size line, extensions included.
const CHUNK_LINE_MAX: usize = 256;

/// Bytes of all extensions of one body: chunks of one byte with long extensions are an attack.
const EXTENSIONS_MAX: usize = 16 * 1024;

/// Bytes of the trailer section.
const TRAILERS_MAX: usize = 8 * 1024;

/// Digits of a chunk's size: 60 bits, which no body reaches and no addition overflows.
const SIZE_DIGITS_MAX: usize = 15;

/// The body breaks its framing; nothing behind it on the connection means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// What [`Decoder::decode`] found.
#[derive(Debug)]
pub(super) enum Decoded {
    /// A piece of the body.
    Data(Bytes),
    /// Trailers; the end comes next.
    Trailers(HeaderMap),
    /// The body is whole.
    End,
    /// More bytes are needed.
    More,
}

/// Takes a body out of the bytes of a connection, and not one byte more.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    extensions: usize,
    scanned: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Done,
}

impl Decoder {
    /// A decoder for a body with this framing.
    pub(super) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        Self { state, extensions: 0, scanned: 0 }
    }

    /// Whether the body has been taken whole.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes still to come, where the framing says.
    pub(super) fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Takes the next piece from the front of `input`, without a copy.
    ///
    /// # Errors
    /// If the bytes are not a body of this framing; the decoder must not be asked again.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match self.state {
                State::Done => return Ok(Decoded::End),
                State::Length(left) => {
                    let (piece, left) = take(input, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(piece);
                }
                State::ChunkSize => match self.size_line(input)? {
                    None => return Ok(Decoded::More),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Chunk(size),
                },
                State::Chunk(left) => {
                    let (piece, left) = take(input, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(piece);
                }
                State::ChunkEnd => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(Decoded::More),
                    _ => return Err(Malformed),
                },
                State::Trailers => return self.trailers(input),
            }
        }
    }

    /// A chunk's size, once its line is whole.
    fn size_line(&mut self, input: &mut BytesMut) -> Result<Option<u64>, Malformed> {
        let seen = &input[..input.len().min(CHUNK_LINE_MAX)];
        let Some(end) = memchr::memchr(b'\n', seen) else {
            return if seen.len() == CHUNK_LINE_MAX { Err(Malformed) } else { Ok(None) };
        };
        let line = seen[..end].strip_suffix(b"\r").ok_or(Malformed)?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        if size.is_empty() || size.len() > SIZE_DIGITS_MAX {
            return Err(Malformed);
        }
        if !are_extensions(extension) {
            return Err(Malformed);
        }
        self.extensions += extension.len();
        if self.extensions > EXTENSIONS_MAX {
            return Err(Malformed);
        }
        let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
        input.advance(end + 1);
        size.ok_or(Malformed).map(Some)
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Decoded, Malformed> {
        match head::scan(input, &mut self.scanned) {
            Scan::BareLineFeed => Err(Malformed),
            Scan::End(end) if end > TRAILERS_MAX => Err(Malformed),
            Scan::Partial if input.len() > TRAILERS_MAX => Err(Malformed),
            Scan::Partial => Ok(Decoded::More),
            Scan::End(end) => {
                self.state = State::Done;
                let block = input.split_to(end).freeze();
                let trailers = head::parse_trailers(&block).map_err(|_| Malformed)?;
                Ok(if trailers.is_empty() { Decoded::End } else { Decoded::Trailers(trailers) })
            }
        }
    }
}

/// Whether these are chunk extensions: `;name`, `;name=token` or `;name="quoted"`, as often as there are any.
///
/// RFC 9112 section 7.1.1 allows white space around `;` and `=`; it is never useful and was an attack. So was a quote that
/// is left open, behind which another reader may look for the end of the line in the next.
fn are_extensions(mut rest: &[u8]) -> bool {
    while let Some(extension) = rest.strip_prefix(b";") {
        let (name, behind) = extension.split_at(token_length(extension));
        if name.is_empty() {
            return false;
        }
        rest = match behind.strip_prefix(b"=") {
            None => behind,
            Some(value) => match value.strip_prefix(b"\"") {
                Some(quoted) => match quoted_length(quoted) {
                    Some(length) => &quoted[length..],
                    None => return false,
                },
                None => match token_length(value) {
                    0 => return false,
                    length => &value[length..],
                },
            },
        };
    }
    rest.is_empty()
}

/// Bytes of the token (RFC 9110 section 5.6.2) that `text` begins with.
fn token_length(text: &[u8]) -> usize {
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    text.iter().position(|b| !is_token(b)).unwrap_or(text.len())
}

/// Bytes up to and with the quote that ends a quoted string (RFC 9110 section 5.6.4).
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'\t' | b' '..=b'~' | 0x80.. if escaped => escaped = false,
            b'"' => return Some(at + 1),
            b'\\' => escaped = true,
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return None,
        }
    }
    None
}

/// Up to `left` bytes of `input`, and how many are then left.
fn take(input: &mut BytesMut, left: u64) -> (Decoded, u64) {
    if input.is_empty() {
        return (Decoded::More, left);
    }
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    (Decoded::Data(input.split_to(length).freeze()), left - length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `wire` in pieces of `step` bytes; the body, the trailers and what was left over.
    fn decode(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), Malformed> {
        let mut decoder = Decoder::new(framing);
        let mut pieces = wire.chunks(step);
        let (mut input, mut body, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        loop {
            match decoder.decode(&mut input)? {
                Decoded::Data(piece) => body.extend_from_slice(&piece),
                Decoded::Trailers(fields) => trailers = fields,
                Decoded::End => break,
                Decoded::More => input.extend_from_slice(pieces.next().expect("the body is whole")),
            }
        }
        let rest = input.iter().chain(pieces.flatten()).copied().collect();
        Ok((body, trailers, rest))
    }

    #[test]
    fn bodies_end_where_their_framing_says_however_they_arrive() {
        let wire =
            b"4\r\nWiki\r\n5;a=\"b;\\\"\";c;d=e\r\npedia\r\nE\r\n in\r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n";
        for step in 1..=wire.len() {
            let (body, trailers, rest) = decode(Framing::Chunked, wire, step).expect("well formed");
            assert_eq!(body, b"Wikipedia in\r\n\r\nchunks.");
            assert_eq!(trailers["x-sum"], "1");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n");
            let (body, _, rest) = decode(Framing::Length(3), b"abcdef", step).expect("well formed");
            assert_eq!((&body[..], &rest[..]), (&b"abc"[..], &b"def"[..]));
        }
        let (body, trailers, rest) = decode(Framing::Chunked, b"0\r\n\r\nX", 1).expect("well formed");
        assert_eq!((body.len(), trailers.len(), &rest[..]), (0, 0, &b"X"[..]));
    }

    #[test]
    fn only_the_exact_chunk_grammar_is_taken() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(300));
        let many_extensions = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(100));
        let long_trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(9000));
        let cases: &[&str] = &[
            "+1\r\na\r\n0\r\n\r\n",
            "-1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
            "1 ;a\r\na\r\n0\r\n\r\n",
            "\r\na\r\n0\r\n\r\n",
            "g\r\na\r\n0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1;a\nb\r\na\r\n0\r\n\r\n",
            "1;a\rb\r\na\r\n0\r\n\r\n",
            "1;a\0b\r\na\r\n0\r\n\r\n",
            "1;\r\na\r\n0\r\n\r\n",
            "1;a=\r\na\r\n0\r\n\r\n",
            "1; a\r\na\r\n0\r\n\r\n",
            "1;a =b\r\na\r\n0\r\n\r\n",
            "1;a=b \r\na\r\n0\r\n\r\n",
            "1;a=\"\r\na\r\n0\r\n\r\n",
            "1;a=\"b\\\"\r\na\r\n0\r\n\r\n",
            "1;a=\"b\"c\r\na\r\n0\r\n\r\n",
            "1;a=\"b\0\"\r\na\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "10000000000000000\r\na\r\n0\r\n\r\n",
            "0000000000000001\r\na\r\n0\r\n\r\n",
            "ffffffffffffffff\r\na\r\n0\r\n\r\n",
            "0\r\nx: 1\n\r\n",
            "0\r\nx : 1\r\n\r\n",
            "0\r\n: 1\r\n\r\n",
            "0\r\nx: 1\r\n folded\r\n\r\n",
            "0\r\nx: \0\r\n\r\n",
            &long_extension,
            &many_extensions,
            &long_trailers,
        ];
        for case in cases {
            for step in [1, 7, case.len()] {
                assert!(decode(Framing::Chunked, case.as_bytes(), step).is_err(), "{case:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_piece_is_handed_on_as_it_arrives() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut input = BytesMut::from(&b"ffff\r\nabc"[..]);
        assert!(matches!(decoder.decode(&mut input), Ok(Decoded::Data(piece)) if piece == "abc"));
        assert!(matches!(decoder.decode(&mut input), Ok(Decoded::More)));
    }
}
