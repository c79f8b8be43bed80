"""Overlap and border distance of two masks (paper 5.6.1, eqs 15 and 16).

Spacing is given as ``(x, y, z)`` in millimetres, the order of ``Grid.spacing``; arrays are ``[D, H, W]``,
that is ``(z, y, x)``. The *surface* of a mask is its own voxels with at least one of the six face
neighbours outside the mask (beyond the array's edge counts as outside), the definition of MONAI and of
MedPy. Distances run between the centres of surface voxels.

Empty masks: both empty -> ``nan`` (nothing to compare); one empty -> Dice 0 and an infinite distance,
because no finite distance describes a missed structure. Averages are taken over finite distances and say
how many were missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from deepatlas.errors import DeepAtlasError

HD95_CONVENTIONS = {
    "mean": "mean of the two directed 95th percentiles (eq. 16)",
    "max": "maximum of the two directed 95th percentiles (MONAI, DeepMind)",
    "pooled": "95th percentile of the two directed sets taken together (MedPy)",
}


def _masks(reference: np.ndarray, prediction: np.ndarray, op: str) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = np.asarray(reference) != 0, np.asarray(prediction) != 0
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise DeepAtlasError(
            f"{op}: reference and prediction must have one shape [D, H, W], "
            f"got {reference.shape} and {prediction.shape}"
        )
    return reference, prediction


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice score of two masks ``[D, H, W]`` (eq. 15): 2 |Y and P| / (|Y| + |P|); nan where both are empty."""
    reference, prediction = _masks(reference, prediction, "dice")
    total = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    if total == 0:
        return math.nan
    return 2.0 * int(np.count_nonzero(reference & prediction)) / total


def surface(mask: np.ndarray) -> np.ndarray:
    """Surface voxels of a mask ``[D, H, W]``: inside it, with a face neighbour outside."""
    mask = np.asarray(mask) != 0
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


@dataclass(frozen=True)
class SurfaceDistances:
    """Millimetres from every surface voxel of one mask to the nearest surface voxel of the other."""

    from_reference: np.ndarray
    from_prediction: np.ndarray

    def percentile(self, q: float = 95.0, convention: str = "mean") -> float:
        """Symmetric percentile ``q`` in the named convention (see ``HD95_CONVENTIONS``)."""
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


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box that holds the mask; one pass per axis, and no copy of the mask."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> SurfaceDistances:
    """Directed surface distances of two masks ``[D, H, W]`` in mm; ``spacing`` is ``(x, y, z)``.

    The exact Euclidean distance transform runs on the bounding box of both masks only: no surface voxel
    lies outside. An empty mask gives two empty arrays, or one, as the case is.
    """
    reference, prediction = _masks(reference, prediction, "surface_distances")
    sampling = [float(s) for s in spacing][::-1]
    if len(sampling) != 3 or not all(math.isfinite(s) and s > 0 for s in sampling):
        raise DeepAtlasError(f"surface_distances: spacing must be three positive mm (x, y, z), got {spacing}")
    if not (reference.any() and prediction.any()):
        # A mask without a partner keeps its surface count, so that percentile() can tell "missed" from
        # "both empty".
        lone = [np.full(int(m.any()), math.inf) for m in (reference, prediction)]
        return SurfaceDistances(*lone)
    box = _bounding_box(reference | prediction)
    edges = [surface(reference[box]), surface(prediction[box])]
    to_reference, to_prediction = (ndimage.distance_transform_edt(~e, sampling=sampling) for e in edges)
    return SurfaceDistances(to_prediction[edges[0]], to_reference[edges[1]])


def hausdorff95(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], convention: str = "mean"
) -> float:
    """95th-percentile Hausdorff distance in mm of two masks ``[D, H, W]``.

    ``convention`` is "mean" (eq. 16, the default), "max" or "pooled"; ``spacing`` is ``(x, y, z)`` in mm.
    Both masks empty -> nan, one empty -> inf.
    """
    return surface_distances(reference, prediction, spacing).percentile(95.0, convention)
