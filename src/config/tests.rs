//! The example, the defaults, overrides and what is refused. Broken files are in `tests/it/broken`.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::syntax::pointer::Pointer;
use crate::syntax::rate::Rate;

const EXAMPLE: &str = include_str!("../../config.example.toml");
const DOCUMENTATION: &str = include_str!("../../docs/configuration.md");

fn flags(flags: &[&str]) -> Overrides {
    Overrides::new(flags, [])
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

/// The smallest configuration, and `rest` behind it.
fn loaded(rest: &str) -> Result<Loaded, Report> {
    let text = format!("[upstream]\nurl = \"http://127.0.0.1:3000\"\n{rest}");
    Config::from_toml("weir.toml", &text, &Overrides::default())
}

fn config(rest: &str) -> Config {
    loaded(rest).unwrap_or_else(|report| panic!("{report}")).config
}

fn refused(rest: &str) -> Vec<String> {
    let report = loaded(rest).expect_err("refused");
    report.problems.into_iter().map(|problem| format!("{}: {}", problem.place, problem.text)).collect()
}

/// A file with a secret in it, gone when dropped.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-config-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn set(&self, key: &str) -> String {
        format!("{key}={}", self.0.display())
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn the_example_loads_and_says_what_it_says() {
    let (token, key) = (SecretFile::new("token", "t0ken\n"), SecretFile::new("key", "k3y"));
    let set = flags(&[&token.set("admin.token_file"), &key.set("redis.key_secret_file")]);
    let loaded = Config::from_toml("config.example.toml", EXAMPLE, &set).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    assert_eq!(loaded.files.len(), 2);
    let config = loaded.config;
    assert_eq!(config.server.workers.get(), 2);
    assert!(config.trusts("10.1.2.3".parse().unwrap()) && !config.trusts("11.1.2.3".parse().unwrap()));
    assert_eq!(config.admin.token, Some(Secret::new("t0ken")));
    assert_eq!(config.redis.as_ref().unwrap().key_secret, Secret::new("k3y"));
    assert_eq!(config.redis.as_ref().unwrap().deadline, Duration::from_millis(20));
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["catalog-list", "catalog", "edit", "events", "rest"]);
    let catalog = config.routes[1].cache.as_ref().unwrap();
    assert_eq!(catalog.ttl, Some(Duration::from_secs(60)));
    assert!((catalog.jitter - 0.1).abs() < 1e-9);
    assert_eq!(catalog.status_ttl[&StatusCode::NOT_FOUND], Duration::from_secs(5));
    assert_eq!(catalog.max_staleness, Duration::from_secs(10));
    let limits: Vec<(&str, Stage)> = config.routes[1].limits.iter().map(|l| (l.scope.as_str(), l.on)).collect();
    let expected = [
        ("per-client", Stage::Request),
        ("catalog/per-token", Stage::Request),
        ("catalog/per-user", Stage::Request),
        ("catalog/origin", Stage::Origin),
        ("catalog/at-once", Stage::Origin),
    ];
    assert_eq!(limits, expected);
    assert!(Arc::ptr_eq(&config.routes[0].limits[0], &config.routes[1].limits[0]));
    assert!(config.routes[2].cache.is_none() && config.routes[2].invalidates.is_some());
    assert_eq!(config.routes[3].body_idle, Duration::from_secs(3600));
    assert_eq!(config.routes[4].cache.as_ref().unwrap().ttl, None);
}

