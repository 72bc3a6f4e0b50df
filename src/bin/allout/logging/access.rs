//! The access log as a file of its own, in the *combined* format that nginx, Apache and their tools have.
//!
//! The file is reopened when its path names another file, or none: so it can be renamed, as `logrotate` does, without a
//! signal. A line costs a `stat` and a `write` that never waits: if the reader of a pipe, such as `/dev/stdout` of a
//! container, is slow, lines are lost instead. The log says when lines are lost, and how many.

use std::fmt::Write as _; // writing to a String cannot fail
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::logging::event::{Event, Value};

/// The target of the lines of the access log.
pub(super) const TARGET: &str = "allout::access";

/// The file.
pub(super) struct AccessFile {
    path: PathBuf,
    open: Mutex<Open>,
}

/// The open file.
struct Open {
    file: File,
    /// Only the beginning of the last line was written.
    is_cut: bool,
    /// Lines lost since the last one that was written.
    lost: u64,
}

fn open(path: &PathBuf) -> io::Result<File> {
    // `O_NONBLOCK`: this call does not wait for the reader of a FIFO, and a write does not wait for room.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Open {
    /// Writes a line. The part that cannot be written at once is lost.
    fn write(&mut self, line: &str) -> io::Result<()> {
        // The beginning of a line that was cut becomes a line of its own.
        let line = if self.is_cut { format!("\n{line}") } else { line.to_owned() };
        let written = loop {
            match self.file.write(line.as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.is_cut = written < line.len();
        if self.is_cut { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

impl AccessFile {
    /// Errors: the file cannot be opened or made.
    pub(super) fn new(path: PathBuf) -> io::Result<AccessFile> {
        let open = Mutex::new(Open { file: open(&path)?, is_cut: false, lost: 0 });
        Ok(AccessFile { path, open })
    }

    /// Writes a line for a response.
    pub(super) fn write(&self, event: &Event<'_>) {
        let line = combined(event);
        let mut current = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let named = std::fs::metadata(&self.path).map(|metadata| identity(&metadata)).ok();
        if named.is_none() || current.file.metadata().map(|metadata| identity(&metadata)).ok() != named {
            // If that fails, lines go on into the renamed file.
            if let Ok(new) = open(&self.path) {
                *current = Open { file: new, is_cut: false, ..*current };
            }
        }
        // A full disk, or a reader that does not read, must neither end nor delay the service.
        let result = current.write(&line);
        let lost = if result.is_ok() { std::mem::take(&mut current.lost) } else { current.lost };
        current.lost += u64::from(result.is_err());
        drop(current);
        match result {
            Err(error) if lost == 0 => log::warn!("lines of the access log are lost: {}: {error}", self.path.display()),
            Ok(()) if lost > 0 => log::warn!(lost; "the access log goes on; lines were lost"),
            _ => {}
        }
    }
}

/// `203.0.113.7 - - [26/Nov/2026:16:00:07 +0000] "GET / HTTP/1.1" 200 312 "referer" "user agent"`
fn combined(event: &Event<'_>) -> String {
    let field = |name: &str| {
        let value = event.fields.iter().find(|(own, _)| own == name).map(|(_, value)| match value {
            Value::Text(text) | Value::Bare(text) => text.as_str(),
        });
        value.filter(|value| !value.is_empty()).unwrap_or("-")
    };
    let client = match field("client") {
        "-" => field("peer").parse::<std::net::SocketAddr>().map_or("-".to_owned(), |peer| peer.ip().to_string()),
        client => client.to_owned(),
    };
    let mut line = format!("{client} - - [{}] \"", time(event.time));
    quote_into(&mut line, field("method"));
    line.push(' ');
    quote_into(&mut line, field("uri"));
    let _ = write!(line, " {}\" {} {} \"", field("version"), field("status"), field("bytes"));
    quote_into(&mut line, field("referer"));
    line.push_str("\" \"");
    quote_into(&mut line, field("user_agent"));
    line.push_str("\"\n");
    line
}

/// Escapes as Apache does: quotes and backslashes by a backslash, what is not visible as `\xNN`.
fn quote_into(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            ' '..='~' => line.push(c),
            c => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| {
                    let _ = write!(line, "\\x{byte:02x}");
                });
            }
        }
    }
}

/// `26/Nov/2026:16:00:07 +0000`
fn time(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = humantime::format_rfc3339_seconds(time).to_string(); // 2026-11-26T16:00:07Z
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let month = part(5, 7).parse().ok().and_then(|month: usize| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"-");
    format!("{}/{month}/{}:{} +0000", part(8, 10), part(0, 4), part(11, 19))
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;
    use std::io::Read as _;
    use std::time::Duration;

    fn event(fields: &[(&str, &str)]) -> Event<'static> {
        Event {
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_708_807),
            level: Level::Info,
            target: TARGET,
            message: String::new(),
            fields: fields.iter().map(|(k, v)| ((*k).to_owned(), Value::Text((*v).to_owned()))).collect(),
        }
    }

    #[test]
    fn a_line_has_the_combined_format_and_no_client_can_leave_its_field() {
        let all = [
            ("method", "GET"),
            ("uri", "/a\"b"),
            ("version", "HTTP/1.1"),
            ("status", "200"),
            ("bytes", "312"),
            ("peer", "[::1]:4711"),
        ];
        assert_eq!(
            combined(&event(&all)),
            "::1 - - [26/Nov/2026:16:00:07 +0000] \"GET /a\\\"b HTTP/1.1\" 200 312 \"-\" \"-\"\n"
        );
        let mut more = all.to_vec();
        more.extend([("client", "203.0.113.7"), ("user_agent", "a\n\"b\u{e9}"), ("referer", "http://x/")]);
        let line = combined(&event(&more));
        assert!(line.starts_with("203.0.113.7 - - ["), "{line}");
        assert!(line.ends_with(" \"http://x/\" \"a\\x0a\\\"b\\xc3\\xa9\"\n"), "{line}");
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let path = std::env::temp_dir().join(format!("allout-access-fifo-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(AccessFile::new(path.clone()).is_err(), "it would wait for a reader");
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let log = AccessFile::new(path.clone()).unwrap();
        let long = "x".repeat(3000);
        let event = event(&[("uri", &long), ("referer", &long), ("user_agent", "last")]);
        let lost = || log.open.lock().unwrap().lost;
        let mut text = String::new();
        for _ in 0..2 {
            while lost() < 3 {
                log.write(&event);
            }
            assert_eq!(reader.read_to_string(&mut text).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            log.write(&event);
            assert_eq!(lost(), 0);
        }
        let (whole, cut): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.ends_with("\"last\""));
        assert!(whole.len() > 10 && cut.len() <= 2, "{} and {}", whole.len(), cut.len());
        assert!(text.lines().all(|line| line.starts_with("- - - [")), "no line is behind the beginning of another");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_was_renamed_or_removed_is_opened_anew() {
        let path = std::env::temp_dir().join(format!("allout-access-{}", std::process::id()));
        let renamed = path.with_extension("1");
        let log = AccessFile::new(path.clone()).unwrap();
        let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
        log.write(&event(&[]));
        std::fs::rename(&path, &renamed).unwrap();
        log.write(&event(&[]));
        log.write(&event(&[]));
        assert_eq!((lines(&renamed), lines(&path)), (1, 2));
        std::fs::remove_file(&path).unwrap();
        log.write(&event(&[]));
        assert_eq!(lines(&path), 1);
        for path in [path, renamed] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
