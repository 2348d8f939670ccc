"""Write the training sections of stampy-mini, two manifests and the vocabulary into a folder.

    python recipes/stampy-mini/prepare.py FOLDER

Sections come from `stampy.datasets` (downloaded, or read from STAMPY_DATA_DIR), only those marked "train".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stampy import datasets, pp

FULL_RESOLUTION = [f"HER2ST_C{i}" for i in range(2, 7)]
REDUCED = ["CRC16_human", "LymphNode_V1_human"]  # pairs with the reduced image of Space Ranger
# Images without counts, for the two losses without genes: the smallest three of six, so that pairs stay frequent.
UNPAIRED = ["image_only_gbm243t", "image_only_sows2025", "image_only_ovarian"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = datasets.names(use="train", in_mirror=True)
    genes, images = [], []
    for name in names:
        section = datasets.load(name)
        if name == "CRC16_human":  # its larger image is a separate file
            hires = np.asarray(Image.open(datasets.fetch(name, file="hires")).convert("RGB"))
            section.uns["spatial"][name]["images"]["hires"] = hires
        path = folder / f"{name}.h5ad"
        section.write_h5ad(path)
        if section.n_vars:
            genes.append({"path": path.name, "name": name})
        if name in FULL_RESOLUTION:
            images.append({"path": path.name, "name": name, "image": datasets.fetch(name, file="image")})
        elif name in REDUCED + UNPAIRED:
            images.append({"path": path.name, "name": name, "image": ""})
        print(f"{name}: {section.n_obs} spots, {section.n_vars} genes")
    pd.DataFrame(genes).to_csv(folder / "pretrain.tsv", sep="\t", index=False)
    pd.DataFrame(images).to_csv(folder / "align.tsv", sep="\t", index=False)
    paths = (folder / g["path"] for g in genes)
    vocabulary = pp.Vocabulary.from_sections(paths, min_spots=10, max_genes=20_000, approved=True)
    vocabulary.save(folder / "genes.tsv")
    print(vocabulary)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