#[test]
fn a_file_loads_with_the_secrets_beside_it() {
    let directory = std::env::temp_dir().join(format!("weir-config-{}-load", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("weir.toml");
    fs::write(directory.join("token"), "t0ken\n").unwrap();
    fs::write(&path, "[upstream]\nurl = \"unix:/run/app.sock\"\n[admin]\ntoken_file = \"token\"\n").unwrap();
    let loaded = Config::load(&path, &Overrides::default()).unwrap();
    let files: Vec<_> = loaded.files.iter().map(Seen::path).collect();
    assert_eq!(files, [path.as_path(), &directory.join("token")]);
    assert_eq!(loaded.config.admin.token, Some(Secret::new("t0ken")));
    assert_eq!(loaded.config.upstream.target, Target::Unix("/run/app.sock".into()));
    assert_eq!(loaded.warnings.problems.len(), 1, "{}", loaded.warnings);
    fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
    let report = Config::load(&path, &Overrides::default()).unwrap_err().to_string();
    assert!(report.contains("line 2 is not UTF-8"), "{report}");
    fs::remove_dir_all(&directory).unwrap();
    let report = Config::load(&path, &Overrides::default()).unwrap_err().to_string();
    assert!(report.contains("weir.toml: error: cannot read it"), "{report}");
}

#[test]
fn a_bare_upstream_is_one_route() {
    let variables = environment(&[("WEIR__UPSTREAM__URL", "http://lost"), ("WEIR__SERVER__LISTEN", "127.0.0.1:0")]);
    let overrides = Overrides::new(["admin.listen=127.0.0.1:0"], variables);
    let config = Config::for_upstream("http://127.0.0.1:3000", &overrides).unwrap().config;
    let target = Target::Tcp { host: "127.0.0.1".into(), port: 3000, authority: "127.0.0.1:3000".into() };
    assert_eq!(config.upstream.target, target);
    assert_eq!((config.server.listen.port(), config.admin.listen.port()), (0, 0));
    assert_eq!((config.routes[0].name.as_str(), config.routes[0].path.source()), ("all", "/{*path}"));
    assert!(config.routes[0].cache.is_some() && config.redis.is_none());
    let report = Config::for_upstream("127.0.0.1:3000", &overrides).unwrap_err();
    assert_eq!(
        report.to_string(),
        "--upstream: error: `upstream.url` has no scheme\nhelp: write \"http://127.0.0.1:3000\"\n"
    );
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = "[upstream]\nurl = \"http://127.0.0.1:1\"\n[server]\ndrain = \"1s\"\nlame_duck = \"1s\"\n[cache]\ngeneration = \"a\"\n";
    let variables = environment(&[
        ("WEIR__SERVER__DRAIN", "2s"),
        ("WEIR__SERVER__LAME_DUCK", "2s"),
        ("WEIR__CACHE__GENERATION", "2024"),
        ("WEIR__SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/8\", \"::1\"]"),
        ("WEIR_LOG", "debug"),
        ("WEIR_SERVICE_HOST", "10.0.0.1"),
    ]);
    let config = Config::from_toml("weir.toml", text, &Overrides::new(["server.drain=3s"], variables)).unwrap().config;
    assert_eq!((config.server.drain, config.server.lame_duck), (Duration::from_secs(3), Duration::from_secs(2)));
    assert_eq!(config.cache.generation, "2024");
    assert_eq!(config.server.trusted_proxies.len(), 2);
}

#[test]
fn wrong_overrides_have_places_of_their_own() {
    let text = "[upstream]\nurl = \"http://127.0.0.1:1\"\n[[route]]\nname = \"a\"\npath = \"/\"\n";
    let variables = environment(&[("WEIR__SERVER__LISTN", "x"), ("WEIR____A", "x")]);
    let overrides =
        Overrides::new(["server.drain=soon", "route.a.path=/b", "server.listen.port=1", "nothing"], variables);
    let report = Config::from_toml("weir.toml", text, &overrides).unwrap_err();
    let places: Vec<String> = report.problems.iter().map(|problem| problem.place.to_string()).collect();
    for place in ["--set server.drain", "--set route.a.path", "--set nothing", "WEIR__SERVER__LISTN", "WEIR____A"] {
        assert!(places.iter().any(|known| known == place), "{place} in {places:?}");
    }
}

#[test]
fn secrets_come_from_files_or_the_environment_and_are_not_shown() {
    let text = "[upstream]\nurl = \"http://127.0.0.1:1\"\n[redis]\nurl = \"redis://:hunter2@h:port\"\nnamespace = \"a\"\npassword = \"hunter2\"\n";
    let report = Config::from_toml("weir.toml", text, &Overrides::default()).unwrap_err();
    assert_eq!(report.errors(), 2);
    let text = text.replace(":port", "").replace("password = \"hunter2\"\n", "");
    let overrides = Overrides::new::<[&str; 0]>([], environment(&[("WEIR__REDIS__PASSWORD", "12345")]));
    let redis = Config::from_toml("weir.toml", &text, &overrides).unwrap().config.redis.unwrap();
    assert_eq!(redis.access.password, Some(Secret::new("12345")));
    assert!(!format!("{redis:?}").contains("hunter2"));
    let flagged = Config::from_toml("weir.toml", &text, &flags(&["admin.token=x"])).unwrap_err();
    assert!(flagged.to_string().contains("WEIR__ADMIN__TOKEN"), "{flagged}");
}

#[test]
fn a_password_never_reaches_a_report() {
    for line in
        ["url = \"redis://:hunter2@h:port\"", "password = \"hunter2\"", "key_secret = 'hunter2'", "password = hunter2"]
    {
        let text = format!("[upstream]\nurl = \"http://127.0.0.1:1\"\n[redis]\nnamespace = \"a\"\n{line}\n");
        let report = Config::from_toml("weir.toml", &text, &Overrides::default()).unwrap_err().to_string();
        assert!(!report.contains("hunter2"), "{report}");
    }
}

#[test]
fn defaults_fit_each_other() {
    let config = config("[cache]\nmemory = \"1MiB\"\n");
    assert_eq!((config.cache.max_object, config.cache.fill_memory), (1 << 20, 64 << 20));
    assert_eq!(config.cache.max_staleness, Duration::from_secs(10));
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9901");
    assert!(config.server.workers.get() >= 1);
}

#[test]
fn cache_keys_make_a_cache() {
    let route =
        |rest: &str| config(&format!("[[route]]\nname = \"a\"\npath = \"/\"\n{rest}\n")).routes[0].cache.clone();
    assert!(route("").is_none());
    assert!(route("cache.enabled = false\ncache.ttl = \"1s\"").is_none());
    let rule = route("cache.ttl = \"1s\"").unwrap();
    assert_eq!(rule.credential_headers, ["x-api-key"]);
    assert_eq!(rule.wait_timeout, Duration::from_secs(5));
    assert!(route("cache.enabled = true").is_some());
}

#[test]
fn several_servers_are_named_by_their_addresses() {
    let redis = |rest: &str| {
        let route = "[[route]]\nname = \"r\"\npath = \"/\"\n";
        config(&format!("[redis]\nnamespace = \"a\"\n{rest}\n{route}")).redis.unwrap()
    };
    let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
    let cluster = redis("mode = \"cluster\"\nnodes = [\"a\", \"[::1]:7000\"]\nread_from = \"replica\"");
    assert_eq!(cluster.servers, Servers::Cluster { seeds: vec![tcp("a", 6379), tcp("::1", 7000)] });
    assert_eq!((cluster.read_from, cluster.access.tls.is_some()), (ReadFrom::Replica, false));
    let sentinel = redis("mode = \"sentinel\"\nnodes = [\"a\"]\nmaster = \"m\"\ndatabase = 3\nsentinel_user = \"\"");
    let servers = Servers::Sentinel { sentinels: vec![tcp("a", 26379)], master: "m".to_owned() };
    assert_eq!((sentinel.servers, sentinel.database, sentinel.access.sentinel_user), (servers, 3, None));
    assert_eq!(redis("url = \"redis://h/1\"\ndatabase = 2").database, 2);
    // As where another file names several.
    assert_eq!(redis("url = \"redis://h/1\"\nnodes = []").database, 1);
}

#[test]
fn a_limit_counts_by_what_it_says() {
    let limit = |rest: &str| {
        let text = format!(
            "[[limit]]\nname = \"l\"\nkey = [\"route\"]\n{rest}\n\
             [[route]]\nname = \"a\"\npath = \"/\"\nlimits = [\"l\"]\n"
        );
        config(&text).routes[0].limits[0].clone()
    };
    let rate = |amount, period_ms| Rate { amount, period_ms };
    let quotas = |rest: &str| limit(rest).quotas.clone();
    let bucket = |rate, burst| Quota::TokenBucket { rate, burst };
    assert_eq!(quotas("rate = \"50/s\"\nburst = 7"), [bucket(rate(50, 1000), 7)]);
    assert_eq!(quotas("rate = \"120/m\""), [bucket(rate(120, 60_000), 2)]);
    let several = [bucket(rate(10, 1000), 10), bucket(rate(1000, 3_600_000), 1000)];
    assert_eq!(quotas("rates = [\"10/s\", \"1000/h\"]"), several);
    assert_eq!(quotas("rate = \"9/m\"\nalgorithm = \"fixed_window\""), [Quota::FixedWindow(rate(9, 60_000))]);
    assert_eq!(quotas("rate = \"9/m\"\nalgorithm = \"sliding_window\""), [Quota::SlidingWindow(rate(9, 60_000))]);
    assert_eq!(quotas("rate = \"9/m\"\nalgorithm = \"sliding_log\""), [Quota::SlidingLog(rate(9, 60_000))]);
    assert_eq!(quotas("max = 20\nalgorithm = \"concurrency\""), [Quota::Concurrency { max: 20 }]);

    assert_eq!(limit("rate = \"5/s\"").cost, Cost::Fixed(1));
    assert_eq!(limit("rate = \"5/s\"\ncost = 5").cost, Cost::Fixed(5));
    let name = http::HeaderName::from_static("x-cost");
    let said = Cost::Header { name, max: 100, default: 2 };
    assert_eq!(limit("rate = \"5/s\"\ncost = { header = \"x-cost\", max = 100, default = 2 }").cost, said);
    let answered = |rest: &str| limit(&format!("rate = \"50/s\"\ncost = {{ {rest} }}")).cost.clone();
    let place = Place::Header(http::HeaderName::from_static("x-used"));
    let cost = Cost::Answer(AnswerCost { place, max: 500, default: 0, reserve: 50 });
    assert_eq!(answered("response_header = \"X-Used\", max = 500, default = 0, reserve = 50"), cost);
    let pointer = std::sync::Arc::new(Pointer::parse("/usage/0").unwrap());
    let place = Place::Json { pointer, max_scan: 65_536 };
    let cost = Cost::Answer(AnswerCost { place, max: 500, default: 1, reserve: 1 });
    assert_eq!(answered("json = \"/usage/0\", max = 500"), cost);
    assert_eq!(answered("json = \"/usage/0\", max = 500, max_scan = \"64KiB\""), cost);

    assert_eq!(limit("rate = \"5/s\"").charge, None);
    let charge = limit("rate = \"5/s\"\ncharge.status = [401, \"5xx\"]").charge.clone().unwrap();
    assert_eq!(charge, Statuses(vec![401..=401, 500..=599]));
    let charged = [400, 401, 402, 499, 500, 599].map(|status| charge.contains(StatusCode::from_u16(status).unwrap()));
    assert_eq!(charged, [false, true, false, false, true, true]);
}

#[test]
fn a_limit_says_whom_it_is_for_and_what_it_answers() {
    let read = |rest: &str| {
        let text = format!(
            "[[limit]]\nname = \"l\"\nkey = [\"route\", \"unverified-claim:realm.tenant@x-token\"]\nrate = \"1/s\"\n{rest}\n\
             [[route]]\nname = \"a\"\npath = \"/\"\nlimits = [\"l\"]\n"
        );
        config(&text).routes[0].limits[0].clone()
    };
    let limit = read("");
    let field = http::HeaderName::from_static("x-token");
    assert_eq!(limit.key[1], IdentityPart::Claim { name: "realm.tenant".to_owned(), field });
    assert_eq!(limit.key[1].to_string(), "unverified-claim:realm.tenant@x-token");
    assert_eq!((limit.missing, limit.headers, limit.status.as_u16()), (Missing::Share, Told::Draft, 429));
    assert_eq!(limit.after_loss, AfterLoss::Full);
    assert_eq!(read("after_loss = \"empty\"").after_loss, AfterLoss::Empty);
    assert!(limit.allow.is_empty() && limit.deny.is_empty() && limit.notice.is_none());

    let limit = read(
        "missing = \"skip\"\nallow = [\"10.0.0.0/8\", \"::1\"]\ndeny = [\"::ffff:10.1.0.0/112\"]\nheaders = \"both\"\n\
         status = 503\nbody = '{\"limit\": \"{limit}\"}'\ncontent_type = \"application/json\"",
    );
    assert_eq!((limit.missing, limit.headers, limit.status.as_u16()), (Missing::Skip, Told::Both, 503));
    let shown = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&limit.allow), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(shown(&limit.deny), ["10.1.0.0/16"]);
    let notice = limit.notice.as_ref().unwrap();
    assert!(notice.is_json());
    assert_eq!(notice.text.filled(&["l"]), r#"{"limit": "l"}"#);
    assert_eq!(read("body = \"no\"").notice.as_ref().unwrap().content_type, "text/plain; charset=utf-8");
}

#[test]
fn a_wrong_type_hides_no_other_problem() {
    let problems = refused("retries = \"2\"\n[[limit]]\nname = 5\nkey = [\"ip\"]\nrate = \"1/s\"\nburst = 0\n");
    // The fourth is that there is no route.
    assert_eq!(problems.len(), 4, "{problems:#?}");
}

/// What the configuration says of `value` for the `key` of this table: the problems there.
fn said_of(key: &str, value: &str) -> Vec<super::report::Problem> {
    let (table, last) = key.rsplit_once('.').unwrap_or(("", key));
    let around = match table.split_once('.').unwrap_or((table, "")) {
        ("limit", rest) => {
            let rest = if rest.is_empty() { last.to_owned() } else { format!("{rest}.{last}") };
            format!("[[limit]]\nname = \"a\"\nkey = [\"ip\"]\n{rest} = {value}\n")
        }
        ("route", rest) => {
            let rest = if rest.is_empty() { last.to_owned() } else { format!("{rest}.{last}") };
            format!("[[route]]\n{rest} = {value}\n")
        }
        _ => format!("[{table}]\n{last} = {value}\n"),
    };
    let line = around.lines().count();
    let report = match Config::from_toml("weir.toml", &around, &Overrides::default()) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report,
    };
    let here =
        |place: &super::report::Place| matches!(place, super::report::Place::File { line: at, .. } if *at == line);
    report.problems.into_iter().filter(|problem| here(&problem.place)).collect()
}

/// Every key of the schema with a value of its own, and its schema.
fn leaves<'s>(schema: &'s serde_json::Value, path: &str, found: &mut Vec<(String, &'s serde_json::Value)>) {
    let inner = if schema["items"]["type"] == "object" { &schema["items"] } else { schema };
    match inner["properties"].as_object() {
        Some(properties) => properties.iter().for_each(|(name, inner)| {
            leaves(inner, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
        }),
        None => found.push((path.to_owned(), schema)),
    }
}

#[test]
fn what_a_type_error_says_to_write_can_be_written() {
    let mut all = Vec::new();
    leaves(&schema::SCHEMA, "", &mut all);
    assert!(all.len() > 100, "{}", all.len());
    let (mut corrected, mut wrong) = (0, Vec::new());
    // Secrets have no example: they are not to be written there.
    let secrets = ["admin.token", "redis.password", "redis.sentinel_password", "redis.key_secret"];
    // A number without its quotes, which then is too small.
    let small = "server.http2.control_frames";
    for (key, _) in all.iter().filter(|(key, _)| !secrets.contains(&key.as_str()) && key != small) {
        for value in [
            "0",
            "1",
            "5",
            "500",
            "100000",
            "-1",
            "1.5",
            "true",
            "\"\"",
            "\"yes\"",
            "\"7\"",
            "[1]",
            "{ a = 1 }",
            "1979-05-27",
        ] {
            let problems = said_of(key, value);
            let own = |text: &str| text.trim_start_matches("an entry of ").starts_with(&format!("`{key}` must be "));
            let Some(told) = problems.iter().find(|problem| own(&problem.text)) else { continue };
            let about = told.remedy.rsplit_once("such as ").map_or(told.remedy.as_str(), |(_, example)| example);
            let about = about.trim_start_matches("write ").trim_start_matches("put it in brackets: ");
            let about = about.trim_start_matches("one of ");
            for remedy in about.split(" or ") {
                let remedy = remedy.trim_end_matches(", without quotes").trim_end_matches(", in quotes");
                let remedy = remedy.trim_end_matches(", another unit").trim_end_matches(',');
                let remedy = if remedy.starts_with(['[', '{']) { remedy } else { remedy.split(", ").next().unwrap() };
                if remedy == "another unit" {
                    continue;
                }
                corrected += 1;
                let unfit = |text: &str| {
                    [
                        "must be",
                        "out of range",
                        "too short",
                        "too long",
                        "not TOML",
                        "no unit",
                        "unit",
                        "is zero",
                        "cannot be",
                    ]
                    .iter()
                    .any(|unfit| text.contains(unfit))
                };
                let in_place =
                    if told.text.starts_with("an entry") { format!("[{remedy}]") } else { remedy.to_owned() };
                let left = said_of(key, &in_place);
                if remedy.contains("...") || left.iter().any(|problem| unfit(&problem.text)) {
                    wrong.push(format!("{key} = {value}: {}: {left:?}", told.remedy));
                }
            }
        }
    }
    assert!(wrong.is_empty() && corrected > 1000, "{corrected} {wrong:#?}");
}

#[test]
fn a_number_gets_the_unit_with_which_it_can_be() {
    let remedy = |key, value| {
        let all = said_of(key, value);
        all.iter().find(|problem| problem.text.contains("must be")).unwrap_or(&all[0]).remedy.clone()
    };
    for (key, value, expected) in [
        ("limit.max_delay", "500", "write \"500ms\", or another unit"),
        ("limit.max_delay", "5", "write \"5s\", or another unit"),
        ("limit.rate", "50", "write \"50/s\", or another unit"),
        ("limit.rate", "0", "write \"100/s\""),
        ("limit.cost.max_scan", "0", "write \"64KiB\""),
        ("limit.cost.max_scan", "64", "write \"64KiB\", or another unit"),
        ("limit.cost", "\"2\"", "write 2, without quotes"),
        ("limit.cost", "true", "write 1 or { header = \"x-cost\", max = 100 }"),
        ("limit.status", "true", "write a whole number, such as 429"),
        ("limit.dry_run", "\"yes\"", "write true, without quotes"),
        ("limit.charge", "401", "write { status = [401, 403] }"),
        ("limit.charge", "{}", "write status = [401, 403]"),
        ("limit.charge.status", "401", "put it in brackets: [401]"),
        ("limit.charge.status", "[\"401\"]", "write 401, without quotes"),
        ("limit.allow", "\"::1\"", "put it in brackets: [\"::1\"]"),
        ("cache.generation", "7", "write \"7\", in quotes"),
        ("limit.missing", "true", "write one of \"share\", \"skip\", \"deny\""),
        ("route.limits", "\"l\"", "put it in brackets: [\"l\"]"),
        ("route.limits", "7", "write [\"per-client\"]"),
        ("route.headers.x-version", "2", "write \"2\", in quotes"),
        ("redis.url", "7", "write \"redis://127.0.0.1:6379/0\""),
        ("upstream.retries", "1.5", "write 1 or 2"),
        ("server.drain", "0", "write \"0s\", or another unit"),
        ("server.limits.head_timeout", "0", "write \"250ms\""),
        ("cache.memory", "0", "write \"0B\", or another unit"),
    ] {
        assert_eq!(remedy(key, value), expected, "{key} = {value}");
    }
    assert_eq!(said_of("limit.missing", "true")[0].text, "`limit.missing` must be text; true was given");
    let secret = said_of("redis.password", "7181");
    assert!(!format!("{}", secret[0]).contains("7181"), "{}", secret[0]);
}

#[test]
fn no_text_makes_loading_panic() {
    let mut text = String::from(EXAMPLE);
    while text.pop().is_some() {
        if text.len() % 7 == 0 {
            let _ = Config::from_toml("weir.toml", &text, &Overrides::default()).map_err(|report| report.to_string());
        }
    }
}

#[test]
fn a_restart_is_asked_for_where_one_is_needed() {
    let running = config("[cache]\nmemory = \"8MiB\"\n");
    let new = config(
        "retries = 3\n[server]\nlisten = \"127.0.0.1:1\"\ndrain = \"1s\"\n[redis]\nurl = \"redis://h\"\nnamespace = \"a\"\n[cache]\nmemory = \"8MiB\"\n",
    );
    assert_eq!(running.restart_needed(&new), ["server.listen", "upstream.retries", "redis"]);
    let kept = new.keeping(&running);
    assert!(running.restart_needed(&kept).is_empty());
    assert_eq!(kept.server.drain, Duration::from_secs(1));
}

/// Passwords are taken though something else waits for a restart; from plain text to TLS or back, nothing is.
#[test]
fn a_reload_takes_passwords_for_the_same_place_only() {
    let of = |url: &str, more: &str| config(&format!("[redis]\nurl = \"{url}\"\nnamespace = \"a\"\n{more}"));
    let running = of("redis://u:old@h", "");
    let mut over_tls = of("redis://u:new@h", "");
    over_tls.redis.as_mut().unwrap().access.tls = Some(tls::RedisTls {
        authorities: tls::Authorities(Arc::new(rustls::RootCertStore::empty())),
        identity: None,
        server_name: None,
    });
    for (new, restart, password) in [
        (of("redis://u:new@h", ""), false, "new"),
        (of("redis://u:new@h", "deadline = \"1s\""), true, "new"),
        (of("redis://u:new@other", ""), true, "old"),
        (over_tls, true, "old"),
    ] {
        assert_eq!(!running.restart_needed(&new).is_empty(), restart);
        let kept = new.keeping(&running);
        let access = &kept.redis.as_ref().unwrap().access;
        assert_eq!((&access.password, access.tls.is_some()), (&Some(Secret::new(password)), false));
        assert!(running.restart_needed(&kept).is_empty());
    }
}

/// Every key of the schema, dotted, with `[]` left out.
fn keys(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    for choice in schema["anyOf"].as_array().into_iter().flatten() {
        keys(choice, path, found);
    }
    if schema["items"].is_object() {
        keys(&schema["items"], path, found);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let before = found.len();
        keys(inner, &full, found);
        if found.len() == before {
            found.push(full);
        }
    }
}

#[test]
fn every_key_is_documented_and_nothing_else_is() {
    let mut known = Vec::new();
    keys(&schema::SCHEMA, "", &mut known);
    // What a limit is made of is documented once.
    known.retain(|key| !key.starts_with("route.limits."));
    known.push("route.limits".to_owned());
    // What may be a table or a number.
    known.push("limit.cost".to_owned());
    known.sort();
    let mut documented = Vec::new();
    for row in DOCUMENTATION.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let key = cells[0].to_owned();
        assert_eq!(cells[3], if Config::reloadable(&key) { "yes" } else { "no" }, "{key}");
        documented.push(key);
    }
    documented.sort();
    assert_eq!(documented, known);
}

#[test]
fn the_schema_has_no_null_and_no_reference() {
    let text = schema::json();
    assert!(!text.contains("\"null\"") && !text.contains("$ref"), "{text}");
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
}
