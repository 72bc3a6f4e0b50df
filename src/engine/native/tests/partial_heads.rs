//! Heads of which a part has arrived: each has a deadline, whatever the connection did before.

use super::*;
use crate::engine::native::serve::IN_A_ROW;

const SHORT: Duration = Duration::from_millis(100);

const WORKER: &[u8] = b"GET /worker HTTP/1.1\r\nHost: h\r\n\r\n";

/// Input that ends with a part of a head: after more requests than are answered in a row, after one that a worker
/// answers, and after both.
fn partial_heads() -> [Vec<u8>; 3] {
    let pipelined = GET.repeat(IN_A_ROW + 1);
    [[&pipelined, b"G".as_slice()].concat(), [WORKER, b"GET / HT"].concat(), [&pipelined, WORKER, b"GET /"].concat()]
}

fn one_receiver() -> Settings {
    Settings { receivers: 1, ..settings() }
}

#[test]
fn a_partial_head_behind_other_requests_has_the_idle_timeout() {
    let server = Server::start(Settings { idle_timeout: SHORT, ..one_receiver() });
    for (number, bytes) in (1..).zip(partial_heads()) {
        let mut client = server.connect();
        client.write_all(&bytes).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("the connection is closed in time");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(server.closed(CloseReason::IdleTimeout), number);
    }
}

#[test]
fn a_partial_head_behind_other_requests_can_be_evicted() {
    let server = Server::start(Settings { max_connections: 3, ..one_receiver() });
    let _clients: Vec<_> = partial_heads()
        .into_iter()
        .map(|bytes| {
            let mut client = server.connect();
            client.write_all(&bytes).unwrap();
            let requests = bytes.windows(4).filter(|end| end == b"\r\n\r\n").count();
            let mut answers = Vec::new();
            while answers.windows(7).filter(|start| start == b"HTTP/1.").count() < requests {
                let mut piece = [0; 4096];
                let count = client.read(&mut piece).unwrap();
                answers.extend_from_slice(&piece[..count]);
            }
            client
        })
        .collect();
    assert_eq!(server.statuses(GET), [200]);
    assert_eq!(server.closed(CloseReason::Evicted), 1);
}

#[test]
fn a_head_whose_rest_has_arrived_is_answered_and_its_connection_is_not_evicted() {
    let server = Server::start(Settings { max_connections: 3, ..one_receiver() });
    let (mut slow, mut one, mut other) = (server.connect(), server.connect(), server.connect());
    slow.write_all(&GET[..10]).unwrap();
    for client in [&mut one, &mut other] {
        client.write_all(GET).unwrap();
        client.read_exact(&mut [0; 12]).unwrap();
    }
    // A connection waits to be accepted, and then the rest of the head arrives, before the receiver looks at either.
    let hold = b"GET /hold HTTP/1.1\r\nHost: h\r\n\r\n";
    one.write_all(hold).unwrap();
    wait_until("the receiver to be held up", || HELD.load(Ordering::SeqCst) == 1);
    other.write_all(hold).unwrap();
    let _new = server.connect();
    RELEASED.store(1, Ordering::SeqCst);
    wait_until("the receiver to be held up again", || HELD.load(Ordering::SeqCst) == 2);
    slow.write_all(&GET[10..]).unwrap();
    RELEASED.store(2, Ordering::SeqCst);
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).expect("a whole request is answered");
    assert_eq!(&answer, b"HTTP/1.1 200");
    wait_until("another to be evicted", || server.closed(CloseReason::Evicted) == 1);
}

#[test]
fn a_drain_does_not_wait_for_the_rest_of_a_head() {
    let server = Server::start(Settings { keepalive_min: Duration::from_millis(5), ..one_receiver() });
    let clients = partial_heads().map(|bytes| {
        let mut client = server.connect();
        client.write_all(&bytes).unwrap();
        client.read_exact(&mut [0; 12]).unwrap();
        client
    });
    server.engine.stop_accepting(Ending::Filter);
    wait_until("the engine to be quiescent", || server.engine.is_quiescent());
    drop(clients);
}

#[test]
fn a_client_whose_every_packet_ends_in_a_head_is_served_for_longer_than_the_idle_timeout() {
    // Longer than other tests on the same cores hold this one up.
    let idle_timeout = Duration::from_secs(1);
    let server = Server::start(Settings { idle_timeout, ..one_receiver() });
    let mut client = server.connect();
    let (start, rest) = GET.split_at(10);
    client.write_all(start).unwrap();
    let began = Instant::now();
    while began.elapsed() < idle_timeout * 2 {
        client.write_all(&[rest, start].concat()).unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("the client is busy");
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut piece = [0; 4096];
        while !piece.windows(6).any(|end| end == b"\r\n\r\n/a") {
            assert_ne!(client.read(&mut piece).unwrap(), 0);
        }
    }
    while client.read(&mut [0; 4096]).unwrap() > 0 {}
    assert_eq!(server.closed(CloseReason::IdleTimeout), 1, "the last head does not come");
}

#[test]
fn long_heads_that_never_end_hold_a_bounded_amount_of_memory() {
    let server = Server::start(one_receiver());
    let line = |number: usize| format!("X-{number}: {}\r\n", "x".repeat(1000));
    let head =
        "GET /long HTTP/1.1\r\nHost: h\r\nConnection: close\r\n".to_owned() + &(0..55).map(line).collect::<String>();
    let mut clients: Vec<_> = (0..10)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    let mut newest = clients.pop().unwrap();
    // Of 64 KiB each four are within the bound.
    for mut client in clients.drain(..4) {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("it is rejected at once");
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    newest.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    newest.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(server.statuses(GET), [200]);
}
