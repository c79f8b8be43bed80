"""Read back what an evaluation wrote: ``metrics.csv`` and ``summary.json``."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from deepatlas.cells import text_of
from deepatlas.errors import DataError
from deepatlas.evaluate.rows import Row

# The columns that every version has written, and those that may be missing from an older file.
_NAMES = ("exam", "structure")
_REQUIRED = (*_NAMES, "dice", "hd95_mm")
# The largest value of a column of scores; the other columns are millimetres and millilitres.
_FRACTIONS = ("dice", "surface_dice")
# A missed structure is infinitely far away.
_DISTANCES = ("hd95_mm", "asd_mm")


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.csv``. A column that the file lacks, because it is of an older version, is nan.

    Raises:
        DataError: the file cannot be read, is no table of metrics, has values that no metric gives (a Dice of 87, a
            negative distance), or names a structure of an exam twice. The message names the line.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: dict[tuple[str, str], Row] = {}
    try:
        header = next(reader, [])
        if missing := [name for name in _REQUIRED if name not in header]:
            raise DataError(
                f"{path}: has no column {missing[0]}; `deepatlas evaluate` writes {', '.join(_REQUIRED)}, and this "
                f"file has {', '.join(header) or 'no line'}"
            )
        for cells in reader:
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells and the header {len(header)}; the file "
                    "is damaged, evaluate again"
                )
            row = _row(dict(zip(header, cells, strict=True)), f"{path}: line {reader.line_num}")
            if (row.exam, row.structure) in rows:
                raise DataError(
                    f"{path}: line {reader.line_num}: {row.structure} of exam {row.exam} has two rows; the file is "
                    "damaged, evaluate again"
                )
            rows[row.exam, row.structure] = row
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num}: not a CSV file ({error}); evaluate again"
        ) from error
    if not rows:
        raise DataError(f"{path}: has no row; no labelled structure was evaluated")
    return list(rows.values())


def read_summary(path: Path) -> dict[str, Any]:
    """The content of a ``summary.json``. Raises :class:`~deepatlas.errors.DataError` where it is none."""
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); evaluate again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not the summary of an evaluation; evaluate again")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); evaluate again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _row(cells: dict[str, str], where: str) -> Row:
    values = {
        name: _value(name, cells[name], where) if name in cells else math.nan
        for name in Row.columns()
        if name not in _NAMES
    }
    return Row(text_of(cells["exam"]), text_of(cells["structure"]), **values)


def _value(name: str, text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    largest = 1.0 if name in _FRACTIONS else math.inf if name in _DISTANCES else math.nextafter(math.inf, 0)
    if not 0 <= value <= largest:
        kind = "a number from 0 to 1" if name in _FRACTIONS else "a number, 0 or more"
        raise DataError(
            f"{where}: {name} must be {kind}, got {text!r}; the unit is another or the file is damaged"
        )
    return value
