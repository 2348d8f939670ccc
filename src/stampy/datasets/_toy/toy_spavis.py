"""A small folder in the layout of the published SpaVis-6M, with known ground truth.

Shapes: n spots of a section, N = 9 spots of a group, L positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from stampy import _checks, _keys, _utils
from stampy._files import atomic
from stampy.datasets._toy.toy import UM_PER_PX, toy

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["ToySpavis", "toy_spavis"]

GROUP = 9
PAD = {1: 1, 2: 0}  # by stage; readers must support both


class ToySpavis(NamedTuple):
    """Files written by `toy_spavis`, and their ground truth."""

    folder: Path
    vocabulary: Path  # genes.tsv
    truth: pd.DataFrame
    sections: list[AnnData]  # those of train, then those of val


def toy_spavis(
    folder: str | Path,
    *,
    stage: int = 1,
    n_spots: int = 200,
    n_sections: int = 4,
    n_val: int = 1,
    n_files: int = 2,
    n_domains: int = 4,
    n_genes: int = 800,
    n_positions: int = 256,
    size_px: int = 224,
    vocabulary: str | Path | None = None,
    rng: int = 0,
) -> ToySpavis:
    """Write toy sections to a folder with the layout of SpaVis-6M, the published training files of STAMP.

    Files written: ``train/tokens-0.h5``, ..., ``val/tokens-0.h5``, ``genes.tsv`` (the vocabulary) and ``truth.tsv``.
    The last section of a file in ``train/`` continues in the next file.

    Parameters
    ----------
    folder
        Where to write.
    stage
        1: ``tokenized_gene`` (groups, 9, `n_positions`), the central spot first, padded with 1. 2: (spots,
        `n_positions`), padded with 0, with ``images`` and ``images_aug`` (spots, 3, `size_px`, `size_px`), the patch of
        112 µm and a region of 336 µm, and ``pos_label``, the cell of the patch in its region, row by row.
    n_spots, n_domains, n_genes
        Size of each section, as for `stampy.datasets.toy`.
    n_sections, n_val
        Sections of ``train/`` and of ``val/``. They share domains and their genes.
    n_files
        Files of ``train/``.
    n_positions
        Tokens of a spot that are kept.
    size_px
        Edge of the images.
    vocabulary
        Another vocabulary for the tokens, such as `stampy.datasets.published_vocabulary()`. None: a vocabulary of the
        genes of the toy sections.
    rng
        Seed. The sections are those of ``toy(n_spots, n_domains, n_sections=n_sections + n_val, rng=rng)``.

    Returns
    -------
    `folder`, `vocabulary` (a path), `truth` (one row per spot of the files, with the columns split, file, row, place
    (in its group), section (its name in a corpus), spot, domain) and the toy sections.

    Raises
    ------
    TypeError, ValueError
        A number is out of its range.

    Examples
    --------
    >>> import stampy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = stampy.datasets.toy_spavis(folder, n_spots=40, n_sections=2)
    ...     sorted(p.name for p in (found.folder / "train").iterdir())
    ['tokens-0.h5', 'tokens-1.h5']
    >>> found.truth.columns.tolist()
    ['split', 'file', 'row', 'place', 'section', 'spot', 'domain']
    """
    _checks.one_of("stage", stage, (1, 2))
    for name, value in (("n_sections", n_sections), ("n_files", n_files), ("n_positions", n_positions),
                        ("size_px", size_px)):  # fmt: skip
        _checks.at_least(name, value, 1)
    _checks.at_least("n_val", n_val, 0)
    _checks.at_least("n_spots", n_spots, GROUP)
    folder = _checks.writable(folder)
    n_all = n_sections + n_val
    adata = toy(n_spots, n_domains, n_genes=n_genes, n_sections=n_all, image=stage == 2, rng=rng)
    sections = [adata[adata.obs["section"] == name].copy() for name in adata.obs["section"].cat.categories]
    genes = _own_genes(sections[:n_sections]) if vocabulary is None else pd.read_csv(vocabulary, sep="\t")
    rows = [_ToyRows.of(section, i, genes, n_positions, stage, size_px, rng) for i, section in enumerate(sections)]
    truth = [_write_split(folder, "train", rows[:n_sections], n_files)]
    if n_val:
        truth.append(_write_split(folder, "val", rows[n_sections:], 1))
    found = pd.concat(truth, ignore_index=True)
    for table, name in ((genes, "genes.tsv"), (found, "truth.tsv")):
        with atomic(folder / name) as temporary:
            table.to_csv(temporary, sep="\t", index=False)
    return ToySpavis(folder, folder / "genes.tsv", found, sections)


class _ToyRows(NamedTuple):
    """Rows of one section."""

    members: np.ndarray  # (rows, N or 1) spots
    arrays: dict[str, np.ndarray]  # by data set
    truth: pd.DataFrame  # of the spots of all rows

    @classmethod
    def of(
        cls, section: AnnData, number: int, genes: pd.DataFrame, n_positions: int, stage: int, px: int, rng: int
    ) -> _ToyRows:
        """Rows of a toy section."""
        random = _utils.stream(rng, "spavis", number)
        tokens = _tokens(section, genes, n_positions)
        xy = np.asarray(section.obsm[_keys.SPATIAL])
        members = _groups(xy, random) if stage == 1 else np.arange(len(xy))[:, None]
        slide, dataset = number, number // 2
        chosen = tokens[members] if stage == 1 else tokens
        arrays: dict[str, np.ndarray] = {
            "tokenized_gene": np.where(chosen == _keys.PAD, PAD[stage], chosen).astype(np.int32),
            "batch_slide_id": np.full(len(members), slide, dtype=np.int64),
            "batch_dataset_id": np.full(len(members), dataset, dtype=np.int64),
        }
        if stage == 2:
            arrays |= _tiles(section, px, random)
        spots = members.ravel()
        truth = pd.DataFrame({
            "place": np.tile(np.arange(members.shape[1]), len(members)),
            "section": f"dataset{dataset}_slide{slide}",
            "spot": section.obs_names[spots],
            "domain": section.obs["domain"].astype(str).to_numpy()[spots],
        })  # fmt: skip
        return cls(members, arrays, truth)


def _own_genes(sections: list[AnnData]) -> pd.DataFrame:
    """gene_id, symbol, divisor (mean over the spots with the gene, scaled to 10,000 counts per spot)."""
    counts = sparse.vstack([_at_10_000(s.X) for s in sections]).tocsc()
    n = np.diff(counts.indptr)
    means = np.asarray(counts.sum(axis=0)).ravel() / np.maximum(n, 1)
    var = sections[0].var
    genes = pd.DataFrame({"gene_id": var["gene_ids"].to_numpy(), "symbol": var.index, "divisor": means})
    return genes[n > 0].reset_index(drop=True)


def _at_10_000(counts: Any) -> sparse.csr_matrix:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return sparse.diags(1e4 / np.maximum(totals, 1)) @ sparse.csr_matrix(counts)


def _tokens(section: AnnData, genes: pd.DataFrame, n_positions: int) -> np.ndarray:
    """Ids (n, L) of the genes of each spot, in descending order of count divided by usual level."""
    row_of = pd.Series(np.arange(len(genes)), index=genes["gene_id"])
    rows = row_of.reindex(section.var["gene_ids"]).to_numpy()
    known = ~np.isnan(rows)
    values = _at_10_000(section.X[:, known]).toarray() / genes["divisor"].to_numpy()[rows[known].astype(int)]
    ids = rows[known].astype(np.int64) + _keys.N_SPECIAL
    by_id = np.argsort(ids)  # ties go to the lower id
    values, ids = values[:, by_id], ids[by_id]
    order = np.argsort(-values, axis=1, kind="stable")[:, :n_positions]
    ranked = np.where(np.take_along_axis(values, order, axis=1) > 0, ids[order], _keys.PAD)
    return np.pad(ranked, ((0, 0), (0, n_positions - ranked.shape[1])))


def _groups(xy: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Groups (groups, N): a random free spot with the nearest free spots (then any), the most central first."""
    free, found = np.ones(len(xy), dtype=bool), []
    near = cKDTree(xy).query(xy, k=len(xy))[1]
    for seed in random.permutation(len(xy)):
        if free[seed]:
            order = near[seed]
            group = np.concatenate([order[free[order]], order[~free[order]]])[:GROUP]
            free[group] = False
            apart = np.linalg.norm(xy[group][:, None] - xy[group][None], axis=2).mean(axis=1)
            centre = int(apart.argmin())
            found.append(np.concatenate([group[[centre]], np.delete(group, centre)]))
    return np.array(found)


