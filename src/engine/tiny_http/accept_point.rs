//! The socket from which tiny_http's accept thread accepts: the listening socket, or a private one to which only this
//! process connects.
//!
//! tiny_http takes a listening socket and never gives it back. So another socket is put under the number of its
//! descriptor:
//!
//! * in a hand-over, which leaves the listening socket, with its queue, to its next holder;
//! * by the [brake](AcceptBrake), when more connections are open than may be. The monitor releases it at its next tick, and
//!   closes the gate if too many are left. So a crowd exceeds the limit by the kernel's queue, [`BACKLOG`], at most: tiny_http
//!   accepts all of it at once;
//! * for a [knock](AcceptPoint::knock) (a connection to ourselves) behind the sealed gate, which refuses our own
//!   connections as well. The monitor releases the brake once the knock was accepted.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockAddr, SockRef};

use crate::engine::gate::{AcceptGate, loopback_addr};
use crate::sync::lock;
use crate::sys::accept_brake::{AcceptBrake, Handler};
use crate::sys::limits::fd_pressure_at;
use crate::sys::min_ttl::set_min_ttl_filter;
use crate::sys::tcp::tcp_info;

/// Least and greatest length of the accept queue; between them it is the connection limit. The least is that of the
/// standard library's listeners. Where the queue is full, the kernel drops the SYNs of all clients, so that they wait
/// for a second.
const BACKLOG: [usize; 2] = [128, 1024];

/// Descriptors that tiny_http has of a connection: one for reading, one for writing.
const FDS_PER_CONNECTION: u64 = 2;

/// Interval of the checks whether the accept thread has ended: about what its end takes.
const THREAD_END_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The accept point of one engine: see the module's text.
pub(crate) struct AcceptPoint {
    gate: Arc<AcceptGate>,
    brake: Arc<AcceptBrake>,
    /// Held for as long as signals may come.
    _handler: Handler,
    /// Connections that may be open.
    max_connections: u64,
    /// Descriptors that are neither tiny_http's connections nor our duplicates of them.
    other_fds: AtomicU64,
    /// Whether the listening socket is left to its next holder.
    handed_over: Mutex<bool>,
}

impl AcceptPoint {
    /// `wake` is an eventfd, written to when the brake goes on.
    /// Errors: the system refuses a socket.
    pub(super) fn new(gate: Arc<AcceptGate>, max_connections: usize, wake: Arc<OwnedFd>) -> io::Result<AcceptPoint> {
        let listener = gate.listener();
        set_backlog(listener, max_connections)?;
        let private = TcpListener::bind((loopback_addr(gate.inet()).ip(), 0))?;
        let _ = set_min_ttl_filter(&private, true); // may fail: even without the filter only this process knows its port
        let brake = Arc::new(AcceptBrake::new(Arc::clone(listener), private, wake)?);
        Ok(AcceptPoint {
            gate,
            _handler: brake.install()?,
            brake,
            max_connections: max_connections as u64,
            other_fds: AtomicU64::new(0),
            handed_over: Mutex::new(false),
        })
    }

    pub(super) fn brake(&self) -> &Arc<AcceptBrake> {
        &self.brake
    }

    /// Sets the number of descriptors that are neither tiny_http's connections nor our duplicates of them.
    pub(super) fn set_other_fds(&self, others: u64) {
        self.other_fds.store(others, Ordering::Relaxed);
    }

    /// Sets the number of descriptors at which the brake goes on: with one connection above the limit. `duplicates`:
    /// the number of ours.
    pub(super) fn set_limit(&self, duplicates: usize) {
        let others = self.other_fds.load(Ordering::Relaxed) + duplicates as u64;
        let limited = others.saturating_add(FDS_PER_CONNECTION.saturating_mul(self.max_connections)).saturating_add(1);
        // Behind a closed gate only connections arrive whose handshake had begun, and our own.
        self.brake.set_max_fds(if self.gate.is_closed() { u64::MAX } else { limited.min(fd_pressure_at()) });
    }

    /// Seals the gate, for good.
    ///
    /// # Errors
    ///
    /// The kernel lacks the option, or tiny_http could not be reached behind the sealed gate.
    pub(super) fn seal(&self) -> io::Result<()> {
        self.brake.call_to_private()?;
        self.gate.seal()
    }

