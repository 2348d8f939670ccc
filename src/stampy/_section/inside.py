"""Whether the spots of a section lie on its image, and why they may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

FEWEST = 20  # spots; fewer tell nothing about the axes

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy._section.section import Section

__all__ = ["check_indices", "check_inside", "doubt_of_axes"]


_ROW, _COLUMN = "array_row", "array_col"


def _indices(table: AnnData, rows: np.ndarray) -> np.ndarray | None:
    """Column and row of the spots on the array, (m, 2); None where `obs` does not have them."""
    if not {_ROW, _COLUMN} <= set(table.obs.columns):
        return None
    try:
        found = table.obs[[_COLUMN, _ROW]].to_numpy()[rows].astype(np.float64)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found).all() else None


def check_indices(section: Section, table: AnnData) -> None:
    """Raise ValueError for coordinates that are rows and columns of the array, which lie on no image."""
    indices = _indices(table, section.rows)
    if indices is None or len(indices) < 2 or np.ptp(indices, axis=0).min() == 0:
        return
    if np.array_equal(section.xy, indices) or np.array_equal(section.xy, indices[:, ::-1]):
        raise ValueError(
            f"{section.prefix}`{section.source}` holds `array_col` and `array_row`, places on the array, where x and y "
            "in px of the full-resolution image are needed (`pxl_col_in_fullres` and `pxl_row_in_fullres` of Space "
            "Ranger's tissue_positions)."
        )


def doubt_of_axes(section: Section, table: AnnData) -> str:
    """What to warn about where x and y seem to be swapped: Visium's array would be seen in a mirror."""
    indices = _indices(table, section.rows)
    if indices is None or len(indices) < FEWEST or section.region is not None:
        return ""
    odd = (indices.sum(axis=1) % 2 != 0).any()  # of Visium's rows and columns both are even, or both odd
    design = np.column_stack([indices, np.ones(len(indices))])
    if odd or np.linalg.matrix_rank(design) < 3:
        return ""
    fitted, *_ = np.linalg.lstsq(design, section.xy, rcond=None)
    off = np.abs(design @ fitted - section.xy).max()
    if np.linalg.det(fitted[:2]) >= 0 or off > np.abs(fitted[:2]).max():
        return ""
    return (
        f"{section.prefix}x and y of the spots seem to be swapped: against `array_col` and `array_row` the section is "
        "mirrored. `obsm['spatial']` must be x (column), y (row); where the image is mirrored, too, this is fine."
    )


def check_inside(section: Section) -> str:
    """Raise if most spots lie outside the image; what to warn about if some do, or ""."""
    height, width = section.require_image().shape
    outside = ~_within(section.image_xy, width, height)
    if not outside.any():
        return ""
    n, m = int(outside.sum()), len(outside)
    fits = _within(section.image_xy[:, ::-1], width, height).all()
    if 2 * n <= m and fits and n > FEWEST and 10 * n > m:
        raise ValueError(f"{section.prefix}{n} of {m} spots lie outside the image. {_likely_cause(section)}")
    if 2 * n <= m:
        return f"{section.prefix}{n} of {m} spots lie outside the image; their tiles are padded with the fill colour."
    (x0, y0), (x1, y1) = section.image_xy.min(axis=0), section.image_xy.max(axis=0)
    raise ValueError(
        f"{section.prefix}{n} of {m} spots lie outside the image: x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f} "
        f"px on {section.image!r}, {width} px wide and {height} px high. {_likely_cause(section)}"
    )


def _within(xy: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.all((xy >= 0) & (xy <= [width, height]), axis=1)


def _likely_cause(section: Section) -> str:
    image = section.require_image()
    height, width = image.shape
    if _within(section.image_xy[:, ::-1], width, height).all():
        return "They would fit with x and y swapped: `adata.obsm['spatial']` must be x (column), y (row)."
    if _within(section.image_xy / image.scale, width, height).all() and image.scale > 1:
        return "They would fit without the scale factor, which must be image px per full-resolution px."
    return (
        "Likely causes: a wrong scale factor, coordinates of another image, or a reduced image given as the full one "
        "(then give `image=SlideImage.open(path, scale=image px per full-resolution px)`)."
    )
