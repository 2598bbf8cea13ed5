//! What there is to say of a request, as one structure: JSON is made of it by serde, text by the file beside it.

use serde::Serialize;

/// Everything that explains a request.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The request, in the one form that is routed, keyed, limited and forwarded.
    pub request: Asked,
    /// What Weir does with it.
    pub way: Way,
    /// The route that takes it.
    pub route: Taken,
    /// What it is stored and looked up under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// The route's rule for caching, and what of the request touches it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<Setting>,
    /// What limits it, in the order in which they are taken.
    pub limits: Vec<Limit>,
    /// Whether its answer would be stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storing: Option<Storing>,
    /// What is held for it now; only from a running Weir.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// A request, normalised.
#[derive(Debug, Serialize)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Scheme that the client spoke.
    pub scheme: &'static str,
    /// Why that is taken for its scheme.
    pub scheme_because: &'static str,
    /// Lower-case authority.
    pub host: String,
    /// Normalised path.
    pub path: String,
    /// Query, without what the route drops.
    pub query: Option<String>,
    /// Address that limits and logs go by.
    pub client: String,
    /// Why that is taken for its address.
    pub client_because: &'static str,
    /// What was changed on the way to this form.
    pub changes: Vec<Change>,
    /// Why the path has no one form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguity: Option<&'static str>,
}

/// A change that normalisation made.
#[derive(Debug, Serialize)]
pub struct Change {
    /// Of what.
    pub part: &'static str,
    /// As it was asked.
    pub from: String,
    /// As it is used.
    pub to: String,
}

/// What Weir does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Does {
    /// Answers from the cache, or fetches for everybody.
    Cache,
    /// Forwards it past the cache.
    Pass,
    /// Forwards it past the cache and invalidates what it changes.
    Write,
    /// Invalidates its URL, and forwards nothing.
    Purge,
    /// Refuses it.
    Refuse,
}

/// What Weir does with a request, and why.
#[derive(Debug, Serialize)]
pub struct Way {
    /// What.
    pub does: Does,
    /// In words.
    pub text: String,
    /// Why not through the cache, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Where that is laid down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clause: Option<&'static str>,
    /// What `Cache-Status` says, where it does not depend on what is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_status: Option<String>,
    /// What a write or PURGE invalidates, whatever its answer adds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub invalidates: Vec<String>,
}

/// The route that takes a request.
#[derive(Debug, Serialize)]
pub struct Taken {
    /// Name; `-` is none.
    pub name: String,
    /// Path pattern.
    pub pattern: String,
    /// What the pattern captured.
    pub captures: Vec<(String, String)>,
    /// What makes it fit.
    pub because: Vec<String>,
    /// Other routes whose path fits, and why they do not take it.
    pub passed_over: Vec<PassedOver>,
}

/// A route that does not take a request although its path fits.
#[derive(Debug, Serialize)]
pub struct PassedOver {
    /// Name.
    pub name: String,
    /// Path pattern.
    pub pattern: String,
    /// Why not.
    pub because: String,
}

/// A part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which.
    pub name: String,
    /// Its value; `HMAC` for a credential.
    pub value: String,
}

/// What a request is stored and looked up under.
#[derive(Debug, Serialize)]
pub struct Key {
    /// Parts of the primary key, in order.
    pub parts: Vec<Part>,
    /// Selectors that invalidate what is stored under it, tags of the answer apart.
    pub invalidated_by: Vec<String>,
}

/// One thing that the route's rule says, or that the request asks of it.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Its key in the configuration, or what it is.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What follows from it for this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A limit on the route.
#[derive(Debug, Serialize)]
pub struct Limit {
    /// Name.
    pub name: String,
    /// Which requests it counts.
    pub stage: &'static str,
    /// Whether this request reaches that stage.
    pub applies: &'static str,
    /// How it counts.
    pub algorithm: &'static str,
    /// Its rates with their bursts, or its requests in flight; of one with tiers, those that hold for this request.
    pub quotas: Vec<String>,
    /// Those for whom it is another, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiers: Option<Tiers>,
    /// How a request waits for its turn in place of a denial, where it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// What a request costs.
    pub cost: String,
    /// Which answers' requests are charged, where not all are.
    pub charged: Option<String>,
    /// What is counted together; credentials and other values that a client sends are never shown.
    pub identity: Vec<Part>,
    /// Whether it only counts.
    pub dry_run: bool,
    /// While Redis does not answer.
    pub redis_down: &'static str,
    /// What a bucket holds that Redis does not know after it lost its data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_loss: Option<&'static str>,
    /// Whether a pod may decide by itself.
    pub loans: bool,
}

