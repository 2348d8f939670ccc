"""A small section, and its parts as the platforms write them."""

import gzip
import io
import json

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

GENES = ["GAPDH", "ACTB", "KRT8", "CD3E", "COL1A1"]
IDS = [f"ENSG0000000000{i}" for i in range(len(GENES))]
N = 12
BARCODES = ["".join("ACGT"[(i >> 2 * k) & 3] for k in range(16)) + "-1" for i in range(N)]
X = np.random.default_rng(0).poisson(2.0, (N, len(GENES))).astype(np.int32)
XY = np.array([[300.0 + 100 * (i % 4), 200.0 + 90 * (i // 4)] for i in range(N)])  # x, y
FACTORS = {"spot_diameter_fullres": 55.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1,
           "fiducial_diameter_fullres": 90.0}  # fmt: skip


def put(path, content):
    """Write text or bytes to a file, gzipped according to its name."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def positions(header=True, quoted=False, bom=False, separator=",", newline="\n", barcodes=BARCODES, in_tissue=None):
    """Space Ranger's table, in another order than the counts."""
    table = pd.DataFrame({"barcode": barcodes, "in_tissue": 1 if in_tissue is None else in_tissue,
                          "array_row": np.arange(N) // 4, "array_col": np.arange(N) % 4,
                          "pxl_row_in_fullres": XY[:, 1].astype(int),
                          "pxl_col_in_fullres": XY[:, 0].astype(int)})  # fmt: skip
    text = table.iloc[::-1].to_csv(index=False, header=header, quoting=1 if quoted else 0, sep=separator,
                                   lineterminator=newline)  # fmt: skip
    return ("\ufeff" if bom else "") + text


def h5(x=X, barcodes=BARCODES, ids=IDS, names=GENES, kinds=None, **features):
    """The bytes of a feature-barcode matrix."""
    x = sparse.csr_matrix(x)
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        group = file.create_group("matrix")
        for name, value in (("data", x.data), ("indices", x.indices), ("indptr", x.indptr), ("shape", x.shape[::-1])):
            group[name] = np.asarray(value)
        group["barcodes"] = np.array(barcodes, dtype="S")
        kinds = ["Gene Expression"] * len(ids) if kinds is None else kinds
        for name, value in {"id": ids, "name": names, "feature_type": kinds, **features}.items():
            group[f"features/{name}"] = np.array(value, dtype="S")
    return stream.getvalue()


def mtx(x=X):
    """The bytes of matrix.mtx: genes by spots."""
    stream = io.BytesIO()
    x = sparse.coo_matrix(np.asarray(x).T)
    scipy_io.mmwrite(stream, x, field="real" if x.dtype.kind == "f" else "integer")
    return stream.getvalue()


def features(columns=3):
    """features.tsv, or genes.tsv with two columns."""
    return "".join("\t".join((i, g, "Gene Expression")[:columns]) + "\n" for i, g in zip(IDS, GENES, strict=True))


def png(width=30, height=20):
    """The bytes of a picture."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)).save(stream, "png")
    return stream.getvalue()


def spatial(folder, end="", prefix="", table="tissue_positions.csv", **options):
    """Positions, scale factors and pictures."""
    put(folder / f"{prefix}{table}{end}", positions(header="list" not in table, **options))
    put(folder / f"{prefix}scalefactors_json.json{end}", json.dumps(FACTORS))
    put(folder / f"{prefix}tissue_hires_image.png{end}", png())
    put(folder / f"{prefix}tissue_lowres_image.png{end}", png(6, 4))


def same(found, x=X, xy=XY, names=BARCODES, genes=GENES):
    """The section is the small one, spot by spot."""
    assert found.obs_names.tolist() == list(names)
    assert found.var_names.tolist() == list(genes)
    np.testing.assert_array_equal(found.X.toarray() if sparse.issparse(found.X) else found.X, x)
    if xy is None:
        assert "spatial" not in found.obsm
    else:
        np.testing.assert_allclose(found.obsm["spatial"], xy)
