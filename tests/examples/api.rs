//! A JSON API with state: what closures capture.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use allout::{HandlerError, Outcome, Request, Response, Service};
use serde::{Deserialize, Serialize};

/// What the API is about.
#[derive(Clone, Serialize, Deserialize)]
pub struct Item {
    name: String,
    #[serde(default)]
    done: bool,
}

#[derive(Default)]
struct Items {
    by_id: Mutex<(u64, BTreeMap<u64, Item>)>,
}

fn main() -> Outcome {
    service().run()
}

/// The service.
pub fn service() -> Service {
    let items = Arc::new(Items::default());
    // A handler owns what it uses; an `Arc` lets several of them own the same.
    let with = |handler: fn(&Items, &mut Request) -> Result<Response, HandlerError>| {
        let items = Arc::clone(&items);
        move |request: &mut Request| handler(&items, request)
    };
    Service::new()
        .get("/items", with(list))
        .post("/items", with(add))
        .get("/items/{id}", with(get))
        .put("/items/{id}", with(replace))
        .delete("/items/{id}", with(remove))
        .fallback(|request: &mut Request| (404, format!("there is no {}\n", request.path())))
}

fn list(items: &Items, _: &mut Request) -> Result<Response, HandlerError> {
    Response::json(&items.lock().1)
}

fn add(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let item: Item = request.json()?; // no JSON, or no item: 422; too large: 413
    let mut all = items.lock();
    all.0 += 1;
    let id = all.0;
    all.1.insert(id, item);
    Ok(Response::empty(201).with_header("Location", format!("/items/{id}")))
}

fn get(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let id = id(request)?;
    Response::json(items.lock().1.get(&id).ok_or(Response::from(404))?)
}

fn replace(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let (id, item) = (id(request)?, request.json()?);
    *items.lock().1.get_mut(&id).ok_or(Response::from(404))? = item;
    Ok(Response::empty(204))
}

fn remove(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let id = id(request)?;
    items.lock().1.remove(&id).ok_or(Response::from(404))?;
    Ok(Response::empty(204))
}

fn id(request: &Request) -> Result<u64, Response> {
    request.param("id").and_then(|id| id.parse().ok()).ok_or(Response::from(404))
}

impl Items {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, BTreeMap<u64, Item>)> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
