"""What a comparison finds: means of every experiment, and paired differences of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.compare.align import Aligned
from deepatlas.compare.measures import Measure
from deepatlas.compare.paired import Bootstrap, Paired, holm, interval, paired


@dataclass(frozen=True)
class Mean:
    """The mean of a metric over the pairs of an experiment that have a value, and its 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class OfMeasure:
    """What was found for one measure, with E experiments and S structures.

    ``structures`` ``[E, S]`` are the means over exams, nan where a structure was never found. ``differences`` holds one
    experiment minus another for every two of them, ``of_structures`` every experiment minus the baseline for every
    structure. Holm's correction is over all differences of the one, and over all of the other.
    """

    measure: Measure
    structures: NDArray[np.float64]
    rows: Sequence[Mean]
    common: Sequence[Mean]
    differences: Mapping[tuple[int, int], Paired]
    with_baseline: Mapping[int, Paired]
    of_structures: Mapping[tuple[int, int], Paired]

    def difference(self, one: int, other: int) -> Paired:
        """Experiment ``one`` minus experiment ``other``, in whichever order they were compared."""
        if (one, other) in self.differences:
            return self.differences[one, other]
        p = self.differences[other, one]
        return replace(
            p, mean=_minus(p.mean), low=_minus(p.high), high=_minus(p.low), higher=p.lower, lower=p.higher
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison of experiments. ``failed`` are the experiments that have no evaluation, and why."""

    aligned: Aligned
    baseline: int
    bootstrap: Bootstrap
    found: Mapping[str, OfMeasure]
    failed: Mapping[str, str]

    @property
    def structures(self) -> list[tuple[str, str]]:
        """The cohort and the name of every structure."""
        return list(self.aligned.structures)

    @property
    def cohorts(self) -> dict[str, list[int]]:
        """The structures of every cohort, by their index."""
        found: dict[str, list[int]] = {}
        for i, (cohort, _) in enumerate(self.structures):
            found.setdefault(cohort, []).append(i)
        return found

    def average(self, measure: Measure, cohort: str | None = None) -> list[float | None]:
        """The mean over the structures of a cohort, or of all, of every experiment; those never found do not count."""
        chosen = range(len(self.structures)) if cohort is None else self.cohorts[cohort]
        return [_mean(row[list(chosen)]) for row in self.found[measure.column].structures]


def compare(
    aligned: Aligned,
    baseline: int = 0,
    bootstrap: Bootstrap | None = None,
    failed: Mapping[str, str] | None = None,
) -> Comparison:
    """Compute everything that the tables and figures show. ``baseline`` is the number of an experiment."""
    bootstrap = bootstrap or Bootstrap()
    found = {m.column: _of_measure(aligned, m, baseline, bootstrap) for m in aligned.measures}
    return Comparison(aligned, baseline, bootstrap, found, dict(failed or {}))


def _of_measure(aligned: Aligned, measure: Measure, baseline: int, bootstrap: Bootstrap) -> OfMeasure:
    values, exams = aligned.values[measure.column], aligned.exams
    groups = list(aligned.structures.values())
    numbers = range(len(values))
    structures = np.array(
        [[np.nan if (m := _mean(row[group])) is None else m for group in groups] for row in values]
    )
    everywhere = np.asarray(np.isfinite(values).all(0))

    def mean(row: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Mean:
        low, high = interval(row[chosen], exams[chosen], bootstrap)
        return Mean(_mean(row[chosen]), low, high, int(np.count_nonzero(chosen)))

    differences = {
        (j, i): paired(values[j], values[i], exams, bootstrap) for i, j in combinations(numbers, 2)
    }
    others = [i for i in numbers if i != baseline]
    of_structures = {
        (i, s): paired(values[i][group], values[baseline][group], exams[group])
        for i in others
        for s, group in enumerate(groups)
    }
    result = OfMeasure(
        measure=measure,
        structures=structures,
        rows=[mean(row, np.isfinite(row)) for row in values],
        common=[mean(row, everywhere) for row in values],
        differences=_corrected(differences),
        with_baseline={},
        of_structures=_corrected(of_structures),
    )
    plain = {i: result.difference(i, baseline) for i in others}
    return replace(result, with_baseline=_corrected(plain))


def _corrected(family: Mapping[Any, Paired]) -> dict[Any, Paired]:
    """The same comparisons with p values that are corrected over all of them."""
    t = holm([p.p_t for p in family.values()])
    wilcoxon = holm([p.p_wilcoxon for p in family.values()])
    return {
        key: replace(p, p_t_holm=a, p_wilcoxon_holm=b)
        for (key, p), a, b in zip(family.items(), t, wilcoxon, strict=True)
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _minus(value: float | None) -> float | None:
    # Adding 0 turns -0 into 0.
    return None if value is None else -value + 0.0


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The content of ``comparison.json``: everything that was found, in plain JSON values without nan."""
    aligned, names = comparison.aligned, comparison.aligned.names
    cohorts = [cohort for cohort in comparison.cohorts if cohort]
    measures = {}
    for column, found in comparison.found.items():
        measures[column] = {
            "title": found.measure.heading,
            "higher_is_better": found.measure.higher_is_better,
            "experiments": {
                name: {
                    "mean_of_structures": average,
                    **{
                        f"mean_of_structures, {cohort}": comparison.average(found.measure, cohort)[i]
                        for cohort in cohorts
                    },
                    "pairs": asdict(found.rows[i]),
                    "pairs_that_all_have": asdict(found.common[i]),
                }
                for i, (name, average) in enumerate(
                    zip(names, comparison.average(found.measure), strict=True)
                )
            },
            "differences": [
                {"experiment": names[i], "minus": names[j], **asdict(p)}
                for (i, j), p in found.differences.items()
            ],
            "differences_from_baseline": [
                {"experiment": names[i], **asdict(p)} for i, p in found.with_baseline.items()
            ],
            "structures": [
                {
                    "cohort": cohort,
                    "structure": structure,
                    "means": {
                        name: None if np.isnan(v) else float(v)
                        for name, v in zip(names, found.structures[:, s], strict=True)
                    },
                    "differences_from_baseline": {
                        names[i]: asdict(p) for (i, number), p in found.of_structures.items() if number == s
                    },
                }
                for s, (cohort, structure) in enumerate(comparison.structures)
            ],
        }
    return {
        "baseline": names[comparison.baseline],
        "experiments": {e.name: _facts(aligned, i) for i, e in enumerate(aligned.experiments)},
        "failed": dict(comparison.failed),
        "exams": len(set(aligned.exams.tolist())),
        "pairs": len(aligned.pairs),
        "bootstrap": asdict(comparison.bootstrap),
        "not_measured": {column: list(lacking) for column, lacking in aligned.not_measured.items()},
        "measures": measures,
    }


def _facts(aligned: Aligned, number: int) -> dict[str, Any]:
    experiment = aligned.experiments[number]
    return {
        "evaluations": {
            cohort: {
                "folder": str(found.folder),
                **{key: found.summary.get(key) for key in ("data", "model", "refine", "average", "created")},
                "skipped": found.summary.get("skipped") or {},
            }
            for cohort, found in experiment.evaluations.items()
        },
        "missed": [list(p) for p, gone in zip(aligned.pairs, aligned.missed[number], strict=True) if gone],
        "left_out": [list(pair) for pair in aligned.left_out[experiment.name]],
    }
