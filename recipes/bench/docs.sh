#!/usr/bin/env bash
# The tables and the picture of docs/benchmark.md. Run in the root of the repository, STAMPY_DATA_DIR set.
#     bash recipes/bench/docs.sh [CONFIG [FOLDER]]
set -euo pipefail
config=${1:-recipes/bench/here.json}
out=${2:-build/bench}
python -m stampy bench run "$config" --out "$out"
python -m stampy bench table "$out" --sections --out "$out/tables.md" --picture docs/_static/benchmark.png --overwrite
{
  printf '```{image} _static/benchmark.png\n:alt: Scores of all systems, a row of panels for each data set\n```\n\n'
  cat "$out/tables.md"
} > "$out/benchmark_tables.md"
mv "$out/benchmark_tables.md" docs/benchmark_tables.md
