//! `[[limit]]`, checked.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::syntax::blanks::Blanks;
use crate::syntax::pointer::Pointer;
use crate::syntax::rate::Rate;

/// `[[limit]]`, or one inline in a route.
#[derive(Debug, Clone)]
pub struct Limit {
    /// Label in metrics and answers.
    pub name: String,
    /// Name of its buckets: the limit's own for a shared one, `route/limit` for one inside a route.
    pub scope: String,
    /// What is counted together.
    pub key: Vec<IdentityPart>,
    /// How requests are counted: one, or one for each of several rates.
    pub quotas: Vec<Quota>,
    /// What a request costs.
    pub cost: Cost,
    /// Answers whose requests are charged; `None` for all.
    pub charge: Option<Statuses>,
    /// Which requests are counted.
    pub on: Stage,
    /// Count, never deny.
    pub dry_run: bool,
    /// While Redis does not answer.
    pub redis_down: RedisDown,
    /// Whether a pod may decide by itself: spend what a token bucket lent it, deny while it knows that it must.
    pub loans: bool,
    /// What a bucket holds that Redis does not know after it lost its data.
    pub after_loss: AfterLoss,
    /// What it does with a request that lacks a part of `key`.
    pub missing: Missing,
    /// Clients that it is not for: never limited by it, never counted.
    pub allow: Vec<IpNet>,
    /// Clients that it always denies; these come first.
    pub deny: Vec<IpNet>,
    /// In which fields clients are told of it.
    pub headers: Told,
    /// Status of its denials; 4xx or 503.
    pub status: StatusCode,
    /// Body of its denials, in place of a problem's (RFC 9457).
    pub notice: Option<Notice>,
    /// Whether a request may wait for its turn in place of a denial.
    pub delay: Option<Delay>,
    /// Identities for whom it is another.
    pub tiers: Option<Tiers>,
}

/// `tiers` and `tier`: identities for whom a limit is another.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiers {
    /// The hash in Redis that says which identities have which.
    pub hash: String,
    /// What each counts by, by its name. Several rates have none.
    pub quotas: BTreeMap<String, Quota>,
}

/// `max_delay` and `max_delayed`: how requests wait for a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Longest that one waits, all in all.
    pub longest: Duration,
    /// How many wait at once in each pod.
    pub places: usize,
}

/// One of the `rates` of a limit, by its `algorithm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quota {
    /// At most `burst` and what the rate has gained.
    TokenBucket {
        /// Sustained rate.
        rate: Rate,
        /// Bucket size, in requests.
        burst: u32,
    },
    /// So many from one multiple of the period to the next.
    FixedWindow(Rate),
    /// So many a period, the one before counted by the share that is still in view.
    SlidingWindow(Rate),
    /// So many in every period.
    SlidingLog(Rate),
    /// So many in flight.
    Concurrency {
        /// Requests.
        max: u32,
    },
}

impl Limit {
    /// Whether each request counts as one; else what is counted is units.
    pub fn counts_requests(&self) -> bool {
        self.cost == Cost::Fixed(1)
    }

    /// Whether what a request pays is known only with its answer.
    pub fn settles(&self) -> bool {
        self.charge.is_some() || matches!(self.cost, Cost::Answer(_))
    }
}

impl Quota {
    /// Its algorithm's name.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::TokenBucket { .. } => "token_bucket",
            Self::FixedWindow(_) => "fixed_window",
            Self::SlidingWindow(_) => "sliding_window",
            Self::SlidingLog(_) => "sliding_log",
            Self::Concurrency { .. } => "concurrency",
        }
    }

    /// Requests a period, where it has one.
    pub fn rate(&self) -> Option<Rate> {
        match self {
            Self::TokenBucket { rate, .. }
            | Self::FixedWindow(rate)
            | Self::SlidingWindow(rate)
            | Self::SlidingLog(rate) => Some(*rate),
            Self::Concurrency { .. } => None,
        }
    }

    /// The most that one request can cost and ever be admitted.
    pub fn capacity(&self) -> u32 {
        match self {
            Self::TokenBucket { burst, .. } => *burst,
            Self::FixedWindow(rate) | Self::SlidingWindow(rate) | Self::SlidingLog(rate) => rate.amount,
            Self::Concurrency { max } => *max,
        }
    }
}

