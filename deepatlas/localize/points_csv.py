"""Points as CSV files: those that a user gives, and those that were found."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.localize.points import Located

COLUMNS = ("name", "x", "y", "z")
# What is known about a point that was looked for.
RESULTS = ("inversion_mm", "found", "reason", "fit", "known")
TRUST = ("error_mm", "bound_mm")


def read_points(path: str | Path) -> tuple[list[str], NDArray[np.float64]]:
    """Read a CSV file with the columns name, x, y and z, in any order; other columns are ignored.

    Returns:
        The names, and the points ``[N, 3]`` in RAS millimetres.

    Raises:
        DataError: the file cannot be read, lacks a column, holds no point, or holds a coordinate that is not a finite
            number. The message names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot read points: {reason}; give a CSV file with columns name,x,y,z"
        ) from error
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [(h or "").strip().lower() for h in reader.fieldnames or []]
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; the first line must hold name,x,y,z (RAS mm)"
        )
    reader.fieldnames = header
    names, points = [], []
    for row in reader:
        try:
            point = [float(row[c]) for c in COLUMNS[1:]]
        except (TypeError, ValueError):
            point = [math.nan]
        if not all(math.isfinite(v) for v in point):
            raise DataError(f"{path}: line {reader.line_num}: x, y, z must be numbers (RAS mm)")
        names.append((row["name"] or "").strip())
        points.append(point)
    if not names:
        raise DataError(f"{path}: holds no point below the header; add lines name,x,y,z (RAS mm)")
    return names, np.array(points)


def write_located(path: str | Path, names: Sequence[str], located: Mapping[str, Located]) -> None:
    """Write the points found in every target as a CSV file. Numbers that are nan are left empty.

    The columns are target, name, x, y, z (RAS millimetres in the target), inversion_mm, found, reason (why a point was
    not found), fit and known (of the target; empty where the model has no threshold), and where they were asked for
    error_mm and bound_mm, the expected error of the coordinates and the one that nine of ten points stay below.

    Args:
        path: the file to write.
        names: the names of the points.
        located: the result of every target by its name, each with ``len(names)`` points.

    Raises:
        DataError: the file cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    trusted = any(result.error_mm is not None for result in located.values())
    writer.writerow(["target", *COLUMNS, *RESULTS, *(TRUST if trusted else ())])
    for target, result in located.items():
        rows = zip(names, result.points, result.inversion_mm, result.found, result.reason, strict=True)
        fit = result.fit
        about = [f"{fit.value:.3f}" if math.isfinite(fit.value) else "", _truth(fit.known)]
        for i, (name, point, inversion, found, reason) in enumerate(rows):
            numbers = [_number(v) for v in (*point, inversion)]
            errors = []
            if result.error_mm is not None and result.bound_mm is not None:
                errors = [_number(result.error_mm[i]), _number(result.bound_mm[i])]
            writer.writerow([target, name, *numbers, _truth(bool(found)), reason, *about, *errors])
    write_text(path, out.getvalue())


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ""


def _truth(value: bool | None) -> str:
    return "" if value is None else str(value).lower()
