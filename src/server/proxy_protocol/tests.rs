use proptest::prelude::*;

use super::*;

fn whole(length: usize, client: Option<&str>) -> Result<Parsed, Malformed> {
    Ok(Parsed::Whole { length, client: client.map(|client| client.parse().unwrap()) })
}

/// A header of version 2.
fn binary(command: u8, kind: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [V2_BEGINS, &[command, kind], &length, block].concat()
}

const INET: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb];

#[test]
fn a_line_names_the_client() {
    for (line, client) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", Some("192.0.2.1:56324")),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535")),
        ("PROXY TCP6 2001:db8::1 ::1 1 0\r\n", Some("[2001:db8::1]:1")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n", None),
    ] {
        assert_eq!(parse(line.as_bytes()), whole(line.len(), client), "{line:?}");
        let more = format!("{line}GET / HTTP/1.1\r\n");
        assert_eq!(parse(more.as_bytes()), whole(line.len(), client), "{more:?}");
    }
}

#[test]
fn a_line_that_is_not_quite_right_is_none() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
        "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY UNKNOWN \rx\r\n",
        "proxy UNKNOWN\r\n",
        "GET / HTTP/1.1\r\n",
        "\x16\x03\x01",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(Malformed), "{line:?}");
    }
}

#[test]
fn a_line_has_at_most_107_bytes() {
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
    assert_eq!(parse(line(V1_MAX).as_bytes()), whole(V1_MAX, None));
    assert_eq!(parse(line(V1_MAX + 1).as_bytes()), Err(Malformed));
    assert_eq!(parse(&line(V1_MAX + 1).as_bytes()[..V1_MAX]), Err(Malformed), "no line end within the bound");
    assert_eq!(parse(&line(V1_MAX).as_bytes()[..V1_MAX - 1]), Ok(Parsed::Partial));
}

#[test]
fn a_block_names_the_client() {
    let inet = binary(0x21, 0x11, &INET);
    assert_eq!(parse(&inet), whole(28, Some("192.0.2.1:4660")));
    let inet6: Vec<u8> = [Ipv6Addr::LOCALHOST.octets(), Ipv6Addr::UNSPECIFIED.octets()]
        .concat()
        .into_iter()
        .chain([0, 7, 0, 8])
        .collect();
    assert_eq!(parse(&binary(0x21, 0x21, &inet6)), whole(52, Some("[::1]:7")));
    let with_more = binary(0x21, 0x11, &[&INET[..], &[0x04, 0, 3, 1, 2, 3]].concat());
    assert_eq!(parse(&with_more), whole(34, Some("192.0.2.1:4660")));
    let behind = [&inet[..], b"\r\n\r\n\0\r\nQUIT\n"].concat();
    assert_eq!(parse(&behind), whole(28, Some("192.0.2.1:4660")));
}

#[test]
fn a_block_without_a_tcp_address_keeps_the_peer() {
    let unix = [0; 216];
    for (command, kind, block) in [
        (0x20, 0x00, &[][..]),
        (0x20, 0x11, &INET),
        (0x20, 0x11, &[]),
        (0x21, 0x00, &[1, 2, 3]),
        (0x21, 0x10, &INET),
        (0x21, 0x12, &INET),
        (0x21, 0x22, &[0; 36]),
        (0x21, 0x31, &unix),
        (0x21, 0x32, &unix),
    ] {
        assert_eq!(parse(&binary(command, kind, block)), whole(16 + block.len(), None), "{command:x} {kind:x}");
    }
}

#[test]
fn a_block_that_is_not_quite_right_is_none() {
    for (command, kind, block) in [
        (0x11, 0x11, &INET[..]),
        (0x22, 0x11, &INET),
        (0x31, 0x11, &INET),
        (0x21, 0x13, &INET),
        (0x21, 0x41, &INET),
        (0x21, 0x11, &INET[..11]),
        (0x21, 0x21, &[0; 35]),
        (0x21, 0x31, &[0; 215]),
        (0x21, 0x11, &[0; V2_MAX - V2_FIXED + 1]),
    ] {
        assert_eq!(parse(&binary(command, kind, block)), Err(Malformed), "{command:x} {kind:x} {}", block.len());
    }
    assert_eq!(parse(&binary(0x21, 0x11, &[0; V2_MAX - V2_FIXED])), whole(V2_MAX, Some("0.0.0.0:0")));
}

/// Headers of every form, right and nearly right.
fn headers() -> impl Strategy<Value = Vec<u8>> {
    let words =
        prop::sample::select(vec!["TCP4", "TCP6", "UNKNOWN", "192.0.2.1", "::1", "0", "65535", "65536", "", "x"]);
    let line =
        prop::collection::vec(words, 0..7).prop_map(|words| [b"PROXY ", words.join(" ").as_bytes(), b"\r\n"].concat());
    let block = (
        prop::sample::select(vec![0x20_u8, 0x21, 0x22]),
        prop::sample::select(vec![0_u8, 0x11, 0x12, 0x21, 0x31, 0x44]),
        prop::collection::vec(any::<u8>(), 0..64),
    );
    prop_oneof![line, block.prop_map(|(command, kind, block)| binary(command, kind, &block))]
}

proptest! {
    #[test]
    fn every_beginning_of_a_header_is_partial_and_what_follows_changes_nothing(
        header in headers(),
        behind in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(Parsed::Whole { length, client }) = parse(&header) {
            prop_assert_eq!(length, header.len());
            for cut in 0..length {
                prop_assert_eq!(parse(&header[..cut]), Ok(Parsed::Partial), "cut at {}", cut);
            }
            prop_assert_eq!(parse(&[header, behind].concat()), Ok(Parsed::Whole { length, client }));
        }
    }

    #[test]
    fn a_verdict_stands(bytes in prop::collection::vec(any::<u8>(), 0..200), header in headers(), cut in 0_usize..128) {
        let bytes = [&header[..cut.min(header.len())], &bytes].concat();
        let mut verdict = Ok(Parsed::Partial);
        for end in 0..=bytes.len() {
            let now = parse(&bytes[..end]);
            prop_assert!(verdict == Ok(Parsed::Partial) || now == verdict, "{:?} became {:?}", verdict, now);
            if let Ok(Parsed::Whole { length, .. }) = now {
                prop_assert!(length <= end && length <= V2_MAX);
            }
            verdict = now;
        }
        prop_assert!(verdict != Ok(Parsed::Partial) || bytes.len() < V2_MAX);
    }

    #[test]
    fn addresses_are_read_as_they_are_written(ip: [u8; 4], ip6: [u8; 16], port: u16) {
        let (v4, v6) = (Ipv4Addr::from(ip), Ipv6Addr::from(ip6));
        for (family, ip) in [("TCP4", IpAddr::from(v4)), ("TCP6", IpAddr::from(v6))] {
            let line = format!("PROXY {family} {ip} {ip} {port} 443\r\n");
            prop_assert_eq!(parse(line.as_bytes()), Ok(Parsed::Whole { length: line.len(), client: Some((ip, port).into()) }));
        }
        let block = [&ip6[..], &ip6, &port.to_be_bytes(), &[0, 0]].concat();
        prop_assert_eq!(parse(&binary(0x21, 0x21, &block)), Ok(Parsed::Whole { length: 52, client: Some((v6, port).into()) }));
    }
}
