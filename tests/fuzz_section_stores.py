"""A section as SpatialData of many kinds, and two sections in one table."""

import numpy as np
import pandas as pd
from anndata import concat
from fuzz_common import choice
from fuzz_sections import UM, draw, plain


def similar(rng):
    """A similarity (3, 3): scaled, turned by quarters or any angle, mirrored, moved."""
    angle = choice(rng, 0, np.pi / 2, np.pi, 0.3)
    scale = choice(rng, 1, 0.5, 4, 0.2125)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    found = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    if rng.random() < 0.2:
        found = found @ np.diag([-1, 1, 1])
    found[:2, 2] = rng.integers(-50, 50, 2) if rng.random() < 0.6 else 0
    return found


def affine(matrix):
    from spatialdata.transformations import Affine

    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


def picture_of(truth, rng, matrix, system):
    """An image element: order of channels, dtype, several scales."""
    from spatialdata.models import Image2DModel

    picture = truth.picture
    options = {"transformations": {system: affine(matrix)}}
    how = choice(rng, "plain", "named", "numbers", "scales", "float", "u2", "bgr", "rgba")
    if how == "bgr":
        picture, options["c_coords"] = picture[..., ::-1], ["B", "G", "R"]
    elif how == "rgba":
        picture = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
        options["c_coords"] = ["r", "g", "b", "a"]
    elif how == "named":
        options["c_coords"] = ["r", "g", "b"]
    elif how == "numbers":
        options["c_coords"] = ["0", "1", "2"]
    elif how == "scales":
        options["scale_factors"] = [2]
    elif how == "float":
        picture = picture / 255
    elif how == "u2":
        picture = picture.astype(np.uint16) * 257
    if rng.random() < 0.3 and how != "scales":
        return how, Image2DModel.parse(picture, dims=("y", "x", "c"), **options)
    return how, Image2DModel.parse(np.ascontiguousarray(picture.transpose(2, 0, 1)), dims=("c", "y", "x"), **options)


def element_of(truth, rng, kind, to_world, system):
    """Shapes, points or labels whose centres lie at the truth's in the world, and the names of its instances."""
    from spatialdata.models import Labels2DModel, PointsModel, ShapesModel

    n = len(truth.xy)
    own = similar(rng) if kind != "labels" else np.eye(3)
    world = np.column_stack([truth.xy, np.ones(n)]) @ to_world.T
    xy = np.linalg.solve(own, world.T).T[:, :2]
    first = choice(rng, 0, 1, 100)
    unit = np.sqrt(abs(np.linalg.det(to_world[:2, :2])) / abs(np.linalg.det(own[:2, :2])))
    ids = np.arange(n) + first
    if kind == "shapes":
        radius = 27.5 / UM * unit
        spots = ShapesModel.parse(xy, geometry=0, radius=radius, index=ids, transformations={system: affine(own)})
        return ids, spots, unit
    if kind == "points":
        frame = pd.DataFrame(xy, columns=["x", "y"], index=ids)
        return ids, PointsModel.parse(frame, transformations={system: affine(own)}), unit
    ids = ids + 1
    raster = np.zeros(truth.picture.shape[:2], np.int32)
    for label, (x, y) in zip(ids, truth.xy.astype(int), strict=True):
        raster[y - 2 : y + 2, x - 2 : x + 2] = label
    return ids, Labels2DModel.parse(raster, dims=("y", "x"), transformations={system: affine(to_world)}), 1.0


