use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

/// Moves one series of every family.
fn touch_everything(metrics: &Metrics) {
    let took = Duration::from_millis(3);
    let route = metrics.route("catalog");
    route.finish(Outcome::Hit, StatusCode::OK, took, 10_000);
    route.finish(Outcome::Miss, StatusCode::NOT_FOUND, took, 10_000);
    route.lookup(Tier::Memory, Lookup::Hit);
    route.fill(Fill::Stored);
    route.upstream(Some(StatusCode::OK), took);
    route.upstream(None, took);
    let limit = metrics.limit("catalog", "per-client");
    limit.decided(Decision::Denied, Source::Redis);
    limit.settled(Settled::Missing);
    limit.waits();
    limit.waited(took);
    metrics.tiers.read("api", TiersRead::Ok);
    metrics.tiers.hold("api", 2, 1);
    metrics.command("get").ended(RedisResult::Ok, took);
    metrics.invalidated("tag", Door::Admin);
    metrics.reloaded(Reload::Applied);
    metrics.connection_failed(Layer::Tls, Fault::Malformed);
    metrics.adopt(IntCounter::new("weir_log_dropped_total", "Log lines lost").expect("valid"));
}

fn families(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_ratio_covers_the_last_minute_only() {
    let window = RatioWindow::default();
    assert_eq!(window.share(10_000), None);
    for _ in 0..3 {
        window.count(true, 10_000);
    }
    window.count(false, 20_000);
    assert_eq!(window.share(20_000), Some(0.75));
    assert_eq!(window.share(72_000), Some(0.0), "only the miss is left");
    assert!(window.share(200_000).is_some_and(f64::is_nan));
}

#[test]
fn every_status_has_a_class() {
    assert_eq!(CLASSES[class(StatusCode::OK)], "2xx");
    assert_eq!(CLASSES[class(StatusCode::from_u16(999).expect("valid"))], "9xx");
}

#[test]
fn a_series_exists_from_its_first_event_on() {
    let metrics = Metrics::new(Registry::new());
    let series = |metrics: &Metrics| metrics.render(10_000).lines().filter(|l| !l.starts_with('#')).count();
    let before = series(&metrics);
    for number in 0..100 {
        metrics.route(&format!("route-{number}"));
        metrics.limit("route-0", &format!("limit-{number}"));
    }
    assert_eq!(series(&metrics), before + 100, "one collapsed counter a route");
    let route = metrics.route("route-0");
    route.lookup(Tier::Redis, Lookup::Corrupt);
    route.lookup(Tier::Redis, Lookup::Corrupt);
    let page = metrics.render(10_000);
    assert!(
        page.contains("weir_cache_lookups_total{result=\"corrupt\",route=\"route-0\",tier=\"redis\"} 2\n"),
        "{page}"
    );
}

#[test]
fn cells_of_one_handle_do_not_overlap() {
    let metrics = Metrics::new(Registry::new());
    let route = metrics.route("r");
    for outcome in Outcome::ALL {
        for status in [100, 200, 301, 404, 503, 999] {
            route.finish(*outcome, StatusCode::from_u16(status).expect("valid"), Duration::ZERO, 10_000);
        }
    }
    for tier in Tier::ALL {
        for result in Lookup::ALL {
            route.lookup(*tier, *result);
        }
    }
    let limit = metrics.limit("r", "l");
    for decision in Decision::ALL {
        for source in Source::ALL {
            limit.decided(*decision, *source);
        }
    }
    for how in Settled::ALL {
        limit.settled(*how);
    }
    let page = metrics.render(10_000);
    let ones =
        |family: &str| page.lines().filter(|l| l.starts_with(&format!("{family}{{")) && l.ends_with(" 1")).count();
    assert_eq!(ones("weir_requests_total"), Outcome::ALL.len() * 6);
    assert_eq!(ones("weir_cache_lookups_total"), Tier::ALL.len() * Lookup::ALL.len());
    assert_eq!(ones("weir_limit_decisions_total"), Decision::ALL.len() * Source::ALL.len());
    assert_eq!(ones("weir_limit_settled_total"), Settled::ALL.len());
}

/// `promtool check metrics` must find nothing; without the tool there is nothing to ask.
#[test]
fn promtool_accepts_the_page() {
    let metrics = Metrics::new(Registry::new());
    touch_everything(&metrics);
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return };
    let page = metrics.render(10_000);
    child.stdin.take().expect("piped").write_all(page.as_bytes()).expect("promtool reads all of it");
    let output = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn every_family_is_documented_and_nothing_else_is() {
    let metrics = Metrics::new(Registry::new());
    touch_everything(&metrics);
    let families: BTreeSet<_> =
        families(&metrics.render(10_000)).into_iter().filter(|name| name.starts_with("weir_")).collect();
    let page = include_str!("../../docs/metrics.md");
    let documented: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `weir_"))
        .map(|rest| format!("weir_{}", rest.split(['`', '{']).next().unwrap_or_default()))
        .collect();
    assert_eq!(families, documented);
}

#[test]
fn every_label_value_is_documented() {
    let page = include_str!("../../docs/metrics.md");
    let mut values: Vec<&str> = Vec::new();
    values.extend(Outcome::ALL.iter().map(|v| v.as_str()));
    values.extend(Tier::ALL.iter().map(|v| v.as_str()));
    values.extend(Lookup::ALL.iter().map(|v| v.as_str()));
    values.extend(Fill::ALL.iter().map(|v| v.as_str()));
    values.extend(Decision::ALL.iter().map(|v| v.as_str()));
    values.extend(Source::ALL.iter().map(|v| v.as_str()));
    values.extend(Door::ALL.iter().map(|v| v.as_str()));
    values.extend(RedisResult::ALL.iter().map(|v| v.as_str()));
    values.extend(RedisFault::ALL.iter().map(|v| v.as_str()));
    values.extend(RedisPart::ALL.iter().map(|v| v.as_str()));
    values.extend(Shed::ALL.iter().map(|v| v.as_str()));
    values.extend(Retry::ALL.iter().map(|v| v.as_str()));
    values.extend(TiersRead::ALL.iter().map(|v| v.as_str()));
    values.extend(Reload::ALL.iter().map(|v| v.as_str()));
    for value in values {
        assert!(page.contains(&format!("`{value}`")), "{value}");
    }
}
