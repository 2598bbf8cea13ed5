//! What `weir check` says about broken files: each `broken/*.toml` has its report beside it.
//!
//! After a wanted change, `WEIR_WRITE_REPORTS=1 cargo test check` writes them anew; then read the difference.

use std::fs;
use std::path::{Path, PathBuf};

use weir::config::{Config, Overrides};

/// As many as there were when this was written: a file that is not found is not a report that is right.
const BROKEN_FILES: usize = 10;

#[test]
fn broken_files_get_the_reports_that_they_deserve() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/broken");
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    assert!(files.len() >= BROKEN_FILES, "{files:?}");
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let report = Config::from_toml(&name, &text, &Overrides::default()).expect_err(&name);
        let expected = file.with_extension("txt");
        if std::env::var_os("WEIR_WRITE_REPORTS").is_some() {
            fs::write(&expected, report.to_string()).unwrap();
        }
        assert_eq!(report.to_string(), fs::read_to_string(&expected).unwrap_or_default(), "{name}");
        assert!(!report.to_string().contains("s3cret"), "{name} shows a password");
        for problem in &report.problems {
            assert!(!problem.text.is_empty() && !problem.remedy.is_empty(), "{name}: {problem:?}");
        }
    }
}
