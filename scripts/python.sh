#!/usr/bin/env bash
# Builds the Python package and tests it in a virtual environment, with maturin, pytest and mypy from PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
tools=$target/python-tools
if [ ! -x "$tools/bin/maturin" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.8,<2' pytest mypy typing_extensions
fi

cargo build --locked -p vramfit-cli
export ESTIMATE=$target/debug/estimate VIRTUAL_ENV=$tools PATH="$tools/bin:$PATH"
cd bindings/python
maturin develop --quiet --locked
mypy --strict python/vramfit
python -m mypy.stubtest vramfit._vramfit
pytest
