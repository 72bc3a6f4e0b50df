//! Reading a body from its connection, and waiting for a client.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::body::Step;
use super::connection::{Connection, Inbox, Socket};
use crate::engine::progress::Budget;
use crate::sys::tcp::unacknowledged_bytes;

/// Interim response that tells a client which waits for it to send the body (RFC 9110, section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Reads the body; waits for the client if `budget` is given. Zero at its end.
pub(super) fn read(connection: &mut Connection, into: &mut [u8], budget: Option<&mut Budget>) -> io::Result<usize> {
    let Some(inbox) = &mut connection.inbox else { return Ok(0) };
    if let Some(kind) = inbox.body.failed {
        return Err(kind.into());
    }
    if into.is_empty() || inbox.body.is_complete() {
        return Ok(0);
    }
    let result = read_on(inbox, &connection.socket, into, budget);
    match &result {
        // The caller tries again.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => inbox.body.failed = Some(error.kind()),
        Ok(_) => {}
    }
    result
}

/// Reads the rest of a body, and waits for the client.
pub(super) struct BodyReader<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) budget: &'a mut Budget,
}

impl io::Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read(self.connection, into, Some(self.budget))
    }
}

fn read_on(inbox: &mut Inbox, socket: &Socket, into: &mut [u8], budget: Option<&mut Budget>) -> io::Result<usize> {
    let mut wait = Wait { socket, budget };
    loop {
        let mut body = std::mem::take(&mut inbox.body);
        let step = body.step(inbox.unread(), into);
        inbox.body = body;
        let (used, step) = step?;
        inbox.consume(used);
        if used > 0 {
            inbox.body.expects_continue = false; // the client has not waited for it (RFC 9110, section 10.1.1)
        }
        let received = match step {
            Step::Complete => return Ok(0),
            Step::Copied(count) => return Ok(count),
            Step::Data(most) => wait.receive(&mut inbox.body.expects_continue, || socket.receive(&mut into[..most])),
            Step::Any => {
                let mut expects = std::mem::take(&mut inbox.body.expects_continue);
                let received = wait.receive(&mut expects, || inbox.receive(socket));
                inbox.body.expects_continue = expects;
                received
            }
        };
        match received? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the body ended early")),
            count => {
                inbox.body.expects_continue = false;
                if let Step::Data(_) = step {
                    inbox.body.took(count);
                    return Ok(count);
                }
            }
        }
    }
}

/// Waiting for a client to send.
struct Wait<'a> {
    socket: &'a Socket,
    budget: Option<&'a mut Budget>,
}

impl Wait<'_> {
    fn receive(&mut self, expects: &mut bool, mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Some(budget) = &mut self.budget else { return Err(error) };
                    if std::mem::take(expects) {
                        send_continue(self.socket, budget)?;
                    }
                    wait(self.socket, PollFlags::IN, budget, true)?;
                }
                result => {
                    if let (Some(budget), Ok(count)) = (&mut self.budget, &result) {
                        budget.spend(Duration::ZERO, *count as u64);
                    }
                    return result;
                }
            }
        }
    }
}

/// Tells the client to send the body. It may not have read the responses before, so that there is no room at once.
fn send_continue(socket: &Socket, budget: &mut Budget) -> io::Result<()> {
    let mut left = CONTINUE;
    while !left.is_empty() {
        match socket.send(left) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(socket, PollFlags::OUT, budget, true)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Shortest wait for room between two looks at what the client has taken meanwhile: else the looks, each after a quarter of
/// the time that is left, would follow ever faster on each other as it runs out.
const LEAST_LOOK: Duration = Duration::from_millis(10);

/// Waits until the socket may be ready, for as long as the client may keep us waiting. With `pauses_handler` this time is
/// not the handler's.
/// Errors: `TimedOut`: the client has used up its time.
pub(super) fn wait(socket: &Socket, flags: PollFlags, budget: &mut Budget, pauses_handler: bool) -> io::Result<()> {
    let began = Instant::now();
    if pauses_handler {
        socket.flight_state(|state| state.blocked_since = Some(began));
    }
    let mut limit = budget.left();
    let mut unacknowledged = 0;
    if flags == PollFlags::OUT {
        // There is room again only once a third of what the kernel holds is acknowledged (`sk_stream_is_writeable`,
        // include/net/sock.h): megabytes over a fast network. What the client takes until then is progress as well.
        limit = (limit / 4).max(LEAST_LOOK).min(limit);
        unacknowledged = unacknowledged_bytes(socket.fd());
    }
    let limit = Timespec::try_from(limit).ok(); // `None`: longer than the kernel can count
    let result = loop {
        match poll(&mut [PollFd::new(socket.fd(), flags)], limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result,
        }
    };
    let blocked = began.elapsed();
    let taken = match result {
        Ok(0) => unacknowledged.saturating_sub(unacknowledged_bytes(socket.fd())),
        _ => 0,
    };
    budget.spend(blocked, taken);
    if pauses_handler {
        socket.flight_state(|state| {
            state.blocked_since = None;
            state.blocked += blocked;
        });
    }
    match result {
        Ok(0) if budget.left().is_zero() => Err(io::Error::new(io::ErrorKind::TimedOut, "the client made no progress")),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_client_that_has_not_read_yet_is_told_to_continue_when_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let socket = Socket::new(server.into());
        let mut before = 0;
        while let Ok(count) = socket.send(&[b'x'; 1000]) {
            before += count; // an earlier response, until there is no room
        }
        let reads = std::thread::spawn(move || {
            let mut all = vec![0; before + CONTINUE.len()];
            client.read_exact(&mut all).map(|()| all)
        });
        send_continue(&socket, &mut Budget::new(Duration::from_secs(10))).unwrap();
        let all = reads.join().unwrap().unwrap();
        assert!(all.ends_with(CONTINUE) && all[..before].iter().all(|byte| *byte == b'x'));
    }
}
