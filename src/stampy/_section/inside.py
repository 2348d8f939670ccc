"""Whether the spots of a section lie on its image, and why they may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stampy._section.section import Section

__all__ = ["check_inside"]


def check_inside(section: Section) -> str:
    """Raise if most spots lie outside the image; what to warn about if some do, or ""."""
    height, width = section.require_image().shape
    outside = ~_within(section.image_xy, width, height)
    if not outside.any():
        return ""
    n, m = int(outside.sum()), len(outside)
    if 2 * n <= m:
        return f"{section.prefix}{n} of {m} spots lie outside the image; their tiles are padded with the fill colour."
    (x0, y0), (x1, y1) = section.image_xy.min(axis=0), section.image_xy.max(axis=0)
    raise ValueError(
        f"{section.prefix}{n} of {m} spots lie outside the image: x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f} "
        f"px on {section.image!r}, {width} px wide and {height} px high. {_likely_cause(section)}"
    )


def _within(xy: np.ndarray, width: float, height: float) -> np.ndarray:
    return ((xy >= 0) & (xy <= [width, height])).all(axis=1)


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
