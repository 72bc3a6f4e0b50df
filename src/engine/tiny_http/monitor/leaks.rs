//! Connections that tiny_http never closes: each keeps a thread and two descriptors for good.
//!
//! A request line that says HTTP/2.0 or 3.0 (an h2c preface, for one) makes tiny_http's thread wait for a writer that it
//! holds itself (`client.rs`, `next`). No request ever arrives of it. What can be seen is the socket: in the descriptor
//! table although the connection is over. If it was reset before it was found, its peer is not known either: then it is
//! an *orphan*, a closed socket of our port that belongs to no known connection.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long after we have shut a connection down tiny_http may keep its socket, before it counts as leaked. A request
/// that tiny_http has read, and the listener has not received, is safe for as long.
pub(super) const LEAK_AFTER: Duration = Duration::from_secs(3);
/// The same for a connection that its peer has reset: no response can reach it.
pub(super) const CLOSED_LEAK_AFTER: Duration = Duration::from_secs(1);
/// The same in a drain, and while there are so many that they would reach the leak limit: a client can make a thousand in
/// a second, which is as much as `RLIMIT_NOFILE` of 1,024 allows.
pub(super) const FAST_LEAK_AFTER: Duration = Duration::from_millis(250);
/// Age of an orphan at which tiny_http is made to start a thread: it may just be starved. As long as for others.
const KNOCK_AFTER: Duration = Duration::from_millis(20);
/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    /// Cookies of orphans, and when each was found.
    orphans: HashMap<u64, Orphan>,
    /// Cookies of leaked sockets.
    leaked: HashSet<u64>,
    /// Leaked sockets of known connections that no [`Findings`] has named yet.
    unreported: usize,
    reached: bool,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct Orphan {
    found: Instant,
    knocked: bool,
}

/// What follows from a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Sockets that have become leaked since the last findings.
    pub(super) leaked: usize,
    /// Threads that tiny_http should start.
    pub(super) knocks: usize,
}

impl Leaks {
    /// Adds orphans.
    pub(super) fn add_orphans(&mut self, cookies: impl IntoIterator<Item = u64>, now: Instant) {
        self.orphans.extend(cookies.into_iter().map(|cookie| (cookie, Orphan { found: now, knocked: false })));
    }

    /// Adds a socket of a known connection that tiny_http has leaked.
    pub(super) fn add_leaked(&mut self, cookie: u64) {
        self.leaked.insert(cookie);
        self.unreported += 1;
    }

    /// Removes sockets that are closed (not in the descriptor table any more), calling `remove` for each; then judges the
    /// remaining orphans.
    /// `unattached` requests are in flight on connections whose socket is not known: as many orphans may be theirs.
    pub(super) fn update(
        &mut self,
        is_open: impl Fn(u64) -> bool,
        mut remove: impl FnMut(u64),
        unattached: usize,
        limit: u64,
        now: Instant,
    ) -> Findings {
        let mut is_open = |cookie: &u64| {
            let open = is_open(*cookie);
            if !open {
                remove(*cookie);
            }
            open
        };
        self.orphans.retain(|cookie, _| is_open(cookie));
        self.leaked.retain(&mut is_open);

        let age = |orphan: &Orphan| now.saturating_duration_since(orphan.found);
        let suspects = self.orphans.values().filter(|orphan| age(orphan) >= FAST_LEAK_AFTER).count();
        let patience = if (suspects.saturating_sub(unattached) + self.leaked.len()) as u64 >= limit {
            FAST_LEAK_AFTER
        } else {
            CLOSED_LEAK_AFTER
        };
        let mut findings = Findings { leaked: std::mem::take(&mut self.unreported), knocks: 0 };
        for orphan in self.orphans.values_mut().filter(|orphan| !orphan.knocked && age(orphan) >= KNOCK_AFTER) {
            orphan.knocked = true;
            findings.knocks += 1;
        }
        let mut old: Vec<_> =
            self.orphans.iter().filter(|(_, orphan)| age(orphan) >= patience).map(|(c, o)| (o.found, *c)).collect();
        old.sort_unstable();
        for (_, cookie) in old.iter().take(old.len().saturating_sub(unattached)) {
            self.orphans.remove(cookie);
            self.leaked.insert(*cookie);
            findings.leaked += 1;
        }
        findings
    }

