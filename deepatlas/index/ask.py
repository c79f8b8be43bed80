"""Questions to an index: which exams fulfil a condition, which to label next, and Table 2 of the cohort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepatlas.index.body_part import BODY_PARTS
from deepatlas.index.columns import EXAM, column
from deepatlas.index.expression import fields, parse
from deepatlas.index.file import IndexFile, named

# What is shown of an exam beside the structures that a question names.
SHOWN = ("id", "quality", "fit", "known", "loss_percentile", "body_part", "phase", "flip")


@dataclass(frozen=True)
class Answer:
    """The exams that were asked for, and how many there are beyond those that are listed.

    Attributes:
        columns: the names of the columns of ``rows``, as people know them.
        rows: one tuple an exam.
        total: how many exams fulfil the condition.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]
    total: int

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries; truths are booleans."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def ask(index: IndexFile, text: str = "", limit: int | None = 50, *, rank: bool = False) -> Answer:
    """The exams that fulfil a condition (see :mod:`deepatlas.index.expression`), the best ones first.

    Quality is the mean trust of the structures that the question names where the index has it, and otherwise of all of
    them; without trust it is the fit.

    Args:
        index: the index.
        text: the condition; empty for all exams.
        limit: the number of exams to list; None lists all.
        rank: unlabelled exams by their loss instead, the largest first: which to label, or to learn from, next. Exams
            that the model does not know come last, since they show other anatomy.

    Raises:
        QueryError: the condition cannot be understood, or names what the index does not have.
    """
    columns, asked = index.columns, []
    where, values = "1", []
    if text.strip():
        expression = parse(text)
        where, values = columns.where(expression, text)
        asked = columns.asked(fields(expression), text)
    order = "quality DESC, id"
    if rank:
        where = f"labelled = 0 AND {where}"
        order = "IFNULL(known, 1) DESC, fit IS NULL, fit, id"
    elif asked and index.about.trust:
        mean = " + ".join(f"IFNULL({column(row, 'trust')}, 0)" for row in asked)
        order = f"({mean}) DESC, quality DESC, id"
    kinds = ("coverage", "trust", "bound") if index.about.trust else ("coverage",)
    own = [(f"{index.about.structures[row]}" + ("" if k == "coverage" else f".{k}"), column(row, k))
           for row in asked for k in kinds]  # fmt: skip
    selected = [*SHOWN, *(c for _, c in own), "path"]
    statement = f"SELECT {', '.join(selected)} FROM exams WHERE {where} ORDER BY {order}"
    rows = index.rows(f"{statement} LIMIT ?", (*values, -1 if limit is None else limit))
    total = len(rows)
    if limit is not None and total >= limit:
        total = int(index.rows(f"SELECT COUNT(*) FROM exams WHERE {where}", values)[0][0])
    names = [*SHOWN, *(name for name, _ in own), "path"]
    truth = selected.index("known")
    shown = [
        tuple(None if v is None else bool(v) if i == truth else v for i, v in enumerate(row)) for row in rows
    ]
    return Answer(names, shown, total)


def table2(index: IndexFile, text: str = "") -> Answer:
    """How many exams show each body part (Table 2 of the paper), and their contrast phases.

    Exams that show none of them, or that the model does not know, are counted as ``unknown``.
    """
    where, values = ("1", []) if not text.strip() else index.columns.where(parse(text), text)
    counts: dict[str, list[int]] = {part: [0, 0, 0, 0] for part in (*BODY_PARTS, "unknown")}
    statement = (
        "SELECT IFNULL(body_part, 'unknown'), COUNT(*), SUM(IFNULL(phase = 'none', 0)), "
        f"SUM(IFNULL(phase = 'arterial', 0)), SUM(IFNULL(phase = 'venous', 0)) FROM exams WHERE {where} GROUP BY 1"
    )
    for part, *numbers in index.rows(statement, values):
        counts[part] = numbers
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [(part, *numbers) for part, numbers in counts.items()]
    return Answer(
        ["body_part", "count", "without contrast", "arterial", "venous"], [*rows, ("total", *total)], total[0]
    )


def about_exam(index: IndexFile, exam: str) -> dict[str, Any] | None:
    """Everything that the index holds about one exam; None where it has none of that id."""
    names = [*EXAM, "path", *(name for name in index.columns.all() if name not in EXAM)]
    rows = index.rows(f"SELECT {', '.join(names)} FROM exams WHERE id = ?", (exam,))
    if not rows:
        return None
    return named(dict(zip(names, rows[0], strict=True)), index.about.structures)
