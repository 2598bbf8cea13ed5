//! Clients that would be somebody new: spoofed addresses, rotated ones, spellings of one identity, crowds at once, identities without
//! number. R1 to R5 of the catalogue in docs/limits.md; R6 is `limits_fleet.rs`.

use std::collections::BTreeSet;

use crate::fleet::dice::Dice;
use crate::harness::{
    Answer, H2, Request, Store, Upstream, Weir, for_both, get, join_all, redis, reply, scale, upstream, weir,
};

/// Those that a limit admits at once; none of them comes back while a test lasts.
const BURST: usize = 3;

fn limited(key: &str) -> String {
    format!(
        "[[route]]\nname = 'all'\npath = '/{{*path}}'\nlimits = [{{ name = 'l', key = [{key}], rate = '1/h', burst = {BURST} }}]\n"
    )
}

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |_| reply("served").header("cache-control", "no-store"));
    up
}

/// Sends each of these once; how many were let through. Anything else than an answer or a 429 fails.
async fn admitted(weir: &Weir, requests: impl IntoIterator<Item = Request>) -> usize {
    let mut admitted = 0;
    for request in requests {
        let answer = weir.send(request).await;
        assert!(matches!(answer.status, 200 | 429), "{answer:?}");
        admitted += usize::from(answer.status == 200);
    }
    admitted
}

/// A request with these lines.
fn with(lines: &[(&str, &str)]) -> Request {
    lines.iter().fold(get("/"), |request, (name, value)| request.header(name, value))
}

/// Fields in which somebody in front may have written an address.
const ADDRESS_FIELDS: &[&str] = &[
    "x-forwarded-for",
    "X-FORWARDED-FOR",
    "x-real-ip",
    "x-client-ip",
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-cluster-client-ip",
    "x-originating-ip",
    "x-remote-addr",
    "via",
];

#[tokio::test]
async fn r1_no_field_makes_somebody_new_of_a_client_that_is_not_trusted() {
    for_both(|store| async move {
        let up = service();
        let weir = store.apply(weir(&limited("'ip'")).to(up.url())).start().await;
        let mut nth = 0;
        let mut address = || {
            nth += 1;
            format!("203.0.113.{nth}")
        };
        let mut lies: Vec<Request> = ADDRESS_FIELDS.iter().map(|field| with(&[(field, &address())])).collect();
        lies.extend([
            with(&[("forwarded", &format!("for={}", address()))]),
            with(&[("forwarded", &format!("for=\"{}:443\";proto=https", address()))]),
            with(&[("x-forwarded-for", &address()), ("x-forwarded-for", &address())]),
            with(&[("x-forwarded-for", "2001:db8::1, ::1, 127.0.0.1")]),
            with(&[("x-forwarded-for", "")]),
            with(&[("x-forwarded-for", "not an address, \u{fe}\u{ff}")]),
            with(&[("connection", "x-forwarded-for"), ("x-forwarded-for", &address())]),
        ]);
        let sent = lies.len();
        assert_eq!(admitted(&weir, lies).await, BURST, "of {sent}");
        assert_eq!(up.total(), BURST);
    })
    .await;
}

