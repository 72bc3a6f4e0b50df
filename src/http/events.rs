//! Server-sent events, as the HTML standard has them (section 9.2).

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::response::Response;
use super::stream::StreamWriter;

/// Time without an event after which a comment is sent: proxies close connections on which nothing moves, nginx after
/// 60 s (`proxy_read_timeout`); the HTML standard recommends about 15 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Time between two checks of whether the client is still there, while there is nothing to send.
const CLIENT_CHECK: Duration = Duration::from_secs(1);

/// An event of [`Response::events`]: a text, and what the client's `EventSource` knows it by.
///
/// ```
/// use allout::Event;
/// let event = Event::new("two\nlines").name("tick").id("7");
/// assert_eq!(event.to_string(), "event: tick\nid: 7\ndata: two\ndata: lines\n\n");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    data: Option<String>,
    name: Option<String>,
    id: Option<String>,
    retry: Option<Duration>,
}

impl Event {
    /// An event with this text; its line breaks arrive as `\n`.
    ///
    /// ```
    /// assert_eq!(allout::Event::new("hello").to_string(), "data: hello\n\n");
    /// ```
    pub fn new(data: impl Into<String>) -> Event {
        Event { data: Some(data.into()), ..Event::default() }
    }

    /// An event with `value` as JSON.
    ///
    /// ```
    /// assert_eq!(allout::Event::json(&[1, 2])?.to_string(), "data: [1,2]\n\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The value cannot be written as JSON (a map whose keys are no strings, for example).
    #[cfg(feature = "json")]
    pub fn json(value: &impl serde::Serialize) -> io::Result<Event> {
        Ok(Event::new(serde_json::to_string(value)?))
    }

    /// Tells the client the time after which it connects again when the stream has ended; it is no event.
    ///
    /// ```
    /// let event = allout::Event::retry(std::time::Duration::from_millis(200));
    /// assert_eq!(event.to_string(), "retry: 200\n\n");
    /// ```
    pub fn retry(after: Duration) -> Event {
        Event { retry: Some(after), ..Event::default() }
    }

    /// Sets its name, by which the client can listen for it. Default: `message`. A line break in it is left out.
    ///
    /// ```
    /// assert_eq!(allout::Event::new("3").name("sold").to_string(), "event: sold\ndata: 3\n\n");
    /// ```
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Event {
        self.name = Some(one_line(name.into()));
        self
    }

    /// Sets its id, which the client sends as `Last-Event-ID` when it connects again. A line break or NUL in it is left
    /// out.
    ///
    /// ```
    /// assert_eq!(allout::Event::new("3").id("17").to_string(), "id: 17\ndata: 3\n\n");
    /// ```
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Event {
        self.id = Some(one_line(id.into()));
        self
    }
}

fn one_line(mut text: String) -> String {
    text.retain(|c| !matches!(c, '\r' | '\n' | '\0'));
    text
}

impl<T: Into<String>> From<T> for Event {
    fn from(data: T) -> Event {
        Event::new(data)
    }
}

/// The event as it is sent.
impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = &self.name {
            writeln!(f, "event: {name}")?;
        }
        if let Some(id) = &self.id {
            writeln!(f, "id: {id}")?;
        }
        if let Some(retry) = self.retry {
            writeln!(f, "retry: {}", retry.as_millis())?;
        }
        for line in self.data.iter().flat_map(|data| lines(data)) {
            writeln!(f, "data: {line}")?;
        }
        f.write_char('\n')
    }
}

/// The lines of a text: each of CR LF, LF and CR ends one.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Sends events; see [`Response::events`].
#[derive(Debug)]
pub struct EventWriter<'w, 's> {
    writer: &'w mut StreamWriter<'s>,
    keep_alive: Duration,
    last: Instant,
}

