"""Are the features of stage 1 useful? Labels of HER2+ sections and domains of the cortex, of runs of `held_out.py`.

    python recipes/real/features.py WEIGHTS ... --data DATA --out features.md     # WEIGHTS: of `held_out.py --models`

The feature of a spot is the mean of the outputs over its visible tokens, with norm 1. Columns: mean over HER2ST B1, C1,
D1, F1 and G2 of probe and ARI as in `recipes/stampy-mini/agree.py`, per spot and as means with six neighbours; for the
cortex section of the training data, in context, coherence of seven domains and ARI with layers by marker genes, as in
`recipes/stampy-mini/depth.py`. All these sections but G2 are training sections of the runs, without labels.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))
sys.path.insert(0, str(Path(__file__).parents[1] / "stampy-mini"))
import agree
import choose
import mixtures
from bare import outputs
from held_out import Data, ids_of
from order import weights_of

import stampy
from stampy import _keys, datasets, pp
from stampy._labels import known_labels
from stampy.tl._embedding.spaces import unit


def packaged(adata) -> np.ndarray:
    return stampy.tl.embed(adata, "stampy-mini", key_added="X", copy=True, **agree.QUIET).obsm["X"]


def features_of(encoder, vocabulary):
    """Function from a section to features (n, width)."""

    @torch.inference_mode()
    def embed(adata) -> np.ndarray:
        held = pp.tokenize(adata, vocabulary, max_tokens=encoder.config.max_tokens, key_added="tokens", copy=True)
        tokens, parts = torch.from_numpy(held.obsm["tokens"].astype(np.int64)), []
        for own in tokens.split(64):
            there = (own != _keys.PAD)[..., None].float()
            total = (outputs(encoder, ids_of(own, torch.zeros_like(own, dtype=torch.bool))) * there).sum(dim=1)
            parts.append(total / there.sum(dim=1).clamp(min=1))
        return unit(torch.cat(parts).numpy())

    return embed


def row_of(embed, cortex, layers) -> list[float]:
    found = []
    for name, key in agree.CHOOSE.items():
        adata = datasets.load(name)
        codes, _ = known_labels(adata.obs[key], warn=False)
        known, xy, values = codes >= 0, adata.obsm["spatial"].astype(float), embed(adata)
        around = agree.in_context(values, adata)
        found.append([x for v in (values, around) for x in agree.by_labels(v[known], codes[known], xy[known])])
    around, xy, known = agree.in_context(embed(cortex), cortex), cortex.obsm["spatial"].astype(float), layers >= 0
    domains = [KMeans(7, n_init=3, random_state=seed).fit_predict(around) for seed in range(3)]
    ari = np.mean([adjusted_rand_score(layers[known], d[known]) for d in domains])
    return [*np.mean(found, axis=0), choose.coherence(around, xy, 7), ari]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    data = Data(options.data, "sections", torch.device("cpu"), False)
    vocabulary = pp.Vocabulary.load(options.data / "genes.tsv")
    cortex = datasets.load(choose.CORTEX)
    layers = mixtures.layers(
        cortex.X, cortex.var["symbol"].str.upper().to_numpy(), cortex.obsm["spatial"].astype(float)
    )
    titles = ["features", "probe", "ARI", "probe, in context", "ARI, in context", "cortex, coherence", "cortex, ARI"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    known = {"stampy-mini": packaged}
    for path in options.weights:
        known[f"{path.stem}: {torch.load(path, weights_only=True, map_location='cpu')['job']['name']}"] = features_of(
            weights_of(path, data), vocabulary
        )
    for title, embed in known.items():
        lines.append(f"| {title} | " + " | ".join(f"{x:.3f}" for x in row_of(embed, cortex, layers)) + " |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
