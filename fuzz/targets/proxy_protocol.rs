//! A PROXY header reads the same however it arrives, names nobody it does not spell out, and ends where it says.
#![no_main]

use std::net::IpAddr;

use weir::server::proxy_protocol::{Parsed, V1_MAX, V2_MAX, parse};
use weir_fuzz::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // No verdict depends on where the bytes were cut.
    let mut verdict = Ok(Parsed::Partial);
    for end in 0..=data.len().min(V2_MAX + 1) {
        let now = parse(&data[..end]);
        assert!(verdict == Ok(Parsed::Partial) || now == verdict, "{verdict:?} became {now:?} at {end}");
        verdict = now;
    }
    assert!(data.len() < V2_MAX || verdict != Ok(Parsed::Partial), "a header without an end");
    let Ok(Parsed::Whole { length, client }) = verdict else { return };
    assert!(length <= data.len());
    let header = &data[..length];
    let is_line = header.starts_with(b"PROXY ");
    assert!(is_line == header.ends_with(b"\r\n") || !is_line);
    assert!(length <= if is_line { V1_MAX } else { V2_MAX });
    let Some(client) = client else { return };
    if is_line {
        let text = std::str::from_utf8(header).expect("text");
        let words: Vec<&str> = text.trim_end().split(' ').collect();
        assert_eq!(words.len(), 6);
        assert_eq!(words[2].parse::<IpAddr>(), Ok(client.ip()));
        assert_eq!(words[4], client.port().to_string());
    } else {
        let (ip, port) = match client.ip() {
            IpAddr::V4(ip) => (ip.octets().to_vec(), 24),
            IpAddr::V6(ip) => (ip.octets().to_vec(), 48),
        };
        assert!(header[16..].starts_with(&ip));
        assert_eq!(header[port..port + 2], client.port().to_be_bytes());
    }
});
