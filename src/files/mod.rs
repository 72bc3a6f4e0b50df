//! Serves the files of a directory: paths that stay within it, index pages, precompressed siblings.
//!
//! A path is opened by `openat2` with `RESOLVE_BENEATH`: the kernel refuses every path that leaves the directory, by
//! `..` or by a symbolic link (openat2(2)). Where that system call is filtered or unknown (before Linux 5.6), each
//! component is opened on its own, and no symbolic link is followed.

mod types;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

use crate::dispatch::request::Request;
use crate::http::response::Response;

/// A directory whose files are served.
///
/// Regular files below it are served; names that begin with a dot are not, except `.well-known`. A path that ends with
/// a slash is its index page. A file with a sibling `NAME.br` or `NAME.gz` is sent from there to clients that accept
/// that coding.
///
/// ```no_run
/// use allout::{Files, Service};
///
/// let service = Service::new().files("/static", Files::new("www").cache_control("max-age=3600"));
/// ```
#[derive(Clone, Debug)]
pub struct Files {
    path: PathBuf,
    /// `None` until it is opened, when the files are added to a service.
    directory: Option<Arc<OwnedFd>>,
    index: Cow<'static, str>,
    cache_control: Option<Cow<'static, str>>,
}

/// Siblings with a coding, the best first: the end of their names, and the coding.
const CODINGS: [(&str, &str); 2] = [(".br", "br"), (".gz", "gzip")];

/// The flags that open a name: read-only, without waiting for the writer of a FIFO.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Most attempts to open a path. While a file is renamed anywhere on the machine, a link with `..` in it may fail with
/// `EAGAIN`, and is tried again (openat2(2)).
const OPEN_TRIES: u32 = 100;

impl Files {
    /// The files below this directory; `index.html` is the index page of each directory.
    ///
    /// ```
    /// let files = allout::Files::new("/srv/www");
    /// ```
    pub fn new(path: impl Into<PathBuf>) -> Files {
        Files { path: path.into(), directory: None, index: Cow::Borrowed("index.html"), cache_control: None }
    }

    /// Sets the name of index pages.
    ///
    /// ```
    /// let files = allout::Files::new("/srv/www").index("home.html");
    /// ```
    #[must_use]
    pub fn index(mut self, name: impl Into<Cow<'static, str>>) -> Files {
        self.index = name.into();
        self
    }

    /// Sets `Cache-Control` of all files.
    ///
    /// ```
    /// let files = allout::Files::new("/srv/www").cache_control("public, max-age=3600");
    /// ```
    #[must_use]
    pub fn cache_control(mut self, value: impl Into<Cow<'static, str>>) -> Files {
        self.cache_control = Some(value.into());
        self
    }

    /// Opens the directory.
    /// Errors: it does not exist, is no directory, or may not be read.
    pub(crate) fn opened(mut self) -> Result<Files, String> {
        let opened = open(&self.path, READ.union(OFlags::DIRECTORY), Mode::empty());
        let directory = opened.map_err(|error| format!("the directory {}: {error}", self.path.display()))?;
        self.directory = Some(Arc::new(directory));
        Ok(self)
    }

    /// The response to a `GET` or `HEAD` of this path below the directory, decoded, without a slash at its beginning. An
    /// empty path is the directory itself.
    ///
    /// ```
    /// use allout::{Files, Service};
    ///
    /// let files = Files::new("/srv/reports");
    /// let service = Service::new().get("/reports/{*path}", move |request| {
    ///     let path = request.param("path").unwrap_or_default().to_owned();
    ///     files.serve(request, &format!("public/{path}"))
    /// });
    /// ```
    pub fn serve(&self, request: &Request, path: &str) -> Response {
        // An encoded slash would be a separator here and none for a proxy in front.
        let encoded =
            |code: &str| request.path().as_bytes().windows(3).any(|part| part.eq_ignore_ascii_case(code.as_bytes()));
        if encoded("%2f") || encoded("%5c") || !path.split('/').all(is_served) {
            return Response::from(404);
        }
        match self.find(request, path) {
            Ok(response) => response,
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&self, error: &io::Error) -> Response {
        match error.kind() {
            // A file that may not be read is answered like one that does not exist.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                Response::from(404)
            }
            _ => match Errno::from_io_error(error) {
                // A path that leaves the directory, a link that is not followed, a name that no file has, a socket.
                Some(Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL | Errno::NXIO) => {
                    Response::from(404)
                }
                _ => Response::from(500).with_cause(format!("{}: {error}", self.path.display())),
            },
        }
    }

    fn find(&self, request: &Request, path: &str) -> io::Result<Response> {
        let directory = match &self.directory {
            Some(directory) => Arc::clone(directory),
            None => Arc::new(open(&self.path, READ.union(OFlags::DIRECTORY), Mode::empty())?),
        };
        if path.is_empty() && !request.path().ends_with('/') {
            return Ok(with_slash(request));
        }
        let path =
            if path.is_empty() || path.ends_with('/') { format!("{path}{}", self.index) } else { path.to_owned() };
        let Some(file) = open_file(&directory, &path)? else {
            return Ok(if path.ends_with('/') { Response::from(404) } else { with_slash(request) });
        };
        let mut response = represent(request, &directory, &path, file)?;
        response.set_header("Content-Type", types::content_type(&path));
        if let Some(value) = &self.cache_control {
            response.set_header("Cache-Control", value.clone());
        }
        Ok(response)
    }
}

