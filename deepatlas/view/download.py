"""Files that the page offers: points, boxes, masks and templates. They are handed to the browser, which keeps them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import write_markups
from deepatlas.localize.points import Located
from deepatlas.localize.points_csv import write_located
from deepatlas.localize.segment import segment_coordinates
from deepatlas.space.box import Box
from deepatlas.space.labels import Labels
from deepatlas.space.markup import Markups, Point
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.view.carry import carry_box, carry_points, labels_of, template_of
from deepatlas.view.marks import Mark
from deepatlas.view.session import ATLAS, Session

if TYPE_CHECKING:
    from deepatlas.localize.template.file import Template


def points_csv(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """All points in the exams that the request names, as ``deepatlas locate`` writes them."""
    points = _of_kind(session, "point")
    located = {}
    for identity in session.exams_of(data):
        if identity == ATLAS:
            continue
        parts = [_located(session, mark, identity) for mark in points]
        located[session.name_of(identity)] = Located(
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.inversion_mm for part in parts]),
            np.concatenate([part.found for part in parts]),
            [reason for part in parts for reason in part.reason],
            parts[0].fit,
        )
    if not located:
        raise DataError("open an exam first; points are written in the millimetres of exams")
    path = folder / "points.csv"
    write_located(path, [mark.name for mark in points], located)
    return path


def markups(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """The points and boxes in one exam for 3D Slicer."""
    identity = _an_exam(session, data)
    marks = [mark for mark in session.marks.all() if mark.kind != "mask"]
    if not marks:
        raise DataError("nothing is marked; click a point or draw a box first")
    target = session.mapped(identity)
    points, boxes = [], []
    for mark in marks:
        if mark.kind == "point":
            found = _located(session, mark, identity)
            there = bool(found.found[0])
            points.append(Point(mark.name, found.points[0] if there else None, found.reason[0]))
        elif mark.exam == identity:
            boxes.append(mark.box)
        elif _both_known(session, mark.exam, identity):
            place = carry_box(mark, session.mapped(mark.exam), target)
            if place["found"]:
                boxes.append(Box(mark.name, np.array(place["centre"]), np.array(place["axes"])))
    path = folder / f"{_file_name(session.name_of(identity))}.mrk.json"
    write_markups(path, Markups(tuple(points), (), tuple(box for box in boxes if box is not None)))
    return path


def masks(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """The structures of the template in one exam on its own grid, as ``deepatlas segment`` writes them."""
    if session.template is None:
        raise DataError("no template was given; start with --template T to see structures")
    identity = _an_exam(session, data)
    it = session.mapped(identity)
    labels = segment_coordinates(it.map.field, it.stub.grid, session.template, body=it.map.body)
    return _image(folder / f"{_file_name(session.name_of(identity))}.nii.gz", labels)


def names(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """``labels.json``: the ids of the structures of the template, or, with ``"painted": true``, of what was painted."""
    if data.get("painted"):
        labels = _painted_ids(_of_kind(session, "mask"))
    elif session.template is None:
        raise DataError("no template was given; start with --template T to see structures")
    else:
        labels = session.template.labels
    path = folder / "labels.json"
    path.write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    return path


def painted(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """What was painted, in one exam on its own grid: as it was painted there, or as it is carried over."""
    identity = _an_exam(session, data)
    marks = _of_kind(session, "mask")
    ids = _painted_ids(marks)
    it = session.mapped(identity)
    own = [mark for mark in marks if mark.exam == identity]
    elsewhere = [mark for mark in marks if mark.name not in {m.name for m in own}]
    array = np.zeros(it.stub.grid.shape, dtype=np.uint16)
    if elsewhere:
        unknown = [mark.exam for mark in elsewhere if not _both_known(session, mark.exam, identity)]
        if unknown:
            raise DataError(
                f"the model does not know the exam {session.name_of(unknown[0])} or {session.name_of(identity)}, so "
                "that nothing can be carried between them"
            )
        template = _template(session, elsewhere)
        found = segment_coordinates(it.map.field, it.stub.grid, template, body=it.map.body)
        for name, number in template.labels.items():
            array[found.mask(number)] = ids[name]
    if own:
        drawn = labels_to_grid(labels_of(own, ids, it.shown, session.name_of(identity)), it.stub.grid)
        array = np.where(drawn.array > 0, drawn.array, array)
    path = folder / f"{_file_name(session.name_of(identity))}_painted.nii.gz"
    return _image(path, Labels(array, it.stub.grid))


def template(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """A template of all painted masks, for ``deepatlas segment``."""
    path = folder / "template.h5"
    _template(session, _of_kind(session, "mask")).save(path)
    return path


WRITERS: dict[str, Callable[[Session, dict[str, Any], Path], Path]] = {
    "points": points_csv,
    "markups": markups,
    "masks": masks,
    "names": names,
    "painted": painted,
    "template": template,
}


def download(session: Session, data: dict[str, Any]) -> tuple[str, bytes]:
    """A file with results, its name and its bytes: ``{"what": …, "exam": id, "to": [id …]}``.

    Raises :class:`~deepatlas.errors.DataError` where there is nothing to be written, or an exam is not known.
    """
    what = data.get("what")
    if what not in WRITERS:
        raise DataError(f"there is no such download; there are {', '.join(WRITERS)}")
    with tempfile.TemporaryDirectory(prefix="deepatlas-view-") as folder:
        path = WRITERS[what](session, data, Path(folder))
        return path.name, path.read_bytes()


def _template(session: Session, marks: list[Mark]) -> Template:
    exams = {mark.exam: session.mapped(mark.exam) for mark in marks}
    for identity, it in exams.items():
        if it.map.fit.known is False:
            raise DataError(
                f"the model does not know the exam {session.name_of(identity)}, so that no template can be made of it"
            )
    names = {identity: session.name_of(identity) for identity in exams}
    return template_of(marks, exams, session.model, names)


def _image(path: Path, labels: Labels) -> Path:
    array = labels.array
    if array.dtype.itemsize > 1 and array.max(initial=0) < 256:
        labels = Labels(array.astype(np.uint8), labels.grid)
    return write_volume(path, labels)


def _located(session: Session, mark: Mark, identity: str) -> Located:
    """A point in an exam; in its own exam it is where it was marked."""
    target = session.mapped(identity)
    if mark.exam == identity:
        return Located(np.array([mark.at]), np.zeros(1), np.ones(1, dtype=bool), [""], target.map.fit)
    return carry_points([mark.at], session.mapped(mark.exam), target)


def _both_known(session: Session, *identities: str) -> bool:
    return all(session.mapped(identity).map.fit.known is not False for identity in identities)


def _of_kind(session: Session, kind: str) -> list[Mark]:
    found = [mark for mark in session.marks.all() if mark.kind == kind]
    if not found:
        what = {
            "point": "no point is marked; click one first",
            "mask": "nothing is painted; paint a mask first",
        }
        raise DataError(what[kind])
    return found


def _painted_ids(marks: list[Mark]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(mark.name for mark in marks), 1)}


def _an_exam(session: Session, data: dict[str, Any]) -> str:
    identity = session.exam_of(data)
    if identity == ATLAS:
        raise DataError("choose an exam; files are written in the millimetres of exams")
    return identity


def _file_name(name: str) -> str:
    """The name of an exam as that of a file that every system accepts."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "exam"
