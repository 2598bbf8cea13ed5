//! What goes wrong with Redis, however it is set up: each is done, held, and undone.

use std::thread::sleep;
use std::time::Duration;

use super::means::{by_line, flush, hold, leave_unsaved, load, lock, mend, other_than, slots_in_use, take_over};
use super::place::{LOG, Place, Topology};
use crate::fleet::faults::{crowd, evict, keep_busy};
use crate::harness::{Redis, RedisCluster, poll};

/// How far clocks are set, in seconds.
const STEP: i64 = 3600;

/// Slots that are moved at once.
const MOVED: usize = 60;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server is killed, and comes back empty.
    Killed,
    /// The same, at once.
    RestartedEmpty,
    /// It comes back with what it had, which it loads for a while.
    Loading,
    /// Every connection to it breaks.
    Cut,
    /// Nothing comes through.
    Swallowed,
    /// Everything comes through later, by so many milliseconds each way.
    Slow(u64),
    /// It is a replica of a master that is gone.
    ReadOnly,
    /// The same, and it answers nothing.
    MasterDown,
    /// A replica takes over by the same address, without what was written last.
    TakenOver,
    /// All servers accept and do not answer.
    Frozen,
    /// They can take nothing more.
    Full,
    /// They take nothing, for what they have could not be saved.
    Unsaved,
    /// They take nothing, for want of replicas.
    WithoutReplicas,
    /// One runs somebody's script that does not end.
    Busy,
    /// One has room for hardly anybody.
    Crowded,
    /// They let nobody run scripts.
    Forbidding,
    /// They evict keys, whatever they are.
    Evicting,
    /// One wants a password that nobody has.
    Locked,
    /// Its clock is set forward.
    ClockForward,
    /// Its clock is set back.
    ClockBack,
    /// Its data is lost, and its clock was set back.
    EmptyClockBack,
    /// They have forgotten all scripts.
    ScriptsGone,
    /// They have ended all subscriptions.
    BusKicked,
    /// The log is trimmed to nothing.
    LogTrimmed,
    /// All data is deleted.
    Flushed,
    /// The master of the log is killed; comes back later.
    MasterKilled,
    /// The master of the log stands still; goes on later.
    MasterFrozen,
    /// Nothing comes through to the master of the log, which the other nodes hear of as before.
    MasterOutOfReach,
    /// A master that does not have the log is killed.
    OtherMasterKilled,
    /// A replica is killed.
    ReplicaKilled,
    /// A replica takes over from each master, which helps.
    Planned,
    /// Slots move to another master, the log's first.
    Resharded,
    /// Slots are on their way, with some of their keys.
    HalfMoved,
    /// Every node is restarted, masters after they have handed over.
    Rolled,
    /// All sentinels are killed.
    SentinelsKilled,
    /// A replica takes over, and one sentinel does not hear of it at first.
    SentinelBehind,
    /// Pods begin while no server is there; they come back empty.
    DownAtStart,
    /// A pod crashes while others wait for what it fetches.
    LeaderKilled,
    /// A pod stands still while it fetches, for longer than its lease.
    LeaderStalled,
    /// Many want at once what may not be stored.
    Uncacheable,
}

/// Faults of any setup.
const OF_ALL: &[Fault] = &[
    Fault::Frozen,
    Fault::Full,
    Fault::Unsaved,
    Fault::WithoutReplicas,
    Fault::Forbidding,
    Fault::Evicting,
    Fault::ScriptsGone,
    Fault::BusKicked,
    Fault::LogTrimmed,
    Fault::Flushed,
    Fault::Cut,
    Fault::Swallowed,
    Fault::Slow(10),
    Fault::Slow(100),
    Fault::Slow(1000),
    Fault::Busy,
    Fault::Crowded,
    Fault::Locked,
    Fault::ClockForward,
    Fault::ClockBack,
    Fault::EmptyClockBack,
    Fault::DownAtStart,
    Fault::LeaderKilled,
    Fault::LeaderStalled,
    Fault::Uncacheable,
];

const OF_ONE: &[Fault] =
    &[Fault::Killed, Fault::RestartedEmpty, Fault::Loading, Fault::ReadOnly, Fault::MasterDown, Fault::TakenOver];

