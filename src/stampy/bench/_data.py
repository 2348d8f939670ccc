"""Sections in memory, with a digest of all that an embedding depends on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stampy import datasets
from stampy._section.identity import digest_of_section

from ._config import DataSet, Section, is_path
from ._paper.load import labels_of, read_section

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MISSING", "Loaded", "load_section"]

# what may go wrong with data, weights or an embedding of them; the table then says why a cell is empty
MISSING = (ValueError, LookupError, TypeError, OSError, ImportError, ArithmeticError)
LABELS, SECTION, PATIENT = "bench_label", "bench_section", "bench_patient"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A section as it is judged."""

    name: str
    adata: AnnData
    digest: str  # of what embeddings depend on
    labels: str  # digest of the labels, "" where there are none

    @property
    def has_counts(self) -> bool:
        """Whether there are genes at all."""
        return self.adata.n_vars > 0


def load_section(section: Section, data: DataSet, folder: Path, *, allow_unverified: bool = False) -> Loaded:
    """Read a section and give it the columns that the tasks use; raises one of `MISSING` where it can't be had."""
    adata = _read(section, folder, allow_unverified)
    adata.obs[SECTION] = section.name
    adata.obs[PATIENT] = section.patient or section.name
    found = labels_of(section, data, adata, folder)
    if found is None:
        return Loaded(section.name, adata, digest_of_section(adata), "")
    adata.obs[LABELS] = found
    labels = hashlib.sha256("\n".join(adata.obs[LABELS].astype(str)).encode()).hexdigest()[:16]
    return Loaded(section.name, adata, digest_of_section(adata), labels)


def _read(section: Section, folder: Path, allow_unverified: bool) -> AnnData:
    if section.source.split(":")[0] == "toy":
        seed = section.source.partition(":")[2]
        return datasets.toy(rng=int(seed or 0))
    if is_path(section.source):
        return read_section(section, folder)
    return datasets.load(section.source, allow_unverified=allow_unverified)
