//! One line of the log: its fields.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use log::kv::{self, VisitSource, VisitValue};
use log::{Level, Record};

/// `PIPE_BUF`, in bytes (pipe(7)): a write of up to this many bytes, the newline included, is never interleaved with
/// those of other processes that share the pipe, and fits whenever `poll` says that the pipe has room.
pub(super) const MAX_LINE: usize = 4096;

/// The names that every JSON line has; a field of the same name gets an underscore.
const RESERVED_FIELDS: [&str; 4] = ["ts", "level", "target", "msg"];

/// Longest name of a field, in characters.
const MAX_FIELD_NAME: usize = 64;

/// One event, formatted and bounded.
pub(super) struct Event<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) message: String,
    pub(super) fields: Vec<(String, Value)>,
}

/// The value of a field.
pub(super) enum Value {
    /// Text, quoted where the format asks for it.
    Text(String),
    /// A number, `true`, `false` or `null`: the same in both formats.
    Bare(String),
}

impl<'a> Event<'a> {
    /// True if the message says what this field says, so that text does without it: all fields of a stop and a start, and
    /// the first ones of the access log.
    pub(super) fn is_in_message(&self, field: &str) -> bool {
        let in_access_line = ["method", "uri", "status", "bytes", "duration_us", "cut"].contains(&field);
        self.target.starts_with("allout::lifecycle") || (self.target == "allout::access" && in_access_line)
    }

    pub(super) fn new(record: &Record<'a>) -> Self {
        let mut fields = Fields(Vec::new());
        // A value that cannot be formatted must not cost the line: the fields before it stay.
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
        let plain = |c| if is_plain(c) { c } else { '_' };
        let mut name: String = key.as_str().chars().take(MAX_FIELD_NAME).map(plain).collect();
        // In a JSON object a repeated name hides the first one, which might be the level.
        while RESERVED_FIELDS.contains(&name.as_str()) || self.0.iter().any(|(taken, _)| *taken == name) {
            name.push('_');
        }
        let mut visitor = ValueVisitor(None);
        value.visit(&mut visitor)?;
        self.0.push((name, visitor.0.unwrap_or_else(|| Value::Bare("null".to_owned()))));
        Ok(())
    }
}

struct ValueVisitor(Option<Value>);

impl ValueVisitor {
    #[expect(clippy::unnecessary_wraps, reason = "what every method of the trait returns")]
    fn bare(&mut self, value: &impl ToString) -> Result<(), kv::Error> {
        self.0 = Some(Value::Bare(value.to_string()));
        Ok(())
    }
}

impl VisitValue<'_> for ValueVisitor {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.0 = Some(Value::Text(bounded(format_args!("{value}"))));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.bare(&"null")
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.bare(&value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.bare(&value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.bare(&serde_json::Value::from(value)) // null for infinity and NaN, which JSON does not have
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.bare(&value)
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Formats at most what a line can hold: a client may have chosen the length of a message.
pub(super) fn bounded(value: impl fmt::Display) -> String {
    struct Bounded(String);

    impl fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = MAX_LINE.saturating_sub(self.0.len());
            let fits = (0..=room.min(text.len())).rev().find_map(|end| text.get(..end)); // no half character
            self.0.push_str(fits.unwrap_or_default());
            // The error ends the formatting. The text is then longer than a line can be, so rendering cuts and marks it.
            if text.len() < room { Ok(()) } else { Err(fmt::Error) }
        }
    }

    let mut text = Bounded(String::new());
    let _ = write!(text, "{value}");
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let event = Event::new(&record);
        let fields: Vec<_> = event
            .fields
            .iter()
            .map(|(name, value)| match value {
                Value::Text(text) => format!("{name}=\"{text}\""),
                Value::Bare(bare) => format!("{name}={bare}"),
            })
            .collect();
        assert_eq!(event.message, "x");
        assert_eq!(
            fields.join(" "),
            "status=200 seconds=0.25 nan=null kept=true user=\"42\" level_=\"error\" status_=\"again\" a__key_=1"
        );
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
        assert_eq!(bounded(Endless).len(), MAX_LINE);
    }
}
