"""`stampy demo`: embed one section, cluster it, plot it and report the results."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from stampy import _checks, _files, _imports, _keys, _utils, datasets
from stampy._io import read as _formats
from stampy.cli.domain_summary import MIN_SPOTS, Judged, about_labels, as_categories, top_genes, verdict_paragraphs
from stampy.cli.early_checks import TOY, offline_section
from stampy.cli.pages import figure_of
from stampy.datasets._fetch import fetch_file
from stampy.models._systems.catalogue import check_name

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.cli.options import InputOptions

__all__ = ["demo"]

CLUSTER = "stamp_cluster"  # obs, written: categorical, "0" is the largest cluster
SECTION = "section.h5ad"
DOWNLOAD = "HER2ST_B4"  # small, with full-resolution image, and not used to train the packaged models
PROBE_S = 4.0  # maximum wait for a response of the network
SIZE = 1.5  # size of the plotted spots; nearly touching spots make colours comparable


@dataclass(frozen=True)
class DemoSection:
    """Section of the demo."""

    data: AnnData | SpatialData
    words: str  # what it is, and why it was chosen
    labels: str | None = None  # column of obs
    image: Path | None = None  # full-resolution image in a separate file


@dataclass
class StepTimer:
    """Duration of each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - began

    def __str__(self) -> str:
        steps = ", ".join(f"{step} {s:.1f} s" for step, s in self.seconds.items())
        return f"{steps}; together {sum(self.seconds.values()):.1f} s"


def demo(
    section: str | Path | None = None,
    out: str | Path = "stampy-demo",
    *,
    say: Callable[[str], None],
    model: str = "stampy-mini",
    labels: str | None = None,
    n_domains: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    image: str | Path | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    **options: Unpack[InputOptions],
) -> None:
    """Embed a section, cluster it, write results and plots into `out`, and `say` what was found.

    Parameters
    ----------
    section
        A path, a name of `stampy.datasets`, or None: a real section if available, else the toy section.
    out
        Folder for ``section.h5ad`` and the plots.
    say
        Function that receives each paragraph of the report.
    model
        See `stampy.tl.embed`.
    labels
        Column of obs to compare the clusters with; not used for clustering. None: that of the data set.
    n_domains
        Number of clusters; None: that of Leiden clustering at resolution 1.
    seed
        Seed of the neighbour graph and the clustering.
    device
        See `stampy.models.load`.
    progress
        Show progress bars.
    image, library_key, layer, options
        See `stampy.tl.embed`.
    """
    check_name(model)
    clock = StepTimer()
    out = _checked_folder(out, section)
    with clock.of("loading"):
        subject = _find(section)
        adata = _utils.table_of(subject.data)
        labels = labels or subject.labels
        if labels is not None:
            _checks.has_key(adata.obs, labels, slot="adata.obs", needs="`--labels` names a column of labels.")
        _check_size(adata, n_domains)
        _load_packages()
        from stampy import tl
        from stampy.tl._embedding.encoders import agreed_modality, loaded_model

        agreed_modality(options.get("modality"), model)
        loaded = loaded_model(model, device)
    say(f"Section: {subject.words}\n  {_size(adata)}")
    with clock.of("embedding"):
        tl.embed(
            subject.data, loaded, image=image or subject.image, library_key=library_key, layer=layer,
            show_progress_bar=progress, **options,
        )  # fmt: skip
    say(_about_embedding(adata))
    with clock.of("clustering"):
        tl.domains(subject.data, n_domains, library_key=library_key, rng=seed, key_added=CLUSTER)
        markers = top_genes(adata, CLUSTER, layer=layer)
    say(_about_clusters(adata, markers))
    with clock.of("evaluating"):
        judged = Judged(subject.data, loaded, labels, library_key=library_key, layer=layer)
        said = verdict_paragraphs(judged, seed)
        if labels is not None:
            said.append(about_labels(adata, labels, CLUSTER))
    for text in said:
        say(text)
    with clock.of("writing"):
        _formats.write(adata, out / SECTION)
        pictures = _draw(adata, out, labels, library_key)
    say(_about_files(out, pictures))
    say(f"Time: {clock}")


def _load_packages() -> None:
    """Import the packages of the demo after section and labels are checked; they are not garbage-collected later."""
    with _imports.collection_paused():
        import igraph  # noqa: F401
        import matplotlib.pyplot  # noqa: F401
        import sklearn.metrics
        import sklearn.neighbors  # noqa: F401
        import torch  # noqa: F401

    gc.freeze()


def _about_files(out: Path, pictures: Mapping[str, str]) -> str:
    files = {SECTION: f"the section with obsm['{_keys.EMBEDDING}'] and obs['{CLUSTER}']", **pictures}
    width = max(map(len, files))
    return "\n".join([f"Files in {out}{os.sep}", *(f"  {name:{width}}  {what}" for name, what in files.items())])


def _checked_folder(out: str | Path, section: str | Path | None) -> Path:
    """Create the output folder; raise if it contains another section."""
    out = _checks.writable(out)
    target = out / SECTION
    if target.exists() and not (out / "embedding.png").exists():
        raise FileExistsError(
            f"{str(target)!r} exists and is not from a demo; it is not changed. Choose another --out."
        )
    if section is not None and target.exists() and target.resolve() == Path(section).expanduser().resolve():
        raise ValueError(f"{str(target)!r} is the section itself and would be replaced. Choose another --out.")
    return out


def _find(section: str | Path | None) -> DemoSection:
    """The given section, or the best available."""
    if section is None:
        return _best()
    known = datasets.names()
    if section in known:
        return _named(str(section))
    if section == TOY:
        return _toy("as asked for")
    if Path(section).expanduser().exists():
        return DemoSection(_formats.read(section), str(section))
    here = [p.name for p in Path(section).expanduser().parent.glob("*")]
    raise _checks.unknown("section", str(section), {"the data sets": [*known, TOY], "that folder": here})


