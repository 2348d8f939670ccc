"""Pages from the templates in this folder: one file each, without scripts; every text is escaped."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "figure_of", "picture", "render"]


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    source: str  # data URL
    caption: str
    width: int  # CSS px: sharp on dense screens, small on narrow ones


def figure_of(axes: Axes | list[Axes]) -> Figure:
    """The figure that a function of `stampy.pl` drew into."""
    from matplotlib.figure import Figure

    figure = (axes[0] if isinstance(axes, list) else axes).figure
    if not isinstance(figure, Figure):
        raise TypeError("Expected axes of a figure of their own, found axes of a part of a figure.")
    return figure


def picture(figure: Figure, caption: str, *, dpi: int = 130) -> Picture:
    """The figure as a PNG; it is closed."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        pixels = base64.b64encode(file.getvalue()).decode()
    width = round(figure.get_size_inches()[0] * 100)
    plt.close(figure)
    return Picture(f"data:image/png;base64,{pixels}", caption, width)


def render(template: str, **values: object) -> str:
    """A page by the template of that name.

    >>> "<h1>a &lt; b</h1>" in render("report.html.j2", title="a < b", facts={}, domains={}, provenance=[])
    True
    """
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("stampy.cli"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
