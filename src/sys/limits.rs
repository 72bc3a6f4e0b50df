//! Limits of this process on threads, file descriptors and memory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on descriptors (`RLIMIT_NOFILE`) to the hard limit, and returns the limit that is then in force.
pub(crate) fn raise_nofile_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }); // always allowed
    nofile_limit()
}

/// The soft limit on descriptors; `u64::MAX` if there is none.
pub(crate) fn nofile_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether so few descriptors are left that no more connections should be accepted: an eighth of the limit, at least 32.
/// `in_use` is the number of open descriptors.
pub(crate) fn under_fd_pressure(in_use: u64) -> bool {
    in_use > fd_pressure_at()
}

/// The number of open descriptors up to which connections should be accepted.
pub(crate) fn fd_pressure_at() -> u64 {
    let limit = nofile_limit();
    limit.saturating_sub((limit / 8).clamp(32, 1024))
}

/// The most threads that this process may have: the least of the `pids.max` of its cgroup and of the groups above, which
/// count threads, and of `RLIMIT_NPROC`, which counts the threads of all processes of the user and does not hold for
/// root. How many of these other processes use is not known.
pub(crate) fn max_threads() -> u64 {
    let of_cgroup = THREADS.of_this_process();
    let of_user = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    if rustix::process::geteuid().is_root() { of_cgroup } else { of_cgroup.min(of_user) }
}

/// The most memory, in bytes, that this process may have: the least limit of its cgroup and of the groups above, which
/// count kernel memory as well. Without a limit it is `u64::MAX`, or in version 1 a number almost as large. How much of
/// it other processes of the group use is not known.
pub(crate) fn max_memory() -> u64 {
    MEMORY.of_this_process()
}

/// A limit of control groups.
struct CgroupLimit {
    /// Controller of version 1, which names its hierarchy and its mount point.
    controller: &'static str,
    /// File of version 1 and file of version 2.
    files: [&'static str; 2],
}

const THREADS: CgroupLimit = CgroupLimit { controller: "pids", files: ["pids.max", "pids.max"] };
const MEMORY: CgroupLimit = CgroupLimit { controller: "memory", files: ["memory.limit_in_bytes", "memory.max"] };

impl CgroupLimit {
    fn of_this_process(&self) -> u64 {
        fs::read_to_string("/proc/self/cgroup").map_or(u64::MAX, |lines| self.least(&lines))
    }

    /// The least limit along the hierarchies that `/proc/self/cgroup` names.
    fn least(&self, lines: &str) -> u64 {
        let limits = lines.lines().filter_map(|line| self.locate(line));
        limits.map(|(mount, path, file)| least_upwards(&mount, path, file)).min().unwrap_or(u64::MAX)
    }

    /// The conventional mount point of the hierarchy of a line of `/proc/self/cgroup`, the group's path in it, and the
    /// file with the limit, if the hierarchy can have it: the one of version 2, which has no name, or the one of version
    /// 1 that has the controller.
    fn locate<'a>(&self, line: &'a str) -> Option<(PathBuf, &'a str, &'static str)> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let root = Path::new("/sys/fs/cgroup");
        match controllers {
            "" => Some((root.to_owned(), path, self.files[1])),
            named if named.split(',').any(|name| name == self.controller) => {
                Some((root.join(self.controller), path, self.files[0]))
            }
            _ => None,
        }
    }
}

/// The least number in `file` from the group up to the mount point. In a container the path may be one of the host's that
/// does not exist here: then the mount point is the group itself.
fn least_upwards(mount: &Path, path: &str, file: &str) -> u64 {
    let mut group: PathBuf = mount.join(path.trim_start_matches('/'));
    let mut least = u64::MAX;
    loop {
        let limit = fs::read_to_string(group.join(file)).ok().and_then(|text| text.trim().parse().ok());
        least = least.min(limit.unwrap_or(u64::MAX)); // "max": no limit
        if group == mount || !group.pop() {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_that_have_the_limit_are_asked() {
        let located = |limit: &CgroupLimit, line| {
            limit.locate(line).map(|(mount, path, file)| format!("{} {path} {file}", mount.display()))
        };
        for (limit, line, expected) in [
            (&THREADS, "0::/system.slice/a.service", Some("/sys/fs/cgroup /system.slice/a.service pids.max")),
            (&THREADS, "8:pids:/a", Some("/sys/fs/cgroup/pids /a pids.max")),
            (&THREADS, "8:cpu,pids:/a:b", Some("/sys/fs/cgroup/pids /a:b pids.max")),
            (&THREADS, "4:memory:/a", None),
            (&THREADS, "", None),
            (&MEMORY, "4:memory:/a", Some("/sys/fs/cgroup/memory /a memory.limit_in_bytes")),
            (&MEMORY, "0::/a", Some("/sys/fs/cgroup /a memory.max")),
            (&MEMORY, "8:pids:/a", None),
        ] {
            assert_eq!(located(limit, line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let mount = std::env::temp_dir().join(format!("allout-limits-{}", std::process::id()));
        let group = mount.join("above/group");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("pids.max"), "max\n").unwrap();
        fs::write(mount.join("above/pids.max"), "70\n").unwrap();
        fs::write(mount.join("pids.max"), "100\n").unwrap();
        let least = |path| least_upwards(&mount, path, "pids.max");
        assert_eq!((least("/above/group"), least("/"), least("/not/here")), (70, 100, 100));
        fs::remove_dir_all(&mount).unwrap();
    }
}
