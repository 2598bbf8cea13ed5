//! `/limits` for people: what the port answers in JSON, as tables and lines.
//!
//! Names and identities are what others have chosen: nothing in them steers a terminal.

use serde_json::Value;

/// Every limit in a line, and who is denied most.
pub(super) fn list(answer: &Value) -> String {
    let mut limits = vec![["limit", "routes", "rate", "allowed", "denied", "dry run", "states"].map(str::to_owned)];
    limits.extend(each(&answer["limits"]).map(|limit| {
        let decided = |decision: &str| word(&limit["decisions"][decision]);
        let routes: Vec<_> = each(&limit["routes"]).map(word).collect();
        let (name, states) = (word(&limit["limit"]), word(&limit["states"]));
        let [allowed, denied, dry_run] = ["allowed", "denied", "dry_run"].map(decided);
        [name, routes.join(", "), rates(limit), allowed, denied, dry_run, states]
    }));
    let mut denied = vec![["limit", "id", "denied", "last"].map(str::to_owned)];
    denied.extend(each(&answer["denied"]).map(|one| {
        let (least, most) = (word(&one["at_least"]), word(&one["at_most"]));
        let times = if least == most { least } else { format!("{least} to {most}") };
        let times = if one["dry_run"] == true { format!("{times} (dry run)") } else { times };
        let who = one.get("identity").map(|identity| format!(" ({})", parts(identity))).unwrap_or_default();
        [word(&one["limit"]), word(&one["id"]) + &who, times, format!("{} s ago", word(&one["last_ago_s"]))]
    }));
    let none = if denied.len() == 1 { "nobody so far\n" } else { "" };
    let denied = if none.is_empty() { table(&denied, 4) } else { String::new() };
    format!("{}\ndenied most, by this pod\n{denied}{none}", table(&limits, 3))
}

/// The state of one identity: the fleet's first, then this pod's own.
pub(super) fn state(answer: &Value) -> String {
    let mut lines = vec![format!("limit     {}", word(&answer["limit"])), format!("id        {}", word(&answer["id"]))];
    if let Some(identity) = answer.get("identity") {
        lines.push(format!("identity  {}", parts(identity)));
    }
    if let Some(tier) = answer.get("tier") {
        lines.push(format!("tier      {}", if tier.is_null() { "none".to_owned() } else { word(tier) }));
    }
    let decides = match (answer["decides"].as_str(), answer["redis_down"].as_str()) {
        (Some("redis"), _) => {
            "Redis, for the whole fleet; here, what this pod was lent of it and which denials it remembers"
        }
        (_, None) => "this pod, by its memory: there is no Redis",
        (_, Some("allow")) => "nobody: Redis is not asked, and redis_down = \"allow\" lets everything through",
        (_, Some("deny")) => "nobody: Redis is not asked, and redis_down = \"deny\" lets nothing through",
        (_, Some(_)) => "this pod, by its part of the limit: Redis is not asked",
    };
    lines.push(format!("decides   {decides}"));
    for rate in each(&answer["rates"]) {
        lines.extend([String::new(), quota(rate)]);
        if !rate["redis"].is_null() {
            lines.push(format!("  Redis   {}", level(&rate["redis"])));
            lines.extend(each(&rate["redis"]["lent"]).map(|loan| {
                let whom =
                    if loan["this"] == true { "this pod".to_owned() } else { format!("pod {}", word(&loan["pod"])) };
                format!("          lent {} to {whom}, for {}", word(&loan["requests"]), time(&loan["for_ms"]))
            }));
        }
        let here = &rate["here"];
        lines
            .push(format!("  here    {}", if here.is_null() { "not known by its id".to_owned() } else { level(here) }));
        if let Some(lent) = here.get("lent").filter(|lent| !lent.is_null()) {
            lines.push(format!("          was lent {}, for {}", word(&lent["requests"]), time(&lent["for_ms"])));
        }
        if let Some(left) = here.get("denied_for_ms").filter(|left| !left.is_null()) {
            lines.push(format!("          remembers a denial for {}", time(left)));
        }
    }
    lines.join("\n") + "\n"
}

