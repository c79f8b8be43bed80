"""A template from examples: exams with masks, points, lines and boxes, drawn in one exam or in several (eq. 14)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.kind import exam_name
from deepatlas.io.export.markups import read_markups
from deepatlas.localize.average import mean_box, mean_line, robust_mean
from deepatlas.localize.points import near
from deepatlas.localize.template.appearance import Counts
from deepatlas.localize.template.drawn import names_of, read_drawn, renumbered
from deepatlas.localize.template.edit import Around, check_names, distinct_ids, with_boxes
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import SIZE, Template
from deepatlas.localize.template.marks import check_marks, joined_marks, marks_to_json
from deepatlas.localize.template.soften import seen, with_appearance
from deepatlas.model.cascade import answering
from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.model.known import KnownExam, known_exam
from deepatlas.model.project_box import box_in_atlas, mm_per_unit
from deepatlas.space.box import Box
from deepatlas.space.labels import Labels
from deepatlas.space.markup import Markups, Point, Polyline

# A file of points, lines and boxes, or these themselves, or several of both.
Marks = str | os.PathLike[str] | Markups


@dataclass(frozen=True, eq=False)
class Example:
    """One exam in which something was drawn.

    Attributes:
        exam: a path, a volume, or an image of another library.
        masks: a label image on the grid of the exam: a file, a folder of masks, or an image of another library; or a
            DICOM-SEG or RTSTRUCT of its series.
        marks: points, lines and boxes in RAS millimetres of the exam: a file (see
            :func:`~deepatlas.io.export.markups.read_markups`), :class:`~deepatlas.space.markup.Markups`, or several.
        name: what messages call the exam; by default as its file.
    """

    exam: Exam
    masks: Exam | None = None
    marks: Marks | Sequence[Marks] | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class _Read:
    """An example whose exam has passed the network."""

    known: KnownExam
    seg: Labels | None
    labels: dict[str, int]
    marks: Markups
    # The names of points that have no position in this exam.
    unplaced: tuple[str, ...]


# The solver needs gradients, which inference mode does not allow.
@torch.inference_mode(False)
def template_of(
    model: Engine,
    examples: Example | Sequence[Example],
    labels: Mapping[str, int] | None = None,
    *,
    boxes: Sequence[Around] = (),
    appearance: bool = True,
    size: int | None = None,
    know: Callable[[Example], KnownExam] | None = None,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
    **solver: Any,
) -> Template:
    """What was drawn in one or more exams, in the coordinates of the atlas.

    Masks are solved for by eq. 14. A point, a line or a box that several exams have under one name is averaged, in such
    a way that an exam that lies far from the others counts less; a box goes to the atlas by the robust affine map over
    all of its places (section 5.2.4).

    Args:
        model: a trained model.
        examples: the exams and what was drawn in them.
        labels: ``{name: id}`` of the masks; None finds the names beside each of them (see
            :func:`~deepatlas.localize.template.drawn.read_drawn`).
        boxes: boxes to be put around the structures, in the directions of the atlas.
        appearance: also learn what the structures look like; see
            :func:`~deepatlas.localize.template.build.build_template`.
        size: voxels of the masks along each axis; None takes 128, or the size of the atlas if that is larger.
        know: gives the coordinates of an example's exam; None passes it through the network.
        strict: stop at an exam that the model does not know.
        progress: receives one line of text for each exam and each structure.
        **solver: as for :func:`~deepatlas.localize.template.estimate.estimate_template`.

    Returns:
        The template, with the names and ids of the masks.

    Warns:
        DataWarning: a point lies outside the body or has a position in no exam, a mask does not explain its labels, or
            an example is given twice, which counts once.

    Raises:
        DataError: an exam or a file cannot be read, masks are on another grid or empty, a point or a box lies outside
            its exam, two things of one exam have one name, or nothing was drawn.
    """
    given = _once([examples] if isinstance(examples, Example) else examples)
    tables = [names_of(e.masks, labels) for e in given if e.masks is not None] if boxes else []
    if tables and None not in tables:
        # Before the work, as far as it is known.
        check_names(boxes, dict.fromkeys(name for table in tables for name in table or ()))
    read: list[_Read] = []
    counts = Counts(model.intensity, model.size)
    for count, example in enumerate(given, 1):
        item = _read(model, example, labels, know, strict)
        known = item.known
        if appearance and item.seg is not None:
            image = seen(read_exam(example.exam), model.intensity) if known.image is None else known.image
            counts.add(image, item.seg, item.labels, mm_per_unit(known.field, known.body))
        # Images are too large to be kept for many exams.
        read.append(replace(item, known=replace(known, image=None)))
        if progress is not None:
            progress(f"coordinates {count}/{len(given)} {read[-1].known.name}")
    read = _told_apart(read)
    if not any(item.seg or len(item.marks) for item in read):
        raise DataError("template: nothing was drawn in these exams; give masks, points or boxes")
    _warn_of_unplaced(read)
    check_names(boxes, dict.fromkeys(name for item in read for name in item.labels))
    scale = np.median([mm_per_unit(item.known.field, item.known.body) for item in read], axis=0)
    marks, spread = _averaged(read, scale)
    meta: dict[str, Any] = {
        "model": model.fingerprint,
        "intensity": model.intensity,
        "refine": model.refine,
        "average": model.average,
        "regions": answering(model.regions, model.depth),
        "exams": [item.known.name for item in read],
        "skipped": {},
        "unlabelled": [item.known.name for item in read if item.seg is None],
        "fit": {item.known.name: item.known.fit.to_dict() for item in read},
        "mm_per_unit": [round(float(s), 3) for s in scale],
    }
    if spread:
        meta["marks"] = spread
    side = size or max(SIZE, model.atlas.shape[-1])
    if any(item.seg for item in read):
        items, table = _labelled(read)
        made = estimate_template(items, table, side, meta=meta, progress=progress, **solver)
        made = with_appearance(made, counts) if appearance else made
        made = replace(made, marks=marks)
    else:
        made = Template(np.zeros((0, side, side, side), np.float32), (), (), meta, marks)
    return with_boxes(made, boxes) if boxes else made


def _once(examples: Sequence[Example]) -> list[Example]:
    """The examples without those that are there already: an exam that counts twice would make masks too sharp."""
    found: dict[Any, Example] = {}
    for example in examples:
        marks = example.marks if isinstance(example.marks, list | tuple) else [example.marks]
        key = (_source(example.exam), _source(example.masks), *map(_source, marks))
        if key in found:
            warnings.warn(
                f"{example.name or example.exam}: is given twice with the same masks, points and boxes; it counts once",
                DataWarning,
                stacklevel=3,
            )
        found.setdefault(key, example)
    return list(found.values())


def _source(given: Any) -> Any:
    """What is equal for two things that come from one file, or are one object."""
    if isinstance(given, Markups):
        # Places that are not finite are refused later, by name.
        with suppress(ValueError):
            return marks_to_json(given)
    return Path(given).resolve() if isinstance(given, str | os.PathLike) else id(given)


def _told_apart(read: list[_Read]) -> list[_Read]:
    """Exams of one name, as from two folders, with names of their own, by which what is known of them is kept."""
    taken, found = {item.known.name for item in read}, list[_Read]()
    seen_before: set[str] = set()
    for item in read:
        name, number = item.known.name, 2
        if name in seen_before:
            while f"{name} ({number})" in taken:
                number += 1
            name = f"{name} ({number})"
            item = replace(item, known=replace(item.known, name=name))
        taken.add(name)
        seen_before.add(name)
        found.append(item)
    return found


def _read(
    model: Engine,
    example: Example,
    labels: Mapping[str, int] | None,
    know: Callable[[Example], KnownExam] | None,
    strict: bool,
) -> _Read:
    known = know(example) if know else known_exam(model, example.exam, keep_image=True)
    path = example.exam if isinstance(example.exam, str | os.PathLike) else None
    name = example.name or (exam_name(Path(path).absolute()) if path is not None else known.name) or "exam"
    known = replace(known, name=name)
    known.fit.warning(name, strict)
    seg, table = None, dict[str, int]()
    if example.masks is not None:
        seg, table = read_drawn(example.masks, known.grid, name, labels, source=path)
    if example.marks is None:
        marks = Markups()
    elif isinstance(example.marks, str | os.PathLike | Markups):
        marks = _marks(example.marks)
    else:
        marks = joined_marks(_marks(part) for part in example.marks)
    # What has no position here may have one in another exam.
    placed = tuple(point for point in marks.points if point.position is not None)
    unplaced = tuple(point.name for point in marks.points if point.position is None)
    marks = replace(marks, points=placed)
    check_marks(marks, name)
    return _Read(known, seg, table, marks_in_atlas(known, marks), unplaced)


def _warn_of_unplaced(read: Sequence[_Read]) -> None:
    """Say which points have a position in none of the exams, since nothing can be known of them."""
    placed = {point.name for item in read for point in item.marks.points}
    nowhere = {name: item.known.name for item in read for name in item.unplaced if name not in placed}
    if nowhere:
        names, exams = ", ".join(map(repr, nowhere)), ", ".join(dict.fromkeys(nowhere.values()))
        warnings.warn(
            f"{exams}: left out {names}, which no exam has a position of; place it, or take it out of the file",
            DataWarning,
            stacklevel=3,
        )


def _marks(given: Marks) -> Markups:
    return given if isinstance(given, Markups) else read_markups(given)


def marks_in_atlas(known: KnownExam, marks: Markups) -> Markups:
    """Points, lines and boxes of an exam in coordinates of the atlas.

    Warns:
        DataWarning: a point lies outside the body, where coordinates mean little.

    Raises:
        DataError: a point or a box lies outside the exam, or a point has no position.
    """

    def coords(places: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        shown = known.shows(places)
        if not shown.all():
            far = np.round(places[~shown][0], 1).tolist()
            raise DataError(
                f"{known.name}: {what} lies outside the exam, at {far} mm; move it, take it out of its file, or give "
                "the exam that it belongs to (a CSV holds RAS millimetres; tools that use LPS have the signs of x and "
                "y exchanged)"
            )
        if not near(known.body, known.field.grid, places).all():
            warnings.warn(
                f"{known.name}: {what} lies outside the body, where coordinates mean little",
                DataWarning,
                stacklevel=4,
            )
        return known.field.at(places)

    points = []
    for point in marks.points:
        if point.position is None:
            raise DataError(f"{known.name}: point {point.name!r} has no position; place it or leave it out")
        points.append(Point(point.name, coords(point.position[None], f"point {point.name!r}")[0], point.note))
    lines = [Polyline(x.name, coords(x.points, f"line {x.name!r}"), x.closed) for x in marks.lines]
    try:
        boxes = [box_in_atlas(known.field, box, known.grid, known.body) for box in marks.boxes]
    except DataError as error:
        raise DataError(f"{known.name}: {error}") from error
    return Markups(tuple(points), tuple(lines), tuple(boxes))


def _averaged(read: Sequence[_Read], scale: NDArray[np.float64]) -> tuple[Markups, dict[str, Any]]:
    """Every point, line and box as the mean of the exams that have it, and from how many it is and how they spread."""
    about: dict[str, Any] = {}

    def grouped(kind: str) -> dict[str, list[tuple[str, Any]]]:
        groups: dict[str, list[tuple[str, Any]]] = {}
        for item in read:
            for mark in getattr(item.marks, kind):
                groups.setdefault(mark.name, []).append((item.known.name, mark))
        return groups

    def note(kind: str, name: str, group: list[tuple[str, Any]], spread: float) -> None:
        about.setdefault(kind, {})[name] = {
            "exams": [exam for exam, _ in group],
            "spread_mm": round(spread, 2),
        }

    points: list[Point] = []
    for name, group in grouped("points").items():
        mean, spread = robust_mean(np.stack([point.position[None] for _, point in group]), scale)
        points.append(Point(name, mean[0], group[0][1].note))
        note("points", name, group, spread)
    lines: list[Polyline] = []
    for name, group in grouped("lines").items():
        line, spread = mean_line(name, [line for _, line in group], scale)
        lines.append(line)
        note("lines", name, group, spread)
    boxes: list[Box] = []
    for name, group in grouped("boxes").items():
        box, spread = mean_box(name, [box for _, box in group], scale)
        boxes.append(box)
        note("boxes", name, group, spread)
    return Markups(tuple(points), tuple(lines), tuple(boxes)), about


def _labelled(read: Sequence[_Read]) -> tuple[list[LabelledExam], dict[str, int]]:
    """The labelled exams with one table of ids: a structure has the id of the first exam, if nobody else has it."""
    first: dict[str, int] = {}
    for item in read:
        first = item.labels | first
    # In the order in which the exams name them.
    order = list(dict.fromkeys(name for item in read for name in item.labels))
    table = dict(zip(order, distinct_ids([first[name] for name in order]), strict=True))
    items = []
    for item in read:
        if item.seg is not None:
            seg = renumbered(item.seg, {i: table[n] for n, i in item.labels.items()})
            exam = LabelledExam(
                item.known.field.cpu(), replace(seg, name=item.known.name), frozenset(item.labels)
            )
            items.append(exam)
    return items, table
