//! Bodies that are written while they are sent, and server-sent events, as a client gets them from a socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use allout::{HandlerError, Request, Response, Service, channel};
use engine::{LIMIT, start};

#[path = "common/engine.rs"]
mod engine;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/events.rs"]
mod events;

fn send(address: SocketAddr, request: &str) -> BufReader<TcpStream> {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    BufReader::new(client)
}

fn get(address: SocketAddr, path: &str, headers: &str) -> BufReader<TcpStream> {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"))
}

fn line(client: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).expect("a line comes in time");
    line.trim_end_matches("\r\n").to_owned()
}

fn head(client: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    loop {
        match line(client) {
            end if end.is_empty() => return head,
            line => head.extend([line.as_str(), "\n"]),
        }
    }
}

/// The next chunk; empty for the last one.
fn chunk(client: &mut BufReader<TcpStream>) -> String {
    let size = usize::from_str_radix(&line(client), 16).expect("a size in hexadecimal digits");
    let mut bytes = vec![0; size];
    client.read_exact(&mut bytes).expect("the whole chunk comes in time");
    assert_eq!(line(client), "");
    String::from_utf8(bytes).unwrap()
}

/// What is left up to the end of the connection, and whether it was reset.
fn rest(client: &mut BufReader<TcpStream>) -> (String, bool) {
    let mut bytes = Vec::new();
    let reset = match client.read_to_end(&mut bytes) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => panic!("the connection does not end: {error}"),
    };
    (String::from_utf8(bytes).unwrap(), reset)
}

#[test]
fn a_flush_sends_and_the_head_does_not_wait_for_it() {
    let (sender, lines) = channel::bounded::<&str>(0);
    let running = start(Service::new().get("/", move |_| {
        let lines = lines.clone();
        Response::stream(move |writer| {
            for line in lines {
                writer.write_all(line.as_bytes())?;
                if line.ends_with('\n') {
                    writer.flush()?;
                }
            }
            writer.write_all(b"end")
        })
    }));
    let mut client = get(running.address(), "/", "");
    let head = head(&mut client);
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("Transfer-Encoding: chunked"), "{head}");
    for (pieces, expected) in [(&["one\n"][..], "one\n"), (&["t", "wo", "\n"], "two\n")] {
        for piece in pieces {
            sender.send_timeout(piece, LIMIT).expect("the stream reads on");
        }
        assert_eq!(chunk(&mut client), expected);
    }
    drop(sender);
    assert_eq!((chunk(&mut client), chunk(&mut client)), ("end".to_owned(), String::new()));
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_large_stream_arrives_whole_in_pieces_of_the_buffer() {
    let running = start(
        Service::new()
            .get("/", |_| Response::stream(|writer| (0..100_000).try_for_each(|n| writeln!(writer, "line {n}")))),
    );
    let expected = (0..100_000).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat();
    let mut client = get(running.address(), "/", "");
    head(&mut client);
    let mut text = String::new();
    loop {
        match chunk(&mut client) {
            last if last.is_empty() => break,
            piece => text += &piece,
        }
    }
    assert_eq!(text, expected);
    let mut old = send(running.address(), "GET / HTTP/1.0\r\n\r\n");
    assert!(head(&mut old).contains("Connection: close"));
    assert_eq!(rest(&mut old), (expected, false));
}

