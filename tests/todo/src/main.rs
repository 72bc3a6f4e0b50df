//! A to-do API over SQLite: `GET`, `POST` on `/todos`, `GET`, `PATCH`, `DELETE` on `/todos/{id}`, with errors as JSON.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allout::{Check, HandlerError, Outcome, Request, Response, Service, StatusError, with_state};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Todo {
    id: i64,
    title: String,
    done: bool,
}

#[derive(Deserialize)]
struct NewTodo {
    title: String,
}

#[derive(Deserialize)]
struct Changes {
    title: Option<String>,
    done: Option<bool>,
}

#[derive(Deserialize)]
struct Page {
    done: Option<bool>,
    #[serde(default)]
    after: i64,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    id: &'a str,
}

/// The database. SQLite has one writer anyway, so that one connection and a lock are enough.
#[derive(Clone)]
struct Todos(Arc<Mutex<Connection>>);

fn main() -> Result<Outcome, Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "todos.db".to_owned());
    let service = service(Todos(Arc::new(Mutex::new(Connection::open(path)?))));
    Ok(service.on_listening(|addresses| println!("listening on http://{}", addresses[0])).run())
}

fn service(todos: Todos) -> Service {
    let (migrated, checked, closed) = (todos.clone(), todos.clone(), todos.clone());
    Service::new()
        .get("/todos", with_state(&todos, list))
        .post("/todos", with_state(&todos, create))
        .get("/todos/{id}", with_state(&todos, show))
        .patch("/todos/{id}", with_state(&todos, update))
        .delete("/todos/{id}", with_state(&todos, delete))
        .before_ready("migrate", move |_| migrated.migrate())
        .check(Check::new("database", move || checked.lock().execute_batch("SELECT 1")))
        .after_drain(move || drop(closed.lock().execute_batch("PRAGMA optimize")))
        .on_error(|request, error| Response::json(&Failure { error: error.reason, id: request.id() }))
}

fn list(todos: &Todos, request: &mut Request) -> Result<Response, HandlerError> {
    let Page { done, after, limit } = request.query_as()?;
    let database = todos.lock();
    let mut all = database.prepare_cached(
        "SELECT id, title, done FROM todos WHERE id > ?1 AND (?2 IS NULL OR done = ?2) ORDER BY id LIMIT ?3",
    )?;
    let found: Result<Vec<Todo>, _> = all.query_map(params![after, done, limit.unwrap_or(100)], todo)?.collect();
    Response::json(&found?)
}

fn create(todos: &Todos, request: &mut Request) -> Result<Response, HandlerError> {
    let NewTodo { title } = request.json()?;
    if title.trim().is_empty() {
        Err(StatusError::new(422, "a title is needed"))?;
    }
    let insert = "INSERT INTO todos (title) VALUES (?1) RETURNING id, title, done";
    let made = todos.lock().query_row(insert, [title], todo)?;
    Ok(Response::json(&made)?.with_status(201).with_header("Location", format!("/todos/{}", made.id)))
}

fn show(todos: &Todos, request: &mut Request) -> Result<Response, HandlerError> {
    let id: i64 = request.parse_param("id")?;
    let found = todos.lock().query_row("SELECT id, title, done FROM todos WHERE id = ?1", [id], todo).optional()?;
    Response::json(&found.ok_or(StatusError::new(404, "there is no such to-do"))?)
}

fn update(todos: &Todos, request: &mut Request) -> Result<Response, HandlerError> {
    let (id, Changes { title, done }) = (request.parse_param::<i64>("id")?, request.json()?);
    let update = "UPDATE todos SET title = coalesce(?2, title), done = coalesce(?3, done) WHERE id = ?1
                  RETURNING id, title, done";
    let changed = todos.lock().query_row(update, params![id, title, done], todo).optional()?;
    Response::json(&changed.ok_or(StatusError::new(404, "there is no such to-do"))?)
}

fn delete(todos: &Todos, request: &mut Request) -> Result<Response, HandlerError> {
    let id: i64 = request.parse_param("id")?;
    match todos.lock().execute("DELETE FROM todos WHERE id = ?1", [id])? {
        0 => Err(StatusError::new(404, "there is no such to-do"))?,
        _ => Ok(Response::empty(204)),
    }
}

fn todo(row: &Row<'_>) -> rusqlite::Result<Todo> {
    Ok(Todo { id: row.get(0)?, title: row.get(1)?, done: row.get(2)? })
}

impl Todos {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn migrate(&self) -> rusqlite::Result<()> {
        self.lock().execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE IF NOT EXISTS todos (
                 id INTEGER PRIMARY KEY,
                 title TEXT NOT NULL,
                 done INTEGER NOT NULL DEFAULT FALSE
             ) STRICT;",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        let todos = Todos(Arc::new(Mutex::new(Connection::open_in_memory().unwrap())));
        todos.migrate().unwrap();
        super::service(todos)
    }

    fn ask(service: &Service, request: impl Into<Request>) -> (u16, String) {
        let response = service.handle(request);
        (response.status(), response.into_text().unwrap())
    }

    fn answer(status: u16, text: &str) -> (u16, String) {
        (status, text.to_owned())
    }

    #[test]
    fn to_dos_are_made_shown_changed_and_deleted() {
        let service = service();
        let made = service.handle(Request::post("/todos").body(r#"{"title": "tea"}"#));
        assert_eq!((made.status(), made.header("Location")), (201, Some("/todos/1")));
        assert_eq!(made.into_text().unwrap(), r#"{"id":1,"title":"tea","done":false}"#);
        assert_eq!(ask(&service, Request::post("/todos").body(r#"{"title": "milk"}"#)).0, 201);
        let done = r#"{"id":1,"title":"tea","done":true}"#;
        assert_eq!(ask(&service, Request::patch("/todos/1").body(r#"{"done": true}"#)), answer(200, done));
        assert_eq!(ask(&service, Request::get("/todos/1")), answer(200, done));
        assert_eq!(ask(&service, Request::get("/todos?done=true")), answer(200, &format!("[{done}]")));
        assert_eq!(ask(&service, Request::get("/todos?after=1&limit=1")).1.matches("milk").count(), 1);
        assert_eq!(ask(&service, Request::delete("/todos/1")), answer(204, ""));
        assert_eq!(ask(&service, Request::get("/readyz")).0, 200);
    }

    #[test]
    fn errors_are_json_with_the_id_of_the_request() {
        let service = service();
        let fails = |request: allout::RequestBuilder, status: u16, reason: &str| {
            let expected = format!(r#"{{"error":"{reason}","id":"7"}}"#);
            assert_eq!(ask(&service, request.header("X-Request-Id", "7")), answer(status, &expected));
        };
        fails(Request::get("/todos/1"), 404, "there is no such to-do");
        fails(Request::delete("/todos/1"), 404, "there is no such to-do");
        fails(Request::get("/todos/one"), 404, "id is missing or malformed");
        fails(Request::get("/todos?limit=x"), 400, "limit: invalid digit found in string");
        fails(Request::post("/todos").body(r#"{"title": " "}"#), 422, "a title is needed");
        fails(Request::post("/todos").body("{}"), 422, "missing field `title` at line 1 column 2");
        fails(Request::put("/todos"), 405, "Method Not Allowed");
    }
}
