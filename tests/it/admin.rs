//! The operator's port: probes, metrics, who may change what, and what the log says.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{
    Answer, Connection, Scratch, Weir, eventually, get, join_all, optimised, raw, redis, redis_not_started, reply,
    request, scale, upstream, weir,
};

const ROUTES: &str = r#"
[[route]]
name = "cached"
path = "/cached/{id}"
cache.ttl = "60s"
purge = true

[[route]]
name = "limited"
path = "/limited"
limits = [{ name = "l", key = ["ip"], rate = "1/m", burst = 1 }]

[[route]]
name = "rest"
path = "/{*path}"
"#;

async fn ask(weir: &Weir, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut asked = request(method, path);
    if !fields.iter().any(|(name, _)| *name == "host") {
        asked = asked.header("host", &weir.admin.to_string());
    }
    for (name, value) in fields {
        asked = asked.header(name, value);
    }
    let asked = if method == "POST" { asked.body(r#"{"tags":["a"]}"#) } else { asked };
    asked.send(weir.admin).await
}

#[tokio::test]
async fn probes_metrics_and_version_are_open() {
    let up = upstream();
    let scratch = Scratch::new();
    let token = scratch.write("token", "s3cret-token\n");
    let weir = weir(ROUTES).to(up.url()).set("admin.token_file", token.display().to_string()).start().await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(weir.admin(path).await.status, 200, "{path}");
        assert_eq!(
            ask(&weir, "GET", path, &[("host", "10.1.2.3:9901")]).await.status,
            200,
            "{path}, by the pod's address"
        );
    }
    let version = ask(&weir, "GET", "/version", &[("authorization", "Bearer s3cret-token")]).await;
    assert!(version.status == 200 && version.text().contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    assert_eq!(weir.admin("/nothing-here").await.status, 404);
    assert_eq!(up.total(), 0, "probes never ask the upstream");
}

#[tokio::test]
async fn only_the_token_changes_anything() {
    let scratch = Scratch::new();
    let token = scratch.write("token", "s3cret-token\n");
    let weir = weir(ROUTES).to("http://127.0.0.1:1").set("admin.token_file", token.display().to_string()).start().await;
    let table: [(&[(&str, &str)], bool); 6] = [
        (&[], false),
        (&[("authorization", "Bearer wrong")], false),
        (&[("authorization", "Bearer s3cret-token-and-more")], false),
        (&[("authorization", "Bearer ")], false),
        (&[("authorization", "Basic s3cret-token")], false),
        (&[("authorization", "Bearer s3cret-token")], true),
    ];
    for (fields, allowed) in table {
        let answer = ask(&weir, "POST", "/invalidate", fields).await;
        let fine = (200..300).contains(&answer.status);
        assert_eq!(fine, allowed, "{fields:?}: {answer:?}");
        assert!(allowed || [401, 403].contains(&answer.status), "{fields:?}: {answer:?}");
    }
    assert!(weir.output().iter().all(|line| !line.contains("s3cret")), "the token is in the log");
}

#[tokio::test]
async fn a_browser_cannot_be_made_to_do_it() {
    let weir = weir(ROUTES).to("http://127.0.0.1:1").start().await;
    let own = weir.admin.to_string();
    let table: [(&[(&str, &str)], bool); 5] = [
        (&[], true),
        (&[("host", "evil.example")], false),
        (&[("host", "evil.example:9901")], false),
        (&[("host", &own), ("origin", "http://evil.example")], false),
        (&[("host", &own), ("origin", "null")], false),
    ];
    for (fields, allowed) in table {
        let answer = ask(&weir, "POST", "/invalidate", fields).await;
        assert_eq!((200..300).contains(&answer.status), allowed, "{fields:?}: {answer:?}");
    }
    assert_eq!(ask(&weir, "GET", "/invalidate", &[]).await.status, 405);
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let (up, redis) = (upstream(), redis());
    up.route("*", reply("ok"));
    let weir = weir(ROUTES).to(up.url()).redis(&redis).start().await;
    for path in ["/cached/1", "/cached/1", "/limited", "/limited", "/other"] {
        weir.get(path).await;
    }
    weir.invalidate(r#"{"all":true}"#).await;
    let metrics = weir.metrics().await;
    for family in [
        "weir_requests_total",
        "weir_requests_in_flight",
        "weir_request_seconds_bucket",
        "weir_cache_hit_ratio",
        "weir_cache_lookups_total",
        "weir_cache_fills_total",
        "weir_cache_memory_bytes",
        "weir_cache_entries",
        "weir_upstream_requests_total",
        "weir_upstream_seconds_count",
        "weir_limit_decisions_total",
        "weir_invalidations_total",
        "weir_redis_commands_total",
        "weir_redis_breaker_open",
        "weir_connections",
        "weir_config_reloads_total",
        "weir_build_info",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(family), "{family} is missing");
    }
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("promtool is not installed: its opinion is not asked");
        return;
    };
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
}

#[tokio::test]
async fn outcomes_add_up_to_the_number_of_requests() {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    up.route("/bad", reply("").status(500));
    up.route("/cut", reply("half").cut(100));
    let weir = weir(ROUTES).to(up.url()).set("upstream.retries", 0).start().await;
    let mut sent = 0;
    for path in ["/cached/1", "/cached/1", "/cached/2", "/limited", "/limited", "/limited", "/a", "/bad", "/a//b"] {
        weir.get(path).await;
        sent += 1;
    }
    for method in ["POST", "HEAD", "PURGE", "DELETE"] {
        weir.send(request(method, "/cached/1")).await;
        sent += 1;
    }
    let _ = get("/cut").try_send(weir.proxy).await;
    raw(weir.proxy, b"GET /x HTTP/1.1\r\n\r\n", Duration::from_secs(2)).await;
    sent += 2;
    let mut kept = Connection::open(weir.proxy).await;
    for _ in 0..20 {
        kept.send(&get("/cached/3")).await;
        sent += 1;
    }
    weir.metric_reaches("weir_requests_total", f64::from(sent)).await;
    let metrics = weir.metrics().await;
    let total = crate::harness::sum(&metrics, "weir_requests_total");
    assert_eq!(total, f64::from(sent), "{}", lines(&metrics, "weir_requests_total"));
    assert_eq!(crate::harness::sum(&metrics, "weir_request_seconds_count"), total);
    assert_eq!(weir.metric("weir_requests_in_flight").await, 0.0);
}

fn lines(metrics: &str, name: &str) -> String {
    metrics.lines().filter(|line| line.starts_with(name) && !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_clients_send_makes_no_new_series() {
    const CLIENTS: usize = 8;
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = &weir(ROUTES).to(up.url()).start().await;
    let series = async || weir.metrics().await.lines().filter(|line| !line.starts_with('#')).count();
    weir.get("/first").await;
    let before = series().await;
    let each = scale("WEIR_PATHS", 400) / CLIENTS;
    let clients = (0..CLIENTS).map(|client| async move {
        let mut connection = Connection::open(weir.proxy).await;
        for i in client * each..(client + 1) * each {
            let sent =
                request(["GET", "POST", "BREW"][i % 3], &format!("/x{i}/{i}")).header("host", &format!("h{i}.test"));
            assert_eq!(connection.send(&sent.header("x-api-key", &i.to_string())).await.status, 200);
        }
    });
    join_all(clients).await;
    assert_eq!(series().await, before);
    assert_eq!(weir.metric("weir_requests_total").await, (CLIENTS * each + 1) as f64);
}

#[tokio::test]
async fn each_request_is_one_line_that_hides_secrets() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    let asked = get("/cached/%0d%0aforged%1b[31m?token=q5ecret")
        .header("authorization", "Bearer h5ecret")
        .header("cookie", "session=c5ecret");
    let refused = weir.send(asked).await;
    let fine = get("/cached/7").header("authorization", "Bearer h5ecret").header("cookie", "session=c5ecret");
    weir.send(fine).await;
    let access = || -> Vec<serde_json::Value> {
        let lines = weir.output();
        let parsed = lines.iter().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: no JSON: {line}"))
        });
        parsed.filter(|line| line.to_string().contains("\"outcome\"")).collect()
    };
    eventually("two access lines", || access().len() == 2).await;
    let text = weir.output().join("\n");
    for secret in ["h5ecret", "c5ecret", "\u{1b}"] {
        assert!(!text.contains(secret), "{secret:?} is in the log: {text}");
    }
    assert_eq!(refused.status, 400);
    // Two connections are two workers, whose lines come in any order.
    for (status, outcome) in [(400, "refused"), (200, "miss")] {
        let lines = access();
        let line = lines.iter().find(|line| line["status"] == status).unwrap_or_else(|| panic!("no {status}: {text}"));
        for (field, value) in [("route", "cached"), ("method", "GET"), ("outcome", outcome)] {
            assert_eq!(line[field], value, "{field} of {line}");
        }
    }
}

