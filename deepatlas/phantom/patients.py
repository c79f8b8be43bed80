"""A cohort of procedural whole-body CTs for which the true template coordinate of every voxel is known.

Exam i is the template body (:mod:`deepatlas.phantom.anatomy`), resampled by ``T = D o P``: a pose P with random
proportions, followed by a smooth diffeomorphism D. Its HU, labels and foreground at x are those of the template at
T(x). T(x) itself is :attr:`PhantomExam.coords`, the ground truth that no real exam has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.phantom.anatomy import STRUCTURES, THIGH, VERTEX, build_template
from deepatlas.phantom.deform import Deformation, Pose, upsample
from deepatlas.phantom.shapes import rotation
from deepatlas.phantom.tissue import PHASES, lookup
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# The field of view along x and y in mm, for a body of scale 1.
FIELD_OF_VIEW = (384.0, 312.0)
# The distance in mm between the control values of the spline by which voxels obtain their displacement.
CONTROL_SPACING = 16.0
GOLDEN = (np.sqrt(5) - 1) / 2
# The size of the texture of organs in mm.
GRAIN = 9.0
# The range of template z (low, high) in mm that each partial field of view shows, before random shifts.
REGIONS = {
    "head-neck-chest": (-40.0, VERTEX),
    "chest-abdomen": (-195.0, 105.0),
    "abdomen-pelvis": (THIGH, -20.0),
}


@dataclass
class PhantomExam:
    """One exam and its ground truth.

    ``volume`` holds float32 HU and ``labels`` uint8 ids of ``names``. ``coords`` (float32 ``[3, D, H, W]``) is the true
    template coordinate (x, y, z) of each voxel in mm (RAS+: x increases to the patient's right). ``foreground`` (bool
    ``[D, H, W]``) is the body without the couch. ``region`` is "whole" or the visible part of the body, ``phase`` the
    contrast phase.
    """

    id: str
    volume: Volume
    labels: Volume
    coords: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    names: dict[str, int]
    region: str
    phase: str

    @property
    def partial(self) -> bool:
        """Whether the exam shows only a part of the body."""
        return self.region != "whole"


@dataclass(frozen=True)
class PhantomCohort:
    """Exams drawn from a seed. Exam i depends neither on the exams drawn before it nor on the number of threads.

    ``shape`` (D, H, W) is the shape of a whole-body exam, whose default gives voxels of about 6 x 4 x 4 mm (z, y, x); a
    partial exam has fewer slices. ``partial`` is the share of partial exams. ``deformation`` scales the variation of
    the anatomy (at 1 the best affine alignment reaches a mean Dice of about 0.5), and ``noise`` the noise of the
    scanner. Exam 0 always shows the whole body with a mild deformation, so that it can initialise an atlas.

    Raises ValueError for values that are out of range.
    """

    seed: int = 0
    shape: tuple[int, int, int] = (112, 80, 96)
    partial: float = 0.3
    deformation: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 16:
            raise ValueError(
                f"PhantomCohort: shape must be three sizes (D, H, W) of at least 16, got {self.shape}"
            )
        if not 0 <= self.partial <= 1:
            raise ValueError(f"PhantomCohort: partial is a share between 0 and 1, got {self.partial}")
        if self.deformation < 0 or self.noise < 0:
            raise ValueError(
                "PhantomCohort: deformation and noise must not be negative, "
                f"got {self.deformation} and {self.noise}"
            )

    @cached_property
    def names(self) -> dict[str, int]:
        """Structure name to label id."""
        return dict(STRUCTURES)

    def exam_id(self, index: int) -> str:
        """The name of exam ``index``, which is also the name of its folder on disk."""
        return f"phantom_{index:04d}"

    def template(self, phase: str = "portal") -> tuple[Volume, Volume]:
        """The template body at 2 mm: float32 HU without noise, and uint8 labels. World mm are template mm."""
        template = build_template()
        hu, _ = lookup(phase, np.random.default_rng(self.seed))
        return (
            Volume(hu[template.tissue], template.grid, "phantom template"),
            Volume(template.label.copy(), template.grid, "phantom template"),
        )

    def exam(self, index: int) -> PhantomExam:
        """Draw exam ``index``, counted from 0. This takes about half a second on one core at the default shape."""
        if index < 0:
            raise ValueError(f"PhantomCohort: exam index must not be negative, got {index}")
        # Each aspect has its own random stream, so that the anatomy does not depend on the field of view or the noise.
        streams = (np.random.default_rng([self.seed, index, aspect]) for aspect in range(4))
        for_pose, for_anatomy, for_view, for_scan = streams
        strength = 0.15 if index == 0 else 1.0
        pose = Pose.random(for_pose, strength)
        deformation = Deformation.random(for_anatomy, strength * self.deformation)
        region, grid = self._field_of_view(index, pose, for_view)
        phase = str(for_scan.choice(PHASES, p=(0.35, 0.25, 0.4)))
        coords = _template_coords(grid, pose, deformation)

        template = build_template()
        nearest = _nearest(coords, template.grid)
        labels, tissue = template.label.ravel()[nearest], template.tissue.ravel()[nearest]
        foreground = template.body.ravel()[nearest]
        hu = self._appearance(coords, tissue, foreground, grid, phase, for_scan)
        name = self.exam_id(index)
        return PhantomExam(
            name,
            Volume(hu, grid, name),
            Volume(labels, grid, name),
            coords,
            foreground,
            self.names,
            region,
            phase,
        )

    def _field_of_view(self, index: int, pose: Pose, generator: np.random.Generator) -> tuple[str, Grid]:
        """The visible part of the body, and its voxel grid: possibly tilted, in LPS order, or stored feet first."""
        # Steps of the golden ratio fill [0, 1) evenly, so that small cohorts also have their share of partial exams.
        start = np.random.default_rng([self.seed]).random()
        partial, pick = (start + GOLDEN * index) % 1 < self.partial, generator.integers(len(REGIONS))
        slack = generator.uniform(-1, 1, 5)
        tilt, flip_xy, flip_z = (
            generator.uniform(-5, 5, 3),
            generator.random() < 0.3,
            generator.random() < 0.15,
        )
        tilted = generator.random() < 0.3
        region = list(REGIONS)[pick] if partial and index > 0 else "whole"
        low, high = REGIONS.get(region, (THIGH, VERTEX))
        low += 0 if low == THIGH else 22 * slack[0]
        high += 20 + 8 * slack[1] if high == VERTEX else 22 * slack[1]
        bottom, top = pose.to_world(np.array([[0, 0, low], [0, 0, high]]))
        depth = (
            round(self.shape[0] * (high - low) / (VERTEX + 20 - THIGH))
            if region != "whole"
            else self.shape[0]
        )
        shape = (max(depth, 8), *self.shape[1:])
        wide = pose.scale * (1 + 0.04 * slack[2])
        extent = np.array([FIELD_OF_VIEW[0] * wide, FIELD_OF_VIEW[1] * wide, top[2] - bottom[2]])
        spacing = extent / np.array(shape[::-1])
        turn = rotation(*tilt) if tilted and index > 0 else np.eye(3)
        signs = np.array([-1, -1, 1]) if flip_xy and index > 0 else np.ones(3)
        signs = signs * (1, 1, -1 if flip_z and index > 0 else 1)
        centre = (bottom + top) / 2 + np.array([8 * slack[3], 8 * slack[4], 0])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(spacing * signs)
        affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
        return region, Grid(shape, affine)

    def _appearance(
        self,
        coords: NDArray[np.float32],
        tissue: NDArray[np.uint8],
        foreground: NDArray[np.bool_],
        grid: Grid,
        phase: str,
        generator: np.random.Generator,
    ) -> NDArray[np.float32]:
        """HU of the exam: tissues in their contrast phase, with texture, couch, and blur and noise of the scanner."""
        hu_of, texture_of = lookup(phase, generator)
        template = build_template()
        block = max(1, int(min(grid.spacing) // template.grid.spacing[0]))
        source = _pooled(hu_of[template.tissue], block)
        at = _voxels(coords, template.grid.pooled(block))
        hu = ndimage.map_coordinates(source, at, order=1, mode="nearest")

        steps = _steps(grid, GRAIN)
        cells = (n // k + 4 for n, k in zip(grid.shape, steps, strict=True))
        grain = upsample(generator.standard_normal((1, *cells), dtype=np.float32), grid.shape, steps)[0]
        # The spline reduces the standard deviation of the grain to about 0.4.
        hu += grain * texture_of[tissue] * np.float32(2.5)
        _add_couch(hu, grid, foreground)
        width = generator.uniform(1.2, 2.0)
        hu = ndimage.gaussian_filter(hu, [min(width / s, 1.0) for s in reversed(grid.spacing)], truncate=3.0)
        sigma = generator.uniform(7, 20) * self.noise
        noise = generator.standard_normal(grid.shape, dtype=np.float32)
        hu += np.float32(sigma) * noise
        return np.rint(hu).clip(AIR, 3071).astype(np.float32)


def _steps(grid: Grid, mm: float) -> tuple[int, int, int]:
    """About ``mm`` millimetres as whole voxels (z, y, x)."""
    return tuple(max(1, round(mm / s)) for s in reversed(grid.spacing))  # type: ignore[return-value]


def _world(grid: Grid, index: tuple[NDArray, ...], to: NDArray[np.float64]) -> NDArray[np.float32]:
    """Apply ``to @ affine`` to voxel indices (z, y, x), given as open arrays; returns points ``[3, ...]``."""
    m = to @ grid.affine
    k, j, i = (np.asarray(v, dtype=np.float64) for v in index)
    return np.stack(
        [(m[r, 0] * i + (m[r, 1] * j + (m[r, 2] * k + m[r, 3]))).astype(np.float32) for r in range(3)]
    )


def _template_coords(grid: Grid, pose: Pose, deformation: Deformation) -> NDArray[np.float32]:
    """T at every voxel: the exact pose, plus a cubic B-spline over samples of the deformation."""
    steps = _steps(grid, CONTROL_SPACING)
    control = [np.arange(-s, n + 2 * s, s) for n, s in zip(grid.shape, steps, strict=True)]
    to = pose.template_from_world()
    displacement = deformation.at(_world(grid, np.ix_(*control), to))
    coords = _world(grid, np.ix_(*(np.arange(n) for n in grid.shape)), to)
    coords += upsample(displacement, grid.shape, steps)
    return coords


def _voxels(coords: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Fractional indices ``[3, ...]`` (z, y, x) of points ``[3, ...]`` (x, y, z in mm) on an axis-aligned RAS grid."""
    origin, spacing = grid.affine[:3, 3].astype(np.float32), np.array(grid.spacing, dtype=np.float32)
    return np.stack([(coords[a] - origin[a]) / spacing[a] for a in (2, 1, 0)])


