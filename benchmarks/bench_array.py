"""deepatlas_ops.array against SciPy, SimpleITK, ANTsPy and the ops of PyTorch: what users of NumPy and ITK call."""

from __future__ import annotations

import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

import deepatlas_ops as ops
from deepatlas_ops import array

SIZE, SIZE_WHEN_TINY = 64, 12
CPU = torch.device("cpu")
# Of the grids in mm; the last axis of an array is the first one here.
SPACING, ORIGIN = (1.0, 1.2, 2.5), (-20.0, 30.0, 400.0)
# What is compared. SimpleITK takes other differences at the border, and gives 0 where a place lies beyond it by a
# rounding error.
INNER = (..., slice(1, -1), slice(1, -1), slice(1, -1))


@pytest.fixture
def size(record):
    try:
        array.build_info()
    except RuntimeError as error:
        pytest.skip(str(error))
    array.set_num_threads(torch.get_num_threads())
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    return SIZE if record.measuring else SIZE_WHEN_TINY


def identity(size):
    axis = np.linspace(-1, 1, size)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1])[None]


def bend(size, phase=0.0):
    """A smooth displacement in normalised coordinates that ends at the border, where the libraries differ."""
    here = identity(size)
    waves = 0.12 * np.sin(2.5 * here[:, ::-1] + np.array([phase, 1.0, -0.7]).reshape(1, 3, 1, 1, 1))
    return (waves * (1 - here**2).prod(1, keepdims=True)).astype(np.float32)


def volume_of(size):
    return np.random.default_rng(0).normal(size=(1, 1, size, size, size)).astype(np.float32)


def tensor(run):
    """A candidate whose result the recorder compares."""
    return lambda: torch.from_numpy(np.ascontiguousarray(run(), np.float32))


def image_of(values):
    image = sitk.GetImageFromArray(values, isVector=values.ndim == 4)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    return image


def field_of(size, phase=0.0):
    """A displacement field in mm, float64, as SimpleITK's filters take it."""
    half = (size - 1) / 2 * np.array(SPACING).reshape(3, 1, 1, 1)
    return image_of(np.ascontiguousarray(np.moveaxis(bend(size, phase)[0] * half, 0, -1), np.float64))


def ants_field(field):
    """The field as ANTsPy takes it, float32, and ANTsPy; None where it is not installed."""
    # ANTsPy reads this when it is imported, and has no other way to set the number of threads.
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))
    try:
        import ants
    except ImportError:
        return None, None
    vectors = np.moveaxis(sitk.GetArrayFromImage(field), (0, 1, 2), (2, 1, 0))
    kind = {"spacing": SPACING, "origin": ORIGIN, "has_components": True}
    return ants.from_numpy(np.ascontiguousarray(vectors, np.float32), **kind), ants


def by_ants(function):
    """A candidate of ANTsPy that returns a field."""
    return tensor(lambda: np.moveaxis(function().numpy(), (0, 1, 2), (2, 1, 0)))


def native(function, *arrays):
    """The op of PyTorch, on tensors that share the memory of the arrays."""
    tensors = [torch.from_numpy(a) for a in arrays]

    def run():
        with ops.use_backend("native"), torch.no_grad():
            return function(*tensors)

    return run


def test_resample(record, size):
    volume, coords = volume_of(size), (identity(size) + bend(size)).astype(np.float32)
    index = (coords[0, ::-1] + 1) * (size - 1) / 2
    runs = {
        "array": tensor(lambda: array.resample(volume, coords)),
        "native": native(ops.resample, volume, coords),
        "scipy": tensor(
            lambda: ndimage.map_coordinates(volume[0, 0], index, order=1, mode="nearest")[None, None]
        ),
    }
    record(f"array.resample {size}^3", runs, 2 * volume.nbytes + coords.nbytes, CPU)


def test_warp(record, size):
    volume, displacement, field = volume_of(size), bend(size), field_of(size)
    image = image_of(volume[0, 0])
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))

    def by_sitk():
        return sitk.GetArrayFromImage(sitk.Resample(image, transform, sitk.sitkLinear))[None, None]

    runs = {
        "array": tensor(lambda: array.warp(volume, displacement)[INNER]),
        "native": lambda: native(ops.warp, volume, displacement)()[INNER],
        "SimpleITK": tensor(lambda: by_sitk()[INNER]),
    }
    record(f"array.warp {size}^3", runs, 2 * volume.nbytes + displacement.nbytes, CPU)


