"""Arrange the slices of a series on one orthogonal grid, from ImagePositionPatient and ImageOrientationPatient.

SliceLocation and the order of files and instance numbers are not used. A slice has a level (its distance along the
normal of the slices) and a shift (its position within its plane). Slices with even levels and equal shifts are a grid
already. Two deviations are corrected, and reported, without inventing anatomy:

- an even drift from slice to slice, as a tilted gantry causes: every slice is moved within its plane, linearly;
- levels that are uneven but leave no gap: voxels are interpolated linearly between the existing slices.

A gap is refused, because nothing tells what belongs there. So are slices that are shifted without a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DataError
from deepatlas.space.grid import SHEAR_TOLERANCE

# Slices closer than this (mm) share a level.
SAME_LEVEL = 0.01
# How far a level may be from its even position, as a fraction of the spacing, and from where on a warning is given.
EVEN = 0.05
NOTABLE = 0.01
# Shifts up to this fraction of a pixel are rounding errors.
STRAIGHT = 0.05
# A step longer than this multiple of the spacing around it has lost a slice.
GAP = 1.5
# Slices up to this multiple of their thickness apart leave nothing out.
ABUT = 1.1
# Number of equal steps in a row that make a part with a spacing of its own.
REGULAR_RUN = 3
# Differences up to these, of a direction cosine and of the pixel spacing in mm, are rounding errors.
SAME_ORIENTATION = 1e-3
SAME_SPACING = 1e-4
# Slices share a grid if no pixel lies farther from its place in it than this, in pixels.
SAME_GRID = 0.5
# Largest ratio between the spacings of the parts of one series.
MAX_STEP_RATIO = 4.0


@dataclass(frozen=True)
class Stack:
    """The slices of a series in the order of their levels.

    ``planes`` lists the given indices plane by plane (several if slices share a position). ``levels`` [K] and
    ``shifts`` [K, 2] (along x and y of the image) are in mm from the first plane. ``affine`` (4x4, LPS) and ``count``
    describe the orthogonal, even grid of the result before any shift. ``even`` and ``straight`` tell that levels and
    shifts need no correction.
    """

    planes: list[list[int]]
    levels: NDArray[np.float64]
    shifts: NDArray[np.float64]
    affine: NDArray[np.float64]
    count: int
    even: bool
    straight: bool
    corrections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (x, y, z) in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]


def axes_of(orientation: ArrayLike) -> NDArray[np.float64]:
    """Orthogonal unit vectors x, y and normal (the rows of [3, 3], LPS, right-handed) of an ImageOrientationPatient.

    Raises :class:`~deepatlas.errors.DataError` if its two directions are not unit vectors at a right angle.
    """
    x, y = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(x @ y) > SHEAR_TOLERANCE:
        raise DataError(
            "ImageOrientationPatient is not made of two unit vectors at a right angle; export the series again"
        )
    x = x / lengths[0]
    y = y - (x @ y) * x
    y = y / np.linalg.norm(y)
    return np.array([x, y, np.cross(x, y)])


def orientation_class(orientation: ArrayLike) -> str:
    """``axial``, ``coronal``, ``sagittal`` or ``oblique`` (more than 37 degrees from each)."""
    normal = np.abs(axes_of(orientation)[2])
    best = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[best] if normal[best] > 0.8 else "oblique"


@dataclass(frozen=True)
class Plane:
    """The in-plane grid that slices share: ImageOrientationPatient, and the size (x, y) of a pixel in mm.

    ``off`` is the largest distance, in pixels, between a pixel's place on it and where the header of its slice puts it.
    """

    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    off: float


def shared_plane(orientations: ArrayLike, spacings: ArrayLike, size: tuple[int, int]) -> Plane:
    """The grid of slices with almost equal orientations [N, 6] and spacings [N, 2] (x, y), of ``size`` (columns, rows).

    It is that of the first slice if they differ by rounding errors alone, otherwise the mean.
    """
    directions, sizes = np.asarray(orientations, dtype=np.float64), np.asarray(spacings, dtype=np.float64)
    orientation, spacing = directions[0], sizes[0]
    if (
        np.abs(directions - orientation).max() > SAME_ORIENTATION
        or np.abs(sizes - spacing).max() > SAME_SPACING
    ):
        orientation, spacing = axes_of(directions.mean(axis=0))[:2].ravel(), sizes.mean(axis=0)
    # The distance is largest at a corner: along x, along y, or along both.
    reach = np.array([[size[0] - 1, 0], [0, size[1] - 1], [size[0] - 1, size[1] - 1]], dtype=np.float64)
    own = np.einsum("cj,nj,njk->nck", reach, sizes, directions.reshape(-1, 2, 3))
    there = np.einsum("cj,j,jk->ck", reach, spacing, orientation.reshape(2, 3))
    apart, smallest = float(np.linalg.norm(own - there, axis=2).max()), float(spacing.min())
    # Slices without a pixel size are refused with their own reason later.
    off = apart / smallest if smallest > 0 else 0.0
    return Plane(tuple(map(float, orientation)), (float(spacing[0]), float(spacing[1])), off)


def arrange(
    positions: ArrayLike,
    orientation: ArrayLike,
    spacing: tuple[float, float],
    thickness: ArrayLike | None = None,
) -> Stack:
    """Stack slices.

    Args:
        positions: ImagePositionPatient of every slice, [N, 3] LPS mm, in any order.
        orientation: ImageOrientationPatient, which is the same for all slices.
        spacing: the size (x, y) of a pixel in mm.
        thickness: the thickness of every slice in mm, [N] (NaN: not known). If slices abut elsewhere, a wider step
            between thin slices is a gap even if it occurs several times in a row.

    Raises:
        DataError: one line without identifiers, if the slices are no volume: a gap (how many slices, and where), levels
            that are too close or too irregular, fewer than two levels.
    """
    axes = axes_of(orientation)
    positions = np.asarray(positions, dtype=np.float64)
    if min(spacing) <= 0:
        raise DataError("PixelSpacing is not positive; export the series again")
    local = (positions - positions[0]) @ axes.T
    order = np.argsort(local[:, 2], kind="stable")
    planes: list[list[int]] = []
    for index in order:
        if planes and local[index, 2] - local[planes[-1][0], 2] <= SAME_LEVEL:
            planes[-1].append(int(index))
        else:
            planes.append([int(index)])
    if len(planes) < 2:
        raise DataError("all its slices lie at one level, which makes no volume")
    for plane in planes:
        if np.ptp(local[plane, :2], axis=0).max() > SAME_LEVEL:
            raise DataError(
                f"{len(plane)} slices lie side by side at one level; export the parts of the series separately"
            )
    first = [plane[0] for plane in planes]
    levels = local[first, 2] - local[first[0], 2]
    shifts = local[first, :2] - local[first[0], :2]
    thick = np.full(len(positions), np.nan) if thickness is None else np.asarray(thickness, dtype=np.float64)
    start, step, even, notes, warnings = _step(levels, thick[first])
    count = len(levels) if even else int(np.floor(levels[-1] / step + EVEN)) + 1
    straight, tilt = _straight(shifts, levels, spacing)
    if tilt:
        notes.append(tilt)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * spacing[0], axes[1] * spacing[1], axes[2] * step
    affine[:3, 3] = positions[first[0]] + start * axes[2]
    if straight:
        # The rounding errors of the positions are distributed to both sides.
        affine[:3, 3] += (shifts.max(axis=0) + shifts.min(axis=0)) / 2 @ axes[:2]
    return Stack(planes, levels, shifts, affine, count, even, straight, notes, warnings)


def _step(
    levels: NDArray[np.float64], thickness: NDArray[np.float64]
) -> tuple[float, float, bool, list[str], list[str]]:
    """First level and spacing of the result, whether the levels are even already, corrections, and warnings."""
    steps = np.diff(levels)
    mean, start = (float(v) for v in np.polyfit(np.arange(len(levels)), levels, 1))
    off = float(np.abs(levels - start - mean * np.arange(len(levels))).max()) / mean
    # The thicker of the two slices of each step.
    ends = np.fmax(thickness[1:], thickness[:-1])
    if off <= EVEN:
        warnings = [f"slice positions are up to {off:.1%} of the spacing off"] * (off > NOTABLE)
        if np.isfinite(ends).all() and mean > GAP * ends.max() > 0:
            warnings.append(f"slices of {_mm(ends.max())} mm lie {_mm(mean)} mm apart")
        return start, mean, True, [], warnings
    reference = _reference(steps)
    if np.isfinite(ends).all() and ends.min() > 0 and np.percentile(steps / ends, 25) <= ABUT:
        reference = np.minimum(reference, np.maximum(ends, steps.min()))
    low, high = float(reference.min()), float(reference.max())
    _refuse_gaps(levels, steps, reference)
    close = int(np.count_nonzero(steps < low / 2))
    if close:
        raise DataError(
            f"{close} slices lie less than half the spacing ({low:g} mm) from their neighbour: two "
            "reconstructions in one series; export them separately"
        )
    if high > MAX_STEP_RATIO * low:
        raise DataError(f"its slice spacing changes from {low:g} to {high:g} mm; export its parts separately")
    varies = f"slice spacing {_mm(steps.min())} to {_mm(steps.max())} mm"
    return 0.0, low, False, [f"{varies} resampled to {_mm(low)} mm (linear between slices)"], []


def _reference(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each step the usual spacing there: that of its own run, or the widest of the neighbouring runs."""
    runs: list[list[int]] = [[0]]
    for index in range(1, len(steps)):
        usual = float(np.mean(steps[runs[-1]]))
        if abs(steps[index] - usual) <= max(EVEN * usual, 2 * SAME_LEVEL):
            runs[-1].append(index)
        else:
            runs.append([index])
    regular = [run for run in runs if len(run) >= REGULAR_RUN]
    if not regular:
        return np.full(len(steps), np.median(steps))
    reference = np.empty(len(steps))
    means = {run[0]: float(np.mean(steps[run])) for run in regular}
    for index in range(len(steps)):
        before = [run for run in regular if run[0] <= index]
        after = [run for run in regular if run[-1] >= index]
        beside = {run[0] for run in (before[-1:] + after[:1])}
        inside = {run[0] for run in regular if run[0] <= index <= run[-1]}
        reference[index] = max(means[start] for start in inside or beside)
    return reference


