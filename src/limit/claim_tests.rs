use http::HeaderValue;
use http::header::AUTHORIZATION;
use proptest::prelude::*;

use super::*;

fn encoded(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        text.extend((0..=chunk.len()).map(|nth| char::from(ALPHABET[(bits >> (18 - 6 * nth) & 63) as usize])));
    }
    text
}

fn bearer(claims: &str) -> String {
    format!("Bearer {}.{}.c2ln", encoded(br#"{"alg":"RS256"}"#), encoded(claims.as_bytes()))
}

fn fields(lines: &[&str]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines {
        fields.append(AUTHORIZATION, HeaderValue::from_str(line).unwrap());
    }
    fields
}

fn of(name: &str, claims: &str) -> Option<Claim> {
    claim(name, &AUTHORIZATION, &fields(&[&bearer(claims)]))
}

fn text(text: &str) -> Option<Claim> {
    Some(Claim::Text(text.to_owned()))
}

fn other(text: &str) -> Option<Claim> {
    Some(Claim::Other(text.to_owned()))
}

#[test]
fn a_claim_is_found_by_its_name_or_by_its_way() {
    let claims = r#"{"iss":"a","sub":"u\u00e91","n":7,"neg":-7,"yes":true,"realm":{"tenant":"t","deep":{"er":1}},
        "https://id.example/role":"admin","list":["x",{"sub":"y"}],"other":{"sub":"z"}}"#;
    for (name, expected) in [
        ("sub", text("ué1")),
        ("n", other("7")),
        ("neg", other("-7")),
        ("yes", other("true")),
        ("realm.tenant", text("t")),
        ("realm.deep.er", other("1")),
        ("https://id.example/role", text("admin")),
        ("realm", None),
        ("realm.deep", None),
        ("list", None),
        ("list.sub", None),
        ("sub.x", None),
        ("tenant", None),
        ("Sub", None),
    ] {
        assert_eq!(of(name, claims), expected, "{name}");
    }
}

#[test]
fn what_is_odd_is_no_claim() {
    for claims in [
        r#"{"sub":"a","sub":"b"}"#,
        r#"{"sub":null,"sub":"b"}"#,
        r#"{"sub":""}"#,
        r#"{"sub":null}"#,
        r#"{"sub":1.5}"#,
        r#"{"sub":1e3}"#,
        r#"{"sub":{"sub":"a"}}"#,
        r#"{"sub":["a"]}"#,
        r#"{"sub":"a"} "#.trim_end().trim_end_matches('}'),
        r#"{"sub":"a"}{}"#,
        r#"{"sub":"a",}"#,
        r#"["sub","a"]"#,
        r#""sub""#,
        "",
        "{\"sub\":\"a\u{1}\"}",
    ] {
        assert_eq!(of("sub", claims), None, "{claims}");
    }
    assert_eq!(of("a.b", r#"{"a.b":"x","a":{"b":"y"}}"#), None, "two ways to it");
    assert_eq!(of("sub", &format!("{{\"x\":{}1{},\"sub\":\"a\"}}", "[".repeat(5000), "]".repeat(5000))), text("a"));
    let mut latin = fields(&[]);
    let raw = [b"e30.".to_vec(), encoded(b"{\"sub\":\"\xff\"}").into_bytes(), b".c".to_vec()].concat();
    latin.insert(AUTHORIZATION, HeaderValue::from_bytes(&raw).unwrap());
    assert_eq!(claim("sub", &AUTHORIZATION, &latin), None, "no UTF-8");
}

#[test]
fn a_token_has_one_form() {
    let good = bearer(r#"{"sub":"a"}"#);
    let bare = good.strip_prefix("Bearer ").unwrap();
    let [header, payload, signature] = bare.split('.').collect::<Vec<_>>()[..] else { panic!("{bare}") };
    for line in [good.clone(), format!("bEARER   {bare}"), bare.to_owned(), format!("{header}.{payload}.")] {
        assert_eq!(claim("sub", &AUTHORIZATION, &fields(&[&line])), text("a"), "{line}");
    }
    for line in [
        format!("Basic {bare}"),
        format!("{header}.{payload}"),
        format!("{bare}.x.y"),
        format!(".{payload}.{signature}"),
        format!("{header}.{payload}=.{signature}"),
        format!("{header}.{payload}A.{signature}"),
        format!("{header}.+{payload}.{signature}"),
        format!("{header}..{signature}"),
        "Bearer".to_owned(),
        String::new(),
    ] {
        assert_eq!(claim("sub", &AUTHORIZATION, &fields(&[&line])), None, "{line}");
    }
    assert_eq!(claim("sub", &AUTHORIZATION, &fields(&[&good, &good])), None, "which of them?");
    let long = |length| bearer(&format!(r#"{{"sub":"a","x":"{}"}}"#, "x".repeat(length)));
    assert_eq!(claim("sub", &AUTHORIZATION, &fields(&[&long(12_000)])), text("a"));
    assert_eq!(claim("sub", &AUTHORIZATION, &fields(&[&long(12_288)])), None);
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(base64url(encoded(&bytes).as_bytes()), Some(bytes));
    }

    #[test]
    fn each_payload_has_one_spelling(spelling in "[A-Za-z0-9_-]{0,12}") {
        if let Some(bytes) = base64url(spelling.as_bytes()) {
            prop_assert_eq!(encoded(&bytes), spelling);
        }
    }

    #[test]
    fn nothing_panics(line in prop::collection::vec(32_u8..255, 0..300), claims in ".{0,60}") {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&line) {
            headers.insert(AUTHORIZATION, value);
        }
        let _ = claim("sub", &AUTHORIZATION, &headers);
        let _ = of("sub", &claims);
    }
}
