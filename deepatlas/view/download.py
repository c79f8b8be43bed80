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
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import write_markups
from deepatlas.localize.found import Found, FoundBox
from deepatlas.localize.found_files import write_found
from deepatlas.localize.points import Located
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import NOT_CALIBRATED, POOR, ExamTrust
from deepatlas.localize.trust.points import with_errors
from deepatlas.localize.trust.table import NAME as TRUST
from deepatlas.localize.trust.table import TrustTable
from deepatlas.space.labels import Labels
from deepatlas.space.markup import Markups
from deepatlas.space.preprocess import labels_to_grid
from deepatlas.view.carry import carry_marks, labels_of, painted_ids, template_from
from deepatlas.view.heard import heard
from deepatlas.view.marks import Mark
from deepatlas.view.session import ATLAS, Session


def points(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """All points and boxes in the exams that the request names, as ``deepatlas locate --trust`` writes them."""
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
    drawn = [mark.box for mark in marks if mark.exam == identity]
    # A box is written as it was drawn in its own exam, and elsewhere without the shear of the affine map.
    boxes = tuple(b if any(b is own for own in drawn) else b.upright()[0] for b in found.boxes)
    path = folder / f"{_file_name(session.name_of(identity))}.mrk.json"
    write_markups(path, Markups(found.points, (), boxes))
    return path


def masks(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """The structures of the template in one exam on its own grid, as ``deepatlas segment`` writes them."""
    identity = _an_exam(session, data)
    return _image(
        folder / f"{_file_name(session.name_of(identity))}.nii.gz", session.structures(identity).labels()
    )


def trust(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """What to believe of the structures in one exam, as ``deepatlas segment --trust`` writes it."""
    identity = _an_exam(session, data)
    believed = session.believed(identity)
    if believed is None:
        raise DataError(f"no trust can be told: {NOT_CALIBRATED}")
    with TrustTable(folder) as table:
        table.add(session.name_of(identity), believed.structures)
    return folder / TRUST


def names(session: Session, data: dict[str, Any], folder: Path) -> Path:
    """``labels.json``: the ids of the structures of the template, or, with ``"painted": true``, of what was painted."""
    if data.get("painted"):
        labels = painted_ids(_of_kinds(session, "mask"))
    else:
        labels = session.a_template().labels
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
    "trust": trust,
    "names": names,
    "painted": painted,
    "template": template,
}
# Files of one exam that cannot say whether the model knows it.
_SILENT = ("masks", "markups")


def download(session: Session, data: dict[str, Any]) -> tuple[str, bytes, str]:
    """A file with results: ``{"what": …, "exam": id, "to": [id …]}``.

    Returns its name, its bytes, and what the file has no place for: what was odd while it was made, that the model does
    not know the exam, or that masks are probably poor; mostly the empty string.

    Raises :class:`~deepatlas.errors.DataError` where there is nothing to be written, or an exam is not known.
    """
    what = data.get("what")
    if what not in WRITERS:
        raise DataError(f"there is no such download; there are {', '.join(WRITERS)}")
    with tempfile.TemporaryDirectory(prefix="deepatlas-view-") as folder:
        with heard() as lines:
            path = WRITERS[what](session, data, Path(folder))
        lines += _notes(session, data) if what in _SILENT else []
        return path.name, path.read_bytes(), "; ".join(lines)


def _notes(session: Session, data: dict[str, Any]) -> list[str]:
    identity = _an_exam(session, data)
    unknown = session.mapped(identity).known.fit.warning(session.name_of(identity))
    if unknown or data["what"] != "masks":
        return [unknown] if unknown else []
    lines, believed = list(session.structures(identity).notes), session.believed(identity)
    structures = {} if believed is None else believed.structures
    poor = [
        f"{name} ({trust.value:.2f})"
        for name, trust in structures.items()
        if trust.value is not None and trust.value < POOR
    ]
    if poor:
        lines.append(f"look at {', '.join(poor)} before use: the predicted Dice is low")
    return lines


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
    """All points and boxes in one exam, in the order of their exams; those of its own are where they were marked.

    Points have their expected errors, where the template is calibrated.
    """
    target, believed = session.mapped(identity).known, session.believed(identity)
    parts = []
    for source in dict.fromkeys(mark.exam for mark in marks):
        own = [mark for mark in marks if mark.exam == source]
        found = carry_marks(own, session.mapped(source).known, target)
        count = len(found.names)
        at = np.array([mark.at for mark in own if mark.at is not None]).reshape(count, 3)
        if source == identity:
            there = Located(at, np.zeros(count), np.ones(count, dtype=bool), [""] * count, target.fit)
            found = replace(found, points=there, boxes=_as_drawn(found.boxes, own))
        if believed is not None:
            found = replace(found, points=_with_errors(session, found.points, believed, source, identity, at))
        parts.append(found)
    errors = [part.points.error_mm for part in parts], [part.points.bound_mm for part in parts]
    error, bound = (np.concatenate(each) if believed is not None else None for each in errors)  # type: ignore[arg-type]
    located = Located(
        np.concatenate([part.points.points for part in parts]),
        np.concatenate([part.points.inversion_mm for part in parts]),
        np.concatenate([part.points.found for part in parts]),
        [reason for part in parts for reason in part.points.reason],
        target.fit,
        error,
        bound,
    )
    names = tuple(name for part in parts for name in part.names)
    boxes = tuple(box for part in parts for box in part.boxes)
    return Found(session.name_of(identity), names, located, (), boxes, target.fit)


def _as_drawn(boxes: Sequence[FoundBox], own: Sequence[Mark]) -> tuple[FoundBox, ...]:
    """The boxes of an exam in itself: to the last digit where they were drawn, whatever the coordinates say."""
    drawn = [mark.box for mark in own if mark.box is not None]
    return tuple(
        replace(found, box_mm=box, shear_degrees=0.0, residual_mm=0.0, reason="")
        for found, box in zip(boxes, drawn, strict=True)
    )


def _with_errors(
    session: Session,
    located: Located,
    believed: ExamTrust,
    source: str,
    target: str,
    at: NDArray[np.float64],
) -> Located:
    """Points of one exam in another with the errors that are to be expected; in their own exam they have none."""
    if source == target:
        nothing = np.zeros(len(at))
        return replace(located, error_mm=nothing, bound_mm=nothing)
    return with_errors(located, believed, session.believed(source), at)


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
