"""Sections in the forms of other users: a plain section is drawn, and changed by random "disguises".

A disguise returns what a warning or an error may say of it (a regular expression), or "" where the result must be that
of the truth. `col_gene` of a `Case` holds the true gene of each column, `rows` the true spot of each row.
"""

import dataclasses
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from fuzz_common import choice, dense
from scipy import sparse

from stampy import pp
from stampy.pp._genes.names import FOLDER, human_genes

PITCH, ROW, UM = 30, 26, 100 / 30
SPECIAL = ["SEPTIN2", "SEPTIN7", "MARCHF6", "MTARC1", "HLA-A", "HLA-DRA", "NKX2-1", "H2AZ1", "RPL22", "DELEC1"]


@lru_cache(maxsize=1)
def known_genes():
    """Genes of HGNC that the truth is drawn from: some that are odd, and each 150th with an id and an ortholog."""
    human = human_genes()
    mouse = mouse_of()
    found = [human.approved[name] for name in SPECIAL]
    usual = [g for g, i in enumerate(human.ids) if i in mouse and g not in found]
    return found + usual[:: len(usual) // 50][:50]


@lru_cache(maxsize=1)
def mouse_of():
    table = pd.read_csv(FOLDER / "mouse_orthologs.tsv.gz", sep="\t", comment="#", keep_default_na=False)
    once = table[~table["human_id"].duplicated(keep=False) & ~table["mouse"].duplicated(keep=False)]
    return {h: (m, i) for h, m, i in zip(once["human_id"], once["mouse"], once["mouse_id"], strict=True) if h and i}


def vocabulary():
    human, genes = human_genes(), known_genes()
    frame = {"gene_id": [human.ids[g] for g in genes], "symbol": [human.symbols[g] for g in genes],
             "divisor": [1 + g % 5 for g in range(len(genes))]}  # fmt: skip
    return pp.Vocabulary(pd.DataFrame(frame))


@dataclasses.dataclass
class Truth:
    genes: np.ndarray  # rows of the vocabulary
    counts: np.ndarray
    xy: np.ndarray
    picture: np.ndarray

    @property
    def ids(self):
        return [human_genes().ids[known_genes()[g]] for g in self.genes]

    @property
    def symbols(self):
        return [human_genes().symbols[known_genes()[g]] for g in self.genes]


@dataclasses.dataclass
class Case:
    truth: Truth
    data: object  # AnnData or SpatialData
    rows: np.ndarray  # true spot of each row
    col_gene: np.ndarray  # row of the vocabulary for each column, -1 if not a gene
    options: dict = dataclasses.field(default_factory=dict)  # library_key, layer, um_per_px, organism
    matters: list = dataclasses.field(default_factory=list)
    told: list = dataclasses.field(default_factory=list)
    plain: AnnData | None = None  # the truth, where a disguise changes it
    parts: list = dataclasses.field(default_factory=list)  # truths of several sections
    path: Path | None = None  # where the section is to be read from
    reading: dict = dataclasses.field(default_factory=dict)  # options of `stampy.read`
    names: dict = dataclasses.field(default_factory=dict)  # there: name of a spot -> the true one
    shuffled: bool = False
    spoilt: bool = False
    strangers: bool = False  # spots in addition to those of the truth
    pictured: bool = True

    def do(self, disguise, rng, *arguments):
        self.told.append(disguise.__name__)
        matter = disguise(self, rng, *arguments)
        if matter:
            self.matters.append(matter)


def draw(rng):
    """A truth: spots on Visium's grid in a picture that looks like H&E, wider than high."""
    n_rows, n_cols = int(rng.integers(4, 6)), int(rng.integers(8, 12))
    row, col = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    xy = np.column_stack([col * PITCH + (row % 2) * PITCH // 2, row * ROW]) + 40.0
    genes = rng.permutation(len(known_genes()))[: int(rng.integers(35, 50))]
    counts = rng.poisson(rng.gamma(0.8, 3, len(genes)) * rng.integers(1, 5, (len(xy), 1)))
    counts[:, 0] += 1
    height, width = int(xy[:, 1].max()) + 40, int(xy[:, 0].max()) + 40
    coarse = rng.integers(-60, 60, (height // 4 + 1, width // 4 + 1, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    picture = np.clip(np.array([190, 120, 170]) + coarse + rng.integers(-20, 20, coarse.shape), 0, 255)
    picture[:8] = 245
    return Truth(genes, counts, xy, picture.astype(np.uint8))


def plain(truth):
    """The truth as stampy has it best."""
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 55 / UM}
    return AnnData(
        sparse.csr_matrix(truth.counts.astype(np.float32)),
        obs=pd.DataFrame(index=[f"{barcode(i)}-1" for i in range(len(truth.xy))]),
        var=pd.DataFrame({"gene_ids": truth.ids}, index=truth.symbols),
        obsm={"spatial": truth.xy.copy()},
        uns={"spatial": {"s": {"images": {"hires": truth.picture.copy()}, "scalefactors": factors, "metadata": {}}}},
    )


def barcode(i):
    return (
        "".join("ACGT"[(i * 7919 + 13 * k + (i >> k)) % 4] for k in range(8))
        + np.base_repr(i + 256, 4).translate(str.maketrans("0123", "ACGT"))
        + "ACG"
    )


def new_case(truth):
    return Case(truth, plain(truth), np.arange(len(truth.xy)), truth.genes.copy())


# ---- genes -----------------------------------------------------------------------------------------------------------

PREFIXES = ("GRCh38_", "GRCh38-", "hg19_", "GRCh38___", "hg38_", "GRCh38.", "GRCh38______")
ID_NAMES = ("gene_ids", "gene_id", "ensembl_id", "Ensembl", "ENSEMBL", "feature_id", "ensembl.gene.id", "Gene ID",
            "gene_ids-0", "ensg", "ens_id", "Accession")  # fmt: skip
SYMBOL_NAMES = ("symbol", "gene_symbol", "SYMBOL", "gene_name", "feature_name", "Gene Symbol", "hgnc_symbol", "name")


def earlier(gene, rng):
    """A previous symbol that is no other gene's, else the approved one."""
    human = human_genes()
    found = [name for name, g in _of(human.previous).get(gene, ())]
    return str(rng.choice(found)) if found else human.symbols[gene]


def alias(gene, rng):
    human = human_genes()
    found = [name for name, g in _of(human.aliases).get(gene, ()) if re.fullmatch(r"[A-Z][A-Z0-9-]+", name)]
    return str(rng.choice(found)) if found else human.symbols[gene]


@lru_cache(maxsize=4)
def _grouped(kind):
    found = {}
    for name, gene in getattr(human_genes(), kind).items():
        found.setdefault(gene, []).append((name, gene))
    return found


def _of(names):
    return _grouped("previous" if names is human_genes().previous else "aliases")


def dated(gene, rng):
    """What a spreadsheet makes of SEPT2, MARCH6 and DEC1."""
    symbol = human_genes().symbols[gene]
    found = re.fullmatch(r"(SEPTIN|MARCHF)(\d+)", symbol)
    if not found:
        return symbol
    month, day = {"SEPTIN": ("Sep", 9), "MARCHF": ("Mar", 3)}[found[1]], int(found[2])
    return choice(rng, f"{day}-{month[0]}", f"{month[0]}-{day:02}", f"2021-{month[1]:02}-{day:02}",
                  f"2021-{month[1]:02}-{day:02} 00:00:00", f"{day:02}-{month[0]}",
                  f"{month[0].upper()}-{day}")  # fmt: skip


WRITERS = {
    "symbols": lambda g, rng: human_genes().symbols[g],
    "ids": lambda g, rng: human_genes().ids[g],
    "versions": lambda g, rng: f"{human_genes().ids[g]}.{rng.integers(1, 30)}",
    "previous": earlier,
    "aliases": alias,
    "dates": dated,
    "R dots": lambda g, rng: re.sub(r"[^A-Za-z0-9._]", ".", human_genes().symbols[g]),
    "genome": lambda g, rng: choice(rng, *PREFIXES[:4]) + human_genes().symbols[g],
    "genome ids": lambda g, rng: choice(rng, *PREFIXES[:4]) + human_genes().ids[g],
    "both": lambda g, rng: f"{human_genes().symbols[g]}_{human_genes().ids[g]}",
    "both, id first": lambda g, rng: f"{human_genes().ids[g]}|{human_genes().symbols[g]}",
    "blanks": lambda g, rng: choice(rng, " {}", "{} ", "\t{}", "{}").format(human_genes().symbols[g]),
    "lower case": lambda g, rng: human_genes().symbols[g].lower(),
    "quoted": lambda g, rng: f'"{human_genes().symbols[g]}"',
    "with place": lambda g, rng: f"{human_genes().symbols[g]} ({human_genes().ids[g]})",
    "ids in lower case": lambda g, rng: human_genes().ids[g].lower(),
    "ids made unique": lambda g, rng: f"{human_genes().ids[g]}{choice(rng, '', '-1', '.1', '_1')}",
    "PAR": lambda g, rng: f"{human_genes().ids[g]}.{rng.integers(1, 30)}_PAR_Y",
}  # fmt: skip
GENE_WORDS = r"gene|names|symbol|var|counts are dropped"


def name_genes(case, rng):
    """Names of one kind, or of a kind for each gene, in `var_names` or in a column of any name."""
    genes = [known_genes()[g] for g in case.col_gene]
    way = choice(rng, *WRITERS, "mixed", "mixed")
    mixed = ("symbols", "ids", "versions", "previous", "R dots", "genome", "both")
    ways = [choice(rng, *mixed) if way == "mixed" else way for _ in genes]
    names = [WRITERS[w](g, rng) for w, g in zip(ways, genes, strict=True)]
    case.told[-1] += f" ({way})"
    a = case.data
    column = None
    if rng.random() < 0.3:
        column = choice(rng, *(ID_NAMES[:9] if way in ("ids", "versions", "genome ids") else SYMBOL_NAMES))
        case.told[-1] += f" in {column!r}"
    frame = pd.DataFrame(index=[str(i) for i in range(a.n_vars)] if column else pd.Index(names, dtype=object))
    if column:
        frame[column] = pd.Categorical(names) if rng.random() < 0.3 else names
    if rng.random() < 0.3:
        frame.insert(0, "n_cells", 5)
        frame["highly_variable"] = True
    if not frame.index.is_unique:
        frame.index = [f"{n}-{i}" if d else n for i, (n, d) in enumerate(zip(frame.index, frame.index.duplicated(),
        strict=True))]  # fmt: skip
    a.var = frame
    return GENE_WORDS if way in ("aliases", "dates", "lower case", "R dots", "previous", "mixed", "quoted",
                                   "ids in lower case") else ""  # fmt: skip


def id_column(case, rng):
    """Symbols in `var_names` that are right, wrong or missing; ids in a column of some name, not of all genes."""
    a = case.data
    ids, symbols = case.truth.ids, np.array(case.truth.symbols, dtype=object)
    how = choice(rng, "right", "shuffled", "numbers", "some missing")
    index = rng.permutation(symbols) if how == "shuffled" else symbols
    if how == "numbers":
        index = np.arange(len(ids)).astype(str)
    lacking = rng.random(len(ids)) < 0.3 if how == "some missing" else np.zeros(len(ids), dtype=bool)
    column = [choice(rng, None, np.nan, "", "NA") if lack else i for i, lack in zip(ids, lacking, strict=True)]
    a.var = pd.DataFrame({choice(rng, *ID_NAMES): column}, index=index)
    case.told[-1] += f" ({how}, {a.var.columns[0]!r})"
    return "symbol is that of another" if how == "shuffled" else ""


def swapped_columns(case, rng):
    """Ids in the place of symbols and vice versa, or both in columns with uninformative names."""
    names = choice(rng, ("gene_symbol", "gene_id"), ("feature_name", "feature_id"), ("a", "b"), ("0", "1"))
    index = choice(rng, case.truth.symbols, case.truth.ids, np.arange(len(case.truth.ids)).astype(str))
    case.data.var = pd.DataFrame({names[0]: case.truth.ids, names[1]: case.truth.symbols}, index=index)
    case.told[-1] += f" ({names})"
    return ""


def two_species(case, rng):
    """Genes of man and mouse in one table, with the genome in front."""
    a = case.data
    mark = choice(rng, ("GRCh38_", "mm10_"), ("GRCh38______", "mm10______"), ("hg19_", "mm10_"), ("human_", "mouse_"))
    other = [mouse_of()[i][0] for i in case.truth.ids if i in mouse_of()][:12]
    names = [mark[0] + s for s in case.truth.symbols] + [mark[1] + s for s in other]
    extra = rng.poisson(choice(rng, 0.02, 3), (a.n_obs, len(other)))
    replace_x(case, np.hstack([dense(a), extra]), pd.DataFrame(index=names),
              np.concatenate([case.col_gene, np.full(len(other), -2)]))  # fmt: skip
    case.told[-1] += f" ({mark})"
    return "another species|counts are dropped|genes of the section"


def split_columns(case, rng):
    """The counts of some genes in two columns, as make.unique, transcripts or probes leave them."""
    a = case.data
    x = dense(a)
    some = rng.permutation(a.n_vars)[: int(rng.integers(1, 6))]
    part = rng.binomial(x[:, some].astype(int), 0.4)
    x = x.copy()
    x[:, some] -= part
    mark = choice(rng, "-1", ".1", "_1", "-2", "")
    ids = rng.random() < 0.4
    names = list(case.truth.ids if ids else case.truth.symbols)
    again = [f"{names[i]}{mark if not ids else '.7'}" for i in some]
    case.told[-1] += f" ({again[0]})"
    replace_x(case, np.hstack([x, part]), pd.DataFrame(index=[*names, *again]),
              np.concatenate([case.col_gene, case.col_gene[some]]))  # fmt: skip
    return r"repeat"


def other_features(case, rng):
    """Antibodies, guides and control probes in addition to genes."""
    a = case.data
    n = int(rng.integers(1, 6))
    typed = rng.random() < 0.6
    names = {True: ["CD3E", "CD4_TotalSeqB", "IgG1", "PTPRC-1", "SEPT2"],
             False: ["NegControlProbe_00042", "BLANK_0006", "antisense_PROKR2", "NegControlCodeword_0500",
                     "UnassignedCodeword_0020"]}[typed][:n]  # fmt: skip
    extra = rng.poisson(200, (a.n_obs, n))
    var = a.var.copy()
    if typed:
        key = choice(rng, "feature_types", "feature_type", "Feature Type")
        var[key] = pd.Categorical(["Gene Expression"] * a.n_vars)
        more = pd.DataFrame({key: choice(rng, "Antibody Capture", "Custom", "Protein Expression")}, index=names)
    else:
        more = pd.DataFrame(index=names)
    var = pd.concat([var.astype(object), more])
    var = var.where(var.notna(), choice(rng, "", None)) if len(var.columns) else var
    case.told[-1] += f" ({names[0]}...)"
    replace_x(case, np.hstack([dense(a), extra]), var, np.concatenate([case.col_gene, np.full(n, -1)]))
    return ""


def unknown_genes(case, rng):
    """Human genes outside the vocabulary, and unknown names, with few or many counts."""
    a = case.data
    high = rng.random() < 0.6
    names = choice(rng, ["GAPDH", "ACTB", "B2M"], ["AL592183.1", "LOC12345"], ["12345", "678"], ["ENST00000361390"])
    extra = rng.poisson(300 if high else 0.05, (a.n_obs, len(names)))
    more = pd.DataFrame(index=names)
    var = pd.concat([a.var.astype(object), more])
    replace_x(case, np.hstack([dense(a), extra]), var, np.concatenate([case.col_gene, np.full(len(names), -2)]))
    return "counts are dropped|genes of the section are in"


def mouse(case, rng):
    """Mouse names: right with `organism`, an error without."""
    a = case.data
    table = mouse_of()
    kept = np.flatnonzero([i in table for i in case.truth.ids])
    pairs = [table[case.truth.ids[k]] for k in kept]
    replace_x(case, dense(a)[:, kept], pd.DataFrame(index=[p[0] for p in pairs]), case.col_gene[kept])
    how = choice(rng, "symbols", "ids", "both", "versions")
    if how in ("ids", "versions"):
        case.data.var_names = [p[1] + (".4" if how == "versions" else "") for p in pairs]
    elif how == "both":
        case.data.var["gene_ids"] = [p[1] for p in pairs]
    case.plain = plain(case.truth)[:, kept].copy()
    asked = rng.random() < 0.8
    if asked:
        case.options["organism"] = "mouse"
    case.told[-1] += f" ({how}{', asked for' if asked else ''})"
    return "" if asked else "mouse"


def title_case(case, rng):
    """Human genes written as mouse ones are."""
    case.data.var = pd.DataFrame(index=[s.title() for s in case.truth.symbols])
    return "mouse|case"


def replace_x(case, x, var, col_gene):
    old = case.data
    case.data = AnnData(sparse.csr_matrix(np.asarray(x, dtype=np.float32)), obs=old.obs, obsm=dict(old.obsm),
                        uns=dict(old.uns), var=var)  # fmt: skip
    case.col_gene = np.asarray(col_gene)


NAMINGS = (name_genes, name_genes, name_genes, name_genes, id_column, id_column, split_columns, mouse, title_case,
           swapped_columns, two_species)  # fmt: skip
MORE_GENES = (other_features, unknown_genes)

# ---- counts ----------------------------------------------------------------------------------------------------------


def storage(case, rng):
    kind = choice(rng, "u1", "u2", "i1", "i2", "i4", "i8", "f4", "f8", "u8", "u4")
    x = dense(case.data)
    if x.max(initial=0) > (np.iinfo(kind).max if kind[0] in "iu" else np.inf):
        kind = "i4"
    make = choice(rng, np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asfortranarray)
    case.told[-1] += f" ({kind}, {make.__name__})"
    case.data.X = make(x.astype(kind))
    return ""


def in_layer(case, rng):
    """Raw counts in a layer of some name; X missing, zero, log-normalised or scaled; the layer named or not."""
    a = case.data
    name = choice(rng, "counts", "raw", "umi")
    x = dense(a)
    a.layers[name] = a.X
    how = choice(rng, "none", "zero", "log", "scaled", "depth log")
    a.X = {"none": None, "zero": np.zeros_like(x), "log": np.log1p(x), "scaled": x - x.mean(axis=0),
           "depth log": sparse.csr_matrix(np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4))}[how]  # fmt: skip
    given = rng.random() < 0.6
    if given:
        case.options["layer"] = name
    case.told[-1] += f" ({how}, {name}{', given' if given else ''})"
    return "" if given else rf"layer=?'?{name}|layer"


def fractions(case, rng):
    """Fractional counts: corrected counts change the result, with a warning; depth-normalised counts do not."""
    x = dense(case.data).astype(np.float64)
    how = choice(rng, "corrected", "depth", "tiny")
    if how == "corrected":
        x = x * 30 * rng.uniform(0.8, 1.2, x.shape)
    elif how == "depth":
        x = x / x.sum(axis=1, keepdims=True) * 1e4
    else:
        x = x * 1e-3
    case.data.X = sparse.csr_matrix(x.astype(np.float32))
    case.told[-1] += f" ({how})"
    return "fraction|normalised"


def transposed(case, rng):
    a = case.data
    case.data = AnnData(sparse.csr_matrix(dense(a).T), obs=a.var, var=a.obs)
    return "transposed|adata.T|obsm|coordinates"


def odd_storage(case, rng):
    """Counts in dask, as bool, with zeros stored, unsorted; some missing, negative or scaled by a whole number."""
    x = dense(case.data)
    how = choice(rng, "dask", "zeros", "unsorted", "twice", "nan", "negative", "masked layer", "f2")
    case.told[-1] += f" ({how})"
    if how == "dask":
        import dask.array

        case.data.X = dask.array.from_array(x, chunks=(7, x.shape[1]))
    elif how == "zeros":
        case.data.X = sparse.csr_matrix((x.ravel(), np.tile(np.arange(x.shape[1]), len(x)),
                                         np.arange(len(x) + 1) * x.shape[1]), shape=x.shape)  # fmt: skip
    elif how == "unsorted":
        found = sparse.csr_matrix(x[:, ::-1])
        case.data.X = sparse.csr_matrix((found.data, x.shape[1] - 1 - found.indices, found.indptr), shape=x.shape)
    elif how == "twice":
        case.data.X = x * 2
    elif how == "f2":
        case.data.X = x.astype(np.float16)
    elif how == "masked layer":
        case.data.layers["log"], case.options["layer"] = np.log1p(x), "log"
        return "log-normalised|fraction"
    else:
        x[int(rng.integers(len(x))), int(rng.integers(x.shape[1]))] = np.nan if how == "nan" else -3
        case.data.X = x
        return "NaN|negative"
    return ""


COUNTS = (odd_storage, storage, storage, in_layer, fractions)

# ---- coordinates -----------------------------------------------------------------------------------------------------

XY_NAMES = (("x", "y"), ("X", "Y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"),
            ("x_centroid", "y_centroid"), ("pixel_x", "pixel_y"), ("centroid_x", "centroid_y"), ("x_px", "y_px"),
            ("center_x", "center_y"), ("CenterX_global_px", "CenterY_global_px"), ("sdimx", "sdimy"),
            ("spatial_x", "spatial_y"), ("x_coord", "y_coord"), ("col", "row"), ("spatial1", "spatial2"),
            ("array_x", "array_y"), ("pxl_col", "pxl_row"), ("x_slide_mm", "y_slide_mm"), ("a", "b"))  # fmt: skip
XY_WORDS = r"coordinates|'x'|x and y|third column|obsm|apart|wide"


def coordinate_storage(case, rng):
    xy = case.data.obsm["spatial"]
    how = choice(rng, "int", "i2", "f4", "object", "text", "third constant", "third", "fortran", "f2", "u2")
    if how == "f2" and not np.array_equal(xy.astype("f2"), xy):  # rounded: another result, without a warning
        how = "f4"
    made = {
        "int": lambda: xy.astype(np.int64), "i2": lambda: np.rint(xy).astype(np.int16), "f4": lambda: xy.astype("f4"),
        "object": lambda: xy.astype(object), "text": lambda: xy.astype(str), "u2": lambda: xy.astype(np.uint16),
        "third constant": lambda: np.column_stack([xy, np.zeros(len(xy))]), "f2": lambda: xy.astype("f2"),
        "third": lambda: np.column_stack([xy, rng.integers(0, 3, len(xy))]), "fortran": lambda: np.asfortranarray(xy),
    }[how]()  # fmt: skip
    case.data.obsm["spatial"] = made
    case.told[-1] += f" ({how})"
    return "third column" if how == "third" else ""


def coordinate_table(case, rng):
    """x and y under many names, in any order, among other columns."""
    xy = np.asarray(case.data.obsm["spatial"])
    x, y = choice(rng, *XY_NAMES)
    columns = {x: xy[:, 0], y: xy[:, 1]}
    if rng.random() < 0.4:
        columns |= choice(rng, {"in_tissue": 1}, {"array_row": np.arange(len(xy)), "array_col": 3}, {"z": 0.0},
                          {"area": 5.0}, {"x_um": xy[:, 0] * UM, "y_um": xy[:, 1] * UM})  # fmt: skip
    order = rng.permutation(list(columns))
    case.data.obsm["spatial"] = pd.DataFrame(columns, index=case.data.obs_names)[list(order)]
    case.told[-1] += f" ({list(order)})"
    clear = len(columns) == 2 and (x, y) in XY_NAMES[:13]
    return "" if clear else XY_WORDS


def missing_places(case, rng):
    xy = np.asarray(case.data.obsm["spatial"], dtype=float).copy()
    xy[rng.random(len(xy)) < 0.2] = np.nan
    xy[0, 0] = choice(rng, np.nan, np.inf)
    case.data.obsm["spatial"] = xy
    return "NaN|infinite"


def other_units(case, rng):
    """Coordinates of the array, of a reduced image, in µm, or swapped."""
    a = case.data
    xy = np.asarray(a.obsm["spatial"], dtype=float)
    how = choice(rng, "array", "hires px", "um", "swapped", "mm")
    factors = a.uns["spatial"]["s"]["scalefactors"]
    if how == "array":
        xy = xy / case.options.get("unit", 1)
        a.obsm["spatial"] = np.column_stack([np.rint((xy[:, 0] - 40) / 15), np.rint((xy[:, 1] - 40) / ROW)])
    elif how == "hires px":  # the picture is the reduced one of a section five times as large
        factors["tissue_hires_scalef"] = factors["tissue_hires_scalef"] / 5
        factors["spot_diameter_fullres"] *= 5
    elif how == "um":
        a.obsm["spatial"] = xy * UM
    elif how == "mm":
        a.obsm["spatial"] = xy * UM / 1000
    else:
        a.obsm["spatial"] = xy[:, ::-1].copy()
    case.told[-1] += f" ({how})"
    return r"outside the image|platform|wide|um_per_px|apart|array|swapped|px across|coordinates look like"


def scaled(case, rng):
    """A reduced picture: coordinates in px of one that is k times as large."""
    a, k = case.data, int(rng.integers(2, 9))
    a.obsm["spatial"] = np.asarray(a.obsm["spatial"], dtype=float) * k
    factors = a.uns["spatial"]["s"]["scalefactors"]
    factors |= {"tissue_hires_scalef": 1 / k, "spot_diameter_fullres": 55 / UM * k}
    if rng.random() < 0.4:
        factors["fiducial_diameter_fullres"] = 105 / UM * k
    if rng.random() < 0.5:  # Space Ranger's theoretical spot
        factors["spot_diameter_fullres"] *= 65 / 55
    case.options["unit"] = k
    return ""


def elsewhere(case, rng):
    """Coordinates under another name, or in `obs`."""
    xy = case.data.obsm.pop("spatial")
    if rng.random() < 0.5:
        case.data.obsm[choice(rng, "X_spatial", "spatial_fullres", "coords")] = xy
    else:
        case.data.obs["imagecol"], case.data.obs["imagerow"] = xy.T
    return "obsm|coordinates"


COORDINATES = (elsewhere, coordinate_storage, coordinate_table, coordinate_table, missing_places, other_units)
