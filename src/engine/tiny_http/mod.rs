//! The engine on `tiny_http`, and the measures for what `tiny_http` does not do.
//!
//! `tiny_http` accepts, reads and frames requests, on a thread for each connection, and is used unmodified. Everything
//! else that a server must do is here, one file for each shortcoming of `tiny_http`:
//!
//! | shortcoming of `tiny_http` | file |
//! | --- | --- |
//! | threads without names; panics as messages; `Drop` connects to its own port | `server` |
//! | an unbounded queue; `unblock` leaves a marker in it | `receive` |
//! | it accepts whatever arrives, and never gives its listening socket back | `accept_point` |
//! | its accept thread dies when descriptors or threads run out | `restart` |
//! | pipelined requests come at once and block each other's responses | `connections` |
//! | no event when a connection begins or ends; sockets are not shown | `discover` |
//! | its own rules for bodies in memory, for closing, and for `100 Continue` | `quirks` |
//! | dropping a request reads its body to the end, and allocates all of it | `unread_body` |
//! | it reads ahead without bound | `throttle` |
//! | no timeouts, starved connections, leaks, no limit on a head | `monitor` |

mod accept_point;
mod admission;
mod conn_state;
mod connection;
mod connections;
mod discover;
mod exchange;
mod monitor;
mod pipeline;
mod quirks;
mod receive;
mod respond;
mod restart;
mod server;
mod socket;
mod throttle;
mod unread_body;
mod wire;

pub(crate) use socket::RECEIVE_BUFFER;

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

pub(crate) use exchange::{Client, Exchange, Headers};

use super::gate::AcceptGate;
use super::{
    ConnCensus, ConnStats, Ending, Engine, EngineKind, EngineThread, Events, InFlight, Peer, Serve, Settings, StopState,
};
use conn_state::ConnState;
use connection::Connection;
use connections::ConnectionTable;
use monitor::Monitor;
use receive::ReceiveLoop;

/// The parts of the engine that an exchange needs.
pub(crate) struct Shared {
    pub(crate) connections: Arc<ConnectionTable>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) stop_state: Arc<StopState>,
    pub(crate) settings: Settings,
}

impl Shared {
    /// The socket of a connection, searched for if it is not known yet.
    pub(crate) fn socket_of(&self, connection: &Arc<Connection>) -> Option<Arc<OwnedFd>> {
        connection.socket().or_else(|| {
            self.monitor.scan_now();
            connection.socket()
        })
    }
}

/// `tiny_http` on one listening socket.
pub(crate) struct TinyHttpEngine {
    shared: Arc<Shared>,
    gate: Arc<AcceptGate>,
    receive: OnceLock<Arc<ReceiveLoop>>,
}

impl TinyHttpEngine {
    pub(crate) fn new(listener: &TcpListener, settings: Settings, events: Events) -> io::Result<TinyHttpEngine> {
        socket::prepare(listener, settings.request_timeout)?;
        let gate = Arc::new(AcceptGate::new(listener)?);
        let connections = Arc::new(ConnectionTable::new(settings.request_timeout));
        let stop_state = Arc::new(StopState::default());
        let monitor = Arc::new(Monitor::new(
            Arc::clone(&connections),
            Arc::clone(&gate),
            Arc::clone(&stop_state),
            settings,
            Arc::new(events),
        )?);
        let shared = Arc::new(Shared { connections, monitor, stop_state, settings });
        Ok(TinyHttpEngine { shared, gate, receive: OnceLock::new() })
    }
}

