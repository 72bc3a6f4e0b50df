#!/usr/bin/env bash
# many.sh RUNS CLIENTS [OPTIONS OF load] [-- OPTIONS OF allout]
#
# Stops a fresh allout under load, again and again, and says what was lost in all of them and how long the exits took.
# Every loss is printed as it happens, with what the server said. BUSY=2 has as many loops keep cores busy meanwhile.
# ALLOUT and LOAD name the programs, if they are not where cargo puts them.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
allout=${ALLOUT:-$target/release/allout}
load=${LOAD:-$target/release/examples/load}

runs=$1 clients=$2
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# = 0 ] || shift

log=$(mktemp) results=$(mktemp)
children=()
clean_up() { [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true; rm -f "$log" "$results"; }
trap clean_up EXIT
for ((n = 0; n < ${BUSY:-0}; n++)); do
    while :; do :; done &
    children+=($!)
done

told_at=$SECONDS
progress() { # one line that is rewritten; where that is no terminal, a line every ten seconds
    local line
    [ -t 2 ] || [ $((SECONDS - told_at)) -ge 10 ] || return 0
    told_at=$SECONDS
    line="stop $run of $runs, about $((SECONDS * (runs - run + 1) / (run > 1 ? run - 1 : 1))) s left"
    if [ -t 2 ]; then printf '\r%s\e[K' "$line" >&2; else printf '%s\n' "$line" >&2; fi
}

for ((run = 1; run <= runs; run++)); do
    progress
    : >"$log" # here, since the child may empty it only after the address of the run before was read from it
    "$allout" --listen 127.0.0.1:0 "$@" 2>"$log" &
    server=$!
    until address=$(grep -om1 'http://[0-9.:]*' "$log"); do
        kill -0 $server || { cat "$log"; exit 1; }
        sleep 0.01
    done
    told=$("$load" $server "$address" / "$clients" "${options[@]}") || printf 'run %s\n%s\n' "$run" "$told" "$(<"$log")"
    code=0
    wait $server || code=$?
    [ $code = 0 ] || printf 'run %s: exit code %s\n%s\n' "$run" $code "$(<"$log")"
    [[ $told != *'"answered":0,'* ]] || printf 'run %s: nothing was answered\n%s\n' "$run" "$(<"$log")"
    tail -n 1 <<<"$told" >>"$results"
done

[ ! -t 2 ] || printf '\r\e[K' >&2

# One line of JSON for each run; a number of each, sorted.
numbers() { sed -nE "s/.*\"$1\":(-?[0-9.]+).*/\1/p" "$results" | sort -n; }
sum() { numbers "$1" | awk '{ all += $1 } END { print all + 0 }'; }
spread() { numbers "$1" | awk '{ all[NR] = $1 } END { if (NR) printf "median %s, most %s", all[int((NR + 1) / 2)], all[NR] }'; }
printf '%s runs: %s answered, %s lost, %s pipelined behind a close though they had arrived; exit after the last response in ms: %s; after the signal: %s\n' \
    "$runs" "$(sum answered)" "$(sum lost)" "$(sum behind_close_reached)" "$(spread exit_after_last_response_ms)" "$(spread exit_after_cause_ms)"
