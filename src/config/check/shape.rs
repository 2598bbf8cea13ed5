//! Holds the document against the schema: every unknown key, wrong type and unknown choice, all at once.
//!
//! serde stops at the first of these. What is wrong is reported and taken out of the document, so that the rest of it can
//! still be read and checked in the same run.

use std::borrow::Cow;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::nearest;
use crate::config::report::{Problem, Severity, Sources, Span};

/// Most choices or keys that a remedy lists.
const LISTED: usize = 12;

/// Reports what does not fit `schema`, and takes it out of `root`.
pub(super) fn prune(
    schema: &Value,
    root: &mut Spanned<DeTable<'_>>,
    sources: &Sources<'_>,
    problems: &mut Vec<Problem>,
) {
    let mut shape = Shape { sources, problems };
    if let Value::Object(schema) = schema {
        shape.table(schema, None, root.get_mut(), "");
    }
}

struct Shape<'s, 't> {
    sources: &'s Sources<'t>,
    problems: &'s mut Vec<Problem>,
}

impl Shape<'_, '_> {
    fn error(&mut self, span: Option<&Span>, text: String, remedy: String) {
        self.problems.push(self.sources.problem(Severity::Error, span, text, remedy));
    }

    /// Whether `value` may stay.
    fn value(&mut self, schema: &Value, value: &mut Spanned<DeValue<'_>>, key: &str) -> bool {
        let span = value.span();
        self.as_text(schema, value);
        if let Some(choices) = schema["anyOf"].as_array() {
            return match choices.iter().find(|choice| fits(choice, value.get_ref())) {
                Some(choice) => self.value(choice, value, key),
                None => self.wrong_type(schema, value.get_ref(), &span, key),
            };
        }
        if let Some(known) = choices(schema) {
            let DeValue::String(text) = value.get_ref() else {
                return self.wrong_type(schema, value.get_ref(), &span, key);
            };
            return known.contains(&text.as_ref()) || self.unknown_choice(&known, text, &span, key);
        }
        if !fits(schema, value.get_ref()) {
            return self.wrong_type(schema, value.get_ref(), &span, key);
        }
        match value.get_mut() {
            DeValue::Array(items) => {
                let kept = std::mem::replace(items, DeArray::new()).into_iter().filter_map(|mut item| {
                    let keep = self.value(&schema["items"], &mut item, key);
                    keep.then_some(item)
                });
                *items = kept.collect();
                true
            }
            DeValue::Table(table) => {
                if let Value::Object(schema) = schema {
                    self.table(schema, Some(&span), table, key);
                }
                true
            }
            DeValue::Integer(number) if i64::from_str_radix(number.as_str(), number.radix()).is_err() => {
                self.error(Some(&span), format!("`{key}` is too large a number"), "write a smaller one".to_owned());
                false
            }
            _ => true,
        }
    }

