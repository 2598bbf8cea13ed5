//! Clusters and Sentinels that speak TLS only, and want certificates.

use crate::harness::{
    Authority, Identity, Issued, PATIENCE, Redis, RedisCluster, Scratch, Setup, Upstream, Weir, redis_cluster_over_tls,
    sentinels_with, weir, within_async,
};
use crate::redis_access::is_sent_on;
use crate::redis_ways::{Eavesdropper, SECRET, add_user, allow, are_one, more_rights, service, two};

const ROUTE: &str = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.ttl = '60s'\n";

/// An authority, and where its certificates lie.
struct Circle {
    authority: Authority,
    scratch: Scratch,
    file: String,
}

impl Circle {
    fn new() -> Self {
        let (authority, scratch) = (Authority::new(), Scratch::new());
        let file = authority.put(&scratch);
        Self { authority, scratch, file }
    }

    /// A server with this certificate, which believes the authority.
    fn server(&self, issued: &Issued, name: &str) -> Identity {
        let (cert, key) = issued.put(&self.scratch, name);
        Identity { cert, key, authority: self.file.clone() }
    }

    /// A pod that shows no certificate.
    fn nobody(&self, up: &Upstream) -> Setup {
        weir(ROUTE)
            .to(up.url())
            .set("redis.namespace", "it")
            .set("redis.deadline", "500ms")
            .set("redis.tls.ca_file", self.file.as_str())
    }

    fn client(&self, up: &Upstream) -> Setup {
        let (cert, key) = self.authority.issue(&["weir"]).put(&self.scratch, "weir");
        self.nobody(up).set("redis.tls.cert", cert).set("redis.tls.key", key)
    }

    fn user(&self, setup: Setup) -> Setup {
        let password = self.scratch.write("password", SECRET).display().to_string();
        setup.set("redis.user", "weir").set("redis.password_file", password)
    }
}

fn users(cluster: &RedisCluster) {
    for node in cluster.here() {
        add_user(cluster.node(node), "weir");
        allow(cluster.node(node), "weir", &more_rights("a Cluster"));
    }
}

async fn says(weir: &Weir, cause: &str) {
    within_async(PATIENCE, cause, async || weir.output().iter().any(|line| line.contains(cause))).await;
}

