//! A report as text for people: sections of aligned lines.

use std::fmt;

use super::report::{
    Asked, Does, Entry, Freshness, Held, Key, Limit, Live, Mark, Part, Report, Setting, Storing, Supposed, Taken, Way,
};
use super::{listed, seconds};

/// Width of what stands in front of a value.
const LABEL: usize = 24;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut page = Page(f);
        page.request(&self.request)?;
        page.way(&self.way)?;
        page.route(&self.route)?;
        if let Some(key) = &self.key {
            page.key(key)?;
        }
        page.rule(&self.rule)?;
        page.limits(&self.limits)?;
        if let Some(storing) = &self.storing {
            page.storing(storing)?;
        }
        self.live.as_ref().map_or(Ok(()), |live| page.live(live))
    }
}

struct Page<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Page<'_, '_> {
    /// Begins a section.
    fn section(&mut self, title: &str) -> fmt::Result {
        writeln!(self.0, "\n{title}")
    }

    fn line(&mut self, label: &str, value: impl fmt::Display) -> fmt::Result {
        let text = value.to_string();
        writeln!(self.0, "{}", format!("  {label:LABEL$} {text}").trim_end())
    }

    fn noted(&mut self, label: &str, value: &str, note: Option<&str>) -> fmt::Result {
        match note {
            Some(note) => self.line(label, format_args!("{value:24} {note}")),
            None => self.line(label, value),
        }
    }

    /// One line for each, the label in front of the first.
    fn lines(&mut self, label: &str, values: impl IntoIterator<Item = String>) -> fmt::Result {
        let labels = std::iter::once(label).chain(std::iter::repeat(""));
        values.into_iter().zip(labels).try_for_each(|(value, label)| self.line(label, value))
    }

    fn parts(&mut self, parts: &[Part]) -> fmt::Result {
        parts.iter().try_for_each(|part| self.line(&part.name, &part.value))
    }

    fn request(&mut self, asked: &Asked) -> fmt::Result {
        let query = asked.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        writeln!(self.0, "{} {}://{}{}{query}", asked.method, asked.scheme, asked.host, asked.path)?;
        self.noted("scheme", asked.scheme, Some(asked.scheme_because))?;
        self.noted("client", &asked.client, Some(asked.client_because))?;
        let changes =
            asked.changes.iter().map(|change| format!("{}: {} became {}", change.part, change.from, change.to));
        self.lines("changed", changes)?;
        asked.ambiguity.map_or(Ok(()), |what| self.line("ambiguous", format_args!("the path contains {what}")))
    }

    fn way(&mut self, way: &Way) -> fmt::Result {
        self.section("Way")?;
        let does = match way.does {
            Does::Cache => "through the cache",
            Does::Pass => "past the cache",
            Does::Write => "past the cache, a write",
            Does::Purge => "purge",
            Does::Refuse => "refused",
        };
        self.line(does, &way.text)?;
        self.because(way.reason, way.clause)?;
        if let Some(status) = &way.cache_status {
            self.line("Cache-Status", status)?;
        }
        self.lines("invalidates", way.invalidates.iter().cloned())
    }

    fn because(&mut self, reason: Option<&str>, clause: Option<&str>) -> fmt::Result {
        if let Some(reason) = reason {
            self.line("reason", reason)?;
        }
        clause.map_or(Ok(()), |clause| self.line("clause", clause))
    }

    fn route(&mut self, route: &Taken) -> fmt::Result {
        self.section("Route")?;
        self.line("name", &route.name)?;
        self.line("path", &route.pattern)?;
        self.lines("captures", route.captures.iter().map(|(name, value)| format!("{name} = {value}")))?;
        self.lines("because", route.because.iter().cloned())?;
        let passed = route.passed_over.iter();
        self.lines("passed over", passed.map(|other| format!("{} ({}): {}", other.name, other.pattern, other.because)))
    }

    fn key(&mut self, key: &Key) -> fmt::Result {
        self.section("Key")?;
        self.parts(&key.parts)?;
        self.lines("invalidated by", key.invalidated_by.iter().cloned())
    }

    fn rule(&mut self, rule: &[Setting]) -> fmt::Result {
        if rule.is_empty() {
            return Ok(());
        }
        self.section("Cache rule of the route")?;
        rule.iter().try_for_each(|setting| self.noted(setting.key, &setting.value, setting.note.as_deref()))
    }

