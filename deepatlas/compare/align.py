"""Put the rows of several experiments side by side, and refuse those that cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepatlas.compare.experiments import Evaluated, Experiment
from deepatlas.compare.measures import MEASURES, Measure
from deepatlas.errors import DataError
from deepatlas.evaluate.rows import Row

# How many names a message lists.
_MOST = 6
# metrics.csv has six digits.
_SAME_VOLUME = 1e-4


class Pair(NamedTuple):
    """A structure in an exam of a test cohort. The cohort is empty where the comparison has one alone."""

    cohort: str
    exam: str
    structure: str


@dataclass(frozen=True)
class Aligned:
    """The metrics of E experiments for the same K pairs.

    ``values`` holds for each measure an array ``[E, K]``, with nan where a missed structure has no value. ``missed``
    ``[E, K]`` tells where a structure was drawn and none was predicted. ``left_out`` are, for each experiment, its
    pairs that another experiment lacks. ``not_measured`` names, for each measure that is not compared, the experiments
    that lack it.
    """

    experiments: Sequence[Experiment]
    pairs: Sequence[Pair]
    measures: Sequence[Measure]
    values: Mapping[str, NDArray[np.float64]]
    missed: NDArray[np.bool_]
    left_out: Mapping[str, Sequence[Pair]]
    not_measured: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """The names of the experiments."""
        return [e.name for e in self.experiments]

    @property
    def structures(self) -> dict[tuple[str, str], NDArray[np.int64]]:
        """The pairs, by their index, of every structure of every cohort, in the order of the first experiment."""
        found: dict[tuple[str, str], list[int]] = {}
        for k, pair in enumerate(self.pairs):
            found.setdefault((pair.cohort, pair.structure), []).append(k)
        # A cohort stays together even if its structures are spread over the rows.
        cohorts = list(dict.fromkeys(pair.cohort for pair in self.pairs))
        order = sorted(found, key=lambda key: cohorts.index(key[0]))
        return {key: np.array(found[key]) for key in order}

    @property
    def exams(self) -> NDArray[np.int64]:
        """``[K]``, the number of the exam of every pair."""
        numbers: dict[tuple[str, str], int] = {}
        return np.array([numbers.setdefault((p.cohort, p.exam), len(numbers)) for p in self.pairs])


def align(experiments: Sequence[Experiment], common: bool = False) -> Aligned:
    """Put the rows of the experiments side by side.

    Args:
        experiments: what to compare, two or more.
        common: compare over the pairs that all experiments have, and list the others. Otherwise, experiments with
            different exams or structures are refused.

    Raises:
        DataError: experiments were evaluated on different exams or structures, against different references, or with
            metrics that are defined otherwise; or nothing is common to all.
    """
    _check_conventions(experiments)
    tables = [
        {Pair(c, r.exam, r.structure): r for c, found in e.evaluations.items() for r in found.rows}
        for e in experiments
    ]
    pairs = [pair for pair in tables[0] if all(pair in table for table in tables)]
    if not common:
        _check_same(experiments, tables)
    if not pairs:
        raise DataError(
            f"compare: no structure of any exam was evaluated in all of {', '.join(e.name for e in experiments)}"
        )
    _check_references(experiments, tables, pairs)
    not_measured = {
        m.column: lacking
        for m in MEASURES
        if (lacking := [e.name for e, t in zip(experiments, tables, strict=True) if _lacks(t.values(), m)])
    }
    measures = [m for m in MEASURES if m.column not in not_measured]
    missed = np.array([[_is_missed(table[pair]) for pair in pairs] for table in tables])
    values = {}
    for m in measures:
        of = np.array([[getattr(table[pair], m.column) for pair in pairs] for table in tables])
        values[m.column] = np.where(missed, math.nan if m.missed is None else m.missed, of)
    shared = set(pairs)
    left_out = {
        e.name: [p for p in table if p not in shared] for e, table in zip(experiments, tables, strict=True)
    }
    return Aligned(experiments, pairs, measures, values, missed, left_out, not_measured)


def pair_name(pair: Sequence[str]) -> str:
    """The parts of a pair in a text, without the cohort where there is one alone."""
    return " / ".join(part for part in pair if part)


def some(names: Iterable[str], most: int = _MOST) -> str:
    """The first of the names, and how many more there are."""
    found = list(names)
    text = ", ".join(found[:most])
    return f"{text} and {len(found) - most} more" if len(found) > most else text


def _is_missed(row: Row) -> bool:
    """Whether nothing was predicted: a distance is infinite then, and in no other case."""
    return math.isinf(row.hd95_mm) or row.predicted_ml == 0


def _lacks(rows: Iterable[Row], measure: Measure) -> bool:
    return any(math.isnan(getattr(row, measure.column)) for row in rows)


def _check_same(experiments: Sequence[Experiment], tables: Sequence[Mapping[Pair, Row]]) -> None:
    """Refuse different exams; where they are the same, different structures; and then different pairs of them."""
    for what, parts in (("exams", (0, 1)), ("structures", (0, 2)), ("structures of exams", (0, 1, 2))):
        sets = [dict.fromkeys(tuple(pair[i] for i in parts) for pair in table) for table in tables]
        everything = dict.fromkeys(key for keys in sets for key in keys)
        lacking = [
            f"{e.name} lacks {some(pair_name(key) for key in missing)}"
            for e, keys in zip(experiments, sets, strict=True)
            if (missing := [key for key in everything if key not in keys])
        ]
        if lacking:
            raise DataError(
                f"compare: the experiments were evaluated on different {what}: {'; '.join(lacking)}; evaluate them on "
                "the same, or compare over what all of them have with --common"
            )


def _check_references(
    experiments: Sequence[Experiment], tables: Sequence[Mapping[Pair, Row]], pairs: Iterable[Pair]
) -> None:
    """Refuse references of different volumes: other contours, another grid, or another exam of the same name."""
    for pair in pairs:
        first = tables[0][pair].reference_ml
        for e, table in zip(experiments, tables, strict=True):
            volume = table[pair].reference_ml
            if abs(volume - first) > _SAME_VOLUME * max(volume, first):
                raise DataError(
                    f"compare: {pair_name(pair)} has a reference of {first:g} ml in {experiments[0].name} and of "
                    f"{volume:g} ml in {e.name}; evaluate both against the same labels"
                )


def _check_conventions(experiments: Sequence[Experiment]) -> None:
    """Refuse metrics of one name and another definition."""
    known = [
        ("hd95_name", "HD95 is defined otherwise", "--hd95"),
        ("tolerance_mm", "surface Dice has another tolerance", "--tolerance"),
    ]
    for key, problem, option in known:
        found: dict[object, Evaluated] = {}
        for evaluated in (found_in for e in experiments for found_in in e.evaluations.values()):
            if (value := evaluated.conventions.get(key)) is not None:
                found.setdefault(value, evaluated)
        if len(found) > 1:
            (one, first), (two, second), *_ = found.items()
            raise DataError(
                f"{second.folder}: {problem} ({two}) than in {first.folder} ({one}); evaluate both with the same "
                f"{option}"
            )
