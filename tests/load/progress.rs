//! How far a long run is, and how long is left: one line on stderr that is rewritten, or where that is no terminal a line
//! every ten seconds.

#![allow(dead_code, unreachable_pub, reason = "shared by several programs, each of which uses its own part")]

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Interval of the lines where there is no terminal.
const PLAIN: Duration = Duration::from_secs(10);

/// Interval at which the line on a terminal is rewritten.
const TERMINAL: Duration = Duration::from_millis(200);

/// The line, for a program that calls [`show`](Line::show) now and then.
#[derive(Debug)]
pub struct Line {
    began: Instant,
    total: Duration,
    next: Instant,
    terminal: bool,
}

impl Line {
    /// Of a run that takes about so long.
    pub fn new(total: Duration) -> Line {
        let (began, terminal) = (Instant::now(), std::io::stderr().is_terminal());
        Line { began, total, next: began + if terminal { TERMINAL } else { PLAIN }, terminal }
    }

    /// Shows it, if it is time to.
    pub fn show(&mut self, state: impl Display) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.terminal { TERMINAL } else { PLAIN };
        let (gone, total) = ((now - self.began).as_secs(), self.total.as_secs());
        let left = total.saturating_sub(gone);
        let line = format!("{gone} s of about {total} s, {} left: {state}", minutes(left));
        let mut to = std::io::stderr().lock();
        // `\x1b[K` erases what a longer line has left.
        let _ = if self.terminal { write!(to, "\r{line}\x1b[K") } else { writeln!(to, "{line}") };
        let _ = to.flush(); // where it cannot be shown, it is not
    }

    /// As [`show`](Line::show), for a program that prints lines of its own where there is no terminal.
    pub fn show_on_terminal(&mut self, state: impl Display) {
        if self.terminal {
            self.show(state);
        }
    }

    /// Erases it on a terminal, for other output.
    pub fn clear(&self) {
        if self.terminal {
            let mut to = std::io::stderr().lock();
            let _ = to.write_all(b"\r\x1b[K").and_then(|()| to.flush());
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The line, shown by a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Progress {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Of a run that takes about so long; `state` says what there is so far.
    pub fn start(total: Duration, state: impl Fn() -> String + Send + 'static) -> Progress {
        let (end, ended) = channel();
        let show = move || {
            let mut line = Line::new(total);
            while ended.recv_timeout(TERMINAL) == Err(RecvTimeoutError::Timeout) {
                line.show(state());
            }
        };
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(show).ok();
        Progress { end: Some(end), thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic
        }
    }
}

/// `12 s`, `3 min`.
fn minutes(seconds: u64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}
