//! A configuration is right or reported; a report has something to say, and a place and a remedy for it.
#![no_main]

use weir::config::{Config, Overrides};
use weir_fuzz::fuzz_target;

fuzz_target!(|text: &str| {
    // Whatever else they name, files are not this target's.
    if text.contains("_file") {
        return;
    }
    match Config::from_toml("fuzz.toml", text, &Overrides::default()) {
        Ok(loaded) => {
            assert_eq!(loaded.warnings.errors(), 0);
            let _ = loaded.warnings.to_string();
        }
        Err(report) => {
            assert!(report.errors() > 0);
            assert!(report.to_string().contains("fuzz.toml"), "{report}");
        }
    }
});
