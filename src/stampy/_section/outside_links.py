"""Refuse inputs that link to other files; links in HDF5, zarr, ZIP and TIFF are found without following them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from stampy import _checks

if TYPE_CHECKING:
    import h5py
    import tifffile

__all__ = [
    "VARIABLE",
    "LinkError",
    "Rule",
    "leads_out",
    "named_images",
    "refuse_links",
    "refuse_links_h5",
    "refuse_links_in",
    "refuse_links_zarr",
    "refuse_links_zip",
    "refuse_slide_references",
    "refuse_tiff_references",
]

_ZARR_METADATA = ("zarr.json", ".zattrs")
_ZARR_MARKS = (*_ZARR_METADATA, ".zgroup")
_MAX_METADATA_BYTES = 2**28
# AnnData has one path to each group. A few more are harmless, but links that double at every level are not.
_MAX_PATHS_PER_GROUP = 10
_CHECKED_FILES: set[tuple[int, ...]] = set()  # files that were checked before, since a section passes several checks
_MAX_CHECKED_FILES = 256
_INDEX_SUFFIXES = (".mrxs", ".vms", ".vmu")
_INDEX_ENTRY = re.compile(r"^\s*(\w*FILE\w*)\s*=\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
VARIABLE = "STAMPY_NAMED_IMAGES"
Rule = Literal["anywhere", "below"]


@contextlib.contextmanager
def named_images(rule: Rule) -> Iterator[None]:
    """Set where images named by a section may be, for this process and those started in the block.

    ``"below"``: in the folder of the section's file, or below it. ``"anywhere"``: anywhere on this
    machine. An existing value of the environment variable ``STAMPY_NAMED_IMAGES`` is kept.
    """
    if VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = rule
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)


class LinkError(ValueError):
    """A file has a link that leads outside of it or in a circle."""


def refuse_links(path: str | Path) -> None:
    """Refuse an HDF5 file, zarr store or ZIP archive with links to the outside; other files are not checked.

    Raises
    ------
    LinkError
        There is such a link; the message names it and its target.
    ValueError
        The file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        if any(os.path.lexists(path / mark) for mark in _ZARR_MARKS):
            refuse_links_zarr(path)
    elif path.name.lower().endswith(".zip"):
        refuse_links_zip(path)
    elif path.name.lower().endswith((".h5", ".h5ad", ".hdf5")):
        refuse_links_h5(path)


def _refused(path: Path, name: str, what: str) -> LinkError:
    return LinkError(
        f"{str(path)!r} is rejected: `{name}` is {what}. stampy only reads files that contain all of their data. "
        "Request a copy without links, or create one from a file that you trust."
    )


# ---- HDF5 -----------------------------------------------------------------------------------------------------------


def refuse_links_h5(path: str | Path) -> None:
    """Refuse external links, external storage, virtual datasets, and circular links.

    Soft links within the file are allowed. Each group is visited once, and no link out of the file is followed.
    """
    import h5py

    path = Path(path)
    with _checks.readable(path):
        mark = path.stat()
        signature = (mark.st_dev, mark.st_ino, mark.st_size, mark.st_mtime_ns, mark.st_ctime_ns)
        if signature in _CHECKED_FILES:
            return
        with h5py.File(path, "r", locking=False) as file:
            _walk(file, path)
    if len(_CHECKED_FILES) >= _MAX_CHECKED_FILES:
        _CHECKED_FILES.clear()
    _CHECKED_FILES.add(signature)


def refuse_links_in(file: h5py.File, name: str) -> None:
    """Like `refuse_links_h5` for an open file; `name` is used in messages."""
    _walk(file, Path(name))


