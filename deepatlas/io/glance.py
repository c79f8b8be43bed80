"""What an image file holds, as far as a glance tells: the grid, and whether its voxels are labels.

The name of a file tells little: a mask may be called ``img.nrrd``, and a CT ``label.nii.gz``. A CT in Hounsfield units
has negative voxels and hundreds of values, so that reading stops within its first slices; only a label image has to be
decompressed to its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.codec import image_suffix, read_grid, read_stored
from deepatlas.io.integrity import decompressed
from deepatlas.io.segments import read_segments
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid

# A label image has at most so many ids. The largest atlases of the body have about 150; an eight-bit picture has 256.
MOST_LABELS = 200
# With more ids than this, at least half of the neighbours along a row that are not 0 must be equal: in label images
# 96 % and more are, in a magnetic resonance image with 110 to 195 grey values 4 to 8 % (the hippocampus of the MSD).
_CERTAIN = 20
_EQUAL = 0.5
# A CT in Hounsfield units has air, which is negative, and bone above this.
SMALL = 100
# Labels that were computed with may be a little off their whole numbers.
_ROUNDED = 1e-3
# The types of voxels of a NIfTI, by their datatype code.
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


class Holds(StrEnum):
    """What the voxels of an image are."""

    # Few distinct whole numbers from 0, or from -1, which some tools give to what they ignore.
    LABELS = "labels"
    # Fractions that are not negative, and small: a probability map, a blurred label image, an uptake.
    FRACTIONS = "fractions"
    # Anything else: a CT, as far as a glance tells.
    IMAGE = "image"
    # Every voxel is 0: a mask of nothing, or a damaged CT.
    NOTHING = "nothing"
    # The file cannot be read.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Glance:
    """What an image file holds. ``ids`` are the label ids other than 0, ``grid`` is None where it is not readable."""

    holds: Holds
    ids: tuple[int, ...] = ()
    grid: Grid | None = field(default=None, compare=False)


def glance(path: Path) -> Glance:
    """Look at an image file. What the file holds never makes this function raise, except for a failing disk.

    Raises :class:`OSError` if the file cannot be read now.
    """
    with open(path, "rb"):
        # A file that may not be read is no file without content.
        pass
    try:
        if (found := read_segments(path)) is not None and found.layered:
            # Segments of 3D Slicer on several layers, which hold nothing but labels.
            return Glance(Holds.LABELS, tuple(sorted(found.numbers)), read_grid(path, layers=True))
        grid = read_grid(path)
        voxels = _nifti(path) if image_suffix(path).startswith(".nii") else _decoded(path)
        return _judged(voxels, grid)
    except (DataError, struct.error, ValueError, MemoryError):
        # Reading the exam will tell what is wrong with the file.
        return Glance(Holds.UNKNOWN)


def _judged(chunks: Iterator[NDArray], grid: Grid) -> Glance:
    seen = np.zeros(MAX_LABEL + 1, dtype=bool)
    # Whether all voxels were whole numbers so far, and whether they may be fractions of the kind that no CT has.
    whole = small = True
    ignored = False
    pairs = equal = 0
    for chunk in chunks:
        low, high = chunk.min(), chunk.max()
        # NaN fails both comparisons.
        if not (low >= -1 and high <= MAX_LABEL):
            return Glance(Holds.IMAGE, grid=grid)
        small = small and bool(low >= 0 and high <= SMALL)
        if whole and chunk.dtype.kind == "f":
            whole = bool(np.abs(chunk - np.round(chunk)).max() < _ROUNDED)
        if whole:
            # As 0 is -1 counted, apart from it.
            numbers = np.maximum(np.round(chunk.ravel()), 0).astype(np.uint16)
            ignored = ignored or bool(low < 0)
            seen |= np.bincount(numbers, minlength=len(seen)) > 0
            whole = int(np.count_nonzero(seen)) <= MOST_LABELS
            inside = (numbers[1:] != 0) & (numbers[:-1] != 0)
            pairs += int(np.count_nonzero(inside))
            equal += int(np.count_nonzero(inside & (numbers[1:] == numbers[:-1])))
        if not whole and not small:
            return Glance(Holds.IMAGE, grid=grid)
    if not whole:
        return Glance(Holds.FRACTIONS, grid=grid)
    ids = tuple(int(i) for i in np.flatnonzero(seen) if i)
    if len(ids) > _CERTAIN and equal < _EQUAL * pairs:
        return Glance(Holds.IMAGE, grid=grid)
    return Glance(Holds.LABELS if ids or ignored else Holds.NOTHING, ids, grid)


def _decoded(path: Path) -> Iterator[NDArray]:
    """The voxels of an NRRD or MetaImage, whose compressed stream ITK decodes as a whole."""
    yield read_stored(path)


def _nifti(path: Path) -> Iterator[NDArray]:
    """The voxels of a NIfTI, a piece at a time, with slope and intercept applied."""
    stream = decompressed(path)
    head = next(stream, b"")
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    dims, code = struct.unpack(order + "8h", head[40:56]), struct.unpack(order + "h", head[70:72])[0]
    offset, slope, intercept = struct.unpack(order + "3f", head[108:120])
    if code not in _TYPES:
        raise ValueError("no scalar voxels")
    dtype = np.dtype(order + _TYPES[code])
    left = int(np.prod(dims[1 : dims[0] + 1], dtype=np.int64)) * dtype.itemsize
    rest = head[int(offset) :]
    scaled = bool(
        np.isfinite(slope) and np.isfinite(intercept) and slope != 0 and (slope, intercept) != (1, 0)
    )
    while left > 0:
        usable = min(len(rest), left) // dtype.itemsize * dtype.itemsize
        if usable:
            voxels = np.frombuffer(rest[:usable], dtype=dtype)
            yield voxels * float(slope) + float(intercept) if scaled else voxels
            left -= usable
        elif left < dtype.itemsize:
            return
        chunk = next(stream, b"")
        if not chunk:
            if left > 0:
                raise ValueError("truncated")
            return
        rest = rest[usable:] + chunk
