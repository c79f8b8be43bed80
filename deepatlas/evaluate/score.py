"""Score the segmentation of one exam against its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepatlas.evaluate.metrics import METRICS
from deepatlas.evaluate.metrics.masks import MaskPair, MetricSettings
from deepatlas.evaluate.rows import Row
from deepatlas.space.labels import Labels


@dataclass(frozen=True)
class LabelIds:
    """The ids of one structure, which is matched by its name, in the reference and in the prediction."""

    reference: int
    prediction: int


def score_exam(
    exam: str,
    reference: Labels,
    prediction: Labels,
    structures: Mapping[str, LabelIds],
    settings: MetricSettings,
) -> list[Row]:
    """The rows of one exam, in the order of ``structures``.

    Args:
        exam: the id of the exam.
        reference: what was drawn, on the grid of the exam. Whole masks are compared, whatever lies on them.
        prediction: what was found, on the same grid.
        structures: the ids of every structure by its name. A structure without a voxel in the reference was not drawn
            in this exam and gives no row.
        settings: the settings of the metrics.
    """
    rows = []
    for name, ids in structures.items():
        masks = MaskPair(reference.mask(ids.reference), prediction.mask(ids.prediction), reference.grid)
        if masks.reference.any():
            values = {column: metric(masks, settings) for column, metric in METRICS.items()}
            rows.append(Row(exam, name, **values))
    return rows
