//! Writing a response: by a worker, which waits for the client, or by a receiver, which does not.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::PollFlags;

use super::connection::{Connection, Socket};
use super::read::wait;
use crate::engine::progress::Budget;

/// Writes for as long as the client makes progress.
pub(super) struct BlockingWriter<'a> {
    socket: &'a Socket,
    budget: Budget,
}

impl BlockingWriter<'_> {
    /// `timeout`: time that the client may stall.
    pub(super) fn new(socket: &Socket, timeout: Duration) -> BlockingWriter<'_> {
        BlockingWriter { socket, budget: Budget::new(timeout) }
    }
}

impl Write for BlockingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.send(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.socket, PollFlags::OUT, &mut self.budget, false)?;
                }
                Ok(count) => {
                    self.budget.spend(Duration::ZERO, count as u64);
                    return Ok(count);
                }
                error => return error,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what the kernel takes at once, and leaves the rest in the connection's outbox, which its receiver sends when
/// there is room. Only for responses in memory.
pub(super) struct OutboxWriter<'a> {
    pub(super) connection: &'a mut Connection,
    /// Whether the response is the last, so that the receiver ends this side of the connection as soon as it is
    /// written.
    pub(super) last: bool,
}

impl Write for OutboxWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Connection { socket, outbox, .. } = &mut *self.connection;
        let sent = if outbox.is_empty() {
            let result = if self.last { socket.send_before_end(bytes) } else { socket.send(bytes) };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                result => result?,
            }
        } else {
            0
        };
        if sent < bytes.len() {
            outbox.extend_from_slice(&bytes[sent..]);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use socket2::{Domain, SockRef, Type};

    #[test]
    fn a_client_that_reads_steadily_and_slower_than_the_socket_gets_room_is_not_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(16 * 1024).unwrap();
        client.connect(&listener.local_addr().unwrap().into()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        SockRef::from(&server).set_send_buffer_size(200 * 1024).unwrap();
        let socket = Socket::new(server.into());
        let is_written = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // 100 KiB a second, of which a third of the send buffer takes longer than the timeout.
                while !is_written.load(Ordering::Relaxed) {
                    (&client).read_exact(&mut [0; 2048]).unwrap();
                    thread::sleep(Duration::from_millis(20));
                }
            });
            let mut writer = BlockingWriter::new(&socket, Duration::from_secs(1));
            let result = writer.write_all(&vec![b'x'; 700 * 1024]);
            is_written.store(true, Ordering::Relaxed);
            result.expect("the client makes progress");
        });
    }
}
