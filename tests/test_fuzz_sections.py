"""Sections in other forms: results equal those of the plain section, or stampy explains the difference.

A truth is drawn (counts by Ensembl id, coordinates, a picture), dressed in a random choice of disguises
(`fuzz_sections.py`, files in `fuzz_section_files.py`), and given to a random function. A case ends

- `equal`: tokens, groups and embeddings are those of the truth, tiles within 2 grey levels;
- `told`: they differ, with a warning about the cause;
- `refused`: an error of stampy's own names the matter;
- `few counts`: genes with less than 5 % of the counts were not found, and no gene was taken for another;

or it is broken: another result without a word, a needless refusal, another package's error, a changed input.

    python tests/test_fuzz_sections.py --cases 5000
    python tests/test_fuzz_sections.py --only 1234     # one case again
"""

import argparse
import functools
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import anndata
import fuzz_section_files as files
import fuzz_section_formats as formats
import fuzz_section_images as images
import fuzz_section_stores as stores
import fuzz_sections as dress
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fuzz_common import BrokenError, choice, contents, is_clear, only_added

import stampy
from stampy import StampyWarning, pl, pp, tl

QUIET = {"show_progress_bar": False, "device": "cpu"}
FEW = 0.05
UNITS = (
    "other_units (swapped",
    "other_units (um",
    "other_units (mm",
)  # the same neighbours, equally near ones in another order

# ---- functions that are called --------------------------------------------------------------------------------------


def table_of(data):
    return data.tables["table"] if hasattr(data, "tables") else data


def picked(case, *names):
    return {name: case.options[name] for name in names if name in case.options}


def tokenize(data, case, world):
    if "organism" in case.options:
        pp.orthologs(data, vocabulary=world.vocabulary)
    pp.tokenize(data, world.vocabulary, max_tokens=64, **picked(case, "layer"))
    return table_of(data).obsm["stamp_tokens"]


def tiles(data, case, world):
    pp.tiles(data, size_px=16, **picked(case, "library_key", "image", "um_per_px"))
    return table_of(data).obsm["stamp_tiles"]


def embed(data, case, world, **options):
    places = () if options.get("modality") == "gene" and "context" not in options else ("library_key",)
    places += ("image", "um_per_px") if "modality" not in options else ()
    tl.embed(data, world.model, **options, **picked(case, "layer", "organism", *places), **QUIET)
    return table_of(data).obsm["X_stamp"]


def gene(data, case, world):
    return embed(data, case, world, modality="gene")


def default(data, case, world):
    return embed(data, case, world)


def context(data, case, world):
    return embed(data, case, world, modality="gene", context="neighbors")


def neighborhoods(data, case, world):
    pp.neighborhoods(data, size=5, **picked(case, "library_key"))
    return table_of(data).obs["stamp_group"].to_numpy()


def spatial(data, case, world):
    try:
        axes = pl.spatial(data, **picked(case, "library_key"))
        (axes[0] if isinstance(axes, list) else axes).figure.canvas.draw()
    finally:
        plt.close("all")


BY_GENES = (tokenize, tokenize, tokenize, gene, context, default)
BY_PLACES = (tiles, tiles, neighborhoods, context, default)
ALL = (tokenize, tiles, gene, default, context, neighborhoods)


def settled_of(case):
    """Spots whose six nearest are no matter of ties, which rounding of coordinates decides."""
    found = []
    for truth in case.parts or [case.truth]:
        distances = np.sort(np.linalg.norm(truth.xy[:, None] - truth.xy[None], axis=2), axis=1)
        found.append(distances[:, 7] > distances[:, 6] * (1 + 1e-6))
    return np.concatenate(found)[case.rows]


def is_coarse(case):
    """Whether the picture is read from a level of a pyramid that another program has made."""
    return any("scales" in told or "pyramid" in told for told in case.told)


def is_equal(call, found, expected, settled=None, *, coarse=False):
    if call is spatial:
        return True
    if found.shape != expected.shape:
        return False
    if call in (tokenize, neighborhoods):
        return np.array_equal(found, expected)
    if call is tiles:
        off = np.abs(found.astype(int) - expected)
        return off.max() <= 2 or (coarse and off.mean() < 20)
    if call is context and settled is not None:
        found, expected = found[settled], expected[settled]
    return np.allclose(found, expected, atol=1e-5 if call is not default else 5e-3)


# ---- cases -----------------------------------------------------------------------------------------------------------


def of_genes(rng, world):
    case = dress.new_case(dress.draw(rng))
    if rng.random() < 0.9:
        case.do(choice(rng, *dress.NAMINGS), rng)
    if rng.random() < 0.3 and "organism" not in case.options:
        case.do(choice(rng, *dress.MORE_GENES), rng)
    if rng.random() < 0.5:
        case.do(choice(rng, *dress.COUNTS), rng)
    calls = BY_GENES if "spatial" in case.data.obsm else (tokenize, gene)
    return case, choice(rng, *calls)


