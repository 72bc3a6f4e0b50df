//! Connections whose request is elsewhere: kept by a handler, or with a worker when its receiver dies.

use super::*;

#[test]
fn a_request_that_a_handler_keeps_is_its_own_connections_alone_when_another_drops_it() {
    let server = Server::start(Settings { receivers: 1, ..settings() });
    let mut kept = server.connect();
    kept.write_all(b"GET /keep HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    wait_until("it to be kept", || server.engine.requests_in_flight().len() == 1);
    assert_eq!(server.statuses(&[b"GET /drop HTTP/1.1\r\nHost: h\r\n\r\n", GET].concat()), [200, 200]);
    let error = kept.read(&mut [0]).expect_err("a request without an answer");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    wait_until("all to be closed", || server.engine.connections() == 0);
    assert_eq!((server.engine.in_flight(), server.engine.requests_in_flight().len()), (0, 0));
}

#[test]
fn what_workers_answer_when_its_receiver_has_died_is_no_longer_in_flight() {
    let mut server = Server::start(Settings { receivers: 1, ..settings() });
    let (mut busy, mut other) = (server.connect(), server.connect());
    busy.write_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n").unwrap();
    wait_until("a worker to have it", || server.engine.requests_in_flight().len() == 1);
    other.write_all(b"GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    server.threads.remove(0).join().expect_err("the receiver has panicked");
    assert_eq!((server.engine.in_flight(), server.engine.connections()), (1, 1));
    busy.write_all(b"hello").unwrap();
    let mut answer = String::new();
    let _ = busy.read_to_string(&mut answer);
    assert!(answer.ends_with("hello"), "{answer}");
    wait_until("nothing to be in flight", || server.engine.in_flight() == 0);
    assert_eq!((server.engine.requests_in_flight().len(), server.engine.connections()), (0, 0));
}
