//! Clients that do not read, or not yet: what was answered and not taken is in flight, and is not lost.

use super::*;

/// A client that has sent requests until both directions are full, and reads nothing.
fn deaf_client(server: &Server) -> TcpStream {
    let mut deaf = server.connect();
    deaf.set_nonblocking(true).unwrap();
    let requests = [b"GET /".as_slice(), &[b'a'; 3000], b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    let (mut at, mut in_a_row) = (0, 0);
    wait_until("a response to wait for its client", || {
        while let Ok(count) = deaf.write(&requests[at..]) {
            at = (at + count) % requests.len();
        }
        in_a_row = if server.engine.requests_in_flight().len() == 1 { in_a_row + 1 } else { 0 };
        in_a_row == 20 // buffers grow for a while
    });
    deaf.set_nonblocking(false).unwrap();
    deaf
}

#[test]
fn a_response_that_its_client_does_not_take_is_in_flight_and_named() {
    let server = Server::start(Settings { receivers: 1, ..settings() });
    let deaf = deaf_client(&server);
    let flights = server.engine.requests_in_flight();
    assert!(flights.len() == 1 && flights[0].request_line.starts_with("GET /aaa"), "{flights:?}");
    assert_eq!((server.engine.census().busy, server.engine.census().idle), (1, 0));
    drop(deaf);
    wait_until("it to be closed", || server.engine.connections() == 0);
    assert_eq!((server.engine.in_flight(), server.engine.requests_in_flight().len()), (0, 0));
}

#[test]
fn a_response_that_is_taken_late_is_no_longer_in_flight() {
    let server = Server::start(Settings { receivers: 1, ..settings() });
    let mut client = deaf_client(&server);
    let mut piece = vec![0; 1 << 20];
    wait_until("nothing to be in flight", || {
        assert!(client.read(&mut piece).unwrap() > 0);
        server.engine.in_flight() == 0
    });
    assert_eq!(server.statuses(GET), [200]);
}

#[test]
fn a_response_that_waits_is_not_in_flight_once_its_receiver_has_died() {
    let mut server = Server::start(Settings { receivers: 1, ..settings() });
    let _deaf = deaf_client(&server);
    server.connect().write_all(b"GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    server.threads.remove(0).join().expect_err("the receiver has panicked");
    assert_eq!((server.engine.in_flight(), server.engine.connections()), (0, 0));
}

#[test]
fn a_drain_does_not_reset_a_client_that_still_sends_the_body_that_was_not_wanted() {
    let server = Server::start(Settings { keepalive_min: Duration::from_millis(5), ..settings() });
    let mut client = server.connect();
    client.write_all(b"POST /worker/deny HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    client.read_exact(&mut [0; 12]).unwrap();
    server.engine.stop_accepting(Ending::Filter);
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(10)); // as over a slow network
        client.write_all(&[b'x'; 100]).expect("the response may not have arrived yet");
    }
    let mut rest = String::new();
    client.read_to_string(&mut rest).expect("a regular end");
    assert!(rest.starts_with(" Forbidden\r\n"), "{rest}");
    drop(client);
    wait_until("the engine to be quiescent", || server.engine.is_quiescent());
}
