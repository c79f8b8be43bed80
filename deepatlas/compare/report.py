"""The report of a comparison: one HTML file, and the same tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from deepatlas.cells import cells
from deepatlas.compare.align import pair_name
from deepatlas.compare.comparison import Comparison, as_dict
from deepatlas.compare.figure import PRINT, performance_figure
from deepatlas.compare.measures import MEASURES
from deepatlas.compare.render import latex, markdown
from deepatlas.compare.tables import all_tables
from deepatlas.files import write_text
from deepatlas.pictures.draw import data_uri, save_figure, save_pdf
from deepatlas.pictures.page import render
from deepatlas.version import __version__

# Every file that is written, under a name that no evaluation has.
OUTPUTS = (
    "comparison.html", "comparison.md", "comparison.tex", "comparison.json", "values.csv", "pairs.csv",
    "structures.csv", "missing.csv", "performance.png", "performance.pdf",
)  # fmt: skip
TITLE = "Comparison of experiments"


def write_report(comparison: Comparison, out: Path, show: Sequence[str] = ()) -> dict:
    """Write all files of :data:`OUTPUTS` into ``out``, and return the content of ``comparison.json``.

    Raises :class:`~deepatlas.errors.DataError` where a file cannot be written.
    """
    facts, tables = as_dict(comparison), all_tables(comparison, show)
    main = comparison.aligned.measures[:2]
    plot = save_figure(performance_figure(comparison, main), out / "performance.png", dpi=130)
    save_pdf(performance_figure(comparison, main, PRINT), out / "performance.pdf")
    methods = _methods(comparison)
    warnings = _warnings(comparison)
    write_text(out / "comparison.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    write_text(out / "comparison.md", markdown(tables, TITLE, [*warnings, *methods]))
    write_text(out / "comparison.tex", latex(tables, TITLE))
    write_text(out / "values.csv", _csv(_values(comparison)))
    write_text(out / "pairs.csv", _csv(_pairs(facts)))
    write_text(out / "structures.csv", _csv(_structures(facts)))
    write_text(out / "missing.csv", _csv(_missing(facts)))
    text = render(
        "deepatlas.compare", "report.jinja",
        title=TITLE, created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), version=__version__,
        baseline=facts["baseline"], headline=_headline(comparison, facts), warnings=warnings, tables=tables,
        plot=data_uri(plot), plot_text=" and ".join(m.title for m in main) + " of every structure and experiment",
        listed=_listed(facts), methods=methods, evaluations=_evaluations(facts),
    )  # fmt: skip
    write_text(out / "comparison.html", text)
    return facts


def _headline(comparison: Comparison, facts: dict) -> list[tuple[str, str]]:
    counts = [
        (str(len(facts["experiments"])), "experiments"),
        (str(facts["exams"]), "exams"),
        (str(len(comparison.structures)), "structures"),
        (str(facts["pairs"]), "pairs of an exam and a structure"),
    ]
    if cohorts := [c for c in comparison.cohorts if c]:
        counts.append((str(len(cohorts)), "test cohorts"))
    return counts


def _warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before any number."""
    aligned, lines = comparison.aligned, []
    lines += [f"{name} failed: {why}" for name, why in comparison.failed.items()]
    for name, pairs in aligned.left_out.items():
        if pairs:
            lines.append(
                f"{name}: {len(pairs)} pairs are left out, because another experiment does not have them"
            )
    titles = {m.column: m.title for m in MEASURES}
    for column, names in aligned.not_measured.items():
        lines.append(
            f"{titles[column]} is not compared: the evaluations of {', '.join(names)} lack it; evaluate again"
        )
    if len(set(aligned.exams.tolist())) == 1:
        lines.append("There is one exam alone, so that no test and no interval is possible")
    if gone := int(aligned.missed.sum()):
        lines.append(
            f"{gone} of {aligned.missed.size} predictions are missing: a structure was drawn and none was predicted"
        )
    return lines