def _tiles(section: AnnData, px: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Patches, regions and cells; each region is placed so that the patch is in a random cell."""
    from PIL import Image

    library = section.uns[_keys.UNS_SPATIAL][str(section.obs["section"].iloc[0])]
    image = Image.fromarray(library["images"]["hires"])
    patch = _keys.TILE_UM / UM_PER_PX
    patches, regions, cells = [], [], []
    for xy in np.asarray(section.obsm[_keys.SPATIAL]):
        centres = xy - (np.stack(np.divmod(np.arange(9), 3), axis=1)[:, ::-1] - 1) * patch
        fits = (centres >= 1.5 * patch).all(axis=1) & (centres <= np.array(image.size) - 1.5 * patch).all(axis=1)
        cell = int(random.choice(np.flatnonzero(fits))) if fits.any() else -1
        patches.append(_cut(image, xy, patch, px))
        regions.append(_cut(image, centres[4 if cell < 0 else cell], 3 * patch, px))
        cells.append(cell)
    as_stored = {"images": patches, "images_aug": regions}
    stored = {key: np.stack(tiles).transpose(0, 3, 1, 2) for key, tiles in as_stored.items()}
    return stored | {"pos_label": np.array(cells, dtype=np.int64)}


def _cut(image: Any, centre: np.ndarray, size: float, px: int) -> np.ndarray:
    box = np.concatenate([centre - size / 2, centre + size / 2])
    box = np.clip(box, 0, np.tile(image.size, 2))
    return np.asarray(image.resize((px, px), box=tuple(box)))


def _write_split(folder: Path, split: str, sections: list[_ToyRows], n_files: int) -> pd.DataFrame:
    """Ground truth of the rows, in the order of the files."""
    import h5py

    place = _checks.writable(folder / split)
    arrays = {key: np.concatenate([s.arrays[key] for s in sections]) for key in sections[0].arrays}
    n = len(arrays["tokenized_gene"])
    starts = np.cumsum([0, *(len(s.members) for s in sections)])
    # a section continues in the next file
    last = (np.arange(1, n_files) * len(sections) / n_files).astype(int)
    cuts = np.unique([0, *(starts[last] + starts[last + 1]) // 2, n])
    file_of = np.searchsorted(cuts, np.arange(n), side="right") - 1
    for number in range(len(cuts) - 1):
        with atomic(place / f"tokens-{number}.h5") as temporary, h5py.File(temporary, "w") as file:
            for key, values in arrays.items():
                file[key] = values[file_of == number]
    width = sections[0].members.shape[1]
    truth = pd.concat([s.truth for s in sections], ignore_index=True)
    truth.insert(0, "split", split)
    truth.insert(1, "file", [f"tokens-{i}.h5" for i in np.repeat(file_of, width)])
    truth.insert(2, "row", np.repeat(np.arange(n) - cuts[file_of], width))
    return truth
