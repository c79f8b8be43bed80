"""Points, lines and boxes as plain tables: CSV for points or for boxes, JSON for all, in RAS+ millimetres.

A CSV of points has the columns ``name,x,y,z``. One of boxes has, after these of the centre, the three half-axes: the
vectors from the centre to the middle of three faces, ``ax,ay,az,bx,by,bz,cx,cy,cz``. A point that is not in the exam
has empty places.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.cells import cell, text_of
from deepatlas.errors import DataError, WriteError
from deepatlas.files import write_text
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups, Point, Polyline

POINT_COLUMNS = ("name", "x", "y", "z")
_AXES = ("ax", "ay", "az", "bx", "by", "bz", "cx", "cy", "cz")
BOX_COLUMNS = (*POINT_COLUMNS, *_AXES)
FORMAT = "deepatlas-markups"
_JSON_CURE = 'give {"format": "deepatlas-markups", "space": "RAS", "points": […], "lines": […], "boxes": […]}'


def parse_csv(path: Path, text: str) -> tuple[Markups, list[str]]:
    """The points or the boxes of a CSV file; columns come in any order, and others are ignored."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [(h or "").strip().lower() for h in reader.fieldnames or []]
    # A header with one column of a half-axis is meant to be one of boxes.
    columns = BOX_COLUMNS if any(c in header for c in _AXES) else POINT_COLUMNS
    if missing := [c for c in columns if c not in header]:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; the first line must hold {','.join(columns)} (RAS mm)"
        )
    reader.fieldnames = header
    points, boxes = [], []
    for row in reader:
        name = text_of((row["name"] or "").strip())
        where = f"{path}: line {reader.line_num}"
        cells = [(row[c] or "").strip() for c in columns[1:]]
        if columns is POINT_COLUMNS and not any(cells):
            points.append(Point(name, None))
            continue
        try:
            numbers = np.array([float(cell) for cell in cells])
        except ValueError:
            numbers = np.full(1, math.nan)
        if not np.isfinite(numbers).all():
            raise DataError(f"{where}: {', '.join(columns[1:])} must be numbers (RAS mm)")
        if columns is POINT_COLUMNS:
            points.append(Point(name, numbers))
        else:
            try:
                boxes.append(Box(name, numbers[:3], numbers[3:].reshape(3, 3).T))
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
    return Markups(tuple(points), (), tuple(boxes)), []


def write_csv(path: Path, markups: Markups) -> list[str]:
    """Write the points or the boxes."""
    if markups.lines or (markups.points and markups.boxes):
        raise WriteError(
            f"{path}: a CSV holds either points or boxes, and no lines; write .json or .mrk.json, or one file each"
        )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(BOX_COLUMNS if markups.boxes else POINT_COLUMNS)
    for point in markups.points:
        writer.writerow([cell(point.name), *("" for _ in "xyz")] if point.position is None else
                        [cell(point.name), *_texts(point.position)])  # fmt: skip
    for box in markups.boxes:
        writer.writerow([cell(box.name), *_texts(box.centre), *_texts(box.axes.T.ravel())])
    write_text(path, out.getvalue())
    return []


def parse_json(path: Path, text: str) -> tuple[Markups, list[str]]:
    """What :func:`write_json` wrote."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, no JSON ({error}); {_JSON_CURE}") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise DataError(f"{path}: no markups of this package or of 3D Slicer; {_JSON_CURE}")
    if whole.get("space") != "RAS":
        raise DataError(
            f"{path}: its space is {str(whole.get('space'))[:40]!r}, and it must be RAS; convert its positions"
        )
    try:
        points = [
            Point(str(p["name"]), _array(p["position"]), str(p.get("note", "")))
            for p in whole.get("points", [])
        ]
        lines = [
            Polyline(str(line["name"]), np.array(line["points"], dtype=np.float64), bool(line["closed"]))
            for line in whole.get("lines", [])
        ]
        boxes = [
            Box(str(b["name"]), _array(b["centre"]), _array(b["half_axes"]).T) for b in whole.get("boxes", [])
        ]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: an entry is incomplete or no number ({error}); {_JSON_CURE}") from error
    return Markups(tuple(points), tuple(lines), tuple(boxes)), []


def write_json(path: Path, markups: Markups) -> list[str]:
    """Write everything; a point without a place has the position null."""
    write_text(path, json.dumps(to_dict(markups), indent=1, allow_nan=False) + "\n")
    return []


def to_dict(markups: Markups) -> dict[str, Any]:
    """The content of a JSON file: positions ``[x, y, z]`` and half-axes ``[a, b, c]``, each ``[x, y, z]``, RAS mm."""
    return {
        "format": FORMAT,
        "space": "RAS",
        "unit": "mm",
        "points": [
            {"name": p.name, "position": None if p.position is None else p.position.tolist()}
            | ({"note": p.note} if p.note else {})
            for p in markups.points
        ],
        "lines": [
            {"name": line.name, "closed": line.closed, "points": line.points.tolist()}
            for line in markups.lines
        ],
        "boxes": [
            {
                "name": box.name,
                "centre": box.centre.tolist(),
                "half_axes": box.axes.T.tolist(),
            }
            for box in markups.boxes
        ],
    }


def _array(values: object) -> Any:
    return None if values is None else np.array(values, dtype=np.float64)


def _texts(numbers: NDArray[np.float64]) -> list[str]:
    """Numbers as they are read back exactly."""
    return [repr(float(v)) for v in numbers]
