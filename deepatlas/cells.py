"""Cells of CSV files: a name that a spreadsheet would take for a formula is written as text.

The name of a structure, an exam or a file may come from another clinic. Excel and LibreOffice run a cell that begins
with ``=``, ``+``, ``-`` or ``@`` (OWASP, "CSV injection"); an apostrophe before it makes it text. Numbers stay numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")

# Apostrophes that stand there already count along, so that reading gives back every name.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def cell(value: Value) -> Value | str:
    """What to write for a value: text that looks like a formula gets an apostrophe, a bool is ``true`` or ``false``.

    Anything else is as it is.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def cells(row: Iterable[Value]) -> list[Value | str]:
    """:func:`cell` of every value of a row."""
    return [cell(value) for value in row]


def text_of(written: str) -> str:
    """Inverse of :func:`cell`."""
    return written[1:] if written.startswith("'") and _FORMULA.match(written) else written
