"""The metrics of one structure in one exam. Each metric has a file of its own and one line in :data:`METRICS`.

To add a metric, write its file, register it below under the name of its column in ``metrics.csv``, and give
:class:`~deepatlas.evaluate.rows.Row` a field of that name.
"""

from __future__ import annotations

from collections.abc import Callable

from deepatlas.evaluate.metrics.asd import asd_metric
from deepatlas.evaluate.metrics.dice import dice_metric
from deepatlas.evaluate.metrics.hd95 import hd95_metric
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.metrics.surface_dice import surface_dice_metric
from deepatlas.evaluate.metrics.volume import predicted_volume_metric, reference_volume_metric

METRICS: dict[str, Callable[[MaskPair, MetricSettings], float]] = {
    "dice": dice_metric,
    "hd95_mm": hd95_metric,
    "predicted_ml": predicted_volume_metric,
    "reference_ml": reference_volume_metric,
    "surface_dice": surface_dice_metric,
    "asd_mm": asd_metric,
}