#[test]
fn a_stream_that_fails_or_panics_never_ends_like_a_whole_one() {
    let running = start(
        Service::new()
            .get("/fails", |_| {
                Response::stream(|writer| {
                    writer.write_all(b"some")?;
                    writer.flush()?;
                    Err(io::Error::other("the disk is gone"))
                })
            })
            .get("/panics", |_| {
                Response::stream(|writer| {
                    writer.write_all(b"some")?;
                    writer.flush()?;
                    panic!("a bug")
                })
            }),
    );
    for path in ["/fails", "/panics"] {
        let mut client = get(running.address(), path, "Connection: close\r\n");
        head(&mut client);
        assert_eq!(chunk(&mut client), "some");
        let (rest, _) = rest(&mut client);
        assert_eq!(rest, "", "no last chunk");
    }
    let mut head_only = send(running.address(), "HEAD /panics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(head(&mut head_only).contains("200 OK"));
    assert_eq!(rest(&mut head_only), (String::new(), false), "the function is not run for a HEAD");
}

#[test]
fn writing_fails_when_the_client_has_left_and_a_stream_can_ask() {
    let (told, tells) = channel::bounded(2);
    let running = start(
        Service::new()
            .get("/writes", {
                let told = told.clone();
                move |_| {
                    let told = told.clone();
                    Response::stream(move |writer| {
                        let error = loop {
                            if let Err(error) = writer.write_all(b"x").and_then(|()| writer.flush()) {
                                break error;
                            }
                        };
                        told.send(error.kind()).unwrap();
                        Ok(()) // what it makes of it changes nothing
                    })
                }
            })
            .get("/asks", move |_| {
                let told = told.clone();
                Response::stream(move |writer| {
                    while !writer.is_client_gone() {
                        std::thread::yield_now();
                    }
                    told.send(io::ErrorKind::NotConnected).unwrap();
                    Ok(())
                })
            }),
    );
    for (path, kinds) in [
        ("/writes", &[io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset][..]),
        ("/asks", &[io::ErrorKind::NotConnected]),
    ] {
        let mut client = get(running.address(), path, "");
        head(&mut client);
        drop(client);
        let kind = tells.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{path} does not end"));
        assert!(kinds.contains(&kind), "{path}: {kind:?}");
    }
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_stream_that_never_ends_is_told_of_a_drain_and_cut_after_the_grace() {
    let endless = |mind: bool| {
        move |_: &mut allout::Request| {
            Response::stream(move |writer| {
                while !(mind && writer.is_draining()) {
                    writer.write_all(b"x")?;
                    writer.flush()?;
                }
                Ok(())
            })
        }
    };
    for mind in [true, false] {
        let running = start(Service::new().grace(Duration::from_secs(1)).get("/", endless(mind)));
        let mut client = get(running.address(), "/", "");
        head(&mut client);
        assert_eq!(chunk(&mut client), "x", "it has begun");
        let reader = std::thread::spawn(move || rest(&mut client));
        let began = Instant::now();
        let outcome = running.stop("a test");
        assert!(began.elapsed() < LIMIT / 2, "it took {:?}", began.elapsed());
        let (body, reset) = reader.join().unwrap();
        let whole = body.ends_with("0\r\n\r\n");
        let end = &body[body.len().saturating_sub(30)..];
        // On a machine with other load the writer may see the end of the grace period later than the drain does: abandoned.
        let codes = if mind { &[0][..] } else { &[0, 3] };
        assert!(codes.contains(&outcome.code()) && whole == mind, "{outcome}; reset: {reset}, end: {end:?}");
    }
}

#[test]
fn a_stream_that_makes_progress_outlives_the_request_timeout() {
    let timeout = Duration::from_millis(700);
    let running = start(Service::new().request_timeout(timeout).get("/", move |_| {
        Response::stream(move |writer| {
            let began = Instant::now();
            while began.elapsed() < timeout * 2 {
                writer.write_all(b"x")?;
                writer.flush()?;
                std::thread::sleep(timeout / 10); // the time that passes is what is tested
            }
            Ok(())
        })
    }));
    let mut client = get(running.address(), "/", "Connection: close\r\n");
    head(&mut client);
    let (body, _) = rest(&mut client);
    assert!(body.ends_with("\r\n0\r\n\r\n"), "{body:?}");
}

/// Sends its body back.
fn echo(request: &mut Request) -> Result<Response, HandlerError> {
    Ok(Response::bytes(request.take_body()?))
}

/// Sends a head and a body while it reads: the response, up to the end of the connection.
fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> Vec<u8> {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(head.as_bytes()).unwrap();
    let (mut writer, body) = (client.try_clone().unwrap(), body.to_vec());
    let sends = std::thread::spawn(move || writer.write_all(&body));
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap_or_else(|error| panic!("{head}: {error}"));
    sends.join().unwrap().unwrap_or_else(|error| panic!("{head}: {error}"));
    response
}

#[test]
fn a_body_of_any_size_is_sent_back_as_it_arrives() {
    let running = start(Service::new().max_body(10).post("/", echo));
    let address = running.address();
    for length in [0, 1, 1000, 100_000, 20_000_000] {
        let body: Vec<u8> = (0..length).map(|n: u32| b'a' + (n % 26) as u8).collect();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        let response = exchange(address, &head, &body);
        assert!(response.starts_with(b"HTTP/1.1 200"), "{length}");
        assert!(response.ends_with(&[b"\r\n\r\n", &body[..]].concat()), "{length}: {}", response.len());
        let old = format!("POST / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        assert!(exchange(address, &old, &body).ends_with(&body), "{length}");
    }
    let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n";
    let response = String::from_utf8(exchange(address, head, chunks)).unwrap();
    assert!(response.contains("hello") && response.ends_with("\r\n0\r\n\r\n"), "{response}");
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn behind_a_body_that_would_be_sent_back_with_no_content_the_next_request_is_answered() {
    let echo_nothing = |request: &mut Request| echo(request).map(|response| response.with_status(204));
    let running = start(Service::new().route("HEAD", "/", echo).post("/", echo_nothing).get("/", |_| "next"));
    for method in ["HEAD", "POST"] {
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n");
        let next = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let response = exchange(running.address(), &head, &[&vec![b'x'; 20_000][..], next.as_bytes()].concat());
        assert!(response.ends_with(b"\r\n\r\nnext"), "{method}: {}", response.escape_ascii());
    }
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_client_that_stops_sending_what_is_sent_back_holds_its_worker_for_the_request_timeout() {
    let running = start(Service::new().request_timeout(Duration::from_millis(500)).workers(1).post("/", echo));
    let body = [&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"[..], &[b'x'; 3000]].concat();
    let mut client = TcpStream::connect(running.address()).unwrap();
    client.write_all(&body).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response); // a reset, or the end: less than was announced
    assert!(response.len() < 4000, "{}", response.len());
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn the_part_sent_so_far_is_sent_back_before_the_rest_and_a_broken_body_is_seen() {
    let running = start(Service::new().post("/", echo));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 20000\r\n\r\n";
    let mut client = send(running.address(), head);
    assert!(self::head(&mut client).starts_with("HTTP/1.1 100 Continue"));
    client.get_mut().write_all(b"first").unwrap();
    let response = self::head(&mut client);
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("Content-Length: 20000"), "{response}");
    let mut first = [0; 5];
    client.read_exact(&mut first).expect("it comes back before the rest is sent");
    assert_eq!(&first, b"first");
    client.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client).0, "", "less than was announced, and then the end");
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn a_100_comes_before_the_response_or_not_at_all() {
    if !engine::NATIVE {
        return; // tiny_http sends it with the first read, and reads the end of a chunk before it gives the chunk
    }
    let all = |request: &mut Request| -> Result<Response, HandlerError> { Ok(Response::bytes(request.bytes()?)) };
    let running = start(Service::new().post("/", echo).post("/all", all));
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let is_chunked = framing.contains("chunked");
        let (first, rest): (&str, &str) =
            if is_chunked { ("5\r\nfirst", "\r\n5\r\nsecon\r\n0\r\n\r\n") } else { ("first", "secon") };
        let head_and_first = |path: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n{framing}\r\n\r\n{first}"
            )
        };
        let final_head = |client: &mut BufReader<TcpStream>| {
            let mut response = head(client);
            if response.starts_with("HTTP/1.1 100") {
                response = head(client); // the client has not waited for it, and must not mind
            }
            assert!(response.starts_with("HTTP/1.1 200"), "{framing}: {response}");
        };
        let mut client = send(running.address(), &head_and_first("/"));
        final_head(&mut client);
        let length = if is_chunked { "5\r\nfirst\r\n".len() } else { first.len() };
        client.read_exact(&mut vec![0; length]).expect("what has come is sent back");
        client.get_mut().write_all(rest.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let expected = if is_chunked { "5\r\nsecon\r\n0\r\n\r\n" } else { "secon" };
        assert_eq!(answer, expected, "{framing}");

        let mut client = send(running.address(), &head_and_first("/all"));
        client.get_mut().write_all(rest.as_bytes()).unwrap();
        final_head(&mut client);
    }
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn the_body_of_one_request_is_not_sent_in_the_response_to_another() {
    let kept = Mutex::new(None);
    let service = Service::new().post("/", move |request| -> Result<Response, HandlerError> {
        let mine = request.take_body()?;
        let of_another = kept.lock().unwrap().replace(mine);
        Ok(of_another.map_or(Response::empty(202), Response::bytes))
    });
    // One that is sent with its first bytes is in memory: it belongs to no request.
    let long = || Request::post("/").body("x".repeat(100_000));
    assert_eq!(service.handle(long()).status(), 202);
    assert_eq!(service.handle(Request::post("/").body("short")).status(), 500);
    assert_eq!(service.handle(long()).status(), 200);
}

/// The next event of a stream, as an `EventSource` understands it: its id and its data.
fn event(client: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    loop {
        let text = chunk(client);
        if text.is_empty() {
            return None;
        }
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        if let Some(data) = field("data: ") {
            return Some((field("id: ").unwrap_or_default(), data));
        }
    }
}

#[test]
fn the_events_example_tells_all_clients_and_ends_cleanly_in_a_drain() {
    let running = start(events::service());
    let address = running.address();
    let say = |text: &str| {
        let length = text.len();
        let request =
            format!("POST /say HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
        assert!(head(&mut send(address, &request)).starts_with("HTTP/1.1 204"));
    };
    let mut first = get(address, "/events", "");
    let listened = head(&mut first);
    assert!(listened.contains("Content-Type: text/event-stream"), "{listened}");
    say("hello");
    let mut second = get(address, "/events", "");
    head(&mut second);
    say("again");
    for client in [&mut first, &mut second] {
        assert_eq!(event(client), Some(("0".to_owned(), "hello".to_owned())));
        assert_eq!(event(client), Some(("1".to_owned(), "again".to_owned())));
    }
    let mut late = get(address, "/events", "Last-Event-ID: 0\r\n");
    head(&mut late);
    assert_eq!(event(&mut late), Some(("1".to_owned(), "again".to_owned())));
    let outcome = running.stop("a test");
    assert_eq!(outcome.code(), 0, "{outcome}");
    for client in [&mut first, &mut second, &mut late] {
        assert_eq!(event(client), None, "the last chunk");
    }
}
