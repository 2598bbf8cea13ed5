use http::header::AUTHORIZATION;
use serde_json::json;

use super::super::tests::hourly;
use super::*;
use crate::config::Stage;

fn parts(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn limit(key: Vec<IdentityPart>) -> config::Limit {
    config::Limit { key, ..hourly("l", 1, Stage::Request) }
}

fn header(name: &'static str) -> IdentityPart {
    IdentityPart::Header(HeaderName::from_static(name))
}

fn claim(name: &str) -> IdentityPart {
    IdentityPart::Claim { name: name.to_owned(), field: AUTHORIZATION }
}

/// As requests have it.
fn of_request(key: &[IdentityPart], ip: &str, fields: &[(&str, &str)], query: &str) -> Vec<u8> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let (ip, query, method) = (ip.parse().unwrap(), Some(query), Method::PUT);
    let facts = Facts { ip, headers: &headers, query, route: "catalog", host: "Shop.example:443", method: &method };
    let mut out = Vec::new();
    identity::canonical(key, &facts, &mut out);
    out
}

#[test]
fn what_is_given_is_who_asks() {
    let token = format!("Bearer {}.{}.x", "e30", base64url(br#"{"sub":"a b","n":7,"realm":{"tenant":"7"}}"#));
    let cases: [(IdentityPart, &str, &[&str]); 11] = [
        (IdentityPart::Ip, "ip", &["2001:db8::9", "2001:0db8:0:0:1::1"]),
        (header("x-key"), "header:X-Key", &["a,b", "a ,, b"]),
        (IdentityPart::Cookie("s".to_owned()), "cookie:s", &["a=b", "\"a=b\""]),
        (IdentityPart::Query("q q".to_owned()), "query:q q", &["a&b + c"]),
        (claim("sub"), "unverified-claim:sub", &["a b", "\"a b\""]),
        (claim("n"), "unverified-claim:n", &["7"]),
        (claim("realm.tenant"), "unverified-claim:realm.tenant", &["\"7\""]),
        (IdentityPart::Route, "route", &["catalog"]),
        (IdentityPart::Host, "host", &["shop.example", "SHOP.example."]),
        (IdentityPart::Method, "method", &["PUT"]),
        (header("absent"), "header:absent", &["", " ,"]),
    ];
    let fields = [("x-key", "a, b,b"), ("cookie", "t=1; s=\"a=b\""), ("authorization", &*token)];
    for (part, name, values) in cases {
        let key = vec![part];
        let asked = of_request(&key, "2001:db8::1", &fields, "z=1&q%20q=a%26b+%2b+c");
        for value in values {
            let given = canonical(&limit(key.clone()), &["a", "b"], &parts(&[(name, value)]));
            assert_eq!(given.as_ref(), Ok(&asked), "{name}={value}");
        }
    }
    let number = canonical(&limit(vec![claim("realm.tenant")]), &[], &parts(&[("unverified-claim:realm.tenant", "7")]));
    assert!(number.is_ok_and(|number| number != of_request(&[claim("realm.tenant")], "::1", &fields, "")));
}

#[test]
fn several_parts_stand_in_the_limits_order() {
    let key = vec![IdentityPart::Ip, header("x-key"), IdentityPart::Route];
    let asked = of_request(&key, "::ffff:192.0.2.7", &[("x-key", "k")], "");
    let given = parts(&[("header:x-key", "k"), ("ip", "192.0.2.7")]);
    assert_eq!(
        canonical(&limit(key.clone()), &["catalog"], &given),
        Ok(asked.clone()),
        "the only route goes without saying"
    );
    assert_eq!(Value::from(shown(&key, &asked)), json!({ "ip": "192.0.2.7", "header:x-key": "k", "route": "catalog" }));
    let long = "x".repeat(300);
    let asked = of_request(&key, "2001:db8:1:2:3::", &[("x-key", &long)], "");
    let shown = shown(&key, &asked);
    assert_eq!(shown["ip"], "2001:db8:1:2::/64");
    let digest = shown["header:x-key"].as_str().unwrap();
    assert!(digest.starts_with("sha256:") && digest.len() == 7 + 64, "{digest}");
}

#[test]
fn what_is_wrong_is_named_without_its_value() {
    let key = vec![IdentityPart::Ip, IdentityPart::Cookie("s".to_owned()), IdentityPart::Route];
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("ip", "::1")], "`cookie:s` is missing"),
        (&[("ip", "here"), ("cookie:s", "secret")], "this is no value for `ip`"),
        (&[("ip", "::1"), ("cookie:s", "secret;x=1"), ("route", "a")], "this is no value for `cookie:s`"),
        (&[("ip", "::1"), ("ip", "::2"), ("cookie:s", "secret")], "`ip` comes twice"),
        (&[("ip", "::1"), ("cookie:s", "secret")], "`route` is missing"),
        (&[("ip", "::1"), ("cookie:s", "secret"), ("route", "a"), ("host", "h")], "`host` is no part"),
    ];
    for (given, expected) in cases {
        let problem = canonical(&limit(key.clone()), &["a", "b"], &parts(given)).unwrap_err();
        assert!(problem.problem.contains(expected), "{given:?}: {problem}");
        assert!(!problem.to_string().contains("secret"), "{problem}");
        assert!(problem.remedy.contains("ip=..&cookie:s=..&route=.."), "{problem}");
    }
}
