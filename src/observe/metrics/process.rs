//! The `process_*` metrics that every Prometheus exporter has. Values that cannot be read are left out.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::observe::metrics::families::{Families, as_f64, seconds};

pub(super) fn collect(families: &mut Families, started: f64) {
    let help = "Start time of the process since the unix epoch in seconds.";
    families.gauge("process_start_time_seconds", help, started);
    let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).map_or(0.0, seconds);
    let help = "Total user and system CPU time spent in seconds.";
    families.counter("process_cpu_seconds_total", help, cpu);

    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            families.gauge(name, help, value);
        }
    };
    // In kB, which means 1024 bytes here: proc(5).
    let bytes = |name| number(name).map(|kib| kib * 1024.0);
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes("VmRSS"));
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", bytes("VmSize"));
    gauge("process_threads", "Number of threads.", number("Threads"));
    // Without the descriptor of the listing itself.
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|all| all.count().saturating_sub(1)).map(as_f64);
    gauge("process_open_fds", "Number of open file descriptors.", open);
    let most = getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok()).map(as_f64);
    gauge("process_max_fds", "Maximum number of open file descriptors.", most);
}