#[tokio::test]
async fn the_access_log_names_the_limit_that_denied_or_would_have() {
    let up = upstream();
    up.route("*", reply("ok"));
    let routes = r#"
        [[limit]]
        name = "tried"
        key = ["header:x-api-key"]
        rate = "1/d"
        burst = 1
        dry_run = true
        [[limit]]
        name = "meant"
        key = ["header:x-api-key"]
        rate = "1/d"
        burst = 2
        on = "miss"
        [[route]]
        name = "all"
        path = "/{*path}"
        limits = ["tried", { name = "listed", key = ["ip"], rate = "9/s", deny = ["127.0.0.1"], dry_run = true }, "meant"]
    "#;
    let weir = weir(routes).to(up.url()).start().await;
    for path in ["/1", "/2", "/3"] {
        weir.send(get(path).header("x-api-key", "s3cret")).await;
    }
    let line = |path: &str| -> Option<serde_json::Value> {
        let lines = weir.output();
        let line = lines.iter().find(|line| line.contains(&format!("\"path\":\"{path}\"")))?;
        Some(serde_json::from_str(line).expect("JSON"))
    };
    eventually("the lines", || ["/1", "/2", "/3"].iter().all(|path| line(path).is_some())).await;
    for (path, status, limit, dry_run) in [
        ("/1", 200, serde_json::Value::Null, serde_json::json!(["listed"])),
        ("/2", 200, serde_json::Value::Null, serde_json::json!(["listed", "tried"])),
        ("/3", 429, "meant".into(), serde_json::json!(["listed", "tried"])),
    ] {
        let line = line(path).expect("it is there");
        assert_eq!((&line["status"], &line["limit"], &line["dry_run"]), (&status.into(), &limit, &dry_run), "{line}");
    }
    assert!(!weir.output().join("\n").contains("s3cret"), "who it was is nobody's business there");
}

