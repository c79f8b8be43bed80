"""The tables of a comparison, in the layouts of the paper (Tables 1 and 3 to 6), free of any file format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from deepatlas.compare.comparison import Comparison, OfMeasure
from deepatlas.compare.measures import Measure
from deepatlas.compare.paired import Paired, p_text

ALPHA = 0.05
SAME = "–"


class Cell(NamedTuple):
    """The text of a cell, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table: cells, or the heading of a part (one cell). The ``total`` lines are averages."""

    cells: Sequence[Cell]
    heading: bool = False
    total: bool = False


@dataclass(frozen=True)
class Table:
    """A table. ``name`` is its anchor in documents."""

    name: str
    title: str
    header: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = field(default_factory=tuple)
    # Beside the main tables: folded in the page.
    detail: bool = False


def all_tables(comparison: Comparison, show: Sequence[str] = ()) -> list[Table]:
    """All tables, in the order of a report. ``show`` are the structures of the table of chosen ones (Table 5)."""
    main, beside = comparison.aligned.measures[:2], comparison.aligned.measures[2:]
    tables = [experiments_table(comparison), chosen_table(comparison, show)]
    tables += [baseline_table(comparison, m) for m in comparison.aligned.measures]
    tables += [pairwise_table(comparison, main, "pairwise")]
    tables += [structures_table(comparison, m) for m in comparison.aligned.measures]
    if beside:
        tables += [pairwise_table(comparison, beside, "pairwise-surface", detail=True)]
    tables += [structure_differences_table(comparison, m) for m in comparison.aligned.measures]
    if comparison.aligned.missed.any():
        tables.append(missed_table(comparison))
    return tables


def experiments_table(comparison: Comparison) -> Table:
    """One line an experiment: what was evaluated, and the means with their intervals."""
    aligned, measures = comparison.aligned, comparison.aligned.measures
    header = ["experiment", "missed", *(m.heading for m in measures)]
    lines = []
    best = {m.column: _best(m, [x.mean for x in comparison.found[m.column].rows], m.digits) for m in measures}
    for i, name in enumerate(aligned.names):
        cells = [Cell(name), Cell(str(np.count_nonzero(aligned.missed[i])))]
        for m in measures:
            x = comparison.found[m.column].rows[i]
            text = m.text(x.mean)
            if x.low is not None:
                text += f" ({m.text(x.low)} to {m.text(x.high)})"
            cells.append(Cell(text, best[m.column][i]))
        lines.append(Line(cells))
    lines += [
        Line([Cell(name), Cell("failed"), *(Cell("n/a") for _ in measures)]) for name in comparison.failed
    ]
    notes = ["Means over pairs, and their 95 % intervals."]
    notes += [f"{name} failed: {why}" for name, why in comparison.failed.items()]
    return Table("experiments", "Experiments", header, lines, notes)


def chosen_table(comparison: Comparison, show: Sequence[str] = ()) -> Table:
    """The layout of Table 5: for each measure some structures, and the average over all structures."""
    lines = []
    for m in comparison.aligned.measures:
        lines.append(_heading(m.heading))
        for s, (cohort, structure) in enumerate(comparison.structures):
            if structure in show:
                lines.append(
                    _values(
                        m, _label(cohort, structure), comparison.found[m.column].structures[:, s].tolist()
                    )
                )
        for cohort in comparison.cohorts:
            if cohort:
                lines.append(_values(m, f"average, {cohort}", comparison.average(m, cohort), total=True))
        lines.append(_values(m, "average", comparison.average(m), total=True))
    notes = ["Averages are over structures, as in Table 5 of the paper. The best value of a line is bold."]
    return Table("summary", "Summary", ["", *comparison.aligned.names], lines, notes)


def baseline_table(comparison: Comparison, measure: Measure) -> Table:
    """Every experiment minus the baseline, with all tests."""
    names = comparison.aligned.names
    header = [
        "experiment",
        "difference",
        "95 % interval",
        "t-test",
        "t-test, Holm",
        "Wilcoxon",
        "Wilcoxon, Holm",
    ]
    header += ["t-test over exams", "better", "worse", "pairs", "left out"]
    lines = []
    for i, p in comparison.found[measure.column].with_baseline.items():
        better, worse = (p.higher, p.lower) if measure.higher_is_better else (p.lower, p.higher)
        between = SAME if p.low is None else f"{measure.text(p.low, True)} to {measure.text(p.high, True)}"
        tests = [p.p_t, p.p_t_holm, p.p_wilcoxon, p.p_wilcoxon_holm, p.p_exams]
        texts = [
            f"no test: {p.untested}" if p.untested and k == 0 else p_text(v) for k, v in enumerate(tests)
        ]
        counts = [str(n) for n in (better, worse, p.pairs, p.left_out)]
        cells = [names[i], measure.text(p.mean, True), between, *texts, *counts]
        lines.append(Line([Cell(c) for c in cells]))
    title = f"{measure.heading}: difference from {names[comparison.baseline]}"
    notes = [
        f"Each experiment minus {names[comparison.baseline]}. Holm's correction is over the lines of this table."
    ]
    return Table(
        f"baseline-{measure.column}", title, header, lines, notes, detail=measure.column not in _MAIN
    )


_MAIN = ("dice", "hd95_mm")


def pairwise_table(
    comparison: Comparison, measures: Sequence[Measure], name: str, detail: bool = False
) -> Table:
    """The layout of Tables 1 and 6: the experiment of the column minus that of the line, with the paired t-test."""
    names, lines, notes = comparison.aligned.names, [], []
    for m in measures:
        found = comparison.found[m.column]
        lines.append(_heading(m.heading))
        for i, row in enumerate(names):
            cells = [Cell(SAME) if i == j else Cell(_difference(found, j, i)) for j in range(len(names))]
            lines.append(Line([Cell(row), *cells]))
        left_out = [p.left_out for p in found.differences.values()]
        if any(left_out):
            notes.append(
                f"{m.title}: pairs in which one of the two experiments has no value are left out, "
                f"{min(left_out)} to {max(left_out)} of {len(comparison.aligned.pairs)} in a comparison."
            )
    text = (
        "The mean difference of the experiment of the column minus that of the line, and the p value of the paired "
        f"t-test over exams and structures. An asterisk: p < {ALPHA} also after Holm's correction over all differences "
        "of the metric."
    )
    title = f"Pairwise differences in {' and '.join(m.title for m in measures)}"
    return Table(name, title, ["", *names], lines, [text, *notes], detail)


def structures_table(comparison: Comparison, measure: Measure) -> Table:
    """The layout of Tables 3 and 4: the mean of every structure in every experiment, and averages."""
    means, lines = comparison.found[measure.column].structures, []
    for cohort, chosen in comparison.cohorts.items():
        if cohort:
            lines.append(_heading(cohort))
        lines += [_values(measure, comparison.structures[s][1], means[:, s].tolist()) for s in chosen]
        lines.append(_values(measure, "average", comparison.average(measure, cohort), total=True))
    if len(comparison.cohorts) > 1:
        lines.append(_values(measure, "average of all", comparison.average(measure), total=True))
    notes = []
    if measure.missed is None and comparison.aligned.missed.any():
        lines.append(
            _values(
                measure,
                "mean of the pairs that all have",
                [x.mean for x in comparison.found[measure.column].common],
                total=True,
            )
        )
        notes.append(
            "A structure that was not predicted has no distance and is left out, which favours experiments that miss "
            "what is difficult; the last line is the mean over the pairs for which all experiments have one."
        )
    elif comparison.aligned.missed.any():
        notes.append(f"A structure that was drawn and not predicted counts as {measure.title} 0.")
    return Table(
        f"structures-{measure.column}",
        f"{measure.heading} of every structure",
        ["", *comparison.aligned.names],
        lines,
        notes,
        detail=measure.column not in _MAIN,
    )


def structure_differences_table(comparison: Comparison, measure: Measure) -> Table:
    """Every experiment minus the baseline for every structure, tested over exams."""
    names, found = comparison.aligned.names, comparison.found[measure.column]
    others = [i for i in range(len(names)) if i != comparison.baseline]
    lines = []
    for cohort, chosen in comparison.cohorts.items():
        if cohort:
            lines.append(_heading(cohort))
        for s in chosen:
            cells = []
            for i in others:
                p = found.of_structures[i, s]
                cells.append(Cell(measure.text(p.mean, True) + _star(p)))
            lines.append(Line([Cell(comparison.structures[s][1]), *cells]))
    note = (
        f"Each experiment minus {names[comparison.baseline]}. An asterisk: p < {ALPHA} in the paired t-test over exams "
        "after Holm's correction over all cells of this table."
    )
    return Table(
        f"differences-{measure.column}",
        f"{measure.heading}: difference from {names[comparison.baseline]} by structure",
        ["", *(names[i] for i in others)],
        lines,
        [note],
        detail=True,
    )


def missed_table(comparison: Comparison) -> Table:
    """How often a structure that was drawn was not predicted."""
    aligned, lines = comparison.aligned, []
    for (cohort, structure), group in aligned.structures.items():
        counts = np.count_nonzero(aligned.missed[:, group], axis=1)
        if counts.any():
            cells = [Cell(_label(cohort, structure)), Cell(str(len(group))), *(Cell(str(c)) for c in counts)]
            lines.append(Line(cells))
    totals = np.count_nonzero(aligned.missed, axis=1)
    total = [Cell("all"), Cell(str(len(aligned.pairs))), *(Cell(str(c)) for c in totals)]
    lines.append(Line(total, total=True))
    notes = ["In how many exams a structure that was drawn was not predicted. missing.csv names them."]
    return Table("missing", "Missing predictions", ["", "drawn", *aligned.names], lines, notes)


def _heading(text: str) -> Line:
    return Line([Cell(text)], heading=True)


def _label(cohort: str, structure: str) -> str:
    return f"{structure} ({cohort})" if cohort else structure


def _values(measure: Measure, label: str, values: Sequence[float | None], total: bool = False) -> Line:
    known = [None if v is None or v != v else v for v in values]
    best = _best(measure, known, measure.digits)
    return Line(
        [Cell(label), *(Cell(measure.text(v), b) for v, b in zip(known, best, strict=True))], total=total
    )


def _best(measure: Measure, values: Sequence[float | None], digits: int) -> list[bool]:
    """Which values are the best as they are shown, if not all are."""
    shown = [None if v is None else round(v, digits) for v in values]
    known = [v for v in shown if v is not None]
    pick: Callable[..., float] = max if measure.higher_is_better else min
    if len(set(known)) < 2:
        return [False] * len(shown)
    return [v == pick(known) for v in shown]


def _difference(found: OfMeasure, one: int, other: int) -> str:
    p = found.difference(one, other)
    text = found.measure.text(p.mean, True)
    if p.mean is None:
        return "n/a"
    return f"{text} ({p.untested or p_text(p.p_t)}){_star(p)}"


def _star(p: Paired) -> str:
    return "*" if p.p_t_holm is not None and p.p_t_holm < ALPHA else ""
