"""The expected errors of points that were found in an exam."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepatlas.localize.points import Located
from deepatlas.localize.trust.estimate import ExamTrust


def with_errors(
    located: Located,
    target: ExamTrust,
    source: ExamTrust | None = None,
    points_mm: NDArray[np.float64] | None = None,
) -> Located:
    """The points with the errors in mm that are to be expected of them, and the bounds of these.

    Args:
        located: the points in the target.
        target: the trust of the target.
        source: the trust of the exam that the points were given in; None where they are from a template.
        points_mm: ``[N, 3]``, the points in the source.

    A point that was not found has no error: its place is a guess, which may be anywhere.
    """
    error, bound = target.millimetres(located.points)
    if source is not None and points_mm is not None:
        # The errors of two exams are independent, and so is what each bound adds to its error.
        first, most = source.millimetres(points_mm)
        excess = np.hypot(most - first, bound - error)
        error = np.hypot(first, error)
        bound = error + excess
    error[~located.found], bound[~located.found] = np.nan, np.nan
    return replace(located, error_mm=error, bound_mm=bound)
