//! Access to `/shutdown` without a token: for the user that the service runs as, and root, from this machine; not a web
//! page, and not a proxy on the same machine, also one that says nothing of itself.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::{Allout, LIMIT, Serving, Speak as _, wait_until};
use rustix::process::Signal;
use std::process::{Command, Output, Stdio};

fn start(args: &[&str]) -> Serving {
    Allout::new().args(args.iter().copied()).start()
}

/// The status of a request for `/shutdown` with this host; 0 if the connection ended.
fn ask(server: &Serving, host: &str) -> u16 {
    let mut connection = server.connect();
    let to = connection.stream().peer_addr().expect("it is connected");
    connection
        .send_raw(format!("GET /shutdown HTTP/1.1\r\nHost: {}\r\n\r\n", host.replace("PORT", &to.port().to_string())));
    connection.read_response("GET", LIMIT).map_or(0, |response| response.status)
}

/// A page of any site can have a browser ask for an address that means this machine (0.0.0.0).
#[test]
fn the_unspecified_address_is_no_host_of_this_machine() {
    for (listen, hosts) in [
        ("0.0.0.0:0", &["0.0.0.0:PORT", "0.0.0.0", "0:PORT", "[::]:PORT"][..]),
        ("[::]:0", &["[::]:PORT", "[::ffff:0.0.0.0]:PORT", "0.0.0.0:PORT"][..]),
    ] {
        let mut server = start(&["--listen", listen]);
        // The wildcard address itself can be connected to: it means this machine.
        for host in hosts {
            let status = ask(&server, host);
            assert!(matches!(status, 400 | 403), "{listen}, Host: {host}: {status}");
            assert!(server.is_alive(), "{listen}, Host: {host}: it was stopped");
        }
        assert_eq!(server.get("/healthz").status, 200);
        assert_eq!(ask(&server, "localhost:PORT"), 200, "{listen}");
        server.assert_exit(0, LIMIT);
    }
}

/// Runs this as another user, as which an ordinary proxy would run. None: this user may not.
fn as_nobody(program: &str, args: &[&str]) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", program]).args(args).stdin(Stdio::null());
    command.output().ok().filter(|output| output.status.code() != Some(127))
}

/// As another user: a request for `/shutdown` over a socket of its own. None: this user may not be another.
fn ask_as_nobody(port: u16, host: &str) -> Option<String> {
    let talk = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /shutdown HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let Some(output) = as_nobody("bash", &["-c", &talk]) else {
        eprintln!("not run: it takes root, and setpriv, to be another user");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// What a proxy does that is configured with the address alone: the request comes from a socket of the
/// proxy's user, for a host that is this machine, and says nothing of the client.
#[test]
fn a_proxy_that_says_nothing_of_itself_cannot_pass_it_on() {
    let mut server = start(&[]);
    let port = server.addr.port();
    for host in [format!("127.0.0.1:{port}"), "localhost".to_owned(), format!("localhost:{port}")] {
        let Some(answer) = ask_as_nobody(port, &host) else { return };
        assert!(answer.starts_with("HTTP/1.1 403 "), "Host: {host}: {answer:?}");
        assert!(server.is_alive(), "Host: {host}: it was stopped");
    }
    // The same user may.
    assert_eq!(ask(&server, "localhost:PORT"), 200);
    server.assert_exit(0, LIMIT);
}

/// A stop replaces a re-exec, so `/shutdown` still has an effect while one waits for a slow request.
#[test]
fn another_user_cannot_stop_it_during_a_reexec_either() {
    let mut server = start(&["--timeout-delay", "3s"]);
    let mut slow = server.connect();
    slow.request("GET", "/timeout");
    server.wait_until_read(&slow);
    server.signal(Signal::HUP);
    server.wait_for_line("one out, all out", LIMIT);
    let Some(answer) = ask_as_nobody(server.addr.port(), "localhost") else { return };
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer:?}");
    assert_eq!(slow.expect_response("GET").status, 200);
    wait_until(LIMIT, "the next image to serve", || server.log().matches("listening on ").count() == 2);
    assert_eq!(ask(&server, "localhost:PORT"), 200);
    server.assert_exit(0, LIMIT);
}

/// A client can make the value of a header that a proxy extends unreadable, but cannot hide the header.
#[test]
fn a_header_of_a_proxy_counts_whatever_its_value_is() {
    let mut server = start(&["--engine", "native"]);
    for header in [&b"X-Forwarded-For: \xff, 192.0.2.1"[..], b"Via: \xe9", b"X-Forwarded-\xc3\xa9: 1", b"Origin: \xff"]
    {
        let mut connection = server.connect();
        let request = [b"GET /shutdown HTTP/1.1\r\nHost: localhost\r\n", header, b"\r\n\r\n"].concat();
        connection.send(&request).expect("it is sent");
        let response = connection.read_response("GET", LIMIT).expect("it is answered");
        assert!(matches!(response.status, 400 | 403), "{}: {response:?}", header.escape_ascii());
        assert!(server.is_alive(), "{}: it was stopped", header.escape_ascii());
    }
    assert_eq!(ask(&server, "localhost:PORT"), 200);
    server.assert_exit(0, LIMIT);
}

/// `curl localhost:PORT/shutdown`, also if the service listens on both families.
#[test]
fn curl_on_the_same_machine_stops_it() {
    for (listen, host) in [("127.0.0.1:0", "localhost"), ("0.0.0.0:0", "localhost"), ("127.0.0.1:0", "127.0.0.1")] {
        let mut server = start(&["--listen", listen]);
        let url = format!("http://{host}:{}/shutdown", server.addr.port());
        let Ok(output) = Command::new("curl").args(["-s", "-m", "10", &url]).output() else {
            eprintln!("not run: there is no curl");
            return;
        };
        assert_eq!(String::from_utf8_lossy(&output.stdout), "one out, all out\n", "{url}, {listen}");
        server.assert_exit(0, LIMIT);
    }
}
