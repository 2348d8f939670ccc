"""Sections on their way into training: where they lie, their tokens, their tiles."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _utils
from stampy._section.links import refuse_links
from stampy._section.looks import doubts_of
from stampy._section.sources import settle_sources
from stampy.pp import Vocabulary
from stampy.pp._counts import counts_of
from stampy.pp._tiles import TileSource
from stampy.pp._tokens import iter_tokens

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy.models import ImageConfig
    from stampy.pp._match import GeneMatch

__all__ = ["Section", "TrainingSection", "as_sections", "identity_of", "prepare", "ranked", "token_dtype"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One section to train on.

    Parameters
    ----------
    data
        AnnData with counts and ``obsm["spatial"]``, or the path of an .h5ad; for a corpus of any format. Without genes
        (0 columns) it feeds the losses that need an image alone.
    name
        For messages and logs.
    image
        Image file to use instead of the one in ``uns["spatial"]``.
    um_per_px, spot_um
        Scale of the full-resolution image where the scale factors do not tell, see `stampy.pp.tiles`.
    organ, platform
        What the section is of and by what it was measured, in your own words; a corpus keeps them.

    Examples
    --------
    >>> import stampy
    >>> section = Section(data=stampy.datasets.toy(n_spots=30), name="mine", organ="breast")
    >>> section.read().n_obs
    30
    """

    data: AnnData | Path
    name: str
    image: Path | None = None
    um_per_px: float | None = None
    spot_um: float | None = None
    organ: str = ""
    platform: str = ""

    def read(self) -> AnnData:
        """The section in memory."""
        import anndata

        if isinstance(self.data, Path):
            path = _checks.existing(self.data, what="section", suffixes=(".h5ad",))
            refuse_links(path)
            with _checks.readable(path):
                adata = anndata.read_h5ad(path)
            settle_sources(adata, path)
            return adata
        return self.data


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """One section as the samplers want it."""

    name: str
    xy: np.ndarray  # (n, 2) float64, px
    tokens: np.ndarray  # (n, max_tokens) uint16 or int32, 0 pads; all 0 for a section without genes
    tiles: TileSource | None


def as_sections(sections: Any, *, any_format: bool = False) -> list[Section]:
    """Sections from AnnData, paths of .h5ad files, a manifest (.tsv), `Section` itself, or a sequence of these.

    A manifest has a column ``path`` (relative to it) and may have name, image, um_per_px, spot_um, organ and platform.
    With `any_format` a path may also be a .zarr or a Space Ranger folder, and a section a SpatialData.
    """
    if isinstance(sections, str | Path) or not isinstance(sections, Iterable | Sequence):
        sections = [sections]
    found = list(_expand(sections, any_format))
    if not found:
        raise ValueError("No sections to train on. Give AnnData objects, paths of .h5ad files, or a manifest (.tsv).")
    return found


def _expand(sections: Iterable[Any], any_format: bool) -> Iterator[Section]:
    from anndata import AnnData

    suffixes = () if any_format else (".h5ad", ".tsv")
    for number, item in enumerate(sections):
        if isinstance(item, Section):
            yield item
        elif isinstance(item, AnnData) or (any_format and _utils.is_spatialdata(item)):
            yield Section(data=item, name=f"section {number}")
        elif isinstance(item, str | Path):
            path = _checks.existing(item, what="section or manifest", suffixes=suffixes)
            yield from _manifest(path) if path.suffix == ".tsv" else [Section(data=path, name=_name(path))]
        else:
            raise TypeError(f"A section is an AnnData or the path of an .h5ad, found {type(item).__name__}.")


def _name(path: Path) -> str:
    """Of a file its name without the ending; of ``SAMPLE/outs`` the sample's."""
    path = path.resolve()
    path = path.parent if path.name == "outs" else path
    return path.name if path.is_dir() and path.suffix != ".zarr" else path.stem


def _manifest(path: Path) -> Iterator[Section]:
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    _checks.has_key(table.columns, "path", slot=path.name, needs="A manifest names one .h5ad per row there.")
    allowed = {"path", "name", "image", "um_per_px", "spot_um", "organ", "platform"}
    for column in table.columns:
        _checks.one_of(f"column of {path.name}", column, allowed)
    for row in table.to_dict("records"):
        yield Section(
            data=path.parent / row["path"],
            name=row.get("name") or _name(path.parent / row["path"]),
            image=path.parent / row["image"] if row.get("image") else None,
            um_per_px=float(row["um_per_px"]) if row.get("um_per_px") else None,
            spot_um=float(row["spot_um"]) if row.get("spot_um") else None,
            organ=row.get("organ", ""),
            platform=row.get("platform", ""),
        )


def prepare(
    section: Section, vocabulary: Vocabulary, *, max_tokens: int, tower: ImageConfig | None = None
) -> TrainingSection:
    """Read a section, rank its genes, and open its image for the tiles that an image tower sees, if one is given."""
    adata = section.read()
    _checks.not_empty(adata, genes=False)
    source = None
    if tower is not None:
        said = {"image": section.image, "um_per_px": section.um_per_px, "spot_um": section.spot_um}
        source = TileSource.open(adata, tile_um=tower.tile_um, size_px=tower.size_px, **said)
        for doubt in doubts_of(source.sections):
            _checks.warn(f"{section.name!r}: {doubt} It is trained on all the same; leave it out or give its image.")
    return TrainingSection(
        name=section.name,
        xy=_checks.coordinates(adata),
        tokens=_tokens(adata, vocabulary, max_tokens, section.name),
        tiles=source,
    )


def identity_of(sections: Iterable[TrainingSection]) -> str:
    """Names, sizes and a digest of tokens and coordinates: what a run must find again when it goes on."""
    named = []
    for section in sections:
        digest = hashlib.blake2b(np.ascontiguousarray(section.tokens), digest_size=6)
        digest.update(np.ascontiguousarray(section.xy))
        named.append(f"{section.name} {len(section.xy)} {digest.hexdigest()}")
    return ", ".join(named)


def _tokens(adata: AnnData, vocabulary: Vocabulary, max_tokens: int, name: str) -> np.ndarray:
    if not adata.n_vars:
        return np.zeros((adata.n_obs, max_tokens), dtype=token_dtype(vocabulary))
    return ranked(adata, vocabulary, max_tokens, name)[0]


def ranked(adata: AnnData, vocabulary: Vocabulary, max_tokens: int, name: str) -> tuple[np.ndarray, GeneMatch]:
    """Tokens (n, max_tokens), 0 pads, and how the section's genes were found."""
    match = vocabulary.match(adata)
    logger.info("%s: %s", name, match)
    tokens = np.zeros((adata.n_obs, max_tokens), dtype=token_dtype(vocabulary))
    for start, block in iter_tokens(counts_of(adata), match, vocabulary.divisors, max_tokens):
        tokens[start : start + len(block)] = block
    return tokens, match


def token_dtype(vocabulary: Vocabulary) -> type[np.generic]:
    """The smallest type that holds the tokens of a vocabulary."""
    return np.uint16 if vocabulary.n_tokens <= 2**16 else np.int32
