"""The 95th percentile of the Hausdorff distance of two masks (section 5.6.1, eq. 16), in three conventions.

Two empty masks give nan, because there is nothing to compare. One empty mask gives an infinite distance, because no
finite distance describes a missed structure; averages are taken over the finite distances and report how many
structures were missed. :mod:`deepatlas.evaluate.metrics.surface` tells what the surface of a mask is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.metrics.surface import SurfaceDistances, surface_distances

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
    return _percentile(surface_distances(reference, prediction, spacing), convention)


def hd95_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``hd95_mm`` of ``metrics.csv``, in the convention ``settings.hd95``."""
    return _percentile(masks.distances, settings.hd95)


def _percentile(distances: SurfaceDistances, convention: str, q: float = 95.0) -> float:
    """The symmetric percentile ``q`` of the distances."""
    if convention not in HD95_CONVENTIONS:
        raise DeepAtlasError(
            f"hausdorff95: convention must be one of {', '.join(HD95_CONVENTIONS)}, got {convention!r}"
        )
    sizes = len(distances.from_reference), len(distances.from_prediction)
    if not any(sizes):
        return math.nan
    if not all(sizes):
        return math.inf
    if convention == "pooled":
        return float(np.percentile(distances.pooled, q))
    directed = np.percentile(distances.from_reference, q), np.percentile(distances.from_prediction, q)
    return float(np.mean(directed) if convention == "mean" else np.max(directed))