/// Redirections name addresses, of which certificates that speak of names know nothing.
#[tokio::test]
async fn a_cluster_is_called_by_the_names_of_its_certificates() {
    let (up, circle) = (service(), Circle::new());
    let identity = circle.server(&circle.authority.issue(&["localhost"]), "redis");
    let cluster = redis_cluster_over_tls(&identity, Some("localhost"));
    users(&cluster);
    let seeds: Vec<String> = cluster.addresses().iter().map(|at| format!("localhost:{}", at.port())).collect();
    let setup = circle.user(circle.client(&up)).set("redis.mode", "cluster").set("redis.nodes", seeds);
    for protocol in ["resp2", "resp3"] {
        let (one, other) = two(&setup.clone().set("redis.protocol", protocol), &up).await;
        is_sent_on(&setup.clone().set("redis.protocol", protocol), &cluster, &one, &format!("/{protocol}")).await;
        are_one(&one, &other, &up).await;
        for weir in [&one, &other] {
            assert_eq!(weir.metric(r#"weir_redis_faults_total{kind="tls"}"#).await, 0.0);
        }
    }
}

#[tokio::test]
async fn a_cluster_may_be_called_by_a_name_that_is_said() {
    let (up, circle) = (service(), Circle::new());
    let identity = circle.server(&circle.authority.issue(&["redis.example"]), "redis");
    let cluster = redis_cluster_over_tls(&identity, None);
    let setup = circle.client(&up).redis_cluster(&cluster);
    let weir = setup.clone().set("redis.startup_wait", "50ms").start().await;
    says(&weir, "not valid for name").await;
    two(&setup.set("redis.tls.server_name", "redis.example"), &up).await;
}

#[tokio::test]
async fn servers_and_sentinels_over_tls_are_followed() {
    let (up, circle) = (service(), Circle::new());
    let identity = circle.server(&circle.authority.issue(&["127.0.0.1"]), "redis");
    let all = sentinels_with(Some([&identity, &identity]), None);
    for server in 0..all.servers() {
        add_user(all.server(server), "weir");
        allow(all.server(server), "weir", &more_rights("Sentinels' masters"));
    }
    let (one, other) = two(&circle.user(circle.client(&up)).sentinels(&all), &up).await;
    all.fail_over();
    are_one(&one, &other, &up).await;
    let master = all.master();
    all.kill(master);
    all.taken_over(master);
    are_one(&one, &other, &up).await;
    assert_eq!(one.metric(r#"weir_redis_faults_total{kind="tls"}"#).await, 0.0);
}

/// The cause is named, requests are answered, and Redis is not asked.
#[tokio::test]
async fn what_is_wrong_with_a_clusters_certificate_is_named() {
    for (certificate, cause, has_own) in faulty() {
        let (up, circle) = (service(), Circle::new());
        let right = circle.server(&circle.authority.issue(&["127.0.0.1"]), "redis");
        let cluster = redis_cluster_over_tls(&right, None);
        let wrong = circle.server(&certificate(&circle.authority), "wrong");
        cluster.here().into_iter().for_each(|node| shows(cluster.node(node), &wrong));
        goes_without(if has_own { circle.client(&up) } else { circle.nobody(&up) }.redis_cluster(&cluster), cause)
            .await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_sentinels_certificate_is_named() {
    // Sentinels do not believe one another either when they are too old.
    for (certificate, cause, has_own) in faulty().into_iter().filter(|(_, cause, _)| *cause != "expired") {
        let (up, circle) = (service(), Circle::new());
        let right = circle.server(&circle.authority.issue(&["127.0.0.1"]), "redis");
        let wrong = circle.server(&certificate(&circle.authority), "wrong");
        let all = sentinels_with(Some([&right, &wrong]), None);
        let setup = if has_own { circle.client(&up) } else { circle.nobody(&up) };
        let weir = goes_without(setup.sentinels(&all), cause).await;
        says(&weir, &format!("the Sentinel {}: ", all.addresses()[0])).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_certificate_of_a_master_that_sentinels_name_is_said() {
    for (certificate, cause, _) in faulty().into_iter().filter(|(_, _, has_own)| *has_own) {
        let (up, circle) = (service(), Circle::new());
        let right = circle.server(&circle.authority.issue(&["127.0.0.1"]), "sentinel");
        let all = sentinels_with(Some([&right, &right]), None);
        let wrong = circle.server(&certificate(&circle.authority), "wrong");
        (0..all.servers()).for_each(|server| shows(all.server(server), &wrong));
        goes_without(circle.client(&up).sentinels(&all), cause).await;
    }
}

/// A server shows another certificate from now on, to those who call anew.
fn shows(redis: &Redis, identity: &Identity) {
    redis.cli(&["CONFIG", "SET", "tls-cert-file", &identity.cert, "tls-key-file", &identity.key]);
}

type Certificate = fn(&Authority) -> Issued;

/// Certificates that are not to be believed, why, and whether the pod shows one of its own.
fn faulty() -> [(Certificate, &'static str, bool); 3] {
    [
        (|authority| authority.issue(&["redis.example"]), "not valid for name", true),
        (|authority| authority.issue(&["127.0.0.1"]), "CertificateRequired", false),
        (|authority| authority.issue_expired(&["127.0.0.1"]), "expired", true),
    ]
}

async fn goes_without(setup: Setup, cause: &str) -> Weir {
    let weir = setup.set("redis.startup_wait", "50ms").start().await;
    says(&weir, cause).await;
    assert_eq!(weir.get("/a").await.status, 200);
    assert_eq!(weir.metric(r#"weir_redis_commands_total{result="ok"}"#).await, 0.0, "{cause}");
    weir
}

/// Servers of another authority are not believed, whether they are a Cluster's or Sentinels.
#[tokio::test]
async fn strangers_are_not_believed_over_tls() {
    let (up, circle, strangers) = (service(), Circle::new(), Circle::new());
    let identity = strangers.server(&strangers.authority.issue(&["127.0.0.1"]), "redis");
    let cluster = redis_cluster_over_tls(&identity, None);
    goes_without(circle.client(&up).redis_cluster(&cluster), "UnknownIssuer").await;
    let all = sentinels_with(Some([&identity, &identity]), None);
    goes_without(circle.client(&up).sentinels(&all), "UnknownIssuer").await;
}

#[tokio::test]
async fn nothing_is_said_in_plain_text_to_seeds_and_sentinels_without_tls() {
    for mode in ["cluster", "sentinel"] {
        let (up, ear, circle) = (service(), Eavesdropper::new(), Circle::new());
        let setup =
            circle.user(circle.client(&up)).set("redis.mode", mode).set("redis.nodes", vec![ear.at.to_string()]);
        let setup = match mode {
            "cluster" => setup,
            _ => setup
                .set("redis.master", "shop")
                .set("redis.sentinel_user", "watcher")
                .set("redis.sentinel_password_file", circle.scratch.write("theirs", SECRET).display().to_string()),
        };
        let weir = goes_without(setup, "there is no TLS with it").await;
        ear.heard_nothing().await;
        drop(weir);
    }
}
