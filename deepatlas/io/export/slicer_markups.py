"""Markups of 3D Slicer, ``.mrk.json``: points, curves and ROIs, written in LPS millimetres.

The reader of 3D Slicer asks for the address of a schema; that of version 1.0.3 is written, and any version 1 is read.
An ROI has an orientation, nine numbers row by row with its axes in the columns, and the full lengths of its edges.
Without the orientation 3D Slicer takes a matrix of zeros. A point without a place has the status ``undefined``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.space.box import Box
from deepatlas.space.constants import LPS_SIGNS
from deepatlas.space.markup import Markups, Point, Polyline

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_SCHEMAS = re.compile(r".*markups-schema-v1\.[0-9]+\.[0-9]+\.json#*", re.IGNORECASE)
# The factors to RAS of a coordinate system, and to millimetres of a unit.
_SIGNS = {"LPS": LPS_SIGNS, "RAS": np.ones(3)}
_UNITS = {"mm": 1.0, "um": 1e-3}
# The types that are lines, and whether those are closed.
_LINES = {"Line": False, "Angle": False, "Curve": False, "ClosedCurve": True}
_STATUSES = ("undefined", "preview", "defined")
# The largest difference of a rotation times its transpose from the identity; files have six digits or more.
_ROTATION = 1e-3
# Degrees of shear that are no more than the rounding of numbers.
_SHEAR = 1e-3
_AGAIN = "save it again with 3D Slicer"


def is_slicer(text: str) -> bool:
    """Whether a JSON text is a file of 3D Slicer rather than of this package."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "@schema" in found


# -- reading -------------------------------------------------------------------------------------------------------


