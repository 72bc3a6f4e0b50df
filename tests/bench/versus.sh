#!/usr/bin/env bash
# allout beside the Go program that it grew from, side by side: throughput, latency, memory, start and stop, as ratios.
#
#   tests/bench/versus.sh GO_BINARY [ALLOUT_BINARY] [PAIRS] [SECONDS]
#
# GO_BINARY listens where $ADDR says and has /healthz and /?user=: the errgroup program, net/http with the same four
# endpoints. Needs wrk and curl (Debian: apt-get install wrk curl). wrk has one thread, so that on two cores the server
# has the other. Every figure is a pair measured in turn; medians are printed, and the lowest and highest pair.
set -euo pipefail
go=${1:?a binary of the Go program}
allout=${2:-target/release/allout}
pairs=${3:-5}
seconds=${4:-3}
for need in wrk curl awk; do command -v "$need" >/dev/null || { echo "needs $need" >&2; exit 2; }; done

A=127.0.0.1:18088
G=127.0.0.1:18089
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

ask() { # ADDRESS: opens a connection, asks, and waits for the first line of the answer; the connection is $fd
    { exec {fd}<>"/dev/tcp/${1%:*}/${1#*:}"; } 2>/dev/null || return
    printf 'GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" >&"$fd"
    read -r -t 5 -u "$fd" _ && return
    exec {fd}>&-; return 1
}
up() { # ADDRESS: waits until it answers, without a pause: what is measured is less than one
    for _ in $(seq 20000); do if ask "$1"; then exec {fd}>&-; return; fi; done
    echo "$1 does not answer" >&2; exit 1
}
held=()
hold() { # ADDRESS NUMBER: connections that have asked once, and stay open
    for _ in $(seq "$2"); do ask "$1"; held+=("$fd"); done
}
let_go() { for fd in "${held[@]}"; do exec {fd}>&-; done; held=(); }
start() { # allout|go: starts one, and leaves its pid in $pid
    if [ "$1" = allout ]; then RUST_LOG=off "$allout" --listen "$A" & pid=$!; up "$A"; else ADDR=$G "$go" 2>/dev/null & pid=$!; up "$G"; fi
    pids+=("$pid")
}
stop() { kill "$1" 2>/dev/null || true; wait "$1" 2>/dev/null || true; }
address() { [ "$1" = allout ] && echo "$A" || echo "$G"; }
rss() { awk '/VmHWM/ { print $2 }' "/proc/$1/status"; }
milliseconds() { awk '{ v = $1; if (v ~ /us$/) m = 0.001; else if (v ~ /ms$/) m = 1; else m = 1000; sub(/[a-z]+$/, "", v); print v * m }'; }
# WHAT, then a line for each pair: A B
report() {
    awk -v what="$1" '{ a[NR] = $1; b[NR] = $2; r[NR] = ($2 > 0) ? $1 / $2 : 0 }
        function median(x, n,   i, j, t) { for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (x[j] < x[i]) { t = x[i]; x[i] = x[j]; x[j] = t } return x[int((n + 1) / 2)] }
        END { ma = median(a, NR); mb = median(b, NR); mr = median(r, NR); printf "| %s | %.6g | %.6g | %.2f (%.2f to %.2f) |\n", what, ma, mb, mr, r[1], r[NR] }'
}
wrk_once() { # SERVER CONNECTIONS PATH [HEADER]: requests per second, and p99 in ms
    wrk -t1 "-c$2" "-d${seconds}s" --latency ${4:+-H "$4"} "http://$(address "$1")$3" >"$tmp"
    printf '%s %s\n' "$(awk '/Requests\/sec/ { print $2 }' "$tmp")" "$(awk '$1 == "99%" { print $2 }' "$tmp" | milliseconds)"
}
tmp=$(mktemp)

echo "$(date +%F), $(uname -sr), $(nproc) cores, $("$allout" --version), $pairs pairs of $seconds s"
echo '| | allout | Go | ratio (lowest to highest pair) |'
echo '| --- | --- | --- | --- |'
start allout; a=$pid
start go; g=$pid
for path in /healthz '/?user=x'; do
    for connections in 1 16 64 256; do
        : >"$tmp.rps"; : >"$tmp.p99"
        for _ in $(seq "$pairs"); do
            read -r ra la < <(wrk_once allout "$connections" "$path")
            read -r rg lg < <(wrk_once go "$connections" "$path")
            echo "$ra $rg" >>"$tmp.rps"; echo "$la $lg" >>"$tmp.p99"
        done
        report "$path, $connections connections: requests/s" <"$tmp.rps"
        report "$path, $connections connections: p99 in ms" <"$tmp.p99"
    done
done
: >"$tmp.rps"
for _ in $(seq "$pairs"); do
    read -r ra _ < <(wrk_once allout 16 /healthz 'Connection: close')
    read -r rg _ < <(wrk_once go 16 /healthz 'Connection: close')
    echo "$ra $rg" >>"$tmp.rps"
done
report 'one request per connection, 16 at once: requests/s' <"$tmp.rps"
report 'peak resident memory after all that, KiB' < <(echo "$(rss "$a") $(rss "$g")")
stop "$a"; stop "$g"

resident() { awk '/VmRSS/ { print $2 }' "/proc/$1/status"; }
many=1000
ulimit -n 8192 2>/dev/null || many=200
start allout; a=$pid
start go; g=$pid
sleep 1
ia=$(resident "$a"); ig=$(resident "$g")
report 'resident memory, idle, KiB' < <(echo "$ia $ig")
: >"$tmp.rps"
for _ in $(seq "$pairs"); do
    read -r without _ < <(wrk_once allout 16 /healthz)
    hold "$A" "$many"
    read -r with _ < <(wrk_once allout 16 /healthz)
    let_go
    echo "$with $without" >>"$tmp.rps"
done
report "allout beside $many idle connections, and without: requests/s" <"$tmp.rps"
stop "$a"; start allout; a=$pid
sleep 1
ia=$(resident "$a")
hold "$A" "$many"; sleep 1
ra=$(resident "$a")
let_go
hold "$G" "$many"; sleep 1
rg=$(resident "$g")
let_go
report "resident memory for each of $many idle connections, KiB" < <(awk -v a="$((ra - ia))" -v g="$((rg - ig))" -v n="$many" 'BEGIN { print a / n, g / n }')
stop "$a"; stop "$g"

: >"$tmp.start"; : >"$tmp.stop"
for _ in $(seq 10); do
    for server in allout go; do
        began=$(date +%s%N); start "$server"; up_after=$((($(date +%s%N) - began) / 1000))
        hold "$(address "$server")" 10
        began=$(date +%s%N); kill "$pid"; wait "$pid" 2>/dev/null || true; down_after=$((($(date +%s%N) - began) / 1000))
        let_go
        printf '%s ' "$up_after" >>"$tmp.start"; printf '%s ' "$down_after" >>"$tmp.stop"
    done
    echo >>"$tmp.start"; echo >>"$tmp.stop"
done
report 'exec to the first 200, µs' <"$tmp.start"
report 'SIGTERM to exit, 10 idle connections open, µs' <"$tmp.stop"
rm -f "$tmp" "$tmp".*
