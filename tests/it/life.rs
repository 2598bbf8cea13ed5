//! G8 and G11: ends, reloads and bad files fail no request; the process says how it fared by its exit code.

use std::time::Duration;

use crate::harness::{
    Connection, Ended, Gate, PATIENCE, Scratch, Setup, Upstream, get, join_all, optimised, reply, request, upstream,
    weir, within_async,
};

const ROUTES: &str = r#"
[[route]]
name = "cached"
path = "/cached/{id}"
cache.ttl = "10m"

[[route]]
name = "limited"
path = "/limited"
limits = [{ name = "l", key = ["ip"], rate = "1/m", burst = 3 }]

[[route]]
name = "rest"
path = "/{*path}"
"#;

/// Answers every request with its target.
pub fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    up
}

/// A Weir before it that caches, limits and forwards.
pub fn setup(up: &Upstream) -> Setup {
    weir(ROUTES).to(up.url())
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let (up, gate) = (service(), Gate::new());
    up.route("/slow", reply("late").gate(&gate));
    let mut weir = setup(&up).set("server.lame_duck", "0s").start().await;
    let proxy = weir.proxy;
    let inflight =
        tokio::spawn(async move { join_all((0..20).map(|_| async move { get("/slow").send(proxy).await })).await });
    gate.reached(20).await;
    weir.sigterm();
    within_async(PATIENCE, "no new connections", async || get("/new").try_send(proxy).await.is_err()).await;
    assert!(weir.status().is_none(), "it waits for what is in flight");
    gate.open();
    for answer in inflight.await.unwrap() {
        assert_eq!((answer.status, answer.text()), (200, "late"), "{answer:?}");
    }
    assert_eq!(weir.ended(PATIENCE).await, Some(0));
}

#[tokio::test]
async fn a_lame_duck_is_unready_and_serves() {
    let up = service();
    let mut weir = setup(&up).set("server.lame_duck", "1500ms").start().await;
    let mut kept = Connection::open(weir.proxy).await;
    assert_eq!(kept.send(&get("/kept")).await.status, 200);
    weir.sigterm();
    within_async(Duration::from_secs(1), "unready", async || weir.admin("/readyz").await.status == 503).await;
    assert_eq!(weir.get("/new").await.status, 200, "still accepting");
    let told = kept.send(&get("/kept")).await;
    assert_eq!(told.status, 200);
    assert_eq!(weir.admin("/livez").await.status, 200, "live to the end");
    assert_eq!(weir.ended(PATIENCE).await, Some(0));
}

#[tokio::test]
async fn the_drain_has_an_end() {
    let (up, gate) = (service(), Gate::new());
    up.route("/stuck", reply("never").gate(&gate));
    let mut weir = setup(&up).set("server.drain", "500ms").start().await;
    let mut stuck = Connection::open(weir.proxy).await;
    stuck.write(b"GET /stuck HTTP/1.1\r\nhost: a\r\n\r\n").await;
    gate.reached(1).await;
    weir.sigterm();
    assert_eq!(weir.ended(Duration::from_secs(5)).await, Some(0));
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_a_signal() {
    let up = service();
    let weir = setup(&up).start().await;
    let good = std::fs::read_to_string(&weir.config).unwrap();
    let with = |mark: &str| {
        format!("{good}\n[[route]]\nname = 'extra'\npath = '/extra'\nresponse.set = {{ x-mark = '{mark}' }}\n")
    };
    std::fs::write(&weir.config, with("written")).unwrap();
    let marked = async |mark: &str| {
        within_async(PATIENCE, mark, async || weir.get("/extra").await.header("x-mark") == Some(mark)).await;
    };
    marked("written").await;
    // As editors do, and then as a mounted ConfigMap does, again and again.
    let directory = weir.config.parent().unwrap().to_owned();
    let beside = directory.join("beside");
    std::fs::write(&beside, with("renamed")).unwrap();
    std::fs::rename(&beside, &weir.config).unwrap();
    marked("renamed").await;
    for mark in ["swapped-1", "swapped-2", "swapped-3"] {
        let version = directory.join(mark);
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("weir.toml"), with(mark)).unwrap();
        let link = directory.join("..tmp");
        std::os::unix::fs::symlink(&version, &link).unwrap();
        std::fs::rename(&link, directory.join("..data")).unwrap();
        if mark == "swapped-1" {
            let link = directory.join("..file");
            std::os::unix::fs::symlink("..data/weir.toml", &link).unwrap();
            std::fs::rename(&link, &weir.config).unwrap();
        }
        marked(mark).await;
    }
}

