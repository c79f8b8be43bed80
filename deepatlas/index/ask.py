"""Questions to an index: which exams fulfil a condition, which to label next, and Table 2 of the cohort."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from deepatlas.errors import DataError, DataWarning
from deepatlas.index.body_part import BODY_PARTS
from deepatlas.index.columns import EXAM, MOST_STRUCTURES, TRUTH, column, doubt
from deepatlas.index.expression import comparisons, fields, parse, parse_fields
from deepatlas.index.file import IndexFile, named
from deepatlas.index.ids import with_ids

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


def ask(
    index: IndexFile, text: str = "", limit: int | None = 50, *, rank: bool = False, columns: str = ""
) -> Answer:
    """The exams that fulfil a condition (see :mod:`deepatlas.index.expression`), the best ones first.

    Quality is the mean trust of the structures that the question names where the index has it, and otherwise of all of
    them; without trust it is the fit.

    Args:
        index: the index.
        text: the condition; empty for all exams.
        limit: the number of exams to list; None lists all.
        rank: unlabelled exams by their loss instead, the largest first: which to label, or to learn from, next. Exams
            that the model does not know come last, since they show other anatomy.
        columns: what to tell of each exam, such as ``"fit, ml(liver), hu"``, where ``hu`` alone is that of every
            structure; empty for the usual, with all that the condition names.

    Warns:
        DataWarning: a number seems to be of another scale than its field, or the index has no exam of an id.

    Raises:
        QueryError: the condition cannot be understood, or names what the index does not have.
    """
    asked: list[int] = []
    shown: dict[str, str] = {}
    where, values, used = _condition(index, text)
    if text.strip():
        named_fields = list(fields(parse(text)))
        asked = index.columns.asked(named_fields, text)
        shown = index.columns.shown(named_fields, text)
    order = "quality DESC, id"
    if rank:
        where = f"labelled = 0 AND {where}"
        order = "IFNULL(known, 1) DESC, fit IS NULL, fit, id"
    elif asked and index.about.trust:
        trusts = [column(row, "trust") for row in asked]
        used = [*used, *trusts]
        order = f"({' + '.join(f'IFNULL({name}, 0)' for name in trusts)}) DESC, quality DESC, id"
    source = index.columns.source(used)
    most = -1 if limit is None else limit
    numbers = index.rows(f"SELECT num FROM {source} WHERE {where} ORDER BY {order} LIMIT ?", (*values, most))
    total = len(numbers)
    if limit is not None and total >= limit:
        total = int(index.rows(f"SELECT COUNT(*) FROM {source} WHERE {where}", values)[0][0])
    own = _told(index, columns, asked, shown)
    names = [*own.values(), "path"]
    # The rest is read of those that are listed alone.
    source = f"{index.columns.source(own.values())} JOIN sources USING (num)"
    statement = f"SELECT {', '.join(names)} FROM {source} WHERE num = ?"
    truths = [i for i, name in enumerate(names) if EXAM.get(name) == TRUTH]
    rows = []
    for number in numbers:
        (row,) = index.rows(statement, number)
        rows.append(tuple(bool(v) if i in truths and v is not None else v for i, v in enumerate(row)))
    return Answer([*own, "path"], rows, total)


def _condition(index: IndexFile, text: str) -> tuple[str, list[float | str], list[str]]:
    """A question as a condition in SQL, the values bound to it, and the columns that it uses."""
    if not text.strip():
        return "1", [], []
    expression = with_ids(index, parse(text))
    where, values = index.columns.where(expression, text)
    used = []
    for one in comparisons(expression):
        used.append(index.columns.of(one.field, text)[0])
        if odd := doubt(one, used[-1]):
            warnings.warn(odd, DataWarning, stacklevel=3)
    return where, values, used


def _told(index: IndexFile, columns: str, asked: list[int], shown: dict[str, str]) -> dict[str, str]:
    """The columns of an answer by their names."""
    if columns.strip():
        own = {"id": "id"} | index.columns.listed(parse_fields(columns), columns)
        if len(own) > MOST_STRUCTURES:
            raise DataError(
                f"query: {len(own)} columns are more than the {MOST_STRUCTURES} of one answer; ask for fewer"
            )
        return own
    kinds = ("coverage", "trust", "bound") if index.about.trust else ("coverage",)
    usual = [column(row, kind) for row in asked for kind in kinds]
    return {name: name for name in SHOWN} | {index.columns.title(name): name for name in usual} | shown


def table2(index: IndexFile, text: str = "") -> Answer:
    """How many exams show each body part (Table 2 of the paper), and their contrast phases.

    Exams that show none of them, or that the model does not know, are counted as ``unknown``.
    """
    where, values, used = _condition(index, text)
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
