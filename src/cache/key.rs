//! The cache's keys: what makes two requests the same (RFC 9111 sections 2 and 4.1).
//!
//! A key is a sequence of bytes in which every part has its length in front, so that no two different requests have the
//! same one. Credentials are in it as HMACs only. Layout of a primary key:
//!
//! ```text
//! FORMAT 'P' 'G' generation route scheme host path query? { name count value* }*
//! ```
//!
//! and of a variant's: `FORMAT 'V' primary { name count value* }*`. A part is its length (u32, big-endian) and its
//! bytes. `'G'` is the class of GET and HEAD. That of requests that read by their body is `'B'`, and behind such a key
//! stand the method, the fields that say what the body is, and its SHA-256.

use std::cell::RefCell;

use hmac::{Hmac, Mac};
use http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, COOKIE,
    PROXY_AUTHORIZATION, VARY,
};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;

use super::negotiation::{normalise_accept_encoding, normalise_accept_language};
use crate::config::CacheRule;

pub mod shown;

/// First byte of every key; another layout takes another.
const FORMAT: u8 = 1;
const PRIMARY: u8 = b'P';
const VARIANT: u8 = b'V';
const CLASS_READ: u8 = b'G';
const CLASS_CONTENT: u8 = b'B';

/// Where a primary key says of which class it is.
const CLASS_AT: usize = 2;

/// Fields that say what a body is.
static ABOUT_CONTENT: [HeaderName; 3] = [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE];

/// Bytes of an HMAC that stand for a credential.
const CREDENTIAL_BYTES: usize = 16;

/// Most fields that `Vary` may name; each is a part of every variant's key. One more may be implied.
pub const MAX_VARY_NAMES: usize = 16;

/// Buffers that a thread keeps: as many as are in use at once, a primary key's and a variant's.
const BUFFERS: usize = 2;

/// Largest buffer that is kept: most keys are a tenth of it.
const BUFFER_BYTES: usize = 4096;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `work` an empty buffer that the thread keeps, so that a key that is needed for a moment only, as a hit's, costs
/// no allocation.
pub fn with_buffer<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let result = work(&mut buffer);
    if buffer.capacity() <= BUFFER_BYTES {
        buffer.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < BUFFERS {
                spare.push(buffer);
            }
        });
    }
    result
}

/// What a request is looked up by, beside its fields.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Scheme, in lower case.
    pub scheme: &'a str,
    /// Authority, in lower case.
    pub host: &'a str,
    /// Normalised path.
    pub path: &'a str,
    /// Query as it is forwarded; `None` without a question mark.
    pub query: Option<&'a str>,
}

/// A body by which a request reads.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// Method.
    pub method: &'a str,
    /// SHA-256 of the body.
    pub digest: &'a [u8; 32],
}

/// Builds the keys of one route; made once, when the route is.
#[derive(Clone)]
pub struct KeyBuilder {
    /// The beginning of all of the route's primary keys.
    prefix: Vec<u8>,
    fields: Vec<HeaderName>,
    credential_fields: Vec<HeaderName>,
    mac: Hmac<Sha256>,
}

impl KeyBuilder {
    /// The keys of `route` under `generation`; `secret` keys the HMACs.
    pub fn new(generation: &str, route: &str, rule: &CacheRule, secret: &[u8]) -> Self {
        let mut prefix = vec![FORMAT, PRIMARY, CLASS_READ];
        part(&mut prefix, generation.as_bytes());
        part(&mut prefix, route.as_bytes());
        let mut fields = rule.key_headers.clone();
        fields.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        fields.dedup();
        let mut credential_fields = vec![AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];
        credential_fields.extend_from_slice(&rule.credential_headers);
        let mac = Hmac::new_from_slice(secret).expect("HMAC takes a key of any length");
        Self { prefix, fields, credential_fields, mac }
    }

    /// Appends the primary key of a request.
    pub fn primary(&self, out: &mut Vec<u8>, target: &Target<'_>, headers: &HeaderMap) {
        out.extend_from_slice(&self.prefix);
        part(out, target.scheme.as_bytes());
        part(out, target.host.as_bytes());
        part(out, target.path.as_bytes());
        match target.query {
            None => out.push(0),
            Some(query) => {
                out.push(1);
                part(out, query.as_bytes());
            }
        }
        self.fields(out, &self.fields, headers);
    }

    /// Appends the primary key of a request that reads by its body.
    pub fn primary_by_content(
        &self,
        out: &mut Vec<u8>,
        target: &Target<'_>,
        headers: &HeaderMap,
        content: &Content<'_>,
    ) {
        let start = out.len();
        self.primary(out, target, headers);
        out[start + CLASS_AT] = CLASS_CONTENT;
        part(out, content.method.as_bytes());
        self.fields(out, &ABOUT_CONTENT, headers);
        part(out, content.digest);
    }

