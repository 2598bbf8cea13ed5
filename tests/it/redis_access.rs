//! Users and passwords at the servers of a Cluster, at those under Sentinels, and at the Sentinels: what the documentation allows is
//! enough, all of it is needed, and what is wrong is named.

use crate::harness::{
    PATIENCE, Redis, RedisCluster, Scratch, Setup, Upstream, Weir, sentinels, sentinels_with, weir, within_async,
};
use crate::redis_ways::{SECRET, add_user, add_user_of_sentinel, allow, are_one, more_rights, service, two};

const ROUTE: &str = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.ttl = '60s'\n";

/// The password of the Sentinels' users.
const THEIRS: &str = "another-s3cret";

fn file(scratch: &Scratch, name: &str, text: &str) -> String {
    scratch.write(name, text).display().to_string()
}

fn by_user(up: &Upstream, scratch: &Scratch, password: &str) -> Setup {
    weir(ROUTE)
        .to(up.url())
        .set("redis.user", "weir")
        .set("redis.password_file", file(scratch, "password", password))
        .set("redis.deadline", "500ms")
}

/// What the ACL denied, but that the client library names itself.
fn refused(redis: &Redis) -> Vec<String> {
    let log = redis.cli(&["ACL", "LOG"]);
    let lines: Vec<&str> = log.lines().collect();
    let objects = lines.windows(2).filter(|pair| pair[0] == "object").map(|pair| pair[1].to_owned());
    objects.collect()
}