#[tokio::test]
async fn r1_behind_a_trusted_proxy_only_what_it_wrote_counts() {
    let up = service();
    let weir = weir(&limited("'ip'")).to(up.url()).set("server.trusted_proxies", vec!["127.0.0.0/8", "10.0.0.0/8"]);
    let weir = weir.start().await;
    // The proxy appends whom it saw: 192.0.2.7. What stands before that is the client's own.
    let seen = "192.0.2.7";
    let many = vec!["203.0.113.50"; 64].join(", ");
    let long = "1".repeat(4096);
    let own = [
        "203.0.113.1",
        "203.0.113.2, 203.0.113.3",
        "10.1.2.3",
        "127.0.0.1",
        "::1",
        "2001:db8::5",
        "unknown",
        "_hidden",
        "",
        " , ,",
        "\"203.0.113.4\"",
        "203.0.113.5:80",
        "0xcb007101",
        "3405803777",
        "192.0.2.7.",
        "\u{bf}",
        &many,
        &long,
    ];
    let mut lies: Vec<Request> =
        own.iter().map(|own| with(&[("x-forwarded-for", &format!("{own}, {seen}"))])).collect();
    // A line of its own before the proxy's; a hop of the proxy's own network behind; and other forms of the same address.
    lies.extend(own.iter().map(|own| with(&[("x-forwarded-for", own), ("x-forwarded-for", seen)])));
    // The same by a proxy that writes the other field; a quote that is left open hides nothing.
    let quoted = [
        "for=203.0.113.20",
        "for=\"",
        "\"",
        "for=203.0.113.21;x=\"a\\\"",
        "for=\u{bf}",
        "for=_x, for=\"[2001:db8::1",
        ";;\\",
    ];
    lies.extend(quoted.iter().map(|own| with(&[("forwarded", &format!("{own}, for={seen};proto=http"))])));
    lies.extend(quoted.iter().map(|own| with(&[("forwarded", &format!("{own}, for=\"{seen}:80\", for=10.9.9.9"))])));
    lies.extend([
        with(&[("x-forwarded-for", &format!("203.0.113.9, {seen}, 10.9.9.9"))]),
        with(&[("x-forwarded-for", &format!("203.0.113.10,{seen}:61234"))]),
        with(&[("x-forwarded-for", "203.0.113.11, ::ffff:192.0.2.7")]),
        with(&[("x-forwarded-for", "203.0.113.12, [::ffff:c000:207]:1")]),
        with(&[("forwarded", "for=203.0.113.13"), ("x-forwarded-for", seen)]),
        with(&[("x-real-ip", "203.0.113.14"), ("x-forwarded-for", seen)]),
    ]);
    assert_eq!(admitted(&weir, lies).await, BURST);
    // Others have theirs, and who cannot be read is the proxy itself, all of them together.
    assert_eq!(admitted(&weir, [with(&[("x-forwarded-for", &format!("{seen}, 192.0.2.8"))])]).await, 1);
    let unread = ["unknown", "192.0.2.7, -", "x", "999.1.1.1", "192.0.2.7, 1.2.3", "fe80::1%eth0"];
    let unread = unread.iter().map(|value| with(&[("x-forwarded-for", value)]));
    assert_eq!(admitted(&weir, unread).await, BURST);
}

/// One of the spellings of an IPv6 address.
fn spelled(address: [u16; 8], dice: &mut Dice) -> String {
    let groups = |width: usize| address.map(|group| format!("{group:0width$x}")).join(":");
    match dice.below(5) {
        0 => groups(1),
        1 => groups(4),
        2 => groups(4).to_uppercase(),
        3 => format!("[{}]:{}", groups(1), 1 + dice.below(65_535)),
        _ => std::net::Ipv6Addr::from(address).to_string(),
    }
}

#[tokio::test]
async fn r2_an_ipv6_host_is_one_client_whatever_it_rotates_through() {
    for_both(|store| async move {
        let up = service();
        let weir = store.apply(weir(&limited("'ip'")).to(up.url())).set("server.trusted_proxies", vec!["127.0.0.0/8"]);
        let weir = weir.start().await;
        let mut dice = Dice::new(scale("WEIR_SEED", 1) as u64, 20);
        let from = |address: &str| with(&[("x-forwarded-for", address)]);
        for network in [[0x2001, 0xdb8, 1, 2], [0x2001, 0xdb8, 1, 3], [0xfd00, 0, 0, 0]] {
            let rotated: BTreeSet<String> = (0..100)
                .map(|_| {
                    let host = [(); 4].map(|()| dice.below(1 << 16) as u16);
                    let address: [u16; 8] =
                        std::array::from_fn(|nth| if nth < 4 { network[nth] } else { host[nth - 4] });
                    spelled(address, &mut dice)
                })
                .collect();
            assert!(rotated.len() > 90);
            let requests = rotated.iter().map(|address| from(address));
            assert_eq!(admitted(&weir, requests).await, BURST, "{network:x?}");
        }
        // A mapped address is the one that it maps, and not a /64 that all of them share.
        let mapped = [
            "203.0.113.1",
            "::ffff:203.0.113.1",
            "::FFFF:cb00:7101",
            "0:0:0:0:0:ffff:203.0.113.1",
            "[::ffff:cb00:7101]:80",
        ];
        assert_eq!(admitted(&weir, mapped.map(from)).await, BURST);
        assert_eq!(admitted(&weir, [from("::ffff:203.0.113.2")]).await, 1);
    })
    .await;
}

