//! Holds the document against the schema: every unknown key, wrong type and unknown choice, all at once.
//!
//! serde stops at the first of these. What is wrong is reported and taken out of the document, so that the rest of it can
//! still be read and checked in the same run.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::nearest;
use super::wording::{example, expected, given, remedy};
use crate::config::report::{Problem, Severity, Sources, Span};

/// Most choices or keys that a remedy lists.
const LISTED: usize = 12;

/// Reports what does not fit `schema`, and takes it out of `root`. The keys whose values were taken out, misspelt ones as
/// they were meant.
pub(super) fn prune(
    schema: &Value,
    root: &mut Spanned<DeTable<'_>>,
    sources: &Sources<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let mut shape = Shape { sources, misread: Vec::new(), problems };
    if let Value::Object(schema) = schema {
        shape.table(schema, None, root.get_mut(), "");
    }
    shape.misread
}

struct Shape<'s, 't> {
    sources: &'s Sources<'t>,
    misread: Vec<String>,
    problems: &'s mut Vec<Problem>,
}

/// What a value is called.
struct Key<'k> {
    /// Dotted.
    path: &'k str,
    /// Whether it is one of a list of that name.
    is_entry: bool,
}

impl Shape<'_, '_> {
    fn error(&mut self, span: Option<&Span>, text: String, remedy: String) {
        self.problems.push(self.sources.problem(Severity::Error, span, text, remedy));
    }

    /// Whether `value` may stay.
    fn value(&mut self, schema: &Value, value: &mut Spanned<DeValue<'_>>, key: &Key<'_>) -> bool {
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
                let key = Key { is_entry: true, ..*key };
                let entry = entry_schema(schema);
                let kept = std::mem::replace(items, DeArray::new()).into_iter().filter_map(|mut item| {
                    let keep = self.value(&entry, &mut item, &key);
                    keep.then_some(item)
                });
                *items = kept.collect();
                true
            }
            DeValue::Table(table) => {
                if let Value::Object(schema) = schema {
                    self.table(schema, Some(&span), table, key.path);
                }
                true
            }
            DeValue::Integer(number) if i64::from_str_radix(number.as_str(), number.radix()).is_err() => {
                let text = format!("`{}` is too large a number", key.path);
                self.refuse(key, &span, text, "write a smaller one".to_owned())
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
                Some(schema) => self.value(schema, value, &Key { path: &full, is_entry: false }),
                None => self.unknown_key(known, name, &key.span(), path, value.get_ref()),
            };
            if !keep {
                refused.push(name.to_owned());
            }
        }
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            let full = if path.is_empty() { required.to_owned() } else { format!("{path}.{required}") };
            if !table.contains_key(required) && !self.misread.contains(&full) {
                let owner = if path.is_empty() { "the configuration".to_owned() } else { format!("`{path}`") };
                let (noun, remedy) = match known.get(required) {
                    Some(schema) if schema["type"] == "object" => ("table", format!("write a table [{required}]")),
                    Some(schema) => ("key", format!("write {required} = {}", example(schema))),
                    None => ("key", format!("write {required}")),
                };
                self.error(span, format!("{owner} has no {noun} `{required}`"), remedy);
            }
        }
        for name in refused {
            table.remove(name.as_str());
        }
    }

    fn unknown_key(
        &mut self,
        known: &Map<String, Value>,
        name: &str,
        span: &Span,
        path: &str,
        value: &DeValue<'_>,
    ) -> bool {
        let owner = if path.is_empty() { "at the top".to_owned() } else { format!("in `{path}`") };
        let text = format!("unknown key `{}` {owner}", name.escape_debug());
        let deeper: Vec<(&String, &Value)> =
            known.iter().filter(|(_, schema)| schema["properties"].get(name).is_some()).collect();
        let takes = |(_, schema): &&(&String, &Value)| suits(&schema["properties"][name], value);
        let within = |(key, _): &(&String, &Value)| format!("{key}.{name}");
        let near = || nearest(name, known.keys().map(String::as_str)).map(str::to_owned);
        let meant = deeper.iter().find(takes).map(within).or_else(near).or_else(|| deeper.first().map(within));
        let remedy = match &meant {
            Some(near) if path.is_empty() && known.get(near).is_some_and(is_list_of_tables) => {
                format!("write [[{near}]]")
            }
            Some(near) => format!("write `{near}`"),
            None => format!("known here: {}", listed(known.keys().map(|key| format!("`{key}`")))),
        };
        self.error(Some(span), text, remedy);
        let full = |near| if path.is_empty() { near } else { format!("{path}.{near}") };
        self.misread.extend(meant.map(full));
        false
    }

    fn unknown_choice(&mut self, known: &[&str], found: &str, span: &Span, key: &Key<'_>) -> bool {
        let all = listed(known.iter().map(|choice| format!("\"{choice}\"")));
        // "http2" is no slip of the pen for "http1".
        let letters = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let slip = |near: &&str| letters(near) != letters(found);
        let remedy = match nearest(found, known.iter().copied()).filter(slip) {
            Some(near) => format!("write \"{near}\" (known here: {all})"),
            None => format!("write one of {all}"),
        };
        self.refuse(key, span, format!("`{}` cannot be \"{}\"", key.path, found.escape_debug()), remedy)
    }

    fn wrong_type(&mut self, schema: &Value, found: &DeValue<'_>, span: &Span, key: &Key<'_>) -> bool {
        let owner = if key.is_entry { "an entry of " } else { "" };
        let text = format!("{owner}`{}` must be {}; {} was given", key.path, expected(schema), given(found));
        self.refuse(key, span, text, remedy(schema, found, key.path))
    }

    /// Takes a value out.
    fn refuse(&mut self, key: &Key<'_>, span: &Span, text: String, remedy: String) -> bool {
        self.error(Some(span), text, remedy);
        self.misread.push(key.path.to_owned());
        false
    }
}

/// Whether `value` may be meant for a key of this `schema`: it has the type, and a table has a key that is known there.
fn suits(schema: &Value, value: &DeValue<'_>) -> bool {
    let is_known =
        |table: &DeTable<'_>| table.keys().any(|key| schema["properties"].get(key.get_ref().as_ref()).is_some());
    fits(schema, value) && value.as_table().is_none_or(|table| table.is_empty() || is_known(table))
}

/// What `schema` says of its entries; plain text has its example from that of the list.
fn entry_schema(schema: &Value) -> Cow<'_, Value> {
    let items = &schema["items"];
    match schema["examples"][0].get(0) {
        Some(first) if items["type"] == "string" && items.get("examples").is_none() => {
            Cow::Owned(json!({ "type": "string", "examples": [first] }))
        }
        _ => Cow::Borrowed(items),
    }
}

fn is_list_of_tables(schema: &Value) -> bool {
    schema["items"]["type"] == "object"
}

/// Whether `value` has the type that `schema` asks for.
pub(super) fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
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
pub(super) fn choices(schema: &Value) -> Option<Vec<&str>> {
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

pub(super) fn listed(words: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = words.collect();
    if words.len() > LISTED {
        words.truncate(LISTED);
        words.push("...".to_owned());
    }
    words.join(", ")
}
