//! Requests as handlers see them: values of any type, cookies, and the address of the client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects by panicking")]

use std::net::SocketAddr;

#[cfg(feature = "serde")]
use allout::HandlerError;
use allout::{Peer, Request, Service, StartError};

fn text(service: &Service, request: impl Into<Request>) -> (u16, String) {
    let response = service.handle(request);
    (response.status(), response.into_text().unwrap())
}

fn answer(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

#[cfg(feature = "serde")]
mod typed {
    use super::*;

    const FORM: &str = "application/x-www-form-urlencoded";

    #[derive(serde::Deserialize)]
    struct Place {
        room: String,
        seat: u32,
    }

    #[derive(serde::Deserialize)]
    struct Booking {
        name: String,
        #[serde(default)]
        meal: Vec<String>,
        child: Option<u8>,
    }

    fn book(request: &mut Request) -> Result<String, HandlerError> {
        let place: Place = request.params_as()?;
        let query: Booking = request.query_as()?;
        let form: Booking = request.form()?; // with the others held
        let child = form.child.map_or("-".to_owned(), |child| child.to_string());
        Ok(format!("{} {} {} {} {} {child}", place.room, place.seat, query.name, form.name, form.meal.join("+")))
    }

    #[test]
    fn parameters_query_and_form_are_values_at_once() {
        let service = Service::new().post("/{room}/{seat}", book).max_body(60);
        let post = |target: &str, kind: &str, body: &'static str| {
            text(&service, Request::post(target).header("Content-Type", kind).body(body))
        };
        assert_eq!(
            post("/red%20room/7?name=a", FORM, "name=J%C3%BCrgen+M&meal=fish&child=&meal=rice"),
            answer(200, "red room 7 a Jürgen M fish+rice -")
        );
        let utf8 = format!("{FORM}; charset=utf-8");
        assert_eq!(post("/a/7?name=a", &utf8, "name=b&child=3"), answer(200, "a 7 a b  3"));
        assert_eq!(post("/a/x?name=a", FORM, "name=b").0, 404, "no such seat");
        assert_eq!(post("/a/7", FORM, "name=b"), answer(400, "400 missing field `name`\n"));
        assert_eq!(
            post("/a/7?name=a", FORM, "name=b&child=x"),
            answer(422, "422 child: invalid digit found in string\n")
        );
        assert_eq!(post("/a/7?name=a", "application/json", "{}").0, 415);
        assert_eq!(
            post("/a/7?name=a", FORM, "name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").0,
            413
        );
    }
}

#[test]
fn cookies_are_read() {
    let service = Service::new().get("/", |request| request.cookie("session").map(str::to_owned));
    let with = |line: &str| text(&service, Request::get("/").header("Cookie", line));
    assert_eq!(with("theme=dark; session=s3cret"), answer(200, "s3cret"));
    assert_eq!(with("sessions=1").0, 404);
}

#[test]
fn the_client_is_the_one_that_a_trusted_proxy_names() {
    let service = Service::new()
        .get("/", |request| request.client_ip().map(|ip| ip.to_string()))
        .trust_proxies("Forwarded", ["10.0.0.0/8", "unix"]);
    let from = |peer: Peer, value: &str| text(&service, Request::get("/").peer(peer).header("Forwarded", value));
    let proxy = Peer::Inet(SocketAddr::from(([10, 1, 2, 3], 4711)));
    assert_eq!(from(proxy, "for=\"[2001:db8::1]:80\";proto=https, for=10.0.0.1"), answer(200, "2001:db8::1"));
    assert_eq!(from(Peer::Unix, "for=203.0.113.7"), answer(200, "203.0.113.7"));
    let other = Peer::Inet(SocketAddr::from(([192, 0, 2, 1], 1)));
    assert_eq!(from(other, "for=203.0.113.7"), answer(200, "192.0.2.1"));
}

#[test]
fn an_invalid_proxy_keeps_the_service_from_starting() {
    let service = Service::new().trust_proxies("X-Forwarded-For", ["10.0.0.0/33"]).listen("127.0.0.1:0");
    let error = service.start().expect_err("the network cannot be");
    assert!(matches!(&error, StartError::Setting(_)) && error.to_string().contains("10.0.0.0/33"), "{error}");
}