#[tokio::test]
async fn exit_codes_say_what_was_wrong() {
    let scratch = Scratch::new();
    let broken = scratch.write("broken.toml", "nonsense = 1\n");
    let run = |args: &[&str]| Ended::of(args).code;
    let broken = broken.display().to_string();
    assert_eq!(run(&["run", "--config", &broken]), Some(1));
    assert_eq!(run(&["check", &broken]), Some(1));
    assert_eq!(run(&["run", "--config", &scratch.path().join("absent.toml").display().to_string()]), Some(1));
    let good = weir(ROUTES).to("http://127.0.0.1:1");
    let file = scratch.write("good.toml", &good.toml());
    assert_eq!(run(&["check", &file.display().to_string()]), Some(0));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for port in ["server.listen", "admin.listen"] {
        let ended = good.clone().set(port, taken.as_str()).run_to_end();
        assert_eq!(ended.code, Some(2), "{port}: {ended:?}");
        assert!(ended.said().contains(&taken), "the message names the port: {ended:?}");
    }
    let unreadable = good.set("admin.token_file", scratch.path().join("absent").display().to_string()).run_to_end();
    assert!(matches!(unreadable.code, Some(1 | 2)), "{unreadable:?}");
}

#[tokio::test]
async fn the_environment_and_flags_override_the_file() {
    let (up, other) = (service(), service());
    let weir = setup(&up).env("WEIR__UPSTREAM__URL", &other.url()).env("WEIR__LOG__ACCESS", "false").start().await;
    assert_eq!(weir.get("/a").await.status, 200);
    assert_eq!((up.total(), other.total()), (0, 1));
    let bad = weir_with_flag("server.drain=never");
    assert!(bad.code == Some(1) && bad.said().contains("server.drain"), "{bad:?}");
}

fn weir_with_flag(flag: &str) -> Ended {
    let scratch = Scratch::new();
    let file = scratch.write("weir.toml", &weir(ROUTES).to("http://127.0.0.1:1").toml());
    Ended::of(&["run", "--config", &file.display().to_string(), "--set", flag])
}

#[tokio::test]
async fn it_is_ready_at_once_and_small() {
    let up = service();
    let weir = setup(&up).launch().await;
    let ready = weir.listening_after + weir.ready().await;
    let resident = weir.resident() >> 20;
    eprintln!("listening after {:?}, ready after {ready:?}, {resident} MiB resident", weir.listening_after);
    if optimised() {
        assert!(ready < Duration::from_millis(100), "ready after {ready:?}");
        assert!(resident <= 20, "{resident} MiB");
    }
}

#[tokio::test]
async fn one_bad_exchange_is_only_that_one() {
    let up = service();
    up.on("/strange", |_| {
        reply("x").header("vary", ",,,").header("cache-control", "max-age=,\"=;").header("age", "-1")
    });
    let weir = setup(&up).start().await;
    for _ in 0..3 {
        weir.get("/strange").await;
        weir.send(request("POST", "/strange").header("cookie", ";;;=").header("range", "bytes=-")).await;
    }
    assert_eq!(weir.get("/cached/1").await.status, 200);
    assert_eq!(weir.admin("/livez").await.status, 200);
}

#[test]
fn the_schema_is_json() {
    let ended = Ended::of(&["schema"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let schema: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert!(schema["properties"]["route"].is_object(), "{schema}");
}
