//! A handler that has exceeded its request timeout: the client gets a 503, and the late response is dropped.

use std::net::Shutdown;

use rustix::net::SendFlags;
use socket2::SockRef;

use super::sockets::SocketTable;
use crate::engine::tiny_http::connection::Connection;
use crate::engine::{CloseReason, ConnStats};
use crate::http::automatic::HeaderLines;
use crate::http::encode::{ResponseContext, encode};
use crate::http::head::Version;
use crate::http::response::Response;

/// Answers 503 in the place of the handler, unless the handler has started its response.
pub(super) fn answer_for(connection: &Connection, sockets: &SocketTable, stats: &ConnStats, automatic: HeaderLines) {
    if !connection.claim_response() {
        return;
    }
    let (line, peer) = (connection.request_line(), connection.peer);
    log::warn!("the handler of {line} from {peer} has exceeded its request timeout: answering 503");
    stats.count_close(CloseReason::RequestTimeout);
    let Some(socket) = sockets.prove(peer) else { return connection.abort() };
    let context = ResponseContext {
        version: Version::Http11,
        head_only: line.starts_with("HEAD "),
        close: true,
        keep_alive: false,
        request_id: "-", // the id is with the handler's thread
        automatic,
    };
    let mut bytes = Vec::new();
    encode(&Response::error(503, "the request took too long"), &context, &mut bytes);
    // Nothing of the response was sent before, so the send buffer has room.
    let _ = rustix::net::send(&*socket, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    let _ = SockRef::from(&*socket).shutdown(Shutdown::Write); // fails if the peer has left
    connection.begin_closing();
}
