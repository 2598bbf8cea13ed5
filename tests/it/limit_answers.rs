//! Whom a limit is for, and what it answers, as clients meet it.

use bytes::Bytes;
use http_body_util::Full;

use crate::harness::{Answer, H2, Upstream, Weir, for_both, get, reply, upstream, weir};

fn limited(limit: &str) -> String {
    format!("[[route]]\nname = 'all'\npath = '/{{*path}}'\ncache.ttl = '60s'\nlimits = [{limit}]\n")
}

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()).header("cache-control", "no-store"));
    up
}

/// Tokens of `{"sub":"ann"}`, of the same with other members and another signature, of `{"sub":"bob"}`, and of nobody.
const ANN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2ln";
const ANN_AGAIN: &str = "eyJhbGciOiJub25lIn0.eyJpYXQiOjEsInN1YiI6ImFubiJ9.";
const BOB: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2ln";
const NOBODY: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpYXQiOjF9.c2ln";

async fn with_token(weir: &Weir, token: &str) -> Answer {
    weir.send(get("/").header("authorization", &format!("Bearer {token}"))).await
}

#[tokio::test]
async fn a_claim_is_an_identity_and_who_has_none_meets_the_rule() {
    for_both(|store| async move {
        let up = service();
        for (missing, of_nobody) in [("share", [200, 429, 429]), ("skip", [200, 200, 200]), ("deny", [429, 429, 429])] {
            let name = format!("by-{missing}");
            let limit = format!(
                "{{ name = '{name}', key = ['unverified-claim:sub'], rate = '1/h', burst = 1, missing = '{missing}' }}"
            );
            let weir = store.apply(weir(&limited(&limit)).to(up.url())).start().await;
            let mut statuses = Vec::new();
            for token in [ANN, ANN_AGAIN, BOB, BOB] {
                statuses.push(with_token(&weir, token).await.status);
            }
            assert_eq!(statuses, [200, 429, 200, 429], "{missing}");
            let none = [with_token(&weir, NOBODY).await, with_token(&weir, "no.token").await, weir.get("/").await];
            assert_eq!(none.each_ref().map(|answer| answer.status), of_nobody, "{missing}");
            let is_told = none[0].header("ratelimit-policy").is_some();
            assert_eq!(is_told, missing == "share", "{missing}: {:?}", none[0]);
            if missing == "deny" {
                assert!(none[0].text().contains("does not say"), "{:?}", none[0]);
                assert_eq!(none[0].header("retry-after"), None, "no wait helps");
                let by_rule =
                    format!(r#"weir_limit_decisions_total{{limit="{name}",decision="denied",source="rule"}}"#);
                assert_eq!(weir.metric(&by_rule).await, 3.0);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn lists_are_of_the_address_that_trusted_proxies_say() {
    for_both(|store| async move {
        let up = service();
        let limit = "{ name = 'l', key = ['route'], rate = '1/h', burst = 1, allow = ['10.0.0.0/8'], \
                     deny = ['203.0.113.0/24', '2001:db8:1:2::/64'] }";
        let weir = weir(&limited(limit)).to(up.url()).set("server.trusted_proxies", vec!["127.0.0.0/8"]);
        let weir = store.apply(weir).start().await;
        for (address, status) in [
            ("10.1.1.1", 200),
            ("203.0.113.9", 403),
            ("192.0.2.1", 200),
            ("192.0.2.1", 429),
            ("::ffff:10.1.1.1", 200),
            ("10.1.1.1, 192.0.2.1", 429),
            ("::ffff:203.0.113.9", 403),
            ("2001:db8:1:2:ffff::1", 403),
            ("2001:db8:1:3::1", 429),
        ] {
            let answer = weir.send(get("/").header("x-forwarded-for", address)).await;
            assert_eq!(answer.status, status, "{address}: {answer:?}");
        }
        assert_eq!(up.total(), 3, "who is denied goes nowhere");
        let outcome = r#"weir_requests_total{outcome="denied",status_class="4xx"}"#;
        assert_eq!(weir.metric(outcome).await, 6.0);
    })
    .await;
}

#[tokio::test]
async fn a_limit_says_in_which_fields_it_is_told_of() {
    let up = upstream();
    up.route("*", reply("x").max_age(60).header("x-ratelimit-limit", "9").header("x-ratelimit-reset", "1700000000"));
    let limits = "{ name = 'old', key = ['ip'], rate = '6/m', burst = 3, headers = 'x' }, \
                  { name = 'new', key = ['ip'], rate = '6/m', burst = 9 }";
    let weir = weir(&limited(limits)).to(up.url()).start().await;
    for (nth, left) in [("first", "2"), ("a hit", "1"), ("the last", "0")] {
        let answer = weir.get("/a").await;
        assert_eq!(answer.headers("x-ratelimit-limit"), ["3"], "{nth}: the upstream's own is replaced: {answer:?}");
        assert_eq!(answer.headers("x-ratelimit-remaining"), [left], "{nth}");
        assert_eq!(answer.headers("x-ratelimit-reset").len(), 1, "{nth}");
        assert!(answer.number("x-ratelimit-reset").is_some_and(|seconds| seconds <= 30), "{nth}: {answer:?}");
        assert_eq!(answer.headers("ratelimit-policy"), [r#""new";q=9;w=90"#], "{nth}");
        assert!(answer.header("ratelimit").is_some_and(|field| field.starts_with(r#""new";r="#)), "{nth}: {answer:?}");
    }
    let denied = weir.get("/a").await;
    assert_eq!(denied.status, 429);
    assert_eq!(denied.headers("x-ratelimit-limit"), ["3"], "{denied:?}");
    assert_eq!(denied.headers("x-ratelimit-remaining"), ["0"]);
    assert_eq!(denied.headers("x-ratelimit-reset"), denied.headers("retry-after"));
    assert_eq!(denied.headers("ratelimit"), [""; 0], "the one that denies is not told of there");
}

#[tokio::test]
async fn a_denial_at_a_later_stage_tells_of_itself_once() {
    let up = service();
    let limits = "{ name = 'wide', key = ['ip'], rate = '6/m', burst = 9, headers = 'both' }, \
                  { name = 'misses', key = ['ip'], rate = '6/m', burst = 1, headers = 'both', on = 'miss' }";
    let weir = weir(&limited(limits)).to(up.url()).start().await;
    assert_eq!(weir.get("/1").await.status, 200);
    let denied = weir.get("/2").await;
    assert_eq!(denied.status, 429, "{denied:?}");
    assert_eq!(denied.headers("ratelimit-policy"), [r#""wide";q=9;w=90, "misses";q=1;w=10"#]);
    assert_eq!(denied.headers("ratelimit").len(), 1, "{denied:?}");
    assert!(denied.headers("ratelimit")[0].starts_with(r#""misses";r=0"#), "{denied:?}");
    assert_eq!(denied.headers("x-ratelimit-limit"), ["1"]);
}

#[tokio::test]
async fn status_and_body_of_a_denial_are_the_limits_own() {
    let up = service();
    let json = r#"{"error": {"limit": "{limit}", "wait": {retry_after}, "message": "{detail}"}}"#;
    let limit = format!(
        "{{ name = 'busy', key = ['query:k'], rate = '6/m', burst = 1, status = 503, content_type = 'application/json', \
         body = '{json}' }}"
    );
    let routes = limited(&limit)
        + "[[route]]\nname = 'file'\npath = '/file'\n\
           limits = [{ name = 'text', key = ['query:k'], rate = '6/m', burst = 1, status = 420, body_file = 'calm.txt' }]\n";
    let weir = weir(&routes).to(up.url()).beside("calm.txt", "{limit}: {status}\n").start().await;
    assert_eq!(weir.get("/?k=a").await.status, 200);
    let denied = weir.get("/?k=a").await;
    assert_eq!((denied.status, denied.header("content-type")), (503, Some("application/json")), "{denied:?}");
    let body: serde_json::Value = serde_json::from_str(denied.text()).expect("JSON");
    assert_eq!(body["error"]["limit"], "busy");
    assert_eq!(body["error"]["wait"].as_u64(), denied.number("retry-after"));
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("\"busy\" is used up")), "{body}");
    assert_eq!(denied.header("cache-control"), Some("no-store"));
    assert_eq!(weir.metric(r#"weir_requests_total{outcome="denied",status_class="5xx"}"#).await, 1.0);
    assert_eq!(weir.get("/file?k=a").await.status, 200);
    let denied = weir.get("/file?k=a").await;
    assert_eq!((denied.status, denied.text()), (420, "text: 420\n"), "{denied:?}");
    assert_eq!(denied.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[tokio::test]
async fn a_denial_is_a_problem_that_names_its_limit() {
    let up = service();
    let weir = weir(&limited("{ name = 'l', key = ['ip'], rate = '6/m', burst = 1 }")).to(up.url()).start().await;
    weir.get("/").await;
    let denied = weir.get("/").await;
    assert_eq!(denied.header("content-type"), Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_str(denied.text()).expect("JSON");
    assert_eq!((problem["limit"].as_str(), problem["status"].as_u64()), (Some("l"), Some(429)), "{problem}");
}

#[tokio::test]
async fn a_call_by_grpc_is_denied_in_its_own_way() {
    let up = service();
    let limit = "{ name = 'calls', key = ['ip'], rate = '6/m', burst = 1, status = 503, body = 'no', deny = ['203.0.113.0/24'] }";
    let weir = weir(&limited(limit)).to(up.url()).set("server.trusted_proxies", vec!["127.0.0.0/8"]).start().await;
    let client = H2::open(weir.proxy).await;
    let call = async |kind: &str, from: &str| {
        let request = http::Request::post("http://service.test/pkg.Service/Method");
        let request = request.header("content-type", kind).header("te", "trailers").header("x-forwarded-for", from);
        client.send(request.body(Full::new(Bytes::from_static(b"\0\0\0\0\0"))).expect("a request")).await
    };
    assert_eq!(call("application/grpc", "192.0.2.1").await.status, 200);
    for kind in ["application/grpc", "application/grpc+proto", "application/grpc-web+proto"] {
        let denied = call(kind, "192.0.2.1").await;
        assert_eq!((denied.status, denied.header("grpc-status")), (200, Some("8")), "{denied:?}");
        assert_eq!(denied.header("content-type"), Some(kind));
        assert!(denied.header("grpc-message").is_some_and(|text| text.contains("\"calls\" is used up")), "{denied:?}");
        assert!(denied.number("retry-after").is_some() && denied.text().is_empty(), "{denied:?}");
    }
    assert_eq!(call("application/grpc", "203.0.113.1").await.header("grpc-status"), Some("7"));
    let other = call("application/grpcish", "192.0.2.1").await;
    assert_eq!((other.status, other.text()), (503, "no"), "{other:?}");
    assert_eq!(up.total(), 1);
}
