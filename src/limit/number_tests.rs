use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

fn search(pointer: &str) -> Search {
    Search::new(Arc::new(Pointer::parse(pointer).unwrap()))
}

fn found(pointer: &str, text: &str) -> Option<f64> {
    let mut search = search(pointer);
    search.feed(text.as_bytes());
    search.end();
    search.found()
}

#[test]
fn the_number_at_the_pointer_is_found() {
    for (pointer, text, expected) in [
        ("/usage/total_tokens", r#"{"id":"x","usage":{"prompt":3,"total_tokens":17}}"#, Some(17.0)),
        ("/usage/total_tokens", r#" { "usage" : { "total_tokens" : 17 } } "#, Some(17.0)),
        ("/usage/total_tokens", r#"{"other":{"total_tokens":1},"usage":{"total_tokens":17}}"#, Some(17.0)),
        ("/usage/total_tokens", r#"{"usage":{"deep":{"total_tokens":1},"total_tokens":17}}"#, Some(17.0)),
        ("/usage/total_tokens", r#"{"usage":[{"total_tokens":1}]}"#, None),
        ("/usage/total_tokens", r#"[{"usage":{"total_tokens":1}}]"#, None),
        ("/a/1/b", r#"{"a":[{"b":1},{"b":2},{"b":3}]}"#, Some(2.0)),
        ("/a/1/1", r#"{"a":[[0,1],[[9,9],3,4]]}"#, Some(3.0)),
        ("/a/2", r#"{"a":[[7,8],{"2":5},6]}"#, Some(6.0)),
        ("/a/01", r#"{"a":[1,2]}"#, None),
        ("/a/0", r#"{"a":{"0":4}}"#, Some(4.0)),
        ("/a/0", r#"{"a":[]}"#, None),
        ("", "42", Some(42.0)),
        ("", " 42\n", Some(42.0)),
        ("", r#"{"a":1}"#, None),
        ("/", r#"{"":5}"#, Some(5.0)),
        ("/a~1b/m~0n", r#"{"a/b":{"m~n":8}}"#, Some(8.0)),
        ("/usage", r#"{"\u0075s\u0061ge":6}"#, Some(6.0)),
        ("/😀", "{\"\\ud83d\\ude00\":6}", Some(6.0)),
        ("/😀", "{\"😀\":6}", Some(6.0)),
        ("/a\"b\n", r#"{"a\"b\n":6}"#, Some(6.0)),
        // Names that begin alike, or are half a character.
        ("/usage", r#"{"usag":1,"usages":2,"usage\ud83d":3,"\ud83dusage":4,"usage":5}"#, Some(5.0)),
        // What looks like it inside a string.
        ("/a", r#"{"b":"\"a\":1,{[","c\\":"\\","a":2}"#, Some(2.0)),
        // The first that is there counts.
        ("/a", r#"{"a":1,"a":2}"#, Some(1.0)),
    ] {
        assert_eq!(found(pointer, text), expected, "{pointer} of {text}");
    }
}

#[test]
fn only_numbers_are_numbers() {
    let huge = "9".repeat(400);
    for (text, expected) in [
        ("0", Some(0.0)),
        ("-0", Some(0.0)),
        ("-12", Some(-12.0)),
        ("12.5", Some(12.5)),
        ("1e3", Some(1000.0)),
        ("1.5E+2", Some(150.0)),
        ("1e-2", Some(0.01)),
        ("18446744073709551617", Some(18_446_744_073_709_551_617.0)),
        ("1e400", Some(f64::INFINITY)),
        ("-1e400", Some(f64::NEG_INFINITY)),
        (&huge, Some(f64::INFINITY)),
        (&format!("-{huge}"), Some(f64::NEG_INFINITY)),
        (&format!("0.{huge}"), None),
        ("\"12\"", None),
        ("true", None),
        ("null", None),
        ("NaN", None),
        ("Infinity", None),
        ("-", None),
        ("+1", None),
        ("01", None),
        ("1.", None),
        (".5", None),
        ("1e", None),
        ("0x10", None),
        ("1-2", None),
        ("[1]", None),
        ("{}", None),
    ] {
        assert_eq!(found("/n", &format!("{{\"n\":{text}}}")), expected, "{text}");
    }
}

#[test]
fn what_is_no_json_or_too_deep_has_no_number() {
    for text in ["", "{", "}", "]", "[DONE]", "{\"a\"}", "{\"b\":1 \"a\":2}", "{a:1}", "{\"b\":1]\"a\":2}", "<a>1</a>"]
    {
        assert_eq!(found("/a", text), None, "{text}");
    }
    let nested = |depth: usize| format!("{{\"b\":{}{},\"a\":1}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(found("/a", &nested(DEPTH_MAX - 1)), Some(1.0));
    assert_eq!(found("/a", &nested(DEPTH_MAX)), None);
}

#[test]
fn a_number_counts_once_it_has_ended() {
    let mut search = search("/a");
    search.feed(b"{\"a\":1");
    assert_eq!(search.found(), None, "it may go on");
    search.feed(b"2");
    search.feed(b"}");
    assert_eq!(search.found(), Some(12.0));
    assert!(search.is_over());
    search.restart();
    search.feed(b"{\"b\":[],\"a\":3}");
    assert_eq!(search.found(), Some(3.0));
}

/// JSON of any form, with names that are easily mistaken for each other.
fn json() -> impl Strategy<Value = Value> {
    let name = || proptest::sample::select(vec!["", "a", "ab", "b", "0", "1", "a/b", "~", "é", "\"", "\\", "😀"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
        any::<String>().prop_map(Value::from),
        name().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        let members = proptest::collection::vec((name(), inner.clone()), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            members.prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    })
}

/// Every place in a document, and some beside it.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    let below = |name: &str| format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
    all.extend([below("a"), below("0")]);
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(nth, item)| places(item, &below(&nth.to_string()), all));
        }
        Value::Object(members) => members.iter().for_each(|(name, member)| places(member, &below(name), all)),
        _ => {}
    }
}

proptest! {
    /// serde_json is the model; pieces end anywhere.
    #[test]
    fn it_finds_what_a_whole_parser_finds(value in json(), pretty in any::<bool>(), cuts in 1u64..) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let mut all = Vec::new();
        places(&value, "", &mut all);
        for place in all {
            let mut search = search(&place);
            let mut rest = text.as_bytes();
            for nth in 0.. {
                let (piece, behind) = rest.split_at(rest.len().min((cuts >> (nth % 16 * 4) & 15) as usize));
                search.feed(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            search.end();
            let expected = value.pointer(&place).and_then(Value::as_f64);
            prop_assert_eq!(search.found(), expected, "{} of {}", place, text);
            prop_assert_eq!(found(&place, &text), expected, "{} of {} at once", place, text);
        }
    }

    /// Whatever it is fed: where it is valid, it agrees.
    #[test]
    fn it_survives_what_is_no_json(text in "[\\[\\]{}\",:\\\\u01a.eE+ -]{0,60}") {
        let said = found("/a/0", &text);
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            prop_assert_eq!(said, value.pointer("/a/0").and_then(Value::as_f64), "{}", text);
        }
    }
}