def _methods(comparison: Comparison) -> list[str]:
    conventions = next(iter(comparison.aligned.experiments[0].evaluations.values())).conventions
    resamples, seed = comparison.bootstrap.resamples, comparison.bootstrap.seed
    lines = [
        "A pair is a structure in an exam in which it was drawn. Differences and tests are over the same pairs of both "
        "experiments.",
        "A structure that was drawn and not predicted counts as Dice 0 and surface Dice 0. It has no distance: it is "
        "left out of the means and differences of HD95 and ASD, and counted.",
        "t-test: paired, two-sided, over exams and structures, as in the paper. Structures of one exam are not "
        "independent, so that its p values may be too small; the t-test over exams takes the mean difference of every "
        "exam. Wilcoxon: the signed-rank test over pairs, two-sided, differences of 0 left out.",
        f"Intervals: 95 %, percentile bootstrap with whole exams drawn again, {resamples} times, seed {seed}.",
        "Holm: corrected by Holm's step-down method, for every metric and table by itself.",
        "Means of structures are over exams, averages over structures; means of pairs weigh a structure by the exams "
        "in which it was drawn.",
    ]
    names = {"hd95": "HD95", "surface_dice": "Surface Dice", "asd": "ASD"}
    for key, name in names.items():
        if text := conventions.get(key):
            mm = f", {conventions.get('tolerance_mm')} mm" if key == "surface_dice" else ""
            lines.append(f"{name}: {text}{mm}.")
    return lines


def _evaluations(facts: dict) -> list[list[str]]:
    rows = []
    for name, about in facts["experiments"].items():
        for found in about["evaluations"].values():
            skipped = "; ".join(f"{exam}: {why}" for exam, why in found["skipped"].items())
            values = [found[k] for k in ("folder", "data", "model", "refine", "created")]
            rows.append([name, *("–" if v is None else str(v) for v in values), skipped or "–"])
    return rows


def _listed(facts: dict) -> list[tuple[str, str]]:
    """What is missing or left out, by experiment, in full."""
    found = []
    for key, what in (("missed", "not predicted"), ("left_out", "left out")):
        for name, about in facts["experiments"].items():
            if pairs := about[key]:
                found.append((f"{name}: {len(pairs)} {what}", "; ".join(pair_name(p) for p in pairs)))
    return found


def _values(comparison: Comparison) -> Iterable[Sequence[object]]:
    """Every metric of every pair, with a column for each experiment."""
    aligned = comparison.aligned
    yield ["metric", "cohort", "exam", "structure", *aligned.names]
    for column, values in aligned.values.items():
        for pair, of in zip(aligned.pairs, values.T, strict=True):
            yield [column, *pair, *("" if v != v else f"{v:.6g}" for v in of)]


def _pairs(facts: dict) -> Iterable[Sequence[object]]:
    """Every difference of two experiments, and those from the baseline, with their own correction."""
    head: list[str] | None = None
    for column, found in facts["measures"].items():
        for family, baseline in (("differences", None), ("differences_from_baseline", facts["baseline"])):
            for d in found[family]:
                numbers = {k: v for k, v in d.items() if k not in ("experiment", "minus")}
                if head is None:
                    head = ["metric", "family", "experiment", "minus", *numbers]
                    yield head
                family_name = "all" if baseline is None else "baseline"
                yield [
                    column,
                    family_name,
                    d["experiment"],
                    d["minus"] if baseline is None else baseline,
                    *map(_number, numbers.values()),
                ]


def _structures(facts: dict) -> Iterable[Sequence[object]]:
    """The mean of every structure in every experiment, and its difference from the baseline."""
    head: list[str] | None = None
    for column, found in facts["measures"].items():
        for s in found["structures"]:
            differences = s["differences_from_baseline"]
            columns = list(next(iter(differences.values())))
            if head is None:
                head = ["metric", "cohort", "structure", "experiment", "value"]
                yield head + [f"difference_{key}" for key in columns]
            for name, value in s["means"].items():
                of = differences.get(name, dict.fromkeys(columns))
                yield [column, s["cohort"], s["structure"], name, _number(value), *map(_number, of.values())]


def _missing(facts: dict) -> Iterable[Sequence[object]]:
    """Every pair that was not predicted, or that is left out because another experiment lacks it."""
    yield ["experiment", "what", "cohort", "exam", "structure"]
    for key, what in (("missed", "not predicted"), ("left_out", "left out")):
        for name, about in facts["experiments"].items():
            yield from ([name, what, *pair] for pair in about[key])


def _number(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cells, lines))
    return text.getvalue()
