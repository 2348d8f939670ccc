"""Response time of each command to wrong input: seconds until the message, and whether it left files behind.

Every command gets three kinds of wrong input: an invalid option, an unknown name, and a missing path. wrong_calls.py
does the same in Python. Usage: python benchmarks/wrong_arguments.py
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.0  # seconds
WRONG = """
demo --sektion toy
demo --section nowhere.h5ad
demo --section toy --labels nope
demo --section section.h5ad --labels nope
demo --section toy --model stampy-minni
demo --section toy --device gpu
demo --section toy --n-domains 1
demo --section toy --um-per-px -1
demo --section toy --image nowhere.png
demo --section toy --out section.h5ad/out
report section.h5ad --nope
report nowhere.h5ad
report section.h5ad out.pdf
report section.h5ad --domains nope
report section.h5ad --model stampy-minni
report section.h5ad --layer nope
embed section.h5ad out.h5ad --modality genes
embed nowhere.h5ad out.h5ad
embed section.h5ad out.csv
embed section.h5ad section.h5ad
embed section.h5ad out.h5ad --model stampy-minni
embed section.h5ad out.h5ad --library-key nope
embed section.h5ad out.h5ad --layer nope
embed section.h5ad out.h5ad --image nowhere.png
embed section.h5ad out.h5ad --device gpu
embed section.h5ad out.h5ad --batch-size 0
embed section.h5ad out.h5ad --um-per-px 0
embed section.h5ad
embed section.h5ad nowhere.h5ad --out many
embed section.h5ad --out many --workers 0
embed section.h5ad --out many --model stampy-minni
embed section.h5ad --out section.h5ad
embed empty.tsv --out many
slide nowhere.svs out.zarr
slide section.h5ad out.zarr
slide picture.png out.h5ad
slide picture.png out.zarr --model stampy-minni
slide picture.png out.zarr --level nope
slide picture.png out.zarr --min-tissue 2
slide picture.png out.zarr --device gpu
slide nowhere.svs --out many
corpus build nowhere.tsv --out corpus
corpus build section.h5ad --out corpus --nope
corpus build section.h5ad --out section.h5ad
corpus build section.h5ad --out corpus --workers 0
corpus info nowhere
corpus verify nowhere
corpus hest nowhere --out hest.tsv
pretrain nowhere.h5ad --out run
pretrain section.h5ad --out run --config nowhere.json
pretrain section.h5ad --out run --config broken.json
pretrain section.h5ad --out run --config unknown.json
pretrain section.h5ad --out run --config impossible.json
pretrain section.h5ad --out run --device gpu
pretrain section.h5ad --out run --vocabulary nowhere.tsv
pretrain section.h5ad --out run --devices 0
align nowhere.h5ad --out run
align section.h5ad --out run --model stampy-minni
align section.h5ad --out run --config unknown.json
align section.h5ad --out run --backbone nope
align section.h5ad --out run --strategy nope
evaluate stampy-mini nowhere.h5ad
evaluate stampy-minni section.h5ad
evaluate stampy-mini section.h5ad --device gpu
evaluate stampy-mini section.h5ad --n-spots 0
bench run nope --out compared
bench run broken.json --out compared
bench run unknown.json --out compared
bench table nowhere
bench table compared --format pdf
bench report nowhere --out tables.html
bench configs --nope
models --nope
datasets --nope
embd section.h5ad out.h5ad
demo --modality imgae
demo --section toy --layer counts
demo --section section.h5ad --library-key nope
report section.h5ad there.html
report section.h5ad --library-key nope
report section.h5ad --n-genes 0
report section.h5ad --embedding X_nope
report picture.png
embed section.h5ad there.h5ad
embed section.h5ad out.h5ad --modality gene --um-per-px 0.5
embed section.h5ad out.h5ad --um-per-px 1 --spot-um 55
embed section.h5ad out.h5ad --organism mous
embed section.h5ad out.h5ad --bin-um 0
embed section.h5ad out.h5ad --workers 2
embed section.h5ad out.h5ad --resume section.h5ad
embed picture.png out.h5ad
embed broken.json out.h5ad
embed section.h5ad nowhere/deep/out.csv
embed columns.tsv --out many
embed missing.tsv --out many
embed section.h5ad --out many --image picture.png
embed section.h5ad --out many --on-error skp
embed section.h5ad --out many --scheduler tcp://127.0.0.1:1 --workers 2
embed section.h5ad --out many --modality gene --um-per-px 0.5
embed section.h5ad section.h5ad --out many
slide picture.png out.zarr --tile-um 0
slide picture.png out.zarr --n-workers 0
slide picture.png out.zarr --um-per-px -1
slide picture.png out.zarr --workers 2
slide picture.png --out many --n-workers 4
slide columns.tsv --out many
slide picture.png --out many --min-tissue 7
corpus bild section.h5ad
corpus build section.h5ad --out corpus --vocabulary nowhere.tsv
corpus build section.h5ad --out corpus --vocabulary columns.tsv
corpus build section.h5ad --out corpus --quality 101
corpus build section.h5ad --out corpus --codec jpg
corpus build empty.tsv --out corpus
corpus build missing.tsv --out corpus
corpus info section.h5ad
corpus hest . --out hest.tsv
corpus hest . --out hest.csv
pretrain section.h5ad --out run --seed -1
pretrain section.h5ad --out section.h5ad
pretrain section.h5ad --out run --config list.json
pretrain section.h5ad --out run --config kind.json
pretrain section.h5ad --out run --config .
pretrain section.h5ad --out run --logger tensorbord
pretrain section.h5ad --out run --num-nodes 0
pretrain section.h5ad --out run --vocabulary columns.tsv
align section.h5ad --out run --backbone vit_smal_patch16_224
align section.h5ad --out run --config backbone.json
align section.h5ad --out run --config broken.json
evaluate nowhere/model section.h5ad
evaluate stampy-mini section.h5ad --out section.h5ad/table.csv
evaluate stampy-mini section.h5ad --seed -1
bench rn toy
bench run toys --out compared
bench run section.json --out compared
bench table section.h5ad
bench report . --out tables.html
modles
dataset
"""


def prepared(folder: Path) -> None:
    """Write a toy section, an image and settings files."""
    import numpy as np
    from PIL import Image

    from stampy import datasets

    datasets.toy(n_spots=60).write_h5ad(folder / "section.h5ad")
    Image.fromarray(np.full((600, 600, 3), 240, dtype=np.uint8)).save(folder / "picture.png")
    (folder / "empty.tsv").write_text("path\n")
    (folder / "broken.json").write_text("{")
    (folder / "unknown.json").write_text(json.dumps({"max_stepss": 2}))
    (folder / "impossible.json").write_text(json.dumps({"max_steps": -2}))
    (folder / "kind.json").write_text(json.dumps({"epochs_igr": "many"}))
    (folder / "list.json").write_text("[1]")
    (folder / "backbone.json").write_text(json.dumps({"backbone": "vit_smal_patch16_224"}))
    (folder / "section.json").write_text(json.dumps({"sections": ["section.h5ad"], "systms": ["pca"]}))
    (folder / "columns.tsv").write_text("file\tname\nsection.h5ad\ta\n")
    (folder / "missing.tsv").write_text("path\nnowhere.h5ad\n")
    (folder / "there.html").write_text("mine")
    (folder / "there.h5ad").write_bytes((folder / "section.h5ad").read_bytes())


def main() -> None:
    seconds, missed = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder)
        before = sorted(folder.rglob("*"))
        for line in WRONG.strip().splitlines():
            command = [sys.executable, "-m", "stampy", *shlex.split(line)]
            cpu = os.times()
            began = time.perf_counter()
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            wall, after = time.perf_counter() - began, os.times()
            used = after.children_user + after.children_system - cpu.children_user - cpu.children_system
            left = sorted(set(folder.rglob("*")) - set(before))
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [""]
            fine = done.returncode != 0 and not left and used < LIMIT
            missed += not fine
            seconds.append(used)
            print(
                f"{'' if fine else '!':1} {used:5.2f} s CPU {wall:5.2f} s  {line}\n      {said[-1][:150]}", flush=True
            )
            for path in reversed(left):
                print(f"      left: {path.relative_to(folder)}")
                path.rmdir() if path.is_dir() else path.unlink()
            if done.returncode == 0 or "Traceback" in done.stderr:
                print(f"      exit status {done.returncode}")
    print(f"{len(seconds)} commands, {missed} missed; longest {max(seconds):.2f} s of CPU")


if __name__ == "__main__":
    main()
