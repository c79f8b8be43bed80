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
    columns, asked, used = index.columns, [], []
    where, values = "1", []
    if text.strip():
        expression = parse(text)
        where, values = columns.where(expression, text)
        asked = columns.asked(fields(expression), text)
        used = [columns.of(field, text)[0] for field in fields(expression)]
    order = "quality DESC, id"
    if rank:
        where = f"labelled = 0 AND {where}"
        order = "IFNULL(known, 1) DESC, fit IS NULL, fit, id"
    elif asked and index.about.trust:
        trusts = [column(row, "trust") for row in asked]
        used += trusts
        order = f"({' + '.join(f'IFNULL({name}, 0)' for name in trusts)}) DESC, quality DESC, id"
    source = columns.source(used)
    most = -1 if limit is None else limit
    numbers = index.rows(f"SELECT num FROM {source} WHERE {where} ORDER BY {order} LIMIT ?", (*values, most))
    total = len(numbers)
    if limit is not None and total >= limit:
        total = int(index.rows(f"SELECT COUNT(*) FROM {source} WHERE {where}", values)[0][0])
    kinds = ("coverage", "trust", "bound") if index.about.trust else ("coverage",)
    own = {
        name if kind == "coverage" else f"{name}.{kind}": column(row, kind)
        for row, name in ((row, index.about.structures[row]) for row in asked)
        for kind in kinds
    }
    names = [*SHOWN, *own.values(), "path"]
    # The rest is read of those that are listed alone.
    source = f"{columns.source(own.values())} JOIN sources USING (num)"
    statement = f"SELECT {', '.join(names)} FROM {source} WHERE num = ?"
    truth = names.index("known")
    rows = []
    for number in numbers:
        (row,) = index.rows(statement, number)
        rows.append(tuple(None if v is None else bool(v) if i == truth else v for i, v in enumerate(row)))
    return Answer([*SHOWN, *own, "path"], rows, total)


def table2(index: IndexFile, text: str = "") -> Answer:
    """How many exams show each body part (Table 2 of the paper), and their contrast phases.

    Exams that show none of them, or that the model does not know, are counted as ``unknown``.
    """
    where, values, used = "1", [], []
    if text.strip():
        expression = parse(text)
        where, values = index.columns.where(expression, text)
        used = [index.columns.of(field, text)[0] for field in fields(expression)]
    counts: dict[str, list[int]] = {part: [0, 0, 0, 0] for part in (*BODY_PARTS, "unknown")}
    statement = (
        "SELECT IFNULL(body_part, 'unknown'), COUNT(*), SUM(IFNULL(phase = 'none', 0)), "
        "SUM(IFNULL(phase = 'arterial', 0)), SUM(IFNULL(phase = 'venous', 0)) "
        f"FROM {index.columns.source(used)} WHERE {where} GROUP BY 1"
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
    names = [*EXAM, *(name for name in index.columns.all() if name not in EXAM)]
    source = f"{index.columns.source(names)} JOIN sources USING (num)"
    rows = index.rows(f"SELECT {', '.join(names)}, path FROM {source} WHERE id = ?", (exam,))
    if not rows:
        return None
    return named(dict(zip([*names, "path"], rows[0], strict=True)), index.about.structures)
