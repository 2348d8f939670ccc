"""Random malformed input: each call gives a correct result or a clear error, and does not change its input.

Some tens of cases run by default, thousands on request::

    pytest -m slow tests/test_fuzz.py
    python tests/test_fuzz.py --cases 5000 --seed 0

Half of them are sections in disguise, whose result must be that of a known truth (`test_fuzz_sections.py`). Damaged and
hostile files (checkpoints, weights, corpora, HDF5, TIFF) are in `test_fuzz_files.py`.

A clear error has a documented type and is raised and worded by stampy itself. A case is reproduced by its number:
`--only` runs one again and shows its traceback.
"""

import argparse
import functools
import itertools
import math
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import test_fuzz_sections as disguised
from anndata import AnnData
from fuzz_common import DOCUMENTED, BrokenError, choice, contents, dense, is_clear, only_added, same
from scipy import sparse

from stampy import pl, pp, tl

QUIET = {"show_progress_bar": False, "device": "cpu"}
N_GENES = 60
TOKENS = 32

# ---- sections -----------------------------------------------------------------------------------------------------


def section(rng):
    """A sound section of few spots: counts, image, two libraries, labels, an embedding."""
    n_side = int(rng.integers(4, 8))
    row, col = (a.ravel() for a in np.mgrid[:n_side, :n_side])
    xy = np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)]) * 20 + 30
    n = len(xy)
    genes = rng.permutation(N_GENES)[:40]
    depth = rng.integers(1, 8, (n, 1))
    counts = rng.poisson(rng.gamma(0.6, 2, len(genes)) * depth)
    counts[:, 0] += 1
    side = 20 * n_side + 60
    picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 11.0}
    vectors = rng.normal(size=(n, 6)).astype(np.float32)
    return AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"library": pd.Categorical(["s"] * n), "label": pd.Categorical(np.array(list("abc"))[np.arange(n) % 3])},
            index=[f"spot{i}" for i in range(n)],
        ),
        var=pd.DataFrame({"gene_ids": [f"ENSG{g:011d}" for g in genes]}, index=[f"GENE{g}" for g in genes]),
        obsm={"spatial": xy, "X_rep": vectors, "X_stamp": vectors.copy(), "X_stamp_gene": vectors[:, :3].copy(),
              "X_stamp_image": vectors[:, 3:].copy()},
        uns={"spatial": {"s": {"images": {"hires": picture}, "scalefactors": factors}}},
    )  # fmt: skip


def vocabulary():
    """The genes that `section` draws from."""
    frame = {
        "gene_id": [f"ENSG{g:011d}" for g in range(N_GENES)],
        "symbol": [f"GENE{g}" for g in range(N_GENES)],
        "divisor": [1 + g % 5 for g in range(N_GENES)],
    }
    return pp.Vocabulary(pd.DataFrame(frame))


# ---- faults of the inputs ----------------------------------------------------------------------------------


def some(rng, n):
    """Some rows, at least one where there is one."""
    return np.flatnonzero(rng.random(n) < rng.choice([0.1, 0.6, 1.0])) if n else np.empty(0, dtype=int)


def few_spots(a, rng):
    return a[: int(rng.integers(0, 4))].copy()


def few_genes(a, rng):
    return a[:, : int(rng.integers(0, 3))].copy()


def view(a, rng):
    return a[rng.permutation(a.n_obs)[: max(a.n_obs - 2, 1)], rng.permutation(a.n_vars)]


def transposed(a, rng):
    turned = a.T.copy()
    if rng.random() < 0.5:
        turned.obsm["spatial"] = rng.uniform(30, 150, (turned.n_obs, 2))
    return turned


def zeros(a, rng):
    x = dense(a).copy()
    x[some(rng, len(x))] = 0
    a.X = sparse.csr_matrix(x)
    return a