def of_places(rng, world):
    case = dress.new_case(dress.draw(rng))
    if rng.random() < 0.5:
        case.do(dress.scaled, rng)
    if rng.random() < 0.6:
        disguise = choice(rng, images.pixels, images.pixels, images.more_images, images.image_file, images.image_file,
                          images.odd_pixels)  # fmt: skip
        case.do(disguise, rng, *([world.folder] if disguise is images.image_file else []))
    if rng.random() < 0.5:
        case.do(choice(rng, *dress.COORDINATES), rng)
    if rng.random() < 0.1 and "hires" in images.entry(case)["images"] and not case.told:
        case.do(images.wrong_scale, rng)
    elif rng.random() < 0.4:
        case.do(images.library_layout, rng)
    elif rng.random() < 0.1 and len(images.entry(case)["images"]) == 1 and not case.told:
        case.do(images.no_tissue, rng)
        return case, default
    if rng.random() < 0.3:
        case.options["um_per_px"] = dress.UM / case.options.get("unit", 1)
    return case, choice(rng, *BY_PLACES, spatial) if rng.random() < 0.1 else choice(rng, *BY_PLACES)


def of_stores(rng, world):
    case = dress.new_case(dress.draw(rng))
    case.do(choice(rng, stores.spatialdata, stores.two_sections, stores.two_sections, stores.two_regions), rng)
    calls = (tokenize, tiles, gene, default, context, neighborhoods, spatial)
    return case, choice(rng, *(calls if not case.shuffled else (tokenize, tiles, gene, default)))


def of_files(rng, world):
    case = dress.new_case(dress.draw(rng))
    layout = choice(rng, *files.LAYOUTS, *formats.LAYOUTS)
    case.told.append(layout.__name__)
    case.path = layout(case, world.folder, rng)
    files.spoil(case, world.folder, rng)
    calls = (tokenize, tokenize, gene) if case.shuffled else (tokenize, gene, context, neighborhoods)
    calls += (tiles, default) if layout in files.PICTURED + formats.PICTURED else ()
    return case, choice(rng, *calls)


def of_tables(rng, world):
    """A disguised table through a file."""
    case, call = choice(rng, of_genes, of_places)(rng, world)
    path = world.folder / choice(rng, "section.h5ad", "section.zarr")
    try:
        case.data.write_h5ad(path) if path.suffix == ".h5ad" else case.data.write_zarr(path)
    except (TypeError, ValueError, KeyError, NotImplementedError, AttributeError):
        return case, call
    case.told.append(path.name)
    case.path, case.names = path, dict(zip(case.data.obs_names, case.rows.tolist(), strict=True))
    return case, call


def read(case, call, world):
    """The section in the files, and the messages; the rows of the truth by the names of its spots."""
    data, said = run(lambda *_: stampy.read(case.path, **case.reading), None, case, world)
    if isinstance(data, Exception):
        return data, said
    case.data = data
    names = [str(name) for name in data.obs_names]
    unknown = [name for name in names if name not in case.names]
    if unknown and not (case.spoilt or case.strangers):
        raise BrokenError(f"spots that the truth does not have: {unknown[:3]}")
    case.rows = np.array([case.names.get(name, 0) for name in names], dtype=int)
    return None, said


