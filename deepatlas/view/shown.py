"""An exam on the page: its picture, its coordinates and its structures, each made once, when the page asks for it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.localize.coverage import coverage
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.soften import seen
from deepatlas.localize.trust.estimate import ExamTrust, exam_trust
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.field import CoordinateField
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam
from deepatlas.model.project_box import mm_per_unit
from deepatlas.space.check_input import check_input
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import denormalize, labels_to_grid
from deepatlas.space.volume import Volume
from deepatlas.view.gallery import GivenExam
from deepatlas.view.heard import heard
from deepatlas.view.pack import pack
from deepatlas.view.picture import picture
from deepatlas.view.structures import OwnStructures, labels_body

ATLAS = "atlas"
# The most points along an axis at which the page knows the coordinates of an exam.
MAP_POINTS = 96
# The most points along an axis at which the page knows the expected error of places.
TRUST_POINTS = 32
_SEEN, _BODY = 1, 2


@dataclass(frozen=True)
class Mapped:
    """An exam after its pass through the network.

    Attributes:
        known: its coordinates, on its own grid.
        shown: the grid of the picture.
        found: what the network said, without the image; None for the atlas.
    """

    known: KnownExam
    shown: Grid
    found: ExamMap | None = None

    @property
    def on_picture(self) -> KnownExam:
        """The exam as if the grid of the picture were its own."""
        return replace(self.known, grid=self.shown)


class ShownExam:
    """One exam, made part by part. Parts are made by one thread at a time, and kept as what is sent.

    Attributes:
        given: the exam.
    """

    def __init__(self, given: GivenExam, working: threading.Lock) -> None:
        """``working`` is held while the network is used, which all exams have in common."""
        self.given = given
        self._working = working
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}

    @property
    def id(self) -> str:
        return self.given.id

    def picture(self, intensity: str) -> bytes:
        """The picture as :func:`~deepatlas.view.pack.pack` makes it; ``intensity`` is what the model takes."""
        return self._once("picture", lambda: self._read(intensity)[1])

    def image(self, intensity: str) -> Volume:
        """The exam with values as the network takes them, on its own grid; it is read again."""
        files = self.given.check()
        volume = read_volume(files.ct, kind=files.kind)
        volume.name = self.given.name
        return seen(volume, intensity)

    def mapped(self, model: Engine) -> Mapped:
        """The exam after its pass through the network."""

        def make() -> Mapped:
            volume, _ = self._read(model.intensity)
            with self._working:
                found = model.map_exam(volume)
            grid = self._parts["grid"]
            # The voxels are not needed again, and may be a gigabyte.
            del self._parts["volume"]
            known = KnownExam.of(found, volume.grid, self.given.name)
            return Mapped(known, grid, replace(found, image=None))

        return self._once("mapped", make)

    def coordinates(self, model: Engine) -> bytes:
        """The coordinates of the exam, and how well the model knows it."""
        return self._once("coordinates", lambda: coordinates_body(self.mapped(model)))

    def structures(self, model: Engine, template: Template, threshold: float | None = None) -> OwnStructures:
        """The structures of a template on the exam's own grid, as ``deepatlas segment`` finds them."""

        def make() -> OwnStructures:
            known, image = self.mapped(model).known, self.image(model.intensity)
            with heard() as notes, self._working:
                labels = segment_coordinates(known.field, known.grid, template, threshold, known.body, image)
            return OwnStructures.of(labels, template, notes)

        return self._once("structures", make)

    def masks(self, model: Engine, template: Template, threshold: float | None = None) -> bytes:
        """:meth:`structures` for the page, with the volumes that they have in the file that is downloaded."""

        def make() -> bytes:
            it, drawn = self.mapped(model), self.structures(model, template, threshold)
            assert it.found is not None
            shares = coverage(it.found, template, it.known.grid).tolist()
            named = zip(template.ids, shares, strict=True)
            return drawn.body(it.shown, {i: share for i, share in named if math.isfinite(share)})

        return self._once("masks", make)

    def trust(self, model: Engine, template: Template, threshold: float | None = None) -> bytes:
        """What to believe of the structures and of places, as :func:`trust_body` makes it, by a few more passes."""

        def make() -> bytes:
            it = self.mapped(model)
            assert it.found is not None
            with self._working:
                found = exam_trust(model, it.found, template, threshold=threshold)
            self._parts["believed"] = found
            return trust_body(found, it.shown)

        return self._once("trust", make)

    def believed(self, model: Engine, template: Template, threshold: float | None = None) -> ExamTrust:
        """The trust of the exam, as :meth:`trust` sends it."""
        self.trust(model, template, threshold)
        return self._parts["believed"]

    def _read(self, intensity: str) -> tuple[Volume, bytes]:
        """The exam as the network takes it, and its picture."""
        with self._lock:
            if "volume" not in self._parts:
                files = self.given.check()
                notes: list[str] = []
                volume = read_volume(files.ct, notes=notes, kind=files.kind)
                volume.name = self.given.name
                checked, found = check_input(volume, intensity)
                shown, lines = picture(checked)
                header = {
                    "name": self.given.name,
                    "shape": shown.grid.shape,
                    "affine": shown.grid.affine.tolist(),
                    "spacing": volume.grid.spacing,
                    "voxels": volume.grid.shape[::-1],
                    "lines": [*lines, *notes, *found],
                }
                self._parts["grid"] = shown.grid
                read = volume, pack(header, {"image": shown.array})
                if "mapped" in self._parts:
                    return read
                self._parts["volume"] = read
            return self._parts["volume"]

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        # Without the lock first, so that what is there is sent while other parts are being made.
        if name not in self._parts:
            with self._lock:
                if name not in self._parts:
                    self._parts[name] = make()
        return self._parts[name]


