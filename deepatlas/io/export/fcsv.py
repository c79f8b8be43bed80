"""Points of 3D Slicer as ``.fcsv``, its format before ``.mrk.json``.

Lines that begin with ``#`` are the header, which states the coordinate system by its name or, before version 4.11, by
its number (0 RAS, 1 LPS). A file that states none, as those of 3D Slicer 3, is refused: it may mean either.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError, WriteError
from deepatlas.files import write_text
from deepatlas.space.constants import LPS_SIGNS
from deepatlas.space.markup import Markups, Point

_SIGNS = {"LPS": LPS_SIGNS, "1": LPS_SIGNS, "RAS": np.ones(3), "0": np.ones(3)}
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID".split(",")
_HEADER = re.compile(r"#\s*(CoordinateSystem|columns)\s*=\s*(.*?)\s*", re.IGNORECASE)
_AGAIN = "save it again with 3D Slicer, as .mrk.json"


def parse(path: Path, text: str) -> tuple[Markups, list[str]]:
    """The points of a file."""
    header: dict[str, str] = {}
    rows = []
    for line in text.splitlines():
        if line.startswith("#"):
            if stated := _HEADER.fullmatch(line):
                header[stated[1].lower()] = stated[2]
        elif line.strip():
            rows.append(line)
    system = header.get("coordinatesystem")
    if system is None or system.upper() not in _SIGNS:
        stated_as = "states no coordinate system" if system is None else f"is in the system {system[:40]!r}"
        raise DataError(f"{path}: {stated_as}, and only LPS and RAS are known; {_AGAIN}")
    signs = _SIGNS[system.upper()]
    columns = [c.strip() for c in header["columns"].split(",")] if "columns" in header else _COLUMNS
    if missing := [c for c in ("x", "y", "z", "label") if c not in columns]:
        raise DataError(f"{path}: no column {', '.join(missing)} in its header; {_AGAIN}")
    points = []
    for number, row in enumerate(csv.DictReader(io.StringIO("\n".join(rows)), fieldnames=columns), 1):
        try:
            position = np.array([float(row[c]) for c in "xyz"]) * signs
        except (TypeError, ValueError):
            position = np.full(3, np.nan)
        if not np.isfinite(position).all():
            raise DataError(f"{path}: point {number}: x, y, z must be numbers; {_AGAIN}")
        points.append(
            Point((row["label"] or "").strip() or f"point-{number}", position, row.get("desc") or "")
        )
    return Markups(tuple(points)), []


def write(path: Path, markups: Markups) -> list[str]:
    """Write the points in LPS. Those without a position are left out, since the format has no way to say so."""
    if markups.lines or markups.boxes:
        raise WriteError(f"{path}: .fcsv holds points alone; write lines and boxes as .mrk.json or .json")
    out = io.StringIO()
    out.write("# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n")
    out.write(f"# columns = {','.join(_COLUMNS)}\n")
    writer = csv.writer(out, lineterminator="\n")
    placed = [point for point in markups.points if point.position is not None]
    for number, point in enumerate(placed, 1):
        assert point.position is not None
        position = [repr(float(v)) for v in point.position * LPS_SIGNS]
        # One line a point: the reader of 3D Slicer knows no quoted line breaks.
        label, note = (" ".join(text.split()) for text in (point.name, point.note))
        writer.writerow([number, *position, 0, 0, 0, 1, 1, 1, 0, label, note, ""])
    write_text(path, out.getvalue())
    left = [point.name for point in markups.points if point.position is None]
    return [f"{len(left)} points without a position left out: {', '.join(left[:8])}"] if left else []