const OF_CLUSTERS: &[Fault] = &[
    Fault::MasterKilled,
    Fault::MasterFrozen,
    Fault::OtherMasterKilled,
    Fault::MasterOutOfReach,
    Fault::ReplicaKilled,
    Fault::Planned,
    Fault::Resharded,
    Fault::HalfMoved,
    Fault::Rolled,
];

const OF_SENTINELS: &[Fault] = &[
    Fault::MasterKilled,
    Fault::MasterFrozen,
    Fault::ReplicaKilled,
    Fault::Planned,
    Fault::SentinelsKilled,
    Fault::SentinelBehind,
];

/// Those that may befall a setup.
pub fn of(topology: Topology) -> Vec<Fault> {
    let own = match topology {
        Topology::Alone => OF_ONE,
        Topology::Cluster => OF_CLUSTERS,
        Topology::Sentinels => OF_SENTINELS,
    };
    [own, OF_ALL].concat()
}

impl Fault {
    /// Whether limits may be forgotten by it, or be as they were before.
    pub fn forgets(self, topology: Topology, clocks_differ: bool) -> bool {
        match self {
            // Another server may have the buckets then, by whose clock all of them are full.
            _ if clocks_differ && self.replaces() => true,
            Self::Killed
            | Self::RestartedEmpty
            | Self::Flushed
            | Self::Loading
            | Self::TakenOver
            | Self::MasterKilled
            | Self::MasterFrozen
            | Self::OtherMasterKilled
            | Self::SentinelBehind
            | Self::Evicting
            | Self::ClockForward
            | Self::ClockBack
            | Self::EmptyClockBack
            | Self::DownAtStart => true,
            // Sentinels do not wait for what the master took last; in a cluster it takes nothing more until it has been copied.
            Self::Planned => topology == Topology::Sentinels,
            // A master may be replaced meanwhile.
            Self::Frozen => topology != Topology::Alone,
            _ => topology == Topology::Sentinels && self.hides_master(),
        }
    }

    /// Whether a master may be replaced that answers pods which have not heard of it: Sentinels' does, and a Cluster's sends
    /// them to its heir.
    pub fn splits(self, topology: Topology) -> bool {
        let by_order = matches!(self, Self::Planned | Self::SentinelBehind);
        topology == Topology::Sentinels && (by_order || self == Self::Frozen || self.hides_master())
    }

    /// Whether Sentinels may take a master for dead that is not: they go the same way as pods.
    fn hides_master(self) -> bool {
        matches!(self, Self::Cut | Self::Swallowed | Self::Slow(1000) | Self::Busy | Self::Crowded | Self::Locked)
    }

    /// Whether limits can be asked of Redis all the while.
    fn spares_limits(self) -> bool {
        matches!(
            self,
            Self::ReplicaKilled
                | Self::SentinelsKilled
                | Self::BusKicked
                | Self::LogTrimmed
                | Self::ScriptsGone
                | Self::LeaderKilled
                | Self::LeaderStalled
                | Self::Uncacheable
        )
    }

    /// Whether Redis does not answer in time, so that soon nobody waits for it.
    pub fn opens(self, topology: Topology) -> bool {
        match self {
            Self::Killed | Self::Cut | Self::Swallowed | Self::Slow(100..) | Self::MasterDown | Self::Frozen => true,
            // Sentinels take the master for dead, and another is there.
            Self::Busy | Self::Locked => topology != Topology::Sentinels,
            _ => false,
        }
    }

    /// Whether buckets may come to be another server's.
    fn replaces(self) -> bool {
        let keeps = matches!(
            self,
            Self::Slow(..=100) | Self::Full | Self::Unsaved | Self::WithoutReplicas | Self::Forbidding | Self::Evicting
        );
        !keeps && !self.spares_limits()
    }

    /// How often pods begin to have a part of their own of what limits allow.
    pub fn outages(self) -> usize {
        match self {
            _ if self.spares_limits() => 0,
            // Those that were there, and those that begin.
            Self::DownAtStart => 2,
            _ => 1,
        }
    }

    /// Whether it befalls pods, and not Redis alone.
    pub fn is_of_pods(self) -> bool {
        matches!(self, Self::DownAtStart | Self::LeaderKilled | Self::LeaderStalled | Self::Uncacheable)
    }

