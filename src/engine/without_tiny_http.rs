//! In place of the engine on `tiny_http`, in programs that are built without the feature `tiny-http`: types that have no
//! values, so that what would be done with one is left out by the compiler.

use std::io;
use std::marker::PhantomData;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gate::AcceptGate;
use super::{
    BodyState, CloseReason, ConnCensus, ConnStats, Ending, EngineThread, Events, InFlight, Peer, Serve, Settings,
    StopState,
};
use crate::http::encode::Sent;
use crate::http::head::{Rejection, RequestHead};
use crate::http::response::Response;

/// Receive buffer of the listening socket, in bytes: the same as with `tiny_http`.
pub(crate) const RECEIVE_BUFFER: usize = 4 * 1024;

macro_rules! never {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(pub(crate) fn $name(&self, $(_: $argument),*) $(-> $result)? {
            match *self {}
        })*
    };
}

pub(crate) enum Engine {}

impl Engine {
    /// # Errors
    ///
    /// Always: there is no such engine.
    pub(crate) fn new(_: &TcpListener, _: Settings, _: Events) -> io::Result<Engine> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "built without the feature tiny-http"))
    }

    never! {
        start(Arc<Serve>) -> io::Result<()>;
        threads() -> Vec<EngineThread>;
        gate() -> &AcceptGate;
        stop_state() -> &StopState;
        stop_accepting(Ending);
        seal();
        resume_accepting();
        is_quiescent() -> bool;
        has_requests_older_than_drain() -> bool;
        in_flight() -> usize;
        pipelined() -> usize;
        connections() -> usize;
        census() -> ConnCensus;
        requests_in_flight() -> Vec<InFlight>;
        stats() -> &ConnStats;
        ticks() -> u64;
        wake();
        finish(bool);
    }
}

pub(crate) enum Exchange {}

impl Exchange {
    never! {
        method() -> &str;
        target() -> &str;
        headers() -> Headers<'_>;
        head() -> Result<RequestHead, Rejection>;
        peer() -> Peer;
        since() -> Instant;
        client() -> Client;
        body() -> BodyState;
        read_body(&mut [u8]) -> io::Result<usize>;
        set_timeout(Duration);
        consume_body(bool) -> bool;
        expect_body();
        can_answer_inline() -> bool;
        can_write_inline() -> bool;
        respond(Response, bool, &str) -> (Sent, Option<super::Exchange>);
        abort(CloseReason) -> Option<super::Exchange>;
    }
}

#[derive(Clone)]
pub(crate) enum Client {}

impl Client {
    never! {
        is_gone() -> bool;
    }
}

#[derive(Clone)]
pub(crate) struct Headers<'a>(Client, PhantomData<&'a ()>);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        match self.0 {}
    }
}
