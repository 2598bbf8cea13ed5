//! Which route takes a request: host, then literal before one segment before the rest, then method, then number of fields.

use crate::harness::{get, reply, request, upstream, weir};

const ROUTES: &str = r#"
[[route]]
name = "rest"
path = "/{*path}"
response.set = { x-route = "rest" }

[[route]]
name = "item"
path = "/items/{id}"
response.set = { x-route = "item" }

[[route]]
name = "new"
path = "/items/new"
response.set = { x-route = "new" }

[[route]]
name = "edit"
path = "/items/{id}"
methods = ["PUT", "DELETE"]
response.set = { x-route = "edit" }

[[route]]
name = "beta"
path = "/items/{id}"
headers = { x-beta = "yes" }
response.set = { x-route = "beta" }

[[route]]
name = "shop"
path = "/{*path}"
hosts = ["shop.example"]
response.set = { x-route = "shop" }

[[route]]
name = "any-shop"
path = "/items/new"
hosts = ["*.example"]
response.set = { x-route = "any-shop" }

[[route]]
name = "deep"
path = "/a/{b}/c/{*rest}"
response.set = { x-route = "deep" }
"#;

#[tokio::test]
async fn the_most_specific_route_takes_a_request() {
    let up = upstream();
    up.route("*", reply(""));
    let weir = weir(ROUTES).to(up.url()).start().await;
    let table = [
        (get("/"), "rest"),
        (get("/items"), "rest"),
        (get("/items/7"), "item"),
        (get("/items/7?new"), "item"),
        (get("/items/new"), "new"),
        (get("/items/./x/../new"), "new"),
        (get("/items/%6eew"), "new"),
        (get("/items/7/x"), "rest"),
        (request("PUT", "/items/7"), "edit"),
        (request("POST", "/items/7"), "item"),
        (get("/items/7").header("x-beta", "yes"), "beta"),
        (get("/items/7").header("x-beta", "no"), "item"),
        (get("/items/new").header("host", "shop.example"), "shop"),
        (get("/items/new").header("host", "SHOP.example:8080"), "shop"),
        (get("/items/new").header("host", "other.example"), "any-shop"),
        (get("/a/x/c"), "deep"),
        (get("/a/x/c/d/e"), "deep"),
        (get("/a/x/d"), "rest"),
    ];
    for (i, (request, route)) in table.into_iter().enumerate() {
        let answer = weir.send(request).await;
        assert_eq!(answer.header("x-route"), Some(route), "row {i}: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_routed_is_what_is_forwarded() {
    let up = upstream();
    up.route("*", reply(""));
    let weir = weir(ROUTES).to(up.url()).start().await;
    for (sent, forwarded) in [
        ("/a/../b", "/b"),
        ("/%7euser", "/~user"),
        ("/x%2dy?q=%7e", "/x-y?q=%7e"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a/./b/", "/a/b/"),
        ("/a;v=1/b", "/a;v=1/b"),
    ] {
        let answer = weir.get(sent).await;
        assert_eq!(answer.status, 200, "{sent}: {answer:?}");
        assert_eq!(up.count(forwarded.split('?').next().unwrap()), 1, "{sent} goes out as {forwarded}");
    }
}

#[tokio::test]
async fn ambiguous_paths_are_refused_or_passed_uncached() {
    let up = upstream();
    up.route("*", reply("").max_age(60));
    let config = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.enabled = true";
    let paths = ["/a//b", "/a/%2fb", "/a%5cb", "/a%00b", "/a/%0d%0ab", "/../x", "/a\\b", "/%zz"];
    let strict = weir(config).to(up.url()).start().await;
    for path in paths {
        let answer = strict.get(path).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
    }
    assert_eq!(up.total(), 0);
    let lenient = weir(config).to(up.url()).set("server.ambiguous_paths", "pass").start().await;
    for _ in 0..2 {
        let answer = lenient.get("/a//b").await;
        assert!(answer.status == 200 && !answer.is_hit() && !answer.is_stored(), "{answer:?}");
    }
    assert_eq!(up.count("/a//b"), 2, "passed as it came, never cached");
}

#[tokio::test]
async fn what_no_route_takes_is_forwarded_or_404() {
    let up = upstream();
    up.route("*", reply("").max_age(60));
    let config = "[[route]]\nname = 'one'\npath = '/one'\ncache.enabled = true";
    let forwarding = weir(config).to(up.url()).start().await;
    for _ in 0..2 {
        assert_eq!(forwarding.get("/other").await.status, 200);
    }
    assert_eq!(up.count("/other"), 2, "nothing is stored for what no route takes");
    forwarding.metric_reaches(r#"weir_requests_total{route="-"}"#, 2.0).await;
    let closed = weir(config).to(up.url()).set("server.unmatched", "404").start().await;
    assert_eq!(closed.get("/other").await.status, 404);
    assert_eq!((up.count("/other"), closed.get("/one").await.status), (2, 200));
}
