//! Files of variables, in the format of systemd's `EnvironmentFile=`: read at each start and each re-exec.
//!
//! A variable of the environment stays what it was when the process was started, also over a re-exec. So an option that
//! a reload should change is read from a file, which overrides the environment, and which a flag overrides.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::iter::Peekable;
use std::path::Path;

/// A variable, and where it is set: `FILE:LINE`.
#[derive(Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    pub value: String,
    pub place: String,
}

/// All variables of the files, in their order.
#[derive(Debug, Default)]
pub struct Variables(Vec<Variable>);

/// The option that names the files; its variable does as well.
const FLAG: &str = "--env-file";
const VARIABLE: &str = "ALLOUT_ENV_FILE";

impl Variables {
    /// Reads the files that a command line, or else the environment, names. One with a `-` before it need not exist.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or a line of it is no variable.
    pub fn of_command_line(line: &[OsString]) -> Result<Variables, String> {
        let mut names = Vec::new();
        let mut words = line.iter().skip(1).map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            if word == FLAG {
                names.extend(words.next().map(Cow::into_owned));
            } else if let Some(name) = word.strip_prefix(FLAG).and_then(|rest| rest.strip_prefix('=')) {
                names.push(name.to_owned());
            }
        }
        if names.is_empty() {
            names.extend(std::env::var(VARIABLE));
        }
        let mut all = Variables::default();
        for name in names.iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty()) {
            let (path, may_be_missing) = name.strip_prefix('-').map_or((name, false), |path| (path, true));
            match read(Path::new(path)) {
                Ok(text) => all.0.extend(parse(&text, path)?),
                Err(error) if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{FLAG} {path}: {error}")),
            }
        }
        Ok(all)
    }

    /// The last one with this name.
    pub fn get(&self, name: &str) -> Option<&Variable> {
        self.0.iter().rev().find(|variable| variable.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.0.iter()
    }
}

/// Most bytes of a file: more than all options take, and a limit for files that are something else.
const MAX_FILE: u64 = 1 << 20;

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE || text.contains('\0') {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is no file of variables"));
    }
    Ok(text)
}

/// `NAME=value`, a line each; the value may be quoted, and go on in the next line after a `\`. Empty lines and those that
/// begin with `#` or `;` are comments. Unlike systemd, which ignores them, it refuses lines that are neither.
fn parse(text: &str, path: &str) -> Result<Vec<Variable>, String> {
    let mut variables = Vec::new();
    let mut rest = Chars { text: text.chars().peekable(), line: 1 };
    loop {
        while rest.text.peek().is_some_and(|c| c.is_whitespace()) {
            rest.next();
        }
        let place = format!("{path}:{}", rest.line);
        match rest.text.peek() {
            None => return Ok(variables),
            Some('#' | ';') => while rest.next().is_some_and(|c| c != '\n') {},
            Some(_) => {
                let mut name = String::new();
                let is_value = loop {
                    match rest.next() {
                        Some('=') => break true,
                        None | Some('\n') => break false,
                        Some(c) => name.push(c),
                    }
                };
                let name = name.strip_prefix("export ").unwrap_or(&name).trim();
                let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !is_value || !is_name {
                    return Err(format!("{place}: expected NAME=value, as in ALLOUT_GRACE=10s"));
                }
                let value = rest.value().ok_or_else(|| format!("{place}: the quotes, or a \\, are not closed"))?;
                variables.push(Variable { name: name.to_owned(), value, place });
            }
        }
    }
}

