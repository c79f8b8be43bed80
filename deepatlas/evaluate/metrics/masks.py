"""The input of every metric: the two masks of a structure, and the settings of the metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DeepAtlasError
from deepatlas.space.grid import Grid


@dataclass(frozen=True)
class MaskPair:
    """The reference mask and the predicted mask of one structure in one exam."""

    reference: NDArray[np.bool_]  # [D, H, W]
    prediction: NDArray[np.bool_]  # [D, H, W]
    grid: Grid  # of both masks


@dataclass(frozen=True)
class MetricSettings:
    """The settings of all metrics. ``hd95`` is a name in :data:`~deepatlas.evaluate.metrics.hd95.HD95_CONVENTIONS`."""

    hd95: str = "mean"


def as_masks(
    reference: ArrayLike, prediction: ArrayLike, operation: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both arrays as boolean masks: every value other than 0 belongs to the mask.

    Raises:
        DeepAtlasError: the arrays do not have one shape ``[D, H, W]``. The message begins with ``operation``.
    """
    first, second = np.asarray(reference) != 0, np.asarray(prediction) != 0
    if first.ndim != 3 or first.shape != second.shape:
        raise DeepAtlasError(
            f"{operation}: reference and prediction must have one shape [D, H, W], "
            f"got {first.shape} and {second.shape}"
        )
    return first, second