def _walk(file: h5py.File, path: Path) -> None:
    """Traverse depth first and count the paths into each group, so that repeatedly doubled links are refused.

    Uses HDF5 identifiers; creating h5py objects would take ten times as long.
    """
    import h5py

    root = file["/"].id
    ways: dict[Any, int] = {}  # address of a group -> number of objects that a reader meets below it
    open_groups: set[Any] = {_address(root)}
    stack: list[tuple[h5py.h5g.GroupID, Iterator[bytes], list[int]]] = [(root, iter(list(root)), [1])]
    while stack:
        group, names, total = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
            key = _address(group)
            open_groups.discard(key)
            ways[key] = total[0]
            if total[0] > _MAX_PATHS_PER_GROUP * len(ways) + 100_000:
                what = f"a group that leads to {total[0]:,} objects by links to one another"
                raise _refused(path, os.fsdecode(h5py.h5i.get_name(group)), what)
            if stack:
                stack[-1][2][0] += total[0]
            continue
        child = _child(group, name, path)
        if not isinstance(child, h5py.h5g.GroupID):
            total[0] += 1
            continue
        key = _address(child)
        if key in open_groups:
            what = f"a link back to {os.fsdecode(h5py.h5i.get_name(child))!r}, which contains it"
            raise _refused(path, _place(group, name), what)
        if key in ways:
            total[0] += ways[key]
            continue
        open_groups.add(key)
        stack.append((child, iter(list(child)), [1]))


def _address(group: Any) -> Any:
    import h5py

    return h5py.h5o.get_info(group).addr


def _place(group: Any, name: bytes) -> str:
    import h5py

    return f"{os.fsdecode(h5py.h5i.get_name(group)).rstrip('/')}/{os.fsdecode(name)}"


def _child(group: Any, name: bytes, path: Path) -> Any:
    """Identifier of the object behind a link, after checking that it is in this file."""
    import h5py

    kind = group.links.get_info(name).type
    if kind == h5py.h5l.TYPE_EXTERNAL:
        filename, target = group.links.get_val(name)
        what = f"an external link to {os.fsdecode(target)!r} in the file {os.fsdecode(filename)!r}"
        raise _refused(path, _place(group, name), what)
    if kind == h5py.h5l.TYPE_SOFT:
        return _soft_link_target(h5py.Group(group), os.fsdecode(name), _place(group, name), path).id
    if kind != h5py.h5l.TYPE_HARD:
        raise _refused(path, _place(group, name), "a link of a type that HDF5 does not define")
    found = h5py.h5o.open(group, name)
    if isinstance(found, h5py.h5d.DatasetID):
        plan = found.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
            _check_dataset(h5py.Dataset(found), _place(group, name), path)
    return found


def _soft_link_target(group: h5py.Group, name: str, where: str, path: Path) -> Any:
    """Target of a soft link, resolved step by step, since any step may be an external link."""
    import h5py

    steps, here, n_links = [name], group, 0
    while steps:
        step = steps.pop(0)
        kind = here.id.links.get_info(here._e(step)).type if step in here.id else None
        if kind == h5py.h5l.TYPE_SOFT:
            n_links += 1
            target = here.get(step, getlink=True).path
            if n_links > 16:
                raise _refused(path, where, f"a soft link that leads round in a circle (by {target!r})")
            here = here.file["/"] if target.startswith("/") else here
            steps = [part for part in target.split("/") if part not in ("", ".")] + steps
            continue
        if kind != h5py.h5l.TYPE_HARD:
            what = "an external link" if kind == h5py.h5l.TYPE_EXTERNAL else "nothing"
            raise _refused(path, where, f"a soft link to {step!r}, which is {what}")
        here = here[step]
        if steps and not isinstance(here, h5py.Group):
            raise _refused(path, where, f"a soft link through {step!r}, which is not a group")
    return here  # datasets are checked where they are stored


def _check_dataset(dataset: h5py.Dataset, where: str, path: Path) -> None:
    if dataset.id.get_create_plist().get_external_count():
        files = _checks.shortlist([os.fsdecode(part[0]) for part in dataset.external or ()], 3)
        raise _refused(path, where, f"a dataset whose values are in other files, {files}")
    if dataset.is_virtual:
        files = _checks.shortlist(sorted({source.file_name for source in dataset.virtual_sources()}), 3)
        raise _refused(path, where, f"a virtual dataset assembled from {files}")


# ---- zarr -----------------------------------------------------------------------------------------------------------


