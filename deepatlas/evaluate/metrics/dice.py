"""The Dice score of two masks (section 5.6.1, eq. 15)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from deepatlas.evaluate.metrics.arrays import as_masks
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings


def dice(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Dice score 2 |Y and P| / (|Y| + |P|) of two masks ``[D, H, W]`` (eq. 15).

    Returns:
        A number from 0 to 1, or nan where both masks are empty and there is nothing to compare.

    Raises:
        DeepAtlasError: the masks do not have one shape ``[D, H, W]``.
    """
    first, second = as_masks(reference, prediction, "dice")
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    if total == 0:
        return math.nan
    return 2.0 * int(np.count_nonzero(first & second)) / total


def dice_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``dice`` of ``metrics.csv``."""
    return dice(masks.reference, masks.prediction)