/// The tiers of a limit, and by which of them it goes.
#[derive(Debug, Serialize)]
pub struct Tiers {
    /// The name of the hash in Redis that says who has which.
    pub hash: String,
    /// The one that this request's identity has.
    pub tier: Option<String>,
    /// What the limit goes by, in words.
    pub text: &'static str,
    /// What the limit is for each.
    pub quotas: Vec<Part>,
}

/// How a request waits for a limit.
#[derive(Debug, Serialize)]
pub struct Delay {
    /// For how long, all in all.
    pub max_delay_ms: u64,
    /// How many do so at once in each pod.
    pub max_delayed: usize,
}

/// Whether an answer would be stored.
#[derive(Debug, Serialize)]
pub struct Storing {
    /// The verdict on the supposed answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supposed: Option<Supposed>,
    /// Verdicts on a few usual answers, where none is supposed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub usual: Vec<Usual>,
}

/// A usual answer and its verdict.
#[derive(Debug, Serialize)]
pub struct Usual {
    /// The answer.
    pub answer: &'static str,
    /// Whether it would be stored.
    pub stored: bool,
    /// For how long and by what, or why not.
    pub because: String,
    /// Where a refusal is laid down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clause: Option<&'static str>,
}

/// The verdict on a supposed answer.
#[derive(Debug, Serialize)]
pub struct Supposed {
    /// Status.
    pub status: u16,
    /// Whether it would be stored.
    pub stored: bool,
    /// Why not: what `Cache-Status` has as `detail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// In words.
    pub text: String,
    /// Where that is laid down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clause: Option<&'static str>,
    /// What `Cache-Status` says, if nothing is stored yet.
    pub cache_status: String,
    /// What the next one's `Cache-Status` says at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The field that gave the directives.
    pub directives_from: String,
    /// The directives, as they are understood.
    pub directives: Vec<String>,
    /// Where the lifetime comes from, and its terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Freshness>,
    /// The request fields that choose the variant, with this request's values.
    pub vary: Vec<Part>,
    /// The answer's own tags.
    pub tags: Vec<String>,
}

/// The arithmetic of an answer's freshness. All times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Freshness {
    /// `age_value`; unknown of what is stored, as it is not kept.
    pub age_field_ms: Option<u64>,
    /// `date_value`.
    pub date: Option<String>,
    /// `apparent_age`: receipt less `Date`.
    pub apparent_age_ms: u64,
    /// `response_delay`.
    pub response_delay_ms: u64,
    /// `corrected_initial_age`.
    pub initial_age_ms: u64,
    /// When its head was received.
    pub received_at: String,
    /// `resident_time`.
    pub resident_ms: u64,
    /// `current_age`.
    pub age_ms: u64,
    /// Age at which it becomes stale.
    pub lifetime_ms: u64,
    /// What gave the lifetime.
    pub lifetime_from: String,
    /// How the route's own lifetime was come by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// Lifetime less age; negative once it is stale.
    pub ttl_ms: i64,
    /// The last part of the lifetime, in which a read refreshes; none if none does.
    pub early_refresh_ms: Option<u64>,
    /// Time past the lifetime in which it is served while it is refreshed.
    pub stale_while_revalidate_ms: u64,
    /// Time past the lifetime in which it is served if the service fails.
    pub stale_if_error_ms: u64,
    /// Never used stale.
    pub must_revalidate: bool,
    /// Never used without validation.
    pub no_cache: bool,
    /// The lifetime is the route's own, or a guess: not for requests with credentials.
    pub by_rule: bool,
    /// What may be done with it now.
    pub state: &'static str,
}

