"""What the readers of structures hand over: one drawing a structure, and where its voxels lie on a CT's grid."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.space.volume import Volume

ON_GRID = 0.1  # voxels: what lies closer to the CT's grid than this is on it


@dataclass(frozen=True)
class Patch:
    """``array`` (z, y, x) at voxel ``start`` (z, y, x) of a larger array, all of it inside."""

    start: Shape
    array: NDArray

    @property
    def box(self) -> tuple[slice, ...]:
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.array.shape, strict=True))


@dataclass(frozen=True)
class Bits:
    """A mask that waits for its turn, a bit a voxel: forty masks of a CT are gigabytes as bytes."""

    shape: tuple[int, ...]
    packed: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Bits:
        return cls(mask.shape, np.packbits(mask))

    def array(self) -> NDArray[np.bool_]:
        return np.unpackbits(self.packed, count=math.prod(self.shape)).view(bool).reshape(self.shape)


@dataclass(frozen=True)
class Drawing:
    """One structure of a source, not yet on a grid.

    ``draw(grid, notes)`` gives its voxels as a bool :class:`Patch`, appends oddities to ``notes`` and raises
    :class:`DataError` with the reason where it cannot. ``name`` is the source's, free text.
    """

    name: str
    number: int
    draw: Callable[[Grid, list[str]], Patch]
    outline: bool = False  # the outer contour of the body, which holds all others
    given: bool = False  # the name is from a label table that somebody wrote, and taken as it is
    refusal: str = ""  # why it is not to be drawn, known without drawing


@dataclass
class LabelSource:
    """The structures of one file, and the header's identifying values, which no name may hold."""

    drawings: list[Drawing]
    identifiers: list[str] = field(default_factory=list)
    check: Callable[[Grid], None] = lambda grid: None  # raises DataError if the file cannot go onto the grid


def empty_patch() -> Patch:
    return Patch((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))


def shares_lattice(grid: Grid, target: Grid) -> bool:
    """Whether the voxels of ``grid`` are voxels of ``target``, in whatever order and however far they reach."""
    return _lattice(grid, target) is not None


def place(array: NDArray, grid: Grid, target: Grid) -> tuple[Patch, bool]:
    """Bring labels ``array`` on ``grid`` to ``target``: voxel by voxel where they share a lattice, else nearest.

    They share one when the voxels of ``grid`` are voxels of ``target`` (within 0.1 voxels), in whatever order and
    direction its axes run and however far it reaches. Returns the part inside ``target`` and whether it is exact.
    """
    if (moved := _lattice(grid, target)) is None:
        return _nearest(array, grid, target), False
    turn, offset = moved
    source = np.abs(turn).argmax(axis=1)  # of target axis x, y, z
    size = np.array(array.shape[::-1])
    start = offset + np.where(turn.sum(axis=1) < 0, 1 - size[source], 0)
    turned = array.transpose([2 - source[axis] for axis in (2, 1, 0)])
    turned = np.flip(turned, [2 - axis for axis in range(3) if turn[axis].sum() < 0])
    low = np.clip(start, 0, None)[::-1]
    high = np.minimum(start + size[source], target.shape[::-1])[::-1]
    if (high <= low).any():
        return Patch((0, 0, 0), np.zeros((0, 0, 0), dtype=array.dtype)), True
    box = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start[::-1], strict=True))
    return Patch(tuple(int(n) for n in low), turned[box]), True  # type: ignore[arg-type]


def _lattice(grid: Grid, target: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """``(turn, offset)`` with target voxel = turn @ voxel + offset, all whole numbers; None if there is none."""
    to_target = np.linalg.inv(target.affine) @ grid.affine
    turn = np.round(to_target[:3, :3])
    if not (np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]) and abs(round(np.linalg.det(turn))) == 1):
        return None
    corners = grid.world_to_voxel(grid.corners())
    there = target.world_to_voxel(grid.corners())
    offset = np.round((there - corners @ turn.T).mean(axis=0))
    if np.abs(offset).max() > 1e6 or np.abs(corners @ turn.T + offset - there).max() > ON_GRID:
        return None
    return turn.astype(np.int64), offset.astype(np.int64)


def _nearest(array: NDArray, grid: Grid, target: Grid) -> Patch:
    # A border of nothing settles what lies beyond the outermost voxels, an axis of one voxel included.
    padded = np.pad(array, 1)
    grid = grid.cropped((-1, -1, -1), padded.shape)
    there = target.world_to_voxel(grid.corners())
    low = np.clip(np.floor(there.min(axis=0)), 0, None)[::-1]
    high = np.minimum(np.ceil(there.max(axis=0)) + 1, target.shape[::-1])[::-1]
    if (high <= low).any():
        return Patch((0, 0, 0), np.zeros((0, 0, 0), dtype=array.dtype))
    start = tuple(int(n) for n in low)
    box = target.cropped(start, (high - low).astype(int))
    kind = np.uint8 if array.dtype == np.bool_ else array.dtype
    pulled = labels_to_grid(Volume(padded.astype(kind, copy=False), grid), box).array
    return Patch(start, pulled.astype(array.dtype, copy=False))  # type: ignore[arg-type]


def check_reference(
    series: DicomSeries | None, frame: str, series_uids: Iterable[str], sop_uids: Iterable[str]
):
    """Raise :class:`DataError` if a file was drawn in another frame of reference or on another series.

    What the file or the CT leaves empty is not compared. Images count before series: a file that names one of the
    CT's images belongs to it, whatever series UID stands above them.
    """
    if series is None:
        return
    if frame and series.frame and frame != series.frame:
        raise DataError(
            "drawn in another frame of reference than the CT; register it to the CT, or choose the series that "
            "it was drawn on"
        )
    series_uids = set(series_uids)
    # A series that was split carries a suffix; its parts have one SeriesInstanceUID.
    if series_uids and series.series.split("#")[0] not in series_uids:
        if set(sop_uids).isdisjoint(series.sop_uids):
            raise DataError("drawn on another series than the CT; choose that series for the exam")


@contextmanager
def dicom_errors(what: str) -> Iterator[None]:
    """pydicom's many errors, raised when a field is first looked at, as one that quotes no value of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DataError:
            raise
        except MemoryError as error:  # a damaged length asks for gigabytes
            raise DataError(f"{what} is damaged, or larger than the memory; export it again") from error
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror or type(error).__name__}") from error
        except Exception as error:
            raise DataError(
                f"{what} is damaged or incomplete ({type(error).__name__}); export it again"
            ) from error


def without_path(error: DataError, path: Path) -> str:
    """An error's message without the paths and names of the file and of what lies beside it."""
    text = re.sub(rf"^{re.escape(str(path.parent))}[^:]*: ", "", str(error).replace(str(path), "the file"))
    text = re.sub(r"its voxels are in .*, which is missing", "the file of its voxels is missing", text)
    return text.removeprefix("the file: ")
