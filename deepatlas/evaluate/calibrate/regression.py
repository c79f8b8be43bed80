"""The regression behind trust: a ridge with shrinkage towards all structures, and conformal bounds.

Some tens of exams show each structure. So the weights of the signs are those of all structures together, from which a
structure departs only as far as its own exams insist; offsets and margins are shrunk in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from deepatlas.errors import DataError
from deepatlas.localize.trust.calibration import (
    POINT_SIGNS,
    TWO_SIDED,
    Calibration,
    OfStructure,
    design,
    from_odds,
    log_odds,
)
from deepatlas.localize.trust.signs import SIGNS

# The share of exams in which the Dice is to reach its bound.
LEVEL = 0.9
# Exams by which what is said of one structure is drawn towards all: offsets and centres, and margins.
_DRAWN, _DRAWN_MARGIN = 3.0, 25.0
# Ridge parameters that are tried, relative to the number of rows: of the common weights, and of what departs from them.
RIDGES = tuple((a, b) for a in (0.1, 0.3, 1.0, 3.0) for b in (1.0, 10.0, 100.0))
# Signs that can only speak for a mask (1) or against it (-1): a weight of the other sign is chance, and is 0.
_MONOTONE = {
    "agreement": 1, "refined": 1, "spread": -1, "shift": -1, "match": 1, "match_rim": 1, "folds": -1, "stretch_sd": -1,
    "in_view": 1, "fit": 1, "spread_body": -1, "shift_body": -1,
}  # fmt: skip
_LEAST_DEVIATION = 0.01


@dataclass(frozen=True)
class Table:
    """The labelled structures of exams, one row each.

    Attributes:
        names: the structures; ``structure`` holds indices of it.
        structure: ``[N]``.
        exam: ``[N]``, which exam a row is of.
        fold: ``[N]``, the fold of the exam; its template was made without the exams of that fold.
        signs: ``[N, F]``.
        dice: ``[N]``, in the slices that mask and drawing have in common.
        mm: ``[N]``, the mean distance in mm from the drawn surface to that of the mask; nan where there is none.
    """

    names: Sequence[str]
    structure: NDArray[np.int64]
    exam: NDArray[np.int64]
    fold: NDArray[np.int64]
    signs: NDArray[np.float64]
    dice: NDArray[np.float64]
    mm: NDArray[np.float64]

    def part(self, rows: NDArray[np.bool_]) -> Table:
        """Some of the rows."""
        return Table(
            self.names, self.structure[rows], self.exam[rows], self.fold[rows], self.signs[rows], self.dice[rows],
            self.mm[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class CrossFit:
    """What the regression says of each row when it was fitted to the exams of the other folds."""

    value: NDArray[np.float64]
    bound: NDArray[np.float64]


def calibrate_table(table: Table, views: int) -> tuple[Calibration, CrossFit]:
    """The calibration from all rows, and what it would have said of each row without its fold.

    Raises :class:`~deepatlas.errors.DataError` where masks and drawings have no slice in common.
    """
    ridge = min(RIDGES, key=lambda r: _loss(table, r))
    value = _cross(table, ridge)
    deviation = _deviation(value, table.dice)
    scores = (value - table.dice) / _spread(deviation, value)
    fitted = _fit(table, ridge)
    margins = _margins(table, scores)
    structures = {
        name: OfStructure(
            int((table.structure == row).sum()), float(fitted.offset[row]), tuple(fitted.centre[row].tolist()),
            tuple(fitted.weights[row].tolist()), margins[row],
        )
        for row, name in enumerate(table.names)
    }  # fmt: skip
    bound = np.empty_like(value)
    for fold in np.unique(table.fold):
        # The margin of a fold is from the scores of the others, as it would be for a new exam.
        own = table.fold == fold
        others = _margins(table.part(~own), scores[~own])
        limit = np.array([others[row] for row in table.structure[own]])
        bound[own] = value[own] - limit * _spread(deviation, value[own])
    weights, margin = _points(table)
    calibration = Calibration(
        views, tuple(fitted.scale.tolist()), structures, deviation, weights, margin, {"ridge": list(ridge)}
    )
    return calibration, CrossFit(value, np.clip(bound, 0, 1))


@dataclass(frozen=True)
class _Fitted:
    centre: NDArray[np.float64]  # [K, F]
    scale: NDArray[np.float64]  # [F]
    offset: NDArray[np.float64]  # [K]
    weights: NDArray[np.float64]  # [K, F + T]

    def predict(self, table: Table) -> NDArray[np.float64]:
        x = design(table.signs, self.centre[table.structure], self.scale)
        said = self.offset[table.structure] + (x * self.weights[table.structure]).sum(axis=1)
        return from_odds(said)


def _fit(table: Table, ridge: tuple[float, float]) -> _Fitted:
    """Common weights and departures of each structure, by two ridge regressions on what the offsets leave."""
    k, rows = len(table.names), table.structure
    groups = [rows == row for row in range(k)]
    everywhere = np.nanmean(table.signs, axis=0)
    everywhere = np.nan_to_num(everywhere)
    centre = np.stack([_drawn_mean(table.signs[g], everywhere) for g in groups])
    within = np.nan_to_num(table.signs - centre[rows])
    scale = np.maximum(within.std(axis=0), 1e-6)
    goal = log_odds(table.dice)
    overall = goal.mean(keepdims=True)
    offset = np.array([_drawn_mean(goal[g][:, None], overall)[0] for g in groups])
    x = design(table.signs, centre[rows], scale)
    # Two-sided columns have a mean of their own, which belongs to the offset.
    rest = goal - offset[rows]
    allowed = _allowed()
    middle = x.mean(axis=0)
    common = _ridge(x - middle, rest - rest.mean(), ridge[0] * len(x), allowed)
    weights = np.tile(common, (k, 1))
    for row, own in enumerate(groups):
        if own.sum() > 5:
            mine = x[own] - x[own].mean(axis=0)
            left = rest[own] - x[own] @ common
            # Monotone in sum: the common weight and the departure from it together.
            weights[row] += _ridge(mine, left - left.mean(), ridge[1] * own.sum(), allowed, common)
        shift = (rest[own] - x[own] @ weights[row]).sum() / (own.sum() + _DRAWN) if own.any() else 0.0
        offset[row] += shift
    return _Fitted(centre, scale, offset, weights)


def _ridge(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    ridge: float,
    allowed: tuple[NDArray[np.float64], NDArray[np.float64]],
    base: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The weights of a ridge regression within bounds; ``base`` are weights to which they are added."""
    n = x.shape[1]
    low, high = allowed
    if base is not None:
        low, high = low - base, high - base
    # The normal equations by their Cholesky factor, which is as small as the number of weights.
    factor = np.linalg.cholesky(x.T @ x + ridge * np.eye(n))
    right = np.linalg.solve(factor, x.T @ y)
    found: NDArray[np.float64] = lsq_linear(factor.T, right, (low - 1e-12, high + 1e-12), method="bvls").x
    return found