#[tokio::test]
async fn r3_a_field_is_one_identity_in_all_its_spellings() {
    for_both(|store| async move {
        let up = service();
        let weir = store.apply(weir(&limited("'header:x-api-key'")).to(up.url())).start().await;
        let one: [&[(&str, &str)]; 10] = [
            &[("x-api-key", "k")],
            &[("X-API-KEY", "k")],
            &[("x-Api-kEy", "  k\t ")],
            &[("x-api-key", "k"), ("x-api-key", "k")],
            &[("x-api-key", "k, k,k"), ("X-Api-Key", "k")],
            &[("x-api-key", ",,k,")],
            &[("x-api-key", ""), ("x-api-key", "k"), ("x-api-key", " ")],
            &[("x-api-key", "k"), ("x-api-key", ",")],
            &[("x-api-key", "k"), ("x-api-key2", "other")],
            &[("x-api-key", "k"), ("x_api_key", "other")],
        ];
        assert_eq!(admitted(&weir, one.map(with)).await, BURST);
        let nobody: [&[(&str, &str)]; 7] = [
            &[],
            &[("x-api-key", "")],
            &[("x-api-key", " \t ")],
            &[("x-api-key", ",")],
            &[("x-api-key", " , ,"), ("x-api-key", "")],
            &[("x-api-keys", "k")],
            &[("x-api-key", ""), ("x-api-key", "")],
        ];
        assert_eq!(admitted(&weir, nobody.map(with)).await, BURST, "nobody is one of many");
        // What is another value is another identity: case, escapes, letters that look alike, one accent in two forms, order.
        let others =
            ["K", "%6b", "\u{43a}", "k\u{301}", "\u{1e31}", "a, k", "k, a", "\"k\"", "k=k", "k\u{a0}", "Bearer k"];
        assert_eq!(admitted(&weir, others.map(|value| with(&[("x-api-key", value)]))).await, others.len());
    })
    .await;
}

#[tokio::test]
async fn r3_a_huge_field_is_one_identity_or_too_large_a_head() {
    let up = service();
    let setup = weir(&limited("'header:x-api-key'")).to(up.url()).set("server.limits.head", "256KiB");
    let weir = setup.start().await;
    for size in [255, 256, 257, 4_096, 16_384, 65_536] {
        let huge = "k".repeat(size);
        let again = format!(" ,{huge},, {huge}");
        let values = [&huge, &again, &huge, &again, &huge].map(|value| with(&[("x-api-key", value)]));
        assert_eq!(admitted(&weir, values).await, BURST, "{size} bytes");
        let other = format!("{}x", &huge[1..]);
        assert_eq!(admitted(&weir, [with(&[("x-api-key", &other)])]).await, 1, "{size} bytes, the last another");
    }
    let lines: Vec<String> = (0..4_000).map(|nth| format!("k{nth}")).collect();
    let many = lines.join(",");
    let values = [&many, &many, &many, &many].map(|value| with(&[("x-api-key", value)]));
    assert_eq!(admitted(&weir, values).await, BURST, "four thousand elements");
    let plain = crate::harness::weir(&limited("'header:x-api-key'")).to(up.url()).start().await;
    let answer = plain.send(with(&[("x-api-key", &"k".repeat(65_536))])).await;
    assert_eq!(answer.status, 431, "by default: {answer:?}");
}

#[tokio::test]
async fn r3_cookies_parameters_and_hosts_are_one_in_all_their_spellings() {
    let up = service();
    let cases: [(&str, Vec<Request>); 3] = [
        (
            "'cookie:sid'",
            ["sid=s", "sid=\"s\"", "a=b; sid=s", "sid=s; sid=t", " sid = s ;", "sid=s; SID=t", "sid=s;sid", ";;sid=s"]
                .map(|value| with(&[("cookie", value)]))
                .into(),
        ),
        (
            "'query:user'",
            [
                "/?user=a%20b",
                "/?user=a+b",
                "/?u%73er=a%20b",
                "/?x=1&user=%61%20b&user=c",
                "/?%75ser=a+b&&",
                "/?user=a%20b#",
                "/?&user=a+b",
            ]
            .iter()
            .filter(|target| !target.ends_with('#'))
            .map(|target| get(target))
            .collect(),
        ),
        (
            "'host'",
            ["shop.test", "SHOP.TEST", "shop.test:80", "Shop.Test.", "shop.test.:80"]
                .map(|host| with(&[("host", host)]))
                .into(),
        ),
    ];
    for (key, requests) in cases {
        let weir = weir(&limited(key)).to(up.url()).start().await;
        assert!(requests.len() > BURST);
        assert_eq!(admitted(&weir, requests).await, BURST, "{key}");
    }
}

