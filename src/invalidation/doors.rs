//! What foreign programs write: messages on the channel, entries in the stream. Pure.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::log::text;
use crate::kv::Reply;
use crate::syntax::SyntaxError;
use crate::syntax::selector::{Order, Selector};

/// Entries taken from the stream at once.
pub const ENTRIES: usize = 64;

/// Longest message or entry that is read.
pub const MESSAGE_BYTES: usize = 256 * 1024;

/// An entry of the door stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: Bytes,
    /// Fields and values, in turn.
    pub fields: Vec<Bytes>,
}

/// The entries in what XRANGE answers.
pub fn entries(reply: &Reply) -> Vec<Entry> {
    let entry = |item: &Reply| match item.items() {
        [Reply::Bytes(id), fields] => Some(Entry { id: id.clone(), fields: fields.items().iter().map(text).collect() }),
        _ => None,
    };
    reply.items().iter().filter_map(entry).collect()
}

/// Reads a message of the channel: the JSON of `POST /invalidate`, or plain words, each a URL if it begins with `/` or
/// names a scheme, and else a tag.
///
/// # Errors
/// It is too long, neither of these, or names nothing that can be read.
pub fn message(payload: &[u8]) -> Result<(Order, Vec<Selector>), SyntaxError> {
    if payload.len() > MESSAGE_BYTES {
        return Err(too_long());
    }
    let order = match payload.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(payload)
            .map_err(|error| SyntaxError::new(error.to_string(), "publish JSON such as {\"tags\":[\"product:7\"]}"))?,
        Some(b'[' | b'"') => {
            return Err(SyntaxError::new("no JSON object", "publish {\"tags\":[\"product:7\"]}, or plainly product:7"));
        }
        _ => plain(payload)?,
    };
    let selectors = order.selectors()?;
    Ok((order, selectors))
}

fn plain(payload: &[u8]) -> Result<Order, SyntaxError> {
    let mut order = Order::default();
    for word in utf8(payload)?.split_ascii_whitespace() {
        let is_url = word.starts_with('/') || word.contains("://");
        let list = if is_url { &mut order.urls } else { &mut order.tags };
        list.push(word.to_owned());
    }
    Ok(order)
}

fn utf8(bytes: &[u8]) -> Result<&str, SyntaxError> {
    std::str::from_utf8(bytes).map_err(|_| SyntaxError::new("not UTF-8", "write UTF-8"))
}

/// Reads an entry of the stream: fields `urls`, `tags`, `prefixes`, `routes`, or one of each (values separated by spaces,
/// fields repeated at will), `all` and `soft` (0 or 1).
///
/// # Errors
/// It is too long, has another field, or names nothing that can be read.
pub fn entry(fields: &[Bytes]) -> Result<(Order, Vec<Selector>), SyntaxError> {
    if fields.iter().map(Bytes::len).sum::<usize>() > MESSAGE_BYTES {
        return Err(too_long());
    }
    let mut order = Order::default();
    for pair in fields.chunks(2) {
        let [field, value] = pair else { continue };
        let (field, value) = (utf8(field)?, utf8(value)?);
        let list = match field {
            "urls" | "url" => &mut order.urls,
            "tags" | "tag" => &mut order.tags,
            "prefixes" | "prefix" => &mut order.prefixes,
            "routes" | "route" => &mut order.routes,
            "all" => {
                order.all = flag(value)?;
                continue;
            }
            "soft" => {
                order.soft = flag(value)?;
                continue;
            }
            _ => return Err(SyntaxError::new("an unknown field", "use urls, tags, prefixes, routes, all, soft")),
        };
        list.extend(value.split_ascii_whitespace().map(str::to_owned));
    }
    let selectors = order.selectors()?;
    Ok((order, selectors))
}

/// Tells equal orders from others; only the pods' own, so half a SHA-256 is ample.
pub fn content_hash(order: &str) -> String {
    let digest = Sha256::digest(order.as_bytes());
    let (half, _) = digest.split_at(16);
    half.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn flag(value: &str) -> Result<bool, SyntaxError> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(SyntaxError::new("neither 0 nor 1", "write 1 or 0")),
    }
}

fn too_long() -> SyntaxError {
    SyntaxError::new("the message is too long", "split it into several")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Vec<Bytes> {
        pairs.iter().flat_map(|(a, b)| [a, b]).map(|text| Bytes::copy_from_slice(text.as_bytes())).collect()
    }

    #[test]
    fn fields_may_be_repeated_and_values_hold_several() {
        let read = entry(&fields(&[("tags", "a  b"), ("urls", "/x"), ("tags", "c"), ("soft", "1"), ("all", "0")]));
        let (order, selectors) = read.unwrap();
        assert_eq!(order.tags, ["a", "b", "c"]);
        assert_eq!((order.soft, order.all, selectors.len()), (true, false, 4));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for pairs in [&[("key", "a")][..], &[("all", "yes")], &[("tags", " ")], &[("soft", "1")], &[]] {
            assert!(entry(&fields(pairs)).is_err(), "{pairs:?}");
        }
        assert!(entry(&[Bytes::from_static(b"tags"), Bytes::from_static(b"\xff")]).is_err());
        assert!(entry(&fields(&[("tags", &"x".repeat(MESSAGE_BYTES))])).is_err());
        for text in ["", " ", "[7]", "\"product:7\"", "//x", "ftp://x/", "{}", "{\"tags\":\"a\"}", "{\"unknown\":[]}"] {
            assert!(message(text.as_bytes()).is_err(), "{text}");
        }
        assert!(message(b"{\"tags\":[\"product:7\"]}").is_ok());
    }

    #[test]
    fn plain_words_are_tags_and_urls() {
        let (order, selectors) = message(b"user:123  /catalog?* http://shop.example/7\nproduct:7").unwrap();
        assert_eq!(order.tags, ["user:123", "product:7"]);
        assert_eq!(order.urls, ["/catalog?*", "http://shop.example/7"]);
        assert!(selectors.len() == 4 && !order.soft && !order.all);
        let (order, _) =
            entry(&fields(&[("tag", "user:123"), ("url", "/x"), ("prefix", "/y"), ("route", "z")])).unwrap();
        assert_eq!((order.tags.len(), order.urls.len(), order.prefixes.len(), order.routes.len()), (1, 1, 1, 1));
    }

    #[test]
    fn equal_orders_hash_alike() {
        assert_eq!(content_hash("a"), content_hash("a"));
        assert_ne!(content_hash("a"), content_hash("b"));
        assert_eq!(content_hash("a").len(), 32);
    }
}
