"""What a user marked on the page: points, boxes and painted masks, each in one exam or in the atlas.

The server holds them, so that a closed browser loses nothing and two pages show the same. With a file they outlive the
server as well.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.files import write_text
from deepatlas.space.box import Box
from deepatlas.space.labels import BoxMask
from deepatlas.view.pack import MOST

KINDS = ("point", "box", "mask")
FORMAT = "deepatlas-marks"
VERSION = 1
# The most marks, and the longest name of one.
MOST_MARKS, LONGEST = 500, 80
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class Mark:
    """A mark.

    Attributes:
        id: random letters that the page chose.
        kind: one of :data:`KINDS`.
        name: what the user called it.
        exam: the id of the exam, or ``"atlas"``.
        at: a point in RAS millimetres of the exam, or in coordinates of the atlas.
        box: a box in the same.
        mask: voxels of the picture of the exam.
    """

    id: str
    kind: str
    name: str
    exam: str
    at: tuple[float, float, float] | None = None
    box: Box | None = None
    mask: BoxMask | None = None

    @classmethod
    def of(cls, data: Any) -> Mark:
        """The mark that the page sent.

        Raises :class:`~deepatlas.errors.DataError` if it is anything but a mark.
        """
        if not isinstance(data, dict):
            raise DataError("a mark must be an object")
        kind, name, exam, identity = (data.get(key) for key in ("kind", "name", "exam", "id"))
        if not (isinstance(identity, str) and _ID.fullmatch(identity)):
            raise DataError("a mark needs an id of 1 to 40 letters and digits")
        if kind not in KINDS or not isinstance(exam, str):
            raise DataError(f"a mark needs an exam and one of the kinds {', '.join(KINDS)}")
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if not 0 < len(name) <= LONGEST:
            raise DataError(f"a mark needs a name of 1 to {LONGEST} letters")
        if kind == "point":
            x, y, z = _numbers(data.get("at"), 3)
            return cls(identity, kind, name, exam, at=(x, y, z))
        if kind == "box":
            axes = np.array(_numbers(_flat(data.get("axes")), 9)).reshape(3, 3)
            return cls(
                identity, kind, name, exam, box=Box(name, np.array(_numbers(data.get("centre"), 3)), axes)
            )
        return cls(identity, kind, name, exam, mask=_mask(data.get("mask")))

    def to_dict(self) -> dict[str, Any]:
        """The form in which :meth:`of` reads it."""
        data: dict[str, Any] = {"id": self.id, "kind": self.kind, "name": self.name, "exam": self.exam}
        if self.at is not None:
            data["at"] = list(self.at)
        if self.box is not None:
            data |= box_to_dict(self.box)
        if self.mask is not None:
            data["mask"] = mask_to_dict(self.mask)
        return data


def box_to_dict(box: Box) -> dict[str, Any]:
    """The centre and the half-edges (as columns) of a box as JSON values."""
    return {"centre": box.centre.tolist(), "axes": box.axes.tolist()}


def mask_to_dict(mask: BoxMask) -> dict[str, Any]:
    """A mask as JSON values: where its box begins, its shape (z, y, x), and its bits in base64."""
    bits = base64.b64encode(mask.packed.tobytes()).decode("ascii")
    return {"start": list(mask.start), "shape": list(mask.shape), "bits": bits}


class Marks:
    """All marks, by their ids. Every change has a number, by which a page knows that another page changed something."""

    def __init__(self, path: Path | None = None, exams: Mapping[str, str] | None = None) -> None:
        """Begin with the marks of a file, if there is one.

        Args:
            path: a file that is read, if it is there, and written at every change.
            exams: ``{id: name}`` of the exams that can be marked. In the file exams have their names.

        Raises:
            DataError: the file is damaged, or of something else.
        """
        self._lock = threading.RLock()
        self._path, self._names = path, dict(exams or {})
        self._marks: dict[str, Mark] = {}
        # Marks of the file on exams that were not given this time; they are kept.
        self._elsewhere: list[dict[str, Any]] = []
        self.revision = 0
        if path is not None and path.exists():
            self._read(path)

    def all(self) -> list[Mark]:
        """The marks in the order in which they were made."""
        with self._lock:
            return list(self._marks.values())

    def get(self, identity: str) -> Mark:
        """The mark of an id. Raises :class:`~deepatlas.errors.DataError` if it is gone."""
        with self._lock:
            if identity not in self._marks:
                raise DataError("this mark was deleted, perhaps in another window")
            return self._marks[identity]

    def change(self, put: list[Mark], delete: list[str]) -> int:
        """Add or replace marks and delete others, and return the number of the change.

        Raises :class:`~deepatlas.errors.DataError` if a mark is on no exam of the page, there are too many, or the file
        cannot be written; then nothing has changed.
        """
        with self._lock:
            for mark in put:
                if mark.exam not in self._names:
                    raise DataError(f"mark {mark.name}: there is no such exam on this page")
            after = {i: m for i, m in self._marks.items() if i not in delete} | {m.id: m for m in put}
            if len(after) > MOST_MARKS:
                raise DataError(f"a page holds {MOST_MARKS} marks at most; delete some")
            if self._path is not None:
                self._write(self._path, after)
            self._marks = after
            self.revision += 1
            return self.revision

    def save(self, path: Path) -> None:
        """Write all marks to a file that only its owner may read, from which a page can begin."""
        with self._lock:
            self._write(path, self._marks)

    def _write(self, path: Path, marks: dict[str, Mark]) -> None:
        saved = [{**mark.to_dict(), "exam": self._names[mark.exam]} for mark in marks.values()]
        data = {"format": FORMAT, "version": VERSION, "marks": saved + self._elsewhere}
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", private=True)

    def _read(self, path: Path) -> None:
        cure = "give another file, or move this one away"
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
                raise DataError(f"{path}: no file of marks of this version; {cure}")
            ids = {name: identity for identity, name in self._names.items()}
            for saved in data["marks"]:
                if saved["exam"] in ids:
                    mark = Mark.of({**saved, "exam": ids[saved["exam"]]})
                    self._marks[mark.id] = mark
                else:
                    self._elsewhere.append(saved)
        except DeepAtlasError as error:
            raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}; {cure}") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: damaged file of marks ({error}); {cure}") from error


def _mask(data: Any) -> BoxMask:
    if not isinstance(data, dict):
        raise DataError("a mask must be an object")
    start, shape = _whole(data.get("start"), 0), _whole(data.get("shape"), 1)
    try:
        bits = base64.b64decode(data.get("bits", ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise DataError("the bits of a mask must be base64") from None
    if len(bits) != -(-math.prod(shape) // 8):
        raise DataError("the bits of a mask must fill its box")
    mask = BoxMask(start, shape, np.frombuffer(bits, dtype=np.uint8))
    if not mask.count():
        raise DataError("an empty mask")
    return mask


def _whole(value: Any, least: int) -> tuple[int, int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int) and not isinstance(v, bool) and least <= v <= MOST for v in value)
    ):
        raise DataError(
            f"a mask needs three whole numbers from {least} to {MOST} for its start and its shape"
        )
    return value[0], value[1], value[2]


def _flat(value: Any) -> Any:
    rows = isinstance(value, list) and all(isinstance(row, list) for row in value)
    return [v for row in value for v in row] if rows else value


def _numbers(value: Any, count: int) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
        or any(abs(v) > 1e6 for v in value)
    ):
        raise DataError(f"a mark needs {count} finite numbers")
    return [float(v) for v in value]
