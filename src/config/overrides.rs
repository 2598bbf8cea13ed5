//! Single settings from the command line (`--set a.b.c=value`) and the environment (`WEIR__A__B__C=value`).
//!
//! A flag wins over the environment, the environment over the file. They are put into the parsed document before anything
//! is checked, so that they are checked exactly as the file is.

use std::borrow::Cow;
use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Problem, Severity, Sources, Span};

/// What variables of the environment that override a setting begin with.
const ENVIRONMENT_PREFIX: &str = "WEIR__";

/// Settings from outside of the file, the weaker ones first.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    entries: Vec<Override>,
}

/// One setting.
#[derive(Debug, Clone)]
struct Override {
    /// As its place is printed; never holds the value.
    label: String,
    /// Key, part by part, and value; or what is wrong with it, and the remedy.
    setting: Result<(Vec<String>, String), (String, String)>,
    from_environment: bool,
}

impl Overrides {
    /// `flags` are the arguments of `--set`; of `environment` only what begins with `WEIR__` counts. What cannot be read is
    /// reported when a configuration is loaded with it.
    pub fn new<F>(flags: F, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self
    where
        F: IntoIterator,
        F::Item: AsRef<str>,
    {
        let mut entries: Vec<Override> = environment.into_iter().filter_map(variable).collect();
        entries.sort_by(|a, b| a.label.cmp(&b.label));
        entries.extend(flags.into_iter().map(|text| flag(text.as_ref())));
        Self { entries }
    }

    /// These, and `value` for `key`, shown as `label`: weaker than `--set`, stronger than the environment.
    pub(super) fn with_flag(&self, label: &str, key: &[&str], value: &str) -> Self {
        let mut entries = self.entries.clone();
        let at = entries.iter().take_while(|entry| entry.from_environment).count();
        let key = key.iter().map(|part| (*part).to_owned()).collect();
        let setting = Ok((key, value.to_owned()));
        entries.insert(at, Override { label: label.to_owned(), setting, from_environment: false });
        Self { entries }
    }

    /// Puts every setting into `root`, and its place into `sources`.
    pub(super) fn apply<'o>(&'o self, root: &mut DeTable<'o>, sources: &mut Sources<'_>, problems: &mut Vec<Problem>) {
        for entry in &self.entries {
            let value = entry.setting.as_ref().map_or("", |(_, value)| value.as_str());
            let span = sources.add(&entry.label, value, entry.from_environment);
            let wrong = match &entry.setting {
                Ok((key, value)) => put(root, key, parse(value, &span), &span).err(),
                Err(wrong) => Some(wrong.clone()),
            };
            if let Some((text, remedy)) = wrong {
                problems.push(sources.problem(Severity::Error, Some(&span), text, remedy));
            }
        }
    }
}

/// `a.b.c=value`.
fn flag(text: &str) -> Override {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let label = format!("--set {}", key.trim());
    let parts: Vec<String> = key.trim().split('.').map(|part| part.trim().to_owned()).collect();
    let setting = if !text.contains('=') {
        Err(("there is no `=`".to_owned(), "write --set key=value, such as --set server.drain=30s".to_owned()))
    } else {
        named(parts, value.to_owned(), "--set server.drain=30s")
    };
    Override { label, setting, from_environment: false }
}

/// `WEIR__A__B__C` and its value.
fn variable((name, value): (OsString, OsString)) -> Option<Override> {
    let name = name.to_str()?;
    let key = name.strip_prefix(ENVIRONMENT_PREFIX)?;
    let parts: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
    let setting = match value.into_string() {
        Ok(value) => named(parts, value, "WEIR__SERVER__DRAIN=30s"),
        Err(_) => Err(("the value is not UTF-8".to_owned(), "write it in UTF-8".to_owned())),
    };
    Some(Override { label: name.to_owned(), setting, from_environment: true })
}

fn named(parts: Vec<String>, value: String, example: &str) -> Result<(Vec<String>, String), (String, String)> {
    if parts.iter().any(String::is_empty) {
        return Err(("a part of the key is empty".to_owned(), format!("name a setting, such as {example}")));
    }
    Ok((parts, value))
}

/// A TOML value where the text is one (`512`, `true`, `["10.0.0.0/8"]`), else the text itself.
fn parse<'o>(text: &'o str, span: &Span) -> DeValue<'o> {
    match DeValue::parse(text.trim()) {
        Ok(value) => moved(value.into_inner(), span),
        Err(_) => DeValue::String(Cow::Borrowed(text)),
    }
}

/// `value`, with `span` for itself and all of its parts.
fn moved<'o>(value: DeValue<'o>, span: &Span) -> DeValue<'o> {
    match value {
        DeValue::Array(array) => DeValue::Array(
            array.into_iter().map(|item| Spanned::new(span.clone(), moved(item.into_inner(), span))).collect(),
        ),
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, item)| {
                    let key = Spanned::new(span.clone(), key.into_inner());
                    (key, Spanned::new(span.clone(), moved(item.into_inner(), span)))
                })
                .collect(),
        ),
        other => other,
    }
}

fn put<'o>(
    table: &mut DeTable<'o>,
    key: &'o [String],
    value: DeValue<'o>,
    span: &Span,
) -> Result<(), (String, String)> {
    let Some((first, rest)) = key.split_first() else { return Ok(()) };
    let spanned = Spanned::new(span.clone(), Cow::Borrowed(first.as_str()));
    if rest.is_empty() {
        table.remove(first.as_str());
        table.insert(spanned, Spanned::new(span.clone(), value));
        return Ok(());
    }
    if table.get(first.as_str()).is_none() {
        table.insert(spanned, Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
    }
    match table.get_mut(first.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => put(inner, rest, value, span),
        Some(DeValue::Array(_)) => Err((
            format!("`{first}` is a list, and entries of lists cannot be set one by one"),
            format!("change `{first}` in the configuration file"),
        )),
        _ => Err((
            format!("`{first}` is a single value and has no `{}` in it", rest.join(".")),
            format!("set `{first}` itself, or correct the key"),
        )),
    }
}
