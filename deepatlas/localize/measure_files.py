"""The files of measures: ``statistics.json`` and ``statistics.csv``, which grow with every exam."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.localize.measure import StructureStatistics

NAMES = ("statistics.json", "statistics.csv")
COLUMNS = (
    "exam,structure,id,voxels,ml,mean,p5,p50,p95,x,y,z,low_x,low_y,low_z,high_x,high_y,high_z,coverage,fit,known"
).split(",")
# The files of a large cohort are written again when so many times the last writing has passed.
_PATIENCE = 20.0


class StatisticsFiles:
    """Both files of a folder, which hold the exams that are added and those that were there before.

    They are written again with almost every exam, so that a run that is stopped keeps what was measured. An exam that
    was there before is replaced. As a context manager it writes the last exams at the end, also after an error.

    Args:
        folder: where they are.

    Raises:
        DataError: ``statistics.json`` is there and is not one of these files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exams: dict[str, dict[str, Any]] = {}
        _read(folder / NAMES[0])
        self._next, self._unwritten = 0.0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unwritten:
            self.write()

    def add(self, exam: str, found: Sequence[StructureStatistics], fit: Mapping[str, Any]) -> None:
        """Add the structures of an exam; ``fit`` is what :meth:`Fit.to_dict <deepatlas.model.fit.Fit.to_dict>` gives.

        Raises :class:`~deepatlas.errors.WriteError` if a file cannot be written.
        """
        self._exams[exam] = {
            "fit": fit["fit"],
            "known": fit["known"],
            "structures": {s.name: {k: v for k, v in s.to_dict().items() if k != "name"} for s in found},
        }
        self._unwritten = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write both files, with the exams that another run has added meanwhile."""
        begun = time.monotonic()
        self._unwritten = False
        exams = _read(self._folder / NAMES[0]) | self._exams
        write_text(self._folder / NAMES[0], json.dumps(exams, indent=1, allow_nan=False) + "\n")
        write_text(self._folder / NAMES[1], _table(exams))
        ended = time.monotonic()
        self._next = ended + _PATIENCE * (ended - begun)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What a file of this kind holds; nothing where there is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _table(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: is no table of `deepatlas segment --statistics`, to which exams could be added; choose another "
            "--out, or move it away"
        ) from error
    return dict(found)


def _table(exams: Mapping[str, Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for exam, entry in exams.items():
        about = [_text(entry["fit"], 3), "" if entry["known"] is None else str(entry["known"]).lower()]
        for name, s in entry["structures"].items():
            places = [_text(v, 2) for v in (*s["centroid_mm"], *s["low_mm"], *s["high_mm"])]
            values = [_text(s[key], 1) for key in ("mean", "p5", "p50", "p95")]
            sizes = [s["id"], s["voxels"], _text(s["ml"], 3)]
            writer.writerow([exam, name, *sizes, *values, *places, _text(s["coverage"], 3), *about])
    return out.getvalue()


def _text(value: float | None, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
