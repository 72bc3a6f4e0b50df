//! A crew without HTTP: threads that live and die together, as Go's errgroup and oklog/run have it, with names, a
//! deadline, and signals. It counts the lines that it is given, and says so every second.

use std::io::{self, BufRead as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use allout::{Crew, Outcome, channel};

fn main() -> io::Result<Outcome> {
    let mut crew = Crew::new().grace(Duration::from_secs(5));
    crew.handle_signals()?; // before any other thread begins
    let (sender, lines) = channel::bounded(100);
    // A thread that reads a terminal cannot be told to stop. It is no member, so the crew does not wait for it.
    std::thread::spawn(move || io::stdin().lock().lines().try_for_each(|line| sender.send(line)));
    count(&mut crew, lines)?;
    Ok(crew.run())
}

/// Adds a member that counts and one that reports. The end of the lines is the end of both.
///
/// # Errors
///
/// The system refuses a thread.
pub fn count(crew: &mut Crew, lines: channel::Receiver<io::Result<String>>) -> io::Result<Arc<AtomicU64>> {
    let count = Arc::new(AtomicU64::new(0));
    let (counted, reported) = (Arc::clone(&count), Arc::clone(&count));
    crew.spawn("counter", move |stop| -> io::Result<()> {
        loop {
            channel::select! {
                recv(lines) -> line => match line {
                    Ok(line) => line.map(|_| counted.fetch_add(1, Ordering::Relaxed))?,
                    Err(_) => return Ok(()),
                },
                recv(stop.stopping()) -> _ => return Ok(()),
            };
        }
    })?;
    crew.spawn("reporter", move |stop| {
        while !stop.wait_timeout(Duration::from_secs(1)) {
            println!("{} lines so far", reported.load(Ordering::Relaxed));
        }
    })?;
    Ok(count)
}
