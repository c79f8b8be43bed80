"""Two exams of one patient: what changed between them (section 4, change detection)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.errors import DataError
from deepatlas.localize.correspond import Matches
from deepatlas.localize.register import Registration, register_known
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.model.known import known_exam
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
    """

    name: str
    before_ml: float
    after_ml: float
    shift: NDArray[np.float64]
    around: NDArray[np.float64]
    expected_mm: float
    complete: bool

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
        return {
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
        }


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

    def to_dict(self) -> dict[str, Any]:
        """The entries of results."""
        return {
            "structures": [change.to_dict() for change in self.changes],
            "aligned_by": self.aligned_by,
            "expected_error": {"fit_mm": self.fit_mm, "voxel_mm": self.voxel_mm, "means": EXPECTED},
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
    over the body where there is too little bone.

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
        DeepAtlasError: the template belongs to another model, or the model has no coordinates.
        DataError: an exam shows no patient, the exams have no anatomy in common, or the template holds no mask.
    """
    template.check_model(model.fingerprint)
    if not template.names:
        raise DataError("follow: the template holds no mask; give one with structures")
    exams = known_exam(model, before, keep_image=True), known_exam(model, after, keep_image=True)
    found = register_known(before, after, *exams, kind, model.intensity)
    matches = found.matches
    rigid, aligned_by, fit_mm = _rigid(matches, before if model.intensity == "hu" else None)
    drawn = [segment_coordinates(e.field, e.grid, template, threshold, e.body, e.image) for e in exams]
    # Half the diagonals, which are the largest errors of a border, and two borders that do not err alike.
    voxel_mm = math.hypot(*(np.linalg.norm(e.grid.spacing) / 2 for e in exams))
    usual = math.hypot(fit_mm, voxel_mm)
    places, residual = _moved_body(matches, rigid)
    changes = []
    for name, identity in template.labels.items():
        centres, volumes, whole = zip(*(_measured(seg, identity) for seg in drawn), strict=True)
        back = rigid.inverse_of_affine().apply(centres[1][None])[0]
        radius = (3 * 1000 * max(volumes) / (4 * math.pi)) ** (1 / 3)
        changes.append(
            Change(
                name,
                volumes[0],
                volumes[1],
                back - centres[0],
                _around(places, residual, centres[0], radius, drawn[0], identity),
                (expected_mm or {}).get(name, usual),
                all(whole) and _within(drawn[0].mask(identity), found.on_fixed.overlap),
            )
        )
    overlap = found.on_fixed.overlap
    difference = np.where(overlap, found.on_fixed.volume.array - before.array, 0).astype(np.float32)
    image = Volume(difference, before.grid, before.name)
    return FollowUp(changes, image, found, rigid, aligned_by, fit_mm, voxel_mm, drawn[0], drawn[1])


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
