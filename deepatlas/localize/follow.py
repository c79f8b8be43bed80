"""Two exams of one patient: what changed between them (section 4, change detection)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.localize.correspond import Matches
from deepatlas.localize.register import Registration, check_kind, register_known
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import ExamTrust, Trust, exam_trust
from deepatlas.model.engine import Engine
from deepatlas.model.known import KnownExam
from deepatlas.space.constants import AIR
from deepatlas.space.fit_affine import fit_rigid
from deepatlas.space.labels import Labels
from deepatlas.space.transform import Transform
from deepatlas.space.volume import Volume

# Bone, and how many places of it a skeleton has at least to align exams by.
_BONE = 200.0
_FEWEST = 300
_PAIRS = 40_000
# The surroundings of a structure: places in the body this far from it, and the fewest that tell a movement.
_AROUND_MM = 30.0
_FEWEST_AROUND = 20
# From the median length of errors in three dimensions to their root mean square.
_MEDIAN_TO_RMS = math.sqrt(3) / 1.5382
# What the expected error of a shift is made of, for the reader of a result.
EXPECTED = (
    "root of the sum of squares of fit_mm, the spread of the places of the aligned anatomy around the rigid map "
    "(errors of the coordinates, and what is not rigid), and voxel_mm, half the diagonal of a voxel of each exam"
)
TRUSTED = (
    "root of the sum of squares of voxel_mm, half the diagonal of a voxel of each exam, and the error of the "
    "coordinates at the structure in both exams, of which the calibration of the template says that nine of ten stay "
    "below it; where it says nothing, fit_mm takes the place of that error"
)
# What an expected error rests on.
GIVEN, TRUST, ALIGNMENT = "given", "trust", "alignment"


@dataclass(frozen=True)
class Change:
    """What became of one structure from A to B.

    Attributes:
        name: the structure.
        before_ml: its volume in A.
        after_ml: its volume in B.
        shift: float64 ``[3]`` (x, y, z), the way of its centroid in RAS millimetres of A, after the rigid alignment;
            nan where it was not found in both.
        around: the way of its surroundings; nan where they are not known.
        expected_mm: the length of a shift that means nothing.
        complete: whether both exams show all of it; otherwise volumes and shifts are those of parts.
        expected_by: what the expected error rests on: ``"alignment"``, ``"trust"`` or ``"given"``.
        trust: with a calibrated template, how good the mask is in that exam of the two in which less is to be expected.
    """

    name: str
    before_ml: float
    after_ml: float
    shift: NDArray[np.float64]
    around: NDArray[np.float64]
    expected_mm: float
    complete: bool
    expected_by: str = ALIGNMENT
    trust: Trust | None = None

    @property
    def change_ml(self) -> float:
        """The volume in B less that in A."""
        return self.after_ml - self.before_ml

    @property
    def change_percent(self) -> float:
        """The change of the volume in per cent of that in A; nan where A shows nothing of it."""
        return 100 * self.change_ml / self.before_ml if self.before_ml else math.nan

    @property
    def shift_mm(self) -> float:
        """The length of the shift."""
        return float(np.linalg.norm(self.shift))

    @property
    def own_shift_mm(self) -> float:
        """The length of the shift relative to the surroundings."""
        return float(np.linalg.norm(self.shift - self.around))

    @property
    def moved(self) -> bool:
        """Whether the shift is longer than what is expected of errors, in exams that show all of the structure."""
        return self.complete and self.shift_mm > self.expected_mm

    def to_dict(self) -> dict[str, Any]:
        """A row of results; what is not known is null."""
        row = {
            "structure": self.name,
            "before_ml": round(self.before_ml, 4),
            "after_ml": round(self.after_ml, 4),
            "change_ml": round(self.change_ml, 4),
            "change_percent": _number(self.change_percent),
            "shift_mm": _number(self.shift_mm),
            "shift": [_number(v) for v in self.shift],
            "own_shift_mm": _number(self.own_shift_mm),
            "expected_mm": _number(self.expected_mm),
            "moved": self.moved,
            "complete": self.complete,
            "expected_by": self.expected_by,
        }
        return row if self.trust is None else row | self.trust.to_dict()


@dataclass(frozen=True, repr=False)
class FollowUp:
    """Two exams of one patient, A and B.

    Attributes:
        changes: one for each structure of the template.
        difference: B, aligned, less A, on the grid of A; float32, 0 outside the overlap.
        registration: the alignment of the images, of which A is the fixed exam.
        rigid: the rigid map from places of A to places of B that shifts are measured against.
        aligned_by: what it was fitted to: ``"skeleton"`` or ``"body"``.
        fit_mm: the spread of these places around it.
        voxel_mm: half the diagonal of a voxel of both exams, as a root of squares.
        before: the structures in A.
        after: the structures in B.
    """

    changes: list[Change]
    difference: Volume
    registration: Registration
    rigid: Transform
    aligned_by: str
    fit_mm: float
    voxel_mm: float
    before: Labels
    after: Labels

    def __repr__(self) -> str:
        moved = sum(change.moved for change in self.changes)
        return f"FollowUp({len(self.changes)} structures, {moved} moved, {self.registration!r})"

    @property
    def known(self) -> bool | None:
        """Whether the model knows both exams; None where it has no threshold. Of others all numbers mean nothing."""
        known = self.registration.fixed_fit.known, self.registration.moving_fit.known
        return None if None in known else all(known)

    def to_dict(self) -> dict[str, Any]:
        """The entries of results."""
        return {
            "known": self.known,
            "structures": [change.to_dict() for change in self.changes],
            "aligned_by": self.aligned_by,
            "expected_error": {
                "fit_mm": self.fit_mm,
                "voxel_mm": self.voxel_mm,
                "means": TRUSTED if any(c.expected_by == TRUST for c in self.changes) else EXPECTED,
            },
            "rigid": self.rigid.matrix.tolist(),
            **self.registration.to_dict(),
        }


def follow(
    model: Engine,
    template: Template,
    before: Volume,
    after: Volume,
    kind: str = "rigid",
    *,
    threshold: float | None = None,
    expected_mm: Mapping[str, float] | None = None,
) -> FollowUp:
    """What changed from one exam of a patient to a later one.

    Both are segmented with the template. Shifts are those of centroids after a rigid alignment over the skeleton, or
    over the body where there is too little bone. With a template that was calibrated (``deepatlas calibrate``) the
    error that is expected of each shift is that of the coordinates at the structure in these two exams.

    Args:
        model: a trained model.
        template: the structures.
        before: the exam A.
        after: the exam B.
        kind: how B is aligned for the difference image: ``"rigid"`` leaves what moved and grew visible; with
            ``"linear"`` and ``"deformable"`` the difference shows changes of density alone.
        threshold: as for :func:`~deepatlas.localize.segment.segment`.
        expected_mm: the error of a structure's shift, by its name, where it is better known than by the alignment.

    Raises:
        DeepAtlasError: ``kind`` is another word, the template belongs to another model, or the model has no
            coordinates.
        DataError: an exam shows no patient, the exams have no anatomy in common, or the template holds no mask.
    """
    check_kind(kind)
    template.check_model(model.fingerprint)
    if not template.names:
        raise DataError("follow: the template holds no mask; give one with structures")
    maps = model.map_exam(before), model.map_exam(after)
    exams = (
        KnownExam.of(maps[0], before.grid, before.name, keep_image=True),
        KnownExam.of(maps[1], after.grid, after.name, keep_image=True),
    )
    found = register_known(before, after, *exams, kind, model.intensity)
    matches = found.matches
    rigid, aligned_by, fit_mm = _rigid(matches, before if model.intensity == "hu" else None)
    drawn = [segment_coordinates(e.field, e.grid, template, threshold, e.body, e.image) for e in exams]
    # Half the diagonals, which are the largest errors of a border, and two borders that do not err alike.
    voxel_mm = math.hypot(*(np.linalg.norm(e.grid.spacing) / 2 for e in exams))
    # What may be believed of both exams costs a few more passes, and tells nothing without a calibration.
    calibrated = bool(template.meta.get("trust"))
    believed = [exam_trust(model, each, template, threshold=threshold) for each in maps] if calibrated else []
    places, residual = _moved_body(matches, rigid)
    changes = []
    for name, identity in template.labels.items():
        centres, volumes, whole = zip(*(_measured(seg, identity) for seg in drawn), strict=True)
        back = rigid.inverse_of_affine().apply(centres[1][None])[0]
        error, by = _expected((expected_mm or {}).get(name), believed, centres, fit_mm)
        radius = (3 * 1000 * max(volumes) / (4 * math.pi)) ** (1 / 3)
        changes.append(
            Change(
                name,
                volumes[0],
                volumes[1],
                back - centres[0],
                _around(places, residual, centres[0], radius, drawn[0], identity),
                error if by == GIVEN else math.hypot(error, voxel_mm),
                all(whole) and _within(drawn[0].mask(identity), found.on_fixed.overlap),
                by,
                _weaker([exam.structures[name] for exam in believed]),
            )
        )
    overlap = found.on_fixed.overlap
    a, b = before.array.astype(np.float32), found.on_fixed.volume.array
    if model.intensity == "hu":
        # What scanners fill the corners with, such as -3024, is air.
        a, b = np.maximum(a, AIR), np.maximum(b, AIR)
    difference = np.where(overlap, b - a, np.float32(0))
    image = Volume(difference, before.grid, before.name)
    return FollowUp(changes, image, found, rigid, aligned_by, fit_mm, voxel_mm, drawn[0], drawn[1])


def _expected(
    given: float | None,
    believed: Sequence[ExamTrust],
    centres: Sequence[NDArray[np.float64]],
    fit_mm: float,
) -> tuple[float, str]:
    """The error in mm that is expected of a shift, without that of the voxels, and what it rests on."""
    if given is not None:
        return given, GIVEN
    bounds = [exam.millimetres(at[None])[1][0] for exam, at in zip(believed, centres, strict=False)]
    if bounds and np.isfinite(bounds).all():
        # The errors of two exams are independent.
        return math.hypot(*bounds), TRUST
    return fit_mm, ALIGNMENT


def _weaker(trust: Sequence[Trust]) -> Trust | None:
    """Of what is to be expected of one mask in two exams, the less; what nobody can tell is less than that."""
    return min(trust, key=lambda t: -1.0 if t.value is None else t.value) if trust else None


def _rigid(matches: Matches, ct: Volume | None) -> tuple[Transform, str, float]:
    """The rigid map over the skeleton or the body, which of the two, and the spread of their places around it."""
    source, target = matches.pairs(_PAIRS)
    name = "body"
    if ct is not None:
        index = np.rint(ct.grid.world_to_voxel(source)).astype(int)
        held = ct.grid.covers(source)
        bone = np.zeros(len(source), dtype=bool)
        x, y, z = np.clip(index[held], 0, np.array(ct.grid.shape[::-1]) - 1).T
        bone[held] = ct.array[z, y, x] > _BONE
        if np.count_nonzero(bone) >= _FEWEST:
            source, target, name = source[bone], target[bone], "skeleton"
    rigid = Transform(fit_rigid(source, target))
    miss = np.linalg.norm(rigid.apply(source) - target, axis=1)
    return rigid, name, float(np.median(miss)) * _MEDIAN_TO_RMS


def _moved_body(matches: Matches, rigid: Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places ``[N, 3]`` of the body of A, and their ways ``[N, 3]`` in millimetres of A after the rigid alignment."""
    source, target = matches.pairs(_PAIRS)
    return source, rigid.inverse_of_affine().apply(target) - source


