//! Files and directories: what is served, what is not, and of what a client has already only what it needs.

#![cfg(feature = "files")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use allout::{Files, Request, RequestBuilder, Response, Service, StartError};
use engine::exchange;
use folder::Folder;

#[path = "common/engine.rs"]
mod engine;
#[path = "common/folder.rs"]
mod folder;

/// A directory `www`, beside a file that must not be served.
struct Tree(Folder);

impl Tree {
    fn new(name: &str) -> Tree {
        let tree = Tree(Folder::new(name));
        fs::create_dir_all(tree.www()).unwrap();
        tree.0.write("secret", "secret");
        tree
    }

    fn www(&self) -> PathBuf {
        self.0.join("www")
    }

    fn add(&self, path: &str, text: &str) -> &Tree {
        let path = self.www().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn service(&self) -> Service {
        Service::new().files("/static", self.www())
    }
}

fn get(service: &Service, path: &str) -> Response {
    service.handle(Request::get(path))
}

fn text(response: Response) -> (u16, String) {
    (response.status(), response.into_text().unwrap())
}

fn answer(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

#[test]
fn files_and_index_pages_are_served_with_their_types() {
    let tree = Tree::new("types");
    tree.add("index.html", "home").add("a b/index.html", "below").add("app.js", "code").add("empty.css", "");
    tree.add("J\u{fc}rgen.txt", "name").add("noindex/x", "x");
    let service = tree.service();
    let app = get(&service, "/static/app.js");
    assert_eq!(app.content_type(), Some("text/javascript; charset=utf-8"));
    assert_eq!((app.length(), text(app)), (Some(4), answer(200, "code")));
    assert_eq!(text(get(&service, "/static/")), answer(200, "home"));
    assert_eq!(text(get(&service, "/static/a%20b/")), answer(200, "below"));
    assert_eq!(text(get(&service, "/static/J%C3%BCrgen.txt")), answer(200, "name"));
    let empty = get(&service, "/static/empty.css");
    assert_eq!((empty.status(), empty.length(), empty.content_type()), (200, Some(0), Some("text/css; charset=utf-8")));
    assert!(empty.header("ETag").is_some());
    for (path, location) in
        [("/static", "/static/"), ("/static?a=b", "/static/?a=b"), ("/static/a%20b", "/static/a%20b/")]
    {
        let response = get(&service, path);
        assert_eq!((response.status(), response.header("Location")), (308, Some(location)), "{path}");
    }
    assert_eq!(get(&service, "/static/noindex/").status(), 404);
    assert_eq!(get(&service, "/static/none").status(), 404);
    assert_eq!(get(&service, "/static/app.js/").status(), 404);
    let head = service.handle(RequestBuilder::new("HEAD", "/static/app.js"));
    assert_eq!((head.status(), head.header("ETag").is_some(), text(head).1), (200, true, String::new()));
    let refused = service.handle(Request::post("/static/app.js"));
    assert_eq!((refused.status(), refused.header("Allow")), (405, Some("GET, HEAD")));
}

#[test]
fn no_path_leads_out_of_the_directory() {
    let tree = Tree::new("out");
    tree.add("page", "page").add(".git/config", "hidden").add(".env", "hidden").add(".well-known/x", "known");
    tree.add("sub/page", "page").add("a\\b", "backslash");
    symlink("../secret", tree.www().join("out")).unwrap();
    symlink(&*tree.0, tree.www().join("up")).unwrap();
    symlink("/etc", tree.www().join("etc")).unwrap();
    symlink("loop", tree.www().join("loop")).unwrap();
    symlink("sub/page", tree.www().join("in")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.www().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let service = tree.service();
    let long = format!("/static/{}", "x".repeat(300));
    for path in [
        "/static/../secret",
        "/static/..%2fsecret",
        "/static/%2e%2e/secret",
        "/static/%2e%2e%2fsecret",
        "/static/sub/%2e%2e/%2e%2e/secret",
        "/static/sub%2fpage",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/..%5csecret",
        "/static/a%5Cb",
        "/static/page%00",
        "/static/page%00.html",
        "/static/%252e%252e/secret",
        "/static/out",
        "/static/up/secret",
        "/static/etc/passwd",
        "/static/loop",
        "/static/fifo",
        "/static/.git/config",
        "/static/.env",
        "/static/.",
        "/static/..",
        "/static/./page",
        long.as_str(),
    ] {
        let response = get(&service, path);
        assert_eq!(response.status(), 404, "{path}: {response:?}");
    }
    for path in ["/static/page", "/static/in", "/static/.well-known/x"] {
        assert_eq!(get(&service, path).status(), 200, "{path}");
    }
}

#[test]
fn a_client_is_sent_what_it_does_not_have() {
    let tree = Tree::new("conditional");
    tree.add("file.txt", "0123456789");
    let service = tree.service();
    let whole = get(&service, "/static/file.txt");
    let (tag, date) = (whole.header("ETag").unwrap().to_owned(), whole.header("Last-Modified").unwrap().to_owned());
    assert_eq!(whole.header("Accept-Ranges"), Some("bytes"));
    let ask = |headers: &[(&str, &str)]| {
        let request = Request::get("/static/file.txt");
        service.handle(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    let fresh = ask(&[("If-None-Match", &tag)]);
    assert_eq!((fresh.status(), fresh.header("ETag"), fresh.length()), (304, Some(tag.as_str()), Some(0)));
    assert_eq!(ask(&[("If-Modified-Since", &date)]).status(), 304);
    assert_eq!(ask(&[("If-None-Match", "\"other\""), ("If-Modified-Since", &date)]).status(), 200);
    assert_eq!(ask(&[("If-Match", "\"other\"")]).status(), 412);
    assert_eq!(ask(&[("If-Match", &tag)]).status(), 200);
    let part = ask(&[("Range", "bytes=2-4")]);
    assert_eq!((part.header("Content-Range"), part.length()), (Some("bytes 2-4/10"), Some(3)));
    assert_eq!(text(part), answer(206, "234"));
    assert_eq!(text(ask(&[("Range", "bytes=-3"), ("If-Range", &tag)])), answer(206, "789"));
    assert_eq!(text(ask(&[("Range", "bytes=0-1"), ("If-Range", "\"other\"")])), answer(200, "0123456789"));
    let beyond = ask(&[("Range", "bytes=10-")]);
    assert_eq!((beyond.status(), beyond.header("Content-Range")), (416, Some("bytes */10")));
    let file = fs::File::options().write(true).open(tree.www().join("file.txt")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    let old = ask(&[("If-Modified-Since", &date)]);
    assert_eq!((old.status(), old.header("Last-Modified")), (200, None), "HTTP dates begin in 1970 here");
    fs::write(tree.www().join("file.txt"), "changed").unwrap();
    assert_eq!(text(ask(&[("If-None-Match", &tag)])), answer(200, "changed"));
}

#[test]
fn a_precompressed_sibling_is_sent_to_clients_that_accept_it() {
    let tree = Tree::new("coding");
    tree.add("app.js", "code").add("app.js.gz", "gzipped").add("app.js.br", "brotli").add("plain.js", "code");
    let service = tree.service();
    let ask = |path: &str, accepted: &str| {
        let response = service.handle(Request::get(path).header("Accept-Encoding", accepted));
        let header = |name: &str| response.header(name).unwrap_or("none").to_owned();
        let facts = [header("Content-Encoding"), header("Vary"), header("Content-Type"), header("ETag")];
        (facts, response.into_text().unwrap())
    };
    let (plain, plain_text) = ask("/static/app.js", "");
    assert_eq!((&plain[..2], plain_text.as_str()), (&["none".to_owned(), "Accept-Encoding".to_owned()][..], "code"));
    for (accepted, coding, body) in
        [("gzip, br", "br", "brotli"), ("gzip", "gzip", "gzipped"), ("br;q=0, *", "gzip", "gzipped")]
    {
        let (facts, text) = ask("/static/app.js", accepted);
        assert_eq!((facts[0].as_str(), facts[1].as_str(), text.as_str()), (coding, "Accept-Encoding", body));
        assert_eq!(facts[2], plain[2], "the type of the file itself");
        assert_ne!(facts[3], plain[3], "a representation of its own");
    }
    assert_eq!(ask("/static/plain.js", "br, gzip").0[..2], ["none", "none"]);
    // Built reproducibly: all files have one time, and two codings the same length.
    tree.add("same.js.br", "1234").add("same.js.gz", "5678").add("same.js", "code");
    for name in ["same.js", "same.js.br", "same.js.gz"] {
        let file = fs::File::options().write(true).open(tree.www().join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    }
    let tags = ["br", "gzip", ""].map(|accepted| ask("/static/same.js", accepted).0[3].clone());
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] != tags[2], "{tags:?}");
}

#[test]
fn a_link_through_the_parent_is_followed_while_other_files_are_renamed() {
    let tree = Tree::new("renames");
    tree.add("a/page", "page").add("b/x", "x");
    symlink("../a/page", tree.www().join("b/page")).unwrap();
    let service = tree.service();
    let (one, other) = (tree.0.join("one"), tree.0.join("other"));
    fs::create_dir(&one).unwrap();
    let done = AtomicBool::new(false);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&one, &other).and_then(|()| fs::rename(&other, &one)).unwrap();
            }
        });
        let statuses = (0..2_000).map(|_| get(&service, "/static/b/page").status()).filter(|s| *s != 200).collect();
        done.store(true, Ordering::Relaxed);
        statuses
    });
    assert!(statuses.is_empty(), "{} of 2,000 are {:?}", statuses.len(), statuses.first());
}

