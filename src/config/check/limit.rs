//! `[[limit]]`, and limits inside a route.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Check, nearest};
use crate::config::raw::{self, At, LimitUse};
use crate::config::report::Span;
use crate::config::{AfterLoss, IdentityPart, Limit, Missing, Quota, RedisDown, Stage, Told};

/// Most parts of one identity.
const MOST_PARTS: usize = 8;
/// Most limits of one route: all of one stage are taken in one script.
const MOST_LIMITS: usize = 16;

/// A shared limit: where its name stands, and the limit unless it is wrong.
pub(super) struct Shared {
    pub(super) span: Span,
    pub(super) limit: Option<Arc<Limit>>,
}

/// Shared limits by name.
pub(super) type SharedLimits = BTreeMap<String, Shared>;

impl Check<'_, '_> {
    pub(super) fn shared_limits(&mut self, raw: &[At<raw::Limit>]) -> SharedLimits {
        let mut shared = SharedLimits::new();
        for raw in raw {
            let name_span = raw.value.name.as_ref().map_or_else(|| raw.span(), At::span);
            let Some((name, limit)) = self.limit(&raw.value, &raw.span(), None) else { continue };
            if shared.contains_key(&name) {
                let remedy = "give each limit a name of its own";
                self.error(&name_span, format!("there is another limit named \"{name}\" above"), remedy);
                continue;
            }
            shared.insert(name, Shared { span: name_span, limit: limit.map(Arc::new) });
        }
        shared
    }

    /// A route's limits, in order.
    pub(super) fn route_limits(&mut self, raw: &[At<LimitUse>], route: &str, shared: &SharedLimits) -> Vec<Arc<Limit>> {
        let mut limits: Vec<Arc<Limit>> = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for entry in raw {
            // A misspelt name stands for the one that is meant.
            if let LimitUse::Shared(name) = &entry.value {
                let known = shared.keys().map(String::as_str);
                let meant = if shared.contains_key(name) { Some(name.as_str()) } else { nearest(name, known) };
                self.named_limits.extend(meant.map(str::to_owned));
            }
        }
        for entry in raw {
            let (name, limit, span) = match &entry.value {
                LimitUse::Shared(name) => match shared.get(name) {
                    Some(known) => (name.clone(), known.limit.clone(), entry.span()),
                    None => {
                        self.unknown_limit(name, &entry.span(), shared);
                        continue;
                    }
                },
                LimitUse::Own(own) => {
                    let span = own.name.as_ref().map_or_else(|| entry.span(), At::span);
                    let Some((name, limit)) = self.limit(own, &entry.span(), Some(route)) else { continue };
                    (name, limit.map(Arc::new), span)
                }
            };
            if names.contains(&name) {
                let remedy = "give each limit of a route a name of its own, and name a shared one once";
                self.error(&span, format!("this route has a limit named \"{name}\" already"), remedy);
                continue;
            }
            if names.len() == MOST_LIMITS {
                self.error(
                    &span,
                    format!("a route has at most {MOST_LIMITS} limits"),
                    "remove some, or combine their keys",
                );
                break;
            }
            names.push(name);
            limits.extend(limit);
        }
        limits
    }

    fn unknown_limit(&mut self, name: &str, span: &Span, shared: &SharedLimits) {
        let remedy = match nearest(name, shared.keys().map(String::as_str)) {
            Some(near) => format!("write \"{near}\""),
            // One that was taken out may have that name.
            None if self.was_misread(&["limit", "limit.name"]) => return,
            None => format!("add a [[limit]] with name = \"{}\"", name.escape_debug()),
        };
        self.error(span, format!("there is no limit named \"{}\"", name.escape_debug()), remedy);
    }

