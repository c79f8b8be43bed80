"""The input of every metric: the two masks of a structure, and the settings of the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deepatlas.evaluate.metrics.surface import SurfaceDistances, surface_distances
from deepatlas.space.grid import Grid


@dataclass(frozen=True)
class MaskPair:
    """The reference mask and the predicted mask of one structure in one exam."""

    reference: NDArray[np.bool_]  # [D, H, W]
    prediction: NDArray[np.bool_]  # [D, H, W]
    grid: Grid  # of both masks

    @cached_property
    def distances(self) -> SurfaceDistances:
        """The surface distances in mm, which several metrics share and which are computed once."""
        return surface_distances(self.reference, self.prediction, self.grid.spacing)


@dataclass(frozen=True)
class MetricSettings:
    """The settings of all metrics.

    ``hd95`` is a name in :data:`~deepatlas.evaluate.metrics.hd95.HD95_CONVENTIONS`, and ``tolerance_mm`` the distance
    up to which surface Dice counts a piece of a surface as met.
    """

    hd95: str = "mean"
    tolerance_mm: float = 3.0
