//! Access to `/shutdown` without a token: for the user that the service runs as, and root, from this machine; not a web
//! page, and not a proxy on the same machine, also one that says nothing of itself.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

mod common;

use common::{Allout, LIMIT, Serving, Speak as _};
use std::process::{Command, Output, Stdio};

fn start(args: &[&str]) -> Serving {
    Allout::new().args(args.iter().copied()).start()
}

/// The status of a request for `/shutdown` with this host; 0 if the connection ended.
fn ask(server: &Serving, host: &str) -> u16 {
    let mut connection = server.connect();
    let to = connection.stream().peer_addr().expect("it is connected");
    connection.say(format!("GET /shutdown HTTP/1.1\r\nHost: {}\r\n\r\n", host.replace("PORT", &to.port().to_string())));
    connection.read_response("GET", LIMIT).map_or(0, |response| response.status)
}

/// Item 21: a page of any site can have a browser ask for an address that means this machine (0.0.0.0).
#[test]
fn where_it_listens_everywhere_that_is_no_name_of_its_own() {
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

/// Item 21: what a proxy does that is configured with the address alone: the request comes from a socket of the
/// proxy's user, for a host that is this machine, and says nothing of the client.
#[test]
fn a_proxy_that_says_nothing_of_itself_cannot_pass_it_on() {
    let mut server = start(&[]);
    let port = server.addr.port();
    for host in [format!("127.0.0.1:{port}"), "localhost".to_owned(), format!("localhost:{port}")] {
        let talk = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /shutdown HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let Some(output) = as_nobody("bash", &["-c", &talk]) else {
            eprintln!("not run: it takes root, and setpriv, to be another user");
            return;
        };
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403 "), "Host: {host}: {answer:?} {said:?}");
        assert!(server.is_alive(), "Host: {host}: it was stopped");
    }
    // The same user may.
    assert_eq!(ask(&server, "localhost:PORT"), 200);
    server.assert_exit(0, LIMIT);
}

/// The mission's own: `curl localhost:PORT/shutdown`, also where it listens on both families.
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