def spatialdata(case, rng):
    """A SpatialData whose table annotates shapes, points or labels, anywhere in a coordinate system."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    truth = case.truth
    kind = choice(rng, "shapes", "shapes", "points", "labels")
    system = choice(rng, "global", "global", "s_downscaled")
    to_world = similar(rng)
    how, image = picture_of(truth, rng, to_world, system)
    ids, spots, unit = element_of(truth, rng, kind, to_world, system)
    table = plain(truth)
    del table.uns["spatial"], table.obsm["spatial"]
    order = rng.permutation(len(ids)) if rng.random() < 0.3 else np.arange(len(ids))
    table = table[order].copy()
    case.rows, case.shuffled = order, not np.array_equal(order, np.arange(len(ids)))
    table.obs["region"], table.obs["instance_id"] = pd.Categorical(["spots"] * len(ids)), ids[order]
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
    parts = {"images": {"he": image}, kind: {"spots": spots}, "tables": {"table": table}}
    case.data = SpatialData(**parts)
    case.told[-1] += f" ({kind}, {how}, {system})"
    if kind != "shapes":  # the pixel size is unknown
        if rng.random() < 0.7:
            case.options["um_per_px"] = UM / unit  # per unit of the element's own coordinates
        else:
            return "um_per_px|size of a pixel"
    return ""


def two_regions(case, rng):
    """Two sections in one SpatialData: each a region with a picture, a coordinate system and a scale of its own."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    one = case.truth
    other = another(one, rng)
    case.parts = [one, other]
    kind = choice(rng, "shapes", "shapes", "labels")
    parts, tables, told = {"images": {}, kind: {}}, [], []
    for name, truth in zip("ab", case.parts, strict=True):
        to_world = similar(rng)
        how, image = picture_of(truth, rng, to_world, f"of_{name}")
        ids, spots, unit = element_of(truth, rng, kind, to_world, f"of_{name}")
        parts["images"][f"he_{name}"], parts[kind][f"spots_{name}"] = image, spots
        table = plain(truth)
        del table.uns["spatial"], table.obsm["spatial"]
        table.obs["region"], table.obs["instance_id"] = f"spots_{name}", ids
        tables.append(table)
        told.append(how)
        case.options.setdefault("um_per_px", {})[f"spots_{name}"] = UM / unit
    n = len(one.xy)
    table = concat(tables, index_unique="-", merge="same")
    order = rng.permutation(2 * n) if rng.random() < 0.3 else np.arange(2 * n)
    table = table[order].copy()
    table.obs["region"] = pd.Categorical(table.obs["region"])
    case.rows, case.shuffled = order, not np.array_equal(order, np.arange(2 * n))
    table = TableModel.parse(table, region=["spots_a", "spots_b"], region_key="region", instance_key="instance_id")
    case.data = SpatialData(**parts, tables={"table": table})
    case.told[-1] += f" ({kind}, {told})"
    if kind == "shapes" and rng.random() < 0.5:  # the pixel size follows from the grid
        del case.options["um_per_px"]
    return ""


def another(one, rng):
    """A second truth of as many spots and the same genes."""
    other = draw(rng)
    other.genes, other.xy, other.picture = one.genes, one.xy.copy(), one.picture[::-1].copy()
    other.counts = rng.permutation(one.counts)
    other.counts[:, 0] += 1
    return other


def two_sections(case, rng):
    """Two sections in one table: at the same places, between each other, or apart; told apart by a column or not."""
    one = case.truth
    other, n = another(one, rng), len(one.xy)
    case.parts = [one, other]
    where = choice(rng, "same", "same", "between", "beside")
    other.xy = other.xy + {"same": (0, 0), "between": (7, 3), "beside": (1000, 0)}[where]
    if where == "beside":
        other.picture = np.pad(other.picture, ((0, 0), (1000, 0), (0, 0)), constant_values=245)
    tables = [plain(t) for t in case.parts]
    column = choice(rng, "library_id", "sample", "slide", "batch", "patient", "fov", "section")
    names = choice(rng, ("A", "B"), ("1", "2"), ("s10", "s9"))
    adata = concat(tables, index_unique="-", merge="same")
    values = np.repeat(names, n)
    adata.obs[column] = choice(rng, pd.Categorical(values), values, values.astype(object))
    libraries = {name: t.uns["spatial"]["s"] for name, t in zip(names, tables, strict=True)}
    held = choice(rng, "both", "both", "first", "none", "numbers")
    if held == "numbers" and names == ("1", "2"):
        libraries = {int(k): v for k, v in libraries.items()}
        adata.obs[column] = values.astype(int)
    elif held == "first":
        libraries = {names[0]: libraries[names[0]]}
    elif held == "none":
        libraries, case.pictured = {}, False
    adata.uns["spatial"] = libraries
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    case.data, case.rows, case.col_gene = adata, np.arange(2 * n), one.genes.copy()
    case.told[-1] += f" ({where}, {column!r}, {held}"
    if rng.random() < 0.6:
        case.options["library_key"] = column
        case.told[-1] += ", given)"
        return "not found|no image|no section|There is no image" if held in ("first", "none") else ""
    case.told[-1] += ")"
    return f"library_key|no image|no section|outside|{column}"
