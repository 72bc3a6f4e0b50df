//! The log: `env_logger`'s filter, our lines, and a stderr that cannot hold anyone up.
//!
//! Three promises. *One event is one line*, whatever a client managed to get into it: control characters and their
//! relatives are escaped in both formats. *A log never blocks a request*: a line is written whole, at once, or it is
//! dropped and counted, and the next line that fits is preceded by one that tells how many were lost. *A log never
//! ends the process*: a stderr that is closed or broken is ignored.
//!
//! Dropping is the deliberate choice. The alternatives are to wait, which turns a stuck log reader into a stuck
//! service, and to queue, which turns it into memory that grows until something else breaks.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::time::SystemTime;

use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::args::LogFormat;

/// `PIPE_BUF`: a line of up to this many bytes, its newline included, is never mixed with those of other processes
/// that share the pipe, and fits whenever `poll` says that the pipe has room.
const LONGEST_LINE: usize = 4096;

/// Tried in turn on the message and on each field until the line fits.
const CUTS: [usize; 8] = [usize::MAX, 3072, 1536, 768, 384, 192, 96, SHORTEST_CUT];
const SHORTEST_CUT: usize = 48;

/// The target of panics: that of the program, whichever crate the panic came from.
const PANIC: &str = concat!(env!("CARGO_CRATE_NAME"), "::panic");

/// The names that every JSON line has; a field that is called the same gets an underscore.
const STANDING: [&str; 4] = ["ts", "level", "target", "msg"];

/// Starts logging to stderr, filtered by `RUST_LOG` (`info` where it is unset or empty).
///
/// `tiny_http` is silent unless `RUST_LOG` names it: what its clients do wrong is ours to report.
///
/// # Errors
///
/// A logger was installed before, or stderr cannot be duplicated.
pub fn init(format: LogFormat) -> io::Result<()> {
    let style = Style { format, journal: is_journal() };
    let mut builder = env_logger::Builder::new();
    builder.filter_module("tiny_http", LevelFilter::Off);
    // Checked beforehand, as env_logger itself would complain with a bare eprintln: no JSON, and a panic where stderr
    // is closed.
    let wanted = std::env::var("RUST_LOG").ok().filter(|filters| !filters.trim().is_empty());
    let unusable = wanted.as_ref().and_then(|filters| env_filter::Builder::new().try_parse(filters).err());
    match wanted {
        Some(filters) if unusable.is_none() => builder.parse_filters(&filters),
        _ => builder.filter_level(LevelFilter::Info),
    };
    builder
        .format(move |out, record| out.write_all(line(style, &Event::new(record)).as_bytes()))
        .target(env_logger::Target::Pipe(Box::new(Sink::new(own_stderr()?, style))))
        .try_init()
        .map_err(io::Error::other)?;
    if let Some(error) = unusable {
        log::warn!("RUST_LOG is ignored: {error}");
    }
    Ok(())
}

/// Makes a panic one line of the log, so that it has a level, a time and, in JSON, a form that a program can read.
///
/// With `RUST_BACKTRACE` set, the backtrace follows, a line per line, at `info`: whoever set it wants to see it, but
/// a filter for warnings should find one panic and not sixty.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(report_panic));
}

fn report_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text");
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    match panic.location() {
        Some(location) => log::error!(target: PANIC, thread = name, location:% = location; "panic: {message}"),
        None => log::error!(target: PANIC, thread = name; "panic: {message}"),
    }
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        for frame in backtrace.to_string().lines() {
            log::info!(target: PANIC, thread = name; "backtrace: {}", frame.trim());
        }
    }
}

/// How lines look.
#[derive(Clone, Copy)]
struct Style {
    format: LogFormat,
    /// The reader is the systemd journal: it wants the level as `<N>` and has a clock of its own.
    journal: bool,
}

