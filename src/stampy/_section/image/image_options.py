"""Options of the user for images and scale, checked before any image is opened. No heavy imports."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stampy import _checks

if TYPE_CHECKING:
    import numpy as np

    from stampy._section.image.slide_image import SlideImage

__all__ = ["ImageOptions", "ImageSource"]

ImageSource: TypeAlias = "str | Path | np.ndarray | SlideImage"


@dataclass(frozen=True)
class ImageOptions:
    """Image and scale as specified by the user; each value for all sections, or by section."""

    image: ImageSource | Mapping[str, ImageSource] | None = None
    image_key: str | Mapping[str, str] | None = None
    um_per_px: float | Mapping[str, float] | None = None
    spot_um: float | None = None

    def __post_init__(self) -> None:
        if self.um_per_px is not None and self.spot_um is not None:
            raise ValueError("Pass `um_per_px` or `spot_um`, not both: either fixes the size of a pixel.")
        if self.image is not None and self.image_key is not None:
            raise ValueError("Pass `image` or `image_key`, not both: either names the image.")
        values = self.um_per_px.values() if isinstance(self.um_per_px, Mapping) else [self.um_per_px]
        for name, value in [*(("um_per_px", v) for v in values), ("spot_um", self.spot_um)]:
            if value is not None:
                _checks.positive(name, value)

    def of(self, section: str, names: Collection[str]) -> ImageOptions:
        """The values for one of the sections."""
        if self.image is not None and not isinstance(self.image, Mapping) and len(names) > 1:
            first = next(iter(names))
            raise ValueError(
                f"One `image` was given for {len(names)} sections; give one for each: image={{{first!r}: ..., ...}}."
            )
        return ImageOptions(
            _pick(self.image, section, "image"),
            _pick(self.image_key, section, "image_key"),
            _pick(self.um_per_px, section, "um_per_px"),
            self.spot_um,
        )


def _pick(value: Any, section: str, name: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    _checks.has_key(value, section, slot=name, needs="Sections are named by `library_key`; each needs an entry.")
    return value[section]
