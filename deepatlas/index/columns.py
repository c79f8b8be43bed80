"""The columns of an index: what a question may ask for, and how it becomes SQL with bound values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepatlas.errors import DataError, did_you_mean
from deepatlas.index.body_part import BODY_PARTS
from deepatlas.index.expression import (
    Comparison,
    Expression,
    Field,
    Joined,
    Not,
    QueryError,
    Value,
)
from deepatlas.index.phase import PHASES, SYNONYMS
from deepatlas.names.meet import meeting

NUMBER, WORD, TRUTH = "number", "word", "truth"
# The columns that every index has, with what they hold; whole percent are rounded down.
EXAM = {
    "id": WORD,
    "fit": NUMBER,
    "known": TRUTH,
    "quality": NUMBER,
    "loss_percentile": NUMBER,
    "body_part": WORD,
    "phase": WORD,
    "flip": WORD,
    "axes": WORD,
    "labelled": TRUTH,
    "slices": NUMBER,
    "slice_mm": NUMBER,
    "pixel_mm": NUMBER,
    "height_mm": NUMBER,
}
# Other names of columns.
_ALSO = {
    "loss": "loss_percentile",
    "body": "body_part",
    "part": "body_part",
    "exam": "id",
    "contrast": "phase",
}
# Properties of a structure, with their names in questions. ``heart`` alone is its coverage.
KINDS = {"coverage": "percent", "hu": "HU", "ml": "ml", "trust": "percent", "bound": "percent"}
# A table of SQLite may have 2,000 columns, and that of the exams has some of their own.
MOST_STRUCTURES = 1900
_TRUTHS = {"yes": 1, "true": 1, "no": 0, "false": 0}
_WORDS = {"body_part": BODY_PARTS, "phase": PHASES}


def column(row: int, kind: str) -> str:
    """The column of a property of the structure with this number."""
    return f"{kind}_{row}"


@dataclass(frozen=True)
class Columns:
    """The fields of one index, by the names of its structures and boxes; ``trust`` is whether it holds their trust."""

    structures: Sequence[str]
    trust: bool = True

    def tables(self) -> dict[str, list[str]]:
        """The columns of each table, in their order, beside ``num``, by which the tables belong together.

        ``exams`` has those of the exam and the coverage of every structure, and every other property has a table of
        its own. A question reads the tables that it needs, from front to back, so that narrow rows are fast rows.
        """
        own = {kind: [column(row, kind) for row in range(len(self.structures))] for kind in KINDS}
        return {"exams": [*EXAM, *own.pop("coverage")], **own}

    def all(self) -> list[str]:
        """The names of all columns but ``id``."""
        return [name for columns in self.tables().values() for name in columns if name != "id"]

    def source(self, names: Iterable[str]) -> str:
        """The tables that hold some columns, joined, as a FROM clause takes them."""
        kinds = {name.rpartition("_")[0] for name in names if name not in EXAM} - {"coverage"}
        return " ".join(["exams", *(f"JOIN {kind} USING (num)" for kind in KINDS if kind in kinds)])

    def of(self, field: Field, text: str) -> tuple[str, str]:
        """The column that a field means, and what it holds.

        Raises :class:`~deepatlas.index.expression.QueryError` for a name that the index does not have.
        """
        name = field.name.casefold()
        name = _ALSO.get(name, name)
        if not field.kind and name in EXAM:
            return name, EXAM[name]
        kind = field.kind.casefold() or "coverage"
        if kind not in KINDS:
            raise QueryError(
                text, field.place, f"unknown property {field.kind}; a structure has {', '.join(KINDS)}"
            )
        if kind in ("trust", "bound") and not self.trust:
            raise QueryError(
                text,
                field.place,
                f"the index was made without --trust and knows no {kind}; delete it, then make it again with --trust",
            )
        if field.name in self.structures:
            return column(self.structures.index(field.name), kind), NUMBER
        # A structure may be spelled otherwise, or be a synonym.
        met = meeting([field.name], self.structures, "index")
        if field.name not in met:
            known = [*self.structures, *(() if field.kind else EXAM)]
            raise QueryError(
                text, field.place, f"the index has no {field.name!r}; {did_you_mean(field.name, known)}"
            )
        return column(self.structures.index(met[field.name]), kind), NUMBER

    def asked(self, found: Iterable[Field], text: str) -> list[int]:
        """The numbers of the structures that a question names."""
        columns = [self.of(field, text)[0] for field in found]
        rows = [int(name.rpartition("_")[2]) for name in columns if name not in EXAM]
        return list(dict.fromkeys(rows))

    def where(self, expression: Expression, text: str) -> tuple[str, list[float | str]]:
        """The condition in SQL, and the values that are bound to its question marks.

        Only names of columns that this class made are in the SQL, and never a word of the question. A comparison with
        what an exam lacks is false, and its contrary with ``not`` is true.
        """
        if isinstance(expression, Not):
            inner, values = self.where(expression.part, text)
            return f"NOT ({inner})", values
        if isinstance(expression, Joined):
            parts = [self.where(part, text) for part in expression.parts]
            word = " AND " if expression.word == "and" else " OR "
            return "(" + word.join(p for p, _ in parts) + ")", [v for _, values in parts for v in values]
        return self._comparison(expression, text)

    def _comparison(self, comparison: Comparison, text: str) -> tuple[str, list[float | str]]:
        name, holds = self.of(comparison.field, text)
        if not comparison.sign:
            if holds != TRUTH:
                raise QueryError(
                    text, comparison.field.place, f"{comparison.field.name} needs a sign and a value after it"
                )
            return f"IFNULL({name} = 1, 0)", []
        values = [_value(name, holds, value, text) for value in comparison.values]
        if comparison.sign in ("in", "not in"):
            marks = ", ".join("?" * len(values))
            return f"IFNULL({name} {comparison.sign.upper()} ({marks}), 0)", values
        if holds != NUMBER and comparison.sign not in ("=", "!="):
            raise QueryError(
                text, comparison.field.place, f"{comparison.field.name} has no order; use = or !="
            )
        return f"IFNULL({name} {comparison.sign} ?, 0)", values


def _value(name: str, holds: str, value: Value, text: str) -> float | str:
    """The value to bind, in the form in which the column holds it."""
    if holds == NUMBER:
        if not isinstance(value.value, float):
            raise QueryError(text, value.place, f"{name.partition('_')[0]} is a number, not a word")
        return value.value
    # An id may consist of digits, of which the number keeps no zeros.
    word = value.text if isinstance(value.value, float) else str(value.value)
    if holds == TRUTH:
        if word.casefold() not in _TRUTHS:
            raise QueryError(text, value.place, f"{name} is yes or no, not {word}")
        return _TRUTHS[word.casefold()]
    if name in _WORDS:
        word = SYNONYMS.get(word.casefold(), word.casefold()) if name == "phase" else word.casefold()
        if word not in _WORDS[name]:
            raise QueryError(
                text, value.place, f"{name} has no {word!r}; {did_you_mean(word, _WORDS[name], most=10)}"
            )
    return word


def check_structures(names: Sequence[str]) -> None:
    """Raise :class:`~deepatlas.errors.DataError` for more structures than a row can hold, or names that clash."""
    if len(names) > MOST_STRUCTURES:
        raise DataError(
            f"index: the template has {len(names)} structures, and a row of an index holds {MOST_STRUCTURES}; "
            "choose some with --structures"
        )
    if clash := [name for name in names if name.casefold() in EXAM]:
        raise DataError(f"index: a structure is called {clash[0]}, as a column of the index; rename it")


def rounded_down(share: float | None) -> int | None:
    """A share in [0, 1] as whole percent, so that "at least 90" never lies; None stays None."""
    # Sums of float32 leave a whole share a little below one.
    return None if share is None or share != share else int(100 * min(max(share, 0.0), 1.0) + 1e-6)


Values = Mapping[str, float | int | str | None]
