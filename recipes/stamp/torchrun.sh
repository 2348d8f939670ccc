#!/usr/bin/env bash
# By torchrun, on each of NODES nodes: RANK=0 HEAD=node0 bash recipes/stamp/torchrun.sh. The corpora must be there: see run.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
launch=(torchrun --nnodes "${NODES:-1}" --nproc-per-node "$DEVICES" --node-rank "${RANK:-0}"
    --master-addr "${HEAD:-localhost}" --master-port "${PORT:-29500}" -m stampy)

"${launch[@]}" pretrain "$RUNS/spavis" --out "$RUNS/genes" --config "$recipe/pretrain.json"
"${launch[@]}" align "$RUNS/hest-corpus" --model "$GENES" --out "$RUNS/both" --config "$recipe/$ALIGN"
