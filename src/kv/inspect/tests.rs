use super::commands::When;
use super::*;
use crate::kv::tests::Server;

/// A server of which nothing is to be said.
async fn apt() -> Server {
    let server = Server::up().await;
    server.command(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]).await;
    server
}

fn needs() -> Needs {
    Needs {
        keys: Keys::new("shop-prod"),
        deadline: Duration::from_secs(60),
        largest: 1 << 18,
        has_limits: false,
        expected: 0,
        database: 0,
        tracking: false,
        cluster: false,
        sentinel: false,
    }
}

#[test]
fn errors_are_told_apart_in_every_wording() {
    for (kind, detail, expected) in [
        ("NOPERM", "this user has no permissions to run the 'get' command or its subcommand", "NotThisCommand"),
        ("NOPERM", "User weir has no permissions to run the 'get' command", "NotThisCommand"),
        ("NOPERM", "this user has no permissions to access one of the keys used as arguments", "NotThisKey"),
        ("NOPERM", "No permissions to access a key", "NotThisKey"),
        ("NOPERM", "this user has no permissions to access one of the channels used as arguments", "NotThisChannel"),
        ("NOPERM", "No permissions to access a channel", "NotThisChannel"),
        ("ERR", "unknown command 'XADD', with args beginning with: 'a'", "Unknown"),
        ("ERR", "unknown command `XADD`, with args beginning with: `a`", "Unknown"),
        ("ERR", "syntax error", "Yes(Nil)"),
        ("READONLY", "You can't write against a read only replica.", "Yes(Nil)"),
    ] {
        assert_eq!(format!("{:?}", read(kind, detail)), expected, "{detail}");
    }
}

#[test]
fn room_is_for_the_log_and_some_large_answers() {
    let memory = |most| Memory { most, used: 1, policy: "volatile-lru".to_owned() };
    assert!(room(&memory(None), 1, &needs()).unwrap().text.contains("not set"));
    assert_eq!(room(&memory(Some(64 << 20)), 1, &needs()), None);
    let finding = room(&memory(Some(20 << 20)), 1, &needs()).unwrap();
    assert!(finding.text.contains("20971520") && finding.remedy.contains("25165824"), "{finding:?}");
    let large = Needs { largest: 4 << 20, ..needs() };
    assert!(room(&memory(Some(64 << 20)), 1, &large).is_some());
}

#[test]
fn room_is_for_what_is_expected_over_all_masters() {
    let memory = |most| Memory { most: Some(most), used: 0, policy: "volatile-lru".to_owned() };
    let limit = "{ name = 'l', key = ['ip'], rates = ['9/s', '9/h'] }, 'shared'";
    let text = format!(
        "[[limit]]\nname = 'shared'\nkey = ['ip']\nrate = '1/s'\nburst = 1\n\
         [[route]]\nname = 'a'\npath = '/a'\nlimits = [{limit}]\n\
         [[route]]\nname = 'b'\npath = '/b'\nlimits = ['shared']\n\
         [redis]\nurl = 'redis://h'\nnamespace = 'n'\nexpected_entries = 1_000_000\nexpected_identities = 1_000_000\n"
    );
    let text = format!("[upstream]\nurl = 'http://127.0.0.1:3000'\n{text}");
    let loaded = Config::from_toml("weir.toml", &text, &config::Overrides::default());
    let config = loaded.unwrap_or_else(|report| panic!("{report}")).config;
    let needs = Needs { expected: expected(&config, config.redis.as_ref().unwrap()), ..needs() };
    // The page's formula: a million answers of 4 KiB, and a million identities with three counts each.
    assert_eq!(needs.expected, 1_000_000 * (720 + 4096) + 3 * 1_000_000 * 220);
    let least = (needs.expected + (16 << 20)) / 4 * 5;
    assert_eq!(room(&memory(least), 1, &needs), None);
    let finding = room(&memory(least - 1), 1, &needs).unwrap();
    assert!(finding.remedy.contains(&least.to_string()), "{finding:?}");
    assert_eq!(room(&memory(least / 2), 3, &needs), None);
}

#[test]
fn an_old_version_is_warned_of() {
    let found = |text: &str| age(&Info::new(text.to_owned()));
    assert!(found("redis_version:6.0.16\r\n").unwrap().text.contains("Redis 6.0.16"));
    assert_eq!(found("redis_version:6.2.14\r\n"), None);
    assert_eq!(found(""), None, "a server that does not say");
}

/// What is asked to try a command leaves nothing behind, and no command is asked for in vain: an error would mean that its
/// number of arguments is wrong, which Redis looks at before the ACL.
#[tokio::test]
async fn trials_change_nothing_and_come_as_far_as_the_acl() {
    let server = Server::up().await;
    let all = Needs { database: 3, tracking: true, cluster: true, sentinel: true, ..needs() };
    server.command(&["ACL", "SETUSER", "nobody", "on", ">secret"]).await;
    for command in COMMANDS {
        let mut connection = Dedicated::open(&server.shared()).await.unwrap();
        assert!(matches!(ask_for(&mut connection, command, &all).await, Ok(Said::Yes(_))), "{}", command.word);
        let mut nobody = Dedicated::open(&server.shared()).await.unwrap();
        ask(&mut nobody, &[b"AUTH", b"nobody", b"secret"]).await.unwrap();
        let said = ask_for(&mut nobody, command, &all).await.unwrap();
        assert!(matches!(said, Said::NotThisCommand), "{}: {said:?}", command.word);
    }
    for database in ["0", "3"] {
        let mut connection = Dedicated::open(&server.shared()).await.unwrap();
        ask(&mut connection, &[b"SELECT", database.as_bytes()]).await.unwrap();
        let size = connection.command(&[b"DBSIZE"], ANSWER).await.unwrap();
        assert_eq!(size, Reply::Int(0), "database {database}");
    }
}