    /// Releases the brake, if it is on.
    pub(super) fn release_brake(&self) {
        let handed_over = lock(&self.handed_over);
        if *handed_over || !self.brake.is_on() || (self.gate.is_sealed() && queue_len(self.brake.private()) > 0) {
            return;
        }
        // Fails if tiny_http has ended: then it is restarted.
        let _ = self.brake.release().and_then(|()| self.knock_private());
    }

    /// Makes tiny_http accept from the private listener from here on.
    ///
    /// tiny_http accepts at most one more connection from the listening socket, in the accept call that is blocked. Once it
    /// has accepted a [knock](AcceptPoint::knock) at the private listener, that call is over: accepts are sequential.
    /// Errors: tiny_http has ended by itself.
    pub(super) fn redirect(&self) -> io::Result<()> {
        let mut handed_over = lock(&self.handed_over);
        if self.gate.is_sealed() {
            *handed_over = true;
            return self.knock_sealed();
        }
        self.brake.apply()?;
        *handed_over = true;
        set_backlog(self.gate.listener(), usize::MAX)?; // for its next holder
        self.gate.knock()
    }

    /// Makes tiny_http accept from the listening socket again.
    ///
    /// Its accept call stays blocked on the private listener until a knock there. Only our own knocks are queued there.
    /// Errors: tiny_http has ended by itself, or no descriptor is left.
    pub(super) fn restore(&self) -> io::Result<()> {
        let mut handed_over = lock(&self.handed_over);
        if !std::mem::take(&mut *handed_over) {
            return Ok(());
        }
        set_backlog(self.gate.listener(), usize::try_from(self.max_connections).unwrap_or(usize::MAX))?;
        self.brake.release()?;
        self.knock_private()
    }

    /// Knocks at the socket from which tiny_http accepts.
    /// Errors: the connection was refused.
    pub(super) fn knock(&self) -> io::Result<()> {
        match (*lock(&self.handed_over), self.gate.is_sealed()) {
            (true, _) => self.knock_private(),
            (false, true) => self.knock_sealed(),
            (false, false) => self.gate.knock(),
        }
    }

    /// Knocks at the private listener, which ends a call of `accept` that waits at the other one.
    fn knock_sealed(&self) -> io::Result<()> {
        self.brake.call_to_private()?;
        self.brake.apply()?;
        self.knock_private()
    }

    fn knock_private(&self) -> io::Result<()> {
        self.gate.knock_at(self.brake.private().local_addr()?)
    }

    /// Connections that are established, and that tiny_http has not accepted yet.
    pub(super) fn queue_len(&self) -> u32 {
        let handed_over = *lock(&self.handed_over);
        let knocks = if handed_over || self.is_called() { queue_len(self.brake.private()) } else { 0 };
        if handed_over { knocks } else { knocks + self.gate.accept_queue_len() }
    }

    /// Whether a knock behind the sealed gate has made tiny_http accept from the private listener, and it has not been
    /// restored.
    pub(super) fn is_called(&self) -> bool {
        self.gate.is_sealed() && self.brake.is_on()
    }

    /// Waits until tiny_http has accepted, and closed, one more connection at the private listener.
    /// Errors: it has not within `limit`.
    pub(super) fn wait_for_private_accept(&self, limit: Duration) -> io::Result<()> {
        let own = self.gate.self_socket()?;
        own.connect_timeout(&SockAddr::from(self.brake.private().local_addr()?), limit)?;
        own.shutdown(Shutdown::Write)?; // tiny_http reads the end, and closes
        own.set_nonblocking(false)?;
        own.set_read_timeout(Some(limit))?;
        (&own).read(&mut [0]).map(|_| ())
    }

    /// Waits until tiny_http's accept thread has ended, whose `Server` was dropped: at once if it saw that before it waited
    /// for a connection, or else when it has accepted one more.
    /// Errors: it has not within `limit`.
    pub(super) fn wait_for_thread_end(&self, limit: Duration) -> io::Result<()> {
        let began = Instant::now();
        // The kernel resets it with the private listener if the thread has ended already.
        let own = self.gate.self_socket()?;
        own.connect_timeout(&SockAddr::from(self.brake.private().local_addr()?), limit)?;
        own.shutdown(Shutdown::Write)?; // tiny_http reads the end, and closes
        while self.brake.is_thread_alive() {
            if began.elapsed() >= limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // No event tells of the end of the thread. Until it accepts, this waits; from then on its end is near.
            rustix::event::poll(&mut [PollFd::new(&own, PollFlags::IN)], Some(&THREAD_END_CHECK))?;
            thread::yield_now();
        }
        Ok(())
    }
}