impl Engine for TinyHttpEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::TinyHttp
    }

    fn start(self: Arc<Self>, serve: &Arc<Serve>) -> io::Result<()> {
        let receive = ReceiveLoop::start(Arc::clone(&self.shared), Arc::clone(&self.gate), Arc::clone(serve))?;
        let receive = Arc::new(receive);
        // Weak: the receive loop holds the monitor, and neither would be dropped if the monitor held the receive loop.
        let on_stalled = Arc::downgrade(&receive);
        self.shared.monitor.on_accept_stalled(move || {
            if let Some(receive) = on_stalled.upgrade() {
                receive.request_restart();
            }
        });
        let _ = self.receive.set(receive); // started once
        Ok(())
    }

    fn threads(self: Arc<Self>) -> Vec<EngineThread> {
        let (run, interrupt) = (Arc::clone(&self.shared.monitor), Arc::clone(&self.shared.monitor));
        let mut threads = vec![EngineThread {
            name: "monitor",
            run: Box::new(move || run.run()),
            interrupt: Box::new(move || interrupt.stop()),
        }];
        if let Some(receive) = self.receive.get() {
            let (run, interrupt) = (Arc::clone(receive), Arc::clone(receive));
            threads.push(EngineThread {
                name: "listener",
                run: Box::new(move || run.run()),
                interrupt: Box::new(move || interrupt.stop()),
            });
        }
        threads
    }

    fn gate(&self) -> &AcceptGate {
        &self.gate
    }

    fn stop_state(&self) -> &StopState {
        &self.shared.stop_state
    }

    fn stop_accepting(&self, ending: Ending) {
        self.shared.stop_state.stop_accepting();
        let result = match ending {
            Ending::Filter => self.gate.end_accepting(true),
            Ending::HandOver => {
                // The gate may be closed because of too many connections: the next holder of the socket would not open
                // it.
                let opened = self.gate.end_accepting(false);
                opened.and_then(|()| self.receive.get().map_or(Ok(()), |receive| receive.hand_over()))
            }
        };
        if let Err(error) = result {
            log::warn!("cannot stop accepting ({error}): some new connections may be reset");
        }
        self.shared.stop_state.accepting_stopped();
        self.shared.monitor.wake();
    }

    fn seal(&self) {
        if let Err(error) = self.shared.monitor.accept_point().seal() {
            log::debug!("the gate cannot be sealed ({error}): what the kernel queues from here on is not accepted");
            if let Some(Err(error)) = self.receive.get().map(|receive| receive.hand_over()) {
                log::debug!("tiny_http goes on accepting: {error}");
            }
            self.gate.limit_queue();
        }
        self.shared.stop_state.restart_proof();
        self.shared.monitor.wake();
    }

    fn resume_accepting(&self) {
        self.shared.stop_state.resume_accepting();
        self.gate.resume_accepting();
        if let Some(receive) = self.receive.get() {
            receive.take_back();
        }
        self.shared.monitor.wake();
    }

    fn is_quiescent(&self) -> bool {
        self.shared.monitor.is_quiescent()
    }

    fn has_requests_older_than_drain(&self) -> bool {
        self.shared.connections.has_requests_older_than_drain(&self.shared.stop_state)
    }

    fn in_flight(&self) -> usize {
        self.shared.connections.in_flight()
    }

    fn pipelined(&self) -> usize {
        self.shared.connections.pipelined()
    }

    fn connections(&self) -> usize {
        self.shared.connections.connections()
    }

    fn census(&self) -> ConnCensus {
        let mut census = ConnCensus::default();
        for connection in self.shared.connections.all() {
            let snapshot = connection.snapshot();
            *match (snapshot.conn_state, snapshot.busy) {
                (ConnState::Aborted { .. }, _) => &mut census.aborted,
                (_, true) => &mut census.busy,
                (ConnState::Closing { .. } | ConnState::ReadShut { .. }, _) => &mut census.closing,
                (ConnState::Open, _) => &mut census.idle,
            } += 1;
        }
        census
    }

    fn requests_in_flight(&self) -> Vec<InFlight> {
        let in_flight = |connection: Arc<Connection>| {
            let snapshot = connection.snapshot();
            snapshot.busy.then(|| InFlight {
                request_line: connection.request_line(),
                peer: Peer::Inet(connection.peer),
                since: snapshot.since,
                pipelined: snapshot.pipelined,
            })
        };
        self.shared.connections.all().into_iter().filter_map(in_flight).collect()
    }

    fn stats(&self) -> &ConnStats {
        &self.shared.connections.counts
    }

    fn ticks(&self) -> u64 {
        self.shared.monitor.ticks()
    }

    fn wake(&self) {
        self.shared.monitor.wake();
    }

    fn finish(&self, socket_is_shared: bool) {
        if let Some(receive) = self.receive.get() {
            receive.finish(socket_is_shared);
        }
    }
}
