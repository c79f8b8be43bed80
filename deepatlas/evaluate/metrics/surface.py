"""Distances between the surfaces of two masks (section 5.6.1), which HD95, surface Dice and ASD share.

The *surface* of a mask consists of those of its voxels that have at least one of their six face neighbours outside
the mask; what lies beyond the edge of the array counts as outside. MONAI and MedPy use the same definition. Distances
run between the centres of surface voxels.

Arrays are ``[D, H, W]``, that is ``(z, y, x)``. The spacing is ``(x, y, z)`` in mm, the order of ``Grid.spacing``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.arrays import as_masks


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from every surface voxel of one mask to the nearest surface voxel of the other."""

    from_reference: NDArray[np.float64]  # [surface voxels of the reference]
    from_prediction: NDArray[np.float64]  # [surface voxels of the prediction]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """The distances of both directions taken together."""
        return np.concatenate([self.from_reference, self.from_prediction])


def surface_distances(
    reference: ArrayLike, prediction: ArrayLike, spacing: Sequence[float]
) -> SurfaceDistances:
    """Directed surface distances in mm of two masks ``[D, H, W]``; ``spacing`` is ``(x, y, z)`` in mm.

    The exact Euclidean distance transform runs only on the bounding box of both masks, because no surface voxel lies
    outside it.

    Raises:
        DeepAtlasError: masks of different shapes, or a spacing that is not three positive numbers.
    """
    first, second = as_masks(reference, prediction, "surface_distances")
    sampling = [float(s) for s in spacing][::-1]
    if len(sampling) != 3 or not all(math.isfinite(s) and s > 0 for s in sampling):
        raise DeepAtlasError(f"surface_distances: spacing must be three positive mm (x, y, z), got {spacing}")
    if not (first.any() and second.any()):
        # A mask without a partner keeps one infinite distance, so that every metric can tell a missed structure from
        # two empty masks.
        return SurfaceDistances(*(np.full(int(mask.any()), math.inf) for mask in (first, second)))
    box = _bounding_box(first | second)
    first, second = surface(first[box]), surface(second[box])
    to_first, to_second = (ndimage.distance_transform_edt(~m, sampling=sampling) for m in (first, second))
    return SurfaceDistances(to_second[first], to_first[second])


def surface(mask: ArrayLike) -> NDArray[np.bool_]:
    """Surface voxels of a mask ``[D, H, W]``: those inside it with a face neighbour outside it."""
    inside = np.asarray(mask) != 0
    return inside & ~ndimage.binary_erosion(inside, border_value=0)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds the mask. It takes one pass per axis and copies nothing."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