/// The other pod learns what one of them invalidates.
async fn hear(one: &Weir, other: &Weir, up: &Upstream) {
    assert_eq!(other.get("/heard").await.status, 200);
    assert_eq!(one.invalidate(r#"{"all": true}"#).await.status, 200);
    let before = up.count("/heard");
    within_async(PATIENCE, "the other knows", async || {
        other.get("/heard").await.status == 200 && up.count("/heard") > before
    })
    .await;
}

/// The cause is named, and requests are answered without Redis.
async fn goes_without(setup: &Setup, cause: &str) {
    let weir = setup.clone().set("redis.startup_wait", "50ms").start().await;
    within_async(PATIENCE, cause, async || weir.output().iter().any(|line| line.contains(cause))).await;
    assert_eq!(weir.get("/a").await.status, 200);
    assert_eq!(weir.metric(r#"weir_redis_commands_total{result="ok"}"#).await, 0.0, "{cause}");
}

/// What is stored in a slot that is on its way to another server is read there, and so it is when all of it is there; by a
/// pod that knows of neither.
pub async fn is_sent_on(setup: &Setup, cluster: &RedisCluster, one: &Weir, path: &str) {
    // A copy would say that there is nothing, and does not know that it moves.
    let fresh = setup.clone().set("redis.read_from", "master").start().await;
    let stored = r#"weir_redis_commands_total{command="store",result="ok"}"#;
    let before = one.metric(stored).await;
    assert_eq!(one.get(path).await.status, 200);
    one.metric_reaches(stored, before + 1.0).await;
    let stored = |node: &usize| cluster.cli(*node, &["KEYS", "it:e:*"]);
    let keys: Vec<String> =
        cluster.masters().iter().flat_map(|node| stored(node).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let moves: Vec<_> = keys
        .iter()
        .filter_map(|key| {
            let (slot, from) = (cluster.slot_of(key), cluster.owner_of(key));
            let to = *cluster.masters().iter().find(|node| **node != from).expect("two masters");
            let on_its_way = cluster.begin_move(slot, to)?;
            cluster.move_key(on_its_way, key);
            Some(on_its_way)
        })
        .collect();
    let redirected = r#"weir_redis_commands_total{command="get",result="redirected"}"#;
    assert!(fresh.get(path).await.is_hit());
    assert_eq!(fresh.metric(redirected).await, 1.0);
    moves.into_iter().for_each(|on_its_way| cluster.finish_move(on_its_way));
}

#[tokio::test]
async fn a_clusters_user_needs_what_is_documented_and_no_more() {
    let (up, scratch, cluster) = (service(), Scratch::new(), RedisCluster::of(2, 1));
    let rights = more_rights("a Cluster");
    for node in cluster.here() {
        add_user(cluster.node(node), "weir");
        allow(cluster.node(node), "weir", &rights);
    }
    let setup = by_user(&up, &scratch, SECRET).redis_cluster(&cluster).set("redis.read_from", "replica");
    for protocol in ["resp2", "resp3"] {
        let (one, other) = two(&setup.clone().set("redis.protocol", protocol), &up).await;
        hear(&one, &other, &up).await;
        is_sent_on(&setup, &cluster, &one, &format!("/{protocol}")).await;
        are_one(&one, &other, &up).await;
        hear(&one, &other, &up).await;
    }
    let calls = |right: &str| cluster.calls(right) + cluster.calls(right.split('|').next().expect("a command"));
    let unused: Vec<_> = rights.iter().filter(|right| calls(right) == 0).collect();
    assert!(unused.is_empty(), "{unused:?}");
    for node in cluster.here() {
        assert_eq!(refused(cluster.node(node)), [] as [String; 0]);
    }

    // Each of those that finding and reaching the servers takes is named where it is denied.
    goes_without(&by_user(&up, &scratch, "wrong").redis_cluster(&cluster), "WRONGPASS").await;
    let nobody = weir(ROUTE).to(up.url()).redis_cluster(&cluster);
    for node in cluster.here() {
        cluster.cli(node, &["ACL", "SETUSER", "weir", "-cluster"]);
        cluster.cli(node, &["ACL", "SETUSER", "default", ">secret", "resetpass", ">secret"]);
    }
    goes_without(&nobody, "NOAUTH to CLUSTER NODES").await;
    goes_without(&by_user(&up, &scratch, SECRET).redis_cluster(&cluster), "NOPERM to CLUSTER NODES").await;
}

#[tokio::test]
async fn servers_and_sentinels_have_users_of_their_own() {
    let (up, scratch, all) = (service(), Scratch::new(), sentinels_with(None, Some(THEIRS)));
    for server in 0..all.servers() {
        add_user(all.server(server), "weir");
        allow(all.server(server), "weir", &more_rights("Sentinels' masters"));
    }
    for sentinel in 0..all.addresses().len() {
        add_user_of_sentinel(all.sentinel(sentinel), "watcher");
    }
    let theirs = file(&scratch, "theirs", THEIRS);
    let by_default = by_user(&up, &scratch, SECRET).sentinels(&all).set("redis.sentinel_password_file", theirs);
    let by_name = by_user(&up, &scratch, SECRET)
        .sentinels(&all)
        .set("redis.read_from", "replica")
        .set("redis.sentinel_user", "watcher")
        .set("redis.sentinel_password_file", file(&scratch, "watchers", SECRET));
    let (one, other) = (by_default.start().await, by_name.set("redis.protocol", "resp3").start().await);
    are_one(&one, &other, &up).await;
    hear(&one, &other, &up).await;
    all.fail_over();
    are_one(&one, &other, &up).await;
    hear(&one, &other, &up).await;
    (0..all.servers()).for_each(|server| assert_eq!(refused(all.server(server)), [] as [String; 0]));
    (0..all.addresses().len()).for_each(|at| assert_eq!(refused(all.sentinel(at)), [] as [String; 0]));
}

#[tokio::test]
async fn what_is_wrong_with_a_password_is_named_and_whose_it_is() {
    let (up, scratch, all) = (service(), Scratch::new(), sentinels_with(None, Some(THEIRS)));
    for server in 0..all.servers() {
        add_user(all.server(server), "weir");
    }
    let setup = |password, theirs| {
        let theirs = file(&scratch, &format!("theirs-{theirs}"), theirs);
        by_user(&up, &scratch, password).sentinels(&all).set("redis.sentinel_password_file", theirs)
    };
    let sentinel = all.addresses()[0];
    goes_without(&setup(SECRET, "wrong"), &format!("the Sentinel {sentinel}: WRONGPASS")).await;
    let without = by_user(&up, &scratch, SECRET).sentinels(&all);
    goes_without(&without, &format!("the Sentinel {sentinel}: NOAUTH to SENTINEL GET-MASTER-ADDR-BY-NAME")).await;
    let master = all.relay(all.master()).address();
    goes_without(&setup("wrong", THEIRS), &format!("{master}: WRONGPASS")).await;
    goes_without(&setup(SECRET, THEIRS), &format!("{master}: NOPERM to ROLE")).await;
}

/// Sentinels that are set up anew count failovers from the beginning: after a while they are believed all the same.
#[tokio::test]
async fn sentinels_that_forget_are_followed_again() {
    let (up, all) = (service(), sentinels());
    all.fail_over();
    let setup = weir(ROUTE).to(up.url()).sentinels(&all).set("redis.deadline", "500ms");
    let (one, other) = two(&setup, &up).await;
    let port = all.relay(all.master()).address().port().to_string();
    let name = all.master_name();
    // First all of them forget, so that none learns it from another.
    let every = |words: &[&str]| (0..all.addresses().len()).for_each(|at| drop(all.sentinel(at).cli(words)));
    let forget = || {
        every(&["SENTINEL", "REMOVE", name]);
        every(&["SENTINEL", "MONITOR", name, "127.0.0.1", &port, "2"]);
    };
    let told = |at| all.sentinel(at).cli(&["SENTINEL", "MASTER", name]);
    forget();
    let doubted = || one.output().iter().any(|line| line.contains("earlier failover"));
    within_async(PATIENCE, "they are not believed at once", async || {
        // What one of them said just before it forgot may reach another behind that.
        if (0..all.addresses().len()).any(|at| !told(at).contains("config-epoch\n0")) {
            forget();
        }
        doubted()
    })
    .await;
    let calm = async || one.admin("/readyz").await.status == 200;
    within_async(PATIENCE, "it is ready", calm).await;
    are_one(&one, &other, &up).await;
}