/// The file itself, or the sibling in a coding that the client accepts.
fn represent(request: &Request, directory: &OwnedFd, path: &str, file: File) -> io::Result<Response> {
    let lines = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("accept-encoding"));
    let accepted: Vec<&str> = lines.map(|(_, value)| value).collect();
    let mut varies = false;
    for (end, coding) in CODINGS {
        // Looked up even if the client does not accept it: caches must know that the response varies.
        if let Ok(Some(sibling)) = open_file(directory, &format!("{path}{end}")) {
            varies = true;
            if accepts(&accepted, coding) {
                let mut response = whole(sibling)?;
                // Differs from the tag of the file itself and of another coding, even if time and length are the same.
                if let Some(tag) = response.header("etag").and_then(|tag| tag.strip_suffix('"')) {
                    let tag = format!("{tag}-{coding}\"");
                    response.set_header("ETag", tag);
                }
                return Ok(response.with_header("Content-Encoding", coding).with_header("Vary", "Accept-Encoding"));
            }
        }
    }
    let response = whole(file)?;
    Ok(if varies { response.with_header("Vary", "Accept-Encoding") } else { response })
}

impl From<&str> for Files {
    fn from(path: &str) -> Files {
        Files::new(path)
    }
}

impl From<PathBuf> for Files {
    fn from(path: PathBuf) -> Files {
        Files::new(path)
    }
}

/// A regular file from its beginning; an empty one is known to be empty, other than those in `/proc`.
fn whole(file: File) -> io::Result<Response> {
    let metadata = file.metadata()?;
    if metadata.len() == 0 { Ok(Response::bytes("").with_validators(&metadata)) } else { Response::file(file) }
}

/// True if a component of a path may be served.
fn is_served(component: &str) -> bool {
    (!component.starts_with('.') || component == ".well-known") && !component.contains('\0')
}

/// Redirects a directory to itself with a slash at the end, so that its pages' relative links work.
fn with_slash(request: &Request) -> Response {
    let query = request.query_string();
    let separator = if query.is_empty() { "" } else { "?" };
    // One slash at the beginning: two would be another host.
    let path = request.path().trim_start_matches('/');
    Response::redirect(format!("/{path}/{separator}{query}")).with_status(308)
}

/// Opens a regular file below a directory. `None` if it is a directory.
fn open_file(directory: &OwnedFd, path: &str) -> io::Result<Option<File>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = OPEN_TRIES;
    let file = loop {
        match openat2(directory, path, READ, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => break open_by_components(directory, path)?,
            Err(Errno::AGAIN) if tries > 1 => tries -= 1,
            opened => break File::from(opened?),
        }
    };
    let kind = file.metadata()?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(Some(file)),
        (_, true) => Ok(None),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Does as `openat2`, but follows no link.
fn open_by_components(directory: &OwnedFd, path: &str) -> io::Result<File> {
    let mut below: Option<OwnedFd> = None;
    let mut components = path.split('/').filter(|component| !component.is_empty()).peekable();
    while let Some(component) = components.next() {
        if matches!(component, "." | "..") {
            return Err(Errno::XDEV.into());
        }
        let at = below.as_ref().map_or(directory.as_fd(), AsFd::as_fd);
        let kind = if components.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
        below = Some(openat(at, component, READ | OFlags::NOFOLLOW | kind, Mode::empty())?);
    }
    below.map(File::from).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// True if `Accept-Encoding`, in one line or several, allows a coding: RFC 9110, section 12.5.3.
fn accepts(accept_encoding: &[&str], coding: &str) -> bool {
    let mut any = false;
    for element in accept_encoding.iter().flat_map(|line| line.split(',')) {
        let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
        let weight = parameters.trim().strip_prefix("q=").or(parameters.trim().strip_prefix("Q="));
        let allowed = weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0));
        match name.trim() {
            name if name.eq_ignore_ascii_case(coding) => return allowed,
            "*" => any = allowed,
            _ => {}
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codings_are_accepted_by_name_star_and_weight() {
        for (header, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("*, gzip;q=0", false),
            ("gzip;q=0.0, *;q=1", false),
            ("br", false),
            ("", false),
            ("*;q=0", false),
        ] {
            assert_eq!(accepts(&[header], "gzip"), expected, "{header}");
        }
        assert!(accepts(&["br", "gzip"], "gzip") && !accepts(&["*", "gzip;q=0"], "gzip"), "in several lines");
    }

    #[test]
    fn both_ways_to_open_stay_within_the_directory() {
        let root = std::env::temp_dir().join(format!("allout-files-{}", std::process::id()));
        std::fs::create_dir_all(root.join("www/sub")).unwrap();
        std::fs::write(root.join("secret"), "secret").unwrap();
        std::fs::write(root.join("www/sub/page"), "page").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("www/out")).unwrap();
        std::os::unix::fs::symlink("sub/page", root.join("www/in")).unwrap();
        std::os::unix::fs::symlink(&root, root.join("www/up")).unwrap();
        let directory = open(root.join("www"), READ | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let by_kernel = |path: &str| open_file(&directory, path).map(|file| file.is_some());
        let by_components = |path: &str| open_by_components(&directory, path).map(drop);
        for path in ["out", "up/secret", "../secret", "sub/../../secret", "/etc/passwd", ".."] {
            assert!(by_kernel(path).is_err(), "{path}");
            assert!(by_components(path).is_err() || path == "/etc/passwd", "{path}");
        }
        assert!(by_kernel("sub/page").unwrap() && by_kernel("in").unwrap() && !by_kernel("sub").unwrap());
        assert!(by_components("sub/page").is_ok() && by_components("in").is_err());
        assert!(by_components("etc/passwd").is_err());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn hidden_names_are_not_served() {
        assert!([".git", "..", ".", ".env", "a\0"].iter().all(|name| !is_served(name)));
        assert!(["", "a", "a.b", ".well-known"].iter().all(|name| is_served(name)));
    }
}
