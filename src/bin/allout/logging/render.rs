//! An event as one line: text or JSON, escaped, and cut to the length that a pipe takes whole.

use std::fmt::Write as _; // writing to a String cannot fail

use log::Level;

use crate::args::LogFormat;
use crate::logging::event::{Event, MAX_LINE, Value};

/// Limits in bytes that are tried in turn on the message and on each field until the line fits.
const CUT_STEPS: [usize; 8] = [usize::MAX, 3072, 1536, 768, 384, 192, 96, MIN_CUT];
const MIN_CUT: usize = 48;

/// The style of lines.
#[derive(Clone, Copy)]
pub(super) struct Style {
    pub(super) format: LogFormat,
    /// The reader is the systemd journal: it takes the level as `<N>` (sd-daemon(3)) and adds the time itself.
    pub(super) journal: bool,
}

/// The line, newline included, of at most [`MAX_LINE`] bytes.
pub(super) fn line(style: Style, event: &Event<'_>) -> String {
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
    for cut in CUT_STEPS {
        shortest = render(cut, fields);
        if shortest.len() <= MAX_LINE {
            return shortest;
        }
    }
    // Dozens of fields: the last ones are dropped, because the first ones are those that the event is about.
    while shortest.len() > MAX_LINE {
        let Some((_, fewer)) = fields.split_last() else { break };
        fields = fewer;
        shortest = render(MIN_CUT, fields);
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
    for (name, value) in fields.iter().filter(|(name, _)| !event.is_in_message(name)) {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            Value::Bare(value) => line.push_str(value),
            Value::Text(value) => {
                let needs_quotes = |c: char| c.is_whitespace() || is_hostile(c) || matches!(c, '"' | '\\' | '=');
                let quoted = value.is_empty() || value.contains(needs_quotes);
                let quote = if quoted { "\"" } else { "" };
                line.push_str(quote);
                escape_into(&mut line, clip(value, cut), quoted);
                line.push_str(quote);
            }
        }
    }
    line
}

fn json_line(style: Style, event: &Event<'_>, fields: &[(String, Value)], cut: usize) -> String {
    // journald strips the prefix: it stores the object alone.
    let mut line = if style.journal { syslog_prefix(event.level) } else { "" }.to_owned();
    let level = event.level.as_str().to_ascii_lowercase();
    line.push_str("{\"ts\":");
    json_into(&mut line, Clipped(&humantime::format_rfc3339_millis(event.time).to_string(), false));
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

/// The level as sd-daemon(3) has it, which has no `trace`.
fn syslog_prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Characters that could break a line, drive a terminal, or make a line read as something that it is not: control
/// characters, Unicode's line and paragraph separators, and those that change the direction of writing.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{feff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}')
}

/// Text, and whether it was cut, so that an ellipsis must follow it.
#[derive(Clone, Copy)]
struct Clipped<'a>(&'a str, bool);

/// As much of the text as takes at most `limit` bytes once it is escaped.
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

/// Appends text that stays on its line. Within quotes, quotes and backslashes are escaped as well.
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

/// Appends a JSON string. `serde_json` escapes what JSON requires; the other hostile characters are escaped here.
fn json_into(line: &mut String, Clipped(text, cut): Clipped<'_>) {
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

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
        assert!(line.ends_with('\n') && line.len() <= MAX_LINE, "{} bytes: {line}", line.len());
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
    fn a_json_line_has_fields_of_their_types() {
        let mut event = event(Level::Info, "x", &[("user", "42")]);
        event.fields.extend([("status", "200"), ("kept", "true")].map(|(k, v)| (k.to_owned(), Value::Bare(v.into()))));
        let expected = serde_json::json!({
            "ts": "1970-01-01T00:00:00.000Z", "level": "info", "target": "allout::service", "msg": "x",
            "user": "42", "status": 200, "kept": true,
        });
        assert_eq!(parse(&line(JSON, &event)), expected);
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
            let long = unit.repeat(MAX_LINE);
            let event = event(Level::Info, &long, &[("path", &long), ("peer", "127.0.0.1:1")]);
            let json = parse(&line(JSON, &event));
            for name in ["msg", "path"] {
                let text = json[name].as_str().unwrap();
                assert!(text.ends_with('…') && text.len() > 200, "{name}: {text}");
            }
            assert_eq!(json["peer"], "127.0.0.1:1");
            let text = line(TEXT, &event);
            assert!(text.len() <= MAX_LINE && text.ends_with(" peer=127.0.0.1:1\n"), "{text}");
        }
    }

    #[test]
    fn many_fields_lose_the_last_ones_only() {
        let names: Vec<_> = (0..1000).map(|n| format!("field{n}")).collect();
        let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "value")).collect();
        let json = parse(&line(JSON, &event(Level::Info, "x", &fields)));
        assert_eq!((&json["field0"], &json["field999"]), (&"value".into(), &serde_json::Value::Null));
        assert!(line(TEXT, &event(Level::Info, "x", &fields)).len() <= MAX_LINE);
    }
}
