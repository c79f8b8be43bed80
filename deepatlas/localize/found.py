"""Points, lines and boxes that are found in an exam: from another exam, or from a template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.localize.points import Located, Wanted, coordinates_of, look_for
from deepatlas.localize.segment import Segmentation, segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam
from deepatlas.model.project_box import box_in_atlas, carry_box
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups, Point, Polyline
from deepatlas.space.volume import Volume

# The share of a box that must lie inside a scan for the box to count as found there.
LEAST_COVERAGE = 0.5


@dataclass(frozen=True, eq=False)
class FoundLine:
    """A line in an exam.

    Attributes:
        name: what it is called.
        points: ``[N, 3]``, RAS millimetres; the best guess where a point was not found, and nan where there is none.
        inside: ``[N]``, which of them were found.
        closed: whether the last point leads back to the first.
        reason: why some were not found; empty where all were.
    """

    name: str
    points: NDArray[np.float64]
    inside: NDArray[np.bool_]
    closed: bool
    reason: str

    @property
    def found(self) -> bool:
        """Whether at least two of its points were found."""
        return int(self.inside.sum()) >= 2


@dataclass(frozen=True, eq=False)
class FoundBox:
    """A box in an exam.

    Attributes:
        name: what it is called.
        box_mm: the box in RAS millimetres, with the shear of the affine map; None where the exam shows nothing of it.
        coverage: the share of it that lies inside the scan.
        shear_degrees: the shear that ``box_mm.upright()`` takes away; files of 3D Slicer hold it without.
        residual_mm: the median distance between where the affine map and where the coordinates put a place of the box;
            nan where there is no box.
        reason: why it was not found; empty where it was.
    """

    name: str
    box_mm: Box | None
    coverage: float
    shear_degrees: float
    residual_mm: float
    reason: str

    @property
    def found(self) -> bool:
        """Whether at least half of it lies in the scan, and the model knows the exam."""
        return not self.reason


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """What was found in one exam.

    Attributes:
        exam: its name.
        names: the names of the points.
        points: where the points are, and which were found.
        lines: the lines.
        boxes: the boxes.
        fit: how well the model knows the exam.
        labels: the structures of the template on the exam's own grid; None where no masks were looked for.
        ids: ``{name: id}`` of these structures.
    """

    exam: str
    names: tuple[str, ...]
    points: Located
    lines: tuple[FoundLine, ...]
    boxes: tuple[FoundBox, ...]
    fit: Fit
    labels: Segmentation | None = None
    ids: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Found({self.found} of {self.count} in {self.exam!r}, {self.fit!r})"

    @property
    def count(self) -> int:
        """How many points, lines and boxes were looked for."""
        return len(self.names) + len(self.lines) + len(self.boxes)

    @property
    def found(self) -> int:
        """How many of them were found."""
        marks = [line.found for line in self.lines] + [box.found for box in self.boxes]
        return int(self.points.found.sum()) + sum(marks)

    def markups(self) -> Markups:
        """What was found, in RAS millimetres, for files: a point that was not has no position and the reason as note.

        A point that was found has its expected error as note, where that was asked for.

        A line consists of those of its points that were found; lines and boxes that were not found are left out.
        """
        located = self.points
        rows = zip(self.names, located.points, located.found, located.reason, strict=True)
        errors = self.trust()
        notes = [""] * len(self.names)
        for i, told in enumerate(errors):
            if told["trust"] is not None:
                notes[i] = f"expected error {told['trust']:.1f} mm, below {told['bound']:.1f} mm in 9 of 10"
        return Markups(
            tuple(
                Point(name, place if found else None, reason or note)
                for (name, place, found, reason), note in zip(rows, notes, strict=True)
            ),
            tuple(Polyline(x.name, x.points[x.inside], x.closed) for x in self.lines if x.found),
            tuple(b.box_mm for b in self.boxes if b.found and b.box_mm is not None),
        )

    def trust(self) -> list[dict[str, Any]]:
        """The entries ``"trust"`` and ``"bound"`` in mm of every point; empty where they were not asked for."""
        error, bound = self.points.error_mm, self.points.bound_mm
        if error is None or bound is None:
            return []
        return [{"trust": _number(e), "bound": _number(b)} for e, b in zip(error, bound, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite is null."""
        located = self.points
        rows = zip(
            self.names, located.points, located.inversion_mm, located.found, located.reason, strict=True
        )
        trust = self.trust()
        return {
            "points": [
                {
                    "name": name,
                    "position": _numbers(place),
                    "inversion_mm": _number(rest),
                    "found": bool(found),
                    "reason": reason,
                    **(trust[i] if trust else {}),
                }
                for i, (name, place, rest, found, reason) in enumerate(rows)
            ],
            "lines": [
                {
                    "name": x.name,
                    "points": [_numbers(p) for p in x.points],
                    "inside": x.inside.tolist(),
                    "closed": x.closed,
                    "found": x.found,
                    "reason": x.reason,
                }
                for x in self.lines
            ],
            "boxes": [
                {
                    "name": b.name,
                    "centre": None if b.box_mm is None else b.box_mm.centre.tolist(),
                    "half_axes": None if b.box_mm is None else b.box_mm.axes.T.tolist(),
                    "coverage": round(b.coverage, 4),
                    "shear_degrees": _number(b.shear_degrees),
                    "residual_mm": _number(b.residual_mm),
                    "found": b.found,
                    "reason": b.reason,
                }
                for b in self.boxes
            ],
            **self.fit.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Sought:
    """What is looked for, in coordinates: from :func:`from_template` or :func:`from_exam`.

    Attributes:
        points: their names, and the coordinates of all of them together with those of the lines behind them.
        lines: for each its name, the number of its points, and whether it is closed.
        boxes: boxes of the atlas, or the reason why there is none.
    """

    names: tuple[str, ...]
    wanted: Wanted
    lines: tuple[tuple[str, int, bool], ...]
    boxes: tuple[tuple[str, Box | str], ...]


def from_template(template: Template) -> Sought:
    """The points, lines and boxes of a template."""
    marks = template.marks
    places = [p.position[None] for p in marks.points if p.position is not None]
    coords = np.concatenate([np.zeros((0, 3)), *places, *(line.points for line in marks.lines)])
    return Sought(
        tuple(p.name for p in marks.points),
        Wanted(coords, [""] * len(coords)),
        tuple((line.name, len(line.points), line.closed) for line in marks.lines),
        tuple((box.name, box) for box in marks.boxes),
    )


def from_exam(source: KnownExam, marks: Markups) -> Sought:
    """Points, lines and boxes of an exam, in RAS millimetres. What lies outside it cannot be found anywhere."""
    absent = np.full((1, 3), math.nan)
    places = [absent if p.position is None else p.position[None] for p in marks.points]
    points = np.concatenate([np.zeros((0, 3)), *places, *(line.points for line in marks.lines)])
    given = np.isfinite(points).all(axis=1)
    coords, missing = np.full(points.shape, math.nan), ["has no position in the source exam"] * len(points)
    own = coordinates_of(source, points[given])
    coords[given] = own.coords
    for place, why in zip(np.flatnonzero(given), own.missing, strict=True):
        missing[place] = why
    boxes: list[tuple[str, Box | str]] = []
    for box in marks.boxes:
        if source.fit.known is False:
            boxes.append((box.name, "the model does not know the source exam"))
            continue
        try:
            boxes.append((box.name, box_in_atlas(source.field, box, source.grid, source.body)))
        except DataError as error:
            boxes.append((box.name, str(error)))
    return Sought(
        tuple(p.name for p in marks.points),
        Wanted(coords, missing),
        tuple((line.name, len(line.points), line.closed) for line in marks.lines),
        tuple(boxes),
    )


def find(target: KnownExam, sought: Sought) -> Found:
    """Find points, lines and boxes in an exam."""
    located = look_for(target, sought.wanted)
    start = len(sought.names)
    lines = []
    for name, count, closed in sought.lines:
        part = slice(start, start + count)
        inside, reasons = located.found[part], [why for why in located.reason[part] if why]
        reason = f"{len(reasons)} of {count} points: {reasons[0]}" if reasons else ""
        lines.append(FoundLine(name, located.points[part], inside, closed, reason))
        start += count
    own = slice(0, len(sought.names))
    points = Located(
        located.points[own], located.inversion_mm[own], located.found[own], located.reason[own], target.fit
    )
    boxes = tuple(_box(target, name, box) for name, box in sought.boxes)
    return Found(target.name, sought.names, points, tuple(lines), boxes, target.fit)


def _box(target: KnownExam, name: str, box: Box | str) -> FoundBox:
    if isinstance(box, str):
        return FoundBox(name, None, 0.0, math.nan, math.nan, box)
    carried = carry_box(target.field, box, target.grid, target.body)
    unknown = "the model does not know the target exam" if target.fit.known is False else ""
    if carried is None:
        return FoundBox(
            name, None, 0.0, math.nan, math.nan, unknown or "no place of the target exam lies in it"
        )
    outside = (
        ""
        if carried.coverage >= LEAST_COVERAGE
        else f"{100 * carried.coverage:.0f} % of it lie inside the target exam"
    )
    return FoundBox(
        name, carried.box_mm, carried.coverage, carried.shear_degrees, carried.residual_mm, unknown or outside
    )


def carry_template(
    target: KnownExam,
    template: Template,
    threshold: float | None = None,
    look: Callable[[], Volume] | None = None,
) -> Found:
    """Find everything that a template holds in an exam: its masks (section 5.2.7), points, lines and boxes.

    Args:
        target: the exam.
        template: what to find.
        threshold: as for :func:`~deepatlas.localize.segment.segment`.
        look: gives the exam with values as the network takes them, where ``target`` has no image and the template knows
            what its structures look like. None leaves it to the masks.
    """
    found = find(target, from_template(template))
    if not template.names:
        return found
    image = target.image
    if image is None and look is not None and template.appearance is not None:
        image = look()
    labels = segment_coordinates(target.field, target.grid, template, threshold, target.body, image)
    drawn = Segmentation(
        labels.array, target.grid, target.name, labels.hidden, target.fit, names=template.labels
    )
    return Found(
        found.exam, found.names, found.points, found.lines, found.boxes, found.fit, drawn, template.labels
    )


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _numbers(values: NDArray[np.float64]) -> list[float] | None:
    return [round(float(v), 6) for v in values] if np.isfinite(values).all() else None
