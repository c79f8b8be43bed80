"""How well a finished model knows its own training exams, from which the model's threshold of ``known`` is set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deepatlas.model.fit import fit, fit_threshold
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.train.feed.resident import ExamArray

# The quartiles of more exams differ little, and every exam takes a pass of the network.
EXAMS = 500


@torch.no_grad()
def training_fit(network: CoordinateNetwork, atlas: Atlas, array: ExamArray, level: int) -> dict[str, Any]:
    """The entry ``"fit"`` of a model's card, from exams that are spread evenly over the training cohort.

    Args:
        network: the trained network, in evaluation mode.
        atlas: the learned atlas.
        array: the training exams.
        level: the level of the network whose coordinates the model uses.

    Returns:
        ``threshold``, see :func:`~deepatlas.model.fit.fit_threshold`; ``exams``, how many were used; and ``quartiles``,
        the minimum, the quartiles and the maximum of their fits.
    """
    count = len(array)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(count, EXAMS))})
    values = []
    for index in chosen:
        x, mask = array.take([index])
        values.append(float(fit(network(x, level), x, mask, atlas)))
    quartiles = np.percentile(values, [0, 25, 50, 75, 100]).round(4).tolist()
    return {"threshold": fit_threshold(values), "exams": len(chosen), "quartiles": quartiles}