def _nearest(coords: NDArray[np.float32], grid: Grid) -> NDArray[np.intp]:
    """The flat index of the template voxel that is nearest to each point; points outside get a border voxel."""
    at = _voxels(coords, grid)
    z, y, x = (np.rint(a).clip(0, n - 1).astype(np.intp) for a, n in zip(at, grid.shape, strict=True))
    return (z * grid.shape[1] + y) * grid.shape[2] + x


def _pooled(array: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Mean over blocks, as a scanner averages over its voxels; incomplete blocks are dropped."""
    if block == 1:
        return array
    for axis in range(3):
        n = array.shape[axis] // block
        parts = [array[(slice(None),) * axis + (slice(i, n * block, block),)] for i in range(block)]
        array = sum(parts[1:], start=parts[0]) / np.float32(block)
    return array


def _add_couch(hu: NDArray[np.float32], grid: Grid, foreground: NDArray[np.bool_]) -> None:
    """Add a curved carbon-fibre couch under the patient. It is aligned with the world, not with the patient."""
    if not foreground.any():
        return
    x, y, _ = _world(grid, np.ix_(*(np.arange(n) for n in grid.shape)), np.eye(4))
    across = x - np.float32(x[foreground].mean())
    height = y - np.float32(0.0011) * across**2
    depth = np.float32(height[foreground].min() - 3) - height
    table = (depth > 0) & (depth < 24) & (np.abs(across) < 190) & ~foreground
    hu[table] = np.where((depth < 5) | (depth > 19), np.float32(-40), np.float32(-930))[table]
