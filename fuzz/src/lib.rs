//! What several fuzz targets need.
//!
//! Inputs are text wherever what they stand for is, so that seeds can be read and written by hand.

#[cfg(feature = "libfuzzer")]
pub use libfuzzer_sys::fuzz_target;

/// Names a target's code, which nobody runs without the library.
#[cfg(not(feature = "libfuzzer"))]
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: $what:ty| $body:expr) => {
        /// The target.
        pub fn target($data: $what) {
            $body
        }
    };
}

use http::{HeaderMap, HeaderName, HeaderValue};
use weir::config::{Config, Overrides};

/// Any moment will do.
pub const NOW: u64 = 1_800_000_000_000;

/// Lines `name: value` as fields; what is none is left out.
pub fn fields(text: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}

/// A configuration that is right.
///
/// # Panics
/// If it is not.
pub fn config(text: &str) -> Config {
    match Config::from_toml("fuzz.toml", text, &Overrides::default()) {
        Ok(loaded) => loaded.config,
        Err(report) => panic!("{report}"),
    }
}

/// The first byte as a number from 1 up, and the rest: inputs that say how they are to be cut. A letter as first byte
/// keeps a seed readable.
pub fn step(data: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first % 32) + 1, rest))
}