#[test]
fn a_directory_has_settings_and_may_be_the_whole_service() {
    let tree = Tree::new("root");
    tree.add("home.htm", "home").add("a/x.txt", "x");
    let service = Service::new()
        .get("/api", |_| "api")
        .files("/", Files::new(tree.www()).index("home.htm").cache_control("max-age=60"));
    assert_eq!(text(get(&service, "/")), answer(200, "home"));
    assert_eq!(text(get(&service, "/api")), answer(200, "api"));
    let file = get(&service, "/a/x.txt");
    assert_eq!(file.header("Cache-Control"), Some("max-age=60"));
    assert_eq!(text(file), answer(200, "x"));
    assert_eq!(get(&service, "//a/x.txt").status(), 404);
    let missing = Service::new().files("/", Path::new("/no/such/directory").to_owned()).listen("127.0.0.1:0").start();
    assert!(matches!(&missing, Err(StartError::Setting(why)) if why.contains("/no/such/directory")), "{missing:?}");
}

#[test]
fn parts_and_heads_are_framed_as_they_must_be() {
    let tree = Tree::new("wire");
    let large = "0123456789".repeat(20_000);
    tree.add("large.txt", &large);
    let running = tree.service().listen("127.0.0.1:0").start().unwrap();
    let ask = |method: &str, headers: &str| {
        let request = format!("{method} /static/large.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
        let response = exchange(running.address(), &request);
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };
    let (head, body) = ask("GET", "");
    assert!(head.contains("\r\nContent-Length: 200000") && body == large, "{head}");
    let (head, body) = ask("HEAD", "Range: bytes=0-1\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("\r\nContent-Length: 200000") && body.is_empty(),
        "{head}"
    );
    let (head, body) = ask("GET", "Range: bytes=100000-100009\r\n");
    assert!(head.starts_with("HTTP/1.1 206 Partial Content") && head.contains("\r\nContent-Length: 10"), "{head}");
    assert_eq!(body, "0123456789");
    let (head, body) = ask("GET", "If-None-Match: *\r\n");
    assert!(head.starts_with("HTTP/1.1 304 ") && head.contains("\r\nETag: ") && body.is_empty(), "{head}");
    assert!(!head.contains("Content-Length") && !head.contains("\r\nContent-Type"), "{head}");
}

/// The content of the file of the rows below.
const CONTENT: &str = "0123456789a";

/// `Range`, the status, and the body of a 206: the cases of the tests of Go's `http.ServeContent`, with several ranges
/// answered by the whole, and of RFC 9110, section 14.
const RANGES: [(&str, u16, &str); 37] = [
    ("bytes=0-4", 206, "01234"),
    ("bytes=2-", 206, "23456789a"),
    ("bytes=-5", 206, "6789a"),
    ("bytes=3-7", 206, "34567"),
    ("bytes=5-1000", 206, "56789a"),
    ("bytes=0-9", 206, "0123456789"),
    ("bytes=0-10", 206, CONTENT),
    ("bytes=0-11", 206, CONTENT),
    ("bytes=10-11", 206, "a"),
    ("bytes=10-", 206, "a"),
    ("bytes=-1000", 206, CONTENT),
    ("BYTES=0-4", 206, "01234"),
    ("bytes= 0-4", 206, "01234"),
    ("bytes=0-4 ", 206, "01234"),
    ("bytes=0-4,", 206, "01234"),
    ("bytes=0-99999999999999999999999999", 206, CONTENT),
    ("bytes=11-", 416, ""),
    ("bytes=11-12", 416, ""),
    ("bytes=12-12", 416, ""),
    ("bytes=11-100", 416, ""),
    ("bytes=100-", 416, ""),
    ("bytes=100-1000", 416, ""),
    ("bytes=-0", 416, ""),
    ("bytes=99999999999999999999999999-", 416, ""),
    ("bytes=0-0,-2", 200, ""),
    ("bytes=0-1,5-8", 200, ""),
    ("bytes=0-,1-,2-", 200, ""),
    ("bytes=5-2", 200, ""),
    ("bytes=a-b", 200, ""),
    ("bytes=", 200, ""),
    ("bytes=-", 200, ""),
    ("bytes=--1", 200, ""),
    ("bytes=+0-4", 200, ""),
    ("bytes = 0-4", 200, ""),
    ("items=0-4", 200, ""),
    ("0-4", 200, ""),
    (",bytes=0-4", 200, ""),
];

#[test]
fn every_range_of_other_test_suites_has_its_status_and_its_part() {
    let tree = Tree::new("ranges");
    tree.add("f.txt", CONTENT);
    let service = tree.service();
    let mut wrong = Vec::new();
    for (range, status, part) in RANGES {
        let response = service.handle(Request::get("/static/f.txt").header("Range", range));
        let content_range = response.header("Content-Range").map(str::to_owned);
        let shown = match (response.status(), &content_range) {
            (206, Some(of)) => of.ends_with("/11"),
            (416, Some(of)) => of == "bytes */11",
            (200, None) => true,
            _ => false,
        };
        let got = (response.status(), response.into_text().unwrap());
        let body = if status == 200 { CONTENT } else { part };
        if got.0 != status || (status != 416 && got.1 != body) || !shown {
            wrong.push(format!("{range}: {got:?}, {content_range:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), RANGES.len(), wrong.join("\n"));
}

#[test]
fn preconditions_have_their_precedence() {
    const PAST: &str = "Thu, 01 Jan 1970 00:00:01 GMT";
    const FUTURE: &str = "Fri, 31 Dec 2038 23:59:59 GMT";
    let tree = Tree::new("preconditions");
    tree.add("f.txt", CONTENT);
    let service = tree.service();
    let first = service.handle(Request::get("/static/f.txt"));
    let validator = |name: &str| first.header(name).unwrap().to_owned();
    // TAG, WEAK, LIST and DATE stand for those of the file. RFC 9110, sections 13.1, 13.2.2 and 14.2.
    let fill = |value: &str| match value {
        "TAG" => validator("ETag"),
        "WEAK" => format!("W/{}", validator("ETag")),
        "LIST" => format!("\"x\", {}", validator("ETag")),
        "DATE" => validator("Last-Modified"),
        other => other.to_owned(),
    };
    let rows: [(&[(&str, &str)], u16); 35] = [
        (&[("If-Match", "*")], 200),
        (&[("If-Match", "\"x\"")], 412),
        (&[("If-Match", "TAG")], 200),
        (&[("If-Match", "WEAK")], 412),
        (&[("If-Match", "LIST")], 200),
        (&[("If-Unmodified-Since", PAST)], 412),
        (&[("If-Unmodified-Since", FUTURE)], 200),
        (&[("If-Unmodified-Since", "DATE")], 200),
        (&[("If-Unmodified-Since", "nonsense")], 200),
        (&[("If-Match", "TAG"), ("If-Unmodified-Since", PAST)], 200),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", "TAG")], 304),
        (&[("If-None-Match", "WEAK")], 304),
        (&[("If-None-Match", "LIST")], 304),
        (&[("If-None-Match", "\"x\"")], 200),
        (&[("If-Modified-Since", "DATE")], 304),
        (&[("If-Modified-Since", FUTURE)], 304),
        (&[("If-Modified-Since", PAST)], 200),
        (&[("If-Modified-Since", "nonsense")], 200),
        (&[("If-None-Match", "\"x\""), ("If-Modified-Since", "DATE")], 200),
        (&[("If-None-Match", "TAG"), ("If-Modified-Since", PAST)], 304),
        (&[("If-Match", "\"x\""), ("If-None-Match", "TAG")], 412),
        (&[("If-Match", "TAG"), ("If-None-Match", "TAG")], 304),
        (&[("Range", "bytes=0-1"), ("If-Range", "TAG")], 206),
        (&[("Range", "bytes=0-1"), ("If-Range", "WEAK")], 200),
        (&[("Range", "bytes=0-1"), ("If-Range", "\"x\"")], 200),
        (&[("Range", "bytes=0-1"), ("If-Range", PAST)], 200),
        (&[("Range", "bytes=0-1"), ("If-Range", FUTURE)], 200),
        (&[("Range", "bytes=0-1"), ("If-Range", "nonsense")], 200),
        (&[("Range", "bytes=0-1"), ("If-None-Match", "TAG")], 304),
        (&[("Range", "bytes=0-1"), ("If-Match", "\"x\"")], 412),
        (&[("Range", "bytes=99-"), ("If-None-Match", "TAG")], 304),
        (&[("Range", "bytes=99-"), ("If-Range", "\"x\"")], 200),
        (&[("Range", "bytes=0-1"), ("If-Unmodified-Since", FUTURE)], 206),
        (&[("If-Range", "\"x\"")], 200),
    ];
    let mut wrong = Vec::new();
    for (headers, status) in rows {
        let request =
            |request: allout::RequestBuilder, (name, value): &(&str, &str)| request.header(*name, fill(value));
        let got = service.handle(headers.iter().fold(Request::get("/static/f.txt"), request));
        if got.status() != status || (status == 304 && got.header("ETag") != Some(&*validator("ETag"))) {
            wrong.push(format!("{headers:?}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
