"""Exams as people write them: letters that are composed otherwise are the same, and what is missing is suggested."""

from __future__ import annotations

import unicodedata
import warnings
from dataclasses import replace

from deepatlas.errors import DataError, DataWarning, did_you_mean
from deepatlas.index.expression import Comparison, Expression, Not, Value
from deepatlas.index.file import IndexFile


def exam_called(index: IndexFile, name: str) -> str | None:
    """The id of an exam as the index has it, or None.

    File systems of macOS write an umlaut as two characters, and keyboards as one.
    """
    if index.rows("SELECT 1 FROM exams WHERE id = ?", (name,)):
        return name
    wanted = unicodedata.normalize("NFC", name)
    if wanted.isascii():
        return None
    return next(
        (i for (i,) in index.rows("SELECT id FROM exams") if unicodedata.normalize("NFC", i) == wanted), None
    )


def the_exam(index: IndexFile, name: str) -> str:
    """As :func:`exam_called`. Raises :class:`~deepatlas.errors.DataError` for one that the index does not have."""
    if (found := exam_called(index, name)) is None:
        raise DataError(f"{index.path}: no exam {name!r}; {did_you_mean(name, index.keys())}")
    return found


def with_ids(index: IndexFile, expression: Expression) -> Expression:
    """A question in which exams are called as the index calls them.

    Warns :class:`~deepatlas.errors.DataWarning` where the index has no exam of a name.
    """
    if isinstance(expression, Not):
        return Not(with_ids(index, expression.part))
    if not isinstance(expression, Comparison):
        return replace(expression, parts=tuple(with_ids(index, part) for part in expression.parts))
    if not index.columns.is_id(expression.field):
        return expression
    return replace(expression, values=tuple(_value(index, value) for value in expression.values))


def _value(index: IndexFile, value: Value) -> Value:
    name = value.text if isinstance(value.value, float) else str(value.value)
    found = exam_called(index, name)
    if found is None:
        warnings.warn(
            f"{index.path}: no exam {name!r}; {did_you_mean(name, index.keys())}", DataWarning, stacklevel=2
        )
        return value
    return Value(found, value.place, value.text)
