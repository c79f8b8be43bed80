"""Paired comparisons of two experiments on the same exams and structures (section 5.6.1), and Holm's correction."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: exams are drawn again ``resamples`` times, by a generator of the seed ``seed``."""

    resamples: int = 5000
    seed: int = 0


@dataclass(frozen=True)
class Paired:
    """One experiment minus another, over the pairs (an exam and a structure) in which both have a value.

    ``low`` and ``high`` bound the 95 % interval of ``mean``. ``p_t`` is the p value of the paired t-test over all
    pairs, as in the paper, ``p_wilcoxon`` that of Wilcoxon's signed-rank test, and ``p_exams`` that of the paired
    t-test over the means of the exams. Pairs of one exam are not independent, so that ``p_t`` may be too small;
    ``p_exams`` and the interval, for which whole exams are drawn again, do not suffer from that. The two ``*_holm`` are
    corrected within the family that the table names. What is not defined is None, and ``untested`` says why.
    Differences that are all the same have no spread by which a t-test could judge them; Wilcoxon's test counts signs.
    """

    pairs: int
    exams: int
    left_out: int
    higher: int
    lower: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p_t: float | None = None
    p_wilcoxon: float | None = None
    p_exams: float | None = None
    p_t_holm: float | None = None
    p_wilcoxon_holm: float | None = None
    untested: str = ""


def paired(
    values: NDArray[np.float64],
    others: NDArray[np.float64],
    exams: NDArray[np.int64],
    bootstrap: Bootstrap | None = None,
) -> Paired:
    """Compare two experiments.

    Args:
        values: ``[K]``, the metric of the one experiment for every pair; nan where it has none.
        others: ``[K]``, the metric of the experiment that is subtracted.
        exams: ``[K]``, the number of the exam of every pair.
        bootstrap: how the interval is made; None makes none.
    """
    there = np.isfinite(values) & np.isfinite(others)
    difference, exams = values[there] - others[there], exams[there]
    count = len(np.unique(exams))
    facts: dict[str, Any] = {
        "pairs": len(difference),
        "exams": count,
        "left_out": int(np.count_nonzero(~there)),
        "higher": int(np.count_nonzero(difference > 0)),
        "lower": int(np.count_nonzero(difference < 0)),
        "mean": float(difference.mean()) if len(difference) else None,
    }
    if count < 2:
        return Paired(**facts, untested="one exam" if count else "no pair")
    low, high = interval(difference, exams, bootstrap) if bootstrap else (None, None)
    if not difference.any():
        return Paired(**facts, low=low, high=high, untested="equal values")
    _, numbers, sizes = np.unique(exams, return_inverse=True, return_counts=True)
    of_exams = np.bincount(numbers, difference) / sizes
    with warnings.catch_warnings():
        # All differences may have one rank, of which scipy warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        p_wilcoxon = _p(stats.wilcoxon(_without_noise(difference)).pvalue)
    p_t = _p_of_t(difference)
    return Paired(
        **facts,
        low=low,
        high=high,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        p_exams=_p_of_t(of_exams),
        untested="equal differences" if p_t is None else "",
    )


def _p_of_t(values: NDArray[np.float64]) -> float | None:
    """The p value of the t-test of a mean of 0; None where the values are all the same."""
    if len(np.unique(_without_noise(values))) < 2:
        return None
    return _p(stats.ttest_1samp(values, 0.0).pvalue)


def _without_noise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in units of the largest, so that those are equal that differ by rounding alone.

    Metrics are decimals in files: 0.3 - 0.2 and 0.2 - 0.1 are the same difference, and differ by 1e-17.
    """
    largest = np.abs(values).max()
    found: NDArray[np.float64] = np.round(values / largest, 9) if largest > 0 else values
    return found


def interval(
    values: NDArray[np.float64], exams: NDArray[np.int64], bootstrap: Bootstrap
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the mean of ``values`` ``[K]`` when whole exams are drawn again.

    ``exams`` ``[K]`` are the numbers of their exams. With fewer than two exams there is none.
    """
    _, numbers, counts = np.unique(exams, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return None, None
    sums = np.bincount(numbers, values)

    def mean(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        return sums[drawn].sum(axis) / counts[drawn].sum(axis)

    with warnings.catch_warnings():
        # Equal values give an interval without width, of which scipy warns.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (np.arange(len(counts)),),
            mean,
            n_resamples=bootstrap.resamples,
            batch=max(1, 2_000_000 // len(counts)),
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(bootstrap.seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected by Holm's step-down method for one family; None stays None and does not count."""
    order = sorted((i for i, p in enumerate(values) if p is not None), key=lambda i: values[i] or 0.0)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(values[i] or 0.0)))
        found[i] = largest
    return found


def p_text(p: float | None) -> str:
    """A p value as the paper writes it."""
    if p is None:
        return "–"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _p(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
