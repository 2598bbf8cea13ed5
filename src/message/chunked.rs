//! The chunked transfer coding, read strictly (RFC 9112 section 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Longest chunk-size line, extensions included.
const SIZE_LINE_BYTES: usize = 256;

/// Most hex digits of a chunk's size: 2^60 is beyond any body.
const SIZE_DIGITS: usize = 15;

/// Longest trailer section.
const TRAILER_BYTES: usize = 16 * 1024;

/// Most trailer fields.
const TRAILER_FIELDS: usize = 64;

/// Reads a chunked body out of a buffer, piece by piece, whatever the pieces' bounds.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// What one step of decoding gave.
#[derive(Debug)]
pub enum Decoded {
    /// Bytes of the body.
    Data(Bytes),
    /// The buffer holds no whole piece.
    NeedMore,
    /// The body ended, with these trailers.
    End(Option<HeaderMap>),
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl ChunkDecoder {
    /// Takes what it can from the front of `buffer`.
    ///
    /// # Errors
    /// Anything that another parser could read differently.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, &'static str> {
        loop {
            match self.state {
                State::Size => match line(buffer, SIZE_LINE_BYTES, "a chunk's size line is too long")? {
                    None => return Ok(Decoded::NeedMore),
                    Some(line) => {
                        self.state = match chunk_size(&line)? {
                            0 => State::Trailers,
                            size => State::Data(size),
                        }
                    }
                },
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let take = left.min(buffer.len() as u64);
                    self.state = if take == left { State::DataEnd } else { State::Data(left - take) };
                    return Ok(Decoded::Data(buffer.split_to(take as usize).freeze()));
                }
                State::DataEnd => {
                    if buffer.len() < 2 {
                        return Ok(Decoded::NeedMore);
                    }
                    if !buffer.starts_with(b"\r\n") {
                        return Err("a chunk is longer than its size");
                    }
                    buffer.advance(2);
                    self.state = State::Size;
                }
                State::Trailers => return self.trailers(buffer),
                State::Done => return Ok(Decoded::End(None)),
            }
        }
    }

    /// Whether the body's end has been read.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn trailers(&mut self, buffer: &mut BytesMut) -> Result<Decoded, &'static str> {
        if buffer.starts_with(b"\r\n") {
            buffer.advance(2);
            self.state = State::Done;
            return Ok(Decoded::End(None));
        }
        let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else {
            // The longest that is taken may have come but for the last byte of its end.
            let too_long = buffer.len() >= TRAILER_BYTES + 4;
            return if too_long { Err("the trailer section is too long") } else { Ok(Decoded::NeedMore) };
        };
        if end > TRAILER_BYTES {
            return Err("the trailer section is too long");
        }
        let section = buffer.split_to(end + 4).freeze();
        if has_bare_line_end(&section) {
            return Err("a bare CR or LF in the trailer section");
        }
        let mut slots = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
        let httparse::Status::Complete((_, fields)) =
            httparse::parse_headers(&section, &mut slots).map_err(|_| "a malformed trailer field")?
        else {
            return Err("a malformed trailer field");
        };
        let mut map = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a malformed trailer name")?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| "a malformed trailer value")?;
            map.append(name, value);
        }
        self.state = State::Done;
        Ok(Decoded::End(Some(map)))
    }
}

/// Whether CR or LF stands anywhere but as CRLF.
pub fn has_bare_line_end(bytes: &[u8]) -> bool {
    let mut expected_lf = None;
    for at in memchr::memchr2_iter(b'\r', b'\n', bytes) {
        match bytes[at] {
            b'\r' if expected_lf.is_some() || bytes.get(at + 1) != Some(&b'\n') => return true,
            b'\r' => expected_lf = Some(at + 1),
            _ if expected_lf == Some(at) => expected_lf = None,
            _ => return true,
        }
    }
    false
}

/// The line at the buffer's front without its CRLF, once it is whole.
fn line(buffer: &mut BytesMut, most: usize, too_long: &'static str) -> Result<Option<Bytes>, &'static str> {
    let Some(lf) = memchr::memchr(b'\n', buffer) else {
        return if buffer.len() > most { Err(too_long) } else { Ok(None) };
    };
    if lf > most {
        return Err(too_long);
    }
    if lf == 0 || buffer[lf - 1] != b'\r' {
        return Err("a bare LF behind a chunk's size");
    }
    let mut line = buffer.split_to(lf + 1);
    line.truncate(lf - 1);
    Ok(Some(line.freeze()))
}

fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > SIZE_DIGITS {
        return Err("a chunk's size is no hexadecimal number");
    }
    let rest = &line[digits..];
    let extension = match rest.iter().position(|b| *b != b' ' && *b != b'\t') {
        None => rest.is_empty(),
        Some(at) => rest[at] == b';' && rest.iter().all(|b| *b == b'\t' || (0x20..0x7f).contains(b)),
    };
    if !extension {
        return Err("junk behind a chunk's size");
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| "a chunk's size is no hexadecimal number")?;
    u64::from_str_radix(text, 16).map_err(|_| "a chunk's size is no hexadecimal number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_in_steps(input: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), &'static str> {
        let mut decoder = ChunkDecoder::default();
        let mut buffer = BytesMut::new();
        let mut body = Vec::new();
        let mut pieces = input.chunks(step);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End(trailers) => {
                    let unread = buffer.len() + pieces.map(<[u8]>::len).sum::<usize>();
                    return Ok((body, trailers, unread));
                }
                Decoded::NeedMore => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => return Err("unfinished"),
                },
            }
        }
    }

    #[test]
    fn reads_the_same_however_it_is_split() {
        let input = b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\nx-sum: 7\r\n\r\nnext";
        for step in 1..input.len() {
            let (body, trailers, unread) = decode_in_steps(input, step).expect("valid");
            assert_eq!(body, b"hello world");
            assert_eq!(trailers.expect("there are some")["x-sum"], "7");
            assert_eq!(unread, 4);
        }
    }

    #[test]
    fn takes_as_long_a_trailer_section_however_it_is_split() {
        let input = |length: usize| format!("0\r\nx: {}\r\n\r\n", "a".repeat(length - 3));
        let longest = input(TRAILER_BYTES);
        for step in [1, 1000, longest.len() - 1, longest.len()] {
            assert!(decode_in_steps(longest.as_bytes(), step).is_ok(), "in steps of {step}");
            assert!(decode_in_steps(input(TRAILER_BYTES + 1).as_bytes(), step).is_err(), "in steps of {step}");
        }
    }

    #[test]
    fn refuses_what_can_be_read_two_ways() {
        for input in [
            "5\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 x\r\nhello\r\n0\r\n\r\n",
            "5;a\n\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello world\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "1000000000000000\r\nx\r\n0\r\n\r\n",
            "0\r\na: b\n\r\n\r\n",
            "0\r\na : b\r\n\r\n",
        ] {
            for step in [1, 2, 3, 100] {
                assert!(decode_in_steps(input.as_bytes(), step).is_err(), "{input:?}");
            }
        }
    }

    #[test]
    fn finds_bare_line_ends() {
        assert!(!has_bare_line_end(b"a\r\nb\r\n"));
        for bad in [&b"a\nb"[..], b"a\rb", b"a\r\r\n", b"\n", b"a\r\n\n", b"a\r"] {
            assert!(has_bare_line_end(bad), "{bad:?}");
        }
    }
}
