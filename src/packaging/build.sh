#!/bin/sh
# Builds what is shipped: src/packaging/build.sh program|deb|rpm. Packages need cargo-deb or cargo-generate-rpm.
#
# For a package the program is built a second time, with the feature `generate`, which prints the man page and the
# completions.
set -eu
cd "$(dirname "$0")/../.."
kind=${1:?program, deb or rpm}
target=${CARGO_BUILD_TARGET:-$(uname -m)-unknown-linux-musl}
made=target/packaging

# The same bytes from any folder and cargo home.
program() {
    home=${CARGO_HOME:-$HOME/.cargo}
    RUSTFLAGS="--remap-path-prefix=$PWD=/allout --remap-path-prefix=$home=/cargo" \
        cargo build --release --locked --target "$target"
}
case $kind in
    program)
        program
        exit
        ;;
    deb | rpm) ;;
    *) echo "program, deb or rpm, not $kind" >&2; exit 2 ;;
esac

mkdir -p "$made"
generate() { cargo run --quiet --features generate -- --generate "$1"; }
generate man | gzip -9n >"$made/allout.1.gz"
generate bash >"$made/allout"
generate zsh >"$made/_allout"
generate fish >"$made/allout.fish"

src/packaging/notices.sh | gzip -9n >"$made/NOTICES.gz"

program
case $kind in
    deb) cargo deb --no-build --target "$target" --output "$made/" ;;
    rpm) cargo generate-rpm --target "$target" --output "$made/" ;;
esac
