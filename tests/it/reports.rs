//! What `weir check` says of broken files, word for word, and that the example is in order.
//!
//! After a wanted change, `WEIR_WRITE_REPORTS=1 cargo test reports` writes them anew; then read the difference.

use std::path::{Path, PathBuf};

use crate::harness::Ended;

/// Fewest broken files that must have a report.
const LEAST: usize = 10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn broken() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/it/broken")).expect("tests/it/broken");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

/// The report without the place of this checkout and without colours.
fn report(file: &Path) -> (Option<i32>, String) {
    let directory = file.parent().expect("a directory");
    let name = file.file_name().expect("a name").to_str().expect("text");
    let ended = Ended::run(directory, &[], &["check", name]);
    let said = ended.said().replace(&format!("{}/", directory.display()), "");
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    (ended.code, lines.join("\n").trim().to_owned())
}

#[test]
fn every_broken_file_gets_its_report() {
    let files = broken();
    assert!(files.len() >= LEAST, "{} broken files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let (code, said) = report(&file);
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        if code != Some(1) {
            wrong.push(format!("{name}: exit code {code:?}\n{said}"));
        }
        let expected = file.with_extension("txt");
        if std::env::var_os("WEIR_WRITE_REPORTS").is_some() {
            std::fs::write(&expected, format!("{said}\n")).expect("the report is written");
            continue;
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        // A closing line with the number of problems may follow.
        if wanted.trim().is_empty() || !said.starts_with(wanted.trim()) {
            wrong.push(format!("{name}\n--- expected\n{}\n--- said\n{said}", wanted.trim()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_report_names_place_and_remedy() {
    for file in broken() {
        let (_, said) = report(&file);
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let place = said.match_indices(&format!("{name}:")).any(|(at, found)| {
            let rest = &said[at + found.len()..];
            let mut numbers = rest.splitn(3, ':');
            let digits = |text: Option<&str>| text.is_some_and(|text| text.starts_with(|c: char| c.is_ascii_digit()));
            digits(numbers.next()) && digits(numbers.next())
        });
        assert!(place, "no {name}:line:column in\n{said}");
    }
}

#[test]
fn the_example_is_in_order() {
    let ended = crate::tidy::check_example(&root().join("config.example.toml"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
