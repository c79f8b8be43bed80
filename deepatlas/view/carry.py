"""Marks of one exam in another: points, boxes and masks, carried through the coordinates that both share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deepatlas.errors import DataError
from deepatlas.localize.points import Located, locate
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.fit_affine import fit_affine
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume
from deepatlas.view.marks import Mark, box_to_dict, mask_to_dict
from deepatlas.view.shown import Mapped

# A box is carried by the places of this many points along each of its edges.
BOX_POINTS = 6
# The least share of them that must be found.
LEAST_FOUND = 0.2
# The voxels along each axis of the template that carries a painted mask.
TEMPLATE_SIZE = 128


@dataclass(frozen=True)
class _Known:
    """The model of the page for functions that pass an exam through a network: here that has been done."""

    maps: dict[str, ExamMap]

    def map_exam(self, volume: Volume) -> ExamMap:
        return self.maps[volume.name]


def carry_points(points: ArrayLike, source: Mapped, target: Mapped) -> Located:
    """Points ``[N, 3]`` of one exam in another (see :func:`~deepatlas.localize.points.locate`)."""
    known: Any = _Known({target.stub.name: target.map})
    return locate(known, points, source.stub, target.stub, origin=source.map)


def carry_point(mark: Mark, source: Mapped, target: Mapped) -> dict[str, Any]:
    """A point as JSON values: where it is, or why it was not found."""
    found = carry_points([mark.at], source, target)
    place = found.points[0]
    return {
        "found": bool(found.found[0]),
        "reason": found.reason[0],
        "at": place.tolist() if np.isfinite(place).all() else None,
    }


def carry_box(mark: Mark, source: Mapped, target: Mapped) -> dict[str, Any]:
    """A box as JSON values: where it is, the share of it that was found, and the shear that was taken away.

    The box is moved by the affine map that fits the places of a lattice of its points best, and made right-angled.
    """
    assert mark.box is not None
    steps = np.linspace(-1, 1, BOX_POINTS)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    places = mark.box.place(lattice)
    found = carry_points(places, source, target)
    share = float(found.found.mean())
    about: dict[str, Any] = {"found": False, "share": share}
    if share < LEAST_FOUND:
        reasons = [reason for reason in found.reason if reason]
        return about | {"reason": max(set(reasons), key=reasons.count)}
    try:
        matrix = fit_affine(places[found.found], found.points[found.found])
        box, shear = mark.box.moved(matrix).upright()
    except DataError as error:
        return about | {"reason": str(error)}
    return {"found": True, "reason": "", "share": share, "shear": shear, **box_to_dict(box)}


def labels_of(marks: list[Mark], ids: dict[str, int], grid: Grid, name: str) -> Labels:
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
    return Labels.painted(masks, grid, np.uint16, name)


def template_of(
    marks: list[Mark], exams: dict[str, Mapped], model: Engine, names: dict[str, str]
) -> Template:
    """The template of painted masks (eq. 14); masks of one name in several exams are examples of one structure.

    Args:
        marks: painted masks, at least one.
        exams: the exams that they are in, by their ids.
        model: the model of the page.
        names: ``{id: name}`` of the exams.

    Raises:
        DataError: a mask does not fit into its picture, or no voxel of it has a coordinate.
    """
    ids = {name: i for i, name in enumerate(dict.fromkeys(mark.name for mark in marks), 1)}
    items = []
    for identity in dict.fromkeys(mark.exam for mark in marks):
        own = [mark for mark in marks if mark.exam == identity]
        it = exams[identity]
        labels = labels_of(own, ids, it.shown, names[identity])
        items.append(LabelledExam(it.map.field.cpu(), labels, frozenset(mark.name for mark in own)))
    meta = {
        "model": model.fingerprint,
        "intensity": model.intensity,
        "refine": model.refine,
        "average": model.average,
        "exams": [item.labels.name for item in items],
    }
    return estimate_template(items, ids, TEMPLATE_SIZE, meta=meta)


def carry_mask(template: Template, target: Mapped) -> dict[str, Any]:
    """The one mask of a template on the picture of an exam, as JSON values."""
    labels = segment_coordinates(target.map.field, target.shown, template, body=target.map.body)
    mask = BoxMask.of(labels.array > 0)
    if not mask.packed.size:
        return {"found": False, "reason": "no voxel of this exam has its coordinates"}
    millilitres = mask.count() * target.shown.voxel_volume / 1000
    return {"found": True, "reason": "", "mask": mask_to_dict(mask), "millilitres": millilitres}