impl fmt::Display for Quota {
    /// In few words, for operators.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenBucket { rate, burst } => write!(f, "{rate}, bursts of {burst}"),
            Self::FixedWindow(rate) | Self::SlidingWindow(rate) | Self::SlidingLog(rate) => rate.fmt(f),
            Self::Concurrency { max } => write!(f, "{max} in flight"),
        }
    }
}

/// `cost` of a limit: what a request counts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cost {
    /// The same for all.
    Fixed(u32),
    /// What the request says.
    Header {
        /// The field; its first line is a whole number.
        name: HeaderName,
        /// What more counts as.
        max: u32,
        /// What a request costs that does not say it, or no number.
        default: u32,
    },
    /// What its answer says.
    Answer(AnswerCost),
}

/// A cost that is known when the answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerCost {
    /// Where it stands.
    pub place: Place,
    /// What more counts as.
    pub max: u32,
    /// What a request costs whose answer does not say it, or no number.
    pub default: u32,
    /// What a request takes before.
    pub reserve: u32,
}

/// Where in an answer its cost stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a field, whose first line is a whole number.
    Header(HeaderName),
    /// In JSON, or in the last server-sent event that holds a number there.
    Json {
        /// Where in it.
        pointer: Arc<Pointer>,
        /// Bytes of the answer, or of one event's data, that are looked through.
        max_scan: usize,
    },
}

/// `charge.status`: ranges of statuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(pub Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether this is one of them.
    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

impl fmt::Display for Statuses {
    /// As they are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, range) in self.0.iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            match range.start() == range.end() {
                true => write!(f, "{comma}{}", range.start())?,
                false => write!(f, "{comma}{}xx", range.start() / 100)?,
            }
        }
        Ok(())
    }
}

/// One part of a limit's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityPart {
    /// Client address (IPv6 by /64), through trusted proxies only.
    Ip,
    /// A request field's value.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's value.
    Query(String),
    /// A claim of a JSON Web Token that nobody has verified.
    Claim {
        /// The claim's name; a name in an object within has dots in front: `realm.tenant`.
        name: String,
        /// The request field that the token stands in.
        field: HeaderName,
    },
    /// The route's name.
    Route,
    /// The request's host.
    Host,
    /// The request's method.
    Method,
}

impl fmt::Display for IdentityPart {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Claim { name, field } if field == AUTHORIZATION => write!(f, "unverified-claim:{name}"),
            Self::Claim { name, field } => write!(f, "unverified-claim:{name}@{field}"),
            Self::Route => f.write_str("route"),
            Self::Host => f.write_str("host"),
            Self::Method => f.write_str("method"),
        }
    }
}

/// `on`: which requests a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Every request.
    Request,
    /// What the cache could not answer, followers included.
    Miss,
    /// What reaches the upstream.
    Origin,
}

/// `redis_down`: what a limit does while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedisDown {
    /// Rate and burst divided by the pods, in memory.
    Local,
    /// Let everything through.
    Allow,
    /// Let nothing through.
    Deny,
}

/// `after_loss`: what a bucket holds that Redis does not know after it lost its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AfterLoss {
    /// What it gained since.
    Empty,
    /// All, as one that nobody has asked yet.
    Full,
}

/// `missing`: what a limit does with a request that lacks a part of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// All who lack it are one.
    Share,
    /// The limit is not for them.
    Skip,
    /// Denies them.
    Deny,
}

/// `headers`: in which fields clients are told of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// `RateLimit-Policy` and `RateLimit`.
    Draft,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`.
    X,
    /// All of them.
    Both,
    /// None.
    None,
}

impl Told {
    /// Whether in the draft's fields.
    pub fn is_draft(self) -> bool {
        matches!(self, Self::Draft | Self::Both)
    }

    /// Whether in those of old.
    pub fn is_x(self) -> bool {
        matches!(self, Self::X | Self::Both)
    }
}

/// `body` and `content_type`: what a denied client reads.
#[derive(Debug, Clone)]
pub struct Notice {
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// Text with [`Notice::BLANKS`].
    pub text: Arc<Blanks>,
}

impl Notice {
    /// What may stand in braces: the limit's name, the status, whole seconds until another try, and one plain sentence.
    pub const BLANKS: [&str; 4] = ["limit", "status", "retry_after", "detail"];

    /// Whether what is filled in stands in JSON (RFC 6839 section 3.1).
    pub fn is_json(&self) -> bool {
        let kind = self.content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let kind = kind.to_ascii_lowercase();
        kind.ends_with("/json") || kind.ends_with("+json")
    }
}