#[tokio::test]
async fn r3_spellings_of_a_path_reach_the_service_as_often_as_one() {
    let up = service();
    let config = format!(
        "[[route]]\nname = 'login'\npath = '/login'\nlimits = [{{ name = 'l', key = ['ip', 'route'], rate = '1/h', burst = {BURST} }}]\n"
    );
    let weir = weir(&config).to(up.url()).start().await;
    let spellings = [
        "/login",
        "/./login",
        "/x/../login",
        "/%6cogin",
        "/%6C%6F%67%69%6E",
        "/login?x=1",
        "/login?",
        "/a/b/../../login",
        "/%2e/login",
        "/x/%2E%2e/login",
        "/login/.",
        "/login/x/..",
        "/../login",
        "//login",
        "/LOGIN",
        "/login/",
        "/login;x=1",
        "/login%00",
        "/login%2f",
        "/%252e/login",
        "/login%3Fx",
        "\\login",
        "http://service.test/login",
    ];
    for spelling in spellings {
        let answer = weir.get(spelling).await;
        assert!(matches!(answer.status, 200 | 400 | 404 | 429), "{spelling}: {answer:?}");
    }
    assert_eq!(weir.get("/login").await.status, 429);
    assert_eq!(up.count("/login"), BURST);
    // Other paths are other paths: what is to be limited with them is named by a pattern.
    let others = [("/LOGIN", 1), ("/login/", 3), ("/login;x=1", 1), ("/%252e/login", 1), ("/login%3Fx", 1)];
    assert_eq!(others.map(|(path, _)| (path, up.count(path))), others);
    assert_eq!(up.total(), BURST + 7, "nothing else is forwarded");
}

#[tokio::test]
async fn r4_two_hundred_streams_at_once_are_the_burst_at_most() {
    const STREAMS: usize = 200;
    for_both(|store| async move {
        let up = service();
        let fleet = if matches!(store, Store::Redis(_)) { 2 } else { 1 };
        // Enough that the bucket lends.
        let config = limited("'header:x-api-key'").replace(&format!("burst = {BURST}"), "burst = 48");
        let mut setup = store.apply(weir(&config).to(up.url()));
        if fleet > 1 {
            setup = setup.set("redis.deadline", "1s");
        }
        let weirs = setup.fleet(fleet).await;
        for (identity, connections) in [("one", 1), ("four", 4)] {
            let mut lines = Vec::new();
            for nth in 0..connections {
                lines.push(H2::open(weirs[nth % fleet].proxy).await);
            }
            let ask = |nth: usize| {
                let line = lines[nth % connections].clone();
                async move {
                    let request =
                        http::Request::get(format!("http://service.test/{nth}")).header("x-api-key", identity);
                    line.send(request.body(http_body_util::Full::default()).expect("a request")).await
                }
            };
            let answers: Vec<Answer> = join_all((0..STREAMS).map(ask)).await;
            let count = |status| answers.iter().filter(|answer| answer.status == status).count();
            assert_eq!(count(200) + count(429), STREAMS);
            assert!(count(200) <= 48, "{} of {STREAMS} over {connections} connections", count(200));
            // What a second pod was lent and did not spend is all that may be missing.
            assert!(count(200) >= 48 - 8, "only {}", count(200));
        }
    })
    .await;
}

#[tokio::test]
async fn r5_identities_without_number_end_and_are_small() {
    let (up, redis) = (service(), redis());
    let many = scale("WEIR_IDENTITIES", 300).min(20_000);
    let algorithms = ["token_bucket', burst = 3, 'x", "sliding_window", "fixed_window", "sliding_log"];
    for algorithm in algorithms {
        let (name, burst) = algorithm.split_once("', ").map_or((algorithm, ""), |(name, _)| (name, ", burst = 3"));
        redis.cli(&["FLUSHALL"]);
        let config = limited("'header:x-api-key', 'ip'").replace(", burst = 3", burst);
        let config = config.replace("rate = '1/h'", &format!("algorithm = '{name}', rate = '3/h'"));
        let weir = weir(&config).to(up.url()).redis(&redis).start().await;
        let identity = |nth: usize| match nth % 4 {
            0 => format!("{nth}"),
            1 => format!("{nth}-{}", "k".repeat(20_000)),
            2 => format!("\u{43a}\u{43b}\u{44e}\u{447}-{nth}"),
            _ => format!("{nth}, {}", "a,".repeat(500)),
        };
        for nth in 0..many {
            assert_eq!(weir.send(with(&[("x-api-key", &identity(nth))])).await.status, 200, "{name}");
        }
        let keys = redis.cli(&["KEYS", "*:l*"]);
        let keys: Vec<&str> = keys.lines().collect();
        assert_eq!(keys.len(), many, "{name}");
        for key in keys {
            let ends_in: i64 = redis.cli(&["PTTL", key]).parse().expect("a number");
            let bytes: usize = redis.cli(&["MEMORY", "USAGE", key]).parse().expect("a number");
            assert!(ends_in > 0 && ends_in <= 2 * 3_600_000 + 1_000, "{name}: {key} ends in {ends_in} ms");
            assert!(bytes <= KEY_BYTES, "{name}: {key} has {bytes} bytes");
        }
    }
}

/// What Redis needs at most for an identity that came once, its key and its place in Redis' tables included.
const KEY_BYTES: usize = 320;
