//! `cache.*` of a route.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use super::Check;
use super::process::SHORTEST_BOUND;
use super::route::Defaults;
use crate::config::raw::{self, At, MaybeText};
use crate::config::{CacheRule, ClientDirectives, Cookies, Credentials, CutOff, QueryKeep, QueryRule, UpstreamTtl};
use crate::syntax::pattern::Pattern;

const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Methods that can read by what their body asks: the registry's safe ones that have a body, and POST.
const READING: [&str; 5] = ["QUERY", "POST", "SEARCH", "REPORT", "PROPFIND"];
const CREDENTIAL_HEADER: &str = "x-api-key";

impl Check<'_, '_> {
    /// The rule, or `None` where it is turned off; its parts are checked either way.
    pub(super) fn cache_rule(
        &mut self,
        raw: &At<raw::CacheRule>,
        path: Option<&Pattern>,
        methods: &[Method],
        defaults: &Defaults,
    ) -> Option<CacheRule> {
        let span = raw.span();
        let raw = &raw.value;
        let enabled = raw.enabled.as_ref().is_none_or(|at| at.value);
        let is_read = |method: &Method| *method == Method::GET || *method == Method::HEAD;
        if enabled && raw.key_body.is_none() && !methods.is_empty() && !methods.iter().any(is_read) {
            let at = raw.ttl.as_ref().map(At::span).or_else(|| raw.enabled.as_ref().map(At::span)).unwrap_or(span);
            let text = "this route takes only methods whose answers are never stored";
            self.error(&at, text, "add \"GET\" to `methods`, or name those that read in `cache.key_body`");
        }
        let rule = CacheRule {
            ttl: self.lifetime(&raw.ttl),
            upstream_ttl: raw.upstream_ttl.as_ref().map_or(UpstreamTtl::Respect, |at| at.value),
            jitter: self.read(&raw.jitter).unwrap_or(0.0),
            stale_while_revalidate: self.lifetime(&raw.stale_while_revalidate).unwrap_or_default(),
            stale_if_error: self.lifetime(&raw.stale_if_error).unwrap_or_default(),
            status_ttl: self.status_ttl(raw.status_ttl.as_ref()),
            query: raw.query.as_ref().map(|query| self.query(query)).unwrap_or_default(),
            key_headers: self.field_names(&raw.key_headers),
            key_body: self.key_body(&raw.key_body),
            write_through: raw.write_through.as_ref().is_some_and(|at| at.value),
            no_vary_search: raw.no_vary_search.as_ref().is_some_and(|at| at.value),
            tags: self.templates(&raw.tags, path).into_iter().map(|(template, _)| template).collect(),
            credentials: raw.credentials.as_ref().map_or(Credentials::Protect, |at| at.value),
            credential_headers: match &raw.credential_headers {
                Some(_) => self.field_names(&raw.credential_headers),
                None => vec![HeaderName::from_static(CREDENTIAL_HEADER)],
            },
            cookies: raw.cookies.as_ref().map_or(Cookies::Refuse, |at| at.value),
            client_directives: raw.client_directives.as_ref().map_or(ClientDirectives::Ignore, |at| at.value),
            max_staleness: self.duration(&raw.max_staleness, SHORTEST_BOUND).unwrap_or(defaults.max_staleness),
            cut_off: raw.cut_off.as_ref().map_or(CutOff::Bound, |at| at.value),
            status_key: raw.status_key.as_ref().is_some_and(|at| at.value),
            wait_timeout: self.lifetime(&raw.wait_timeout).unwrap_or(WAIT_TIMEOUT),
        };
        if let (Some(at), UpstreamTtl::Ignore, None, true) =
            (&raw.upstream_ttl, rule.upstream_ttl, rule.ttl, rule.status_ttl.is_empty())
        {
            let text = "with `upstream_ttl = \"ignore\"` and no `ttl` nothing has a lifetime";
            self.warn(&at.span(), text, "write `cache.ttl`, or let the upstream's lifetimes count");
        }
        enabled.then_some(rule)
    }

    fn lifetime(&mut self, raw: &MaybeText<Duration>) -> Option<Duration> {
        self.duration(raw, Duration::ZERO)
    }

    fn status_ttl(
        &mut self,
        raw: Option<&BTreeMap<At<String>, At<crate::config::text::Text<Duration>>>>,
    ) -> BTreeMap<StatusCode, Duration> {
        let mut lifetimes = BTreeMap::new();
        for (key, value) in raw.into_iter().flatten() {
            let lifetime = self.read_at(value);
            let status = key.value.parse::<u16>().ok().filter(|status| (200..=599).contains(status));
            match status {
                None => {
                    let text = format!("\"{}\" is not a status from 200 to 599", key.value.escape_debug());
                    self.error(&key.span(), text, "write a status, such as 404");
                }
                Some(206 | 304) => {
                    let text = format!("an answer with status {} has no lifetime of its own", key.value);
                    self.error(&key.span(), text, "remove it: it belongs to the stored 200");
                }
                Some(status) => lifetimes.extend(StatusCode::from_u16(status).ok().zip(lifetime)),
            }
        }
        lifetimes
    }

    /// Methods whose meaning may be to read; that it is so is the operator's word.
    fn key_body(&mut self, raw: &raw::Texts<Method>) -> Vec<Method> {
        let mut methods = Vec::new();
        for at in raw.iter().flatten() {
            match self.read_at(at) {
                Some(method) if READING.contains(&method.as_str()) => methods.push(method),
                Some(method) => {
                    let text = format!("{method} is no method that reads by its body");
                    self.error(&at.span(), text, format!("name only {}", READING.join(", ")));
                }
                None => {}
            }
        }
        methods
    }

    fn query(&mut self, raw: &At<raw::Query>) -> QueryRule {
        if raw.value.ignore.is_some() && raw.value.only.is_some() {
            self.error(&raw.span(), "`ignore` and `only` exclude each other", "keep one of them");
        }
        let ignore = self.read_all(&raw.value.ignore);
        let only = self.read_all(&raw.value.only);
        let keep = match (&raw.value.only, &raw.value.ignore) {
            (Some(_), _) => QueryKeep::Only(only),
            (None, Some(_)) => QueryKeep::Except(ignore),
            (None, None) => QueryKeep::All,
        };
        QueryRule { keep, sort: raw.value.sort.as_ref().is_some_and(|at| at.value) }
    }

    /// Names, each once.
    fn field_names(&mut self, raw: &raw::Texts<HeaderName>) -> Vec<HeaderName> {
        let mut names: Vec<HeaderName> = Vec::new();
        for name in self.read_all(raw) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
