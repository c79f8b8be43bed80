"""Random anatomy: smooth diffeomorphisms of the template space of the phantom, and poses of the body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.phantom.anatomy import HIGH, LOW
from deepatlas.phantom.shapes import rotation

Array = NDArray[np.float32]

# The distance in mm between the nodes of the velocity field.
STEP = 12.0
# The field extends this many mm beyond the template, because exams with a wide field of view extend beyond it as well.
MARGIN = 84.0
SQUARINGS = 6
MIN_DETERMINANT = 0.2

# Correlation length (sigma of the Gaussian that smooths white noise) and amplitude of each component, in mm.
SCALES = ((96.0, 17.0), (40.0, 3.5))
# The share of these amplitudes that remains in the head, because a skull bends less than a trunk.
HEAD_SHARE = 0.5
# Organ, centre and reach (sigma) in mm, and sigma of the strain with which the organ grows or shrinks.
SWELLING = (
    ("liver", (50, 4, -92), 46.0, 0.24),
    ("spleen", (-76, -32, -98), 30.0, 0.22),
    ("stomach", (-48, 18, -106), 36.0, 0.26),
    ("heart", (-16, 20, -16), 38.0, 0.24),
    ("bladder", (0, 8, -256), 32.0, 0.28),
    ("brain", (0, -8, 230), 55.0, 0.07),
    ("face", (0, 60, 140), 36.0, 0.14),
)
# Name, centre, reach, and sigma in mm of a shift along x, y, z.
SHIFTS = (
    ("diaphragm_right", (54, 0, -56), 42.0, (0, 0, 9)),
    ("diaphragm_left", (-54, 0, -62), 42.0, (0, 0, 9)),
    ("heart", (-16, 20, -16), 40.0, (8, 6, 8)),
    ("kidney_right", (57, -29, -150), 30.0, (4, 4, 9)),
    ("kidney_left", (-55, -29, -136), 30.0, (4, 4, 9)),
    ("shoulder_right", (134, -14, 50), 42.0, (6, 9, 11)),
    ("shoulder_left", (-134, -14, 50), 42.0, (6, 9, 11)),
    ("belly", (0, 80, -150), 60.0, (0, 10, 0)),
    ("thigh_right", (98, 0, -330), 48.0, (9, 10, 0)),
    ("thigh_left", (-98, 0, -330), 48.0, (9, 10, 0)),
)
# The same for small structures, where all are asked for.
SMALL_SWELLING = (
    ("orbit_right", (28, 62, 180), 16.0, 0.08),
    ("orbit_left", (-28, 62, 180), 16.0, 0.08),
    ("thyroid", (0, 20, 83), 20.0, 0.2),
    ("submandibular_gland_right", (28, 26, 112), 15.0, 0.16),
    ("submandibular_gland_left", (-28, 26, 112), 15.0, 0.16),
    ("gallbladder", (42, 44, -128), 20.0, 0.28),
    ("pancreas", (0, 18, -124), 26.0, 0.16),
)
SMALL_SHIFTS = (
    ("gallbladder", (42, 44, -128), 22.0, (4, 3, 5)),
    ("pancreas_head", (25, 24, -147), 24.0, (3, 3, 5)),
    ("pancreas_tail", (-50, -3, -108), 22.0, (3, 3, 5)),
    ("adrenal_right", (33, -18, -96), 18.0, (2, 3, 4)),
    ("adrenal_left", (-33, -26, -93), 18.0, (2, 3, 4)),
    ("submandibular_gland_right", (28, 26, 112), 18.0, (1.5, 2.5, 3)),
    ("submandibular_gland_left", (-28, 26, 112), 18.0, (1.5, 2.5, 3)),
)
# Sigma in mm of the motion of the diaphragm that both sides have in common.
BREATH = 9.0
# The centre of the head's rotation in mm, and sigma in degrees about x (nod), y (tilt) and z (turn).
NECK = (0.0, -28.0, 118.0)
HEAD_TURN = (7.0, 5.0, 8.0)


def velocity_nodes() -> tuple[Array, Array, Array]:
    """Template coordinates x, y, z in mm of the nodes of the velocity field, as open arrays."""
    axes = [
        np.arange(lo - MARGIN, hi + MARGIN + STEP, STEP, dtype=np.float32)
        for lo, hi in zip(LOW, HIGH, strict=True)
    ]
    return axes[0][None, None, :], axes[1][None, :, None], axes[2][:, None, None]


def _noise(generator: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Array:
    """Smooth noise of unit variance: white noise, filtered by a Gaussian of ``sigma`` nodes."""
    field = generator.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3.0)
    # Along each axis, a Gaussian of sigma s reduces the variance of white noise to 1 / (2 s sqrt(pi)).
    return smooth * np.float32((2 * sigma * np.sqrt(np.pi)) ** (len(shape) / 2))


def random_velocity(
    generator: np.random.Generator, strength: float = 1.0, *, small: np.random.Generator | None = None
) -> Array:
    """A random stationary velocity field ``[3, D, H, W]`` (x, y, z in mm).

    It is the sum of smooth noise, growth and shift of organs, breathing, and rotation of the head; ``strength`` scales
    all of them. With the generator ``small``, small structures also vary on their own.
    """
    x, y, z = velocity_nodes()
    shape = (z.shape[0], y.shape[1], x.shape[2])
    field = np.zeros((3, *shape), dtype=np.float32)
    for sigma, amplitude in SCALES:
        for axis in range(3):
            field[axis] += np.float32(amplitude) * _noise(generator, shape, sigma / STEP)
    level = np.clip((z - 70) / 100, 0, 1)
    head = (level * level * (3 - 2 * level)).astype(np.float32)
    field *= 1 - np.float32(1 - HEAD_SHARE) * head

    def bump(centre: tuple[float, float, float], reach: float) -> tuple[Array, ...]:
        offset = [(p - np.float32(c)) / np.float32(reach) for p, c in zip((x, y, z), centre, strict=True)]
        gx, gy, gz = (np.exp(-0.5 * o * o) for o in offset)
        return (gz * gy * gx, *(o * np.float32(reach) for o in offset))

    def swell(centre: tuple[float, float, float], reach: float, strain: float) -> None:
        weight, *offsets = bump(centre, reach)
        for axis in range(3):
            field[axis] += np.float32(strain) * weight * offsets[axis]

    for _, centre, reach, sigma in SWELLING:
        swell(centre, reach, sigma * generator.standard_normal())
    breath = BREATH * generator.standard_normal()
    for name, centre, reach, sigmas in SHIFTS:
        weight = bump(centre, reach)[0]
        shift = np.array(sigmas) * generator.standard_normal(3)
        shift[2] += breath if name.startswith("diaphragm") else 0
        for axis in np.flatnonzero(sigmas).tolist():
            field[axis] += np.float32(shift[axis]) * weight
    if small is not None:
        for _, centre, reach, sigma in SMALL_SWELLING:
            swell(centre, reach, sigma * small.standard_normal())
        for _, centre, reach, sigmas in SMALL_SHIFTS:
            weight = bump(centre, reach)[0]
            shift = np.array(sigmas) * small.standard_normal(3)
            for axis in range(3):
                field[axis] += np.float32(shift[axis]) * weight
    turn = np.deg2rad(np.array(HEAD_TURN) * generator.standard_normal(3).clip(-2, 2)).astype(np.float32)
    px, py, pz = (p - np.float32(c) for p, c in zip((x, y, z), NECK, strict=True))
    field[0] += head * (turn[1] * pz - turn[2] * py)
    field[1] += head * (turn[2] * px - turn[0] * pz)
    field[2] += head * (turn[0] * py - turn[1] * px)
    return field * np.float32(strength)


def exponential(velocity: Array) -> Array:
    """The displacement in mm after unit time of the flow along ``velocity``, by scaling and squaring."""
    displacement = velocity / np.float32(2**SQUARINGS)
    shape = displacement.shape[1:]
    index = [
        np.arange(n, dtype=np.float32).reshape([-1 if a == i else 1 for a in range(3)])
        for i, n in enumerate(shape)
    ]
    for _ in range(SQUARINGS):
        at = np.stack([index[i] + displacement[2 - i] / np.float32(STEP) for i in range(3)])
        displacement = displacement + np.stack(
            [ndimage.map_coordinates(d, at, order=1, mode="nearest") for d in displacement]
        )
    return displacement


def determinant(coords: NDArray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> NDArray:
    """The Jacobian determinant ``[D, H, W]`` of a map ``[3, D, H, W]`` (x, y, z), by central differences.

    ``spacing`` is the voxel size (x, y, z) in the unit of the map.
    """
    j = [np.gradient(c, *spacing[::-1]) for c in coords]
    rows = [(g[2], g[1], g[0]) for g in j]
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@dataclass(frozen=True)
class Deformation:
    """A diffeomorphism of template space: ``p -> p + displacement(p)``, all in mm."""

    displacement: Array  # [3, D, H, W], x, y, z at the nodes

    @classmethod
    def random(
        cls,
        generator: np.random.Generator,
        strength: float = 1.0,
        *,
        small: np.random.Generator | None = None,
    ) -> Deformation:
        """Draw a deformation. If its determinant is too close to zero, the velocity is reduced until it is not.

        With the generator ``small``, small structures also vary on their own.
        """
        velocity = random_velocity(generator, strength, small=small)
        x, y, z = velocity_nodes()
        while True:
            displacement = exponential(velocity)
            mapped = [p + d for p, d in zip((x, y, z), displacement, strict=True)]
            if determinant(np.stack(mapped), (STEP,) * 3).min() > MIN_DETERMINANT:
                return cls(displacement)
            velocity = velocity * np.float32(0.85)

    def at(self, points: NDArray) -> Array:
        """Displacement ``[3, ...]`` at points ``[3, ...]`` (x, y, z in mm), by cubic interpolation between nodes."""
        index = np.stack([(points[2 - i] - (LOW[2 - i] - MARGIN)) / STEP for i in range(3)])
        return np.stack(
            [ndimage.map_coordinates(d, index, order=3, mode="nearest") for d in self.displacement]
        )


@dataclass(frozen=True)
class Pose:
    """The position and the size of a body: ``world = matrix @ template + offset`` in mm."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    scale: float

    @classmethod
    def random(cls, generator: np.random.Generator, strength: float = 1.0) -> Pose:
        """Draw a pose: up to 6, 8 and 12 degrees about x, y and z, scale 0.85 to 1.15, and random proportions."""
        turn = generator.uniform(-1, 1, 3) * (6, 8, 12) * strength
        scale = float(np.exp(generator.uniform(np.log(0.85), np.log(1.15)) * strength))
        build = np.exp(generator.uniform(-1, 1, 3) * (0.09, 0.09, 0.05) * strength)
        table = np.array(
            [generator.uniform(-30, 30), generator.uniform(-40, 10), generator.uniform(-900, 600)]
        )
        return cls(rotation(*turn) @ np.diag(scale * build), table, scale)

    def template_from_world(self) -> NDArray[np.float64]:
        """The 4x4 matrix from world mm to template mm."""
        forward = np.eye(4)
        forward[:3, :3], forward[:3, 3] = self.matrix, self.offset
        return np.linalg.inv(forward)  # type: ignore[return-value]

    def to_world(self, points: NDArray) -> NDArray[np.float64]:
        """Convert template points ``[..., 3]`` (x, y, z in mm) to world mm."""
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.offset


def upsample(
    values: Array, shape: tuple[int, int, int], step: tuple[int, int, int], rows: slice = slice(None)
) -> Array:
    """A uniform cubic B-spline ``[C, *shape]`` with a control value of ``values [C, ...]`` at every ``step`` voxels.

    Only the slices ``rows`` (of z) are computed. The first control value is ``step`` voxels before voxel 0. The spline
    is twice differentiable. It is computed by element-wise sums in a fixed order, so that the result does not depend on
    the number of threads.
    """
    for axis, (n, k) in enumerate(zip(shape, step, strict=True), start=1):
        at = np.arange(n)[rows if axis == 1 else slice(None)] / k
        first = at.astype(int)
        t = (at - first).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        weights = (
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        )
        total = values.take(first, axis) * weights[0]
        for i in (1, 2, 3):
            total += values.take(first + i, axis) * weights[i]
        values = total
    return values
