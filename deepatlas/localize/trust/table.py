"""A table of what to believe of masks: one row for every structure of every exam."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from deepatlas.cells import cell, text_of
from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.localize.growing import GrowingTable
from deepatlas.localize.trust.estimate import Trust

NAME = "trust.csv"
_COLUMNS = ["exam", "structure", "trust", "bound", "reason"]


class TrustTable(GrowingTable[list[dict[str, str]]]):
    """``trust.csv`` of a folder: the predicted Dice of every mask and its 90 % bound.

    ``reason`` says why nobody can tell them, or why the mask was left out.

    Args:
        folder: where it is.

    Raises:
        DataError: the file that is there is another table.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        super().__init__(path, lambda: _read(path), lambda exams: _write(path, exams))

    def add(self, exam: str, trust: Mapping[str, Trust], left_out: Mapping[str, str] | None = None) -> None:
        """Add the structures of an exam, of which some were left out for a reason.

        Raises :class:`~deepatlas.errors.WriteError` if it cannot be written.
        """
        rows = []
        for name, one in trust.items():
            values = ["" if v is None else f"{v:.3f}" for v in (one.value, one.bound)]
            reason = f"left out: {left_out[name]}" if left_out and name in left_out else one.reason
            rows.append(dict(zip(_COLUMNS, [exam, name, *values, reason], strict=True)))
        self.put(exam, rows)


def _read(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of every exam; nothing where there is no file."""
    exams: dict[str, list[dict[str, str]]] = {}
    if not path.is_file():
        return exams
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if table.fieldnames != _COLUMNS:
            raise DataError(
                f"{path}: is another table than this version writes; move it, or choose another --out"
            )
        for row in table:
            row = {key: text_of(value or "") for key, value in row.items()}
            exams.setdefault(row["exam"], []).append(row)
    return exams


def _write(path: Path, exams: Mapping[str, list[dict[str, str]]]) -> None:
    text = io.StringIO()
    out = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    out.writeheader()
    for rows in exams.values():
        out.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
