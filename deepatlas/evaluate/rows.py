"""The rows of ``metrics.csv``: the metrics of one structure in one exam."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from deepatlas.cells import cells


@dataclass(frozen=True)
class Row:
    """One structure in one exam. The fields are the columns of ``metrics.csv`` in their order.

    ``dice`` and ``surface_dice`` are numbers from 0 to 1. ``hd95_mm`` and ``asd_mm`` are infinite where the structure
    was missed. The volumes are in millilitres.
    """

    exam: str
    structure: str
    dice: float
    hd95_mm: float
    predicted_ml: float
    reference_ml: float
    surface_dice: float
    asd_mm: float

    @classmethod
    def columns(cls) -> list[str]:
        """The header of ``metrics.csv``."""
        return [f.name for f in fields(cls)]

    def csv(self) -> list[str]:
        """The cells of this row of ``metrics.csv``; numbers have six significant digits."""
        return cells(v if isinstance(v, str) else f"{v:.6g}" for v in asdict(self).values())


def metrics_csv(rows: Iterable[Row]) -> str:
    """The text of ``metrics.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row.columns())
    writer.writerows(row.csv() for row in rows)
    return text.getvalue()
