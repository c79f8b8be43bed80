"""The columns of an index: what a question may ask for, and how it becomes SQL with bound values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from deepatlas.errors import DataError, did_you_mean
from deepatlas.index.alarms import ALARMS
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
_TRUTHS = {"yes": 1, "true": 1, "1": 1, "no": 0, "false": 0, "0": 0}
_UNKNOWN = "unknown"
_AXES = tuple("".join(ends) for order in permutations(("RL", "AP", "SI")) for ends in product(*order))
_WORDS = {"body_part": (*BODY_PARTS, _UNKNOWN), "phase": (*PHASES, _UNKNOWN), "flip": ALARMS, "axes": _AXES}
# What a question calls it where the index holds nothing.
_NOTHING = {"body_part": _UNKNOWN, "phase": _UNKNOWN, "flip": ALARMS[0]}
# Columns in whole percent beside coverage, trust and bound; ``fit`` is a share.
_PERCENT = ("quality", "loss_percentile")


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

    def is_id(self, field: Field) -> bool:
        """Whether a field is the id of the exam."""
        name = field.name.casefold()
        return not field.kind and _ALSO.get(name, name) == "id"

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
                text, field.start, f"unknown property {field.kind}; a structure has {', '.join(KINDS)}"
            )
        if kind in ("trust", "bound") and not self.trust:
            raise QueryError(
                text,
                field.start,
                f"the index was made without --trust and knows no {kind}; delete it, then make it again with --trust",
            )
        if field.name in self.structures:
            return column(self.structures.index(field.name), kind), NUMBER
        # A structure may be spelled otherwise, or be a synonym.
        met = meeting([field.name], self.structures, "index")
        if field.name not in met:
            raise QueryError(text, field.place, f"the index has no {field.name!r}; {self._like(field)}")
        return column(self.structures.index(met[field.name]), kind), NUMBER

    def _like(self, field: Field) -> str:
        """What a field may be called that the index does not have: what looks like it, or some of everything."""
        known = [*self.structures, *(() if field.kind else EXAM)]
        stem = field.name.casefold().removesuffix("s")
        if (near := did_you_mean(field.name, known)).endswith("?"):
            return near
        if len(stem) > 2 and (held := [name for name in known if stem in name.casefold()]):
            return f"did you mean {' or '.join(held[:3])}?"
        if field.kind:
            return near
        return f"fields of an exam are {', '.join(EXAM)}, and structures {', '.join(self.structures[:4])} …"

    def shown(self, found: Iterable[Field], text: str) -> dict[str, str]:
        """The columns that a question names, by the names that people know: ``heart``, ``heart.hu``, ``slices``."""
        return {self.title(name): name for name in (self.of(field, text)[0] for field in found)}

    def listed(self, found: Iterable[Field], text: str) -> dict[str, str]:
        """As :meth:`shown`, where a property alone, such as ``ml``, means that of every structure."""
        columns: dict[str, str] = {}
        for field in found:
            kind = field.name.casefold()
            if field.kind or kind not in KINDS or field.name in self.structures:
                columns |= self.shown([field], text)
                continue
            own = [Field(name, kind, field.place, field.start) for name in self.structures]
            columns |= self.shown(own, text)
        return columns

    def title(self, name: str) -> str:
        """What a column is called in an answer."""
        if name in EXAM:
            return name
        kind, _, row = name.rpartition("_")
        structure = self.structures[int(row)]
        return structure if kind == "coverage" else f"{structure}.{kind}"

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
                    text, comparison.field.start, f"{comparison.field} needs a sign and a value after it"
                )
            return f"IFNULL({name} = 1, 0)", []
        values = [_value(name, holds, comparison.field, value, text) for value in comparison.values]
        # "flip = none" asks for what an index does not hold, and so does "phase = unknown".
        missing = _NOTHING.get(name)
        if missing is not None and (name == "flip" or missing in values):
            name = f"IFNULL({name}, '{missing}')"
        if comparison.sign in ("in", "not in"):
            marks = ", ".join("?" * len(values))
            return f"IFNULL({name} {comparison.sign.upper()} ({marks}), 0)", values
        if holds != NUMBER and comparison.sign not in ("=", "!="):
            raise QueryError(text, comparison.field.start, f"{comparison.field} has no order; use = or !=")
        return f"IFNULL({name} {comparison.sign} ?, 0)", values


def doubt(comparison: Comparison, name: str) -> str:
    """What is odd about a comparison with the column ``name``: a share where percent are meant, or the contrary."""
    percent = name in _PERCENT or (name not in EXAM and KINDS[name.rpartition("_")[0]] == "percent")
    for value in comparison.values:
        number = value.value
        if not isinstance(number, float) or value.text.endswith("%") and percent:
            continue
        # One percent in view is asked for now and then, a trust of one percent never.
        whole = number == 1 and ("." in value.text or name.startswith(("trust", "bound")))
        if percent and (0 < number < 1 or whole):
            little = f"{comparison.field} is in percent, and {value.text} is hardly any"
            return f"query: {little}; did you mean {100 * number:g}?"
        if name == "fit" and number > 1:
            return f"query: fit goes from 0 to 1, not to {value.text}; did you mean {number / 100:g}?"
    return ""


def _value(name: str, holds: str, field: Field, value: Value, text: str) -> float | str:
    """The value to bind, in the form in which the column holds it."""
    if holds == NUMBER:
        if not isinstance(value.value, float):
            number = re.match(r"[-+]?(\d+\.?\d*|\.\d+)", value.text)
            cure = f"; leave the unit out and write {number[0]}" if number else ""
            raise QueryError(text, value.place, f"{field} is a number, not a word{cure}")
        return value.value
    # An id may consist of digits, of which the number keeps no zeros.
    word = value.text if isinstance(value.value, float) else str(value.value)
    if holds == TRUTH:
        if word.casefold() not in _TRUTHS:
            raise QueryError(text, value.place, f"{name} is yes or no, not {word}")
        return _TRUTHS[word.casefold()]
    if name in _WORDS:
        if name == "phase":
            word = SYNONYMS.get(word.casefold(), word)
        word = word.upper() if name == "axes" else word.casefold()
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
