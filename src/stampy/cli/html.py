"""HTML without a template engine: text is escaped unless it is `Markup`, so no name of a gene or a label gets in."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Markup", "page", "picture", "table", "tag"]

# No script, nothing loaded from anywhere: the browser is told so, too.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --back: #f6f7f9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2rem) 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { margin: .4rem 0; max-width: 46rem; }
code { font-size: .92em; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.2rem;
  margin: 1rem 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0;
  padding: 0; }
.facts div { background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: .6rem .8rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; overflow-wrap: anywhere; }
.bar { height: .7rem; background: var(--line); border-radius: .35rem; overflow: hidden; margin: .3rem 0 .8rem; }
.bar div { height: 100%; background: var(--mark); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; min-width: 60%; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 4rem; }
td code { overflow-wrap: normal; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: .6rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .8rem 1.4rem; }
.note { border-left: .25rem solid #e69f00; padding: .1rem .8rem; margin: .7rem 0; }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: Any) -> Markup:
    """Any value as text.

    >>> escaped("<b>")
    '&lt;b&gt;'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; children are escaped unless they are `Markup`, attributes always (`class_` is `class`).

    >>> tag("p", "a < b", tag("b", "c"), class_='"x"')
    '<p class="&quot;x&quot;">a &lt; b<b>c</b></p>'
    """
    given = "".join(f' {k.rstrip("_")}="{html.escape(str(v))}"' for k, v in attributes.items())
    if name in ("img", "meta"):
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{''.join(map(escaped, children))}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where the page is narrow; `numbers` are the columns set flush right."""

    def line(kind: str, cells: Sequence[Any]) -> Markup:
        return tag("tr", *(tag(kind, c, **({"class_": "number"} if i in numbers else {})) for i, c in enumerate(cells)))

    body = tag("tbody", *(line("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", line("th", head)), body), class_="scroll")


def picture(figure: Figure, caption: str, *, dpi: int = 130) -> Markup:
    """The figure as an inlined PNG, with its caption, which is also its text for those who can't see it."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        pixels = base64.b64encode(file.getvalue()).decode()
    width = round(figure.get_size_inches()[0] * 100)  # in CSS px: sharp on dense screens, small on narrow ones
    plt.close(figure)
    image = tag("img", src=f"data:image/png;base64,{pixels}", alt=caption, width=width)
    return tag("figure", image, tag("figcaption", caption))


def page(title: str, *body: Markup) -> str:
    """A whole document in one file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{tag("body", tag("main", *body))}</html>\n'
