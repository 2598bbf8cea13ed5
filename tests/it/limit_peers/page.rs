//! The tables in docs/limits.md, and that they are what is found.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{Findings, Found};

const BEGIN: &str = "<!-- found -->\n";
const END: &str = "<!-- end of found -->\n";

/// What a table's cell may differ by from what is found, in its last digit: loans are tuned now and then.
const TOLERANCE: f64 = 2.0;

/// A column: its head, the history, and the figure with its digits.
type Column = (&'static str, &'static str, fn(&Found) -> f64, usize);

const WORST: [Column; 6] = [
    ("edges", "edges", |found| found.worst, 1),
    ("waves", "waves", |found| found.worst, 1),
    ("restarts", "restarts", |found| found.worst, 1),
    ("Redis away", "away", |found| found.worst, 1),
    ("clocks", "clocks", |found| found.worst, 1),
    ("rotation", "rotation", |found| found.worst, 1),
];

const REST: [Column; 5] = [
    ("most in a minute", "uneven", |found| found.most, 1),
    ("share, all through one pod", "uneven", |found| 100.0 * found.share, 0),
    ("share, waves", "waves", |found| 100.0 * found.share, 0),
    ("burnt by denials", "two limits", |found| 100.0 * found.burnt, 0),
    ("share, two limits", "two limits", |found| 100.0 * found.share, 0),
];

/// Both tables.
pub fn tables(all: &Findings) -> String {
    format!("{}\n{}", table(all, &WORST), table(all, &REST))
}

fn table(all: &Findings, columns: &[Column]) -> String {
    let mut out = String::new();
    let heads: Vec<&str> = columns.iter().map(|(head, ..)| *head).collect();
    writeln!(out, "| | {} |\n|---|{}", heads.join(" | "), "---|".repeat(columns.len())).expect("memory");
    for (name, found) in all {
        write!(out, "| {name} |").expect("memory");
        for (head, history, figure, digits) in columns {
            let unit = if head.starts_with("share") || head.starts_with("burnt") { "%" } else { "" };
            write!(out, " {:.digits$}{unit} |", figure(&found[history])).expect("memory");
        }
        out.push('\n');
    }
    out
}

/// Holds the page to what is found of the first seed, or writes it (`WEIR_WRITE_REPORTS=1`).
pub fn hold(all: &Findings) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/limits.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let (head, rest) = page.split_once(BEGIN).expect("the page has a place for it");
    let (written, tail) = rest.split_once(END).expect("and its end");
    let found = format!("\n{}\n", tables(all));
    if std::env::var_os("WEIR_WRITE_REPORTS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{found}{END}{tail}")).expect("it is written");
        return;
    }
    assert!(alike(written, &found), "docs/limits.md has other figures; WEIR_WRITE_REPORTS=1 writes these:\n{found}");
}

/// Whether two texts are one, numbers apart that differ by little.
fn alike(one: &str, other: &str) -> bool {
    let (one, other): (Vec<&str>, Vec<&str>) = (words(one).collect(), words(other).collect());
    one.len() == other.len() && one.iter().zip(&other).all(|(one, other)| one == other || are_close(one, other))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', '\n', '%']).filter(|word| !word.is_empty())
}

fn are_close(one: &str, other: &str) -> bool {
    let digits = |word: &str| word.split_once('.').map_or(0, |(_, digits)| digits.len() as i32);
    let unit = 0.1_f64.powi(digits(one));
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(first), Ok(second)) => digits(one) == digits(other) && (first - second).abs() < (TOLERANCE + 0.5) * unit,
        _ => false,
    }
}

#[test]
fn figures_that_differ_are_noticed() {
    assert!(alike("| a | 1.0 | 99% |", "| a | 1.2 | 97% |"));
    for other in ["| a | 1.3 | 99% |", "| a | 1.0 | 96% |", "| b | 1.0 | 99% |", "| a | 1.0 |", "| a | 1.00 | 99% |"] {
        assert!(!alike("| a | 1.0 | 99% |", other), "{other}");
    }
}
