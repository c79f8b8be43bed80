"""A cohort of procedural whole-body CTs for which the true template coordinate of every voxel is known.

Exam i is the template body (:mod:`deepatlas.phantom.anatomy`), resampled by ``T = D o P``: a pose P with random
proportions, followed by a smooth diffeomorphism D (and by that of its population, if it has one). Its HU, labels and
foreground at x are those of the template at T(x). T(x) itself is :attr:`PhantomExam.coords`, the ground truth that no
real exam has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.phantom.anatomy import THIGH, VERTEX, Template, build_template, inner_points
from deepatlas.phantom.deform import Deformation, Pose, upsample
from deepatlas.phantom.shapes import rotation
from deepatlas.phantom.structures import ALL_STRUCTURES, STRUCTURES
from deepatlas.phantom.tissue import PHASES, lookup
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# The shape (D, H, W) of a whole-body exam.
SHAPE = (112, 80, 96)
STRUCTURE_SETS = {"large": STRUCTURES, "all": ALL_STRUCTURES}
# The smallest and the largest spacing in mm, and the one from which on a template at 2 mm is fine enough.
SPACINGS = (0.75, 12.0)
FINE_BELOW = 3.0
# The strength of the deformation that leads from one population to another.
POPULATION = 0.8
# Voxels of a slab.
SLAB = 1 << 21
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

    def voxels(self) -> dict[str, int]:
        """Structure name to the number of its voxels."""
        counts = np.bincount(self.labels.array.ravel(), minlength=max(self.names.values()) + 1)
        return {name: int(counts[k]) for name, k in self.names.items()}


@dataclass(frozen=True)
class PhantomCohort:
    """Exams drawn from a seed. Exam i depends neither on the exams drawn before it nor on the number of threads.

    ``shape`` (D, H, W) is the shape of a whole-body exam, whose default gives voxels of about 6 x 4 x 4 mm (z, y, x); a
    partial exam has fewer slices. ``spacing`` asks for cubic voxels of so many mm instead, whatever their number.
    ``partial`` is the share of partial exams. ``deformation`` scales the variation of the anatomy (at 1 the best affine
    alignment reaches a mean Dice of about 0.5), and ``noise`` the noise of the scanner. Exam 0 always shows the whole
    body with a mild deformation, so that it can initialise an atlas.

    ``structures`` is "large" (21 structures) or "all" (42, with lenses, cochleas, adrenals and other small ones). A
    voxel has the label of the structure at its centre, on any grid: volumes are right on average, and a structure
    smaller than a voxel is missing where it lies between centres; :meth:`unresolved` names those. ``anatomy`` is the
    number of a population: 0 is the template body itself, and others have another mean body, with the same coordinates.

    Raises ValueError for values that are out of range.
    """

    seed: int = 0
    shape: tuple[int, int, int] = SHAPE
    partial: float = 0.3
    deformation: float = 1.0
    noise: float = 1.0
    structures: str = "large"
    spacing: float | None = None
    anatomy: int = 0

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
        if self.structures not in STRUCTURE_SETS:
            raise ValueError(
                f"PhantomCohort: structures must be {' or '.join(STRUCTURE_SETS)}, got {self.structures!r}"
            )
        if self.spacing is not None and not SPACINGS[0] <= self.spacing <= SPACINGS[1]:
            raise ValueError(
                f"PhantomCohort: spacing must be {SPACINGS[0]} to {SPACINGS[1]} mm, got {self.spacing}"
            )
        if self.spacing is not None and self.shape != SHAPE:
            raise ValueError("PhantomCohort: shape and spacing exclude each other; give one of them")
        if self.anatomy < 0 or self.seed < 0:
            raise ValueError(
                f"PhantomCohort: seed and anatomy must not be negative, got {self.seed} and {self.anatomy}"
            )

    @cached_property
    def names(self) -> dict[str, int]:
        """Structure name to label id."""
        return dict(STRUCTURE_SETS[self.structures])

    @property
    def body(self) -> Template:
        """The template body of the cohort, at 1 mm for fine voxels and otherwise at 2 mm."""
        fine = self.spacing is not None and self.spacing < FINE_BELOW
        return build_template(self.structures == "all", 1.0 if fine else 2.0)

    def exam_id(self, index: int) -> str:
        """The name of exam ``index``, which is also the name of its folder on disk."""
        return f"phantom_{index:04d}"

    def template(self, phase: str = "portal") -> tuple[Volume, Volume]:
        """The template body: float32 HU without noise, and uint8 labels. World mm are template mm."""
        template = self.body
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
        streams = (np.random.default_rng([self.seed, index, aspect]) for aspect in range(5))
        for_pose, for_anatomy, for_view, for_scan, for_small = streams
        strength = 0.15 if index == 0 else 1.0
        pose = Pose.random(for_pose, strength)
        small = for_small if self.structures == "all" else None
        deformation = Deformation.random(for_anatomy, strength * self.deformation, small=small)
        region, grid = self._field_of_view(index, pose, for_view)
        phase = str(for_scan.choice(PHASES, p=(0.35, 0.25, 0.4)))
        name, template = self.exam_id(index), self.body
        to_template = _TemplateCoords(grid, pose, [deformation, *_population(self.anatomy)])
        paint = _Appearance(template, grid, phase, for_scan)
        coords = np.empty((3, *grid.shape), dtype=np.float32)
        labels, foreground = np.empty(grid.shape, np.uint8), np.empty(grid.shape, np.bool_)
        hu = np.empty(grid.shape, dtype=np.float32)
        # Slab by slab, because the temporary arrays of a fine exam would take gigabytes.
        for rows in _slabs(grid.shape):
            coords[:, rows] = to_template.at(rows)
            nearest = _nearest(coords[:, rows], template.grid)
            labels[rows] = template.label.ravel()[nearest]
            foreground[rows] = template.body.ravel()[nearest]
            hu[rows] = paint.tissues(coords[:, rows], template.tissue.ravel()[nearest], rows)
        _add_couch(hu, grid, foreground)
        hu = paint.scanned(hu, self.noise)
        return PhantomExam(
            name, Volume(hu, grid, name), Volume(labels, grid, name), coords, foreground, self.names, region, phase
        )  # fmt: skip

    def unresolved(self, exam: PhantomExam) -> list[str]:
        """The structures that lie in the field of view of an exam of this cohort and have no voxel.

        Their voxels are too large for them; see ``spacing``.
        """
        missing = [name for name, count in exam.voxels().items() if not count]
        reach = np.linalg.norm(exam.volume.grid.spacing)
        return [name for name in missing if _nearest_distance(exam.coords, self._middles[name]) < reach]

    @cached_property
    def _middles(self) -> dict[str, NDArray[np.float64]]:
        return inner_points(self.body, self.names)

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
        wide = pose.scale * (1 + 0.04 * slack[2])
        extent = np.array([FIELD_OF_VIEW[0] * wide, FIELD_OF_VIEW[1] * wide, top[2] - bottom[2]])
        shape, spacing = self._voxels(
            extent, 1 if region == "whole" else (high - low) / (VERTEX + 20 - THIGH)
        )
        turn = rotation(*tilt) if tilted and index > 0 else np.eye(3)
        signs = np.array([-1, -1, 1]) if flip_xy and index > 0 else np.ones(3)
        signs = signs * (1, 1, -1 if flip_z and index > 0 else 1)
        centre = (bottom + top) / 2 + np.array([8 * slack[3], 8 * slack[4], 0])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(spacing * signs)
        affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
        return region, Grid(shape, affine)

    def _voxels(
        self, extent: NDArray[np.float64], share: float
    ) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
        """The shape (D, H, W) and the spacing (x, y, z) of a field of view of ``extent`` mm (x, y, z).

        It has ``share`` of the slices of a whole body.
        """
        if self.spacing is not None:
            width, height, depth = (max(int(np.ceil(mm / self.spacing)), 8) for mm in extent)
            return (depth, height, width), np.full(3, float(self.spacing))
        shape = (max(self.shape[0] if share == 1 else round(self.shape[0] * share), 8), *self.shape[1:])
        return shape, extent / np.array(shape[::-1])


class _Appearance:
    """HU of an exam: tissues in their contrast phase, with texture, then blur and noise of the scanner."""

    def __init__(self, template: Template, grid: Grid, phase: str, generator: np.random.Generator) -> None:
        hu_of, self._texture_of = lookup(phase, generator)
        self._grid, self._generator = grid, generator
        block = max(1, int(min(grid.spacing) // template.grid.spacing[0]))
        if template.grid.spacing[0] < 2:
            # In integers, a template at 1 mm takes 134 MB instead of 268.
            hu_of = np.rint(hu_of).astype(np.int16)
        self._source = _pooled(hu_of[template.tissue], block)
        self._source_grid = template.grid.pooled(block)
        self._steps = _steps(grid, GRAIN)
        cells = (n // k + 4 for n, k in zip(grid.shape, self._steps, strict=True))
        self._grain = generator.standard_normal((1, *cells), dtype=np.float32)

    def tissues(
        self, coords: NDArray[np.float32], tissue: NDArray[np.uint8], rows: slice
    ) -> NDArray[np.float32]:
        """HU of the slices ``rows``, given their template coordinates and tissue ids."""
        at = _voxels(coords, self._source_grid)
        hu = ndimage.map_coordinates(self._source, at, np.float32, order=1, mode="nearest")
        grain = upsample(self._grain, self._grid.shape, self._steps, rows)[0]
        # The spline reduces the standard deviation of the grain to about 0.4.
        hu += grain * self._texture_of[tissue] * np.float32(2.5)
        return hu

    def scanned(self, hu: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        """The whole volume, blurred and with noise."""
        width = self._generator.uniform(1.2, 2.0)
        blur = [min(width / s, 1.0) for s in reversed(self._grid.spacing)]
        hu = ndimage.gaussian_filter(hu, blur, truncate=3.0)
        sigma = np.float32(self._generator.uniform(7, 20) * noise)
        for rows in _slabs(hu.shape):
            part = hu[rows]
            part += sigma * self._generator.standard_normal(part.shape, dtype=np.float32)
            hu[rows] = np.rint(part).clip(AIR, 3071)
        return hu


class _TemplateCoords:
    """T at every voxel: the exact pose, plus a cubic B-spline over samples of the deformations, one after another."""

    def __init__(self, grid: Grid, pose: Pose, deformations: Sequence[Deformation]) -> None:
        self._grid, self._steps = grid, _steps(grid, CONTROL_SPACING)
        control = [np.arange(-s, n + 2 * s, s) for n, s in zip(grid.shape, self._steps, strict=True)]
        self._to = pose.template_from_world()
        start = _world(grid, np.ix_(*control), self._to)
        self._displacement = deformations[0].at(start)
        for deformation in deformations[1:]:
            self._displacement += deformation.at(start + self._displacement)

    def at(self, rows: slice) -> NDArray[np.float32]:
        """The template coordinates ``[3, ...]`` of the voxels of the slices ``rows``."""
        axes = [np.arange(n) for n in self._grid.shape]
        coords = _world(self._grid, np.ix_(axes[0][rows], *axes[1:]), self._to)
        coords += upsample(self._displacement, self._grid.shape, self._steps, rows)
        return coords


@lru_cache(maxsize=4)
def _population(anatomy: int) -> tuple[Deformation, ...]:
    """From the mean body of a population to the template body."""
    if anatomy == 0:
        return ()
    streams = [np.random.default_rng([anatomy, 1 << 20, aspect]) for aspect in range(2)]
    return (Deformation.random(streams[0], POPULATION, small=streams[1]),)


def _nearest_distance(coords: NDArray[np.float32], point: NDArray[np.float64], step: int = 8) -> float:
    """The distance in mm from a point (x, y, z) to the nearest of smooth ``coords``: coarsely, then around there."""
    box: tuple[slice, ...] = tuple(slice(0, n) for n in coords.shape[1:])
    while True:
        part = coords[:, *(slice(s.start, s.stop, step) for s in box)]
        squares = sum((part[a] - np.float32(point[a])) ** 2 for a in range(3))
        if step == 1:
            return float(np.sqrt(squares.min()))
        index = np.unravel_index(squares.argmin(), squares.shape)
        at = [s.start + i * step for s, i in zip(box, index, strict=True)]
        box = tuple(
            slice(max(0, i - step), min(n, i + step + 1)) for i, n in zip(at, coords.shape[1:], strict=True)
        )
        step //= 2


def _slabs(shape: tuple[int, ...]) -> list[slice]:
    """The slices of a volume in slabs of about two million voxels."""
    rows = max(1, SLAB // (shape[1] * shape[2]))
    return [slice(z, min(z + rows, shape[0])) for z in range(0, shape[0], rows)]


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
    axes = [np.arange(n) for n in grid.shape]

    def place(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x, y, _ = _world(grid, np.ix_(axes[0][rows], *axes[1:]), np.eye(4))
        return x, y

    slabs = _slabs(grid.shape)
    middle = np.concatenate([place(rows)[0][foreground[rows]] for rows in slabs]).mean()

    def above(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x, y = place(rows)
        across = x - np.float32(middle)
        return across, y - np.float32(0.0011) * across**2

    back = min(above(rows)[1][foreground[rows]].min(initial=np.inf) for rows in slabs)
    for rows in slabs:
        across, height = above(rows)
        depth = np.float32(back - 3) - height
        table = (depth > 0) & (depth < 24) & (np.abs(across) < 190) & ~foreground[rows]
        hu[rows][table] = np.where((depth < 5) | (depth > 19), np.float32(-40), np.float32(-930))[table]
