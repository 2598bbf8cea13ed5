//! What a value of a wrong type should have been, in words, and what to type in its place.

use std::time::Duration;

use serde_json::Value;
use toml::de::DeValue;

use super::shape::{choices, fits, listed};
use crate::config::text::Grammar;
use crate::syntax::rate::Rate;

/// Kinds of text that may be a number: what was given only lacks its quotes.
const FREE: [&str; 3] = ["a name", "a namespace", "a field value"];

/// What `schema` asks for, with its article.
pub(super) fn expected(schema: &Value) -> String {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().map(expected).collect::<Vec<_>>().join(" or ");
    }
    if choices(schema).is_some() {
        return "text".to_owned();
    }
    match (schema["x-kind"].as_str(), schema["type"].as_str()) {
        (Some(kind), _) => format!("{kind} in quotes"),
        (None, Some("string")) => "text".to_owned(),
        (None, Some("integer")) => "a whole number".to_owned(),
        (None, Some("number")) => "a number".to_owned(),
        (None, Some("boolean")) => "true or false".to_owned(),
        (None, Some("array")) => "a list".to_owned(),
        _ => "a table".to_owned(),
    }
}

/// What is there instead. Never the value itself: it may be a secret that lacks its quotes.
pub(super) fn given(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// What to write in place of `found`, as near to it as can be guessed.
pub(super) fn remedy(schema: &Value, found: &DeValue<'_>, key: &str) -> String {
    if schema["items"]["type"] == "object" && found.is_table() {
        return format!("write [[{key}]] with two brackets, once for each {key}");
    }
    if schema["type"] == "array"
        && fits(&schema["items"], found)
        && let Some(value) = rendered(found)
    {
        return format!("put it in brackets: [{value}]");
    }
    let meant = match found {
        DeValue::Integer(number) if number.radix() == 10 => {
            with_unit(schema, number.as_str()).map(|value| format!("\"{value}\", or another unit"))
        }
        DeValue::Float(number) if accepts(schema, "integer") => whole(number.as_str()),
        DeValue::String(text) => bare(schema, text.trim()),
        _ => None,
    };
    let quoted = || rendered(found).filter(|_| is_free(schema));
    let meant = meant.or_else(|| quoted().map(|value| format!("\"{value}\", in quotes")));
    format!("write {}", meant.unwrap_or_else(|| in_place(schema)))
}

/// A value that would do, as it is typed.
pub(super) fn example(schema: &Value) -> String {
    if let Some(value) = schema["examples"].get(0) {
        return typed(value);
    }
    if let Some(first) = schema["anyOf"].get(0) {
        return example(first);
    }
    if let Some(known) = choices(schema) {
        return format!("\"{}\"", known.first().unwrap_or(&"..."));
    }
    match schema["type"].as_str() {
        Some("string") => "\"...\"".to_owned(),
        Some("integer" | "number") => "1".to_owned(),
        Some("boolean") => "true".to_owned(),
        Some("array") => format!("[{}]", example(&schema["items"])),
        _ => {
            let properties = schema["properties"].as_object();
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let inner = properties.into_iter().flatten();
            let keys = inner.enumerate().filter(|(nth, (key, _))| match required.is_empty() {
                true => *nth == 0,
                false => required.contains(&key.as_str()),
            });
            let keys: Vec<String> = keys.map(|(_, (key, inner))| format!("{key} = {}", example(inner))).collect();
            format!("{{ {} }}", keys.join(", "))
        }
    }
}

/// What would do, where all of it can be said.
fn in_place(schema: &Value) -> String {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().map(example).collect::<Vec<_>>().join(" or ");
    }
    if let Some(known) = choices(schema) {
        return format!("one of {}", listed(known.iter().map(|choice| format!("\"{choice}\""))));
    }
    match schema["type"].as_str() {
        Some("integer") => format!("a whole number, such as {}", example(schema)),
        Some("boolean") => "true or false".to_owned(),
        _ => example(schema),
    }
}

/// A number or a truth that stands in quotes, without them.
fn bare(schema: &Value, text: &str) -> Option<String> {
    if accepts(schema, "integer") && text.parse::<i64>().is_ok() {
        return Some(format!("{text}, without quotes"));
    }
    let truth = match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => "true",
        "false" | "no" | "off" => "false",
        _ => return None,
    };
    accepts(schema, "boolean").then(|| format!("{truth}, without quotes"))
}

/// The whole numbers around one that is none.
fn whole(number: &str) -> Option<String> {
    let number: f64 = number.parse().ok()?;
    let (below, above) = (number.floor(), number.ceil());
    let is_usable = (0.0..1e9).contains(&below);
    is_usable.then(|| if below < above { format!("{below} or {above}") } else { below.to_string() })
}

/// The number with the unit that it probably had: the first by which the setting can have that value.
fn with_unit(schema: &Value, number: &str) -> Option<String> {
    type IsRead = fn(&str, &Value) -> bool;
    let (units, is_read): (&[&str], IsRead) = match schema["x-kind"].as_str()? {
        Duration::KIND => (&["s", "ms", "m", "h"], within::<Duration>),
        usize::KIND => (&["B", "KiB", "MiB"], within::<usize>),
        Rate::KIND => (&["/s"], |text, _| Rate::read(text).is_ok()),
        f64::KIND => (&["%"], |text, _| f64::read(text).is_ok()),
        _ => return None,
    };
    units.iter().map(|unit| format!("{number}{unit}")).find(|text| is_read(text, &schema["x-range"]))
}

fn within<T: Grammar + PartialOrd>(text: &str, range: &Value) -> bool {
    let bound = |nth: usize| range[nth].as_str().and_then(|bound| T::read(bound).ok());
    let Ok(value) = T::read(text) else { return false };
    bound(0).is_none_or(|least| value >= least) && bound(1).is_none_or(|most| value <= most)
}

fn accepts(schema: &Value, kind: &str) -> bool {
    schema["type"] == kind
        || schema["anyOf"].as_array().is_some_and(|choices| choices.iter().any(|choice| accepts(choice, kind)))
}

fn is_free(schema: &Value) -> bool {
    schema["x-kind"].as_str().is_some_and(|kind| FREE.contains(&kind))
        || schema["anyOf"].as_array().is_some_and(|choices| choices.iter().any(is_free))
}

/// The value as it is typed, if it is short; not where a password may be in it.
fn rendered(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => (!text.contains('@')).then(|| format!("\"{}\"", text.escape_debug())),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

/// JSON as TOML.
fn typed(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(typed).collect::<Vec<_>>().join(", ")),
        Value::Object(keys) => {
            let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            let key = |key: &str| if key.chars().all(is_bare) { key.to_owned() } else { format!("\"{key}\"") };
            let keys: Vec<String> =
                keys.iter().map(|(name, value)| format!("{} = {}", key(name), typed(value))).collect();
            format!("{{ {} }}", keys.join(", "))
        }
        other => other.to_string(),
    }
}