def _allowed() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(SIGNS) + len(TWO_SIDED)
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    for i, name in enumerate(SIGNS):
        way = _MONOTONE.get(name, 0)
        low[i] = 0.0 if way > 0 else -np.inf
        high[i] = 0.0 if way < 0 else np.inf
    # To be far from what is usual speaks against a mask.
    high[len(SIGNS) :] = 0.0
    return low, high


def _drawn_mean(values: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the rows, drawn towards a value as if that had been seen in a few more exams."""
    count = np.isfinite(values).sum(axis=0)
    result: NDArray[np.float64] = (np.nansum(values, axis=0) + _DRAWN * towards) / (count + _DRAWN)
    return result


def _cross(table: Table, ridge: tuple[float, float]) -> NDArray[np.float64]:
    value = np.empty(len(table.dice))
    for fold in np.unique(table.fold):
        own = table.fold == fold
        value[own] = _fit(table.part(~own), ridge).predict(table.part(own))
    return value


def _loss(table: Table, ridge: tuple[float, float]) -> float:
    return float(np.square(_cross(table, ridge) - table.dice).mean())


def _deviation(value: NDArray[np.float64], dice: NDArray[np.float64]) -> tuple[float, float]:
    """Constant and slope of the logarithm of the deviation over the predicted Dice; a poor mask is less certain."""
    log = np.log(np.abs(value - dice) + _LEAST_DEVIATION)
    x = np.stack([np.ones_like(value), value], axis=1)
    # Drawn towards no slope.
    constant, slope = np.linalg.solve(x.T @ x + np.diag([0.0, 2.0]), x.T @ log)
    return float(constant), float(np.clip(slope, -5.0, 0.0))


def _spread(deviation: tuple[float, float], value: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp(deviation[0] + deviation[1] * value)
    return result


def _margins(table: Table, scores: NDArray[np.float64]) -> list[float]:
    """For every structure the score that nine of ten exams stay below, drawn towards that of all structures."""
    all_of_them = conformal(scores)
    margins = []
    for row in range(len(table.names)):
        own = scores[table.structure == row]
        share = len(own) / (len(own) + _DRAWN_MARGIN)
        margins.append(
            float(share * (conformal(own) if len(own) >= 10 else all_of_them) + (1 - share) * all_of_them)
        )
    return margins


def conformal(scores: NDArray[np.float64], level: float = LEVEL) -> float:
    """The score that a new one stays below with the probability ``level``, where all are exchangeable.

    It is the ceil((n + 1) level)-th smallest of the n scores. Of fewer than ``level / (1 - level)`` scores none is
    large enough, and the largest is all that can be said.
    """
    n = len(scores)
    # Less a trifle, so that a whole number that is computed a little too large keeps its place.
    place = math.ceil((n + 1) * level - 1e-9)
    return float(np.sort(scores)[min(place, n) - 1])


def _points(table: Table) -> tuple[tuple[float, ...], float]:
    """The regression of the logarithm of the error in mm on the signs of a place, and the margin of its bound."""
    columns = [SIGNS.index(name) for name in POINT_SIGNS]
    use = np.isfinite(table.mm) & np.isfinite(table.signs[:, columns]).all(axis=1)
    if len(np.unique(table.fold[use])) < 2:
        raise DataError(
            f"calibrate: the masks of {len(np.unique(table.exam))} labelled exams lie in the same slices as what was "
            f"drawn in only {len(np.unique(table.exam[use]))} of them, so that their errors in mm tell nothing; check "
            "that these labels and this template belong to the exams"
        )
    x, y, fold = table.signs[use][:, columns], np.log(table.mm[use] + 0.1), table.fold[use]

    def solve(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        a, b = x[rows], y[rows]
        middle, spread = a.mean(axis=0), np.maximum(a.std(axis=0), 1e-6)
        n = a.shape[1]
        sides = np.array([_MONOTONE[name] for name in POINT_SIGNS])
        # What speaks for a mask lowers the error.
        low, high = np.where(sides > 0, -np.inf, 0.0), np.where(sides > 0, 0.0, np.inf)
        w = _ridge((a - middle) / spread, b - b.mean(), 0.1 * len(a), (low, high)) / spread
        assert len(w) == n
        return np.array([b.mean() - middle @ w, *w])

    left = np.empty(len(y))
    for one in np.unique(fold):
        own = fold == one
        w = solve(~own)
        left[own] = y[own] - w[0] - x[own] @ w[1:]
    weights = solve(np.ones(len(y), dtype=bool))
    return tuple(weights.tolist()), conformal(left)
