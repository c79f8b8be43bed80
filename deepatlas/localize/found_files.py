"""Files of what was found: one table of all exams as CSV or JSON, or one file of markups for each exam."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deepatlas.cells import cell
from deepatlas.files import write_text
from deepatlas.io.export.markups import write_markups
from deepatlas.localize.found import Found
from deepatlas.localize.points import Located

COLUMNS = ("name", "x", "y", "z")
# What is known about a point that was looked for.
RESULTS = ("inversion_mm", "found", "reason", "fit", "known")
# The columns behind these where lines or boxes were looked for. The three half-axes lead from the centre to faces.
MORE = ("kind", "vertex", *"ax ay az bx by bz cx cy cz".split(), "coverage", "shear_degrees", "residual_mm")
# The columns at the end where errors were asked for.
TRUST = ("error_mm", "bound_mm")
FORMAT = "deepatlas-found"


def write_found(path: Path, found: Mapping[str, Found]) -> None:
    """Write what was found in every exam as one ``.json``, or as one table for any other suffix.

    The columns of a table are target, name, x, y, z (RAS millimetres in the target), inversion_mm, found, reason (why a
    point was not found), fit and known (of the target; empty where the model has no threshold). Where lines or boxes
    were looked for, there follow the kind, the number of the point in its line, the half-axes of a box, its coverage,
    the shear that it has, and the residual of its affine map; where trust was asked for, the expected error of each
    point and its bound. Numbers that are nan are left empty.

    Args:
        path: the file to write.
        found: the result of every target by its name.

    Raises:
        DataError: the file cannot be written.
    """
    if path.name.lower().endswith(".json"):
        content = {
            "format": FORMAT,
            "space": "RAS",
            "unit": "mm",
            "exams": {name: result.to_dict() for name, result in found.items()},
        }
        write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        return
    wide = any(result.lines or result.boxes for result in found.values())
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    trusted = any(result.points.error_mm is not None for result in found.values())
    writer.writerow(["target", *COLUMNS, *RESULTS, *(MORE if wide else ()), *(TRUST if trusted else ())])
    for target, result in found.items():
        fit = result.fit
        about = [_text(fit.value), _truth(fit.known)]
        errors = [list(map(_text, pair)) for pair in _errors(result)]
        for i, (row, more) in enumerate(_rows(result)):
            # Points come first; lines and boxes have no error of their own.
            own = (errors[i] if i < len(errors) else ["", ""]) if trusted else []
            writer.writerow([cell(target), cell(row[0]), *row[1:], *about, *(more if wide else ()), *own])
    write_text(path, out.getvalue())


def write_each(
    folder: Path, found: Mapping[str, Found], suffix: str, stem: str = ""
) -> tuple[list[Path], list[str]]:
    """Write one file of markups for each exam, ``<exam><stem><suffix>``.

    Returns:
        The files, and a line for everything that the format cannot say.

    Raises:
        DataError: the format has no place for what was found, or a file cannot be written.
    """
    files, notes = [], []
    for name, result in found.items():
        path = folder / f"{name}{stem}{suffix}"
        notes += [f"{path}: {note}" for note in write_markups(path, result.markups())]
        files.append(path)
    return files, notes


def _rows(result: Found) -> Iterator[tuple[list[str], list[str]]]:
    """The cells of each point, vertex and box, without those of the exam, and the cells of :data:`MORE`."""
    nothing = [""] * (len(MORE) - 2)
    for cells in _points(result.names, result.points):
        yield cells, ["point", "", *nothing]
    for line in result.lines:
        for number, (place, inside) in enumerate(zip(line.points, line.inside, strict=True), 1):
            reason = "" if inside else line.reason
            row = [line.name, *(_text(v) for v in place), "", _truth(bool(inside)), reason]
            yield row, ["line", str(number), *nothing]
    for box in result.boxes:
        centre = np.full(3, math.nan) if box.box_mm is None else box.box_mm.centre
        axes = np.full((3, 3), math.nan) if box.box_mm is None else box.box_mm.axes
        numbers = [*axes.T.ravel(), box.coverage, box.shear_degrees, box.residual_mm]
        row = [box.name, *(_text(v) for v in centre), "", _truth(box.found), box.reason]
        yield row, ["box", "", *(_text(v) for v in numbers)]


def _points(names: Sequence[str], result: Located) -> Iterator[list[str]]:
    rows = zip(names, result.points, result.inversion_mm, result.found, result.reason, strict=True)
    for name, point, inversion, found, reason in rows:
        yield [name, *(_text(v) for v in (*point, inversion)), _truth(bool(found)), reason]


def _errors(result: Found) -> list[tuple[float, float]]:
    error, bound = result.points.error_mm, result.points.bound_mm
    if error is None or bound is None:
        return []
    return [(float(e), float(b)) for e, b in zip(error, bound, strict=True)]


def _text(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ""


def _truth(value: bool | None) -> str:
    return "" if value is None else str(value).lower()