def refuse_links_zarr(path: str | Path) -> None:
    """Refuse symbolic links and special files below a store, and metadata with paths that lead outside.

    The path of the store itself may be a symbolic link, since the user chose it.
    """
    root = Path(path)
    folders = [os.fspath(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                inside = Path(entry.path).relative_to(root).as_posix()
                if entry.is_symlink():
                    raise _refused(root, inside, f"a symbolic link to {os.readlink(entry.path)!r}")
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise _refused(root, inside, "no file (a pipe, socket or device)")
                elif entry.name in _ZARR_METADATA:
                    _check_metadata(Path(entry.path), root, inside)


def _check_metadata(file: Path, root: Path, name: str) -> None:
    """Refuse paths in OME-NGFF metadata that lead out of the store; readers join them to the store's folder."""
    if file.stat().st_size > _MAX_METADATA_BYTES:
        raise ValueError(
            f"The metadata {str(file)!r} has {file.stat().st_size:,} bytes; an intact store has far fewer."
        )
    text = file.read_bytes()
    if b'"path"' not in text:
        return
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"The metadata {str(file)!r} cannot be read as JSON ({error}). Copy the store again."
        ) from error
    while values:
        value = values.pop()
        if isinstance(value, list):
            values.extend(value)
        elif isinstance(value, dict):
            values.extend(value.values())
            if isinstance(target := value.get("path"), str) and leads_out(target):
                raise _refused(root, name, f"metadata with the path {target!r}, outside of the store")


def leads_out(target: str) -> bool:
    r"""Whether a path is absolute, a URL, or leads upwards.

    >>> [leads_out(p) for p in ("0", "labels/0", "/etc", "../x", "a\\..\\b", "s3://bucket/x", "C:x")]
    [False, False, True, True, True, True, True]
    """
    parts = target.replace("\\", "/").split("/")
    return target.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or "\0" in target


def refuse_links_zip(path: str | Path) -> None:
    """Refuse members of a ZIP archive that are links or would be written outside the target folder."""
    path = Path(path)
    with _checks.readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{str(path)!r} is not a ZIP archive, or it is damaged ({error}).") from error
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refused(path, member.filename, "a symbolic link")
        if leads_out(member.filename) or PurePosixPath(member.filename).is_absolute():
            raise _refused(path, member.filename, "a member that leads out of the archive")


# ---- images ---------------------------------------------------------------------------------------------------------


def refuse_tiff_references(tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a TIFF with pixels in other files. Call this before accessing `tiff.series`, which opens them."""
    for name, kind in (("is_mmstack", "Micro-Manager"), ("is_ndtiff", "NDTiff")):
        if getattr(tiff, name, False):
            raise _refused(path, kind, "a set of several files. Export the image as one OME-TIFF")
    if not tiff.is_ome:
        return
    try:
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError as error:
        raise ValueError(
            f"The image {str(path)!r} is truncated or damaged (OME-XML: {error}). Copy or download it again."
        ) from error
    own = root.get("UUID")
    for element in root.iter():
        kind = element.tag.rsplit("}", 1)[-1]
        if kind == "BinaryOnly" and element.get("MetadataFile"):
            raise _refused(path, "OME-XML", f"metadata kept in the file {element.get('MetadataFile')!r}")
        if kind != "UUID":
            continue
        own = own if own is not None else element.text  # the first element without a UUID refers to this file
        if element.text != own:
            raise _refused(path, "TiffData", f"pixels of the file {element.get('FileName')!r}")


def refuse_slide_references(path: Path) -> None:
    """Refuse whole slides whose index names files outside their folder (.mrxs, .vms, .vmu; others are single files)."""
    if path.suffix.lower() not in _INDEX_SUFFIXES:
        return
    index = path.with_suffix("") / "Slidedat.ini" if path.suffix.lower() == ".mrxs" else path
    if not index.is_file():
        return
    with index.open("rb") as file:
        text = file.read(2**24).decode("utf-8", errors="replace")
    for key, target in _INDEX_ENTRY.findall(text):
        if leads_out(target) or "/" in target.replace("\\", "/"):
            raise _refused(path, key, f"the file {target!r}, outside of the slide's folder")
