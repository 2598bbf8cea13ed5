//! What this process may use of the machine: the CPUs and the memory of its control group.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// cgroup v1 writes "no limit" as a number just under 2^63; nothing real comes near this.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Where control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// CPUs and memory that defaults are derived from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    /// CPUs by affinity and by quota, whichever is less.
    pub(super) cpus: NonZeroUsize,
    /// Memory limit in bytes, where there is one.
    pub(super) memory: Option<u64>,
}

impl Machine {
    /// Of this process. `available_parallelism` counts affinity and the quotas of cgroup v1 and v2.
    pub(super) fn this() -> Self {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { cpus, memory: memory_limit(Path::new(CGROUP_ROOT), &groups) }
    }
}

/// The smallest limit on the way from the process's own group (as `/proc/self/cgroup` has it) up to the root.
fn memory_limit(root: &Path, groups: &str) -> Option<u64> {
    groups.lines().filter_map(|line| group_limit(root, line)).min()
}

fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (base, file): (PathBuf, &str) = if controllers.is_empty() {
        (root.to_owned(), "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        (root.join("memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    let own = base.join(path.trim_start_matches('/'));
    own.ancestors()
        .take_while(|directory| directory.starts_with(&base))
        .filter_map(|directory| fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok())
        .filter(|&bytes| bytes < UNLIMITED_BYTES)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("weir-machine-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = scratch("v2");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.join("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(memory_limit(&root, "0::/a/b\n"), Some(1000));
        assert_eq!(memory_limit(&root, "0::/\n"), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_older_layout_is_read_from_the_root_when_the_group_is_not_mounted() {
        let root = scratch("v1");
        fs::create_dir_all(root.join("memory")).unwrap();
        fs::write(root.join("memory/memory.limit_in_bytes"), "4096\n").unwrap();
        assert_eq!(memory_limit(&root, "5:cpu:/x\n4:memory:/docker/abc\n"), Some(4096));
        fs::write(root.join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(memory_limit(&root, "4:memory:/docker/abc\n"), None);
        fs::remove_dir_all(root).unwrap();
    }
}
