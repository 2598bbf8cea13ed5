//! Settings that are right, and change nothing or not what they seem to.

use ipnet::IpNet;

use super::Check;
use crate::config::raw::{self, Algorithm, At, Texts};
use crate::config::text::Text;
use crate::config::{Cost, IdentityPart, Missing, Quota};
use crate::syntax::rate::Rate;

/// Bits of an IPv6 address.
pub(super) const ADDRESS_BITS: u8 = 128;

impl Check<'_, '_> {
    /// Settings of a limit that change nothing beside its others.
    pub(super) fn idle_settings(&mut self, raw: &raw::Limit, key: Option<&[IdentityPart]>) {
        let of_redis = [
            ("redis_down", raw.redis_down.as_ref().map(At::span)),
            ("after_loss", raw.after_loss.as_ref().map(At::span)),
            ("loans", raw.loans.as_ref().map(At::span)),
        ];
        for (name, span) in of_redis.into_iter().filter_map(|(name, span)| Some((name, span?))) {
            if !self.has_redis {
                let text = format!("`{name}` changes nothing: there is no Redis");
                self.warn(&span, text, format!("add [redis], or remove `{name}`"));
            }
        }
        let counts_flight = raw.algorithm.as_ref().is_some_and(|at| at.value == Algorithm::Concurrency);
        if let Some(at) = raw.loans.as_ref().filter(|_| counts_flight && self.has_redis) {
            let text = "`loans` changes nothing: Redis is asked for each request in flight";
            self.warn(&at.span(), text, "remove `loans`");
        }
        // A request of HTTP/1.0 may lack its host.
        let is_there =
            |part: &IdentityPart| matches!(part, IdentityPart::Ip | IdentityPart::Route | IdentityPart::Method);
        if let (Some(at), Some(key)) = (&raw.missing, key)
            && at.value != Missing::Share
            && key.iter().all(is_there)
        {
            let parts: Vec<String> = key.iter().map(|part| format!("`{part}`")).collect();
            let text = format!("`missing` changes nothing: no request lacks {}", parts.join(" or "));
            self.warn(&at.span(), text, "remove `missing`");
        }
    }

    /// A rate whose bucket holds one request by default, which hardly anybody means by "a thousand an hour".
    pub(super) fn slow_default(&mut self, text: &At<Text<Rate>>, rate: Rate) {
        if rate.amount == 1 || self.was_misread_in_limit(&["burst", "algorithm"]) {
            return;
        }
        let problem = format!("\"{rate}\" without a `burst` admits 1 request at once: by default those of one second");
        let period = match rate.unit() {
            "m" => "a minute",
            "h" => "an hour",
            _ => "a day",
        };
        let remedy = format!(
            "write burst = {} to let those of {period} come at once, or burst = 1 if that is meant",
            rate.amount
        );
        self.warn(&text.span(), problem, remedy);
    }

    /// A cost that a request may say, and that nobody's limit ever admits.
    pub(super) fn hopeless_cost(&mut self, raw: &raw::Limit, cost: &Cost, own: &[Quota], tiers: &[Quota]) {
        let (Some(at), Cost::Header { max, .. }) = (&raw.cost, cost) else { return };
        let raw::Cost::Said(place) = &at.value else { return };
        let most = own.iter().map(Quota::capacity).min().max(tiers.iter().map(Quota::capacity).max());
        let (Some(most), Some(at)) = (most.filter(|most| most < max), &place.max) else { return };
        let remedy = match own {
            [Quota::TokenBucket { .. }] => format!("write max = {most}, or burst = {max}"),
            _ => format!("write max = {most}, or a rate that admits {max} at once"),
        };
        self.warn(&at.span(), format!("a request that says more than {most} is never admitted"), remedy);
    }

    /// Networks, of which one that is written as an address in it may be meant as that address alone.
    pub(super) fn networks(&mut self, raw: &Texts<IpNet>) -> Vec<IpNet> {
        raw.iter().flatten().filter_map(|text| self.network(text, ADDRESS_BITS)).collect()
    }

    /// One of them; `client_bits` are those of IPv6 by which one client is told.
    pub(super) fn network(&mut self, text: &At<Text<IpNet>>, client_bits: u8) -> Option<IpNet> {
        let network = self.read_at(text)?;
        let written = text.value.source().parse::<IpNet>().unwrap_or(network);
        let bits = if written.max_prefix_len() == ADDRESS_BITS { client_bits } else { written.max_prefix_len() };
        // What is narrower than a client is refused where that matters.
        if written.addr() != network.addr() && network.prefix_len() <= bits {
            let alone = IpNet::new(written.addr(), bits).ok().map(|alone| alone.trunc());
            let remedy = match alone.filter(|_| network.prefix_len() < bits) {
                Some(alone) => format!("write \"{network}\", or \"{alone}\" for that address alone"),
                None => format!("write \"{network}\""),
            };
            self.warn(&text.span(), format!("\"{written}\" is all of {network}"), remedy);
        }
        Some(network)
    }
}
