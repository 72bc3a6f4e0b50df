//! Uploads and downloads of any size: no body is ever in memory as a whole, and what is named is whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use allout::{HandlerError, Outcome, Request, Response, Service, StatusError, with_state};

/// Most bytes of an upload.
const MAX: u64 = 1 << 30;

fn main() -> io::Result<Outcome> {
    fs::create_dir_all("uploads")?;
    Ok(service(PathBuf::from("uploads")).run())
}

/// The directory of the files.
#[derive(Clone)]
struct Directory(PathBuf);

/// The service, with its files in this directory.
pub fn service(directory: PathBuf) -> Service {
    let directory = Directory(directory);
    Service::new()
        .put("/files/{name}", with_state(&directory, put))
        .get("/files/{name}", with_state(&directory, get))
        .delete("/files/{name}", with_state(&directory, delete))
}

impl Directory {
    /// The path of the file that a request names. No name of a client's leads elsewhere.
    fn path(&self, request: &Request) -> Result<PathBuf, StatusError> {
        let name = request.param("name").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(StatusError::new(404, "names are letters, digits, and - _ ."));
        }
        Ok(self.0.join(name))
    }
}

fn put(directory: &Directory, request: &mut Request) -> Result<u16, HandlerError> {
    let whole = directory.path(request)?;
    let too_large = || StatusError::new(413, "1 GiB at most");
    if request.body_length().is_some_and(|length| length > MAX) {
        Err(too_large())?;
    }
    let (part, mut file) = new_part(&directory.0)?;
    match io::copy(&mut request.body().take(MAX + 1), &mut file) {
        Ok(length) if length <= MAX => fs::rename(part, whole)?,
        other => {
            fs::remove_file(part)?;
            other?; // the client has left: 400; the disk is full: 500
            Err(too_large())?;
        }
    }
    Ok(201)
}

/// A new file with a name of the program's own, of which no client can make that of another upload. One that is there
/// already, of a program that was killed, is left alone.
fn new_part(directory: &Path) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    loop {
        let path = directory.join(format!(".part-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return Ok((path, created?)),
        }
    }
}

fn get(directory: &Directory, request: &mut Request) -> Result<Response, HandlerError> {
    let file = File::open(directory.path(request)?).map_err(not_found)?;
    Ok(Response::file(file)?.with_header("Content-Disposition", "attachment"))
}

fn delete(directory: &Directory, request: &mut Request) -> Result<(), HandlerError> {
    fs::remove_file(directory.path(request)?).map_err(not_found)
}

fn not_found(error: io::Error) -> HandlerError {
    match error.kind() {
        io::ErrorKind::NotFound => Response::from(404).into(),
        _ => error.into(),
    }
}
