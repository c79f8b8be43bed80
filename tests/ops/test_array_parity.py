"""The kernels for arrays: bit for bit those of the ops, and as scipy says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_kernels import axis, identity, wavy, why_no_arrays
from scipy import ndimage

import deepatlas_ops as ops
from deepatlas_ops import array, reference
from deepatlas_ops.array import _library, _step_matrix

pytestmark = [
    pytest.mark.skipif(why_no_arrays() is not None, reason=str(why_no_arrays())),
    pytest.mark.usefixtures("native"),
]

DTYPES = ["float32", "float64"]
# The shapes of a volume and of a field.
SHAPES = [
    ((9, 10, 11), (7, 12, 5)),
    ((1, 6, 1), (5, 1, 9)),
    ((13, 2, 131), (3, 2, 129)),
    ((1, 1, 1), (2, 1, 3)),
]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def same(got, want):
    assert isinstance(got, np.ndarray) and got.flags.c_contiguous
    np.testing.assert_array_equal(got, want.numpy(), strict=True)


def on_tensors(function, *arrays, **options):
    return function(*(None if a is None else torch.from_numpy(a) for a in arrays), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("size, out", SHAPES)
def test_sampling_has_the_bits_of_the_ops(random, size, out, mode, padding, dtype):
    volume = random.normal(size=(2, 3, *size)).astype(dtype)
    field = random.uniform(-1.3, 1.3, (2, 3, *out)).astype(dtype)
    field[0, 1, 0, 0, 0] = np.nan
    options = {"mode": mode, "padding": padding}
    same(array.resample(volume, field, **options), on_tensors(ops.resample, volume, field, **options))
    same(array.warp(volume, 0.2 * field, **options), on_tensors(ops.warp, volume, 0.2 * field, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, out", SHAPES)
def test_resize_has_the_bits_of_the_op(random, size, out, dtype):
    volume = random.normal(size=(2, 3, *size)).astype(dtype)
    same(array.resize(volume, out), on_tensors(ops.resize, volume, size=out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [shape for shapes in SHAPES for shape in shapes])
def test_jacobians_have_the_bits_of_the_ops(random, size, dtype):
    field = random.normal(size=(2, 3, *size)).astype(dtype)
    mask = random.uniform(size=(2, 1, *size)) > 0.4
    for options in ({}, {"normalize_columns": True}, {"eps": 0.1}):
        same(array.log_jacobian(field, **options), on_tensors(ops.log_jacobian, field, **options))
    for differences in ("central", "digital"):
        options = {"differences": differences}
        same(array.folds(field, **options), on_tensors(ops.folds, field, **options))
        masked = array.folds(field, mask, **options)
        assert masked.dtype == dtype
        np.testing.assert_allclose(masked, on_tensors(ops.folds, field, mask, **options), rtol=1e-6)
    assert array.folds(field, np.zeros_like(mask)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 3, 7, 2**70 + 1])
@pytest.mark.parametrize("size", [(9, 10, 11), (1, 6, 1), (3, 2, 65)])
def test_ncc_has_the_bits_of_the_op(random, size, window, dtype):
    a, b = random.normal(size=(2, 2, 3, *size)).astype(dtype)
    mask = random.integers(0, 3, (2, 1, *size))
    # The schema of the op has 64 bits for the window.
    narrow = window and min(window, 2**62 + 1)
    for weights in (None, mask):
        same(array.ncc(a, b, weights, window=window), on_tensors(ops.ncc, a, b, weights, window=narrow))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", ["moving", "fixed", "literal", "direction_cosine", "newton"])
def test_inversion_has_the_bits_of_the_op_for_the_same_matrix(step, dtype):
    moving = np.concatenate([wavy((9, 10, 11)), 0.9 * wavy((9, 10, 11), 0.05)]).astype(dtype)
    fixed = np.concatenate([wavy((7, 8, 5), 0.03), identity((7, 8, 5))]).astype(dtype)
    matrix, ruler = _step_matrix.matrices(moving, fixed, None, step)
    newton = step == "newton"
    found = _library.kernels().implicit_warp(moving, fixed, matrix, ruler, 6, 1e-4, newton)
    tensors = [None if a is None else torch.from_numpy(a) for a in (moving, fixed, matrix, ruler)]
    for got, want in zip(
        found, torch.ops.deepatlas_ops.implicit_warp(*tensors, 6, 1e-4, newton), strict=True
    ):
        same(got, want)
    # The public functions differ by the rounding of the matrix, which is computed in float64 for arrays.
    result = array.implicit_warp(moving, fixed, step=step, iterations=30)
    expected = on_tensors(ops.implicit_warp, moving, fixed, step=step, iterations=30)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(result.displacement, expected.displacement, atol=tolerance)
    np.testing.assert_allclose(result.residual, expected.residual, atol=100 * tolerance)
    assert result.valid.dtype == bool and (result.valid == expected.valid.numpy()).mean() > 0.99


@pytest.mark.parametrize("step", ["moving", "fixed", "literal", "direction_cosine", "newton"])
@pytest.mark.parametrize(
    "kind", ["smooth", "masked", "empty mask", "constant", "one slice", "two voxels", "nan"]
)
def test_the_step_matrix_is_that_of_the_ops(random, kind, step):
    size = {"one slice": (1, 6, 7), "two voxels": (2, 2, 6)}.get(kind, (5, 6, 7))
    moving, fixed = (random.normal(size=(2, 3, *size)) for _ in range(2))
    weights = None
    if kind == "constant":
        moving[:] = fixed[:] = 0.25
    if kind == "nan":
        moving[0], fixed[1, :, -1] = np.nan, np.nan
    if kind in ("masked", "empty mask"):
        weights = (random.uniform(size=(2, 1, *size)) > 0.4).astype(np.float64)
        weights[1] *= kind == "masked"
        moving[0, :, 2, 2, 2] = np.nan
        weights[0, :, 1:4, 1:4, 1:4] = 0
    matrix, ruler = _step_matrix.matrices(moving, fixed, weights, step)
    mask = None if weights is None else torch.from_numpy(weights)
    want = reference.step_matrix(torch.from_numpy(moving), torch.from_numpy(fixed), mask, step)
    np.testing.assert_allclose(matrix, want, rtol=1e-9, atol=1e-12)
    assert (ruler is None) == (step in ("moving", "newton"))


def test_batches_are_solved_in_turns_as_each_alone():
    # Three packed maps of float64 are more than the kernels take at once.
    maps = np.concatenate([wavy((40, 41, 42), a) for a in (0.02, 0.05, 0.08)])
    fixed = np.broadcast_to(identity((6, 7, 8)), (3, 3, 6, 7, 8))
    together = array.implicit_warp(maps, fixed, tolerance=1e-3)
    for i in range(3):
        alone = array.implicit_warp(maps[i : i + 1], fixed[:1], tolerance=1e-3)
        for part, whole in zip(alone, together, strict=True):
            np.testing.assert_array_equal(part[0], whole[i])


@pytest.mark.parametrize("mode, order", [("linear", 1), ("nearest", 0)])
@pytest.mark.parametrize("padding, outside", [("border", "nearest"), ("reflection", "mirror")])
def test_resample_is_map_coordinates(random, mode, order, padding, outside):
    volume = random.normal(size=(1, 1, 6, 7, 8))
    coords = random.uniform(-1.4, 1.4, (1, 3, 9, 5, 4))
    voxels = [(coords[0, 2 - i] + 1) * (n - 1) / 2 for i, n in enumerate((6, 7, 8))]
    want = ndimage.map_coordinates(volume[0, 0], voxels, order=order, mode=outside)
    np.testing.assert_allclose(
        array.resample(volume, coords, mode=mode, padding=padding)[0, 0], want, atol=1e-12
    )


def test_warp_and_resize_are_map_coordinates_at_the_identity(random):
    volume, out = random.normal(size=(1, 1, 6, 7, 8)), (9, 5, 1)
    places = np.stack(np.meshgrid(*map(axis, out), indexing="ij"))
    voxels = [(place + 1) * (n - 1) / 2 for place, n in zip(places, (6, 7, 8), strict=True)]
    want = ndimage.map_coordinates(volume[0, 0], voxels, order=1, mode="nearest")
    np.testing.assert_allclose(array.resize(volume, np.array(out))[0, 0], want, atol=1e-12)
    still = np.zeros((1, 3, *out))
    np.testing.assert_allclose(array.warp(volume, still)[0, 0], want, atol=1e-12)


def test_global_ncc_is_corrcoef(random):
    a, b = random.normal(size=(2, 1, 2, 5, 6, 7))
    want = [np.corrcoef(a[0, c].ravel(), b[0, c].ravel())[0, 1] for c in range(2)]
    np.testing.assert_allclose(array.ncc(a, b)[0], want, atol=1e-12)


def test_a_scaled_map_has_the_logarithm_of_its_scales_and_a_mirrored_one_folds():
    scales = np.array([0.5, 2.0, 3.0]).reshape(1, 3, 1, 1, 1)
    field = identity((5, 6, 7)) * scales
    np.testing.assert_allclose(array.log_jacobian(field), np.log(3.0), atol=1e-12)
    assert array.folds(field).item() == 0 and array.folds(field * [[[[[-1.0]]]] * 3]).item() == 1


def test_an_inverse_leads_back():
    field = wavy((14, 15, 16))
    inverse = array.invert(field, (10, 11, 12), tolerance=1e-6, iterations=60)
    back = array.resample(field, identity((10, 11, 12)) + inverse.displacement)
    error = np.abs(back - identity((10, 11, 12))).max(1, keepdims=True)
    assert inverse.valid.mean() > 0.6 and error[inverse.valid].max() < 1e-6
    assert array.invert(field).displacement.shape == (1, 3, 14, 15, 16)
