//! `allout healthcheck [URL]`: asks a running service whether it is well, for images that have no `curl`.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::env_file::Variables;

const USAGE: &str = "\
Usage: allout healthcheck [URL]

Sends GET to http://HOST[:PORT][/PATH] and exits with 0 if the status is 2xx, and with 1 otherwise, or if there is no
answer within 5 s. HOST is an address or localhost: names are not looked up. Without a URL it asks /healthz at the first
address of ALLOUT_ADMIN_LISTEN or ALLOUT_LISTEN, or at 127.0.0.1:8088. unix:PATH asks it at a Unix socket.";

/// Time for the whole check, from the connection to the status line.
const LIMIT: Duration = Duration::from_secs(5);

/// Most bytes that are read for a status line.
const MAX_STATUS_LINE: usize = 256;

/// Runs the check with the arguments that follow `healthcheck`.
pub fn run() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
    let url = match &words[..] {
        // As the service reads them: a file before the environment.
        [] => match Variables::of_command_line(&[]) {
            Ok(files) => {
                let of_file = |name: &str| files.get(name).map(|variable| variable.value.clone());
                default_url(|name| of_file(name).or_else(|| env::var(name).ok()))
            }
            Err(why) => return failed(&why),
        },
        [word] if !word.starts_with('-') => word.clone(),
        [word] if word == "--help" || word == "-h" => {
            let _ = writeln!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match check(&url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&format!("{url}: {why}")),
    }
}

fn failed(why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "allout: {why}"); // fails if stderr is closed or full: the exit code says it as well
    ExitCode::FAILURE
}

/// The health route where the variables say that the service listens.
fn default_url(variable: impl Fn(&str) -> Option<String>) -> String {
    let listen = variable("ALLOUT_ADMIN_LISTEN").or_else(|| variable("ALLOUT_LISTEN")).unwrap_or_default();
    let first = listen.split(',').next().unwrap_or_default().trim();
    if first.starts_with("unix:") {
        return first.to_owned();
    }
    let address = match first.parse::<SocketAddr>() {
        Ok(mut address) => {
            // The unspecified address is for listening, not for connecting.
            match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                _ => {}
            }
            address.to_string()
        }
        Err(_) if first.starts_with("localhost:") => first.to_owned(),
        Err(_) => "127.0.0.1:8088".to_owned(),
    };
    format!("http://{address}/healthz")
}

/// Host with port, as in `Host`, and the target.
fn split(url: &str) -> Result<(String, String), String> {
    let rest = url.strip_prefix("http://").ok_or("expected http://HOST[:PORT][/PATH]")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let is_text = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_empty() || !is_text(host) || !is_text(path) {
        return Err("expected http://HOST[:PORT][/PATH]".to_owned());
    }
    let host = if has_port { host.to_owned() } else { format!("{host}:80") };
    Ok((host, if path.is_empty() { "/".to_owned() } else { path.to_owned() }))
}

/// Addresses of `HOST:PORT`. No name service is asked: it might take longer than the check may, and a static program
/// would carry its client, a part of the C library, for this alone.
fn addresses(host: &str) -> Result<Vec<SocketAddr>, String> {
    let address = |text: String| text.parse::<SocketAddr>().ok();
    let found: Vec<_> = match host.strip_prefix("localhost:") {
        Some(port) => ["127.0.0.1", "[::1]"].iter().filter_map(|ip| address(format!("{ip}:{port}"))).collect(),
        None => address(host.to_owned()).into_iter().collect(),
    };
    if found.is_empty() {
        Err("names are not looked up: expected an address or localhost".to_owned())
    } else {
        Ok(found)
    }
}

/// A connection to a Unix socket; the type only holds the descriptor.
fn connect_unix(path: &str, limit: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, limit)?;
    Ok(socket.into())
}

/// Errors: there is no answer in time, or its status is not 2xx.
fn check(url: &str) -> Result<(), String> {
    let unix = url.strip_prefix("unix:");
    let (host, path) = unix.map_or_else(|| split(url), |_| Ok(("localhost".to_owned(), "/healthz".to_owned())))?;
    let deadline = Instant::now() + LIMIT;
    // A timeout of zero is refused by the calls below.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = Err(String::new());
    if let Some(path) = unix {
        stream = connect_unix(path, left()).map_err(|error| error.to_string());
    }
    for address in if unix.is_some() { Vec::new() } else { addresses(&host)? } {
        stream = TcpStream::connect_timeout(&address, left()).map_err(|error| error.to_string());
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: allout\r\nConnection: close\r\n\r\n");
    let said = stream.set_write_timeout(Some(left())).and_then(|()| stream.write_all(request.as_bytes()));
    said.map_err(|error| error.to_string())?;
    let (mut line, mut chunk) = (Vec::new(), [0; MAX_STATUS_LINE]);
    while !line.contains(&b'\n') && line.len() < MAX_STATUS_LINE {
        if Instant::now() >= deadline {
            return Err(format!("no answer within {LIMIT:?}"));
        }
        let heard = stream.set_read_timeout(Some(left())).and_then(|()| stream.read(&mut chunk));
        match heard {
            Ok(0) => return Err("the connection was closed without an answer".to_owned()),
            Ok(n) => line.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(format!("no answer within {LIMIT:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let line = String::from_utf8_lossy(&line);
    let line = line.lines().next().unwrap_or_default().trim_end();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    match status {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        _ => Err(format!("answers {line:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_perhaps_a_port_and_a_path() {
        for (url, host, path) in [
            ("http://localhost:8088/healthz", "localhost:8088", "/healthz"),
            ("http://localhost", "localhost:80", "/"),
            ("http://[::1]:9000/readyz?x=1", "[::1]:9000", "/readyz?x=1"),
            ("http://[::1]/", "[::1]:80", "/"),
        ] {
            assert_eq!(split(url), Ok((host.to_owned(), path.to_owned())), "{url}");
        }
        for bad in ["", "localhost:8088", "https://localhost/", "http://", "http:///x", "http://a b/", "http://a/\r\n"]
        {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        let found = |host: &str| addresses(host).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(found("localhost:80"), Ok(vec!["127.0.0.1:80".to_owned(), "[::1]:80".to_owned()]));
        assert_eq!(found("[::1]:90"), Ok(vec!["[::1]:90".to_owned()]));
        assert!(found("example.org:80").is_err_and(|said| said.contains("not looked up")));
    }

    #[test]
    fn without_a_url_the_variables_say_where() {
        let url = |admin: &str, listen: &str| {
            default_url(|name| {
                let value = if name == "ALLOUT_LISTEN" { listen } else { admin };
                (!value.is_empty()).then(|| value.to_owned())
            })
        };
        assert_eq!(url("", ""), "http://127.0.0.1:8088/healthz");
        assert_eq!(url("", "0.0.0.0:80,[::]:80"), "http://127.0.0.1:80/healthz");
        assert_eq!(url("", "[::]:80"), "http://[::1]:80/healthz");
        assert_eq!(url("", "localhost:90"), "http://localhost:90/healthz");
        assert_eq!(url("127.0.0.1:9000", "0.0.0.0:80"), "http://127.0.0.1:9000/healthz");
    }
}
