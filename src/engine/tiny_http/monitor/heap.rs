//! Decides when the heap is trimmed: some time after many connections were open.

use std::time::{Duration, Instant};

/// Open connections above which the heap is trimmed afterwards: a few megabytes of memory.
const TRIM_ABOVE_CONNECTIONS: usize = 100;
/// Delay before the heap is trimmed: tiny_http's idle threads end after 5 s.
const TRIM_DELAY: Duration = Duration::from_secs(6);

#[derive(Debug, Default)]
pub(super) struct TrimTimer {
    /// When many connections were open for the last time, if the heap was not trimmed since.
    grew_at: Option<Instant>,
}

impl TrimTimer {
    /// Updates with the number of open connections.
    pub(super) fn update(&mut self, open: usize, now: Instant) {
        if open > TRIM_ABOVE_CONNECTIONS {
            self.grew_at = Some(now);
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.grew_at.is_some()
    }

    /// Whether to trim now. True once, and only while the service is `idle`, because trimming takes some milliseconds in
    /// which other threads may wait to allocate.
    pub(super) fn is_due(&mut self, idle: bool, now: Instant) -> bool {
        let due = idle && self.grew_at.is_some_and(|grew_at| now.saturating_duration_since(grew_at) >= TRIM_DELAY);
        if due {
            self.grew_at = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heap_is_trimmed_once_when_many_connections_are_gone_and_the_service_is_idle() {
        let (mut timer, began) = (TrimTimer::default(), Instant::now());
        timer.update(TRIM_ABOVE_CONNECTIONS, began);
        assert!(!timer.is_pending(), "few leave nothing behind");
        timer.update(TRIM_ABOVE_CONNECTIONS + 1, began);
        timer.update(0, began + TRIM_DELAY);
        assert!(!timer.is_due(true, began + TRIM_DELAY / 2));
        assert!(!timer.is_due(false, began + TRIM_DELAY), "never while the service is busy");
        assert!(timer.is_due(true, began + TRIM_DELAY) && !timer.is_due(true, began + TRIM_DELAY * 2));
    }
}
