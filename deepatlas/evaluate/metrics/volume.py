"""The volumes of the two masks of a structure in millilitres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings


def predicted_volume_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``predicted_ml`` of ``metrics.csv``."""
    return _millilitres(masks.prediction, masks)


def reference_volume_metric(masks: MaskPair, settings: MetricSettings) -> float:
    """The column ``reference_ml`` of ``metrics.csv``."""
    return _millilitres(masks.reference, masks)


def _millilitres(mask: NDArray[np.bool_], masks: MaskPair) -> float:
    return int(np.count_nonzero(mask)) * (masks.grid.voxel_volume / 1000)
