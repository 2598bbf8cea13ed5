//! `/limits`: what operators see of limits, and the reset of one identity on every pod.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Ended, Weir, get, redis, reply, request, upstream, weir, within_async};

const ROUTES: &str = r#"
[[limit]]
name = "shared"
key = ["ip"]
rate = "3/d"
burst = 3

[[route]]
name = "one"
path = "/one"
limits = ["shared"]

[[route]]
name = "two"
path = "/{*path}"
limits = ["shared", { name = "token", key = ["header:x-api-key"], rate = "5/d", burst = 5, missing = "skip" }]
"#;

/// The client, behind a proxy that is trusted; IPv6 addresses of one /64 are one.
async fn status(weir: &Weir, client: &str) -> u16 {
    weir.send(get("/one").header("x-forwarded-for", client)).await.status
}

async fn json(weir: &Weir, method: &str, path: &str) -> Value {
    let answer = request(method, path).header("host", &weir.admin.to_string()).send(weir.admin).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    serde_json::from_str(answer.text()).expect("JSON")
}

/// What `weir limits` prints for the pod.
fn printed(weir: &Weir, words: &[&str]) -> Value {
    serde_json::from_str(&text(weir, &[words, &["--json"]].concat())).expect("JSON")
}

fn text(weir: &Weir, words: &[&str]) -> String {
    let admin = format!("http://{}", weir.admin);
    let ended = Ended::of(&[&["limits", "--admin", &*admin], words].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    ended.out
}

#[tokio::test]
async fn an_identity_is_seen_and_reset_from_any_pod() {
    let (up, redis) = (upstream(), redis());
    up.on("*", |_| reply("fine"));
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("server.trusted_proxies", vec!["127.0.0.0/8"]);
    let weirs = setup.fleet(2).await;
    let (one, other) = (&weirs[0], &weirs[1]);
    let denied_at = async |weir: &Weir, client: &str| status(weir, client).await == 429;
    for _ in 0..3 {
        assert_eq!(status(one, "2001:db8::1").await, 200);
    }
    assert!(denied_at(one, "2001:db8::2").await && denied_at(other, "2001:db8::3").await);
    // Any pod says so, and asking charges nothing.
    let state = json(other, "GET", "/limits/shared?ip=2001:db8::77").await;
    let rate = &state["rates"][0];
    assert_eq!(
        (&rate["redis"]["remaining"], &state["identity"]["ip"]),
        (&0.into(), &"2001:db8::/64".into()),
        "{state}"
    );
    assert!(rate["redis"]["wait_ms"].as_u64().is_some_and(|ms| ms > 28_000_000), "{state}");
    assert!(rate["here"]["denied_for_ms"].as_u64().is_some_and(|ms| ms <= 10_000), "{state}");
    let list = printed(other, &[]);
    assert_eq!((&list["limits"][0]["limit"], &list["limits"][1]["limit"]), (&"shared".into(), &"two/token".into()));
    assert_eq!(list["limits"][0]["decisions"]["denied"], 1, "{list}");
    let shown = &list["denied"][0];
    assert_eq!((&shown["id"], &shown["at_least"]), (&state["id"], &1.into()), "{list}");
    assert!(shown.get("identity").is_none() && !list.to_string().contains("2001:db8"), "{list}");
    let table = text(other, &[]);
    assert!(table.contains("\nshared     one, two  3/d, bursts of 3 ") && table.contains("denied most"), "{table}");
    assert!(table.contains(shown["id"].as_str().expect("text")) && !table.contains("2001:db8"), "{table}");
    let lines = text(other, &["shared", "ip=2001:db8::77"]);
    assert!(
        lines.contains("\ndecides   Redis, for the whole fleet") && lines.contains("  Redis   0 left; "),
        "{lines}"
    );
    // By the id that the second shows, told to the first.
    let id = shown["id"].as_str().expect("text");
    let done = printed(one, &["shared", "--id", id, "--reset"]);
    assert_eq!((&done["redis"], &done["here"], &done["elsewhere_within_s"]), (&true.into(), &true.into(), &10.into()));
    assert_eq!(status(one, "2001:db8::4").await, 200, "at once");
    within_async(Duration::from_secs(12), "the other pod forgets its denial", async || {
        status(other, "2001:db8::5").await == 200
    })
    .await;
    assert_eq!(status(other, "2001:db8::6").await, 200);
    assert!(denied_at(one, "2001:db8::7").await && denied_at(other, "2001:db8::8").await, "one burst more for all");
    // And with its parts.
    let done = json(other, "DELETE", "/limits/shared?ip=2001:db8::").await;
    assert_eq!(done["id"], state["id"], "{done}");
    assert_eq!(status(other, "2001:db8::9").await, 200);
    assert_eq!(up.total(), 7);
}

#[tokio::test]
async fn identities_are_shown_to_operators_who_ask_for_it() {
    let up = upstream();
    up.on("*", |_| reply("fine"));
    let weir = weir(ROUTES).to(up.url()).set("admin.show_identities", true).start().await;
    for _ in 0..6 {
        weir.send(get("/x").header("x-api-key", "a secret").header("x-forwarded-for", "192.0.2.1")).await;
    }
    let list = json(&weir, "GET", "/limits").await;
    assert_eq!(list["denied"][0]["identity"]["ip"], "127.0.0.1", "{list}");
    let state = printed(&weir, &["token", "header:x-api-key=a secret"]);
    assert_eq!(state["rates"][0]["here"]["remaining"], 2, "what another limit denied was not charged: {state}");
    let ended = Ended::of(&["limits", "--admin", &format!("http://{}", weir.admin), "token", "ip=::1"]);
    assert!(ended.code == Some(1) && ended.said().contains("`header:x-api-key` is missing"), "{}", ended.said());
}