def run(call, data, case, world):
    """Result or error of the call, and the messages."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = call(data, case, world)
        except Exception as error:  # noqa: BLE001
            found = error
    foreign = [w for w in said if not issubclass(w.category, UserWarning | anndata.ImplicitModificationWarning)]
    if foreign and not issubclass(foreign[0].category, FutureWarning | DeprecationWarning):
        raise BrokenError(f"a warning of another package: {foreign[0].category.__name__}: {foreign[0].message}")
    return found, [str(w.message) for w in said if issubclass(w.category, StampyWarning)]


def reference(call, case, world, without=()):
    """What the call gives of the truth, whose genes in `without` are taken out."""
    if case.parts:
        return of_parts(call, case, world)
    adata = dress.plain(case.truth) if case.plain is None else case.plain.copy()
    if len(without):
        genes = case.truth.genes if case.plain is None else case.col_gene
        adata = adata[:, ~np.isin(genes, without)].copy()
    bare = dress.Case(case.truth, adata, case.rows, case.col_gene)
    if call in (tiles, default):
        bare.options["um_per_px"] = dress.UM
    found, _ = run(call, adata, bare, world)
    if isinstance(found, Exception):
        raise found
    return found[case.rows]


def of_parts(call, case, world):
    """The results of sections by themselves, one below the other; groups are numbered on."""
    parts = [dress.new_case(truth) for truth in case.parts]
    found = [reference(call, part, world) for part in parts]
    if call is neighborhoods:
        found[1] = np.where(found[1] >= 0, found[1] + found[0].max() + 1, -1)
    return np.concatenate(found)[case.rows]


def judge(call, case, world):
    """How the case ended; BrokenError where it ended badly."""
    matter = re.compile("|".join(case.matters) or r"(?!)", re.IGNORECASE | re.DOTALL)
    heard = []
    if case.path is not None:
        error, heard = read(case, call, world)
        if error is not None:
            return refused(error, matter)
        n = len(set(case.names.values()))
        if len(case.rows) < n and not any(matter.search(text) for text in heard):
            raise BrokenError(f"SILENT LOSS: {len(case.rows)} of {n} spots were read; said: {heard}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = contents(table_of(case.data))
    found, said = run(call, case.data, case, world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = only_added(before, contents(table_of(case.data)))
    if changed and not (changed == "var" and "organism" in case.options):
        raise BrokenError(f"{changed} was changed")
    said = heard + said
    if isinstance(found, Exception):
        return refused(found, matter)
    call = gene if call is default and not case.pictured else call
    expected = None if call is spatial else reference(call, case, world)
    if call is spatial or is_equal(call, found, expected, settled_of(case), coarse=is_coarse(case)):
        return "equal"
    turned = [told for told in case.told if told.startswith(("spatialdata", "two_", *UNITS))]
    if call is neighborhoods and turned:
        return "equal but for ties"
    if any(matter.search(text) for text in said):
        return "told"
    few = few_lost(call, case, world, found)
    if few:
        return few
    raise BrokenError(f"SILENT LOSS; said: {said}")


def refused(error, matter):
    if not is_clear(error):
        raise BrokenError(f"no clear error, {type(error).__name__}: {error}") from error
    if not matter.search(str(error)):
        raise BrokenError(f"needlessly refused, {type(error).__name__}: {error}") from error
    return "refused"


def few_lost(call, case, world, found):
    """Whether nothing but genes with few counts is missing from the result."""
    if call in (tiles, neighborhoods) or "organism" in case.options or case.parts or case.path is not None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = table_of(case.data)
        layer = picked(case, "layer") or ({} if table.X is not None else {"layer": next(iter(table.layers))})
        match = world.vocabulary.match(table, **layer)
    wrong = (match.rows != case.col_gene) & (match.rows >= 0)
    if wrong.any():
        names = table_of(case.data).var.iloc[np.flatnonzero(wrong)[:3]]
        raise BrokenError(f"{int(wrong.sum())} genes were taken for others: {names}")
    lost = set(case.col_gene[match.rows < 0].tolist()) - {-1, -2}
    if match.unmatched_share > FEW or not lost or lost & set(match.rows.tolist()):
        return ""
    return "few counts" if is_equal(call, found, reference(call, case, world, list(lost))) else ""


KINDS = (of_genes, of_places, of_stores, of_files, of_tables)


def run_case(number, world):
    rng = np.random.default_rng([number, 10])
    make = choice(rng, *KINDS)
    folder = world.root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    world.folder = folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case, call = make(rng, world)
    try:
        return make.__name__[3:], judge(call, case, world)
    except BrokenError as error:
        raise BrokenError(f"case {number}: {call.__name__} < {' < '.join(case.told)}: {error}") from error


def run_cases(numbers, world, *, most=30, say=lambda _: None):
    """Outcomes of the cases, and failures, which `say` reports at once."""
    ends, broken = Counter(), []
    for number in numbers:
        try:
            ends[run_case(number, world)] += 1
        except KeyboardInterrupt:
            break
        except BrokenError as error:
            broken.append(str(error)[:900])
            say(broken[-1])
            if len(broken) == most:
                break
    return ends, broken


def make_world(root, small_model):
    known = dress.vocabulary()
    plt.rcParams["figure.max_open_warning"] = 0
    return SimpleNamespace(root=root, vocabulary=known, model=small_model(known))


@pytest.fixture(scope="module")
def world(small_model, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("fuzz"), small_model)


def test_some_sections(world):
    _, broken = run_cases(range(40), world)
    assert not broken, "\n".join(broken)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_sections(world):
    ends, broken = run_cases(range(1000, 6000), world)
    assert not broken, "\n".join(broken)
    assert {name for name, end in ends if end == "equal"} == {kind.__name__[3:] for kind in KINDS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--most", type=int, default=30, help="stop after so many broken ones")
    options = parser.parse_args()
    from conftest import _small_model

    with tempfile.TemporaryDirectory() as root:
        world = make_world(Path(root), _small_model)
        if options.only is not None:
            print(run_case(options.only, world))
            return 0
        numbers = range(options.seed, options.seed + options.cases)
        ends, broken = run_cases(numbers, world, most=options.most, say=functools.partial(print, flush=True))
    for (name, end), n in sorted(ends.items()):
        print(f"{n:6} {name:14} {end}")
    print(f"{sum(ends.values())} cases ended well, {len(broken)} did not")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
