//! From the document to a [`Config`], collecting every problem on the way.
//!
//! First its shape (`shape`), then every value by its grammar, then what must hold between values. A value that is wrong is
//! reported and stands in by its default until the end, so that what depends on it is still looked at; a configuration
//! with an error in it never leaves this module.

mod cache;
mod cost;
mod delay;
mod denial;
mod idle;
mod limit;
mod process;
mod quota;
mod redis;
mod route;
mod secret;
mod shape;
mod tiers;
mod tls;
mod wording;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::Config;
use super::machine::Machine;
use super::raw::{At, Maybe, MaybeText, Raw, Texts};
use super::report::{Problem, Severity, Sources, Span};
use super::schema;
use super::text::Grammar;

/// Longest duration that can be set: ten years. Keeps sums of times within what the clock can hold.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What checking needs to know, and what it finds.
struct Check<'s, 't> {
    sources: &'s Sources<'t>,
    machine: Machine,
    /// What relative paths of files are relative to.
    directory: &'s Path,
    /// Whether nothing says who stands in front: neither `server.trusted_proxies`, of which an empty list says that nobody
    /// does, nor `server.proxy_protocol`.
    proxies_unsaid: bool,
    /// Whether there is a Redis.
    has_redis: bool,
    /// Keys whose values were taken out, because they say nothing.
    misread: Vec<String>,
    /// Shared limits that routes name.
    named_limits: BTreeSet<String>,
    /// Secret files that were named.
    files: Vec<PathBuf>,
    problems: &'s mut Vec<Problem>,
}

/// Reads and checks `root`; `None` only if a problem of severity error was added.
///
/// The second value is every secret file that was named, readable or not.
pub(super) fn check(
    mut root: Spanned<DeTable<'_>>,
    sources: &Sources<'_>,
    machine: Machine,
    directory: &Path,
    problems: &mut Vec<Problem>,
) -> (Option<Config>, Vec<PathBuf>) {
    let misread = shape::prune(&schema::SCHEMA, &mut root, sources, problems);
    let raw = match Raw::deserialize(toml::de::Deserializer::from(root)) {
        Ok(raw) => raw,
        Err(error) => {
            let remedy = "correct the value";
            problems.push(sources.problem(Severity::Error, error.span().as_ref(), error.message(), remedy));
            return (None, Vec::new());
        }
    };
    let says_who = |server: &super::raw::Server| server.trusted_proxies.is_some() || server.proxy_protocol.is_some();
    let proxies_unsaid = !raw.server.as_ref().is_some_and(says_who);
    let has_redis = raw.redis.is_some() || misread.iter().any(|key| key == "redis");
    let mut check = Check {
        sources,
        machine,
        directory,
        proxies_unsaid,
        has_redis,
        misread,
        named_limits: BTreeSet::new(),
        files: Vec::new(),
        problems,
    };
    let config = check.config(&raw);
    (config, check.files)
}

impl Check<'_, '_> {
    fn config(&mut self, raw: &Raw) -> Option<Config> {
        let server = self.server(raw.server.as_ref());
        let admin = self.admin(raw.admin.as_ref(), &server);
        let log = self.log(raw.log.as_ref());
        let upstream = raw.upstream.as_ref().and_then(|raw| self.upstream(raw, &server));
        let cache = self.tiers(raw.cache.as_ref());
        let redis = raw.redis.as_ref().map(|raw| self.redis(raw));
        let response_timeout =
            upstream.as_ref().map_or(process::RESPONSE_TIMEOUT, |upstream| upstream.response_timeout);
        let defaults = route::Defaults {
            response_timeout,
            body_idle: server.limits.body_idle,
            max_staleness: cache.max_staleness,
        };
        let limits = self.shared_limits(raw.limit.as_deref().unwrap_or_default());
        let routes = self.routes(raw.route.as_deref().unwrap_or_default(), &limits, &defaults);
        let redis = match redis {
            None => None,
            Some(redis) => Some(redis?),
        };
        let config = Config { server, admin, log, upstream: upstream?, redis, cache, routes: routes? };
        self.between(&limits, &config);
        Some(config)
    }

