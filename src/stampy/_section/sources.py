"""The file that a section names as its full-resolution image: which such file is opened, and which is not."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stampy import _checks, _keys
from stampy._section.libraries import REFUSED, libraries_of, named_file, source_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["checked_source", "named_images", "settle_sources", "without_refused"]

logger = logging.getLogger(__name__)

VARIABLE = "STAMPY_NAMED_IMAGES"
Rule = Literal["anywhere", "below"]


@contextlib.contextmanager
def named_images(rule: Rule) -> Iterator[None]:
    """Say, also to the processes that are started in the block, where an image that a section names may lie.

    ``"below"``: in the folder of the section's file, or below it. ``"anywhere"``: that, too, but on this machine. What
    the environment variable ``STAMPY_NAMED_IMAGES`` says already stays.
    """
    if VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = rule
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)


def settle_sources(adata: AnnData, file: str | Path) -> None:
    """Take the paths of images that a section was read with against the folder of its file, never the working one.

    Under ``named_images("below")`` a path that leads elsewhere is noted as refused; opening the image then says so.
    """
    folder = Path(file).absolute().parent
    raw = adata.uns.get(_keys.UNS_SPATIAL)
    if raw is None:
        return
    for name, library in libraries_of(adata).items():
        entry = raw.get(name, raw) if isinstance(raw, dict) else library
        images, metadata = dict(library.get("images", {})), dict(library.get("metadata", {}))
        if source := source_of(library):
            metadata |= _settled(source, folder, _keys.SOURCE_IMAGE)
            if REFUSED in metadata:
                del metadata[_keys.SOURCE_IMAGE]
        for key, image in library.get("images", {}).items():
            if source := named_file(image):
                found = _settled(source, folder, key)
                images.update({k: v for k, v in found.items() if k == key})
                if key not in found:
                    del images[key]
                    metadata |= found
        if images != library.get("images", {}):
            entry["images"] = images
        if metadata != library.get("metadata", {}):
            entry["metadata"] = metadata


def _settled(source: str, folder: Path, key: str) -> dict[str, str]:
    """The absolute path by `key`, or the source itself by `REFUSED`."""
    if "://" in source:  # refused where it is opened
        return {key: source}
    path = folder / Path(source).expanduser()
    if os.environ.get(VARIABLE) == "below" and not path.resolve().is_relative_to(folder.resolve()):
        return {REFUSED: source}
    return {key: str(path)}


def without_refused(adata: AnnData) -> None:
    """Forget the images that are refused, with a warning: what has another image is shown on that one."""
    raw = adata.uns.get(_keys.UNS_SPATIAL)
    for name, library in libraries_of(adata).items() if isinstance(raw, dict) else ():
        if refused := library.get("metadata", {}).get(REFUSED):
            entry = raw.get(name, raw)
            entry["metadata"] = {key: value for key, value in library["metadata"].items() if key != REFUSED}
            _checks.warn(
                f"The section names the image {str(refused)!r}, outside of its own folder; it is not opened. Allow it "
                "by --named-images anywhere."
            )


def checked_source(library: Any, of: str) -> tuple[Path | None, str]:
    """The file that an entry of ``uns["spatial"]`` names, and why it is not opened ("" if it is, or none is named).

    Opened are regular files of this machine by absolute path. `stampy.read` makes relative ones absolute.

    Raises
    ------
    ValueError
        The section was read where images may only lie below its folder, and this one lies elsewhere; or it is an
        address, a device, a pipe or a folder.
    """
    refused = library.get("metadata", {}).get(REFUSED)
    if refused:
        raise ValueError(
            f"{of}The section names the image {str(refused)!r}, outside of its own folder; this command does not open "
            "it unasked. Give the image yourself (`image`, or the column of a manifest), or allow it by "
            f"--named-images anywhere (in Python: the environment variable {VARIABLE}=anywhere)."
        )
    source = source_of(library)
    if not source:
        return None, ""
    if "://" in source:
        raise ValueError(f"{of}The section names the image {source!r}; no address is fetched. Give a file by `image`.")
    path = Path(source).expanduser()
    if not path.is_absolute():
        return None, "is a relative path (`stampy.read` takes it against the folder of the section's file)"
    try:
        mode = path.stat().st_mode
    except OSError:
        return None, "is not there"
    if not stat.S_ISREG(mode):
        raise ValueError(f"{of}The section names the image {source!r}, which is no file (a folder, pipe or device).")
    logger.info("%sreading the image that the section names: %s", of, path.resolve())
    return path, ""
