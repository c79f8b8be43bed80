"""A picture of an exam with its structures: three planes, as one PNG file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.files import atomic_path
from deepatlas.pictures.draw import png_bytes
from deepatlas.pictures.figures import overlay_figure
from deepatlas.pictures.view import choose_slices
from deepatlas.space.constants import HU_RANGE
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.labels import Labels
from deepatlas.space.preprocess import foreground_box
from deepatlas.space.volume import Volume

# Every n-th voxel along an axis decides which slices cross the most structures, so that at most so many are looked at.
_LOOKED_AT = 128
# How many of these voxels are shown around the patient.
_MARGIN = 2


def write_preview(
    path: str | os.PathLike[str],
    volume: Volume,
    labels: Labels,
    names: Mapping[str, int],
    *,
    hounsfield: bool = True,
    title: str = "",
    convention: str = "radiological",
) -> Path:
    """Draw the three planes that cross the most structures, plain and with the outlines of the structures.

    Args:
        path: the PNG file.
        volume: the exam, on the grid of ``labels``.
        labels: the structures; outlines are of whole masks, whatever overlaps them.
        names: ``{name: id}`` of the structures to outline.
        hounsfield: whether the values are Hounsfield units, which are shown from -256 to 256; other images are shown
            from the 1st to the 99th percentile of the planes.
        title: a line at the top.
        convention: ``"radiological"``, the patient's right on the left, or ``"neurological"``.

    Returns the path.

    Raises :class:`~deepatlas.errors.WriteError` if the file cannot be written.
    """
    path = Path(path)
    step = [max(1, n // _LOOKED_AT) for n in labels.grid.shape]
    small = labels.subsampled(step).canonical()
    present = labels.ids()
    drawn = {name: identity for name, identity in names.items() if identity in present}
    grid, axes, flips = labels.grid.canonical()
    # Only three slices of the exam are copied, and not the whole of it: those that were looked at.
    planes = []
    for axis, at in enumerate(choose_slices(small.array, list(drawn.values()))):
        if axis in flips:
            at = small.array.shape[axis] - 1 - at
        planes.append(_plane(labels.grid.shape, axes[axis], at * step[axes[axis]]))
    slices = [volume.cropped(*plane).canonical().array.squeeze(axis) for axis, plane in enumerate(planes)]
    outlines: list[NDArray[np.bool_]] = []
    for axis, plane in enumerate(planes):
        part = labels.cropped(*plane).canonical()
        masks = [part.mask(identity).squeeze(axis) for identity in drawn.values()]
        outlines.append(np.stack(masks) if masks else np.zeros((0, *slices[axis].shape), dtype=bool))
    # The air beside the patient is left out.
    frame = _frame(volume, small, step) if hounsfield else (slice(None),) * 3
    for axis in range(3):
        shown = tuple(frame[a] for a in range(3) if a != axis)
        slices[axis], outlines[axis] = slices[axis][shown], outlines[axis][(slice(None), *shown)]
    shape = (len(slices[1]), *slices[0].shape)
    low, high = HU_RANGE
    scale = f"window {low:g} to {high:g} HU"
    if not hounsfield:
        low, high = np.percentile(np.concatenate([s.ravel() for s in slices]), (1, 99))
        scale = ""
    grey = [np.clip((s.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) for s in slices]
    figure = overlay_figure(
        grey,
        None,
        outlines,
        None,
        drawn,
        shape,
        grid.spacing,
        title=title,
        convention=convention,
        scale=scale,
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure))
    return path


def _frame(volume: Volume, labels: Labels, step: Sequence[int]) -> tuple[slice, slice, slice]:
    """The part of the canonical axial slices that holds the patient and all structures; nothing is cut along z.

    Args:
        volume: the exam.
        labels: every ``step``-th voxel of its structures, in canonical order.
        step: along z, y and x of the exam.
    """
    array = np.ascontiguousarray(volume.array[tuple(slice(None, None, s) for s in step)])
    grid = Grid(array.shape, volume.grid.affine @ np.diag([*step[::-1], 1.0]))
    try:
        start, shape = foreground_box(Volume(array, grid, volume.name).canonical())
    except DataError:
        return slice(None), slice(None), slice(None)
    whole, axes, _ = volume.grid.canonical()
    ends = [slice(None)]
    for axis in (1, 2):
        # What a canonical axis that runs the other way leaves over lies before its first voxel.
        used = np.flatnonzero(labels.array.any(axis=tuple(a for a in range(3) if a != axis)))
        low = min([start[axis], *used[:1]]) - _MARGIN
        high = max([start[axis] + shape[axis], *(used[-1:] + 1)]) + _MARGIN
        stride = step[axes[axis]]
        ends.append(slice(max(0, int(low) * stride), min(whole.shape[axis], int(high) * stride)))
    return ends[0], ends[1], ends[2]


def _plane(shape: Shape, axis: int, at: int) -> tuple[list[int], list[int]]:
    """Start and shape (z, y, x) of the plane ``at`` of an axis."""
    start, size = [0, 0, 0], list(shape)
    start[axis], size[axis] = at, 1
    return start, size