    fn limits(&mut self, limits: &[Limit]) -> fmt::Result {
        self.section("Limits")?;
        if limits.is_empty() {
            return self.line("none", "");
        }
        for limit in limits {
            let dry = if limit.dry_run { ", counts only" } else { "" };
            self.line(&limit.name, format_args!("{}{dry}", limit.quotas.join(" and ")))?;
            self.line("  algorithm", limit.algorithm)?;
            if let Some(tiers) = &limit.tiers {
                match &tiers.tier {
                    Some(tier) => self.line("  tier", format_args!("{tier} ({})", tiers.text))?,
                    None => self.line("  tier", tiers.text)?,
                }
                let all = tiers.quotas.iter().map(|tier| format!("{}: {}", tier.name, tier.value));
                self.lines(&format!("  tiers of {}", tiers.hash), all)?;
            }
            if limit.cost != "1" {
                self.line("  a request costs", &limit.cost)?;
            }
            if let Some(charged) = &limit.charged {
                self.line("  charged", charged)?;
            }
            self.line("  on", format_args!("{} ({})", limit.stage, limit.applies))?;
            self.lines("  counted by", limit.identity.iter().map(|part| format!("{} = {}", part.name, part.value)))?;
            if let Some(delay) = &limit.delay {
                let (longest, places) = (seconds(delay.max_delay_ms), delay.max_delayed);
                let text =
                    format_args!("for up to {longest} in place of a denial, at most {places} at once in each pod");
                self.line("  waits", text)?;
            }
            self.line("  without Redis", limit.redis_down)?;
            if let Some(after_loss) = limit.after_loss {
                self.line("  after Redis' loss", format_args!("a bucket that it does not know is {after_loss}"))?;
            }
            if !limit.loans {
                self.line("  loans", "none: every request asks Redis")?;
            }
        }
        Ok(())
    }

    fn storing(&mut self, storing: &Storing) -> fmt::Result {
        if let Some(supposed) = &storing.supposed {
            self.section("Stored?")?;
            return self.supposed(supposed);
        }
        self.section("What would be stored (say more with --status and --response)")?;
        for usual in &storing.usual {
            let verdict = if usual.stored { "yes" } else { "no" };
            let clause = usual.clause.map(|clause| format!("  [{clause}]")).unwrap_or_default();
            writeln!(self.0, "  {:44} {verdict:3}  {}{clause}", usual.answer, usual.because)?;
        }
        Ok(())
    }

    fn supposed(&mut self, supposed: &Supposed) -> fmt::Result {
        self.line("answer", supposed.status)?;
        self.line("stored", &supposed.text)?;
        self.because(supposed.reason, supposed.clause)?;
        self.line("Cache-Status", &supposed.cache_status)?;
        if let Some(next) = &supposed.next {
            self.line("  of the next", next)?;
        }
        let said = listed(&supposed.directives);
        self.line("directives", format_args!("{said} (from {})", supposed.directives_from))?;
        self.lines("variant by", supposed.vary.iter().map(|part| format!("{} = {}", part.name, part.value)))?;
        self.lines("tags", supposed.tags.iter().cloned())?;
        supposed.freshness.as_ref().map_or(Ok(()), |freshness| self.freshness(freshness))
    }

