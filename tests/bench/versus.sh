#!/usr/bin/env bash
# allout's engines beside axum, actix-web and Go: builds these peers, then measures all of them in turn.
#
#   tests/bench/versus.sh [PART...] [--seconds N] [--rounds N] [--stops N] [--only NAME,NAME]
#
# Parts are steady, connect, memory, idle, stop, blocking and receivers; all of them if none is named. The peers answer
# /healthz with the bytes of allout's response. They are written to and built in target/peers (PEERS names another
# folder), each only if its tool is there: cargo, which fetches axum and actix-web, and go (Debian: golang-go). They are
# packages of their own, so that no async runtime is among allout's dependencies. The load is wrk's (Debian: wrk), or
# that of a client of the benchmark's own. `cargo bench` measures the same without building peers.
set -euo pipefail
cd "$(dirname "$0")/../.."
peers=${PEERS:-target/peers}
mkdir -p "$peers"
peers=$(realpath "$peers")

package() { # NAME DEPENDENCIES: a package with the source on standard input, built if it is not there yet
    mkdir -p "$peers/src/$1/src"
    printf '[package]\nname = "%s"\nversion = "0.1.0"\nedition = "2021"\n\n[dependencies]\n%s\n\n[profile.release]\nlto = "fat"\ncodegen-units = 1\n\n[workspace]\n' \
        "$1" "$2" >"$peers/src/$1/Cargo.toml"
    cat >"$peers/src/$1/src/main.rs"
    [ -x "$peers/$1" ] && return
    (cd "$peers/src/$1" && CARGO_TARGET_DIR=$peers/src/target cargo build --release --quiet) &&
        cp "$peers/src/target/release/$1" "$peers/$1" || echo "$1 cannot be built" >&2
}

package axum 'axum = { version = "0.8", default-features = false, features = ["http1", "tokio"] }
tokio = { version = "1", features = ["rt-multi-thread", "net", "macros", "signal"] }' <<'RUST'
use axum::{http::header, routing::get, Router};
use tokio::signal::unix::{signal, SignalKind};

#[tokio::main]
async fn main() {
    let address = std::env::args().nth(1).expect("an address");
    let headers = [
        (header::SERVER, "allout"),
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::HeaderName::from_static("x-request-id"), "0123456789-1"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let app = Router::new().route("/healthz", get(move || async move { (headers, "ok\n") }));
    let listener = tokio::net::TcpListener::bind(address).await.expect("the address is free");
    let mut terminate = signal(SignalKind::terminate()).expect("a handler");
    let stop = async move {
        terminate.recv().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await.expect("it serves");
}
RUST

package actix-web 'actix-web = { version = "4", default-features = false, features = ["macros"] }' <<'RUST'
use actix_web::{get, App, HttpResponse, HttpServer};

#[get("/healthz")]
async fn healthz() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("server", "allout"))
        .insert_header(("content-type", "text/plain; charset=utf-8"))
        .insert_header(("x-content-type-options", "nosniff"))
        .insert_header(("x-request-id", "0123456789-1"))
        .insert_header(("cache-control", "no-store"))
        .body("ok\n")
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).expect("an address");
    HttpServer::new(|| App::new().service(healthz)).bind(address)?.run().await
}
RUST

if command -v go >/dev/null; then
    mkdir -p "$peers/src/go"
    cat >"$peers/src/go/main.go" <<'GO'
package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Server", "allout")
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Request-Id", "0123456789-1")
		h.Set("Cache-Control", "no-store")
		io.WriteString(w, "ok\n")
	})
	server := &http.Server{Addr: os.Args[1]}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	done := make(chan struct{})
	go func() {
		<-ctx.Done()
		server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		os.Exit(1)
	}
	<-done
}
GO
    [ -x "$peers/go" ] || (cd "$peers/src/go" && go build -o "$peers/go" main.go) || echo 'go cannot be built' >&2
else
    echo 'no go: its peer is left out' >&2
fi

echo "$(date +%F), $(uname -sr), $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)"
if command -v go >/dev/null; then go version; fi
cargo build --release --quiet --example load
PEERS=$peers cargo bench --quiet --bench throughput -- "$@"