/// The rest of a file, and the number of the line.
struct Chars<'a> {
    text: Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Chars<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.text.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// A value, up to the end of its last line, as systemd's `parse_env_file` reads it; `None` if the file ends before
    /// it.
    fn value(&mut self) -> Option<String> {
        let mut value = String::new();
        // True where quotes may open: at the start, and after other quotes. Blanks there are not part of the value.
        let mut may_quote = true;
        // Length of the value up to its last character that is quoted or not blank: unquoted blanks at the end are not
        // part of it.
        let mut kept = 0;
        loop {
            match self.next() {
                None | Some('\n') => break,
                Some('\\') => {
                    may_quote = false;
                    value.extend(Some(self.next()?).filter(|c| *c != '\n'));
                    kept = value.len();
                }
                Some(quote @ ('"' | '\'')) if may_quote => {
                    self.quoted(quote, &mut value)?;
                    kept = value.len();
                }
                Some(c) if c.is_whitespace() && may_quote => {}
                Some(c) => {
                    may_quote = false;
                    value.push(c);
                    kept = if c.is_whitespace() { kept } else { value.len() };
                }
            }
        }
        value.truncate(kept);
        Some(value)
    }

    /// The rest of the text in these quotes; `None` if the file ends before they close.
    fn quoted(&mut self, quote: char, value: &mut String) -> Option<()> {
        loop {
            match self.next()? {
                c if c == quote => return Some(()),
                '\\' if quote == '"' => match self.next()? {
                    '\n' => {}
                    c @ ('"' | '\\' | '`' | '$') => value.push(c),
                    c => value.extend(['\\', c]),
                },
                c => value.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Result<Vec<(String, String)>, String> {
        parse(text, "f").map(|all| all.into_iter().map(|variable| (variable.name, variable.value)).collect())
    }

    #[test]
    fn lines_are_variables_or_comments() {
        let text = "# a comment\n; another\n\nA=1\n B = two words \nexport C=\"3 \\\"x\\\"\"\nE=\n#end";
        let all = values(text).unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "3 \"x\""), ("E", "")];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    /// The values that systemd 252 makes of the same, as a service with `EnvironmentFile=` printed it.
    #[test]
    fn values_are_those_that_systemd_reads() {
        for (value, read) in [
            ("'a\\b'", "a\\b"),
            ("\"a\\b\"", "a\\b"),
            ("\"a\\\\b\\$c\"", "a\\b$c"),
            ("a\\ b#c", "a b#c"),
            ("one \\\n two", "one  two"),
            ("\"one \\\ntwo\"", "one two"),
            ("\"one\ntwo\"", "one\ntwo"),
            ("\"a\"'b' \"c\"", "abc"),
            ("\"a\" b ", "ab"),
            ("a\"b\"", "a\"b\""),
            (" 10s\r", "10s"),
            ("\"10s \"\r", "10s "),
            ("a\\ ", "a "),
            ("'a'\\b", "ab"),
            ("\\\n10s", "10s"),
            ("a\tb\t", "a\tb"),
            ("  \"x\" 'y' z w  ", "xyz w"),
        ] {
            let all = values(&format!("A={value}\nB=1\n")).unwrap();
            assert_eq!(all, [("A".to_owned(), read.to_owned()), ("B".to_owned(), "1".to_owned())], "{value}");
        }
    }

    #[test]
    fn a_line_that_is_neither_is_an_error_with_its_number() {
        for bad in ["A", "=1", "A B=1", "A=\"x", "A='x\nB=1", "A=x\\", "\u{feff}A=1"] {
            let said = values(&format!("OK=\"1\n\"\n{bad}")).unwrap_err();
            assert!(said.starts_with("f:3: "), "{bad}: {said}");
        }
    }

    #[test]
    fn files_are_read_in_order_and_may_be_missing_if_they_are_marked() {
        let path = std::env::temp_dir().join(format!("allout-env-{}", std::process::id()));
        std::fs::write(&path, "A=1\nA=2\n").unwrap();
        let read = |words: &[&str]| Variables::of_command_line(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let file = path.display().to_string();
        let all = read(&["allout", "--env-file=-/nonexistent/file", "--env-file", &file]).unwrap();
        assert_eq!(
            all.get("A").map(|variable| (&*variable.value, &*variable.place)),
            Some(("2", &*format!("{file}:2")))
        );
        assert!(all.get("B").is_none());
        let said = read(&["allout", "--env-file", "/nonexistent/file"]).unwrap_err();
        assert!(said.contains("/nonexistent/file: No such file"), "{said}");
        for (content, why) in [(&b"A=\0\n"[..], "no file of variables"), (b"A=\xff\n", "UTF-8")] {
            std::fs::write(&path, content).unwrap();
            let said = read(&["allout", "--env-file", &file]).unwrap_err();
            assert!(said.contains(&file) && said.contains(why), "{said}");
        }
        assert!(read(&["allout", "--env-file", "/dev/zero"]).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
