"""Registration: one exam on the grid of another through the coordinates that both share (sections 2.2 and 4)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import deepatlas_ops as ops
from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.localize.correspond import Matches, correspond
from deepatlas.model.engine import Engine
from deepatlas.model.fit import Fit
from deepatlas.model.known import KnownExam, known_exam
from deepatlas.space.constants import AIR, MIN_VOXELS
from deepatlas.space.fill_in import fill_in
from deepatlas.space.fit_affine import fit_affine, fit_rigid
from deepatlas.space.grid import Grid
from deepatlas.space.transform import Transform, within_faces
from deepatlas.space.volume import Volume

KINDS = ("deformable", "linear", "rigid")
# The most voxels along an axis of the grid of a deformation, where the field has finer parts.
CONTROL = 128
# The most pairs of places that an affine or rigid map is fitted to, and the fewest that mean anything.
_PAIRS, _FEWEST = 20_000, 200
# Where less of both bodies was found in the other, the alignment stands on little.
_LEAST_SHARE = 0.2
# Voxels around the field of view in which a deformation passes into the affine map: at least, and at most.
_PASSAGE = (2, 10)


@dataclass(frozen=True, repr=False)
class Moved:
    """One exam, moved onto the grid of another.

    Attributes:
        volume: the moved exam, float32; ``fill`` outside the overlap.
        overlap: bool, on the same grid: where the exam that gave the grid shows what the moved one shows, too. In the
            body that is where the coordinates were found in it, and around the body where both exams see.
        fill: the value outside the overlap: air, or the lowest value of an exam whose values have no unit.
        transform: from places of the exam that gave the grid to those of the moved one.
        share: the share of the body of the exam that gave the grid which lies in the overlap.
        residual_mm: the median distance of the transform from the place that the coordinates say, over the shared body.
        jacobian: the determinant of the transform, float32: on its grid, or one value on a grid of 2 voxels along each
            axis over the exam if it is affine.
        folds: the share of the overlap within the body in which the transform folds; 0 for an affine map.
        folded: the number of voxels of the grid of the transform that this is.
    """

    volume: Volume
    overlap: NDArray[np.bool_]
    fill: float
    transform: Transform
    share: float
    residual_mm: float
    jacobian: Volume
    folds: float
    folded: int

    def __repr__(self) -> str:
        return f"Moved({self.volume!r}, {self.share:.0%} of the body in the overlap, {self.transform!r})"

    def to_dict(self) -> dict[str, Any]:
        """The numbers of results."""
        determinant = self.jacobian.array
        return {
            "overlap": self.share,
            "fill": self.fill,
            "residual_mm": self.residual_mm,
            "folds": self.folds,
            "folded_voxels": self.folded,
            "jacobian": [float(np.percentile(determinant, q)) for q in (1, 50, 99)],
            "matrix": self.transform.matrix.tolist(),
        }


@dataclass(frozen=True, repr=False)
class Registration:
    """Two exams, each on the grid of the other.

    Attributes:
        kind: ``"deformable"``, ``"linear"`` or ``"rigid"``.
        on_fixed: the moving exam on the grid of the fixed one.
        on_moving: the fixed exam on the grid of the moving one.
        fixed_fit: how well the model knows the fixed exam.
        moving_fit: how well it knows the moving one.
        cycle_mm: the median distance, over the shared body, of a place from where both transforms take it.
        matches: the places of the fixed exam and where the coordinates find them in the moving one.
        intensity: what the values of the exams are (``data.intensity``).
    """

    kind: str
    on_fixed: Moved
    on_moving: Moved
    fixed_fit: Fit
    moving_fit: Fit
    cycle_mm: float
    matches: Matches
    intensity: str = "hu"

    def __repr__(self) -> str:
        fits = f"fixed {self.fixed_fit!r}, moving {self.moving_fit!r}"
        return f"Registration({self.kind}, {self.on_fixed.share:.0%} of the fixed body found, {fits})"

    def to_dict(self) -> dict[str, Any]:
        """The entries of results."""
        return {
            "kind": self.kind,
            "fixed": self.fixed_fit.to_dict(),
            "moving": self.moving_fit.to_dict(),
            "cycle_mm": self.cycle_mm,
            "on_fixed": self.on_fixed.to_dict(),
            "on_moving": self.on_moving.to_dict(),
        }


def register(model: Engine, fixed: Volume, moving: Volume, kind: str = "deformable") -> Registration:
    """Align two exams through their coordinates, in both directions.

    Args:
        model: a trained model.
        fixed: an exam, with values of the kind that the model takes.
        moving: another.
        kind: ``"deformable"`` solves ``c_moving(u) = c_fixed(v)`` and gives an affine map with what remains of the
            deformation; ``"linear"`` gives the affine map alone, by robust least squares over the shared foreground;
            ``"rigid"`` a rotation and a translation.

    Raises:
        DeepAtlasError: ``kind`` is another word, or the model has no coordinates.
        DataError: an exam shows no patient, or the exams have no foreground in common.

    Warns:
        DataWarning: less than a fifth of either body was found in the other.
    """
    check_kind(kind)
    exams = known_exam(model, fixed), known_exam(model, moving)
    return register_known(fixed, moving, *exams, kind, model.intensity)


def check_kind(kind: str) -> None:
    """Raise :class:`~deepatlas.errors.DeepAtlasError` for a kind of registration that does not exist."""
    if kind not in KINDS:
        raise DeepAtlasError(f"register: kind must be one of {', '.join(KINDS)}, got {kind!r}")


def register_known(
    fixed: Volume, moving: Volume, origin: KnownExam, goal: KnownExam, kind: str, intensity: str = "hu"
) -> Registration:
    """:func:`register` for exams whose coordinates are known: ``origin`` of the fixed one, ``goal`` of the moving."""
    names = origin.name or "the fixed exam", goal.name or "the moving exam"
    for name, volume in zip(names, (fixed, moving), strict=True):
        if min(volume.grid.shape) < MIN_VOXELS:
            sizes = " x ".join(str(n) for n in volume.grid.shape[::-1])
            raise DataError(
                f"{name}: only {min(volume.grid.shape)} voxel(s) on an axis ({sizes}), which is too thin to be "
                f"aligned; give a volume with at least {MIN_VOXELS} along each"
            )
    there, back = correspond(origin, goal, CONTROL), correspond(goal, origin, CONTROL)
    for matches in (there, back):
        if np.count_nonzero(matches.shared) < _FEWEST:
            raise DataError(
                f"{names[0]} and {names[1]}: have no anatomy in common that the model finds in both, so that they "
                "cannot be aligned; give exams of one body region"
            )
    forward = _transform(there, kind)
    # The inverse of an affine map is exact; that of a deformation is solved for as the deformation itself.
    backward = _transform(back, kind) if kind == "deformable" else forward.inverse_of_affine()
    places = there.pairs(_PAIRS)[0]
    cycle = np.linalg.norm(backward.apply(forward.apply(places)) - places, axis=1)
    found = Registration(
        kind,
        _moved(moving, fixed.grid, forward, there, intensity),
        _moved(fixed, moving.grid, backward, back, intensity),
        origin.fit,
        goal.fit,
        float(np.median(cycle)),
        there,
        intensity,
    )
    if (most := max(found.on_fixed.share, found.on_moving.share)) < _LEAST_SHARE:
        warnings.warn(
            f"{names[0]} and {names[1]}: at most {most:.0%} of either body was found in the other; look at the result "
            "before use, or give exams of one body region",
            DataWarning,
            stacklevel=3,
        )
    return found


def fill_of(volume: Volume, intensity: str) -> float:
    """The value of an exam where there is nothing: air, or the lowest value of an image without a unit."""
    return AIR if intensity == "hu" else float(volume.array.min())


def _transform(matches: Matches, kind: str) -> Transform:
    pairs = matches.pairs(_PAIRS)
    if kind == "rigid":
        return Transform(fit_rigid(*pairs))
    matrix = fit_affine(*pairs)
    if kind == "linear":
        return Transform(matrix)
    # What comes before the matrix, where it is known.
    inverse = np.linalg.inv(matrix)
    places = np.moveaxis(matches.places, 0, -1) @ inverse[:3, :3].T + inverse[:3, 3]
    residual = np.moveaxis(places - matches.grid.places(), -1, 0)
    known = matches.body & matches.solved
    residual[:, ~known] = 0
    length = np.linalg.norm(residual, axis=0).max() / min(matches.grid.spacing)
    width = int(np.clip(np.ceil(length), *_PASSAGE))
    wide = [(width, width)] * 3
    known = np.pad(known, wide)
    residual = np.pad(residual, [(0, 0), *wide])
    # On the sides nothing remains, and between them and the body the deformation fades.
    sides = np.ones(known.shape, dtype=bool)
    sides[1:-1, 1:-1, 1:-1] = False
    values, given = torch.from_numpy(residual).float()[None], torch.from_numpy(known | sides)[None, None]
    filled = fill_in(values, given)[0].double().numpy()
    grid = matches.grid.cropped((-width,) * 3, known.shape)
    return Transform(matrix, filled, grid)


def _moved(volume: Volume, grid: Grid, transform: Transform, matches: Matches, intensity: str) -> Moved:
    fill = fill_of(volume, intensity)
    source, target = matches.pairs(_PAIRS)
    residual = float(np.median(np.linalg.norm(transform.apply(source) - target, axis=1)))
    usable = _usable(matches, transform)
    body = matches.body & matches.seen
    held = int(np.count_nonzero(body & usable))
    share = held / max(1, int(np.count_nonzero(body)))
    values, folded = np.linalg.det(transform.matrix[:3, :3]), 0
    place = grid.resized([min(n, 2) for n in grid.shape])
    if transform.grid is not None:
        values, place = transform.jacobian(), transform.grid
        width = (place.shape[0] - matches.grid.shape[0]) // 2
        folded = int(np.count_nonzero((values[(slice(width, -width),) * 3] <= 0) & body & usable))
    jacobian = Volume(np.broadcast_to(values, place.shape).astype(np.float32), place, volume.name)
    array, overlap = _pull(volume, grid, transform, usable, matches.grid, fill)
    moved = replace(volume, array=array, grid=grid)
    return Moved(moved, overlap, fill, transform, share, residual, jacobian, folded / max(1, held), folded)


def _usable(matches: Matches, transform: Transform) -> NDArray[np.bool_]:
    """Where on the grid of the matches both networks see, and the coordinates of the body were found."""
    usable = matches.seen & (matches.solved | ~matches.body)
    for z, place in transform.slabs(matches.grid, matches.view):
        usable[z] &= within_faces(place, matches.view).numpy()
    return usable


def _pull(
    volume: Volume, grid: Grid, transform: Transform, usable: NDArray[np.bool_], control: Grid, fill: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The exam on a grid and the overlap there, from the part of the grid ``control`` that is usable."""
    values = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))[None, None]
    weight = torch.from_numpy(usable)[None, None].float()
    array = np.full(grid.shape, fill, dtype=np.float32)
    overlap = np.zeros(grid.shape, dtype=bool)
    start, size = _reach(usable, control, grid)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    some, both_there = array[box], overlap[box]
    whole = grid.cropped(start, size)
    for z, place in transform.slabs(whole, volume.grid):
        part = whole.cropped((z.start, 0, 0), (z.stop - z.start, *whole.shape[1:]))
        theta = torch.from_numpy(control.theta_from(part)).float()[None]
        share = ops.affine_resample(weight, theta, part.shape, padding="border")[0, 0]
        both = (share >= 0.5) & within_faces(place, volume.grid)
        some[z] = torch.where(both, ops.resample(values, place)[0, 0], fill).numpy()
        both_there[z] = both.numpy()
    return array, overlap


def _reach(usable: NDArray[np.bool_], control: Grid, grid: Grid) -> tuple[list[int], list[int]]:
    """Start and shape of the part of ``grid`` that voxels of ``control`` which are usable reach into."""
    if not usable.any():
        return [0, 0, 0], [1, 1, 1]
    ends = []
    for axis in range(3):
        used = np.flatnonzero(usable.any(axis=tuple(a for a in range(3) if a != axis)))
        # What is usable at the border of the grid goes on beyond it.
        low = used[0] - 0.5 if used[0] else -np.inf
        high = used[-1] + 0.5 if used[-1] < usable.shape[axis] - 1 else np.inf
        ends.append((low, high))
    if not np.isfinite(ends).all():
        return [0, 0, 0], list(grid.shape)
    corners = np.array([[ends[2][i], ends[1][j], ends[0][k]] for i, j, k in np.ndindex(2, 2, 2)])
    index = grid.world_to_voxel(control.voxel_to_world(corners))[:, ::-1]
    first = np.clip(np.floor(index.min(axis=0)), 0, np.array(grid.shape) - 1).astype(int)
    last = np.clip(np.ceil(index.max(axis=0)) + 1, first + 1, grid.shape).astype(int)
    return first.tolist(), (last - first).tolist()
