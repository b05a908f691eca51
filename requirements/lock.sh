#!/bin/sh
# Write the two locks anew. Needs uv (pip install uv); its --universal mode keeps one file right for each Python.
set -eu
cd "$(dirname "$0")/.."
lock() {
    out=$1; shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@" \
        pyproject.toml requirements/build.in -o "$out"
}
lock requirements/run.txt
lock requirements/dev.txt --extra dev --constraint requirements/run.txt
