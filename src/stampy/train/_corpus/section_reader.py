"""Section of a corpus, read in parts and checked against its record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stampy._io.sections import file_name
from stampy._section.outside_links import leads_out
from stampy.train._config import PretrainConfig
from stampy.train._corpus.layout import SectionRecord
from stampy.train._corpus.section_writer import stored_record
from stampy.train._corpus.shards import Shards
from stampy.train._data import MemorySection, SectionGroups

__all__ = ["StoredSection", "changed_files", "wrong_sizes"]


@dataclass(frozen=True, eq=False)
class StoredSection:
    """A `TrainingSection` on disk. Rows are spots in the order of the source, unless documented as rows of tokens."""

    folder: Path
    record: SectionRecord

    @property
    def name(self) -> str:
        """Name as passed to the build."""
        return self.record["name"]

    @property
    def n_spots(self) -> int:
        """Number of spots in the source."""
        return self.record["n_spots"]

    @property
    def n_groups(self) -> list[int]:
        """Number of neighbourhood groups per draw; empty for a section without genes."""
        return self.record["n_groups"]

    @property
    def has_genes(self) -> bool:
        """Whether the section has tokens."""
        return self.record["genes"] is not None

    @property
    def has_tiles(self) -> bool:
        """Whether the section has patches and regions."""
        return self.record["image"] is not None

    def summary(self) -> dict[str, object]:
        """Row of `Corpus.table`."""
        record, genes = self.record, self.record["genes"]
        return {
            "name": record["name"],
            "organ": record["organ"],
            "platform": record["platform"],
            "species": record.get("species", ""),
            "patient": record.get("patient", ""),
            "n_spots": record["n_spots"],
            "n_groups": sum(record["n_groups"]),
            "n_genes": 0 if genes is None else genes["n_matched"],
            "tiles": self.has_tiles,
            "bytes": sum(size for size, _ in record["files"].values()),
        }

    @cached_property
    def xy(self) -> np.ndarray:
        """(n, 2) float64, px of the full-resolution image."""
        return self._array("xy").all()

    @cached_property
    def spots(self) -> np.ndarray:
        """(R,) int32, spot of each row of tokens: all groups of all draws, then spots without group."""
        return self._array("spots").all()

    @cached_property
    def lengths(self) -> np.ndarray:
        """(R,) uint16, number of tokens per row."""
        return self._array("lengths").all()

    @cached_property
    def first_row(self) -> np.ndarray:
        """(n,) first row of tokens of each spot."""
        return np.unique(self.spots, return_index=True)[1]

    @cached_property
    def cells(self) -> np.ndarray:
        """(n, K) int8, cell of the patch in each of its regions, row-major; -1 if no region is inside the image."""
        return self._array("cells").all()

    @cached_property
    def _tokens(self) -> Shards:
        return self._array("tokens")

    def group(self, number: int) -> np.ndarray:
        """(group_size, L) tokens of a group, centre first, in one read; group numbers continue over the draws."""
        return self._tokens.chunk(number)

    def groups(self, draw: int, config: PretrainConfig, rng: np.random.Generator) -> SectionGroups:
        """Stored groups; `SectionGroups.n_dropped` counts spots without group in all draws."""
        size = config.group_size
        numbers = np.arange(self.n_groups[draw]) + sum(self.n_groups[:draw])
        of_draw = slice(size * sum(self.n_groups[:draw]), size * sum(self.n_groups[: draw + 1]))
        members = self.spots[of_draw].reshape(-1, size).astype(np.int64)
        longest = self.lengths[of_draw].reshape(-1, size).max(axis=1)
        return SectionGroups(numbers, members, longest, len(self.spots) - size * sum(self.n_groups))

    def read_group(self, number: int, members: np.ndarray, out: np.ndarray) -> None:
        """Read the tokens of a group into `out`, in one read."""
        self._tokens.read_into(number, out)

    @property
    def tokens_kept(self) -> int:
        """Number of tokens stored per spot."""
        return self._tokens.shape[1]

    def spot_tokens(self, rows: np.ndarray, width: int) -> np.ndarray:
        """(m, width) tokens of spots; zeros for a section without genes."""
        return self.tokens(rows)[:, :width] if self.has_genes else np.zeros((len(rows), width), dtype=np.uint16)

    def load(self, max_tokens: int) -> MemorySection:
        """Load the section into memory, without tiles."""
        tokens, kept = self.spot_tokens(np.arange(self.n_spots), max_tokens), None
        if not np.isfinite(self.xy).all():  # groups of the source, without coordinates
            n = sum(self.n_groups)
            kept = self.spots.reshape(n, -1).astype(np.int64) if n else None
        return MemorySection(self.name, self.xy, tokens, None, kept)

    def ready_tiles(self) -> None:
        """Read cells and first rows, which all batches with tiles use."""
        _ = self.cells
        if self.has_genes:
            _ = self.first_row

    @property
    def size_px(self) -> int:
        """Edge of a tile."""
        return self._patches.shape[1]

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """(m, L) tokens of spots."""
        return np.stack([self._tokens.row(i) for i in self.first_row[rows]])

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """(m, px, px, 3) uint8."""
        return np.concatenate([self._patches.chunk(i) for i in rows])

    def regions(self, rows: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
        """(m, px, px, 3) uint8: for each spot, its region number `which` (default: the first)."""
        which = np.zeros(len(rows), dtype=np.int64) if which is None else which
        return np.concatenate([self._regions.chunk(i) for i in rows * self.cells.shape[1] + which])

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(m, 2, px, px, 3) uint8: patch and a region of each spot, if possible with the patch in the middle."""
        return np.stack([self.patches(rows), self.regions(rows, self._in_middle(rows).argmax(axis=1))], axis=1)

    def centred(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool, whether `inputs` has the patch in the middle of its region, as in `stampy.tl.embed`."""
        return np.asarray(self._in_middle(rows).any(axis=1))

    def _in_middle(self, rows: np.ndarray) -> np.ndarray:
        return np.isin(self.cells[rows], (-1, 4))

    def choose_regions(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(m,) int64, random region numbers."""
        return rng.integers(self.cells.shape[1], size=len(rows))

    def cells_of(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m,) int8, cell of the patch in its region number `which`."""
        return self.cells[rows, which]

    @cached_property
    def _patches(self) -> Shards:
        return self._array("patches")

    @cached_property
    def _regions(self) -> Shards:
        return self._array("regions")

    def _array(self, name: str) -> Shards:
        return Shards(self.folder / name)


def wrong_sizes(path: Path, record: SectionRecord) -> Iterator[tuple[Path, str]]:
    """Files of a section that are missing, have another size, or are outside the corpus."""
    folder = path / "sections" / file_name(record["name"])
    linked: dict[Path, bool] = {path: False}  # the path of the corpus itself may be a symbolic link
    for name, (size, _) in record["files"].items():
        file = folder / name
        if leads_out(name):
            raise ValueError(f"The corpus {str(path)!r} is rejected: its manifest names {name!r}, outside of it.")
        if _is_linked(file, linked):
            yield file, "it is a symbolic link, or is behind one"
            continue
        try:
            found = file.stat().st_size
        except FileNotFoundError:
            yield file, "it is missing"
            continue
        if found != size:
            yield file, f"it has {found} bytes where {size} were expected"


def _is_linked(place: Path, known: dict[Path, bool]) -> bool:
    """Whether a path below the known ones contains a symbolic link."""
    if place not in known:
        known[place] = place.is_symlink() or _is_linked(place.parent, known)
    return known[place]


def changed_files(path: Path, record: SectionRecord) -> Iterator[str]:
    """Problems with the files of a section, as messages."""
    wrong = dict(wrong_sizes(path, record))
    folder = path / "sections" / file_name(record["name"])
    if stored_record(folder) != record and not wrong:
        wrong[folder / "zarr.json"] = "it is missing or differs from the manifest"
    for name, (_, digest) in record["files"].items():
        file = folder / name
        if file not in wrong:
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                    wrong[file] = "its contents changed (SHA-256)"
    yield from (f"{file.relative_to(path).as_posix()}: {problem}" for file, problem in wrong.items())
