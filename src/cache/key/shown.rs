//! A key taken apart again, for people: what explains a key reads the key itself.

use http::HeaderName;

use super::{ABOUT_CONTENT, CLASS_CONTENT, CLASS_READ, FORMAT, KeyBuilder, PRIMARY, VARIANT};

/// The parts of a primary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary<'k> {
    /// Generation of the cache.
    pub generation: &'k [u8],
    /// Name of the route.
    pub route: &'k [u8],
    /// Scheme.
    pub scheme: &'k [u8],
    /// Authority.
    pub host: &'k [u8],
    /// Path.
    pub path: &'k [u8],
    /// Query; `None` without a question mark.
    pub query: Option<&'k [u8]>,
    /// The route's `key_headers`.
    pub fields: Vec<Field<'k>>,
    /// The body, where the request reads by it.
    pub content: Option<Content<'k>>,
}

/// A body in a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content<'k> {
    /// Method.
    pub method: &'k [u8],
    /// Fields that say what it is.
    pub fields: Vec<Field<'k>>,
    /// Its SHA-256.
    pub digest: &'k [u8],
}

/// A request field in a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field<'k> {
    /// Name.
    pub name: &'k [u8],
    /// Value, or its HMAC; `None` where the request has no such field.
    pub value: Option<&'k [u8]>,
}

/// The request fields by which a variant's key differs from its primary key; `None` if it is none.
pub fn variant(key: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut rest = Rest(key.strip_prefix(&[FORMAT, VARIANT])?);
    rest.part()?;
    let mut fields = Vec::new();
    while !rest.0.is_empty() {
        fields.push(rest.field()?);
    }
    Some(fields)
}

impl KeyBuilder {
    /// Takes a primary key of this route's apart; `None` if it is none.
    pub fn taken_apart<'k>(&self, key: &'k [u8]) -> Option<Primary<'k>> {
        let [FORMAT, PRIMARY, class @ (CLASS_READ | CLASS_CONTENT), rest @ ..] = key else { return None };
        let mut rest = Rest(rest);
        let [generation, route, scheme, host, path] =
            [rest.part()?, rest.part()?, rest.part()?, rest.part()?, rest.part()?];
        let query = match rest.byte()? {
            0 => None,
            _ => Some(rest.part()?),
        };
        let fields = rest.fields(self.fields.len())?;
        let content = match *class {
            CLASS_CONTENT => {
                let (method, fields) = (rest.part()?, rest.fields(ABOUT_CONTENT.len())?);
                Some(Content { method, fields, digest: rest.part()? })
            }
            _ => None,
        };
        rest.0.is_empty().then_some(Primary { generation, route, scheme, host, path, query, fields, content })
    }

    /// A field's name and value as they may be shown: never a credential.
    pub fn shown(&self, field: &Field<'_>) -> (String, String) {
        let name = String::from_utf8_lossy(field.name).into_owned();
        let is_hidden = HeaderName::from_bytes(field.name).is_ok_and(|name| self.hides(&name));
        let value = match field.value {
            None => "(absent)".to_owned(),
            Some(_) if is_hidden => "HMAC".to_owned(),
            Some(_) if sounds_secret(&name) => "(hidden)".to_owned(),
            Some(b"") => "(empty)".to_owned(),
            Some(value) => String::from_utf8_lossy(value).into_owned(),
        };
        (name, value)
    }
}

/// Whether a field that no configuration calls a credential may be one all the same.
fn sounds_secret(name: &str) -> bool {
    ["auth", "cookie", "cred", "key", "pass", "secret", "session", "signature", "token"]
        .iter()
        .any(|word| name.contains(word))
}

/// What is still to be read of a key.
struct Rest<'k>(&'k [u8]);

impl<'k> Rest<'k> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*bytes)).ok()
    }

    fn part(&mut self) -> Option<&'k [u8]> {
        let length = self.number()?;
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part)
    }

    fn field(&mut self) -> Option<Field<'k>> {
        let name = self.part()?;
        let value = match self.number()? {
            0 => None,
            _ => Some(self.part()?),
        };
        Some(Field { name, value })
    }

    fn fields(&mut self, count: usize) -> Option<Vec<Field<'k>>> {
        (0..count).map(|_| self.field()).collect()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use super::super::Target;
    use super::*;
    use crate::cache::policy::tests::rule;

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(
            texts in prop::array::uniform3("[ -~]{0,12}"), query in prop::option::of("[ -~]{0,12}"),
            value in prop::option::of("[!-~]{1,12}"), cookie in prop::option::of("[!-~]{1,12}"),
        ) {
            let mut rule = rule();
            rule.key_headers = vec![http::header::COOKIE, HeaderName::from_static("x-a")];
            let keys = KeyBuilder::new("v1", "r", &rule, b"secret");
            let [scheme, host, path] = &texts;
            let target = Target { scheme, host, path, query: query.as_deref() };
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-a", &value), ("cookie", &cookie)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_str(value).unwrap());
                }
            }
            let mut key = Vec::new();
            keys.primary(&mut key, &target, &headers);
            let parts = keys.taken_apart(&key).unwrap();
            prop_assert_eq!(parts.generation, b"v1");
            prop_assert_eq!(parts.route, b"r");
            prop_assert_eq!([parts.scheme, parts.host, parts.path], [scheme.as_bytes(), host.as_bytes(), path.as_bytes()]);
            prop_assert_eq!(parts.query, query.as_deref().map(str::as_bytes));
            let absent = || "(absent)".to_owned();
            prop_assert_eq!(keys.shown(&parts.fields[0]).1, if cookie.is_some() { "HMAC".to_owned() } else { absent() });
            prop_assert_eq!(keys.shown(&parts.fields[1]).1, value.clone().unwrap_or_else(absent));

            let mut of_variant = Vec::new();
            keys.variant(&mut of_variant, &key, &[HeaderName::from_static("x-a")], &headers);
            prop_assert_eq!(variant(&of_variant).unwrap()[0].value, value.as_deref().map(str::as_bytes));
            prop_assert!(keys.taken_apart(&of_variant).is_none() && variant(&key).is_none());

            let mut by_content = Vec::new();
            let content = super::super::Content { method: "QUERY", digest: &[7; 32] };
            keys.primary_by_content(&mut by_content, &target, &headers, &content);
            let shown = keys.taken_apart(&by_content).unwrap();
            let content = shown.content.unwrap();
            prop_assert_eq!((content.method, content.digest, content.fields.len()), (&b"QUERY"[..], &[7_u8; 32][..], 3));
            prop_assert_eq!(shown.fields, parts.fields);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..60), front in 0..3_usize) {
            let front: &[u8] = [&[][..], &[FORMAT, PRIMARY, CLASS_READ], &[FORMAT, VARIANT]][front];
            let key = [front, &bytes].concat();
            let keys = KeyBuilder::new("v1", "r", &rule(), b"secret");
            let _ = (keys.taken_apart(&key), variant(&key));
        }
    }
}
