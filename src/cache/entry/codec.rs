//! The bytes of what is stored: versioned, checksummed, bounded before anything is allocated.
//!
//! ```text
//!  0  4  "WEIR"
//!  4  1  version
//!  5  1  kind: 1 entry, 2 vary, 3 uncacheable
//!  6  2  flags: 1 the body is an LZ4 block, 2 must-revalidate, 4 no-cache,
//!       8 the lifetime is the route's own, 16 the body is a part
//!  8  8  incarnation     \
//! 16  8  seq              > big-endian, so that a script compares them as strings (GETRANGE)
//! 24  8  fence           /
//! 32  8  checksum: XXH3 of what follows, seeded by XXH3 of what stands before
//! 40     by kind
//! ```
//!
//! Fixed numbers are big-endian; a string has its length in front as a LEB128 number. An entry: status (2), received at,
//! initial age, lifetime, stale while revalidate, stale if error (8 each), fill cost (4), key, fields, number of vary
//! names, the names, number of tags, the tags, the body's length when unpacked, and the body to the end; of a part, its
//! first byte's place and the whole's length (8 each) stand behind the fill cost. A vary record:
//! until (8), key, number of names, the names, number of variants, of each the key's hash (8), its name in Redis (16) and its uses (1).
//! Uncacheable: until (8), key.
//!
//! [`decode`] reads this version and, where there is one, the version before, so that a rolling upgrade keeps its cache.
//! Bytes 0 to 39 mean the same in every version.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Entry, MAX_VARIANTS, Part, Stored, Uncacheable, Variant, Vary};
use crate::cache::fields::{are_lines, lines};
use crate::cache::freshness::Freshness;
use crate::cache::key::MAX_VARY_NAMES;
use crate::cache::tags::{MAX_TAG_BYTES, MAX_TAGS};
use crate::invalidation::Position;

/// Where the incarnation is: 8 bytes, big-endian.
pub const INCARNATION_AT: usize = 8;
/// Where the sequence number is: 8 bytes, big-endian.
pub const SEQ_AT: usize = 16;
/// Where the fence is: 8 bytes, big-endian.
pub const FENCE_AT: usize = 24;

/// Where the kind is; that of an answer is 1.
pub const KIND_AT: usize = 5;
/// Where it stands in an answer when that was received: 8 bytes, big-endian.
pub const RECEIVED_AT: usize = PAYLOAD_AT + 2;

const MAGIC: &[u8; 4] = b"WEIR";
const VERSION: u8 = 1;
const CHECKSUM_AT: usize = 32;
const PAYLOAD_AT: usize = 40;

const ENTRY: u8 = 1;
const VARY: u8 = 2;
const UNCACHEABLE: u8 = 3;

const PACKED: u16 = 1;
const MUST_REVALIDATE: u16 = 2;
const NO_CACHE: u16 = 4;
const BY_RULE: u16 = 8;
const PART: u16 = 16;

/// Longest full key that is read: a request's head at its most, with every length.
const MAX_KEY_BYTES: usize = 1 << 20;

/// Longest field lines that are read.
const MAX_FIELDS_BYTES: usize = 1 << 20;

/// What one byte of an LZ4 block can unpack to, at the very most: a claim above it is false.
const MOST_EXPANSION: usize = 256;

/// Why bytes are not what was stored. A miss and a counter, never an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Corrupt {
    /// Not written by Weir, or cut.
    Foreign,
    /// A version that this Weir does not read.
    Version,
    /// Not the bytes that were written.
    Checksum,
    /// Larger than may be stored here.
    TooLarge,
    /// Bytes that mean nothing.
    Malformed,
}

impl Corrupt {
    /// Text in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Checksum => "checksum",
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
        }
    }
}

/// The bytes of `stored`. A body longer than `compress_over` is packed, if that makes it smaller and the upstream has
/// not packed it already.
pub fn encode(stored: &Stored, compress_over: Option<usize>) -> Vec<u8> {
    match stored {
        Stored::Entry(entry) => encode_entry(entry, compress_over),
        Stored::Vary(vary) => {
            let mut out = begin(VARY, 0, vary.position, vary.fence, vary.key.len() + 256);
            out.extend_from_slice(&vary.until.to_be_bytes());
            put(&mut out, &vary.key);
            put_all(&mut out, vary.names.iter().map(|name| name.as_str().as_bytes()));
            put_number(&mut out, vary.variants.len());
            for variant in &vary.variants {
                out.extend_from_slice(&variant.hash.to_be_bytes());
                out.extend_from_slice(&variant.name);
                out.push(variant.uses());
            }
            seal(out)
        }
        Stored::Uncacheable(verdict) => {
            let mut out = begin(UNCACHEABLE, 0, verdict.position, verdict.fence, verdict.key.len() + 32);
            out.extend_from_slice(&verdict.until.to_be_bytes());
            put(&mut out, &verdict.key);
            seal(out)
        }
    }
}

