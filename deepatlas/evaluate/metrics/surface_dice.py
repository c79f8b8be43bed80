"""Surface Dice: how much of the two surfaces lies within a tolerance of the other one.

Nikolov et al., *Clinically applicable segmentation of head and neck anatomy for radiotherapy*, 2021, in the form that
MONAI computes: surface voxels are counted. DeepMind's own program weighs pieces
of a surface between the voxels by their area, which gives slightly more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.metrics.surface import SurfaceDistances, surface_distances


def surface_dice(
    reference: ArrayLike, prediction: ArrayLike, spacing: Sequence[float], tolerance: float = 3.0
) -> float:
    """The fraction of the surface voxels of both masks that lie within ``tolerance`` mm of the other surface.

    Args:
        reference: mask ``[D, H, W]`` of any numeric type; every value other than 0 belongs to it.
        prediction: mask of the same shape.
        spacing: voxel spacing ``(x, y, z)`` in mm.
        tolerance: in mm; a distance that is exactly as large counts.

    Returns:
        A number from 0 to 1; nan where both masks are empty, and 0 where one of them is.

    Raises:
        DeepAtlasError: masks of different shapes, a spacing that is not three positive numbers, or a tolerance that
            is negative or not finite.
    """
    return _within(surface_distances(reference, prediction, spacing), tolerance)


def surface_dice_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``surface_dice`` of ``metrics.csv``, with the tolerance ``settings.tolerance_mm``."""
    return _within(masks.distances, settings.tolerance_mm)


def check_tolerance(tolerance: float) -> None:
    """Raise :class:`~deepatlas.errors.DeepAtlasError` unless a tolerance is a finite number of mm, 0 or more."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise DeepAtlasError(
            f"surface Dice: the tolerance must be a finite number of mm, 0 or more, got {tolerance}"
        )


def _within(distances: SurfaceDistances, tolerance: float) -> float:
    check_tolerance(tolerance)
    pooled = distances.pooled
    # A missed structure has one infinite distance, which no tolerance meets.
    return float(np.mean(pooled <= tolerance)) if len(pooled) else math.nan
