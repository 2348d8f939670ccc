#!/usr/bin/env bash
# The tables and the picture of docs/benchmark.md. Run in the root of the repository, STAMPY_DATA_DIR set.
set -euo pipefail
out=${1:-build/bench}
python -m stampy bench run recipes/bench/here.json --out "$out"
python -m stampy bench table "$out" --sections --out docs/benchmark_tables.md --picture docs/_static/benchmark.png
