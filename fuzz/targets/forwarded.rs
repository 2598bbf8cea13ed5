//! Forwarding fields are believed as far as trusted proxies wrote them, and never from anybody else; what is written anew
//! tells the next the same.
//!
//! Input: fields, a line each.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};
use weir::config::Config;
use weir::message::Peer;
use weir::proxy::client::{Client, HOPS, X_FORWARDED_FOR, X_FORWARDED_PROTO};
use weir::proxy::headers::{X_FORWARDED_HOST, set_forwarding};
use weir_fuzz::{config, fields, fuzz_target};

const TRUSTING: &str = r#"
[server]
trusted_proxies = ["10.0.0.0/8", "fd00::/8"]
[upstream]
url = "http://127.0.0.1:1"
"#;

/// Where this Weir is to the next.
const HERE: &str = "10.9.9.9:1";

fuzz_target!(|data: &[u8]| {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| config(TRUSTING));
    let fields = fields(data);
    for (address, trusted) in [("10.0.0.1:1", true), ("[::ffff:10.0.0.1]:1", true), ("192.0.2.1:1", false)] {
        let client = identify(address, &fields, config);
        assert_eq!(client.peer_trusted, trusted);
        assert!(trusted || client.ip == client.peer, "{client:?}");
        for ip in [client.ip, client.peer] {
            assert!(!matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()), "{client:?}");
        }
        let mut sent = fields.clone();
        set_forwarding(&mut sent, &client, "a.example");
        for name in [&FORWARDED, &X_FORWARDED_FOR, &X_FORWARDED_PROTO, &X_FORWARDED_HOST] {
            assert_eq!(sent.get_all(name).iter().count(), 1, "{name}");
        }
        assert!(!sent.keys().any(|name: &HeaderName| name.as_str().replace('_', "-") != name.as_str()
            && name.as_str().replace('_', "-").starts_with("x-forwarded-")));
        if hops(&fields) < HOPS - 1 {
            let next = identify(HERE, &sent, config);
            assert_eq!((next.ip, next.proto), (client.ip, client.proto), "{fields:?}\n{sent:?}");
            if !fields.contains_key(X_FORWARDED_FOR) || !trusted {
                sent.remove(X_FORWARDED_FOR);
                sent.remove(X_FORWARDED_PROTO);
                assert_eq!(identify(HERE, &sent, config).ip, client.ip, "{fields:?}\n{sent:?}");
            }
        }
    }
});

fn identify(address: &str, fields: &HeaderMap, config: &Config) -> Client {
    let address: SocketAddr = address.parse().expect("an address");
    Client::identify(&Peer { address, encrypted: false }, fields, config)
}

/// No fewer than the hops that the fields name.
fn hops(fields: &HeaderMap) -> usize {
    let named = [FORWARDED, X_FORWARDED_FOR].into_iter();
    named
        .map(|name| fields.get_all(name).iter().map(|v| v.as_bytes().split(|b| *b == b',').count()).sum::<usize>())
        .sum()
}
