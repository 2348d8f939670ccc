"""Output of the command line on a full disk."""

import subprocess
import sys

import anndata as ad
import numpy as np

from stampy import datasets
from stampy._io.write import append, write

LIMITED = """
import resource, sys
from pathlib import Path
import anndata as ad
import numpy as np
from stampy._io.write import append, write

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
adata = ad.read_h5ad(source)
adata.obsm["X_stamp"], adata.uns["stamp"] = np.ones((adata.n_obs, 64), np.float32), {"model": "m"}
size, most = source.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for share in (0.3, 0.97):
    for what, limit in (("append", size + int(15_000 * share)), ("write", int(size * share))):
        target = folder / f"{what}.h5ad"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))  # writing beyond it fails, as on a full disk
        try:
            append(adata, ["X_stamp"], source, target) if what == "append" else write(adata, target)
        except OSError as error:
            print(what, share, "refused", sorted(folder.iterdir()))
"""


def test_failed_write_raises_instead_of_crashing(tmp_path):
    source, folder = tmp_path / "source.h5ad", tmp_path / "out"
    folder.mkdir()
    write(datasets.toy(n_spots=60, image=False), source)
    done = subprocess.run([sys.executable, "-c", LIMITED, source, folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    refused = [f"{what} {share} refused []" for share in (0.3, 0.97) for what in ("append", "write")]
    assert done.stdout.splitlines() == refused


def test_files_equal_those_of_anndata(tmp_path):
    adata = datasets.toy(n_spots=60)
    adata.raw = adata.copy()
    adata.layers["counts"] = adata.X.toarray()
    adata.obs["name"] = ["a", "b", "c"] * 20
    adata.copy().write_h5ad(tmp_path / "theirs.h5ad", compression="gzip")
    write(adata.copy(), tmp_path / "ours.h5ad")
    theirs, ours = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("theirs", "ours"))
    assert str(ours) == str(theirs)
    assert ours.obs.equals(theirs.obs)
    assert ours.var.equals(theirs.var)
    assert (ours.X != theirs.X).nnz == 0
    assert (ours.raw.X != theirs.raw.X).nnz == 0
    np.testing.assert_array_equal(ours.layers["counts"], theirs.layers["counts"])
    np.testing.assert_array_equal(
        ours.uns["spatial"]["toy"]["images"]["hires"], theirs.uns["spatial"]["toy"]["images"]["hires"]
    )


def test_results_are_appended(tmp_path):
    adata = datasets.toy(n_spots=60, image=False)
    write(adata, tmp_path / "a.h5ad")
    adata.obsm["X_stamp"], adata.uns["stamp"] = np.ones((60, 8), np.float32), {"model": "m"}
    assert append(adata, ["X_stamp"], tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "b.h5ad").obsm["X_stamp"], 1)
