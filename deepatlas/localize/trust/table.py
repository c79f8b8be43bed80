"""A table of what to believe of masks: one row for every structure of every exam."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.localize.trust.estimate import Trust

NAME = "trust.csv"
_COLUMNS = ["exam", "structure", "trust", "bound", "reason"]


def write_trust(folder: Path, exam: str, trust: Mapping[str, Trust]) -> Path:
    """Write the trust of an exam's masks into the table of a folder; rows of other exams stay in it.

    Args:
        folder: receives or holds ``trust.csv``: the predicted Dice of every mask and its 90 % bound, or the reason why
            nobody can tell.
        exam: the name of the exam.
        trust: for every structure.

    Raises:
        DataError: the file that is there is another table, or cannot be written.
    """
    path = folder / NAME
    rows: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames != _COLUMNS:
                raise DataError(
                    f"{path}: is another table than this version writes; move it, or choose another --out"
                )
            rows = [row for row in table if row["exam"] != exam]
    for name, one in trust.items():
        values = ["" if v is None else f"{v:.3f}" for v in (one.value, one.bound)]
        rows.append(dict(zip(_COLUMNS, [exam, name, *values, one.reason or ""], strict=True)))
    text = io.StringIO()
    out = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
    write_text(path, text.getvalue())
    return path
