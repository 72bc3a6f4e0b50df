//! Limits of this process on threads and file descriptors.

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
    let limit = nofile_limit();
    limit.saturating_sub(in_use) < (limit / 8).clamp(32, 1024)
}

/// The most threads that this process may have: the least of the `pids.max` of its cgroup and of the groups above, which
/// count threads, and of `RLIMIT_NPROC`, which counts the threads of all processes of the user and does not hold for
/// root. How many of these other processes use is not known.
pub(crate) fn max_threads() -> u64 {
    let of_cgroup = fs::read_to_string("/proc/self/cgroup").map_or(u64::MAX, |lines| cgroup_limit(&lines));
    let of_user = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    if rustix::process::geteuid().is_root() { of_cgroup } else { of_cgroup.min(of_user) }
}

/// The least limit along the hierarchies that `/proc/self/cgroup` names.
fn cgroup_limit(lines: &str) -> u64 {
    lines.lines().filter_map(cgroup_mount).map(|(mount, path)| min_pids_max(mount, path)).min().unwrap_or(u64::MAX)
}

/// The conventional mount point of the hierarchy of a line of `/proc/self/cgroup`, and the group's path in it, if it can
/// limit threads: the one of version 2, which has no name, or the one called `pids` of version 1.
fn cgroup_mount(line: &str) -> Option<(&'static str, &str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    match controllers {
        "" => Some(("/sys/fs/cgroup", path)),
        named if named.split(',').any(|name| name == "pids") => Some(("/sys/fs/cgroup/pids", path)),
        _ => None,
    }
}

/// The least `pids.max` from the group up to the mount point. In a container the path may be one of the host's that does
/// not exist here: then the mount point is the group itself.
fn min_pids_max(mount: &str, path: &str) -> u64 {
    let mount = Path::new(mount);
    let mut group: PathBuf = mount.join(path.trim_start_matches('/'));
    let mut least = u64::MAX;
    loop {
        let limit = fs::read_to_string(group.join("pids.max")).ok().and_then(|text| text.trim().parse().ok());
        least = least.min(limit.unwrap_or(u64::MAX)); // "max" is no number, and no limit
        if group == mount || !group.pop() {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_that_limit_threads_are_asked() {
        assert_eq!(cgroup_mount("0::/system.slice/a.service"), Some(("/sys/fs/cgroup", "/system.slice/a.service")));
        assert_eq!(cgroup_mount("8:pids:/a"), Some(("/sys/fs/cgroup/pids", "/a")));
        assert_eq!(cgroup_mount("8:cpu,pids:/a:b"), Some(("/sys/fs/cgroup/pids", "/a:b")));
        assert_eq!(cgroup_mount("4:memory:/a"), None);
        assert_eq!(cgroup_mount(""), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let mount = std::env::temp_dir().join(format!("allout-limits-{}", std::process::id()));
        let group = mount.join("above/group");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("pids.max"), "max\n").unwrap();
        fs::write(mount.join("above/pids.max"), "70\n").unwrap();
        fs::write(mount.join("pids.max"), "100\n").unwrap();
        let least = |path| min_pids_max(mount.to_str().unwrap(), path);
        assert_eq!((least("/above/group"), least("/"), least("/not/here")), (70, 100, 100));
        fs::remove_dir_all(&mount).unwrap();
    }
}
