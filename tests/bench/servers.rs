//! The servers that are compared: allout's two engines, two bounds that this program serves itself, and peers that
//! `versus.sh` builds. Each runs as a process of its own, so that its CPU time and its memory can be told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use socket2::SockRef;

/// What is asked of every server.
pub const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What the bounds answer: as long as allout's response.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: allout\r\nContent-Type: text/plain; charset=utf-8\r\n\
    X-Content-Type-Options: nosniff\r\nX-Request-Id: 0123456789-1\r\nCache-Control: no-store\r\n\
    Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nok\n";

/// Longest time from the start of a server to its first response.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A way to start a server.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Kind {
    /// An engine of allout, with further options.
    pub fn allout(name: &'static str, engine: &str, options: &[&str]) -> Kind {
        let engine = ["--engine", engine].into_iter().chain(options.iter().copied());
        let arguments = engine.chain(["--listen"]).map(String::from).collect();
        Kind { name, program: env!("CARGO_BIN_EXE_allout").into(), arguments }
    }

    /// A server of this program.
    fn own(name: &'static str) -> io::Result<Kind> {
        let arguments = vec!["serve".into(), name.into()];
        Ok(Kind { name, program: std::env::current_exe()?, arguments })
    }

    /// All that are there. Peers are programs in `peers` that take an address.
    pub fn all(peers: &Path, options: &[&str]) -> io::Result<Vec<Kind>> {
        let mut all = vec![Kind::allout("native", "native", options), Kind::allout("tiny-http", "tiny-http", options)];
        for name in ["axum", "actix-web", "go"] {
            let program = peers.join(name);
            if program.exists() {
                all.push(Kind { name, program, arguments: Vec::new() });
            } else {
                eprintln!("no {name}: `tests/bench/versus.sh` builds it");
            }
        }
        all.extend([Kind::own("thread")?, Kind::own("bare")?]);
        Ok(all)
    }

    pub fn is_allout(&self) -> bool {
        self.program == Path::new(env!("CARGO_BIN_EXE_allout"))
    }

    /// Starts it, and waits for its first response.
    pub fn start(&self) -> io::Result<Server> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(address.to_string());
        command.env("RUST_LOG", "off").stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Server { name: self.name, address, child: command.spawn()?, started_within: Duration::ZERO };
        while began.elapsed() < START_LIMIT {
            if ask(address).is_ok() {
                server.started_within = began.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("{} did not start: {status}", self.name)));
            }
        }
        Err(io::Error::other(format!("{} did not answer within {START_LIMIT:?}", self.name)))
    }
}

/// Asks once, over a connection that stays open.
pub fn ask(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    stream.write_all(REQUEST)?;
    if stream.read(&mut [0; 4096])? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(stream) }
}

/// A server that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    pub started_within: Duration,
    child: Child,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time that it has taken. The kernel tells it in hundredths of a second.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // After the name, which may hold anything: proc_pid_stat(5).
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
    }

    /// A figure of its memory in KiB: `VmRSS` now, `VmHWM` at most.
    pub fn memory(&self, field: &str) -> io::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        figure.ok_or_else(|| io::Error::other(format!("no {field}")))
    }

    /// Waits until it has ended, after another has stopped it.
    pub fn wait(mut self) -> io::Result<()> {
        let began = Instant::now();
        while self.child.try_wait()?.is_none() && began.elapsed() < START_LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL); // it may have ended
        }
        let _ = self.child.wait(); // as above
    }
}

/// Serves as a bound until it is killed. `thread`: a thread for each connection, and the same bytes for whatever is asked,
/// the bound for any server that has a thread for each connection. `bare`: `tiny_http` with as little as can be on top,
/// the bound for any server on it.
pub fn serve(name: &str, address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    SockRef::from(&listener).set_tcp_nodelay(true)?; // connections inherit it
    if name == "bare" {
        let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        for request in server.incoming_requests() {
            let mut writer = request.into_writer();
            let _ = writer.write_all(RESPONSE).and_then(|()| writer.flush()); // fails if the client has left
        }
        return Ok(());
    }
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || -> io::Result<()> {
            let mut request = [0; 4096];
            loop {
                let length = stream.read(&mut request)?;
                if length == 0 {
                    return Ok(());
                }
                stream.write_all(RESPONSE)?;
                if request[..length].windows(17).any(|part| part == b"Connection: close") {
                    return Ok(());
                }
            }
        });
    }
    Ok(())
}
