//! Server-sent events: what one client says, all clients see at once. A client that was away gets what it has missed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use allout::{Event, HandlerError, Outcome, Request, Response, Service, channel};

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>events</title>
<form onsubmit=\"fetch('/say', {method: 'POST', body: this.text.value}); this.reset(); return false\"><input name=text></form>
<ol id=said></ol>
<script>
new EventSource('/events').onmessage = event => {
    const line = document.createElement('li')
    line.textContent = event.data
    document.getElementById('said').append(line)
}
</script>
";

/// What was said, and who listens.
#[derive(Default)]
struct Room(Mutex<(Vec<String>, Vec<channel::Sender<()>>)>);

impl Room {
    fn say(&self, text: String) {
        let mut room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        room.0.push(text);
        // A listener that is behind is told already; one that has left is forgotten.
        room.1.retain(|listener| !matches!(listener.try_send(()), Err(channel::TrySendError::Disconnected(()))));
    }

    /// What was said from this number on.
    fn since(&self, number: usize) -> Vec<String> {
        let room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        room.0.get(number..).unwrap_or_default().to_vec()
    }

    /// The number of what follows this one. All is new to a client that knows a number which nothing has: it saw another
    /// run of this program.
    fn after(&self, last: usize) -> usize {
        let room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last < room.0.len() { last + 1 } else { 0 }
    }

    /// A channel that has a message when something was said.
    fn listen(&self) -> channel::Receiver<()> {
        let (sender, news) = channel::bounded(1);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.push(sender);
        news
    }
}

fn main() -> Outcome {
    service().run()
}

/// The service.
pub fn service() -> Service {
    let room = Arc::new(Room::default());
    let said = Arc::clone(&room);
    Service::new()
        .get("/", |_| Response::html(PAGE))
        .post("/say", move |request| say(&said, request))
        .get("/events", move |request| events(Arc::clone(&room), request))
}

fn say(room: &Room, request: &mut Request) -> Result<(), HandlerError> {
    room.say(request.text()?);
    Ok(())
}

fn events(room: Arc<Room>, request: &Request) -> Response {
    let last = request.header("Last-Event-ID").and_then(|id| id.parse::<usize>().ok());
    Response::events(move |events| {
        let (news, mut next) = (room.listen(), last.map_or(0, |last| room.after(last)));
        events.send(Event::retry(Duration::from_millis(200)))?;
        loop {
            for text in room.since(next) {
                events.send(Event::new(text).id(next.to_string()))?;
                next += 1;
            }
            // An end in a drain is a clean one: the client connects again, and says what it has seen.
            if events.recv(&news)?.is_none() {
                return Ok(());
            }
        }
    })
}