def _measured(seg: Labels, identity: int) -> tuple[NDArray[np.float64], float, bool]:
    """The centroid ``[3]`` of a structure in mm, its volume in ml, and whether it ends inside the exam.

    Of one that is not there, the centroid is nan and the last is False.
    """
    mask = seg.mask(identity)
    count = int(np.count_nonzero(mask))
    if not count:
        return np.full(3, math.nan), 0.0, False
    centre = np.array(ndimage.center_of_mass(mask))[::-1]
    cut = any(mask.take(i, axis).any() for axis in range(3) for i in (0, -1))
    return seg.grid.voxel_to_world(centre), count * seg.grid.voxel_volume / 1000, not cut


def _around(
    places: NDArray[np.float64],
    residual: NDArray[np.float64],
    centre: NDArray[np.float64],
    radius: float,
    seg: Labels,
    identity: int,
) -> NDArray[np.float64]:
    """The median way of the places around a structure that are not of it."""
    near = np.linalg.norm(places - centre, axis=1) < radius + _AROUND_MM
    index = np.rint(seg.grid.world_to_voxel(places[near])).astype(int)
    x, y, z = np.clip(index, 0, np.array(seg.grid.shape[::-1]) - 1).T
    outside = ~seg.mask(identity)[z, y, x]
    if np.count_nonzero(outside) < _FEWEST_AROUND:
        return np.full(3, math.nan)
    found: NDArray[np.float64] = np.median(residual[near][outside], axis=0)
    return found


def _within(mask: NDArray[np.bool_], overlap: NDArray[np.bool_]) -> bool:
    """Whether next to all of a mask lies in the overlap."""
    return bool(np.count_nonzero(mask & overlap) >= 0.99 * np.count_nonzero(mask))


def _number(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None