def _refuse_gaps(levels: NDArray, steps: NDArray, reference: NDArray) -> None:
    wide = np.flatnonzero(steps > GAP * reference)
    if not len(wide):
        return
    lost = np.maximum(np.rint(steps[wide] / reference[wide]).astype(int) - 1, 1)
    places = ", ".join(
        f"{n} after slice {k + 1} (at {_mm(levels[k])} of {_mm(levels[-1])} mm)"
        for k, n in zip(wide[:3], lost[:3], strict=True)
    )
    more = f" and {len(wide) - 3} more places" if len(wide) > 3 else ""
    total = int(lost.sum())
    raise DataError(
        f"{total} slice{'s' * (total != 1)} missing of {len(levels) + total}: {places}{more}; "
        "send the whole series again from the archive (PACS)"
    )


def _straight(
    shifts: NDArray[np.float64], levels: NDArray[np.float64], spacing: tuple[float, float]
) -> tuple[bool, str]:
    """Whether the slices lie exactly above each other, and otherwise a description of the correction."""
    pixels = np.ptp(shifts, axis=0) / spacing
    if pixels.max() / 2 <= STRAIGHT:
        return True, ""
    slope = levels @ shifts / (levels @ levels)
    residual = np.abs(shifts - np.outer(levels, slope)) / spacing
    if residual.max() > 2 * STRAIGHT:
        worst = _mm(np.ptp(shifts - np.median(shifts, axis=0), axis=0).max())
        raise DataError(
            f"its slices lie up to {worst} mm beside each other without the even drift of a tilted gantry; "
            "export its parts separately"
        )
    degrees = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    return False, f"gantry tilt of {degrees:.2f} degrees corrected (slices shifted in their plane, linear)"


def _mm(value: float) -> str:
    return f"{float(value):.4g}"
