//! The request, its route, its key, and what the route's rule makes of it.

use http::{HeaderMap, HeaderName, Method, header};

use super::report::{Asked, Change, Does, Key, Part, PassedOver, Setting, Taken, Way};
use super::{Case, listed, seconds};
use crate::cache::directives::RequestDirectives;
use crate::cache::policy::RequestFacts;
use crate::config::{
    AmbiguousPaths, CacheRule, ClientDirectives, Cookies, Credentials, CutOff, QueryKeep, QueryRule, UpstreamTtl,
};
use crate::proxy::client::Scheme;
use crate::proxy::route::{Misfit, misfit};
use crate::proxy::state::{Past, UNMATCHED};
use crate::proxy::write;
use crate::syntax::path::Ambiguity;
use crate::syntax::selector::Order;

/// Routes that are named although they do not take the request; the others are many and say little.
const PASSED_OVER: usize = 16;

/// Page that a reason of Weir's own is laid down on.
const AMBIGUOUS_PATHS: &str = "docs/configuration.md: server, ambiguous_paths";

impl Case<'_> {
    pub(super) fn request(&self) -> Asked {
        let (asked, target) = (&self.asked, &self.target);
        let came = |name: &str| asked.parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let shown = |query: Option<&str>| query.map_or_else(|| "(none)".to_owned(), |query| format!("?{query}"));
        let [host, path, query] = [
            ("host", came("host").unwrap_or_default().into_owned(), target.host().to_owned()),
            ("path", asked.parts.uri.path().to_owned(), target.path().to_owned()),
            ("query", shown(asked.parts.uri.query()), shown(target.query())),
        ];
        let changed = [host, path, query].into_iter().filter(|(_, from, to)| from != to);
        Asked {
            method: asked.parts.method.to_string(),
            scheme: target.scheme().as_str(),
            scheme_because: self.scheme_because(),
            host: target.host().to_owned(),
            path: target.path().to_owned(),
            query: target.query().map(str::to_owned),
            client: self.client.ip.to_string(),
            client_because: match (self.client.ip == self.client.peer, asked.is_peer_assumed) {
                (false, _) => "by its forwarding fields, through trusted proxies",
                (true, true) => "assumed: name another with --client or client=",
                (true, false) => "as given",
            },
            changes: changed.map(|(part, from, to)| Change { part, from, to }).collect(),
            ambiguity: target.ambiguity().map(Ambiguity::as_str),
        }
    }

    fn scheme_because(&self) -> &'static str {
        match (self.target.scheme(), self.asked.peer.encrypted) {
            (Scheme::Http, false) => "as the URL has it",
            (Scheme::Http, true) | (Scheme::Https, false) => "by its forwarding fields, through trusted proxies",
            (Scheme::Https, true) if self.live.config.server.trusted_proxies.is_empty() => {
                "as the URL has it; but no proxy is trusted here, so that clients over plain connections have http"
            }
            (Scheme::Https, true) => {
                "as the URL has it: where a trusted proxy says so (X-Forwarded-Proto, Forwarded), else a client's is http"
            }
        }
    }

    /// What the proxy does with it, in the order in which the proxy decides.
    pub(super) fn way(&self) -> Way {
        let (live, route, target) = (self.live, &*self.route, &self.target);
        let way = |does, text: String| Way {
            does,
            text,
            reason: None,
            clause: None,
            cache_status: None,
            invalidates: Vec::new(),
        };
        let refused = Some("weir; detail=refused".to_owned());
        if let Some(ambiguity) = target.ambiguity().filter(|_| is_strict(live.config.server.ambiguous_paths)) {
            let text = format!("400: the path contains {}, which two servers could read two ways", ambiguity.as_str());
            return Way {
                reason: Some("ambiguous-path"),
                clause: Some(AMBIGUOUS_PATHS),
                cache_status: refused,
                ..way(Does::Refuse, text)
            };
        }
        if route.is_not_found {
            let text = "404: no route takes it, and server.unmatched = \"404\"".to_owned();
            return Way { reason: Some("no-route"), cache_status: refused, ..way(Does::Refuse, text) };
        }
        if let (Some(purge), Some(soft)) = (&route.rule.purge, write::purges(&self.parts().method)) {
            let does = if soft { "marks the URL stale" } else { "invalidates the URL" };
            let whose = if purge.from.is_empty() { "" } else { ", for clients in purge_from" };
            let text = format!("{does} with all its variants{whose}; nothing is forwarded");
            return Way {
                invalidates: vec![format!("url {}", write::selector(self.route.rule.cache.as_ref(), target))],
                ..way(Does::Purge, text)
            };
        }
        let has_body = self.content.is_none() && self.asked.has_body;
        let (past, reason, clause) = match route.may_use_cache(target, self.reads_as(), self.parts(), has_body) {
            Ok(()) if self.tags.is_some() => {
                let text = "from memory, then Redis; where nothing usable is stored, one fetch for everybody who asks";
                return way(Does::Cache, text.to_owned());
            }
            // The proxy goes past the cache with it as with a route that stores nothing.
            Ok(()) => (Past::NoCache, "tag", "docs/caching.md: what is stored (a configured tag that can be none)"),
            Err(Past::NoCache) if route.name.as_ref() == UNMATCHED => {
                (Past::NoCache, "no-route", "docs/configuration.md: server, unmatched")
            }
            Err(Past::NoCache) => (Past::NoCache, "no-cache-rule", "docs/configuration.md: cache of a route"),
            Err(Past::Ambiguous) => (Past::Ambiguous, "ambiguous-path", AMBIGUOUS_PATHS),
            Err(Past::Request(why)) => (Past::Request(why), why.as_str(), why.clause()),
        };
        let is_write = write::changes_state(live, route, target, self.parts());
        let (does, text) = match is_write {
            true => {
                (Does::Write, "forwarded past the cache; what it may have changed is invalidated before its answer")
            }
            false => (Does::Pass, "forwarded past the cache; nothing is looked up or stored"),
        };
        let order = is_write.then(|| write::order(live, route, target, self.headers()));
        Way {
            reason: Some(reason),
            clause: Some(clause),
            cache_status: Some(past.forward().member().to_owned()),
            invalidates: order.map(|order| selectors(&order)).unwrap_or_default(),
            ..way(does, text.to_owned())
        }
    }

    pub(super) fn taken(&self) -> Taken {
        let rule = &self.route.rule;
        let is_unmatched = self.route.name.as_ref() == UNMATCHED;
        let mut because = Vec::new();
        if is_unmatched {
            because.push("no route takes it".to_owned());
        } else {
            because.push(match rule.hosts.is_empty() {
                true => "any host".to_owned(),
                false => format!("the host is one of {}", listed(&rule.hosts)),
            });
            because.push(format!("the path fits {}", rule.path.source()));
            if !rule.methods.is_empty() {
                because.push(format!("the method is one of {}", listed(&rule.methods)));
            }
            if !rule.headers.is_empty() {
                because.push(format!("it has {}", listed(rule.headers.iter().map(|(name, _)| name))));
            }
        }
        let captures = self.route.captures(&self.target).0;
        Taken {
            name: rule.name.clone(),
            pattern: rule.path.source().to_owned(),
            captures: if is_unmatched {
                Vec::new()
            } else {
                captures.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
            },
            because,
            passed_over: self.passed_over(),
        }
    }

    fn passed_over(&self) -> Vec<PassedOver> {
        // PURGE names what a GET would fetch.
        let method = if self.parts().method.as_str() == "PURGE" { &Method::GET } else { &self.parts().method };
        let others = self.live.config.routes.iter().filter(|other| other.name != self.route.rule.name);
        let fitting = others.filter(|other| other.path.capture(self.target.path()).is_some());
        let why_not = fitting.map(|other| {
            let because = match misfit(other, self.target.host(), method, self.target.path(), self.headers()) {
                None => "it fits too, and is less specific or stands further below".to_owned(),
                Some(Misfit::Host) => format!("it is for {}", listed(&other.hosts)),
                Some(Misfit::Path) => "its path does not fit".to_owned(),
                Some(Misfit::Method) => format!("it is for {}", listed(&other.methods)),
                Some(Misfit::Field(name)) => format!("it asks for {name}, or for another value of it"),
            };
            PassedOver { name: other.name.clone(), pattern: other.path.source().to_owned(), because }
        });
        why_not.take(PASSED_OVER).collect()
    }

    pub(super) fn keyed(&self) -> Option<Key> {
        let (keys, tags) = (self.route.keys.as_ref()?, self.tags.as_ref()?);
        self.target.ambiguity().is_none().then_some(())?;
        let primary = keys.taken_apart(&self.key)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fixed = [
            ("generation", text(primary.generation)),
            ("route", text(primary.route)),
            ("scheme", text(primary.scheme)),
            ("host", text(primary.host)),
            ("path", text(primary.path)),
            ("query", primary.query.map_or_else(|| "(none)".to_owned(), text)),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| Part { name: name.to_owned(), value });
        let fields = primary.fields.iter().map(|field| keys.shown(field)).map(|(name, value)| Part { name, value });
        let content = primary.content.iter().flat_map(|content| {
            let digest: String = content.digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let fields = content.fields.iter().map(|field| keys.shown(field));
            let method = ("method".to_owned(), text(content.method));
            [method].into_iter().chain(fields).chain([("SHA-256 of the body".to_owned(), digest)])
        });
        let content = content.map(|(name, value)| Part { name, value });
        let mut invalidated_by = vec![format!("url {}", write::selector(None, &self.target))];
        invalidated_by.extend(tags.iter().map(|tag| format!("tag {tag}")));
        invalidated_by.push(format!("route {}", self.route.name));
        invalidated_by.push(format!("a prefix of {}", self.target.path()));
        Some(Key { parts: fixed.chain(fields).chain(content).collect(), invalidated_by })
    }

    pub(super) fn settings(&self, rule: &CacheRule) -> Vec<Setting> {
        let setting = |key, value: String| Setting { key, value, note: None };
        let noted = |key, value: &str, note: Option<String>| Setting { key, value: value.to_owned(), note };
        let ms = |duration: std::time::Duration| seconds(duration.as_millis() as u64);
        let statuses = rule.status_ttl.iter().map(|(status, ttl)| format!("{} = {}", status.as_u16(), ms(*ttl)));
        let tags = match &self.tags {
            Some(tags) => listed(tags),
            None => "one of them can be none (empty, or over 256 bytes)".to_owned(),
        };
        let wanted = client_wants(&RequestDirectives::of(self.headers()));
        let is_honoured = rule.client_directives == ClientDirectives::Honor;
        let wanted = (!wanted.is_empty()).then(|| {
            let how = if is_honoured { "which is honoured" } else { "which means nothing here" };
            format!("the request asks for {}, {how}", listed(&wanted))
        });
        vec![
            setting("ttl", rule.ttl.map_or_else(|| "none".to_owned(), ms)),
            setting("status_ttl", listed(statuses)),
            noted(
                "upstream_ttl",
                match rule.upstream_ttl {
                    UpstreamTtl::Respect => "respect",
                    UpstreamTtl::Ignore => "ignore",
                },
                None,
            ),
            setting("jitter", format!("{:.0}%", rule.jitter * 100.0)),
            setting("stale_while_revalidate", ms(rule.stale_while_revalidate)),
            setting("stale_if_error", ms(rule.stale_if_error)),
            setting("query", query(&rule.query)),
            setting("key_headers", listed(&rule.key_headers)),
            setting("key_body", listed(&rule.key_body)),
            setting("no_vary_search", rule.no_vary_search.to_string()),
            setting("write_through", rule.write_through.to_string()),
            setting("tags", tags),
            noted(
                "credentials",
                match rule.credentials {
                    Credentials::Protect => "protect",
                    Credentials::Share => "share",
                },
                self.credentials(rule),
            ),
            setting("credential_headers", listed(&rule.credential_headers)),
            noted(
                "cookies",
                match rule.cookies {
                    Cookies::Refuse => "refuse",
                    Cookies::Store => "store",
                },
                None,
            ),
            noted("client_directives", if is_honoured { "honor" } else { "ignore" }, wanted),
            setting("max_staleness", ms(rule.max_staleness)),
            noted(
                "cut_off",
                match rule.cut_off {
                    CutOff::Bound => "bound",
                    CutOff::Stale => "stale",
                },
                None,
            ),
            setting("status_key", rule.status_key.to_string()),
            setting("wait_timeout", ms(rule.wait_timeout)),
        ]
    }

    /// The credentials for which the route does not account.
    fn credentials(&self, rule: &CacheRule) -> Option<String> {
        let carriers = [&header::AUTHORIZATION, &header::COOKIE].into_iter().chain(&rule.credential_headers);
        let is_open = |name: &&HeaderName| {
            let Some(value) = self.headers().get(*name) else { return false };
            let alone = HeaderMap::from_iter([((*name).clone(), value.clone())]);
            RequestFacts::of(rule, self.reads_as(), &alone).credentials
        };
        let open: Vec<_> = carriers.filter(is_open).collect();
        let consequence = "neither the route's own lifetimes nor what is stored by them are for it";
        (!open.is_empty()).then(|| format!("the request carries {}: {consequence}", listed(open)))
    }
}

fn is_strict(paths: AmbiguousPaths) -> bool {
    paths == AmbiguousPaths::Reject
}

fn selectors(order: &Order) -> Vec<String> {
    let kinds = [("url", &order.urls), ("tag", &order.tags), ("prefix", &order.prefixes), ("route", &order.routes)];
    kinds.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind} {name}"))).collect()
}

fn query(rule: &QueryRule) -> String {
    let kept = match &rule.keep {
        QueryKeep::All => "all parameters".to_owned(),
        QueryKeep::Except(globs) => format!("all but {}", listed(globs)),
        QueryKeep::Only(globs) => format!("only {}", listed(globs)),
    };
    if rule.sort { format!("{kept}, sorted") } else { kept }
}

fn client_wants(said: &RequestDirectives) -> Vec<String> {
    let timed = [
        ("max-age", said.max_age),
        ("max-stale", said.max_stale),
        ("min-fresh", said.min_fresh),
        ("stale-if-error", said.stale_if_error),
    ];
    let flags = [("no-cache", said.no_cache), ("no-store", said.no_store), ("only-if-cached", said.only_if_cached)];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name.to_owned());
    flags.chain(timed.into_iter().filter_map(|(name, value)| super::storing::timed(name, value))).collect()
}