class ShownAtlas:
    """The atlas as an exam that lies in its own coordinates: a millimetre of it is a unit of coordinates."""

    id = ATLAS

    def __init__(self, model: Engine) -> None:
        values = model.atlas[0, 0].float().cpu().numpy()
        # From voxels to [-1, 1].
        half = (np.array(values.shape[::-1]) - 1) / 2
        affine = np.diag([*1 / half, 1.0])
        affine[:3, 3] = -1
        grid = Grid(values.shape, affine)
        # The window of values that the network sees, in the unit of the exams.
        self._image = np.rint(denormalize(values)).astype(np.int16)
        field = CoordinateField(torch.from_numpy(grid.identity())[None], grid)
        body = np.ones(grid.shape, dtype=bool)
        self._mapped = Mapped(KnownExam(ATLAS, grid, field, body, Fit(1.0)), grid)

    def mapped(self, model: Engine | None = None) -> Mapped:
        """The atlas as if a network had found its own coordinates in it."""
        return self._mapped

    def picture(self) -> bytes:
        grid = self._mapped.shown
        header = {"name": "atlas", "shape": grid.shape, "affine": grid.affine.tolist(), "lines": []}
        return pack(header, {"image": self._image})

    def masks(self, model: Engine, template: Template, threshold: float | None = None) -> bytes:
        """The masks of a template where it has them, without regard to a body; the atlas has no millilitres."""
        it = self._mapped
        with heard():
            labels = segment_coordinates(it.known.field, it.shown, template, threshold)
        return labels_body(labels, {"millilitres": {}, "shares": {}, "notes": []})


def coordinates_body(it: Mapped) -> bytes:
    """The coordinates of an exam on a coarse grid of its picture, as float16.

    ``flags`` are 1 where the network sees the exam, plus 2 in the body. The header holds the grid, the fit, and the
    millimetres of a unit of the atlas in this exam along x, y and z.
    """
    field, body, fit = it.known.field, it.known.body, it.known.fit
    # As fine as the finest network, within limits.
    wanted = (np.ceil(np.array(it.shown.extent[::-1]) / field.spacing) + 1).clip(2, MAP_POINTS)
    z, y, x = (min(n, int(w)) for n, w in zip(it.shown.shape, wanted, strict=True))
    grid = it.shown.resized((z, y, x))
    coords = field.on(grid).float().cpu().numpy()
    near = labels_to_grid(Volume(body.astype(np.uint8), field.grid), grid).array
    flags = (_SEEN * field.inside(grid) + _BODY * (near > 0)).astype(np.uint8)
    header = {
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        **fit.to_dict(),
        "threshold": fit.threshold,
        "warning": fit.warning("this exam").removeprefix("this exam: "),
        "unit_mm": _unit_mm(it.known),
    }
    return pack(header, {"coords": coords.astype(np.float16), "flags": flags})


def _unit_mm(known: KnownExam) -> list[float] | None:
    """How many millimetres of an exam a unit of the atlas is along x, y and z; None where nothing says it."""
    try:
        return mm_per_unit(known.field, known.body).round(3).tolist()
    except DataError:
        return None


def trust_body(trust: ExamTrust, shown: Grid) -> bytes:
    """The trust of an exam: that of every structure in the header, and the expected error of places in mm.

    ``error_mm`` and ``bound_mm`` (90 % of the errors are smaller) are float16 on a coarse grid of the picture, which
    the header holds; they are nan where nobody can tell.
    """
    z, y, x = (min(n, TRUST_POINTS) for n in shown.shape)
    grid = shown.resized((z, y, x))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")[::-1], axis=-1).reshape(-1, 3)
    error, bound = (v.reshape(grid.shape) for v in trust.millimetres(grid.voxel_to_world(index)))
    header = {
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        "structures": {name: value.to_dict() for name, value in trust.structures.items()},
    }
    return pack(header, {"error_mm": error.astype(np.float16), "bound_mm": bound.astype(np.float16)})
