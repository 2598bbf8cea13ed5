//! What is stored, in memory as in Redis; [`codec`] gives it its bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::fields::{lines, prepare};
use super::freshness::{Freshness, http_date_ms};
use super::policy::Plan;
use crate::clock::WallMs;
use crate::invalidation::Position;

pub mod codec;
mod variants;

pub use variants::{MAX_VARIANTS, Variant, Vary};

/// How long an answer with a validator is kept past its last use, so that it can be confirmed instead of fetched again.
const VALIDATOR_KEEP_MS: u64 = 5 * 60 * 1000;

/// What is stored under a key; a clone shares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// An answer.
    Entry(Arc<Entry>),
    /// The answers are stored as variants.
    Vary(Arc<Vary>),
    /// The answers are not stored.
    Uncacheable(Arc<Uncacheable>),
}

impl Stored {
    /// The answer, if it is one.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Vary(_) | Self::Uncacheable(_) => None,
        }
    }

    /// Whether it is later than `other` at `now`: by the sequence of invalidations, or in the same place by when it was received.
    /// A record or verdict in the same place is taken for later, as it is made of what is there. Fences do not count
    /// here: they begin anew when Redis has forgotten a key. Nor does a time that has not come yet: it is of a clock that was
    /// set back, and whatever is fetched since is later.
    pub fn is_newer_than(&self, other: &Self, now: WallMs) -> bool {
        let (this, that) = (self.position(), other.position());
        let received_later = || match (self.entry(), other.entry()) {
            (Some(this), Some(that)) => {
                this.freshness.received_at > that.freshness.received_at && !this.freshness.is_from_the_future(now)
            }
            _ => false,
        };
        this.incarnation == that.incarnation && (this.seq > that.seq || (this.seq == that.seq && received_later()))
    }

    /// The full key, to be compared with the one that was asked for.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Entry(entry) => &entry.key,
            Self::Vary(vary) => &vary.key,
            Self::Uncacheable(verdict) => &verdict.key,
        }
    }

    /// What its fill knew of invalidations when it began.
    pub fn position(&self) -> Position {
        match self {
            Self::Entry(entry) => entry.position,
            Self::Vary(vary) => vary.position,
            Self::Uncacheable(verdict) => verdict.position,
        }
    }

    /// The lease's number under which it was stored: a lower one never replaces a higher.
    pub fn fence(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.fence,
            Self::Vary(vary) => vary.fence,
            Self::Uncacheable(verdict) => verdict.fence,
        }
    }

    /// For how long from `now` it can be of use; 0 is no longer.
    pub fn keep_ms(&self, now: WallMs) -> u64 {
        match self {
            Self::Entry(entry) => entry.keep_ms(now),
            Self::Vary(vary) => vary.until.saturating_sub(now),
            Self::Uncacheable(verdict) => verdict.until.saturating_sub(now),
        }
    }

    /// Bytes that it takes, without its place in a tier.
    pub fn weight(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.weight(),
            Self::Vary(vary) => {
                let own = size_of::<Vary>() + vary.key.len() + names_bytes(&vary.names);
                (own + vary.variants_bytes()) as u64
            }
            Self::Uncacheable(verdict) => (size_of::<Uncacheable>() + verdict.key.len()) as u64,
        }
    }
}

/// A stored answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full key; credentials in it as HMACs only.
    pub key: Bytes,
    /// Status.
    pub status: StatusCode,
    /// Field lines, ready to send (see [`prepare`]).
    pub fields: Bytes,
    /// Body.
    pub body: Bytes,
    /// What its fill knew of invalidations when it began.
    pub position: Position,
    /// The number of the lease under which it was fetched.
    pub fence: u64,
    /// When it may be used.
    pub freshness: Freshness,
    /// Request fields that chose it; empty if it is no variant.
    pub vary: Vec<HeaderName>,
    /// The answer's own tags.
    pub tags: Vec<String>,
    /// How long its fetch took.
    pub fill_cost_ms: u32,
    /// Where the body stands in the whole, if it is a part of it.
    pub part: Option<Part>,
}

/// Where a part stands in its representation (RFC 9110 section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Position of its first byte.
    pub first: u64,
    /// Bytes of the whole.
    pub complete: u64,
}

/// Where an answer comes from, beside the answer itself.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Full key under which it is stored.
    pub key: Bytes,
    /// What its fill knew of invalidations when it began.
    pub position: Position,
    /// The number of the lease under which it was fetched.
    pub fence: u64,
    /// How long the fetch took.
    pub fill_cost_ms: u32,
}

/// The answers of a key are not stored, and nobody waits for another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncacheable {
    /// Full key.
    pub key: Bytes,
    /// What the fill that learnt it knew of invalidations when it began.
    pub position: Position,
    /// The number of that fill's lease.
    pub fence: u64,
    /// After this it is found out anew.
    pub until: WallMs,
}

impl Entry {
    /// The entry that `plan` makes of an answer.
    pub fn new(origin: Origin, status: StatusCode, headers: &HeaderMap, plan: Plan, body: Bytes) -> Self {
        Self {
            key: origin.key,
            status,
            fields: prepare(headers, plan.freshness.received_at),
            body,
            position: origin.position,
            fence: origin.fence,
            freshness: plan.freshness,
            vary: plan.vary,
            tags: plan.tags,
            fill_cost_ms: origin.fill_cost_ms,
            part: None,
        }
    }

    /// The same entry with a body, for who made it before the body was here.
    pub fn with_body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    /// Bytes of the representation that this is, or is a part of.
    pub fn complete(&self) -> u64 {
        self.part.map_or(self.body.len() as u64, |part| part.complete)
    }

