"""Real sections as AnnData, from a mirror or built from the files of their authors."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks
from stampy.datasets import _builders, _fetch, _registry

if TYPE_CHECKING:
    from anndata import AnnData

_NO_SECTION = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError, EOFError,
               struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


def load(
    name: str,
    *,
    sha256: str | None = None,
    allow_unverified: bool = False,
    progressbar: bool = False,
) -> AnnData:
    """Load a real section.

    The section is read from the mirror `STAMPY_DATA_DIR`, if it is there; otherwise the files of its authors are
    downloaded (see `fetch`) and assembled. Cite the authors: `info(name).citation`.

    The 12 sections of the dorsolateral prefrontal cortex with all genes are `spatialLIBD_151507` and so on. Their
    counts are at an address without versions, and stampy does not know their hashes: pass `sha256=` or
    `allow_unverified=True`. `DLPFC_151673` and `DLPFC_151674` are smaller and have only the most variable genes.

    Parameters
    ----------
    name
        One of `names()`.
    sha256, allow_unverified, progressbar
        As for `fetch`.

    Returns
    -------
    AnnData (spots, genes) with

    - `X`: raw counts, CSR; no genes if there is only an image (`info(name).kind == "images"`)
    - `obs`: array position, and labels in the columns `info(name).labels`; "NA" and "undetermined" are not labels
    - `var["gene_ids"]`: Ensembl ids where known; `var_names` are symbols
    - `obsm["spatial"]`: x and y in px of the full-resolution image, or in spot distances if the study has no image
    - `uns["spatial"][name]`: images and scale factors, if there is an image; `uns["source"]`: origin of the data

    Raises
    ------
    ValueError
        If the name is unknown, or a file has a wrong or no known hash.
    FileNotFoundError
        If the section is only available from a mirror, and there is no mirror.
    ConnectionError
        If a download fails.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.load("HER2ST_A1")  # doctest: +SKIP
    >>> adata.obs["label"].value_counts()  # doctest: +SKIP
    """
    import anndata

    entry = _registry.info(name)
    _checks.one_of("name", name, [n for n, e in _registry.entries().items() if e.kind in _registry.SECTIONS])
    options: dict[str, Any] = {"sha256": sha256, "allow_unverified": allow_unverified, "progressbar": progressbar}
    section = entry.files.get("section")
    if section is not None and (section.in_mirror() or entry.builder is None):
        return anndata.read_h5ad(_fetch.fetch_file(entry, "section", **options))
    paths = {role: _fetch.fetch_file(entry, role, **options) for role in _fetch.wanted(entry)}
    adata = built(entry.builder or "", name, paths)
    adata.uns["source"] = entry.origin or "not stated"
    return adata


def built(builder: str, name: str, paths: Mapping[str, Path]) -> AnnData:
    """The section from its authors' files (role -> path); ValueError where they are not what they should be."""
    try:
        return _builders.BUILDERS[builder](name, paths)
    except _NO_SECTION as error:
        raise ValueError(
            f"The files of {name!r} ({_checks.shortlist(str(p) for p in paths.values())}) can't be put together as a "
            f"section: {type(error).__name__}: {error}. They are damaged, or other files than stampy knows."
        ) from error