#[tokio::test]
async fn the_access_log_can_be_off() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(ROUTES).to(up.url()).set("log.access", false).start().await;
    let before = weir.output().len();
    for _ in 0..20 {
        weir.get("/a").await;
    }
    weir.metric_reaches("weir_requests_total", 20.0).await;
    assert_eq!(weir.output().len(), before, "{:?}", weir.output().last());
}

#[tokio::test]
async fn drain_makes_it_unready_while_it_serves() {
    let up = upstream();
    up.route("*", reply("ok"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    let drained = ask(&weir, "POST", "/drain", &[]).await;
    assert!((200..300).contains(&drained.status), "{drained:?}");
    assert_eq!(weir.admin("/readyz").await.status, 503);
    assert_eq!(weir.admin("/livez").await.status, 200);
    assert_eq!(weir.get("/still").await.status, 200);
}

#[tokio::test]
async fn readiness_never_hangs_on_redis() {
    let up = upstream();
    let (away, frozen) = (redis_not_started(), redis());
    frozen.freeze();
    for redis in [&away, &frozen] {
        let weir = weir(ROUTES).to(up.url()).redis(redis).set("redis.startup_wait", "400ms").launch().await;
        let probe = weir.admin("/readyz").await;
        assert!(probe.took < Duration::from_millis(if optimised() { 200 } else { 1000 }), "{probe:?}");
        let took = weir.ready().await;
        assert!(took < Duration::from_secs(3), "ready after {took:?}");
    }
}
