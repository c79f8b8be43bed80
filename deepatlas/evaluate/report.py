"""One self-contained HTML file: the table, the plot, a tri-planar comparison per exam, what was skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.evaluate.tables import Row, summary_cells
from deepatlas.files import write_text
from deepatlas.pictures.figures import data_uri
from deepatlas.pictures.page import render


@dataclass
class ExamFigure:
    """An exam of the report: its rows of metrics and the bytes of its picture (PNG)."""

    exam: str
    rows: list[Row]
    png: bytes | None = None
    note: str = ""


@dataclass
class Report:
    title: str
    summary: dict
    exams: list[ExamFigure] = field(default_factory=list)
    plot: bytes | None = None


def _number(value: float | None, digits: int) -> str:
    if value is None or value != value:
        return "–"
    return "∞ (missed)" if value == float("inf") else f"{value:.{digits}f}"


def write_report(path: str | Path, report: Report) -> None:
    """Write the report as one file that needs no other file and no network."""
    header, cells = summary_cells(report.summary)
    exams = [
        {"exam": e.exam, "rows": e.rows, "note": e.note, "png": data_uri(e.png) if e.png else None}
        for e in report.exams
    ]
    text = render(
        "deepatlas.evaluate", "report.jinja",
        title=report.title, summary=report.summary, o=report.summary["overall"], header=header, cells=cells,
        exams=exams, plot=data_uri(report.plot) if report.plot else None, number=_number,
    )  # fmt: skip
    write_text(path, text)
