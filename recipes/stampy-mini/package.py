"""Add a trained model to the package, in half precision, with its card.

    python recipes/stampy-mini/package.py MODEL [FIGURES.md GENE.md IMAGE.md]

The tables are those of evaluate.py and of both stages of ablate.py. With `stampy-mini` as MODEL only the card is
rebuilt; without tables, the packaged card is kept.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from stampy import models

LICENCE = "LICENSE-EfficientNet-Lite0.txt"
HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src" / "stampy" / "models" / "weights" / "stampy-mini"


def main(model: str, *tables: str) -> None:
    card = (HERE / "card.md" if tables else TARGET / "README.md").read_text()
    for name, path in zip(("figures", "gene", "image"), tables, strict=bool(tables)):
        card = card.replace(f"{{{name}}}", Path(path).read_text().strip())
    models.save(models.load(model, device="cpu"), TARGET, dtype=torch.float16, card=card)
    shutil.copyfile(HERE / LICENCE, TARGET / LICENCE)  # of the stem
    print(f"{TARGET.name}: {sum(p.stat().st_size for p in TARGET.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
