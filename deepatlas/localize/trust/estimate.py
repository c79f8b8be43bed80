"""The trust of the masks of one exam, and of places in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from deepatlas.localize.template.file import NO_TRUST, Template
from deepatlas.localize.trust.calibration import POINT_SIGNS, Calibration
from deepatlas.localize.trust.evidence import LEAST_MM, Evidence, gather
from deepatlas.localize.trust.signs import signs
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import sample_at

NOT_CALIBRATED = "the template has no calibration; make one with `deepatlas calibrate` from labelled exams"
NOT_KNOWN = "the model does not know such an exam"
NOT_FOUND = "not found in this exam"
OTHER_THRESHOLD = "calibrated with the thresholds of the template, but used with --threshold {:g}"
NO_ERROR = "no labelled exam tells the error at this place"
# A mask with a lower Dice is of no use, and nobody should take it without a look.
POOR = 0.5
# The neighbourhood in voxels over which the evidence around a place is averaged.
_AROUND = 2.0


@dataclass(frozen=True)
class Trust:
    """What to believe of one mask: the predicted Dice, and the value that it reaches in nine of ten exams.

    Both are None where nobody can tell, and ``reason`` says why. The Dice is that within the axial slices in which both
    the mask and the drawing have the structure, so that how far along the body it was drawn does not count.
    """

    value: float | None
    bound: float | None
    reason: str = ""

    @property
    def text(self) -> str:
        """Both numbers in words, as files say them of a structure."""
        if self.value is None or self.bound is None:
            return f"no predicted Dice ({self.reason})"
        return f"predicted Dice {self.value:.2f}, which reaches {self.bound:.2f} in 9 of 10 exams"

    def to_dict(self) -> dict[str, Any]:
        """The entries ``"trust"`` and ``"bound"`` of results, and ``"reason"`` where there is one."""
        why = {"reason": self.reason} if self.reason else {}
        return {"trust": _rounded(self.value), "bound": _rounded(self.bound), **why}


@dataclass(frozen=True)
class ExamTrust:
    """The trust of every structure of a template in one exam, by name, and of places in the exam.

    ``reason`` says why a place has no expected error.
    """

    structures: Mapping[str, Trust]
    evidence: Evidence | None = None
    calibration: Calibration | None = None
    reason: str = NO_ERROR

    def millimetres(self, points_mm: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The expected error in mm of the coordinates at places ``[N, 3]``, and its 90 % upper bound: ``[N]`` each.

        Both are nan where nobody can tell.
        """
        points = np.asarray(points_mm, dtype=np.float64)
        error, bound = np.full(len(points), math.nan), np.full(len(points), math.nan)
        given = np.isfinite(points).all(axis=1)
        if self.evidence is not None and self.calibration is not None and given.any():
            told = self.calibration.millimetres(place_signs(self.evidence, points[given]))
            error[given], bound[given] = told
        return error, bound


def exam_trust(
    model: Engine,
    found: ExamMap,
    template: Template,
    evidence: Evidence | None = None,
    *,
    threshold: float | None = None,
    places: bool = True,
) -> ExamTrust:
    """What to believe of the masks that a template finds in an exam, by a few more passes of the network.

    Args:
        model: the model.
        found: the coordinates of the exam.
        template: the template, with its calibration.
        evidence: that of the exam, where it is there already.
        threshold: the mask value that counts for all structures; None where the template's own do, for which the Dice
            was calibrated. The errors of places do not depend on it.
        places: whether errors of places will be asked for.

    Returns:
        The trust of every structure, and of places. Without calibration, for an exam that the model does not know, or
        where the model refines, averages or uses regions otherwise than for the calibration, there is none, with the
        reason; with another threshold, structures have none.

    Raises:
        DeepAtlasError: the calibration is of another version.
    """
    stored = template.meta.get("trust")
    if not stored:
        return _nobody_knows(template, template.meta.get(NO_TRUST) or NOT_CALIBRATED)
    if found.fit.known is False:
        return _nobody_knows(template, NOT_KNOWN)
    calibration = Calibration.from_dict(stored)
    made = (
        calibration.facts.get("refine", template.meta.get("refine", 0)),
        calibration.facts.get("average", 1),
    )
    now = model.refine, model.average
    # How far refinement or averaging moved the coordinates is a sign, which says something else without them.
    if bool(made[0]) != bool(now[0]) or (made[1] > 1) != (now[1] > 1):
        return _nobody_knows(
            template,
            "calibrated with --refine {} --average {}, but used with --refine {} --average {}".format(
                *made, *now
            ),
        )
    regions, without = calibration.facts.get("regions", []), "the model alone"
    if list(regions) != (now_with := answering(model.regions, model.depth)):
        return _nobody_knows(
            template,
            f"calibrated with {', '.join(regions) or without}, but used with {', '.join(now_with) or without} "
            "(see --depth)",
        )
    if threshold is not None:
        untold = _nobody_knows(template, OTHER_THRESHOLD.format(threshold))
        if not places:
            return untold
        seen = evidence or gather(model, found, calibration.views)
        return replace(untold, evidence=seen, calibration=calibration, reason=NO_ERROR)
    evidence = evidence or gather(model, found, calibration.views)
    table = signs(evidence, template)
    result = {}
    for name, row in zip(template.names, table, strict=True):
        own = calibration.structures.get(name)
        if own is None:
            result[name] = Trust(None, None, "no labelled exam of the calibration shows it")
        elif not np.isfinite(row[0]):
            result[name] = Trust(None, None, NOT_FOUND)
        else:
            result[name] = Trust(*calibration.dice(name, row))
    return ExamTrust(result, evidence, calibration)


def place_signs(evidence: Evidence, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signs of places ``[N, 3]``: ``[N, len(POINT_SIGNS)]``, from the evidence around each."""
    found = evidence.found
    columns = []
    for name in POINT_SIGNS[:-1]:
        values = ndimage.gaussian_filter(getattr(evidence, name), _AROUND)
        at = sample_at(torch.from_numpy(values)[None, None], found.grid, points_mm)[:, 0]
        columns.append(np.log(at + LEAST_MM) if name in ("spread", "shift") else at)
    return np.stack([*columns, np.full(len(points_mm), found.fit.value)], axis=1)


def _nobody_knows(template: Template, reason: str) -> ExamTrust:
    return ExamTrust({name: Trust(None, None, reason) for name in template.names}, reason=reason)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