fn encode_entry(entry: &Entry, compress_over: Option<usize>) -> Vec<u8> {
    let packed = compress_over
        .filter(|over| entry.body.len() > *over && !is_coded(&entry.fields))
        .map(|_| lz4_flex::block::compress(&entry.body))
        .filter(|packed| packed.len() < entry.body.len());
    let body = packed.as_deref().unwrap_or(&entry.body);
    let freshness = &entry.freshness;
    let flag = |bit: u16, set: bool| if set { bit } else { 0 };
    let flags = flag(PACKED, packed.is_some())
        | flag(MUST_REVALIDATE, freshness.must_revalidate)
        | flag(NO_CACHE, freshness.no_cache)
        | flag(BY_RULE, freshness.by_rule)
        | flag(PART, entry.part.is_some());

    let size = 128 + entry.key.len() + entry.fields.len() + body.len() + entry.tags.len() * 16;
    let mut out = begin(ENTRY, flags, entry.position, entry.fence, size);
    out.extend_from_slice(&entry.status.as_u16().to_be_bytes());
    for number in [
        freshness.received_at,
        freshness.initial_age_ms,
        freshness.lifetime_ms,
        freshness.stale_while_revalidate_ms,
        freshness.stale_if_error_ms,
    ] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&entry.fill_cost_ms.to_be_bytes());
    for number in entry.part.iter().flat_map(|part| [part.first, part.complete]) {
        out.extend_from_slice(&number.to_be_bytes());
    }
    put(&mut out, &entry.key);
    put(&mut out, &entry.fields);
    put_all(&mut out, entry.vary.iter().map(|name| name.as_str().as_bytes()));
    put_all(&mut out, entry.tags.iter().map(String::as_bytes));
    put_number(&mut out, entry.body.len());
    out.extend_from_slice(body);
    seal(out)
}

/// Whether the upstream has coded the body: what is packed already packs no further.
fn is_coded(fields: &[u8]) -> bool {
    lines(fields).any(|(name, _)| &fields[name] == b"content-encoding")
}

fn begin(kind: u8, flags: u16, position: Position, fence: u64, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(PAYLOAD_AT + size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&position.incarnation.to_be_bytes());
    out.extend_from_slice(&position.seq.to_be_bytes());
    out.extend_from_slice(&fence.to_be_bytes());
    out.extend_from_slice(&[0; PAYLOAD_AT - CHECKSUM_AT]);
    out
}

fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&out);
    out[CHECKSUM_AT..PAYLOAD_AT].copy_from_slice(&sum.to_be_bytes());
    out
}

fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(&bytes[PAYLOAD_AT..], xxh3_64(&bytes[..CHECKSUM_AT]))
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    let mut left = number as u64;
    while left >= 0x80 {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_all<'a>(out: &mut Vec<u8>, strings: impl ExactSizeIterator<Item = &'a [u8]>) {
    put_number(out, strings.len());
    for string in strings {
        put(out, string);
    }
}

/// What these bytes were written from. Key, fields and body are slices of `bytes`; a packed body is unpacked if it is no
/// longer than `max_body`.
///
/// # Errors
/// Why they cannot be used.
pub fn decode(bytes: &Bytes, max_body: usize) -> Result<Stored, Corrupt> {
    if bytes.len() < PAYLOAD_AT || !bytes.starts_with(MAGIC) {
        return Err(Corrupt::Foreign);
    }
    let mut reader = Reader { bytes, at: MAGIC.len() };
    match reader.byte()? {
        VERSION => {}
        // The version before this one is read from here, into today's types.
        _ => return Err(Corrupt::Version),
    }
    let kind = reader.byte()?;
    let flags = reader.u16()?;
    let position = Position { incarnation: reader.u64()?, seq: reader.u64()? };
    let fence = reader.u64()?;
    if reader.u64()? != checksum(bytes) {
        return Err(Corrupt::Checksum);
    }
    let stored = match kind {
        ENTRY => Stored::Entry(Arc::new(decode_entry(&mut reader, flags, position, fence, max_body)?)),
        VARY => {
            let until = reader.u64()?;
            let key = reader.string(MAX_KEY_BYTES)?;
            let names = reader.names()?;
            let number = reader.number(MAX_VARIANTS)?;
            let variant = |_| Ok(Variant::elsewhere(reader.u64()?, reader.array()?, reader.byte()?));
            let variants = (0..number).map(variant).collect::<Result<_, _>>()?;
            Stored::Vary(Arc::new(Vary { key, names, variants, left: 0, position, fence, until }))
        }
        UNCACHEABLE => {
            let until = reader.u64()?;
            Stored::Uncacheable(Arc::new(Uncacheable { key: reader.string(MAX_KEY_BYTES)?, position, fence, until }))
        }
        _ => return Err(Corrupt::Malformed),
    };
    if reader.left() == 0 { Ok(stored) } else { Err(Corrupt::Malformed) }
}

