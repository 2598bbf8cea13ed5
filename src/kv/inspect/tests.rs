use super::*;
use crate::kv::tests::Server;

fn needs() -> Needs {
    Needs {
        keys: Keys::new("shop-prod"),
        deadline: Duration::from_secs(60),
        largest: 1 << 18,
        has_limits: false,
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
    let memory = |most| Memory { most, used: 0, policy: "volatile-lru".to_owned() };
    assert_eq!(room(&memory(None), &needs()), None);
    assert_eq!(room(&memory(Some(64 << 20)), &needs()), None);
    let finding = room(&memory(Some(20 << 20)), &needs()).unwrap();
    assert!(finding.text.contains("20971520") && finding.remedy.contains("25165824"), "{finding:?}");
    let large = Needs { largest: 4 << 20, ..needs() };
    assert!(room(&memory(Some(64 << 20)), &large).is_some());
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