    /// On the command line and in the environment nobody quotes: what must be text is text there, even if it looks like a
    /// number.
    fn as_text(&self, schema: &Value, value: &mut Spanned<DeValue<'_>>) {
        let scalar = !matches!(value.get_ref(), DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_));
        if scalar
            && (schema["type"] == "string" || choices(schema).is_some())
            && let Some(text) = self.sources.override_text(&value.span())
        {
            *value.get_mut() = DeValue::String(Cow::Owned(text.trim().to_owned()));
        }
    }

    fn table(&mut self, schema: &Map<String, Value>, span: Option<&Span>, table: &mut DeTable<'_>, path: &str) {
        let empty = Map::new();
        let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let mut refused = Vec::new();
        for (key, value) in table.iter_mut() {
            let name = key.get_ref().as_ref();
            let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let keep = match known.get(name).or(others) {
                Some(schema) => self.value(schema, value, &full),
                None => self.unknown_key(known, name, &key.span(), path),
            };
            if !keep {
                refused.push(name.to_owned());
            }
        }
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            if !table.contains_key(required) {
                let owner = if path.is_empty() { "the configuration".to_owned() } else { format!("`{path}`") };
                let (noun, remedy) = match known.get(required) {
                    Some(schema) if schema["type"] == "object" => ("table", format!("write a table [{required}]")),
                    Some(schema) => ("key", format!("write {required} = {}", example(schema, required))),
                    None => ("key", format!("write {required}")),
                };
                self.error(span, format!("{owner} has no {noun} `{required}`"), remedy);
            }
        }
        for name in refused {
            table.remove(name.as_str());
        }
    }

    fn unknown_key(&mut self, known: &Map<String, Value>, name: &str, span: &Span, path: &str) -> bool {
        let owner = if path.is_empty() { "at the top".to_owned() } else { format!("in `{path}`") };
        let text = format!("unknown key `{}` {owner}", name.escape_debug());
        let deeper = || {
            known
                .iter()
                .find(|(_, schema)| schema["properties"].get(name).is_some())
                .map(|(key, _)| format!("{key}.{name}"))
        };
        let remedy = match deeper().or_else(|| nearest(name, known.keys().map(String::as_str)).map(str::to_owned)) {
            Some(near) => format!("write `{near}`"),
            None => format!("known here: {}", listed(known.keys().map(|key| format!("`{key}`")))),
        };
        self.error(Some(span), text, remedy);
        false
    }

    fn unknown_choice(&mut self, known: &[&str], found: &str, span: &Span, key: &str) -> bool {
        let all = listed(known.iter().map(|choice| format!("\"{choice}\"")));
        // "http2" is no slip of the pen for "http1".
        let letters = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let slip = |near: &&str| letters(near) != letters(found);
        let remedy = match nearest(found, known.iter().copied()).filter(slip) {
            Some(near) => format!("write \"{near}\" (known here: {all})"),
            None => format!("write one of {all}"),
        };
        self.error(Some(span), format!("`{key}` cannot be \"{}\"", found.escape_debug()), remedy);
        false
    }

    fn wrong_type(&mut self, schema: &Value, found: &DeValue<'_>, span: &Span, key: &str) -> bool {
        let text = format!("`{key}` is {}, not {}", kind_of(found), expected(schema));
        let remedy = if schema["items"]["type"] == "object" && found.is_table() {
            format!("write [[{key}]] with two brackets, once for each {key}")
        } else if schema["type"] == "array" && !found.is_array() {
            format!("put it in brackets: [{}]", example(&schema["items"], key))
        } else if let (DeValue::Integer(number), Some(unit)) = (found, schema["x-kind"].as_str().and_then(unit_of)) {
            format!("write \"{number}{unit}\", or another unit")
        } else {
            format!("write {}", example(schema, key))
        };
        self.error(Some(span), text, remedy);
        false
    }
}

/// The unit that a number without one probably had.
fn unit_of(kind: &str) -> Option<&'static str> {
    match kind {
        "a duration" => Some("s"),
        "a size" => Some("B"),
        "a rate" => Some("/s"),
        "a percentage" => Some("%"),
        _ => None,
    }
}

/// Whether `value` has the type that `schema` asks for.
fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().any(|choice| fits(choice, value));
    }
    match schema["type"].as_str() {
        Some("string") => value.is_str(),
        Some("integer") => value.is_integer(),
        Some("number") => value.is_integer() || value.is_float(),
        Some("boolean") => value.is_bool(),
        Some("array") => value.is_array(),
        Some("object") => value.is_table(),
        _ => true,
    }
}

/// The words that `schema` allows, if it is a choice.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    schema["oneOf"].as_array().map(|choices| {
        let words = choices.iter().flat_map(|choice| match choice["enum"].as_array() {
            Some(words) => words.iter().filter_map(Value::as_str).collect(),
            None => choice["const"].as_str().into_iter().collect::<Vec<_>>(),
        });
        words.collect()
    })
}

/// What `schema` asks for, with its article.
fn expected(schema: &Value) -> String {
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

/// A value that would do.
fn example(schema: &Value, key: &str) -> String {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().map(|choice| example(choice, key)).collect::<Vec<_>>().join(" or ");
    }
    if let Some(known) = choices(schema) {
        return listed(known.iter().map(|choice| format!("\"{choice}\"")));
    }
    if let Some(text) = schema["examples"][0].as_str() {
        return format!("\"{text}\"");
    }
    let last = key.rsplit('.').next().unwrap_or(key);
    match schema["type"].as_str() {
        Some("string") if last == "url" => "\"http://127.0.0.1:3000\"".to_owned(),
        Some("string") => "\"...\"".to_owned(),
        Some("integer") => "a whole number, without quotes".to_owned(),
        Some("number") => "a number, without quotes".to_owned(),
        Some("boolean") => "true or false, without quotes".to_owned(),
        Some("array") => format!("[{}]", example(&schema["items"], key)),
        _ => {
            let inner = schema["properties"].as_object().and_then(|keys| keys.keys().next());
            inner.map_or_else(|| "{ name = value }".to_owned(), |inner| format!("{{ {inner} = ... }}"))
        }
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn listed(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.collect();
    if words.len() > LISTED {
        words.truncate(LISTED);
        words.push("...".to_owned());
    }
    words.join(", ")
}
