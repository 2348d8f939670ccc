"""Choose the image of a section: a given file or array, an entry of `uns["spatial"]`, or one of `sdata.images`."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._section.image.image_options import ImageOptions, ImageSource
from stampy._section.image.levels import UnusableImageError
from stampy._section.image.pixels import axes_of, channels_of, stored_axes
from stampy._section.image.slide_image import SlideImage
from stampy._section.image.wsidata import is_wsidata, open_wsidata
from stampy._section.libraries import REFUSED, Library, image_path_of, images_of, libraries_of, named_file
from stampy._section.outside_links import VARIABLE
from stampy._section.spatialdata_elements import shared_systems

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData
    from xarray import DataArray, DataTree

    from stampy._section.spatialdata_elements import Element

__all__ = [
    "ImageOptions",
    "ImageSource",
    "checked_source",
    "image_key_of",
    "library_image",
    "open_image",
    "resolve_image_paths",
    "without_refused",
]

logger = logging.getLogger(__name__)


def resolve_image_paths(adata: AnnData, file: str | Path | None) -> None:
    """Resolve image paths of a section relative to the folder of its file, never to the working directory.

    Under ``named_images("below")``, a path outside the folder is marked as refused, and opening the image raises the
    error. None: the section is from a URL, and images on this machine are opened only with the rule "anywhere".
    """
    folder = None if file is None else Path(file).absolute().parent
    raw = adata.uns.get(_keys.UNS_SPATIAL)
    if raw is None:
        return
    for name, library in libraries_of(adata).items():
        entry = raw.get(name, raw) if isinstance(raw, dict) else library
        images, metadata = dict(library.get("images", {})), dict(library.get("metadata", {}))
        if source := image_path_of(library):
            metadata |= _resolved_path(source, folder, _keys.SOURCE_IMAGE)
            if REFUSED in metadata:
                del metadata[_keys.SOURCE_IMAGE]
        for key, image in library.get("images", {}).items():
            if source := named_file(image):
                found = _resolved_path(source, folder, key)
                images.update({k: v for k, v in found.items() if k == key})
                if key not in found:
                    del images[key]
                    metadata |= found
        if images != library.get("images", {}):
            entry["images"] = images
        if metadata != library.get("metadata", {}):
            entry["metadata"] = metadata


def _resolved_path(source: str, folder: Path | None, key: str) -> dict[str, str]:
    """The absolute path under `key`, or the original path under `REFUSED`."""
    if "://" in source:  # refused when it is opened
        return {key: source}
    if folder is None:
        return {key: source} if os.environ.get(VARIABLE) == "anywhere" else {REFUSED: source}
    path = folder / Path(source).expanduser()
    if os.environ.get(VARIABLE) == "below" and not path.resolve().is_relative_to(folder.resolve()):
        return {REFUSED: source}
    return {key: str(path)}


def without_refused(adata: AnnData) -> None:
    """Remove refused image paths, with a warning, so that another image of the section is shown."""
    raw = adata.uns.get(_keys.UNS_SPATIAL)
    for name, library in libraries_of(adata).items() if isinstance(raw, dict) else ():
        if refused := library.get("metadata", {}).get(REFUSED):
            entry = raw.get(name, raw)
            entry["metadata"] = {key: value for key, value in library["metadata"].items() if key != REFUSED}
            _checks.warn(
                f"The section names the image {str(refused)!r}, outside its folder; it is not opened. Allow "
                "it with --named-images anywhere."
            )


def checked_source(library: Library, of: str) -> tuple[Path | None, str]:
    """File named by an entry of ``uns["spatial"]``, and why it is refused ("" if it is not, or none is named).

    Only regular files on this machine with an absolute path are accepted; `stampy.read` makes relative paths absolute.

    Raises
    ------
    ValueError
        Images of the section must be in its folder and this one is not, or it is a URL, a device, a pipe or a folder.
    """
    refused = library.get("metadata", {}).get(REFUSED)
    if refused:
        raise ValueError(
            f"{of}The section names the image {str(refused)!r}, outside its folder; this command does not "
            "open it by default. Pass the image (`image`, or the column of a manifest), or allow it with "
            f"--named-images anywhere (in Python: the environment variable {VARIABLE}=anywhere)."
        )
    source = image_path_of(library)
    if not source:
        return None, ""
    if "://" in source:
        raise ValueError(
            f"{of}The section names the image {source!r}; addresses are not downloaded. Give a file by `image`."
        )
    path = Path(source).expanduser()
    if not path.is_absolute():
        return None, "is a relative path (`stampy.read` takes it against the folder of the section's file)"
    try:
        mode = path.stat().st_mode
    except OSError:
        return None, "does not exist"
    if not stat.S_ISREG(mode):
        raise ValueError(f"{of}The section names the image {source!r}, which is not a file (a folder, pipe or device).")
    logger.info("%sreading the image that the section names: %s", of, path.resolve())
    return path, ""


IMAGE_REMEDY = "Give an image with `image=` (an array or a file in full resolution)."
_BY_RESOLUTION = ("_full_image", "_hires_image", "_lowres_image")  # names of the Visium reader of spatialdata-io
_FULL = "fullres"  # CELLxGENE's name of an image in px of the coordinates, without scale factor


def open_image(source: ImageSource) -> SlideImage:
    """Open a path, array, WSIData or `SlideImage` as a `SlideImage`.

    Its pixels are the units of the coordinates, unless it states another scale.

    Raises
    ------
    TypeError
        Anything else.
    """
    if isinstance(source, SlideImage):
        return source
    if isinstance(source, (str, Path)):
        return SlideImage.open(source)
    if is_wsidata(source):
        return open_wsidata(source)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return SlideImage.from_array(source)
    raise TypeError(f"An image must be a path, an array, a SlideImage or a WSIData, found {type(source).__name__}.")


def library_image(library: Library, image_key: str | None, *, where: str, of: str) -> tuple[SlideImage | None, str]:
    """The image `image_key` of a section; by default the full-resolution file, else its finest image.

    Parameters
    ----------
    library
        Entry of ``uns["spatial"]``.
    image_key
        Selected image.
    where, of
        Names of the entry and the section in messages.

    Returns
    -------
    The image, None without image; and a message for the user ("" for none).

    Raises
    ------
    KeyError
        The selected image has no pixels or no scale, or the only image is a file that no longer exists.
    """
    images, factors = images_of(library), library.get("scalefactors", {})
    source = image_path_of(library) if image_key is None else ""
    path, why_not = checked_source(library, of) if image_key is None else (None, "")
    if path is not None:
        try:
            return SlideImage.open(path), ""
        except UnusableImageError as error:
            if not any(_has_scale(key, factors) for key in images):
                raise
            why_not = f"is not read ({error})"
    if image_key is not None:
        if image_key not in images:  # it may be a refused one
            checked_source({"metadata": {REFUSED: library.get("metadata", {}).get(REFUSED)}}, of)
        _checks.has_key(images, image_key, slot=f"{where}['images']", needs=IMAGE_REMEDY)
        if not _has_scale(image_key, factors):
            _checks.has_key(factors, _scale_name(image_key), slot=f"{where}['scalefactors']", needs=IMAGE_REMEDY)
    usable = [key for key in images if _has_scale(key, factors)]
    if not usable and source:
        raise KeyError(f"The image {source!r} of `{where}` {why_not}, and there is no other. {IMAGE_REMEDY}")
    if not usable:
        return None, ""
    scales = {key: _checks.factor(factors, _scale_name(key)) if _scale_name(key) in factors else 1.0 for key in usable}
    key = image_key or max(usable, key=scales.__getitem__)
    note = (
        f"{of}The full-resolution image {source!r} {why_not}; the one in `{where}` is used. {IMAGE_REMEDY}"
        if source
        else ""
    )
    doubts = (*_doubts_of_scales(images, scales, key), "" if image_key else _without_scale(images, scales, key, where))
    notes = [note, *(of + doubt for doubt in doubts if doubt)]
    return _opened(images[key], scales[key], key, of), " ".join(filter(None, notes))


def _doubts_of_scales(images: Mapping[str, Any], scales: Mapping[str, float], key: str) -> Iterator[str]:
    """Warn if two sizes of the same image contradict the ratio of their scale factors."""
    height, width = _size_of(images[key], key)
    for other in scales:
        rows, columns = _size_of(images[other], other)
        if other == key or not (height and rows):
            continue
        high, wide = height / rows, width / columns
        ratio = scales[key] / scales[other]
        rounding = 1.5 / rows + 1.5 / columns
        if abs(high / wide - 1) <= rounding < 0.1 and abs(ratio / np.sqrt(high * wide) - 1) > max(0.1, 2 * rounding):
            yield (
                f"The images {key!r} ({width} x {height} px) and {other!r} ({columns} x {rows} px) seem to show the "
                f"same image, but their scale factors are {scales[key]:.4g} and {scales[other]:.4g}: one is wrong, "
                f"and spots may be shifted against the tissue. Correct `{_scale_name(key)}` or "
                f"`{_scale_name(other)}`."
            )


def _without_scale(images: Mapping[str, Any], scales: Mapping[str, float], key: str, where: str) -> str:
    """Warning that a larger image is not used because it has no scale factor; else ""."""
    px = np.prod(_size_of(images[key], key))
    larger = [other for other in images if other not in scales and np.prod(_size_of(images[other], other)) > px > 0]
    if not larger:
        return ""
    return (
        f"The larger image {larger[0]!r} of `{where}` has no scale factor `{_scale_name(larger[0])}`, which places it, "
        f"so {key!r} is used."
    )


def _size_of(image: Any, name: str) -> tuple[int, int]:
    """Height and width in px; (0, 0) if unknown without reading, or not an image."""
    shape = tuple(getattr(image, "shape", ()))
    if hasattr(image, "dims") or len(shape) not in (2, 3) or 0 in shape:
        return 0, 0
    try:
        axes = axes_of(shape, name)
    except ValueError:
        return 0, 0
    return shape[axes.index("y")], shape[axes.index("x")]


def _opened(image: Any, scale: float, key: str, of: str) -> SlideImage:
    """Open pixels, or the file named instead of them."""
    if source := named_file(image):  # the same rule as for the full-resolution image
        path, why_not = checked_source({"metadata": {_keys.SOURCE_IMAGE: source}}, of)
        if path is None:
            raise KeyError(f"{of}The image {source!r} in the place of {key!r} {why_not}. {IMAGE_REMEDY}")
        return SlideImage.open(path, scale=scale)
    return SlideImage.from_array(image, scale=scale, name=key)


def _scale_name(key: str) -> str:
    return f"tissue_{key}_scalef"


def _has_scale(key: str, factors: Mapping[str, Any]) -> bool:
    return key == _FULL or _scale_name(key) in factors


def image_key_of(sdata: SpatialData, image_key: str | None, spots: Element | None) -> str:
    """Key of the image: `image_key`, the only one in the coordinate system of the spots, or the finest of one image.

    Raises
    ------
    KeyError
        There is no such image.
    ValueError
        No image shares a coordinate system with the spots, or the choice is ambiguous.
    """
    if image_key is not None:
        _checks.has_key(sdata.images, image_key, slot="sdata.images", needs="Name the H&E image with `image_key=`.")
    keys = [image_key] if image_key is not None else list(sdata.images)
    near = [k for k in keys if spots is None or shared_systems(spots, sdata.images[k])]
    if not near:
        raise UnusableImageError(
            f"The image(s) {keys} and the spots share no coordinate system; add a transformation to one."
        )
    near = near if image_key is not None else _with_colours(sdata, near)
    if len(near) == 1:
        return near[0]
    for ending in _BY_RESOLUTION:
        matches = [k for k in near if k.endswith(ending)]
        if len(matches) == 1:
            return matches[0]
    raise ValueError(
        f"`sdata.images` has several images: {_checks.shortlist(near)}. Name the H&E image with `image_key=`."
    )


def _with_colours(sdata: SpatialData, keys: list[str]) -> list[str]:
    """Images with red, green and blue, if any: the others are stains next to the H&E image."""
    found = [key for key in keys if len(_channels(sdata.images[key], key)) >= 3]
    return found or keys


def _channels(image: DataArray | DataTree, name: str) -> tuple[int, ...]:
    """Indices of the colour channels; () without colours."""
    array = image if hasattr(image, "data") else next(iter(next(iter(image.children.values())).data_vars.values()))
    try:
        _, _, c = stored_axes(list(array.dims), name)
        return channels_of(list(array.coords[c].values) if c in array.coords else range(array.sizes[c]), name)
    except (UnusableImageError, KeyError):
        return ()
