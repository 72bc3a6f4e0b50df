use super::*;
use std::io::Read;

const CONTEXT: ResponseContext<'static> = ResponseContext {
    version: Version::Http11,
    head_only: false,
    close: false,
    keep_alive: false,
    request_id: "id-1",
    automatic: HeaderLines::DEFAULT,
};
const HTTP10: ResponseContext<'static> = ResponseContext { version: Version::Http10, close: true, ..CONTEXT };
const HEAD: ResponseContext<'static> = ResponseContext { head_only: true, ..CONTEXT };

/// A writer that keeps each write, and fails once it has room for no more bytes.
struct Wire {
    writes: Vec<Vec<u8>>,
    room: usize,
}

impl Wire {
    fn of(room: usize) -> Wire {
        Wire { writes: Vec::new(), room }
    }

    fn text(&self) -> String {
        String::from_utf8(self.writes.concat()).unwrap()
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.room -= n;
        self.writes.push(bytes[..n].to_vec());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends a response; the head without `Date`, the body, and how it ended.
fn sent(response: Response, context: &ResponseContext<'_>) -> (String, String, Sent) {
    let mut wire = Wire::of(usize::MAX);
    let mut buffer = b"from the response before".to_vec();
    let sent = send(response, context, &mut buffer, &mut wire);
    let text = wire.text();
    assert_eq!(sent.bytes, text.len() as u64);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    let all = lines.len();
    lines.retain(|line| !line.starts_with("Date: "));
    assert_eq!(lines.len() + 1, all, "one Date: {head}");
    (lines.join("\n"), body.to_owned(), sent)
}

/// Gives pieces, one a read, and then the end.
struct Pieces(Vec<io::Result<&'static str>>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Ok(0);
        }
        let piece = self.0.remove(0)?;
        let n = piece.len().min(into.len());
        into[..n].copy_from_slice(&piece.as_bytes()[..n]);
        Ok(n)
    }
}

fn pieces(pieces: &[&'static str]) -> Pieces {
    Pieces(pieces.iter().map(|piece| Ok(*piece)).collect())
}

fn then_fails() -> Pieces {
    Pieces(vec![Ok("some"), Err(io::Error::other("the disk is gone"))])
}

#[test]
fn a_body_in_memory_is_sent_with_its_head_in_one_write() {
    let mut wire = Wire::of(usize::MAX);
    let response = Response::text("hello").with_header("X-A", "b").with_header("X-A", "c");
    let sent = send(response, &CONTEXT, &mut Vec::new(), &mut wire);
    assert!(sent.error.is_none() && !sent.close && sent.status == 200);
    assert_eq!(wire.writes.len(), 1);
    let text = wire.text();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let lines: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("Date: ")).collect();
    let expected = [
        "HTTP/1.1 200 OK",
        "Server: allout",
        "X-Content-Type-Options: nosniff",
        "X-Request-Id: id-1",
        "Content-Type: text/plain; charset=utf-8",
        "X-A: b",
        "X-A: c",
        "Content-Length: 5",
    ];
    assert_eq!((lines.as_slice(), body), (&expected[..], "hello"));
}

#[test]
fn encode_gives_the_same_bytes() {
    for context in [CONTEXT, HTTP10, HEAD] {
        for response in [|| Response::text("hello"), || Response::empty(204), || Response::bytes(vec![b'x'; 5000])] {
            let mut encoded = Vec::new();
            encode(&response(), &context, &mut encoded);
            let (_, _, sent) = sent(response(), &context);
            assert_eq!(encoded.len() as u64, sent.bytes);
        }
    }
}

#[test]
fn connection_says_what_becomes_of_the_connection() {
    let connection = |context| {
        let (head, _, sent) = sent(Response::text("x"), &context);
        assert!(!sent.close, "the length frames the body");
        head.lines().find_map(|line| line.strip_prefix("Connection: ")).map(str::to_owned)
    };
    assert_eq!(connection(CONTEXT), None);
    assert_eq!(connection(ResponseContext { close: true, ..CONTEXT }).as_deref(), Some("close"));
    let kept = ResponseContext { version: Version::Http10, keep_alive: true, ..CONTEXT };
    assert_eq!(connection(kept).as_deref(), Some("keep-alive"));
    assert_eq!(connection(ResponseContext { close: true, ..kept }).as_deref(), Some("close"));
}

