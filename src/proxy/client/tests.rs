use proptest::prelude::*;

use super::*;

/// 10.0.0.0/8 and fd00::/8 are proxies.
fn trusts(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 10,
        IpAddr::V6(ip) => ip.octets()[0] == 0xfd,
    }
}

fn client(peer: &str, pairs: &[(&'static str, &str)]) -> Client {
    let mut fields = HeaderMap::new();
    for (name, value) in pairs {
        fields.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let peer = Peer { address: SocketAddr::new(peer.parse().unwrap(), 4711), encrypted: false };
    Client::believing(&peer, &fields, trusts)
}

fn ip_of(peer: &str, pairs: &[(&'static str, &str)]) -> String {
    client(peer, pairs).ip.to_string()
}

#[test]
fn an_untrusted_peer_is_the_client() {
    let spoofed =
        [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1;proto=https"), ("x-forwarded-proto", "https")];
    let client = client("192.0.2.1", &spoofed);
    assert_eq!((client.ip.to_string().as_str(), client.proto, client.peer_trusted), ("192.0.2.1", Scheme::Http, false));
    assert_eq!(ip_of("::ffff:192.0.2.1", &spoofed), "192.0.2.1");
}

#[test]
fn x_forwarded_for_is_walked_from_the_right() {
    for (values, expected) in [
        (vec!["1.1.1.1"], "1.1.1.1"),
        (vec!["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        (vec!["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
        (vec!["6.6.6.6", "1.1.1.1", "10.0.0.2"], "1.1.1.1"),
        (vec!["1.1.1.1,10.0.0.2", "10.0.0.3"], "1.1.1.1"),
        (vec!["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (vec!["::ffff:1.2.3.4"], "1.2.3.4"),
        (vec!["1.1.1.1, ::ffff:10.0.0.9"], "1.1.1.1"),
        (vec!["2001:db8::1"], "2001:db8::1"),
        (vec!["[2001:db8::1]"], "2001:db8::1"),
        (vec!["[2001:db8::1]:443, fd00::7"], "2001:db8::1"),
        (vec!["1.1.1.1:5678"], "1.1.1.1"),
        (vec!["1.1.1.1 ,\t, 10.0.0.2 ,"], "1.1.1.1"),
        (vec!["1.1.1.1, junk, 10.0.0.2"], "10.0.0.2"),
        (vec!["1.1.1.1, unknown"], "10.0.0.1"),
        (vec!["1.1.1.1, \u{e9}", "10.0.0.2"], "10.0.0.2"),
        (vec!["\u{e9}, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
        (vec!["1.1.1.1\u{a0}, 10.0.0.2"], "10.0.0.2"),
        (vec!["1.1.1.1, 300.1.1.1"], "10.0.0.1"),
        (vec![""], "10.0.0.1"),
    ] {
        let pairs: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
        assert_eq!(ip_of("10.0.0.1", &pairs), expected, "{values:?}");
    }
    let mut long = vec!["1.1.1.1"];
    long.resize(HOPS + 1, "10.0.0.2");
    assert_eq!(ip_of("10.0.0.1", &[("x-forwarded-for", &long.join(","))]), "10.0.0.2");
}

#[test]
fn forwarded_is_walked_where_x_forwarded_for_is_absent() {
    for (values, expected) in [
        (vec!["for=1.1.1.1"], "1.1.1.1"),
        (vec!["For=\"1.1.1.1:80\";proto=https;by=10.0.0.1"], "1.1.1.1"),
        (vec!["for=1.1.1.1:80"], "1.1.1.1"),
        (vec!["for=\"1.1.1.1:_port\""], "1.1.1.1"),
        (vec!["for=\"[2001:db8::1]\""], "2001:db8::1"),
        (vec!["for=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
        (vec!["for=\"[::ffff:1.2.3.4]\""], "1.2.3.4"),
        (vec!["for=\"\\1.1.1.1\""], "1.1.1.1"),
        (vec!["for=6.6.6.6, for=1.1.1.1;host=\"a,b;c\", for=10.0.0.2"], "1.1.1.1"),
        (vec!["for=6.6.6.6", "for=1.1.1.1, for=10.0.0.2", "for=10.0.0.3"], "1.1.1.1"),
        (vec!["for=1.1.1.1, for=unknown, for=10.0.0.2"], "10.0.0.2"),
        (vec!["for=1.1.1.1, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
        (vec!["for=1.1.1.1, proto=http, for=10.0.0.2"], "10.0.0.2"),
        (vec!["for=1.1.1.1;for=2.2.2.2"], "10.0.0.1"),
        (vec!["for=2001:db8::1"], "10.0.0.1"),
        (vec!["for=\u{e9}, for=1.1.1.1;host=\"\u{e9}\", for=10.0.0.2"], "1.1.1.1"),
        (vec!["for=\"1.1.1.1"], "10.0.0.1"),
        (vec!["for=1.1.1.1\""], "10.0.0.1"),
        (vec!["for=\"1.1.1.1\"x"], "10.0.0.1"),
        (vec!["for"], "10.0.0.1"),
        (vec!["for="], "10.0.0.1"),
        (vec!["for=\"1.1.1.1:80:90\""], "10.0.0.1"),
        (vec![""], "10.0.0.1"),
    ] {
        let pairs: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
        assert_eq!(ip_of("10.0.0.1", &pairs), expected, "{values:?}");
    }
    assert_eq!(ip_of("10.0.0.1", &[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.1.1.1")]), "1.1.1.1");
    let long = vec!["for=10.0.0.2"; HOPS * 4].join(",");
    assert_eq!(ip_of("10.0.0.1", &[("forwarded", &format!("for=1.1.1.1,{long}"))]), "10.0.0.2");
}

#[test]
fn the_scheme_is_what_the_client_spoke() {
    use Scheme::{Http, Https};
    const FOR: &str = "x-forwarded-for";
    const PROTO: &str = "x-forwarded-proto";
    for (pairs, expected) in [
        (vec![], Http),
        (vec![(PROTO, "https")], Https),
        (vec![(PROTO, "HTTPS")], Https),
        (vec![(PROTO, "gopher")], Http),
        (vec![(FOR, "1.1.1.1"), (PROTO, "https")], Https),
        // The one behind the client's own hop, not what the client claims further left.
        (vec![(FOR, "6.6.6.6, 1.1.1.1"), (PROTO, "https, http")], Http),
        (vec![(FOR, "1.1.1.1, 10.0.0.2"), (PROTO, "https, http")], Https),
        (vec![(FOR, "1.1.1.1, 10.0.0.2"), (PROTO, "https")], Https),
        (vec![("forwarded", "for=1.1.1.1;proto=https, for=10.0.0.2;proto=http")], Https),
        (vec![("forwarded", "for=1.1.1.1, for=10.0.0.2;proto=https")], Https),
        (vec![("forwarded", "for=6.6.6.6;proto=https, for=1.1.1.1;proto=http")], Http),
    ] {
        assert_eq!(client("10.0.0.1", &pairs).proto, expected, "{pairs:?}");
    }
    let peer = Peer { address: SocketAddr::from(([192, 0, 2, 1], 1)), encrypted: true };
    assert_eq!(Client::believing(&peer, &HeaderMap::new(), trusts).proto, Https);
}

proptest! {
    #[test]
    fn nothing_is_believed_of_a_stranger(value in "[ -~]{0,40}") {
        for name in ["x-forwarded-for", "forwarded", "x-forwarded-proto"] {
            let found = client("192.0.2.1", &[(name, &value)]);
            prop_assert_eq!((found.ip.to_string(), found.proto), ("192.0.2.1".to_owned(), Scheme::Http));
        }
    }

    #[test]
    fn what_a_client_sends_is_never_looked_at(spoof in "[ -~\u{a0}-\u{ff}]{0,40}", hops in 0_usize..4) {
        let behind = ", 10.0.0.2".repeat(hops);
        prop_assert_eq!(ip_of("10.0.0.1", &[("x-forwarded-for", &format!("{spoof}, 1.1.1.1{behind}"))]), "1.1.1.1");
        let behind = ", for=10.0.0.2".repeat(hops);
        let quoted = ", for=\"10.0.0.2:80\";host=\"a\\\",b\"".repeat(hops);
        for own in [format!("for=1.1.1.1{behind}"), format!("for=\"1.1.1.1:80\"{quoted}")] {
            prop_assert_eq!(ip_of("10.0.0.1", &[("forwarded", &format!("{spoof}, {own}"))]), "1.1.1.1");
        }
        let own = format!("for=1.1.1.1{behind}");
        prop_assert_eq!(ip_of("10.0.0.1", &[("forwarded", &spoof), ("forwarded", &own)]), "1.1.1.1");
    }

    #[test]
    fn nodes_come_back(bits: u32, wide: u128, port: u16) {
        let v4 = IpAddr::V4(bits.into());
        let v6 = IpAddr::V6(wide.into());
        for (text, ip) in [(format!("{v4}"), v4), (format!("{v4}:{port}"), v4), (format!("[{v6}]"), v6), (format!("[{v6}]:{port}"), v6)] {
            prop_assert_eq!(parse_node(&text), Some(ip.to_canonical()));
            prop_assert_eq!(parse_forwarded_node(&text), Some(ip.to_canonical()));
        }
    }
}
