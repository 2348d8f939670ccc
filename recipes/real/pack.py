"""The arrays that `held_out.py` reads: tokens of all sections, and counts of the HER2+ ones that are trained on.

    python recipes/real/pack.py FOLDER --out DATA              # FOLDER: corpora of `stage1.py build`

``tokens.npz.xz``: tokens, coordinates, names and sizes of sections, their part, and usual levels of genes; of the
sections that are evaluated once, 200 random spots. ``counts.npz.xz``: for each spot the genes with counts, as steps
(lo + 256 hi), and the counts (at most 255).
"""

from __future__ import annotations

import argparse
import io
import lzma
from pathlib import Path

import anndata
import numpy as np

from stampy import datasets, models, train
from stampy.pp import Vocabulary

TOKENS, KEPT_SPOTS = 512, 200


def tokens_of(folder: Path, divisors: np.ndarray) -> dict[str, np.ndarray]:
    rng, tokens, xy, names, sizes, parts = np.random.default_rng(0), [], [], [], [], []
    for part in ("train", "choose", "kept"):
        for section in train.Corpus(folder / part).sections:
            loaded = section.load(TOKENS)
            rows = np.arange(len(loaded.tokens))
            if part == "kept":
                rows = np.sort(rng.permutation(rows)[:KEPT_SPOTS])
            tokens.append(loaded.tokens[rows].astype(np.uint16))
            xy.append(loaded.xy[rows].astype(np.float32))
            names.append(section.name)
            sizes.append(len(rows))
            parts.append(part)
    return {"tokens": np.concatenate(tokens), "xy": np.concatenate(xy), "n": np.array(sizes), "names": np.array(names),
            "where": np.array(parts), "divisors": divisors}  # fmt: skip


def counts_of(names: list[str], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    place = {gene: i for i, gene in enumerate(vocabulary.frame["symbol"])}
    found = {"lo": [], "hi": [], "val": [], "lengths": []}
    for name in names:
        table = anndata.read_h5ad(datasets.fetch(name)["section"])
        columns = np.array([place.get(gene, -1) for gene in table.var_names])
        matrix = table.X.tocsr()[:, columns >= 0].toarray()
        order = np.argsort(columns[columns >= 0])
        genes, matrix = columns[columns >= 0][order], matrix[:, order]
        for row in matrix:
            there = np.flatnonzero(row)
            steps = np.diff(genes[there], prepend=0)
            found["lo"].append((steps % 256).astype(np.uint8))
            found["hi"].append((steps // 256).astype(np.uint8))
            found["val"].append(np.minimum(row[there], 255).astype(np.uint8))
            found["lengths"].append(len(there))
    lengths = np.array(found.pop("lengths"), dtype=np.uint16)
    return {key: np.concatenate(values) for key, values in found.items()} | {"lengths": lengths}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary(models.load("stampy-mini").genes)
    vocabulary.save(options.out / "genes.tsv")
    arrays = tokens_of(options.folder, vocabulary.divisors)
    write(options.out / "tokens.npz.xz", arrays)
    names = [
        str(name)
        for name, part in zip(arrays["names"], arrays["where"], strict=True)
        if name.startswith("HER2ST") and part != "kept"
    ]
    write(options.out / "counts.npz.xz", counts_of(names, vocabulary))


if __name__ == "__main__":
    main()