/// What `JOURNAL_STREAM` says must also be what stderr is: the variable is inherited, and stays set when someone
/// redirects stderr to a file.
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A descriptor of our own for stderr: nothing that happens to number 2 can redirect the log.
///
/// A pipe or a terminal is opened anew, because that makes a description of our own too, and non-blocking is a
/// property of the description: setting it on the inherited one would break whoever shares it. A file must not be
/// opened anew (the new description would write at offset 0), and a socket cannot be.
fn own_stderr() -> io::Result<OwnedFd> {
    let stderr = io::stderr();
    let reopened = match FileType::from_raw_mode(fstat(&stderr)?.st_mode) {
        FileType::Fifo | FileType::CharacterDevice => {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            // Refused where stderr belongs to another user. poll then still protects from all but a race with
            // another process that writes to the same pipe.
            open("/proc/self/fd/2", flags, Mode::empty()).ok()
        }
        _ => None,
    };
    reopened.map_or_else(|| stderr.as_fd().try_clone_to_owned(), Ok)
}

/// Where lines go. `env_logger` holds a mutex while it writes one, so the order of lines and the count of lost ones
/// are consistent; nothing that happens under it waits.
struct Sink<F> {
    fd: F,
    socket: bool,
    style: Style,
    /// Lines dropped since the last one that was written.
    dropped: u64,
    /// The end of a line of which only the beginning fitted. Does not happen with pipes.
    rest: Vec<u8>,
}

