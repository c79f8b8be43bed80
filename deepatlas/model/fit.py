"""How well a model knows an exam: the agreement of the exam with the atlas that its coordinates warp onto it.

The paper has no such measure. A network gives coordinates for every image, also for one that shows another part of the
body; where the warped atlas does not look like the exam, they mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataError
from deepatlas.losses import on_loss_grid
from deepatlas.nn import Atlas

# The grid and the window, in voxels, of the correlation.
SIZE = 64
WINDOW = 9
# How far below the first quartile a fit is an extreme outlier, in interquartile ranges: Tukey's outer fence.
_FENCE = 3.0


@torch.no_grad()
def fit(coords: Tensor, image: Tensor, mask: Tensor, atlas: Atlas) -> Tensor:
    """The local correlation of exams with the atlas that their coordinates warp onto them.

    It tells exams that a model knows from others: .6 to .85 on good exams of head and neck with the shipped model, .05
    to .16 on thoraces and abdomens. It ranks whole exams, not structures within one, and it does not notice a left and
    a right that are exchanged.

    Args:
        coords: ``[B, 3, s, s, s]``, the coordinates that the network predicts, before any refinement. Refinement raises
            the correlation of every exam, also of one that the model does not know.
        image: ``[B, 1, S, S, S]`` in [0, 1], the input of the network.
        mask: ``[B, 1, S, S, S]``, the foreground of the image.
        atlas: the learned atlas.

    Returns:
        ``[B]``, the mean over the foreground of the normalised cross-correlation in windows of 9 voxels, on a grid of
        at most 64 voxels along each axis; in [-1, 1], and 0 where the mask is empty.
    """
    small, weight = on_loss_grid(image.float(), mask, min(SIZE, image.shape[-1]))
    place = ops.resize(coords.float().clamp(-1, 1), small.shape[2:])
    return ops.ncc(atlas(place), small, weight, window=WINDOW)[:, 0]


def fit_threshold(fits: Sequence[float]) -> float | None:
    """The fit below which an exam does not belong to a cohort with these fits: Tukey's outer fence, at least 0.

    None for fewer than four exams, whose quartiles mean little, and where no fit is a finite number.
    """
    values = np.asarray([f for f in fits if math.isfinite(f)])
    if len(values) < 4:
        return None
    low, high = np.percentile(values, [25, 75])
    return max(0.0, float(low - _FENCE * (high - low)))


@dataclass(frozen=True, repr=False)
class Fit:
    """How well a model knows one exam.

    Attributes:
        value: the local correlation (see :func:`fit`).
        known: whether it reaches the model's threshold; None where the model has no threshold, since it was saved by an
            earlier version or trained on fewer than four exams.
        threshold: that threshold.
        notes: what is unusual about the exam's voxels (see :func:`~deepatlas.space.check_input.check_input`).
        reason: why there is no fit, where the model cannot have one; then ``value`` is not a number.
    """

    value: float
    threshold: float | None = None
    notes: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def known(self) -> bool | None:
        # A correlation that is not a number is not known either.
        return None if self.threshold is None else self.value >= self.threshold

    def __repr__(self) -> str:
        if self.reason:
            return f"Fit(none: {self.reason})"
        known = {True: "known", False: "not known", None: "no threshold"}[self.known]
        return f"Fit({self.value:.2f}, {known})"

    def to_dict(self) -> dict[str, Any]:
        """The entries ``"fit"``, ``"known"`` and ``"notes"`` of results; a fit that is no finite number is null.

        ``"reason"`` says why, where the model cannot have a fit.
        """
        value = self.value if math.isfinite(self.value) else None
        why = {"reason": self.reason} if self.reason else {}
        return {"fit": value, "known": self.known, **why, "notes": list(self.notes)}

    def warning(self, exam: str, strict: bool = False) -> str:
        """One line about an exam that the model does not know; the empty string about any other.

        Raises :class:`~deepatlas.errors.DataError` with that line instead where ``strict`` is set.
        """
        if self.known is not False:
            return ""
        line = (
            f"{exam}: the model does not know such an exam (fit {self.value:.2f}, known are those from "
            f"{self.threshold:.2f}); what it finds there means nothing"
        )
        if strict:
            raise DataError(line)
        return line


class UnknownExamWarning(UserWarning):
    """A model was used on an exam that it does not know."""
