//! The larger examples, each run as a service.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use allout::Request;
use engine::{LIMIT, start};
use folder::Folder;

#[path = "common/engine.rs"]
mod engine;
#[path = "common/folder.rs"]
mod folder;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/status.rs"]
mod status;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "examples/uploads.rs"]
mod uploads;

/// Sends a request, and ends the sending side if `cut`; returns the status and the body.
fn send(address: SocketAddr, line: &str, headers: &str, body: &[u8], cut: bool) -> (u16, Vec<u8>) {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let _ = client.write_all(body); // refused, where the answer comes before its end
    if cut {
        client.shutdown(Shutdown::Write).unwrap();
    }
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap_or_else(|error| panic!("{line}: {error}"));
    let end =
        response.windows(4).position(|part| part == b"\r\n\r\n").unwrap_or_else(|| panic!("{line}: {response:?}"));
    let status = std::str::from_utf8(&response[9..12]).unwrap().parse().unwrap();
    (status, response.split_off(end + 4))
}

fn put(address: SocketAddr, name: &str, announced: usize, body: &[u8], cut: bool) -> u16 {
    send(address, &format!("PUT /files/{name}"), &format!("Content-Length: {announced}\r\n"), body, cut).0
}

#[test]
fn the_uploads_example_keeps_whole_uploads_alone() {
    let directory = Folder::new("uploads");
    let running = start(uploads::service(directory.to_path_buf()));
    let address = running.address();
    let body: Vec<u8> = (0..5_000_000_u32).flat_map(|n| [(n % 251) as u8]).collect();
    assert_eq!(put(address, "large.bin", body.len(), &body, false), 201);
    assert_eq!(put(address, "broken.bin", body.len(), &body[..100_000], true), 400);
    assert_eq!(put(address, "huge.bin", (1 << 30) + 1, b"", false), 413);
    assert_eq!(put(address, "..%2Fout", 1, b"x", false), 404);
    assert_eq!(put(address, ".hidden", 1, b"x", false), 404);
    // Two uploads at once whose clients chose the same id.
    let same = "X-Request-Id: same\r\n";
    let mut first = TcpStream::connect(address).unwrap();
    first.set_read_timeout(Some(LIMIT)).unwrap();
    let head = "PUT /files/a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 200000\r\n";
    let half = "a".repeat(100_000);
    first.write_all(format!("{head}{same}\r\n{half}").as_bytes()).unwrap();
    let is_part = |entry: fs::DirEntry| entry.file_name() != "large.bin" && entry.metadata().unwrap().len() > 0;
    let began = Instant::now();
    while !fs::read_dir(&*directory).unwrap().any(|entry| is_part(entry.unwrap())) {
        assert!(began.elapsed() < LIMIT, "nothing is written of the first half of an upload");
        std::thread::yield_now();
    }
    assert_eq!(send(address, "PUT /files/b", &format!("Content-Length: 8\r\n{same}"), b"bbbbbbbb", false).0, 201);
    first.write_all(half.as_bytes()).unwrap();
    let mut response = String::new();
    first.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
    for (name, body) in [("a", format!("{half}{half}")), ("b", "bbbbbbbb".to_owned())] {
        assert!(fs::read_to_string(directory.join(name)).unwrap() == body, "{name} is not what was sent");
        fs::remove_file(directory.join(name)).unwrap();
    }
    let get = |name: &str| send(address, &format!("GET /files/{name}"), "", b"", false);
    assert!(get("large.bin") == (200, body), "what was sent is what comes back");
    assert_eq!(get("broken.bin").0, 404);
    let names: Vec<_> = fs::read_dir(&*directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["large.bin"], "no part of another is left");
    assert_eq!(send(address, "DELETE /files/large.bin", "", b"", false).0, 204);
    assert_eq!(send(address, "DELETE /files/large.bin", "", b"", false).0, 404);
    assert_eq!(running.stop("a test").code(), 0);
}

#[test]
fn the_status_example_shows_what_the_service_says() {
    let service = status::service();
    let page = service.handle(Request::get("/status")).into_text().unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("disk"), "{page}");
    let json = service.handle(Request::get("/status.json")).into_text().unwrap();
    assert!(json.contains(r#""checks":[{"name":"disk","status":"ok","#), "{json}");
}
