//! Forwarding fields are believed as far as trusted proxies wrote them, and never from anybody else.
//!
//! Input: fields, a line each.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use weir::config::Config;
use weir::message::Peer;
use weir::proxy::client::Client;
use weir_fuzz::{config, fields};

const TRUSTING: &str = r#"
[server]
trusted_proxies = ["10.0.0.0/8", "fd00::/8"]
[upstream]
url = "http://127.0.0.1:1"
"#;

fuzz_target!(|data: &[u8]| {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| config(TRUSTING));
    let fields = fields(data);
    for (address, trusted) in [("10.0.0.1:1", true), ("[::ffff:10.0.0.1]:1", true), ("192.0.2.1:1", false)] {
        let address: SocketAddr = address.parse().expect("an address");
        let client = Client::identify(&Peer { address, encrypted: false }, &fields, config);
        assert_eq!(client.peer_trusted, trusted);
        assert!(trusted || client.ip == client.peer, "{client:?}");
        for ip in [client.ip, client.peer] {
            assert!(!matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()), "{client:?}");
        }
    }
});
