"""The files of measures: ``statistics.json`` and ``statistics.csv``, which grow with every exam."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepatlas.cells import cell
from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.localize.growing import GrowingTable
from deepatlas.localize.measure import StructureStatistics
from deepatlas.localize.trust.estimate import Trust

NAMES = ("statistics.json", "statistics.csv")
COLUMNS = (
    "exam,structure,id,voxels,ml,mean,p5,p50,p95,x,y,z,low_x,low_y,low_z,high_x,high_y,high_z,coverage,fit,known,trust,bound"
).split(",")


class StatisticsFiles(GrowingTable[dict[str, Any]]):
    """Both files of a folder.

    Args:
        folder: where they are.

    Raises:
        DataError: ``statistics.json`` is there and is not one of these files.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAMES[0]
        super().__init__(path, lambda: _read(path), lambda exams: _write(folder, exams))

    def add(
        self,
        exam: str,
        found: Sequence[StructureStatistics],
        fit: Mapping[str, Any],
        trust: Mapping[str, Trust] | None = None,
    ) -> None:
        """Add the structures of an exam; ``fit`` is what :meth:`Fit.to_dict <deepatlas.model.fit.Fit.to_dict>` gives.

        With ``trust``, the structures by their names have ``"trust"`` and ``"bound"`` beside their measures.

        Raises :class:`~deepatlas.errors.WriteError` if a file cannot be written.
        """
        structures = {s.name: {k: v for k, v in s.to_dict().items() if k != "name"} for s in found}
        for name, entry in structures.items():
            if trust is not None and name in trust:
                entry |= trust[name].to_dict()
        self.put(exam, {"fit": fit["fit"], "known": fit["known"], "structures": structures})


def _write(folder: Path, exams: Mapping[str, Mapping[str, Any]]) -> None:
    write_text(folder / NAMES[0], json.dumps(exams, indent=1, allow_nan=False) + "\n")
    write_text(folder / NAMES[1], _table(exams))


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
            believed = [_text(s.get(key), 3) for key in ("trust", "bound")]
            writer.writerow(
                [cell(exam), cell(name), *sizes, *values, *places, _text(s["coverage"], 3), *about, *believed]
            )
    return out.getvalue()


def _text(value: float | None, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