    /// Whether several servers may take each other for dead by it, and have to agree again when it is over.
    pub fn unsettles(self) -> bool {
        matches!(
            self,
            Self::Frozen
                | Self::Cut
                | Self::Swallowed
                | Self::Slow(_)
                | Self::Locked
                | Self::Busy
                | Self::Crowded
                | Self::ClockForward
                | Self::ClockBack
                | Self::EmptyClockBack
        )
    }

    /// Does it, holds it for `length` where it has one, and undoes it or waits until Redis has.
    pub fn inflict(self, place: &Place, length: Duration) {
        match self {
            Self::Killed => {
                let redis = place.alone();
                redis.kill();
                sleep(length);
                redis.start();
            }
            Self::RestartedEmpty => place.alone().restart_empty(),
            Self::Loading => load(place),
            Self::Cut | Self::Swallowed | Self::Slow(_) => self.inflict_on_the_way(place, length),
            Self::ReadOnly | Self::MasterDown => {
                let redis = place.alone();
                if self == Self::MasterDown {
                    redis.cli(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
                }
                // Nobody listens there.
                redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
                sleep(length);
                redis.cli(&["REPLICAOF", "NO", "ONE"]);
                redis.cli(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
            }
            Self::TakenOver => take_over(place, length),
            Self::Frozen => {
                place.each(Redis::freeze);
                sleep(length);
                place.each(Redis::thaw);
            }
            Self::Full => hold(place, ["maxmemory", "1"], ["maxmemory", "0"], length),
            Self::WithoutReplicas => {
                hold(place, ["min-replicas-to-write", "9"], ["min-replicas-to-write", "0"], length);
            }
            Self::Unsaved => leave_unsaved(place, length),
            Self::Forbidding => {
                place.say(&["ACL", "SETUSER", "default", "-@scripting"]);
                sleep(length);
                place.say(&["ACL", "SETUSER", "default", "+@all"]);
            }
            Self::ScriptsGone => place.say(&["SCRIPT", "FLUSH"]),
            Self::BusKicked => place.say(&["CLIENT", "KILL", "TYPE", "pubsub"]),
            Self::LogTrimmed => place.with_master(|redis| {
                redis.cli(&["XTRIM", &format!("it:log:{LOG}"), "MAXLEN", "0"]);
            }),
            Self::Flushed => flush(place),
            Self::Evicting => {
                place.each(|redis| evict(&mut redis.line()).expect("Redis does as it is told"));
                sleep(length);
                place.say(&["CONFIG", "SET", "maxmemory", "0"]);
                place.say(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
            }
            Self::ClockForward | Self::ClockBack => {
                let (before, by) = (place.time(), if self == Self::ClockForward { STEP } else { -STEP });
                place.step(by);
                // Some look at it ten times a second.
                poll("Redis goes by that clock", || (place.time() - before - by).abs() < STEP / 2);
            }
            Self::EmptyClockBack => match place {
                Place::Alone { .. } => {
                    place.kill();
                    place.step(-STEP);
                    place.start();
                }
                _ => {
                    place.step(-STEP);
                    flush(place);
                }
            },
            Self::Locked => by_line(place, |line| lock(line, length)),
            Self::Busy => by_line(place, |line| keep_busy(line, length)),
            Self::Crowded => by_line(place, |line| crowd(line, length)),
            _ => match place {
                Place::Cluster(cluster) => self.inflict_on_cluster(cluster, length),
                Place::Sentinels(_) => self.inflict_on_sentinels(place, length),
                Place::Alone { .. } => panic!("{self:?} befalls several servers"),
            },
        }
    }

    fn inflict_on_the_way(self, place: &Place, length: Duration) {
        place.ways().into_iter().for_each(|way| match self {
            Self::Swallowed => way.swallow(),
            Self::Slow(by) => way.delay(Duration::from_millis(by)),
            _ => way.cut(),
        });
        sleep(length);
        place.ways().into_iter().for_each(mend);
    }

    fn inflict_on_cluster(self, cluster: &RedisCluster, length: Duration) {
        let (slot, master) = (cluster.slot_of(LOG), cluster.owner_of(LOG));
        match self {
            Self::MasterKilled => {
                cluster.kill(master);
                cluster.taken_over(slot, master);
                cluster.serves();
            }
            Self::MasterFrozen => {
                cluster.freeze(master);
                cluster.taken_over(slot, master);
                cluster.serves();
            }
            Self::OtherMasterKilled => {
                let other = *cluster.masters().iter().find(|node| **node != master).expect("three masters");
                cluster.kill(other);
                cluster.serves();
            }
            Self::MasterOutOfReach => {
                cluster.relay(master).swallow();
                sleep(length);
                mend(cluster.relay(master));
            }
            Self::ReplicaKilled => {
                let replica = cluster.replica_of(master);
                cluster.kill(replica);
                sleep(length);
                cluster.restart(replica);
            }
            Self::Planned => {
                let masters = cluster.masters();
                for node in 0..cluster.len() {
                    // As they are by then; none takes over twice.
                    if masters.contains(&node) && cluster.masters().contains(&node) {
                        cluster.fail_over(cluster.replica_of(node));
                    }
                }
                cluster.is_well();
            }
            Self::Resharded => {
                let to = other_than(cluster, master);
                let slots = slots_in_use(cluster, master, MOVED);
                let pace = length / u32::try_from(slots.len()).expect("few");
                for (moved, slot) in slots.into_iter().enumerate() {
                    if moved > 0 {
                        sleep(pace);
                    }
                    cluster.move_slot(slot, to);
                }
            }
            Self::HalfMoved => {
                let to = other_than(cluster, master);
                let slots = slots_in_use(cluster, master, MOVED / 2);
                let moves: Vec<_> = slots.into_iter().filter_map(|slot| cluster.begin_move(slot, to)).collect();
                for on_its_way in &moves {
                    if let Some(key) = cluster.left(*on_its_way).first() {
                        cluster.move_key(*on_its_way, key);
                    }
                }
                sleep(length / 2);
                let pace = length / 2 / u32::try_from(moves.len().max(1)).expect("few");
                for on_its_way in moves {
                    sleep(pace);
                    cluster.finish_move(on_its_way);
                }
            }
            Self::Rolled => {
                for node in 0..cluster.len() {
                    if node > 0 {
                        sleep(length / 3);
                    }
                    if cluster.masters().contains(&node) {
                        cluster.fail_over(cluster.replica_of(node));
                        cluster.is_well();
                    }
                    cluster.kill(node);
                    cluster.restart(node);
                    cluster.is_well();
                }
            }
            _ => panic!("{self:?} befalls no cluster"),
        }
    }

    fn inflict_on_sentinels(self, place: &Place, length: Duration) {
        let sentinels = place.sentinels();
        let master = sentinels.master();
        match self {
            Self::MasterKilled => {
                sentinels.kill(master);
                sentinels.taken_over(master);
            }
            Self::MasterFrozen => {
                sentinels.freeze(master);
                sentinels.taken_over(master);
            }
            Self::ReplicaKilled => {
                let replica = sentinels.replicas()[0];
                sentinels.kill(replica);
                sleep(length);
                sentinels.restart(replica);
            }
            Self::Planned => drop(sentinels.fail_over()),
            Self::SentinelsKilled => {
                let all = 0..sentinels.addresses().len();
                all.clone().for_each(|sentinel| sentinels.kill_sentinel(sentinel));
                sleep(length);
                all.for_each(|sentinel| sentinels.restart_sentinel(sentinel));
            }
            Self::SentinelBehind => {
                // The one that a pod is told of first.
                sentinels.freeze_sentinel(0);
                sentinels.fail_over();
                sentinels.thaw_sentinel(0);
            }
            _ => panic!("{self:?} befalls no sentinels"),
        }
    }

    /// After Redis was used again: who was killed or stopped comes back.
    pub fn tidy_up(self, place: &Place) {
        match place {
            Place::Alone { .. } => {}
            Place::Cluster(cluster) => {
                let here = cluster.here();
                for node in (0..cluster.len()).filter(|node| !here.contains(node)) {
                    if self == Self::MasterFrozen { cluster.thaw(node) } else { cluster.restart(node) }
                }
                cluster.is_well();
            }
            Place::Sentinels(sentinels) => {
                for server in (0..sentinels.servers()).filter(|server| !sentinels.is_here(*server)) {
                    if self == Self::MasterFrozen { sentinels.thaw(server) } else { sentinels.restart(server) }
                }
                sentinels.is_well();
            }
        }
    }
}
