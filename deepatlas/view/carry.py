"""Marks of one exam in another: points, boxes and masks, carried through the coordinates that both share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepatlas.errors import DataError
from deepatlas.localize.found import Found, find, from_exam
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.examples import Example, template_of
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.known import KnownExam
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.markup import Markups, Point
from deepatlas.view.marks import Mark, box_to_dict, mask_to_dict
from deepatlas.view.shown import Mapped


def markups_of(marks: Sequence[Mark]) -> Markups:
    """The points and boxes among the marks of one exam."""
    points = [Point(mark.name, np.array(mark.at)) for mark in marks if mark.at is not None]
    return Markups(tuple(points), (), tuple(mark.box for mark in marks if mark.box is not None))


def carry_marks(marks: Sequence[Mark], source: KnownExam, target: KnownExam) -> Found:
    """Points and boxes of one exam in another, as ``deepatlas propagate`` finds them."""
    return find(target, from_exam(source, markups_of(marks)))


def place_of(mark: Mark, source: KnownExam, target: KnownExam) -> dict[str, Any]:
    """Where a point or a box is, as JSON values, or why it was not found."""
    found = carry_marks([mark], source, target)
    if mark.box is None:
        place = found.points.points[0]
        at = place.tolist() if np.isfinite(place).all() else None
        return {"found": bool(found.points.found[0]), "reason": found.points.reason[0], "at": at}
    box = found.boxes[0]
    about = {"found": box.found, "reason": box.reason, "share": box.coverage}
    # Without the shear, as files of 3D Slicer hold it.
    return about if box.box_mm is None else {**about, **box_to_dict(box.box_mm.upright()[0])}


def labels_of(marks: Sequence[Mark], ids: Mapping[str, int], grid: Grid, exam: str) -> Labels:
    """The painted masks of one exam on the grid of its picture; of several with one name, their union.

    Raises :class:`~deepatlas.errors.DataError` if a mask does not fit into the picture.
    """
    drawn: dict[str, list[BoxMask]] = {}
    for mark in marks:
        assert mark.mask is not None
        if any(s + n > m for s, n, m in zip(mark.mask.start, mark.mask.shape, grid.shape, strict=True)):
            raise DataError(f"mask {mark.name}: does not fit into the picture of its exam; paint it again")
        drawn.setdefault(mark.name, []).append(mark.mask)
    masks = [(ids[name], BoxMask.union(parts)) for name, parts in drawn.items()]
    return Labels.painted(masks, grid, np.uint16, exam)


def painted_ids(marks: Sequence[Mark]) -> dict[str, int]:
    """The ids of the painted masks in label images: ``{name: id}``."""
    return {name: i for i, name in enumerate(dict.fromkeys(m.name for m in marks if m.mask), 1)}


def template_from(
    marks: Sequence[Mark], exams: Mapping[str, Mapped], model: Engine, names: Mapping[str, str]
) -> Template:
    """The template of what was marked; marks of one name in several exams are examples of one structure.

    Args:
        marks: at least one mark.
        exams: the exams that they are in, by their ids.
        model: the model of the page.
        names: ``{id: name}`` of the exams.

    Raises:
        DataError: a mask does not fit into its picture, a point lies outside its exam, or two marks of one exam have
            one name and are of different kinds.
    """
    ids = painted_ids(marks)
    known: dict[str, KnownExam] = {}
    examples = []
    for identity in dict.fromkeys(mark.exam for mark in marks):
        own = [mark for mark in marks if mark.exam == identity]
        painted = [mark for mark in own if mark.mask is not None]
        it, name = exams[identity], names[identity]
        known[name] = it.on_picture
        masks = labels_of(painted, ids, it.shown, name) if painted else None
        examples.append(Example(name, masks, markups_of(own), name))
    # What is painted with a brush is carried as it was painted, whatever it looks like.
    return template_of(model, examples, ids, appearance=False, know=lambda example: known[example.name])


def carry_mask(template: Template, target: Mapped) -> dict[str, Any]:
    """The one mask of a template on the picture of an exam, as JSON values."""
    known = target.known
    labels = segment_coordinates(known.field, target.shown, template, body=known.body)
    mask = BoxMask.of(labels.array > 0)
    if not mask.packed.size:
        return {"found": False, "reason": "no voxel of this exam has its coordinates"}
    millilitres = mask.count() * target.shown.voxel_volume / 1000
    return {"found": True, "reason": "", "mask": mask_to_dict(mask), "millilitres": millilitres}
