//! Edge-triggered input: all of it is served, although it is reported only once.

use super::*;

use rustix::net::{SendFlags, send};

/// A server without idle timeouts, which would hide requests that are left behind.
fn server() -> Server {
    let idle_timeout = Duration::from_secs(600);
    Server::start(Settings { receivers: 1, idle_timeout, ..settings() })
}

/// A connection that has been answered once, so that the receiver waits for its input.
fn connect(server: &Server) -> TcpStream {
    let mut client = server.connect();
    client.write_all(GET).unwrap();
    read_responses(&mut client, 1);
    client
}

/// Reads as many responses to `GET`.
#[track_caller]
fn read_responses(client: &mut TcpStream, count: usize) {
    let (mut answer, mut chunk) = (String::new(), [0; 4096]);
    while answer.matches("\r\n\r\n/").count() < count {
        let received = client.read(&mut chunk).expect("all is answered");
        assert!(received > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&chunk[..received]).unwrap());
    }
}

/// A request of so many bytes.
fn request(length: usize) -> Vec<u8> {
    let padding = length - b"GET /a HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
    format!("GET /a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(padding)).into_bytes()
}

#[test]
fn all_that_arrives_at_once_is_served_though_nothing_follows() {
    let server = server();
    // Buffers are 4,096 bytes: filled to the last byte, by several requests or one, and by more than is served in a row.
    for (length, count) in [(1024, 4), (1024, 5), (4096, 1), (4096, 3), (4095, 2), (64, 64), (64, 65), (64, 1000)] {
        let mut client = connect(&server);
        client.write_all(&request(length).repeat(count)).unwrap();
        read_responses(&mut client, count);
        client.write_all(GET).unwrap();
        read_responses(&mut client, 1);
    }
}

#[test]
fn the_end_of_a_stream_is_seen_though_it_arrives_with_the_last_bytes() {
    let server = server();
    let worker = b"GET /worker HTTP/1.1\r\nHost: h\r\n\r\n";
    let full = request(4096);
    for bytes in [GET, worker, b"GET /a HT", b"\r\n", &full, &[GET, b"GET"].concat(), &[worker, GET, worker].concat()] {
        let mut client = connect(&server);
        send(&client, bytes, SendFlags::MORE).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).expect("the connection ends");
    }
    wait_until("all to be closed", || server.engine.connections() == 0);
}
