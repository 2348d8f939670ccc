"""Random, damaged and malicious files: checkpoints, weights, corpora, HDF5 and TIFF.

Each case damages one sound file, or puts something hostile into it, and opens it. It must end in the right result or in
an error of stampy's own; nothing outside of the case's folder may be read, written or fetched, which is watched through
Python's audit events (`open`, `socket`), by marks in the files outside, and by comparing those afterwards.

    python tests/test_fuzz_files.py --cases 10000
    python tests/test_fuzz_files.py --only 1234     # one case again
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file, save_file

import stampy
from stampy import datasets, models, pp, train
from stampy.train._loop import checkpoints

SOURCE = str(Path(stampy.__file__).parent)
CLEAR = (ValueError, TypeError, KeyError, FileNotFoundError, OSError)
SECRET = 7777.25
NASTY = [None, True, -1, 0, 1, 3, 2**31, 10**12, 1.5, -0.5, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd",
         "hf-hub:a/b", "local-dir:/etc", [], {}, [1, 2], ["a"], {"a": 1}, "é" * 300]  # fmt: skip


class BrokenError(AssertionError):
    """A case that ended otherwise than in a right result or a clear error."""


# ---- files that are watched -----------------------------------------------------------------------------------------

_watched: dict[str, object] = {"inside": None, "seen": []}


def _hook(event, arguments):
    inside = _watched["inside"]
    if inside is None:
        return
    if event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
        _watched["seen"].append((event, str(arguments)[:200]))
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if path.startswith(_watched["outside"]) or (writes and not path.startswith((inside, "/dev/"))):
            _watched["seen"].append((event, path))


@contextlib.contextmanager
def watched(inside, outside):
    """Nothing outside is opened, nothing is written elsewhere, no socket connects."""
    if not _watched.get("hooked"):
        sys.addaudithook(_hook)  # cannot be removed; inactive unless a case runs
        _watched["hooked"] = True
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in outside.rglob("*") if p.is_file()}
    _watched.update(inside=os.path.realpath(inside), outside=os.path.realpath(outside), seen=[])
    try:
        yield
    finally:
        _watched["inside"] = None
    if _watched["seen"]:
        raise BrokenError(f"accesses outside: {_watched['seen'][:3]}")
    after = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in outside.rglob("*") if p.is_file()}
    if before != after:
        raise BrokenError("a file outside was changed")


def damaged(content, rng):
    """Bytes cut, zeroed, exchanged, doubled, or bits flipped; headers and ends more often than the middle."""
    content = bytearray(content)
    if not content:
        return b"\0"
    kind, n = rng.integers(6), len(content)
    place = int(rng.choice([rng.integers(n), rng.integers(min(n, 600)), n - 1 - rng.integers(min(n, 600))]))
    size = int(rng.integers(1, 64))
    if kind == 0:
        del content[place:]
    elif kind == 1:
        content[place : place + size] = bytes(min(size, n - place))
    elif kind == 2:
        content[place : place + size] = rng.bytes(min(size, n - place))
    elif kind == 3:
        content[place:place] = content[place : place + size]
    else:
        for _ in range(int(rng.integers(1, 4))):
            content[min(place + int(rng.integers(40)), n - 1)] ^= 1 << int(rng.integers(8))
    return bytes(content)


def put_nasty(values, rng):
    """A malformed value that replaces one in nested dicts and lists, or is added to them."""
    here = values
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.8:
            here = here[key]
            continue
        if isinstance(here, dict) and rng.random() < 0.2:
            del here[key]
        else:
            here[key] = NASTY[rng.integers(len(NASTY))]
        return


# ---- the kinds ------------------------------------------------------------------------------------------------------


def state(step):
    weights = torch.arange(600, dtype=torch.float32).reshape(20, 30) + step
    return {"model": {"w": weights}, "optimizer": {"state": {0: {"m": weights / 2}}}, "step": step}


def checkpoint(folder, rng, world):
    for step in (1, 2):
        path = folder / f"checkpoint-{step:08d}.ckpt"
        checkpoints.save_state(path, state(step)) if rng.random() < 0.7 else torch.save(state(step), path)
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = checkpoints.newest(folder)
    expected = state(found["step"])
    same = torch.equal(found["model"]["w"], expected["model"]["w"])
    if not same or not torch.equal(found["optimizer"]["state"][0]["m"], expected["optimizer"]["state"][0]["m"]):
        raise BrokenError("a wrong state")


def published(folder, rng, world):
    path = folder / "model.bin"
    torch.save({"spot_backbone.embeddings.weight": torch.ones(40, 8), "visual_backbone.base_model.pos_embed":
                torch.ones(1, 5, 8), "gene_head.weight": torch.ones(3, 8)}, path)  # fmt: skip
    path.write_bytes(damaged(path.read_bytes(), rng))
    models.load_published(path)
    raise BrokenError("it lacks most tensors")


def weights(folder, rng, world):
    path = folder / "weights"
    shutil.copytree(world.weights, path)
    name = str(rng.choice(["config.json", "config.json", "model.safetensors", "genes.tsv"]))
    config = json.loads((path / "config.json").read_text())
    if name == "config.json" and rng.random() < 0.8:
        for _ in range(int(rng.integers(1, 3))):
            put_nasty(config, rng)
        (path / name).write_text(json.dumps(config))
    elif name == "model.safetensors" and rng.random() < 0.5:
        tensors = load_file(path / name)
        key = sorted(tensors)[rng.integers(len(tensors))]
        tensors[key] = odd_tensor(tensors[key], rng)
        save_file(tensors, path / name)
    else:
        (path / name).write_bytes(damaged((path / name).read_bytes(), rng))
    if name != "config.json":  # whoever made it meant it
        config["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        (path / "config.json").write_text(json.dumps(config))
    loaded = models.load(path, device="cpu")
    with torch.inference_mode():
        out = loaded.gene_embeddings(torch.tensor([[30, 31, 32], [33, 0, 0]]))
    if not torch.isfinite(out).all() and name == "config.json":
        raise BrokenError("not finite")


def odd_tensor(tensor, rng):
    kind = rng.integers(5)
    if kind == 0:
        return torch.full_like(tensor, float("nan"))
    if kind == 1:
        return tensor.to(torch.complex64)
    if kind == 2:
        return tensor.flatten()[:-1].clone() if tensor.numel() > 1 else torch.zeros(3)
    return tensor.to((torch.int64, torch.float64)[kind - 3])


def corpus(folder, rng, world):
    path = folder / "corpus"
    shutil.copytree(world.corpus, path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    named = [p for p in files if p.name in ("manifest.json", "corpus.json", "zarr.json")]
    pool = named if rng.random() < 0.7 else files
    file = pool[rng.integers(len(pool))]
    if file.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(file.read_text())
        put_nasty(values, rng)
        file.write_text(json.dumps(values))
    else:
        file.write_bytes(damaged(file.read_bytes(), rng))
    opened = train.Corpus(path)
    if opened.verify():
        return
    section = opened.sections[0]
    if not np.array_equal(section.xy, world.corpus_xy):
        raise BrokenError("other coordinates, and nothing is wrong")


def hdf5(folder, rng, world):
    path = folder / "section.h5ad"
    shutil.copy(world.h5ad, path)
    kind = rng.integers(8)
    with contextlib.suppress(KeyError, ValueError, OSError, RuntimeError, TypeError), h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        at = names[rng.integers(len(names))]
        place = f"{at}_{rng.integers(9)}" if rng.random() < 0.5 else at
        if kind < 5 and place == at:
            del file[at]
        if kind == 0:
            file[place] = h5py.ExternalLink(str(world.outside / "private.h5"), str(rng.choice(["/", "/secret"])))
        elif kind == 1:
            file[place] = h5py.SoftLink(str(rng.choice(["/", at, f"/{at}", "..", "/nowhere", "/obsm/spatial", "/uns"])))
        elif kind == 2:
            outside = [(str(world.outside / "private.raw"), 0, 320)]
            file.create_dataset(place, (40,), "f8", external=outside)
        elif kind == 3:
            layout = h5py.VirtualLayout((40,), "f8")
            layout[:] = h5py.VirtualSource(str(world.outside / "private.h5"), "secret", (40,))
            file.create_virtual_dataset(place, layout)
        elif kind == 4:
            file[place] = file[str(rng.choice(["/", "obsm", "uns", "obs"]))]
        elif kind == 5:
            key = str(rng.choice(["encoding-type", "encoding-version", "shape", "_index", "column-order"]))
            file[at].attrs[key] = NASTY[rng.integers(1, 18)]
        elif kind == 6 and isinstance(file[at], h5py.Dataset) and file[at].shape:
            values = file[at][...]
            del file[at]
            file[at] = values[:-1] if rng.random() < 0.5 else np.zeros(3)
    if kind == 7 or rng.random() < 0.15:
        path.write_bytes(damaged(path.read_bytes(), rng))
    adata = stampy.read(path)
    for value in (*adata.obsm.values(), *adata.layers.values(), *adata.uns.values(), adata.X):
        found = value.data if hasattr(value, "indptr") else value
        if isinstance(found, np.ndarray) and found.dtype.kind == "f" and (found == SECRET).any():
            raise BrokenError("values of a file outside")


def tiff(folder, rng, world):
    path = folder / "image.tif"
    pixels = np.arange(64 * 80 * 3, dtype=np.uint8).reshape(64, 80, 3)
    name = str(rng.choice(["image.tif", "../outside/private.tif", str(world.outside / "private.tif"), "x.tif"]))
    uuid = str(rng.choice(["urn:uuid:1", "urn:uuid:2"]))
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="80" SizeY="64" SizeC="3" '
        'SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"><UUID '
        f'FileName="{name}">{uuid}</UUID></TiffData></Pixels></Image></OME>'
    )
    options = {"compression": rng.choice([None, "zlib"]), "tile": (32, 32) if rng.random() < 0.4 else None}
    tifffile.imwrite(path, pixels, photometric="rgb", description=xml, metadata=None, **options)
    whole = rng.random() < 0.15
    if not whole:
        path.write_bytes(damaged(path.read_bytes(), rng))
    with pp.SlideImage.open(path) as image:
        found = image.read(0, 0, 80, 64)
    if whole and not np.array_equal(found, pixels):
        raise BrokenError("other pixels")


KINDS = (checkpoint, published, weights, corpus, hdf5, tiff)

# ---- a case ---------------------------------------------------------------------------------------------------------


def make_world(root, small_model):
    outside, sound = root / "outside", root / "sound"
    outside.mkdir(parents=True)
    sound.mkdir()
    secret = np.full(40, SECRET)
    with h5py.File(outside / "private.h5", "w") as file:
        file["secret"] = secret
    (outside / "private.raw").write_bytes(secret.tobytes())
    tifffile.imwrite(outside / "private.tif", np.full((64, 80, 3), 77, np.uint8), photometric="rgb")
    section = datasets.toy(n_spots=40, rng=0)
    vocabulary = pp.Vocabulary.from_sections([section], min_spots=1)
    models.save(small_model(vocabulary), sound / "weights")
    section.write_h5ad(sound / "section.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = train.Corpus.build(section, sound / "corpus", max_tokens=32, size_px=16, n_workers=1, progress=False)
    return SimpleNamespace(root=root, outside=outside, weights=sound / "weights", h5ad=sound / "section.h5ad",
                           corpus=sound / "corpus", corpus_xy=made.sections[0].xy)  # fmt: skip


def run_case(number, world):
    """Draw the case of that number and run it; return its description and outcome."""
    rng = np.random.default_rng(number)
    make = KINDS[rng.integers(len(KINDS))]
    folder = world.root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = f"case {number}: {make.__name__}"
    try:
        with warnings.catch_warnings(), watched(world.root / "case", world.outside):
            warnings.simplefilter("ignore")
            make(folder, rng, world)
    except CLEAR as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if not frame.filename.startswith(SOURCE) or len(str(error)) < 25:
            raise BrokenError(f"{name}: no clear error, {type(error).__name__}: {error}") from error
        return make.__name__, type(error).__name__
    except BrokenError as error:
        raise BrokenError(f"{name}: {error}") from error
    except Exception as error:
        raise BrokenError(f"{name}: {type(error).__name__}: {error}") from error
    return make.__name__, "result"


def run_cases(numbers, world, *, most=30, say=lambda _: None):
    """Outcomes of the cases, and failures, which `say` reports at once."""
    ends, broken = Counter(), []
    for number in numbers:
        try:
            ends[run_case(number, world)] += 1
        except BrokenError as error:
            broken.append(str(error)[:600])
            say(broken[-1])
            if len(broken) == most:
                break
    return ends, broken


@pytest.fixture(scope="module")
def world(small_model, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("fuzz") / "world", small_model)


def test_some_files(world):
    _, broken = run_cases(range(60), world)
    assert not broken, "\n".join(broken)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_of_files(world):
    ends, broken = run_cases(range(1000, 11_000), world)
    assert not broken, "\n".join(broken)
    assert {name for name, end in ends if end == "result"} == {kind.__name__ for kind in KINDS} - {"published"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--most", type=int, default=30, help="stop after so many broken ones")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import _small_model

    with tempfile.TemporaryDirectory() as root:
        world = make_world(Path(root) / "world", _small_model)
        if options.only is not None:
            print(run_case(options.only, world))
            return 0
        numbers = range(options.seed, options.seed + options.cases)
        ends, broken = run_cases(numbers, world, most=options.most, say=lambda text: print(text, flush=True))
    for (name, end), n in sorted(ends.items()):
        print(f"{n:6} {name:14} {end}")
    print(f"{sum(ends.values())} cases ended well, {len(broken)} did not")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