#[test]
fn a_204_and_a_304_have_neither_body_nor_length() {
    for response in [Response::empty(204), Response::text("x").with_status(204), Response::from((304, "x"))] {
        let status = response.status();
        let (head, body, sent) = sent(response, &CONTEXT);
        assert!(!head.contains("Content-") || head.contains("X-Content") && !head.contains("\nContent-"), "{head}");
        assert!(!head.contains("Transfer-Encoding") && body.is_empty() && !sent.close, "{status}: {head}");
    }
    let (head, body, _) = sent(Response::reader(pieces(&["x"]), None).with_status(204), &HTTP10);
    assert!(!head.contains("Transfer") && head.ends_with("Connection: close") && body.is_empty(), "{head}");
    let (head, body, _) = sent(Response::text("x").with_status(205), &CONTEXT);
    assert!(head.ends_with("\nContent-Length: 0") && body.is_empty(), "{head}");
}

#[test]
fn a_head_has_the_headers_of_a_get_and_no_body() {
    for response in [
        || Response::text("hello"),
        || Response::reader(then_fails(), Some(9)),
        || Response::reader(then_fails(), None),
        || Response::empty(404),
    ] {
        let (get, ..) = sent(response(), &CONTEXT);
        let (head, body, sent) = sent(response(), &HEAD);
        assert_eq!((head, body.as_str()), (get, ""));
        assert!(sent.error.is_none(), "the reader is not read: {:?}", sent.error);
    }
    let (head, _, sent) = sent(Response::reader(pieces(&[]), None), &ResponseContext { head_only: true, ..HTTP10 });
    assert!(!head.contains("Transfer-Encoding") && !sent.close, "{head}");
}

#[test]
fn http_1_0_gets_a_body_of_unknown_length_up_to_the_end_of_the_connection() {
    let kept = ResponseContext { version: Version::Http10, keep_alive: true, ..CONTEXT };
    let (head, body, sent) = sent(Response::reader(pieces(&["hello, ", "world"]), None), &kept);
    assert!(head.starts_with("HTTP/1.0 200 OK\n") && head.ends_with("\nConnection: close"), "{head}");
    assert!(!head.contains("keep-alive") && !head.contains("Transfer-Encoding"), "{head}");
    assert_eq!((body.as_str(), sent.close), ("hello, world", true));
}

#[test]
fn of_a_reader_the_head_and_each_read_leave_at_once() {
    for (length, frames) in [(None, ["5\r\nfirst\r\n", "6\r\nsecond\r\n"]), (Some(11), ["first", "second"])] {
        let mut wire = Wire::of(usize::MAX);
        let response = Response::reader(pieces(&["first", "second"]), length);
        let sent = send(response, &CONTEXT, &mut Vec::new(), &mut wire);
        assert!(sent.error.is_none() && !sent.close);
        let mut writes = wire.writes.iter().map(|write| std::str::from_utf8(write).unwrap());
        assert!(
            writes.next().is_some_and(|head| head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"))
        );
        let last = if length.is_none() { &["0\r\n\r\n"][..] } else { &[] };
        assert_eq!(writes.collect::<Vec<_>>(), [&frames[..], last].concat());
    }
}

#[test]
fn chunks_have_their_size_also_where_they_fill_the_buffer() {
    let length = READ_SIZE + BULK_READ_SIZE + 100;
    let (head, body, sent) = sent(Response::reader(io::repeat(b'a').take(length as u64), None), &CONTEXT);
    assert!(head.ends_with("Transfer-Encoding: chunked") && sent.error.is_none());
    let mut rest = body.as_str();
    let mut sizes = Vec::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        assert!(after[..size].bytes().all(|byte| byte == b'a'));
        rest = after[size..].strip_prefix("\r\n").unwrap();
        sizes.push(size);
    }
    assert_eq!(sizes, [READ_SIZE, BULK_READ_SIZE, 100, 0]);
}