    /// Whether orphans are watched, so that the table must be scanned again soon.
    pub(super) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Leaked sockets that are still in the table.
    pub(super) fn present(&self) -> usize {
        self.leaked.len()
    }

    /// Whether `total`, all leaked since the start, has reached `limit`: true once.
    pub(super) fn reaches(&mut self, total: u64, limit: u64) -> bool {
        total >= limit && !std::mem::replace(&mut self.reached, true)
    }

    /// Whether a new leak may be logged.
    pub(super) fn may_log(&mut self, now: Instant) -> bool {
        let may = self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_INTERVAL);
        if may {
            self.logged = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 10;

    fn update(leaks: &mut Leaks, unattached: usize, now: Instant) -> Findings {
        leaks.update(|_| true, |_| {}, unattached, LIMIT, now)
    }

    #[test]
    fn an_orphan_is_knocked_for_once_and_leaked_when_it_stays() {
        let (mut leaks, began) = (Leaks::default(), Instant::now());
        leaks.add_orphans([7], began);
        assert_eq!(update(&mut leaks, 0, began), Findings::default());
        assert_eq!(update(&mut leaks, 0, began + KNOCK_AFTER), Findings { leaked: 0, knocks: 1 });
        assert_eq!(update(&mut leaks, 0, began + FAST_LEAK_AFTER), Findings::default());
        assert_eq!(update(&mut leaks, 0, began + CLOSED_LEAK_AFTER), Findings { leaked: 1, knocks: 0 });
        assert!(!leaks.has_orphans() && leaks.present() == 1);
    }

    #[test]
    fn a_socket_that_tiny_http_closes_is_removed() {
        let (mut leaks, began) = (Leaks::default(), Instant::now());
        leaks.add_orphans([7, 8], began);
        leaks.add_leaked(9);
        let mut removed = Vec::new();
        leaks.update(|cookie| cookie == 8, |cookie| removed.push(cookie), 0, LIMIT, began);
        removed.sort_unstable();
        assert_eq!(removed, [7, 9]);
        assert!(leaks.has_orphans() && leaks.present() == 0);
    }

    #[test]
    fn as_many_as_requests_whose_socket_is_unknown_may_be_theirs() {
        let (mut leaks, began) = (Leaks::default(), Instant::now());
        leaks.add_orphans([1, 2, 3], began);
        update(&mut leaks, 0, began + KNOCK_AFTER);
        assert_eq!(update(&mut leaks, 2, began + CLOSED_LEAK_AFTER).leaked, 1);
        assert_eq!(update(&mut leaks, 0, began + CLOSED_LEAK_AFTER).leaked, 2);
    }

    #[test]
    fn many_at_once_are_judged_sooner() {
        let (mut leaks, began) = (Leaks::default(), Instant::now());
        leaks.add_orphans(0..LIMIT - 1, began);
        update(&mut leaks, 0, began + KNOCK_AFTER);
        assert_eq!(update(&mut leaks, 0, began + FAST_LEAK_AFTER).leaked, 0);
        leaks.add_leaked(99);
        assert_eq!(update(&mut leaks, 0, began + FAST_LEAK_AFTER).leaked as u64, LIMIT);
        assert!(leaks.reaches(LIMIT, LIMIT) && !leaks.reaches(LIMIT, LIMIT), "it is said once");
    }

    #[test]
    fn the_log_has_one_line_a_second() {
        let (mut leaks, now) = (Leaks::default(), Instant::now());
        assert!(leaks.may_log(now) && !leaks.may_log(now + LOG_INTERVAL / 2) && leaks.may_log(now + LOG_INTERVAL));
    }
}
