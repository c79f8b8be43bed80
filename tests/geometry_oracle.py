"""Random grids, and images whose values are positions: the tools of the proofs of geometry.

Each voxel of a ramp image holds its own index along one axis. Linear interpolation and averaging preserve linear
functions exactly, so that the values of a resampled ramp image are the positions in the source from which they came. If
a grid gives another position, the grid is wrong by the difference.
"""

from __future__ import annotations

import os

import numpy as np
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import to_model_grid
from deepatlas.space.upright import TOLERANCE_DEGREES, obliqueness
from deepatlas.space.volume import Volume

LPS = np.array([-1.0, -1.0, 1.0])
# Run a hundred times as many examples.
LONG = bool(os.environ.get("DEEPATLAS_LONG_TESTS"))


def examples(count: int):
    """Settings of a property test with ``count`` random examples, or a hundred times as many in the long tests."""
    return settings(
        max_examples=100 * count if LONG else count,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.function_scoped_fixture,
            HealthCheck.filter_too_much,
        ],
    )


def unit(low: float = 0.0, high: float = 1.0):
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


@st.composite
def grids(draw, smallest: int = 4, largest: int = 72, spacing=(0.2, 12.0), mirrored: bool = True) -> Grid:
    """Grids of any rotation, axis order, axis direction and origin; spacings may differ by a factor of 60."""
    shape = tuple(draw(st.integers(smallest, largest)) for _ in range(3))
    low, high = np.log(spacing)
    sizes = np.exp([draw(unit(low, high)) for _ in range(3)])
    turn = Rotation.from_rotvec([draw(unit(-3.1, 3.1)) for _ in range(3)]).as_matrix()
    if draw(st.booleans()):
        turn = np.round(Rotation.from_euler("z", 90 * draw(st.integers(0, 3)), degrees=True).as_matrix())
    # SimpleITK reads a direction such as 1e-300 from an NRRD file as none at all.
    turn = np.where(np.abs(turn) < 1e-12, 0.0, turn)
    columns = turn[:, draw(st.permutations([0, 1, 2]))] * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    if not mirrored and np.linalg.det(columns) < 0:
        columns[:, 0] *= -1
    affine = np.eye(4)
    affine[:3, :3] = columns * sizes
    affine[:3, 3] = [draw(unit(-600, 600)) for _ in range(3)]
    return Grid(shape, affine)


def itk_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    """A SimpleITK image with this geometry; the conversion to LPS is independent of the package."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
    image.SetDirection((np.diag(LPS) @ grid.affine[:3, :3] / grid.spacing).ravel().tolist())
    return image


def index_arrays(shape) -> list[np.ndarray]:
    """The ramp images: float32 arrays of the x, y and z index of every voxel."""
    return [a.astype(np.float32) for a in np.indices(shape)[::-1]]


def in_air(array: np.ndarray) -> np.ndarray:
    """The array inside a box-shaped body, with -1000 HU around it, except along axes of fewer than 24 voxels."""
    inside = np.zeros(array.shape, dtype=bool)
    rims = [round(0.15 * n) if n >= 24 else 0 for n in array.shape]
    inside[tuple(slice(rim, n - rim) for rim, n in zip(rims, array.shape, strict=True))] = True
    return np.where(inside, array, np.float32(-1000))


def inner_point(grid: Grid, where) -> np.ndarray:
    """A world point in the middle third of every axis and within 80 mm of the centre; ``where`` is in [0, 1]^3."""
    last = np.array(grid.shape[::-1]) - 1
    point, centre = (
        grid.voxel_to_world(last * (0.34 + 0.32 * np.asarray(where))),
        grid.voxel_to_world(last / 2),
    )
    distance = np.linalg.norm(point - centre)
    return centre + (point - centre) * min(1.0, 80 / max(distance, 1e-9))


def straight_for_the_crop(grid: Grid, crop: str | None) -> None:
    """Discard an example whose box-shaped body would lie askew.

    The crop takes its corners for slices without a patient,
    and finds nothing in a thin slab that lies across its blocks.
    """
    assume(crop is None or obliqueness(grid) <= TOLERANCE_DEGREES)


def found_index(
    ramps: list[Volume], point: np.ndarray, size: int = 64, crop: str | None = None
) -> np.ndarray:
    """The source position (voxels x, y, z) of the world point ``point`` (RAS mm) in the model space of ``size``³.

    The point is converted to normalised coordinates of the model space, as a network uses them, and the resampled ramps
    are read at these coordinates.
    """
    found = []
    for volume in ramps:
        turned = obliqueness(volume.grid) > TOLERANCE_DEGREES
        straight_for_the_crop(volume.grid, crop)
        model = to_model_grid(volume, size, crop)
        if turned:
            # Beyond a turned exam there is air, which must not be mixed into the ramps around the point.
            reach = np.array(list(np.ndindex(3, 3, 3))) - 1.0
            reach = point + reach * (1.5 * max(model.grid.spacing) + max(volume.grid.spacing))
            share = volume.grid.world_to_voxel(reach) / np.maximum(np.array(volume.grid.shape[::-1]) - 1, 1)
            rim = 0.17 if crop else 0.0
            assume(bool((share >= rim).all() and (share <= 1 - rim).all()))
        assert model.grid.shape == (size,) * 3
        normalised = model.grid.world_to_normalized(point)
        assert np.abs(normalised).max() <= 1, "the point has left the model's field of view"
        voxel = (normalised + 1) / 2 * (size - 1)
        found.append(map_coordinates(model.array.astype(np.float64), voxel[::-1, None], order=1)[0])
        back = model.grid.normalized_to_world(np.float32(normalised))
        assert np.abs(volume.grid.world_to_voxel(back - point + volume.grid.affine[:3, 3])).max() < 0.01
    return np.array(found)
