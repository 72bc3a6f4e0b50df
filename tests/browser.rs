//! `/status` in a real browser: the style applies, the script runs, nothing is refused or fetched from elsewhere, and what
//! was seen last stays when the service has gone.
//!
//! `cargo test --test browser -- --ignored` needs Chromium. With `BROWSER_PICTURES=FOLDER` it leaves pictures there.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

#[path = "browser/chromium.rs"]
mod chromium;
#[macro_use]
mod common;

use allout::{Check, Restart, ServiceHandle};
use chromium::Browser;
use common::http::Connection;
use common::{LIMIT, Speak as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A service with a bit of everything, and a check that fails on demand.
fn start(engine: &str, failing: &Arc<AtomicBool>) -> ServiceHandle {
    let failing = Arc::clone(failing);
    let cache = move || if failing.load(Ordering::Relaxed) { Err("no answer from <cache-1>") } else { Ok(()) };
    common::engine::service_on(engine)
        .listen("127.0.0.1:0")
        .with_status_route()
        .grace(Duration::from_secs(8))
        .get("/orders/{id}", |_| "an order")
        .get("/reports", |request| request.sleep(LIMIT * 2).map(|()| "a report"))
        .post("/orders", |_| 422)
        .check(Check::new("database", || Ok::<_, String>(())).every(Duration::from_millis(50)))
        .check(Check::new("cache", cache).every(Duration::from_millis(50)))
        .restarted_member("consumer", Restart::new(), allout::Stop::wait)
        .start()
        .expect("it starts")
}

/// Requests for as long as it is not told to end.
fn keep_busy(service: &ServiceHandle, end: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<()>> {
    let address = service.address();
    let work = move |end: Arc<AtomicBool>| {
        let Ok(mut connection) = Connection::open(address, LIMIT) else { return };
        while !end.load(Ordering::Relaxed) {
            for request in ["GET /orders/17", "GET /none", "POST /orders"] {
                let sent = connection.send(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
                let answered = sent.is_ok() && connection.read_response("GET", LIMIT).is_ok_and(|r| !r.closes());
                if !answered {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    };
    (0..4).map(|_| Arc::clone(end)).map(|end| thread::spawn(move || work(end))).collect()
}

fn the_page_works_in_a_browser(engine: &str) {
    let Some(mut browser) = Browser::start(engine) else {
        eprintln!("this machine has no Chromium");
        return;
    };
    let failing = Arc::new(AtomicBool::new(false));
    let service = start(engine, &failing);
    let address = service.address();
    browser.look(1100, 900, false);
    browser.open(&format!("http://{address}/status"));
    browser.wait_until("getComputedStyle(document.querySelector('.tiles')).display === 'grid'");
    // The script loads it anew.
    browser.wait_until("document.querySelector('main h2, .phase strong').textContent === 'Serving'");
    browser.picture(&format!("{engine}-idle.png"));
    let (end, waiting) = (Arc::new(AtomicBool::new(false)), Connection::open(address, LIMIT));
    let mut waiting = waiting.expect("it listens");
    let busy = keep_busy(&service, &end);
    waiting.request("GET", "/reports?key=secret");
    browser.wait_until("document.querySelector('main').textContent.includes('GET /reports')");
    if std::env::var_os("BROWSER_PICTURES").is_some() {
        thread::sleep(Duration::from_secs(20)); // for a history to look at
    }
    browser.picture(&format!("{engine}-busy.png"));
    browser.look(1100, 900, true);
    browser.picture(&format!("{engine}-dark.png"));
    browser.look(360, 740, false);
    let fits = "document.documentElement.scrollWidth <= 360";
    browser.wait_until(fits);
    browser.picture(&format!("{engine}-small.png"));
    failing.store(true, Ordering::Relaxed);
    browser.wait_until("document.querySelector('main').textContent.includes('no answer from <cache-1>')");
    assert_eq!(browser.value("document.querySelectorAll('cache-1').length"), 0);
    browser.look(1100, 900, false);
    browser.picture(&format!("{engine}-failing.png"));
    failing.store(false, Ordering::Relaxed);

    end.store(true, Ordering::Relaxed);
    for thread in busy {
        thread.join().expect("it does not panic");
    }
    service.stopper().stop("a browser test");
    browser.wait_until("document.querySelector('.drain') !== null");
    assert_eq!(browser.value("document.title.startsWith('Draining')"), true);
    browser.picture(&format!("{engine}-drain.png"));
    browser.look(360, 740, true);
    browser.picture(&format!("{engine}-drain-small-dark.png"));
    assert_eq!(browser.complaints(), [""; 0], "while it was there");
    drop(waiting); // the handler is told so, or at the latest at the end of the grace period
    browser.look(1100, 900, false);
    browser.wait_until("!document.querySelector('#lost').hidden");
    assert_eq!(browser.value("document.querySelector('.drain') !== null"), true, "what was seen last stays");
    browser.picture(&format!("{engine}-lost.png"));
    let outcome = service.wait();
    assert!(outcome.abandoned.is_empty(), "{outcome}");
}

mod tiny_http {
    const ENGINE: &str = "tiny-http";
    tests! {
        #[ignore = "needs Chromium"]
        the_page_works_in_a_browser;
    }
}

mod native {
    const ENGINE: &str = "native";
    tests! {
        #[ignore = "needs Chromium"]
        the_page_works_in_a_browser;
    }
}
