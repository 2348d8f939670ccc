"""Put a trained model into the package, in half precision, with its card.

python recipes/stampy-mini/package.py MODEL [FIGURES.md]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stampy import models

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "src" / "stampy" / "models" / "weights" / "stampy-mini"


def main(model: str, figures: str | None = None) -> None:
    card = (HERE / "card.md").read_text()
    card = card.replace("{figures}", Path(figures).read_text().strip() if figures else "Not evaluated yet.")
    models.save(models.load(model, device="cpu"), TARGET, dtype=torch.float16, card=card)
    print(f"{TARGET.name}: {sum(p.stat().st_size for p in TARGET.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