def odd_values(a, rng):
    x = dense(a).astype(np.float64)
    rows = some(rng, len(x))
    if x.size and len(rows):
        x[rows, rng.integers(x.shape[1])] = choice(rng, np.nan, np.inf, -np.inf, -1, 0.5, 1e30, 2.0**40, 1e308, 1e-320)
    a.X = choice(rng, np.asarray, sparse.csr_matrix, sparse.csc_matrix)(x)
    return a


def lognormal(a, rng):
    a.X = sparse.csr_matrix(np.log1p(dense(a)) * choice(rng, 1.0, 0.3))
    return a


def odd_dtype(a, rng):
    kind = choice(rng, "i1", "u1", "?", "i8", "u8", "f2", "f4", "f8", "c16", "O", "U8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.X = dense(a).astype(kind)
    return a


def huge_integers(a, rng):
    x = dense(a).astype(choice(rng, np.uint64, np.int64))
    x[some(rng, len(x))] = np.iinfo(x.dtype).max // choice(rng, 1, 100)
    a.X = choice(rng, np.asarray, sparse.csr_matrix)(x)
    return a


def odd_storage(a, rng):
    x = dense(a)
    kind = choice(rng, "csc", "array", "dask", "unsorted", "twice", "explicit zeros", "order", "read only")
    if kind == "dask":
        import dask.array

        a.X = dask.array.from_array(x, chunks=(max(len(x) // 2, 1), max(x.shape[1], 1)))
    elif kind == "unsorted":
        a.X = sparse.csr_matrix(x)
        if a.X.nnz:
            a.X.indices, a.X.data = flipped(a.X.indices, a.X.indptr), flipped(a.X.data, a.X.indptr)
            a.X.has_sorted_indices = False
    elif kind == "twice":
        c = sparse.csr_matrix(x)
        parts = np.repeat(c.data, 2) / 2, np.repeat(c.indices, 2), c.indptr * 2
        a.X = sparse.csr_matrix((parts[0] * 2, *parts[1:]), shape=x.shape)
    elif kind == "explicit zeros":
        a.X = sparse.csr_matrix(x)
        a.X.data[::3] = 0
    else:
        make = {"csc": sparse.csc_matrix, "array": sparse.csr_array, "order": np.asfortranarray, "read only": np.array}
        a.X = make[kind](x)
    if kind == "read only":
        a.X.setflags(write=False)
    return a


def flipped(values, indptr):
    return np.concatenate([values[i:j][::-1] for i, j in itertools.pairwise(indptr)])


def no_counts(a, rng):
    if rng.random() < 0.5:
        a.layers["counts"] = dense(a)
    a.X = None
    return a


def with_layers(a, rng):
    a.layers["counts"] = a.X
    a.raw = a.copy()
    if rng.random() < 0.5:
        a.X = sparse.csr_matrix(np.log1p(dense(a)))
    return a


def odd_var_names(a, rng):
    names = list(a.var_names)
    how = choice(rng, "same", "twice", "unicode", "empty", "numbers", "case", "version", "foreign")
    change = {
        "same": lambda i, n: "GENE1", "twice": lambda i, n: names[i // 2], "unicode": lambda i, n: f"{n}β\u202e–\t",
        "empty": lambda i, n: "", "numbers": lambda i, n: str(i), "case": lambda i, n: n.title(),
        "version": lambda i, n: f"ENSG{i:011d}.{i}", "foreign": lambda i, n: f"other{i}",
    }[how]  # fmt: skip
    a.var_names = [change(i, n) for i, n in enumerate(names)]
    if rng.random() < 0.6 and "gene_ids" in a.var:
        del a.var["gene_ids"]
    return a


def odd_var_columns(a, rng):
    n = a.n_vars
    a.var["gene_ids"] = choice(
        rng, [None] * n, [np.nan] * n, list(range(n)), pd.Categorical(a.var_names), [b"ENSG"] * n, [("a",)] * n,
        [float(i) for i in range(n)], ["ENSG00000000001"] * n, pd.array([None] * n, dtype="string"),
    )  # fmt: skip
    return a


def odd_obs_names(a, rng):
    n = a.n_obs
    a.obs_names = choice(rng, ["same"] * n, [""] * n, [str(i // 2) for i in range(n)], [f"ß–{i}\n" for i in range(n)])
    return a


def odd_coordinates(a, rng):
    xy = np.asarray(a.obsm["spatial"], dtype=float).copy() if "spatial" in a.obsm else np.zeros((a.n_obs, 2))
    how = choice(rng, "none", "nan", "inf", "one", "three", "int", "object", "text", "frame", "sparse", "outside",
    "swap",
                 "same", "huge", "line", "negative", "bool", "tiny", "far", "complex", "missing")  # fmt: skip
    rows = some(rng, len(xy))
    if how in ("nan", "inf", "outside"):
        xy[rows] = {"nan": np.nan, "inf": np.inf, "outside": 1e4}[how]
    made = {
        "one": xy[:, :1], "three": np.column_stack([xy, xy[:, :1]]), "int": xy.astype(int), "object": xy.astype(object),
        "text": xy.astype(str), "frame": pd.DataFrame(xy, index=a.obs_names, columns=["x", "y"]),
        "sparse": sparse.csr_matrix(xy), "swap": xy[:, ::-1] * [1, 0.4], "same": np.full_like(xy, 50.0),
        "huge": xy * 1e18,
        "line": xy * [1, 0] + [0, 50], "negative": -xy, "bool": xy > 50, "tiny": xy * 1e-30, "far": xy + 1e15,
        "complex": xy + 0j,
    }.get(how, xy)  # fmt: skip
    if how == "none" and "spatial" in a.obsm:
        del a.obsm["spatial"]
    elif how == "missing":
        made = xy.astype(object)
        made[rows] = None
    if how != "none":
        a.obsm["spatial"] = made
    return a


def odd_library(a, rng):
    n = a.n_obs
    half = np.arange(n) % 2
    a.obs["library"] = choice(
        rng, half, half.astype(bool), half.astype(float), np.where(half == 1, np.nan, 1.0), np.array(["s", "t"])[half],
        pd.Categorical(np.array(["s", "t"])[half], categories=["t", "u", "s"]), [f"s{i}" for i in range(n)],
        [None] * n, np.array(["s", 1], dtype=object)[half], ["ß/../x"] * n, pd.array(half, dtype="Int64"),
    )  # fmt: skip
    if rng.random() < 0.5 and "spatial" in a.uns and isinstance(a.uns["spatial"], dict) and a.uns["spatial"]:
        library = next(iter(a.uns["spatial"].values()))
        a.uns["spatial"] = {str(name): library for name in pd.unique(a.obs["library"])}
    return a


def odd_labels(a, rng):
    n = a.n_obs
    letters = np.array(list("abc"))[np.arange(n) % 3]
    a.obs["label"] = choice(
        rng, ["one"] * n, [np.nan] * n, np.arange(n) % 3, rng.random(n), pd.Categorical(letters, list("zcba")),
        np.where(rng.random(n) < 0.7, letters, "NA"), np.array(["ß", 1, None], dtype=object)[np.arange(n) % 3],
        np.arange(n) % 2 == 0, pd.to_datetime(np.arange(n)), [f"l{i}" for i in range(n)],
        pd.Categorical(np.arange(n) % 2),
        pd.array(np.where(np.arange(n) % 2, "a", "b"), dtype="string"), np.where(np.arange(n) == 0, "a", "b"),
        np.where(rng.random(n) < 0.5, np.inf, 1.0), pd.array([None, *[True] * (n - 1)][:n], dtype="boolean"),
    )  # fmt: skip
    return a


def odd_uns(a, rng):
    a.uns["spatial"] = choice(rng, {}, [], None, "text", {"s": {}}, {"s": None}, {"s": {"images": {}}}, {"s": [1]})
    return a


def odd_provenance(a, rng):
    a.uns["stamp"] = choice(rng, {}, "text", None, 3, [1], {"X_stamp": "text"}, {"stamp_tokens": None})
    return a


def odd_picture(a, rng):
    h, w = int(rng.integers(1, 200)), int(rng.integers(1, 200))
    picture = rng.random((h, w, 3))
    picture = choice(
        rng, picture, picture * 300, picture - 1, (picture * 255).astype(np.uint8)[..., :2], picture[..., 0],
        (picture * 4000).astype(np.uint16), picture[:0], picture[:1, :1], picture > 0.5, picture.astype(object), None,
        np.moveaxis(picture, -1, 0), np.full((h, w, 3), np.nan), picture.tolist(), (picture * 99).astype(np.int64),
        picture[0], np.zeros((h, w, 4), np.uint8), picture.astype(np.float16), picture.astype(str), picture + 0j,
    )  # fmt: skip
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 11.0}
    a.uns["spatial"] = {"s": {"images": {"hires": picture}, "scalefactors": factors}}
    return a


def odd_factors(a, rng):
    value = choice(
        rng, 0, -1, np.nan, np.inf, "text", None, "1.0", 1e-9, 1e9, True, [1.0], np.float32(1), np.array(1.0)
    )
    name = choice(rng, "tissue_hires_scalef", "spot_diameter_fullres", "microns_per_pixel")
    if isinstance(a.uns.get("spatial"), dict) and isinstance(a.uns["spatial"].get("s"), dict):
        a.uns["spatial"]["s"].setdefault("scalefactors", {})[name] = value
    return a


def odd_embedding(a, rng):
    for key in ("X_rep", "X_stamp", "X_stamp_gene", "X_stamp_image"):
        n = a.n_obs
        v = rng.normal(size=(n, 4))
        rows = some(rng, n)
        how = choice(rng, "nan", "inf", "zero", "constant", "one", "none", "object", "text", "sparse", "frame", "int",
                     "half", "huge", "tiny", "bool", "complex", "equal", "absent")  # fmt: skip
        if how in ("nan", "inf", "zero"):
            v[rows] = {"nan": np.nan, "inf": np.inf, "zero": 0}[how]
        if how == "absent":
            a.obsm.pop(key, None)
            continue
        a.obsm[key] = {
            "constant": np.ones((n, 4)), "one": v[:, :1], "none": v[:, :0], "object": v.astype(object), "equal": v[:,
            :1] @ v[:1],
            "text": v.astype(str), "sparse": sparse.csr_matrix(v), "frame": pd.DataFrame(v, a.obs_names, list("abcd")),
            "int": (v * 5).astype(int), "half": v.astype(np.float16), "huge": v * 1e60, "tiny": v * 1e-60,
            "bool": v > 0,
            "complex": v + 1j,
        }.get(how, v) if n else np.zeros((0, 4))  # fmt: skip
    return a


MUTATIONS = (
    few_spots, few_genes, view, transposed, zeros, odd_values, lognormal, odd_dtype, huge_integers, odd_storage,
    no_counts,
    with_layers, odd_var_names, odd_var_columns, odd_obs_names, odd_coordinates, odd_library, odd_labels, odd_uns,
    odd_provenance, odd_picture, odd_factors, odd_embedding,
)  # fmt: skip

# ---- functions that are called, and properties of the result --------------------------------------------------------


def tokenize(a, rng, world):
    layer = choice(rng, None, None, None, "counts")
    options = {"max_tokens": choice(rng, TOKENS, TOKENS, TOKENS, 1, 0, "x"), "layer": layer}
    call = functools.partial(pp.tokenize, vocabulary=world.vocabulary, **options)

    def check(done):
        tokens = done.obsm["stamp_tokens"]
        assert tokens.dtype == np.int32
        assert tokens.shape == (done.n_obs, options["max_tokens"])
        x = done.X if layer is None else done.layers[layer]
        x = x.compute() if hasattr(x, "compute") else x
        x = np.asarray(x.toarray() if sparse.issparse(x) else x)
        match = world.vocabulary.match(done)
        row = int(rng.integers(done.n_obs))
        assert np.array_equal(tokens[row], ranked(x[row], match.rows, world.vocabulary.divisors, options["max_tokens"]))

    return call, check


def ranked(counts, rows, divisors, n):
    """Tokens of a spot by a simple implementation; ties are determined in float32, as documented."""
    sums = np.zeros(len(divisors))
    np.add.at(sums, rows[rows >= 0], counts[rows >= 0].astype(np.float64))
    common = functools.reduce(math.gcd, map(int, sums)) if (sums == np.floor(sums)).all() and sums.any() else 1
    depth = np.float32(10_000 / (sums.sum() / common)) if sums.any() else np.float32(0)
    value = ((sums / common).astype(np.float32) * depth).astype(np.float64) * (1 / divisors)
    order = sorted(np.flatnonzero(value > 0), key=lambda g: (-value[g], g))[:n]
    return np.array([g + 30 for g in order] + [0] * (n - len(order)))


def embed(a, rng, world):
    modality = choice(rng, None, "gene", "image", "fused")
    options = {
        "modality": modality,
        "um_per_px": 5.0 if rng.random() < 0.7 else None,
        "layer": choice(rng, None, None, "counts"),
    }
    options |= {"library_key": "library"} if rng.random() < 0.3 else {}
    call = functools.partial(tl.embed, model=world.model, batch_size=int(rng.integers(1, 9)), **options, **QUIET)

    def check(done):
        values = done.obsm["X_stamp"]
        assert values.dtype == np.float32
        assert len(values) == done.n_obs
        assert np.isfinite(values).all()
        other = tl.embed(done[::-1].copy(), world.model, copy=True, **options, **QUIET)
        np.testing.assert_allclose(other.obsm["X_stamp"][::-1], values, atol=2e-5)

    return call, check


def tiles(a, rng, world):
    options = {"size_px": choice(rng, 8, 8, 8, 1, 0, 2.5), "um_per_px": choice(rng, 5.0, 5.0, None, 1e-9, 0),
               "tile_um": choice(rng, 112.0, 30.0, -1), "region": bool(rng.random() < 0.3)}  # fmt: skip
    options |= {"library_key": "library"} if rng.random() < 0.3 else {}

    def check(done):
        pixels = done.obsm["stamp_tiles"]
        assert pixels.dtype == np.uint8
        assert pixels.shape == (done.n_obs, options["size_px"], options["size_px"], 3)
        turned = done[::-1].copy()
        pp.tiles(turned, **options)
        assert np.array_equal(turned.obsm["stamp_tiles"][::-1], pixels)

    return functools.partial(pp.tiles, **options), check


def neighborhoods(a, rng, world):
    size = choice(rng, 9, 9, 4, 2, 1, "x")
    key = choice(rng, None, None, "library", "absent")
    call = functools.partial(pp.neighborhoods, size=size, library_key=key, max_distance=choice(rng, 5.0, 1.0, 100.0, 0))

    def check(done):
        groups, centre = done.obs["stamp_group"], done.obs["stamp_group_center"]
        sizes = groups[groups >= 0].value_counts()
        assert (sizes <= size).all()
        assert centre.sum() == len(sizes)
        assert (groups[centre] >= 0).all()
        if key is not None and len(sizes):
            assert (done.obs[key].astype(str)[groups >= 0].groupby(groups[groups >= 0].to_numpy()).nunique() == 1).all()

    return call, check


def probe(a, rng, world):
    rep = choice(rng, "X_rep", "X_rep", ["X_rep", "X_stamp"], "absent", [])
    options = {
        "use_rep": rep,
        "folds": choice(rng, None, "blocks", "random", "section"),
        "n_folds": choice(rng, 3, 5, 2, 1),
    }
    options |= {"method": choice(rng, "ridge", "ridge", "logistic"), "library_key": choice(rng, None, None, "library")}

    def check(done):
        predicted, fold = done.obs["probe_X_rep"], done.obs["probe_fold"]
        assert (predicted.notna() == (fold >= 0)).all()
        score = done.uns["stamp"]["probe"]["scores"]["balanced_accuracy"]
        assert ((score >= 0) & (score <= 1)).all()

    return functools.partial(tl.probe, labels=choice(rng, "label", "label", "label", "absent"), **options), check


def domains(a, rng, world):
    n = choice(rng, None, 2, 3, 4, 1, 1000, "x")
    options = {"use_rep": choice(rng, "X_rep", "X_stamp", "absent"), "method": choice(rng, "kmeans", "kmeans", "gmm"),
               "labels": choice(rng, None, "label", "absent"), "library_key": choice(rng, None, None, "library"),
               "max_domains": 3}  # fmt: skip

    def check(done):
        found = done.obs["stamp_domain"]
        assert found.notna().all()
        assert (found.value_counts(sort=False).diff().dropna() <= 0).all()

    return functools.partial(tl.domains, n_domains=n, **options), check


def expression(a, rng, world):
    options = {"use_rep": choice(rng, "X_rep", "X_rep", "absent"), "method": choice(rng, "ridge", "hest", "knn",
    "linear"),
               "folds": choice(rng, None, "random", "section"), "n_folds": 3, "n_top_genes": 5,
               "transform": choice(rng, None, "log1p", "none"), "layer": choice(rng, None, None, "counts"),
               "genes": choice(rng, None, None, ["GENE1"], "GENE2", []),
               "library_key": choice(rng, None, None, "library")}  # fmt: skip

    def check(done):
        predicted, measured = done.obsm["stamp_expression"], done.obsm["stamp_expression_measured"]
        assert predicted.shape == measured.shape == (done.n_obs, len(done.uns["stamp"]["stamp_expression"]["genes"]))
        assert predicted.dtype == np.float32
        assert np.isfinite(predicted).all()

    return functools.partial(tl.expression, **options), check


def retrieve(a, rng, world):
    query, target = (choice(rng, "image", "gene", "fused") for _ in range(2))
    options = {"query": query, "target": target, "k": choice(rng, 1, 3, 10, 0, 1000), "exclude": choice(rng, None,
    None, "neighbors"),
               "library_key": choice(rng, None, None, "library"), "show_progress_bar": False}  # fmt: skip
    suffix = {"image": "_image", "gene": "_gene", "fused": ""}

    def check(done):
        index, score = done.obsm["stamp_retrieve_index"], done.obsm["stamp_retrieve_score"]
        given, sought = (unit(done.obsm[f"X_stamp{suffix[m]}"]) for m in (query, target))
        assert index.shape == score.shape == (done.n_obs, options["k"])
        assert ((index < 0) == np.isnan(score)).all()
        cosine = (given[:, None] * sought[np.maximum(index, 0)]).sum(axis=2)
        np.testing.assert_allclose(np.where(index < 0, np.nan, cosine), score, atol=1e-4)
        assert (np.diff(np.nan_to_num(score), axis=1) <= 1e-6).all()

    return functools.partial(tl.retrieve, **options), check


def unit(values):
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norm == 0, 1, norm)


def spatial(a, rng, world):
    color = choice(rng, None, "label", "label", "library", "GENE1", "X_rep", "absent", ["label", "X_stamp"], [])
    options = {"library_key": choice(rng, None, None, "library"), "vmax": choice(rng, None, "p99", 3, "x"),
               "size": choice(rng, 1.0, 0), "image": bool(rng.random() < 0.7),
               "crop": bool(rng.random() < 0.7)}  # fmt: skip

    def call(adata):
        axes = pl.spatial(adata, color, **options)
        figure = (axes[0] if isinstance(axes, list) else axes).figure
        figure.canvas.draw()

    return call, lambda done: None


def from_sections(a, rng, world):
    options = {"layer": choice(rng, None, None, "counts"), "min_spots": choice(rng, 1, 1, 5, 0)}

    def call(adata):
        divisors = pp.Vocabulary.from_sections([adata, world.sound], **options).divisors
        assert (np.isfinite(divisors) & (divisors > 0)).all()

    return call, lambda done: None


CALLS = (tokenize, embed, tiles, neighborhoods, probe, domains, expression, retrieve, spatial, from_sections)

# ---- a case -------------------------------------------------------------------------------------------------------


def run_case(number, world):
    """Draw the case of that number and run it; return the call and its outcome."""
    rng = np.random.default_rng(number)
    make = choice(rng, *CALLS)
    adata, told = section(rng), [make.__name__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mutate in (choice(rng, *MUTATIONS) for _ in range(rng.integers(0, 4))):
            try:
                adata = mutate(adata if not adata.is_view else adata.copy(), rng)
            except (
                ValueError,
                TypeError,
                LookupError,
                AttributeError,
            ):  # rejected by anndata before stampy is called
                continue
            told.append(mutate.__name__)
        before = contents(adata)
    call, check = make(adata, rng, world)
    name = f"case {number}: {' < '.join(told)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            call(adata)
    except DOCUMENTED as error:
        if not is_clear(error):
            raise BrokenError(f"{name}: no clear error, {type(error).__name__}: {error}") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not same(before, contents(adata)):
                raise BrokenError(f"{name}: the input was changed before {type(error).__name__}: {error}") from error
        return make.__name__, type(error).__name__
    except Exception as error:
        raise BrokenError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        if make is spatial:
            plt.close("all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if changed := only_added(before, contents(adata)):
            raise BrokenError(f"{name}: {changed} was changed")
        try:
            check(adata)
        except Exception as error:
            raise BrokenError(f"{name}: wrong result: {type(error).__name__}: {error}") from error
    return make.__name__, "result"


def run_cases(numbers, world, *, most=20, say=lambda _: None):
    """Outcomes of the cases, and failures, which `say` reports at once."""
    ends, broken = Counter(), []
    for number in numbers:
        try:
            ends[run_case(number, world)] += 1
        except KeyboardInterrupt:  # keep the results so far
            break
        except BrokenError as error:
            broken.append(str(error))
            say(broken[-1])
            if len(broken) == most:
                break
    return ends, broken


@pytest.fixture(scope="module")
def world(small_model):
    return make_world(small_model)


def make_world(small_model):
    known = vocabulary()
    plt.rcParams["figure.max_open_warning"] = 0
    return SimpleNamespace(vocabulary=known, model=small_model(known),
                           sound=section(np.random.default_rng(0)))  # fmt: skip


def test_some_cases(world):
    _, broken = run_cases(range(80), world)
    assert not broken, "\n".join(broken)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_cases(world):
    ends, broken = run_cases(range(1000, 6000), world)
    assert not broken, "\n".join(broken)
    results = {name for name, end in ends if end == "result"}
    assert results == {call.__name__ for call in CALLS}  # not all of it was refused


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--most", type=int, default=30, help="stop after so many broken ones")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import _small_model

    tell = functools.partial(print, flush=True)
    world = make_world(_small_model)
    if options.only is not None:
        print(run_case(options.only, world))
        return 0
    n = options.cases // 2
    ends, broken = run_cases(range(options.seed, options.seed + n), world, most=options.most, say=tell)
    with tempfile.TemporaryDirectory() as root:
        numbers = range(options.seed, options.seed + options.cases - n)
        world = disguised.make_world(Path(root), _small_model)
        found = disguised.run_cases(numbers, world, most=options.most, say=tell)
    ends, broken = ends + found[0], broken + found[1]
    for (name, end), n in sorted(ends.items()):
        print(f"{n:6} {name:14} {end}")
    print(f"{sum(ends.values())} cases ended well, {len(broken)} did not")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
