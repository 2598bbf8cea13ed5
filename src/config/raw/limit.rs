//! `[[limit]]`, and the `limits` of a route.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{AfterLoss, At, Maybe, MaybeText, Missing, Name, RedisDown, Stage, Text, Texts, Told};
use crate::config::IdentityPart;
use crate::syntax::pointer::Pointer;
use crate::syntax::rate::Rate;

/// `[[limit]]`, or a limit inside a route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Limit {
    /// Label in metrics and answers.
    #[schemars(required)]
    pub(in crate::config) name: MaybeText<Name>,
    /// What is counted together.
    #[schemars(required)]
    pub(in crate::config) key: Maybe<Vec<At<Text<IdentityPart>>>>,
    /// Sustained rate, or requests a period.
    pub(in crate::config) rate: MaybeText<Rate>,
    /// Several of them, with different periods, in place of `rate`.
    pub(in crate::config) rates: Texts<Rate>,
    /// Requests that may come at once; by default those of one second. For "token_bucket".
    pub(in crate::config) burst: Maybe<i64>,
    /// Requests in flight at once. For "concurrency".
    pub(in crate::config) max: Maybe<i64>,
    /// What a request costs.
    pub(in crate::config) cost: Maybe<Cost>,
    /// Which requests are charged, by their answers.
    pub(in crate::config) charge: Option<Charge>,
    /// Which requests are counted.
    pub(in crate::config) on: Maybe<Stage>,
    /// Count, never deny.
    pub(in crate::config) dry_run: Maybe<bool>,
    /// While Redis does not answer.
    pub(in crate::config) redis_down: Maybe<RedisDown>,
    /// Whether a pod may decide by itself: spend what a token bucket lent it, deny while it knows that it must.
    pub(in crate::config) loans: Maybe<bool>,
    /// What it does with a request that lacks a part of `key`.
    pub(in crate::config) missing: Maybe<Missing>,
    /// Clients that it is not for.
    pub(in crate::config) allow: Texts<IpNet>,
    /// Clients that it always denies.
    pub(in crate::config) deny: Texts<IpNet>,
    /// In which fields clients are told of it.
    pub(in crate::config) headers: Maybe<Told>,
    /// Status of its denials.
    #[schemars(example = 429)]
    pub(in crate::config) status: Maybe<i64>,
    /// Body of its denials.
    #[schemars(example = "Try again in {retry_after} s.")]
    pub(in crate::config) body: Maybe<String>,
    /// The same, from a file.
    #[schemars(example = "denied.txt")]
    pub(in crate::config) body_file: Maybe<String>,
    /// What that body is.
    pub(in crate::config) content_type: MaybeText<HeaderValue>,
    /// How requests are counted.
    pub(in crate::config) algorithm: Maybe<Algorithm>,
    /// What a bucket holds that Redis does not know after it lost its data. For "token_bucket".
    pub(in crate::config) after_loss: Maybe<AfterLoss>,
    /// Longest that a request waits for its turn in place of a denial.
    #[schemars(extend("x-range" = ["1ms", "10s"]))]
    pub(in crate::config) max_delay: MaybeText<Duration>,
    /// How many wait at once in each pod.
    pub(in crate::config) max_delayed: Maybe<i64>,
    /// Hash in Redis that says which identities have which tier.
    pub(in crate::config) tiers: MaybeText<Name>,
    /// What the limit is for the identities of a tier.
    #[schemars(example = BTreeMap::from([("gold", BTreeMap::from([("rate", "1000/s")]))]))]
    pub(in crate::config) tier: Option<BTreeMap<At<String>, At<Tier>>>,
}

/// `tier` of a limit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Tier {
    /// In place of the limit's own.
    pub(in crate::config) rate: MaybeText<Rate>,
    /// In place of the limit's own.
    pub(in crate::config) burst: Maybe<i64>,
    /// In place of the limit's own.
    pub(in crate::config) max: Maybe<i64>,
}