def _best() -> DemoSection:
    """A real section from the mirror or by download, else the toy section with the reason."""
    if (offline := offline_section()) is not None:
        return _named(offline)
    mirror = os.environ.get("STAMPY_DATA_DIR")
    reason = f"STAMPY_DATA_DIR ({mirror}) contains no real section" if mirror else "STAMPY_DATA_DIR is not set"
    try:
        _check_network(datasets.info(DOWNLOAD).files["counts"].url)
        return _named(DOWNLOAD)
    except ConnectionError as error:
        return _toy(f"no real section, because {reason} and no section can be downloaded ({error})")


def _toy(reason: str) -> DemoSection:
    return DemoSection(datasets.toy(), f"{TOY}, made up with 4 planted domains: {reason}.", labels="domain")


def _named(name: str) -> DemoSection:
    """Section of the registry, with its full-resolution image if that is a separate file."""
    entry = datasets.info(name)
    offline = name in datasets.names(in_mirror=True)
    adata = datasets.load(name)
    image = entry.files.get("image")
    path = fetch_file(entry, "image") if image is not None and (image.in_mirror() or image.url) else None
    origin = f"from {os.environ.get('STAMPY_DATA_DIR')}" if offline else "downloaded, or from the cache"
    words = f"{name}, real: {entry.title} ({entry.platform}), {origin}. Source: {entry.origin}"
    return DemoSection(adata, words, entry.labels[0] if entry.labels else None, path)


def _check_network(url: str | None) -> None:
    """ConnectionError unless `url` responds in time. Uses a thread, since name resolution has no timeout."""
    import requests

    if url is None:
        raise ConnectionError(f"the registry has no address of {DOWNLOAD}")

    found: list[int | str] = []

    def ask() -> None:
        try:
            found.append(requests.head(url, timeout=PROBE_S).status_code)
        except requests.RequestException as error:
            found.append(type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_S)
    answer = found[0] if found else f"no answer in {PROBE_S:.0f} s"
    if answer != 200:
        raise ConnectionError(f"{url.split('/')[2]}: {answer}")


def _check_size(adata: AnnData, n_domains: int | None) -> None:
    if adata.n_obs < MIN_SPOTS:
        raise ValueError(f"Clustering needs at least {MIN_SPOTS} spots, found {adata.n_obs}. Use `stampy embed`.")
    if n_domains is not None:
        _checks.at_least("n_domains", n_domains, 2)
        _checks.at_most("n_domains", n_domains, adata.n_obs - 1)


def _size(adata: AnnData) -> str:
    shapes = [
        f"{key} image {picture.shape[1]} x {picture.shape[0]} px"
        for library in adata.uns.get(_keys.UNS_SPATIAL, {}).values()
        for key, picture in library.get("images", {}).items()
    ]
    from stampy.pp._genes.annotation import features_of

    n_genes = int(features_of(adata.var).is_gene.sum())
    others = [f"{adata.n_vars - n_genes} features that are not genes"] if n_genes < adata.n_vars else []
    return ", ".join([f"{adata.n_obs} spots x {n_genes} genes", *others, *shapes])


def _about_embedding(adata: AnnData) -> str:
    record = adata.uns[_keys.UNS][_keys.EMBEDDING]
    kind = {"fused": "fused (genes and image)", "gene": "genes only", "image": "image only"}[record["modality"]]
    lines = [f"Embedding: {kind} by {record['model']}, {adata.obsm[_keys.EMBEDDING].shape[1]} numbers per spot"]
    if "genes" in record:
        genes = record["genes"]
        lines.append(
            f"{genes['n_matched']} of the section's {genes['n_vars']} genes are among the model's "
            f"{genes['n_vocabulary']} (matched by {genes['matched_by']})"
        )
    return "\n  ".join(lines)


def _about_clusters(adata: AnnData, markers: dict[str, list[str]]) -> str:
    sizes = adata.obs[CLUSTER].value_counts(sort=False)
    rows = [f"  {name:>7}  {size:>5}  {', '.join(markers.get(name, []))}" for name, size in sizes.items()]
    head = [
        f"Clusters: {len(sizes)} (Leiden communities of the embedding; the largest is 0)",
        "  cluster  spots  marker genes (higher here than in all other spots, by a t-test)",
    ]
    return "\n".join([*head, *(r.rstrip() for r in rows)])


def _draw(adata: AnnData, out: Path, labels: str | None, library_key: str | None) -> dict[str, str]:
    """Save the plots; returns file name -> description."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from stampy import pl

    wanted = {
        "tissue.png": (None, "Tissue and spots"),
        "clusters.png": (CLUSTER, "Clusters"),
        "embedding.png": (_keys.EMBEDDING, "Embedding: 3 principal components as red, green, blue"),
    }
    shown = adata
    if labels is not None:
        wanted["labels.png"] = (labels, f"Labels: {labels}")
        shown = adata[:, :0].copy()  # copying without genes is cheap
        shown.obs[labels] = as_categories(adata, labels)
    for name, (color, title) in wanted.items():
        size = 1.0 if color is None else SIZE
        axes = pl.spatial(shown, color, library_key=library_key, size=size, title=None if library_key else title)
        figure = figure_of(axes)
        with _files.atomic(out / name) as temporary:
            figure.savefig(temporary, dpi=200, pil_kwargs={"compress_level": 2})  # the default of 6 takes half a second
        plt.close(figure)
    return {name: title for name, (_, title) in wanted.items()}