/// Length of a listener's accept queue.
fn queue_len(listener: &TcpListener) -> u32 {
    tcp_info(listener).map_or(0, |facts| facts.accept_queue)
}

/// Sets how many connections the kernel queues, which may be done again (listen(2)).
fn set_backlog(listener: &TcpListener, most: usize) -> io::Result<()> {
    let [least, greatest] = BACKLOG;
    SockRef::from(listener).listen(i32::try_from(most.clamp(least, greatest)).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    use rustix::event::{EventfdFlags, eventfd};
    use socket2::{Domain, Socket, Type};

    /// Long enough for a handshake over loopback on any machine, and short enough for a test to wait in full.
    const SOON: Duration = Duration::from_millis(300);

    #[test]
    fn behind_the_sealed_gate_a_knock_is_accepted_and_then_a_connection_whose_handshake_had_begun() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Arc::new(AcceptGate::new(&listener).unwrap());
        let point = AcceptPoint::new(gate, 10, Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())).unwrap();
        let accepting = listener.try_clone().unwrap();
        point.brake.set_accept_fd(accepting.as_raw_fd());
        let (sender, accepted) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let spoke = stream.read_exact(&mut [0]).is_ok();
                if sender.send(spoke).is_err() || spoke {
                    return;
                }
            }
        });
        // It does not hear the answer to its SYN until the kernel repeats that, after a second.
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        set_min_ttl_filter(&client, true).unwrap();
        client.set_nonblocking(true).unwrap();
        client.connect(&listener.local_addr().unwrap().into()).unwrap_err();
        point.seal().unwrap();
        let wait_until = |what: &str, is_so: &dyn Fn() -> bool| {
            let began = std::time::Instant::now();
            while !is_so() {
                assert!(began.elapsed() < Duration::from_secs(5), "{what}");
                std::thread::yield_now();
            }
        };
        for round in [1, 2] {
            point.knock().unwrap();
            assert!(point.is_called());
            wait_until(&format!("round {round}: the knock is accepted"), &|| point.queue_len() == 0);
            point.release_brake();
            assert!(!point.is_called(), "round {round}");
        }
        set_min_ttl_filter(&client, false).unwrap();
        client.set_nonblocking(false).unwrap();
        wait_until("the client is connected", &|| client.peer_addr().is_ok());
        (&client).write_all(b"x").unwrap();
        while !accepted.recv_timeout(Duration::from_secs(5)).unwrap() {} // knocks come first
        thread.join().unwrap();
    }

    #[test]
    fn the_end_of_the_accept_thread_is_seen_though_it_accepts_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Arc::new(AcceptGate::new(&listener).unwrap());
        let point = AcceptPoint::new(gate, 10, Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())).unwrap();
        let accepting = listener.try_clone().unwrap();
        point.brake.set_accept_fd(accepting.as_raw_fd());
        assert_eq!(point.wait_for_thread_end(SOON).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(accepting); // as its thread does when it ends
        point.wait_for_thread_end(SOON).unwrap();
    }

    #[test]
    fn accepting_is_redirected_and_restored_and_what_was_queued_meanwhile_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Arc::new(AcceptGate::new(&listener).unwrap());
        let point = AcceptPoint::new(gate, 10, Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = listener.try_clone().unwrap();
        point.brake.set_accept_fd(accepting.as_raw_fd());
        let (sender, accepted) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let mut byte = [0];
                let knock = stream.read(&mut byte).is_err() || byte == [0];
                if !knock && sender.send(byte[0]).is_err() {
                    return;
                }
            }
        });
        let connect = |byte: u8| TcpStream::connect_timeout(&address, SOON).unwrap().write_all(&[byte]).unwrap();
        for round in [1, 2] {
            connect(b'a');
            assert_eq!(accepted.recv_timeout(SOON), Ok(b'a'), "round {round}");
            point.redirect().unwrap();
            point.release_brake();
            connect(b'b');
            assert!(accepted.recv_timeout(SOON).is_err(), "round {round}: accepted while it is another's");
            point.restore().unwrap();
            point.restore().unwrap();
            assert_eq!(accepted.recv_timeout(SOON), Ok(b'b'), "round {round}");
        }
        drop(accepted);
        connect(b'c');
        thread.join().unwrap();
    }
}