impl<F: AsFd> Sink<F> {
    fn new(fd: F, style: Style) -> Self {
        let socket = fstat(&fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
        Self { fd, socket, style, dropped: 0, rest: Vec::new() }
    }

    /// Writes a line if it can be done at once; false if it was not written because stderr is full.
    fn send(&mut self, line: &[u8]) -> bool {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            match self.write_now(&rest) {
                Ok(written) => self.rest = rest.get(written..).unwrap_or_default().to_vec(),
                Err(error) if is_full(error) => self.rest = rest,
                // Broken: nobody is left who could miss the rest.
                Err(_) => {}
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
            // Closed or broken: there is nobody to tell, neither now nor later.
            Err(error) => !is_full(error),
        }
    }

    /// Writes what can be written without waiting, or fails with `EAGAIN`.
    fn write_now(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            let outcome = match poll(&mut fds, Some(&at_once)) {
                Ok(0) => Err(Errno::AGAIN),
                // A socket can be asked not to wait for this one write. For the others poll, and the descriptor's
                // own flag where it could be set, must do.
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
    /// Takes a whole line, as `env_logger` hands it over, and never fails: nobody could do anything about it.
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

/// A full disk is full, too: it may have room again.
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

/// What one line tells.
struct Event<'a> {
    time: SystemTime,
    level: Level,
    target: &'a str,
    message: String,
    fields: Vec<(String, Value)>,
}

enum Value {
    Text(String),
    /// A number, `true`, `false` or `null`: the same in both formats.
    Bare(String),
}

impl<'a> Event<'a> {
    fn new(record: &Record<'a>) -> Self {
        let mut fields = Fields(Vec::new());
        // A value that cannot be formatted must not cost the line; what was collected before it stays.
        let _ = record.key_values().visit(&mut fields);
        let message = bounded(record.args());
        Self {
            time: SystemTime::now(),
            level: record.level(),
            target: record.target(),
            message: message.trim_end().to_owned(),
            fields: fields.0,
        }
    }
}

struct Fields(Vec<(String, Value)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let mut name: String = key.as_str().chars().take(64).map(|c| if is_plain(c) { c } else { '_' }).collect();
        // In a JSON object a repeated name hides the first one, which might be the level.
        while STANDING.contains(&name.as_str()) || self.0.iter().any(|(taken, _)| *taken == name) {
            name.push('_');
        }
        let mut kind = Kind(None);
        value.visit(&mut kind)?;
        self.0.push((name, kind.0.unwrap_or_else(|| Value::Bare("null".to_owned()))));
        Ok(())
    }
}

struct Kind(Option<Value>);

impl Kind {
    fn bare(&mut self, value: &impl ToString) {
        self.0 = Some(Value::Bare(value.to_string()));
    }
}

impl VisitValue<'_> for Kind {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.0 = Some(Value::Text(bounded(format_args!("{value}"))));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.bare(&"null");
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.bare(&value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.bare(&value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no infinity and no NaN.
        self.bare(&serde_json::Value::from(value));
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.bare(&value);
        Ok(())
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Formats no more than a line can hold: a message may be as long as a client wants it to be.
fn bounded(value: impl fmt::Display) -> String {
    struct Bounded(String);

    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = LONGEST_LINE.saturating_sub(self.0.len());
            self.0.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
            // An error is how a writer says "no more". What was collected by then is too long for a line already, so
            // that it will be cut again, and marked.
            if text.len() < room { Ok(()) } else { Err(fmt::Error) }
        }
    }

    let mut text = Bounded(String::new());
    let _ = write!(text, "{value}");
    text.0
}

/// The line, newline included, at most [`LONGEST_LINE`] bytes of it.
fn line(style: Style, event: &Event<'_>) -> String {
    let render = |cut, fields: &[(String, Value)]| {
        let mut line = match style.format {
            LogFormat::Text => text_line(style, event, fields, cut),
            LogFormat::Json => json_line(style, event, fields, cut),
        };
        line.push('\n');
        line
    };
    let mut fields = event.fields.as_slice();
    let mut shortest = String::new();
    for cut in CUTS {
        shortest = render(cut, fields);
        if shortest.len() <= LONGEST_LINE {
            return shortest;
        }
    }
    // Dozens of fields: the last ones go, for the first ones are those that the event is about.
    while shortest.len() > LONGEST_LINE {
        let Some((_, fewer)) = fields.split_last() else { break };
        fields = fewer;
        shortest = render(SHORTEST_CUT, fields);
    }
    shortest
}

fn text_line(style: Style, event: &Event<'_>, fields: &[(String, Value)], cut: usize) -> String {
    let mut line = if style.journal {
        syslog_prefix(event.level).to_owned()
    } else {
        format!("{} {:<5} ", humantime::format_rfc3339_millis(event.time), event.level)
    };
    if event.level >= Level::Debug {
        escape_into(&mut line, clip(event.target, cut), false);
        line.push_str(": ");
    }
    escape_into(&mut line, clip(&event.message, cut), false);
    for (name, value) in fields {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            Value::Bare(value) => line.push_str(value),
            Value::Text(value) => {
                let strange = |c: char| c.is_whitespace() || is_hostile(c) || matches!(c, '"' | '\\' | '=');
                let quoted = value.is_empty() || value.contains(strange);
                let quote = if quoted { "\"" } else { "" };
                line.push_str(quote);
                escape_into(&mut line, clip(value, cut), quoted);
                line.push_str(quote);
            }
        }
    }
    line
}

// Writing to a String cannot fail.
fn json_line(style: Style, event: &Event<'_>, fields: &[(String, Value)], cut: usize) -> String {
    // journald takes the prefix off again: what it stores is the object alone.
    let mut line = if style.journal { syslog_prefix(event.level) } else { "" }.to_owned();
    let level = event.level.as_str().to_ascii_lowercase();
    line.push_str("{\"ts\":");
    json_into(&mut line, &humantime::format_rfc3339_millis(event.time).to_string());
    for (name, value) in [("level", level.as_str()), ("target", event.target), ("msg", &event.message)] {
        let _ = write!(line, ",\"{name}\":");
        json_into(&mut line, clip(value, cut));
    }
    for (name, value) in fields {
        let _ = write!(line, ",\"{name}\":");
        match value {
            Value::Bare(value) => line.push_str(value),
            Value::Text(value) => json_into(&mut line, clip(value, cut)),
        }
    }
    line.push('}');
    line
}

/// sd-daemon(3): journald knows more levels than we do, and no `trace`.
fn syslog_prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// What could break a line, drive a terminal, or make a line read as something that it is not: control characters,
/// Unicode's line and paragraph separators, and whatever turns the direction of writing around.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{feff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
}

/// The text and whether something must be added to say that it was cut.
#[derive(Clone, Copy)]
struct Clipped<'a>(&'a str, bool);

/// As much of the text as surely takes no more than `limit` bytes once it is escaped.
fn clip(text: &str, limit: usize) -> Clipped<'_> {
    let mut taken = '…'.len_utf8();
    for (at, c) in text.char_indices() {
        taken += match c {
            '"' | '\\' => 2,
            c if is_hostile(c) => "\\u{2028}".len(),
            c => c.len_utf8(),
        };
        if taken > limit {
            return Clipped(text.get(..at).unwrap_or_default(), true);
        }
    }
    Clipped(text, false)
}