    /// The limit's name, if it has one, and the limit, if it is right. `route` is where it stands, for one inside a route.
    fn limit(&mut self, raw: &raw::Limit, span: &Span, route: Option<&str>) -> Option<(String, Option<Limit>)> {
        let name = self.read(&raw.name).map(|name| name.0);
        let key = raw.key.as_ref().and_then(|key| self.identity(key));
        let quotas = self.quotas(raw, span);
        let tiers = self.limit_tiers(raw);
        let all: Option<Vec<Quota>> = quotas
            .as_ref()
            .map(|quotas| quotas.iter().chain(tiers.iter().flat_map(|tiers| tiers.quotas.values())).copied().collect());
        let cost = self.cost(raw.cost.as_ref(), all.as_deref());
        if let Some(own) = &quotas {
            let tiers: Vec<Quota> = tiers.iter().flat_map(|tiers| tiers.quotas.values()).copied().collect();
            self.hopeless_cost(raw, &cost, own, &tiers);
        }
        self.idle_settings(raw, key.as_deref());
        let charge = self.charge(raw.charge.as_ref(), quotas.as_deref());
        let after_loss = self.after_loss(raw, quotas.as_deref());
        let deny = self.denied_networks(&raw.deny);
        let allow = self.allowed_networks(&raw.allow, &deny);
        let (status, notice) = (self.denial_status(&raw.status), self.notice(raw));
        let on = raw.on.as_ref().map_or(Stage::Request, |at| at.value);
        let delay = self.delay(raw, on);
        let name = name?;
        let (Some(key), Some(quotas)) = (key, quotas) else { return Some((name, None)) };
        if key.contains(&IdentityPart::Ip) && self.proxies_unsaid {
            let key_span = raw.key.as_ref().map_or_else(|| span.clone(), At::span);
            let text =
                format!("limit \"{name}\" counts by `ip`, and no proxy is trusted: behind one, all clients are one");
            self.warn(
                &key_span,
                text,
                "name the proxy in `server.trusted_proxies`, or write trusted_proxies = [] if there is none",
            );
        }
        let scope = route.map_or_else(|| name.clone(), |route| format!("{route}/{name}"));
        let limit = Limit {
            name: name.clone(),
            scope,
            key,
            quotas,
            cost,
            charge,
            on,
            dry_run: raw.dry_run.as_ref().is_some_and(|at| at.value),
            redis_down: raw.redis_down.as_ref().map_or(RedisDown::Local, |at| at.value),
            loans: raw.loans.as_ref().is_none_or(|at| at.value),
            after_loss,
            missing: raw.missing.as_ref().map_or(Missing::Share, |at| at.value),
            allow,
            deny,
            headers: raw.headers.as_ref().map_or(Told::Draft, |at| at.value),
            status,
            notice,
            delay,
            tiers,
        };
        Some((name, Some(limit)))
    }

    /// `after_loss`, of a token bucket: what another state was at a time it cannot say.
    fn after_loss(&mut self, raw: &raw::Limit, quotas: Option<&[Quota]>) -> AfterLoss {
        let Some(at) = &raw.after_loss else { return AfterLoss::Full };
        let is_bucket = |quota: &Quota| matches!(quota, Quota::TokenBucket { .. });
        if at.value == AfterLoss::Empty && quotas.is_some_and(|quotas| !quotas.iter().all(is_bucket)) {
            let remedy = "remove it, or write algorithm = \"token_bucket\"";
            self.error(&at.span(), "`after_loss = \"empty\"` is for token buckets", remedy);
        }
        at.value
    }

    fn identity(&mut self, raw: &At<Vec<At<crate::config::text::Text<IdentityPart>>>>) -> Option<Vec<IdentityPart>> {
        if raw.value.is_empty() {
            self.error(&raw.span(), "`key` is empty", "write [\"route\"] to count all requests of a route together");
            return None;
        }
        if raw.value.len() > MOST_PARTS {
            self.error(&raw.span(), format!("`key` has more than {MOST_PARTS} parts"), "remove some");
            return None;
        }
        let mut parts = Vec::with_capacity(raw.value.len());
        for text in &raw.value {
            let part = self.read_at(text)?;
            if parts.contains(&part) {
                self.error(&text.span(), format!("\"{}\" is there twice", text.value.source()), "remove one");
            }
            parts.push(part);
        }
        Some(parts)
    }
}
