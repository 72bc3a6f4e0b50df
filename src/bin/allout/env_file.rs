//! Files of variables, as systemd's `EnvironmentFile=` has them: each start reads them, and each re-exec reads them anew.
//!
//! A variable of the environment stays what it was when the process was started, also over a re-exec. So what is to change
//! by a reload is read from a file, which overrides the environment, and which a flag overrides.

use std::borrow::Cow;
use std::ffi::OsString;
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
            match std::fs::read_to_string(Path::new(path)) {
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

/// `NAME=value`, a line each; the value may be quoted. Empty lines and those that begin with `#` or `;` are comments.
fn parse(text: &str, path: &str) -> Result<Vec<Variable>, String> {
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let place = format!("{path}:{number}");
        let is_name =
            |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let variable = line.strip_prefix("export ").unwrap_or(line).split_once('=');
        let Some((name, value)) = variable.map(|(name, value)| (name.trim(), value.trim())).filter(|(n, _)| is_name(n))
        else {
            return Err(format!("{place}: expected NAME=value, as in ALLOUT_GRACE=10s"));
        };
        let value = unquoted(value).ok_or_else(|| format!("{place}: the quotes, or a \\, are not closed"))?;
        variables.push(Variable { name: name.to_owned(), value, place });
    }
    Ok(variables)
}

/// Strips the quotes of a value; `None` if they are not closed.
fn unquoted(value: &str) -> Option<String> {
    if let Some(rest) = value.strip_prefix('\'') {
        return rest.strip_suffix('\'').filter(|inner| !inner.contains('\'')).map(str::to_owned);
    }
    let quoted = value.starts_with('"');
    let mut chars = value.strip_prefix('"').unwrap_or(value).chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next()?),
            '"' if quoted => return chars.next().is_none().then_some(plain),
            c => plain.push(c),
        }
    }
    (!quoted).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Result<Vec<(String, String)>, String> {
        parse(text, "f").map(|all| all.into_iter().map(|variable| (variable.name, variable.value)).collect())
    }

    #[test]
    fn lines_are_variables_or_comments() {
        let text =
            "# a comment\n; another\n\nA=1\n B = two words \nexport C=\"3 \\\"x\\\"\"\nD='a\\b'\nE=\nF=a\\ b#c\n";
        let all = values(text).unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "3 \"x\""), ("D", "a\\b"), ("E", ""), ("F", "a b#c")];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_line_that_is_neither_is_an_error_with_its_number() {
        for bad in ["A", "=1", "A B=1", "A=\"x", "A='x", "A=\"x\" y", "A=x\\"] {
            let said = values(&format!("OK=1\n{bad}\n")).unwrap_err();
            assert!(said.starts_with("f:2: "), "{bad}: {said}");
        }
    }

    #[test]
    fn files_are_read_in_order_and_may_be_missing_if_they_say_so() {
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
        std::fs::remove_file(&path).unwrap();
    }
}