    fn error(&mut self, span: &Span, text: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(self.sources.problem(Severity::Error, Some(span), text, remedy));
    }

    fn warn(&mut self, span: &Span, text: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(self.sources.problem(Severity::Warning, Some(span), text, remedy));
    }

    /// Whether what was written for one of these keys was taken out.
    fn was_misread(&self, keys: &[&str]) -> bool {
        self.misread.iter().any(|misread| keys.contains(&misread.as_str()))
    }

    /// The same, of keys of limits.
    fn was_misread_in_limit(&self, keys: &[&str]) -> bool {
        let in_limit = |key: &String| {
            let key = key.strip_prefix("limit.").or_else(|| key.strip_prefix("route.limits."));
            key.is_some_and(|key| keys.contains(&key))
        };
        self.misread.iter().any(in_limit)
    }

    /// What was written, if it was and can be read.
    fn read<T: Grammar>(&mut self, raw: &MaybeText<T>) -> Option<T> {
        self.read_at(raw.as_ref()?)
    }

    fn read_at<T: Grammar>(&mut self, raw: &At<super::text::Text<T>>) -> Option<T> {
        raw.value.read().map_err(|wrong| self.error(&raw.span(), wrong.problem, wrong.remedy)).ok()
    }

    fn read_all<T: Grammar>(&mut self, raw: &Texts<T>) -> Vec<T> {
        raw.iter().flatten().filter_map(|text| self.read_at(text)).collect()
    }

    /// A duration that may not be shorter than `least`.
    fn duration(&mut self, raw: &MaybeText<Duration>, least: Duration) -> Option<Duration> {
        let at = raw.as_ref()?;
        let value = self.read_at(at)?;
        if value < least {
            let remedy = format!("write at least \"{}\"", shown(least));
            self.error(&at.span(), format!("\"{}\" is too short", at.value.source()), remedy);
            return None;
        }
        if value > LONGEST {
            self.error(&at.span(), format!("\"{}\" is too long", at.value.source()), "write at most \"3650d\"");
            return None;
        }
        Some(value)
    }

    /// A size in bytes that lies in `range`.
    fn size(&mut self, raw: &MaybeText<usize>, range: RangeInclusive<usize>) -> Option<usize> {
        let at = raw.as_ref()?;
        let value = self.read_at(at)?;
        if !range.contains(&value) {
            let remedy = format!("write a size from \"{}\" to \"{}\"", bytes(*range.start()), bytes(*range.end()));
            self.error(&at.span(), format!("\"{}\" is out of range", at.value.source()), remedy);
            return None;
        }
        Some(value)
    }

    /// A whole number that lies in `range`.
    fn count(&mut self, raw: &Maybe<i64>, range: RangeInclusive<u32>) -> Option<u32> {
        let at = raw.as_ref()?;
        match u32::try_from(at.value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                let remedy = format!("write a whole number from {} to {}", range.start(), range.end());
                self.error(&at.span(), format!("{} is out of range", at.value), remedy);
                None
            }
        }
    }
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// A duration as it is written in the configuration.
fn shown(duration: Duration) -> String {
    if duration.subsec_millis() > 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{}s", duration.as_secs())
    }
}

/// A size as it is written in the configuration.
fn bytes(size: usize) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut rest = size;
    let mut unit = 0;
    while unit + 1 < UNITS.len() && rest >= 1024 && rest.is_multiple_of(1024) {
        rest /= 1024;
        unit += 1;
    }
    format!("{rest}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("ttll", ["ttl", "tags"]), Some("ttl"));
        assert_eq!(nearest("lsiten", ["listen", "limits"]), Some("listen"));
        assert_eq!(nearest("Max-Object", ["memory", "max_object"]), Some("max_object"));
        assert_eq!(nearest("colour", ["ttl", "tags"]), None);
    }

    #[test]
    fn sizes_and_durations_are_shown_as_they_are_written() {
        assert_eq!(bytes(1 << 20), "1MiB");
        assert_eq!(bytes(1500), "1500B");
        assert_eq!(shown(Duration::from_millis(20)), "20ms");
        assert_eq!(shown(Duration::from_secs(5)), "5s");
    }
}
