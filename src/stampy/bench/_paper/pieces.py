"""Inputs of a table of the paper: which exist in a folder, and how to get the others; works without torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks
from stampy.bench._config_names import TABLES, config_path

from .find_sections import KINDS, Place, places
from .folder_contents import Files, files_in, slide_table

if TYPE_CHECKING:
    from stampy.models import Card

__all__ = ["COUNTS", "IMAGES", "LABELS", "R_STEPS", "Found", "Piece", "find_pieces", "grouped", "pieces", "weights_of"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One input of a table.

    Parameters
    ----------
    what
        ``"counts"``, ``"labels"``, ``"image"``, ``"slides"`` or ``"weights"``.
    name
        Name of the section or of the system.
    found
        Its path; empty if missing.
    steps
        Instructions to get it; empty if available.
    without
        What is skipped without it.
    """

    what: str
    name: str
    found: str = ""
    steps: str = ""
    without: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Inputs found in a folder, and the paths of sections, slides and weights."""

    pieces: tuple[Piece, ...]
    places: tuple[Place, ...] = ()
    slides: tuple[Mapping[str, str], ...] = ()
    label: str = "label"  # column of the user's table with the labels of slides
    weights: Mapping[str, str] = ()  # type: ignore[assignment]


def pieces(table: str, folder: str | Path) -> list[Piece]:
    """List the inputs of a table of the paper, and whether they are in a folder, without computing or downloading.

    Parameters
    ----------
    table
        ``"dlpfc"``, ``"hbc"``, ``"her2"``, ``"psc"``, ``"hhk"`` or ``"tcga-luad"``.
    folder
        Folder of the data, which may be in subfolders. Weights are searched in its ``weights/``, by the names of the
        systems (``weights/uni.bin``, ``weights/stamp-f/``).

    Returns
    -------
    A `Piece` for the counts, labels and image of each section, for the slides, and for the weights of each system.
    `Piece.steps` states how to get missing inputs.

    Raises
    ------
    ValueError
        `table` is not a table of the paper; the nearest name is given.
    FileNotFoundError
        There is no such folder.

    Examples
    --------
    >>> import stampy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = stampy.bench.pieces("hbc", folder)
    >>> [(piece.what, piece.name, piece.found) for piece in found[:2]]
    [('counts', 'block A, section 1', ''), ('labels', 'block A, section 1', '')]
    """
    return list(find_pieces(table, folder).pieces)


def grouped(missing: Sequence[Piece]) -> dict[tuple[str, str, str], list[str]]:
    """Names of pieces grouped by how to obtain them; in the steps, NAME stands for the name of the section.

    >>> from stampy.bench import Piece
    >>> missing = [Piece(what="image", name=n, steps=f"get {n}.tif", without="tiles") for n in ("a1", "a2")]
    >>> list(grouped(missing).items())
    [(('image', 'get NAME.tif.', 'tiles'), ['a1', 'a2'])]
    """
    out: dict[tuple[str, str, str], list[str]] = {}
    for piece in missing:
        steps = piece.steps.replace(piece.name, "NAME") if piece.what != "weights" else piece.steps
        without = "this system" if piece.what == "weights" else piece.without
        out.setdefault((piece.what, steps.rstrip(".") + ".", without), []).append(piece.name)
    return out


def find_pieces(table: str, folder: str | Path) -> Found:
    """Like `pieces`, with the paths of the files."""
    _checks.one_of("table", table, TABLES)
    raw = json.loads(config_path(table).read_text("utf-8"))
    data = raw["datasets"][0]
    files = files_in(folder)
    weights = dict(weights_of(raw["systems"], files.folder))
    needed = [Piece(what="weights", name=n, **_texts(w)) for n, w in weights.items()]
    found = {name: w["found"] for name, w in weights.items() if w.get("named")}
    if "slides" in data:
        slides, label, first = _slides(table, data, files)
        return Found(pieces=(*first, *needed), slides=slides, label=label, weights=found)
    names = [section["name"] if isinstance(section, dict) else section for section in data["sections"]]
    where = places(KINDS[table], names, files)
    of_sections = [piece for place in where for piece in _of_section(table, place, files)]
    if not where:
        of_sections = [Piece(what="counts", name="sections", steps=COUNTS[table], without="everything")]
    return Found(pieces=(*of_sections, *needed), places=tuple(where), weights=found)


def _texts(found: Mapping[str, str]) -> dict[str, str]:
    return {k: found[k] for k in ("found", "steps", "without") if k in found}


def _of_section(table: str, place: Place, files: Files) -> Iterator[Piece]:
    """Counts, labels and image of a section."""
    if place.path is None:
        steps = COUNTS[table].format(name=place.name)
        if files.r:
            steps = f"{files.r[0].name} is a file of R, which stampy does not read; {R_STEPS}."
        yield Piece(what="counts", name=place.name, steps=_after(place.trouble, steps), without="the section")
    else:
        yield Piece(what="counts", name=place.name, found=_where(place, files))
    if table in LABELS:
        steps = LABELS[table].format(name=place.name)
        source = files.inside(place.labels).as_posix() if place.labels else "obs"
        if place.column:
            yield Piece(what="labels", name=place.name, found=f"{source}[{place.column!r}]")
        else:
            trouble = place.trouble if place.path is not None else ""
            yield Piece(what="labels", name=place.name, steps=_after(trouble, steps), without="probe, domains")
    image = files.inside(place.image).as_posix() if place.image else _own_image(place)
    missing = {} if image else {"steps": IMAGES[table].format(name=place.name), "without": "systems that see images"}
    yield Piece(what="image", name=place.name, found=image, **missing)


def _after(trouble: str, steps: str) -> str:
    return f"{trouble}. {steps}" if trouble else steps


def _where(place: Place, files: Files) -> str:
    text = files.inside(place.path).as_posix() if place.path is not None else ""
    text += f", {place.part[0]}={place.part[1]}" if place.part else ""
    text += f", positions in {files.inside(place.positions).as_posix()}" if place.positions else ""
    return text + (f" (not used: {', '.join(files.inside(p).as_posix() for p in place.also)})" if place.also else "")


def _own_image(place: Place) -> str:
    """Image that an .h5ad names, or contains in sufficient resolution for tiles; "" without image."""
    if place.path is None or not place.path.is_file() or not place.path.name.endswith(".h5ad"):
        return ""
    import h5py

    try:
        with h5py.File(place.path, "r") as file:
            libraries = file.get("uns/spatial")
            for entry in libraries.values() if isinstance(libraries, h5py.Group) else ():
                named = entry.get("metadata/source_image_path")
                if named is not None:
                    return f"named by {place.path.name}"
                if "images/hires" in entry:
                    return f"in {place.path.name} (reduced)"
    except OSError:
        return ""
    return ""


def _slides(
    table: str, data: Mapping[str, Any], files: Files
) -> tuple[tuple[Mapping[str, str], ...], str, Sequence[Piece]]:
    """The slides that are there, the column of their labels, and the pieces."""
    found = slide_table(files, data["slides"])
    if isinstance(found, str):
        return (
            (),
            "label",
            [Piece(what="slides", name=data["name"], steps=f"{found}. {COUNTS[table]}", without="everything")],
        )
    name = files.inside(found.path).as_posix()
    out = []
    if found.rows:
        out.append(Piece(what="slides", name=data["name"], found=f"{len(found.rows)} of {name}"))
    if found.absent:
        text = (
            f"{len(found.absent)} slides of {name} do not exist: {_checks.shortlist(found.absent, 3)}. {COUNTS[table]}"
        )
        out.append(Piece(what="slides", name="slides that are absent", steps=text, without="these slides"))
    if found.unlabelled:
        first = _checks.shortlist(found.unlabelled, 3)
        text = f"{len(found.unlabelled)} slides have no label or patient in {name}: {first}."
        out.append(Piece(what="slides", name="slides without a label", steps=text, without="these slides"))
    return found.rows, found.columns["label"], out


_ENDINGS = ("", ".bin", ".safetensors", ".pt", ".pth", ".ckpt")


def weights_of(systems: Sequence[str | Mapping[str, str]], folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """For each system with weights: its name, and `found` or `steps`; `named`: it is named by the path in `found`."""
    from stampy import models

    for raw in systems:
        system = {"model": raw, "name": raw} if isinstance(raw, str) else raw
        named = models.split_name(system["model"])
        if named is None or system["model"] in models.packaged():
            continue
        card = models.card(named[0])
        if card.trained_on.startswith("nothing"):
            continue
        yield system["name"], _found(card, folder) or _missing(card, system["name"])


def _found(card: Card, folder: Path) -> dict[str, str] | None:
    for name in _names(card):
        for ending in _ENDINGS:
            path = folder / "weights" / f"{name}{ending}"
            if path.exists():
                return {"found": str(path), "named": "yes"}
    if card.repository is None or not card.sha256:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for name in card.sha256:
        path = try_to_load_from_cache(card.repository, name, revision=card.revision)
        if isinstance(path, str):
            return {"found": path}
    return None


def _names(card: Card) -> list[str]:
    """Possible file names of the weights; the three systems of the paper share one file."""
    return [card.name, *(["stamp"] if card.name.startswith("stamp-") else [])]


def _missing(card: Card, name: str) -> dict[str, str]:
    library = {"transformers": "transformers", "open_clip": "open_clip"}.get(card.loader)
    if library and importlib.util.find_spec(library) is None:
        return {
            "steps": f'`pip install "stampy-st[systems]"` (it is built by {library}); {_get(card)}',
            "without": name,
        }
    if card.gate == "open" and card.sha256:
        return {"found": f"downloaded from {card.weights_at} when it is needed"}
    return {"steps": _get(card), "without": name}


def _get(card: Card) -> str:
    where = f"https://huggingface.co/{card.repository}" if card.repository else card.address
    asked = ""
    if card.gate == "gated":
        asked = "request access there, then log in with `hf auth login`" + (", or " if card.sha256 else " and ")
    ending = Path(card.files[-1]).suffix if card.files else ".bin"
    return f"{where} ({card.licence}): {asked}put the file into the folder as weights/{_names(card)[-1]}{ending}"


R_STEPS = """in R, once: library(spatialLIBD); spe <- fetch_data("spe") (or load the file that you have); \
colData(spe) <- cbind(colData(spe), spatialCoords(spe)); \
zellkonverter::writeH5AD(spe, "dlpfc.h5ad", X_name = "counts")"""

COUNTS = {
    "dlpfc": (
        "Any of: (1) https://spatial-dlpfc.s3.us-east-2.amazonaws.com/h5/{name}_filtered_feature_bc_matrix.h5, with "
        "tissue_positions_list.txt and scalefactors_json.json of github.com/LieberInstitute/HumanPilot, 10X/{name}/; "
        f"(2) {R_STEPS}; (3) an .h5ad or zarr of the section whose name has {{name}} in it, or one of all sections "
        "with a column sample_id or sample_name; (4) no folder at all: `stampy bench run dlpfc --allow-unverified` "
        "downloads."
    ),
    "hbc": (
        "10x Genomics, 'Human Breast Cancer (Block A Section 1)', Space Ranger 1.1.0: "
        "V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5 and its spatial/ (unpacked) side by side."
    ),
    "her2": (
        "git clone https://github.com/almaan/her2st: data/ST-cnts/{name}.tsv.gz and data/ST-spotfiles/"
        "{name}_selection.tsv. An .h5ad with {name} in its file name also works."
    ),
    "psc": (
        "Which accession the paper used is not known. Livers with primary sclerosing cholangitis: GEO GSE243977. Put "
        "the Space Ranger folder, or an .h5ad, of each section below the folder."
    ),
    "hhk": (
        "Which accession the paper used is not known. Healthy kidneys by Visium: Lake et al. 2023, "
        "doi:10.1038/s41586-023-05769-3. Put the Space Ranger folder, or an .h5ad, of each section below the folder."
    ),
    "tcga-luad": (
        "The table and the slides of the GDC: save the address that `stampy.datasets.gdc_query()` makes as luad.tsv, "
        "get the slides by `gdc-client download` into the same folder. Which label the paper used is not known; "
        "the table has the stage."
    ),
}

LABELS = {
    "dlpfc": (
        "github.com/JinmiaoChenLab/SEDR_analyses, data/DLPFC/{name}/metadata.tsv (column layer_guess_reordered); or "
        "{name}_truth.txt (barcode, layer), or barcode_level_layer_map.tsv of HumanPilot, anywhere below the "
        "folder; or a column layer_guess_reordered or spatialLIBD in obs."
    ),
    "hbc": (
        "github.com/JinmiaoChenLab/SEDR_analyses, data/BRCA1/metadata.tsv (column fine_annot_type), anywhere below the "
        "folder; or that column in obs."
    ),
}

IMAGES = {
    "dlpfc": (
        "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/images/{name}_full_image.tif, anywhere below the folder."
    ),
    "hbc": "10x Genomics, the same page: V1_Breast_Cancer_Block_A_Section_1_image.tif, anywhere below the folder.",
    "her2": "her2st's ST-imgs (its README names the archive): data/ST-imgs/PATIENT/{name}/*.jpg.",
    "psc": "The full-resolution H&E image, in the section's folder or named after it.",
    "hhk": "The full-resolution H&E image, in the section's folder or named after it.",
}
