//! A JSON API whose handlers share state.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use allout::{HandlerError, Outcome, Request, Response, Service, with_state};
use serde::{Deserialize, Serialize};

/// A thing to do.
#[derive(Clone, Serialize, Deserialize)]
pub struct Item {
    name: String,
    #[serde(default)]
    done: bool,
}

/// The items by their ids, and the last id that was given.
#[derive(Clone, Default)]
struct Items(Arc<Mutex<(u64, BTreeMap<u64, Item>)>>);

fn main() -> Outcome {
    service().run()
}

/// The service.
pub fn service() -> Service {
    let items = Items::default();
    Service::new()
        .get("/items", with_state(&items, list))
        .post("/items", with_state(&items, add))
        .get("/items/{id}", with_state(&items, get))
        .put("/items/{id}", with_state(&items, replace))
        .delete("/items/{id}", with_state(&items, remove))
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
    let id: u64 = request.parse_param("id")?;
    Response::json(items.lock().1.get(&id).ok_or(Response::from(404))?)
}

fn replace(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let (id, item) = (request.parse_param::<u64>("id")?, request.json()?);
    *items.lock().1.get_mut(&id).ok_or(Response::from(404))? = item;
    Ok(Response::empty(204))
}

fn remove(items: &Items, request: &mut Request) -> Result<Response, HandlerError> {
    let id: u64 = request.parse_param("id")?;
    items.lock().1.remove(&id).ok_or(Response::from(404))?;
    Ok(Response::empty(204))
}

impl Items {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, BTreeMap<u64, Item>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
