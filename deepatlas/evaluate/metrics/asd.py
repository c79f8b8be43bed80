"""The average symmetric surface distance of two masks (ASD, also called ASSD)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.metrics.surface import SurfaceDistances, surface_distances


def average_surface_distance(reference: ArrayLike, prediction: ArrayLike, spacing: Sequence[float]) -> float:
    """The mean in mm of the distances from every surface voxel of both masks to the other surface.

    Args:
        reference: mask ``[D, H, W]`` of any numeric type; every value other than 0 belongs to it.
        prediction: mask of the same shape.
        spacing: voxel spacing ``(x, y, z)`` in mm.

    Returns:
        Millimetres; nan where both masks are empty, and inf where one of them is.

    Raises:
        DeepAtlasError: masks of different shapes, or a spacing that is not three positive numbers.
    """
    return _mean(surface_distances(reference, prediction, spacing))


def asd_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``asd_mm`` of ``metrics.csv``."""
    return _mean(masks.distances)


def _mean(distances: SurfaceDistances) -> float:
    # A missed structure has one infinite distance, and so has its mean.
    return float(np.mean(distances.pooled)) if len(distances.pooled) else math.nan
