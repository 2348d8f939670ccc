# What run.sh, torchrun.sh and the SLURM scripts share. Set any of these in the environment instead of editing here.
: "${DATA:=data}"                       # SpaVis-6M in $DATA/SpaVis-6M, HEST in $DATA/hest
: "${RUNS:=runs}"                       # corpora, models, tables: see README.md for the disk that they need
: "${SPAVIS:=$DATA/SpaVis-6M}"          # or hf:minghaofdu/SpaVis-6M@COMMIT, file by file from the hub
: "${HEST:=$DATA/hest}"
: "${DEVICES:=4}"
: "${ALIGN:=align.json}"                # align-open.json: an open ViT instead of UNI
: "${GENES:=$RUNS/genes/model}"         # what stage 2 starts from
recipe=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

corpora() {
    stampy corpus build "$SPAVIS" --out "$RUNS/spavis"
    stampy corpus hest "$HEST" --species human --platform Visium --out "$RUNS/hest.tsv" --overwrite
    stampy corpus build "$RUNS/hest.tsv" --vocabulary "$RUNS/spavis/genes.tsv" --images all --on-error skip \
        --out "$RUNS/hest-corpus"
}
