"""Statistics of rows of metrics: of every structure, and over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from deepatlas.evaluate.rows import Row


@dataclass(frozen=True)
class Statistics:
    """Statistics of the finite values of a sample. ``std`` is the sample standard deviation (n - 1).

    A statistic that the sample is too small for is None.
    """

    mean: float | None
    median: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class StructureSummary:
    """The statistics of one structure over the exams in which it was drawn, and in how many of them it was missed."""

    dice: Statistics
    hd95_mm: Statistics
    surface_dice: Statistics
    asd_mm: Statistics
    missed: int


@dataclass(frozen=True)
class Overall:
    """The statistics over all structures.

    The two means differ where structures were drawn in different numbers of exams: in ``*_mean_of_structures`` every
    structure counts once, and in ``*_mean_of_rows`` every pair of an exam and a structure does.
    """

    dice_mean_of_structures: float | None
    dice_mean_of_rows: float | None
    hd95_mm_mean_of_structures: float | None
    hd95_mm_mean_of_rows: float | None
    surface_dice_mean_of_structures: float | None
    surface_dice_mean_of_rows: float | None
    asd_mm_mean_of_structures: float | None
    asd_mm_mean_of_rows: float | None
    structures: int
    rows: int
    exams: int
    missed: int


@dataclass(frozen=True)
class Summary:
    """What :func:`summarise` finds in the rows of an evaluation."""

    structures: dict[str, StructureSummary]
    overall: Overall

    def as_dict(self) -> dict[str, Any]:
        """The entries ``structures`` and ``overall`` of ``summary.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """The summary whose :meth:`as_dict` is part of ``data``, for example of a ``summary.json``.

        A metric that an older version did not measure has no numbers.
        """
        metrics = [f.name for f in fields(StructureSummary) if f.name != "missed"]
        nothing = asdict(statistics([]))
        structures = {
            name: StructureSummary(
                **{m: Statistics(**s.get(m, nothing)) for m in metrics}, missed=s["missed"]
            )
            for name, s in data["structures"].items()
        }
        overall = dict.fromkeys(f.name for f in fields(Overall)) | data["overall"]
        return cls(structures, Overall(**overall))


def statistics(values: Iterable[float]) -> Statistics:
    """Statistics of the finite ones of ``values``."""
    finite = np.array([v for v in values if math.isfinite(v)], dtype=np.float64)
    if not len(finite):
        return Statistics(None, None, None, 0)
    std = float(finite.std(ddof=1)) if len(finite) > 1 else None
    return Statistics(float(finite.mean()), float(np.median(finite)), std, len(finite))


def summarise(rows: Sequence[Row], structures: Sequence[str] | None = None) -> Summary:
    """Statistics of ``rows`` for every structure and over all of them.

    A missed structure (one with an empty prediction) counts as Dice 0. It does not count in the distances, but in
    ``missed``.

    Args:
        rows: the rows of any number of exams.
        structures: the names of the structures in their order; None takes those of the rows.
    """
    names = list(dict.fromkeys(r.structure for r in rows)) if structures is None else structures
    table = {}
    for name in names:
        own = [r for r in rows if r.structure == name]
        table[name] = StructureSummary(
            dice=statistics(r.dice for r in own),
            hd95_mm=statistics(r.hd95_mm for r in own),
            surface_dice=statistics(r.surface_dice for r in own),
            asd_mm=statistics(r.asd_mm for r in own),
            missed=sum(math.isinf(r.hd95_mm) for r in own),
        )
    overall = Overall(
        dice_mean_of_structures=_mean(s.dice.mean for s in table.values()),
        dice_mean_of_rows=statistics(r.dice for r in rows).mean,
        hd95_mm_mean_of_structures=_mean(s.hd95_mm.mean for s in table.values()),
        hd95_mm_mean_of_rows=statistics(r.hd95_mm for r in rows).mean,
        surface_dice_mean_of_structures=_mean(s.surface_dice.mean for s in table.values()),
        surface_dice_mean_of_rows=statistics(r.surface_dice for r in rows).mean,
        asd_mm_mean_of_structures=_mean(s.asd_mm.mean for s in table.values()),
        asd_mm_mean_of_rows=statistics(r.asd_mm for r in rows).mean,
        structures=sum(s.dice.n > 0 for s in table.values()),
        rows=len(rows),
        exams=len({r.exam for r in rows}),
        missed=sum(s.missed for s in table.values()),
    )
    return Summary(table, overall)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there, or None."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
