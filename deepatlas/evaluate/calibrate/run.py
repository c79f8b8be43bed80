"""Calibrate the trust of a template on labelled exams, and say how well it holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from deepatlas.errors import DataError
from deepatlas.evaluate.calibrate.collect import collect, tabulate
from deepatlas.evaluate.calibrate.regression import CrossFit, Table, calibrate_table
from deepatlas.exams.joined import Data, find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.calibration import Calibration
from deepatlas.localize.trust.estimate import POOR
from deepatlas.localize.trust.evidence import VIEWS
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine
from deepatlas.names.meet import meeting

FOLDS = 5
# Fewer labelled exams give no bound that means anything.
LEAST_EXAMS = 10
# A structure with fewer rows has no rank correlation of its own.
_LEAST_ROWS = 8


@dataclass(frozen=True)
class Calibrated:
    """A calibrated template, and what was seen on the way.

    Attributes:
        template: the template with its calibration in ``meta["trust"]``.
        table: the labelled structures.
        cross: what each would have been told, without its fold.
        figures: how well that holds; also in ``meta["trust"]["facts"]``.
        skipped: why exams were not used, by id.
    """

    template: Template
    table: Table
    cross: CrossFit
    figures: dict[str, Any]
    skipped: dict[str, str]


class TooFewError(DataError):
    """Labelled exams that are too few for a calibration."""


def enough_exams(
    data: Data, exams: Sequence[str] | None = None, *, split: str | Path | None = None, strict: bool = False
) -> Selection:
    """The labelled exams of a calibration, none of which is read.

    Args:
        data: as for :func:`calibrate`, as are the other arguments.

    Raises:
        TooFewError: there are fewer than ten, so that all work would be in vain.
        DataError: the data cannot be used.
    """
    cohort = find_cohort(data, split)
    among = cohort.parts.learnable([e.id for e in cohort.exams]) if cohort.parts else None
    selection = Selection(cohort, exams, strict, among=among)
    if len(selection) < LEAST_EXAMS:
        raise TooFewError(
            f"{cohort.root}: {len(selection)} exams are labelled, and a calibration takes {LEAST_EXAMS}; give more"
        )
    return selection


def calibrate(
    model: Engine,
    template: Template,
    data: Data,
    exams: Sequence[str] | None = None,
    *,
    views: int = VIEWS,
    split: str | Path | None = None,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Calibrated:
    """Learn, from labelled exams, what the signs of a mask say about its Dice.

    Exams that the template was made from are judged with templates that are made without their fold, so that nothing is
    judged by itself; others are judged with the template as it is.

    Args:
        model: the model that the template belongs to, set to the refinement of the template.
        template: the template.
        data: a data directory or dataset with labelled exams, or several.
        exams: the ids of the exams to use; None takes all labelled ones.
        views: the number of views of every exam.
        split: a split file; None takes the ``splits.json`` of the data.
        strict: stop at the first exam that cannot be used.
        progress: receives lines of text.

    Raises:
        TooFewError: fewer than ten exams are labelled, or can be used.
        DataError: the template and the data share no structure.
    """
    template.check_model(model.fingerprint)
    selection = enough_exams(data, exams, split=split, strict=strict)
    cohort = selection.cohort
    labels = selection.cohort.labels
    met = meeting(template.names, labels, str(selection.cohort.labels_path))
    if not met:
        raise DataError(
            f"{selection.cohort.labels_path}: shares no structure with the template ({', '.join(template.names)})"
        )
    drawn = {name: labels[other] for name, other in met.items()}
    found = collect(model, selection, template, views, FOLDS, drawn, progress)
    if len(found) < LEAST_EXAMS:
        why = next(iter(selection.skipped.values()), "no more are labelled")
        raise TooFewError(
            f"{cohort.root}: {len(found)} labelled exams can be used, and a calibration takes {LEAST_EXAMS}; give more "
            f"({why})"
        )
    table = tabulate(model, template, found, drawn, progress)
    if len(np.unique(table.exam)) < LEAST_EXAMS or len(np.unique(table.fold)) < 2:
        raise TooFewError(
            f"{cohort.root}: masks of only {len(np.unique(table.exam))} exams can be judged, and a calibration takes "
            f"{LEAST_EXAMS}; give more labelled exams"
        )
    calibration, cross = calibrate_table(_seen(table), views)
    shown = figures(_seen(table), cross)
    used = {
        "exams": len(found),
        "folds": FOLDS,
        "refine": model.refine,
        "average": model.average,
        "regions": answering(model.regions, model.depth),
    }
    made = _with(template, calibration, {**shown, **used})
    return Calibrated(made, _seen(table), cross, shown, selection.skipped)


def figures(table: Table, cross: CrossFit) -> dict[str, Any]:
    """How well predictions agree with what was drawn; next to a constant for every structure, its median.

    ``"values"`` holds every row: the index of its structure, and its Dice, prediction and bound in thousandths.
    """
    constant = np.empty_like(table.dice)
    for row in range(len(table.names)):
        own = table.structure == row
        for fold in np.unique(table.fold[own]):
            others = own & (table.fold != fold)
            constant[own & (table.fold == fold)] = np.median(table.dice[others if others.any() else own])
    worst = np.argsort(cross.value, kind="stable")[: len(cross.value) // 5]
    kept = np.delete(table.dice, worst)
    per = {}
    for row, name in enumerate(table.names):
        own = table.structure == row
        per[name] = {
            "exams": int(own.sum()),
            "dice": _mean(table.dice[own]),
            "error": _mean(np.abs(cross.value - table.dice)[own]),
            "spearman": spearman(cross.value[own], table.dice[own]) if own.sum() >= _LEAST_ROWS else None,
            "coverage": _mean((table.dice >= cross.bound)[own].astype(float)),
        }
    ranks = [one["spearman"] for one in per.values() if one["spearman"] is not None]
    return {
        "rows": len(table.dice),
        "spearman_within": _mean(np.array(ranks)) if ranks else None,
        "spearman_pooled": spearman(cross.value, table.dice),
        "error": _mean(np.abs(cross.value - table.dice)),
        "error_of_constant": _mean(np.abs(constant - table.dice)),
        "coverage": _mean((table.dice >= cross.bound).astype(float)),
        "poor": _mean((table.dice < POOR).astype(float)),
        "poor_without_worst_fifth": _mean((kept < POOR).astype(float)),
        "structures": per,
        "values": {
            "structure": table.structure.tolist(),
            "dice": _thousandths(table.dice),
            "trust": _thousandths(cross.value),
            "bound": _thousandths(cross.bound),
        },
    }


def summary_lines(found: Calibrated) -> list[str]:
    """What a person needs to know of a calibration."""
    f = found.figures
    rank = "-" if f["spearman_pooled"] is None else f"{f['spearman_pooled']:.2f}"
    return [
        f"trust calibrated on {f['rows']} structures; in cross-validation: error {f['error']:.3f} "
        f"({f['error_of_constant']:.3f} with a constant per structure), Spearman {rank}, "
        f"{100 * f['coverage']:.0f} % reach the 90 % bound"
    ]


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """The rank correlation of two arrays; None where one of them is constant."""
    x, y = rankdata(a), rankdata(b)
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _seen(table: Table) -> Table:
    """The table of the structures that at least one row is of."""
    rows = np.unique(table.structure)
    index = {int(old): new for new, old in enumerate(rows)}
    return replace(
        table,
        names=[table.names[row] for row in rows],
        structure=np.array([index[int(row)] for row in table.structure]),
    )


def _with(template: Template, calibration: Calibration, facts: dict[str, Any]) -> Template:
    stored = replace(calibration, facts={**calibration.facts, **facts}).to_dict()
    # Only values of JSON lie in a template file.
    return replace(template, meta={**template.meta, "trust": json.loads(json.dumps(stored))})


def _thousandths(values: NDArray[np.float64]) -> list[int]:
    return [int(v) for v in np.rint(1000 * values)]


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if len(values) else None
