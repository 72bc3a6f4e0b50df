//! The methods that add members to a service.

use std::sync::Arc;

use crate::crew::member::{Exit, Restarts};
use crate::crew::stop::Stop;
use crate::service::Service;
use crate::service::member::{Kind, Member, Restart};

/// # Members
impl Service {
    /// Adds a member to the crew: a thread of this name (15 bytes at most are kept) that lives and dies with the service.
    ///
    /// Its [`Stop`] tells it to return, once the last request has been answered or the grace period is nearly over; the
    /// service waits for it until the grace period ends. It returns nothing, or a `Result` of nothing. If it ends
    /// before it is told to, for whatever reason, the service stops.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use allout::Service;
    /// let service = Service::new().member("ticker", |stop| {
    ///     while !stop.wait_timeout(Duration::from_secs(1)) {
    ///         println!("tick");
    ///     }
    /// });
    /// ```
    pub fn member<R: Into<Exit>>(self, name: &str, body: impl FnOnce(&Stop) -> R + Send + 'static) -> Service {
        self.add_member(name, Kind::Stays, || {}, body)
    }

    /// As [`member`](Service::member), for a member that waits for something other than its [`Stop`]: `interrupt` is
    /// called once, from another thread, to make it return. It must not block, and must be safe to call when the member
    /// has returned.
    ///
    /// ```
    /// use allout::{Service, channel};
    ///
    /// let (sender, jobs) = channel::unbounded::<Option<String>>();
    /// let wake = sender.clone();
    /// let service = Service::new()
    ///     .post("/jobs", move |request| request.text().map(|job| sender.send(Some(job)).map_or(503, |()| 202)))
    ///     .member_with_interrupt("jobs", move || drop(wake.send(None)), move |_| {
    ///         while let Ok(Some(job)) = jobs.recv() {
    ///             println!("{job}");
    ///         }
    ///     });
    /// ```
    pub fn member_with_interrupt<R: Into<Exit>>(
        self,
        name: &str,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> Service {
        self.add_member(name, Kind::Stays, interrupt, body)
    }

    /// As [`member`](Service::member), for a member that may finish while the service goes on: it warms a cache, for
    /// example. If it fails or panics, the service stops.
    ///
    /// ```
    /// use allout::Service;
    /// let service = Service::new().one_shot("warm up", |_| std::fs::read("/usr/share/dict/words").map(drop));
    /// ```
    pub fn one_shot<R: Into<Exit>>(self, name: &str, body: impl FnOnce(&Stop) -> R + Send + 'static) -> Service {
        self.add_member(name, Kind::MayFinish, || {}, body)
    }

    /// Runs `body` to its end before the service is ready: a migration, for example. Several run one after the other.
    ///
    /// The socket is open already: requests that come wait until it has ended. Members, readiness and systemd's
    /// `READY=1` come after it. If it fails the service does not start. Its [`Stop`] tells it of a stop that is asked
    /// for meanwhile.
    ///
    /// ```
    /// # use allout::Service;
    /// let service = Service::new().before_ready("migrate", |_| std::fs::create_dir_all("/var/lib/shop"));
    /// ```
    pub fn before_ready<R: Into<Exit>>(self, name: &str, body: impl FnOnce(&Stop) -> R + Send + 'static) -> Service {
        self.add_member(name, Kind::BeforeReady, || {}, body)
    }

    /// As [`member`](Service::member), for a member that is started again when it ends, fails or panics: after a pause,
    /// and a limited number of times. After the last one the service stops, with the member's last end as the cause.
    ///
    /// ```
    /// # use allout::{Restart, Service, Stop};
    /// # fn consume(stop: &Stop) -> std::io::Result<()> { stop.wait(); Ok(()) }
    /// let service = Service::new().restarted_member("consumer", Restart::new(), consume);
    /// ```
    pub fn restarted_member<R: Into<Exit>>(
        self,
        name: &str,
        restart: Restart,
        body: impl Fn(&Stop) -> R + Send + 'static,
    ) -> Service {
        let (known, restarts) = (name.to_owned(), Arc::new(Restarts::default()));
        let told = Arc::clone(&restarts);
        let mut service = self.member(name, move |stop| restart.run(&known, &told, stop, |stop| body(stop).into()));
        if let Some(member) = service.members.last_mut() {
            member.restarts = Some(restarts);
        }
        service
    }

    fn add_member<R: Into<Exit>>(
        mut self,
        name: &str,
        kind: Kind,
        interrupt: impl FnOnce() + Send + 'static,
        body: impl FnOnce(&Stop) -> R + Send + 'static,
    ) -> Service {
        self.members.push(Member {
            name: name.to_owned(),
            interrupt: Box::new(interrupt),
            body: Box::new(move |stop| body(stop).into()),
            kind,
            restarts: None,
        });
        self
    }
}
