//! The rules of the house that a machine can check: who may know whom, how long a file may be, what must be documented.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::harness::{Ended, Scratch};

/// Layers from the bottom; a module may use what stands in a lower one.
const LAYERS: &[&[&str]] = &[
    &["syntax"],
    &["metrics", "clock", "config", "message", "log"],
    &["kv"],
    &["invalidation"],
    &["fleet"],
    &["cache", "limit"],
    &["admin", "server", "proxy"],
    &["app"],
    &["demo"],
    &["main"],
];

/// The one layer whose modules may use each other: plain types that everything shares.
const SHARED: usize = 1;

/// Most lines in a file, unit tests apart.
const LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `directory` for which `wanted` holds, build output apart.
fn files(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, "target" | ".git" | "node_modules" | "corpus") {
                    left.push(path);
                }
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| wanted.contains(&extension))
}

fn sources() -> Vec<PathBuf> {
    files(&root().join("src"), &|path| has_extension(path, &["rs"]))
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A source without its tests.
fn code(path: &Path) -> String {
    if path.file_stem().is_some_and(|stem| stem == "tests") {
        return String::new();
    }
    let text = read(path);
    match text.find("\n#[cfg(test)]\nmod tests") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules of this crate that a source names.
fn named(code: &str, own_crate: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let code: String = code.lines().filter(|line| is_code(line)).flat_map(|line| [line, "\n"]).collect();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, found) in code.match_indices(&format!("{own_crate}::")) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + found.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && !c.is_whitespace() => {
                        named.insert(word(&group[i..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            named.insert(word(rest));
        }
    }
    named
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in sources() {
        let within = path.strip_prefix(root().join("src")).expect("under src");
        let first = within.components().next().expect("a name").as_os_str().to_str().expect("text");
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let Some(own) = layer(module) else {
            wrong.push(format!("{}: the module {module} has no layer", name(&path)));
            continue;
        };
        let own_crate = if module == "main" { "weir" } else { "crate" };
        for used in named(&code(&path), own_crate) {
            let Some(other) = layer(&used) else { continue };
            seen += 1;
            if used != module && other >= own && !(own == SHARED && other == SHARED) {
                wrong.push(format!("{} must not know {used}", name(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 10, "hardly any import was found: the test is blind");
}

#[test]
fn the_import_check_sees_what_it_should() {
    let text = "use crate::{kv::Redis, cache, limit::{Limit, x}};\n// crate::app\nlet a = crate::proxy::handle();\nmycrate::admin";
    let expected = ["cache", "kv", "limit", "proxy"].map(str::to_owned);
    assert_eq!(named(text, "crate"), BTreeSet::from(expected));
}

#[test]
fn redis_is_spoken_to_in_one_place() {
    for path in sources() {
        let within = name(&path);
        let allowed = within == "src/kv.rs" || within.starts_with("src/kv/");
        assert!(allowed || !code(&path).contains("deadpool_redis"), "{within} imports deadpool_redis");
    }
}

#[test]
fn files_are_short() {
    let kinds = ["rs", "lua"];
    let all = ["src", "tests", "benches"]
        .map(|directory| files(&root().join(directory), &|path| has_extension(path, &kinds)));
    let lengths = all.iter().flatten().map(|path| (name(path), code(path).lines().count()));
    let long: Vec<_> = lengths.filter(|(_, lines)| *lines > LINES).collect();
    assert!(long.is_empty(), "over {LINES} lines: {long:?}");
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let source: String = sources().iter().map(|path| code(path)).collect();
    let registered: BTreeSet<&str> = source.split('"').filter(|text| text.starts_with("weir_")).collect();
    assert!(registered.len() > 10, "{registered:?}");
    let page = read(&root().join("docs/metrics.md"));
    let missing: Vec<_> = registered.iter().filter(|name| !page.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    let documented = page.split('`').filter(|text| text.starts_with("weir_"));
    let documented: BTreeSet<&str> = documented.map(|text| text.split('{').next().unwrap_or(text)).collect();
    let suffixes = ["_bucket", "_sum", "_count"];
    let known = |name: &&&str| {
        registered.contains(**name)
            || suffixes.iter().any(|s| name.strip_suffix(s).is_some_and(|n| registered.contains(n)))
    };
    let unknown: Vec<_> = documented.iter().filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "documented, but not there: {unknown:?}");
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let tests: String =
        files(&root().join("tests"), &|path| has_extension(path, &["rs"])).iter().map(|path| read(path)).collect();
    let tests = tests + &sources().iter().map(|path| read(path)).collect::<String>();
    let page = read(&root().join("docs/guarantees.md"));
    let mut missing = Vec::new();
    // What they are called by is a sentence.
    for name in page.split('`').filter(|text| text.matches('_').count() >= 4 && !text.contains(' ')) {
        if !tests.contains(&format!("fn {name}(")) {
            missing.push(name.to_owned());
        }
    }
    for file in page.split('`').filter(|text| text.ends_with(".rs")) {
        if !["tests/it", "src"].iter().any(|place| root().join(place).join(file).exists()) {
            missing.push(file.to_owned());
        }
    }
    assert!(missing.is_empty(), "docs/guarantees.md names what is not there: {missing:?}");
}

/// The names of all properties in a JSON schema.
fn properties(schema: &serde_json::Value, found: &mut BTreeSet<String>) {
    match schema {
        serde_json::Value::Object(object) => {
            if let Some(serde_json::Value::Object(named)) = object.get("properties") {
                found.extend(named.keys().cloned());
            }
            object.values().for_each(|value| properties(value, found));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| properties(value, found)),
        _ => {}
    }
}

#[test]
fn every_setting_is_documented() {
    let schema = serde_json::from_str(&Ended::of(&["schema"]).out).unwrap();
    let mut keys = BTreeSet::new();
    properties(&schema, &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    let page = read(&root().join("docs/configuration.md"));
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = keys.iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:?}");
}

#[test]
fn every_example_loads() {
    let examples = files(root(), &|path| {
        let tool = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of_a_tool =
            matches!(tool, "Cargo.toml" | "clippy.toml" | "rustfmt.toml" | "deny.toml" | "rust-toolchain.toml");
        let hidden = name(path).starts_with('.');
        let broken = name(path).starts_with("tests/it/broken") || name(path).starts_with("fuzz/");
        has_extension(path, &["toml"]) && !of_a_tool && !hidden && !broken
    });
    assert!(!examples.is_empty(), "not even config.example.toml");
    for path in examples {
        let ended = check_example(&path);
        assert_eq!(ended.code, Some(0), "{}: {ended:?}", name(&path));
    }
}

/// Checks a file whose secrets lie elsewhere than on this machine.
pub fn check_example(path: &Path) -> Ended {
    let scratch = Scratch::new();
    let secret = scratch.write("secret", "0123456789abcdef0123456789abcdef").display().to_string();
    let text = read(path);
    let files = [("token_file", "WEIR__ADMIN__TOKEN_FILE"), ("key_secret_file", "WEIR__REDIS__KEY_SECRET_FILE")];
    let env = files.into_iter().filter(|(key, _)| text.contains(key));
    let env: Vec<_> = env.map(|(_, variable)| (variable.to_owned(), secret.clone())).collect();
    Ended::run(root(), &env, &["check", &path.display().to_string()])
}

#[test]
fn nothing_names_the_place_where_it_was_written() {
    let kinds = ["rs", "lua", "md", "toml", "yaml", "yml", "sh", "conf", "vcl", "cfg", "txt"];
    let texts = files(root(), &|path| {
        let plain = path.file_name().is_some_and(|name| name == "Makefile" || name == "Dockerfile" || name == "run");
        has_extension(path, &kinds) || plain
    });
    // In halves, so that this list does not find itself.
    let places = [["/ro", "ot/"], ["/ho", "me/"], ["/tm", "p/w/"], ["/wo", "rk/"]];
    let registries = [["crates", ".io"], ["pypi", ".org"], ["npmjs", ".org"]];
    let left_over = [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"]];
    let forbidden: Vec<String> =
        [&places[..], &registries, &left_over].concat().iter().map(|two| two.concat()).collect();
    let mut wrong = Vec::new();
    for path in texts {
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("a file")).into_owned();
        for phrase in &forbidden {
            if let Some(line) = text.lines().position(|line| line.contains(phrase)) {
                wrong.push(format!("{}:{}: {phrase}", name(&path), line + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_test_is_ignored() {
    let attribute = ["#[ign", "ore"].concat();
    let sources = files(root(), &|path| has_extension(path, &["rs"]));
    for path in sources {
        assert!(!read(&path).contains(&attribute), "{} ignores a test", name(&path));
    }
}
