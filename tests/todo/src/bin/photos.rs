//! A form with a file, as a browser sends it: `multipart/form-data`, parsed while it arrives.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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

/// Stores the file under the id of the request. Its name is the client's: it is no path.
fn add(directory: &Path, request: &mut Request) -> Result<Response, HandlerError> {
    let (part_path, path) = (directory.join(format!(".{}", request.id())), directory.join(request.id()));
    let kind = request.header("Content-Type").unwrap_or_default().to_owned();
    let mut form = MultipartReader::new(kind.as_bytes(), request.body()).map_err(malformed)?;
    let (mut title, mut stored) = (String::new(), Ok(0));
    while let Some(mut part) = form.next_part().map_err(malformed)? {
        match part.head().view().name() {
            "title" => title = part.text().map_err(malformed)?,
            "photo" => stored = File::create(&part_path).and_then(|mut file| io::copy(&mut part, &mut file)),
            _ => {}
        }
        if stored.is_err() {
            fs::remove_file(&part_path)?;
            break;
        }
    }
    let bytes = stored.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => StatusError::new(400, error.to_string()).into(), // the form is malformed
        _ => HandlerError::from(error),                                                // the disk is full: 500
    })?;
    fs::rename(part_path, path)?;
    Ok(Response::text(format!("{title}: {bytes} bytes\n")).with_status(201))
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
        assert_eq!(send("one", body(&photo)), (201, "cat: 1000000 bytes\n".to_owned()));
        assert_eq!(fs::read_to_string(directory.join("one")).unwrap(), photo);
        assert_eq!(send("two", body("x").replace("--B--", "")).0, 400);
        assert_eq!(service.handle(Request::post("/photos").body("title=cat")).status(), 400);
        let names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["one"], "nothing else is left");
        fs::remove_dir_all(directory).unwrap();
    }
}
