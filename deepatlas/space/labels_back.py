"""Labels that were drawn or found on a view of an exam, back on the exam's own grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.resample_to import resample_to
from deepatlas.space.volume import Volume


def labels_back(labels: Volume, grid: Grid) -> Labels:
    """Labels of a view, or of any other grid of the same exam, on the exam's own grid.

    Each structure is interpolated linearly, so that its border is as smooth as that of a finer drawing; a voxel takes
    the one that fills most of it, unless the background does. The type of the ids and overlaps are kept, and beyond the
    view there is nothing.
    """
    seen = Labels.of(labels)
    array = np.zeros(grid.shape, dtype=seen.array.dtype)
    best = np.zeros(grid.shape, dtype=np.float32)
    total = np.zeros(grid.shape, dtype=np.float32)
    hidden = {}
    for identity in sorted(seen.ids()):
        if found := _share(seen.array == identity, seen.grid, grid):
            box, share = found
            total[box] += share
            wins = share > best[box]
            best[box][wins], array[box][wins] = share[wins], identity
    array[best < 1 - total] = 0
    for identity in seen.hidden:
        if found := _share(seen.mask(identity), seen.grid, grid):
            box, share = found
            below = (share >= 0.5) & (array[box] != identity)
            if below.any():
                hidden[identity] = BoxMask.of(below, [part.start for part in box])
    return Labels(array, grid, seen.name, hidden)


def _share(
    mask: NDArray[np.bool_], source: Grid, grid: Grid
) -> tuple[tuple[slice, ...], NDArray[np.float32]] | None:
    """By how much a mask fills the voxels of a box of a grid, and that box; None where it does not reach the grid."""
    places = np.argwhere(mask)
    if not len(places):
        return None
    low, high = places.min(axis=0) - 1, places.max(axis=0) + 2
    corners = np.array(list(np.ndindex(2, 2, 2))) * (high - low) + low - 0.5
    index = grid.world_to_voxel(source.voxel_to_world(corners[:, ::-1]))[:, ::-1]
    first = np.maximum(np.floor(index.min(axis=0)).astype(int), 0)
    last = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1, grid.shape)
    if (first >= last).any():
        return None
    part = grid.cropped(first.tolist(), (last - first).tolist())
    share = resample_to(Volume(mask.astype(np.float32), source), part, outside=0.0).array
    return tuple(slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)), share