fn decode_entry(
    reader: &mut Reader<'_>,
    flags: u16,
    position: Position,
    fence: u64,
    max_body: usize,
) -> Result<Entry, Corrupt> {
    if flags & !(PACKED | MUST_REVALIDATE | NO_CACHE | BY_RULE | PART) != 0 {
        return Err(Corrupt::Malformed);
    }
    let status = StatusCode::from_u16(reader.u16()?).map_err(|_| Corrupt::Malformed)?;
    let freshness = Freshness {
        received_at: reader.u64()?,
        initial_age_ms: reader.u64()?,
        lifetime_ms: reader.u64()?,
        stale_while_revalidate_ms: reader.u64()?,
        stale_if_error_ms: reader.u64()?,
        must_revalidate: flags & MUST_REVALIDATE != 0,
        no_cache: flags & NO_CACHE != 0,
        by_rule: flags & BY_RULE != 0,
    };
    let fill_cost_ms = reader.u32()?;
    let part = (flags & PART != 0).then(|| Ok(Part { first: reader.u64()?, complete: reader.u64()? })).transpose()?;
    let key = reader.string(MAX_KEY_BYTES)?;
    let fields = reader.string(MAX_FIELDS_BYTES)?;
    if !are_lines(&fields) {
        return Err(Corrupt::Malformed);
    }
    let vary = reader.names()?;
    let tags = (0..reader.number(MAX_TAGS)?)
        .map(|_| {
            let tag = reader.string(MAX_TAG_BYTES)?;
            std::str::from_utf8(&tag).map(str::to_owned).map_err(|_| Corrupt::Malformed)
        })
        .collect::<Result<_, _>>()?;
    let length = reader.number(max_body)?;
    let body = reader.rest();
    let (key, fields, body) = if flags & PACKED == 0 {
        (key, fields, body)
    } else {
        // Copied, or they would keep the packed body in memory beside the unpacked one.
        (Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&fields), unpack(&body, length)?)
    };
    let lies_within = |part: &Part| part.first.checked_add(length as u64).is_some_and(|end| end <= part.complete);
    if body.len() != length || !part.as_ref().is_none_or(lies_within) {
        return Err(Corrupt::Malformed);
    }
    Ok(Entry { key, status, fields, body, position, fence, freshness, vary, tags, fill_cost_ms, part })
}

fn unpack(packed: &[u8], length: usize) -> Result<Bytes, Corrupt> {
    if length / MOST_EXPANSION > packed.len() {
        return Err(Corrupt::TooLarge);
    }
    let mut body = vec![0; length];
    match lz4_flex::block::decompress_into(packed, &mut body) {
        Ok(written) if written == length => Ok(body.into()),
        _ => Err(Corrupt::Malformed),
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let array = self.bytes[self.at..].first_chunk().ok_or(Corrupt::Malformed)?;
        self.at += N;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, Corrupt> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_be_bytes)
    }

    /// A LEB128 number that is at most `most`.
    fn number(&mut self, most: usize) -> Result<usize, Corrupt> {
        let mut number = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(number).ok().filter(|number| *number <= most).ok_or(Corrupt::TooLarge);
            }
        }
        Err(Corrupt::Malformed)
    }

    fn string(&mut self, most: usize) -> Result<Bytes, Corrupt> {
        let length = self.number(most)?;
        if length > self.left() {
            return Err(Corrupt::Malformed);
        }
        let string = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(string)
    }

    fn names(&mut self) -> Result<Vec<HeaderName>, Corrupt> {
        let count = self.number(MAX_VARY_NAMES + 1)?;
        let mut name = || HeaderName::from_bytes(&self.string(usize::from(u16::MAX))?).map_err(|_| Corrupt::Malformed);
        (0..count).map(|_| name()).collect()
    }

    fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.at..);
        self.at = self.bytes.len();
        rest
    }
}