/// The terms of a lifetime that the route gave.
#[derive(Debug, Serialize)]
pub struct Configured {
    /// As it is configured.
    pub ttl_ms: u64,
    /// The share by which it may be shortened.
    pub jitter: f64,
    /// The share by which this fetch's is.
    pub shortened_by: f64,
    /// What is left, counted from the receipt; the answer's age at its receipt is added to it.
    pub jittered_ms: u64,
}

/// What is held for a request at this moment.
#[derive(Debug, Serialize)]
pub struct Live {
    /// The fleet's time.
    pub now: String,
    /// The name of the primary key: in Redis, and in `Cache-Status` where `cache.status_key` puts it there.
    pub key: String,
    /// What would answer now.
    pub answer: Foreseen,
    /// What this pod knows of invalidations.
    pub pod: Pod,
    /// This pod's memory.
    pub memory: Held,
    /// Redis.
    pub redis: Held,
    /// The part that this pod has of what is not stored whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_part: Option<Held>,
    /// The part that Redis has, where a part is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_part: Option<Held>,
    /// For how long requests with credentials go for themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart_ms: Option<u64>,
}

/// What would answer a request now.
#[derive(Debug, Serialize)]
pub struct Foreseen {
    /// `memory`, `redis`, `upstream` or `weir`.
    pub from: &'static str,
    /// What `Cache-Status` says, but for what the service then does.
    pub cache_status: String,
}

/// What a pod knows of invalidations.
#[derive(Debug, Serialize)]
pub struct Pod {
    /// Which sequence of them it follows.
    pub incarnation: String,
    /// How far.
    pub seq: u64,
    /// How long ago it last proved that it knows every one; none without Redis, or if it never did.
    pub proven_ms: Option<u64>,
    /// The route's bound B.
    pub max_staleness_ms: u64,
}

/// What a tier holds for a request.
#[derive(Debug, Serialize)]
#[serde(tag = "holds", rename_all = "snake_case")]
pub enum Held {
    /// Nothing.
    Nothing,
    /// Not known.
    Unknown {
        /// Why.
        because: String,
    },
    /// An answer.
    Entry(Box<Entry>),
    /// A record of the fields that the answers vary by.
    Vary {
        /// This request's values of them.
        names: Vec<Part>,
        /// How many variants are counted.
        variants: usize,
        /// For how long they are.
        left_ms: u64,
        /// The variant that this request chooses.
        variant: Box<Held>,
    },
    /// A verdict that the answers are not stored.
    Uncacheable {
        /// For how long it holds.
        left_ms: u64,
        /// Where it stands.
        mark: Mark,
    },
}

/// A stored answer.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Status.
    pub status: u16,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Which bytes of how many it holds, if it is a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// For the `Age` field.
    pub age_s: u64,
    /// What `Cache-Status` would have as `ttl`.
    pub ttl_s: i64,
    /// Whether this request may have it, and how.
    pub state: &'static str,
    /// The arithmetic.
    pub freshness: Freshness,
    /// By what the service can confirm it.
    pub validators: Vec<&'static str>,
    /// The answer's own tags.
    pub tags: Vec<String>,
    /// Where it stands.
    pub mark: Mark,
}

/// Where something stored stands among invalidations and fetches.
#[derive(Debug, Serialize)]
pub struct Mark {
    /// Which sequence of invalidations its fetch followed.
    pub incarnation: String,
    /// How far, when it began.
    pub seq: u64,
    /// The number of the lease under which it was fetched.
    pub fence: u64,
    /// What invalidations say: `valid`, `stale` or `gone`.
    pub verdict: &'static str,
    /// Whether this pod may trust it.
    pub trusted: bool,
    /// The selectors that have named it, with the numbers of their last invalidations.
    pub epochs: Vec<Epoch>,
}

/// When a selector was last invalidated.
#[derive(Debug, Serialize)]
pub struct Epoch {
    /// The selector.
    pub selector: String,
    /// By a hard invalidation; 0 is never.
    pub hard: u64,
    /// By a soft one.
    pub soft: u64,
}