/// What a reset did.
pub(super) fn reset(answer: &Value) -> String {
    let places = [("redis", "in Redis"), ("here", "in this pod")];
    let places: Vec<_> = places.iter().filter(|(place, _)| answer[place] == true).map(|(_, text)| *text).collect();
    let elsewhere = match answer["elsewhere_within_s"].as_u64() {
        Some(within_s) => format!("; other pods forget their denials within {within_s} s"),
        None => String::new(),
    };
    format!(
        "{} {} is as good as new {}{elsewhere}\n",
        word(&answer["limit"]),
        word(&answer["id"]),
        places.join(" and ")
    )
}

/// Its rates, and what else a request may meet.
fn rates(limit: &Value) -> String {
    let mut text = each(&limit["rates"]).map(quota).collect::<Vec<_>>().join(" and ");
    if let Some(tiers) = limit["tiers"]["rates"].as_object() {
        let tiers = tiers.iter().map(|(name, own)| format!("{} {}", plain(name), quota(own)));
        text += &format!("; {}", tiers.collect::<Vec<_>>().join("; "));
    }
    if !limit["max_delay_ms"].is_null() {
        text += &format!("; waits up to {}", time(&limit["max_delay_ms"]));
    }
    if limit["dry_run"] == true { text + "; counts only" } else { text }
}

fn quota(quota: &Value) -> String {
    let (rate, burst) = (word(&quota["rate"]), word(&quota["burst"]));
    match quota["algorithm"].as_str() {
        Some("token_bucket") => format!("{rate}, bursts of {burst}"),
        Some("concurrency") => format!("{} in flight", word(&quota["max"])),
        _ => format!("{rate} by {}", word(&quota["algorithm"])),
    }
}

fn level(state: &Value) -> String {
    if let Some(problem) = state.get("error") {
        return format!("no answer: {}", word(problem));
    }
    // Of a limit that another place decides, this pod keeps nothing of its own.
    let Some(remaining) = state.get("remaining") else { return "nothing of its own".to_owned() };
    let left = match state["owed"].as_u64() {
        Some(owed) if owed > 0 => format!("{owed} owed"),
        _ => format!("{} left", word(remaining)),
    };
    let next = match state["wait_ms"].as_u64() {
        Some(0) => "the next is admitted".to_owned(),
        Some(_) => format!("the next is admitted in {}", time(&state["wait_ms"])),
        None => "none is ever admitted".to_owned(),
    };
    let full = match state["full_in_ms"].as_u64() {
        Some(0) => String::new(),
        _ => format!(", all of it is there in {}", time(&state["full_in_ms"])),
    };
    let known = if state["known"] == true { "" } else { " (nothing is kept of it)" };
    format!("{left}; {next}{full}{known}")
}

/// An identity's parts, as they are asked for.
fn parts(identity: &Value) -> String {
    let parts = identity.as_object().into_iter().flatten();
    parts.map(|(name, value)| format!("{}={}", plain(name), word(value))).collect::<Vec<_>>().join(" ")
}

