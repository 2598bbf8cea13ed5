//! From a file, a text or a bare URL to a checked configuration.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::check::check;
use super::machine::Machine;
use super::report::{Place, Problem, Severity, Sources};
use super::watch::Seen;
use super::{Config, Loaded, Overrides, Report, dump};

/// Largest configuration file, in bytes: ten thousand routes with room to spare.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// What `weir run --upstream URL` stands for; the URL is put in as an override.
const FOR_UPSTREAM: &str = r#"[upstream]

[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true
"#;

impl Config {
    /// Reads and checks the file at `path`. Relative names of secret files are relative to its directory.
    ///
    /// # Errors
    /// Every problem of the file, warnings included.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Loaded, Report> {
        let name = path.display().to_string();
        let text = read(path).map_err(|(text, remedy)| {
            let place = Place::Whole(name.clone());
            Report {
                problems: vec![Problem {
                    severity: Severity::Error,
                    place,
                    text,
                    remedy,
                    snippet: None,
                    is_file: false,
                }],
            }
        })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut loaded = from_text(&name, &text, overrides, directory)?;
        loaded.files.insert(0, Seen::holding(path.to_owned(), text.as_bytes()));
        Ok(loaded)
    }

    /// Checks `text`, shown as `name` in reports. Relative names of secret files are relative to the current directory.
    ///
    /// # Errors
    /// Every problem of the text, warnings included.
    pub fn from_toml(name: &str, text: &str, overrides: &Overrides) -> Result<Loaded, Report> {
        from_text(name, text, overrides, Path::new(""))
    }

    /// One route named `all` that caches exactly what the upstream at `url` allows.
    ///
    /// # Errors
    /// A wrong URL, or wrong overrides.
    pub fn for_upstream(url: &str, overrides: &Overrides) -> Result<Loaded, Report> {
        let overrides = overrides.with_flag("--upstream", &["upstream", "url"], url);
        from_text("--upstream", FOR_UPSTREAM, &overrides, Path::new(""))
    }
}

fn from_text(name: &str, text: &str, overrides: &Overrides, directory: &Path) -> Result<Loaded, Report> {
    let mut sources = Sources::new(name, text);
    let mut problems = Vec::new();
    let (mut root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(Report { problems: syntax_problems(&errors, &sources) });
    }
    overrides.apply(root.get_mut(), &mut sources, &mut problems);
    let shown = dump::shown(&root);
    let (config, files) = check(root, &sources, Machine::this(), directory, &mut problems);
    problems.sort_by_key(|problem| order(&problem.place));
    let report = Report { problems };
    match config {
        Some(config) if report.errors() == 0 => {
            Ok(Loaded { config, shown, warnings: report, files: unique(files).into_iter().map(Seen::now).collect() })
        }
        _ => Err(report),
    }
}

/// What is not TOML, once a line: what follows on the same line mostly follows from it.
fn syntax_problems(errors: &[toml::de::Error], sources: &Sources<'_>) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let message = error.message();
        let remedy = match message {
            _ if message.contains("duplicate key") => "remove one of the two",
            _ if message.contains("quote") || message.contains("string") => {
                "write text in double quotes: key = \"value\""
            }
            _ => "write `key = value`, text in double quotes, and tables as [table] or [[list]]",
        };
        let text = format!("not TOML: {message}");
        let problem = sources.problem(Severity::Error, error.span().as_ref(), text, remedy);
        let line = |place: &Place| order(place).1;
        if problems.iter().all(|known| line(&known.place) != line(&problem.place)) {
            problems.push(problem);
        }
    }
    problems.sort_by_key(|problem| order(&problem.place));
    problems
}

/// Overrides first, then the file as a whole, then line by line.
fn order(place: &Place) -> (u8, usize, usize) {
    match place {
        Place::Override(_) => (0, 0, 0),
        Place::Whole(_) => (1, 0, 0),
        Place::File { line, column, .. } => (2, *line, *column),
    }
}

fn unique(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.sort();
    files.dedup();
    files
}

fn read(path: &Path) -> Result<String, (String, String)> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let remedy = "name a file that this process may read, or start with --upstream URL alone";
        return Err((format!("cannot read it: {error}"), remedy.to_owned()));
    }
    if bytes.len() as u64 > FILE_BYTES {
        let text = format!("the file is larger than {} MiB", FILE_BYTES >> 20);
        return Err((text, "name the configuration file".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        (format!("line {line} is not UTF-8"), "write the file in UTF-8".to_owned())
    })
}
