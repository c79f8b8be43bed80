"""The 95th percentile of the Hausdorff distance of two masks (section 5.6.1, eq. 16), in three conventions.

The *surface* of a mask consists of those of its voxels that have at least one of their six face neighbours outside
the mask; what lies beyond the edge of the array counts as outside. MONAI and MedPy use the same definition. Distances
run between the centres of surface voxels.

Two empty masks give nan, because there is nothing to compare. One empty mask gives an infinite distance, because no
finite distance describes a missed structure; averages are taken over the finite distances and report how many
structures were missed.

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
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings, as_masks

HD95_CONVENTIONS = {
    "mean": "mean of the two directed 95th percentiles (eq. 16)",
    "max": "maximum of the two directed 95th percentiles (MONAI, DeepMind)",
    "pooled": "95th percentile of the two directed sets taken together (MedPy)",
}


def hausdorff95(
    reference: ArrayLike, prediction: ArrayLike, spacing: Sequence[float], convention: str = "mean"
) -> float:
    """95th-percentile Hausdorff distance in mm of two masks.

    Args:
        reference: mask ``[D, H, W]`` of any numeric type; every value other than 0 belongs to it.
        prediction: mask of the same shape.
        spacing: voxel spacing ``(x, y, z)`` in mm.
        convention: a name in :data:`HD95_CONVENTIONS`; ``"mean"`` is eq. 16.

    Returns:
        Millimetres; nan where both masks are empty, and inf where one of them is.

    Raises:
        DeepAtlasError: masks of different shapes, a spacing that is not three positive numbers, or an unknown
            convention.
    """
    return surface_distances(reference, prediction, spacing).percentile(95.0, convention)


def hd95_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``hd95_mm`` of ``metrics.csv``, in the convention ``settings.hd95``."""
    return hausdorff95(masks.reference, masks.prediction, masks.grid.spacing, settings.hd95)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from every surface voxel of one mask to the nearest surface voxel of the other."""

    from_reference: NDArray[np.float64]  # [surface voxels of the reference]
    from_prediction: NDArray[np.float64]  # [surface voxels of the prediction]

    def percentile(self, q: float = 95.0, convention: str = "mean") -> float:
        """Symmetric percentile ``q`` in a convention of :data:`HD95_CONVENTIONS`.

        Raises :class:`~deepatlas.errors.DeepAtlasError` for an unknown convention.
        """
        if convention not in HD95_CONVENTIONS:
            raise DeepAtlasError(
                f"hausdorff95: convention must be one of {', '.join(HD95_CONVENTIONS)}, got {convention!r}"
            )
        sizes = len(self.from_reference), len(self.from_prediction)
        if not any(sizes):
            return math.nan
        if not all(sizes):
            return math.inf
        if convention == "pooled":
            return float(np.percentile(np.concatenate([self.from_reference, self.from_prediction]), q))
        directed = np.percentile(self.from_reference, q), np.percentile(self.from_prediction, q)
        return float(np.mean(directed) if convention == "mean" else np.max(directed))


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
        # A mask without a partner keeps one infinite distance, so that percentile() can tell a missed structure from
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