/// Milliseconds, from a second on as seconds to the tenth.
fn time(ms: &Value) -> String {
    match ms.as_f64().unwrap_or_default() {
        ms if ms < 1000.0 => format!("{ms} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

fn each(values: &Value) -> impl Iterator<Item = &Value> {
    values.as_array().into_iter().flatten()
}

/// A text or a number.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), plain)
}

/// Text of others: what is neither visible ASCII nor a letter of some script is escaped.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            c => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// Rows with their columns below each other, numbers from column `right` on to the right.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]], right: usize) -> String {
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default());
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(at, (cell, width))| match at < right {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_a_table_and_then_come_those_denied_most() {
        let bucket = |rate: &str, burst: u32| json!({ "algorithm": "token_bucket", "rate": rate, "burst": burst });
        let decided = |allowed: u64, denied: u64, dry_run: u64| json!({ "allowed": allowed, "denied": denied, "dry_run": dry_run });
        let answer = json!({
            "limits": [
                { "limit": "shared", "routes": ["one", "two"], "rates": [bucket("50/s", 100)], "decisions": decided(12345, 67, 0),
                  "states": 9, "tiers": { "hash": "h", "rates": { "gold": bucket("500/s", 1000) } }, "max_delay_ms": null, "dry_run": false },
                { "limit": "two/log", "routes": ["two"], "rates": [{ "algorithm": "sliding_log", "rate": "5/m" }],
                  "decisions": decided(1, 0, 2), "states": 10, "tiers": null, "max_delay_ms": 500, "dry_run": true },
                { "limit": "busy", "routes": ["two"], "rates": [{ "algorithm": "concurrency", "max": 3 }],
                  "decisions": decided(0, 0, 0), "states": 0, "tiers": null, "max_delay_ms": null, "dry_run": false },
            ],
            "denied": [
                { "limit": "shared", "id": "5f0c", "at_least": 66, "at_most": 67, "last_ago_s": 3 },
                { "limit": "two/log", "id": "00", "at_least": 2, "at_most": 2, "last_ago_s": 0, "dry_run": true,
                  "identity": { "header:x": "a\u{1b}[31m\u{202e}é" } },
            ],
        });
        let expected = "\
limit    routes    rate                                             allowed  denied  dry run  states
shared   one, two  50/s, bursts of 100; gold 500/s, bursts of 1000    12345      67        0       9
two/log  two       5/m by sliding_log; waits up to 500 ms; counts only       1       0        2      10
";
        let shown = list(&answer);
        let mut lines = shown.lines();
        let columns = |line: &str| {
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        for line in expected.lines() {
            assert_eq!(columns(lines.next().unwrap()), columns(line), "{shown}");
        }
        assert!(lines.next().unwrap().contains("3 in flight"), "{shown}");
        assert_eq!((lines.next(), lines.next()), (Some(""), Some("denied most, by this pod")));
        assert_eq!(columns(lines.nth(1).unwrap()), ["shared", "5f0c", "66 to 67", "3 s ago"]);
        let last = lines.next().unwrap();
        assert!(last.contains(r"00 (header:x=a\u{1b}[31m\u{202e}é)  2 (dry run)"), "{shown}");
        assert!(list(&json!({ "limits": [], "denied": [] })).ends_with("nobody so far\n"));
    }

    #[test]
    fn the_fleets_state_comes_first_and_who_decides_is_said() {
        let here = json!({ "remaining": 2, "owed": 0, "wait_ms": 0, "full_in_ms": 0, "known": true, "lent": { "requests": 4.0, "for_ms": 1500 }, "denied_for_ms": 9900 });
        let redis = json!({ "remaining": 0, "owed": 8, "wait_ms": 32_400_000, "full_in_ms": 46_800_000, "known": true,
                            "lent": [{ "pod": "0b", "this": false, "requests": 1.0, "for_ms": 30 }] });
        let mut answer = json!({
            "limit": "tokens", "id": "5f0c", "tier": "gold", "identity": { "ip": "192.0.2.7" }, "decides": "redis", "redis_down": "local",
            "rates": [{ "algorithm": "token_bucket", "rate": "1/h", "burst": 5, "redis": redis, "here": here }],
        });
        let shown = state(&answer);
        for said in [
            "limit     tokens\nid        5f0c\nidentity  ip=192.0.2.7\ntier      gold\ndecides   Redis, for the whole fleet",
            "\n1/h, bursts of 5\n  Redis   8 owed; the next is admitted in 32400.0 s, all of it is there in 46800.0 s\n",
            "          lent 1.0 to pod 0b, for 30 ms\n  here    2 left; the next is admitted\n",
            "          was lent 4.0, for 1.5 s\n          remembers a denial for 9.9 s\n",
        ] {
            assert!(shown.contains(said), "{said}: {shown}");
        }
        answer["decides"] = "here".into();
        answer["rates"][0]["redis"] = json!({ "error": "timed out" });
        let shown = state(&answer);
        assert!(
            shown.contains("decides   this pod, by its part of the limit")
                && shown.contains("Redis   no answer: timed out"),
            "{shown}"
        );
    }
}
