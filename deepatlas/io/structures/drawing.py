"""Drawings of structures, which the readers of all sources produce, and how their voxels come onto a CT's grid."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.structures.contents import Structure
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.space.volume import Volume

# What lies closer to the grid of the CT than this, in voxels, counts as lying on it.
ON_GRID = 0.1


@dataclass(frozen=True)
class Patch:
    """A part of a larger array: ``array`` (z, y, x) begins at its voxel ``start`` (z, y, x) and lies inside it."""

    start: Shape
    array: NDArray

    @property
    def box(self) -> tuple[slice, ...]:
        return tuple(slice(s, s + n) for s, n in zip(self.start, self.array.shape, strict=True))


@dataclass(frozen=True)
class Drawing:
    """A structure that can be drawn onto a grid.

    ``draw(grid, notes)`` returns its voxels as a bool :class:`Patch`, appends what is odd to ``notes``, and raises
    :class:`~deepatlas.errors.DataError` with the reason if it cannot be drawn.
    """

    structure: Structure
    draw: Callable[[Grid, list[str]], Patch]


@dataclass
class LabelSource:
    """The structures of one file. No name in a dataset may contain ``identifiers``, values of the file's header.

    ``check(grid)`` raises :class:`~deepatlas.errors.DataError` if the file does not fit the grid of the CT.
    """

    drawings: list[Drawing]
    identifiers: list[str] = field(default_factory=list)
    check: Callable[[Grid], None] = lambda grid: None
    # What is odd about the file as a whole.
    notes: list[str] = field(default_factory=list)


def empty_patch() -> Patch:
    return Patch((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))


def shares_lattice(grid: Grid, target: Grid) -> bool:
    """Whether the voxels of ``grid`` coincide with voxels of ``target``, or of its continuation, in any order."""
    return _lattice(grid, target) is not None


def place(array: NDArray, grid: Grid, target: Grid) -> tuple[Patch, bool]:
    """Bring labels ``array`` on ``grid`` to ``target``: voxel by voxel on a shared lattice, else by nearest neighbour.

    The grids share a lattice if the voxels of ``grid`` coincide (within 0.1 voxels) with voxels of ``target`` or of its
    continuation, whatever the order and direction of the axes. Returns the part inside ``target``, and whether the
    result is exact.
    """
    if (moved := _lattice(grid, target)) is None:
        return _nearest(array, grid, target), False
    turn, offset = moved
    # The axis of ``grid`` that each axis x, y, z of ``target`` comes from.
    source = np.abs(turn).argmax(axis=1)
    size = np.array(array.shape[::-1])
    start = offset + np.where(turn.sum(axis=1) < 0, 1 - size[source], 0)
    turned = array.transpose([2 - source[axis] for axis in (2, 1, 0)])
    turned = np.flip(turned, tuple(2 - axis for axis in range(3) if turn[axis].sum() < 0))
    low = np.clip(start, 0, None)[::-1]
    high = np.minimum(start + size[source], target.shape[::-1])[::-1]
    if (high <= low).any():
        return Patch((0, 0, 0), np.zeros((0, 0, 0), dtype=array.dtype)), True
    box = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start[::-1], strict=True))
    return Patch(tuple(int(n) for n in low), turned[box]), True  # type: ignore[arg-type]


def _lattice(grid: Grid, target: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """``(turn, offset)``, integers, with target voxel = turn @ voxel + offset; None if there is no shared lattice."""
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
    # A border of background decides what lies beyond the outermost voxels, also along an axis of one voxel.
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


@contextmanager
def dicom_errors(what: str) -> Iterator[None]:
    """Turn the errors of pydicom, raised when an element is first used, into one that quotes no value of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DataError:
            raise
        except MemoryError as error:
            # A damaged length may ask for gigabytes.
            raise DataError(f"{what} is damaged, or larger than the memory; export it again") from error
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror or type(error).__name__}") from error
        except Exception as error:
            raise DataError(
                f"{what} is damaged or incomplete ({type(error).__name__}); export it again"
            ) from error


def without_path(error: DataError, path: Path) -> str:
    """The message of an error without the paths and names of the file and of its neighbours."""
    text = re.sub(rf"^{re.escape(str(path.parent))}[^:]*: ", "", str(error).replace(str(path), "the file"))
    text = re.sub(r"its voxels are in .*, which is missing", "the file of its voxels is missing", text)
    return text.removeprefix("the file: ")
