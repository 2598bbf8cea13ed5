use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const NAME: HeaderName = HeaderName::from_static("x-api-key");

/// A request to vary.
struct Request {
    ip: IpAddr,
    headers: HeaderMap,
    query: Option<String>,
    host: String,
}

impl Default for Request {
    fn default() -> Self {
        Self { ip: [192, 0, 2, 1].into(), headers: HeaderMap::new(), query: None, host: "shop.example".to_owned() }
    }
}

impl Request {
    fn from(ip: &str) -> Self {
        Self { ip: ip.parse().unwrap(), ..Self::default() }
    }

    fn with(lines: &[(&'static str, &str)]) -> Self {
        let mut request = Self::default();
        for (name, value) in lines {
            request.headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        request
    }

    fn asking(query: &str) -> Self {
        Self { query: Some(query.to_owned()), ..Self::default() }
    }

    fn to(host: &str) -> Self {
        Self { host: host.to_owned(), ..Self::default() }
    }

    fn is(&self, parts: &[IdentityPart]) -> Vec<u8> {
        let facts = Facts {
            ip: self.ip,
            headers: &self.headers,
            query: self.query.as_deref(),
            route: "catalog",
            host: &self.host,
            method: &Method::GET,
        };
        let mut out = Vec::new();
        canonical(parts, &facts, &mut out);
        out
    }
}

/// All of these are one identity under `part`, and the last is another.
fn one_but_the_last(part: &IdentityPart, requests: &[Request]) {
    let ids: Vec<_> = requests.iter().map(|request| request.is(std::slice::from_ref(part))).collect();
    let (other, same) = ids.split_last().unwrap();
    for (index, id) in same.iter().enumerate() {
        assert_eq!(id, &same[0], "spelling {index}");
        assert_ne!(id, other, "spelling {index}");
    }
}

#[test]
fn an_address_is_one_however_it_is_written_and_an_ipv6_host_cannot_rotate() {
    one_but_the_last(&IdentityPart::Ip, &["192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"].map(Request::from));
    let v6 = ["2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:3::1"];
    one_but_the_last(&IdentityPart::Ip, &v6.map(Request::from));
}

#[test]
fn a_field_is_one_however_it_is_padded_or_repeated() {
    let part = IdentityPart::Header(NAME);
    let key = |lines: &[&str]| Request::with(&lines.iter().map(|line| ("x-api-key", *line)).collect::<Vec<_>>());
    let spellings =
        [key(&["a"]), key(&["  a "]), key(&["a", "a"]), key(&["a,a", "", " a"]), key(&[",a,"]), key(&["a", "b"])];
    one_but_the_last(&part, &spellings);
    one_but_the_last(&part, &[key(&[]), key(&[""]), key(&["", " , "]), key(&["-"])]);
    one_but_the_last(&part, &[key(&["a, b"]), key(&["a", "b"]), key(&["ab"])]);
}

#[test]
fn the_scheme_of_credentials_has_no_case_but_the_token_has() {
    let spellings = ["Bearer Xy", "bearer Xy", "BEARER   Xy", "bearer xy"];
    one_but_the_last(
        &IdentityPart::Header(AUTHORIZATION),
        &spellings.map(|value| Request::with(&[("authorization", value)])),
    );
}

#[test]
fn a_cookie_is_the_first_of_its_name() {
    let part = IdentityPart::Cookie("sid".to_owned());
    let spellings = ["sid=1", "a=b; sid=1; sid=2", " sid = 1 ", "sid=\"1\"", "sid=2; sid=1"];
    one_but_the_last(&part, &spellings.map(|value| Request::with(&[("cookie", value)])));
    one_but_the_last(
        &part,
        &[
            Request::with(&[("cookie", "xsid=1"), ("cookie", "sid=1")]),
            Request::with(&[("cookie", "sid=1")]),
            Request::with(&[("cookie", "xsid=1; SID=1")]),
        ],
    );
}

#[test]
fn a_parameter_is_one_however_it_is_escaped() {
    let part = IdentityPart::Query("a b".to_owned());
    let spellings = ["a+b=x%2fy", "a%20b=x/y", "%61%20b=x%2Fy&a+b=2", "z&a+b=%78/y", "a+b=x%2"];
    one_but_the_last(&part, &spellings.map(Request::asking));
    one_but_the_last(
        &part,
        &[Request::default(), Request::asking(""), Request::asking("a+b"), Request::asking("a+b=%00")],
    );
}

#[test]
fn a_host_is_one_in_any_case_with_or_without_a_default_port() {
    let spellings = ["shop.example", "SHOP.example", "shop.example:80", "Shop.Example.:443", "shop.example:8080"];
    one_but_the_last(&IdentityPart::Host, &spellings.map(Request::to));
    one_but_the_last(&IdentityPart::Host, &["[::80]", "[::80]:80", "[:"].map(Request::to));
}

#[test]
fn a_long_value_is_bounded_and_still_told_apart() {
    let part = [IdentityPart::Header(NAME), IdentityPart::Method];
    let long = "k".repeat(65_536);
    let (one, other) = (Request::with(&[("x-api-key", &long)]), Request::with(&[("x-api-key", &long[1..])]));
    assert!(one.is(&part).len() <= part.len() * (5 + VALUE_MAX));
    assert_ne!(one.is(&part), other.is(&part));
    // A short value cannot pass for the digest of a long one.
    let many = format!("{long},");
    assert_eq!(one.is(&part), Request::with(&[("x-api-key", &many)]).is(&part));
}

#[test]
fn a_pseudonym_is_of_one_length_and_another_under_another_secret() {
    let (one, other) = (Pseudonym::new(&Secret::new("one")), Pseudonym::new(&Secret::new("other")));
    assert_eq!(one.of(b"192.0.2.1"), one.of(b"192.0.2.1"));
    assert_ne!(one.of(b"192.0.2.1"), other.of(b"192.0.2.1"));
    assert_eq!(one.of(&[b'x'; 4096]).len(), 2 * PSEUDONYM_BYTES);
    assert!(one.of(b"").bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[test]
fn a_name_in_memory_depends_on_the_limit_too() {
    let names = LocalNames::default();
    assert_eq!(names.of("a", b"b"), names.of("a", b"b"));
    assert_ne!(names.of("a", b"b"), names.of("ab", b""));
    assert_ne!(names.of("a", b"b"), names.of("b", b"b"));
}

proptest! {
    #[test]
    fn no_two_identities_are_one(a in values(), b in values()) {
        let parts = [
            IdentityPart::Cookie("c".to_owned()),
            IdentityPart::Query("q".to_owned()),
            IdentityPart::Header(NAME),
            IdentityPart::Cookie("d".to_owned()),
        ];
        let is = |values: &[String; 4]| {
            let cookies = format!("c={}; d={}", values[0], values[3]);
            let mut request = Request::with(&[("cookie", &cookies), ("x-api-key", &values[2])]);
            request.query = Some(format!("q={}", values[1]));
            request.is(&parts)
        };
        prop_assert_eq!(a == b, is(&a) == is(&b));
    }
}

/// Few letters, so that equal ones come up, and some beyond the bound.
fn values() -> impl Strategy<Value = [String; 4]> {
    let value = || prop_oneof![5 => "[hcq45]{0,3}", 1 => "[ab]{255,258}"];
    [value(), value(), value(), value()]
}

#[test]
fn a_claim_is_text_or_another_value_and_who_has_none_lacks_it() {
    let part = IdentityPart::Claim { name: "sub".to_owned(), field: NAME };
    // {"sub":"7"}, again with its members in another order, {"sub":7}, and no token.
    let tokens = ["e30.eyJzdWIiOiI3In0.c", "e30.eyJhIjoxLCJzdWIiOiI3In0.x", "e30.eyJzdWIiOjd9.c", "e30.e30.c"];
    let said = |token: &str| Request::with(&[("x-api-key", token)]).is(std::slice::from_ref(&part));
    let [one, same, number, none] = tokens.map(said);
    assert_eq!(one, same);
    assert!(one != number && one != none && number != none);
    assert_eq!(none, Request::default().is(&[part]));
}

#[test]
fn an_identity_says_whether_a_part_is_lacking() {
    let request = Request::with(&[("x-api-key", "a")]);
    let is_whole = |parts: &[IdentityPart]| {
        let facts = Facts {
            ip: request.ip,
            headers: &request.headers,
            query: Some("a=&b=1"),
            route: "catalog",
            host: &request.host,
            method: &Method::GET,
        };
        canonical(parts, &facts, &mut Vec::new())
    };
    let query = |name: &str| IdentityPart::Query(name.to_owned());
    assert!(is_whole(&[IdentityPart::Ip, IdentityPart::Header(NAME), query("b"), IdentityPart::Route]));
    for lacking in [query("a"), query("c"), IdentityPart::Cookie("c".to_owned()), IdentityPart::Header(COOKIE)] {
        assert!(!is_whole(&[IdentityPart::Ip, lacking.clone()]), "{lacking}");
        assert!(!is_whole(&[lacking.clone(), IdentityPart::Ip]), "{lacking}");
    }
}
