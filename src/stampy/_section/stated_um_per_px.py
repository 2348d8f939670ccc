"""The size of a pixel that an image file states: OME, Aperio, OpenSlide or the TIFF's own resolution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tifffile

__all__ = ["openslide_um_per_px", "tiff_um_per_px"]

_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}  # OME writes µm if it writes nothing
_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre
_PLAUSIBLE_UM = (0.05, 10.0)  # what lies outside is a printer's resolution (72 dpi: 353 µm), not a microscope's


def tiff_um_per_px(tiff: tifffile.TiffFile, number: int) -> float | None:
    """µm per pixel of the finest level of series `number`, None where the file does not say."""
    page = tiff.series[number].keyframe
    found = None
    if tiff.is_ome:
        found = _ome(tiff.ome_metadata or "", number)
    if found is None:
        found = _aperio(page.description or "")
    return _plausible(_resolution(page) if found is None else found)


def openslide_um_per_px(properties: Mapping[str, str]) -> float | None:
    """µm per pixel by OpenSlide's properties, the mean of both directions."""
    values = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    known = [v for v in values if v is not None]
    return _plausible(sum(known) / len(known)) if known else None


def _ome(xml: str, series: int) -> float | None:
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if not pixels:
        return None
    tag = pixels[series] if series < len(pixels) else pixels[0]
    size = re.search(r'\bPhysicalSizeX="([^"]+)"', tag)
    unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', tag)
    value = _number(size[1]) if size else None
    factor = _UM.get(unit[1].replace("\u03bc", "µ") if unit else "µm")  # two characters look like a mu
    return None if value is None or factor is None else value * factor


def _aperio(description: str) -> float | None:
    found = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", description)
    return _number(found[1]) if found else None


def _resolution(page: Any) -> float | None:
    tags = page.tags
    unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    if "XResolution" not in tags or unit not in _UNIT_UM:
        return None
    over, under = tags["XResolution"].value
    return _UNIT_UM[unit] * under / over if over and under else None


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _plausible(um_per_px: float | None) -> float | None:
    low, high = _PLAUSIBLE_UM
    return um_per_px if um_per_px is not None and low <= um_per_px <= high else None