def parse(path: Path, text: str) -> tuple[Markups, list[str]]:
    """The markups of a file, and a line for everything that was left out."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged, no JSON ({error}); {_AGAIN}") from error
    schema = whole.get("@schema") if isinstance(whole, dict) else None
    if not isinstance(schema, str) or not _SCHEMAS.fullmatch(schema.strip()):
        raise DataError(
            f"{path}: its @schema is not markups-schema-v1 of 3D Slicer (it is {str(schema)[:80]!r}); {_AGAIN}"
        )
    nodes = whole.get("markups")
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise DataError(f"{path}: damaged, it has no list of markups; {_AGAIN}")
    points: list[Point] = []
    lines: list[Polyline] = []
    boxes: list[Box] = []
    notes: list[str] = []
    for number, node in enumerate(nodes, 1):
        kind, name = str(node.get("type")), str(node.get("name") or "")
        what = f"{path}: markup {number}{f' {name[:40]!r}' if name else ''}"
        if kind != "Fiducial" and kind != "ROI" and kind not in _LINES:
            notes.append(
                f"markup {number} is of type {kind[:40]!r}, which is no point, line or box; left out"
            )
            continue
        to_ras = _to_ras(node, what)
        if kind == "ROI":
            boxes.append(_box(node, name or f"{path.name.partition('.')[0]}-{number}", to_ras, what))
            continue
        controls = _control_points(node, name, to_ras, what)
        if kind == "Fiducial":
            points += controls
            continue
        placed = [point.position for point in controls if point.position is not None]
        if len(placed) < 2:
            raise DataError(f"{what}: a line of {len(placed)} points; it needs two, {_AGAIN}")
        if missing := len(controls) - len(placed):
            notes.append(f"{missing} points of markup {number} have no position; left out of the line")
        lines.append(Polyline(name or f"line-{number}", np.array(placed), _LINES[kind]))
    return Markups(tuple(points), tuple(lines), tuple(boxes)), notes


def _to_ras(node: dict[str, Any], what: str) -> NDArray[np.float64]:
    """The factors (x, y, z) by which positions become RAS millimetres."""
    # The schema says what a missing entry means.
    system, unit = node.get("coordinateSystem", "LPS"), node.get("coordinateUnits", "mm")
    if not isinstance(system, str) or system not in _SIGNS:
        raise DataError(
            f"{what}: its coordinate system is {str(system)[:40]!r}, and only LPS and RAS are known; {_AGAIN}"
        )
    if isinstance(unit, list) and len(unit) == 3 and unit[1] == "UCUM":
        unit = unit[0]
    if not isinstance(unit, str) or unit not in _UNITS:
        raise DataError(f"{what}: its unit is {str(unit)[:40]!r}, and only mm and um are known; {_AGAIN}")
    signs: NDArray[np.float64] = _SIGNS[system] * _UNITS[unit]
    return signs


def _control_points(node: dict[str, Any], name: str, to_ras: NDArray[np.float64], what: str) -> list[Point]:
    given = node.get("controlPoints", [])
    if not isinstance(given, list) or not all(isinstance(point, dict) for point in given):
        raise DataError(f"{what}: damaged, its controlPoints are no list; {_AGAIN}")
    found = []
    for number, point in enumerate(given, 1):
        status = point.get("positionStatus", "defined")
        if status not in _STATUSES:
            raise DataError(f"{what}: point {number} has the positionStatus {str(status)[:40]!r}; {_AGAIN}")
        position = None
        if status == "defined":
            position = _numbers(point.get("position"), 3, f"{what}: position of point {number}") * to_ras
        label = str(point.get("label") or "") or f"{name or 'point'}-{number}"
        found.append(Point(label, position, str(point.get("description") or "")))
    return found


def _box(node: dict[str, Any], name: str, to_ras: NDArray[np.float64], what: str) -> Box:
    signs = np.sign(to_ras)
    centre = _numbers(node.get("center"), 3, f"{what}: center") * to_ras
    edges = _numbers(node.get("size"), 3, f"{what}: size") * np.abs(to_ras)
    turn = _numbers(node.get("orientation"), 9, f"{what}: orientation").reshape(3, 3)
    if np.abs(turn.T @ turn - np.eye(3)).max() > _ROTATION:
        raise DataError(f"{what}: its orientation is no rotation; {_AGAIN}")
    if edges.min() <= 0:
        raise DataError(f"{what}: a box without volume, of {edges.tolist()} mm; draw it again")
    axes = signs[:, None] * turn * (edges / 2)
    if np.linalg.det(axes) < 0:
        # A box stays the same with an axis turned round, and the frame becomes right-handed.
        axes[:, 0] *= -1
    return Box(name, centre, axes)


def _numbers(values: object, count: int, what: str) -> NDArray[np.float64]:
    numbers = isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )
    try:
        found = np.array(values, dtype=np.float64) if numbers else np.zeros(0)
    except OverflowError:
        # An integer of hundreds of digits.
        found = np.full(count, np.inf)
    if len(found) != count or not np.isfinite(found).all():
        raise DataError(f"{what} must be {count} finite numbers; {_AGAIN}")
    return found


# -- writing -------------------------------------------------------------------------------------------------------


def write(path: Path, markups: Markups) -> list[str]:
    """Write ``markups``: one list of points, one curve for each line, and one ROI for each box."""
    nodes, notes = [], []
    if markups.points:
        controls = [_control(i, p.name, p.position, p.note) for i, p in enumerate(markups.points, 1)]
        nodes.append(_node("Fiducial", path.name.partition(".")[0] or "points", controls))
    for line in markups.lines:
        controls = [_control(i, f"{line.name}-{i}", at) for i, at in enumerate(line.points, 1)]
        nodes.append(_node("ClosedCurve" if line.closed else "Curve", line.name, controls))
    for box in markups.boxes:
        upright, shear = box.upright()
        if shear > _SHEAR:
            moved = float(np.linalg.norm(upright.corners() - box.corners(), axis=1).max())
            notes.append(
                f"box {box.name!r}: its edges are {shear:.2g} degrees off right angles, which an ROI of 3D Slicer "
                f"cannot say; written with right angles, which moves its corners by up to {moved:.2f} mm"
            )
        turn = upright.axes / np.linalg.norm(upright.axes, axis=0)
        nodes.append(
            _node("ROI", box.name, [_control(1, box.name, box.centre)])
            | {
                "roiType": "Box",
                "center": (box.centre * LPS_SIGNS).tolist(),
                "orientation": (LPS_SIGNS[:, None] * turn).ravel().tolist(),
                "size": upright.edges.tolist(),
                "insideOut": False,
            }
        )
    write_text(path, json.dumps({"@schema": SCHEMA, "markups": nodes}, indent=1, allow_nan=False) + "\n")
    return notes


def _node(kind: str, name: str, controls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": kind,
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(controls),
        "controlPoints": list(controls),
        "measurements": [],
    }


def _control(number: int, label: str, position: NDArray[np.float64] | None, note: str = "") -> dict[str, Any]:
    where = {} if position is None else {"position": (position * LPS_SIGNS).tolist()}
    return {
        "id": str(number),
        "label": label,
        "description": note,
        "associatedNodeID": "",
        **where,
        # As 3D Slicer writes a point that has no direction of its own: the axes of RAS, in LPS.
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": True,
        "locked": False,
        "visibility": True,
        "positionStatus": "undefined" if position is None else "defined",
    }
