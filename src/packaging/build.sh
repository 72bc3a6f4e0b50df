#!/bin/sh
# Builds a package: src/packaging/build.sh deb|rpm. Needs cargo-deb or cargo-generate-rpm.
#
# The program is built twice: once with the feature `generate`, which prints the man page and the completions, and once as
# it is shipped, static where the target for musl is installed.
set -eu
cd "$(dirname "$0")/../.."
kind=${1:?deb or rpm}
target=${CARGO_BUILD_TARGET:-x86_64-unknown-linux-musl}
made=target/packaging

mkdir -p "$made"
generate() { cargo run --quiet --features generate -- --generate "$1"; }
generate man | gzip -9n >"$made/allout.1.gz"
generate bash >"$made/allout"
generate zsh >"$made/_allout"
generate fish >"$made/allout.fish"

src/packaging/notices.sh | gzip -9n >"$made/NOTICES.gz"

# The same bytes from any folder and cargo home.
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=/allout --remap-path-prefix=$home=/cargo"
cargo build --release --locked --target "$target"
case $kind in
    deb) cargo deb --no-build --target "$target" --output "$made/" ;;
    rpm) cargo generate-rpm --target "$target" --output "$made/" ;;
    *) echo "deb or rpm, not $kind" >&2; exit 2 ;;
esac
