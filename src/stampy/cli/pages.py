"""HTML pages from the templates in this folder, as single files without scripts, and their maps."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from stampy import _checks, _keys, _utils
from stampy._section.section import (
    ImageOptions,
    has_coordinates,
    library_key_of,
    places_of,
    resolved_library_key,
    sections_of,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

__all__ = [
    "Maps",
    "Picture",
    "figure_of",
    "maps_of",
    "png_of",
    "render",
]


@dataclass(frozen=True)
class Picture:
    """Picture in a page."""

    source: str  # data URL
    caption: str
    width: int  # CSS px; sharp on high-resolution screens, small on narrow ones


def figure_of(axes: Axes | list[Axes]) -> Figure:
    """Figure that a function of `stampy.pl` drew."""
    from matplotlib.figure import Figure

    figure = (axes[0] if isinstance(axes, list) else axes).figure
    if not isinstance(figure, Figure):
        raise TypeError("Expected axes of a separate figure, found axes of a subfigure.")
    return figure


def png_of(figure: Figure, caption: str, *, dpi: int = 130) -> Picture:
    """Convert the figure to PNG and close it."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        pixels = base64.b64encode(file.getvalue()).decode()
    width = round(figure.get_size_inches()[0] * 100)
    plt.close(figure)
    return Picture(f"data:image/png;base64,{pixels}", caption, width)


def render(template: str, **values: object) -> str:
    """Render a page from the template of that name.

    >>> page = render("report.html.j2", title="a < b", facts={}, verdict={}, domains={}, provenance=[])
    >>> "<h1>a &lt; b</h1>" in page
    True
    """
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("stampy.cli"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


_LINK = "spatialdata_attrs"  # links the table of a SpatialData to its elements


@dataclass(frozen=True)
class Maps:
    """Plots maps of a section; values to show are written into `table`, a light copy."""

    data: AnnData | SpatialData
    table: AnnData
    names: list[str]  # of the sections; [""] if the table is one section
    placed: bool  # whether the spots have coordinates
    library_key: str | None
    table_key: str
    image: bool
    image_key: str | None

    def draw(self, color: str | None, caption: str, *, vmax: float | str | None = None) -> Picture:
        """Map of a column or an embedding of `table`; None: the tissue with outlines of the spots.

        `vmax` is the upper limit of the colour scale, see `stampy.pl.spatial`.
        """
        from stampy import pl

        title = None if len(self.names) > 1 else (color or "tissue")
        axes = pl.spatial(
            self.data, color, library_key=self.library_key, title=title, image=self.image, image_key=self.image_key,
            table_key=self.table_key, size=1.0 if color is None else 1.5, vmax=vmax,
        )  # fmt: skip
        return png_of(figure_of(axes), caption)


def maps_of(
    data: AnnData | SpatialData, *, library_key: str | None, image_key: str | None, table_key: str = _keys.TABLE
) -> Maps:
    """Create the `Maps` of a section. An image that cannot be chosen or opened is omitted with a warning.

    Raises
    ------
    KeyError, ValueError
        Coordinates are invalid, sections overlap, or `image_key` does not exist.
    """
    placed = has_coordinates(data, table_key)
    if placed:
        library_key = resolved_library_key(data, library_key, table_key)
        names = places_of(data, library_key=library_key, table_key=table_key).names
    else:
        names = _checks.libraries(
            _utils.table_of(data, table_key), library_key_of(data, library_key, table_key)
        )[1]  # fmt: skip
    image = placed and _has_usable_image(data, library_key, image_key, table_key)
    light = _light(data, library_key, table_key)
    return Maps(light, _utils.table_of(light, table_key), names, placed, library_key, table_key, image,
                image_key if image else None)  # fmt: skip


def _has_usable_image(
    data: AnnData | SpatialData, library_key: str | None, image_key: str | None, table_key: str
) -> bool:
    """Whether to draw images; without, e.g. if an image is ambiguous or unreadable, only spots are drawn."""
    sections = sections_of(data, ImageOptions(image_key=image_key), library_key=library_key, table_key=table_key)
    if image_key is not None:
        for section in sections:
            section.require_image()
        return True
    try:
        images = [section.image for section in sections]  # opens each image
    except (KeyError, ValueError, TypeError, OSError, ImportError) as error:
        _checks.warn(f"The maps are drawn without image. {error.args[0] if isinstance(error, KeyError) else error}")
        return False
    return any(image is not None for image in images)


def _light(data: AnnData | SpatialData, library_key: str | None, table_key: str) -> AnnData | SpatialData:
    """Coordinates, images and elements without genes; `obs` only with the columns that name sections and elements."""
    import anndata

    table = _utils.table_of(data, table_key)
    link = table.uns.get(_LINK, {}) if data is not table else {}
    columns = dict.fromkeys(filter(None, (library_key, link.get("region_key"), link.get("instance_key"))))
    light = anndata.AnnData(
        obs=table.obs[[c for c in columns if c in table.obs]].copy(),
        obsm={_keys.SPATIAL: table.obsm[_keys.SPATIAL]} if _keys.SPATIAL in table.obsm else {},
        uns={key: table.uns[key] for key in (_keys.UNS_SPATIAL, _LINK) if key in table.uns},
    )
    if data is table:
        return light
    elements = {name: element for kind, name, element in data.gen_elements() if kind != "tables"}
    return type(data).init_from_elements({**elements, table_key: light}, attrs=data.attrs)


def percent_of(part: float, *, digits: int = 0) -> str:
    """A fraction as text, rounded, but 100 % only if it is all.

    >>> percent_of(0.99998, digits=1), percent_of(1.0), percent_of(0.25)
    ('99.9%', '100%', '25%')
    """
    return f"{part if part == 1 else min(part, 1 - 10 ** -(digits + 2)):.{digits}%}"
