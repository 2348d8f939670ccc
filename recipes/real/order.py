"""Does a model of `held_out.py` read the order of tokens? Its loss with this order destroyed, and the order alone.

    python recipes/real/order.py WEIGHTS DATA --split sections --out recipes/real/order.csv
    python recipes/real/order.py WEIGHTS --product --out evaluate.csv      # by `stampy.train.evaluate`

WEIGHTS: what `held_out.py fit --models` saved; DATA as there. For each left-out section, losses at hidden positions:

- of the model; with other tokens at the hidden positions (must be the same: they are not visible); with the visible
  tokens of a spot shuffled among their positions; with the hidden genes of a spot swapped among its hidden positions;
- of the frequency of genes, and of this frequency narrowed by the order of tokens (`stampy.train._rank_order`), with
  frequencies of the training sections and of the section itself. The weights of the second are fitted to one half of
  the spots, and the losses are of the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from held_out import Data, Network, frequencies, ids_of, outputs
from torch import Tensor

from stampy import datasets, models, train
from stampy.models._kernels.cross_entropy import cross_entropy_by_kind
from stampy.train._rank_order import level_places, mixture_weights, order_guesses

SECTIONS = ("HER2ST_B2", "HER2ST_C3", "HER2ST_D3", "HER2ST_F2", "HER2ST_G2")


@torch.inference_mode()
def loss_at(encoder, tokens: Tensor, gone: Tensor, targets: Tensor) -> float:
    head = encoder._head(outputs(encoder, ids_of(tokens, gone))[gone], "igr")
    return float(cross_entropy_by_kind(*head, targets, targets * 0, 1)[0])


def shuffled(tokens: Tensor, where: Tensor, seed: int = 0) -> Tensor:
    """Each row with its entries at `where` in a random order."""
    found, random = tokens.clone(), torch.Generator().manual_seed(seed)
    for row, own in zip(found, where, strict=True):
        at = own.nonzero()[:, 0]
        row[at] = row[at[torch.randperm(len(at), generator=random)]]
    return found


def of_model(encoder, tokens: Tensor, gone: Tensor) -> dict[str, float]:
    others = torch.where(gone, torch.randint_like(tokens, 30, 20_000), tokens)
    targets = tokens[gone]
    return {
        "model": loss_at(encoder, tokens, gone, targets),
        "hidden_replaced": loss_at(encoder, others, gone, targets),
        "visible_shuffled": loss_at(encoder, shuffled(tokens, (tokens != 0) & ~gone), gone, targets),
        "hidden_swapped": loss_at(encoder, tokens, gone, shuffled(tokens, gone)[gone]),
    }


def of_order(tokens: np.ndarray, gone: np.ndarray, counts: np.ndarray, place: np.ndarray) -> tuple[float, float]:
    """Losses of frequency, and of frequency narrowed by the order, on the second half of the spots."""
    share = counts / counts.sum()
    parts = [order_guesses(t[t != 0], g[t != 0], share, place) for t, g in zip(tokens, gone, strict=True)]
    half = len(parts) // 2
    weights, rest = mixture_weights(np.concatenate(parts[:half])), np.concatenate(parts[half:])
    return float(-np.log(rest[:, 0]).mean()), float(-np.log(np.maximum(rest @ weights, 1e-12)).mean())


def weights_of(path: Path, data: Data) -> torch.nn.Module:
    saved = torch.load(path, weights_only=True, map_location="cpu")
    network = Network(data, {**saved["job"], "start": "random"})
    network.load_state_dict({name: value.float() for name, value in saved["state"].items()})
    print(saved["job"], flush=True)
    return network.encoder.eval()


def measured(options) -> pd.DataFrame:
    data, n = Data(options.data, options.split, torch.device("cpu"), False), options.spots
    encoder, place, rows = weights_of(options.weights, data), level_places(data.divisors), []
    for part in options.parts:
        for name, (tokens, gone) in data.measured[part].items():
            row = {"split": options.split, "part": part, "section": name} | of_model(encoder, tokens[:n], gone[:n])
            own = frequencies(data.host[data.parts[part][name]], data.n_tokens)
            for which, counts in (("training", data.counts + 1), ("section", own)):
                row[f"{which}_frequency"], row[f"{which}_order"] = of_order(tokens.numpy(), gone.numpy(), counts, place)
            rows.append(row)
            print(pd.Series(row).to_string(float_format="{:.3f}".format), flush=True)
    return pd.DataFrame(rows)


def evaluated(options) -> pd.DataFrame:
    """What the product's own evaluation says of the same weights, on sections read from their files."""
    saved = torch.load(options.weights, weights_only=True, map_location="cpu")
    genes = models.load("stampy-mini").genes
    sizes = {k: saved["job"][k] for k in ("width", "depth", "heads", "feedforward")}
    gene = models.GeneConfig(n_genes=len(genes), max_tokens=512, norm="pre", tied_heads=True, **sizes)
    model = models.Stamp(models.StampConfig(gene=gene, embedding=16))
    model.genes = genes
    state = {name.removeprefix("encoder."): value.float() for name, value in saved["state"].items()}
    model.gene.load_state_dict(state)
    sections = [datasets.fetch(name)["section"] for name in SECTIONS]
    table = train.evaluate(model.eval(), sections, n_groups=13, device="cpu")
    for name in (*SECTIONS, "DLPFC_Br8325_ant"):
        table.loc[name, "equal_counts"] = equal_counts(datasets.fetch(name)["section"], genes)
    return table.dropna(axis=1, how="all").reset_index()


def equal_counts(path: Path, genes: pd.DataFrame, spots: int = 40) -> float:
    """Mean share of a spot's tokens that have its most common count; genes by symbol."""
    level = dict(zip(genes["symbol"], genes["divisor"], strict=True))
    table = anndata.read_h5ad(path)
    rows = np.sort(np.random.default_rng(0).permutation(table.n_obs)[:spots])
    table = table[rows, [g in level for g in table.var_names]]
    counts = np.asarray(table.to_df())
    top = np.argsort(-counts / np.array([level[g] for g in table.var_names]), axis=1)[:, :512]
    spread = [row[row > 0].astype(int) for row in np.take_along_axis(counts, top, axis=1)]
    return float(np.mean([np.bincount(row).max() / len(row) for row in spread if len(row)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--split", choices=("sections", "patients"), default="sections")
    parser.add_argument("--parts", choices=("choosing", "reported"), nargs="+", default=["reported"])
    parser.add_argument("--spots", type=int, default=40, help="per section, for the model")
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.product and options.data is None:
        parser.error("DATA is needed without --product")
    torch.manual_seed(0)
    table = evaluated(options) if options.product else measured(options)
    known = [pd.read_csv(options.out)] if options.out.exists() and not options.product else []
    pd.concat([*known, table]).to_csv(options.out, index=False, float_format="%.5g")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