def test_resize(record, size):
    volume, target = volume_of(size), (2 * size,) * 3
    image = sitk.GetImageFromArray(volume[0, 0])
    spacing = [(size - 1) / (2 * size - 1)] * 3

    def by_sitk():
        grid = (sitk.Transform(), sitk.sitkLinear, (0, 0, 0), spacing)
        return sitk.GetArrayFromImage(sitk.Resample(image, target, *grid))[None, None]

    runs = {
        "array": tensor(lambda: array.resize(volume, target)[INNER]),
        "native": lambda: native(lambda v: ops.resize(v, target), volume)()[INNER],
        "scipy": tensor(lambda: ndimage.zoom(volume[0, 0], 2, order=1)[None, None][INNER]),
        "SimpleITK": tensor(lambda: by_sitk()[INNER]),
    }
    record(f"array.resize {size}^3 to {2 * size}^3", runs, 9 * volume.nbytes, CPU)


@pytest.mark.parametrize("window", [None, 7])
def test_ncc(record, size, window):
    a, b = volume_of(size), volume_of(size) + 0.5 * volume_of(size)[:, :, ::-1]
    runs = {
        "array": tensor(lambda: array.ncc(a, b, window=window)),
        "native": native(lambda x, y: ops.ncc(x, y, window=window), a, b),
    }
    if window is None:
        runs["numpy"] = tensor(lambda: np.corrcoef(a.ravel(), b.ravel())[:1, 1:])
    name = f"array.ncc {size}^3" + (f" window {window}" if window else "")
    record(name, runs, a.nbytes + b.nbytes, CPU)


def test_log_jacobian(record, size):
    field = (identity(size) + bend(size)).astype(np.float32)
    image = field_of(size)

    def by_sitk():
        return np.log(sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image)))[None, None]

    runs = {
        "array": tensor(lambda: array.log_jacobian(field)[INNER]),
        "native": lambda: native(ops.log_jacobian, field)()[INNER],
        "SimpleITK": tensor(lambda: by_sitk()[INNER]),
    }
    record(f"array.log_jacobian {size}^3", runs, field.nbytes * 4 // 3, CPU)


def test_invert_displacement(record, size):
    field = field_of(size)

    def by_sitk():
        return sitk.InvertDisplacementField(
            field, maximumNumberOfIterations=20, maxErrorToleranceThreshold=1e-3,
            meanErrorToleranceThreshold=1e-4, enforceBoundaryCondition=False,
        )  # fmt: skip

    runs = {
        "array": tensor(lambda: sitk.GetArrayFromImage(array.invert_displacement(field).field)),
        "SimpleITK": tensor(lambda: sitk.GetArrayFromImage(by_sitk())),
    }
    inverse, ants = ants_field(field)
    if ants:
        start = inverse * 0
        runs["ANTsPy"] = by_ants(
            lambda: ants.invert_displacement_field(
                inverse, start, 20, 1e-4, 1e-3, enforce_boundary_condition=False
            )
        )
    record(f"array.invert_displacement {size}^3", runs, 2 * 24 * size**3, CPU, tolerance=5e-2)


def test_compose_displacements(record, size):
    first, second = field_of(size), field_of(size, phase=1.0)
    transforms = [sitk.DisplacementFieldTransform(sitk.Image(f)) for f in (second, first)]
    composite = sitk.CompositeTransform(transforms)

    def by_sitk():
        grid = (sitk.sitkVectorFloat64, first.GetSize(), ORIGIN, SPACING)
        return sitk.TransformToDisplacementField(composite, *grid)

    runs = {
        "array": tensor(lambda: sitk.GetArrayFromImage(array.compose_displacements(first, second))),
        "SimpleITK": tensor(lambda: sitk.GetArrayFromImage(by_sitk())),
    }
    (one, ants), (two, _) = ants_field(first), ants_field(second)
    if ants:
        runs["ANTsPy"] = by_ants(lambda: ants.compose_displacement_fields(two, one))
    record(f"array.compose_displacements {size}^3", runs, 3 * 24 * size**3, CPU)
