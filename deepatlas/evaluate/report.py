"""The report of an evaluation: one HTML file with the table, the plot, and a picture of every exam."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.evaluate.evaluation import Evaluation
from deepatlas.evaluate.rows import Row
from deepatlas.evaluate.tables import in_template_line, summary_cells, synonyms_line
from deepatlas.files import write_text
from deepatlas.pictures.draw import data_uri
from deepatlas.pictures.page import render


@dataclass
class ExamSection:
    """The part of a report about one exam. ``png`` holds the bytes of its picture as a PNG file."""

    exam: str
    rows: list[Row]
    png: bytes | None = None
    note: str = ""
    warning: str = ""


@dataclass
class Report:
    """The content of a report. ``plot`` is the overview of all exams as the bytes of a PNG file."""

    title: str
    evaluation: Evaluation
    exams: list[ExamSection] = field(default_factory=list)
    plot: bytes | None = None


def write_report(path: str | Path, report: Report) -> None:
    """Write the report as one file that needs no other file and no network.

    Raises :class:`~deepatlas.errors.DataError` where the file cannot be written.
    """
    header, cells = summary_cells(report.evaluation.summary)
    exams = [
        {
            "exam": e.exam,
            "rows": e.rows,
            "note": e.note,
            "warning": e.warning,
            "png": data_uri(e.png) if e.png else None,
        }
        for e in report.exams
    ]
    text = render(
        "deepatlas.evaluate", "report.jinja",
        title=report.title, evaluation=report.evaluation, overall=report.evaluation.summary.overall,
        header=header, cells=cells, exams=exams, plot=data_uri(report.plot) if report.plot else None,
        in_template=in_template_line(seen) if (seen := report.evaluation.in_template) else "",
        number=_number, synonyms=synonyms_line(synonyms) if (synonyms := report.evaluation.synonyms) else "",
    )  # fmt: skip
    write_text(path, text)


def _number(value: float | None, digits: int) -> str:
    if value is None or value != value:
        return "–"
    return "∞ (missed)" if value == float("inf") else f"{value:.{digits}f}"
