//! A service with a background member: requests are accepted at once, and done one after the other by a thread that lives
//! and dies with the service. Nothing that was accepted is lost when it stops.

use std::fs::File;
use std::io::{self, Write};

use allout::{Outcome, Request, Response, Service, Stop, channel};

fn main() -> io::Result<Outcome> {
    Ok(service(File::create("journal.txt")?).run())
}

/// The service, with a journal of any kind.
pub fn service(journal: impl Write + Send + 'static) -> Service {
    let (sender, lines) = channel::bounded(1000);
    Service::new()
        .post("/journal", move |request| accept(request, &sender))
        .member("journal", move |stop| write_down(journal, &lines, stop))
}

/// A handler may return early with anything that is an answer: here a body that is too large, or no text.
fn accept(request: &mut Request, sender: &channel::Sender<String>) -> Result<u16, Response> {
    let line = request.text()?;
    match sender.try_send(line) {
        Ok(()) => Ok(202),
        Err(_) => Err(Response::from((503, "the journal is behind\n")).with_header("Retry-After", "1")),
    }
}

/// A member: its error takes everyone out, and the service's exit code says so.
fn write_down(mut journal: impl Write, lines: &channel::Receiver<String>, stop: &Stop) -> io::Result<()> {
    loop {
        channel::select! {
            recv(lines) -> line => match line {
                Ok(line) => writeln!(journal, "{line}")?,
                Err(_) => return Ok(()), // no route is left that could send
            },
            // Members are told to leave after the last request: what is in the queue now is all there will be.
            recv(stop.stopping()) -> _ => {
                for line in lines.try_iter() {
                    writeln!(journal, "{line}")?;
                }
                return journal.flush();
            }
        }
    }
}
