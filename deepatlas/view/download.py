"""Files that the page offers: points, boxes, masks and templates. They are handed to the browser, which keeps them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import write_markups
from deepatlas.localize.found import Found
from deepatlas.localize.found_files import write_found
from deepatlas.localize.points import Located
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import POOR
from deepatlas.space.labels import Labels
from deepatlas.space.markup import Markups
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.view.carry import carry_marks, labels_of, markups_of, painted_ids, template_from
from deepatlas.view.marks import Mark
from deepatlas.view.session import ATLAS, Session

NO_TEMPLATE = "no template was given; start with --template T to see structures"


def points(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """All points and boxes in the exams that the request names, as ``deepatlas propagate`` writes them."""
    marks = _of_kinds(session, "point", "box")
    targets = [identity for identity in session.exams_of(data) if identity != ATLAS]
    if not targets:
        raise DataError("open an exam first; points are written in the millimetres of exams")
    path = folder / "points.csv"
    write_found(path, {session.name_of(i): _everything(session, marks, i) for i in targets})
    return path


def markups(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """The points and boxes in one exam for 3D Slicer."""
    identity = _an_exam(session, data)
    marks = _of_kinds(session, "point", "box")
    found = _everything(session, marks, identity).markups()
    own = [mark for mark in marks if mark.exam == identity]
    boxes = tuple(box.upright()[0] for box in found.boxes if box.name not in {m.name for m in own if m.box})
    path = folder / f"{_file_name(session.name_of(identity))}.mrk.json"
    write_markups(path, Markups(found.points, (), boxes + markups_of(own).boxes))
    return path


def masks(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """The structures of the template in one exam on its own grid, as ``deepatlas segment`` writes them."""
    if session.template is None:
        raise DataError(NO_TEMPLATE)
    identity = _an_exam(session, data)
    known = session.mapped(identity).known
    image = session.image(identity)
    labels = segment_coordinates(known.field, known.grid, session.template, body=known.body, image=image)
    return _image(folder / f"{_file_name(session.name_of(identity))}.nii.gz", labels)


def names(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """``labels.json``: the ids of the structures of the template, or, with ``"painted": true``, of what was painted."""
    if data.get("painted"):
        labels = painted_ids(_of_kinds(session, "mask"))
    elif session.template is None:
        raise DataError(NO_TEMPLATE)
    else:
        labels = session.template.labels
    path = folder / "labels.json"
    path.write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    return path


def painted(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """What was painted, in one exam on its own grid: as it was painted there, or as it is carried over."""
    identity = _an_exam(session, data)
    marks = _of_kinds(session, "mask")
    ids = painted_ids(marks)
    it = session.mapped(identity)
    own = [mark for mark in marks if mark.exam == identity]
    elsewhere = [mark for mark in marks if mark.name not in {m.name for m in own}]
    array = np.zeros(it.known.grid.shape, dtype=np.uint16)
    if elsewhere:
        if it.known.fit.known is False:
            raise DataError(
                f"the model does not know the exam {session.name_of(identity)}, so that nothing can be carried to it"
            )
        template = _template(session, elsewhere)
        found = segment_coordinates(it.known.field, it.known.grid, template, body=it.known.body)
        for name, number in template.labels.items():
            array[found.mask(number)] = ids[name]
    if own:
        drawn = labels_to_grid(labels_of(own, ids, it.shown, session.name_of(identity)), it.known.grid)
        array = np.where(drawn.array > 0, drawn.array, array)
    path = folder / f"{_file_name(session.name_of(identity))}_painted.nii.gz"
    return _image(path, Labels(array, it.known.grid))


def template(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """A template of everything that was marked, for ``deepatlas segment`` and ``deepatlas locate``."""
    path = folder / "template.h5"
    _template(session, _of_kinds(session, "mask", "point", "box")).save(path)
    return path


WRITERS: dict[str, Callable[[Session, dict[str, Any], Path], Path]] = {
    "points": points,
    "markups": markups,
    "masks": masks,
    "names": names,
    "painted": painted,
    "template": template,
}
# Files of one exam that cannot say whether the model knows it.
_SILENT = ("masks", "markups")


def download(session: Session, data: dict[str, Any]) -> tuple[str, bytes, str]:
    """A file with results: ``{"what": …, "exam": id, "to": [id …]}``.

    Returns its name, its bytes, and a line about an exam that the model does not know, or about masks that are probably
    poor, where the file has no place for it; mostly the empty string.

    Raises :class:`~deepatlas.errors.DataError` where there is nothing to be written, or an exam is not known.
    """
    what = data.get("what")
    if what not in WRITERS:
        raise DataError(f"there is no such download; there are {', '.join(WRITERS)}")
    with tempfile.TemporaryDirectory(prefix="deepatlas-view-") as folder:
        path = WRITERS[what](session, data, Path(folder))
        return path.name, path.read_bytes(), _note(session, data) if what in _SILENT else ""


def _note(session: Session, data: dict[str, Any]) -> str:
    identity = _an_exam(session, data)
    unknown = session.mapped(identity).known.fit.warning(session.name_of(identity))
    if unknown or data["what"] != "masks":
        return unknown
    poor = [
        f"{name} ({trust.value:.2f})"
        for name, trust in session.trusted(identity).items()
        if trust.value is not None and trust.value < POOR
    ]
    return f"look at {', '.join(poor)} before use: the predicted Dice is low" if poor else ""


def _template(session: Session, marks: Sequence[Mark]) -> Template:
    exams = {mark.exam: session.mapped(mark.exam) for mark in marks}
    for identity, it in exams.items():
        if it.known.fit.known is False:
            raise DataError(
                f"the model does not know the exam {session.name_of(identity)}, so that no template can be made of it"
            )
    names = {identity: session.name_of(identity) for identity in exams}
    return template_from(marks, exams, session.model, names)


def _everything(session: Session, marks: Sequence[Mark], identity: str) -> Found:
    """All points and boxes in one exam, in the order of their exams; those of its own are where they were marked."""
    target = session.mapped(identity).known
    parts = []
    for source in dict.fromkeys(mark.exam for mark in marks):
        own = [mark for mark in marks if mark.exam == source]
        found = carry_marks(own, session.mapped(source).known, target)
        if source == identity:
            count = len(found.names)
            at = np.array([mark.at for mark in own if mark.at is not None]).reshape(count, 3)
            there = Located(at, np.zeros(count), np.ones(count, dtype=bool), [""] * count, target.fit)
            found = replace(found, points=there)
        parts.append(found)
    located = Located(
        np.concatenate([part.points.points for part in parts]),
        np.concatenate([part.points.inversion_mm for part in parts]),
        np.concatenate([part.points.found for part in parts]),
        [reason for part in parts for reason in part.points.reason],
        target.fit,
    )
    names = tuple(name for part in parts for name in part.names)
    boxes = tuple(box for part in parts for box in part.boxes)
    return Found(session.name_of(identity), names, located, (), boxes, target.fit)


def _image(path: Path, labels: Labels) -> Path:
    array = labels.array
    if array.dtype.itemsize > 1 and array.max(initial=0) < 256:
        labels = Labels(array.astype(np.uint8), labels.grid)
    return write_volume(path, labels)


def _of_kinds(session: Session, *kinds: str) -> list[Mark]:
    found = [mark for mark in session.marks.all() if mark.kind in kinds]
    if not found:
        what = {"point": "click a point", "box": "draw a box", "mask": "paint a mask"}
        raise DataError(
            f"there is nothing of that kind yet; {' or '.join(what[kind] for kind in kinds)} first"
        )
    return found


def _an_exam(session: Session, data: dict[str, Any]) -> str:
    identity = session.exam_of(data)
    if identity == ATLAS:
        raise DataError("choose an exam; files are written in the millimetres of exams")
    return identity


def _file_name(name: str) -> str:
    """The name of an exam as that of a file that every system accepts."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "exam"