/// Appends text that stays on its line. Inside quotes, what ends them is escaped as well.
fn escape_into(line: &mut String, text: Clipped<'_>, quoted: bool) {
    for c in text.0.chars() {
        match c {
            '\n' | '\r' | '\t' => line.extend(c.escape_default()),
            '"' | '\\' if quoted => line.extend(['\\', c]),
            c if is_hostile(c) => line.extend(c.escape_unicode()),
            c => line.push(c),
        }
    }
    if text.1 {
        line.push('…');
    }
}

/// Appends a JSON string. `serde_json` escapes what JSON says must be; the rest of what is hostile is ours to escape.
fn json_into<'a>(line: &mut String, text: impl Into<Clipped<'a>>) {
    let Clipped(text, cut) = text.into();
    let text = if cut { format!("{text}…") } else { text.to_owned() };
    for c in serde_json::Value::String(text).to_string().chars() {
        if is_hostile(c) {
            // All of them are in the basic plane: no surrogates are needed.
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
}

impl<'a> From<&'a str> for Clipped<'a> {
    fn from(text: &'a str) -> Self {
        Self(text, false)
    }
}

impl<'a> From<&'a String> for Clipped<'a> {
    fn from(text: &'a String) -> Self {
        Self(text, false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    const TEXT: Style = Style { format: LogFormat::Text, journal: false };
    const JSON: Style = Style { format: LogFormat::Json, journal: false };
    const JOURNAL: Style = Style { format: LogFormat::Text, journal: true };

    const HOSTILE: &str = "a\r\nINFO forged\x1b[2J\u{85}\u{9b}\u{2028}\u{202e}\0\x7f\"\\é";

    fn event(level: Level, message: &str, fields: &[(&str, &str)]) -> Event<'static> {
        Event {
            time: SystemTime::UNIX_EPOCH,
            level,
            target: "allout::service",
            message: message.to_owned(),
            fields: fields.iter().map(|(k, v)| ((*k).to_owned(), Value::Text((*v).to_owned()))).collect(),
        }
    }

    fn parse(line: &str) -> serde_json::Value {
        assert!(line.ends_with('\n') && line.len() <= LONGEST_LINE, "{} bytes: {line}", line.len());
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[test]
    fn a_text_line_has_time_level_message_and_fields() {
        let fields = [("path", "/a"), ("user", "two words"), ("empty", ""), ("q", "say \"x\"")];
        assert_eq!(
            line(TEXT, &event(Level::Info, "served", &fields)),
            "1970-01-01T00:00:00.000Z INFO  served path=/a user=\"two words\" empty=\"\" q=\"say \\\"x\\\"\"\n"
        );
        assert_eq!(line(TEXT, &event(Level::Debug, "x", &[])), "1970-01-01T00:00:00.000Z DEBUG allout::service: x\n");
    }

    #[test]
    fn the_journal_gets_a_level_and_no_time() {
        for (level, start) in [(Level::Error, "<3>x\n"), (Level::Warn, "<4>x\n"), (Level::Info, "<6>x\n")] {
            assert_eq!(line(JOURNAL, &event(level, "x", &[])), start);
        }
        assert_eq!(line(JOURNAL, &event(Level::Trace, "x", &[])), "<7>allout::service: x\n");
        let json = line(Style { format: LogFormat::Json, journal: true }, &event(Level::Warn, "x", &[]));
        assert_eq!(parse(json.strip_prefix("<4>").unwrap())["level"], "warn");
    }

    #[test]
    fn hostile_text_stays_on_its_line() {
        for style in [TEXT, JSON, JOURNAL] {
            let line = line(style, &event(Level::Info, HOSTILE, &[("path", HOSTILE)]));
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.contains(is_hostile), "{body:?}");
            assert!(body.contains('é'), "{body:?}");
        }
        let json = parse(&line(JSON, &event(Level::Info, HOSTILE, &[("path", HOSTILE)])));
        assert_eq!((&json["msg"], &json["path"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert!(line(TEXT, &event(Level::Info, "one\ntwo", &[])).contains("one\\ntwo"));
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        for unit in ["x", "é", "\"", "\n", "\u{2028}", "🦀"] {
            let long = unit.repeat(LONGEST_LINE);
            let event = event(Level::Info, &long, &[("path", &long), ("peer", "127.0.0.1:1")]);
            let json = parse(&line(JSON, &event));
            for name in ["msg", "path"] {
                let text = json[name].as_str().unwrap();
                assert!(text.ends_with('…') && text.len() > 200, "{name}: {text}");
            }
            assert_eq!(json["peer"], "127.0.0.1:1");
            let text = line(TEXT, &event);
            assert!(text.len() <= LONGEST_LINE && text.ends_with(" peer=127.0.0.1:1\n"), "{text}");
        }
    }

    #[test]
    fn many_fields_lose_the_last_ones_only() {
        let names: Vec<_> = (0..1000).map(|n| format!("field{n}")).collect();
        let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "value")).collect();
        let json = parse(&line(JSON, &event(Level::Info, "x", &fields)));
        assert_eq!((&json["field0"], &json["field999"]), (&"value".into(), &serde_json::Value::Null));
        assert!(line(TEXT, &event(Level::Info, "x", &fields)).len() <= LONGEST_LINE);
    }

    #[test]
    fn fields_keep_their_type_and_cannot_pose_as_the_level() {
        let fields = [
            ("status", kv::Value::from(200_u16)),
            ("seconds", kv::Value::from(0.25)),
            ("nan", kv::Value::from(f64::NAN)),
            ("kept", kv::Value::from(true)),
            ("user", kv::Value::from("42")),
            ("level", kv::Value::from("error")),
            ("status", kv::Value::from("again")),
            ("a \"key\n", kv::Value::from(1)),
        ];
        let record = Record::builder().level(Level::Info).key_values(&fields).args(format_args!("x\n")).build();
        let json = parse(&line(JSON, &Event::new(&record)));
        let expected = serde_json::json!({
            "ts": json["ts"], "level": "info", "target": "", "msg": "x", "status": 200, "seconds": 0.25, "nan": null,
            "kept": true, "user": "42", "level_": "error", "status_": "again", "a__key_": 1,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn endless_messages_are_not_formatted_to_their_end() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("and on ")?;
                }
            }
        }
        assert_eq!(bounded(Endless).len(), LONGEST_LINE);
    }

    /// Writes lines until one does not fit; returns how many were written.
    fn fill(sink: &mut Sink<impl AsFd>) -> usize {
        let mut lines = 0;
        while sink.dropped == 0 {
            sink.write_all(b"filler\n").unwrap();
            lines += 1;
        }
        lines - 1
    }

    fn read_lines(reader: &mut PipeReader, count: usize) -> String {
        let mut bytes = Vec::new();
        while bytes.split(|byte| *byte == b'\n').count() <= count {
            let mut chunk = [0; 16 * 1024];
            let read = reader.read(&mut chunk).unwrap();
            bytes.extend_from_slice(&chunk[..read]);
        }
        String::from_utf8(bytes).unwrap()
    }

    /// The descriptor is a blocking one: a write too many would hang here until the test runner gives up.
    #[test]
    fn a_full_pipe_costs_lines_and_no_time() {
        for style in [TEXT, JSON] {
            let (mut reader, writer) = io::pipe().unwrap();
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
            assert!(matches!(style.format, LogFormat::Text) || parse(notice)["dropped"] == 3);

            sink.write_all(b"on\n").unwrap();
            assert_eq!(read_lines(&mut reader, 1), "on\n");
        }
    }

    #[test]
    fn a_full_socket_costs_lines_and_tears_none() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let mut sink = Sink::new(writer, TEXT);
        let long = format!("{}\n", "x".repeat(LONGEST_LINE - 1));
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
        assert!(filler.iter().all(|line| line.len() == LONGEST_LINE - 1));
        assert!(notice[0].contains("3 log lines were dropped"), "{notice:?}");
        assert_eq!(notice[1..], ["back"]);
    }

    #[test]
    fn a_reader_that_left_is_ignored() {
        let (reader, writer) = io::pipe().unwrap();
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
