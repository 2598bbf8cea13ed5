//! Who waits for every pod learns when none can serve what was invalidated any more, and which of them are silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Upstream, Weir, redis, reply, scale, upstream, weir, within_async};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]
"#;

/// A service whose answers say which version they are.
fn versioned() -> (Upstream, Arc<AtomicUsize>) {
    let (up, version) = (upstream(), Arc::new(AtomicUsize::new(1)));
    let read = Arc::clone(&version);
    up.on("*", move |_| reply(format!("v{}", read.load(Ordering::SeqCst))));
    (up, version)
}

async fn warm(weirs: &[Weir], path: &str) {
    for weir in weirs {
        within_async(Duration::from_secs(5), "warm everywhere", async || weir.get(path).await.is_hit()).await;
    }
}

/// What `wait = "all"` says.
async fn confirmation(weir: &Weir, order: &str) -> (u16, serde_json::Value, Duration) {
    let began = Instant::now();
    let answer = weir.post("/invalidate", order).await;
    (answer.status, serde_json::from_slice(answer.body.as_ref()).expect("JSON"), began.elapsed())
}

#[tokio::test]
async fn who_waits_for_all_is_answered_when_every_weir_has_applied_it() {
    let ((up, version), redis) = (versioned(), redis());
    let bound = Duration::from_secs(2);
    let weirs = weir(ROUTES).to(up.url()).redis(&redis).set("cache.max_staleness", "2s").fleet(4).await;
    // While the log is younger than the bound, somebody might be following another: that takes until then.
    assert_eq!(confirmation(&weirs[0], r#"{"all":true,"wait":"all"}"#).await.0, 200);
    warm(&weirs, "/items/7").await;
    for round in 0..scale("WEIR_ROUNDS", 20) {
        let caller = &weirs[round % weirs.len()];
        warm(&weirs, "/items/7").await;
        version.fetch_add(1, Ordering::SeqCst);
        let (status, said, took) = confirmation(caller, r#"{"tags":["item:7"],"wait":"all"}"#).await;
        for weir in &weirs {
            assert_eq!(weir.get("/items/7").await.text(), format!("v{}", version.load(Ordering::SeqCst)), "{said}");
        }
        assert_eq!((status, &said["complete"], &said["pods"]), (200, &true.into(), &4.into()), "{said}");
        assert!(said["silent"].as_array().is_some_and(Vec::is_empty) && took < bound / 2, "{said} after {took:?}");
    }
    weirs[3].freeze();
    let order = r#"{"tags":["item:7"],"wait":"all","timeout":"200ms"}"#;
    let (status, said, _) = confirmation(&weirs[0], order).await;
    assert_eq!((status, &said["complete"], &said["logged"]), (202, &false.into(), &true.into()), "{said}");
    assert_eq!(said["silent"].as_array().map(Vec::len), Some(1), "{said}");
    // Without a limit it is waited until the silent one can have nothing that it may use.
    version.fetch_add(1, Ordering::SeqCst);
    let (status, said, took) = confirmation(&weirs[0], r#"{"tags":["item:7"],"wait":"all"}"#).await;
    assert_eq!((status, &said["complete"]), (200, &true.into()), "{said}");
    assert!(took <= bound + Duration::from_millis(500), "{took:?}");
    weirs[3].thaw();
    assert_eq!(weirs[3].get("/items/7").await.text(), format!("v{}", version.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn one_that_has_ended_is_not_waited_for() {
    let ((up, _), redis) = (versioned(), redis());
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("cache.max_staleness", "2s");
    let mut weirs = setup.set("server.lame_duck", "0s").fleet(3).await;
    assert_eq!(confirmation(&weirs[0], r#"{"all":true,"wait":"all"}"#).await.1["pods"], 3);
    weirs[2].sigterm();
    assert_eq!(weirs[2].ended(Duration::from_secs(10)).await, Some(0));
    let (status, said, took) = confirmation(&weirs[0], r#"{"all":true,"wait":"all"}"#).await;
    assert_eq!((status, &said["complete"], &said["pods"]), (200, &true.into(), &2.into()), "{said}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
