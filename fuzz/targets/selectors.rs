//! Orders from any door: read or refused, the same after a round trip as JSON, their selectors normal.
#![no_main]

use weir::syntax::path::normalise;
use weir::syntax::selector::{Order, Selector};
use weir_fuzz::fuzz_target;

fuzz_target!(|message: &[u8]| {
    let Ok(order) = Order::parse_message(message) else { return };
    let again = serde_json::to_vec(&order).expect("an order is JSON");
    assert_eq!(Order::parse_message(&again).as_ref(), Ok(&order));
    let Ok(selectors) = order.selectors() else { return };
    for selector in selectors {
        match selector {
            Selector::Url(url) => {
                assert_eq!(normalise(&url.path).as_deref(), Ok(&*url.path));
                let host = url.host.unwrap_or_default();
                assert_eq!(host, host.to_ascii_lowercase());
            }
            Selector::Prefix(prefix) => assert!(prefix.starts_with('/'), "{prefix:?}"),
            Selector::Tag(_) | Selector::Route(_) | Selector::All => {}
        }
    }
});