    /// The bytes at these places of the representation; a part must hold them.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        let first = self.part.map_or(0, |part| part.first as usize);
        self.body.slice(range.start - first..range.end - first)
    }

    /// Its entity tag, if that is a strong one: the same bytes wherever it is the same (RFC 9110 section 8.8.3).
    pub fn strong_etag(&self) -> Option<&[u8]> {
        self.etag().filter(|tag| tag.starts_with(b"\""))
    }

    /// Its entity tag, as it came; none if it had several.
    pub fn etag(&self) -> Option<&[u8]> {
        self.only(b"etag")
    }

    /// Its `Last-Modified`, as it came, if there is one and it is a date.
    pub fn last_modified(&self) -> Option<&[u8]> {
        self.only(b"last-modified").filter(|date| http_date_ms(date).is_some())
    }

    /// Its `Last-Modified` as a time.
    pub fn modified_at(&self) -> Option<WallMs> {
        self.only(b"last-modified").and_then(http_date_ms)
    }

    /// Its `Date`, or when it was received.
    pub fn date_at(&self) -> WallMs {
        self.only(b"date").and_then(http_date_ms).unwrap_or(self.freshness.received_at)
    }

    /// Whether it has a field of this name, which is in lower case.
    pub fn has(&self, name: &'static [u8]) -> bool {
        self.values(name).next().is_some()
    }

    /// Whether the upstream can be asked to confirm it.
    pub fn has_validator(&self) -> bool {
        self.etag().is_some() || self.last_modified().is_some()
    }

    /// The value of the one line of this name; of several nobody knows which is meant.
    fn only(&self, name: &'static [u8]) -> Option<&[u8]> {
        let mut values = self.values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// The values of the lines of this name, which is in lower case. Searched for when a conditional request comes, so
    /// that an entry need not be searched when it is read from the shared tier.
    pub(super) fn values(&self, name: &'static [u8]) -> impl Iterator<Item = &[u8]> {
        lines(&self.fields)
            .filter(move |(own, _)| self.fields[own.clone()] == *name)
            .map(|(_, value)| &self.fields[value])
    }

    /// Bytes that it takes, without its place in a tier.
    pub fn weight(&self) -> u64 {
        let tags: usize = self.tags.iter().map(|tag| size_of::<String>() + tag.len()).sum();
        let own = size_of::<Self>() + self.key.len() + self.fields.len() + self.body.len();
        (own + names_bytes(&self.vary) + tags) as u64
    }

    /// For how long from `now` it can be of use: fresh, stale where that is allowed, or to be confirmed.
    pub fn keep_ms(&self, now: WallMs) -> u64 {
        let freshness = &self.freshness;
        let window_ms = freshness.stale_while_revalidate_ms.max(freshness.stale_if_error_ms);
        let usable_ms = freshness.lifetime_ms.saturating_add(window_ms);
        // What came stale is confirmed as well as what became so.
        let stale_from_ms = freshness.lifetime_ms.max(freshness.initial_age_ms);
        let confirmable_ms = if self.has_validator() { stale_from_ms.saturating_add(VALIDATOR_KEEP_MS) } else { 0 };
        usable_ms.max(confirmable_ms).saturating_sub(freshness.age_ms(now))
    }

    /// Whether a 304 with these fields is about this entry (RFC 9111 section 4.3.4): a strong entity tag is the same, a
    /// weak one is weakly the same, and so is the date if there is no entity tag.
    pub fn confirmed_by(&self, update: &HeaderMap) -> bool {
        if let Some(tag) = update.get(header::ETAG) {
            let Some(own) = self.etag() else { return false };
            let tag = tag.as_bytes();
            return if tag.starts_with(b"W/") { opaque(tag) == opaque(own) } else { tag == own };
        }
        match (update.get(header::LAST_MODIFIED), self.last_modified()) {
            (Some(date), Some(own)) => date.as_bytes() == own,
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    /// The stored fields with a 304's in the place of those of the same name (RFC 9111 section 3.2), for
    /// [`storable`](super::policy::storable) to judge and for [`Entry::new`] with the body that is here already.
    ///
    /// What says how the stored body is coded stays, since a 304 is not about that; `Date` is the 304's or none.
    pub fn merged(&self, update: &HeaderMap) -> HeaderMap {
        let mut merged = HeaderMap::new();
        for (name, value) in lines(&self.fields) {
            let name = HeaderName::from_bytes(&self.fields[name]);
            let value = HeaderValue::from_maybe_shared(self.fields.slice(value));
            if let (Ok(name), Ok(value)) = (name, value) {
                merged.append(name, value);
            }
        }
        merged.remove(header::DATE);
        for name in update.keys().filter(|name| !describes_the_body(name)) {
            merged.remove(name);
            for value in update.get_all(name) {
                merged.append(name, value.clone());
            }
        }
        merged
    }
}

fn names_bytes(names: &[HeaderName]) -> usize {
    names.iter().map(|name| size_of::<HeaderName>() + name.as_str().len()).sum()
}

/// An entity tag without its weakness (RFC 9110 section 8.8.3.2).
pub(super) fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Fields that a 304 does not change, since they say what the stored bytes are: how many, how coded, and their sums (RFC
/// 9111 section 3.2 leaves out the first, and lets a cache leave out what keeps its bytes whole; RFC 9530 has the sums).
fn describes_the_body(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-length" | "content-encoding" | "content-range" | "content-md5" | "content-digest" | "repr-digest"
    )
}

#[cfg(test)]
pub(super) mod tests;