impl<'s> EventWriter<'_, 's> {
    /// Sends an event now.
    ///
    /// ```
    /// let response = allout::Response::events(|events| events.send("hello"));
    /// assert_eq!(response.into_text()?, "data: hello\n\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The client has left or does not read, or the grace period is over.
    pub fn send(&mut self, event: impl Into<Event>) -> io::Result<()> {
        self.send_text(&event.into().to_string())
    }

    /// Sends a comment now, which the client ignores.
    ///
    /// ```
    /// let response = allout::Response::events(|events| events.comment("nothing yet"));
    /// assert_eq!(response.into_text()?, ": nothing yet\n\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send`](EventWriter::send).
    pub fn comment(&mut self, text: &str) -> io::Result<()> {
        let mut comment = String::new();
        for line in lines(text) {
            let _ = writeln!(comment, ": {line}"); // a `String` takes everything
        }
        comment.push('\n');
        self.send_text(&comment)
    }

    fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(text.as_bytes())?;
        self.writer.flush()?;
        self.last = Instant::now();
        Ok(())
    }

    /// Sets the time without an event after which [`wait`](EventWriter::wait) and [`recv`](EventWriter::recv) send a
    /// comment, so that no proxy takes the connection for dead. Default: 15 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::Response;
    /// let response = Response::events(|events| {
    ///     events.keep_alive(Duration::from_secs(5));
    ///     while events.wait(Duration::from_secs(60))? {
    ///         events.send("a minute")?;
    ///     }
    ///     Ok(())
    /// });
    /// ```
    pub fn keep_alive(&mut self, interval: Duration) {
        self.keep_alive = interval;
    }

    /// Waits for a time. False if the stream should end because the service is draining.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::Response;
    /// let clock = Response::events(|events| {
    ///     while events.wait(Duration::from_secs(1))? {
    ///         events.send("tick")?;
    ///     }
    ///     Ok(())
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// The client has left.
    pub fn wait(&mut self, span: Duration) -> io::Result<bool> {
        let until = Instant::now().checked_add(span);
        let waited = self.recv_until(&never::<()>(), until)?;
        Ok(waited == Waited::TimedOut)
    }

    /// Waits for a message to send. `None` if the stream should end, because the service is draining or all senders are
    /// gone.
    ///
    /// ```
    /// use allout::{Response, channel};
    /// let (sender, messages) = channel::unbounded::<String>();
    /// sender.send("hello".to_owned()).unwrap();
    /// drop(sender);
    /// let response = Response::events(move |events| {
    ///     while let Some(message) = events.recv(&messages)? {
    ///         events.send(message)?;
    ///     }
    ///     Ok(())
    /// });
    /// assert_eq!(response.into_text()?, "data: hello\n\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The client has left.
    pub fn recv<T>(&mut self, messages: &Receiver<T>) -> io::Result<Option<T>> {
        match self.recv_until(messages, None)? {
            Waited::Message(message) => Ok(Some(message)),
            Waited::TimedOut | Waited::End => Ok(None),
        }
    }

    fn recv_until<T>(&mut self, messages: &Receiver<T>, until: Option<Instant>) -> io::Result<Waited<T>> {
        loop {
            let now = Instant::now();
            let left = until.map(|until| until.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(if self.writer.is_draining() { Waited::End } else { Waited::TimedOut });
            }
            let silent = now.saturating_duration_since(self.last);
            let slice = self.keep_alive.saturating_sub(silent).min(CLIENT_CHECK).min(left.unwrap_or(CLIENT_CHECK));
            select! {
                recv(messages) -> message => return Ok(message.map_or(Waited::End, Waited::Message)),
                recv(self.writer.stop().draining()) -> _ => return Ok(Waited::End),
                default(slice) => {}
            }
            if self.writer.is_client_gone() {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client has left"));
            }
            if self.last.elapsed() >= self.keep_alive {
                self.comment("")?;
            }
        }
    }

    /// The writer of the response's body.
    pub fn writer(&mut self) -> &mut StreamWriter<'s> {
        self.writer
    }
}

/// The end of a wait.
#[derive(Debug, PartialEq, Eq)]
enum Waited<T> {
    Message(T),
    TimedOut,
    /// The service is draining, or all senders are gone.
    End,
}

/// # Server-sent events
impl Response {
    /// 200, with server-sent events for the client's `EventSource`, as a function sends them on a worker's thread.
    ///
    /// A stream occupies its worker, so there can be no more than the service has [workers](crate::Service::workers).
    /// It should end when [`wait`](EventWriter::wait) or [`recv`](EventWriter::recv) says so: then the service drains,
    /// and the client connects again, to the next instance. The header `Last-Event-ID` of that request has the id of
    /// the last event that the client has seen.
    ///
    /// ```
    /// use std::time::Duration;
    /// use allout::{Event, Response, Service};
    ///
    /// let service = Service::new().get("/clock", |request| {
    ///     let first = request.header("Last-Event-ID").and_then(|id| id.parse().ok()).map_or(0, |id: u64| id + 1);
    ///     Response::events(move |events| {
    ///         for n in first.. {
    ///             events.send(Event::new("tick").id(n.to_string()))?;
    ///             if !events.wait(Duration::from_secs(1))? {
    ///                 break;
    ///             }
    ///         }
    ///         Ok(())
    ///     })
    /// });
    /// ```
    pub fn events(send: impl FnOnce(&mut EventWriter<'_, '_>) -> io::Result<()> + Send + 'static) -> Response {
        Response::stream(move |writer| send(&mut EventWriter { writer, keep_alive: KEEP_ALIVE, last: Instant::now() }))
            .with_header("Content-Type", "text/event-stream")
            .with_header("Cache-Control", "no-store")
            .with_header("X-Accel-Buffering", "no") // tells nginx to pass on each event at once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_several_lines_is_one_event() {
        assert_eq!(Event::new("a\nb\r\nc\rd").to_string(), "data: a\ndata: b\ndata: c\ndata: d\n\n");
        assert_eq!(Event::new("").to_string(), "data: \n\n");
        assert_eq!(Event::from("a\n").to_string(), "data: a\ndata: \n\n");
    }

    #[test]
    fn names_and_ids_cannot_make_a_line() {
        let event = Event::new("x").name("a\ndata: b").id("1\r\n\0");
        assert_eq!(event.to_string(), "event: adata: b\nid: 1\ndata: x\n\n");
        assert_eq!(Event::retry(Duration::from_millis(2500)).to_string(), "retry: 2500\n\n");
    }

    #[test]
    fn events_and_comments_are_written_in_order() {
        let (sender, messages) = crossbeam_channel::unbounded();
        let response = Response::events(move |events| {
            events.comment("a\nb")?;
            while let Some(message) = events.recv(&messages)? {
                events.send(Event::new(message))?;
            }
            Ok(())
        });
        sender.send("one").unwrap();
        sender.send("two").unwrap();
        drop(sender);
        assert_eq!(response.content_type(), Some("text/event-stream"));
        assert_eq!(response.into_text().unwrap(), ": a\n: b\n\ndata: one\n\ndata: two\n\n");
    }

    #[test]
    fn a_wait_sends_comments_as_keep_alive() {
        let response = Response::events(|events| {
            events.keep_alive(Duration::from_millis(1));
            assert!(events.wait(Duration::from_millis(30))?);
            Ok(())
        });
        assert!(response.into_text().unwrap().starts_with(": \n\n: \n\n"));
    }
}
