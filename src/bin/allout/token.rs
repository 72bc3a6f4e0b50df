//! The shutdown token: read from a file or an option, and checked at the start.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::args::Args;

/// Longest token, in bytes: more than any token has, and a limit for files that hold something else.
const MAX_TOKEN: u64 = 4096;

/// The token, if there is one. The file takes precedence over the option, which every user can read in `ps`.
///
/// # Errors
///
/// It cannot be read, or no header can carry it.
pub fn load(args: &Args) -> Result<Option<String>, String> {
    if let Some(path) = &args.shutdown_token_file {
        let token = read(path).map_err(|why| format!("--shutdown-token-file {}: {why}", path.display()))?;
        return Ok(Some(token));
    }
    match &args.shutdown_token {
        Some(token) => checked(token).map(Some).map_err(|why| format!("--shutdown-token: {why}")),
        None => Ok(None),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_TOKEN + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| UNFIT.to_owned())?;
    // The line end that editors and `echo` add.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    checked(text.strip_suffix('\r').unwrap_or(text))
}

const UNFIT: &str = "a token consists of visible ASCII characters, without spaces";

fn checked(token: &str) -> Result<String, String> {
    if token.is_empty() {
        return Err("the token is empty".to_owned());
    }
    if token.len() as u64 > MAX_TOKEN {
        return Err(format!("a token has {MAX_TOKEN} characters at most"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UNFIT.to_owned());
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write as _};

    fn from_file(content: &[u8]) -> Result<String, String> {
        let path = std::env::temp_dir().join(format!("allout-token-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        let token = read(&path);
        std::fs::remove_file(&path).unwrap();
        token
    }

    #[test]
    fn a_file_holds_a_token_and_perhaps_a_line_end() {
        for content in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert_eq!(from_file(content.as_bytes()).as_deref(), Ok("s3cret"));
        }
        for content in ["", "\n", "two\nlines\n", "a b", "s3cret\n\n", "\u{e9}"] {
            assert!(from_file(content.as_bytes()).is_err(), "{content:?}");
        }
        assert!(from_file(b"\xff").is_err());
        assert!(from_file(&[b'x'; 5000]).is_err());
        assert!(read(Path::new("/nonexistent/token")).is_err());
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
