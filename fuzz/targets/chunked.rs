//! A chunked body reads the same however it is cut.
//!
//! Input: a byte that says how long the cuts are, then the body.
#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use weir::message::chunked::{ChunkDecoder, Decoded};
use weir_fuzz::{fuzz_target, step};

/// Body bytes, and trailers and what is left behind the end if it came, or an error.
type Outcome = (Vec<u8>, Result<Option<(Option<HeaderMap>, usize)>, ()>);

fuzz_target!(|data: &[u8]| {
    let Some((step, body)) = step(data) else { return };
    let whole = read(body, body.len().max(1));
    assert_eq!(read(body, step), whole);
    assert_eq!(read(body, 1), whole);
});

fn read(body: &[u8], step: usize) -> Outcome {
    let (mut decoder, mut buffer, mut data) = (ChunkDecoder::default(), BytesMut::new(), Vec::new());
    for (nth, piece) in body.chunks(step).enumerate() {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(piece)) => data.extend_from_slice(&piece),
                Ok(Decoded::NeedMore) => break,
                Ok(Decoded::End(trailers)) => {
                    assert!(decoder.is_done());
                    let unread = body.len() - (nth * step + piece.len());
                    return (data, Ok(Some((trailers, unread + buffer.len()))));
                }
                Err(_) => return (data, Err(())),
            }
        }
    }
    (data, Ok(None))
}