#[test]
fn a_reader_that_fails_is_never_followed_by_the_last_chunk() {
    for (length, context) in [(None, CONTEXT), (None, HTTP10), (Some(9), CONTEXT), (Some(9), HTTP10)] {
        let (_, body, sent) = sent(Response::reader(then_fails(), length), &context);
        assert!(sent.close && body.contains("some") && !body.contains("0\r\n"), "{length:?}: {body:?}");
        assert!(matches!(&sent.error, Some(SendError::Reader(reason)) if reason == "the disk is gone"), "{sent:?}");
    }
}

#[test]
fn a_reader_that_gives_less_than_its_length_has_failed_and_one_that_would_give_more_is_not_asked() {
    let (_, body, short) = sent(Response::reader(pieces(&["hello"]), Some(7)), &CONTEXT);
    assert!(matches!(&short.error, Some(SendError::Reader(reason)) if reason.contains("5 bytes of a length of 7")));
    assert_eq!((body.as_str(), short.close), ("hello", true));
    let (head, body, long) = sent(Response::reader(then_fails(), Some(2)), &CONTEXT);
    assert!(head.ends_with("Content-Length: 2") && body == "so" && long.error.is_none(), "{head}\n{body}");
}

#[test]
fn a_reader_that_is_interrupted_is_asked_again() {
    let reader = Pieces(vec![Err(io::ErrorKind::Interrupted.into()), Ok("hello")]);
    let (_, body, sent) = sent(Response::reader(reader, Some(5)), &CONTEXT);
    assert!(body == "hello" && sent.error.is_none());
}

struct Panics {
    when_read: bool,
    when_dropped: bool,
    claims: usize,
}

impl Read for Panics {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        assert!(!self.when_read, "a bug in read");
        Ok(self.claims)
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(!self.when_dropped, "a bug in drop");
    }
}

#[test]
fn a_reader_that_panics_has_failed() {
    let quiet = Panics { when_read: false, when_dropped: false, claims: 0 };
    let rows = [
        (Panics { when_read: true, ..quiet }, CONTEXT, "a bug in read"),
        (Panics { when_read: true, when_dropped: true, claims: 0 }, CONTEXT, "a bug in drop"),
        (Panics { when_dropped: true, ..quiet }, CONTEXT, "a bug in drop"),
        (Panics { when_dropped: true, ..quiet }, HEAD, "a bug in drop"),
        (Panics { claims: usize::MAX, ..quiet }, CONTEXT, "it read more than there was room for"),
    ];
    for (reader, context, message) in rows {
        let (_, body, sent) = sent(Response::reader(reader, None), &context);
        assert!(sent.close && body.is_empty(), "{message}: {body}");
        assert!(matches!(&sent.error, Some(SendError::Panic(said)) if said == message), "{message}: {sent:?}");
    }
}

#[test]
fn a_client_that_leaves_ends_the_reader() {
    for (room, length) in [(0, None), (20, None), (400, None), (400, Some(1 << 40))] {
        let mut wire = Wire::of(room);
        let sent = send(Response::reader(io::repeat(b'a'), length), &CONTEXT, &mut Vec::new(), &mut wire);
        assert!(matches!(sent.error, Some(SendError::Client(_))), "{sent:?}");
        assert_eq!((sent.bytes, sent.close), (room as u64, true));
    }
}

#[test]
fn a_large_body_in_memory_is_not_copied() {
    let body = vec![b'x'; MAX_COPIED_BODY + 1];
    let mut wire = Wire::of(usize::MAX);
    let mut buffer = Vec::new();
    let sent = send(Response::bytes(body), &CONTEXT, &mut buffer, &mut wire);
    assert!(sent.error.is_none() && wire.writes.len() == 2 && wire.writes[1].len() == MAX_COPIED_BODY + 1);
    assert!(buffer.len() < 1024);
}

#[test]
fn numbers_are_decimal() {
    for number in [0, 9, 10, 200, u64::MAX] {
        let mut out = Vec::new();
        append_number(number, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
    }
}

#[test]
fn a_status_without_a_reason_phrase_keeps_the_space_before_it() {
    let (head, ..) = sent(Response::empty(299), &CONTEXT);
    assert!(head.starts_with("HTTP/1.1 299 \n"), "{head}");
}