    fn freshness(&mut self, terms: &Freshness) -> fmt::Result {
        if let Some(age_ms) = terms.age_field_ms {
            self.line("Age field", seconds(age_ms))?;
        }
        self.noted(
            "apparent age",
            &seconds(terms.apparent_age_ms),
            Some(&match &terms.date {
                Some(date) => format!("received {}, less Date {date}", terms.received_at),
                None => "no Date".to_owned(),
            }),
        )?;
        self.line("response delay", seconds(terms.response_delay_ms))?;
        let corrected = "the greater of apparent age and Age + delay";
        self.noted("initial age", &seconds(terms.initial_age_ms), Some(corrected))?;
        self.noted("lifetime", &seconds(terms.lifetime_ms), Some(&terms.lifetime_from))?;
        if let Some(own) = &terms.configured {
            let (ttl, left) = (seconds(own.ttl_ms), seconds(own.jittered_ms));
            let jitter = format!("{:.1}% of at most {:.0}%", own.shortened_by * 100.0, own.jitter * 100.0);
            self.line("  of it", format_args!("{ttl} less jitter {jitter} = {left}, and the initial age"))?;
        }
        self.noted("resident time", &seconds(terms.resident_ms), Some(&format!("since {}", terms.received_at)))?;
        self.noted("current age", &seconds(terms.age_ms), Some("initial age + resident time"))?;
        let sign = if terms.ttl_ms < 0 { "-" } else { "" };
        let left = format!("{sign}{}", seconds(terms.ttl_ms.unsigned_abs()));
        self.noted("ttl left", &left, Some("lifetime - current age"))?;
        let early = terms.early_refresh_ms.map(|window_ms| format!("by reads in the last {}", seconds(window_ms)));
        self.line("early refresh", early.as_deref().unwrap_or("none"))?;
        self.line("stale, refreshed behind", format_args!("for {} more", seconds(terms.stale_while_revalidate_ms)))?;
        self.line("stale, if error", format_args!("for {} more", seconds(terms.stale_if_error_ms)))?;
        let flags = [
            ("must-revalidate", terms.must_revalidate),
            ("no-cache", terms.no_cache),
            ("not for credentials", terms.by_rule),
        ];
        let flags: Vec<_> = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
        self.noted("state", terms.state, (!flags.is_empty()).then(|| listed(flags)).as_deref())
    }

    fn live(&mut self, live: &Live) -> fmt::Result {
        self.section("Now")?;
        self.line("time of the fleet", &live.now)?;
        self.line("name of the key", &live.key)?;
        self.noted("answered by", live.answer.from, Some(&live.answer.cache_status))?;
        let proven = live
            .pod
            .proven_ms
            .map(|ms| format!(", proven {} ago (B: {})", seconds(ms), seconds(live.pod.max_staleness_ms)));
        let position = format!("{}/{}", live.pod.incarnation, live.pod.seq);
        self.line("this pod's position", format_args!("{position}{}", proven.unwrap_or_default()))?;
        if let Some(apart_ms) = live.apart_ms {
            self.line("with credentials", format_args!("each goes for itself for {} more", seconds(apart_ms)))?;
        }
        self.section("Memory")?;
        self.held(&live.memory)?;
        self.section("Redis")?;
        self.held(&live.redis)?;
        for (title, part) in [("A part, in memory", &live.memory_part), ("A part, in Redis", &live.redis_part)] {
            if let Some(part) = part {
                self.section(title)?;
                self.held(part)?;
            }
        }
        Ok(())
    }

    fn held(&mut self, held: &Held) -> fmt::Result {
        match held {
            Held::Nothing => self.line("holds", "nothing"),
            Held::Unknown { because } => self.line("holds", because),
            Held::Entry(entry) => self.entry(entry),
            Held::Vary { names, variants, left_ms, variant } => {
                self.line("holds", format_args!("{variants} variants, counted for {} more", seconds(*left_ms)))?;
                self.lines("variant by", names.iter().map(|part| format!("{} = {}", part.name, part.value)))?;
                self.held(variant)
            }
            Held::Uncacheable { left_ms, mark } => {
                self.line("holds", format_args!("a verdict: not stored, for {} more", seconds(*left_ms)))?;
                self.mark(mark)
            }
        }
    }

    fn entry(&mut self, entry: &Entry) -> fmt::Result {
        self.line("holds", format_args!("{}, {} bytes of body", entry.status, entry.body_bytes))?;
        if let Some(part) = &entry.part {
            self.line("part", part)?;
        }
        self.line("for this request", entry.state)?;
        self.line("age and ttl", format_args!("{} s, {} s", entry.age_s, entry.ttl_s))?;
        self.line("validators", listed(&entry.validators))?;
        self.lines("tags", entry.tags.iter().cloned())?;
        self.mark(&entry.mark)?;
        self.freshness(&entry.freshness)
    }

    fn mark(&mut self, mark: &Mark) -> fmt::Result {
        self.line("position", format_args!("{}/{}, fence {}", mark.incarnation, mark.seq, mark.fence))?;
        self.noted("invalidations say", mark.verdict, Some(if mark.trusted { "trusted" } else { "not trusted" }))?;
        let epochs = mark.epochs.iter();
        self.lines(
            "epochs",
            epochs.map(|epoch| format!("{}: hard {}, soft {}", epoch.selector, epoch.hard, epoch.soft)),
        )
    }
}
