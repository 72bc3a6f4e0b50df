//! What the system lets this process have: how many threads, wherever that is written.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// How many threads this process may have, as far as anything limits them: its cgroup and those above it (`pids.max`),
/// which count threads, and the user's limit (`RLIMIT_NPROC`), which counts those of all processes of the user and does
/// not hold for root. What others use up of either is not known beforehand.
pub(crate) fn threads() -> u64 {
    let of_cgroup = fs::read_to_string("/proc/self/cgroup").map_or(u64::MAX, |lines| of_cgroups(&lines));
    let of_user = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    if rustix::process::geteuid().is_root() { of_cgroup } else { of_cgroup.min(of_user) }
}

/// The least of the limits along the hierarchies that `/proc/self/cgroup` names.
fn of_cgroups(lines: &str) -> u64 {
    lines.lines().filter_map(place_of).map(|(mount, path)| least_along(mount, path)).min().unwrap_or(u64::MAX)
}

/// Where the hierarchy of a line of `/proc/self/cgroup` is mounted by convention, and the group's path in it, if it can
/// have a limit on threads: that of version 2, which has no name, or the one called `pids` of version 1.
fn place_of(line: &str) -> Option<(&'static str, &str)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    match controllers {
        "" => Some(("/sys/fs/cgroup", path)),
        named if named.split(',').any(|name| name == "pids") => Some(("/sys/fs/cgroup/pids", path)),
        _ => None,
    }
}

/// The least `pids.max` from the group up to where the hierarchy is mounted. In a container the path may be one of the
/// host's, of which nothing is to be seen here: then what is mounted is the group itself.
fn least_along(mount: &str, path: &str) -> u64 {
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
        assert_eq!(place_of("0::/system.slice/a.service"), Some(("/sys/fs/cgroup", "/system.slice/a.service")));
        assert_eq!(place_of("8:pids:/a"), Some(("/sys/fs/cgroup/pids", "/a")));
        assert_eq!(place_of("8:cpu,pids:/a:b"), Some(("/sys/fs/cgroup/pids", "/a:b")));
        assert_eq!(place_of("4:memory:/a"), None);
        assert_eq!(place_of(""), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let mount = std::env::temp_dir().join(format!("allout-limits-{}", std::process::id()));
        let group = mount.join("above/group");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("pids.max"), "max\n").unwrap();
        fs::write(mount.join("above/pids.max"), "70\n").unwrap();
        fs::write(mount.join("pids.max"), "100\n").unwrap();
        let least = |path| least_along(mount.to_str().unwrap(), path);
        assert_eq!((least("/above/group"), least("/"), least("/not/here")), (70, 100, 100));
        fs::remove_dir_all(&mount).unwrap();
    }
}