/// The words of the line that the page has, and behind it those for what not everybody has.
fn documented() -> (Vec<String>, &'static str) {
    let page = include_str!("../../../docs/redis.md");
    let (line, below) = page.split_once("ACL SETUSER weir on >password ").unwrap().1.split_once("```").unwrap();
    (line.split_whitespace().map(str::to_owned).collect(), below.split_once("\n## ").unwrap().0)
}

#[test]
fn the_page_has_the_same_commands() {
    let (line, below) = documented();
    let mut rights: Vec<_> = line.iter().filter_map(|word| word.strip_prefix('+')).collect();
    let in_line = |command: &&Command| matches!(command.when, When::Always | When::InScripts | When::Database);
    let mut needed: Vec<_> = COMMANDS.iter().filter(in_line).map(|command| command.word).collect();
    rights.sort_unstable();
    needed.sort_unstable();
    assert_eq!(rights, needed);
    for command in COMMANDS.iter().filter(|command| !in_line(command)) {
        assert!(below.contains(&format!("+{}", command.word)), "{}", command.word);
    }
    let patterns: Vec<_> = line.iter().filter(|word| !word.starts_with('+')).collect();
    assert_eq!(patterns, ["resetchannels", "~shop-prod:*", "&shop-prod:*"]);
}

/// Every command that stands in a script, and no other that is not sent.
#[test]
fn scripts_call_what_is_needed_and_all_that_is_needed_for_them_is_called() {
    fn read(directory: &std::path::Path, all: &mut String) {
        for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                read(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "lua") {
                *all += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut scripts = String::new();
    read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut scripts);
    let called = scripts.split("call('").skip(1).map(|rest| rest.split('\'').next().unwrap().to_lowercase());
    let called: std::collections::BTreeSet<String> = called.collect();
    assert!(called.len() > 20, "{called:?}");
    let is_known = |word: &String| COMMANDS.iter().any(|command| command.word == *word);
    assert!(called.iter().all(is_known), "{called:?}");
    for command in COMMANDS.iter().filter(|command| command.when == When::InScripts) {
        assert!(called.contains(command.word), "no script calls {}", command.word);
    }
}

/// With the page's line nothing is found; without any one of its words, that one is named, and nothing else.
#[tokio::test]
async fn the_documented_line_is_enough_and_whatever_is_missing_of_it_is_named() {
    let server = apt().await;
    let (line, _) = documented();
    let found = async |missing: Option<&str>| {
        let words = line.iter().map(String::as_str).filter(|word| Some(*word) != missing);
        let user: Vec<&str> = ["ACL", "SETUSER", "weir", "reset", "on", ">secret"].into_iter().chain(words).collect();
        server.command(&user).await;
        let mut connection = Dedicated::open(&server.shared()).await.unwrap();
        ask(&mut connection, &[b"AUTH", b"weir", b"secret"]).await.unwrap();
        let database = Needs { database: 3, ..needs() };
        inspect(&mut connection, Place::Master(1), &database).await.unwrap().findings
    };
    assert_eq!(found(None).await, []);
    for word in line.iter().filter(|word| *word != "resetchannels") {
        let findings = found(Some(word)).await;
        assert_eq!(findings.len(), 1, "{word}: {findings:?}");
        let expected = format!(" {word} (docs/redis.md, Permissions)");
        assert!(findings[0].remedy.ends_with(&expected), "{word}: {findings:?}");
    }
}

/// Patterns that are narrower than the page's: what they leave out is named.
#[tokio::test]
async fn keys_and_channels_that_patterns_leave_out_are_named() {
    let server = apt().await;
    let keys = ["~shop-prod:e:*", "~shop-prod:f:*", "~shop-prod:p:*", "~shop-prod:l:*", "~shop-prod:probe"];
    let user = ["ACL", "SETUSER", "weir", "on", ">secret", "+@all", "resetchannels", "&shop-prod:bell"];
    server.command(&[&user[..], &keys].concat()).await;
    let mut connection = Dedicated::open(&server.shared()).await.unwrap();
    ask(&mut connection, &[b"AUTH", b"weir", b"secret"]).await.unwrap();
    let findings = inspect(&mut connection, Place::Master(1), &needs()).await.unwrap().findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    let Finding { text, remedy } = &findings[0];
    assert!(text.contains("shop-prod:log:{shop-prod:invalidate:in}") && text.contains("its channels"), "{text}");
    assert!(!text.contains("shop-prod:e:"), "{text}");
    assert!(remedy.contains(" ~shop-prod:* &shop-prod:* "), "{remedy}");
}

/// As providers do who take commands away.
#[test]
fn commands_that_a_server_does_not_have_are_named() {
    let denied = Denied { unknown: vec!["info", "xread"], ..Denied::default() };
    assert!(denied.missing_commands().unwrap().text.contains("does not know info, xread"));
    assert_eq!((denied.missing_rights("it"), Denied::default().missing_commands()), (None, None));
}
