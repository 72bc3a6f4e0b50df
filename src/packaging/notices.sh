#!/bin/sh
# Prints the licences of everything that the program contains, as those licences ask of a copy: src/packaging/notices.sh
# [cargo options, such as --no-default-features]. Needs the crates' sources, which a build has fetched.
set -eu
cd "$(dirname "$0")/../.."
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src

echo "The program allout contains the crates below, the standard library of Rust (MIT or Apache-2.0,"
echo "copyright the Rust project contributors) and, if it is static, musl (MIT, copyright Rich Felker et al.)."
cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}|{l}' "$@" |
    sed -n 's/^\([^ ]*\) v\([^ |]*\)|\(.*\)$/\1-\2 \3/p' | sed 's/ (\*)$//' | sort -u |
    while read -r crate licence; do
        for folder in "$registry"/*/"$crate"; do break; done
        [ -d "$folder" ] || { echo "no sources of $crate in $registry" >&2; exit 1; }
        printf '\n==== %s: %s\n' "$crate" "$licence"
        for text in "$folder"/LICEN[CS]E* "$folder"/COPYING* "$folder"/NOTICE*; do
            # Of alternatives the MIT licence is taken.
            case ${text##*/} in
                *\** | COPYING | *APACHE* | *Apache*) [ -e "$text" ] && [ ! -e "$folder/LICENSE-MIT" ] || continue ;;
            esac
            printf '\n'
            cat "$text"
        done
    done
