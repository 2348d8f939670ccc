#!/usr/bin/env bash
# One node: bash recipes/stamp/run.sh. Interrupted, give it again: every step goes on where it was.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

corpora
stampy pretrain "$RUNS/spavis" --out "$RUNS/genes" --config "$recipe/pretrain.json" --devices "$DEVICES"
stampy align "$RUNS/hest-corpus" --model "$GENES" --out "$RUNS/both" --config "$recipe/$ALIGN" --devices "$DEVICES"
