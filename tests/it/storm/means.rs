//! How something is done to the servers of Redis.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use super::place::{LOG, Place, server};
use crate::harness::{Flaky, Line, Redis, RedisCluster, is_before_7};

pub fn hold(place: &Place, worse: [&str; 2], well: [&str; 2], length: Duration) {
    let set = |[name, value]: [&str; 2]| place.say(&["CONFIG", "SET", name, value]);
    set(worse);
    sleep(length);
    set(well);
}

/// Saves what is there and more, so that loading it takes seconds.
pub fn load(place: &Place) {
    let redis = place.alone();
    let fill = "for i = 1, 4000 do redis.call('SET', 'it:filler:' .. i, string.rep('x', 100), 'EX', 600) end";
    redis.cli(&["EVAL", fill, "0"]);
    redis.cli(&["SAVE"]);
    redis.kill();
    redis.start();
    let _ = std::fs::remove_file(redis.directory().join("dump.rdb"));
}

/// Saving fails where the file to be is a directory.
pub fn leave_unsaved(place: &Place, length: Duration) {
    place.each(|redis| {
        let file = redis.directory().join("dump.rdb");
        let _ = std::fs::remove_file(&file);
        std::fs::create_dir_all(file.join("in-the-way")).expect("a directory");
        // Where it cannot save what its master sends, a replica of Redis 7 would end itself.
        if !is_before_7() {
            redis.cli(&["CONFIG", "SET", "replica-ignore-disk-write-errors", "yes"]);
        }
        redis.cli(&["CONFIG", "SET", "save", "86400 1000000"]);
        redis.cli(&["BGSAVE"]);
    });
    sleep(length);
    place.each(|redis| {
        assert!(redis.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err"), "it could be saved");
        redis.cli(&["CONFIG", "SET", "save", ""]);
        std::fs::remove_dir_all(redis.directory().join("dump.rdb")).expect("the directory");
    });
}

/// What the master takes for a while is lost with it.
pub fn take_over(place: &Place, length: Duration) {
    let Place::Alone { redis: current, relay, clock } = place else { panic!("there are several servers") };
    let (master, heir) = (place.alone(), server(clock));
    heir.follow(&master);
    heir.take_over(&master, false);
    sleep(length / 8);
    relay.lead_to(heir.address());
    *current.lock().expect("no panic while held") = Arc::new(heir);
}

/// Who is connected is sent away, and comes in by no password.
pub fn lock(line: &mut Line, length: Duration) -> std::io::Result<()> {
    line.say(&["CONFIG", "SET", "requirepass", "nobody has it"])?;
    for kind in ["normal", "pubsub"] {
        line.say(&["CLIENT", "KILL", "TYPE", kind])?;
    }
    sleep(length);
    line.say(&["CONFIG", "SET", "requirepass", ""]).map(drop)
}

/// Settings that are changed for a fault by such a connection.
const OF_FAULTS: [&str; 4] = ["maxclients", "requirepass", "lua-time-limit", "busy-reply-threshold"];

/// By a connection that is kept, to the master of the log.
pub fn by_line(place: &Place, what: impl FnOnce(&mut Line) -> std::io::Result<()>) {
    let watched = match place {
        Place::Sentinels(sentinels) => Some((sentinels, sentinels.master())),
        _ => None,
    };
    let mut line = match watched {
        Some((sentinels, master)) => sentinels.server(master).line(),
        None => place.with_master(Redis::line),
    };
    match (what(&mut line), watched) {
        (Ok(()), _) => {}
        // Sentinels that have replaced it send away whoever is connected, and nobody may get in to undo what was done.
        (Err(error), Some((sentinels, replaced))) => {
            eprintln!("it is taken for replaced: {error}");
            assert_ne!(sentinels.master(), replaced, "Redis does as it is told");
            sentinels.kill(replaced);
            // They have it keep its settings by CONFIG REWRITE, what was set for the fault among them.
            let file = sentinels.server(replaced).directory().join("redis.conf");
            let settings = std::fs::read_to_string(&file).expect("it has one");
            let is_ours = |line: &&str| OF_FAULTS.iter().any(|name| line.starts_with(name));
            let others: Vec<_> = settings.lines().filter(|line| !is_ours(line)).collect();
            std::fs::write(&file, others.join("\n")).expect("it is written");
            sentinels.restart(replaced);
        }
        (Err(error), None) => panic!("Redis does not do as it is told: {error}"),
    }
}

/// Deletes all data.
pub fn flush(place: &Place) {
    place.each(|redis| {
        // A replica takes no such order.
        let _ = redis.try_cli(&["FLUSHALL"]);
    });
}

/// What was held back leaves connections with a past of their own: they are broken off.
pub fn mend(relay: &Flaky) {
    relay.cut();
    relay.heal();
}

/// Another master of a cluster.
pub fn other_than(cluster: &RedisCluster, master: usize) -> usize {
    *cluster.masters().iter().find(|node| **node != master).expect("three masters")
}

/// Slots of a node that hold keys: the log's, limits', entries'.
pub fn slots_in_use(cluster: &RedisCluster, node: usize, most: usize) -> BTreeSet<usize> {
    let mut slots = BTreeSet::from([cluster.slot_of(LOG)]);
    for keys in ["it:l:*", "it:e:*"] {
        for key in cluster.cli(node, &["KEYS", keys]).lines().take(most) {
            if slots.len() < most {
                slots.insert(cluster.slot_of(key));
            }
        }
    }
    slots
}