    /// Appends the key of the variant that a request with these fields chooses (RFC 9111 section 4.1). `names` are as
    /// [`vary_names`] gives them.
    pub fn variant(&self, out: &mut Vec<u8>, primary: &[u8], names: &[HeaderName], headers: &HeaderMap) {
        out.extend_from_slice(&[FORMAT, VARIANT]);
        part(out, primary);
        self.fields(out, names, headers);
    }

    fn fields(&self, out: &mut Vec<u8>, names: &[HeaderName], headers: &HeaderMap) {
        for name in names {
            part(out, name.as_str().as_bytes());
            if *name == ACCEPT_ENCODING {
                count(out, 1);
                part(out, normalise_accept_encoding(headers).as_bytes());
            } else if *name == ACCEPT_LANGUAGE {
                count(out, 1);
                sized(out, |out| normalise_accept_language(headers, out));
            } else if self.hides(name) {
                self.credential(out, name, headers);
            } else {
                // Several lines are one line with commas (RFC 9110 section 5.3), and are forwarded as one.
                let mut values = headers.get_all(name).iter();
                let Some(first) = values.next() else {
                    count(out, 0);
                    continue;
                };
                count(out, 1);
                sized(out, |out| {
                    out.extend_from_slice(first.as_bytes());
                    for value in values {
                        out.extend_from_slice(b", ");
                        out.extend_from_slice(value.as_bytes());
                    }
                });
            }
        }
    }

    /// Whether a field stands in the keys as an HMAC only.
    pub fn hides(&self, name: &HeaderName) -> bool {
        self.credential_fields.contains(name)
    }

    /// An absent credential is told from an empty one; all values of the field are in one HMAC.
    fn credential(&self, out: &mut Vec<u8>, name: &HeaderName, headers: &HeaderMap) {
        if !headers.contains_key(name) {
            return count(out, 0);
        }
        let mut mac = self.mac.clone();
        let mut update = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        update(b"weir cache key");
        update(name.as_str().as_bytes());
        for value in headers.get_all(name) {
            update(value.as_bytes());
        }
        count(out, 1);
        part(out, &mac.finalize().into_bytes()[..CREDENTIAL_BYTES]);
    }
}

impl std::fmt::Debug for KeyBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyBuilder").field("fields", &self.fields).finish_non_exhaustive()
    }
}

/// Why an answer's `Vary` keeps it from being stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VaryRefused {
    /// `*`: it depends on what is in no field.
    Star,
    /// Over [`MAX_VARY_NAMES`].
    TooMany,
    /// Something that is no field name.
    Malformed,
}

/// The fields that `Vary` names, sorted, each once.
///
/// # Errors
/// Why the answer cannot be stored.
pub fn vary_names(headers: &HeaderMap) -> Result<Vec<HeaderName>, VaryRefused> {
    let mut names: Vec<HeaderName> = Vec::new();
    let members = headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    for member in members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
        // What Weir itself tells the upstream of each client is in no field that a client sent.
        let is_ours = ["forwarded", "x-forwarded-for"].iter().any(|name| member.eq_ignore_ascii_case(name.as_bytes()));
        if member == b"*" || is_ours {
            return Err(VaryRefused::Star);
        }
        let name = HeaderName::from_bytes(member).map_err(|_| VaryRefused::Malformed)?;
        if names.contains(&name) {
            continue;
        }
        if names.len() == MAX_VARY_NAMES {
            return Err(VaryRefused::TooMany);
        }
        names.push(name);
    }
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    Ok(names)
}

/// A key's hash, the same in every process; for spreading and for telling variants apart, not for identity.
pub fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// A number from 0.0 to below 1.0, evenly spread over keys and over the salts of one key.
pub fn spread(key_hash: u64, salt: u64) -> f64 {
    // SplitMix64's finaliser; the upper 53 bits are what a double holds exactly.
    let mut mixed = key_hash ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// The primary key behind which a variant with this key stands, if it is a variant's.
pub fn primary_of(key: &[u8]) -> Option<&[u8]> {
    let rest = key.strip_prefix(&[FORMAT, VARIANT])?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    rest.get(..u32::from_be_bytes(*length) as usize)
}

pub(super) fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn count(out: &mut Vec<u8>, number: usize) {
    // What is counted is part of one request's head, which the server bounds far below this.
    let number = u32::try_from(number).expect("a request's head is shorter than 4 GiB");
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends what `write` appends, with its length in front.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    count(out, 0);
    write(out);
    let length = u32::try_from(out.len() - start - 4).expect("a request's head is shorter than 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests;