/// `cost` of a limit.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Cost {
    /// The same for all requests.
    Fixed(i64),
    /// What the request or its answer says.
    #[schemars(example = ExampleCost { header: "x-cost", max: 100 })]
    Said(Box<CostPlace>),
}

/// One that is right.
#[derive(Serialize)]
struct ExampleCost {
    header: &'static str,
    max: u32,
}

/// `cost` of a limit that the request or its answer says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct CostPlace {
    /// The request's field, a whole number.
    pub(in crate::config) header: MaybeText<HeaderName>,
    /// The answer's field, a whole number.
    pub(in crate::config) response_header: MaybeText<HeaderName>,
    /// The place in an answer of JSON, or in the data of its server-sent events.
    pub(in crate::config) json: MaybeText<Pointer>,
    /// Bytes of such an answer, or of one event, that are looked through.
    #[schemars(extend("x-range" = ["1KiB", "64MiB"]))]
    pub(in crate::config) max_scan: MaybeText<usize>,
    /// What more counts as.
    pub(in crate::config) max: Maybe<i64>,
    /// What a request costs where nothing says it, or no number.
    pub(in crate::config) default: Maybe<i64>,
    /// What a request takes before its answer says the rest.
    pub(in crate::config) reserve: Maybe<i64>,
}

/// `charge` of a limit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Charge {
    /// Statuses of the answers to requests that are charged.
    #[schemars(required)]
    #[schemars(example = [401, 403])]
    pub(in crate::config) status: Maybe<Vec<At<Status>>>,
}

/// One status, or a class of them.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Status {
    /// `401`.
    One(i64),
    /// `"4xx"`.
    Class(String),
}

impl<'de> Deserialize<'de> for Status {
    /// By hand, because serde's own untagged enums read into a buffer that has no places.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Status;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status, or a class of them such as \"4xx\"")
            }

            fn visit_i64<E>(self, status: i64) -> Result<Status, E> {
                Ok(Status::One(status))
            }

            fn visit_str<E>(self, class: &str) -> Result<Status, E> {
                Ok(Status::Class(class.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Cost {
    /// By hand, because serde's own untagged enums read into a buffer that has no places.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Cost;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or where it stands")
            }

            fn visit_i64<E>(self, cost: i64) -> Result<Cost, E> {
                Ok(Cost::Fixed(cost))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Cost, M::Error> {
                CostPlace::deserialize(MapAccessDeserializer::new(map)).map(|place| Cost::Said(Box::new(place)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// `algorithm` of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum Algorithm {
    /// At most burst + rate * w in every window w.
    TokenBucket,
    /// At most amount * (1 + w / period) in every window w.
    SlidingWindow,
    /// At most the amount in every window of a period, exactly.
    SlidingLog,
    /// At most the amount from one multiple of the period to the next.
    FixedWindow,
    /// At most max in flight.
    Concurrency,
}

/// One that is right.
#[derive(Serialize)]
struct ExampleLimit {
    name: &'static str,
    key: [&'static str; 1],
    rate: &'static str,
    burst: u32,
}

/// An entry of a route's `limits`.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum LimitUse {
    /// A shared limit, by name.
    #[schemars(example = "per-client")]
    Shared(String),
    /// This route's own.
    #[schemars(example = ExampleLimit { name: "own", key: ["ip"], rate: "50/s", burst: 100 })]
    Own(Box<Limit>),
}

impl<'de> Deserialize<'de> for LimitUse {
    /// By hand, because serde's own untagged enums read into a buffer that has no places.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = LimitUse;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a limit, or a limit")
            }

            fn visit_str<E>(self, name: &str) -> Result<LimitUse, E> {
                Ok(LimitUse::Shared(name.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<LimitUse, M::Error> {
                Limit::deserialize(MapAccessDeserializer::new(map)).map(|limit| LimitUse::Own(Box::new(limit)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
