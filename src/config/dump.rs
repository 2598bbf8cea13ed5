//! The configuration as it was loaded, overrides included, for operators to read: no secret in it.

use serde::Deserialize;
use toml::de::DeTable;
use toml::{Spanned, Table, Value};

/// What stands in a secret's place.
const HIDDEN: &str = "(hidden)";

/// Settings that are secrets themselves, from the environment.
const SECRETS: [(&str, &str); 3] = [("admin", "token"), ("redis", "password"), ("redis", "key_secret")];

/// `root` as TOML, secrets hidden; what is not set in it has its default.
///
/// Hidden are the secrets that come from the environment, passwords in addresses, and the values of a route's
/// `request.set` and `headers`, which are often credentials.
pub(super) fn shown(root: &Spanned<DeTable<'_>>) -> String {
    let Ok(mut table) = Table::deserialize(toml::de::Deserializer::from(root.clone())) else {
        return String::new();
    };
    for (section, key) in SECRETS {
        if let Some(secret) = table.get_mut(section).and_then(|section| section.get_mut(key)) {
            hide(secret);
        }
    }
    for section in ["redis", "upstream"] {
        if let Some(Value::String(url)) = table.get_mut(section).and_then(|section| section.get_mut("url")) {
            *url = without_password(url);
        }
    }
    for route in table.get_mut("route").and_then(Value::as_array_mut).into_iter().flatten() {
        let set = route.get_mut("request").and_then(|request| request.get_mut("set"));
        if let Some(fields) = set.and_then(Value::as_table_mut) {
            fields.iter_mut().for_each(|(_, value)| hide(value));
        }
        if let Some(fields) = route.get_mut("headers").and_then(Value::as_table_mut) {
            fields.iter_mut().filter(|(_, value)| value.is_str()).for_each(|(_, value)| hide(value));
        }
    }
    toml::to_string(&table).unwrap_or_default()
}

fn hide(value: &mut Value) {
    *value = Value::String(HIDDEN.to_owned());
}

/// An address whose password, if it has one, is hidden (RFC 3986 section 3.2.1).
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        None => url.to_owned(),
        Some((user, host)) => {
            let name = user.split_once(':').map_or(user, |(name, _)| name);
            format!("{scheme}://{name}:{HIDDEN}@{host}{path}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    #[test]
    fn passwords_in_addresses_are_hidden() {
        for (url, shown) in [
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://u:p@h:6379/0", "redis://u:(hidden)@h:6379/0"),
            ("redis://:p@ss@h", "redis://:(hidden)@h"),
            ("redis://u:p:q@h?x=@", "redis://u:(hidden)@h?x=@"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn what_is_set_is_shown_and_no_secret() {
        let toml = r#"
            [upstream]
            url = "http://127.0.0.1:3000"
            [redis]
            url = "redis://u:s3cret@127.0.0.1"
            namespace = "n"
            [[route]]
            name = "r"
            path = "/{id}"
            cache.ttl = "60s"
            headers = { x-internal = "s3cret", x-any = true }
            request.set = { authorization = "Bearer s3cret" }
            response.set = { x-served-by = "weir" }
        "#;
        let env =
            [("WEIR__ADMIN__TOKEN", "s3cret"), ("WEIR__REDIS__KEY_SECRET", "s3cret"), ("WEIR__SERVER__DRAIN", "7s")];
        let overrides = Overrides::new([""; 0], env.map(|(name, value)| (name.into(), value.into())));
        let loaded = Config::from_toml("test", toml, &overrides).unwrap_or_else(|report| panic!("{report}"));
        assert!(!loaded.shown.contains("s3cret"), "{}", loaded.shown);
        let shown: Table = loaded.shown.parse().expect("TOML");
        assert_eq!(shown["server"]["drain"].as_str(), Some("7s"));
        assert_eq!(shown["admin"]["token"].as_str(), Some(HIDDEN));
        assert_eq!(shown["route"][0]["cache"]["ttl"].as_str(), Some("60s"));
        assert_eq!(shown["route"][0]["headers"]["x-any"].as_bool(), Some(true));
        assert_eq!(shown["route"][0]["response"]["set"]["x-served-by"].as_str(), Some("weir"));
    }
}
