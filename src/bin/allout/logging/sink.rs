//! The writer of the log: a line is written whole and at once, or it is dropped and counted.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::logging::event::{Event, Value};
use crate::logging::render::{Style, line};

/// A descriptor of our own for stderr: a later change of descriptor 2 does not redirect the log.
///
/// A pipe or a terminal is opened anew, because that makes an open file description of our own too, and `O_NONBLOCK`
/// belongs to the description: setting it on the inherited one would affect every process that shares it. A file must
/// not be opened anew (the new description would write at offset 0), and a socket cannot be.
pub(super) fn own_stderr() -> io::Result<OwnedFd> {
    let stderr = io::stderr();
    let reopened = match FileType::from_raw_mode(fstat(&stderr)?.st_mode) {
        FileType::Fifo | FileType::CharacterDevice => {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            // Fails if stderr belongs to another user. poll then still prevents blocking, except for a race with
            // another process that writes to the same pipe.
            open("/proc/self/fd/2", flags, Mode::empty()).ok()
        }
        _ => None,
    };
    reopened.map_or_else(|| stderr.as_fd().try_clone_to_owned(), Ok)
}

/// The writer. `env_logger` holds a mutex while it writes a line, so the order of lines and the count of dropped ones
/// are consistent; nothing blocks under that mutex.
pub(super) struct Sink<F> {
    fd: F,
    socket: bool,
    style: Style,
    /// Lines dropped since the last one that was written.
    dropped: u64,
    /// The end of a line of which only the beginning was written. Does not happen with pipes.
    rest: Vec<u8>,
}

impl<F: AsFd> Sink<F> {
    pub(super) fn new(fd: F, style: Style) -> Self {
        let socket = fstat(&fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
        Self { fd, socket, style, dropped: 0, rest: Vec::new() }
    }

    /// Writes a line if that is possible at once; false if stderr is full and nothing was written.
    fn send(&mut self, line: &[u8]) -> bool {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            match self.write_now(&rest) {
                Ok(written) => self.rest = rest.get(written..).unwrap_or_default().to_vec(),
                Err(error) if is_full(error) => self.rest = rest,
                Err(_) => {} // broken: the rest has no reader
            }
            if !self.rest.is_empty() {
                return false;
            }
        }
        match self.write_now(line) {
            Ok(written) => {
                self.rest.extend_from_slice(line.get(written..).unwrap_or_default());
                true
            }
            // Closed or broken, for good: the line counts as written, since it will never have a reader.
            Err(error) => !is_full(error),
        }
    }

    /// Writes as many bytes as possible without blocking, or fails with `EAGAIN`.
    fn write_now(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            let outcome = match poll(&mut fds, Some(&at_once)) {
                Ok(0) => Err(Errno::AGAIN),
                // A socket has a flag for each write. Others rely on poll, and on O_NONBLOCK where it could be set.
                Ok(_) if self.socket => send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Ok(_) => rustix::io::write(&self.fd, bytes),
                Err(error) => Err(error),
            };
            if outcome != Err(Errno::INTR) {
                return outcome;
            }
        }
    }
}

impl<F: AsFd> Write for Sink<F> {
    /// Takes a whole line, as `env_logger` passes it, and never fails: the caller could do nothing about it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.dropped > 0 && self.send(dropped_line(self.style, self.dropped).as_bytes()) {
            self.dropped = 0;
        }
        if self.dropped > 0 || !self.send(line) {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a later write may succeed: a full disk may have room again.
fn is_full(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::NOSPC | Errno::DQUOT)
}

fn dropped_line(style: Style, dropped: u64) -> String {
    let lines = if dropped == 1 { "line was" } else { "lines were" };
    line(
        style,
        &Event {
            time: SystemTime::now(),
            level: Level::Warn,
            target: env!("CARGO_CRATE_NAME"),
            message: format!("{dropped} log {lines} dropped: stderr was full"),
            fields: vec![("dropped".to_owned(), Value::Bare(dropped.to_string()))],
        },
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::args::LogFormat;
    use crate::logging::event::MAX_LINE;

    const TEXT: Style = Style { format: LogFormat::Text, journal: false };
    const JSON: Style = Style { format: LogFormat::Json, journal: false };

    /// Writes lines until one does not fit; returns how many were written.
    fn fill(sink: &mut Sink<impl AsFd>) -> usize {
        let mut lines = 0;
        while sink.dropped == 0 {
            sink.write_all(b"filler\n").unwrap();
            lines += 1;
        }
        lines - 1
    }

    fn pipe() -> (File, File) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (reader.into(), writer.into())
    }

    fn read_lines(reader: &mut File, count: usize) -> String {
        let mut bytes = Vec::new();
        while bytes.split(|byte| *byte == b'\n').count() <= count {
            let mut chunk = [0; 16 * 1024];
            let read = reader.read(&mut chunk).unwrap();
            bytes.extend_from_slice(&chunk[..read]);
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The descriptor is a blocking one: one write too many would hang here until the test runner gives up.
    #[test]
    fn a_full_pipe_costs_lines_and_no_time() {
        for style in [TEXT, JSON] {
            let (mut reader, writer) = pipe();
            let mut sink = Sink::new(writer, style);
            let written = fill(&mut sink);
            sink.write_all(b"lost\n").unwrap();
            sink.write_all(b"lost\n").unwrap();
            assert_eq!(read_lines(&mut reader, written), "filler\n".repeat(written));

            sink.write_all(b"back\n").unwrap();
            let said = read_lines(&mut reader, 2);
            let (notice, rest) = said.split_at(said.find('\n').unwrap() + 1);
            assert!(notice.contains("3 log lines were dropped: stderr was full"), "{notice}");
            assert_eq!(rest, "back\n");
            let json = serde_json::from_str::<serde_json::Value>(notice);
            assert!(matches!(style.format, LogFormat::Text) || json.is_ok_and(|line| line["dropped"] == 3));

            sink.write_all(b"on\n").unwrap();
            assert_eq!(read_lines(&mut reader, 1), "on\n");
        }
    }

    #[test]
    fn a_full_socket_costs_lines_and_tears_none() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let mut sink = Sink::new(writer, TEXT);
        let long = format!("{}\n", "x".repeat(MAX_LINE - 1));
        while sink.dropped < 3 {
            sink.write_all(long.as_bytes()).unwrap();
        }
        reader.set_nonblocking(true).unwrap();
        let mut said = Vec::new();
        let _ = (&reader).read_to_end(&mut said);
        sink.write_all(b"back\n").unwrap();
        let _ = (&reader).read_to_end(&mut said);
        let said = String::from_utf8(said).unwrap();
        let (notice, filler): (Vec<_>, Vec<_>) = said.lines().partition(|line| !line.starts_with('x'));
        assert!(filler.iter().all(|line| line.len() == MAX_LINE - 1));
        assert!(notice[0].contains("3 log lines were dropped"), "{notice:?}");
        assert_eq!(notice[1..], ["back"]);
    }

    #[test]
    fn a_reader_that_left_is_ignored() {
        let (reader, writer) = pipe();
        drop(reader);
        let mut sink = Sink::new(writer, TEXT);
        sink.write_all(b"into the void\n").unwrap();
        assert_eq!(sink.dropped, 0);

        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let mut sink = Sink::new(writer, TEXT);
        sink.write_all(b"into the void\n").unwrap();
        assert_eq!(sink.dropped, 0);
    }
}
