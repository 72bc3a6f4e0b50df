//! A form with a file, as a browser sends it: `multipart/form-data`, parsed while it arrives.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use allout::{HandlerError, Outcome, Request, Response, Service, StatusError};
use form_net::{FormError, MultipartReader};

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>photos</title>
<form method=post action=/photos enctype=multipart/form-data>
<input name=title> <input type=file name=photo> <button>send</button>
</form>
";

fn main() -> io::Result<Outcome> {
    fs::create_dir_all("photos")?;
    Ok(service(PathBuf::from("photos")).run())
}

fn service(directory: PathBuf) -> Service {
    Service::new().get("/", |_| Response::html(PAGE)).post("/photos", move |request| add(&directory, request))
}

/// Stores the file under a number. Its name and the request's id are the client's: they are no path.
fn add(directory: &Path, request: &mut Request) -> Result<Response, HandlerError> {
    let kind = request.header("Content-Type").unwrap_or_default().to_owned();
    let mut form = MultipartReader::new(kind.as_bytes(), request.body()).map_err(malformed)?;
    let (mut title, mut photo) = (String::new(), None);
    while let Some(mut part) = form.next_part().map_err(malformed)? {
        match part.head().view().name() {
            "title" => title = part.text().map_err(malformed)?,
            "photo" if photo.is_none() => {
                let mut new = NewFile::create(directory)?;
                let bytes = io::copy(&mut part, &mut new.file).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => StatusError::new(400, error.to_string()).into(), // a malformed form
                    _ => HandlerError::from(error), // the disk is full: 500
                })?;
                photo = Some((new, bytes));
            }
            _ => {}
        }
    }
    let (new, bytes) = photo.ok_or(StatusError::new(400, "there is no photo"))?;
    fs::rename(&new.part, &new.whole)?;
    Ok(Response::text(format!("{title}: {bytes} bytes\n")).with_status(201))
}

/// A file with a name of the program's own until it is whole. It is removed if it does not get so far.
struct NewFile {
    file: File,
    part: PathBuf,
    whole: PathBuf,
}

impl NewFile {
    fn create(directory: &Path) -> io::Result<NewFile> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let (part, whole) = (directory.join(format!(".{number}")), directory.join(number.to_string()));
            let file = match File::create_new(&part) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            let new = NewFile { file, part, whole };
            if !new.whole.exists() {
                return Ok(new);
            }
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part); // it is no longer there if it is whole
    }
}

fn malformed(error: FormError) -> StatusError {
    StatusError::new(400, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(photo: &str) -> String {
        let part =
            |head: &str, value: &str| format!("--B\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n");
        part("name=\"title\"", "cat") + &part("name=\"photo\"; filename=\"../out\"", photo) + "--B--\r\n"
    }

    #[test]
    fn a_file_is_stored_under_a_name_of_the_services_own_and_a_broken_form_is_a_400() {
        let directory = std::env::temp_dir().join(format!("allout-photos-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let service = service(directory.clone());
        let send = |id: &str, body: String| {
            let request = Request::post("/photos").header("Content-Type", "multipart/form-data; boundary=B");
            let response = service.handle(request.header("X-Request-Id", id).body(body));
            (response.status(), response.into_text().unwrap())
        };
        let photo = "0123456789".repeat(100_000);
        assert_eq!(send("../one", body(&photo)), (201, "cat: 1000000 bytes\n".to_owned()));
        assert_eq!(fs::read_to_string(directory.join("1")).unwrap(), photo);
        assert_eq!(send("../one", body("x").replace("--B--", "")).0, 400);
        assert_eq!(send("../one", body("x").replace("photo", "other")).0, 400);
        assert_eq!(send("../one", body("x").replace("--B--", "--B\r\nno head")).0, 400);
        assert_eq!(service.handle(Request::post("/photos").body("title=cat")).status(), 400);
        let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["1"], "nothing else is left");
        fs::remove_dir_all(directory).unwrap();
    }
}
